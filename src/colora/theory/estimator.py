"""The model as an estimator of scikit-learn, for those who have flat arrays."""

import warnings
from collections.abc import Hashable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike

from colora.common.text import listed
from colora.errors import ColoraError, ConfigError
from colora.theory.arrays import as_numbers, labelled, require_finite, users_from_arrays
from colora.theory.cores import fit_cores
from colora.theory.freedom import identifiability
from colora.theory.history import Entry
from colora.theory.recover import recover
from colora.theory.settings import SolverSettings
from colora.theory.users import Users

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import r2_score
    from sklearn.utils import check_random_state
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ColoraError(
        f'expected scikit-learn for the estimator, found: {error}. Install it with: pip install "colora[regression]"'
    ) from error

__all__ = ["CoLoRARegressor"]

ONE_USER = (
    "groups: expected the label of each row's user, found None: all samples are taken for those of one user. In "
    "searches, cross-validation and pipelines groups reach fit by metadata routing alone: "
    "set_config(enable_metadata_routing=True) and set_fit_request(groups=True). If there is one user, say so by "
    "groups=[0] * len(X)"
)


class CoLoRARegressor(RegressorMixin, BaseEstimator):
    """Linear regression of many users at once, who share two subspaces and have a small core each.

        minimise Σ_k Σ_i (y_i − ⟨X_i, B Λ_k A⟩)² + ridge ‖B Λ_k A‖²

    over A (r, d_in), B (d_out, r) and cores Λ_k (r, r) (arXiv:2602.07218, heterogeneous linear regression). There is no
    intercept. Samples come in one of three forms:

    - X (N, d_out, d_in) with y (N,): matrices, y_i = ⟨X_i, W_k⟩;
    - X (N, d_in) with y (N, d_out): vectors, y_i = W_k x_i;
    - X (N, d_out · d_in) with y (N,) and `shape=(d_out, d_in)`: flattened matrices, for pipelines.

    `groups` (N,) says whose sample a row is, by labels that can be sorted; None is one user, and `fit` warns of it. It
    is metadata to scikit-learn: in searches and cross-validation, enable metadata routing and ask for it with
    `set_fit_request(groups=True)` and `set_score_request(groups=True)`; else the splitter alone gets it. Columns of a
    DataFrame are known by their names: others, or the same in another order, are refused. Arrays on disk
    (`numpy.memmap`) are read block by block.

    Args:
        rank: r.
        solver, init, annealing, restarts, max_iter, tol: as `colora.theory.settings.SolverSettings`.
        ridge: weight of the penalty, in units of squared X.
        shape: (d_out, d_in) of flattened matrices.
        random_state: an int, a `numpy.random.RandomState`, or None for another at each fit: seed of random starts.

    Attributes:
        A_ (r, d_in), B_ (d_out, r): shared factors, A_ A_ᵀ = B_ᵀ B_ = I.
        cores_: (K, r, r).
        users_: labels (K,), sorted, then the onboarded ones as they came.
        n_features_in_: columns of X; there is none where X was given as (N, d_out, d_in).
        feature_names_in_: their names, if X was a DataFrame whose columns all have one.
        objective_: what was minimised, at the end of `fit`.
        n_iter_: iterations over all starts and ridges.
        n_starts_: starts tried.
        history_: `Entry` of each iteration.

    Examples:
        >>> random = np.random.default_rng(0)
        >>> W = random.normal(size=(6, 2)) @ random.normal(size=(30, 2, 2)) @ random.normal(size=(2, 8))
        >>> groups, X = np.repeat(np.arange(30), 10), random.normal(size=(300, 6, 8))
        >>> y = np.einsum("nij,nij->n", X, W[groups])
        >>> model = CoLoRARegressor(rank=2).fit(X, y, groups)
        >>> model.cores_.shape, bool(np.abs(model.coef(7) - W[7]).max() < 1e-8)
        ((30, 2, 2), True)
    """

    def __init__(
        self,
        *,
        rank: int = 2,
        solver: str = "second-order",
        init: str | tuple[ArrayLike, ArrayLike] = "spectral",
        ridge: float = 0.0,
        annealing: Sequence[float] | None = None,
        restarts: int | None = None,
        max_iter: int = 1000,
        tol: float = 1e-7,
        shape: tuple[int, int] | None = None,
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.rank = rank
        self.solver = solver
        self.init = init
        self.ridge = ridge
        self.annealing = annealing
        self.restarts = restarts
        self.max_iter = max_iter
        self.tol = tol
        self.shape = shape
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> "CoLoRARegressor":
        """Shared factors and a core for each user.

        Warns (`UserWarning`) of missing groups and, where ridge is 0, of what the samples do not determine; a ridge
        makes it determined.
        Warns (`ConvergenceWarning`) if the iterations ended before the solver did.

        Raises:
            ConfigError: a parameter that cannot be used.
            ColoraError: arrays that cannot be used; each message says what was expected.
        """
        self._check_parameters()
        self._check_names(X, reset=True)
        X, y = as_numbers("X", X), as_numbers("y", y)
        if groups is None:
            warnings.warn(ONE_USER, UserWarning, stacklevel=2)
        users, labels = users_from_arrays(self._shaped(X), y, groups)
        if 1 <= self.rank <= min(users.d_out, users.d_in):  # `recover` refuses others
            self._warn(users, labels, self.rank, vectors=y.ndim == 2)
        fit = recover(users, self.rank, self._settings())
        if not fit.converged:
            warnings.warn(
                f"the best start had not converged after max_iter={self.max_iter} iterations; raise max_iter or tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.A_, self.B_, self.cores_ = (
            factor.numpy().copy() for factor in (fit.factors.A, fit.factors.B, fit.factors.cores)
        )
        self.users_ = labels
        self.objective_ = fit.objective
        self.n_iter_ = fit.iterations
        self.n_starts_ = fit.starts
        self.history_: tuple[Entry, ...] = fit.history
        self._vectors = y.ndim == 2
        if X.ndim == 2:
            self.n_features_in_ = X.shape[1]
        elif hasattr(self, "n_features_in_"):
            del self.n_features_in_
        return self

    def predict(self, X: ArrayLike, groups: ArrayLike | None = None) -> np.ndarray:
        """⟨X_i, W_k⟩, (N,), or W_k x_i, (N, d_out), as in `fit`; k is the user of the row.

        Raises:
            NotFittedError: before `fit`.
            ColoraError: an X that does not fit, a user that was not in `fit`, or no groups where there are several
                users.
        """
        check_is_fitted(self)
        self._check_names(X, reset=False)
        X = self._like_fitted(X)
        require_finite("X", X)
        if groups is None and len(self.users_) > 1:
            raise ColoraError(
                f"groups: expected the label of each row's user, for there are {len(self.users_)} of them, found None"
            )
        found, of_row = labelled(groups, len(X))
        indices = np.zeros(1, dtype=int) if groups is None else self._indices(found)
        predicted = np.empty((len(X), self.B_.shape[0]) if self._vectors else len(X))
        by_user = np.split(np.argsort(of_row, kind="stable"), np.cumsum(np.bincount(of_row, minlength=len(found)))[:-1])
        for index, rows in zip(indices, by_user, strict=True):
            of_user = np.asarray(X[rows], dtype=np.float64)
            W = self._matrix(index)
            predicted[rows] = of_user @ W.T if self._vectors else of_user.reshape(len(rows), -1) @ W.ravel()
        return predicted

    def score(
        self,
        X: ArrayLike,
        y: ArrayLike,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """R² over all samples of all users together, for vectors the mean of that of their entries.

        `sample_weight` (N,) weighs the samples; scikit-learn's pipelines want it in a score.

        Raises:
            ColoraError: as `predict`, or y that does not fit.
        """
        predicted = self.predict(X, groups)
        y = as_numbers("y", y)
        require_finite("y", y)
        if y.shape != predicted.shape:
            raise ColoraError(f"y: expected shape {predicted.shape}, found {y.shape}")
        return float(r2_score(y, predicted, sample_weight=sample_weight))

    def onboard(self, X: ArrayLike, y: ArrayLike, group: Hashable) -> "CoLoRARegressor":
        """Add a user by their core alone, r² numbers; A, B and everybody else stay as they are, to the bit.

        Args:
            X, y: the user's samples, in the form that `fit` had.
            group: their label.

        Raises:
            NotFittedError: before `fit`.
            ColoraError: the label of a user that is in the model, or one of another kind, or samples that do not fit.
        """
        check_is_fitted(self)
        self._check_names(X, reset=False)
        label, users_in_fit = labelled(np.asarray([group]), 1)[0], self.users_.tolist()
        both = (label.tolist()[0], users_in_fit[0])
        # Otherwise numpy would turn one of them into the other, and a number into a string.
        if type(both[0]) is not type(both[1]) and not all(isinstance(one, Real) for one in both):
            raise ColoraError(
                f"group: expected a label of the kind that others have, as {users_in_fit[0]!r}, found {group!r}"
            )
        if both[0] in users_in_fit:
            raise ColoraError(f"group: expected a new user, found the known {group!r}; fit again to change users")
        users, _ = users_from_arrays(self._like_fitted(X), y)
        if users.d_out != self._sides[0]:
            raise ColoraError(f"y: expected shape (N, {self._sides[0]}), as in fit, found {np.shape(y)}")
        self._warn(users, label, len(self.A_), vectors=self._vectors, frozen=True)
        cores, _ = fit_cores(users, torch.from_numpy(self.A_), torch.from_numpy(self.B_), self.ridge)
        self.cores_ = np.concatenate([self.cores_, cores.numpy()])
        self.users_ = np.concatenate([self.users_, label])
        return self

    def coef(self, user: Hashable) -> np.ndarray:
        """The full matrix W_k = B Λ_k A of a user, by label, (d_out, d_in).

        Raises:
            NotFittedError: before `fit`.
            ColoraError: a user that was not in `fit`.
        """
        check_is_fitted(self)
        return self._matrix(self._indices(np.asarray([user]))[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.target_tags.multi_output = True
        return tags

    @property
    def _sides(self) -> tuple[int, int]:
        return self.B_.shape[0], self.A_.shape[1]

    def _matrix(self, index: int) -> np.ndarray:
        return self.B_ @ self.cores_[index] @ self.A_

    def _indices(self, labels: np.ndarray) -> np.ndarray:
        indices = {label: index for index, label in enumerate(self.users_.tolist())}
        unknown = [label for label in labels.tolist() if label not in indices]
        if unknown:
            found = listed(map(repr, unknown), 1)
            raise ColoraError(f"groups: expected users that were in fit, found {found}; add a new user with onboard")
        return np.array([indices[label] for label in labels.tolist()])

    def _check_parameters(self) -> None:
        faults = []  # `recover` checks the others
        if not isinstance(self.init, str) and not (isinstance(self.init, tuple | list) and len(self.init) == 2):
            faults.append(f"init: expected 'spectral', 'random' or factors (A, B), found {self.init!r}")
        if self.shape is not None and not (
            isinstance(self.shape, tuple | list)
            and len(self.shape) == 2
            and all(isinstance(side, int | np.integer) and side > 0 for side in self.shape)
        ):
            faults.append(f"shape: expected (d_out, d_in), two positive integers, found {self.shape!r}")
        if faults:
            raise ConfigError("parameters that cannot be used", faults)

    def _check_names(self, X: ArrayLike, *, reset: bool) -> None:
        """Keep the names of a DataFrame's columns, or compare them with those kept, as all of scikit-learn does."""
        try:
            validate_data(self, X, reset=reset, skip_check_array=True, ensure_2d=False)
        except (TypeError, ValueError) as error:
            raise ColoraError(f"X: {error}") from error

    def _settings(self) -> SolverSettings:
        init: Any = self.init
        if not isinstance(init, str):
            init = tuple(torch.from_numpy(np.array(factor, dtype=np.float64)) for factor in init)
        return SolverSettings(
            solver=self.solver,
            init=init,
            ridge=self.ridge,
            annealing=self.annealing,
            restarts=self.restarts,
            max_iter=self.max_iter,
            tol=self.tol,
            random_state=int(check_random_state(self.random_state).randint(2**31 - 1)),
        )

    def _shaped(self, X: ArrayLike) -> np.ndarray:
        """X with flattened matrices in their shape; others as they are."""
        X = as_numbers("X", X)
        if self.shape is None:
            return X
        d_out, d_in = self.shape
        if X.shape[1:] not in ((d_out * d_in,), (d_out, d_in)):
            raise ColoraError(
                f"X: expected (N, {d_out * d_in}) or (N, {d_out}, {d_in}) for shape=({d_out}, {d_in}), found {X.shape}"
            )
        return X.reshape(len(X), d_out, d_in)

    def _like_fitted(self, X: ArrayLike) -> np.ndarray:
        X, (d_out, d_in) = self._shaped(X), self._sides
        if X.shape[1:] != ((d_in,) if self._vectors else (d_out, d_in)):
            wanted = f"(N, {d_in})" if self._vectors else f"(N, {d_out}, {d_in})"
            found = f"X: expected {wanted}, as in fit, found {X.shape}"
            if X.ndim == 1:
                found += ". Reshape your data: X.reshape(1, -1) is one sample"
            elif X.ndim == 2 and hasattr(self, "n_features_in_"):
                name = type(self).__name__
                found += (
                    f": X has {X.shape[1]} features, but {name} is expecting {self.n_features_in_} features as input"
                )
            raise ColoraError(found)
        return X

    def _warn(self, users: Users, labels: np.ndarray, rank: int, *, vectors: bool, frozen: bool = False) -> None:
        if self.ridge:
            return
        per_sample = users.d_out if vectors else 1
        for statement in identifiability(
            users.observations, users.d_out, users.d_in, rank, labels=labels, per_sample=per_sample, frozen=frozen
        ):
            warnings.warn(f"{statement}; a ridge > 0 chooses a unique and stable solution", UserWarning, stacklevel=3)
