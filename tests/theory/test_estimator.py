"""The estimator: exact where samples are ample, blind to gauge, order and names, and at home in scikit-learn."""

import importlib
import pickle
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

from colora.errors import ColoraError, ConfigError
from colora.theory.estimator import CoLoRARegressor

OUT, IN, RANK, USERS = 4, 5, 2, 6
FORMS = ["matrices", "vectors", "flat"]


def truth(seed=0):
    random = np.random.default_rng([seed, 1])
    return random.normal(size=(OUT, RANK)) @ random.normal(size=(USERS, RANK, RANK)) @ random.normal(size=(RANK, IN))


def observed(form, W, samples=20, noise=0.0, seed=0):
    """X, y and users 0, 1, ... of W (K, d_out, d_in), `samples` each, in mixed order."""
    random = np.random.default_rng([seed, 2])
    groups = random.permutation(np.repeat(np.arange(len(W)), samples))
    if form == "vectors":
        X = random.normal(size=(len(groups), IN))
        y = np.einsum("noi,ni->no", W[groups], X)
    else:
        X = random.normal(size=(len(groups), OUT, IN))
        y = np.einsum("noi,noi->n", W[groups], X)
    X = X.reshape(len(X), -1) if form == "flat" else X
    return X, y + noise * random.normal(size=y.shape), groups


def regressor(form="matrices", **settings):
    return CoLoRARegressor(rank=RANK, shape=(OUT, IN) if form == "flat" else None, **settings)


@pytest.fixture(scope="module", params=FORMS)
def fitted(request):
    """form, W, X, y, groups, model: without noise."""
    W = truth()
    X, y, groups = observed(request.param, W)
    return request.param, W, X, y, groups, regressor(request.param).fit(X, y, groups)


def assert_recovered(model, W, labels):
    for label, one in zip(labels, W, strict=True):
        assert np.abs(model.coef(label) - one).max() < 1e-9


def test_recovery_is_exact_in_all_forms(fitted):
    form, W, X, y, groups, model = fitted
    assert_recovered(model, W, range(USERS))
    assert np.allclose(model.predict(X, groups), y, atol=1e-9)
    assert model.predict(X, groups).shape == y.shape
    assert model.score(X, y, groups) == pytest.approx(1.0)
    assert np.allclose(model.A_ @ model.A_.T, np.eye(RANK))
    assert np.allclose(model.B_.T @ model.B_, np.eye(RANK))
    assert (model.A_.shape, model.B_.shape, model.cores_.shape) == ((RANK, IN), (OUT, RANK), (USERS, RANK, RANK))
    assert model.users_.tolist() == list(range(USERS))
    assert model.objective_ < 1e-18
    assert (model.n_starts_, model.n_iter_) == (1, len(model.history_))
    assert getattr(model, "n_features_in_", None) == {"vectors": IN, "flat": OUT * IN}.get(form)


def test_a_prediction_is_what_the_formula_says():
    X, y, groups = observed("matrices", truth(), noise=0.5)
    model = regressor().fit(X, y, groups)
    predicted = model.predict(X, groups)
    for row in range(len(X)):
        W = model.B_ @ model.cores_[groups[row]] @ model.A_
        assert predicted[row] == pytest.approx((X[row] * W).sum())
    wrong = ((y - predicted) ** 2).sum()
    assert model.objective_ == pytest.approx(wrong)
    assert model.score(X, y, groups) == pytest.approx(1 - wrong / ((y - y.mean()) ** 2).sum())


@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_a_change_of_gauge_changes_no_prediction(fitted, seed):
    _, _, X, _, groups, model = fitted
    random = np.random.default_rng(seed)
    P, Q = (np.linalg.qr(random.normal(size=(RANK, RANK)))[0] * random.uniform(0.5, 2, RANK) for _ in range(2))
    other = pickle.loads(pickle.dumps(model))
    other.A_, other.B_ = Q @ model.A_, model.B_ @ P
    other.cores_ = np.linalg.inv(P) @ model.cores_ @ np.linalg.inv(Q)
    assert np.allclose(other.predict(X, groups), model.predict(X, groups), atol=1e-12)
    assert np.allclose(other.coef(1), model.coef(1), atol=1e-12)


@given(seed=st.integers(0, 10_000), form=st.sampled_from(FORMS), noise=st.sampled_from([0.0, 0.01]))
@settings(max_examples=15, deadline=None)
def test_the_order_of_rows_and_the_names_of_users_do_not_matter(seed, form, noise):
    X, y, groups = observed(form, truth(seed % 7), samples=30, noise=noise, seed=seed)
    random = np.random.default_rng(seed)
    rows, names = random.permutation(len(X)), random.permutation(list("uvwxyz"))
    ours = regressor(form).fit(X, y, groups)
    theirs = regressor(form).fit(X[rows], y[rows], names[groups][rows])
    assert np.allclose(theirs.predict(X, names[groups]), ours.predict(X, groups), atol=1e-8)
    assert theirs.users_.tolist() == sorted(names.tolist())


