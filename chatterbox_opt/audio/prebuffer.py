"""How much sound must be buffered before playback starts, so that it never runs dry.

Responsible for reckoning with times and lengths, and for a simulated player. Not responsible for
samples or a sound device (player.py).

Sound comes in pieces: while the next piece is produced, the buffer must last. With a production of
``speed`` seconds of sound a second, and pieces of d1, d2, ... seconds to come, piece k is there
after (d1 + ... + dk) / speed seconds; until then the buffer and the pieces before it are played:

    buffer >= (d1 + ... + dk) / speed - (d1 + ... + d(k-1))    for every k
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

MARGIN = 1.3  # the speed varies: it is assumed to be lower by this factor
_ROUNDING = 1e-9  # seconds; far less than a sample

Arrival = tuple[float, float]  # when a piece is there, and how much sound it has; seconds


def speed_of(arrivals: Sequence[Arrival]) -> float | None:
    """Seconds of sound a second after the first piece; None without a later one.

    The lowest from the first piece to any later one: a buffer that lasts on average may still run
    dry in between.

    Args:
        arrivals: in the order of time, at least one.
    """
    first = arrivals[0][0]
    later = accumulate(seconds for _, seconds in arrivals[1:])
    pairs = zip(arrivals[1:], later, strict=True)
    return min((sound / (at - first) for (at, _), sound in pairs if at > first), default=None)


def needed(speed: float, pieces: Iterable[float]) -> float:
    """The smallest buffer, in seconds, with which playback may start now and never runs dry.

    Args:
        speed: seconds of sound that are produced in a second, above 0.
        pieces: seconds of sound in each piece that is still to come, all of them.
    """
    buffer = played = 0.0
    for piece in pieces:
        buffer = max(buffer, (played + piece) / speed - played)
        played += piece
    return buffer


def needed_for(speed: float, piece: float, total: float | None = None) -> float:
    """As ``needed``, for ``total`` seconds of sound to come in pieces of at most ``piece``.

    Args:
        total: None: not known. A production slower than the sound then needs an endless buffer.
    """
    if total is not None:
        piece = min(piece, total)
    if speed >= 1:  # every piece adds more than is played meanwhile: the first decides
        return piece / speed
    if total is None:
        return math.inf
    # the last piece decides: until it is there, all before it is played
    return total / speed - (total - piece)


class Prebuffer:
    """Decides when playback starts, from the pieces that have come.

    The speed is that since the first piece, which alone waits for the text to be read; before a
    second one it is that of the first piece, or a speed that is known from before.
    """

    def __init__(
        self,
        started: float,
        *,
        schedule: Sequence[float] = (),
        total: float | None = None,
        speed: float | None = None,
    ) -> None:
        """Begin before the first piece.

        Args:
            started: when the production did, on the clock of ``add``; seconds.
            schedule: seconds of sound in each piece, as far as known; the last goes on. Without it
                a piece is assumed to be as long as the longest so far.
            total: estimated seconds of sound in all pieces; None: not known.
            speed: of earlier productions; seconds of sound a second.
        """
        self._started = started
        self._schedule = schedule
        self._total = total
        self._speed = speed
        self._arrivals: list[Arrival] = []

    @property
    def buffered(self) -> float:
        """Seconds of sound that have come."""
        return sum(seconds for _, seconds in self._arrivals)

    def add(self, at: float, seconds: float) -> None:
        """A piece of ``seconds`` has come at ``at``."""
        self._arrivals.append((at, seconds))

    def needed(self) -> float:
        """Seconds that must be buffered before playback starts; infinite: unknown."""
        if not self._arrivals:
            return math.inf
        speed = self._measured() / MARGIN
        rest = None if self._total is None else max(0.0, self._total - self.buffered)
        coming = list(self._schedule[len(self._arrivals) :])
        if rest is not None:
            sums = list(accumulate(coming, initial=0.0))
            coming = [min(p, rest - s) for p, s in zip(coming, sums, strict=False) if s < rest]
            rest -= sum(coming)
        later = self._schedule[-1] if self._schedule else self._longest()
        if rest is None or rest > 0:
            until = sum(coming)
            after = needed_for(speed, later, rest) + until / speed - until
            return max(needed(speed, coming), after)
        return needed(speed, coming)

    def is_enough(self) -> bool:
        """Whether playback may start."""
        return bool(self._arrivals) and self.buffered >= self.needed()

    def _longest(self) -> float:
        return max(seconds for _, seconds in self._arrivals)

    def _measured(self) -> float:
        """The lower of this production's speed and that of earlier ones.

        While other productions use the machine too, a single part can come much sooner than most.
        """
        known = [speed for speed in (speed_of(self._arrivals), self._speed) if speed is not None]
        first, sound = self._arrivals[0]
        return min(known, default=sound / max(first - self._started, 1e-9))


@dataclass(frozen=True, slots=True)
class Playback:
    """What a listener heard.

    Attributes:
        started: when playback did, seconds on the clock of the arrivals.
        underruns: how often the buffer ran dry before the end.
        gap: seconds of silence in these.
    """

    started: float
    underruns: int
    gap: float


def simulate(arrivals: Sequence[Arrival], prebuffer: float | Prebuffer = 0.0) -> Playback:
    """Play what arrives, on a simulated device.

    Args:
        arrivals: in the order of time, at least one.
        prebuffer: playback starts when more than these seconds have come, or when it says so; at
            the last piece at the latest.
    """
    first = _first(arrivals, prebuffer)
    started = dry = arrivals[first][0]
    underruns, gap = 0, 0.0
    for index, (at, seconds) in enumerate(arrivals):
        if index > first and at > dry + _ROUNDING:
            underruns += 1
            gap += at - dry
            dry = at
        dry += seconds
    return Playback(started, underruns, gap)


def _first(arrivals: Sequence[Arrival], prebuffer: float | Prebuffer) -> int:
    """The piece with which playback starts."""
    buffered = 0.0
    for index, (at, seconds) in enumerate(arrivals):
        buffered += seconds
        if isinstance(prebuffer, Prebuffer):
            prebuffer.add(at, seconds)
            if prebuffer.is_enough():
                return index
        elif buffered > prebuffer:
            return index
    return len(arrivals) - 1


def smallest_prebuffer(arrivals: Sequence[Arrival]) -> float:
    """The smallest prebuffer, in seconds, with which ``simulate`` has no underrun.

    Args:
        arrivals: in the order of time, at least one.
    """
    earliest, before = -math.inf, 0.0
    for at, seconds in arrivals:
        earliest = max(earliest, at - before)
        before += seconds
    buffered = 0.0
    for at, seconds in arrivals:
        if at >= earliest - _ROUNDING:
            break
        buffered += seconds
    return buffered
