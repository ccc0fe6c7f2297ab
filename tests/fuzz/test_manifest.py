"""Any line in a manifest: an entry whose fields have their types, or a damaged line."""

from __future__ import annotations

import dataclasses
import json

import pytest
from helpers.fuzz import examples
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt.batch.manifest import Entry, _parse, open_manifest

LINE = dataclasses.asdict(Entry("1", "t", "s", "done", "0001.wav", 9, 1.0, seed=0))
WRONG = {
    **dict.fromkeys(("id", "text_hash", "settings_hash", "status"), (None, 1, [], {}, True)),
    **dict.fromkeys(("error", "time", "text", "model"), (None, 1, [], {}, True)),
    "file": (None, 1, [], "../a.wav", "/etc/passwd", "a\0.wav", "..", "b\\a.wav"),
    **dict.fromkeys(("voice", "language"), (1, [], {}, False)),
    **dict.fromkeys(("size", "attempts"), (None, "9", 1.5, True, [], {}, 1 << 70)),
    "seed": ("9", 1.5, True, [], 1 << 70),
    **dict.fromkeys(
        ("duration", "seconds", "rate"), (None, "9", True, [], float("nan"), float("inf"))
    ),
    "faults": (None, "loop", 1, [1], [None], {"a": 1}),
    "sampling": (None, [], "x", 1),
    "words": (None, "a", 1, [1], ["abcd"], [["a", 0, 1]], [["a", 0, "1", 0]], [["a", 0, 1, 0.5]]),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=4,
)
CHANGES = st.dictionaries(st.sampled_from([*LINE, "settings", "later"]), JSON, max_size=4)


def line(**changes) -> bytes:
    return json.dumps(LINE | changes).encode()


def test_every_field_is_written_as_it_is_read():
    assert set(WRONG) == set(LINE)
    assert _parse(line()) == Entry("1", "t", "s", "done", "0001.wav", 9, 1.0, seed=0)


@pytest.mark.parametrize("key", LINE)
def test_a_value_of_another_type_is_damage(key):
    assert [value for value in WRONG[key] if _parse(line(**{key: value}))] == []


@examples(60)
@given(
    content=CHANGES.map(lambda c: line(**c))
    | JSON.map(lambda v: json.dumps(v).encode())
    | st.binary()
)
def test_any_line_is_an_entry_or_damage(content):
    entry = _parse(content)
    assert entry is None or (isinstance(entry.id, str) and isinstance(entry.size, int))
    if entry:
        json.dumps(dataclasses.asdict(entry))


@examples(5)
@given(changes=st.lists(CHANGES, max_size=5))
def test_any_manifest_opens_with_a_warning_for_each_damaged_line(tmp_path, caplog, changes):
    lines = [line(**change) for change in changes]
    (tmp_path / "manifest.jsonl").write_bytes(b"".join(one + b"\n" for one in lines))
    caplog.clear()
    with open_manifest(tmp_path) as manifest:
        manifest.finished()
    assert len(caplog.records) == sum(_parse(one) is None for one in lines)
