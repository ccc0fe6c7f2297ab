"""Convolutions over time by our own CPU kernel: their packed weights, and signals with margins.

Responsible for tensors, and for whether the kernel runs here; not responsible for the arithmetic
(kernel.py) or the network around. Callers check ``supports`` first and use PyTorch's operations
otherwise.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatterbox_opt.kernels.cpu import openmp
from chatterbox_opt.utils.skip_init import skip_init

VECTOR = 16  # outputs of one vector
MAX_WIDTH = 64  # outputs of one packed panel
TILE = 3  # outputs that are computed together, and taps of a group
ROWS = 6  # tiles of a register tile
CHUNK = 48  # rows that are finished before the next ones begin, about
# minimal filtering, see kernel.py: of three taps, five factors
WEIGHTS = (
    (2, 0, 0),
    (1, 1, 1),
    (-1 / 3, 1 / 3, -1 / 3),
    (-8 / 3, -4 / 3, -2 / 3),
    (0, 0, 1),
)


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal between zeros, so that convolutions may read beyond both ends.

    Attributes:
        rows: float32 [margin + time + margin, channels], zero in the margins.
        margin: the greatest ``PackedConv.margin`` of what reads it.
    """

    rows: Tensor
    margin: int

    @classmethod
    def empty(cls, time: int, channels: int, margin: int) -> Signal:
        """Uninitialized but for the margins."""
        rows = torch.empty(time + 2 * margin, channels)
        rows[:margin] = 0
        rows[margin + time :] = 0
        return cls(rows, margin)

    @classmethod
    def of(cls, channels_first: Tensor, margin: int) -> Signal:
        """A copy of a signal [channels, time]."""
        return cls(F.pad(channels_first, (margin, margin)).T.contiguous(), margin)

    @property
    def body(self) -> Tensor:
        """[time, channels], without the margins."""
        return self.rows[self.margin : len(self.rows) - self.margin]


@dataclass(frozen=True, slots=True)
class Snake:
    """y + sin(y)^2 of y = x * frequency; ``frequency`` is float32 [channels]."""

    frequency: Tensor


@dataclass(frozen=True, slots=True)
class Leaky:
    """Leaky ReLU."""

    slope: float


