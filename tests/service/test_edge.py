"""The edge of every server: health and reflection behind the guard, sizes, metrics, and proxies."""

import ast
import asyncio
import contextlib
import signal
import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import (
    ExtensionRequest,
    ServerReflectionRequest,
    ServerReflectionResponse,
)

from charging.v1.query_pb2 import GetChargeRequest, GetViewStatusRequest, WatchChargeRequest
from chassis import health, metrics
from query_service.api import WATCHES_A_CONNECTION
from rig.errors import refused
from rig.processes import free_address
from tests.sealed import SealedJournal, token_issued
from tests.service.feed_server import FeedServer, feeding
from tests.service.query_rig import SERVICE, client_of, process_of, querying

PATIENCE_SECONDS = 30
ROOT = Path(__file__).parent.parent.parent
HEALTH, REFLECTION = "/grpc.health.v1.Health", "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
VERSIONS = ("v1alpha", "v1")
NOTHING_HAPPENED = ["serving", "the feed is open", "the view has caught up", "asked to stop", "draining", "stopped"]
# RFC 9113, by hand: our clients never send these frames.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADERS, DATA, SETTINGS, PING = 1, 0, 4, 6
INITIAL_WINDOW_SIZE = 4


@pytest.fixture
async def feed() -> AsyncIterator[FeedServer]:
    journal = SealedJournal()
    journal.charge("order-0001", "user-1", token_issued())
    async with feeding(journal) as server:
        yield server


# ---------------------------------------------------------------- proxies
@pytest.mark.parametrize("name", ["http_proxy", "grpc_proxy", "https_proxy"])
async def test_a_proxy_in_the_environment_sees_nothing_of_the_feed(feed: FeedServer, tmp_path: Path, name: str) -> None:
    """The feed holds every user's history, and goes between our own servers only."""
    asked = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(100))
        writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        environment = {name: f"http://127.0.0.1:{port}", "no_proxy": "", "no_grpc_proxy": ""}
        async with (
            asyncio.timeout(PATIENCE_SECONDS),
            process_of(feed.address, tmp_path / "v.db", **environment) as query,
        ):
            await query.logged("the view has caught up")
    assert asked == []


