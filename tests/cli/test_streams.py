"""Standard streams that are closed, or whose reader has gone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from chatterbox_opt.cli.terminal import streams

COMMAND = f"{sys.executable} -m chatterbox_opt"


def broken_pipe():
    """A text stream whose reader has gone."""
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w", buffering=1)


def test_output_after_the_reader_has_gone_is_dropped():
    with broken_pipe() as stream:
        tolerant = streams.TolerantStream(stream, (32,))
        print("lost", file=tolerant, flush=True)
        print("lost too", file=tolerant, flush=True)
        assert tolerant.fileno() == stream.fileno()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_an_error_only_for_results():
    with open("/dev/full", "w") as full:
        streams_out = streams.TolerantStream(full, (32,))
        with pytest.raises(OSError, match="No space"):
            print("result", file=streams_out, flush=True)
    with open("/dev/full", "w") as full:
        print("status", file=streams.TolerantStream(full, None), flush=True)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("profiles >&- 2>&- <&-", 0),
        ("profiles show cpu --json | true", 0),
        ("profiles 2>&1 | head -1", 0),
        ("--help | true", 0),
        ("synth 2>&-", 2),
        ("synth hi --model pico -o - >&-", 2),
        ("profiles >/dev/full", 1),
    ],
)
def test_commands_are_quiet_and_keep_their_exit_code(command, code, tmp_path):
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {COMMAND} {command}"], capture_output=True, cwd=tmp_path
    )
    assert result.returncode == code, result.stderr
    stderr = result.stderr.decode()
    assert "Traceback" not in stderr and "Exception ignored" not in stderr
    assert len(stderr.splitlines()) == (1 if code and "2>&-" not in command else 0)


def test_a_file_does_not_get_the_number_of_a_closed_stream():
    script = (
        "from chatterbox_opt.cli.terminal import streams\n"
        "with streams.tolerant(), open('/dev/null') as file:\n"
        "    raise SystemExit(0 if file.fileno() > 2 else 3)"
    )
    command = f'{sys.executable} -c "$1" >&- 2>&- <&-'
    assert subprocess.run(["bash", "-c", command, "-", script]).returncode == 0
