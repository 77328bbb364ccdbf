"""Who is taken on each port of the servers, with which versions and suites, and how the files are replaced under load."""

import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rig.certs import HERE, TRUST, Authority
from tests.tls.conftest import SERVERS, Safe
from tests.tls.probes import Callers, context, eventually, strangers

EVERYWHERE = ("bank", "command", "feed", "query", "command metrics", "query metrics")
WEAK = "AES128-SHA:AES256-SHA:AES128-GCM-SHA256:ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES256-SHA384:@SECLEVEL=0"
EVENT = "files cannot be used: the former ones stay in use"


async def test_every_port_takes_clients_of_the_authority_and_no_others(safe: Safe, tmp_path: Path) -> None:
    trust = safe.authority.pem
    assert set(safe.ports) == set(EVERYWHERE)
    for name, port in safe.ports.items():
        assert port.answers(context(trust, safe.client)), name
    with safe.ports["bank"].connection(context(trust, safe.client)) as line:
        line.sendall(b"no HTTP\r\n\r\n")
        assert line.recv(4096).startswith(b"HTTP/1.1 400 ")
    for who, shown in strangers(tmp_path / "strangers", safe.authority).items():
        for name, port in safe.ports.items():
            assert not port.answers(context(trust, shown)), (name, who)
    for name, port in safe.ports.items():
        assert not port.answers(None), (name, "plaintext")
    assert not safe.logged("a request got no answer")


async def test_every_port_takes_tls_1_2_and_1_3_with_strong_suites_only(safe: Safe) -> None:
    def client(version: ssl.TLSVersion, suites: str = "ALL:@SECLEVEL=0") -> ssl.SSLContext:
        made = context(safe.authority.pem, safe.client)
        made.set_ciphers(suites)
        made.minimum_version = made.maximum_version = version
        return made

    for name, port in safe.ports.items():
        assert port.answers(client(ssl.TLSVersion.TLSv1_3)), name
        assert port.answers(client(ssl.TLSVersion.TLSv1_2)), name
        with pytest.raises(ssl.SSLError, match=r"HANDSHAKE_FAILURE|UNEXPECTED_EOF"):
            port.connection(client(ssl.TLSVersion.TLSv1_2, WEAK)).close()
        with pytest.warns(DeprecationWarning):
            old = client(ssl.TLSVersion.TLSv1_1)
        with pytest.raises(ssl.SSLError, match=r"PROTOCOL_VERSION|UNEXPECTED_EOF"):
            port.connection(old).close()


async def test_certificates_and_authorities_are_replaced_while_calls_go_on(safe: Safe, tmp_path: Path) -> None:
    """Step by step, as an operator does it: trust the new authority too, show its certificates, trust the former no more."""
    town, old, new = safe.town, safe.authority, Authority()
    both = old.pem + new.pem
    client = new.issue(tmp_path / "client", uris=[f"{TRUST}/shop"], client_only=True)

    def check(channel: grpc.Channel) -> bool:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=20)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def credentials(shown: Path) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(both, (shown / "tls.key").read_bytes(), (shown / "tls.crt").read_bytes())

    def check_anew(address: str) -> bool:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(address, credentials(safe.client), options) as channel:
            return check(channel)

    former = {name: port.certificate(context(both, safe.client)) for name, port in safe.ports.items()}
    with (
        grpc.secure_channel(town.command.listen, credentials(safe.client)) as commands,
        grpc.secure_channel(town.query.listen, credentials(safe.client)) as queries,
    ):
        with Callers(
            ("command", lambda: check(commands)),
            ("query", lambda: check(queries)),
            ("command, a connection each", lambda: check_anew(town.command.listen)),
            *((name, lambda port=port: port.answers(context(both, safe.client))) for name, port in safe.ports.items()),
        ) as callers:
            safe.issue(old, both)
            eventually(lambda: safe.all_answer(both, client))
            safe.issue(new, both)
            eventually(lambda: safe.all_answer(new.pem, client))  # which trusts the new certificates only
            eventually(lambda: min(callers.made.values()) > 10)
        assert callers.failed == []

        safe.issue(new, new.pem)
        eventually(lambda: not any(p.answers(context(both, safe.client)) for p in safe.ports.values()))
        assert safe.all_answer(new.pem, client)
        assert check(commands)  # a connection that is open lives on
        assert check(queries)
    for name, port in safe.ports.items():
        assert port.certificate(context(both, client)) != former[name]


async def test_broken_new_files_are_refused_loudly_and_the_former_stay(safe: Safe, tmp_path: Path) -> None:
    stray = Authority().issue(tmp_path / "stray", dns=["localhost"], ips=HERE)
    for server in SERVERS:
        (safe.certificates / server / "tls.key").write_bytes((stray / "tls.key").read_bytes())
    eventually(lambda: len(safe.logged(EVENT)) >= 5)
    assert safe.all_answer(safe.authority.pem, safe.client)
    told = safe.logged(EVENT)
    assert {entry["level"] for entry in told} == {"error"}
    assert {str(entry["why"]) for entry in told} == {
        f"{safe.certificates / server / 'tls.key'}: is not the key of the certificate in tls.crt" for server in SERVERS
    }
    (safe.certificates / "command" / "ca.crt").unlink()  # nor does a lack of authorities open the port
    safe.issue(safe.authority, safe.authority.pem)
    (safe.certificates / "command" / "ca.crt").unlink()
    eventually(lambda: any("ca.crt: there is no such file" in str(each["why"]) for each in safe.logged(EVENT)))
    assert not safe.ports["command"].answers(context(safe.authority.pem))
    assert safe.all_answer(safe.authority.pem, safe.client)
