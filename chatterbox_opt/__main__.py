"""``python -m chatterbox_opt``: the command line."""

from chatterbox_opt.cli.main import main

main()
