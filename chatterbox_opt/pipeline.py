"""The three stages in a row: lines in, their sound out.

Knows the order of the stages and where each gets its inputs. Knows nothing of long texts, files
or profiles.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor

from chatterbox_opt.decoding import Eager, Way
from chatterbox_opt.errors import NumericsError
from chatterbox_opt.fallback import Ladder
from chatterbox_opt.offload import Residency
from chatterbox_opt.reader import FAILURES, Line, Read, Reader, TakeLine

Wave = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Spoken:
    """One line's sound.

    Attributes:
        wave: float32 [n] in [-1, 1] at 24 kHz, without watermark.
        tokens: how many speech tokens it was made of.
        seconds: of work, by stage; its share where several were worked at together.
        codes: the speech tokens, where they are known (plain Chatterbox gives none out).
        cut: T3 came to its limit without a stop token.
    """

    wave: Wave
    tokens: int
    seconds: Mapping[str, float]
    codes: tuple[int, ...] = ()
    cut: bool = False


class Pipeline:
    """Our own engine: t3, flow, vocoder."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        residency: Residency,
        way: Way,
        group: int = 1,
    ) -> None:
        """Take over loaded stages.

        Args:
            residency: holds t3, flow and vocoder.
            way: how T3's steps are run.
            group: lines that flow and vocoder work at together.
        """
        self.tokenizer = tokenizer
        self.residency = residency
        self.way = way
        self.group = group
        self.device = residency.device
        self._ladder = Ladder(residency)

    def close(self) -> None:
        """Give the device's memory back."""
        self.way = Eager()  # recordings hold memory of the device
        self.residency.close()

    def read(
        self, take: TakeLine, slots: int, most: int, *, guided: bool
    ) -> Iterator[list[Read | tuple[Line, Exception]]]:
        """Run t3 on lines, ``slots`` at once; yield them as they end, ``most`` at a time.

        Args:
            take: asked whenever there is room; None if there is no line (for now).
            guided: some line may have a cfg_weight above 0.
        """
        each = 2 if guided else 1
        reader = Reader(self.tokenizer, self._ladder, self.way, slots, each)
        while ended := reader.turn(take, most):
            self.way = reader.way
            yield ended
        self.way = reader.way

    def speak(
        self, take: TakeLine, slots: int = 1, *, guided: bool = True
    ) -> Iterator[tuple[Line, Spoken | Exception]]:
        """Speak lines; yield each as it is ready, with its sound or the reason why there is none.

        One generator serves the three stages of a line in turn, as upstream's global one does.
        Arguments as ``read``. A line is taken when there is room for it, so with one slot the
        next is taken after the last was yielded.

        """
        group = min(self.group, slots)
        start = time.perf_counter()
        for ended in self.read(take, slots, group, guided=guided):
            spent = (time.perf_counter() - start) / len(ended)
            whole = [read for read in ended if isinstance(read, Read)]
            yield from (failed for failed in ended if not isinstance(failed, Read))
            whole.sort(key=lambda read: (read.line.sampling.cfm_steps, len(read.tokens)))
            for _, alike in groupby(whole, key=lambda read: read.line.sampling.cfm_steps):
                yield from self._sound(list(alike), spent)
            start = time.perf_counter()

    def codes(self, take: TakeLine) -> Iterator[tuple[Line, Spoken | Exception]]:
        """As ``speak`` with one slot, but run only t3: what comes has codes and no wave."""
        for ended in self.read(take, 1, 1, guided=True):
            for read in ended:
                if not isinstance(read, Read):
                    yield read
                    continue
                codes = tuple(read.tokens.tolist())
                yield read.line, Spoken(np.empty(0, np.float32), len(codes), {}, codes, read.cut)

    def _sound(
        self, reads: Sequence[Read], t3_seconds: float
    ) -> Iterator[tuple[Line, Spoken | Exception]]:
        """Flow and vocoder for lines that want as many steps; if they fail together, one by one."""
        states = [read.generator.get_state() for read in reads]
        try:
            waves, seconds = self._waves(reads)
        except FAILURES as error:
            if len(reads) == 1:
                yield reads[0].line, error
                return
            failed = True
        else:
            failed = False
        if failed:
            for read, state in zip(reads, states, strict=True):
                read.generator.set_state(state)
                yield from self._sound([read], t3_seconds)
            return
        spent = {"t3": t3_seconds} | {stage: s / len(reads) for stage, s in seconds.items()}
        for read, wave in zip(reads, waves, strict=True):
            codes = tuple(read.tokens.tolist())
            yield read.line, Spoken(wave, len(codes), spent, codes, read.cut)

    def _waves(self, reads: Sequence[Read]) -> tuple[list[Wave], dict[str, float]]:
        generators = [read.generator for read in reads]
        states = [generator.get_state() for generator in generators]
        start = time.perf_counter()
        mels = self._mels(reads)
        drawn = time.perf_counter()
        try:
            waves = self._vocode(mels, generators)
        except NumericsError:
            # the vocoder is float32: what it choked on came from the flow
            if not self._ladder.is_half("flow"):
                raise
            self._ladder.warn_once("vocoder choked on the flow's mel: flow again in float32")
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)
            waves = self._vocode(self._mels(reads, wide=True), generators)
        return waves, {"flow": drawn - start, "vocoder": time.perf_counter() - drawn}

    def _mels(self, reads: Sequence[Read], *, wide: bool = False) -> list[Tensor]:
        tokens = [read.tokens.to(self.device) for read in reads]
        voices = [read.line.voice.to(self.device) for read in reads]
        generators = [read.generator for read in reads]
        steps = reads[0].line.sampling.cfm_steps
        return self._ladder.run(
            "flow", lambda flow: flow(tokens, voices, generators, steps), generators, wide=wide
        )

    def _vocode(self, mels: Sequence[Tensor], generators: Sequence[torch.Generator]) -> list[Wave]:
        waves = self._ladder.run("vocoder", lambda hift: hift(mels, generators), generators)
        return [wave.cpu().numpy() for wave in waves]
