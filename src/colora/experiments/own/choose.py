"""Which setting of each contender is trained in the end: the one that did best on the validation examples."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from colora.experiments.own.contenders import Contender, Setting
from colora.experiments.own.verdict.measure import NATS, Measure
from colora.experiments.trial import TrialRecord

__all__ = ["choose_settings", "setting_scores"]

Scores = dict[Setting, tuple[float, float]]


def setting_scores(one: Contender, folds: Sequence[Sequence[TrialRecord]], measure: Measure) -> Scores:
    """For each setting its mean over folds of the measure, and of nats a token; those that failed in one are out.

    Args:
        one: a contender that is trained.
        folds: the finished records of each part of the examples.
        measure: what tasks are judged by.
    """
    found: Scores = {}
    for setting in one.settings:
        records = [
            record
            for fold in folds
            for record in fold
            if record.trial.method == one.method
            and (record.trial.lr, record.trial.core_lr) == (setting.lr, setting.core_lr)
        ]
        values = [(record.mean(measure.metric), record.mean(NATS.metric)) for record in records]
        known = [(value, nats) for value, nats in values if value is not None and nats is not None]
        if folds and len(known) == len(folds):
            found[setting] = fmean(value for value, _ in known), fmean(nats for _, nats in known)
    return found


def choose_settings(
    contenders: Sequence[Contender], folds: Sequence[Sequence[TrialRecord]], measure: Measure
) -> dict[str, Setting | None]:
    """The chosen setting of each contender, None of one that has none; a contender whose trials all failed is out.

    By the measure; nats decide between equals. Without folds it is the first.
    """
    chosen: dict[str, Setting | None] = {}
    for one in contenders:
        if not one.trained:
            chosen[one.method] = None
        elif not folds:
            chosen[one.method] = one.settings[0]
        elif scores := setting_scores(one, folds, measure):
            chosen[one.method] = max(scores, key=lambda setting: _rank(scores, setting, measure))
    return chosen


def _rank(scores: Mapping[Setting, tuple[float, float]], setting: Setting, measure: Measure) -> tuple[float, float]:
    value, nats = scores[setting]
    return measure.sign * value, NATS.sign * nats
