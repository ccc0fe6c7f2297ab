"""The entry point of the command line.

Responsible for signals during the imports, which take longer than it takes to press Ctrl-C. Not
responsible for anything after them (application.py).
"""

from __future__ import annotations

import signal

from chatterbox_opt.cli import signals


def main() -> None:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for number in signals.heard(signal.SIGINT, *signals.ending()):
        signal.signal(number, signals.leave)
    from chatterbox_opt.cli import application

    for number in signals.heard(signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    for number in signals.heard(*signals.ending()):
        signal.signal(number, application.terminate)
    application.main()
