"""Which sources the result of a trial depends on."""

from colora.common.provenance import code_digest

__all__ = ["LEFT_OUT", "PARTS", "trial_code"]

# What trains, measures and makes tasks. The rest (planning, reports, the command line, single runs) decides which
# trials are run and what is shown of them, not what they give.
PARTS = (
    "adapter/core_start",
    "algebra",
    "evaluation",
    "experiments/methods",
    "models",
    "tasks",
    "training/loop/schedule",
)
# A trial says itself which tasks it is of, so a new group changes no result.
LEFT_OUT = ("tasks/families/named.py",)


def trial_code() -> str:
    """The digest of these sources; records of two digests are not one experiment."""
    return code_digest(PARTS, leave_out=LEFT_OUT)
