"""Endpoints for whoever runs the server: its health, its metrics, and a newer bank."""

from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import Response

from colora.serving.routes.dependencies import AdminDep, ServiceDep, no_query

__all__ = ["router"]

router = APIRouter()


@router.get("/health")
def health() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/metrics")
def metrics(admin: AdminDep, service: ServiceDep) -> Response:
    return Response(service.measure(), media_type="text/plain; version=0.0.4")


@router.post("/v1/reload", dependencies=[Depends(no_query)])
def reload(admin: AdminDep, service: ServiceDep) -> dict[str, Any]:
    service.reload()
    return {"tasks": len(service.store), "stale": service.store.stale}
