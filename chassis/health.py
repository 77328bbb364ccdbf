"""grpc.health.v1: the status of a server's services, for load balancers.

grpc's own servicer writes to its watchers under a lock that a change of status needs: one watcher that takes no message,
a stranger with a flow-control window of 0, holds up every later change and the end of the server (measured).
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

# A client watches one or two services on a connection. Whoever reaches the port may, and each watch takes 25 KB (measured).
WATCHES_A_CONNECTION = 16


class Health(health_pb2_grpc.HealthServicer):
    """The status of each service, and of the whole server under the name ""; at first none is serving."""

    def __init__(self, services: Iterable[str]) -> None:
        self._status: dict[str, int] = dict.fromkeys(("", *services), HealthCheckResponse.NOT_SERVING)
        self._changed = asyncio.Event()
        self._is_final = False
        self._watches: Counter[str] = Counter()

    def set(self, status: int, *, is_final: bool = False) -> None:
        """Set the status of all services; a final one never changes again."""
        if self._is_final:
            return
        self._is_final = is_final
        self._status = dict.fromkeys(self._status, status)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: HealthCheckRequest, context: Any) -> HealthCheckResponse:  # noqa: N802  # the contract's
        """Return the status of a service."""
        if request.service not in self._status:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return HealthCheckResponse(status=self._status[request.service])

    async def List(self, _: Any, __: Any) -> Any:  # noqa: N802  # the contract's
        """Return the status of every service."""
        statuses = {name: HealthCheckResponse(status=status) for name, status in self._status.items()}
        return health_pb2.HealthListResponse(statuses=statuses)  # type: ignore[attr-defined]  # its types are older

    async def Watch(  # noqa: N802  # the contract's
        self, request: HealthCheckRequest, context: Any
    ) -> AsyncIterator[HealthCheckResponse]:
        """Yield the status of a service, and each change of it; SERVICE_UNKNOWN for a service that does not exist."""
        sent, connection = None, context.peer()
        if self._watches[connection] >= WATCHES_A_CONNECTION:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches of health on one connection")
        self._watches[connection] += 1
        try:
            while True:
                status = self._status.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)
                changed = self._changed
                if status != sent:
                    sent = status
                    yield HealthCheckResponse(status=status)
                await changed.wait()
        finally:
            self._watches[connection] -= 1
            if not self._watches[connection]:
                del self._watches[connection]
