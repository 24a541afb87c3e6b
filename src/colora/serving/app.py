"""The HTTP application: OpenAI's interface for answers, and a few paths of this server for tasks that come and go.

An endpoint is a function in one of the modules of `colora.serving.routes`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from colora.serving.access import Access
from colora.serving.faults import add_handlers
from colora.serving.jobs import Jobs
from colora.serving.quotas import Uploads
from colora.serving.receiving import BodyLimit, OpenToPages
from colora.serving.routes import completions, listing, operation, page, tasks
from colora.serving.service import Service

__all__ = ["make_app"]

EXAMPLES_BYTES = 16 * 2**20
LEAST_BODY_BYTES = 2**16
BYTES_PER_TOKEN = 32  # a prompt that fits has fewer; what is longer is not even read
STOPPING_SECONDS = 60.0


def make_app(service: Service, access: Access, origins: Sequence[str] = (), with_page: bool = True) -> FastAPI:
    """The application around a service. Its lifespan starts the model's thread, and lets all requests end.

    Args:
        origins: of pages in browsers that may ask, such as "https://example.org"; "*": of all.
        with_page: whether browsers get a page to try the tasks at the root.
    """
    app = FastAPI(title="CoLoRA", lifespan=_lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False
    app.state.origins = tuple(origins)
    app.state.service, app.state.access, app.state.uploads = service, access, Uploads()
    app.add_middleware(BodyLimit, limit=lambda path: _body_limit(service, path))
    add_handlers(app, service.metrics)
    if origins:  # outermost, so that pages can read refusals too
        app.add_middleware(OpenToPages, origins=origins)
    for module in (operation, completions, listing, tasks, *((page,) if with_page else ())):
        app.include_router(module.router)
    return app


def _body_limit(service: Service, path: str) -> int:
    """The longest body of a path, in bytes."""
    if not path.startswith("/v1/tasks/"):
        return max(LEAST_BODY_BYTES, BYTES_PER_TOKEN * service.positions)
    return service.store.longest_file if path.endswith("/core") else EXAMPLES_BYTES


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.scheduler.start()
    jobs = app.state.jobs = Jobs(lambda: service.store, service.put, service.options.base, service.scheduler.tenants)
    yield
    await asyncio.to_thread(jobs.close)
    await asyncio.to_thread(service.scheduler.close, STOPPING_SECONDS)
