"""The end of a comparison: records collected, the verdict said and written, the page, and the adapters to serve."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from colora.bank.how_to_prompt import HowToPrompt
from colora.common.files import staged_folder, write_json, write_text
from colora.common.json_text import parse_json
from colora.errors import ColoraError
from colora.experiments.own.comparison import Comparison, Outcome
from colora.experiments.own.contenders import COLORA, IN_CONTEXT
from colora.experiments.own.handover.adapters import is_bank, write_bank_of, write_loras
from colora.experiments.own.handover.contexts import contexts, write_contexts
from colora.experiments.own.handover.ways import Way, as_lines, to_train_again, to_use
from colora.experiments.own.handover.weights import read_weights
from colora.experiments.own.planned import PlanFile
from colora.experiments.own.prompt import bank_info
from colora.experiments.own.stages import failures
from colora.experiments.own.verdict.judge import Judged, Verdict, judge
from colora.experiments.own.verdict.page import write_page
from colora.experiments.own.verdict.sentences import outcome_lines, verdict_sentences
from colora.experiments.trial import Trial, TrialRecord, write_trial_records
from colora.tasks.splits.shared import seen_elsewhere

__all__ = ["conclude"]

MADE_OF = "made_of.json"  # in the folder of adapters: which trial they are of
RECORDS, CHOOSING = "comparison", "choosing"


def conclude(known: Comparison, plan: PlanFile, outcome: Outcome) -> Verdict:
    """Judge what was measured and write everything that a user is left with.

    Raises:
        ColoraError: nothing was measured.
        CheckpointError: a file cannot be written.
    """
    folder, failed = known.outputs.folder, failures(known.outputs.store, outcome.tried)
    if not any(record.trial.examples == known.trials.template.examples for record in outcome.records):
        raise ColoraError("every contender failed: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
    write_trial_records(folder / f"{RECORDS}.jsonl", outcome.records)
    write_trial_records(folder / f"{CHOOSING}.jsonl", outcome.choosing)
    judged = Judged(known.trials.contenders, outcome.records, outcome.chosen, known.measure, known.data.pool_sizes)
    verdict = judge(judged, _facts(known, plan, failed))
    adapters = _hand_over(known, outcome, verdict.recommended)
    verdict = verdict.model_copy(update={"adapters": adapters, "sentences": verdict_sentences(verdict, known.measure)})
    ways = _ways(known, outcome, verdict)
    page = _page(known, outcome.records, verdict, ways)
    left = ([f"Report: {page}"] if page else []) + ([] if adapters else ["Nothing to serve but the base model."])
    lines = [*verdict.sentences, "", *outcome_lines(verdict, known.measure), "", *left, *as_lines(ways)]
    write_text(known.outputs.words, "\n".join(lines) + "\n")
    write_text(known.outputs.verdict, verdict.model_dump_json(indent=2) + "\n")  # last: then all is there
    return verdict


def _facts(known: Comparison, plan: PlanFile, failed: dict[str, str]) -> dict[str, object]:
    dropped = [f"no time was left for {name}" for name in plan.dropped]
    return {
        "failed": failed,
        "missing": list(known.missing),
        "tasks": [task.name for task in known.data.tasks],
        "seen_elsewhere": seen_elsewhere(known.data.of(known.trials.template)),
        "prompt": known.prompt,
        "plan": plan.plan,
        "given_up": [*plan.given_up, *dropped],
        "why_cut": plan.why_cut(known.options.minutes),
    }


def _page(known: Comparison, records: Sequence[TrialRecord], verdict: Verdict, ways: Sequence[Way]) -> Path | None:
    try:
        write_page(verdict, known.measure, records, ways, known.outputs.page)
    except ColoraError as error:  # the verdict stands without its page
        known.log(f"no report: {error}")
        return None
    return known.outputs.page


def _hand_over(known: Comparison, outcome: Outcome, method: str) -> str | None:
    """Write the adapters of the method to use; the folder's name, None if there is nothing to write."""
    folder, (record,) = known.outputs.adapters, _records_of(known, outcome, method)
    # By the sources that measured it: what is kept of others with --mixed stays as it was measured.
    made_of = {"trial": record.trial.key, "code": record.code, "prompt": known.prompt}
    if method == "base":
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier verdict
    elif not _is_made_of(folder, made_of):
        with staged_folder(folder.resolve()) as staging:
            _write(known, record.trial, staging)
            write_json(staging / MADE_OF, made_of)
    shutil.rmtree(known.outputs.trained, ignore_errors=True)
    return None if method == "base" else folder.name


def _records_of(known: Comparison, outcome: Outcome, method: str) -> list[TrialRecord]:
    template = known.trials.template
    return [
        record
        for record in outcome.records
        if (record.trial.method, record.trial.examples, record.trial.seed) == (method, template.examples, template.seed)
    ]


def _is_made_of(folder: Path, made_of: dict[str, str]) -> bool:
    try:
        return bool(parse_json((folder / MADE_OF).read_text(encoding="utf-8")) == made_of)
    except (OSError, ValueError):
        return False


def _write(known: Comparison, trial: Trial, folder: Path) -> None:
    path, model = known.outputs.weights(trial), known.runner.model
    if trial.method == IN_CONTEXT:
        write_contexts(contexts(known.data.of(trial), known.runner.tokenizer, model, trial), folder)
        return
    if not path.is_file():  # removed, or of an earlier verdict
        known.log(f"training {trial.method} once more for its adapters")
        known.runner.run(trial, known.data.of(trial))
    weights = read_weights(path)
    info = bank_info(known.config, known.data, trial.max_length, trial.steps * trial.rows)
    if is_bank(weights):
        write_bank_of(weights, model, folder / "bank", info)
    if trial.method != "colora":
        write_loras(weights, model, folder / "lora", HowToPrompt(info, known.runner.tokenizer))


def _ways(known: Comparison, outcome: Outcome, verdict: Verdict) -> list[Way]:
    """How to go on with what is recommended, and how CoLoRA is trained as it was measured."""
    ways = []
    if verdict.adapters is not None:
        (record,) = _records_of(known, outcome, verdict.recommended)
        tasks = known.data.of(record.trial)
        ways += to_use(known.outputs.adapters, record.trial, tasks, known.config, known.prompt)
    for record in _records_of(known, outcome, COLORA):
        ways.append(to_train_again(record.trial, known.config, known.options.command))
    return ways
