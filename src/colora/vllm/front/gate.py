"""ASGI middleware of vLLM's server: who may ask what, and what is answered here in place of vLLM.

    --middleware colora.vllm.front.gate.BankGate

Paths for tasks are those of `colora.serving`. To the paths of vLLM that take a task, tenants come with the tasks that
are theirs; to all others only who runs the server, and to some nobody (`CLOSED`).
"""

import asyncio
import json
import logging
from contextlib import AsyncExitStack
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from colora.errors import ColoraError, TaskIdError
from colora.serving.access import Tenant
from colora.serving.bodies import BodyError, parse_body
from colora.serving.faults import own_error_response
from colora.serving.fields import UnsupportedError
from colora.serving.page import wants_page
from colora.serving.receiving import BodyLimit, OpenToPages
from colora.serving.routes.dependencies import tenant_of
from colora.vllm.front.chat import StrippedEvents, stripped_answer
from colora.vllm.front.server import BankServer, bank_server
from colora.vllm.front.warming import warm_up

__all__ = ["BankGate"]

logger = logging.getLogger(__name__)
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
OPEN = ("/health", "/ping")
OWN = ("/v1/models", "/v1/tasks/", "/v1/jobs/", "/v1/reload")
# They load adapters of another kind, or make prompts that are not those of training.
CLOSED = (
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/v1/responses",
    "/v1/messages",
    "/v1/chat/completions/",
    "/invocations",
    "/inference",
)


class BankGate:
    """The middleware.

    Args:
        app: vLLM's application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._server: BankServer | None = None
        self._starting = asyncio.Lock()
        self._opened: ASGIApp = self._answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, self._until_the_end(receive), self._when_started(scope["app"], send))
            return
        if scope["type"] != "http":  # vLLM has a socket for speech, which takes no task
            await WebSocket(scope, receive, send).close(1008)
            return
        if scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        async with self._starting:
            if self._server is None:
                self._server = await asyncio.to_thread(bank_server, scope["app"])
                self._opened = BodyLimit(self._answer, self._server.limit)
                if origins := self._server.own.state.origins:
                    self._opened = OpenToPages(self._opened, origins)
        await self._opened(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        server, request = self._server, Request(scope, receive)
        assert server is not None
        path = scope["path"]
        if path.startswith(OWN) or (path == "/" and server.page and wants_page(request.headers.get("accept"))):
            await server.own(scope, receive, send)
            return
        async with AsyncExitStack() as held:
            try:
                tenant = await asyncio.to_thread(tenant_of, request, server.own)
                if path.startswith(CLOSED) or not (tenant.admin or path in (CHAT, COMPLETIONS)):
                    raise TaskIdError("not found")  # as if the path were absent
                if path in (CHAT, COMPLETIONS) and scope["method"] == "POST":
                    body = await self._body(server, request, tenant, path == CHAT)
                    await held.enter_async_context(server.rows(tenant, body))
                    content = json.dumps(body, ensure_ascii=False).encode()
                    scope, receive = _with_body(scope, content), _replayed(content, receive)
                    send = _stripping(send) if path == CHAT else send
            except ClientDisconnect:
                return
            except Exception as error:
                if not isinstance(error, ColoraError | UnsupportedError | RequestValidationError | HTTPException):
                    logger.exception("a request failed")
                await own_error_response(error)(scope, receive, send)
                return
            await self.app(scope, receive, send)

    def _when_started(self, app: FastAPI, send: Send) -> Send:
        """Sends the events of the application's life; before it says that it has started, vLLM has answered once."""

        async def sending(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                await warm_up(app.state.engine_client)
            await send(message)

        return sending

    def _until_the_end(self, receive: Receive) -> Receive:
        """Receives the events of the application's life; the last one ends the onboardings too."""

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown" and self._server is not None:
                await asyncio.to_thread(self._server.close)
            return message

        return receiving

    async def _body(self, server: BankServer, request: Request, tenant: Tenant, is_chat: bool) -> dict[str, Any]:
        """The body of a request for an answer, as vLLM gets it."""
        body = parse_body(await request.body())
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            raise BodyError("model", "expected the name of a task")
        return await server.prepared(body, tenant, is_chat)


def _with_body(scope: Scope, content: bytes) -> Scope:
    """The scope of the same request with another body."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(len(content)).encode())]}


def _replayed(content: bytes, receive: Receive) -> Receive:
    """Receives a body that is there already; after it, what comes."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": content, "more_body": False}

    return replay


def _stripping(send: Send) -> Send:
    """Sends a chat's answers without white space at their ends, whole or piece by piece."""
    start: Message | None = None
    events: StrippedEvents | None = None
    whole = bytearray()

    async def sending(message: Message) -> None:
        nonlocal start, events
        if message["type"] == "http.response.start":
            start = message
            kind = dict(message["headers"]).get(b"content-type", b"")
            if kind.startswith(b"text/event-stream"):
                events = StrippedEvents()
                await send(message)
            return
        if message["type"] != "http.response.body" or start is None:
            await send(message)
            return
        content, more = message.get("body", b""), message.get("more_body", False)
        if events is not None:
            await send({**message, "body": events.feed(content) + (b"" if more else events.end())})
            return
        whole.extend(content)
        if not more:
            body = stripped_answer(bytes(whole))
            headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
            await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
            await send({"type": "http.response.body", "body": body, "more_body": False})

    return sending
