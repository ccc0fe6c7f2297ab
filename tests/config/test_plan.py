from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from chatterbox_opt.config import hardware, plan
from chatterbox_opt.config.hardware import Hardware, kernel_feature
from chatterbox_opt.config.plan import choose_profile, resolve
from chatterbox_opt.config.profile import load_profile, profile_names
from chatterbox_opt.engine import probe
from chatterbox_opt.errors import ProfileError
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.utils.lazy_reasons import LazyReasons

CPU = Hardware("cpu", "some processor")
MPS = Hardware("mps", "arm")


def card(name="card", total=24_000, free=None, capability=(8, 9), unsupported=()):
    free = total - 500 if free is None else free
    return Hardware("cuda", name, total, free, capability, dict(unsupported))


def test_the_shipped_profiles_load():
    assert profile_names() == ["cpu", "dev", "gtx1080", "memory-limited", "rtx3080", "rtx4090"]
    for name in profile_names():
        assert load_profile(name).description


@pytest.mark.parametrize(
    ("hardware", "profile"),
    [
        (card("RTX 4090"), "rtx4090"),
        (card("H100", 81_000, capability=(9, 0)), "rtx4090"),
        (card("RTX 3080", 10_000, capability=(8, 6)), "rtx3080"),
        (card("RTX 3060 Ti", 8_100, capability=(8, 6)), "rtx3080"),
        (card("T4", 15_100, capability=(7, 5)), "rtx4090"),
        (card("GTX 1080", 8_100, capability=(6, 1)), "gtx1080"),
        (card("GTX 1650", 4_000, capability=(7, 5)), "memory-limited"),
        (card("RTX 4090", free=3_000), "memory-limited"),
        (CPU, "cpu"),
        (MPS, "dev"),
    ],
)
def test_auto_looks_at_total_and_free_memory_and_capability(hardware, profile):
    name, reason = choose_profile(hardware)
    assert name == profile
    if hardware.device == "cuda":
        assert hardware.name in reason
        assert f"{hardware.free_mib:,}" in reason
    assert resolve("auto", hardware, environment={}).profile == profile


@pytest.mark.parametrize(
    ("profile", "hardware", "overrides", "expected"),
    [
        ("rtx4090", card(), {}, ("float16", "", "cudagraphs", "none")),
        ("rtx4090", card(), {"dtype": "bfloat16"}, ("bfloat16", "", "cudagraphs", "none")),
        ("rtx4090", card(capability=(7, 5)), {"dtype": "bfloat16"}, ("float16", "", "cudagraphs", "none")),
        ("dev", card(capability=(6, 1)), {"dtype": "bfloat16"}, ("float16", "float32", "none", "none")),
        ("gtx1080", card(capability=(6, 1)), {}, ("float16", "float32", "none", "stages")),
        ("rtx3080", card(), {"compile": "inductor"}, ("float16", "", "inductor", "stages")),
        ("rtx3080", card(), {"compile": "none"}, ("float16", "", "none", "stages")),
        ("rtx3080", CPU, {}, ("float32", "", "none", "none")),
        ("gtx1080", CPU, {}, ("float32", "", "none", "none")),
        ("cpu", CPU, {"dtype": "bfloat16"}, ("bfloat16", "", "none", "none")),
        ("dev", CPU, {"compile": "inductor"}, ("float32", "", "inductor", "none")),
        ("rtx4090", MPS, {"compile": "inductor"}, ("float16", "", "none", "none")),
    ],
)  # fmt: skip
def test_a_wish_becomes_a_plan_for_the_machine(profile, hardware, overrides, expected):
    made = resolve(profile, hardware, overrides, {})
    assert (made.t3, made.compute, made.compile, made.offload) == expected
    assert made.flow == made.t3


def test_what_is_lowered_has_a_reason():
    reasons = " | ".join(resolve("rtx3080", CPU, {"dtype": "float16"}, {}).reasons)
    for word in (
        "float16 arithmetic",
        "cudagraphs needs a CUDA card",
        "no card to move stages off",
    ):
        assert word in reasons
    old = resolve("rtx4090", card(capability=(7, 5)), {"dtype": "bfloat16"}, {})
    assert "bfloat16 needs compute capability 8.0" in " ".join(old.reasons)


