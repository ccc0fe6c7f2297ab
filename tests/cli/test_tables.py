"""Tables and paragraphs: what fits, and where lines are broken."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from chatterbox_opt.bench import report
from chatterbox_opt.cli.terminal import tables

ROWS = [("cpu", "int8", "a CPU without a GPU, with native instructions"), ("dev", "float32", "all")]
WORDS = st.lists(st.text("abc/-", min_size=1, max_size=30), max_size=12)


def test_a_pipe_gets_a_line_per_row():
    lines = tables.lines(("profile", "dtype", "for"), ROWS, None)
    assert lines == [
        "profile  dtype    for",
        "cpu      int8     a CPU without a GPU, with native instructions",
        "dev      float32  all",
    ]


def test_the_last_column_is_broken_between_words():
    assert tables.lines(("profile", "dtype", "for"), ROWS, 44)[1:3] == [
        "cpu      int8     a CPU without a GPU, with",
        "                  native instructions",
    ]


def test_in_a_narrow_terminal_the_last_cell_goes_below():
    assert tables.lines(("profile", "dtype", "for"), ROWS, 36)[2:5] == [
        "cpu      int8",
        "    a CPU without a GPU, with native",
        "    instructions",
    ]


def test_a_long_path_is_broken_after_a_slash():
    path = (
        "~/.cache/huggingface/hub/models--ResembleAI--chatterbox/snapshots/1b475dffa71fb191cb6d5901"
    )
    lines = tables.wrapped(f"in {path}", 60)
    assert "".join(lines) == f"in {path}"
    assert [line[-1] for line in lines[:-1]] == ["/"]


@settings(max_examples=60)
@given(WORDS, st.integers(5, 60))
def test_wrapping_loses_nothing_and_breaks_no_word(words, columns):
    text = " ".join(words)
    lines = tables.wrapped(text, columns)
    assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)
    parts = [part for word in words for part in re.findall(r"[^/]*/|[^/]+$", word)]
    longest = max((len(part) for part in parts), default=0)
    assert all(len(line) <= max(columns, longest) for line in lines)


def test_the_main_table_of_a_benchmark_fits_80_columns():
    row = {path: None for _, path, _ in report.COLUMNS} | {"noisy": True, "name": "memory-limited"}
    row |= dict.fromkeys(("t3_tokens_per_second", "synthesis_seconds", "realtime_x"), 1234.5)
    row |= {"vs_upstream": {"synthesis": 12.3}, "peak_rss_mib": 123456.0, "peak_vram_mib": 1.0}
    headings, lines = report.cells({"rows": [row]}, report.MAIN)
    assert headings == ["row", "T3 tok/s", "total s", "x real time", "x chatterbox-tts", "VRAM MiB"]
    assert max(map(len, tables.lines(headings, lines, None))) <= 80


def test_all_figures_are_transposed_in_blocks_that_fit():
    rows = [{"name": f"row {i}", "noisy": False, "realtime_x": 1.5 + i} for i in range(9)]
    blocks = report.blocks({"rows": rows}, 50)
    assert [block[0][0] for block in blocks] == ["row"] * len(blocks)
    assert [name for headings, _ in blocks for name in headings[1:]] == [r["name"] for r in rows]
    assert all(len(line) <= 50 for block in blocks for line in tables.lines(*block, None))
    assert blocks[0][1][0][:3] == ["x real time", "1.50", "2.50"]
