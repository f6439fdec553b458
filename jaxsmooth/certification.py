"""From counts to statements: PREDICT and CERTIFY of Cohen et al. (2019), with tighter bounds.

Every statement is a function of integer counts. :func:`certify` and :func:`predict` draw the counts and look
bounds up in float64 tables made on the host, so that they run inside compiled programs;
:func:`certificate_from_counts` says the same of stored counts, in float64, without a model.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsmooth import confidence, validation
from jaxsmooth.noise import Noise, check_noise
from jaxsmooth.sampling import ApplyFn, sample_counts, sample_stage_counts
from jaxsmooth.validation import InputError

ABSTAIN = -1
BOUNDS = ("two-sided", "one-sided", "selection-free")

# Share of alpha given to the bound on p_A under "two-sided"; the rest goes to the bound on p_B.
SHARE_OF_P_A = 0.98


class Certificate(NamedTuple):
    """What CERTIFY says about one input (or, under vmap, about several).

    Attributes:
        prediction: the smoothed classifier's class, or ABSTAIN (-1); int32.
        radius: with probability at least 1 - alpha the smoothed classifier answers ``prediction`` everywhere
            within this distance of x, in ``noise.norm`` and the units of x; 0 on abstention.
        p_a_lower: lower bound on the probability of the class selected in the first stage.
        p_b_upper: upper bound on the probability of every other class.
        counts: int32[num_classes] of the estimation stage.
        selection_counts: int32[num_classes] of the selection stage; zeros where there was none.
    """

    prediction: Any
    radius: Any
    p_a_lower: Any
    p_b_upper: Any
    counts: Any
    selection_counts: Any


class Prediction(NamedTuple):
    """What PREDICT says about one input.

    Attributes:
        prediction: the smoothed classifier's class with probability at least 1 - alpha, or ABSTAIN (-1); int32.
        counts: int32[num_classes].
    """

    prediction: Any
    counts: Any


def certify(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: ArrayLike,
    *,
    noise: Noise,
    num_samples: int,
    alpha: float,
    batch_size: int,
    selection_samples: int = 100,
    bound: str = "two-sided",
) -> Certificate:
    """Predicts the smoothed classifier's class at x and a radius within which it provably stays.

    CERTIFY of Cohen et al. (2019, section 3.2.2): samples 0 .. selection_samples - 1 choose the class A;
    the following num_samples, independent of them, bound the probabilities.

    - ``bound="two-sided"``: Theorem 1 as stated. p_A is bounded from below at level 0.98 alpha and p_B, the largest
      other class, from above at 0.02 alpha (never above 1 - p_A). The upper bound on the runner-up's count
      bounds every other class at once, because it grows with the count.
    - ``bound="one-sided"``: p_B = 1 - p_A, as in the paper's experiments, for comparison with published numbers.
    - ``bound="selection-free"``: one-sided without a first stage: A is the most frequent class of all num_samples, and
      p_A is bounded at level alpha/2. *Proof.* Let k* be the least count whose bound exceeds 1/2 and
      ``h(p) = P(Bin(n, p) >= k*)``, so that ``h(1/2) <= alpha/2``. A statement about the class with p > 1/2, if there
      is one, is false with probability at most alpha/2. A statement about another class needs its count to reach k*.
      As k* > n/2, h is convex on [0, 1/2] (its derivative is proportional to the density of
      Beta(k*, n-k*+1), whose mode is at least 1/2) and h(0) = 0, so ``h(p) <= 2 p h(1/2) <= p alpha``.
      Summed over the other classes this is at most alpha times the sum of their probabilities: at most
      alpha/2 if one class has more than 1/2, and at most alpha, with nothing to add, if none has.

    Rows whose logits are not finite lower p_A and raise p_B.

    Args:
        key: typed threefry key of the example, ``fold_in(jax.random.key(seed), i)`` for example i.
        apply_fn: ``(params, inputs[batch, ...] float32) -> logits[batch, num_classes]``; see ``sample_counts``.
        params: first argument of ``apply_fn``.
        x: the input, floating point and finite, without a batch axis.
        noise: the noise, such as ``Gaussian(0.25)``; its scale may be traced.
        num_samples: samples of the estimation stage.
        alpha: probability that the statement is false, in (0, 1).
        batch_size: rows per call of the model; changes memory and speed, not the noise.
        selection_samples: samples of the selection stage; none are drawn under "selection-free".
        bound: "two-sided", "one-sided" or "selection-free".

    Returns:
        A :class:`Certificate`; radius and bounds in the default float type, rounded towards safety.

    Raises:
        InputError: for an argument outside its range, or a model whose output is not [batch, classes].

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> apply_fn = lambda w, inputs: inputs @ w
        >>> certificate = certify(jax.random.key(0), apply_fn, jnp.eye(2), jnp.array([2.0, 0.0]),
        ...                       noise=Gaussian(0.5), num_samples=1000, alpha=0.001, batch_size=500)
        >>> int(certificate.prediction), f"{certificate.radius:.2f}"
        (0, '1.18')
    """
    alpha = validation.check_alpha(alpha)
    validation.check_choice("bound", bound, BOUNDS)
    num_samples = validation.check_integer(
        "num_samples", num_samples, at_least=1, at_most=confidence.MAX_NUM_SAMPLES
    )
    selection_samples = validation.check_integer("selection_samples", selection_samples, at_least=1)
    selection_free = bound == "selection-free"
    stage_counts = sample_stage_counts(
        key,
        apply_fn,
        params,
        x,
        noise=noise,
        stages=(num_samples,) if selection_free else (selection_samples, num_samples),
        batch_size=batch_size,
    )
    counts = stage_counts[-1]
    selection_counts = jnp.zeros_like(counts) if selection_free else stage_counts[0]
    tables = _rounded_tables(num_samples, alpha, bound)
    votes = counts if selection_free else selection_counts
    selected, count_a, count_b = _leading_counts(jnp, votes, counts, num_samples)
    # Each rounding on the way to the radius is followed by a step towards safety.
    unit = tables.quantile_a[count_a]
    if tables.quantile_b is not None:
        doubled = unit + tables.quantile_b[num_samples - count_b]
        unit = jnp.maximum(unit, 0.5 * jnp.nextafter(doubled, -jnp.inf))
    scale = scale_on_device(noise, unit.dtype)
    radius = jnp.nextafter(jnp.maximum(scale * unit, 0.0).astype(unit.dtype), jnp.zeros_like(unit))
    return Certificate(
        prediction=jnp.where(radius > 0.0, selected, ABSTAIN).astype(jnp.int32),
        radius=radius,
        p_a_lower=tables.p_a_lower[count_a],
        p_b_upper=jnp.minimum(tables.p_b_upper[count_b], tables.one_minus_p_a[count_a]),
        counts=counts,
        selection_counts=selection_counts,
    )


def predict(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: ArrayLike,
    *,
    noise: Noise,
    num_samples: int,
    alpha: float,
    batch_size: int,
) -> Prediction:
    """Predicts the smoothed classifier's class at x, or abstains (PREDICT, Cohen et al. 2019, section 3.2.1).

    The most frequent class is returned if a two-sided binomial test finds its count n_1 and the runner-up's n_2
    different from a fair coin's at level alpha (Hung and Fithian 2019). Rows whose logits are not
    finite are added to n_2.

    Args:
        key: as in :func:`certify`, like all arguments not named here.
        apply_fn: as there.
        params: as there.
        x: as there.
        noise: as there.
        num_samples: number of samples.
        alpha: probability that a class other than the smoothed classifier's is returned, in (0, 1).
        batch_size: as there.

    Returns:
        A :class:`Prediction`.

    Raises:
        InputError: as there.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> apply_fn = lambda w, inputs: inputs @ w
        >>> predict(jax.random.key(0), apply_fn, jnp.eye(2), jnp.array([0.0, 2.0]),
        ...         noise=Gaussian(0.5), num_samples=100, alpha=0.001, batch_size=100).prediction.item()
        1
    """
    alpha = validation.check_alpha(alpha)
    num_samples = validation.check_integer(
        "num_samples", num_samples, at_least=1, at_most=confidence.MAX_NUM_SAMPLES
    )
    counts = sample_counts(
        key, apply_fn, params, x, noise=noise, num_samples=num_samples, batch_size=batch_size
    )
    threshold = jnp.asarray(confidence.binomial_test_table(num_samples, alpha), jnp.int32)
    selected, count_a, count_b = _leading_counts(jnp, counts, counts, num_samples)
    certain = count_a >= threshold[count_a + count_b]
    return Prediction(jnp.where(certain, selected, ABSTAIN).astype(jnp.int32), counts)


def certificate_from_counts(
    selection_counts: ArrayLike,
    counts: ArrayLike,
    *,
    noise: Noise,
    num_samples: int,
    alpha: float,
    bound: str = "two-sided",
) -> Certificate:
    """The certificate that counts give, without a model: host, NumPy float64, rounded down.

    Stored counts can be certified again at any alpha and with any bound. One set of counts supports one
    statement of level alpha; choosing alpha or the bound after seeing the radii does not.

    Args:
        selection_counts: integers [..., num_classes] of the selection stage; not looked at under "selection-free".
        counts: integers [..., num_classes] of the estimation stage.
        noise: the noise under which they were drawn.
        num_samples: samples of the estimation stage; more than ``counts`` sum to when rows were not finite.
        alpha: probability that a statement is false.
        bound: "two-sided", "one-sided" or "selection-free", as in :func:`certify`.

    Returns:
        A :class:`Certificate` of NumPy arrays of shape [...].

    Raises:
        InputError: for counts that are not whole numbers, exceed num_samples, or differ in shape.

    Example:
        >>> from jaxsmooth import Gaussian
        >>> certificate = certificate_from_counts([100, 0], [990, 10], noise=Gaussian(0.5),
        ...                                       num_samples=1000, alpha=0.001, bound="one-sided")
        >>> print(f"{certificate.radius:.6f}")
        0.989005
    """
    alpha = validation.check_alpha(alpha)
    validation.check_choice("bound", bound, BOUNDS)
    counts, num_samples = _check_stored_counts("counts", counts, num_samples)
    selection_counts = validation.check_counts("selection_counts", selection_counts, 2**31)
    if counts.shape != selection_counts.shape:
        raise InputError(
            "counts and selection_counts must have one shape [..., num_classes], "
            f"got {counts.shape} and {selection_counts.shape}"
        )
    alpha_a, alpha_b = split_level(alpha, bound)
    table_a = confidence.bound_table(num_samples, alpha_a)
    votes = counts if bound == "selection-free" else selection_counts
    selected, count_a, count_b = _leading_counts(np, votes, counts, num_samples)
    unit = table_a.quantile[count_a]
    p_a_lower = table_a.p_lower[count_a]
    p_b_upper = np.nextafter(1.0 - p_a_lower, 1.0)
    if alpha_b is not None:
        table_b = confidence.bound_table(num_samples, alpha_b)
        unit = np.maximum(unit, 0.5 * np.nextafter(unit + table_b.quantile[num_samples - count_b], -np.inf))
        p_b_upper = np.minimum(p_b_upper, np.nextafter(1.0 - table_b.p_lower[num_samples - count_b], 1.0))
    radius = np.nextafter(np.maximum(scale_in_use(noise) * unit, 0.0), 0.0)
    return Certificate(
        prediction=np.where(radius > 0.0, selected, ABSTAIN).astype(np.int32),
        radius=radius,
        p_a_lower=p_a_lower,
        p_b_upper=p_b_upper,
        counts=counts,
        selection_counts=selection_counts,
    )


def prediction_from_counts(counts: ArrayLike, *, num_samples: int, alpha: float) -> Prediction:
    """The answer of PREDICT that counts give, without a model: host, NumPy.

    Args:
        counts: integers [..., num_classes].
        num_samples: samples drawn; more than ``counts`` sum to when rows were not finite.
        alpha: probability that a class other than the smoothed classifier's is returned.

    Returns:
        A :class:`Prediction` of NumPy arrays of shape [...].

    Raises:
        InputError: for counts that are not whole numbers or exceed num_samples.

    Example:
        >>> prediction_from_counts([60, 40], num_samples=100, alpha=0.001).prediction.item()
        -1
    """
    counts, num_samples = _check_stored_counts("counts", counts, num_samples)
    threshold = confidence.binomial_test_table(num_samples, alpha)
    selected, count_a, count_b = _leading_counts(np, counts, counts, num_samples)
    certain = count_a >= threshold[count_a + count_b]
    return Prediction(np.where(certain, selected, ABSTAIN).astype(np.int32), counts)


def _check_stored_counts(name: str, counts: ArrayLike, num_samples: int) -> tuple[np.ndarray, int]:
    num_samples = validation.check_integer(
        "num_samples", num_samples, at_least=1, at_most=confidence.MAX_NUM_SAMPLES
    )
    array = validation.check_counts(name, counts, num_samples)
    if array.ndim < 1 or array.shape[-1] < 2:
        raise InputError(
            f"{name} must have the shape [..., num_classes] with at least 2 classes, got {array.shape}"
        )
    if np.any(array.sum(-1) > num_samples):
        raise InputError(f"{name} must sum to at most num_samples = {num_samples}, got {array.sum(-1).max()}")
    return array, num_samples


class _Tables(NamedTuple):
    """Bounds for every count, in the device's float type, each rounded towards safety."""

    quantile_a: jax.Array
    quantile_b: jax.Array | None
    p_a_lower: jax.Array
    one_minus_p_a: jax.Array
    p_b_upper: jax.Array


