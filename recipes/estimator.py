"""The theory's estimator on flat arrays: many customers, few samples of each, no language model.

Each customer k has a matrix W_k = B Λ_k A of their own that turns a vector of twelve features into a number for each of
ten products. There are 40 customers with nine samples each, which cannot determine twelve features: nobody can be
fitted alone. B and A are common, and all together they can.

    python recipes/estimator.py        # needs scikit-learn: pip install "colora[regression]"

It prints (R² on samples that were not fitted; 1 is perfect):

    CoLoRA, all together:   R2 0.997
    ridge, each alone:      R2 0.591
    ridge, one for all:     R2 -0.044
    a newcomer, onboarded:  R2 0.994
"""

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

import colora

CUSTOMERS, SAMPLES, FEATURES, PRODUCTS, RANK, NOISE = 40, 9, 12, 10, 3, 0.1


def main() -> None:
    random = np.random.default_rng(0)
    B, A = random.normal(size=(PRODUCTS, RANK)), random.normal(size=(RANK, FEATURES))
    W = B @ random.normal(size=(CUSTOMERS + 1, RANK, RANK)) @ A / RANK

    def drawn(customers, samples):
        """X (N, features), y (N, products), and whose each row is."""
        groups = np.repeat(customers, samples)
        X = random.normal(size=(len(groups), FEATURES))
        clean = np.einsum("npf,nf->np", W[groups], X)
        return X, clean + NOISE * random.normal(size=clean.shape), groups

    X, y, groups = drawn(np.arange(CUSTOMERS), SAMPLES)
    X_test, y_test, groups_test = drawn(np.arange(CUSTOMERS), 50)

    together = colora.CoLoRARegressor(rank=RANK, ridge=1e-2).fit(X, y, groups)
    print(f"CoLoRA, all together:   R2 {together.score(X_test, y_test, groups_test):.3f}")
    alone = np.zeros_like(y_test)
    for customer in range(CUSTOMERS):
        fitted = Ridge(alpha=1.0).fit(X[groups == customer], y[groups == customer])
        alone[groups_test == customer] = fitted.predict(X_test[groups_test == customer])
    print(f"ridge, each alone:      R2 {r2_score(y_test, alone):.3f}")
    print(f"ridge, one for all:     R2 {r2_score(y_test, Ridge(alpha=1.0).fit(X, y).predict(X_test)):.3f}")

    X_new, y_new, _ = drawn([CUSTOMERS], SAMPLES)  # a newcomer: only a core of 3 x 3 numbers is fitted
    together.onboard(X_new, y_new, CUSTOMERS)
    print(f"a newcomer, onboarded:  R2 {together.score(*drawn([CUSTOMERS], 50)):.3f}")


if __name__ == "__main__":
    main()
