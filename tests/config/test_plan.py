from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from chatterbox_opt.config import hardware, settings
from chatterbox_opt.config.hardware import Hardware, kernel_feature
from chatterbox_opt.config.hop_schedule import HopSchedule
from chatterbox_opt.config.model_config import TINY, ModelConfig
from chatterbox_opt.config.plan import StagePlan, choose_profile, resolve
from chatterbox_opt.config.profile import load_profile, profile_names
from chatterbox_opt.engine import probe
from chatterbox_opt.errors import ProfileError
from chatterbox_opt.layers import weight_layout
from chatterbox_opt.utils.lazy_reasons import LazyReasons

CPU = Hardware("cpu", "some CPU")
MPS = Hardware("mps", "arm")


def gpu(name="GPU", total=24_000, free=None, capability=(8, 9), unsupported=()):
    free = total - 500 if free is None else free
    return Hardware("cuda", name, total, free, capability, dict(unsupported))


SLOW_CPU = Hardware("cpu", "old", unsupported={"int8": "no VNNI", "bfloat16": "none"})


@pytest.mark.parametrize(
    ("hardware", "overrides", "warning"),
    [
        (CPU, {"dtype": "float16"}, "--dtype float16: using float32 (CPUs have no fast float16"),
        (CPU, {"compile": "cudagraphs"}, "--compile cudagraphs: using none (cudagraphs needs a"),
        (CPU, {"compile": "inductor"}, "--compile inductor: using none (the int8 decode step"),
        (CPU, {"offload": "stages"}, "--offload stages: using none (only a GPU"),
        (CPU, {"kv_cache": "int8"}, "--kv-cache int8: using auto (int8 keys"),
        (SLOW_CPU, {"dtype": "int8"}, "--dtype int8: using float32 (no VNNI)"),
        (MPS, {"dtype": "int8"}, "--dtype int8: using float16 (integer matrices"),
        (
            gpu(capability=(7, 5)),
            {"dtype": "bfloat16"},
            "--dtype bfloat16: using float16 (bfloat16",
        ),
        (gpu(), {"dtype": "int4"}, "--dtype int4: using int8 (int4 matrices are for CPUs)"),
    ],
)
def test_a_downgrade_of_an_explicit_setting_is_a_warning(hardware, overrides, warning):
    [found] = resolve("auto", hardware, overrides, {}).warnings
    assert found.startswith(warning)
    [key] = overrides
    variable = {"dtype": "CHATTERBOX_DTYPE", "kv_cache": "CHATTERBOX_KV_CACHE"}.get(key)
    if variable:
        [found] = resolve("auto", hardware, {}, {variable: overrides[key]}).warnings
        assert found.startswith(variable)


@pytest.mark.parametrize("name", ["auto", "rtx4090", "memory-limited", "dev"])
@pytest.mark.parametrize("hardware", [CPU, SLOW_CPU, MPS, gpu(), gpu(capability=(6, 1))])
def test_a_downgrade_of_a_profile_is_a_detail(name, hardware):
    assert resolve(name, hardware, {}, {}).warnings == ()
    assert resolve(name, gpu(), {"dtype": "int8", "compile": "none"}, {}).warnings == ()


def test_shipped_profiles_load():
    assert profile_names() == ["cpu", "dev", "gtx1080", "memory-limited", "rtx3080", "rtx4090"]
    for name in profile_names():
        assert load_profile(name).description


@pytest.mark.parametrize(
    ("hardware", "profile"),
    [
        (gpu("RTX 4090"), "rtx4090"),
        (gpu("H100", 81_000, capability=(9, 0)), "rtx4090"),
        (gpu("RTX 3080", 10_000, capability=(8, 6)), "rtx3080"),
        (gpu("RTX 3060 Ti", 8_100, capability=(8, 6)), "rtx3080"),
        (gpu("T4", 15_100, capability=(7, 5)), "rtx4090"),
        (gpu("GTX 1080", 8_100, capability=(6, 1)), "gtx1080"),
        (gpu("GTX 1650", 4_000, capability=(7, 5)), "memory-limited"),
        (gpu("RTX 4090", free=3_000), "memory-limited"),
        (CPU, "cpu"),
        (MPS, "dev"),
    ],
)
def test_auto_profile_depends_on_memory_and_capability(hardware, profile):
    name, reason = choose_profile(hardware)
    assert name == profile
    if hardware.device == "cuda":
        assert hardware.name in reason
        assert f"{hardware.free_mib:,}" in reason
    assert resolve("auto", hardware, environment={}).profile == profile


