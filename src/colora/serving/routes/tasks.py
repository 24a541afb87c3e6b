"""Endpoints for one task: in OpenAI's form, and paths of this server to add, replace, read and remove it."""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response

from colora.adapter.tasklist import check_task_name
from colora.errors import ConfigError
from colora.serving.bodies import check_lines
from colora.serving.examples import check_readable
from colora.serving.jobs import MOST_EXAMPLES, UnknownJobError
from colora.serving.responses import job_object, model_object
from colora.serving.routes.dependencies import (
    JobsDep,
    ModelDep,
    NewTaskDep,
    ServiceDep,
    TaskDep,
    TenantDep,
    UploadsDep,
    no_query,
)

__all__ = ["router"]

router = APIRouter(dependencies=[Depends(no_query)])


@router.get("/v1/models/{task:path}")
def model(task: ModelDep, service: ServiceDep) -> dict[str, Any]:
    """A task or the base, with the template of its prompts; null: the chat template, or the plain text."""
    return model_object(task) | {"prompt": service.store.prompt_of(task)}


@router.delete("/v1/models/{task:path}")
def delete(task: TaskDep, service: ServiceDep) -> dict[str, Any]:
    service.remove(task)
    return {"id": task, "object": "model", "deleted": True}


@router.put("/v1/tasks/{task:path}/core")
async def put_core(
    task: NewTaskDep, request: Request, tenant: TenantDep, service: ServiceDep, uploads: UploadsDep
) -> Response:
    with uploads.one(tenant.name):
        is_new = await asyncio.to_thread(service.put, task, await request.body(), tenant)
    return JSONResponse(model_object(task), status_code=201 if is_new else 200)


@router.get("/v1/tasks/{task:path}/core")
def get_core(task: TaskDep, service: ServiceDep) -> Response:
    return Response(service.core_file(task), media_type="application/octet-stream")


@router.post("/v1/tasks/{task:path}/examples", status_code=202)
async def onboard(
    task: NewTaskDep, request: Request, tenant: TenantDep, service: ServiceDep, jobs: JobsDep, uploads: UploadsDep
) -> dict[str, Any]:
    if fault := check_task_name(task):
        raise ConfigError(fault)
    if task in service.store:
        raise ConfigError(f"{task!r} is there already; remove it first")
    with uploads.one(tenant.name):
        examples = await request.body()
        await asyncio.to_thread(check_examples, task, examples)
    return job_object(jobs.submit(tenant, task, examples))


def check_examples(task: str, content: bytes) -> None:
    """Refuse what need not be tried. Raises BodyError, ExamplesError, HTTPException."""
    if (lines := content.count(b"\n")) > MOST_EXAMPLES:
        raise HTTPException(413, f"expected at most {MOST_EXAMPLES} examples, one a line, found {lines} lines")
    check_lines(content)
    check_readable(task, content)


@router.get("/v1/jobs/{job}")
def job(job: str, tenant: TenantDep, jobs: JobsDep) -> dict[str, Any]:
    onboarding = jobs.get(job, tenant.name)
    if onboarding is None:
        raise UnknownJobError(f"no job {job!r}: jobs are forgotten when the server ends")
    return job_object(onboarding)
