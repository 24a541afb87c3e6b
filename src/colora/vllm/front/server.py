"""The bank's server beside vLLM's in one process: its tasks, its access, and its own paths."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI
from transformers import AutoTokenizer
from vllm.lora.request import LoRARequest
from vllm.utils.counter import AtomicCounter

from colora.errors import ConfigError, TaskIdError
from colora.serving.access import Access, Tenant
from colora.serving.bodies import BodyError
from colora.serving.faults import add_handlers
from colora.serving.jobs import Jobs
from colora.serving.metrics import Metrics
from colora.serving.quotas import Uploads, rows_of
from colora.serving.routes import listing, page, tasks
from colora.serving.routes.dependencies import AdminDep
from colora.serving.schemas import MOST_CHOICES
from colora.serving.store import CoreStore
from colora.tasks.prompting.prompts import use_plain_prompts
from colora.tasks.prompting.templates import parse_template
from colora.tasks.tokenizer import Tokenizer
from colora.vllm.front.chat import ChatPrompts
from colora.vllm.front.service import BankTasks
from colora.vllm.front.shares import RowShares
from colora.vllm.settings import PluginSettings

if TYPE_CHECKING:
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

__all__ = ["BankServer", "bank_server"]

MOST_KNOWN = 2**16
"""Tasks that vLLM's front end knows by name; the one that was not asked for longest makes room."""
BYTES_PER_TOKEN, LEAST_BYTES, EXAMPLES_BYTES = 32, 2**16, 16 * 2**20