@pytest.mark.parametrize(
    ("profile", "hardware", "overrides", "expected"),
    [
        ("rtx4090", gpu(), {}, ("float16", "", "cudagraphs", "none")),
        ("rtx4090", gpu(), {"dtype": "bfloat16"}, ("bfloat16", "", "cudagraphs", "none")),
        ("rtx4090", gpu(capability=(7, 5)), {"dtype": "bfloat16"}, ("float16", "", "cudagraphs", "none")),
        ("dev", gpu(capability=(6, 1)), {"dtype": "bfloat16"}, ("float16", "float32", "none", "none")),
        ("gtx1080", gpu(capability=(6, 1)), {}, ("float16", "float32", "none", "stages")),
        ("rtx3080", gpu(), {"compile": "inductor"}, ("float16", "", "inductor", "stages")),
        ("rtx3080", gpu(), {"compile": "none"}, ("float16", "", "none", "stages")),
        ("rtx3080", CPU, {}, ("float32", "", "none", "none")),
        ("gtx1080", CPU, {}, ("float32", "", "none", "none")),
        ("cpu", CPU, {"dtype": "bfloat16"}, ("bfloat16", "", "none", "none")),
        ("dev", CPU, {"compile": "inductor"}, ("float32", "", "inductor", "none")),
        ("rtx4090", MPS, {"compile": "inductor"}, ("float16", "", "none", "none")),
    ],
)  # fmt: skip
def test_profile_and_overrides_resolve_to_a_plan(profile, hardware, overrides, expected):
    resolved = resolve(profile, hardware, overrides, {})
    assert (
        resolved.t3.storage,
        resolved.narrowed_compute,
        resolved.compile,
        resolved.offload,
    ) == expected
    assert resolved.flow.storage == resolved.t3.storage


def test_downgrades_have_a_reason():
    reasons = " | ".join(resolve("rtx3080", CPU, {"dtype": "float16"}, {}).reasons)
    for word in (
        "float16 arithmetic",
        "cudagraphs needs a CUDA GPU",
        "only a GPU has memory to move stages out of",
    ):
        assert word in reasons
    old = resolve("rtx4090", gpu(capability=(7, 5)), {"dtype": "bfloat16"}, {})
    assert "bfloat16 needs compute capability 8.0" in " ".join(old.reasons)


def test_cuda_graphs_from_the_environment_on_a_gpu():
    resolved = resolve("dev", gpu(), {}, {"CHATTERBOX_COMPILATION": "TRUE"})
    assert resolved.compile == "cudagraphs"
    assert "compile cudagraphs: from CHATTERBOX_COMPILATION" in resolved.reasons


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
def test_has_kernels_compares_capability_with_torchs_builds(capability, built_for, runs):
    assert hardware.has_kernels(capability, built_for) is runs


@pytest.mark.parametrize(
    ("profile", "hardware", "overrides", "sound"),
    [
        ("rtx4090", gpu(), {}, "overlapped"),
        ("dev", gpu(), {}, "overlapped"),
        ("rtx4090", gpu(), {"offload": "stages"}, "inline"),
        ("memory-limited", gpu(), {}, "inline"),
        ("rtx4090", gpu(free=4_500), {}, "inline"),  # memory for one sequence at a time
        ("rtx4090", CPU, {}, "inline"),
        ("rtx4090", MPS, {}, "inline"),
    ],
)
def test_rendering_overlaps_t3_if_all_stages_fit_on_the_gpu(profile, hardware, overrides, sound):
    resolved = resolve(profile, hardware, overrides, {})
    assert resolved.rendering == sound
    assert any(reason.startswith("rendering overlaps with t3") for reason in resolved.reasons) == (
        sound == "overlapped"
    )


