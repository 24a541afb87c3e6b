"""A whole federation in one process: hundreds of clients, the same protocol, one model for all clients in turn.

OUTPUT/run.yaml, tasks.json         as of `colora train`
OUTPUT/checkpoint/                  the server and every client after the last round that was saved
OUTPUT/rounds.jsonl                 bytes, losses, seconds of each round
OUTPUT/bank/                        A, B and all cores, which nobody has together in a networked federation
OUTPUT/records.jsonl                the measurements
"""

import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.progress import Progress

from colora.bank.layout import BankInfo
from colora.bank.load import save_bank
from colora.common.files import staged_folder
from colora.common.locks import file_lock
from colora.common.progress import progress_bar
from colora.common.threads import configure_threads
from colora.errors import ConfigError, InterruptedRunError
from colora.evaluation.evaluate import Evaluation
from colora.federated.aggregate import Private, RoundReport
from colora.federated.client import local_data, local_model
from colora.federated.history import history_line, round_cost, round_records, write_round
from colora.federated.local import LocalData, LocalModel
from colora.federated.protocol import federate, init
from colora.federated.state import Broadcast, ClientState, Reply, ServerState
from colora.federated.storage import load_client, load_server, save_client, save_server
from colora.training.config import FederationConfig, RunConfig
from colora.training.config_file import FEDERATED_GROUPING, check_federated_prompts, check_federated_start
from colora.training.measure import evaluate_bank, measure
from colora.training.resolve import ResolvedRun, resolve_run, tasks_in_memory
from colora.training.run_folder import check_free, claim

__all__ = ["simulate"]

SAVE_SECONDS = 60.0


def simulate(config: RunConfig, log: Callable[[str], None] = lambda line: None) -> Evaluation:
    """Run a federation of all tasks of a run in this process, or go on with it, and measure every client's model.

    Raises:
        ConfigError: the output folder holds another run, a task has no training examples, `start_from` or
            `grouping` is set, the bank is to be initialised from the tasks' gradients, or a prompt is `auto` or that
            of one task.
        TaskFileError: listing all faults of the task files.
        InterruptedRunError: after Ctrl-C; the same command goes on.
        TrainingDivergedError, CheckpointError: as in training.
    """
    if config.start_from is not None:
        raise ConfigError("start_from: a federation starts from fresh factors; remove this field from the run file")
    check_federated_start(config.adapter)
    check_federated_prompts(config)
    if config.grouping != "none":
        raise ConfigError(FEDERATED_GROUPING)
    configure_threads(config.training.threads)
    output = Path(config.output)
    with file_lock(output.with_name(f".{output.name}.lock")) as locked:
        if not locked:
            raise ConfigError(f"{output}: another process runs this federation")
        run = resolve_run(config.model_copy(update={"training": FederationConfig.of(config).training}))
        check_free(output, run.config, run.manifest, federated=True)
        if (output / "bank" / "adapter_config.json").is_file():
            log(f"{output} has ended before; nothing to train")
            return evaluate_bank(output)
        try:
            return _simulate(run, log)
        except KeyboardInterrupt:
            raise InterruptedRunError("interrupted; run the same command again to go on from the last save") from None


def _simulate(run: ResolvedRun, log: Callable[[str], None]) -> Evaluation:
    config, output = run.config, run.output
    agreed = FederationConfig.of(config)
    local, tokenizer = local_model(agreed)
    spec, max_length = config.federation, config.training.max_length
    tasks = tasks_in_memory(run.tasks, "a federation")
    data = {task.name: local_data(task, tokenizer, local, max_length) for task in tasks}
    private = _private(config, output / "privacy.json")
    claim(output, config, run.manifest)
    state, clients = _resume(output / "checkpoint", local, data)
    if state.round:
        log(f"going on after round {state.round} of {spec.rounds}")
    with progress_bar() as progress:
        progress.add_task("rounds", total=spec.rounds, completed=state.round)
        after_round = _RoundWriter(config, output, clients, private, progress)
        state = federate(state, clients, data, local, spec, config.seed, after_round, private)
    bank = local.bank(state.shared, {name: client.cores for name, client in clients.items()})
    info = BankInfo(
        base=config.base,
        chat_template=config.chat_template,
        prompt=config.prompt,
        max_length=max_length,
        examples={name: len(client_data.rows) for name, client_data in data.items()},
        seen={name: client.position * spec.rows for name, client in clients.items()},
    )
    save_bank(bank, output / "bank", info)
    return measure(config, bank, tokenizer, tasks, max_length)


class _RoundWriter:
    """Called after each round: writes its records, shows it, and saves a checkpoint now and then.

    Args:
        config: of the run.
        output: the run's folder.
        clients: all clients, as `federate` replaces them.
        private: the private mean, if there is one.
        progress: bar with one task.
    """

    def __init__(
        self,
        config: RunConfig,
        output: Path,
        clients: dict[str, ClientState],
        private: Private | None,
        progress: Progress,
    ) -> None:
        self.config, self.output, self.clients, self.private = config, output, clients, private
        self.progress = progress
        self.began = self.saved = time.monotonic()

    def __call__(
        self, state: ServerState, report: RoundReport, messages: Sequence[Broadcast], replies: Sequence[Reply]
    ) -> None:
        cost = round_cost(messages, replies, time.monotonic() - self.began, getattr(self.private, "epsilon", None))
        records = round_records(self.output.resolve().name, self.config.seed, report, cost)
        write_round(self.output / "rounds.jsonl", records)
        line = history_line(report, cost, self.config.federation.rounds)
        self.progress.console.print(line, highlight=False, markup=False)
        self.progress.advance(self.progress.task_ids[0])
        # With privacy after each round: noise that was drawn must not be drawn again.
        if self.private is not None or time.monotonic() - self.saved > SAVE_SECONDS:
            _save(self.output / "checkpoint", state, self.clients)
            self.saved = time.monotonic()
        self.began = time.monotonic()


def _private(config: RunConfig, ledger: Path) -> Private | None:
    if config.federation.clip is None:
        return None
    from colora.federated.privacy import PrivateMean  # needs Flower

    return PrivateMean(config.federation, ledger)


def _resume(folder: Path, local: LocalModel, data: dict[str, LocalData]) -> tuple[ServerState, dict[str, ClientState]]:
    """The server and all clients as they were saved, or at the start."""
    state = load_server(folder)
    if state is None:
        return init(uuid.uuid4().hex, local), {name: local.initial_state(name) for name in data}
    saved = {name: load_client(folder / name, state.round, state.shared) for name in data}
    return state, {name: client or local.initial_state(name) for name, client in saved.items()}


def _save(folder: Path, state: ServerState, clients: dict[str, ClientState]) -> None:
    with staged_folder(folder) as staging:
        save_server(staging, state)
        for name, client in clients.items():
            if client.steps or client.position:
                save_client(staging / name, client, with_shared=False)
