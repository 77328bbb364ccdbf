"""A transport that throws answers away: the bank has done its work, and nobody hears of it."""

import httpx

from command_service.bank.transport import target_of


class Throwing(httpx.AsyncBaseTransport):
    """Passes requests on and counts them. It throws one answer away when told so, and can hand it over later."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.calls = 0
        self._inner = inner
        self._throws_at = 0
        self._thrown: tuple[object, httpx.Response] | None = None
        self._hands_over = False

    @property
    def has_thrown(self) -> bool:
        """Whether the answer was thrown away since `throw`."""
        return self._thrown is not None

    def throw(self, nth: int) -> None:
        """Throw the answer to the nth request from now away; the next one is the first."""
        self._throws_at, self._thrown, self._hands_over = self.calls + nth, None, False

    def hand_over(self) -> None:
        """Give the thrown answer to the next request that equals the one it was to. That request is not sent."""
        self._hands_over = True

    @property
    def has_handed_over(self) -> bool:
        """Whether the thrown answer was given since `hand_over`."""
        return not self._hands_over

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; see the class. Raises httpx.ReadError for the answer that is thrown away."""
        self.calls += 1
        asked = request.method, target_of(request), request.content
        if self._hands_over and self._thrown is not None and self._thrown[0] == asked:
            self._hands_over = False
            return self._thrown[1]
        is_thrown = self.calls == self._throws_at
        response = await self._inner.handle_async_request(request)
        if not is_thrown:
            return response
        body = b"".join([part async for part in response.aiter_raw()])
        await response.aclose()
        kept = httpx.Response(response.status_code, headers=response.headers.raw, stream=httpx.ByteStream(body))
        self._thrown = asked, kept
        raise httpx.ReadError("the answer was thrown away")

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._inner.aclose()