def test_command_line_overrides_environment_overrides_profile():
    environment = {"CHATTERBOX_DTYPE": "bfloat16", "CHATTERBOX_CPU_OFFLOAD": "true"}
    resolved = resolve("rtx4090", gpu(), {"dtype": "float32"}, environment)
    assert (resolved.t3.storage, resolved.offload, resolved.compile) == (
        "float32",
        "stages",
        "cudagraphs",
    )
    assert "dtype float32: from the command line" in resolved.reasons
    assert "offload stages: from CHATTERBOX_CPU_OFFLOAD" in resolved.reasons
    assert "compile cudagraphs: from profile rtx4090" in resolved.reasons, (
        "every value has its source"
    )


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
def test_environment_variables(variable, value, field, expected):
    resolved = resolve("rtx4090", gpu(), {}, {variable: value})
    assert (resolved.t3.storage if field == "t3" else getattr(resolved, field)) == expected


@pytest.mark.parametrize(
    ("hardware", "overrides", "expected", "reason"),
    [
        (gpu(), {}, "int8", "kv_cache int8: from the command line"),
        (CPU, {}, "auto", "kv_cache auto: int8 keys and values are for CUDA GPUs"),
        (MPS, {}, "auto", "kv_cache auto: int8 keys and values are for CUDA GPUs"),
        (
            gpu(),
            {"compile": "inductor"},
            "auto",
            "kv_cache auto: a step compiled by inductor has no int8 keys and values",
        ),
    ],
)
def test_int8_kv_cache(hardware, overrides, expected, reason):
    resolved = resolve("rtx4090", hardware, {"kv_cache": "int8"} | overrides, {})
    assert resolved.kv_cache == expected and reason in resolved.reasons
    assert ("kv cache int8" in resolved.summary()) == (expected == "int8")


@pytest.mark.parametrize(
    ("free", "kv_cache", "slots"),
    [
        (23_500, "auto", 32),
        (23_500, "int8", 64),
        (5_100, "auto", 2),
        (5_100, "int8", 4),
        (4_600, "auto", 1),
    ],
)
def test_int8_kv_cache_allows_more_slots(free, kv_cache, slots):
    resolved = resolve("rtx4090", gpu(free=free), {"kv_cache": kv_cache}, {})
    assert resolved.slots == slots


@pytest.mark.parametrize(("word", "stages"), [("false", ()), ("true", ("t3", "flow"))])
def test_gpu_kernels_can_be_disabled(word, stages):
    """int8 weights on a GPU need them; no probe is run."""

    class Untried(dict):
        def get(self, name, default=None):
            assert word == "true"
            return default

    hardware = replace(gpu(), unsupported=Untried())
    resolved = resolve("rtx4090", hardware, {"dtype": "int8"}, {settings.GPU_KERNELS: word})
    assert resolved.triton_stages == stages and resolved.t3.storage == (
        "int8" if stages else "bfloat16"
    )
    disabled = [
        reason for reason in resolved.reasons if "switched off by CHATTERBOX_GPU_KERNELS" in reason
    ]
    assert bool(disabled) == (word == "false")