class BankServer:
    """What the gate asks.

    Args:
        bank: its tasks.
        access: keys and tenants.
        models: vLLM's `OpenAIServingModels`.
        tokenizer: of the base.
        origins: of pages that may ask.
        with_page: whether browsers get a page to try the tasks at the root.

    Attributes:
        own: the application of the paths that are not vLLM's.
        page: whether it has that page.
    """

    def __init__(
        self,
        bank: BankTasks,
        access: Access,
        models: "OpenAIServingModels",
        tokenizer: Tokenizer,
        origins: Sequence[str] = (),
        with_page: bool = True,
    ) -> None:
        self.bank, self.access, self.models, self.page = bank, access, models, with_page
        bank.store.reserved = frozenset(path.name for path in models.base_model_paths)
        self._most_bytes = max(LEAST_BYTES, BYTES_PER_TOKEN * int(models.model_config.max_model_len))
        if not bank.store.saved.info.chat_template:
            use_plain_prompts(tokenizer)
        self.prompts = ChatPrompts(tokenizer)
        parallel = models.engine_client.vllm_config.parallel_config
        self.api_processes = int(parallel._api_process_count)
        batch = int(models.engine_client.vllm_config.scheduler_config.max_num_seqs) * int(parallel.data_parallel_size)
        self._rows, self._shares = max(1, batch // self.api_processes), RowShares()
        if self.api_processes > 1:  # each numbers the adapters for itself, and the engine tells them apart by number
            models.lora_id_counter = AtomicCounter(max(parallel._api_process_rank, 0) << 40)
        self.own = self._application(str(models.model_config.model), tuple(origins))

    async def prepared(self, body: dict[str, Any], tenant: Tenant, is_chat: bool) -> dict[str, Any]:
        """A request for an answer as vLLM gets it.

        Raises:
            TaskIdError: the model is absent, or this tenant may not use it.
            BodyError: it asks for too many answers.
            UnsupportedError, ConfigError: see `ChatPrompts.rewritten`.
        """
        if type(body.get("n")) is int and body["n"] > MOST_CHOICES:
            raise BodyError("n", f"expected at most {MOST_CHOICES}, found {body['n']}")
        task = body["model"]
        is_base = self.models.is_base_model(task)

        def checked() -> dict[str, Any]:
            if not tenant.may(task) or not (is_base or task in self.bank.store):
                raise TaskIdError(f"the model {task!r} does not exist, or this key may not use it")
            if not is_chat:
                return body
            text = self.bank.store.prompt_of(task)
            return self.prompts.rewritten(body, None if text is None else parse_template(text))

        return await asyncio.to_thread(checked)

    @asynccontextmanager
    async def rows(self, tenant: Tenant, body: dict[str, Any]) -> AsyncIterator[None]:
        """The rows that a request takes of what its tenant may have, for as long as the block lasts; and vLLM has its
        task as the task is when they are free.

        Raises:
            BusyError: too many wait for theirs.
            TaskIdError: the task has been removed meanwhile.
        """

        def most() -> int | None:
            tenants = len(self.access.tenants or ())
            shared = tenants > 1 or tenant.limits.rows is not None
            return rows_of(tenant.limits.rows, self._rows, tenants) if shared else None

        async with self._shares.rows(tenant.name, _answers_of(body), await asyncio.to_thread(most)):
            if not self.models.is_base_model(body["model"]):
                await self._renew(body["model"])
            yield

    async def _renew(self, task: str) -> None:
        """See that vLLM has a task that it knows as the task is now.

        The new adapter takes the place of the old one: a request that vLLM looks at meanwhile finds one or the other.
        """
        known = self.models.lora_requests
        async with self.models.lora_resolver_lock[task]:
            if (old := known.pop(task, None)) is None:
                return  # vLLM asks the resolver
            known[task] = old  # as the last one asked for
            path = await asyncio.to_thread(self.bank.path, task)
            if old.lora_path != path:
                request = LoRARequest(task, self.models.lora_id_counter.inc(1), path)
                try:
                    await self.models.engine_client.add_lora(request)
                except Exception:
                    if task in self.bank.store:
                        raise
                    raise TaskIdError(f"the model {task!r} has just been removed") from None
                known[task] = request
        while len(known) > MOST_KNOWN:
            first = next(iter(known))
            del known[first]
            self.models.lora_resolver_lock.pop(first, None)

    def close(self) -> None:
        """End the onboarding that runs."""
        self.own.state.jobs.close()

    def reload(self, loop: asyncio.AbstractEventLoop) -> None:
        """Read the bank's folder anew; running answers end on the old one first.

        Raises:
            ConfigError: there are other API processes, which would not know; also as `BankTasks.replace`.
        """
        engine = self.models.engine_client
        if self.api_processes > 1:
            raise ConfigError(
                f"a reload needs a single API process, found {self.api_processes}: restart the server instead"
            )

        async def swap() -> None:
            await engine.pause_generation(mode="wait")
            try:
                await engine.collective_rpc("colora_reload")
            finally:
                await engine.resume_generation()

        def run(store: CoreStore) -> None:
            asyncio.run_coroutine_threadsafe(swap(), loop).result()

        self.bank.replace(run)

    def _application(self, base: str, origins: tuple[str, ...]) -> FastAPI:
        app = FastAPI(title="CoLoRA", docs_url=None, redoc_url=None, openapi_url=None)
        app.router.redirect_slashes = False
        app.state.service, app.state.access, app.state.origins = self.bank, self.access, origins
        app.state.uploads = Uploads()
        app.state.jobs = Jobs(lambda: self.bank.store, self.bank.put, base, lambda: len(self.access.tenants or ()))
        add_handlers(app, Metrics())
        if self.page:
            app.include_router(page.router)
        app.include_router(listing.router)
        app.include_router(tasks.router)
        app.include_router(_reloading(self.reload))
        return app

    def limit(self, path: str) -> int:
        """The most bytes of a body that comes to this path."""
        if not path.startswith("/v1/tasks/"):
            return self._most_bytes
        return self.bank.store.longest_file if path.endswith("/core") else EXAMPLES_BYTES


def _answers_of(body: dict[str, Any]) -> int:
    """How many answers a request asks for, as far as it says that well; what it says badly is vLLM's to refuse."""
    prompt, choices = body.get("prompt"), body.get("n")
    prompts = len(prompt) if isinstance(prompt, list) and not all(isinstance(one, int) for one in prompt) else 1
    return max(1, prompts * (choices if type(choices) is int else 1))


def _reloading(reload: Callable[[asyncio.AbstractEventLoop], None]) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/reload")
    async def reload_bank(admin: AdminDep, service: tasks.ServiceDep) -> dict[str, Any]:
        await asyncio.to_thread(reload, asyncio.get_running_loop())
        return {"tasks": len(service.store), "stale": service.store.stale}

    return router


def bank_server(app: FastAPI) -> BankServer:
    """The server beside this application of vLLM's, whose models are there by now."""
    from colora.vllm.plugin import installed

    settings = PluginSettings.from_environment()
    access = Access() if settings.keys is None else Access.of_file(settings.keys)
    models = app.state.openai_serving_models
    tokenizer = AutoTokenizer.from_pretrained(models.model_config.tokenizer)
    return BankServer(installed(), access, models, tokenizer, app.state.args.allowed_origins, settings.page)
