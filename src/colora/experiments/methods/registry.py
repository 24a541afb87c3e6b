"""The methods by name, in the order of tables.

To add one: a file in `catalogue/` with its update rule, a line here, and a reference implementation in the tests.
"""

from colora.experiments.methods.catalogue.base import BASE
from colora.experiments.methods.catalogue.colora import (
    COLORA,
    COLORA_ALTERNATING,
    COLORA_DIAGONAL,
    COLORA_MEAN,
    COLORA_RESIDUAL,
)
from colora.experiments.methods.catalogue.fed_alora import FED_ALORA
from colora.experiments.methods.catalogue.fed_colora import FED_COLORA, FED_COLORA_ALTERNATING
from colora.experiments.methods.catalogue.fed_sb import FED_SB
from colora.experiments.methods.catalogue.fedex_lora import FEDEX_LORA
from colora.experiments.methods.catalogue.fedit import FEDIT
from colora.experiments.methods.catalogue.fedsa_lora import FEDSA_LORA
from colora.experiments.methods.catalogue.ffa_lora import FFA_LORA
from colora.experiments.methods.catalogue.local import LOCAL, LOCAL_MATCHED
from colora.experiments.methods.catalogue.lora_xs import LORA_XS
from colora.experiments.methods.catalogue.mtl_lora import MTL_LORA
from colora.experiments.methods.catalogue.pooled import POOLED, POOLED_MATCHED
from colora.experiments.methods.catalogue.post_hoc import POST_HOC
from colora.experiments.methods.catalogue.rolora import ROLORA
from colora.experiments.methods.method import Method

__all__ = ["METHODS"]

_CENTRALISED = (
    BASE,
    LOCAL,
    LOCAL_MATCHED,
    POOLED,
    POOLED_MATCHED,
    COLORA,
    COLORA_ALTERNATING,
    COLORA_DIAGONAL,
    COLORA_MEAN,
    COLORA_RESIDUAL,
    MTL_LORA,
    LORA_XS,
    POST_HOC,
)
_FEDERATED = (
    FEDIT,
    FFA_LORA,
    FEDSA_LORA,
    FED_ALORA,
    ROLORA,
    FEDEX_LORA,
    FED_SB,
    FED_COLORA,
    FED_COLORA_ALTERNATING,
)

METHODS: dict[str, Method] = {method.name: method for method in (*_CENTRALISED, *_FEDERATED)}
"""Every method, in the order of tables."""
