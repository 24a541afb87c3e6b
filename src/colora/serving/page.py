"""The page to try a bank in a browser: one file, and the headers that keep all but its own code and server from it."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi.responses import Response

__all__ = ["page_response", "page_text", "wants_page"]

_PARTS = re.compile(r"<(style|script)>(.*?)</\1>", re.DOTALL)


def wants_page(accept: str | None) -> bool:
    """Whether a request with this Accept is a browser's for a page: it names HTML, which no client of the API does."""
    kinds = (part.partition(";")[0].strip().lower() for part in (accept or "").split(","))
    return "text/html" in kinds


@cache
def page_text() -> str:
    """The page, as it lies beside this module."""
    return files("colora.serving").joinpath("page.html").read_text(encoding="utf-8")


def page_response() -> Response:
    """The page. It has nothing of the bank in it, so it needs no key."""
    return Response(page_text(), media_type="text/html", headers=_headers())


@cache
def _headers() -> dict[str, str]:
    """What the browser may do for the page: run the script and use the style that stand in it, and ask this server."""
    digests: dict[str, list[str]] = {"style": [], "script": []}
    for kind, text in _PARTS.findall(page_text()):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        digests[kind].append(f"'sha256-{digest}'")
    policy = [
        "default-src 'none'",
        f"script-src {' '.join(digests['script'])}",
        f"style-src {' '.join(digests['style'])}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    return {
        "Content-Security-Policy": "; ".join(policy),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-cache",
        "Vary": "Accept",
    }
