"""The proxy of the fault tests does to connections what it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from tests.servers.proxy import Proxy, between

_SOON_S, _NEVER_S = 5.0, 0.15


class Echo:
    """A server that sends back what it gets; `heard` is all of it."""

    def __init__(self) -> None:
        self.heard = b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.links: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                link, _ = self._listener.accept()
                self.links.append(link)
                threading.Thread(target=self._answer, args=(link,), daemon=True).start()

    def _answer(self, link: socket.socket) -> None:
        with suppress(OSError):
            while data := link.recv(1 << 16):
                self.heard += data
                link.sendall(data)
            link.close()

    def close(self) -> None:
        with suppress(OSError):  # closed already
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in self.links:
            link.close()
        self._thread.join(_SOON_S)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with between(echo.port) as made:
        yield made


class Client:
    """One connection through the proxy."""

    def __init__(self, port: int) -> None:
        self.link = socket.create_connection(("127.0.0.1", port), _SOON_S)

    def send(self, text: str) -> None:
        self.link.sendall(text.encode())

    def hears(self, text: str, within_s: float = _SOON_S) -> float:
        """Require that this comes next; how long it took, in seconds."""
        began, found = time.monotonic(), b""
        self.link.settimeout(within_s)
        while len(found) < len(text):
            data = self.link.recv(len(text) - len(found))
            assert data, "the connection has ended"
            found += data
        assert found.decode() == text
        return time.monotonic() - began

    def hears_nothing(self) -> None:
        self.link.settimeout(_NEVER_S)
        with pytest.raises(TimeoutError):
            self.link.recv(1)

    def is_reset(self) -> None:
        self.link.settimeout(_SOON_S)
        with pytest.raises(ConnectionResetError):
            self.link.recv(1)


Connect = Callable[[], Client]


@pytest.fixture
def connect(proxy: Proxy) -> Iterator[Connect]:
    made: list[Client] = []

    def one() -> Client:
        made.append(Client(proxy.port))
        return made[-1]

    yield one
    for client in made:
        client.link.close()


def until_heard(echo: Echo, text: str) -> None:
    deadline = time.monotonic() + _SOON_S
    while echo.heard != text.encode():
        assert time.monotonic() < deadline, echo.heard
        time.sleep(0.005)


def test_everything_passes(proxy: Proxy, connect: Connect) -> None:
    clients = [connect() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send(f"hello {number}")
    for number, client in enumerate(clients):
        client.hears(f"hello {number}")
    assert proxy.connections == 5
    large = "x" * (1 << 20)
    sending = threading.Thread(target=clients[0].send, args=(large,))
    sending.start()
    clients[0].hears(large)
    sending.join()


def test_an_end_is_passed_on(proxy: Proxy, echo: Echo, connect: Connect) -> None:
    client = connect()
    client.send("last words")
    client.hears("last words")
    echo.links[0].shutdown(socket.SHUT_RDWR)
    assert client.link.recv(1) == b""
    deadline = time.monotonic() + _SOON_S
    while proxy.connections:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_delay_keeps_the_order(proxy: Proxy, connect: Connect) -> None:
    client = connect()
    proxy.delay(0.05, jitter_s=0.05)
    sent = time.monotonic()
    for number in range(10):
        client.send(str(number))
        time.sleep(0.002)
    client.hears("0123456789")
    assert time.monotonic() - sent >= 0.1  # both ways
    proxy.heal()
    client.send("again")
    assert client.hears("again") < 0.05


def test_a_cut_resets_and_refuses(proxy: Proxy, connect: Connect) -> None:
    client = connect()
    client.send("x")
    client.hears("x")
    proxy.cut()
    client.is_reset()
    assert proxy.connections == 0
    with pytest.raises(ConnectionRefusedError):
        connect()
    proxy.heal()
    client = connect()
    client.send("back")
    client.hears("back")


def test_half_open_connections_stay_and_carry_nothing(
    proxy: Proxy, echo: Echo, connect: Connect
) -> None:
    before = connect()
    before.send("x")
    before.hears("x")
    proxy.half_open()
    during = connect()
    for client in (before, during):
        client.send("lost")
        client.hears_nothing()
    assert echo.heard == b"x"
    proxy.heal()
    for client in (before, during):
        client.is_reset()  # nothing may come behind what is missing
    after = connect()
    after.send("back")
    after.hears("back")


def test_a_connection_that_lost_nothing_outlives_a_silence(proxy: Proxy, connect: Connect) -> None:
    client = connect()
    client.send("x")
    client.hears("x")
    proxy.half_open()
    proxy.heal()
    client.send("still there")
    client.hears("still there")


def test_a_split_stops_one_direction(proxy: Proxy, echo: Echo, connect: Connect) -> None:
    client = connect()
    proxy.split("down")
    client.send("heard")
    until_heard(echo, "heard")
    client.hears_nothing()
    proxy.heal()
    client.is_reset()

    client = connect()
    client.send("x")
    client.hears("x")
    proxy.split("up")
    client.send("not heard")
    client.hears_nothing()
    echo.links[-1].sendall(b"told")
    client.hears("told")
    assert echo.heard == b"heardx"
    proxy.half_open()  # one fault after the other
    echo.links[-1].sendall(b"not told")
    client.hears_nothing()


def test_a_server_that_is_away_ends_connections(echo: Echo, connect: Connect) -> None:
    echo.close()
    with suppress(ConnectionResetError):
        assert connect().link.recv(1) == b""
