"""The command ``doctor``: command.py has its checks, machine.py the facts that are no checks."""
