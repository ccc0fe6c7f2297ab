"""File names from ids: valid on every file system, distinct, and never outside their directory.

Responsible for patterns such as ``{id:04d}-{slug}`` and for the restrictions of file systems. Not
responsible for the files' content; accesses no files.
"""

from __future__ import annotations

import hashlib
import re
import string
import sys
import unicodedata
from collections.abc import Iterable

from chatterbox_opt.errors import InputError

DEFAULT = "{id:04d}"
FIELDS = ("id", "slug")
MAX_BYTES = 120  # of a name without its extension; file systems allow 255
MAX_PATTERN = 1000  # characters
MAX_SLUG = 40  # characters
# names that Windows reserves for devices, whatever follows a dot
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)
_FORBIDDEN = re.compile(r"[^\w .,+=@()\[\]!-]")


class _Id(str):
    """An id in a pattern: formats as a number if it is one, so ``{id:04d}`` works for both."""

    def __format__(self, spec: str) -> str:
        if not spec or spec.endswith("s"):
            return super().__format__(spec)
        if self.isascii() and self.isdigit() and len(self) <= 18:
            return format(int(self), spec)
        format(0, spec)  # an invalid format spec is an error for every id
        return str(self)


def check_pattern(pattern: str) -> None:
    """Check a pattern before any work.

    Raises:
        InputError: malformed, with unknown fields, or with a path in it.
    """
    if len(pattern) > MAX_PATTERN:
        raise InputError(f"--name has {len(pattern):,} characters: give at most {MAX_PATTERN}")
    if "/" in pattern or "\\" in pattern:
        raise InputError(f"--name '{pattern}' has a path in it: give a name, and --out-dir DIR")
    try:
        parts = list(string.Formatter().parse(pattern))
        fields = [name for _, name, _, _ in parts if name is not None]
        fields += [spec for _, _, spec, _ in parts if spec and "{" in spec]  # no nested fields
        if unknown := [name for name in fields if name not in FIELDS]:
            known = ", ".join(f"{{{name}}}" for name in FIELDS)
            raise InputError(f"--name has no field '{unknown[0]}'; it has {known}")
        _check_widths("".join(spec or "" for _, _, spec, _ in parts))
        _fill(pattern, "1", "word")
        _fill(pattern, "a", "word")
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError) as error:
        example = "such as '{id:04d}-{slug}'"
        raise InputError(
            f"--name '{pattern}' is not a pattern ({error}): give one {example}"
        ) from error


def _check_widths(specs: str) -> None:
    """Raise ValueError for a width that would fill the memory."""
    for number in re.findall(r"\d+", specs):
        digits = number.lstrip("0")
        if len(digits) > len(str(MAX_BYTES)) or int(digits or 0) > MAX_BYTES:
            raise ValueError(f"a name has at most {MAX_BYTES} characters")


def _fill(pattern: str, id: str, slug: str) -> str:
    return pattern.format(id=_Id(id), slug=slug)


def names(
    rows: Iterable[tuple[str, str]], pattern: str, extension: str, reserved: Iterable[str] = ()
) -> list[str]:
    """A distinct file name for each (id, text), in their order.

    If a name had to be sanitized, or is in use already (ignoring case, as some file systems do), a
    hash of the id is appended, so the name does not change when rows are added.

    Args:
        extension: with its dot.
        reserved: file names in use for something else.
    """
    used = {_fold(name) for name in reserved}
    result = []
    for id, text in rows:
        filled = _fill(pattern, id, slug(text) if "{slug" in pattern else "")
        name = _sanitize(filled)
        if name != filled or _fold(name + extension) in used:
            name = _add_hash(name, id, 0)
        for attempt in range(1, len(used) + 2):
            if _fold(name + extension) not in used:
                break
            name = _add_hash(_sanitize(filled), id, attempt)
        used.add(_fold(name + extension))
        result.append(name + extension)
    return result


def slug(text: str) -> str:
    """The first words of a text: lowercase letters, digits and hyphens."""
    folded = unicodedata.normalize("NFKC", text[: 8 * MAX_SLUG]).casefold()
    words = "-".join(re.findall(r"[^\W_]+", folded))
    if len(words) <= MAX_SLUG:
        return words
    return words[: MAX_SLUG + 1].rpartition("-")[0] or words[:MAX_SLUG]


def _sanitize(name: str) -> str:
    """The closest name that is valid everywhere and can be encoded in the locale, without leading
    or trailing dots and spaces."""
    # what the locale's encoding does not have becomes "?", which is forbidden
    encoding = sys.getfilesystemencoding()
    name = unicodedata.normalize("NFC", name).encode(encoding, "replace").decode(encoding)
    name = _FORBIDDEN.sub("_", name)
    name = name.encode("utf-8", "replace")[:MAX_BYTES].decode("utf-8", "ignore")
    name = name.strip(". ") or "_"
    return f"_{name}" if _DEVICE.fullmatch(name) or name.startswith("-") else name


def _add_hash(name: str, id: str, attempt: int) -> str:
    digest = hashlib.blake2b(f"{attempt}/{id}".encode("utf-8", "surrogatepass"), digest_size=4)
    return f"{name}~{digest.hexdigest()}"


def _fold(name: str) -> str:
    """Equal for names that some file system treats as the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFC", name).casefold())
