from __future__ import annotations

import dataclasses
import gc
import multiprocessing
import shutil
import threading
import weakref
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from helpers.common import SAMPLE

from chatterbox_opt import Engine
from chatterbox_opt.audio.files import read_reference
from chatterbox_opt.checkpoints import registry
from chatterbox_opt.errors import InputError, VoiceError, WeightsError
from chatterbox_opt.voice import Voice, from_conditionals
from chatterbox_opt.voices import library as voice_library
from chatterbox_opt.voices import store as voice_store
from chatterbox_opt.voices.library import VoiceLibrary
from chatterbox_opt.voices.store import VoiceStore


def random_voice(seed: int = 0) -> Voice:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 6561, (1, 20), generator=g)
    return Voice(torch.rand(1, 64, generator=g), ids, ids, torch.rand(1, 40, 80, generator=g), torch.rand(1, 192, generator=g))  # fmt: skip


def same(a: Voice, b: Voice) -> bool:
    return all(torch.equal(t, b.tensors()[n]) for n, t in a.tensors().items())


def test_saved_voice_is_restored(store):
    voice = random_voice()
    assert store.load("key") is None
    store.save("key", voice)
    assert same(store.load("key")[0], voice)


def test_cache_key_depends_on_content_and_model_not_on_name(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"same")
    (tmp_path / "c.wav").write_bytes(b"other")
    key = voice_store.content_key
    assert key(tmp_path / "a.wav", "m") == key(tmp_path / "b.wav", "m")
    assert key(tmp_path / "a.wav", "m") != key(tmp_path / "c.wav", "m")
    assert key(tmp_path / "a.wav", "m") != key(tmp_path / "a.wav", "n")


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_damaged_cache_entry_is_computed_again(tiny, store, caplog, damage):
    with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as engine:
        voice = engine.voice(SAMPLE)
    [entry] = (store.directory / "computed").glob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:-100] if damage is None else damage)
    with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as engine:
        assert same(engine.voice(SAMPLE), voice)
    assert "computed again" in caplog.text
    assert same(store.load(entry.stem)[0], voice)


def test_cached_voice_loads_no_encoders(tiny, store, monkeypatch):
    with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as engine:
        voice = engine.voice(SAMPLE)
    monkeypatch.setattr(
        voice_library, "load_encoders", lambda _: pytest.fail("encoders were loaded")
    )
    with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as engine:
        assert same(engine.voice(SAMPLE), voice)
        assert engine.voice(SAMPLE) is engine.voice(str(SAMPLE)), "memory cache"


def test_encoders_run_on_the_cpu_and_are_freed(tiny, store, monkeypatch):
    """On any device: their 0.5 GB are never in GPU memory and not held after use."""
    load_encoders, loaded, devices = voice_library.load_encoders, [], set()

    def load_traced(checkpoint):
        encoders = load_encoders(checkpoint)
        loaded.append(weakref.ref(encoders))
        encode = encoders.encode

        def encode_traced(*args):
            voice = encode(*args)
            devices.update(t.device.type for t in (*encoders.parameters(), *encoders.buffers()))
            return voice

        encoders.encode = encode_traced
        return encoders

    monkeypatch.setattr(voice_library, "load_encoders", load_traced)
    library = VoiceLibrary(registry.locate(str(tiny)), store)
    voice = library.voice(SAMPLE)
    gc.collect()
    assert devices == {"cpu"}
    assert [ref() for ref in loaded] == [None]
    assert {tensor.device.type for tensor in voice.tensors().values()} == {"cpu"}
    assert library.voice(SAMPLE) is voice
    assert len(loaded) == 1


def test_a_voice_that_is_being_computed_blocks_no_other(tiny, store, monkeypatch):
    computing, go_on, computed = threading.Event(), threading.Event(), []
    library = VoiceLibrary(registry.locate(str(tiny)), store)
    own = library.voice(None)

    def slowly(file, key, path):
        computed.append(key)
        computing.set()
        assert go_on.wait(10)
        return own, ""

    monkeypatch.setattr(library, "_encode", slowly)
    with ThreadPoolExecutor(3) as threads:
        try:
            asked = [threads.submit(library.voice, SAMPLE) for _ in range(2)]
            assert computing.wait(10)
            assert threads.submit(library.voice, None).result(2) is own
        finally:
            go_on.set()
        assert [one.result(10) for one in asked] == [own, own] and len(computed) == 1
    assert not library._making


def test_disabled_cache_writes_nothing(tiny, tmp_path):
    store = VoiceStore(tmp_path / "voices", keep_computed=False)
    with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as engine:
        engine.voice(SAMPLE)
    assert not store.directory.exists()


def test_unwritable_cache_is_logged_and_the_voice_returned(tiny, tmp_path, caplog):
    (tmp_path / "voices").write_text("a file in the way")
    store = VoiceStore(tmp_path / "voices")
    with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as engine:
        assert engine.voice(SAMPLE).mel.shape[2] == 80
    assert "was not cached" in caplog.text


