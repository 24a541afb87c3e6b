"""Requests while they come: bodies that are too large, too slow or packed are refused, and pages of browsers let in."""

import asyncio
import time
from collections.abc import Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from colora.serving.faults import error_response

__all__ = ["BodyLimit", "OpenToPages"]

BODY_SECONDS = 20.0
SLOWEST = 16 * 1024  # bytes a second, once those seconds are over


class BodyLimit:
    """ASGI middleware: a body that is longer than its limit is answered with 413 and not read to its end, one that
    comes too slowly with 408, one that is compressed with 415.

    Args:
        app: the application.
        limit: returns the limit in bytes of a path.
        seconds: that a body may take, and a second more for each 16 kB that came.
    """

    def __init__(self, app: ASGIApp, limit: Callable[[str], int], seconds: float = BODY_SECONDS) -> None:
        self.app, self.limit, self.seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit, headers = self.limit(scope["path"]), dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            refusal = 415, "expected a body as it is, found one with a Content-Encoding"
        elif not (length := headers.get(b"content-length", b"0")).isdigit() or int(length[:20]) > limit:
            refusal = 413, f"expected a body of at most {limit} bytes"
        else:
            await self.app(scope, _Received(receive, limit, self.seconds), send)
            return
        response = error_response(*refusal, "invalid_request_error", None, None)
        await response(scope, receive, send)


class OpenToPages(CORSMiddleware):
    """ASGI middleware: pages of these origins may ask, and read what they get, refusals too.

    Args:
        app: the application.
        origins: such as "https://app.example.org"; "*" for all.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Retry-After"],
        )


class _Received:
    """What the application receives of one request."""

    def __init__(self, receive: Receive, limit: int, seconds: float) -> None:
        self.receive, self.limit, self.seconds = receive, limit, seconds
        self.bytes, self.began, self.ended = 0, time.monotonic(), False

    async def __call__(self) -> Message:
        if self.ended:  # what comes now is that the client hung up, and that may take its time
            return await self.receive()
        left = self.began + self.seconds + self.bytes / SLOWEST - time.monotonic()
        try:
            message = await asyncio.wait_for(self.receive(), max(0.0, left))
        except TimeoutError:
            raise HTTPException(408, f"the body came too slowly: {self.bytes} bytes") from None
        self.bytes += len(message.get("body", b""))
        self.ended = not message.get("more_body", False)
        if self.bytes > self.limit:  # possible where the body was sent without its length
            raise HTTPException(413, f"expected a body of at most {self.limit} bytes")
        return message