def test_every_client_that_is_made_outside_the_tests_ignores_proxies() -> None:
    """For the tests' own clients tests/conftest.py removes the proxies."""
    careless = []
    for path in (
        path for folder in ("demo", "prove", "bench", "query_service") for path in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                given = {keyword.arg for keyword in node.keywords}
                wanted = {"insecure_channel": "options", "AsyncClient": "trust_env", "Client": "trust_env"}
                if (option := wanted.get(node.func.attr)) and option not in given:
                    careless.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert careless == []


# ---------------------------------------------------------------- sizes
async def test_a_query_above_its_limit_is_refused_with_details(feed: FeedServer, tmp_path: Path) -> None:
    """With a code that no client retries, and a text that names the limit."""
    async with querying(feed.address, tmp_path / "view.db") as (_, client):
        error = await refused(client.queries.GetCharge(GetChargeRequest(idempotency_key="k" * (16 << 10))))
    assert (error.code, error.reason, error.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_REQUEST",
        frozenset({""}),
    )
    assert error.metadata == {"advice": "DO_NOT_RETRY"}


# ---------------------------------------------------------------- health and reflection stand behind the guard
async def test_a_malformed_request_gets_our_text_and_fills_no_log(feed: FeedServer, tmp_path: Path) -> None:
    """Sent to health and to reflection, as bytes that are no message and as a message that is too large."""
    too_large = HealthCheckRequest(service="s" * (16 << 10)).SerializeToString()
    async with process_of(feed.address, tmp_path / "view.db") as process:
        serving = await process.logged("serving")
        async with grpc.aio.insecure_channel(serving["listen"]) as opened:
            channel: Any = opened
            for request in (b"\xff\xff\xff", too_large):
                calls: Sequence[Any] = (
                    channel.unary_unary(f"{HEALTH}/Check")(request),
                    channel.unary_unary(f"{HEALTH}/List")(request),
                    channel.unary_stream(f"{HEALTH}/Watch")(request).read(),
                    *(channel.stream_stream(REFLECTION.format(each))(iter([request])).read() for each in VERSIONS),
                )
                for call in calls:
                    error = await refused(call)
                    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
                    assert error.text == "the request is invalid: see the field violations"
        await process.logged("the view has caught up")
        process.send(signal.SIGTERM)
        assert await process.ended() == 0
        assert [entry["event"] for entry in process.entries()] == NOTHING_HAPPENED


async def test_health_knows_its_services_and_no_others(feed: FeedServer, tmp_path: Path) -> None:
    """For others Check answers NOT_FOUND, Watch SERVICE_UNKNOWN, and List omits them."""
    async with querying(feed.address, tmp_path / "view.db") as (running, client):
        await client.becomes(HealthCheckResponse.SERVING)
        assert (await refused(client.health.Check(HealthCheckRequest(service="x")))).code is grpc.StatusCode.NOT_FOUND
        watched = await client.health.Watch(HealthCheckRequest(service="x")).read()
        assert watched.status == HealthCheckResponse.SERVICE_UNKNOWN
        async with grpc.aio.insecure_channel(str(running.listen)) as channel:
            listed = health_pb2.HealthListResponse.FromString(await channel.unary_unary(f"{HEALTH}/List")(b""))  # type: ignore[attr-defined, arg-type]  # its types are older
        statuses = {name: each.status for name, each in listed.statuses.items()}
        assert statuses == {"": HealthCheckResponse.SERVING, SERVICE: HealthCheckResponse.SERVING}


async def is_given(watch: Callable[[], Any]) -> None:
    """Watch again until it is not refused: the server has noticed that an earlier watch has ended."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await watch().read()
                return


async def test_a_stranger_does_not_fill_the_memory_with_watches_of_health(feed: FeedServer, tmp_path: Path) -> None:
    """A connection has a few; those that end make room, and another connection has its own."""
    async with querying(feed.address, tmp_path / "view.db") as (running, client):
        of_its_own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(str(running.listen), options=of_its_own) as channel:
            stranger: Any = HealthStub(channel)
            watches = [stranger.Watch(HealthCheckRequest()) for _ in range(health.WATCHES_A_CONNECTION)]
            for watch in watches:
                await watch.read()
            error = await refused(stranger.Watch(HealthCheckRequest()).read())
            assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
            await client.becomes(HealthCheckResponse.SERVING)
            watches[0].cancel()
            await is_given(lambda: stranger.Watch(HealthCheckRequest()))


async def test_a_watcher_of_health_that_reads_nothing_delays_neither_health_nor_the_end(
    feed: FeedServer, tmp_path: Path
) -> None:
    """A stranger with a flow-control window of 0, which any client can send."""
    await feed.hold(0)
    async with process_of(feed.address, tmp_path / "view.db") as process:
        serving = await process.logged("serving")
        host, _, port = serving["listen"].rpartition(":")
        strangers = []
        for service in ("", SERVICE):
            reader, stranger = await asyncio.open_connection(host, int(port))
            strangers.append((stranger, asyncio.create_task(stay(reader, stranger))))
            request = HealthCheckRequest(service=service).SerializeToString()
            stranger.write(PREFACE + frame(SETTINGS, 0, 0, struct.pack(">HI", INITIAL_WINDOW_SIZE, 0)))
            stranger.write(frame(HEADERS, 4, 1, headers(f"{HEALTH}/Watch".encode())))
            stranger.write(frame(DATA, 1, 1, b"\0" + struct.pack(">I", len(request)) + request))
            await stranger.drain()
        async with client_of(serving["listen"]) as client, asyncio.timeout(PATIENCE_SECONDS):
            await client.health.Check(
                HealthCheckRequest(service=SERVICE)
            )  # its answer shows that the server has read the strangers' frames
            await asyncio.sleep(0.2)
            await feed.hold(None)
            await client.becomes(HealthCheckResponse.SERVING)
            process.send(signal.SIGTERM)
            assert await process.ended() == 0
        assert "calls were cut off by the end of the drain" not in [entry["event"] for entry in process.entries()]
        for stranger, staying in strangers:
            stranger.close()
            await staying


async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer pings and settings, so that the connection does not count as dead."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readexactly(9)
            body = await reader.readexactly(int.from_bytes(head[:3], "big"))
            if head[3] in (SETTINGS, PING) and not head[4] & 1:
                writer.write(frame(head[3], 1, 0, body if head[3] == PING else b""))


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + struct.pack(">BBI", kind, flags, stream) + body


def headers(path: bytes) -> bytes:
    """HPACK's literals without indexing."""
    fields = {b":method": b"POST", b":scheme": b"http", b":path": path, b":authority": b"stranger"}
    fields |= {b"content-type": b"application/grpc", b"te": b"trailers"}
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(text)]) + text for name, text in fields.items())


