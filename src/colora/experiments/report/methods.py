"""The methods by name: in which order a table lists them, and one sentence on each. Unknown names just work."""

__all__ = ["METHODS", "REFERENCES", "is_rival", "method_order"]

METHODS = {
    "base": "The base model as it is, without training.",
    "local": "A LoRA of its own for each task, trained on that task alone.",
    "local-matched": "As local, with the rank at which all tasks together train about as many numbers as colora.",
    "pooled": "One LoRA, trained on the examples of all tasks.",
    "pooled-matched": "As pooled, with the rank at which it trains about as many numbers as colora.",
    "colora": "Shared factors A and B, and a small core for each task.",
    "colora-alternating": "As colora, the factors and the cores trained in turns.",
    "colora-diagonal": "As colora, with diagonal cores.",
    "mtl-lora": "Multi-task LoRA: a shared A, a transformation for each task, several B that each task mixes.",
    "lora-xs": "A and B from the singular vectors of the base weights, frozen; only the cores are trained.",
    "post-hoc": "Local LoRAs, brought to shared factors and cores after training.",
    "fedit": "Federated: A and B are averaged each round.",
    "ffa-lora": "Federated: A stays as drawn, B is averaged.",
    "fedsa-lora": "Federated: A is averaged, each client keeps its own B.",
    "fed-alora": "Federated: B is averaged, each client keeps its own A.",
    "rolora": "Federated: A and B are trained and averaged in alternating rounds.",
    "fedex-lora": "Federated: A and B are averaged, and what the averages miss is added to the base weights.",
    "fed-sb": "Federated: A and B are frozen, the cores are averaged.",
    "fed-colora": "Federated colora: A and B are averaged, each client keeps its core.",
    "fed-colora-alternating": "As fed-colora, the factors and the cores trained in turns.",
}
REFERENCES = ("colora", "fed-colora")  # what others are compared with: the first of these that is there


def method_order(name: str) -> tuple[int, str]:
    """Sort key: the place of the longest known name that `name` is or begins with; unknown ones come last.

    Examples:
        >>> sorted(["zzz", "colora-mean", "colora", "local"], key=method_order)
        ['local', 'colora', 'colora-mean', 'zzz']
    """
    stems = [known for known in METHODS if name == known or name.startswith(known + "-")]
    return (list(METHODS).index(max(stems, key=len)) if stems else len(METHODS), name)


def is_rival(name: str) -> bool:
    """Whether the method does without collaboration (`local*`) or without personal parts (`pooled*`)."""
    return name.split("-")[0] in ("local", "pooled")
