"""T3 over GPT-2 with tiny random weights: upstream's own class, and its loop."""

from __future__ import annotations

import torch
from chatterbox.models.t3 import T3 as UpstreamT3
from chatterbox.models.t3.llama_configs import LLAMA_CONFIGS
from chatterbox.models.t3.modules.cond_enc import T3Cond
from chatterbox.models.t3.modules.t3_config import T3Config as UpstreamConfig
from torch import Tensor

from chatterbox_opt.config.model_config import GPT2, T3Config
from chatterbox_opt.models.t3.model import Prompt

TINY_GPT2 = T3Config(
    layers=3, width=64, heads=4, ffn=256, text_vocab=300, speech_vocab=6563, prompt_tokens=30,
    speaker=32, backbone=GPT2, positions=200,
)  # fmt: skip
NARROW_GPT2 = T3Config(
    layers=2, width=48, heads=3, ffn=192, text_vocab=300, speech_vocab=6563, prompt_tokens=20,
    speaker=32, backbone=GPT2, positions=150,
)  # fmt: skip


def upstream_gpt2(config: T3Config, seed: int = 0) -> UpstreamT3:
    """Upstream's T3 in this shape, made as tts_turbo.py does; weights that tell tokens apart."""
    name = "chatterbox-opt-test-gpt2"
    LLAMA_CONFIGS[name] = LLAMA_CONFIGS["GPT2_medium"] | {
        "hidden_size": config.width, "n_embd": config.width, "n_head": config.heads,
        "n_layer": config.layers, "n_positions": config.positions, "n_ctx": config.positions,
        "vocab_size": config.text_vocab,
    }  # fmt: skip
    try:
        t3 = UpstreamT3(turbo_hyperparameters(config, name))
    finally:
        del LLAMA_CONFIGS[name]
    generator = torch.Generator().manual_seed(seed)
    for parameter_name, parameter in t3.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if ".ln_" in parameter_name and parameter_name.endswith("weight"):
            parameter.data = 1 + 0.2 * values
        elif parameter_name.startswith("speech_head"):
            parameter.data = values * (0.3 if parameter.dim() > 1 else 0.5)
        else:
            parameter.data = values * (0.15 if parameter.dim() > 1 else 0.1)
    return t3.eval()


def turbo_hyperparameters(config: T3Config, name: str) -> UpstreamConfig:
    """As in upstream's tts_turbo.py, ``from_local``."""
    hp = UpstreamConfig(text_tokens_dict_size=config.text_vocab)
    hp.llama_config_name = name
    hp.speech_tokens_dict_size = config.speech_vocab
    hp.input_pos_emb = None
    hp.speech_cond_prompt_len = config.prompt_tokens
    hp.use_perceiver_resampler = False
    hp.emotion_adv = False
    hp.speaker_embed_size = config.speaker
    return hp


def gpt2_prompt(config: T3Config, number: int) -> Prompt:
    """A text of its own length, in a voice of its own."""
    generator = torch.Generator().manual_seed(number)
    return Prompt(
        torch.randint(config.text_vocab, (3 + 7 * number % 40,), generator=generator),
        torch.rand(1, config.speaker, generator=generator),
        torch.randint(6561, (1, config.prompt_tokens), generator=generator),
    )


def conditioning(prompt: Prompt) -> T3Cond:
    """A fresh one, because upstream's inference writes into it."""
    return T3Cond(
        speaker_emb=prompt.speaker,
        cond_prompt_speech_tokens=prompt.speech_tokens,
        emotion_adv=0.5 * torch.ones(1, 1, 1),
    )


def upstream_prefix(t3: UpstreamT3, prompt: Prompt) -> Tensor:
    """[1, length, width], before the positions are added."""
    text = prompt.text_tokens[None]
    start = torch.full_like(text[:, :1], t3.hp.start_speech_token)
    embeds, _ = t3.prepare_input_embeds(
        t3_cond=conditioning(prompt), text_tokens=text, speech_tokens=start
    )
    return embeds


def turbo_tokens(t3: UpstreamT3, prompt: Prompt, *, seed: int, max_tokens: int, **knobs):
    """Upstream's own ``inference_turbo`` under a seed; its limit counts from the second token."""
    torch.manual_seed(seed)
    return t3.inference_turbo(
        conditioning(prompt), prompt.text_tokens[None], max_gen_len=max_tokens - 1, **knobs
    )[0].tolist()


def greedy_turbo_tokens(t3: UpstreamT3, prompt: Prompt, *, max_tokens: int, **knobs):
    """``inference_turbo`` with argmax in place of the draw, at temperature 0."""

    def most_likely(probabilities, num_samples):
        assert num_samples == 1
        return probabilities.argmax(dim=-1, keepdim=True)

    drawn, torch.multinomial = torch.multinomial, most_likely
    try:
        return turbo_tokens(t3, prompt, seed=0, max_tokens=max_tokens, temperature=0.0, **knobs)
    finally:
        torch.multinomial = drawn


@torch.inference_mode()
def forced_logits(t3: UpstreamT3, prompt: Prompt, tokens: list[int]) -> Tensor:
    """Logits [1 + tokens, V]: of the prefix's end, then after each token, from upstream's modules."""
    output = t3.tfmr(inputs_embeds=upstream_prefix(t3, prompt), use_cache=True)
    logits = [t3.speech_head(output[0][:, -1])]
    for token in tokens:
        embeds = t3.speech_emb(torch.tensor([[token]]))
        output = t3.tfmr(
            inputs_embeds=embeds, past_key_values=output.past_key_values, use_cache=True
        )
        logits.append(t3.speech_head(output[0][:, -1]))
    return torch.cat(logits)
