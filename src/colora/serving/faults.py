"""Errors as HTTP responses in OpenAI's form."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from colora.errors import BankFileError, BaseMismatchError, CheckpointError, ColoraError, ConfigError, TaskIdError
from colora.serving.access import RateError, WrongKeyError
from colora.serving.bodies import BodyError
from colora.serving.examples import ExamplesError
from colora.serving.fields import UnsupportedError
from colora.serving.jobs import UnknownJobError
from colora.serving.metrics import Metrics
from colora.serving.quotas import QuotaError, WaitError
from colora.serving.routes.dependencies import ForeignPageError
from colora.serving.scheduler import BusyError, ClosedError
from colora.serving.service import PromptTooLongError

__all__ = ["CLIENT_CLOSED_REQUEST", "FAILED", "add_handlers", "error_response", "own_error_response"]

CLIENT_CLOSED_REQUEST = 499
"""nginx's status; the client that hung up does not read it."""
FAILED = "the server failed at this request"
"""The message for an error that was not raised on purpose: its own may reveal internals, or requests of others."""

# The HTTP status, OpenAI type and OpenAI code of each error of this package; the first class that fits counts.
RESPONSES: list[tuple[type[Exception], int, str, str | None]] = [
    (WrongKeyError, 401, "authentication_error", "invalid_api_key"),
    (ForeignPageError, 403, "permission_error", "origin_not_allowed"),
    (RateError, 429, "rate_limit_error", "rate_limit_exceeded"),
    (WaitError, 429, "rate_limit_error", "too_many_at_once"),
    (QuotaError, 507, "insufficient_quota", "quota_exceeded"),
    (BusyError, 429, "rate_limit_error", "queue_full"),
    (ClosedError, 503, "server_error", "shutting_down"),
    (TaskIdError, 404, "invalid_request_error", "model_not_found"),
    (UnknownJobError, 404, "invalid_request_error", "job_not_found"),
    (PromptTooLongError, 400, "invalid_request_error", "context_length_exceeded"),
    (UnsupportedError, 400, "invalid_request_error", "unsupported_parameter"),
    (BodyError, 400, "invalid_request_error", "invalid_body"),
    (ExamplesError, 400, "invalid_request_error", "invalid_body"),
    (BaseMismatchError, 400, "invalid_request_error", "wrong_base"),
    (BankFileError, 400, "invalid_request_error", "bad_core"),
    (CheckpointError, 507, "server_error", "not_written"),
    (ConfigError, 400, "invalid_request_error", None),
    (ColoraError, 500, "server_error", None),
]


def add_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Answer errors in OpenAI's form, and count all responses."""

    async def own_error(request: Request, error: Exception) -> JSONResponse:
        return own_error_response(error)

    async def hung_up(request: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)  # nobody reads it, and it is no error to be logged

    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        return error_response(500, FAILED, "server_error", None, None)

    for type_, *_ in RESPONSES:
        app.add_exception_handler(type_, own_error)
    app.add_exception_handler(RequestValidationError, own_error)
    app.add_exception_handler(HTTPException, own_error)
    app.add_exception_handler(ClientDisconnect, hung_up)
    app.add_exception_handler(Exception, unexpected)

    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Any]]) -> Any:
        response = await call_next(request)
        route = request.scope.get("route")
        metrics.requests.labels(getattr(route, "path", "other"), response.status_code).inc()
        return response


def own_error_response(error: Exception) -> JSONResponse:
    """The response to one of `RESPONSES`, an invalid body or a status; to any other error that the server failed."""
    if isinstance(error, HTTPException):
        headers = error.headers or {}
        return error_response(error.status_code, str(error.detail), "invalid_request_error", None, None, headers)
    if isinstance(error, RequestValidationError):
        # Without `input`: what was sent may be private, and responses end up in logs of others.
        faults = [(".".join(str(part) for part in fault["loc"][1:]), fault["msg"]) for fault in error.errors()]
        text = "; ".join(f"{field}: {message}" if field else message for field, message in faults)
        return error_response(422, text, "invalid_request_error", faults[0][0] or None, "invalid_body")
    for type_, status, kind, code in RESPONSES:
        if isinstance(error, type_):
            headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
            if status in (429, 503):
                headers["Retry-After"] = str(max(1, round(getattr(error, "seconds", 1))))
            return error_response(status, str(error), kind, getattr(error, "field", None), code, headers)
    return error_response(500, FAILED, "server_error", None, None)


def error_response(
    status: int, message: str, kind: str, param: str | None, code: str | None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    error = {"message": message, "type": kind, "param": param, "code": code}
    return JSONResponse({"error": error}, status_code=status, headers=dict(headers or {}))
