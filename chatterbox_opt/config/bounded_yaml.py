"""Reads a person's YAML file as strings, lists and mappings, whatever is in it.

Responsible for bounds (size, depth) and for refusing what no settings need: tags, anchors, a key
that is there twice. Not responsible for which keys and values there are.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.small_file import read_at_most

SHOWN = 60  # characters of a wrong value in a message
Made = TypeVar("Made")


def read_yaml(
    what: str, path: Path, most: int, depth: int, error_type: type[InputError] = InputError
) -> Any:
    """The content of a file; every scalar is a string, so that none can fail or become an object.

    Args:
        what: is read, and its name, for messages: "profile 'mine.yaml'".
        most: bytes.
        depth: of nested lists and mappings.
        error_type: of what is raised.

    Raises:
        InputError: it cannot be read, is too large, or not such YAML.
    """
    try:
        content = read_at_most(path, most)
        if content is None:
            kind = what.partition(" ")[0]
            raise error_type(
                f"{what} has more than {most >> 10} KiB: it is not a {kind}; give the path of one"
            )
        text = content.decode("utf-8")
        _check_events(text, depth, what.partition(" ")[0])
        _check_keys_differ(node := yaml.compose(text, Loader=yaml.BaseLoader))
        return yaml.BaseLoader("").construct_document(node) if node else None
    except OSError as error:
        raise error_type(f"{what} cannot be read ({error.strerror}): check the path") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise error_type(
            f"{what} is not valid YAML ({_one_line(error)}): write one key: value per line"
        ) from error


def made_of(
    path: str | os.PathLike[str],
    kind: str,
    make: Callable[[Mapping[str, Any]], Made],
    *,
    most: int,
    remedy: str,
) -> Made:
    """What ``make`` makes of the mapping in a file, which is two deep at most.

    Args:
        kind: of file; errors of ``make`` begin with it, and have the file's name here.
        most: bytes.
        remedy: what to write in such a file.

    Raises:
        InputError: it cannot be read, is no mapping, or ``make`` refuses it.
    """
    name = f"{kind} '{os.fspath(path)}'"
    content = read_yaml(name, Path(path), most, depth=2)
    if not isinstance(content, dict | None):
        raise InputError(f"{name} is no mapping: {remedy}")
    try:
        return make(content or {})
    except InputError as error:
        raise InputError(str(error).replace(kind, name, 1)) from error


def shortened(value: object) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _check_events(text: str, most: int, kind: str) -> None:
    """Raise ValueError for what no file needs, before nodes exist that grow without bound."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.BaseLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > most:
            raise ValueError(f"values are nested more than {most} deep")
        if getattr(event, "anchor", None):  # of an alias too
            raise ValueError(f"anchors and aliases (& and *) have no meaning in a {kind}")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"the tag {shortened(tag)} has no meaning in a {kind}")


def _check_keys_differ(node: yaml.Node | None) -> None:
    """Raise ValueError for a key that is there twice, of which YAML's loaders take the last."""
    if isinstance(node, yaml.MappingNode):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if repeated := [key for key, count in keys.items() if count > 1]:
            raise ValueError(f"the key {shortened(repeated[0])} is there more than once")
        for _, value in node.value:
            _check_keys_differ(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
