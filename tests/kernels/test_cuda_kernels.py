"""The Triton kernels without a GPU: results in Triton's interpreter, and compilation."""

from __future__ import annotations

import inspect
import itertools
import re
import sys

import pytest
import torch
from helpers.triton_interpreter import interpreted, on_this_numpy

from benchmarks.gpu import resources

triton = pytest.importorskip("triton", reason="this torch comes without Triton")

# KiB of shared memory a program may use, by compute capability
CAPABILITIES = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
FAST = (90, True)  # in half precision, a part of the kernels; all of them are slow tests
MULTIPLES_OF_16 = ("n", "k", "width", "row_stride", "head_stride", "frame_stride", "frames")


@on_this_numpy
@pytest.mark.parametrize("cases", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_match_pytorch(tiny, cases):
    interpreted(cases, tiny)


TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


def compile_kernel(
    kernel, types: dict[str, str], constants: dict[str, int], capability: int
) -> None:
    """Compile for a GPU of a compute capability, and check its resources against the GPU's."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from chatterbox_opt.kernels.cuda.launch import PDL_CAPABILITIES, gdc_wait

    parameters = inspect.signature(kernel.fn).parameters
    pdl = "USE_PDL" in parameters and gdc_wait is not None and capability // 10 in PDL_CAPABILITIES
    options = {name: constants[name] for name in ("num_warps", "num_stages") if name in constants}
    constants = {name: constants[name] for name in constants if name not in options}
    constants |= {"USE_PDL": pdl} if "USE_PDL" in parameters else {}
    signature = {name: types[name] for name in parameters if name in types}
    signature |= dict.fromkeys(constants, "constexpr")
    # what Triton would see in the real arguments: without it there are no 16-byte copies
    divisible = [
        i
        for i, name in enumerate(parameters)
        if signature[name].startswith("*") or name in MULTIPLES_OF_16
    ]
    modern = "constexprs" in inspect.signature(ASTSource.__init__).parameters
    if modern:
        attrs = {(i,): [["tt.divisibility", 16]] for i in divisible}
        paths = {name: (i,) for i, name in enumerate(parameters)}
        constexprs = {paths[name]: value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attrs)
    else:  # older
        from triton.backends.compiler import AttrsDescriptor

        attrs = AttrsDescriptor.from_dict(
            {"arg_properties": {"tt.divisibility": divisible}, "cls": "AttrsDescriptor"}
        )
        source = ASTSource(fn=kernel, signature=signature, constants=constants, attrs=attrs)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
    assert compiled.metadata.shared <= CAPABILITIES[capability] * 1024
    used = resources.usage(compiled.asm["ptx"], capability)
    assert used.spilled <= (
        0 if modern else 128
    )  # Triton 3.2 spills some registers of three kernels
    few_rows = (
        kernel.fn.__name__ == "gemv" and constants["BLOCK_M"] <= 2 and signature["x"] != "*fp32"
    )
    if few_rows and capability == 90:
        warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
        sm = resources.SMS[capability]
        prefetched = resources.prefetched_bytes("gemv", constants, signature, 1)
        programs = resources.programs_per_sm(sm, used.registers, warps, shared)
        assert programs * prefetched >= resources.MIN_IN_FLIGHT_KIB * 1024
    if pdl:
        tensors = {name for name, kind in signature.items() if kind.startswith("*")}
        loaded = loaded_before_wait(compiled.asm["ptx"], list(signature)) & tensors
        assert loaded <= NEVER_WRITTEN
        assert ("weight" in loaded) == (kernel.fn.__name__ == "gemv")
    else:
        assert "griddepcontrol" not in compiled.asm["ptx"]


# by any kernel: all that one may load before gdc_wait (kernels/cuda/launch.py)
NEVER_WRITTEN = {"weight", "scales", "bias", "norm", "norm_bias", "frequencies"}


def loaded_before_wait(ptx: str, names: list[str]) -> set[str]:
    """Which of a kernel's pointer parameters it loads from before gdc_wait; it stores nothing."""
    start, wait, _ = ptx.partition("griddepcontrol.wait")
    assert wait and "griddepcontrol.launch_dependents" in start
    assert "st.global" not in start and "ld.global.nc" not in start
    sources: dict[str, set[str]] = {}  # register -> parameters that its value depends on
    loaded = set()
    for line in start.splitlines():
        line = re.sub(r"^\s*(@!?%p\d+ )?", "", line.replace("{", " ").replace("}", " "))
        registers = re.findall(r"%[a-z]+\d+", line)
        inputs = set().union(*(sources.get(register, set()) for register in registers))
        if parameter := re.search(r"_param_(\d+)", line):
            inputs = {names[int(parameter[1])]}
        if "ld.global" in line:
            loaded |= set().union(*(sources.get(r, set()) for r in re.findall(r"%rd\d+", line)))
        elif registers:
            sources[registers[0]] = inputs
    return loaded


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
@pytest.mark.parametrize(
    ("capability", "half_precision", "every"),
    [
        (*FAST, False),
        *(
            pytest.param(*case, True, marks=pytest.mark.slow)
            for case in itertools.product(CAPABILITIES, (True, False))
        ),
    ],
)
def test_kernels_compile_for_every_gpu(capability, half_precision, every, tmp_path, monkeypatch):
    """The constants of full-size models, down to machine code. Turing has no bfloat16: float16
    there, and no kernels for the flow. The fast case is the newest code (PDL, the flow), and of
    GEMV, GEMM and attention the variants with most flags."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from chatterbox_opt.kernels.cuda import decode_attention, decode_io
    from chatterbox_opt.kernels.cuda import flow as flow_kernels
    from chatterbox_opt.kernels.cuda import launch as kernel_launch
    from chatterbox_opt.kernels.cuda.gemm import LARGEST_TILE, SMALLEST_TILE, gemm, gemm_tile
    from chatterbox_opt.kernels.cuda.gemv import MAX_GEMV_ROWS, gemv, gemv_tile

    if capability >= 100 and kernel_launch.gdc_wait is None:
        pytest.skip("this Triton is older than the GPU")
    major = capability // 10
    half = TYPES[torch.float16 if capability < 80 else torch.bfloat16]
    dtype, size = (half, 2) if half_precision else (TYPES[torch.float32], 4)
    floats = dict.fromkeys(("x", "bias", "norm", "norm_bias", "residual", "out"), dtype)
    linear = {
        **floats,
        "weight": dtype,
        "scales": "*fp32",
        "eps": "fp32",
        "rows": "i32",
        "n": "i32",
    }
    plain = ("HAS_NORM", "GATED")
    all_flags = ("HAS_NORM", "GATED", "HAS_RESIDUAL", "HAS_SCALES")
    gpt2 = ("HAS_NORM", "LAYER_NORM", "HAS_BIAS", "GELU")
    fewest = ((MAX_GEMV_ROWS, all_flags), (SMALLEST_TILE, all_flags), (1, gpt2))
    others = (
        (2, plain),
        (2, ("HAS_RESIDUAL",)),
        (2, ("HAS_SCALES", "HAS_NORM")),
        (LARGEST_TILE, plain),
        (LARGEST_TILE, ("HAS_RESIDUAL",)),
        (1, (*gpt2, "HAS_SCALES")),
        (MAX_GEMV_ROWS, gpt2),
        (LARGEST_TILE, (*gpt2, "HAS_SCALES")),
    )
    for rows, flags in fewest + others if every else fewest:
        int8, gated = "HAS_SCALES" in flags, "GATED" in flags
        types = linear | ({"weight": "*i8"} if int8 else {})
        constants = {name: name in flags for name in (*all_flags, *gpt2)}
        if rows <= MAX_GEMV_ROWS:
            sizes = size, 1 if int8 else size
            k = 4096 if flags == ("HAS_RESIDUAL",) else 1024
            tile = gemv_tile(rows, 1024 if k == 4096 else 3072, k, sizes, gated=gated)
            compile_kernel(gemv, types, constants | {"K": k, **tile}, capability)
        else:
            splits = 4 if flags == ("HAS_RESIDUAL",) else 1
            constants |= {"SPLIT_K": splits, **gemm_tile(rows, size, major)}
            more = {"partial": "*fp32", "arrivals": "*i32", "k": "i32"}
            compile_kernel(gemm, types | more, constants, capability)
    pointers = dict.fromkeys(("qkv", "cos", "sin", "keys", "values", "out"), dtype)
    pointers |= dict.fromkeys(("key_scales", "value_scales", "partial"), "*fp32")
    strides = dict.fromkeys(("rows_per_seq", "heads", "row_stride", "head_stride"), "i32")
    attention = {**pointers, "positions": "*i64", "arrivals": "*i32", "scale": "fp32", **strides}
    keys = decode_attention.SMALL_KEYS.get(major, decode_attention.KEYS)
    constants = {"HEAD_DIM": 64, "KEYS": keys, "num_warps": decode_attention.WARPS}
    for splits, int8, rope in (
        (4, True, True),
        *(((1, False, True), (8, False, True), (8, True, False)) if every else ()),
    ):
        types = attention | (dict.fromkeys(("keys", "values"), "*i8") if int8 else {})
        flags = constants | {"SPLITS": splits, "QUANTIZED": int8, "ROPE": rope}
        compile_kernel(decode_attention.decode_attention_kernel, types, flags, capability)
    state = dict.fromkeys(("token_buffer", "last_token", "num_generated", "position"), "*i64")
    names = ("vocab", "max_tokens", "start", "unforced", "not_finite")
    sizes = dict.fromkeys(names, "i32")
    sample = {"logits": dtype, "seen": "*u8", "sampling_params": "*fp32", "noise": "*fp32"}
    warps = decode_io.FEWER_SAMPLE_WARPS.get(major, decode_io.SAMPLE_WARPS)
    constants = {"ROWS_PER_SEQ": 2, "NUM_PARAMS": 6, "BLOCK_VOCAB": 16384, "num_warps": warps}
    for turbo in (False, True):
        flags = constants | {"TURBO": turbo}
        compile_kernel(decode_io.sample_kernel, {**sample, **state, **sizes}, flags, capability)
    names = ("token_embedding", "position_embedding", "x", "cos", "sin")
    embed = {**dict.fromkeys(names, dtype), **state, "frequencies": "*fp32"}
    embed |= {"positions": "*i64", "arrivals": "*i32"}
    embed |= dict.fromkeys(("width", "table_rows", "max_positions", "num_counters"), "i32")
    constants = {"ROWS_PER_SEQ": 2, "BLOCK_WIDTH": 1024, "HALF_DIM": 32, "BLOCK_COUNTERS": 32}
    for rope in (True, False):
        compile_kernel(decode_io.embed_kernel, embed, constants | {"ROPE": rope}, capability)
    if not half_precision or capability < 80:
        return
    strides = dict.fromkeys(("row_stride", "frame_stride", "head_stride"), "i32")
    sizes = {"scale": "fp32", **dict.fromkeys(("heads", "frames"), "i32"), **strides}
    frames = {**dict.fromkeys("qkv", dtype), "lengths": "*i32", "out": dtype, **sizes}
    constants = {"PADDED": True, "HEAD_DIM": 64, "num_warps": flow_kernels.attention_warps(major)}
    constants |= {"QUERIES": flow_kernels.QUERIES, "KEYS": flow_kernels.KEYS}
    compile_kernel(flow_kernels.attention_kernel, frames, constants, capability)
    floats = dict.fromkeys(("x", "residual", "weight", "bias", "total", "out"), dtype)
    norm = {**floats, "rows": "i32", "width": "i32", "eps": "fp32"}
    for flag in ("HAS_RESIDUAL", "MISH"):
        constants = {name: name == flag for name in ("HAS_RESIDUAL", "MISH")}
        constants |= {"ROWS": flow_kernels.ROWS, "BLOCK_WIDTH": 256}
        compile_kernel(flow_kernels.layer_norm_kernel, norm, constants, capability)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_steps_of_turbo_and_nano_compile_for_every_gpu(capability, tmp_path, monkeypatch):
    """The launches of a step at full size, as the engine makes them. A few bytes spill: in
    float32's GEMM, where LayerNorm has the most sums, and in attention, where ptxas prefers it."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from benchmarks.gpu import dry_launch
    from chatterbox_opt.config.model_config import NANO, TURBO
    from chatterbox_opt.kernels.cuda.launch import PDL_CAPABILITIES, gdc_wait

    if gdc_wait is None:
        pytest.skip("this Triton is older than 3.4")
    pdl = capability // 10 in PDL_CAPABILITIES
    steps = ((TURBO.t3, torch.float16, (1, 4, 32)), (TURBO.t3, torch.float32, (1, 32)),
             (NANO.t3, torch.float16, (1, 32)))  # fmt: skip
    with dry_launch.fake_gpu(capability, pdl=pdl) as compiled:
        for (shape, dtype, counts), int8 in itertools.product(steps, (False, True)):
            dry_launch.decode_steps(dtype, counts, int8=int8, kv_int8=int8, shape=shape)
    names = {kernel.name for kernel in compiled.kernels}
    assert names == {"embed_kernel", "gemv", "gemm", "decode_attention_kernel", "sample_kernel"}
    for kernel in {kernel.files["ptx"]: kernel for kernel in compiled.kernels}.values():
        spilled = resources.usage(kernel.files["ptx"].read_text(), capability).spilled
        allowed = {"decode_attention_kernel": 32, "gemm": 64}.get(kernel.name, 0)
        if kernel.name == "gemm" and kernel.types["x"] != "*fp32":
            allowed = 0
        assert spilled <= allowed, (kernel.name, kernel.constants, kernel.types, spilled)
    assert all(kernel.shared <= CAPABILITIES[capability] * 1024 for kernel in compiled.kernels)
