"""A Kafka broker that several proxies stand before, each with an address that it tells clients."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import ExitStack

from tests.servers.kafka import Server
from tests.servers.proxy import Proxy

WAYS = ("FEED", "FIRST", "SECOND")


class BehindProxies(Server):
    """A broker with a listener for each of :data:`WAYS`, behind a proxy.

    A client goes on with the addresses that the broker tells it. So a proxy needs a listener of
    its own, whose address is told to be the proxy's.

    Attributes:
        ways: the proxies, by name.
    """

    ways: dict[str, Proxy]

    def _write_settings(self, controller: int, settings: Mapping[str, str]) -> None:
        with ExitStack() as probes:
            ports = []
            for _ in WAYS:
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                ports.append(probe.getsockname()[1])
        self.ways = {name: Proxy(port) for name, port in zip(WAYS, ports, strict=True)}
        here = f"PLAINTEXT://{self.address},SASL://{self.sasl_address}"
        listeners = [f"{name}://127.0.0.1:{p}" for name, p in zip(WAYS, ports, strict=True)]
        told = [f"{name}://127.0.0.1:{proxy.port}" for name, proxy in self.ways.items()]
        kinds = [f"{name}:PLAINTEXT" for name in (*WAYS, "PLAINTEXT", "CONTROLLER")]
        ours = {
            "listeners": ",".join([here, f"CONTROLLER://127.0.0.1:{controller}", *listeners]),
            "advertised.listeners": ",".join([here, *told]),
            "listener.security.protocol.map": ",".join(["SASL:SASL_PLAINTEXT", *kinds]),
        }
        super()._write_settings(controller, {**ours, **settings})

    def close(self) -> None:
        """End the proxies."""
        for proxy in self.ways.values():
            proxy.close()