def test_graphs_are_kept_where_there_is_a_card():
    made = resolve("dev", card(), {}, {"CHATTERBOX_COMPILATION": "TRUE"})
    assert made.compile == "cudagraphs"
    assert "compile cudagraphs: from CHATTERBOX_COMPILATION" in made.reasons


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 6), ["sm_80", "sm_90"], True),
        ((12, 0), ["sm_50", "sm_80", "sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((6, 1), ["sm_60", "sm_70"], True),
        ((6, 1), ["sm_75", "sm_80", "compute_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((8, 0), [], False),
    ],
)
def test_a_card_that_torch_was_not_built_for_is_seen(capability, built_for, runs):
    assert hardware.has_kernels(capability, built_for) is runs


@pytest.mark.parametrize(
    ("profile", "hardware", "overrides", "sound"),
    [
        ("rtx4090", card(), {}, "beside"),
        ("dev", card(), {}, "beside"),
        ("rtx4090", card(), {"offload": "stages"}, "here"),
        ("memory-limited", card(), {}, "here"),
        ("rtx4090", card(free=4_500), {}, "here"),  # room for one line at a time
        ("rtx4090", CPU, {}, "here"),
        ("rtx4090", MPS, {}, "here"),
    ],
)
def test_sound_is_made_beside_t3_on_a_card_that_holds_all_stages(
    profile, hardware, overrides, sound
):
    made = resolve(profile, hardware, overrides, {})
    assert made.sound == sound
    assert any(reason.startswith("sound beside t3") for reason in made.reasons) == (
        sound == "beside"
    )


def test_the_command_line_beats_the_environment_beats_the_profile():
    environment = {"CHATTERBOX_DTYPE": "bfloat16", "CHATTERBOX_CPU_OFFLOAD": "true"}
    made = resolve("rtx4090", card(), {"dtype": "float32"}, environment)
    assert (made.t3, made.offload, made.compile) == ("float32", "stages", "cudagraphs")
    assert "dtype float32: from the command line" in made.reasons
    assert "offload stages: from CHATTERBOX_CPU_OFFLOAD" in made.reasons
    assert "compile cudagraphs: from profile rtx4090" in made.reasons, "every value has a source"


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("CHATTERBOX_COMPILATION", "false", "compile", "none"),
        ("CHATTERBOX_KV_CACHE", "int8", "kv_cache", "int8"),
        ("CHATTERBOX_CPU_OFFLOAD", "1", "offload", "stages"),
        ("CHATTERBOX_DTYPE", "float32", "t3", "float32"),
        ("DISABLE_OPTIMIZATION", "true", "optimized", False),
        ("DISABLE_OPTIMIZATION", "false", "optimized", True),
    ],
)
def test_environment(variable, value, field, expected):
    assert getattr(resolve("rtx4090", card(), {}, {variable: value}), field) == expected


@pytest.mark.parametrize(
    ("hardware", "overrides", "expected", "why"),
    [
        (card(), {}, "int8", "kv_cache int8: from the command line"),
        (CPU, {}, "auto", "kv_cache auto: int8 keys and values are for CUDA GPUs"),
        (MPS, {}, "auto", "kv_cache auto: int8 keys and values are for CUDA GPUs"),
        (
            card(),
            {"compile": "inductor"},
            "auto",
            "kv_cache auto: a step compiled by inductor has no int8 keys and values",
        ),
    ],
)
def test_int8_keys_and_values(hardware, overrides, expected, why):
    made = resolve("rtx4090", hardware, {"kv_cache": "int8"} | overrides, {})
    assert made.kv_cache == expected and why in made.reasons
    assert ("kv cache int8" in made.summary()) == (expected == "int8")


@pytest.mark.parametrize(
    ("free", "kv_cache", "slots"),
    [
        (23_500, "auto", 32),
        (23_500, "int8", 64),
        (4_600, "auto", 2),
        (4_600, "int8", 4),
    ],
)
def test_int8_keys_and_values_leave_room_for_more_slots(free, kv_cache, slots):
    made = resolve("rtx4090", card(free=free), {"kv_cache": kv_cache}, {})
    assert made.slots == slots


