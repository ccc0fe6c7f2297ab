"""``chatterbox-opt`` for many commands: each is a fork of a process that has done the imports.

A command has a process, arguments, a directory, input and output of its own, and its exit code is
what a shell sees; only the two seconds of imports are shared. The environment is the server's.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

IMPORTED = (  # what most commands import, the slowest
    "chatterbox_opt.audio.watermark",
    "chatterbox_opt.batch.runner",
    "chatterbox_opt.cli.application",
    "chatterbox_opt.engine.build",
    "chatterbox_opt.engine.engine",
    "chatterbox_opt.kernels.cpu.conv.kernel",
    "chatterbox_opt.kernels.cpu.flow_bf16",
    "chatterbox_opt.kernels.cpu.norm_bf16",
    "chatterbox_opt.kernels.cpu.sampling",
    "chatterbox_opt.kernels.cpu.softmax",
    "chatterbox_opt.kernels.cpu.t3_decode",
    "chatterbox_opt.text.english",
    "num2words",
    "soundfile",
    "soxr",
    "tokenizers",
    "typer._adapters",  # which imports pydantic
)
CLIENT = """#!{python} -ES
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
given = json.dumps([sys.argv[1:], os.getcwd()]).encode()
socket.send_fds(connection, [given], [0, 1, 2])
sys.exit(int(connection.recv(16) or 1))
"""


@contextmanager
def command_server(script: Path, environment: dict[str, str], setup: str):
    """While it lasts, ``script`` is the command; ``setup`` is a module that is imported first."""
    address = script.with_suffix(".socket")
    with subprocess.Popen([sys.executable, __file__, address, setup], env=environment) as server:
        try:
            while not address.exists():
                assert server.poll() is None, "the server ended"
                time.sleep(0.02)
            script.write_text(CLIENT.format(python=sys.executable, address=str(address)))
            script.chmod(0o755)
            yield
        finally:
            server.kill()


def serve(address: str) -> None:
    """Return in each process that is to be a command."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address + ".new")
    listening.listen()
    os.rename(address + ".new", address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how those between have ended
    while True:
        connection, _ = listening.accept()
        if os.fork():
            connection.close()
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        listening.close()
        given, descriptors, *_ = socket.recv_fds(connection, 1 << 16, 3)
        if command := os.fork():
            _, status = os.waitpid(command, 0)
            connection.sendall(str(os.waitstatus_to_exitcode(status) % 256).encode())
            os._exit(0)
        connection.close()
        for place, descriptor in enumerate(descriptors):
            os.dup2(descriptor, place)
            os.close(descriptor)
        arguments, directory = json.loads(given)
        sys.argv = ["chatterbox-opt", *arguments]
        os.chdir(directory)
        return


def exit_at_once(code: int) -> None:
    """As at the end of a program, except that the imports are not taken down: 0.3 s a command."""
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    import importlib

    from chatterbox_opt.cli.main import main

    for name in (*IMPORTED, sys.argv[2]):
        importlib.import_module(name)
    serve(sys.argv[1])
    try:
        main()
    except SystemExit as ended:
        exit_at_once(ended.code)