@pytest.mark.parametrize(
    "variable", [*settings.ENVIRONMENT, settings.DISABLE_OPTIMIZATION, settings.GPU_KERNELS]
)
def test_invalid_environment_value_error_lists_known_ones(variable):
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
        ("dtype: {vocoder: float16}", "vocoder is 'float16'; known: float32, bfloat16"),
        ("compile: no", "compile is 'no'; known: none, cudagraphs, inductor"),
        ("offload: everything", "known: none, stages, all-but-active"),
        ("- a list", "must be a mapping"),
        ("dtype: [float16]", "give a name, or one per stage"),
        ("dtype: 5", "t3 is '5'; known: float32"),
        ("dtype: 2001-99-99", "t3 is '2001-99-99'; known: float32"),
        ("dtype: " + "9" * 5000, r"t3 is '9{59}\.\.\.; known: float32"),
        ("dtype: !!int x", "the tag 'tag:yaml.org,2002:int' has no meaning in a profile"),
        ("dtype: !mine x", "the tag '!mine' has no meaning in a profile"),
        ("dtype: " + "[" * 5000, "values are nested more than 2 deep"),
        ("dtype: int8\ndtype: int4", "the key 'dtype' is there more than once"),
        ("dtype: {t3: int8, t3: int4}", "the key 't3' is there more than once"),
        ("a: &a [1]\nb: [*a, *a]", "anchors and aliases"),
        ("description: [a]", "description must be a text"),
        ("hops: 10", "hops is '10'; give numbers of tokens, such as"),
        ("hops: [10, x]", "hops is ['10', 'x']; give numbers of tokens, such as"),
        ("hops: [[10]]", "values are nested more than 2 deep"),
        ("hops: {a: 10}", "hops is {'a': '10'}; give numbers of tokens, such as"),
        ("large_model_hops: []", "large_model_hops: hops are .*; give 1 to 100 numbers"),
        ("first_steps: 0", "first_steps: first_steps is 0; use 1 to 100"),
        ("first_steps: [1]", "first_steps is ['1']; give a whole number"),
        ("large_model_first_steps: x", "large_model_first_steps is 'x'; give a whole number"),
        ("hops: [0]", "hops: hops are .*; give 1 to 100 numbers"),
        ("x: " + "y" * 70_000, "more than 64 KiB: it is not a profile"),
        ("dtype: a\0b", "not valid YAML"),
        ("a: [", "not valid YAML"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_invalid_profile_error_lists_known_values(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=message.replace("[", r"\[")):
        load_profile(str(path))


def test_a_profile_that_is_not_utf8_or_has_no_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe")
    for name in (str(path), "a\0.yaml"):
        with pytest.raises(ProfileError, match="not valid YAML"):
            load_profile(name)


def test_profile_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("dtype: {t3: bfloat16}\noffload: stages\n")
    resolved = resolve(str(path), gpu(), {}, {})
    assert (resolved.t3.storage, resolved.flow.storage, resolved.offload) == (
        "bfloat16",
        "float32",
        "stages",
    )


@pytest.mark.parametrize("name", ["nope", "../rtx4090", ""])
def test_unknown_profile_error_lists_known_ones(name):
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
        (gpu(), "int8", ("int8", "bfloat16")),
        (gpu(), "int4", ("int8", "bfloat16")),
        (gpu(capability=(7, 5)), "int8", ("int8", "float16")),
        (gpu(unsupported=WITHOUT_KERNELS), "int8", ("bfloat16", "bfloat16")),
        (gpu(capability=(6, 1), unsupported=WITHOUT_KERNELS), "int8", ("float16", "float16")),
        (MPS, "int8", ("float16", "float16")),
    ],
)
def test_integer_dtypes_fall_back_to_supported_ones(hardware, dtype, expected):
    resolved = resolve("dev", hardware, {"dtype": dtype}, {})
    assert (resolved.t3.storage, resolved.flow.storage) == expected
    assert f"dtype {dtype}: from the command line" in resolved.reasons
    reasons = " | ".join(resolved.reasons)
    for narrow in {dtype, "bfloat16", kernel_feature("t3", resolved.flow.storage)} & set(
        hardware.unsupported
    ):
        assert hardware.unsupported[narrow] in reasons
    if hardware.device == "mps":
        assert "integer matrices are for CPUs and CUDA GPUs" in reasons
    assert resolved.triton_stages == (
        ("t3",) if hardware.device == "cuda" and not hardware.unsupported else ()
    )


