"""Registers, shared memory and bytes in flight of the Triton kernels, compiled without a GPU.

    python -m benchmarks.gpu.resources --capability 90 --capability 120

Responsible for registers, spills, shared memory, programs per SM, bytes in flight and barriers of
every kernel, and for the table of them. Not responsible for speed, which needs a GPU.

*Bytes in flight* are those of the weights, or of keys and values, that the programs resident on an
SM have requested at once, if every one has just begun: programs per SM times the bytes of one
program's prefetched tiles. About 40 KiB keep an H100's memory busy (gemv.py).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import triton
import typer

from benchmarks.gpu import dry_launch
from benchmarks.gpu.report import grid
from chatterbox_opt.kernels.cuda.launch import PDL_CAPABILITIES

REGISTERS = 65_536  # of an SM, on every GPU since Maxwell
BYTES = {"i8": 1, "fp16": 2, "bf16": 2, "fp32": 4}
MIN_IN_FLIGHT_KIB = 40  # for products of one or two rows on sm_90


@dataclass(frozen=True, slots=True)
class Sm:
    """Limits of an SM (CUDA C++ Programming Guide, table of compute capabilities).

    Attributes:
        warps, programs: resident at once.
        shared: bytes of shared memory.
    """

    warps: int
    programs: int
    shared: int


SMS = {
    75: Sm(32, 16, 64 << 10),
    80: Sm(64, 32, 164 << 10),
    86: Sm(48, 16, 100 << 10),
    89: Sm(48, 24, 100 << 10),
    90: Sm(64, 32, 228 << 10),
    100: Sm(64, 32, 228 << 10),
    120: Sm(48, 24, 100 << 10),
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What one kernel uses, as reported by ptxas.

    Attributes:
        registers: of a thread.
        spilled: bytes of a thread's spill stores.
        barriers: instructions that synchronize a program's warps.
    """

    registers: int
    spilled: int
    barriers: int