@pytest.mark.parametrize(("word", "stages"), [("false", ()), ("true", ("t3", "flow"))])
def test_kernels_of_our_own_can_be_switched_off(word, stages):
    """int8 matrices on a GPU need them; nothing is tried."""

    class Untried(dict):
        def get(self, name, default=None):
            assert word == "true"
            return default

    hardware = replace(card(), unsupported=Untried())
    made = resolve("rtx4090", hardware, {"dtype": "int8"}, {plan.GPU_KERNELS: word})
    assert made.fused == stages and made.t3 == ("int8" if stages else "bfloat16")
    told = [reason for reason in made.reasons if "switched off by CHATTERBOX_GPU_KERNELS" in reason]
    assert bool(told) == (word == "false")


@pytest.mark.parametrize(
    "variable", [*plan.ENVIRONMENT, plan.DISABLE_OPTIMIZATION, plan.GPU_KERNELS]
)
def test_a_wrong_word_in_the_environment_names_the_known_ones(variable):
    with pytest.raises(ProfileError, match=f"{variable} is 'maybe'; known: "):
        resolve("dev", CPU, {}, {variable: "maybe"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dtpye: float16", "unknown key 'dtpye'; known: description, dtype"),
        ("dtype: {t3: float16, t4: float16}", "unknown key 't4'; known: t3, flow, vocoder"),
        ("dtype: float8", "is 'float8'; known: float32, float16, bfloat16"),
        ("dtype: {flow: int4}", "flow is 'int4'; known: float32, float16, bfloat16, int8"),
        ("dtype: {t3: int8}\ncompute: float32", "compute is for float16 and bfloat16"),
        ("dtype: {flow: int8}\ncompute: float32", "compute is for float16 and bfloat16"),
        ("dtype: {vocoder: float16}", "vocoder is float32 only"),
        ("compile: no", "compile is False; known: none, cudagraphs, inductor"),
        ("offload: everything", "known: none, stages, all-but-active"),
        ("- a list", "must be a mapping"),
        ("dtype: [float16]", "give a name, or one per stage"),
        ("dtype: 5", "give a name, or one per stage"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_a_wrong_profile_says_what_is_known(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=message.replace("[", r"\[")):
        load_profile(str(path))


def test_your_own_profile(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("dtype: {t3: bfloat16}\noffload: stages\n")
    made = resolve(str(path), card(), {}, {})
    assert (made.t3, made.flow, made.offload) == ("bfloat16", "float32", "stages")


@pytest.mark.parametrize("name", ["nope", "../rtx4090", ""])
def test_an_unknown_profile_names_the_known_ones(name):
    with pytest.raises(ProfileError, match="known: auto, cpu, dev"):
        load_profile(name)


WITHOUT_KERNELS = {
    kernel_feature(stage, dtype): "no compiler"
    for stage, ds in hardware.KERNELS.items()
    for dtype in ds
}
WITHOUT_VNNI = Hardware(
    "cpu", "old", unsupported={"int8": "products saturate", "bfloat16": "none here"}
)


@pytest.mark.parametrize(
    ("hardware", "dtype", "expected"),
    [
        (CPU, "int8", ("int8", "int8")),
        (CPU, "int4", ("int4", "int8")),
        (Hardware("cpu", "x", unsupported={"int4": "none"}), "int4", ("int8", "int8")),
        (Hardware("cpu", "x", unsupported={"int8 flow": "AMX"}), "int8", ("int8", "bfloat16")),
        (Hardware("cpu", "x", unsupported={"bfloat16": "none"}), "int8", ("int8", "float32")),
        (Hardware("cpu", "x", unsupported={"int8": "none"}), "int8", ("bfloat16", "bfloat16")),
        (WITHOUT_VNNI, "int8", ("float32", "float32")),
        (WITHOUT_VNNI, "bfloat16", ("float32", "float32")),
        (card(), "int8", ("int8", "bfloat16")),
        (card(), "int4", ("int8", "bfloat16")),
        (card(capability=(7, 5)), "int8", ("int8", "float16")),
        (card(unsupported=WITHOUT_KERNELS), "int8", ("bfloat16", "bfloat16")),
        (card(capability=(6, 1), unsupported=WITHOUT_KERNELS), "int8", ("float16", "float16")),
        (MPS, "int8", ("float16", "float16")),
    ],
)
def test_integers_become_what_the_machine_has(hardware, dtype, expected):
    made = resolve("dev", hardware, {"dtype": dtype}, {})
    assert (made.t3, made.flow) == expected
    assert f"dtype {dtype}: from the command line" in made.reasons
    said = " | ".join(made.reasons)
    for narrow in {dtype, "bfloat16", kernel_feature("t3", made.flow)} & set(hardware.unsupported):
        assert hardware.unsupported[narrow] in said
    if hardware.device == "mps":
        assert "integer matrices are for processors and CUDA cards" in said
    assert made.fused == (("t3",) if hardware.device == "cuda" and not hardware.unsupported else ())


def test_kernels_are_for_the_stages_and_dtypes_that_have_them():
    """Only what will be used is asked for: asking compiles."""
    asked = []

    def unsupported(name, why):
        return name, lambda: asked.append(name) or why

    def fused(why="", **wish):
        names = [kernel_feature(s, d) for s, dtypes in hardware.KERNELS.items() for d in dtypes]
        reasons = dict(unsupported(name, why if name.startswith("flow") else "") for name in names)
        asked.clear()
        return resolve("rtx4090", replace(card(), unsupported=LazyReasons(reasons)), wish, {})

    assert fused().fused == ("t3", "flow")
    assert asked == [
        kernel_feature(*one) for one in (("t3", "float16"), ("t3", "float32"), ("flow", "float16"))
    ]
    made = fused("no registers")
    assert made.fused == ("t3",) and "flow by PyTorch's operations: no registers" in made.reasons
    assert fused(dtype="float32").fused == ("t3",)
    assert fused(compile="none").fused == ("t3",)
    plain = resolve(
        "rtx4090", card(unsupported=WITHOUT_KERNELS), {}, {"DISABLE_OPTIMIZATION": "true"}
    )
    assert plain.fused == () and "no compiler" not in " ".join(plain.reasons)


def test_a_step_over_integers_is_not_compiled_again():
    found = resolve("cpu", CPU, {"dtype": "int8", "compile": "inductor"}, {})
    assert found.compile == "none"
    assert "one call" in " | ".join(found.reasons)
    assert resolve("dev", CPU, {"compile": "inductor"}, {}).compile == "inductor"


def test_a_quantised_plan_says_what_it_costs():
    reasons = " | ".join(resolve("cpu", CPU, {}, {}).reasons)
    assert "99.6 %" in reasons
    assert "98.3 %" in " | ".join(resolve("cpu", CPU, {"dtype": "int4"}, {}).reasons)
    assert "KL" not in " | ".join(resolve("cpu", WITHOUT_VNNI, {}, {}).reasons)


def test_the_cpu_profile_takes_the_fastest_that_this_processor_has():
    assert (resolve("cpu", CPU, {}, {}).t3, resolve("cpu", CPU, {}, {}).flow) == ("int8", "int8")
    old = resolve("cpu", WITHOUT_VNNI, {}, {})
    assert (old.t3, old.flow) == ("float32", "float32")
    assert "t3 bfloat16: products saturate" in old.reasons
    assert "t3 float32: none here" in old.reasons


def test_a_processor_is_asked_for_what_it_lacks():
    found = probe.probe("cpu")
    assert set(found.unsupported) <= {"bfloat16", "int8", "int4", "int8 flow"}
    assert all(found.unsupported.values())


def test_what_another_machine_found_travels(monkeypatch):
    """As plain values: what looks for them, each when it is asked, stays there (Ray, ray_workers.py)."""
    reasons = {"int8": lambda: "no VNNI", "bfloat16": lambda: ""}
    monkeypatch.setattr(weight_layout, "unsupported_dtypes", lambda: LazyReasons(reasons))
    here = probe.probe("cpu")
    there = pickle.loads(pickle.dumps(here))
    assert there == here and there.unsupported == {"int8": "no VNNI"}
