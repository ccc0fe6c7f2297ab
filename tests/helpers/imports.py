"""What a command has imported when it ends, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
sys.argv = ["chatterbox-opt", *sys.argv[1:]]
from chatterbox_opt.cli.main import main
try:
    main()
finally:
    print(*sys.modules)
"""


def imported_by(arguments: list[str], cwd: Path) -> set[str]:
    """Names of all modules that ``chatterbox-opt`` with ``arguments`` imports; it must succeed."""
    command = [sys.executable, "-c", SCRIPT, *arguments]
    result = subprocess.run(command, capture_output=True, cwd=cwd)
    assert result.returncode == 0, result.stderr.decode()
    return set(result.stdout.decode().split())
