"""OpenAI's endpoints for text: POST /v1/chat/completions and /v1/completions."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from colora.errors import ColoraError
from colora.models.decoding.batch import Piece
from colora.serving.access import Tenant
from colora.serving.bodies import json_body
from colora.serving.faults import CLIENT_CLOSED_REQUEST, FAILED
from colora.serving.responses import (
    ChatFormat,
    CompletionFormat,
    Output,
    ResponseFormat,
    server_sent_event,
    usage_object,
)
from colora.serving.routes.dependencies import ServiceDep, TenantDep, check_model, no_query
from colora.serving.schemas import ChatRequest, CompletionRequest, SamplingRequest
from colora.serving.service import Service, Stream

__all__ = ["router"]

router = APIRouter(dependencies=[Depends(no_query)])


# The key is checked before the body is read.
@router.post("/v1/chat/completions")
async def chat(
    tenant: TenantDep,
    body: Annotated[ChatRequest, Depends(json_body(ChatRequest))],
    request: Request,
    service: ServiceDep,
) -> Response:
    body.check_fields()
    check_model(service, tenant, body.model)
    service.scheduler.check_room(tenant.name, body.n or 1)
    prompt = await asyncio.to_thread(service.chat_prompt, body.model, body.instruction, body.turns)
    streams = await _open_streams(service, tenant, body, [prompt])
    return await _answer(body, request, streams, len(prompt), ChatFormat(body.model, service.token_bytes))


@router.post("/v1/completions")
async def complete(
    tenant: TenantDep,
    body: Annotated[CompletionRequest, Depends(json_body(CompletionRequest))],
    request: Request,
    service: ServiceDep,
) -> Response:
    body.check_fields()
    check_model(service, tenant, body.model)
    service.scheduler.check_room(tenant.name, len(body.prompts) * (body.n or 1))
    prompts = [await asyncio.to_thread(service.plain_prompt, prompt) for prompt in body.prompts]
    streams = await _open_streams(service, tenant, body, prompts)
    prompt_tokens = sum(len(prompt) for prompt in prompts)
    return await _answer(body, request, streams, prompt_tokens, CompletionFormat(body.model, service.token_bytes))


async def _open_streams(
    service: Service, tenant: Tenant, body: SamplingRequest, prompts: Sequence[list[int]]
) -> list[Stream]:
    """A stream for each choice of each prompt; none stays in the queue if one is refused."""
    streams: list[Stream] = []
    options = service.options
    try:
        for prompt in prompts:
            for choice in range(body.n or 1):
                sampling = body.sampling(options.max_tokens, options.temperature, choice)
                streams.append(await service.open(tenant, body.model, prompt, sampling))
    except BaseException:
        _close(streams)
        raise
    return streams


async def _answer(
    body: SamplingRequest, request: Request, streams: list[Stream], prompt_tokens: int, form: ResponseFormat
) -> Response:
    """The outputs of all streams, piece by piece or in one response, as the request asks for."""
    if body.stream:
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(streams, form, prompt_tokens if with_usage else None)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    outputs = await _outputs(streams, request)
    if outputs is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    return JSONResponse(form.response(outputs, usage_object(prompt_tokens, _generated(streams))))


async def _outputs(streams: list[Stream], request: Request) -> list[Output] | None:
    """All whole outputs and why they ended; None if the client hangs up before. Closes the streams."""
    gathering: asyncio.Future[Any] = asyncio.gather(*(_output(stream) for stream in streams))
    # Looked at whatever becomes of it: asyncio logs errors that nobody has looked at, one for each that hangs up.
    gathering.add_done_callback(lambda future: future.cancelled() or future.exception())
    disconnected: asyncio.Future[Any] = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({gathering, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        return gathering.result() if gathering.done() else None
    finally:
        disconnected.cancel()
        gathering.cancel()
        _close(streams)


async def _output(stream: Stream) -> Output:
    """A whole output."""
    pieces = [piece async for piece in stream]
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None] if stream.with_logprobs else None
    return Output("".join(piece.text for piece in pieces), stream.finish, logprobs)


async def _disconnected(request: Request) -> None:
    """Returns when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(streams: list[Stream], form: ResponseFormat, prompt_tokens: int | None) -> AsyncIterator[str]:
    """Server-sent events of all choices as their pieces come, then the usage unless `prompt_tokens` is None."""
    merged: asyncio.Queue[tuple[int, Piece | Exception]] = asyncio.Queue()
    forwards = [asyncio.create_task(_forward(index, stream, merged)) for index, stream in enumerate(streams)]
    unfinished, begun = len(streams), set[int]()
    try:
        while unfinished:
            index, piece = await merged.get()
            if isinstance(piece, Exception):
                yield _error_event(piece)
                return
            if piece.text or piece.logprobs is not None or index not in begun:
                yield server_sent_event(form.chunk(index, piece.text, None, index not in begun, piece.logprobs))
                begun.add(index)
            if piece.finish is not None:
                unfinished -= 1
                yield server_sent_event(form.chunk(index, "", piece.finish, False))
        if prompt_tokens is not None:
            yield server_sent_event(form.usage_chunk(usage_object(prompt_tokens, _generated(streams))))
        yield "data: [DONE]\n\n"
    finally:
        for forward in forwards:
            forward.cancel()
        _close(streams)


async def _forward(index: int, stream: Stream, merged: asyncio.Queue[tuple[int, Piece | Exception]]) -> None:
    try:
        async for piece in stream:
            merged.put_nowait((index, piece))
    except Exception as error:
        merged.put_nowait((index, error))


def _error_event(error: Exception) -> str:
    message = str(error) if isinstance(error, ColoraError) else FAILED
    return server_sent_event({"error": {"message": message, "type": "server_error", "param": None, "code": None}})


def _generated(streams: list[Stream]) -> int:
    """Tokens of all outputs so far."""
    return sum(len(stream.tokens) for stream in streams)


def _close(streams: list[Stream]) -> None:
    for stream in streams:
        stream.close()
