"""The HTTP interface: OpenAI's for answers, and a few paths of our own for tasks that come and go."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from colora.errors import ColoraError, ConfigError, TaskIdError
from colora.serving.access import Access, Tenant
from colora.serving.faults import FAILED, BodyLimit, add_handlers
from colora.serving.jobs import Job, Jobs
from colora.serving.schemas import ChatRequest, CompletionRequest, SamplingRequest
from colora.serving.service import Service, Stream

__all__ = ["make_app"]

EXAMPLES_BYTES = 16 * 2**20
STOPPING_SECONDS = 60.0


def make_app(service: Service, access: Access) -> FastAPI:
    """The application around a service. Its lifespan starts the model's thread, and lets all requests end."""
    jobs: list[Jobs] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.scheduler.start()
        jobs.append(Jobs(lambda: service.store, service.put, service.options.base))
        yield
        await asyncio.to_thread(jobs[0].close)
        await asyncio.to_thread(service.scheduler.close, STOPPING_SECONDS)

    app = FastAPI(title="CoLoRA", lifespan=lifespan, docs_url=None, redoc_url=None)
    # A prompt that fits has less than some 32 bytes a token; what is longer is not even read.
    app.add_middleware(BodyLimit, limits={"/v1/tasks/": EXAMPLES_BYTES}, limit=max(2**16, 32 * service.positions))
    add_handlers(app, service.metrics)

    def tenant(authorization: Annotated[str | None, Header()] = None) -> Tenant:
        one = access.tenant(authorization)
        access.count(one)
        return one

    def admin(one: Annotated[Tenant, Depends(tenant)]) -> Tenant:
        if not one.admin:
            raise TaskIdError("not found")  # as if it were absent
        return one

    Asking = Annotated[Tenant, Depends(tenant)]
    Admin = Annotated[Tenant, Depends(admin)]

    def known(one: Tenant, task: str) -> str:
        """The task, if this tenant may use it; what belongs to others is as if absent."""
        if not one.may(task) or task not in service.store:
            raise TaskIdError(f"the model {task!r} does not exist, or this key does not open it")
        return task

    def own(one: Tenant, task: str) -> str:
        """A name that this tenant may give."""
        if not one.may(task):
            raise TaskIdError(f"this key does not open names like {task!r}; it opens {', '.join(one.tasks)}")
        return task

    # ---- what is there ----------------------------------------------------------------------------------------------

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    def metrics(one: Admin) -> Response:
        return Response(service.measure(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    def models(one: Asking) -> dict[str, Any]:
        return {"object": "list", "data": [_model(name) for name in service.store if one.may(name)]}

    @app.get("/v1/models/{task:path}")
    def model(task: str, one: Asking) -> dict[str, Any]:
        return _model(known(one, task))

    # ---- answers ----------------------------------------------------------------------------------------------------

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request, one: Asking) -> Response:
        body.check_supported()
        known(one, body.model)
        said = [message for message in body.messages if message.role not in ("system", "developer")]
        instruction = "\n\n".join(message.text for message in body.messages if message.role in ("system", "developer"))
        prompt = await asyncio.to_thread(service.chat_prompt, instruction or None, [message.text for message in said])
        return await answer(body, [prompt], request, one, Chat(body.model))

    @app.post("/v1/completions")
    async def complete(body: CompletionRequest, request: Request, one: Asking) -> Response:
        body.check_supported()
        known(one, body.model)
        prompts = [await asyncio.to_thread(service.plain_prompt, prompt) for prompt in body.prompts]
        return await answer(body, prompts, request, one, Completion(body.model))

    async def answer(
        body: SamplingRequest, prompts: list[list[int]], request: Request, one: Tenant, form: "Form"
    ) -> Response:
        streams: list[Stream] = []
        options = service.options
        try:
            for prompt in prompts:
                for choice in range(body.n or 1):
                    sampling = body.sampling(options.max_tokens, options.temperature, choice)
                    streams.append(await service.open(one.name, body.model, prompt, sampling))
        except BaseException:
            _close(streams)
            raise
        usage = {"prompt_tokens": sum(len(prompt) for prompt in prompts), "completion_tokens": 0}
        if body.stream:
            wanted = body.stream_options is not None and body.stream_options.include_usage
            events = _events(streams, form, usage, wanted)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        gathering: asyncio.Future[Any] = asyncio.gather(*(_gathered(stream) for stream in streams))
        gone: asyncio.Future[Any] = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait({gathering, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not gathering.done():
                return Response(status_code=499)  # nobody is there to read it
            choices = gathering.result()
        finally:
            gone.cancel()
            gathering.cancel()
            _close(streams)
        usage["completion_tokens"] = sum(len(stream.tokens) for stream in streams)
        return JSONResponse(form.whole(choices, _total(usage)))

    # ---- tasks that come and go -------------------------------------------------------------------------------------

    @app.put("/v1/tasks/{task:path}/core")
    async def put_core(task: str, request: Request, one: Asking) -> Response:
        own(one, task)
        new = await asyncio.to_thread(service.put, task, await request.body())
        return JSONResponse(_model(task), status_code=201 if new else 200)

    @app.get("/v1/tasks/{task:path}/core")
    def get_core(task: str, one: Asking) -> Response:
        return Response(service.core_file(known(one, task)), media_type="application/octet-stream")

    @app.post("/v1/tasks/{task:path}/examples", status_code=202)
    async def onboard(task: str, request: Request, one: Asking) -> dict[str, str]:
        own(one, task)
        if task in service.store:
            raise ConfigError(f"{task!r} is there already; remove it first")
        return _job(jobs[0].submit(one.name, task, await request.body()))

    @app.get("/v1/jobs/{job}")
    def job(job: str, one: Asking) -> dict[str, str]:
        found = jobs[0].known.get(job)
        if found is None or found.tenant != one.name:
            raise TaskIdError(f"no job {job!r}")
        return _job(found)

    @app.delete("/v1/models/{task:path}")
    def delete(task: str, one: Asking) -> dict[str, Any]:
        service.remove(known(one, task))
        return {"id": task, "object": "model", "deleted": True}

    @app.post("/v1/reload")
    def reload(one: Admin) -> dict[str, Any]:
        service.reload()
        return {"tasks": len(service.store), "stale": service.store.stale}

    return app


class Form:
    """How the answers of one path look; `task` is the model that was asked for."""

    prefix = object_ = chunk = ""

    def __init__(self, task: str) -> None:
        self.head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": task}

    def whole(self, choices: list[tuple[str, str]], usage: dict[str, int]) -> dict[str, Any]:
        """The answer in one piece; `choices` are texts and why they ended."""
        found = [{"index": place, "logprobs": None, "finish_reason": why, **self.said(text)}
                 for place, (text, why) in enumerate(choices)]  # fmt: skip
        return {**self.head, "object": self.object_, "choices": found, "usage": usage}

    def part(self, place: int, text: str, why: str | None, first: bool) -> dict[str, Any]:
        """One event of a stream."""
        choice = {"index": place, "logprobs": None, "finish_reason": why, **self.saying(text, first)}
        return {**self.head, "object": self.chunk, "choices": [choice]}

    def said(self, text: str) -> dict[str, Any]:
        """A whole text."""
        raise NotImplementedError

    def saying(self, text: str, first: bool) -> dict[str, Any]:
        """A piece of one."""
        raise NotImplementedError


class Chat(Form):
    """`/v1/chat/completions`."""

    prefix, object_, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def said(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def saying(self, text: str, first: bool) -> dict[str, Any]:
        return {"delta": ({"role": "assistant"} if first else {}) | ({"content": text} if text or first else {})}


class Completion(Form):
    """`/v1/completions`."""

    prefix, object_, chunk = "cmpl", "text_completion", "text_completion"

    def said(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def saying(self, text: str, first: bool) -> dict[str, Any]:
        return {"text": text}


async def _gathered(stream: Stream) -> tuple[str, str]:
    """A whole output and why it ended."""
    text = "".join([piece.text async for piece in stream])
    return text, stream.finish


async def _gone(request: Request) -> None:
    """Returns when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(streams: list[Stream], form: Form, usage: dict[str, int], with_usage: bool) -> AsyncIterator[str]:
    """Server-sent events of all choices as their pieces come."""
    merged: asyncio.Queue[tuple[int, Any]] = asyncio.Queue()

    async def forward(place: int, stream: Stream) -> None:
        try:
            async for piece in stream:
                merged.put_nowait((place, piece))
        except Exception as error:
            merged.put_nowait((place, error))

    forwards = [asyncio.create_task(forward(place, stream)) for place, stream in enumerate(streams)]
    left, begun = len(streams), set[int]()
    try:
        while left:
            place, piece = await merged.get()
            if isinstance(piece, Exception):
                text = str(piece) if isinstance(piece, ColoraError) else FAILED
                yield _event({"error": {"message": text, "type": "server_error", "param": None, "code": None}})
                return
            why = piece.finish
            left -= why is not None
            if piece.text or place not in begun:
                yield _event(form.part(place, piece.text, None, place not in begun))
                begun.add(place)
            if why is not None:
                yield _event(form.part(place, "", why, False))
        if with_usage:
            usage["completion_tokens"] = sum(len(stream.tokens) for stream in streams)
            yield _event({**form.head, "object": form.chunk, "choices": [], "usage": _total(usage)})
        yield "data: [DONE]\n\n"
    finally:
        for one in forwards:
            one.cancel()
        _close(streams)


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _close(streams: list[Stream]) -> None:
    for stream in streams:
        stream.close()


def _total(usage: dict[str, int]) -> dict[str, int]:
    return usage | {"total_tokens": usage["prompt_tokens"] + usage["completion_tokens"]}


def _model(task: str) -> dict[str, Any]:
    return {"id": task, "object": "model", "created": 0, "owned_by": "colora"}


def _job(job: Job) -> dict[str, str]:
    return {"job": job.id, "task": job.task, "state": job.state, "message": job.message}
