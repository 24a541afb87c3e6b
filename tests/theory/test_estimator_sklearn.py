"""The estimator among those of scikit-learn: names of columns, missing groups, and scikit-learn's own checks."""

import inspect
import warnings

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn import config_context
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from colora.errors import ColoraError
from colora.theory.estimator import CoLoRARegressor

pd = pytest.importorskip("pandas")
IN, OUT, USERS, SAMPLES = 5, 4, 6, 20


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)
    W = random.normal(size=(OUT, 2)) @ random.normal(size=(USERS, 2, 2)) @ random.normal(size=(2, IN))
    groups = np.repeat(np.arange(USERS), SAMPLES)
    X = pd.DataFrame(random.normal(size=(len(groups), IN)), columns=list("abcde"))
    return X, np.einsum("noi,ni->no", W[groups], X.to_numpy()), groups


@pytest.fixture
def model(data):
    return CoLoRARegressor(rank=2).fit(*data)


def test_names_of_columns_are_kept_and_say_which_column_is_which(data, model):
    X, y, groups = data
    assert model.feature_names_in_.tolist() == list("abcde")
    assert model.score(X, y, groups) == pytest.approx(1.0)
    calls = {
        "predict": lambda other: model.predict(other, groups),
        "score": lambda other: model.score(other, y, groups),
        "onboard": lambda other: model.onboard(other, y, 99),
    }
    for name, call in calls.items():
        for columns, what in (
            ("edcba", "must be in the same order as they were in fit"),
            ("abcdf", "Feature names unseen at fit time:\n- f\nFeature names seen at fit time, yet now missing:\n- e"),
            ("abcd", "yet now missing:\n- e"),
        ):
            other = X.assign(f=X["e"])[list(columns)]
            with pytest.raises(ColoraError, match="The feature names should match those that were passed") as caught:
                call(other)
            assert what in str(caught.value), name
    assert model.users_.tolist() == list(range(USERS))
    # Put in order, they are what they were.
    assert np.array_equal(model.predict(X[list("edcba")][list("abcde")], groups), model.predict(X, groups))


def test_names_that_one_side_lacks_are_warned_of_as_everywhere_in_scikit_learn(data, model):
    X, y, groups = data
    with pytest.warns(UserWarning, match="X does not have valid feature names, but CoLoRARegressor was fitted with"):
        model.predict(X.to_numpy(), groups)
    model.fit(X.to_numpy(), y, groups)
    assert not hasattr(model, "feature_names_in_")
    with pytest.warns(UserWarning, match="X has feature names, but CoLoRARegressor was fitted without feature names"):
        model.predict(X, groups)


def test_columns_with_names_and_numbers_are_refused(data):
    X, y, groups = data
    with pytest.raises(ColoraError, match="only supported if all input features have string names"):
        CoLoRARegressor(rank=2).fit(X.rename(columns={"a": 0}), y, groups)


def test_another_number_of_columns_is_told_as_scikit_learn_tells_it(data):
    X, y, groups = data
    model = CoLoRARegressor(rank=2).fit(X.to_numpy(), y, groups)
    with pytest.raises(ColoraError, match="X has 4 features, but CoLoRARegressor is expecting 5 features as input"):
        model.predict(X.to_numpy()[:, 1:], groups)
    with pytest.raises(ColoraError, match="Reshape your data"):
        model.predict(X.to_numpy()[0], groups[:1])


def test_missing_groups_are_warned_of_and_one_user_may_be_said(data):
    X, y, groups = data
    with pytest.warns(UserWarning, match="groups: expected the label of each row's user, found None: all samples"):
        alone = CoLoRARegressor(rank=2, ridge=0.1).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = CoLoRARegressor(rank=2, ridge=0.1).fit(X, y, [0] * len(X))
    assert np.array_equal(alone.coef(0), said.coef(0))
    # Without metadata routing scikit-learn gives groups to the splitter alone.
    with pytest.warns(UserWarning, match="enable_metadata_routing=True"):
        cross_val_score(CoLoRARegressor(rank=2), X, y, groups=groups, cv=GroupKFold(3))


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT], ids=["None", "nan", "NA", "NaT"])
def test_a_label_that_is_missing_is_refused_with_its_row(data, missing):
    X, y, groups = data
    labels = groups.astype(object)
    labels[7] = missing
    for form in (labels, list(labels), pd.Series(labels)):
        with pytest.raises(ColoraError, match=r"groups: expected a label in every row, found .* in row 7"):
            CoLoRARegressor(rank=2).fit(X, y, form)


