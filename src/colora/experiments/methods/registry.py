"""The methods by name, in the order of tables.

To add one: a file in `catalogue/` with its update rule, a line here, and a reference implementation in the tests.
"""

from colora.experiments.methods.catalogue.centralised.alora import ALORA, SHARED_A
from colora.experiments.methods.catalogue.centralised.colora import (
    COLORA,
    COLORA_ALTERNATING,
    COLORA_DIAGONAL,
    COLORA_MEAN,
    COLORA_OWN_A,
    COLORA_RESIDUAL,
)
from colora.experiments.methods.catalogue.centralised.local import LOCAL, LOCAL_MATCHED
from colora.experiments.methods.catalogue.centralised.lora_xs import LORA_XS
from colora.experiments.methods.catalogue.centralised.mtl_lora import MTL_LORA
from colora.experiments.methods.catalogue.centralised.one_core import COLORA_KIND_CORES, COLORA_ONE_CORE
from colora.experiments.methods.catalogue.centralised.oppu import OPPU
from colora.experiments.methods.catalogue.centralised.pooled import POOLED, POOLED_MATCHED
from colora.experiments.methods.catalogue.centralised.pooled_and_own import POOLED_AND_OWN
from colora.experiments.methods.catalogue.centralised.post_hoc import POST_HOC
from colora.experiments.methods.catalogue.centralised.share import SHARE
from colora.experiments.methods.catalogue.centralised.shared_core import SHARED_CORE
from colora.experiments.methods.catalogue.federated.ditto import DITTO
from colora.experiments.methods.catalogue.federated.fed_alora import FED_ALORA
from colora.experiments.methods.catalogue.federated.fed_colora import FED_COLORA, FED_COLORA_ALTERNATING
from colora.experiments.methods.catalogue.federated.fed_core import FED_CORE
from colora.experiments.methods.catalogue.federated.fed_sb import FED_SB
from colora.experiments.methods.catalogue.federated.feddpa import FEDDPA, FEDDPA_F
from colora.experiments.methods.catalogue.federated.fedex_lora import FEDEX_LORA
from colora.experiments.methods.catalogue.federated.fedit import FEDIT
from colora.experiments.methods.catalogue.federated.fedsa_lora import FEDSA_LORA
from colora.experiments.methods.catalogue.federated.ffa_lora import FFA_LORA
from colora.experiments.methods.catalogue.federated.rolora import ROLORA
from colora.experiments.methods.catalogue.untrained.base import BASE
from colora.experiments.methods.catalogue.untrained.frequencies import FREQUENCIES
from colora.experiments.methods.catalogue.untrained.in_context import IN_CONTEXT, IN_CONTEXT_NEAREST
from colora.experiments.methods.method import Method

__all__ = ["METHODS"]

_UNTRAINED = (
    BASE,
    IN_CONTEXT,
    IN_CONTEXT_NEAREST,
    FREQUENCIES,
)
_CENTRALISED = (
    LOCAL,
    LOCAL_MATCHED,
    POOLED,
    POOLED_MATCHED,
    OPPU,
    POOLED_AND_OWN,
    ALORA,
    SHARED_A,
    SHARED_CORE,
    COLORA,
    COLORA_ALTERNATING,
    COLORA_DIAGONAL,
    COLORA_MEAN,
    COLORA_RESIDUAL,
    COLORA_OWN_A,
    COLORA_ONE_CORE,
    COLORA_KIND_CORES,
    MTL_LORA,
    LORA_XS,
    POST_HOC,
    SHARE,
)
_FEDERATED = (
    FEDIT,
    FFA_LORA,
    FEDSA_LORA,
    FED_ALORA,
    ROLORA,
    FEDEX_LORA,
    FED_SB,
    FED_CORE,
    FEDDPA,
    FEDDPA_F,
    DITTO,
    FED_COLORA,
    FED_COLORA_ALTERNATING,
)

METHODS: dict[str, Method] = {method.name: method for method in (*_UNTRAINED, *_CENTRALISED, *_FEDERATED)}
"""Every method, in the order of tables."""
