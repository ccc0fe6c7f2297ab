"""File names from ids: safe on every file system, distinct, and never outside their directory.

Knows patterns such as ``{id:04d}-{slug}`` and what file systems forbid. Knows nothing of what is
in the files, and touches no disk.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Iterable

from chatterbox_opt.errors import InputError

DEFAULT = "{id:04d}"
FIELDS = ("id", "slug")
LONGEST = 120  # bytes of a name without its extension; file systems take 255
SLUG = 40  # characters
# names that Windows keeps for devices, whatever follows a dot
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r"[^\w .,+=@()\[\]!-]")


class _Id(str):
    """An id in a pattern: a number where it is one, so that ``{id:04d}`` works for both."""

    def __format__(self, spec: str) -> str:
        if not spec or spec.endswith("s"):
            return super().__format__(spec)
        if self.isascii() and self.isdigit() and len(self) <= 18:
            return format(int(self), spec)
        format(0, spec)  # a wrong pattern is wrong for every id
        return str(self)


def check_pattern(pattern: str) -> None:
    """Say early that a pattern cannot be used.

    Raises:
        InputError: broken, with unknown fields, or with a path in it.
    """
    if "/" in pattern or "\\" in pattern:
        raise InputError(f"--name '{pattern}' has a path in it: give a name, and --out-dir DIR")
    try:
        parts = list(string.Formatter().parse(pattern))
        fields = [name for _, name, _, _ in parts if name is not None]
        fields += [spec for _, _, spec, _ in parts if spec and "{" in spec]  # no field in a field
        if unknown := [name for name in fields if name not in FIELDS]:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise InputError(f"--name has no field '{unknown[0]}'; it has {known}")
        _fill(pattern, "1", "word")
        _fill(pattern, "a", "word")
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        example = "such as '{id:04d}-{slug}'"
        raise InputError(
            f"--name '{pattern}' is no pattern ({error}): give one {example}"
        ) from error


def _fill(pattern: str, id: str, slug: str) -> str:
    return pattern.format(id=_Id(id), slug=slug)


def names(
    rows: Iterable[tuple[str, str]], pattern: str, extension: str, taken: Iterable[str] = ()
) -> list[str]:
    """A file name for each (id, text), in their order, no two the same.

    An id that had to be changed, or whose name is taken already (in whatever case: some file
    systems see none), gets a mark made from the id, so that it does not move when rows are added.

    Args:
        extension: with its dot.
        taken: file names that are used for other things.
    """
    used = {_folded(name) for name in taken}
    found = []
    for id, text in rows:
        wanted = _fill(pattern, id, slug(text)) if "{slug" in pattern else _fill(pattern, id, "")
        name = _safe(wanted)
        if name != wanted or _folded(name + extension) in used:
            name = _marked(name, id, 0)
        for again in range(1, len(used) + 2):
            if _folded(name + extension) not in used:
                break
            name = _marked(_safe(wanted), id, again)
        used.add(_folded(name + extension))
        found.append(name + extension)
    return found


def slug(text: str) -> str:
    """The first words of a text: small letters, digits and hyphens."""
    folded = unicodedata.normalize("NFKC", text[: 8 * SLUG]).casefold()
    words = "-".join(re.findall(r"[^\W_]+", folded))
    return words if len(words) <= SLUG else words[: SLUG + 1].rpartition("-")[0] or words[:SLUG]


def _safe(name: str) -> str:
    """The nearest name that every file system takes, without dots or blanks at its ends."""
    name = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", name))
    name = name.encode("utf-8", "replace")[:LONGEST].decode("utf-8", "ignore")
    name = name.strip(". ") or "_"
    return f"_{name}" if _DEVICE.fullmatch(name) or name.startswith("-") else name


def _marked(name: str, id: str, again: int) -> str:
    mark = hashlib.blake2b(f"{again}/{id}".encode("utf-8", "surrogatepass"), digest_size=4)
    return f"{name}~{mark.hexdigest()}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFC", name).casefold())
