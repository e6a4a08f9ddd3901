"""Who may use a Redis server, and how it is told of: passwords, ACL users, TLS, URIs."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.integration.bus.redis_kit import TOPIC, entry, opened, read_all, texts
from tests.servers.redis import MISSING, Server, binary, running

from market_data_core.config import RedisBusSettings
from market_data_core.errors import TransientError, UsageError
from market_data_core.records import Place
from market_data_pipeline.bus.redis import RedisBus

PASSWORD = "s3cr3t/@pass"  # noqa: S105  (of a server that lives for one test)
QUOTED = "s3cr3t%2F%40pass"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def url(server: Server, user: str = "", path: str = "/0", scheme: str = "redis") -> str:
    return f"{scheme}://{user}127.0.0.1:{server.port}{path}"


@pytest.fixture(scope="module")
def closed() -> Iterator[Server]:
    """A server that asks everybody for a password."""
    if binary() is None:
        pytest.skip(MISSING)
    with running("--requirepass", PASSWORD) as server:
        assert server
        with server.client(password=PASSWORD) as client:
            client.acl_setuser(
                "feed", enabled=True, passwords=[f"+{PASSWORD}"], keys=["mdp:*"],
                categories=["+@read", "+@write", "+@connection", "+@scripting"],
                commands=["+time"],
            )  # fmt: skip
            client.acl_setuser("reader", enabled=True, nopass=True, keys=["*"], commands=["+ping"])
        yield server


@pytest.mark.parametrize("user", [f":{QUOTED}@", f"default:{QUOTED}@", f"feed:{QUOTED}@"])
async def test_a_password_and_an_acl_user(closed: Server, user: str) -> None:
    async with opened(url(closed, user), "mdp:") as bus:
        await bus.drop_topic(TOPIC)
        await bus.create_topic(TOPIC, 2)
        await bus.append(TOPIC, [entry("x", key="k")])
        assert texts(await read_all(bus)) == ["x"]
        await bus.assignment(TOPIC, "g", "m")
        end = (await bus.bounds(TOPIC, 0)).next
        await bus.acknowledge(TOPIC, "g", "m", {0: Place(end, end)})
        await bus.leave(TOPIC, "g", "m")
        await bus.trim(TOPIC, 0, 1 << 62, 1 << 62, 0)
        assert await read_all(bus) == []


@pytest.mark.parametrize(
    "user", ["", ":wr0ng-one@", "default:wr0ng-one@", f"nobody:{QUOTED}@", "reader:any@"]
)
async def test_who_may_not_is_told_so_without_secrets(closed: Server, user: str) -> None:
    with capture_logs() as logs:
        async with opened(url(closed, user), "mdp:") as bus:
            for call in (bus.create_topic(TOPIC, 1), bus.find_topic(TOPIC), bus.topics()):
                with pytest.raises(UsageError) as caught:
                    await call
                text = f"{caught.value}{caught.value!r}{caught.value.__cause__}"
                assert "127.0.0.1" in text
                assert "user and password of bus.redis.uri" in text or "permission" in text
                assert not any(secret in text for secret in (PASSWORD, QUOTED, "wr0ng-one"))
    assert not any(secret in str(logs) for secret in (PASSWORD, QUOTED, "wr0ng-one"))


async def test_what_an_acl_user_may_not_touch(closed: Server) -> None:
    """Another prefix of keys than the user's."""
    async with opened(url(closed, f"feed:{QUOTED}@"), "other:") as bus:
        with pytest.raises(UsageError, match=r"(?i)permission|ACL"):
            await bus.create_topic(TOPIC, 1)


async def test_a_server_that_is_not_there_is_waited_for() -> None:
    """And its password does not stand in what is said meanwhile."""
    async with opened(f"redis://:{QUOTED}@127.0.0.1:{free_port()}/0") as bus:
        with pytest.raises(TransientError) as caught:
            await bus.find_topic(TOPIC)
    assert QUOTED not in str(caught.value)
    assert PASSWORD not in str(caught.value)