# ---------------------------------------------------------------- reflection
@contextlib.asynccontextmanager
async def reflecting(feed: FeedServer, folder: Path, version: str = "v1") -> AsyncIterator[Any]:
    """A query server, and a function that queries its reflection."""
    async with (
        querying(feed.address, folder / "view.db") as (running, _),
        grpc.aio.insecure_channel(str(running.listen)) as channel,
    ):
        ask: Any = channel.stream_stream(
            REFLECTION.format(version),
            request_serializer=ServerReflectionRequest.SerializeToString,
            response_deserializer=ServerReflectionResponse.FromString,
        )

        async def answer(**request: Any) -> ServerReflectionResponse:
            response: ServerReflectionResponse = await ask(iter([ServerReflectionRequest(**request)])).read()
            assert response.original_request == ServerReflectionRequest(**request)
            return response

        yield answer


def files(response: ServerReflectionResponse) -> list[FileDescriptorProto]:
    return [FileDescriptorProto.FromString(file) for file in response.file_descriptor_response.file_descriptor_proto]


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_method_is_found_by_its_name_and_comes_with_its_comment(
    feed: FeedServer, tmp_path: Path, version: str
) -> None:
    """The request of `grpcurl describe charging.v1.QueryService.WatchCharge`."""
    async with reflecting(feed, tmp_path, version) as ask:
        file, *imported = files(await ask(file_containing_symbol="charging.v1.QueryService.WatchCharge"))
    assert file.name == "charging/v1/query.proto"
    number = [method.name for method in file.service[0].method].index("WatchCharge")
    comments = [place.leading_comments for place in file.source_code_info.location if place.path == [6, 0, 2, number]]
    assert comments[0].startswith(" Sends the charge as it is now, and again after each change")
    pool = DescriptorPool()
    for each in reversed([file, *imported]):  # fails unless all imports are in the answer
        pool.Add(each)
    assert pool.FindMethodByName("charging.v1.QueryService.WatchCharge").output_type.name == "WatchChargeResponse"


@pytest.mark.parametrize(
    "symbol",
    [
        "charging.v1.QueryService",
        "charging.v1.Charge",
        "charging.v1.Charge.MetadataEntry",
        "charging.v1.Charge.amount",
        "charging.v1.GetChargeRequest.by",
        "charging.v1.ViewState",
        "charging.v1.VIEW_STATE_LIVE",
        "charging.v1.ViewState.VIEW_STATE_LIVE",
        "google.protobuf.Timestamp",
        "google.rpc.ErrorInfo",
        "grpc.health.v1.Health.Watch",
        "grpc.reflection.v1.ServerReflection.ServerReflectionInfo",
        "grpc.reflection.v1alpha.ServerReflection",
    ],
)
async def test_every_name_of_the_contract_is_found(feed: FeedServer, tmp_path: Path, symbol: str) -> None:
    """In the file that defines it, which is found by its own name, too."""
    async with reflecting(feed, tmp_path) as ask:
        found = files(await ask(file_containing_symbol=symbol))
        assert symbol.startswith(found[0].package)
        assert files(await ask(file_by_filename=found[0].name)) == found


async def test_every_service_that_is_listed_can_be_described(feed: FeedServer, tmp_path: Path) -> None:
    """Clients stop at the first service that they cannot describe."""
    async with reflecting(feed, tmp_path) as ask:
        listed = [each.name for each in (await ask(list_services="")).list_services_response.service]
        assert SERVICE in listed
        for name in listed:
            package, _, service = name.rpartition(".")
            file = files(await ask(file_containing_symbol=name))[0]
            assert (file.package, service in [each.name for each in file.service]) == (package, True)


