"""Bodies of requests, read before the application sees them: none too large, and not too many at once."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prorank_jax.serving.limits import MIB, Limits
from prorank_jax.serving.meters import LEFT, STATUS, Meters
from prorank_jax.serving.refusals import Refused, refusal


class _Left(Exception):
    """The client is gone."""


class BodyLimit:
    """Reads each body whole and gives it to the application in one piece; refuses what is over the limits.

    A body counts as held until its request is answered.
    """

    def __init__(self, app: ASGIApp, limits: Limits, meters: Meters) -> None:
        self._app = app
        self._limits = limits
        self._meters = meters
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held = _Held(self)
        try:
            body = await self._read(scope, receive, held)
        except _Left:
            held.release()
            scope[STATUS] = LEFT
            return
        except Refused as error:
            held.release()
            # What the client still sends is read by uvicorn and thrown away.
            await refusal(error.status, str(error), error.headers)(scope, receive, send)
            return
        try:
            await self._app(scope, _replayed(body, receive), send)
        finally:
            held.release()

    async def _read(self, scope: Scope, receive: Receive, held: "_Held") -> bytes:
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        self._check(int(declared) if declared.isdigit() else 0)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Left
                    chunk = message.get("body", b"")
                    held.add(len(chunk))
                    self._check(held.bytes)
                    body += chunk
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            too_late = f"the body has not arrived within {self._limits.body_seconds:.0f} s; send it again"
            raise Refused(408, too_late, {"Connection": "close"}) from None

    def _check(self, size: int) -> None:
        most = self._limits.body_bytes
        if size > most:
            raise Refused(413, f"the body has more than {most / MIB:g} MiB; send fewer documents, or shorter ones")

    def hold(self, size: int) -> None:
        """Counts so many bytes more as held, or fewer.

        Raises:
          Refused: there is no room for them now.
        """
        if size > 0 and self._held + size > self._limits.held_bytes:
            raise Refused(429, "the server holds as many requests as it may; try again", {"Retry-After": "1"})
        self._held += size
        self._meters.held.set(self._held)


class _Held:
    """What one request holds."""

    def __init__(self, limit: BodyLimit) -> None:
        self.bytes = 0
        self._limit = limit

    def add(self, size: int) -> None:
        self._limit.hold(size)
        self.bytes += size

    def release(self) -> None:
        self._limit.hold(-self.bytes)
        self.bytes = 0


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body, then what comes after it: that the client left."""
    given = False

    async def receive_again() -> Message:
        nonlocal given, body
        if given:
            return await receive()
        given = True
        message = {"type": "http.request", "body": body, "more_body": False}
        body = b""
        return message

    return receive_again
