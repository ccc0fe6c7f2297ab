"""A simulated GPU: PyTorch on the CPU, with a record of what would be on a GPU.

All tensors are in host memory. Queries about the GPU are answered as by a GPU, and what a GPU would
reject raises an error:

- tensors of two devices in one operation, a generator of the other device, numpy of a GPU's tensor;
- an operation that PyTorch has no CUDA kernel for;
- while a graph is captured: reading a value back, copies from and to the host, random numbers, and
  a convolution, or attention by cuDNN, of shapes that this thread has not had before (a plan);
- a race: reading or writing memory that another stream, or a copy without a wait, may still use.

Races are found by order, not by time (happens-before, with vector clocks; Mattern 1989). The GPU's
work is a launch on a stream: launch 7 of stream 2. Each stream, event and host thread has a clock:
for each stream, the last launch that it knows to have ended. A launch learns what its host thread
and its stream knew; ``wait_event``, ``wait_stream``, ``synchronize`` and a future's result pass
knowledge on. Each piece of memory keeps its last write, and each stream's last read since. Work may
touch memory only if its clock has reached that write, and write only if it has reached those reads;
else it raises RaceError, although the numbers are right:

    with SimulatedGPU().plugged(monkeypatch):
        x = torch.zeros(4, device="cuda")        # launch 1 of stream 1, the default: writes x
        side = torch.cuda.Stream()               # stream 2; its clock knows of no launch
        with torch.cuda.stream(side):
            x + 1                                # RaceError: stream 1 may still write x
        side.wait_stream(torch.cuda.current_stream())   # stream 2 now knows of launch 1
        with torch.cuda.stream(side):
            y = x + 1                            # launch 1 of stream 2: reads x
        x.zero_()                                # RaceError: stream 2 may still read x

It knows what memory tensors and cuBLAS's workspaces would take, and how often the host waited. It
knows nothing of kernels' numbers or speed, of the allocator's pieces, or of dtypes that a kernel
lacks.
"""

from __future__ import annotations

import functools
import threading
import time
import weakref
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from helpers.fake_graph_capture import Tape
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
TOTAL = 24 << 30  # bytes of the card
KERNELS = ("CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd", "BackendSelect")
# the processor's form of what a card has in a form of its own
IN_PLACE_OF = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": "aten::_scaled_dot_product_flash_attention"
}
READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")  # the host waits for the numbers
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "matmul")  # of cuBLAS
CONVOLUTIONS = ("convolution", "_convolution", "conv1d", "conv2d", "conv_transpose1d")
STREAMS = 32  # of torch; they go round
INDICES = ("index", "index_put_", "_index_put_impl_", "_unsafe_index")  # may be the host's
PLACES = ("set_",)  # no numbers move


class Clock(dict):
    """Stream -> launches that are known to have ended; none of those that are not here."""

    def __missing__(self, stream) -> int:
        return 0

    def __ior__(self, other):
        for stream, launch in other.items():
            if launch > self[stream]:
                self[stream] = launch
        return self

    def __or__(self, other):
        return Clock(self).__ior__(other)


class RaceError(AssertionError):
    """Two streams, or a stream and the host, at one piece of memory in no order."""


@dataclass(slots=True)
class Memory:
    """A storage that is the card's, or the host's and pinned."""

    alive: StorageWeakRef
    size: int
    pinned: bool
    written: tuple[int, int] = (0, 0)  # stream and launch
    read: Clock = field(default_factory=Clock)


class Operation:
    """What is known of an operation of torch, whatever it is given."""

    def __init__(self, func):
        schema = func._schema
        self.name, self.short = schema.name, schema.name.split("::")[1]
        gpu_name, overload = IN_PLACE_OF.get(self.name, self.name), schema.overload_name
        self.full = f"{gpu_name}.{overload}" if overload and gpu_name == self.name else gpu_name
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        self.has_kernel = any(has(self.full, key) for key in KERNELS)
        self.views = not schema.is_mutable and any(x.alias_info is not None for x in schema.returns)
        self.writes = [
            place
            for place, spec in enumerate(schema.arguments)
            if spec.alias_info is not None and spec.alias_info.is_write
        ]
        # attention draws for its dropout only, which nothing here has
        self.draws = (
            torch.Tag.nondeterministic_seeded in func.tags and "attention" not in self.short
        )