def test_it_repeats_itself_to_the_bit_and_random_state_decides():
    X, y, groups = observed("matrices", truth(), noise=0.3)
    first, second, other = (
        regressor(init="random", restarts=0, max_iter=30, annealing=(), random_state=state).fit(X, y, groups)
        for state in (3, 3, np.random.RandomState(4))
    )
    assert np.array_equal(first.cores_, second.cores_)
    assert not np.allclose(first.cores_, other.cores_, atol=1e-3)
    regressor(random_state=None).fit(X, y, groups)


@pytest.mark.parametrize("solver", ["second-order", "alternating", "scaled-gradient", "gradient"])
def test_of_full_rank_it_is_least_squares_for_each_user(solver):
    random = np.random.default_rng(2)
    X, groups = random.normal(size=(60, 2, 2)), np.repeat([0, 1, 2], 20)
    y = random.normal(size=60)
    model = CoLoRARegressor(rank=2, solver=solver, restarts=0, tol=1e-14).fit(X, y, groups)
    for user in range(3):
        own = groups == user
        alone = np.linalg.lstsq(X[own].reshape(20, 4), y[own], rcond=None)[0]
        assert np.allclose(model.coef(user).ravel(), alone, atol=1e-5)


def test_settings_reach_the_solver():
    W = truth()
    X, y, groups = observed("matrices", W, noise=0.3)
    A, B = np.linalg.svd(W[0])[2][:RANK], np.linalg.svd(W[0])[0][:, :RANK]
    with pytest.warns(ConvergenceWarning, match="had not converged after max_iter=3 iterations; raise max_iter or tol"):
        model = regressor(solver="alternating", init=(A, B), max_iter=3, ridge=100.0).fit(X, y, groups)
    assert model.n_iter_ == 3
    assert {entry.ridge for entry in model.history_} == {100.0}
    assert np.abs(model.cores_).sum() < np.abs(regressor().fit(X, y, groups).cores_).sum()


def test_files_give_what_memory_gives(fitted, tmp_path):
    form, _, X, y, groups, model = fitted
    np.save(tmp_path / "X.npy", X)
    X_there = np.load(tmp_path / "X.npy", mmap_mode="r")
    there = regressor(form).fit(X_there, y, groups)
    assert np.allclose(there.predict(X_there, groups), model.predict(X, groups), atol=1e-9)


def test_it_is_cloned_set_and_pickled(fitted):
    form, _, X, _, groups, model = fitted
    params = model.get_params()
    assert params["shape"] == ((OUT, IN) if form == "flat" else None)
    copy = clone(model).set_params(ridge=0.5)
    assert (copy.ridge, copy.get_params() | {"ridge": 0.0}) == (0.5, params)
    with pytest.raises(NotFittedError):
        copy.predict(X, groups)
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict(X, groups), model.predict(X, groups))
    assert get_tags(model).input_tags.three_d_array


def test_cross_validation_and_search_route_groups():
    X, y, groups = observed("matrices", truth(), noise=0.1)
    folds = KFold(3, shuffle=True, random_state=0)
    with config_context(enable_metadata_routing=True):
        model = regressor(restarts=0).set_fit_request(groups=True).set_score_request(groups=True)
        scores = cross_validate(model, X, y, cv=folds, params={"groups": groups}, error_score="raise")["test_score"]
        assert scores.min() > 0.95
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of rank 3 there are samples for hardly all cores
            search = GridSearchCV(model, {"rank": [1, 2, 3]}, cv=folds, error_score="raise")
            search.fit(X, y, groups=groups)
        assert search.best_params_ == {"rank": RANK}
        assert search.best_estimator_.predict(X, groups=groups).shape == y.shape


