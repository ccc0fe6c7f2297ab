"""Known models: names, files, and how to find and check them.

Responsible for names, revisions and file names. Not responsible for downloads (hub.py) or for the
tensors in the files (loader.py); imports no torch.

A model is named by ``pico``, by ``chatterbox``, by ``chatterbox@main`` (a hub model at another
revision than the pinned one), or by a directory.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chatterbox_opt.checkpoints import hub
from chatterbox_opt.checkpoints.hub import Pin, Snapshot
from chatterbox_opt.config.model_config import CONFIG_FILE, ENGLISH, ModelConfig, read_config
from chatterbox_opt.errors import InputError, WeightsError

VOICE_ENCODER = "ve.safetensors"
T3 = "t3_cfg.safetensors"
S3GEN = "s3gen.safetensors"
TOKENIZER = "tokenizer.json"
CONDITIONALS = "conds.pt"
REQUIRED = (VOICE_ENCODER, T3, S3GEN, TOKENIZER)  # conds.pt may be absent, as upstream allows
FILES = (*REQUIRED, CONDITIONALS)
MAX_VOICE_ENCODER = 64 << 20  # bytes; Chatterbox's has 6 MB
VOICES = "voices"  # folder of named voices that come with a model; hub models have none

DEFAULT = "chatterbox"
HUB = {
    DEFAULT: Snapshot(
        "ResembleAI/chatterbox",
        "5bb1f6ee58e50c3b8d408bc82a6d3740c2db6e18",
        FILES,
        {
            VOICE_ENCODER: Pin(
                5_695_784, "f0921cab452fa278bc25cd23ffd59d36f816d7dc5181dd1bef9751a7fb61f63c"
            ),
            T3: Pin(
                2_129_653_744, "914cb1696f47527fe8852ca8f1fe1fa63cb34f76f9c715e84e067b744dd0da81"
            ),
            S3GEN: Pin(
                1_056_484_620, "2b78103c654207393955e4900aac14a12de8ef25f4b09424f1ef91941f161d4e"
            ),
            TOKENIZER: Pin(
                25_470, "d71e3a44eabb1784df9a68e9f95b251ecbf1a7af6a9f50835856b2ca9d8c14a5"
            ),
            CONDITIONALS: Pin(
                107_374, "6552d70568833628ba019c6b03459e77fe71ca197d5c560cef9411bee9d87f4e"
            ),
        },
    )
}
_LATER = ("backbone", "positions", "mean_flow")  # fields of the config, see ``_config_text``
BUILT_IN = ("pico",)  # names of their directories in the package


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete set of model files on local disk.

    Attributes:
        name: as passed to ``locate``.
        directory: of the files.
        config: of all stages.
        voice_identity: digest of the encoders that turn a recording into a Voice, and of what
            they get of it.
    """

    name: str
    directory: Path
    config: ModelConfig
    voice_identity: str

    def path(self, file: str) -> Path:
        return self.directory / file

    def voices(self) -> dict[str, Path]:
        """Named voices that come with the model, as files (see ``voices.library.load_voice``)."""
        return _voices(self.directory)


def available() -> dict[str, str]:
    """Known model names and the source of each, for messages and tables."""
    known = {name: f"hub: {snapshot.repository}" for name, snapshot in HUB.items()}
    return known | dict.fromkeys(BUILT_IN, "built in")


def built_in(name: str) -> Path:
    """Directory of a model that is part of the package."""
    return Path(__file__).parents[1] / name


def shipped_voices(model: str) -> dict[str, Path]:
    """Named voices that come with a model; uses no network, so hub models have none."""
    if on_hub(model):
        return {}
    return _voices(_on_disk(model))


def _on_disk(model: str) -> Path:
    return built_in(model) if model in BUILT_IN else Path(model)


def _voices(directory: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted((directory / VOICES).glob("*.safetensors"))}


def on_hub(model: str) -> Snapshot | None:
    """The snapshot that a model's name stands for; None for built-in models and directories.

    Raises:
        InputError: no revision can have that name.
    """
    name, at, revision = model.partition("@")
    if name not in HUB or (at and Path(model).is_dir()):
        return None
    return HUB[name].at(revision) if at else HUB[name]


def at_revision(model: str, revision: str | None) -> str:
    """The name of a hub model at another revision than the pinned one.

    Raises:
        InputError: the model is not of the hub.
    """
    if revision is None:
        return model
    if model not in HUB:
        raise InputError(f"--revision is for models of the hub ({', '.join(HUB)}), not '{model}'")
    return f"{model}@{revision}"


def check_name(model: str) -> None:
    """Reject an impossible model name early, before disk or network are used.

    Raises:
        InputError: neither a known name nor a directory.
    """
    if model in available() or on_hub(model) or Path(model).is_dir():
        return
    raise InputError(
        f"unknown model '{model}'; known: {', '.join(available())}, or a directory with {T3} in it"
    )


