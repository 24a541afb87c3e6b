"""`colora compare` on a run file: what should be done with these tasks?

Settings are chosen on validation examples, every contender is trained with its own on all examples that are not tested
on, and measured on the test split.

OUTPUT/plan.json, clock.json     what is run, and how much of its time is left
OUTPUT/cells/                    a record of each trial
OUTPUT/choosing.jsonl            the records that settings were chosen by
OUTPUT/comparison.jsonl          those on the test split, which the report and the verdict are about
OUTPUT/verdict.json              the verdict, for programs; verdict.txt in words
OUTPUT/report.html               the page
OUTPUT/adapters/                 those of the method to use
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from functools import partial

from colora.common.device import training_device
from colora.common.locks import waiting_lock
from colora.common.mixed_code import refuse_mixture
from colora.common.text import readable_time
from colora.errors import InterruptedRunError
from colora.experiments.code import trial_code
from colora.experiments.display import open_bar
from colora.experiments.methods.data import encode_rows
from colora.experiments.methods.layer import ConstrainedLinear
from colora.experiments.methods.runner import Runner
from colora.experiments.own.choose import choose_settings
from colora.experiments.own.clock import Clock
from colora.experiments.own.comparison import Comparison, Outcome, Outputs
from colora.experiments.own.conclude import conclude
from colora.experiments.own.contenders import known_contenders
from colora.experiments.own.data import OwnTasks
from colora.experiments.own.estimate import fit_plan, measure_timings, total_seconds
from colora.experiments.own.handover.weights import keep_weights
from colora.experiments.own.plan import Plan, Trials, full_plan
from colora.experiments.own.planned import PATIENCE, PlanFile, kept_plan, kept_timings
from colora.experiments.own.prompt import prompt_in_words, settled
from colora.experiments.own.request import OwnOptions, default_steps, ignored_fields, template_trial
from colora.experiments.own.stages import StageRunner, at_work
from colora.experiments.own.verdict.judge import Verdict
from colora.experiments.own.verdict.measure import measure_of
from colora.experiments.trial import Trial
from colora.experiments.worker import Log
from colora.training.config import RunConfig
from colora.training.resolve import ResolvedRun, resolve_run, tasks_in_memory

__all__ = ["compare_own"]


def compare_own(
    config: RunConfig,
    options: OwnOptions,
    *,
    log: Log = lambda line: None,
    progress: bool = False,
    make_runner: Callable[..., Runner] = Runner,
) -> Verdict:
    """Compare what can be done for the tasks of a run file, and say what to do.

    Args:
        config: the run file.
        options: folder, budget and the like.
        log: takes lines for the user.
        progress: show a bar, if standard error is a terminal.
        make_runner: makes what trains and measures.

    Raises:
        TaskFileError: listing all faults of the task files; nothing is run.
        ConfigError: the budget is too small for any comparison, trials of other sources are there, or the base is of a
            kind that comparisons do not have.
        InterruptedRunError: after Ctrl-C; the same call goes on.
        ColoraError: every contender failed.
    """
    begun = time.time()
    known = _prepared(config, options, log, make_runner)
    try:
        plan, outcome = _run(known, begun, progress)
        with waiting_lock(known.outputs.verdict_lock, seconds=PATIENCE):
            return conclude(known, plan, outcome)
    except KeyboardInterrupt:
        raise InterruptedRunError("stopped; the same command goes on from there") from None


def _prepared(config: RunConfig, options: OwnOptions, log: Log, make_runner: Callable[..., Runner]) -> Comparison:
    """Read the files, load the base, and see that every example can be used."""
    run = resolve_run(config)
    tasks_in_memory(run.tasks, "colora compare")
    runner = make_runner(
        config.base,
        config.training.base_dtype,
        training_device(config.training.device),
        chat_template=config.chat_template,
    )
    if run.prompt is None:
        _check_examples(run, runner)  # as `colora check` does, before prompts are compared on them
    run = settled(run, runner.model, runner.tokenizer, log)
    tasks, prompt = tasks_in_memory(run.tasks, "colora compare"), prompt_in_words(run, runner.tokenizer)
    data = OwnTasks(tasks, style=prompt)
    _check_examples(run, runner)
    contenders, missing = known_contenders(tasks)
    for line in missing:
        log(f"left out: {line}")
    if ignored := ignored_fields(config):
        log(f"not heeded, for all contenders train the same layers in the same way: {', '.join(ignored)}")
    trials = Trials(template_trial(config, data, runner.tokenizer), contenders, data)
    return Comparison(
        config=config,
        options=options,
        outputs=Outputs(options.output),
        runner=runner,
        trials=trials,
        measure=measure_of(tasks),
        prompt=prompt,
        missing=missing,
        code=trial_code(),
        log=log,
    )


def _check_examples(run: ResolvedRun, runner: Runner) -> None:
    """Raises TaskFileError for the first split with an example that cannot be used: such faults must not wait."""
    for split in ("test", "train", "val"):
        if some := [task for task in run.tasks if task.splits[split]]:
            encode_rows(some, runner.tokenizer, split, run.config.training.max_length)


def _run(known: Comparison, begun: float, progress: bool) -> tuple[PlanFile, Outcome]:
    """Run everything that the budget allows."""
    options, outputs, config = known.options, known.outputs, known.config
    curve = options.examples if options.examples is not None else config.examples_a_task or ()
    wanted = full_plan(known.data, default_steps(config, known.data), curve)
    if too_many := sorted(set(curve) - set(wanted.curve)):
        most = max(known.data.pool_sizes)
        known.log(
            f"not measured apart: {', '.join(map(str, too_many))} examples; no task has more than {most} to train on"
        )
    asked = _digest(known, wanted)
    # Trials of other sources that are run again have a budget of their own.
    clock = Clock.start(outputs.clock, f"{asked} {known.code}", options.minutes, at_work(outputs.store.folder), begun)
    plan, was_there = kept_plan(outputs.plan, asked, lambda: _fitting(known, wanted, begun))
    known.log(_about(plan, was_there, clock, options.minutes))
    coming = known.trials.expected(plan.plan)
    expected = [trial for stage in coming for trial in stage.trials]
    seconds = total_seconds(coming, plan.timings)
    if not (options.mixed or options.rerun_old):
        refuse_mixture(outputs.store.finished(expected), known.code, outputs.store.folder)
    known.runner.on_trained = partial(_keep, known)
    with open_bar(len(expected), progress) as bar:
        stages = StageRunner(
            store=outputs.store,
            data=known.data,
            runner=known.runner,
            plan=plan,
            plan_path=outputs.plan,
            clock=clock,
            code=known.code,
            rerun=options.rerun_old,
            bar=bar,
            log=known.log,
            metric=known.measure.metric,
            per_second=len(expected) / seconds if seconds else 0.0,
        )
        outcome = _stages(known, plan.plan, stages)
    return stages.plan, outcome


def _stages(known: Comparison, plan: Plan, stages: StageRunner) -> Outcome:
    trials = known.trials
    choosing = trials.choosing(plan)
    later = trials.expected(plan)[len(choosing) :]
    folds = stages.run(choosing, later)
    chosen = choose_settings(trials.contenders, folds, known.measure)
    for one in trials.contenders:
        if folds and chosen.get(one.method) is not None:
            known.log(f"{one.title}: {chosen[one.method]}")
    final = trials.final(plan, chosen)
    records = stages.run(final, [])
    return Outcome(
        chosen=chosen,
        choosing=[record for fold in folds for record in fold],
        records=[record for stage in records for record in stage],
        tried=[trial for stage in (*choosing, *final) for trial in stage.trials],
    )


def _fitting(known: Comparison, wanted: Plan, begun: float) -> PlanFile:
    """The plan that fits into the budget, by a few steps that are timed now; `begun`: when this process began."""
    timed = _digest_of([known.trials.template.model_dump(mode="json"), [repr(one) for one in known.trials.contenders]])
    timings = kept_timings(
        known.outputs.timings, timed, lambda: measure_timings(known.runner.run, known.trials, known.log), known.log
    )
    spent = time.time() - begun
    fitted = fit_plan(wanted, known.trials, timings, known.options.minutes, spent)
    return PlanFile(
        asked=_digest(known, wanted),
        plan=fitted.plan,
        timings=timings,
        given_up=tuple(fitted.given_up),
        seconds=round(fitted.seconds, 1),
        whole=round(fitted.whole, 1),
        larger=round(fitted.larger, 1),
        left=round(60 * known.options.minutes - spent, 1),
    )


def _about(plan: PlanFile, was_there: bool, clock: Clock, minutes: float) -> str:
    cut = f"; given up for the budget: {'; '.join(plan.given_up)}" if plan.given_up else ""
    if was_there:
        return f"going on: {plan.plan}{cut}; {readable_time(max(0.0, clock.left()))} are left"
    why = f" ({plan.why_cut(minutes)})" if plan.given_up else ""
    return f"this will take about {readable_time(plan.seconds)}: {plan.plan}{cut}{why}"


def _digest(known: Comparison, wanted: Plan) -> str:
    """Of all that a plan depends on."""
    asked = [
        known.trials.template.model_dump(mode="json"),
        [repr(one) for one in known.trials.contenders],
        wanted.model_dump(mode="json"),
        known.options.minutes,
    ]
    return _digest_of(asked)


def _digest_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _keep(known: Comparison, trial: Trial, layers: Mapping[str, ConstrainedLinear]) -> None:
    """Keep what a contender trained on all examples with the first seed: it may be what is handed over."""
    template = known.trials.template
    same = (trial.split, trial.examples, trial.seed) == (template.split, template.examples, template.seed)
    if same and layers and next(iter(layers.values())).term_layers():
        keep_weights(known.outputs.weights(trial), layers, trial.tasks)
