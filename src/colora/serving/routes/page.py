"""The page to try the tasks in a browser, at the root. Whoever asks there for anything else finds nothing, as ever."""

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import Response

from colora.serving.page import page_response, wants_page

__all__ = ["router"]

router = APIRouter()


@router.api_route("/", methods=["GET", "HEAD"])
def page(request: Request) -> Response:
    if not wants_page(request.headers.get("accept")):
        raise HTTPException(404)
    return page_response()
