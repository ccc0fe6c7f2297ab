"""Triton's kernels without a card: what they compute, by its interpreter, and that they compile."""

from __future__ import annotations

import inspect
import re
import sys

import pytest
import torch
from helpers.triton_interpreter import OTHERS, interpreted, on_this_numpy

from benchmarks.gpu import resources

triton = pytest.importorskip("triton", reason="this torch comes without Triton")

# KiB of shared memory a program may take
CARDS = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
MULTIPLES_OF_16 = ("n", "k", "width", "row_stride", "head_stride", "frame_stride", "frames")


@on_this_numpy
def test_they_compute_what_they_should(tiny):
    """Some of them: the others are in a file of their own, which runs beside this one."""
    interpreted(f"not ({OTHERS})", tiny)


TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


def machine_code(kernel, types: dict[str, str], constants: dict[str, int], card: int) -> None:
    """Compile for a card of compute capability ``card``, and see that it would fit there."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from chatterbox_opt.kernels.cuda.launch import PDL_CAPABILITIES, gdc_wait

    parameters = inspect.signature(kernel.fn).parameters
    early = "USE_PDL" in parameters and gdc_wait is not None and card // 10 in PDL_CAPABILITIES
    options = {name: constants[name] for name in ("num_warps", "num_stages") if name in constants}
    constants = {name: constants[name] for name in constants if name not in options}
    constants |= {"USE_PDL": early} if "USE_PDL" in parameters else {}
    signature = {name: types[name] for name in parameters if name in types}
    signature |= dict.fromkeys(constants, "constexpr")
    # what Triton would learn from the real arguments: without it nothing waits in shared memory
    whole = [
        place
        for place, name in enumerate(parameters)
        if signature[name].startswith("*") or name in MULTIPLES_OF_16
    ]
    modern = "constexprs" in inspect.signature(ASTSource.__init__).parameters
    if modern:
        attrs = {(place,): [["tt.divisibility", 16]] for place in whole}
        places = {name: (place,) for place, name in enumerate(parameters)}
        constexprs = {places[name]: value for name, value in constants.items()}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attrs)
    else:  # older
        from triton.backends.compiler import AttrsDescriptor

        attrs = AttrsDescriptor.from_dict(
            {"arg_properties": {"tt.divisibility": whole}, "cls": "AttrsDescriptor"}
        )
        source = ASTSource(fn=kernel, signature=signature, constants=constants, attrs=attrs)
    made = triton.compile(source, target=GPUTarget("cuda", card, 32), options=options)
    assert made.asm["cubin"]
    assert made.metadata.shared <= CARDS[card] * 1024
    used = resources.usage(made.asm["ptx"], card)
    assert used.spilled <= (
        0 if modern else 128
    )  # Triton 3.2 spills some registers of three kernels
    few = kernel.fn.__name__ == "gemv" and constants["ROWS"] <= 2 and signature["x"] != "*fp32"
    if few and card == 90:
        warps, shared = made.metadata.num_warps, made.metadata.shared
        sm, ahead = resources.SMS[card], resources.ahead("gemv", constants, signature, 1)
        programs = resources.programs_an_sm(sm, used.registers, warps, shared)
        assert programs * ahead >= resources.WANTED_KIB * 1024
    if early:
        tensors = {name for name, kind in signature.items() if kind.startswith("*")}
        read = read_before_the_wait(made.asm["ptx"], list(signature)) & tensors
        assert read <= NEVER_WRITTEN
        assert ("weight" in read) == (kernel.fn.__name__ == "gemv")
    else:
        assert "griddepcontrol" not in made.asm["ptx"]


# by any of our kernels: all that one may read before it has waited (kernels/cuda/launch.py)
NEVER_WRITTEN = {"weight", "scales", "norm", "frequencies"}


def read_before_the_wait(ptx: str, names: list[str]) -> set[str]:
    """Which of a kernel's parameters are where it reads from before it waits; it writes nothing."""
    start, wait, _ = ptx.partition("griddepcontrol.wait")
    assert wait and "griddepcontrol.launch_dependents" in start
    assert "st.global" not in start and "ld.global.nc" not in start
    comes_from: dict[str, set[str]] = {}
    read = set()
    for line in start.splitlines():
        line = re.sub(r"^\s*(@!?%p\d+ )?", "", line.replace("{", " ").replace("}", " "))
        registers = re.findall(r"%[a-z]+\d+", line)
        given = set().union(*(comes_from.get(register, set()) for register in registers))
        if parameter := re.search(r"_param_(\d+)", line):
            given = {names[int(parameter[1])]}
        if "ld.global" in line:
            read |= set().union(*(comes_from.get(r, set()) for r in re.findall(r"%rd\d+", line)))
        elif registers:
            comes_from[registers[0]] = given
    return read