def _write_many(directory: Path, seed: int) -> None:
    for _ in range(30):
        VoiceStore(directory).save("shared", random_voice(seed))


def test_concurrent_writers_of_one_entry(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path, i)) for i in range(3)]
    for writer in writers:
        writer.start()
    candidates, seen = [random_voice(i) for i in range(3)], 0
    while any(writer.is_alive() for writer in writers):
        loaded = VoiceStore(tmp_path).load("shared")
        seen += loaded is not None
        assert loaded is None or any(same(loaded[0], c) for c in candidates), "partial file read"
    assert all(writer.exitcode == 0 for writer in writers)
    assert seen
    assert [p.name for p in (tmp_path / "computed").iterdir()] == ["shared.safetensors"]


def test_named_voices_are_added_replaced_and_removed(store, tmp_path):
    store.add("anna", SAMPLE)
    assert store.find("anna").read_bytes() == SAMPLE.read_bytes()
    other = tmp_path / "other.wav"
    other.write_bytes(b"1")
    store.add("anna", other)
    assert list(store.names()) == ["anna"], "a new recording replaces the old one of another type"
    store.remove("anna")
    with pytest.raises(VoiceError, match="no file and no voice 'anna'"):
        store.find("anna")
    with pytest.raises(VoiceError, match="no saved voice"):
        store.remove("anna")


@pytest.mark.parametrize(
    "name", ["../evil", "a/b", "/etc/passwd", "", ".hidden", "a b", "x" * 65, "ä"]
)
def test_names_cannot_escape_the_directory(store, tmp_path, name):
    with pytest.raises(VoiceError, match="letters, digits"):
        store.add(name, SAMPLE)
    with pytest.raises(VoiceError):
        store.remove(name)
    assert not list(tmp_path.rglob("*.flac"))


def test_clear_removes_computed_voices_and_keeps_recordings(store):
    store.add("anna", SAMPLE)
    store.save("key", random_voice())
    (store.directory / "notes.txt").write_text("mine")
    assert store.clear() == 1
    assert (store.directory / "notes.txt").exists()
    assert list(store.names()) == ["anna"]
    assert store.clear_saved() == 1
    assert not store.names()


def write(path: Path, wave: np.ndarray, rate: int = 24_000, **options) -> Path:
    soundfile.write(path, wave, rate, **options)
    return path


SPEECH = (np.sin(np.arange(48_000) / 20) * 0.3).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "rate", "channels", "options"),
    [
        ("8bit.wav", 8_000, 1, {"subtype": "PCM_U8"}),
        ("stereo.wav", 96_000, 2, {"subtype": "PCM_24"}),
        ("five.flac", 44_100, 5, {}),
        ("float.wav", 22_050, 1, {"subtype": "DOUBLE"}),
        ("voice.ogg", 48_000, 2, {}),
        ("voice.mp3", 44_100, 1, {}),
        ("voice.aiff", 16_000, 1, {}),
    ],
)
def test_any_sample_rate_and_channel_count_is_decoded(tmp_path, name, rate, channels, options):
    wave = np.tile(np.resize(SPEECH, 2 * rate)[:, None], (1, channels))
    decoded = read_reference(write(tmp_path / name, wave, rate, **options))
    assert decoded.dtype == np.float32
    assert abs(len(decoded) / 24_000 - 2) < 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "missing.wav", "there is no voice file"),
        (lambda p: p, "is a directory"),
        (lambda p: _bytes(p / "empty.wav", b""), "is empty"),
        (lambda p: _bytes(p / "text.wav", b"this is not audio\n" * 50), "cannot be read as audio"),
        (lambda p: _bytes(p / "cut.wav", b"RIFF"), "cannot be read as audio"),
        (lambda p: write(p / "short.wav", SPEECH[:4800]), "lasts 0.2 s"),
        (lambda p: write(p / "silent.wav", SPEECH * 0), "is silent"),
        (lambda p: write(p / "nan.wav", SPEECH * np.nan, subtype="FLOAT"), "has NaN/Inf samples"),
        (lambda p: write(p / "none.wav", SPEECH[:0]), "lasts 0.0 s"),
    ],
)
def test_unusable_recordings_raise_with_the_reason(tmp_path, make, message):
    with pytest.raises(VoiceError, match=message) as caught:
        read_reference(make(tmp_path))
    assert "\n" not in str(caught.value)


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_recording_of_one_second_is_enough(tiny, store, tmp_path):
    path = write(tmp_path / "one.wav", SPEECH[:24_000])
    with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as engine:
        from chatterbox_opt import Sampling

        assert engine.synthesize("Hi.", engine.voice(path), Sampling(seed=0, max_tokens=9)).duration


def test_conds_pt_cannot_execute_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("code was executed",))

    path = tmp_path / "conds.pt"
    torch.save({"t3": Evil(), "gen": {}}, path)
    with pytest.raises(WeightsError, match="damaged"):
        from_conditionals(path)


