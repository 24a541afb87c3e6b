"""Fed-SB: factors frozen from a gradient, the r × r core averaged (Singhal et al., arXiv:2502.15436).

    G = U S Vᵀ the gradient at W0,  B = U_r,  A = V_rᵀ,  Λ = 0
    client k:  Λ_k ← Adam(∇ L_k)
    server:    Λ = mean_k Λ_k              one model for all: W_k = W0 + s · B Λ A

The average is exact and tiny. The core moves at the cores' rate. Here G is that of the first client's first batch, who
sends A and B once; and Λ starts at 0, not at a first step of full fine-tuning.
"""

from colora.experiments.methods.method import FROZEN, MEAN, Method, Term

__all__ = ["FED_SB"]

FED_SB = Method(
    "fed-sb",
    "Fed-SB",
    "Federated: A and B are frozen, the cores are averaged.",
    "Singhal et al., arXiv:2502.15436",
    terms=(Term(A=FROZEN, B=FROZEN, core=MEAN),),
    federated=True,
    start="gradient",
    core_rate=True,
)