def test_labels_go_by_position_and_categories_by_name(data, model):
    X, y, groups = data
    names = np.array([f"user {user}" for user in groups])
    shuffled = pd.Series(groups, index=np.random.default_rng(1).permutation(len(groups)))
    assert np.array_equal(CoLoRARegressor(rank=2).fit(X, y, shuffled).cores_, model.cores_)
    assert CoLoRARegressor(rank=2).fit(X, y, pd.Series(names).astype("category")).score(X, y, names) > 0.999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: csr_array(X.to_numpy()), "X: expected a dense array; sparse data is not supported"),
        (lambda X: X.to_numpy() + 1j, "Complex data not supported"),
        (lambda X: X.to_numpy()[:, :0], r"0 feature\(s\) \(shape=\(120, 0\)\) while a minimum of 1 is required"),
        (lambda X: X.to_numpy()[:0], r"0 sample\(s\)"),
        (lambda X: X.assign(a="x"), "X: expected an array of numbers, found DataFrame"),
        (lambda _: None, "X: expected an array, found None"),
    ],
)
def test_what_cannot_be_samples_is_refused_in_scikit_learns_words(data, change, message):
    X, y, groups = data
    with pytest.raises(ColoraError, match=message):
        CoLoRARegressor(rank=2).fit(change(X), y, groups)
    with pytest.raises(ColoraError, match="y: expected an array, found None"):
        CoLoRARegressor(rank=2).fit(X, None, groups)


class OneNumber(CoLoRARegressor):
    """One number of each sample: scikit-learn's checks give y as (N,), and no groups, which is one user."""

    # The names of the parameters are read off the signature; of one row a matrix has rank 1.
    def __init__(self, *, rank=1, solver="second-order", init="spectral", ridge=0.0, annealing=None, restarts=None,
                 max_iter=1000, tol=1e-7, shape=None, random_state=0):  # fmt: skip
        super().__init__(
            rank=rank, solver=solver, init=init, ridge=ridge, annealing=annealing, restarts=restarts,
            max_iter=max_iter, tol=tol, shape=shape, random_state=random_state,
        )  # fmt: skip

    def fit(self, X, y, groups=None):
        self._flat = y is not None and np.asarray(y).ndim == 1
        return super().fit(X, np.asarray(y).reshape(-1, 1) if self._flat else y, groups)

    def predict(self, X, groups=None):
        found = super().predict(X, groups)
        return found[:, 0] if self._flat else found


EXPECTED = {
    "check_dtype_object": "entries that are no numbers raise ColoraError, a ValueError; the check wants TypeError",
}


def test_scikit_learns_checks_pass_but_for_those_that_are_named():
    assert inspect.signature(OneNumber.__init__).parameters.keys() == (
        inspect.signature(CoLoRARegressor.__init__).parameters.keys()
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(OneNumber(), expected_failed_checks=EXPECTED, on_fail=None)
    by_status = {}
    for result in results:
        by_status.setdefault(result["status"], []).append((result["check_name"], str(result["exception"])))
    assert not by_status.get("failed")
    assert [name for name, _ in by_status["xfail"]] == list(EXPECTED)
    assert {name for name, _ in by_status.get("skipped", [])} <= {"check_array_api_input"}
    assert len(by_status["passed"]) > 45


def test_a_pipeline_is_searched_and_scored_with_groups_and_samples_may_weigh(data):
    X, y, groups = data
    with config_context(enable_metadata_routing=True):
        model = CoLoRARegressor(rank=2).set_fit_request(groups=True).set_score_request(groups=True)
        pipeline = make_pipeline(StandardScaler(with_mean=False).set_output(transform="pandas"), model)
        fitted = pipeline.fit(X, y, groups=groups)
        assert fitted[-1].feature_names_in_.tolist() == list("abcde")
        assert fitted.score(X, y, groups=groups) == pytest.approx(1.0)
        search = GridSearchCV(pipeline, {"coloraregressor__rank": [1, 2]}, cv=KFold(3, shuffle=True, random_state=0))
        assert search.fit(X, y, groups=groups).best_params_ == {"coloraregressor__rank": 2}
    wrong = y + np.arange(len(y))[:, None]
    weights = np.arange(len(y)) < len(y) // 2
    half = fitted[-1].fit(X, y, groups).score(X[weights], wrong[weights], groups[weights])
    assert fitted[-1].score(X, wrong, groups, sample_weight=weights) == pytest.approx(half)
