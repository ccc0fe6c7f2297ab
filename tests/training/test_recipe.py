"""Pico's training, as far as no teacher is needed: codes, forward pass, packing."""

from __future__ import annotations

import json
import re
import runpy
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.common import assert_close
from helpers.t3 import decode_all, eager_backend, sequence_of
from tokenizers import Tokenizer

from chatterbox_opt.checkpoints import random_weights
from chatterbox_opt.config.model_config import SAMPLE_RATE
from chatterbox_opt.engine.decoding import decode
from chatterbox_opt.models.t3.convert import t3_from_upstream
from chatterbox_opt.models.t3.model import Prompt
from chatterbox_opt.models.vocoder.source import source
from chatterbox_opt.sampling import Sampling
from chatterbox_opt.utils.upstream_import import import_upstream
from training.pico import (
    codes,
    pack,
    sound,
    teacher,
    texts,
    train_flow,
    train_t3,
    train_vocoder,
    training,
    utterances,
    written,
)
from training.pico.design import PICO_CONFIG, tokenizer
from training.pico.utterances import Utterance


@pytest.fixture(scope="module")
def trainable_t3():
    torch.manual_seed(0)
    used = torch.tensor([0, 5, 90, 700, 701, 6000, PICO_CONFIG.t3.stop_speech])
    return train_t3.FactorizedT3(used)


@pytest.mark.parametrize(
    "program",
    ["data", "train_vocoder", "train_flow", "train_encoders", "train_t3", "pack", "parts",
     "evaluate", "word_times"],
)  # fmt: skip
def test_every_program_starts(program, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [program, "--help"])
    name = f"training.pico.{program}"
    monkeypatch.delitem(sys.modules, name, raising=False)  # it runs as a program, once
    with pytest.raises(SystemExit, match="^0$"):
        runpy.run_module(name, run_name="__main__")
    assert "Usage" in capsys.readouterr().out


def sample_example(written: str) -> train_t3.Example:
    """Six codes of two words; as a prompt of another text, silence."""
    tokens, words = np.array([5, 700, 90, 6000, 701, 5]), np.array([0, 0, 0, 1, 1, 1], np.uint8)
    silence = np.zeros((2, 20), np.uint8)
    one = Utterance(written, 0.5, tokens.astype(np.int16), words, silence)
    text = train_t3.text_of(one, Tokenizer.from_str(json.dumps(tokenizer())))
    assert text is not None
    return train_t3.Example(text, teacher.Speaker(), tokens, words)


def test_symbols_are_unique_and_fit_the_code_base():
    assert len(set(codes.SYMBOLS)) == len(codes.SYMBOLS) <= codes.BASE
    symbols = codes.symbols_of("həlˈO, wˈɜɹld.")
    assert [codes.SYMBOLS[i] for i, _, _ in symbols] == list("həl") + [
        "ˈO",
        ",",
        " ",
        "w",
        "ˈɜ",
    ] + list("ɹld.")
    assert [word for _, word, _ in symbols] == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert sum(width for _, _, width in symbols) == len("həlˈO, wˈɜɹld.")


def test_code_is_two_phones_and_eight_ternary_digits():
    frames = np.repeat(np.arange(10), 2)  # ten symbols of 25 ms
    speech_codes = codes.codes_of(frames)
    assert len(speech_codes) == 6  # 250 ms are six codes and a bit
    assert speech_codes[0] == codes.BASE * 0 + 1
    digits = codes.digits(speech_codes)
    assert digits.max() <= 2
    assert ((digits * 3 ** np.arange(8)).sum(1) == speech_codes).all()


