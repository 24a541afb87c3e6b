"""`CoLoRATrainer`: transformers' `Trainer` for a bank: tasks mixed by plan, per-task losses, whole checkpoints."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from colora.adapter.stored.access import stored_cores
from colora.common.files import staged_folder
from colora.common.text import listed
from colora.errors import CheckpointError, ConfigError, TrainingDivergedError
from colora.models.likelihood import is_encoder_decoder, label_tokens, row_nll
from colora.tasks.collate import TaskCollator
from colora.tasks.encode import EncodedTasks
from colora.tasks.mixing import TaskMixture
from colora.training.encode import EncodedRun
from colora.training.loop import checkpoint
from colora.training.loop.alternating import AlternatingCallback
from colora.training.loop.callbacks import InterruptCallback, TaskProgressCallback
from colora.training.loop.core_files import CoreFiles
from colora.training.loop.loss import TaskWeighting, row_weights
from colora.training.loop.optimizer import TaskAdamW, parameter_groups, shared_parameters, unwrapped
from colora.training.loop.step_tasks import TaskLosses, tasks_of_step
from colora.training.loop.stopping import TaskEarlyStopping
from colora.training.loop.weights import check_weights, put_weights
from colora.training.resolve import ResolvedRun

__all__ = ["CoLoRATrainer"]

MOST_LOGGED = 1024  # tasks; of more the losses by task are not in the log, which each checkpoint holds whole


class CoLoRATrainer(Trainer):
    """Trains a bank, or any model without task ids (a plain LoRA), on a mixture of tasks.

    Args:
        model: a `PeftModel`.
        args: `args.max_steps` optimiser steps with `args.learning_rate` for the shared factors.
        run: names of the tasks, and the section `training` of its config: the rate and the decay of the cores, how
            the tasks' losses add up (`row_weights`), joint or alternating (`frozen_roles`), and after how many
            evaluations without improvement a task stops.
        data: the run's examples; `len(data.mixture)` must be all rows of all steps.
        routed: whether the model takes `task_ids` (a bank does, a plain LoRA does not).

    Raises:
        ConfigError: if the rows of a step cannot be spread over devices and accumulation, or one process has several
            GPUs (transformers would run them as threads that share the task ids).
        TrainingDivergedError: if the loss or the gradient becomes NaN or infinite; the last checkpoint stays.
        CheckpointError: if a checkpoint cannot be written; the ones before stay.
    """

    control: TrainerControl
    optimizer: Any

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        run: ResolvedRun,
        data: EncodedRun,
        *,
        routed: bool = True,
        description: str = "training",
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        args.remove_unused_columns = False  # else the Trainer drops task_ids and every row trains one task
        args.logging_nan_inf_filter = False  # a NaN must stop training, not vanish from the log
        args.restore_callback_states_from_checkpoint = True
        if args.n_gpu > 1:
            raise ConfigError(
                f"one process sees {args.n_gpu} GPUs: start one process for each (torchrun --nproc_per_node "
                f"{args.n_gpu} -m colora train RUN.yaml), or let it see one (CUDA_VISIBLE_DEVICES=0)"
            )
        spec, mixture, task_names = run.config.training, data.mixture, run.names
        rows = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        if len(mixture) != rows * args.max_steps:
            raise ConfigError(
                f"the mixture has {len(mixture)} rows, but {args.max_steps} steps of {rows} rows "
                f"({args.per_device_train_batch_size} a device × {args.world_size} processes × "
                f"{args.gradient_accumulation_steps} accumulated) need {rows * args.max_steps}"
            )
        super().__init__(
            model=model,
            args=args,
            train_dataset=data.train,
            eval_dataset=data.validation,
            data_collator=TaskCollator(data.pad_token_id),
        )
        self.loss_is_scaled_for_ga = True  # row weights already count all micro-batches
        self.task_names = task_names
        self.data = data
        self.mixture = mixture
        self.core_lr = spec.core_lr
        self.core_weight_decay = spec.core_weight_decay
        self.weighting: TaskWeighting = spec.weighting
        self.routed = routed
        self.stored = stored_cores(model) if routed else None
        self.core_files = CoreFiles(Path(args.output_dir) / "cores", task_names)
        self._staging: Path | None = None
        self._losses = TaskLosses()
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.interrupt = InterruptCallback()
        self.progress = TaskProgressCallback(description)
        self.add_callback(self.interrupt)
        if not args.disable_tqdm:
            self.add_callback(self.progress)
        if routed:
            self.add_callback(AlternatingCallback(spec.schedule, spec.turn))
        if spec.patience is not None and data.validation is not None:
            measured = [entry.name for entry in data.validation.report if entry.examples]
            self.add_callback(TaskEarlyStopping(measured, spec.patience))
        for callback in callbacks or []:
            self.add_callback(callback)

    # ---- data and loss --------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset: EncodedTasks | None = None) -> TaskMixture:
        return self.mixture

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], None]:
        """The micro-batches of one step, each with the `row_weights` that the whole step gives its rows."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        ids = [batch["task_ids"].to(device) for batch in batches]
        tokens = [label_tokens(batch["labels"], is_encoder_decoder(self.model)).to(device) for batch in batches]
        tasks = tasks_of_step(ids, device)
        places = [torch.searchsorted(tasks, one) for one in ids]
        totals = torch.zeros(2, len(tasks), dtype=torch.float32, device=device)
        for place, counts in zip(places, tokens, strict=True):
            totals[0].index_add_(0, place, counts.float())
            totals[1].index_add_(0, place, torch.ones_like(counts, dtype=torch.float32))
        if dist.is_initialized():
            dist.all_reduce(totals)
        active = self._active(tasks)
        present = tasks[totals[1] * active > 0]
        if self.stored is not None:
            self.stored.use(self._task_adamw)  # another trainer of this model may have had it meanwhile
            self.stored.hold(tasks.cpu().numpy())
            present = self.stored.positions(present)
        self._task_adamw.expect(present)
        for batch, place, counts in zip(batches, places, tokens, strict=True):
            batch["row_weights"] = row_weights(place, counts, totals[0], totals[1], active, self.weighting)
        return batches, None

    def _active(self, tasks: Tensor) -> Tensor:
        """Which of these tasks, (n,), have not stopped."""
        stopped = [cb.stopped_at for cb in self._callbacks(TaskEarlyStopping) if cb.stopped_at]
        active = [not any(self.task_names[task] in one for one in stopped) for task in tasks.tolist()]
        return torch.tensor(active, device=tasks.device)

    def _callbacks(self, kind: type[Any]) -> list[Any]:
        return [callback for callback in self.callback_handler.callbacks if isinstance(callback, kind)]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        labels, weights, task_ids = inputs.pop("labels"), inputs.pop("row_weights"), inputs["task_ids"]
        if not self.routed:
            del inputs["task_ids"]
        losses = row_nll(model, inputs, labels)
        if not torch.isfinite(losses).all():
            bad = task_ids[~torch.isfinite(losses.detach())].unique().tolist()
            raise self._diverged("the loss", [self.task_names[task] for task in bad])
        tokens = label_tokens(labels, is_encoder_decoder(model))
        self._losses.add(task_ids.cpu(), losses.detach().cpu(), tokens.cpu())
        # DDP takes the mean over ranks of what is here a sum over them.
        return (losses * weights.to(losses)).sum() * self.args.world_size

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        self._task_adamw.drop_frozen_gradients()
        norm = super()._clip_grad_norm(model)
        if norm is not None and not torch.isfinite(torch.as_tensor(norm)).all() and self.accelerator.scaler is None:
            raise self._diverged("the gradient", [])
        return norm

    def _diverged(self, what: str, tasks: list[str], step: int | None = None) -> TrainingDivergedError:
        folder = self.args.output_dir
        saved = get_last_checkpoint(folder) if Path(folder).is_dir() else None
        return TrainingDivergedError(
            f"{what} became NaN or infinite in step {step or self.state.global_step + 1}"
            + (f", in task {', '.join(tasks)}" if tasks else "")
            + (f". The last good checkpoint is {saved}" if saved else ". No checkpoint had been saved")
            + "; try a smaller learning rate (lr, core_lr), or bf16 instead of fp16, in another output folder"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            losses, self._losses = self._losses.of_all(self.args.device), TaskLosses()
            if len(self.task_names) <= MOST_LOGGED:
                logs |= {f"loss/{name}": loss for name, loss in losses.by_name(self.task_names).items()}
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: EncodedTasks | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Token NLL of each task, `eval_loss/NAME`, and `eval_loss`, the mean over tasks."""
        if self.stored is not None:
            self.stored.release()
        data = eval_dataset if eval_dataset is not None else self.eval_dataset
        model, rows = self.model, self.args.per_device_eval_batch_size
        measured = TaskLosses()
        was_training = model.training
        model.eval()
        for start in range(0, len(data), rows):
            batch = self.data_collator([data[index] for index in range(start, min(start + rows, len(data)))])
            batch = self._prepare_inputs(batch)
            labels, task_ids = batch.pop("labels"), batch["task_ids"]
            if not self.routed:
                del batch["task_ids"]
            with self.compute_loss_context_manager(), self.accelerator.autocast():
                losses = row_nll(model, batch, labels)
            tokens = label_tokens(labels, is_encoder_decoder(model))
            measured.add(task_ids.cpu(), losses.cpu(), tokens.cpu())
        model.train(was_training)
        # A rounding apart, and one rank would stop a task that the others go on with.
        found = measured.of_first(self.args.device).by_name(self.task_names)
        means = {f"{metric_key_prefix}_loss/{name}": loss for name, loss in found.items()}
        mean = {f"{metric_key_prefix}_loss": sum(means.values()) / max(len(means), 1)}
        metrics = mean | means
        self.log(dict(metrics if len(self.task_names) <= MOST_LOGGED else mean))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            args = self.args
            groups = parameter_groups(
                model or self.model, args.learning_rate, self.core_lr, args.weight_decay, self.core_weight_decay
            )
            self.optimizer = TaskAdamW(
                groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon
            )
            if self.stored is not None:
                self.stored.use(self.optimizer)
        return self.optimizer

    @property
    def _task_adamw(self) -> TaskAdamW:
        return unwrapped(self.optimizer)

    def train(self, *args: object, **kwargs: object) -> Any:
        """As `Trainer.train`; the terminal and the signal handlers are given back however it ends."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self.progress.close()
            self.interrupt._restore()
            if self.stored is not None:
                self.stored.release()

    # ---- checkpoints: whole or not there, and without pickle -------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        # Without clipping nobody has looked at the gradients of the last step.
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters() if p.requires_grad):
            raise self._diverged("the weights", [], self.state.global_step)
        final = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        leader, barrier = self.args.should_save, self.accelerator.wait_for_everyone
        if self.stored is not None:
            self.core_files.save(self.stored, self.state.global_step, write=leader)
        with staged_folder(final, leader, barrier) as folder:
            self._staging = folder.parent
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._staging = None
        if self.args.should_save:
            rotate_checkpoints(self.args.output_dir, save_total_limit=self.args.save_total_limit, use_mtime=False)
            if self.stored is not None:
                self.core_files.collect(Path(self.args.output_dir))

    def _get_output_dir(self, trial: object) -> str:
        return str(self._staging) if self._staging is not None else super()._get_output_dir(trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save and self.stored is not None:  # no bank: most of its cores are in files of their own
            checkpoint.save_state(folder, "shared", shared_parameters(self.model))
            self.core_files.note(folder)
        elif self.args.should_save:
            # save_embedding_layers=False: otherwise PEFT asks the hub whether the vocabulary was resized
            self.model.save_pretrained(str(folder), save_embedding_layers=False)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            folder = Path(output_dir)
            state = self.optimizer.state_dict() if self.stored is None else self._task_adamw.shared_state_dict()
            checkpoint.save_state(folder, "optimizer", state)
            checkpoint.save_state(folder, "scheduler", self.lr_scheduler.state_dict())

    def _save_scaler(self, output_dir: str) -> None:
        if self.args.should_save and self.accelerator.scaler is not None:
            checkpoint.save_state(Path(output_dir), "scaler", self.accelerator.scaler.state_dict())

    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        checkpoint.save_random_state(Path(output_dir), self.args.process_index)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        if self.stored is not None:
            saved = checkpoint.load_state(folder, "shared")
            check_weights(self.model, saved, folder, cores=False)
            put_weights(self.model, saved)
            return
        if (folder / "shared.json").is_file():
            raise CheckpointError(f"{folder} has its cores in a store (training.cores): expected them on the device")
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            TrainerState.load_from_json(str(folder / "trainer_state.json"))
            saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        except Exception as error:
            raise CheckpointError(f"{folder} cannot be loaded: {error}") from error
        if self.routed and saved.get("tasks", self.task_names) != self.task_names:
            raise CheckpointError(
                f"{folder} holds the tasks {listed(saved['tasks'], 20)}, in this order; expected "
                f"{listed(self.task_names, 20)}"
            )

    def _load_optimizer_and_scheduler(self, folder: str | None) -> None:
        if folder is not None:
            self.optimizer.load_state_dict(checkpoint.load_state(Path(folder), "optimizer"))
            self.lr_scheduler.load_state_dict(checkpoint.load_state(Path(folder), "scheduler"))
            if self.stored is not None:
                self.core_files.load(self.stored, Path(folder))

    def _load_scaler(self, folder: str | None) -> None:
        if folder is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoint.load_state(Path(folder), "scaler"))

    def _load_rng_state(self, folder: str | None) -> None:
        if folder is not None:
            checkpoint.load_random_state(Path(folder), self.args.process_index)
