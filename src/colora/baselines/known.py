"""The methods by name. To add one: a file in `methods/` with its update rule, a line here, and a twin in the tests."""

from colora.baselines.method import Method
from colora.baselines.methods.base import BASE
from colora.baselines.methods.colora import (
    COLORA,
    COLORA_ALTERNATING,
    COLORA_DIAGONAL,
    COLORA_MEAN,
    COLORA_RESIDUAL,
)
from colora.baselines.methods.fed_alora import FED_ALORA
from colora.baselines.methods.fed_colora import FED_COLORA, FED_COLORA_ALTERNATING
from colora.baselines.methods.fed_sb import FED_SB
from colora.baselines.methods.fedex_lora import FEDEX_LORA
from colora.baselines.methods.fedit import FEDIT
from colora.baselines.methods.fedsa_lora import FEDSA_LORA
from colora.baselines.methods.ffa_lora import FFA_LORA
from colora.baselines.methods.local import LOCAL, LOCAL_MATCHED
from colora.baselines.methods.lora_xs import LORA_XS
from colora.baselines.methods.mtl_lora import MTL_LORA
from colora.baselines.methods.pooled import POOLED, POOLED_MATCHED
from colora.baselines.methods.post_hoc import POST_HOC
from colora.baselines.methods.rolora import ROLORA

__all__ = ["METHODS"]

_CENTRALISED = (
    BASE, LOCAL, LOCAL_MATCHED, POOLED, POOLED_MATCHED, COLORA, COLORA_ALTERNATING, COLORA_DIAGONAL, COLORA_MEAN,
    COLORA_RESIDUAL, MTL_LORA, LORA_XS, POST_HOC,
)  # fmt: skip
_FEDERATED = (
    FEDIT, FFA_LORA, FEDSA_LORA, FED_ALORA, ROLORA, FEDEX_LORA, FED_SB, FED_COLORA, FED_COLORA_ALTERNATING,
)  # fmt: skip

METHODS: dict[str, Method] = {method.name: method for method in (*_CENTRALISED, *_FEDERATED)}
"""Every method, in the order of tables."""
