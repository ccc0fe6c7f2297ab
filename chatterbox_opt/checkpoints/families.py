"""The models of the family as data: their files, repositories, languages and knobs.

Responsible for what is known of each before anything is read. Not responsible for finding files
(registry.py) or for what is in them (loader.py); imports no torch.

A kind is a file format of upstream's with what its models can do; a directory is of the kind whose
files it has. A hub model is a kind with a snapshot of a repository. Sizes and digests are what
several users of the files published; a file that is not among them has no pin and is not checked.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from chatterbox_opt.checkpoints.hub import MAIN, Pin, Snapshot
from chatterbox_opt.config.model_config import MULTILINGUAL, NANO, TURBO, ModelConfig
from chatterbox_opt.text.languages import languages_of
from chatterbox_opt.text.tags import SOUNDS
from chatterbox_opt.text.tokenizers import files

LICENSE = "MIT"  # of all weights
CONDITIONALS = "conds.pt"
VOCABULARY, MERGES = files.VOCABULARY, files.MERGES
TOKENIZER_CONFIG, ADDED_TOKENS, SPECIAL_TOKENS = files.CONFIG, files.ADDED, files.SPECIAL
GRAPHEMES, CANGJIE = files.MULTILINGUAL, files.CANGJIE
STYLE_TAGS = (  # the other tags that Turbo's tokenizer knows
    *("[angry]", "[fear]", "[surprised]", "[whispering]", "[advertisement]", "[dramatic]"),
    *("[narration]", "[crying]", "[happy]", "[sarcastic]"),
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A file format, and what its models can do.

    Attributes:
        name: of the kind.
        voice_encoder, t3, s3gen: the files of the weights.
        tokenizer: files of the text tokenizer, the vocabulary first.
        config: what a config.json in the directory changes.
        more: files that may be absent, as upstream allows.
        tags: words in brackets that become sounds.
        shared: what a repository of the kind takes from another one.
    """

    name: str
    voice_encoder: str
    t3: str
    s3gen: str
    tokenizer: tuple[str, ...]
    config: ModelConfig
    more: tuple[str, ...] = (CONDITIONALS,)
    tags: tuple[str, ...] = ()
    shared: Snapshot | None = None

    @property
    def required(self) -> tuple[str, ...]:
        """Names of the files without which there is no model."""
        return (self.voice_encoder, self.t3, self.s3gen, *self.tokenizer)

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of ISO 639-1."""
        return languages_of(self.config)

    @property
    def missing_knobs(self) -> tuple[str, ...]:
        """Sampling parameters that its models do not have."""
        return self.config.t3.missing_knobs

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files."""
        return (*self.required, *self.more)


_TURBO_TOKENIZER = (VOCABULARY, MERGES, ADDED_TOKENS)
_TURBO_MORE = (TOKENIZER_CONFIG, SPECIAL_TOKENS, CONDITIONALS)  # two are only for upstream
_BASE, _BASE_REVISION = "ResembleAI/chatterbox", "5bb1f6ee58e50c3b8d408bc82a6d3740c2db6e18"