def test_speaker_vectors_are_normalized_like_the_encoders():
    one, other = (teacher.draw_speaker(np.random.default_rng(i)) for i in (1, 2))
    voice = teacher.voice_vector(one, 256)
    assert voice.min() >= 0 and np.linalg.norm(voice) == pytest.approx(1, abs=1e-5)
    assert not np.allclose(voice, teacher.voice_vector(other, 256), atol=0.01)
    many = np.stack(
        [teacher.x_vector(teacher.draw_speaker(np.random.default_rng(i)), 192) for i in range(300)]
    )
    assert abs(many.mean()) < 0.1 and abs(many.std() - 1) < 0.1


def symbols_of(text: str) -> np.ndarray:
    """Two frames of each character of an alphabet of sounds and pauses."""
    return np.repeat([codes.INDEX[character] for character in text], 2)


def test_the_last_syllable_before_a_pause_is_longer():
    symbols = symbols_of("_hæləm, ðɛ kæts.?_")
    at = teacher._final_syllables(symbols)
    text = "".join(codes.SYMBOLS[i] for i in symbols[at][::2])
    assert text == "əmæts", "from its vowel on, in each phrase"
    assert not teacher._final_syllables(symbols_of("_..__")).any()


def test_attention_is_that_of_pytorch():
    q, k, v = torch.randn(3, 2, 4, 37, 16, generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert_close(train_t3.causal_attention(q, k, v), expected, atol=1e-5)
    found = train_t3.causal_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert_close(found.float(), expected, atol=0.03)


def test_speakers_have_a_rhythm():
    symbols = symbols_of("_hæləm, ðɛ kæts._" * 20)
    voices = list(pack.SPEAKERS.values())
    orders = [teacher.rhythm(symbols, speaker) for speaker in voices]
    for order, speaker in zip(orders, voices, strict=True):
        assert (np.diff(order) >= 0).all() and order[0] == 0 and order[-1] == len(symbols) - 1
        final = teacher._final_syllables(symbols)
        expected = np.where(final, speaker.final, 1).sum() / speaker.pace
        assert len(order) == pytest.approx(expected, abs=1)
        lengths = np.bincount(order, minlength=len(symbols)) * speaker.pace
        assert lengths[final].mean() / lengths[~final].mean() == pytest.approx(speaker.final, 0.05)
    paces, finals = ([getattr(v, name) for v in voices] for name in ("pace", "final"))
    assert np.ptp(paces) > 0.15 and min(np.abs(np.diff(sorted(paces)))) > 0.005
    assert np.ptp(finals) > 0.2


def test_a_speakers_codes_follow_from_the_teachers_frames():
    frames = np.stack((symbols_of("_hæləm, ðɛ kæts._"), np.arange(34) // 12)).astype(np.uint8)
    slow, fast = (utterances.in_rhythm(frames, pack.SPEAKERS[name]) for name in ("bruno", "clara"))
    for tokens, words in (slow, fast):
        assert len(tokens) == len(words) and (np.diff(words.astype(int)) >= 0).all()
        assert tokens.max() < codes.BASE**2
    assert len(slow[0]) > len(fast[0])


def test_evaluation_sentences_are_held_out():
    banned = texts.held_out()
    assert len(banned) > 650
    assert texts.letters("The kettle is boiling, so would you like a cup of tea?") in banned


def test_written_sentences_are_normalized_to_words():
    rng = np.random.default_rng(0)
    sentences = [written.sentence(rng) for _ in range(400)]
    assert all(re.fullmatch(r"[A-Za-z][A-Za-z',; -]*[A-Za-z.?!]+", text) for text in sentences)
    assert len(set(sentences)) > 380
    assert {"one", "eleven", "twelve", "thirteen", "thirty", "hundred", "thousand", "third"} <= {
        word for text in sentences for word in re.split(r"[^a-z]+", text.lower())
    }


def test_patterns_share_no_trigram_with_the_evaluation():
    """Otherwise the evaluation could measure memorization."""

    def trigrams(text: str) -> set[tuple[str, ...]]:
        words = texts.letters(text).split()
        return set(zip(words, words[1:], words[2:], strict=False))

    lines = [line for f in texts.SENTENCES.glob("*.txt") for line in f.read_text().splitlines()]
    evaluated = set().union(*map(trigrams, lines))
    for pattern in written.PATTERNS:
        for piece in re.split(r"\{\w+\}", pattern):
            assert not trigrams(piece) & evaluated, pattern


def test_loud_syllables_are_compressed():
    time = np.arange(3 * 24000) / 24000
    quiet, loud = 0.08, 0.6
    wave = np.where((time > 1) & (time < 1.3), loud, quiet) * np.sin(2 * np.pi * 110 * time)
    wave = wave.astype(np.float32)
    compressed = sound.compress(wave)
    assert np.array_equal(compressed[:20000], wave[:20000]), "changed below the threshold"
    rise = 20 * np.log10(
        np.abs(compressed[26000:30000]).max() / 10 ** (sound.THRESHOLD / 20) / 2**0.5
    )
    before = 20 * np.log10(loud / 10 ** (sound.THRESHOLD / 20) / 2**0.5)
    assert abs(rise - before / sound.RATIO) < 0.5


def test_training_forward_equals_decoding(trainable_t3):
    """Teacher forcing in a padded batch computes the logits of the package's decode loop."""
    short = sample_example("Hello, world.")
    long = sample_example("Hello, world and everybody else.")
    batch = train_t3.Batch([short, long], np.random.default_rng(0), noisy=False)
    with torch.no_grad():
        hidden, guide = trainable_t3(batch)
        logits = trainable_t3.logits(hidden)
    assert guide > 0
    plain = trainable_t3.fold().eval()
    for row, e in enumerate((short, long)):
        prompt = Prompt(
            torch.from_numpy(e.text.ids[1:-1]),
            batch.speakers[row : row + 1],
            batch.prompts[row : row + 1],
        )
        sampling = Sampling(cfg_weight=0.0, temperature=0.0)
        forced_tokens = tuple(int(c) for c in e.codes)
        request = sequence_of(prompt, sampling, forced_tokens=forced_tokens)
        logits_of_steps, plain_step = [], decode.eager_step(plain.step)

        def step(slots, *args, seen=logits_of_steps, plain_step=plain_step, **kwargs):
            plain_step(slots, *args, **kwargs)
            seen.append(slots.logits.clone())

        decode_all(plain, [request], rows_per_seq=1, backend=eager_backend(step=step))
        after_codes = slice(row * 7 + 1, row * 7 + 7)  # positions of the six codes
        mine = logits[after_codes, : len(trainable_t3.used)]
        theirs = torch.cat(logits_of_steps)[:, trainable_t3.used]
        assert_close(mine, theirs, atol=1e-4)


def test_unused_codes_are_one_softmax_class(trainable_t3):
    """The folded head's softmax over all codes equals the trained softmax."""
    hidden = torch.randn(3, PICO_CONFIG.t3.width)
    with torch.no_grad():
        small = trainable_t3.logits(hidden).softmax(-1)
        whole = trainable_t3.fold().head(hidden).softmax(-1)
    assert_close(whole[:, trainable_t3.used], small[:, :-1], atol=1e-6)
    assert trainable_t3.classes(torch.tensor([90, 91])).tolist() == [2, len(trainable_t3.used)]


def test_corrupted_codes_are_valid_codes(trainable_t3):
    original = np.array([5, 90, 700, 6000])
    corrupted = train_t3._corrupt(
        original, np.array([True, True, False, True]), np.random.default_rng(0)
    )
    assert len(corrupted) == 3 and (corrupted >= 0).all() and (corrupted < 6561).all()


def test_muon_orthogonalizes_updates():
    update = training.orthogonal(torch.randn(48, 16, generator=torch.Generator().manual_seed(0)))
    singular = torch.linalg.svdvals(update)
    assert singular.min() > 0.5 and singular.max() < 1.4


def test_the_source_of_the_vocoder_passes_the_harmonics_on():
    """And it stays so: the layer that merges them is not trained."""
    net = train_vocoder.TrainableHiFT()
    merge, f0 = net.net.m_source.l_linear, torch.full((1, 200), 120.0)
    # of one draw of its phases the mean may be a tenth
    signals = [source(merge, f0, torch.Generator().manual_seed(i))[0] for i in range(20)]
    signal = signals[0]
    assert not any(p.requires_grad for p in net.net.m_source.parameters())
    constant = torch.stack(signals).mean().square()
    assert 10 * torch.log10(signal.var() / constant) > 20
    power = torch.fft.rfft(signal * torch.hann_window(len(signal))).abs().square()
    hertz = torch.arange(len(power)) * SAMPLE_RATE / len(signal)
    high = power[(hertz > 2000) & (hertz < 4000)].sum() / power.sum()
    assert 10 * torch.log10(high) > -20, "of a low voice, far beyond the ninth"


def test_pitch_is_wrong_by_hertz_and_cents():
    true, loss = torch.tensor([[100.0, 200.0, 0.0, 0.0]]), train_vocoder.pitch_loss
    assert loss(true, true) == 0
    octave = torch.tensor([[200.0, 200.0, 0.0, 0.0]])
    assert loss(octave, true) == pytest.approx((100 / 100 + 1200 / 100) / 4)
    assert loss(torch.tensor([[100.0, 200.0, 0.0, 105.0]]), true) == pytest.approx(1.05 / 4)
    start = torch.zeros(1, 4, requires_grad=True)
    loss(start, true).backward()
    assert (start.grad[0, :2] < 0).all(), "a predictor that begins at zero is led to the voice"


@pytest.fixture
def trainable_mel(monkeypatch):
    mel = import_upstream("models.s3gen.utils.mel")  # it may have made these for inference only
    monkeypatch.setattr(mel, "mel_basis", {})
    monkeypatch.setattr(mel, "hann_window", {})


def tone() -> Utterance:
    """130 frames of 150 Hz and noise, louder and louder."""
    time = np.arange(130 * 480) / 24000
    wave = np.sin(2 * np.pi * 150 * time) + np.random.default_rng(0).normal(0, 0.1, len(time))
    pcm = (4000 * (1 + time) * wave).astype(np.int16)
    silence, f0 = np.zeros(65, np.int16), np.full(130, 150, np.float16)
    return Utterance("", 0.5, silence, silence.astype(np.uint8), wave=pcm, f0=f0)


@pytest.mark.usefixtures("trainable_mel")
def test_a_segment_is_a_part_of_a_sound_with_a_gain():
    whole = train_vocoder.Sound.of(tone())
    part = whole.segment(40, np.random.default_rng(0))
    assert part.wave.shape == (40 * 480,) and part.f0.shape == (40,)
    assert part.wave.abs().max() < 0.9 * whole.wave.abs().max(), "it has a gain"
    # one with margins, whose mel is not affected by what is reflected at the ends of the part
    assert_close(sound.mel_of(part.wave[None])[0][:, 3:-3], part.mel[:, 3:-3], atol=0.05)
    silence = train_vocoder.Sound(whole.wave, torch.full((80, 130), train_vocoder.SILENT), whole.f0)
    assert silence.segment(40, np.random.default_rng(0)).mel.min() == train_vocoder.SILENT
    assert sound.mel_of(torch.zeros(1, 9600)).max() == pytest.approx(train_vocoder.SILENT)


def test_rounding_errors_are_those_of_bfloat16_but_larger():
    torch.manual_seed(0)
    convolution = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(8, 8, 3))
    weight, x = convolution.weight.detach(), torch.randn(1, 8, 20)
    names = set(convolution.state_dict())
    train_vocoder.round_factors(convolution)
    assert set(convolution.state_dict()) == names, "the file is the same"

    def coarse(value, sign):
        return value + sign * train_vocoder.COARSER * (value.bfloat16().float() - value)

    signs = [(one, two) for one in (-1, 1) for two in (-1, 1)]
    expected = [F.conv1d(coarse(x, i), coarse(weight, j), convolution.bias) for i, j in signs]
    assert (expected[0] - F.conv1d(x, weight, convolution.bias)).abs().max() > 1e-3
    found = {
        min(range(4), key=lambda i: (out - expected[i]).abs().max())
        for out in (convolution(x) for _ in range(40))
    }
    assert found == {0, 1, 2, 3}
    exact = x.requires_grad_()
    out = convolution(exact)
    assert min((out - one).abs().max() for one in expected) < 1e-5
    out.sum().backward()
    given = [coarse(weight, sign).sum((0, 2)) for sign in (-1, 1)]
    assert min((exact.grad[0, :, 10] - one).abs().max() for one in given) < 1e-5


def test_layers_whose_products_may_be_bfloat16_are_rounded():
    """All residual blocks but those of the last stage."""
    net = train_vocoder.TrainableHiFT().net
    count = 2 * net.num_kernels
    assert net.num_upsamples == 3 and len(net.resblocks) == 3 * net.num_kernels
    for blocks, early in ((net.resblocks, count), (net.source_resblocks, 2)):
        for i, block in enumerate(blocks):
            for convolution in (*block.convs1, *block.convs2):
                last = convolution.parametrizations.weight[-1]
                assert isinstance(last, train_vocoder.Rounded) == (i < early)


@pytest.mark.usefixtures("trainable_mel")
def test_the_vocoder_is_trained_against_discriminators(monkeypatch):
    monkeypatch.setattr(train_vocoder, "ROWS", 1)
    monkeypatch.setattr(train_vocoder, "PITCH_ROWS", 2)
    rng = np.random.default_rng(0)
    net, segments = train_vocoder.TrainableHiFT(), train_vocoder.Segments([tone()])
    early = train_vocoder.losses_of(net, segments, rng, 0.0)
    assert set(early) == {"loss", "pitch", "filtered", "stft", "mel", "bands", "distance", "peak"}
    early["loss"].backward()
    assert all(p.grad is None for p in net.discriminators.parameters())
    late = train_vocoder.losses_of(net, segments, rng, 1.0)
    wave = next(p for n, p in net.net.named_parameters() if n.startswith("ups.0"))
    first = next(net.discriminators.parameters())
    (late["adversarial"] + late["features"]).backward(retain_graph=True)
    assert wave.grad is not None and first.grad is None, "the vocoder's losses leave them alone"
    wave.grad = None
    late["discriminators"].backward()
    assert wave.grad is None and first.grad.abs().sum() > 0, "and the other way round"


def test_only_peaks_above_the_true_ones_count():
    loss = train_vocoder.peak_loss
    true = 0.3 * torch.randn(2, 9600, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    assert loss(true, true) == 0 and loss(0.1 * true, true) == 0
    assert loss(1.15 * true, true) == 0, "1.2 dB are allowed"
    click = torch.full((1, 9600), 0.1)
    click[0, 5000] = 0.9
    found = loss(click, torch.full((1, 9600), 0.1))
    windows = (9600 - 960) // 240 + 1
    assert found == pytest.approx(4 / windows * (np.log(0.91 / 0.11) - train_vocoder.OVERSHOOT))


def test_spectral_distance_is_that_of_levels():
    time = torch.arange(9600) / 24000
    tone = 0.3 * torch.sin(2 * torch.pi * 1000 * time)[None]
    noise = 0.1 * torch.randn(1, 9600, generator=torch.Generator().manual_seed(0))
    loud, silence = tone + noise, torch.zeros(1, 9600)
    distance = train_vocoder.spectral_distance
    assert distance(loud, loud) == pytest.approx(0.01)
    assert distance(2 * loud, loud) == pytest.approx(np.log(2), abs=0.002), "6 dB in all bins"
    assert distance(1e-6 * loud, silence) == pytest.approx(0.01), "below -60 dB all is silent"


def test_formants_weigh_more_in_mel_bands():
    torch.manual_seed(0)
    noise = 0.1 * torch.randn(1, 24000)
    low = sound.spectrum(noise, 1024, 256)
    low[:, 1024 // 24 :] = 0  # above 1 kHz
    low = torch.istft(low, 1024, 256, 1024, torch.hann_window(1024), length=24000)
    assert all(loss == 0 for loss in train_vocoder.spectral_losses(noise, noise))
    _, bands = train_vocoder.spectral_losses(noise + low, noise)
    assert bands > 3 / 12 * np.log(2), "twice as loud in a twelfth of the bins"
    stft, bands = train_vocoder.spectral_losses(2 * noise, noise)
    assert bands == pytest.approx(np.log(2), abs=0.01)
    assert stft == pytest.approx(np.log(2) + 0.5, abs=0.01)


def test_training_resumes(tmp_path, capsys):
    target = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))

    def run(minutes: float) -> torch.nn.Module:
        net = torch.nn.Linear(4, 4)
        training.train(
            "x", net, lambda rng, _: {"loss": (net.weight - target).pow(2).mean()},
            minutes=minutes, rate=1e-3, out=tmp_path, inner=[net.weight],
        )  # fmt: skip
        return net

    first = run(0.01)
    steps = torch.load(tmp_path / "x.pt", weights_only=True)["step"]
    again = training.trained("x", torch.nn.Linear(4, 4), tmp_path)
    assert torch.equal(again.weight, first.weight)
    run(0.02)
    assert torch.load(tmp_path / "x.pt", weights_only=True)["step"] > steps
    assert "loss" in capsys.readouterr().out


def test_workers_draw_at_the_same_time_and_their_gradients_are_averaged():
    weight = torch.nn.Parameter(torch.zeros(3))
    both = threading.Barrier(2, timeout=30)  # one after the other would wait for ever

    def loss_of(rng: np.random.Generator, progress: float) -> dict[str, torch.Tensor]:
        both.wait()
        return {"loss": (weight * float(rng.integers(100))).sum() + progress}

    rngs = np.random.default_rng(5).spawn(2)
    drawn = [int(rng.integers(100)) for rng in np.random.default_rng(5).spawn(2)]
    with ThreadPoolExecutor(2) as pool:
        losses = training.gradients(loss_of, rngs, 0.25, pool)
    assert drawn[0] != drawn[1] and losses == {"loss": 0.25}
    assert torch.equal(weight.grad, torch.full((3,), sum(drawn) / 2))


def test_a_loss_that_begins_later_is_averaged_from_there():
    found = [{"loss": 4.0}, {"loss": 2.0, "features": 1.0}, {"loss": 3.0, "features": 2.0}]
    assert training.means(found) == {"loss": 3.0, "features": 1.5}


def test_packing_inverts_loading(trainable_t3):
    plain = trainable_t3.fold().state_dict()

    def convert(theirs):
        return t3_from_upstream(theirs, PICO_CONFIG.t3, torch.float64).state_dict()

    theirs = pack.invert_conversion(convert, random_weights.t3_template(PICO_CONFIG.t3), plain)
    back = t3_from_upstream(theirs, PICO_CONFIG.t3, torch.float32).state_dict()
    assert all(torch.equal(back[name], plain[name]) for name in plain)
    flow_net = train_flow.FactorizedFlow()
    state = flow_net.fold().state_dict()
    template = random_weights.upstream_flow(PICO_CONFIG.flow).state_dict()
    packed = pack.invert_conversion(pack.flow_to_ours, template, state)
    assert set(packed) == set(template)
    again = pack.flow_to_ours(packed)
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_float16_overflow_is_an_error():
    with pytest.raises(OverflowError, match="big"):
        pack.to_float16({"big": torch.tensor([1e6])})