class PackedConv:
    """A convolution with contiguous channels, whose output is as long as its input.

    Attributes:
        outputs: channels.
        dtype: of what is multiplied.
        margin: rows of zeros that it needs at both ends of a signal.
    """

    def __init__(self, conv: nn.Conv1d, dtype: torch.dtype = torch.float32) -> None:
        """Pack the weights; no reference to ``conv`` is held.

        Args:
            dtype: of what is multiplied; of bfloat16, inputs must be even.
        """
        self.dtype = dtype
        self.outputs, self._inputs, taps = conv.weight.shape
        self._padding, self._dilation = int(conv.padding[0]), conv.dilation[0]
        assert conv.bias is not None and conv.stride == (1,)
        assert 2 * self._padding == self._dilation * (taps - 1)
        self._groups = -(-taps // TILE)
        # a tile at the end reads further than its last output needs, by whole vectors of channels
        reach = self._dilation * TILE * (self._groups + 1) - self._padding
        self.margin = max(self._padding, reach) + VECTOR
        panels = -(-self.outputs // MAX_WIDTH)
        self._width = -(-self.outputs // (panels * VECTOR)) * VECTOR
        more = panels * self._width - self.outputs
        padded = F.pad(conv.weight.data, (0, -taps % TILE, 0, 0, 0, more))
        by_tap = padded.unflatten(2, (-1, TILE)).unflatten(0, (panels, self._width))
        by_tap = by_tap.permute(4, 0, 3, 2, 1).double()  # [tap, panel, group, input, output]
        factors = torch.tensor(WEIGHTS, dtype=torch.double)
        parts = (factors @ by_tap.flatten(1)).to(dtype).unflatten(1, by_tap.shape[1:])
        parts = parts.transpose(0, 1)
        if dtype == torch.bfloat16:  # both inputs of a pair, output by output
            parts = parts.unflatten(3, (-1, 2)).transpose(4, 5)
        self._weights = parts.contiguous()
        self._bias = F.pad(conv.bias.data, (0, more))

    def __call__(
        self,
        x: Signal,
        *,
        residual: Tensor | None = None,
        total: Tensor | None = None,
        out: Tensor | None = None,
        activation: Snake | Leaky | None = None,
        activated: Tensor | None = None,
    ) -> None:
        """Write v = convolution + residual + total to ``out``, and its activation to ``activated``.

        Args:
            residual, total, out, activated: contiguous float32 [time, outputs], or as many numbers
                in another shape; ``out`` may be one that is added.
        """
        from chatterbox_opt.kernels.cpu.conv import kernel  # numba is only needed here

        time = len(x.body)
        assert x.margin >= self.margin and x.rows.shape[1] == self._inputs
        task = openmp.torch_openmp().new_task(kernel.CONV)
        task["rows"], task["inputs"], task["outputs"] = time, self._inputs, self.outputs
        task["width"], task["groups"] = self._width, self._groups
        task["dilation"], task["tiles"] = self._dilation, self._tiles()
        task["x"] = x.rows.data_ptr() + (x.margin - self._padding) * 4 * self._inputs
        openmp.set_pointers(task, weights=self._weights, bias=self._bias)
        given = {"residual": residual, "total": total, "out": out, "activated": activated}
        for name, tensor in given.items():
            if tensor is not None:
                assert tensor.is_contiguous() and tensor.numel() == time * self.outputs
                openmp.set_pointers(task, **{name: tensor})
        if isinstance(activation, Snake):
            task["activation"] = kernel.SNAKE
            openmp.set_pointers(task, frequency=activation.frequency)
        elif activation is not None:
            task["activation"], task["slope"] = kernel.LEAKY, activation.slope
        compiled = kernel.conv("float32" if self.dtype == torch.float32 else "bfloat16")
        openmp.torch_openmp().run(compiled.address, task.ctypes.data)

    def _tiles(self) -> int:
        """Tiles of each phase of a chunk, in whole register tiles."""
        return max(CHUNK // (ROWS * TILE * self._dilation), 1) * ROWS


def activate(x: Tensor, activation: Snake, activated: Tensor) -> None:
    """Write the activation of contiguous float32 ``x`` [time, channels] to ``activated``."""
    from chatterbox_opt.kernels.cpu.conv import kernel  # numba is only needed here

    assert x.is_contiguous() and activated.is_contiguous() and x.shape == activated.shape
    task = openmp.torch_openmp().new_task(kernel.ACTIVATE)
    task["rows"], task["outputs"] = x.shape
    openmp.set_pointers(task, x=x, activated=activated, frequency=activation.frequency)
    openmp.torch_openmp().run(kernel.activate.address, task.ctypes.data)


def supports(dtype: torch.dtype = torch.float32) -> bool:
    """Whether the functions of this module can be called: on CPUs with AVX-512, where numba works.

    With vectors of another size the tile would not fit into the registers.

    Args:
        dtype: of ``PackedConv``; bfloat16 needs its instructions, and includes float32.
    """
    return not unsupported_reason(dtype)


@functools.cache
def unsupported_reason(dtype: torch.dtype = torch.float32) -> str:
    """Why ``supports`` is False, or ""."""
    if dtype == torch.bfloat16:
        if not torch.cpu._is_avx512_bf16_supported():
            return "this CPU has no bfloat16 instructions"
        if reason := unsupported_reason():
            return reason
    return openmp.avx512_selftest(functools.partial(_selftest_failure, dtype))


def _selftest_failure(dtype: torch.dtype) -> str:
    from chatterbox_opt.kernels.cpu import llvm

    if not llvm.has_feature("avx512f") or (dtype == torch.bfloat16 and not llvm.BFLOAT16):
        return "numba does not compile for all features of this CPU"
    with skip_init():  # else the caller's random numbers would be drawn
        layer = nn.Conv1d(4, 2, 3, dilation=2, padding=2, device="cpu")
    for values in layer.parameters():
        values.data = torch.linspace(-1, 1, values.numel()).view(values.shape)
    x, ours = torch.linspace(-2, 2, 4 * 9).view(4, 9), torch.empty(9, 2)
    packed = PackedConv(layer, dtype)
    packed(Signal.of(x, packed.margin), activation=Snake(torch.ones(2)), activated=ours)
    with torch.inference_mode():
        exact = layer(x[None])[0].T
    bound = 1e-5 if dtype == torch.float32 else 0.1
    close = torch.allclose(ours, exact + exact.sin() ** 2, atol=bound)
    return "" if close else "convolutions give wrong results here"