@pytest.mark.parametrize(
    "saved", [{}, {"t3": None, "gen": {}}, {"t3": {"speaker_emb": None}, "gen": {}}, []]
)
def test_malformed_conds_pt_raises(tmp_path, saved):
    torch.save(saved, tmp_path / "conds.pt")
    with pytest.raises(WeightsError, match="conds.pt is damaged"):
        from_conditionals(tmp_path / "conds.pt")


@pytest.mark.parametrize(
    ("part", "name", "tensor", "message"),
    [
        ("t3", "speaker_emb", torch.zeros(0), r"speaker is torch.float32 of shape \[1, 0\]"),
        ("t3", "speaker_emb", torch.full((1, 256), float("nan")), "speaker has NaN or Inf"),
        ("t3", "speaker_emb", torch.zeros(1, 64), "not a voice of 'pico'"),
        ("t3", "speaker_emb", torch.zeros(1).expand(10**12), r"speaker_emb is .*\[1000000000000\]"),
        ("t3", "cond_prompt_speech_tokens", torch.tensor([[9000]]), "ids out of 0 to 6560"),
        ("t3", "cond_prompt_speech_tokens", torch.zeros(1, 9), "tokens is torch.float32"),
        ("t3", "cond_prompt_speech_tokens", torch.zeros(1, 2000).long(), "not a voice of 'pico'"),
        ("gen", "prompt_token", torch.zeros(2, 9).long(), r"tokens is torch.int64 of .*\[2, 9\]"),
        ("gen", "prompt_feat", torch.zeros(1, 9, 80), r"mel has shape \[1, 9, 80\], with"),
        ("gen", "prompt_feat", torch.zeros(1, 500, 40), r"mel has shape \[1, 500, 40\]"),
        ("gen", "embedding", torch.zeros(1, 80), "not a voice of 'pico'"),
        ("gen", "embedding", torch.zeros(1, 192).to_sparse(), "embedding is not a tensor"),
        ("gen", "embedding", 5, "embedding is not a tensor"),
    ],
)
def test_conds_pt_that_is_no_voice_of_its_model_raises(
    store, tmp_path, part, name, tensor, message
):
    pico = registry.locate("pico")
    saved = torch.load(pico.path(registry.CONDITIONALS), weights_only=True)
    saved[part][name] = tensor
    torch.save(saved, tmp_path / "conds.pt")
    library = VoiceLibrary(dataclasses.replace(pico, directory=tmp_path), store)
    with pytest.raises(WeightsError, match=f"conds.pt is .*{message}") as caught:
        library.voice()
    assert "get it again" in str(caught.value)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:5000], lambda b: b"{}" * 99])
def test_damaged_voice_files_of_a_model_are_named(tmp_path, damage):
    shipped = next(iter(registry.shipped_voices("pico").values()))
    for path, read in (
        (registry.locate("pico").path(registry.CONDITIONALS), from_conditionals),
        (shipped, voice_library.load_voice),
    ):
        copied = tmp_path / path.name
        copied.write_bytes(damage(path.read_bytes()))
        with pytest.raises(WeightsError, match=f"{copied} is damaged"):
            read(copied)


def test_conds_pt_that_unpacks_to_gigabytes_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "conds.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(17 << 20))
    with pytest.raises(WeightsError, match="has 17,825,792 bytes when unpacked"):
        from_conditionals(tmp_path / "conds.pt")


def test_voice_tensors_are_not_inference_tensors(tiny, store):
    with Engine.load(str(tiny), "dev", device="cpu", store=store, watermark=False) as engine:
        fresh = engine.voice(SAMPLE)
    assert not any(t.is_inference() for t in fresh.tensors().values())


def test_saved_name_wins_over_a_directory(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "anna").mkdir()
    with pytest.raises(VoiceError, match="is a directory"):
        store.find("anna")
    store.add("anna", SAMPLE)
    assert store.find("anna").is_file()
    with pytest.raises(VoiceError, match="there is no voice file"):
        from chatterbox_opt.audio.files import check_reference

        check_reference(store.find("x" * 300))


def test_voice_cache_directory_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CHATTERBOX_VOICE_CACHE", str(tmp_path))
    assert voice_store.default_directory() == tmp_path


def test_shapes_of_the_models_own_voice(tiny):
    voice = from_conditionals(registry.locate(str(tiny)).path(registry.CONDITIONALS))
    assert voice.mel.shape == (1, 2 * voice.tokens.shape[1], 80)
    assert voice.speaker.shape == (1, 64)


def test_model_without_its_own_voice_says_how_to_pass_one(tiny, store, tmp_path):
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model" / registry.CONDITIONALS).unlink()
    library = VoiceLibrary(registry.locate(str(tmp_path / "model")), store)
    with pytest.raises(
        InputError, match=r"no voice of its own; pass a reference recording \(--voice"
    ):
        library.voice()


def test_shipped_voices_are_read_without_encoders(store, monkeypatch):
    monkeypatch.setattr(
        voice_library, "load_encoders", lambda _: pytest.fail("encoders were loaded")
    )
    library = VoiceLibrary(registry.locate("pico"), store)
    name, path = next(iter(registry.shipped_voices("pico").items()))
    assert same(library.voice(name), voice_library.load_voice(path))
