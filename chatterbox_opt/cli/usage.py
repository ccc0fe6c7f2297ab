"""Help pages and messages about wrong usage.

Responsible for the order of the commands, and for hints where arguments cannot be parsed. Not
responsible for values that are parsed but wrong (InputError) or for exit codes (main.py).
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

NAME = "chatterbox-opt"
COMMANDS = (
    "synth",
    "batch",
    "convert",
    "serve",
    "bench",
    "voices",
    "models",
    "profiles",
    "doctor",
)  # order of use
HELP_WIDTH = 100  # of a wider terminal; click's default is 80
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH}
# the base class of usage errors, by name, because newer Typer versions bundle their own click
CLICK_ERROR: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)


class EndOfFileError(Exception):
    """An EOFError of a command's work, its cause: click would take one for Ctrl-D in a prompt."""


class Commands(TyperGroup):
    """The commands in the order of use."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command.

        Raises:
            EndOfFileError: its work raised an EOFError, which is the cause.
        """
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise EndOfFileError from error

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order in which the help page lists them."""
        return [*COMMANDS, *(name for name in super().list_commands(ctx) if name not in COMMANDS)]


class TextCommand(TyperCommand):
    """A command whose argument is a text: texts without quotes or with a leading - get a hint."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments.

        Raises:
            UsageError: of click, with a hint.
        """
        given, ctx.allow_extra_args = list(args), True
        try:
            extra = super().parse_args(ctx, args)
        except CLICK_ERROR as error:
            if text := _text_like_option(error, given):
                ctx.fail(
                    f"'{text}' is read as an option: a text that begins with - goes last, after "
                    f"--, as in {ctx.command_path} -- {_quoted(text)}."
                )
            raise
        if extra and not ctx.resilient_parsing:
            if "--" in given and any(text.startswith("-") for text in extra):
                ctx.fail(f"'{' '.join(extra)}' is read as text: options go before the --.")
            texts = [ctx.params.get(param.name) for param in self.params if _is_argument(param)]
            text = " ".join([*filter(None, texts), *extra])
            ctx.fail(
                f"Got more than one text: put quotes around it, as in {ctx.command_path} "
                f"{_quoted(text)}."
            )
        return extra


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _quoted(text: str) -> str:
    """The text as one word of a shell, in double quotes where these do not change it."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def _text_like_option(error: Exception, args: list[str]) -> str:
    """The argument that has an unknown option and looks like a text, or ""."""
    option = getattr(error, "option_name", None)
    if type(error).__name__ != "NoSuchOption" or option is None:
        return ""
    # a text may begin with known short options: -very
    texts = [arg for arg in args if arg.startswith("-") and any(map(str.isspace, arg))]
    # an unknown option of one letter is an option, but -5 and -Hello are not
    unknown = [arg for arg in args if arg.startswith(option)]
    words = [arg for arg in unknown if arg[1] != "-" and (len(arg) > 2 or not arg[1].isalpha())]
    return next(iter([*texts, *words]), "")


def message_of(error: BaseException) -> str:
    """One line: what is wrong, what may have been meant, and which page helps."""
    context = getattr(error, "ctx", None)
    page = f"See {context.command_path if context else _command_path()} --help."
    if (option := getattr(error, "option_name", None)) and (meant := _possibilities(error)):
        return f"No such option: {option}. Did you mean {meant}? {page}"
    message = error.format_message()  # type: ignore[attr-defined]
    return f"{message.rstrip('.')}{'' if message.endswith('?') else '.'} {page}"


def _command_path() -> str:
    """The command, for errors that do not know it."""
    return " ".join([NAME, *(name for name in sys.argv[1:2] if name in COMMANDS)])


def _possibilities(error: BaseException) -> str:
    """The known options that are closest, the best first."""
    *others, last = getattr(error, "possibilities", None) or ("",)
    return f"{', '.join(others)} or {last}" if others else str(last)
