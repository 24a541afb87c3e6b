"""Small recovery experiments for tests: seconds, not minutes."""

from pathlib import Path
from typing import Any

import yaml

from colora.theory.experiments.config import RecoveryExperiment

SMALL: dict[str, Any] = {
    "name": "small",
    "problem": {"users": [2, 6], "samples": [9, 40], "d_out": 6, "d_in": 5, "rank": 1},
    "methods": {
        "alternating": {"solver": "alternating", "max_iter": 200},
        "local-least-squares": {"baseline": "local-least-squares"},
    },
    "seeds": 2,
}


def small(**changes: Any) -> RecoveryExperiment:
    return RecoveryExperiment.model_validate(SMALL | changes)


def write_small(path: Path, **changes: Any) -> Path:
    path.write_text(yaml.safe_dump(SMALL | changes, sort_keys=False), encoding="utf-8")
    return path