def test_fused_kernels_are_probed_only_for_the_requested_dtypes():
    """A probe compiles, so only kernels that will be used are probed."""
    probed = []

    def unsupported(name, reason):
        return name, lambda: probed.append(name) or reason

    def fused(reason="", **overrides):
        names = [kernel_feature(s, d) for s, dtypes in hardware.KERNELS.items() for d in dtypes]
        reasons = dict(
            unsupported(name, reason if name.startswith("flow") else "") for name in names
        )
        probed.clear()
        return resolve("rtx4090", replace(gpu(), unsupported=LazyReasons(reasons)), overrides, {})

    assert fused().triton_stages == ("t3", "flow")
    assert probed == [
        kernel_feature(*pair)
        for pair in (("t3", "float16"), ("t3", "float32"), ("flow", "float16"))
    ]
    resolved = fused("no registers")
    assert (
        resolved.triton_stages == ("t3",)
        and "flow by PyTorch's operations: no registers" in resolved.reasons
    )
    assert fused(dtype="float32").triton_stages == ("t3",)
    assert fused(compile="none").triton_stages == ("t3",)
    plain = resolve(
        "rtx4090", gpu(unsupported=WITHOUT_KERNELS), {}, {"DISABLE_OPTIMIZATION": "true"}
    )
    assert plain.triton_stages == () and "no compiler" not in " ".join(plain.reasons)


def test_integer_step_ignores_inductor():
    resolved = resolve("cpu", CPU, {"dtype": "int8", "compile": "inductor"}, {})
    assert resolved.compile == "none"
    assert "one compiled call" in " | ".join(resolved.reasons)
    assert resolve("dev", CPU, {"compile": "inductor"}, {}).compile == "inductor"


def test_quantized_plan_reports_its_accuracy():
    reasons = " | ".join(resolve("cpu", CPU, {}, {}).reasons)
    assert "99.3 %" in reasons
    assert "96.4 %" in " | ".join(resolve("cpu", CPU, {"dtype": "int4"}, {}).reasons)
    assert "KL" not in " | ".join(resolve("cpu", WITHOUT_VNNI, {}, {}).reasons)


def test_cpu_profile_uses_the_fastest_supported_dtype():
    new = resolve("cpu", CPU, {}, {})
    assert (new.t3.storage, new.flow.storage) == ("int8", "int8")
    old = resolve("cpu", WITHOUT_VNNI, {}, {})
    assert (old.t3.storage, old.flow.storage) == ("float32", "float32")
    assert "t3 bfloat16: products saturate" in old.reasons
    assert "t3 float32: none here" in old.reasons


def test_probe_of_the_cpu_lists_unsupported_dtypes():
    probed = probe.probe("cpu")
    assert set(probed.unsupported) <= {
        "bfloat16",
        "int8",
        "int4",
        "int8 flow",
        "bfloat16 vocoder",
        "onednn",
    }
    assert all(probed.unsupported.values())


def test_probed_hardware_is_picklable(monkeypatch):
    """With its reasons as plain values; the lazy probes are not pickled (Ray, ray_workers.py)."""
    reasons = {"int8": lambda: "no VNNI", "bfloat16": lambda: ""}
    monkeypatch.setattr(weight_layout, "unsupported_dtypes", lambda: LazyReasons(reasons))
    probed = probe.probe("cpu")
    restored = pickle.loads(pickle.dumps(probed))
    assert restored == probed and restored.unsupported == {"int8": "no VNNI"}


FLOAT32_VOCODER = StagePlan()
BFLOAT16_VOCODER = StagePlan("bfloat16", "bfloat16")