def _rounded_tables(num_samples: int, alpha: float, bound: str) -> _Tables:
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    alpha_a, alpha_b = split_level(alpha, bound)
    table_a = confidence.bound_table(num_samples, alpha_a)
    one_minus_p_a = _round_up(np.nextafter(1.0 - table_a.p_lower, 2.0), dtype)
    quantile_b, p_b_upper = None, np.ones(num_samples + 1, dtype)
    if alpha_b is not None:
        table_b = confidence.bound_table(num_samples, alpha_b)
        quantile_b = jnp.asarray(round_down(table_b.quantile, dtype))
        p_b_upper = _round_up(np.nextafter(1.0 - table_b.p_lower[::-1], 2.0), dtype)
    return _Tables(
        quantile_a=jnp.asarray(round_down(table_a.quantile, dtype)),
        quantile_b=quantile_b,
        p_a_lower=jnp.asarray(round_down(table_a.p_lower, dtype)),
        one_minus_p_a=jnp.asarray(np.minimum(one_minus_p_a, 1.0)),
        p_b_upper=jnp.asarray(np.minimum(p_b_upper, 1.0)),
    )


def split_level(alpha: float, bound: str) -> tuple[float, float | None]:
    """Levels of the bounds on p_A and p_B; they add up to alpha exactly."""
    if bound == "one-sided":
        return alpha, None
    if bound == "selection-free":
        return 0.5 * alpha, None
    alpha_a = SHARE_OF_P_A * alpha
    return alpha_a, alpha - alpha_a