def test_a_pipeline_scales_flat_matrices():
    W = truth()
    X, y, groups = observed("flat", W)
    scaler = StandardScaler(with_mean=False)  # there is no intercept; scales of entries spoil the rank a little
    with config_context(enable_metadata_routing=True):
        pipeline = make_pipeline(
            scaler, regressor("flat").set_fit_request(groups=True).set_predict_request(groups=True)
        )
        pipeline.fit(X, y, groups=groups)
        predicted = pipeline.predict(X, groups=groups)
    own = regressor("flat").fit(scaler.fit_transform(X), y, groups)
    assert np.array_equal(predicted, own.predict(scaler.transform(X), groups))
    assert np.corrcoef(predicted, y)[0, 1] > 0.99


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("more", [0, 3])
def test_a_newcomer_is_recovered_and_nobody_else_changes(form, more):
    W = truth()
    X, y, groups = observed(form, W[:-1])
    names = np.array(list("abcde"))
    model = regressor(form).fit(X, y, names[groups])
    before = {name: getattr(model, name).copy() for name in ("A_", "B_", "cores_", "users_")}
    predicted = model.predict(X, names[groups])
    own_X, own_y, _ = observed(form, W[-1:], samples=RANK**2 + more, seed=9)
    assert model.onboard(own_X, own_y, "newcomer") is model
    assert np.abs(model.coef("newcomer") - W[-1]).max() < 1e-7
    assert model.users_.tolist() == [*"abcde", "newcomer"]
    assert np.array_equal(model.A_, before["A_"])
    assert np.array_equal(model.B_, before["B_"])
    assert np.array_equal(model.cores_[:-1], before["cores_"])
    assert np.array_equal(model.predict(X, names[groups]), predicted)
    both = model.predict(np.concatenate([own_X, X]), np.concatenate([["newcomer"] * len(own_X), names[groups]]))
    assert np.allclose(both[: len(own_X)], own_y, atol=1e-6)
    with pytest.raises(ColoraError, match="group: expected a new user, found the known 'newcomer'; fit again"):
        model.onboard(own_X, own_y, "newcomer")


def test_a_newcomers_core_is_the_ridge_solution():
    X, y, groups = observed("matrices", truth(), noise=0.1)
    model = regressor(ridge=2.0).fit(X, y, groups)
    own_X, own_y, _ = observed("matrices", truth(1)[:1], samples=3, noise=0.1)
    model.onboard(own_X, own_y, 77)  # fewer than a core has numbers: no warning with a ridge
    F = np.einsum("or,noi,si->nrs", model.B_, own_X, model.A_).reshape(3, -1)
    expected = np.linalg.solve(F.T @ F + 2.0 * np.eye(RANK**2), F.T @ own_y)
    assert np.allclose(model.cores_[-1].ravel(), expected, atol=1e-10)


def test_one_user_needs_no_groups():
    W = truth()[:1]
    X, y, _ = observed("matrices", W, samples=60)
    model = regressor().fit(X, y)
    assert_recovered(model, W, [0])
    assert np.allclose(model.predict(X), y, atol=1e-9)
    assert model.score(X, y) == pytest.approx(1.0)


def test_labels_of_objects_are_as_good_as_strings():
    X, y, groups = observed("matrices", truth())
    names = np.array(list("abcdef"), dtype=object)[groups]
    model = regressor().fit(X, y, names).onboard(X[groups == 0], y[groups == 0], "twin of a")
    assert np.allclose(model.coef("twin of a"), model.coef("a"), atol=1e-8)
    assert np.allclose(model.predict(X, names), y, atol=1e-8)


def test_few_samples_are_warned_of_by_label_unless_there_is_a_ridge():
    W = truth()
    X, y, groups = observed("matrices", W)
    names = np.array(["ann", "ben", "cat", "dan", "eve", "fay"])[groups]
    kept = (groups > 4) | (np.cumsum(groups == 4) <= 3) & (groups == 4)
    for user in range(4):
        kept |= (np.cumsum(groups == user) <= 2) & (groups == user)
    with pytest.warns(UserWarning, match="observ") as caught:
        regressor(restarts=0).fit(X[kept], y[kept], names[kept])
    few, total = (str(one.message) for one in caught)
    assert "fewer are observed of users 'ann' (2), 'ben' (2), 'cat' (2), ... and 2 more: their own samples do" in few
    assert few.endswith("a ridge > 0 chooses a unique and stable solution")
    assert total.startswith("all users together have 31 observations, fewer than the 34 degrees of freedom")
    assert {one.filename for one in caught} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = regressor(restarts=0, ridge=1.0).fit(X[kept], y[kept], names[kept])
        regressor(restarts=0).fit(X, y, names)
    model.set_params(ridge=0.0)
    with pytest.warns(UserWarning, match=r"fewer are observed of user 'gus' \(3\): its own samples"):
        model.onboard(X[:3], y[:3], "gus")