async def test_a_database_that_the_server_does_not_have(redis_server: Server) -> None:
    async with opened(url(redis_server, path="/99")) as bus:
        with pytest.raises(UsageError, match=r"(?i)/99.*index is out of range"):
            await bus.find_topic(TOPIC)


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("http://host/0", "'http' is no scheme"),
        ("redis://host/zero", "'zero' is not the number of a database"),
        ("redis://host:port/0", "(?i)port"),
        ("redis://host/0?decode_responses=true", "decode_responses"),
        ("redis://host/0?protocol=3", "protocol"),
        ("redis://host/0?socket_timeout=0.5", "socket_timeout"),
        ("redis://host/0?socket_timeout=soon", "socket_timeout"),
        ("rediss://host/0?ssl_ca_certs=/no/such.pem", "there is no file /no/such.pem"),
        ("rediss://host/0?ssl_cert_reqs=perhaps", "perhaps"),
        ("redis+sentinel://host", "names no service"),
        ("redis+sentinel://host/main/zero", "'zero'"),
        ("redis+sentinel://,host/main/0", "host is missing"),
        ("redis+sentinel://host/main/0?sentinel_colour=red", "colour"),
        ("redis://:t0psecret@host/zero?password=t1psecret", "zero"),
    ],
)
def test_a_uri_that_cannot_be_used(uri: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        RedisBus(RedisBusSettings(uri=uri))
    assert "bus.redis.uri" in str(caught.value)
    assert "psecret" not in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    [
        "redis://localhost", "rediss://u:p@[::1]:6380/2?ssl_check_hostname=false",
        "unix:///run/redis.sock?db=2", "redis+sentinel://u:p@a,b:26380,[::1]:26381/main",
        "rediss+sentinel://a/main/3?sentinel_username=s&sentinel_password=t&socket_timeout=2",
    ],
)  # fmt: skip
def test_uris_that_can(uri: str) -> None:
    RedisBus(RedisBusSettings(uri=uri))


# ---- TLS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and what it has signed for a server and a client on the loopback interface."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        try:
            done = subprocess.run(
                ["openssl", *arguments], cwd=folder, capture_output=True, check=False, timeout=60
            )
        except FileNotFoundError:
            pytest.skip("no openssl program to make certificates with")
        assert done.returncode == 0, done.stderr.decode()

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    for name in ("ca", "other"):
        openssl(*new, "-x509", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", "/CN=ca")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    openssl(*new, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server")
    openssl(
        "x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2",
        "-CAcreateserial", "-out", "server.pem", "-extfile", "names",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tls(certificates: Path) -> Iterator[Callable[[str], str]]:
    """URIs of a server that speaks TLS too, and then asks for a certificate."""
    if binary() is None:
        pytest.skip(MISSING)
    port = free_port()
    files = {name: str(certificates / name) for name in ("server.pem", "server.key", "ca.pem")}
    options = ["--tls-cert-file", files["server.pem"], "--tls-key-file", files["server.key"]]
    options += ["--tls-ca-cert-file", files["ca.pem"], "--tls-port", str(port)]
    mine = f"&ssl_certfile={files['server.pem']}&ssl_keyfile={files['server.key']}"
    with ExitStack() as stack:
        try:
            stack.enter_context(running(*options))
        except AssertionError as error:
            if "tls-" in str(error):
                pytest.skip("this Redis server was built without TLS")
            raise
        yield lambda more: f"rediss://127.0.0.1:{port}/0?{more}{mine}"


async def test_tls(tls: Callable[[str], str], certificates: Path) -> None:
    async with opened(tls(f"ssl_ca_certs={certificates / 'ca.pem'}")) as bus:
        await bus.create_topic(TOPIC, 1)
        await bus.append(TOPIC, [entry("x")])
        assert texts(await read_all(bus)) == ["x"]


async def test_a_certificate_that_is_not_trusted(
    tls: Callable[[str], str], certificates: Path
) -> None:
    async with opened(tls(f"ssl_ca_certs={certificates / 'other.pem'}")) as bus:
        with pytest.raises(UsageError, match="ssl_ca_certs"):
            await bus.find_topic(TOPIC)
