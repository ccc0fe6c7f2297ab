"""Any job file: its items, or an error in one line that names the file."""

from __future__ import annotations

import json

import pytest
from helpers.fuzz import examples
from hypothesis import given
from hypothesis import strategies as st

from chatterbox_opt import Sampling
from chatterbox_opt.batch import filenames, job_file
from chatterbox_opt.batch.readers.captions import Captions
from chatterbox_opt.batch.readers.prose import Split
from chatterbox_opt.errors import InputError
from chatterbox_opt.utils.printable import MESSAGE_CHARACTERS, message_line

PIECES = st.text(max_size=4) | st.sampled_from([
    "\n", "\n\n", "\r\n", "\r", "\0", "\x1b[2J", "\u2028", "\ufeff", " ", "\t", ",", ";", "|", '"', "'", "a", "B.",
    "# ", "## ", "---\n", "***", "* ", "1. ", "> ", "```\n", "<!--", "-->", "<b>", "&amp;", "[x](y)", "|a|b|\n|-|-|\n",
    "id,text\n", "text\n", "text\tseed\n", "id|text\n", "1,", '"text": "x"', '{"text": "a", "seed": 1}\n', "{", "}",
    '{"text": 1e999}', '{"text": null}', "[" * 99, '{"id": ' * 20, "NaN", "1" * 5000,
    "1\n00:00:01,000 --> 00:00:02,000\n", "00:00:01.000 --> 99:99:99.999", "WEBVTT\n\n", "NOTE ", "STYLE\n", "- ",
    "[Script Info]\n", "[Events]\n", "Format: Start, End, Style, Text\n", "Dialogue: 0:00:01.00,0:00:02.00,A,",
    "Style: ", "{\\an8}", "\\N", "[music]", "(sighs)", "JOHN: ", "\u266a",
])  # fmt: skip
KEYS = st.sampled_from(job_file.COLUMNS) | st.text(max_size=3)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none())
JSON_LINES = st.lists(st.dictionaries(KEYS, VALUES, max_size=4).map(json.dumps)).map("\n".join)
TEXTS = st.lists(PIECES, max_size=30).map("".join) | JSON_LINES
CONTENTS = TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=99)


@pytest.mark.parametrize("kind", [kind.removeprefix(".") for kind in job_file.FORMATS])
@examples(10)
@given(
    content=CONTENTS,
    split=st.sampled_from(Split),
    captions=st.sampled_from(Captions),
    encoding=st.sampled_from([None, None, "latin-1", "utf-16"]),
)
def test_any_job_file(kind, content, split, captions, encoding):
    options = job_file.ReadOptions(split, captions, encoding)
    try:
        job = job_file.read(f"a.{kind}", content, Sampling(), options=options)
    except InputError as error:
        message = message_line(str(error))  # as the command prints it
        assert f"a.{kind}" in message
        assert len(message) <= MESSAGE_CHARACTERS + 3
        return
    names = filenames.names([(i.id, i.text) for i in job.items], "{id:04d}-{slug}", ".wav")
    assert len(set(names)) == len(job.items) > 0
