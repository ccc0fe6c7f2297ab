"""When the sound of an unfinished sequence is made, and of which tokens: the hops.

Responsible for numbers of tokens and frames. Not responsible for making sound
(engine/rendering/hops.py).

    tokens     0 ........ given ............ end ............ total
               given out  |  new in this hop  |  held back     |
    window            [first .. given)  context, made again and dropped

The flow does not know whether the tokens it has are all there are. It renders the last ones as the
end of an utterance, so a hop whose new frames reach the last known token ends in a way that the
next one does not continue. Therefore ``held_back`` tokens behind the new ones are rendered too, and
again in the next hop. Measured on the built-in model, with 9 tokens the frames at the seams differ
less from a whole run than another noise does; with the 3 of the encoder's look-ahead, or none,
seams are audible (docs/accuracy.md). Holding back costs T3's time for 9 tokens, no playing time.

Every hop renders the voice's prompt again, so few hops are less work: with a prompt of 10 s and
hops of 10, 40 and then 100 tokens, 10 s of audio are 2.8 times the frames of a whole run (10, 25,
50 and then 100: 3.4 times). The first is short, because somebody waits for it, and what it has must
last until the next is there.

Context in front of the new frames need not be long: ``context`` frames are as good as all. The
prompt is always there.
"""

from __future__ import annotations

from dataclasses import dataclass

from chatterbox_opt.config.model_config import MEL_PER_TOKEN, TOKEN_RATE
from chatterbox_opt.errors import InputError
from chatterbox_opt.sampling import MAX_TOKENS
from chatterbox_opt.utils.arguments import whole_number

MAX_SIZES = 100
DEFAULT_SIZES = (10, 40, 100)
EARLY_TOKENS = 50  # 2 s: later sound is made while this is heard, with all steps


@dataclass(frozen=True, slots=True)
class HopSchedule:
    """Sizes of the hops of a sequence.

    Attributes:
        sizes: new tokens of the first hops; the last size repeats.
        held_back: tokens behind the new ones, in all hops but the last.
        context: mel frames before the new ones.
        first_steps: Euler steps of the flow, at most, in hops that end within the first
            ``EARLY_TOKENS``; None is the request's.

    Raises:
        InputError: out of range.
    """

    sizes: tuple[int, ...] = DEFAULT_SIZES
    held_back: int = 9
    context: int = 100
    first_steps: int | None = None

    def __post_init__(self) -> None:
        sizes = tuple(whole_number("hops", size) for size in self.sizes)
        object.__setattr__(self, "sizes", sizes)
        if not 1 <= len(sizes) <= MAX_SIZES or not all(1 <= n <= MAX_TOKENS for n in sizes):
            raise InputError(f"hops are {sizes}; give 1 to {MAX_SIZES} numbers of tokens")
        for name, most in (("held_back", 100), ("context", 10_000), ("first_steps", 100)):
            value = getattr(self, name)
            least = 1 if name == "first_steps" else 0
            if value is not None and not least <= whole_number(name, value) <= most:
                raise InputError(f"{name} is {value}; use {least} to {most}")

    @property
    def seconds(self) -> list[float]:
        """Seconds of sound in the first hops; the last size repeats."""
        return [size / TOKEN_RATE for size in self.sizes]

    def next(self, number: int, given: int, known: int, *, ended: bool) -> Hop | None:
        """The next hop, if it can be made.

        Args:
            number: of hops that were made.
            given: tokens in these hops.
            known: tokens so far.
            ended: there will be no more.
        """
        end = given + self.sizes[min(number, len(self.sizes) - 1)]
        if ended and known < end + self.held_back:
            return Hop(number, given, known, known, self._first(given), is_last=True)
        if end + self.held_back > known:
            return None
        return Hop(number, given, end, end + self.held_back, self._first(given), is_last=False)

    def steps(self, hop: Hop, wanted: int) -> int:
        """Euler steps of the flow in a hop of a request that has ``wanted``."""
        return min(self.first_steps or wanted, wanted) if hop.end <= EARLY_TOKENS else wanted

    def _first(self, given: int) -> int:
        return max(0, MEL_PER_TOKEN * given - self.context)


@dataclass(frozen=True, slots=True)
class Hop:
    """Part of a sequence.

    Attributes:
        number: of the hops before.
        given, end, total: tokens that were given out, that will be given out after this hop, and
            that it renders.
        first: first frame of the window.
        is_last: the sequence ends with it.
    """

    number: int
    given: int
    end: int
    total: int
    first: int
    is_last: bool

    @property
    def new_frames(self) -> int:
        """Mel frames that are given out."""
        return MEL_PER_TOKEN * (self.end - self.given)

    @property
    def context_frames(self) -> int:
        """Mel frames of the window before the new ones."""
        return MEL_PER_TOKEN * self.given - self.first