OPERATIONS = functools.cache(Operation)


class SimulatedGPU:
    """``with SimulatedGPU().plugged(monkeypatch):`` makes it what torch.cuda tells of."""

    def __init__(self, capability: tuple[int, int] = (9, 0)):
        self.capability = capability
        self.syncs: list[str] = []  # why the host waited
        self.captures = self.replays = 0
        self.states = 0  # of generators that were asked for, whole
        self.peak = 0
        self.cudnn_attention = True
        self.underway: list[Pool] = []  # that a capture allocates from, as the allocator knows
        self.released: list[Pool] = []  # by captures that have failed
        self._memory: dict[int, Memory] = {}
        self._young: list[int] = []  # those that came since all were asked whether they are gone
        self._counted = 0  # bytes of the GPU's in there; some of it may be gone
        self._lock = threading.RLock()
        self._launched = Clock()
        self._streams = 0
        self._pooled: list[Stream] = []
        self._workspaces: dict[int, Pool | None] = {}  # stream -> whose memory cuBLAS works in
        self.thread = _Thread(self)

    # -- places

    def home(self, tensor) -> torch.device:
        kept = self._find(tensor)
        return CPU if kept is None or kept.pinned else CUDA

    def _find(self, tensor) -> Memory | None:
        if tensor.layout != torch.strided:
            return None
        return self._memory.get(tensor.untyped_storage()._cdata)

    def keep(self, tensor, *, pinned: bool = False) -> None:
        storage = tensor.untyped_storage()
        with self._lock:
            self._forget(storage._cdata)
            memory = Memory(StorageWeakRef(storage), storage.nbytes(), pinned)
            self._memory[storage._cdata] = memory
            self._young.append(storage._cdata)
            self._counted += 0 if pinned else memory.size
            if self._counted > self.peak:
                self._forget_gone(self._young)  # most are, and they are few
                self._young = [key for key in self._young if key in self._memory]
            if self._counted > self.peak:
                self.peak = max(self.peak, self.allocated())

    def allocated(self) -> int:
        with self._lock:
            self._forget_gone(self._memory)
            self._young.clear()
            return self._counted

    def _forget_gone(self, keys) -> None:
        known, expired = self._memory, torch.UntypedStorage._expired
        gone = [key for key in keys if key in known and expired(known[key].alive.cdata)]
        for key in gone:
            self._forget(key)

    def _forget(self, key: int) -> None:
        known = self._memory.pop(key, None)
        if known is not None and not known.pinned:
            self._counted -= known.size

    def workspaces(self) -> int:
        """Bytes that cuBLAS holds: a workspace for each stream that products were made on."""
        return len(self._workspaces) * ((32 << 20) if self.capability >= (9, 0) else (8 << 20))

    def _multiply(self) -> None:
        graph = self.thread.capturing
        if graph and not self.thread.handle:
            raise RuntimeError("CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`")
        self.thread.handle = True
        pool = graph.pool if graph else None
        with self._lock:
            if self._workspaces.setdefault(self.thread.stream.number, pool) is not pool:
                raise RaceError("a product in a workspace that another graph, or none, works in")

    def _plan(self, short: str, tensors) -> None:
        """What cuDNN finds out about shapes, and keeps for this thread."""
        attends = self.cudnn_attention and "attention" in short
        if not attends and short not in CONVOLUTIONS:
            return
        plan = (short, *((t.shape, t.dtype) for t in tensors))
        if plan not in self.thread.plans:
            self.refuse_in_capture(f"making cuDNN's plan of {short}")
            self.thread.plans.add(plan)

    # -- order

    def stream(self) -> int:
        self._streams += 1
        return self._streams

    def pooled(self) -> Stream:
        """One of torch's streams: they are given out again when all were."""
        if self._streams <= STREAMS:  # with the default one
            self._pooled.append(Stream(self))
        else:
            self._pooled.append(self._pooled.pop(0))
        return self._pooled[-1]

    def launch(self, reads, writes, what: str) -> None:
        """Work of the current stream over memory of the card and pinned memory of the host."""
        if self.thread.capturing:
            return  # nothing is done
        with self._lock:
            stream = self.thread.stream
            stream.known |= self.thread.known
            self._launched[stream.number] += 1
            now = stream.known[stream.number] = self._launched[stream.number]
            self._order(reads, writes, stream.known, what)
            for memory in reads:
                memory.read[stream.number] = now
            for memory in writes:
                memory.written, memory.read = (stream.number, now), Clock()

    def touch(self, reads, writes, what: str) -> None:
        """Work of the host over pinned memory."""
        self._order(reads, writes, self.thread.known, f"{what} by the host")

    def _order(self, reads, writes, known: Clock, what: str) -> None:
        for memory in (*reads, *writes):
            stream, launch = memory.written
            if known[stream] < launch:
                raise RaceError(f"{what}: stream {stream} may still write what is used here")
        for memory in writes:
            if any(known[stream] < launch for stream, launch in memory.read.items()):
                raise RaceError(f"{what}: another stream may still read what is written here")

    def sync(self, why: str, known: Clock | None = None) -> None:
        self.refuse_in_capture(why)
        self.syncs.append(why)
        self.thread.known |= self.thread.stream.known if known is None else known

    def refuse_in_capture(self, what: str) -> None:
        if self.thread.capturing:
            self.thread.capturing.invalid = True
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")

    def end_allocations(self, index: int, pool: Pool) -> None:
        assert index == 0
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.remove(pool)

    def empty_cache(self) -> None:
        if self.underway:
            raise RuntimeError("INTERNAL ASSERT FAILED: captures_underway.empty()")

    # -- operations

    def operation(self, func, args, kwargs):
        known, tensors = OPERATIONS(func), _tensors((args, kwargs))
        name, short = known.name, known.short
        found = [self._find(t) for t in tensors]
        places = [CPU if m is None or m.pinned else CUDA for m in found]
        homes = {p for t, p in zip(tensors, places, strict=True) if p == CUDA or t.dim()}
        on_gpu = CUDA in homes or (not tensors and self.thread.making == CUDA)
        crossing = short == "copy_" and len(set(places[:2])) == 2
        if on_gpu and not crossing:
            self._refuse(known, args, tensors, homes)
            if short in PRODUCTS and not self.thread.replaying:
                self._multiply()
            if not self.thread.replaying:
                self._plan(short, tensors)
        made = func(*args, **kwargs)
        outputs = _tensors(made)
        for out in outputs:
            if on_gpu and not crossing and out.layout == torch.strided and not self._find(out):
                given = {t.untyped_storage()._cdata for t in tensors if t.layout == torch.strided}
                assert out.untyped_storage()._cdata not in given, f"{name} moved the host's memory"
                self.keep(out)
        if short in PLACES:
            return made
        if known.views:
            return made
        written = _tensors([args[i] for i in known.writes if i < len(args)])
        written += [o for o in outputs if not any(o is t for t in tensors)]
        reads = [m for m in found if m is not None]
        writes = [m for t in written if (m := self._find(t)) is not None]
        if on_gpu or crossing:
            self.launch(reads, writes, name)
            self._wait(short, args, kwargs, crossing=crossing)
        else:
            self.touch(reads, writes, name)
        return made

    def _refuse(self, known: Operation, args, tensors, homes) -> None:
        """Raise what a card would."""
        name, short = known.name, known.short
        if len(homes) > 1 and short not in (*INDICES, *PLACES):
            raise RuntimeError(f"Expected all tensors to be on the same device: {name}")
        if not known.has_kernel:
            raise NotImplementedError(f"{known.full} has no kernel for CUDA")
        if short in ("mm", "addmm", "bmm") and not tensors[-1].is_floating_point():
            raise NotImplementedError(f"{name} not implemented for integers on a card")
        if self.thread.capturing:
            if known.draws and not (short == "dropout" and not args[2]):  # not in training
                self.refuse_in_capture(f"{name}, which draws")
            # fill_: a number that indexing writes, which comes as a number where there is a card
            if any(self.home(t) == CPU for t in tensors) and short not in (*PLACES, "fill_"):
                self.refuse_in_capture(f"{name} with a tensor of the host")

    def _wait(self, short: str, args, kwargs, *, crossing: bool) -> None:
        """The host, for what it reads or has copied."""
        masks = short in INDICES and any(
            t is not None and (t.dtype == torch.bool or self.home(t) == CPU) for t in args[1]
        )
        if crossing:
            self.refuse_in_capture("a copy from or to the host")
            blocking = not (kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
            host = args[0] if self.home(args[0]) == CPU else args[1]
            number = args[0] is not host and host.dim() == 0  # which indexing writes: see above
            if not number and (blocking or self._find(host) is None):
                self.sync("copy")
        elif short in READS or masks:
            self.sync(short)

    def function(self, func, args, kwargs):
        """What a program asks of torch by name."""
        if isinstance(func, torch._ops.OpOverload):
            return func(*args, **kwargs)  # a tape's
        if args and isinstance(args[0], torch.Tensor):
            answer = self._answers.get(func)
            if answer is not None:
                return answer(*args, **kwargs)
            if func.__name__ == "__get__":
                return func(*args)
        device = kwargs.get("device")
        if device is not None:
            kwargs = {**kwargs, "device": "cpu"}
        pinned = kwargs.get("pin_memory", False)
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
        if device is None and any(self.home(t) == CUDA for t in _tensors((args, kwargs))):
            device = CUDA
        device = CPU if device is None else torch.device(device)
        if (drawn := kwargs.get("generator")) and drawn.device.type != device.type:
            raise RuntimeError(f"Expected a '{device.type}' device type for generator: {func}")
        if func in (torch.tensor, torch.as_tensor) and device.type == "cuda":
            return self.moved(func(*args, **kwargs), CUDA)
        with self.thread.makes(device):
            made = func(*args, **kwargs)
        if pinned:
            self.keep(made, pinned=True)
        return made

    @functools.cached_property
    def _answers(self):
        T = torch.Tensor
        return {
            T.device.__get__: lambda t: self.home(t),
            T.is_cuda.__get__: lambda t: self.home(t) == CUDA,
            T.is_cpu.__get__: lambda t: self.home(t) == CPU,
            T.to: self._to,
            T.cpu: lambda t: self._to(t, CPU),
            T.cuda: lambda t: self._to(t, CUDA),
            T.pin_memory: self._pinned,
            T.numpy: lambda t, **more: self._numpy(t, T.numpy, **more),
            T.__array__: lambda t, *more: self._numpy(t, T.__array__, *more),
            T.tolist: self._tolist,
            T.is_pinned: lambda t: bool((m := self._find(t)) and m.pinned),
        }

    def _to(self, tensor, *args, **kwargs):
        named = {k: v for k, v in kwargs.items() if k in ("device", "dtype")}
        rest = {k: v for k, v in kwargs.items() if k in ("non_blocking", "copy")}
        for one in args:
            if isinstance(one, torch.Tensor):
                named |= {"device": self.home(one), "dtype": one.dtype}
            elif isinstance(one, torch.dtype):
                named["dtype"] = one
            elif isinstance(one, (str, torch.device)):
                named["device"] = one
            elif isinstance(one, bool):
                rest["non_blocking"] = one
        device = torch.device(named.get("device") or self.home(tensor))
        dtype = named.get("dtype") or tensor.dtype
        if device.type == self.home(tensor).type:
            return torch.Tensor.to(tensor, dtype, copy=rest.get("copy", False))
        return self.moved(tensor, device, dtype, non_blocking=rest.get("non_blocking") or False)

    def moved(self, tensor, device, dtype=None, *, non_blocking: bool = False):
        dtype = dtype or tensor.dtype
        with self.thread.makes(torch.device(device)):
            if _in_one_piece(tensor):
                new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)
            else:
                new = torch.empty(tensor.shape, dtype=dtype)
        return new.copy_(tensor, non_blocking=non_blocking)

    def _pinned(self, tensor):
        if self.home(tensor) == CUDA:
            raise RuntimeError("only dense CPU tensors can be pinned")
        pinned = tensor.clone()
        self.keep(pinned, pinned=True)
        return pinned

    def _numpy(self, tensor, how, *args, **kwargs):
        if self.home(tensor) == CUDA:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        self.touch([m for m in [self._find(tensor)] if m], [], "numpy")
        return how(tensor, *args, **kwargs)

    def _tolist(self, tensor):
        if self.home(tensor) == CUDA:
            self.sync("tolist")
        else:
            self.touch([m for m in [self._find(tensor)] if m], [], "tolist")
        return torch.Tensor.tolist(tensor)

    # -- what torch.cuda tells

    @contextmanager
    def plugged(self, patch):
        """Have torch find this card, in this thread and in those that take a stream of it."""
        cuda, generator, gpu = torch.cuda, torch.Generator, self

        class Generator(generator):
            def __new__(cls, device="cpu"):
                made = super().__new__(cls)
                made.home, made.places = torch.device(device), []
                return made

            def get_state(self):
                gpu.states += 1
                return super().get_state()

            def get_offset(self):
                """The host's generators have none, so these are counted."""
                assert self.home.type == "cuda", "not implemented for the host"
                self.places.append(super().get_state())
                return 4 * (len(self.places) - 1)

            def set_offset(self, offset):
                assert self.home.type == "cuda", "not implemented for the host"
                self.set_state(self.places[offset // 4])

            @property
            def device(self):
                return self.home

        for name, value in {
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "get_device_name": lambda *_: "a card that is not there",
            "get_device_capability": lambda *_: self.capability,
            "get_device_properties": lambda *_: SimpleNamespace(multi_processor_count=132),
            "get_arch_list": lambda: ["sm_{}{}".format(*self.capability)],
            "mem_get_info": lambda *_: (TOTAL - self.allocated() - self.workspaces(), TOTAL),
            "current_blas_handle": lambda: setattr(self.thread, "handle", True),
            "memory_allocated": lambda *_: self.allocated() + self.workspaces(),
            "max_memory_allocated": lambda *_: self.peak,
            "reset_peak_memory_stats": self._forget_peak,
            "empty_cache": self.empty_cache,
            "synchronize": lambda *_: self.sync("synchronize", self._launched),
            "current_stream": lambda *_: self.thread.stream,
            "Stream": lambda *_, **__: self.pooled(),
            "Event": lambda *_, **__: Event(self),
            "stream": self.thread.on,
            "CUDAGraph": lambda: Graph(self),
            "graph_pool_handle": Pool,
            "is_current_stream_capturing": lambda: bool(self.thread.capturing),
        }.items():
            patch.setattr(cuda, name, value)
        patch.setattr(torch, "Generator", Generator)
        old, new = "_cuda_endAllocateCurrentStreamToPool", "_cuda_endAllocateToPool"
        name = new if hasattr(torch._C, new) else old
        patch.setattr(torch._C, name, self.end_allocations, raising=False)
        released = lambda _, pool: self.released.append(pool)  # noqa: E731
        patch.setattr(torch._C, "_cuda_releasePool", released, raising=False)
        use = functools.partial(setattr, self, "cudnn_attention")
        patch.setattr(torch.backends.cuda, "enable_cudnn_sdp", use)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", self._workspaces.clear)
        patch.setattr("chatterbox_opt.runtime.cuda.TORCH_WITH_WORKSPACE_LOCK", "2")
        # freed memory is never given away here
        patch.setattr(torch.Tensor, "record_stream", lambda *_: None)
        set_result, result = Future.set_result, Future.result

        def setting(future, value):
            future.known = Clock(self.thread.known)
            set_result(future, value)

        def resulting(future, timeout=None):
            value = result(future, timeout)
            self.thread.known |= getattr(future, "known", Clock())
            return value

        patch.setattr(Future, "set_result", setting)  # what one thread knows, the next one learns
        patch.setattr(Future, "result", resulting)
        with self.thread.modes():
            yield self

    def _forget_peak(self, *_) -> None:
        self.peak = self.allocated()


class _Thread(threading.local):
    """What each host thread has of its own."""

    default = None

    def __init__(self, gpu: SimulatedGPU):
        self.gpu = gpu
        self.known = Clock()
        if gpu.__dict__.get("default") is None:
            gpu.default = Stream(gpu)
        self.stream = gpu.default
        self.making, self.capturing, self.replaying, self._deep = CPU, None, False, False
        self.handle = False  # of cuBLAS; each thread has its own
        self.plans = set()  # of cuDNN, likewise

    @contextmanager
    def makes(self, device):
        before, self.making = self.making, torch.device(device)
        self.making = CUDA if self.making.type == "cuda" else CPU
        try:
            yield
        finally:
            self.making = before

    @contextmanager
    def modes(self):
        with ExitStack() as stack:
            if not self._deep:
                self._deep = True
                stack.callback(setattr, self, "_deep", False)
                stack.enter_context(_Operations(self.gpu))
                stack.enter_context(_Functions(self.gpu))
            yield

    @contextmanager
    def on(self, stream):
        with self.modes():
            before, self.stream = self.stream, stream
            try:
                yield
            finally:
                self.stream = before


class _Operations(TorchDispatchMode):
    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.gpu.operation(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    def __init__(self, gpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return self.gpu.function(func, args, kwargs or {})


class Stream:
    """Launches in their order."""

    def __init__(self, gpu):
        self.gpu, self.number, self.known = gpu, gpu.stream(), Clock()

    def record_event(self, event=None):
        event = event or Event(self.gpu)
        event.record(self)
        return event

    def wait_event(self, event):
        self.known |= event.known

    def wait_stream(self, stream):
        self.known |= stream.known

    def synchronize(self):
        self.gpu.sync("stream", self.known)


class Event:
    """A place in a stream."""

    def __init__(self, gpu):
        self.gpu, self.known, self.at = gpu, Clock(), 0.0

    def record(self, stream=None):
        self.at = time.perf_counter()  # of the host: it says nothing
        stream = stream or self.gpu.thread.stream
        self.known = Clock(stream.known | self.gpu.thread.known)

    def synchronize(self):
        self.gpu.sync("event", self.known)

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


class Pool:
    """Memory of graphs, which is given up with the last of them."""

    def __init__(self):
        self.graphs, self.used = weakref.WeakSet(), False

    def take(self, graph):
        if self.used and not self.graphs:
            raise RuntimeError("INTERNAL ASSERT FAILED: it->second->use_count > 0")
        self.used = True
        self.graphs.add(graph)


class Graph:
    """A tape."""

    def __init__(self, gpu):
        self.gpu, self.tape, self.pool, self.invalid = gpu, None, None, False

    def capture_begin(self, pool=None, capture_error_mode="global"):
        assert self.gpu.thread.stream is not self.gpu.default, "capture needs a stream of its own"
        if pool in self.gpu.underway:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        pool.take(self)
        self.gpu.underway.append(pool)
        self.pool, self.tape = pool, Tape()
        self.tape.__enter__()
        self.gpu.thread.capturing = self
        self.gpu.captures += 1

    def capture_end(self):
        if self.gpu.thread.capturing is not self:
            raise RuntimeError("CUDA error: operation not permitted on a stream without a capture")
        self.tape.__exit__(None, None, None)
        self.tape.rewind()
        self.gpu.thread.capturing = None
        if self.invalid:  # the allocator is not told
            raise RuntimeError("operation failed due to a previous error during capture")
        self.gpu.end_allocations(0, self.pool)

    def replay(self):
        thread = self.gpu.thread
        self.gpu.replays += 1
        thread.replaying = True  # in the workspace of the capture
        try:
            with thread.makes(CUDA), torch._C.DisableTorchFunction():
                self.tape.replay()
        finally:
            thread.replaying = False


def _in_one_piece(tensor) -> bool:
    """Whether it fills its memory without gaps, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def _tensors(value) -> list[torch.Tensor]:
    """Those in an operation's arguments or results, in order."""
    found: list[torch.Tensor] = []
    _collect(value, found)
    return found


def _collect(value, found: list[torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        found.append(value)
    elif isinstance(value, (tuple, list)):
        for part in value:
            if part is not None:
                _collect(part, found)
    elif isinstance(value, dict):
        for part in value.values():
            _collect(part, found)
