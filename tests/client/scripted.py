"""A server that answers by script, for errors that no real one gives at a wish."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

Error = tuple[StatusCode, str, str, str]
"""A code, and the domain, reason and advice in its ErrorInfo; without a domain there is none."""

_METHODS = {
    "CommandService": ("Charge",),
    "QueryService": ("GetCharge",),
    "OperatorService": ("HoldBack", "AskBank", "ApproveResolution"),
}


@asynccontextmanager
async def a_server_of(*lines: Error | Message, **metadata: str) -> AsyncIterator[str]:
    """Start a server that answers each call with the next line; yield its address. Each error has the metadata besides."""
    script = iter(lines)

    async def answer(_: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        line = next(script)
        if not isinstance(line, Message):
            code, domain, reason, advice = line
            info = Packed()
            info.Pack(
                error_details_pb2.ErrorInfo(domain=domain, reason=reason, metadata={**metadata, "advice": advice})
            )
            details = status_pb2.Status(code=code.value[0], details=[info]).SerializeToString()
            await context.abort(code, "a text", (("grpc-status-details-bin", details),) if domain else ())
        return line.SerializeToString()

    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.aio.server()
    for service, methods in _METHODS.items():
        handlers = dict.fromkeys(methods, handler)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(f"charging.v1.{service}", handlers)])
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield address
    await server.stop(None)
