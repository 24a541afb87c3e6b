"""The reference implementation of every method, in the order of the registry."""

from collections.abc import Callable

from tests.helpers import reference_methods as plain
from tests.helpers import reference_rivals as rivals
from tests.helpers.reference_methods import Toy, Trained, Values

REFERENCES: dict[str, Callable[[Toy, Values], Trained]] = {
    # examples in the prompt change no weight; what they do is in tests/experiments/methods/test_in_context.py
    "base": plain.base,
    "in-context": plain.base,
    "in-context-nearest": plain.base,
    "frequencies": plain.base,
    "local": plain.local,
    "local-matched": plain.local,
    "pooled": plain.pooled,
    "pooled-matched": plain.pooled,
    "oppu": rivals.oppu,
    "pooled-and-own": rivals.pooled_and_own,
    "alora": rivals.alora,
    "shared-a": rivals.shared_a,
    "shared-core": rivals.shared_core,
    "colora": plain.colora,
    "colora-alternating": plain.colora_alternating,
    "colora-diagonal": plain.colora_diagonal,
    "colora-mean": plain.colora_mean,
    "colora-residual": plain.colora_residual,
    "colora-own-a": rivals.colora_own_a,
    "colora-one-core": rivals.colora_one_core,
    "colora-kind-cores": rivals.colora_kind_cores,
    "mtl-lora": plain.mtl_lora,
    "lora-xs": plain.lora_xs,
    "post-hoc": plain.post_hoc,
    "share": rivals.share,
    "fedit": plain.fedit,
    "ffa-lora": plain.ffa_lora,
    "fedsa-lora": plain.fedsa_lora,
    "fed-alora": plain.fed_alora,
    "rolora": plain.rolora,
    "fedex-lora": plain.fedex_lora,
    "fed-sb": plain.fed_sb,
    "fed-core": rivals.fed_core,
    "feddpa": rivals.feddpa,
    "feddpa-f": rivals.feddpa_f,
    "ditto": rivals.ditto,
    "fed-colora": plain.fed_colora,
    "fed-colora-alternating": plain.fed_colora_alternating,
}
