"""The list of tasks, in OpenAI's form; page by page for who asks so."""

from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from colora.serving.responses import model_object
from colora.serving.routes.dependencies import ServiceDep, TenantDep, check_task, only_query

__all__ = ["MOST_ON_A_PAGE", "router"]

router = APIRouter(dependencies=[Depends(only_query("limit", "after"))])
MOST_ON_A_PAGE = 10_000


@router.get("/v1/models")
def models(
    tenant: TenantDep,
    service: ServiceDep,
    limit: Annotated[int | None, Query(ge=1, le=MOST_ON_A_PAGE)] = None,
    after: str | None = None,
) -> dict[str, Any]:
    """The tasks of the tenant, those that follow `after`: `limit` of them, or as many as fit on a page."""
    if after is not None:
        check_task(service, tenant, after)
    limit = MOST_ON_A_PAGE if limit is None else limit
    page = list(islice((name for name in service.store.after(after) if tenant.may(name)), limit + 1))
    shown = page[:limit]
    return {"object": "list", "data": [model_object(name) for name in shown], "has_more": len(page) > len(shown)}