def usage(ptx: str, capability: int) -> Usage:
    """Assemble PTX with ``ptxas -v`` and parse its report.

    Raises:
        subprocess.CalledProcessError: ptxas failed.
    """
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    blackwell = folder / "ptxas-blackwell"
    ptxas = blackwell if capability >= 100 and blackwell.exists() else folder / "ptxas"
    architecture = f"sm_{capability}{'a' if capability >= 90 else ''}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        output = subprocess.run(
            [ptxas, "-v", f"--gpu-name={architecture}", file.name, "-o", "/dev/null"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    registers, spilled = (
        int(re.search(pattern, output)[1])  # type: ignore[index]
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes spill stores")
    )
    return Usage(registers, spilled, len(re.findall(r"\b(?:bar|barrier)\.(?:cta\.)?sync", ptx)))


def programs_per_sm(sm: Sm, registers: int, warps: int, shared: int) -> int:
    """How many programs are resident on an SM: limited by registers (allocated to warps in units of
    256), warps, shared memory (1 KiB of each program's is the system's) and its own limit."""
    by_registers = REGISTERS // (-(-registers * 32 // 256) * 256 * warps)
    return min(by_registers, sm.warps // warps, sm.shared // (shared + 1024), sm.programs)


def prefetched_bytes(
    name: str, constants: Mapping[str, Any], types: Mapping[str, str], stages: int
) -> int:
    """Bytes of weights, or of keys and values, that one program prefetches; 0 for others."""
    if name in ("gemv", "gemm"):
        rows = constants["BLOCK_N"] * (2 if constants["GATED"] else 1)
        tile = rows * constants["BLOCK_K"] * BYTES[types["weight"].lstrip("*")]
        return tile if name == "gemv" else tile * (stages - 1)
    if name.endswith("attention_kernel"):
        keys = types["keys" if name == "decode_attention_kernel" else "k"].lstrip("*")
        return 2 * int(constants["KEYS"]) * int(constants["HEAD_DIM"]) * BYTES[keys]
    return 0


def label(name: str, constants: Mapping[str, Any], types: Mapping[str, str]) -> str:
    """A kernel's specialization in words: its matrix, rows and dtypes."""
    dtypes = dict.fromkeys(kind.lstrip("*") for kind in types.values() if kind[0] == "*")
    words = [name]
    if name in ("gemv", "gemm"):
        matrix = "gate_up" if constants["GATED"] else "qkv or head" if constants["HAS_NORM"] else ""
        deep = constants.get("K", 0) > 1024
        words.append(matrix or ("down" if deep else "out" if name == "gemv" else "out or down"))
        words.append(f"{constants['BLOCK_M']} rows")
        words.append(f"{types['x'].lstrip('*')} x {types['weight'].lstrip('*')}")
    else:
        words.append(" ".join(kind for kind in dtypes if kind in BYTES and kind != "i8"))
        shown = ("SPLITS", "QUANTIZED", "PADDED", "HAS_RESIDUAL", "MISH", "ROWS_PER_SEQ")
        words += [f"{name.lower()} {constants[name]}" for name in shown if name in constants]
    return " ".join(words)


def table_rows(kernels: Iterable[dry_launch.Kernel], capability: int) -> list[dict[str, Any]]:
    """A row of the table for each distinct kernel."""
    rows = {}
    for kernel in kernels:
        key = kernel.files["ptx"]
        if key in rows:
            continue
        used = usage(key.read_text(), capability)
        programs = programs_per_sm(SMS[capability], used.registers, kernel.warps, kernel.shared)
        prefetched = prefetched_bytes(kernel.name, kernel.constants, kernel.types, kernel.stages)
        rows[key] = {
            "sm": capability,
            "kernel": label(kernel.name, kernel.constants, kernel.types),
            "warps": kernel.warps,
            "registers": used.registers,
            "spilled": used.spilled,
            "shared KiB": round(kernel.shared / 1024, 1),
            "programs per SM": programs,
            "in flight KiB": round(programs * prefetched / 1024) if prefetched else "",
            "barriers": used.barriers,
        }
    return sorted(rows.values(), key=lambda row: row["kernel"])


def compile_all(capability: int, counts: tuple[int, ...]) -> list[dry_launch.Kernel]:
    """Every kernel that a GPU of this capability runs, in the dtypes that it would use."""
    half = torch.bfloat16 if capability >= 80 else torch.float16
    with dry_launch.fake_gpu(capability, pdl=capability // 10 in PDL_CAPABILITIES) as compiled:
        for dtype in dict.fromkeys((torch.float16, half, torch.float32)):
            for int8 in (False, True):
                dry_launch.decode_steps(dtype, counts, int8=int8, kv_int8=False)
        dry_launch.decode_steps(torch.float16, counts[-1:], int8=False, kv_int8=True)
        for dtype in (torch.float16, half) if capability >= 80 else ():
            dry_launch.flow(dtype)
    return compiled.kernels


def main(
    capability: Annotated[
        list[int] | None, typer.Option(help="75 for 7.5 and so on; all by default.")
    ] = None,
    counts: Annotated[str, typer.Option(help="Batch sizes in sequences, comma-separated.")] = (
        "1,2,32"
    ),
) -> None:
    """Print a table; exit 1 if a kernel spills registers or has too few bytes in flight."""
    bad = []
    for one in capability or SMS:
        if one not in SMS:
            raise typer.BadParameter(f"known: {', '.join(map(str, SMS))}", param_hint="capability")
        batch_sizes = tuple(int(count) for count in counts.split(","))
        rows = table_rows(compile_all(one, batch_sizes), one)
        typer.echo("\n".join([*grid(list(rows[0]), [list(row.values()) for row in rows]), ""]))
        bad += [row for row in rows if row["spilled"] or _too_few_in_flight(row)]
    for row in bad:
        typer.echo(f"error: {row}", err=True)
    sys.exit(1 if bad else 0)


def _too_few_in_flight(row: Mapping[str, Any]) -> bool:
    """Whether an fp16 or bf16 product of one or two rows has too few bytes in flight on sm_90."""
    checked = re.match(r"gemv .* [12] rows (fp16|bf16)", row["kernel"])
    return bool(checked) and row["sm"] == 90 and row["in flight KiB"] < MIN_IN_FLIGHT_KIB


if __name__ == "__main__":
    typer.run(main)
