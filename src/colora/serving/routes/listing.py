"""The list of tasks, in OpenAI's form; page by page for who asks so."""

from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from colora.serving.responses import model_object
from colora.serving.routes.dependencies import ServiceDep, TenantDep, check_task, only_query

__all__ = ["MOST_ON_A_PAGE", "router"]

router = APIRouter(dependencies=[Depends(only_query("limit", "after", "search"))])
MOST_ON_A_PAGE = 10_000
MOST_SEARCHED = 200  # characters, twice what a name may have


@router.get("/v1/models")
def models(
    tenant: TenantDep,
    service: ServiceDep,
    limit: Annotated[int | None, Query(ge=1, le=MOST_ON_A_PAGE)] = None,
    after: str | None = None,
    search: Annotated[str, Query(max_length=MOST_SEARCHED)] = "",
) -> dict[str, Any]:
    """The tasks of the tenant, those that follow `after`: `limit` of them, or as many as fit on a page; with `search`
    only those whose names have this text somewhere, in capitals or not. `base` names the base model, which is no task;
    null if this key does not open it.
    """
    wanted, base = search.casefold(), service.store.base_name
    if after is not None:
        check_task(service, tenant, after)
    limit = MOST_ON_A_PAGE if limit is None else limit
    names = (name for name in service.store.after(after) if tenant.may(name) and wanted in name.casefold())
    page = list(islice(names, limit + 1))
    shown = page[:limit]
    return {
        "object": "list",
        "data": [model_object(name) for name in shown],
        "has_more": len(page) > len(shown),
        "base": base if base is not None and tenant.may(base) else None,
    }
