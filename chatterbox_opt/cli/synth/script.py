"""``--markup``, ``--lexicon`` and ``--cast`` of ``synth`` and ``batch``: how a text is read.

Responsible for their names and files, and for what a person is told about a text that was read. Not
responsible for reading (chatterbox_opt/script).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from chatterbox_opt.checkpoints import registry
from chatterbox_opt.cli.terminal.console import Reporter
from chatterbox_opt.engine.spec import EngineSpec
from chatterbox_opt.errors import InputError
from chatterbox_opt.request import Request
from chatterbox_opt.sampling import Sampling, for_model
from chatterbox_opt.script import lexicon as lexicons
from chatterbox_opt.script.cast import Cast, Member, member_of
from chatterbox_opt.script.lexicon import Lexicon
from chatterbox_opt.script.reader import markup_in
from chatterbox_opt.script.spans import Script
from chatterbox_opt.text import languages
from chatterbox_opt.text.chunking import clean

_HITS = 20  # words of a lexicon that are named


@dataclass(frozen=True, kw_only=True)
class ScriptOptions:
    """How the text is read."""

    markup: Annotated[
        bool,
        typer.Option("--markup", help="Read [pause:1s], [voice:NAME], [rate:0.9], SSML as such."),
    ] = False
    lexicon: Annotated[
        Optional[Path], typer.Option(help="YAML file: words, and how they are said.")
    ] = None
    cast: Annotated[
        Optional[Path],
        typer.Option(help="YAML file: names and voices of a dialogue with lines NAME: words."),
    ] = None

    def words(self) -> Lexicon | None:
        """The user's own lexicon and the given one, whose words win; None if there is no word.

        Raises:
            InputError: one cannot be read, or is no lexicon.
        """
        given = Lexicon() if self.lexicon is None else Lexicon.load(self.lexicon)
        both = lexicons.users_own() + given
        return both if both.entries else None

    def speakers(self) -> Cast | None:
        """The cast, or None.

        Raises:
            InputError: it cannot be read, or is no cast.
        """
        return None if self.cast is None else Cast.load(self.cast)

    def check_arriving(self) -> None:
        """Raise InputError for what needs a whole text, if the text arrives."""
        if self.markup or self.cast is not None:
            raise InputError(
                "--markup and --cast need the whole text: leave out --stream and --play, or give "
                "it as --file FILE"
            )

    def show(self, reporter: Reporter, request: Request, script: Script, spec: EngineSpec) -> None:
        """Check a whole text before a model is loaded, and print what a person should know of it.

        Args:
            script: the request's text, read.

        Raises:
            InputError: unknown voices, or no word in the text.
        """
        clean(script.text)
        members = [member_of(request.cast, name) for name in script.voices]
        check_members(spec, members, request.sampling, request.language)
        if not request.markup:
            hint(reporter, [("the text", request.text)])
        describe(reporter, [script])


def hint(reporter: Reporter, texts: Iterable[tuple[str, str]]) -> None:
    """Warn, once, of a text that looks like markup and is read as it is.

    Args:
        texts: without markup, each behind what it is called in the message.
    """
    for where, text in texts:
        if found := markup_in(text):
            reporter.warn(f"{where} looks like markup ({found}) and is read aloud: pass --markup")
            return


def check_members(
    spec: EngineSpec, members: Iterable[Member], sampling: Sampling, language: str | None
) -> None:
    """Check the voices and the sampling parameters of those who speak, before torch is imported.

    Raises:
        InputError: no such voice, or a parameter that the model does not have.
    """
    config = registry.known_config(spec.model)
    languages.check_model(language, config)
    voices: set[str] = set()
    for member in members:
        knobs: dict[str, Any] = dict(member.sampling)
        for_model(replace(sampling, **knobs), config.sampling_defaults, config.missing_knobs)
        if isinstance(member.voice, str) and member.voice not in voices:
            spec.check_voice(member.voice)  # decodes a recording
            voices.add(member.voice)


def voices_of(cast: Cast | None, scripts: Iterable[Script]) -> Iterator[str]:
    """The voices of a cast, and those that markup names: names or recordings."""
    named = dict.fromkeys(name for script in scripts for name in script.voices)
    members = [*(cast.members if cast else ()), *(member_of(cast, name) for name in named)]
    yield from (member.voice for member in members if isinstance(member.voice, str))


def describe(reporter: Reporter, scripts: Iterable[Script]) -> None:
    """Print what has no effect in texts, and with -v what the lexicon replaces."""
    remarks: dict[str, None] = {}
    hits: Counter[tuple[str, str]] = Counter()
    for script in scripts:
        remarks |= dict.fromkeys(script.remarks)
        hits.update((hit.written, hit.text) for hit in script.hits)
    for remark in remarks:
        reporter.warn(remark)
    for (word, reading), count in hits.most_common(_HITS):
        reporter.detail(
            f"  lexicon: '{word}' is read as '{reading}'" + f" ({count} times)" * (count > 1)
        )
    if len(hits) > _HITS:
        reporter.detail(f"  lexicon: {len(hits) - _HITS} more words")
