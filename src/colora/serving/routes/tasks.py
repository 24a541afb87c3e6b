"""Endpoints for tasks: the list, in OpenAI's form, and paths of this server to add, replace, read and remove tasks."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from colora.errors import ConfigError, TaskIdError
from colora.serving.bodies import check_lines
from colora.serving.responses import job_object, model_object
from colora.serving.routes.dependencies import JobsDep, NewTaskDep, ServiceDep, TaskDep, TenantDep

__all__ = ["router"]

router = APIRouter()


@router.get("/v1/models")
def models(tenant: TenantDep, service: ServiceDep) -> dict[str, Any]:
    return {"object": "list", "data": [model_object(name) for name in service.store if tenant.may(name)]}


@router.get("/v1/models/{task:path}")
def model(task: TaskDep) -> dict[str, Any]:
    return model_object(task)


@router.delete("/v1/models/{task:path}")
def delete(task: TaskDep, service: ServiceDep) -> dict[str, Any]:
    service.remove(task)
    return {"id": task, "object": "model", "deleted": True}


@router.put("/v1/tasks/{task:path}/core")
async def put_core(task: NewTaskDep, request: Request, service: ServiceDep) -> Response:
    is_new = await asyncio.to_thread(service.put, task, await request.body())
    return JSONResponse(model_object(task), status_code=201 if is_new else 200)


@router.get("/v1/tasks/{task:path}/core")
def get_core(task: TaskDep, service: ServiceDep) -> Response:
    return Response(service.core_file(task), media_type="application/octet-stream")


@router.post("/v1/tasks/{task:path}/examples", status_code=202)
async def onboard(
    task: NewTaskDep, request: Request, tenant: TenantDep, service: ServiceDep, jobs: JobsDep
) -> dict[str, str]:
    if task in service.store:
        raise ConfigError(f"{task!r} is there already; remove it first")
    examples = await request.body()
    await asyncio.to_thread(check_lines, examples)
    return job_object(jobs.submit(tenant.name, task, examples))


@router.get("/v1/jobs/{job}")
def job(job: str, tenant: TenantDep, jobs: JobsDep) -> dict[str, str]:
    onboarding = jobs.get(job, tenant.name)
    if onboarding is None:
        raise TaskIdError(f"no job {job!r}")
    return job_object(onboarding)