@pytest.mark.parametrize(
    ("hardware", "overrides", "t3", "flow", "vocoder"),
    [
        (CPU, {"dtype": "int8"}, ("int8", "float32", "int8", "numba"), ("int8", "bfloat16", "int8", "numba"), BFLOAT16_VOCODER),
        (CPU, {"dtype": "int4"}, ("int4", "float32", "int4", "numba"), ("int8", "bfloat16", "int8", "numba"), BFLOAT16_VOCODER),
        (CPU, {"dtype": "bfloat16"}, ("bfloat16", "bfloat16", "bfloat16", "pytorch"), ("bfloat16", "bfloat16", "onednn", "pytorch"), BFLOAT16_VOCODER),
        (CPU, {"dtype": "float32"}, ("float32", "float32", "onednn", "pytorch"), ("float32", "float32", "onednn", "pytorch"), FLOAT32_VOCODER),
        (CPU, {"dtype": "float32", "compile": "inductor"}, ("float32", "float32", "plain", "pytorch"), ("float32", "float32", "onednn", "pytorch"), FLOAT32_VOCODER),
        (Hardware("cpu", "x", unsupported={"bfloat16 vocoder": "AMX"}), {"dtype": "int8"}, ("int8", "float32", "int8", "numba"), ("int8", "bfloat16", "int8", "numba"), FLOAT32_VOCODER),
        (Hardware("cpu", "x", unsupported={"onednn": "none"}), {"dtype": "float32"}, ("float32", "float32", "plain", "pytorch"), ("float32", "float32", "plain", "pytorch"), FLOAT32_VOCODER),
        (MPS, {"dtype": "float16"}, ("float16", "float16", "plain", "pytorch"), ("float16", "float16", "plain", "pytorch"), FLOAT32_VOCODER),
        (gpu(), {"dtype": "int8"}, ("int8", "bfloat16", "weight-only", "triton"), ("bfloat16", "bfloat16", "plain", "triton"), FLOAT32_VOCODER),
        (gpu(), {"dtype": "float16"}, ("float16", "float16", "plain", "triton"), ("float16", "float16", "plain", "triton"), FLOAT32_VOCODER),
    ],
)  # fmt: skip
def test_a_stage_is_planned_whole(hardware, overrides, t3, flow, vocoder):
    """Storage, arithmetic, layout and kernels follow from the plan alone: building decides nothing."""
    profile = "rtx4090" if hardware.device == "cuda" else "dev"
    resolved = resolve(profile, hardware, overrides, {})
    for stage, expected in ((resolved.t3, t3), (resolved.flow, flow)):
        assert (stage.storage, stage.compute, stage.layout, stage.kernels) == expected
    assert resolved.vocoder == vocoder


def test_weights_stored_narrower_than_they_are_multiplied():
    resolved = resolve("gtx1080", gpu("GTX 1080", 8000, None, (6, 1)), {}, {})
    assert (resolved.t3.storage, resolved.t3.compute, resolved.t3.narrowed) == (
        "float16",
        "float32",
        True,
    )
    assert (
        resolved.narrowed_compute == "float32" and "stored, float32 computed" in resolved.summary()
    )
    assert not resolve("cpu", CPU, {}, {}).narrowed_compute, "integers have a layout, not a dtype"


@pytest.mark.parametrize(
    ("profile", "config", "sizes", "steps"),
    [
        ("cpu", TINY, (10, 40, 100), None),
        ("cpu", ModelConfig(), (10, 1000), 7),
        ("rtx4090", ModelConfig(), (10, 40, 100), None),
        ("hops: [5, 9]", TINY, (5, 9), None),
        ("hops: [5, 9]", ModelConfig(), (10, 40, 100), None),
        ("first_steps: 3", TINY, (10, 40, 100), 3),
        ("first_steps: 3", ModelConfig(), (10, 40, 100), None),
        ("large_model_hops: [7]\nlarge_model_first_steps: 4", ModelConfig(), (7,), 4),
    ],
)
def test_the_parts_of_a_stream_depend_on_the_profile_and_the_model(
    tmp_path, profile, config, sizes, steps
):
    if ":" in profile:
        path = tmp_path / "mine.yaml"
        path.write_text(profile)
        profile = str(path)
    resolved = resolve(profile, CPU if "cpu" in profile else gpu(), {}, {})
    assert resolved.hop_schedule(config) == HopSchedule(sizes, first_steps=steps)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("compute", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("hardware", [CPU, SLOW_CPU], ids=["CPU", "SLOW_CPU"])
def test_a_cpu_computes_in_what_it_supports(tmp_path, hardware, dtype, compute):
    path = tmp_path / "own.yaml"
    path.write_text(f"dtype: {dtype}\ncompute: {compute}\n")
    resolved = resolve(str(path), hardware, {}, {})
    for stage in (resolved.t3, resolved.flow):
        for used in (stage.storage, stage.compute):
            assert used != "float16" and used not in hardware.unsupported
    plain = tmp_path / "plain.yaml"
    plain.write_text(f"dtype: {dtype}\n")
    if compute == dtype:  # says what holds without it
        expected = resolve(str(plain), hardware, {}, {})
        assert (resolved.t3, resolved.flow) == (expected.t3, expected.flow)
