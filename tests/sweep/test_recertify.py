import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxsmooth
from jaxsmooth.sweep import recertify as recertify_lib
from jaxsmooth.sweep.records import Manifest, Results, Row, sparse
from jaxsmooth.validation import InputError

SIGMA = 0.3


def manifest(**changes) -> Manifest:
    determines = {
        "data": {"name": "made up", "num_classes": 3},
        "noise": {"name": "gaussian", "sigma": SIGMA},
        "alpha": 0.001,
        "bound": "two-sided",
        "num_samples": 1000,
        "selection_samples": 50,
    }
    return Manifest(determines | changes, {})


def row(index: int, counts: list[int], selection: list[int], num_samples: int = 1000) -> Row:
    """A row whose certificate is to be computed."""
    return Row(
        index,
        0,
        -1,
        0.0,
        0.0,
        1.0,
        sparse(np.array(counts)),
        sparse(np.array(selection)),
        num_samples,
        50,
        1.5,
    )


ROWS = [
    row(0, [1000, 0, 0], [50, 0, 0]),
    row(3, [700, 200, 90], [30, 20, 0]),  # 10 rows of logits were not finite
    row(5, [450, 300, 250], [40, 10, 0]),  # certified by two-sided bounds only
    row(6, [400, 590, 10], [26, 24, 0]),  # the selected class is not the leader: abstains
    row(9, [0, 5, 1990], [0, 0, 50], num_samples=2000),
    row(4, [334, 333, 333], [50, 0, 0]),
]


def oracle(row: Row, alpha: float, bound: str) -> tuple[int, float]:
    """Prediction and radius from SciPy's quantiles."""
    n = row.num_samples
    selected = max(row.selection_counts, key=lambda c: row.selection_counts[c])
    count = row.counts.get(selected, 0)
    other = max((k for c, k in row.counts.items() if c != selected), default=0) + n - sum(row.counts.values())

    def lower(k, level):
        return 0.0 if k == 0 else stats.beta.ppf(level, k, n - k + 1)

    if bound == "one-sided":
        p_a = lower(count, alpha)
        p_b = 1 - p_a
    else:
        p_a = lower(count, 0.98 * alpha)
        p_b = min(1 - lower(n - other, 0.02 * alpha), 1 - p_a)
    radius = SIGMA / 2 * (stats.norm.ppf(p_a) - stats.norm.ppf(p_b))
    return (selected, radius) if radius > 0 else (-1, 0.0)


@pytest.mark.parametrize("bound", ["two-sided", "one-sided"])
@pytest.mark.parametrize("alpha", [0.001, 0.05])
def test_against_scipy(alpha, bound):
    new = recertify_lib.recertify(Results(manifest(), ROWS), alpha=alpha, bound=bound)
    assert [r.index for r in new.rows] == [0, 3, 4, 5, 6, 9]
    by_index = {r.index: r for r in ROWS}
    for certified in new.rows:
        prediction, radius = oracle(certified, alpha, bound)
        assert certified.prediction == prediction
        # SIGMA is not a float32: the noise is drawn with its float32 rounding, hence the 1e-7.
        assert certified.radius == pytest.approx(radius, rel=1e-7)
        assert certified.radius <= radius * (1 + 1e-12)
        old = by_index[certified.index]
        assert certified == dataclasses.replace(
            old,
            prediction=certified.prediction,
            radius=certified.radius,
            p_a_lower=certified.p_a_lower,
            p_b_upper=certified.p_b_upper,
        )


def test_the_manifest_tells_the_new_settings():
    new = recertify_lib.recertify(Results(manifest(), ROWS), alpha=0.01)
    assert new.manifest.determines == manifest(alpha=0.01).determines
    told = recertify_lib.settings(new.manifest)
    assert (told.alpha, told.bound, told.num_samples, told.num_classes) == (0.01, "two-sided", 1000, 3)


def test_many_rows_are_done_in_pieces(monkeypatch):
    whole = recertify_lib.recertify(Results(manifest(), ROWS))
    monkeypatch.setattr(recertify_lib, "_CHUNK", 2)
    assert recertify_lib.recertify(Results(manifest(), ROWS)) == whole


@pytest.mark.parametrize("bound", ["two-sided", "one-sided"])
def test_what_certify_states_is_supported_by_its_counts(bound):
    """Compiled float32 certificates against the host's float64 ones, from the same counts."""
    examples = jnp.arange(12)
    certify = functools.partial(
        jaxsmooth.certify,
        apply_fn=lambda w, inputs: inputs @ w,
        params=jnp.eye(3),
        noise=jaxsmooth.Gaussian(SIGMA),
        num_samples=1000,
        selection_samples=50,
        alpha=0.001,
        batch_size=525,
        bound=bound,
    )
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(examples)
    inputs = examples[:, None] * jnp.array([0.08, 0.0, 0.0]) + jnp.array([0.0, 0.0, 0.02])
    certificate = jax.tree.map(np.asarray, jax.jit(jax.vmap(lambda key, x: certify(key, x=x)))(keys, inputs))
    rows = [
        Row(
            i,
            0,
            int(certificate.prediction[i]),
            float(certificate.radius[i]),
            float(certificate.p_a_lower[i]),
            float(certificate.p_b_upper[i]),
            sparse(certificate.counts[i]),
            sparse(certificate.selection_counts[i]),
            1000,
            50,
            0.1,
        )
        for i in range(12)
    ]
    results = Results(manifest(bound=bound), rows)
    assert sum(r.radius > 0 for r in rows) > 3
    assert recertify_lib.unsupported(results) == []
    for old, new in zip(rows, recertify_lib.recertify(results).rows, strict=True):
        assert old.prediction == new.prediction
        assert old.radius == pytest.approx(new.radius, rel=1e-6)


def test_rows_that_claim_too_much_are_found():
    honest = recertify_lib.recertify(Results(manifest(), ROWS))
    assert recertify_lib.unsupported(honest) == []
    rows = list(honest.rows)
    rows[0] = dataclasses.replace(rows[0], radius=rows[0].radius * 1.00001)
    rows[1] = dataclasses.replace(rows[1], radius=rows[1].radius * 0.9)  # less than supported is no lie
    rows[3] = dataclasses.replace(rows[3], prediction=1)
    assert recertify_lib.unsupported(Results(manifest(), rows)) == [0, 5]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": {"name": "gaussian"}}, "the manifest is damaged: it lacks determines.noise.sigma"),
        ({"noise": {"name": "gaussian", "sigma": -1}}, "sigma must be positive and finite, got -1"),
        ({"noise": {"name": "cauchy", "sigma": 1}}, "noise must be one of 'gaussian', got 'cauchy'"),
        ({"data": None}, "the manifest is damaged: it lacks determines.data.num_classes"),
        ({"alpha": "small"}, "alpha must be a number, got 'small'"),
        ({"bound": None}, "bound must be one of 'two-sided', 'one-sided', 'selection-free', got None"),
        (
            {"data": {"num_classes": 2}},
            "example 3 has counts for class 2, but the manifest tells of 2 classes",
        ),
    ],
)
def test_damaged_manifests_are_refused(changes, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        recertify_lib.recertify(Results(manifest(**changes), ROWS))


@pytest.mark.parametrize(("option", "value"), [("alpha", 1.5), ("alpha", 0.0), ("bound", "both")])
def test_bad_arguments_are_refused(option, value):
    with pytest.raises(InputError, match=f"^{option} must "):
        recertify_lib.recertify(Results(manifest(), ROWS), **{option: value})


def test_no_rows_give_no_rows():
    assert recertify_lib.recertify(Results(manifest(), [])).rows == []
