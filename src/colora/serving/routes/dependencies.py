"""What endpoints take as parameters: the parts of the server, who asks, and the task a path names.

`make_app` and its lifespan put the service, the access and the jobs into `app.state`.
"""

from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated

from fastapi import Depends, FastAPI, Path, Request

from colora.errors import ColoraError, TaskIdError
from colora.serving.access import Access, Tenant
from colora.serving.fields import UnsupportedError
from colora.serving.jobs import Jobs
from colora.serving.loopback import asks_this_machine
from colora.serving.quotas import Uploads
from colora.serving.service import Service

__all__ = [
    "AdminDep",
    "ForeignPageError",
    "JobsDep",
    "ModelDep",
    "NewTaskDep",
    "ServiceDep",
    "TaskDep",
    "TenantDep",
    "UploadsDep",
    "check_model",
    "check_task",
    "no_query",
    "only_query",
    "tenant_of",
]


# Coroutines, so that reading an attribute takes no thread of the pool.
async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


async def _jobs(request: Request) -> Jobs:
    jobs: Jobs = request.app.state.jobs
    return jobs


async def _uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads


UploadsDep = Annotated[Uploads, Depends(_uploads)]
ServiceDep = Annotated[Service, Depends(_service)]
JobsDep = Annotated[Jobs, Depends(_jobs)]


class ForeignPageError(ColoraError):
    """A page of another site asks, in the browser of somebody who may."""


def tenant_of(request: Request, app: FastAPI) -> Tenant:
    """Who asks; the request is counted.

    Args:
        request: with its key, and its origin if a page of a browser asks.
        app: with `access` and `origins` in its state.

    Raises:
        WrongKeyError, RateError: see `Access`.
        ForeignPageError: a page of another site asks a server without keys, or asks by another machine's name.
    """
    access: Access = app.state.access
    if access.tenants is None:  # where there are keys, no page has one by chance
        _check_page(request, app.state.origins)
    tenant = access.tenant(request.headers.get("authorization"))
    access.count(tenant)
    return tenant


def _check_page(request: Request, origins: Sequence[str]) -> None:
    """Refuse pages of other sites: those that say so, and those whose site's name was made to lead here.

    The second kind, DNS rebinding, looks to the browser like a page of this server. The name in Host tells it.

    Raises:
        ForeignPageError: it is one, and `origins` does not allow it.
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    allowed = set(origins)
    own = f"{request.url.scheme}://{host}"
    if "*" in allowed or own in allowed:
        return
    if not asks_this_machine(host):
        raise ForeignPageError(
            f"a server without keys answers to this machine's own names alone, such as 127.0.0.1; found Host {host!r}: "
            f"`colora serve --keys` protects the server, `--cors-origin {own}` allows this name"
        )
    if origin is not None and origin not in {*allowed, own}:
        raise ForeignPageError("pages of this origin may not call the server; `colora serve --cors-origin` allows them")


# In a thread: the access may have to read its file again.
def _tenant(request: Request) -> Tenant:
    return tenant_of(request, request.app)


TenantDep = Annotated[Tenant, Depends(_tenant)]


async def _admin(tenant: TenantDep) -> Tenant:
    if not tenant.admin:
        raise TaskIdError("not found")  # as if the path were absent
    return tenant


def only_query(*names: str) -> Callable[[Request], Coroutine[None, None, None]]:
    """A dependency that refuses what stands behind a question mark, but for these.

    Raises:
        UnsupportedError: naming the first of it.
    """

    async def check(request: Request) -> None:
        for name in request.query_params:
            if name not in names:
                raise UnsupportedError(f"?{name[:60]}")

    return check


no_query = only_query()


AdminDep = Annotated[Tenant, Depends(_admin)]


def check_task(service: Service, tenant: Tenant, task: str) -> None:
    """Refuse a task that is absent or that this tenant may not use: both in the same words.

    Raises:
        TaskIdError: the task is one of these.
    """
    if not tenant.may(task) or task not in service.store:
        raise _absent(task)


def check_model(service: Service, tenant: Tenant, model: str) -> None:
    """Refuse what is neither a task nor the base, or what this tenant may not use: all in the same words.

    Raises:
        TaskIdError: the model is one of these.
    """
    if not tenant.may(model) or not service.store.answers_to(model):
        raise _absent(model)


def _absent(model: str) -> TaskIdError:
    return TaskIdError(f"the model {model!r} does not exist, or this key may not use it")


# In a thread: the store may be locked while it writes.
def _task(task: Annotated[str, Path()], tenant: TenantDep, service: ServiceDep) -> str:
    check_task(service, tenant, task)
    return task


def _model(task: Annotated[str, Path()], tenant: TenantDep, service: ServiceDep) -> str:
    check_model(service, tenant, task)
    return task


async def _new_task(task: Annotated[str, Path()], tenant: TenantDep) -> str:
    if not tenant.may(task):
        raise TaskIdError(f"this key may not use the task name {task!r}; it may use {', '.join(tenant.tasks)}")
    return task


TaskDep = Annotated[str, Depends(_task)]
"""The task of the path; it is there, and the tenant may use it."""

ModelDep = Annotated[str, Depends(_model)]
"""The task of the path, or the base; it is there, and the tenant may use it."""

NewTaskDep = Annotated[str, Depends(_new_task)]
"""The task of the path; the tenant may use the name, whether the task is there or not."""