def locate(model: str = DEFAULT) -> Checkpoint:
    """Find a model's files; those of a hub model are downloaded if they are not cached.

    ``HF_HUB_OFFLINE``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_ENDPOINT`` have their usual meaning; an
    interrupted download is resumed.

    Raises:
        InputError: unknown model.
        WeightsError: files are missing or cannot be downloaded.
    """
    check_name(model)
    # a known name wins over a directory of that name, which is ./chatterbox
    snapshot = on_hub(model)
    directory = hub.fetch(snapshot) if snapshot else _on_disk(model)
    if missing := [name for name in REQUIRED if not (directory / name).is_file()]:
        raise WeightsError(
            f"'{directory}' lacks {', '.join(missing)}; a model directory needs "
            f"{', '.join(REQUIRED)} (and {CONDITIONALS} for a voice of its own)"
        )
    config = read_config(directory)
    _check_sizes(directory, config)
    try:
        return Checkpoint(model, directory, config, _voice_identity(directory, config))
    except OSError as error:
        raise WeightsError(
            f"{error.filename} cannot be read ({error.strerror}): check the permissions"
        ) from error


def _check_sizes(directory: Path, config: ModelConfig) -> None:
    """Refuse a config whose stages are larger than their files, before they are allocated."""
    files = {"t3": T3, "voice encoder": VOICE_ENCODER, "s3gen": S3GEN}
    for stage, count in _parameters(config).items():
        path = directory / files[stage]
        if (size := path.stat().st_size) < count:  # a parameter has a byte or more
            raise WeightsError(
                f"{path} has {size:,} bytes, and {CONFIG_FILE} describes {count:,} parameters or "
                "more: it is half downloaded, or they do not belong together; get it again"
            )
    if (size := (directory / VOICE_ENCODER).stat().st_size) > MAX_VOICE_ENCODER:
        raise WeightsError(
            f"{directory / VOICE_ENCODER} has {size:,} bytes: it is not a voice encoder; "
            "get it again"
        )


def _parameters(config: ModelConfig) -> dict[str, int]:
    """Lower bounds of the number of parameters: of T3, of the voice encoder, and of the others."""
    t3, flow, voice, vocoder = config.t3, config.flow, config.voice, config.vocoder
    vectors = t3.text_vocab + t3.text_positions + 2 * t3.speech_vocab + t3.speech_positions
    attended = flow.estimator_heads * flow.estimator_head_dim
    encoder = (flow.encoder_blocks + flow.up_blocks) * (
        4 * flow.encoder_width**2 + 2 * flow.encoder_width * flow.encoder_ffn
    )
    estimator = (flow.estimator_mid + 2) * (
        3 * flow.estimator_width**2 + flow.estimator_blocks * 4 * flow.estimator_width * attended
    )
    tokenizer = voice.tokenizer_layers * 12 * voice.tokenizer_width**2
    xvector = voice.xvector_growth * voice.xvector_bottleneck * voice.xvector_init
    return {
        "t3": t3.width * (vectors + t3.resampler_queries + t3.speaker + 4 * t3.width)
        + t3.layers * t3.width * (4 * t3.width + 3 * t3.ffn),
        "voice encoder": voice.lstm * (20 * voice.lstm + t3.speaker),
        "s3gen": encoder + estimator + tokenizer + xvector + vocoder.width**2 + vocoder.f0_width**2,
    }


def identity(checkpoint: Checkpoint) -> str:
    """Digest of the config and of samples of all files: changes when the model's output may."""
    digest = hashlib.blake2b(_config_text(checkpoint.config).encode(), digest_size=12)
    for name in FILES:
        if checkpoint.path(name).is_file():
            _add_file(digest, checkpoint.path(name))
    return digest.hexdigest()


def _config_text(config: ModelConfig) -> str:
    """The config as identities have always hashed it; batch manifests and cache names contain them.

    The names are those that classes and fields had when the first manifest was written; fields
    that came later are only there where they are not the default.
    """
    parts: dict[str, tuple[str, Any]] = {
        "t3": ("T3Shape", config.t3),
        "flow": ("FlowShape", config.flow),
        "vocoder": ("VocoderShape", config.vocoder),
        "voice": ("VoiceShape", config.voice),
    }
    texts = []
    for part, (name, values) in parts.items():
        defaults = asdict(type(values)())
        fields = ", ".join(
            f"{key}={value!r}"
            for key, value in asdict(values).items()
            if key not in _LATER or value != defaults[key]
        )
        texts.append(f"{part}={name}({fields})")
    flags = f"made={config.random_weights}, spelled={config.needs_text_normalization}"
    if config.text != ENGLISH:
        flags += f", text={config.text}"
    return f"Shapes({', '.join(texts)}, {flags})"


def must_download(model: str) -> Snapshot | None:
    """What ``locate`` will need the network for, if anything."""
    snapshot = on_hub(model)
    return snapshot if snapshot and hub.in_cache(snapshot) is None else None


def _voice_identity(directory: Path, config: ModelConfig) -> str:
    """Digest of the voice encoders: the whole ve.safetensors (6 MB), and of s3gen (0.5 GB) the
    header and 64 blocks spread over the file. What a model takes of a recording is part of it."""
    digest = hashlib.blake2b((directory / VOICE_ENCODER).read_bytes(), digest_size=16)
    _add_file(digest, directory / S3GEN)
    digest.update(config.reference.kind.encode())
    return digest.hexdigest()


def _add_file(digest: hashlib.blake2b, path: Path) -> None:
    """Hash a file's header and 64 blocks spread over it."""
    size, block = path.stat().st_size, 1 << 16
    with path.open("rb") as file:
        for i in range(64):
            file.seek(i * max(size - block, 0) // 63)
            digest.update(file.read(block))
