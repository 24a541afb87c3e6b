"""An r × r core averaged, A and B at home: what is shared has no dimension of the model.

    client k:  A_k, Λ_k, B_k ← Adam(∇ L_k)
    server:    Λ = mean_k Λ_k              W_k = W0 + s · B_k Λ A_k

FedMosaic (Seo et al., arXiv:2506.11024) has an r × r matrix and a vector of r between A and B, and clients with base
models of different sizes share these two. This is not FedMosaic: there each client gets a mean of its own, weighted by
how alike the tasks' gradients are; here there is no vector, the mean is plain, and the base is one. A and B start alike
at all clients, the core at the identity.
"""

from colora.experiments.methods.method import MEAN, OWN, Method, Term

__all__ = ["FED_CORE"]

FED_CORE = Method(
    "fed-core",
    "core averaged, A and B own",
    "Federated: the core is averaged, each client keeps its own A and B.",
    "after Seo et al., arXiv:2506.11024",
    terms=(Term(A=OWN, B=OWN, core=MEAN),),
    federated=True,
    core_rate=True,
)