def _leading_counts(xp: Any, selection_counts: Any, counts: Any, num_samples: int) -> tuple[Any, Any, Any]:
    """The selected class, its count, and the largest count that any other class can have had."""
    selected = xp.argmax(selection_counts, axis=-1)
    is_selected = xp.arange(counts.shape[-1]) == selected[..., None]
    count_a = xp.sum(xp.where(is_selected, counts, 0), axis=-1)
    not_finite = num_samples - xp.sum(counts, axis=-1)
    count_b = xp.max(xp.where(is_selected, 0, counts), axis=-1) + not_finite
    return selected, count_a, count_b


def scale_in_use(noise: Noise) -> float:
    """The scale of the noise, or its float32 rounding if that is less: the noise is drawn in float32."""
    check_noise(noise)
    scale = validation.check_positive("sigma", noise.scale)
    return min(scale, float(np.float32(scale)))


def scale_on_device(noise: Noise, dtype: np.dtype) -> jax.Array:
    """The same within compiled programs, rounded down to their float type."""
    if validation.is_traced(noise.scale):
        return jnp.minimum(noise.scale, jnp.float32(noise.scale))
    return jnp.asarray(round_down(np.asarray(scale_in_use(noise)), np.dtype(dtype)))


def round_down(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    rounded = values.astype(dtype)
    return np.where(rounded > values, np.nextafter(rounded, dtype.type(-np.inf)), rounded)


def _round_up(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return -round_down(-values, dtype)