_VE = Pin(5_695_784, "f0921cab452fa278bc25cd23ffd59d36f816d7dc5181dd1bef9751a7fb61f63c")
_VE_PT = Pin(5_698_626, "4b16d836bc598509860f6fa068165a8bb5e9ac84f05582dfcf278a5a372879f1")
_S3GEN_PT = Pin(1_057_165_844, "9b9ff07e60b20c136e2b1b3d7563a24604e8d2c4c267888d1ee929dd0151d2a3")
_S3GEN_V3_PT = Pin(
    1_056_903_694, "f7abce4b196dae2d08d9296cbebc6521b046079577643b42a19a03499d08721e"
)
_GRAPHEMES = Pin(69_989, "69632f47220a788a52ce2661d096453c5655e9bf25289d89a8d832c46ee07dbf")
_CONDS = Pin(107_374, "6552d70568833628ba019c6b03459e77fe71ca197d5c560cef9411bee9d87f4e")
_CANGJIE = Pin(1_920_163, "7073fd9de919443ae88e0bd2449917a65fe54898a4413ed1edcc4b67f28bce8c")
_MULTILINGUAL_PINS = {
    "ve.pt": _VE_PT,
    "s3gen.pt": _S3GEN_PT,
    GRAPHEMES: _GRAPHEMES,
    CONDITIONALS: _CONDS,
    CANGJIE: _CANGJIE,
}
_TURBO_PINS = {  # Nano's too
    "ve.safetensors": _VE,
    "s3gen_meanflow.safetensors": Pin(
        1_064_875_036, "d65cb687a2ed581ee6cc297e919ffefa63386944f42364ae13b78a594945514f"
    ),
    VOCABULARY: Pin(999_186, "f6bd25a65e4e63ca31360e9fb11c7e4f9a391a78385d640acd814092dd6eee4f"),
    MERGES: Pin(456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    ADDED_TOKENS: Pin(418, "72e4ab6acb0d9309ac3df4b526ae5fd80a2da5bc5ab7bb02d85096a374f69193"),
    TOKENIZER_CONFIG: Pin(
        3_878, "bca16a2ac1ddbd78b8d6228f0031884cc74b6ea54b967d6f6d2ebae9ccde23e6"
    ),
    SPECIAL_TOKENS: Pin(470, "92ba8063bf40aa163eadebbfe0de07c2aebe44cf0d4a9e8726580b0781fd2640"),
    CONDITIONALS: Pin(169_454, "b1852099306fd6a7814eb9d0bd10186caba7249596cc23868f78a0eefbfa5033"),
}

CHATTERBOX = Kind(
    name="chatterbox",
    voice_encoder="ve.safetensors",
    t3="t3_cfg.safetensors",
    s3gen="s3gen.safetensors",
    tokenizer=(files.ENGLISH,),
    config=ModelConfig(),
)
TURBO_KIND = Kind(
    name="turbo",
    voice_encoder="ve.safetensors",
    t3="t3_turbo_v1.safetensors",
    s3gen="s3gen_meanflow.safetensors",
    tokenizer=_TURBO_TOKENIZER,
    config=TURBO,
    more=_TURBO_MORE,
    tags=SOUNDS,
)
NANO_KIND = Kind(
    name="nano",
    voice_encoder="ve.safetensors",
    t3="t3_nano_v1.safetensors",
    s3gen="s3gen_meanflow.safetensors",
    tokenizer=_TURBO_TOKENIZER,
    config=NANO,
    more=_TURBO_MORE,
    tags=SOUNDS,
)
MULTILINGUAL_V3, MULTILINGUAL_V2 = (
    Kind(
        name=f"multilingual-{version}",
        voice_encoder="ve.pt",
        t3=f"t3_mtl23ls_{version}.safetensors",
        s3gen="s3gen.pt",
        tokenizer=(GRAPHEMES,),
        config=MULTILINGUAL,
        more=(CONDITIONALS, CANGJIE),
    )
    for version in ("v3", "v2")
)
# code, language, T3's file, revision, pins: single-language packs have a T3 and an S3Gen of their
# own, and no voice encoder
_PACKS: tuple[tuple[str, str, str, str, dict[str, Pin]], ...] = (
    ("zh-cmn", "zh", "t3_zh_cmn.safetensors", MAIN, {}),
    ("es-mx-latam", "es", "t3_es_mx_latam.safetensors", MAIN, {}),
    ("es-es", "es", "t3_es_es.safetensors", "7262b364e3222ba9446c9289e7485eadc47ed902", {}),
    (
        *("pt-br", "pt", "t3_pt_br.safetensors", "b3952f18bc2eaa72b9bd7c17d2c4653bcad4770d"),
        {
            "t3_pt_br.safetensors": Pin(
                None, "074aaf65255eb9cb960288f7cc72e09d3b5008f6e0b14868c0d4e5b0bd7cbb6c"
            ),
            "s3gen_v3.pt": _S3GEN_V3_PT,
            GRAPHEMES: _GRAPHEMES,
        },
    ),
    ("pt-pt", "pt", "t3_pt_pt.safetensors", MAIN, {}),
    ("hi", "hi", "t3_hi.safetensors", "82ca71273cc2a9ab19efdf8315f865c1a5af0ee7", {}),
)
_SHARED = Snapshot(
    _BASE,
    _BASE_REVISION,
    ("ve.pt", CONDITIONALS, CANGJIE),
    {"ve.pt": _VE_PT, CONDITIONALS: _CONDS, CANGJIE: _CANGJIE},
)
PACKS = tuple(
    Kind(
        name=f"multilingual-{code}",
        voice_encoder="ve.pt",
        t3=t3,
        s3gen="s3gen_v3.pt",
        tokenizer=(GRAPHEMES,),
        config=dataclasses.replace(MULTILINGUAL, languages=(language,)),
        more=(CONDITIONALS, CANGJIE),
        shared=_SHARED,
    )
    for code, language, t3, _, _ in _PACKS
)
# of several that fit a directory, the first
KINDS = (CHATTERBOX, TURBO_KIND, NANO_KIND, MULTILINGUAL_V3, MULTILINGUAL_V2, *PACKS)
# what ``models make`` can make
RANDOM_KINDS: dict[str, Kind] = {
    "chatterbox": CHATTERBOX,
    "turbo": TURBO_KIND,
    "nano": NANO_KIND,
    "multilingual": MULTILINGUAL_V2,
}
ALL_FILES = (
    *(*CHATTERBOX.files, *TURBO_KIND.files, *NANO_KIND.files, *MULTILINGUAL_V3.files),
    *(MULTILINGUAL_V2.t3, *(pack.t3 for pack in PACKS), PACKS[0].s3gen),
)

DEFAULT = "chatterbox"
BUILT_IN = ("pico",)  # names of their directories in the package
# the kind of a hub model; a repository has the files of several
HUB_KINDS: dict[str, Kind] = {
    DEFAULT: CHATTERBOX,
    "turbo": TURBO_KIND,
    "nano": NANO_KIND,
    "multilingual": MULTILINGUAL_V3,
    "multilingual-v2": MULTILINGUAL_V2,
    **{pack.name: pack for pack in PACKS},
}
# models that stand in for another one if they are here and that one is not
OLDER = {"multilingual": "multilingual-v2"}
HUB: dict[str, Snapshot] = {
    DEFAULT: Snapshot(
        _BASE,
        _BASE_REVISION,
        CHATTERBOX.files,
        {
            "ve.safetensors": _VE,
            "t3_cfg.safetensors": Pin(
                2_129_653_744, "914cb1696f47527fe8852ca8f1fe1fa63cb34f76f9c715e84e067b744dd0da81"
            ),
            "s3gen.safetensors": Pin(
                1_056_484_620, "2b78103c654207393955e4900aac14a12de8ef25f4b09424f1ef91941f161d4e"
            ),
            "tokenizer.json": Pin(
                25_470, "d71e3a44eabb1784df9a68e9f95b251ecbf1a7af6a9f50835856b2ca9d8c14a5"
            ),
            CONDITIONALS: _CONDS,
        },
    ),
    "turbo": Snapshot(
        "ResembleAI/chatterbox-turbo",
        "749d1c1a46eb10492095d68fbcf55691ccf137cd",
        TURBO_KIND.files,
        {
            "t3_turbo_v1.safetensors": Pin(
                1_915_480_052, "fcf1f8c1d651bb7e3acd69ee5be269b4ac10c02980b7708213d598bc9f7cdf87"
            ),
            **_TURBO_PINS,
        },
    ),
    "nano": Snapshot(
        "ResembleAI/chatterbox-nano",
        "71ccd1d0081b430592cea481f4307e764e07bc64",
        NANO_KIND.files,
        {
            "t3_nano_v1.safetensors": Pin(
                869_899_204, "72b110185087d945dbdf54dee4e333848e1811bdd5fd6cb16ceb8da50006f0c9"
            ),
            **_TURBO_PINS,
        },
    ),
    "multilingual": Snapshot(
        _BASE,
        _BASE_REVISION,
        MULTILINGUAL_V3.files,
        {
            "t3_mtl23ls_v3.safetensors": Pin(
                2_143_989_928, "5abca8321ede76f8e61f1cc0d19aea6c946b28871017ce8726f8a69203f05953"
            ),
            **_MULTILINGUAL_PINS,
        },
    ),
    "multilingual-v2": Snapshot(
        _BASE,
        _BASE_REVISION,
        MULTILINGUAL_V2.files,
        {
            "t3_mtl23ls_v2.safetensors": Pin(
                2_143_989_752, "b1237586127ce98e7800a68e49938eb5092846862aabcb6e17b2fda7889a6c75"
            ),
            **_MULTILINGUAL_PINS,
        },
    ),
    **{
        f"multilingual-{code}": Snapshot(
            f"ResembleAI/Chatterbox-Multilingual-{code}",
            revision,
            (t3, "s3gen_v3.pt", GRAPHEMES),
            pins,
        )
        for code, _, t3, revision, pins in _PACKS
    },
}