@pytest.mark.parametrize(
    "request_",
    [
        {"file_containing_symbol": "charging.v1.Nothing"},
        {"file_containing_symbol": ""},
        {"file_by_filename": "nothing.proto"},
        {"file_containing_extension": ExtensionRequest(containing_type="charging.v1.Charge", extension_number=100)},
        {"all_extension_numbers_of_type": "charging.v1.Charge"},
    ],
)
async def test_reflection_answers_not_found_for_unknown_names(
    feed: FeedServer, tmp_path: Path, request_: dict[str, Any]
) -> None:
    """It is an answer with a fixed text, and the stream goes on."""
    async with reflecting(feed, tmp_path) as ask:
        error = (await ask(**request_)).error_response
    assert error.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert "Nothing" not in error.error_message


# ---------------------------------------------------------------- watches over one connection
async def test_a_connection_full_of_watches_refuses_more_and_has_room_for_other_calls(
    feed: FeedServer, tmp_path: Path
) -> None:
    """Another connection has a limit of its own, and a watch that ends makes room."""
    request = WatchChargeRequest(idempotency_key="order-0001", min_position=2)
    async with querying(feed.address, tmp_path / "view.db") as (running, client):
        watches = [client.queries.WatchCharge(request) for _ in range(WATCHES_A_CONNECTION)]
        for watch in watches:
            await watch.read()
        error = await refused(client.queries.WatchCharge(request).read())
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_WATCHES")
        assert (error.metadata, error.retry_after_seconds) == ({"advice": "ASK_STATUS"}, None)
        assert error.text == "too many watches over this connection: open another for more"
        await client.queries.GetViewStatus(GetViewStatusRequest(), timeout=PATIENCE_SECONDS)
        own = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(str(running.listen), options=own) as channel:
            another: Any = channel.unary_stream("/charging.v1.QueryService/WatchCharge")
            assert await another(request.SerializeToString()).read()
        watches[0].cancel()
        await is_given(lambda: client.queries.WatchCharge(request))


# ---------------------------------------------------------------- metrics
async def test_stalled_readers_of_metrics_block_no_other_reader_and_are_disconnected(
    feed: FeedServer, tmp_path: Path
) -> None:
    """Far more than are served at once, each with half a request or none; the server makes no thread for them."""
    listen = free_address()
    host, port = listen.split(":")
    async with (
        process_of(feed.address, tmp_path / "view.db", QUERY_METRICS_LISTEN=listen) as process,
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as http,
    ):
        await process.logged("the view has caught up")
        before = threads(process.pid)
        stalled = [await asyncio.open_connection(host, port) for _ in range(10 * metrics.READERS)]
        for number, (_, writer) in enumerate(stalled):
            writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n" if number % 2 else b"")
        answer = await http.get(f"http://{listen}/metrics")
        assert (answer.status_code, "chargeonce_view_position 2.0" in answer.text) == (200, True)
        assert threads(process.pid) < before + metrics.READERS  # gRPC's own come and go
        async with asyncio.timeout(PATIENCE_SECONDS):
            for reader, writer in stalled:
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()
        nonsense, writer = await asyncio.open_connection(host, port)
        writer.write(b"\xff\xff nonsense\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert await nonsense.read() == b""
        writer.close()
        process.send(signal.SIGTERM)
        assert await process.ended() == 0
        assert [entry["event"] for entry in process.entries()] == NOTHING_HAPPENED


async def test_readers_of_metrics_that_hang_up_at_once_fill_no_log(feed: FeedServer, tmp_path: Path) -> None:
    """Each resets its connection right behind its request: the server sees a request of nobody."""
    listen = free_address()
    host, port = listen.split(":")
    async with (
        process_of(feed.address, tmp_path / "view.db", QUERY_METRICS_LISTEN=listen) as process,
        httpx.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as http,
    ):
        await process.logged("the view has caught up")
        for _ in range(50):
            with contextlib.closing(socket.create_connection((host, int(port)))) as stranger:
                stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                stranger.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await http.get(f"http://{listen}/metrics")).status_code == 200
        process.send(signal.SIGTERM)
        assert await process.ended() == 0
        assert [entry["event"] for entry in process.entries()] == NOTHING_HAPPENED


def threads(process: int) -> int:
    return len(list(Path(f"/proc/{process}/task").iterdir()))
