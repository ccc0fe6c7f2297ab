"""Write a report's table into the README, between the two marks: make bench calls this.

The README never carries a figure that is not in a file under benchmarks/results/ (a test holds it).
"""

from __future__ import annotations

import sys
from pathlib import Path

from chatterbox_opt.bench.report import markdown, read

START, END = "<!-- bench: start -->\n", "<!-- bench: end -->\n"


def main() -> None:
    source = Path(sys.argv[1])
    readme = Path(__file__).parent.parent / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    table = f"From `benchmarks/results/{source.name}`:\n\n{markdown(read(source))}"
    readme.write_text(before + START + table + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
