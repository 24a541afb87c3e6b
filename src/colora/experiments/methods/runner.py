"""`Runner`: a base model, loaded once, on which trials are run one after the other."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from colora.algebra import joint_diagonalisation
from colora.errors import ConfigError
from colora.evaluation.choices import ChoiceScores
from colora.experiments.methods.answering import answer_questions
from colora.experiments.methods.attach import attached
from colora.experiments.methods.choices import asked_choice_scores, choice_scores, frequency_scores
from colora.experiments.methods.data import encode_rows, step_rows
from colora.experiments.methods.federation import Traffic
from colora.experiments.methods.forward import Row, SplitForward
from colora.experiments.methods.in_context import questions
from colora.experiments.methods.layer import ConstrainedLinear, TermLayer
from colora.experiments.methods.measure import (
    kept_parameters,
    likelihoods,
    score,
    similarity,
    texts,
    trained_parameters,
)
from colora.experiments.methods.method import OWN, SHARED, Method, Term
from colora.experiments.methods.registry import METHODS
from colora.experiments.methods.starts import start_from_gradient, start_from_weights
from colora.experiments.methods.train import Training, task_losses, train
from colora.experiments.trial import Trial, TrialRecord
from colora.models.base import load_base
from colora.models.prompt_choice import likeliest_template
from colora.tasks.prompting.templates import template_of
from colora.tasks.schema import Task, prompted

__all__ = ["Runner", "compress", "find_method"]

# For short rows on a CPU the plain attention trains faster, and the fused one generates faster.
TRAINING_ATTENTION, GENERATING_ATTENTION = "eager", "sdpa"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}


class Runner:
    """Runs trials on one base model. Each trial finds the model as the first one did.

    Args:
        base: anything `colora.models.base.load_base` takes; a causal model.
        dtype: "fp32", "bf16" or "fp64", of the base's weights and computations. Adapters are float32 (float64 with
            "fp64") and are cast to the base's dtype where they meet it.
        device: by default an accelerator if there is one.
        chat_template: whether trials that name no prompt use the tokenizer's chat template, if it has one. Left out by
            default, for a default system message doubles the tokens.

    Attributes:
        on_trained: called with each trial and its layers when they are trained, before they go; None for nothing.
    """

    def __init__(
        self,
        base: str,
        dtype: str = "fp32",
        device: torch.device | str | None = None,
        chat_template: bool = False,
    ) -> None:
        if device is None:
            device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
        self.model, self.tokenizer = load_base(
            base,
            dtype=DTYPES[dtype],
            device=device,
            kind="causal",
            chat_template=chat_template,
            attn_implementation=TRAINING_ATTENTION,
        )
        # The last positions of a prompt are a strided slice, for which torch copies a bfloat16 weight once a row.
        self.model.get_output_embeddings().register_forward_pre_hook(lambda module, args: (args[0].contiguous(),))
        self.base, self.dtype = base, dtype
        self.on_trained: Callable[[Trial, dict[str, ConstrainedLinear]], None] | None = None
        self._forwards: dict[int, SplitForward] = {}

    def run(self, trial: Trial, tasks: list[Task], progress: Callable[[int, int], None] | None = None) -> TrialRecord:
        """Train the trial's method on the tasks and measure it. `code` and `environment` are the caller's to add.

        Args:
            trial: what to run; of this runner's base.
            tasks: its tasks, with training examples and those of `trial.split`.
            progress: called with (steps done, steps).

        Raises:
            ConfigError: for an unknown method or option, a rank that does not fit, or a task without the closed set of
                answers that the method needs.
            TaskFileError: for examples that are missing or too long.
            TrainingDivergedError: if the loss is NaN or infinite.
        """
        method = find_method(trial.method)
        if method.counts_answers:
            return TrialRecord(trial=trial, scores=frequency_scores(tasks, trial.split, trial.test))
        forward = self._forward(trial.first_layer)
        prompt, tasks = self._prompted(tasks, trial)
        torch.manual_seed(trial.seed)
        train_rows = encode_rows(tasks, self.tokenizer, "train", trial.max_length)
        test_rows = [rows[: trial.test] for rows in encode_rows(tasks, self.tokenizer, trial.split, trial.max_length)]
        begun = time.perf_counter()
        with attached(
            self.model, method, trial.first_layer, len(tasks), trial.rank, trial.alpha, trial.options
        ) as layers:
            training = self._trained(method, layers, forward, train_rows, trial, progress)
            trained = time.perf_counter()
            trainable = trained_parameters(layers)
            if method.compresses:
                compress(layers, trial.rank)
            if self.on_trained is not None:
                self.on_trained(trial, layers)
            test_rows, values, answers, choices = self._measured(method, forward, tasks, test_rows, trial)
            shared, own = kept_parameters(layers)
            alike = similarity(layers) if own and len(tasks) > 1 else None
        ended = time.perf_counter()
        scored = zip(tasks, test_rows, values, answers, choices, strict=True)
        return TrialRecord(
            trial=trial,
            scores={
                task.name: score(task, trial.split, rows, nll, texts, chosen)
                for task, rows, nll, texts, chosen in scored
            },
            trainable=trainable,
            shared_numbers=shared,
            task_numbers=own,
            rounds=training.rounds if method.federated else None,
            bytes_up=training.traffic.up if method.federated else None,
            bytes_down=training.traffic.down if method.federated else None,
            seconds={"train": round(trained - begun, 2), "evaluate": round(ended - trained, 2)},
            peak_memory=training.peak_memory,
            losses=training.losses,
            prompt=prompt,
            similarity=alike,
        )

    def _trained(
        self,
        method: Method,
        layers: dict[str, ConstrainedLinear],
        forward: SplitForward,
        rows: list[list[Row]],
        trial: Trial,
        progress: Callable[[int, int], None] | None,
    ) -> Training:
        """Start the attached method as it wants it, and train it."""
        if self.dtype == "fp64":
            for layer in layers.values():
                layer.terms.double()
        sent = Traffic()
        if method.start == "weights":
            start_from_weights(layers)
        elif method.start == "gradient":
            # The stacked batch of the first step; only the first client's loss counts.
            batch = step_rows(rows, trial.rows, 0, trial.seed)
            sent = start_from_gradient(layers, lambda: task_losses(forward.row_nll(batch), batch, len(rows))[0])
        training = train(method, layers, forward, rows, trial, progress) if method.terms else Training()
        training.traffic.up += sent.up
        training.traffic.down += sent.down
        return training

    def _prompted(self, tasks: list[Task], trial: Trial) -> tuple[str | None, list[Task]]:
        """The tasks with the trial's prompt, and its name if it was chosen here."""
        if trial.prompt is None:
            return None, tasks
        chosen = None
        if trial.prompt == "auto":
            chosen, _ = likeliest_template(self.model, self.tokenizer, tasks, trial.max_length)
        template = template_of(chosen or trial.prompt)  # "chat" may have been chosen, where the runner has it
        return chosen, [prompted(task, template) for task in tasks]

    def _measured(
        self, method: Method, forward: SplitForward, tasks: list[Task], rows: list[list[Row]], trial: Trial
    ) -> tuple[list[list[Row]], list[list[float]], list[list[str]], list[ChoiceScores | None]]:
        """Task by task: the rows whose likelihood was measured, their nats, generated answers, scores of choices."""
        if method.prompt_examples is None:
            values = likelihoods(forward, rows)
            choices = choice_scores(forward, self.tokenizer, tasks, trial.split, trial.test, trial.max_length)
            if not trial.generate:
                return rows, values, [[] for _ in tasks], choices
            with self._generating():
                return rows, values, texts(self.model, self.tokenizer, tasks, trial), choices
        context, nearest = int(method.with_defaults(trial.options)["context"]), method.prompt_examples == "nearest"
        asked = [questions(task, self.tokenizer, self.model, trial, context, nearest) for task in tasks]
        with self._generating():
            found = [
                answer_questions(self.model, self.tokenizer, one, trial.generate, trial.max_new_tokens) for one in asked
            ]
            choices = [
                asked_choice_scores(self.model, self.tokenizer, task, trial.split, one)
                for task, one in zip(tasks, asked, strict=True)
            ]
        rows = [[question.row for question in one.items] for one in asked]
        return rows, [nats for nats, _ in found], [answers for _, answers in found], choices

    @contextmanager
    def _generating(self) -> Iterator[None]:
        self.model.set_attn_implementation(GENERATING_ATTENTION)
        try:
            yield
        finally:
            self.model.set_attn_implementation(TRAINING_ATTENTION)

    def _forward(self, first_layer: int) -> SplitForward:
        if first_layer not in self._forwards:
            self._forwards[first_layer] = SplitForward(self.model, first_layer)
        return self._forwards[first_layer]


def find_method(name: str) -> Method:
    """The method of this name. Raises ConfigError with the known ones if there is none."""
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name]


@torch.no_grad()
def compress(layers: dict[str, ConstrainedLinear], rank: int) -> None:
    """Replace each layer's K updates by their joint diagonalisation of this rank: shared A and B, a core each."""
    for layer in layers.values():
        (local,) = layer.term_layers()
        U, cores, V = joint_diagonalisation(local.B.double(), local.A.double(), rank)
        term = TermLayer(
            Term(A=SHARED, B=SHARED, core=OWN), layer.tasks, rank, local.A.shape[-1], local.B.shape[-2], local.A.device
        ).to(local.A.dtype)
        term.A[0], term.B[0] = V.T, U
        term.core = torch.nn.Parameter(cores.to(local.A.dtype), requires_grad=False)
        layer.terms = torch.nn.ModuleList([term])
