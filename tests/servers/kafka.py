"""A real Kafka broker for tests: one JVM, its own controller, on free ports of loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

VERSION = os.environ.get("TEST_KAFKA_VERSION", "4.1.0")
"""Of the broker: 4.x, or 3.9.x; both run on Java 17."""
MISSING = (
    f"no Kafka {VERSION}: apt-get install openjdk-17-jre-headless maven; its jars come from "
    "Maven Central"
)
QUICK = ("-XX:TieredStopAtLevel=1",)
"""Options of the JVM for a quick start; without them it becomes faster after a while."""
USER, PASSWORD = "alice", "alice-secret"

_START_S, _FETCH_S = 60, 300
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>tests</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency>
      <groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>
      <version>{version}</version>
    </dependency>
    <dependency>
      <groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version>
    </dependency>
  </dependencies>
</project>
"""


def jars() -> Path | None:
    """The folder of the broker's jars, fetched if need be; None if that is not possible."""
    cache = os.environ.get("XDG_CACHE_HOME")
    root = Path(cache) / "mdp" if cache else Path(__file__).resolve().parents[2] / ".cache"
    folder = root / "kafka" / VERSION
    if not shutil.which("java"):
        return None
    if folder.is_dir():
        return folder
    mvn = shutil.which("mvn")
    if not mvn:
        return None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        (Path(name) / "pom.xml").write_text(_POM.format(version=VERSION))
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", "-DoutputDirectory=jars"]
        try:
            subprocess.run(
                [mvn, "-B", "-q", *goal], cwd=name, check=True, timeout=_FETCH_S,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except (subprocess.SubprocessError, OSError):
            return None
        try:
            (Path(name) / "jars").rename(folder)
        except OSError:  # somebody else was quicker
            if not folder.is_dir():
                raise
    return folder


class Server:
    """A broker with a folder of its own, made by :func:`running`.

    Attributes:
        address: host:port for everybody.
        sasl_address: host:port for :data:`USER` with :data:`PASSWORD`, SASL/PLAIN without TLS.
        port: of `address`.
    """

    def __init__(
        self, programs: Path, folder: Path, settings: Mapping[str, str], jvm: Sequence[str]
    ) -> None:
        self._folder, self._jvm = folder, jvm
        self._classes = f"{programs}/*"
        with ExitStack() as probes:
            ports = []
            for _ in range(3):
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                ports.append(probe.getsockname()[1])
        self.port: int = ports[0]
        self.address, self.sasl_address = (f"127.0.0.1:{port}" for port in ports[:2])
        self._process: subprocess.Popen[bytes] | None = None
        self._count = 0
        self._write_settings(ports[2], settings)

    def _write_settings(self, controller: int, settings: Mapping[str, str]) -> None:
        plain = "org.apache.kafka.common.security.plain.PlainLoginModule"
        every = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.address},SASL://{self.sasl_address},"
            f"CONTROLLER://127.0.0.1:{controller}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,"
            "CONTROLLER:PLAINTEXT",
            "listener.name.sasl.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.sasl.plain.sasl.jaas.config": f"{plain} required "
            f'user_{USER}="{PASSWORD}";',
            "log.dirs": f"{self._folder}/data",
            "offsets.topic.replication.factor": "1",
            "offsets.topic.num.partitions": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "num.network.threads": "2",
            "num.io.threads": "4",
            "controlled.shutdown.enable": "false",
            # a broker that comes back is let in when the session of its last life has run out
            "broker.heartbeat.interval.ms": "100",
            "broker.session.timeout.ms": "500",
        }
        lines = [f"{key}={value}" for key, value in {**every, **settings}.items()]
        self._settings.write_text("\n".join(lines))

    @property
    def _settings(self) -> Path:
        return self._folder / "server.properties"

    def _java(self, *arguments: str) -> list[str]:
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        memory = ["-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-Xshare:auto"]
        return ["java", *memory, *self._jvm, quiet, "-cp", self._classes, *arguments]

    def new_prefix(self) -> str:
        """A prefix for topics that nobody else uses."""
        self._count += 1
        return f"t{os.getpid()}.{self._count}."

    def make(self) -> None:
        """Make the folder that :meth:`start` needs."""
        arguments = ["-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c", str(self._settings)]
        subprocess.run(
            self._java("kafka.tools.StorageTool", "format", *arguments),
            check=True, capture_output=True, cwd=self._folder,
        )  # fmt: skip

    def start(self) -> None:
        """Start, and wait until it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._java("kafka.Kafka", str(self._settings)),
                cwd=self._folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        (self._folder / "pid").write_text(str(self._process.pid))
        admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0}, logger=_SILENT)
        deadline = time.monotonic() + _START_S
        while True:
            try:
                if admin.list_topics(timeout=1).brokers:
                    return
            except KafkaException:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    log_text = (self._folder / "log").read_text(errors="replace")
                    msg = f"Kafka did not start: {log_text[-2000:]}"
                    raise RuntimeError(msg) from None

    def stop(self) -> None:
        """Stop it in an orderly way."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """kill -9; what it has acknowledged stays in its files."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """SIGSTOP: connections stay, nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._signal(number)
        self._signal(signal.SIGCONT)
        try:
            self._process.wait(_START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        (self._folder / "pid").unlink(missing_ok=True)
        self._process = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Leave no JVM behind, even if this process is killed: its pipe breaks then."""
        stop = 'read -r _ || true; [ ! -f "$1/pid" ] || kill -9 "$(cat "$1/pid")"; rm -rf "$1"'
        with subprocess.Popen(
            ["sh", "-c", stop, "sh", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        ):
            yield


class _Silent:
    """A logger for a client that knows that nobody may be there yet."""

    def log(self, *_: object) -> None:
        """Nothing."""


_SILENT = _Silent()


@contextmanager
def running(
    settings: Mapping[str, str] | None = None,
    jvm: Sequence[str] = QUICK,
    kind: type[Server] = Server,
) -> Iterator[Server | None]:
    """A broker, stopped and removed at the end; None if there can be none.

    Args:
        settings: more lines of its ``server.properties``.
        jvm: options of the virtual machine.
        kind: a subclass, to be reached in other ways.
    """
    programs = jars()
    if programs is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="mdp-kafka-") as name:
        server = kind(programs, Path(name), settings or {}, jvm)
        server.make()
        with server.watched():
            server.start()
            try:
                yield server
            finally:
                server.kill()
