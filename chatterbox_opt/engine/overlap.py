"""Who makes the sound of what T3 has read: its own thread in turn, or a thread beside it.

Knows threads, and what is done when the work beside T3 fails. Knows nothing of stages or of sound.

    here    T3 waits while flow and vocoder work
    beside  T3 reads the next lines meanwhile: at most one group is in another thread's hands, and
            it is fetched when the next one is complete, or when T3 has nothing left to do

When a group is fetched does not depend on how fast the threads are. Lines that are said again thus
enter T3 at the same step in every run, and the same seed gives the same file.

The thread beside makes one attempt and changes nothing: no weights, no places, no warning. Whatever
fails there is done again in full by T3's thread, which waits at that moment, so all that heals
(recovery.py) still runs alone. Out of memory beside T3 is a rung of its own: from then on in turn.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

import torch

from chatterbox_opt.engine.sequence import REQUEST_ERRORS, ChunkRequest

if TYPE_CHECKING:
    from chatterbox_opt.engine.sequence import AudioOutput

log = logging.getLogger(__name__)
Result = TypeVar("Result")
Made: TypeAlias = "tuple[ChunkRequest, AudioOutput | Exception]"


@dataclass(frozen=True, slots=True)
class RenderJob:
    """Lines of which sound is to be made together.

    Attributes:
        attempt: makes it or raises one of ``REQUEST_ERRORS``; leaves all but the lines' generators as it
            was, so it may run beside T3.
        whole: makes it from the beginning and heals what can be healed; a line's failure is a
            value.
    """

    attempt: Callable[[], list[Made]]
    whole: Callable[[], Iterable[Made]]


class Renderer(Protocol):
    """Who makes the sound."""

    def run(self, may: Callable[[], bool]) -> AbstractContextManager[RenderSession]:
        """Begin a run over lines; when the block ends, however it ends, no thread is left.

        Args:
            may: asked before work is given to another thread: whether stages stay where they are.
        """
        ...


class RenderSession(Protocol):
    """One run.

    Attributes:
        busy: something was given and not fetched.
    """

    @property
    def busy(self) -> bool:
        """See above."""
        ...

    def next(self, jobs: Sequence[RenderJob]) -> Iterator[Made]:
        """Give a group of jobs, or none; yield what is ready. Draw it to its end."""
        ...

    def rest(self) -> bool:
        """Make room for T3: wait for the work beside it, and work in turn from now on.

        Returns:
            whether there was any.
        """
        ...


class InlineRenderer:
    """In turn."""

    busy = False

    @contextmanager
    def run(self, may: Callable[[], bool]) -> Iterator[RenderSession]:
        """See ``Renderer``."""
        yield self

    def next(self, jobs: Sequence[RenderJob]) -> Iterator[Made]:
        """See ``RenderSession``."""
        for job in jobs:
            yield from job.whole()

    def rest(self) -> bool:
        """See ``RenderSession``."""
        return False


class StreamContext(Protocol):
    """Where on the device another thread's work goes; see ``card.Side``."""

    def __call__(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """``work`` for another thread: after what this one has given the device; done when it
        returns."""
        ...


def no_stream(work: Callable[[], Result]) -> Callable[[], Result]:
    """A ``StreamContext`` of a device that has none, such as a processor."""
    return work


class OverlappedRenderer:
    """In a thread of its own, one for each run."""

    def __init__(self, lane: StreamContext = no_stream) -> None:
        self._lane = lane
        self._over = False

    @contextmanager
    def run(self, may: Callable[[], bool]) -> Iterator[RenderSession]:
        """See ``Renderer``."""
        with ThreadPoolExecutor(1, "sound") as thread:
            try:
                yield _OverlappedSession(self, thread, may)
            finally:
                thread.shutdown(cancel_futures=True)  # waits for the job in work

    @property
    def over(self) -> bool:
        """There was no room for T3 and sound at once."""
        return self._over

    def end(self) -> None:
        """Work in turn from now on, and say so."""
        if not self._over:
            self._over = True
            log.warning("no memory for sound beside t3: from now on they take turns")

    def begin(self, job: RenderJob, thread: ThreadPoolExecutor) -> Future[list[Made] | None]:
        """Have ``thread`` attempt a job; None comes if it failed."""
        inference = torch.is_inference_mode_enabled()  # which each thread has of its own

        def attempt() -> list[Made]:
            with torch.inference_mode(inference):
                return job.attempt()

        work = self._lane(attempt)

        def attempted() -> list[Made] | None:
            if self._over:  # since this was given
                return None
            try:
                return work()
            except REQUEST_ERRORS as error:
                # not kept: its frames hold the memory that is wanted for the next attempt
                if isinstance(error, torch.OutOfMemoryError):
                    self.end()
                return None

        return thread.submit(attempted)


class _OverlappedSession:
    """See ``RenderSession``."""

    def __init__(
        self, beside: OverlappedRenderer, thread: ThreadPoolExecutor, may: Callable[[], bool]
    ) -> None:
        self._beside, self._thread, self._may = beside, thread, may
        self._given: list[tuple[RenderJob, Future[list[Made] | None]]] = []
        self._rested = False

    @property
    def busy(self) -> bool:
        """See ``RenderSession``."""
        return bool(self._given)

    def next(self, jobs: Sequence[RenderJob]) -> Iterator[Made]:
        """See ``RenderSession``."""
        fetched = self._fetched()
        if not self._beside.over and self._may():
            # before the last ones go out: whoever takes them may take long
            self._given = [(job, self._beside.begin(job, self._thread)) for job in jobs]
            jobs = ()
        yield from fetched
        for job in jobs:
            yield from job.whole()

    def rest(self) -> bool:
        """See ``RenderSession``."""
        if self._rested or not self._given:
            return False
        self._rested = True
        self._wait()
        self._beside.end()
        return True

    def _wait(self) -> None:
        wait([future for _, future in self._given])

    def _fetched(self) -> list[Made]:
        self._wait()  # for all: what heals must be alone with the stages
        given, self._given = self._given, []
        made: list[Made] = []
        for job, future in given:
            found = future.result()
            made.extend(job.whole() if found is None else found)
        return made