def test_a_vector_says_of_a_core_no_more_than_its_rank():
    X, y, groups = observed("vectors", truth())
    with pytest.warns(UserWarning, match=r"observed of user 0 \(2\): its own samples"):
        regressor("vectors", restarts=0).fit(*(a[(groups > 0) | (np.cumsum(groups == 0) == 1)] for a in (X, y, groups)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 5}, "rank: expected 1 to 4, the smaller side of W_k, found 5"),
        ({"solver": "magic"}, "solver: expected one of .*second-order.*, found 'magic'"),
        ({"init": "warm"}, "init: expected 'spectral', 'random' or factors .* found 'warm'"),
        ({"init": None}, "init: expected 'spectral', 'random' or factors .* found None"),
        ({"init": (np.ones((2, 4)), np.ones((4, 2)))}, "init: expected A and B of shapes"),
        ({"ridge": -1.0}, "ridge: expected at least 0, found -1.0"),
        ({"restarts": -1}, "restarts: expected at least 0, found -1"),
        ({"tol": float("nan")}, "tol: expected at least 0, found nan"),
        ({"shape": 20}, r"shape: expected \(d_out, d_in\), two positive integers, found 20"),
        ({"shape": (4, 0)}, r"two positive integers, found \(4, 0\)"),
    ],
)
def test_parameters_that_cannot_be_used(settings, message):
    X, y, groups = observed("matrices", truth())
    with pytest.raises(ConfigError, match=message):
        CoLoRARegressor(**settings).fit(X, y, groups)


def test_fit_refuses_arrays_that_do_not_fit():
    X, y, groups = observed("flat", truth())
    with pytest.raises(
        ColoraError, match=r"expected X .*, or X .*, or, .*shape=.*; found X \(120, 20\) and y \(120,\)"
    ):
        regressor().fit(X, y, groups)
    with pytest.raises(
        ColoraError, match=r"X: expected \(N, 15\) or \(N, 3, 5\) for shape=\(3, 5\), found \(120, 20\)"
    ):
        CoLoRARegressor(shape=(3, 5)).fit(X, y, groups)
    with pytest.raises(
        ColoraError, match=r"groups: expected a label for each row of X, shape \(120,\), found \(119,\)"
    ):
        regressor("flat").fit(X, y, groups[1:])
    X[17, 3] = np.nan
    with pytest.raises(ColoraError, match="X: expected finite numbers, found NaN or infinity in row 17"):
        regressor("flat").fit(X, y, groups)


def test_what_is_asked_of_a_fit_must_fit(fitted):
    form, _, X, y, groups, model = fitted
    model = pickle.loads(pickle.dumps(model))
    with pytest.raises(ColoraError, match="groups: expected the label of each row's user, for there are 6 of them"):
        model.predict(X)
    with pytest.raises(ColoraError, match="users that were in fit, found 8; add a new user with onboard"):
        model.predict(X[:3], [0, 8, 1])
    with pytest.raises(ColoraError, match=r"users that were in fit, found '0', \.\.\. and 1 more; add"):
        model.predict(X[:3], ["0", "0", "1"])
    with pytest.raises(ColoraError, match="users that were in fit, found 'x'; add"):
        model.coef("x")
    with pytest.raises(ColoraError, match=r"groups: .* shape \(3,\), found \(1,\)"):
        model.predict(X[:3], [0])
    wanted = {"matrices": r"\(N, 4, 5\), as in fit", "vectors": r"\(N, 5\), as in fit", "flat": r"\(N, 20\) or \(N, 4"}
    for wrong in (X[..., 1:], X[0], X[None]):
        with pytest.raises(ColoraError, match=f"X: expected {wanted[form]}.*, found"):
            model.predict(wrong, np.zeros(len(wrong)))
    with pytest.raises(ColoraError, match="X: expected finite numbers, found NaN or infinity in row 0"):
        model.predict(X * np.nan, groups)
    with pytest.raises(ColoraError, match=r"y: expected shape .*, found"):
        model.score(X, y[:-1], groups)
    with pytest.raises(ColoraError, match="group: expected a label of the kind that others have, as 0, found 'x'"):
        model.onboard(X, y, "x")
    with pytest.raises(ColoraError, match=r"group.*: expected a label .* found \(1, 2\)"):
        model.onboard(X, y, ["x", "z"])
    with pytest.raises(ColoraError, match="groups: expected a label in every row, found NaN"):
        model.onboard(X, y, np.nan)
    if form == "vectors":
        with pytest.raises(ColoraError, match=r"y: expected shape \(N, 4\), as in fit, found \(120, 3\)"):
            model.onboard(X, y[:, :3], 9)
    assert model.users_.tolist() == list(range(USERS)), "what was refused changed nothing"


@pytest.mark.parametrize("call", ["predict", "score", "onboard", "coef"])
def test_nothing_is_known_before_fit(call):
    arguments = {"predict": ([[1.0]],), "score": ([[1.0]], [[1.0]]), "onboard": ([[1.0]], [[1.0]], 0), "coef": (0,)}
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(CoLoRARegressor(), call)(*arguments[call])


def test_without_scikit_learn_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "colora.theory.estimator")
    with pytest.raises(ColoraError, match=r'Install it with: pip install "colora\[regression\]"'):
        importlib.import_module("colora.theory.estimator")