@pytest.mark.skipif(sys.platform != "linux", reason="Triton's compiler is for Linux")
@pytest.mark.parametrize("narrow", [True, False])
@pytest.mark.parametrize(
    "card",
    [card if card in (75, 90) else pytest.param(card, marks=pytest.mark.slow) for card in CARDS],
)
def test_they_compile_for_cards_that_are_not_here(card, narrow, tmp_path, monkeypatch):
    """True shapes' constants, down to machine code. Turing has no bfloat16: float16 there, and no
    kernels for the flow."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from chatterbox_opt.kernels.cuda import decode_attention, decode_io
    from chatterbox_opt.kernels.cuda import flow as flow_kernels
    from chatterbox_opt.kernels.cuda import launch as kernel_launch
    from chatterbox_opt.kernels.cuda.gemm import LARGEST_TILE, SMALLEST_TILE, gemm, gemm_tile
    from chatterbox_opt.kernels.cuda.gemv import MAX_GEMV_ROWS, gemv, gemv_tile

    if card >= 100 and kernel_launch.gdc_wait is None:
        pytest.skip("this Triton is older than the card")
    half = TYPES[torch.float16 if card < 80 else torch.bfloat16]
    given, size = (half, 2) if narrow else (TYPES[torch.float32], 4)
    floats = dict.fromkeys(("x", "norm", "residual", "out"), given)
    product = {
        **floats,
        "weight": given,
        "scales": "*fp32",
        "eps": "fp32",
        "rows": "i32",
        "n": "i32",
    }
    plain, all_of_it = ("NORMED", "GATED"), ("NORMED", "GATED", "ADDED", "SCALED")
    for rows, form in (
        (2, plain),
        (2, ("ADDED",)),
        (2, ("SCALED", "NORMED")),
        (MAX_GEMV_ROWS, all_of_it),
        (SMALLEST_TILE, all_of_it),
        (LARGEST_TILE, plain),
        (LARGEST_TILE, ("ADDED",)),
    ):
        whole, gated = "SCALED" in form, "GATED" in form
        types = product | ({"weight": "*i8"} if whole else {})
        constants = {name: name in form for name in all_of_it}
        if rows <= MAX_GEMV_ROWS:
            sizes = size, 1 if whole else size
            depth = 4096 if form == ("ADDED",) else 1024
            tile = gemv_tile(rows, 1024 if depth == 4096 else 3072, depth, sizes, gated=gated)
            machine_code(gemv, types, constants | {"K": depth, **tile}, card)
        else:
            parts = 4 if form == ("ADDED",) else 1
            constants |= {"SPLITS": parts, **gemm_tile(rows, size, card // 10)}
            more = {"partial": "*fp32", "arrivals": "*i32", "k": "i32"}
            machine_code(gemm, types | more, constants, card)
    pointers = dict.fromkeys(("qkv", "cos", "sin", "keys", "values", "out"), given)
    pointers |= dict.fromkeys(("key_scales", "value_scales", "partial"), "*fp32")
    strides = dict.fromkeys(("rows_per_seq", "heads", "row_stride", "head_stride"), "i32")
    query = {**pointers, "places": "*i64", "arrivals": "*i32", "scale": "fp32", **strides}
    keys = decode_attention.SMALLER.get(card // 10, decode_attention.KEYS)
    constants = {"WIDTH": 64, "KEYS": keys, "num_warps": decode_attention.WARPS}
    for parts, whole in ((1, False), (8, False), (4, True)):
        types = query | (dict.fromkeys(("keys", "values"), "*i8") if whole else {})
        forms = constants | {"SPLITS": parts, "QUANTIZED": whole}
        machine_code(decode_attention.decode_attention_kernel, types, forms, card)
    kept = dict.fromkeys(("token_buffer", "last_token", "num_generated", "position"), "*i64")
    sizes = dict.fromkeys(("words", "places", "free", "not_finite"), "i32")
    draw = {"logits": given, "seen": "*u8", "knobs": "*fp32", "noise": "*fp32", **kept, **sizes}
    warps = decode_io.FEWER_WARPS.get(card // 10, decode_io.WIDE_WARPS)
    constants = {"ROWS_PER_SEQ": 2, "COLUMNS": 6, "WORDS": 16384, "num_warps": warps}
    machine_code(decode_io.sample_kernel, draw, constants, card)
    floats = dict.fromkeys(("words", "spots", "x", "cos", "sin"), given)
    places = {"places": "*i64", "arrivals": "*i32"}
    places |= dict.fromkeys(("width", "beyond", "counters"), "i32")
    enter = {**floats, **kept, **places, "frequencies": "*fp32"}
    constants = {"ROWS_PER_SEQ": 2, "ROOM": 1024, "HALF": 32, "COUNTERS": 32}
    machine_code(decode_io.embed_kernel, enter, constants, card)
    if not narrow or card < 80:
        return
    strides = dict.fromkeys(("row_stride", "frame_stride", "head_stride"), "i32")
    sizes = {"scale": "fp32", **dict.fromkeys(("heads", "frames"), "i32"), **strides}
    frames = {**dict.fromkeys("qkv", given), "lengths": "*i32", "out": given, **sizes}
    constants = {"PADDED": True, "WIDTH": 64, "num_warps": flow_kernels.warps_for(card // 10)}
    constants |= {"QUERIES": flow_kernels.QUERIES, "KEYS": flow_kernels.KEYS}
    machine_code(flow_kernels.attention_kernel, frames, constants, card)
    floats = dict.fromkeys(("x", "more", "weight", "bias", "total", "out"), given)
    norm = {**floats, "rows": "i32", "width": "i32", "eps": "fp32"}
    for form in ("ADDED", "MISH"):
        constants = {name: name == form for name in ("ADDED", "MISH")}
        constants |= {"ROWS": flow_kernels.ROWS, "ROOM": 256}
        machine_code(flow_kernels.layer_norm_kernel, norm, constants, card)
