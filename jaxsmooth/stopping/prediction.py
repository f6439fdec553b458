"""PREDICT that stops as soon as it is certain enough."""

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy import special

from jaxsmooth import confidence, sampling, validation
from jaxsmooth.certification import ABSTAIN
from jaxsmooth.noise import Noise
from jaxsmooth.sampling import ApplyFn
from jaxsmooth.stopping.stream import Stream, check_example, sample_until
from jaxsmooth.stopping.tolerance import looks_and_levels

_HOPE = 0.05  # level of the bound in the rule that gives up; costs a few percent of the answers that are nearly ties


class EarlyPrediction(NamedTuple):
    """What PREDICT says about one input, and what it cost.

    Attributes:
        prediction: the smoothed classifier's class with probability at least 1 - alpha, or ABSTAIN (-1); int32.
        samples_used: int32, samples up to the look that decided.
        counts: int32[num_classes], up to that look.
    """

    prediction: Any
    samples_used: Any
    counts: Any


def predict_early(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: ArrayLike,
    *,
    noise: Noise,
    num_samples: int,
    alpha: float,
    batch_size: int,
) -> EarlyPrediction:
    """Predicts the smoothed classifier's class as soon as it is certain enough, or abstains after ``num_samples``.

    At looks 1.5 times apart :func:`jaxsmooth.predict` is asked about all samples so far, at levels that sum to alpha
    (20% for all looks but the last); the first answer is given. *Proof*: at each look by itself the test of
    the leader against the runner-up returns a wrong class with probability at most its level (Hung and
    Fithian 2019: the leader may be chosen by the same data), and the first answer is wrong only if some
    look's answer is. It abstains early when not even an upper 95% bound on the leader's share of the two would
    let ``num_samples`` samples answer: abstaining is never wrong.

    Args:
        key: as in :func:`certify_radius`, like all arguments not named here.
        apply_fn: as there.
        params: as there.
        x: as there.
        noise: the noise.
        num_samples: the most samples that may be drawn.
        alpha: probability that a class other than the smoothed classifier's is returned, in (0, 1).
        batch_size: as there.

    Returns:
        An :class:`EarlyPrediction`.

    Raises:
        InputError: as there.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsmooth import Gaussian
        >>> apply_fn = lambda w, inputs: inputs @ w
        >>> found = predict_early(jax.random.key(0), apply_fn, jnp.eye(2), jnp.array([0.0, 2.0]),
        ...                       noise=Gaussian(0.5), num_samples=100_000, alpha=0.001, batch_size=100)
        >>> found.prediction.item(), found.samples_used.item()
        (1, 20)
    """
    alpha = validation.check_alpha(alpha)
    num_samples = validation.check_integer("num_samples", num_samples, 1, confidence.MAX_NUM_SAMPLES)
    x, batch_size, _ = check_example(key, apply_fn, x, batch_size, 1, num_samples)
    tables = _prediction_tables(alpha, num_samples)
    return _predict_early(
        key,
        apply_fn,
        params,
        x,
        noise,
        _Tables(*(jnp.asarray(table, jnp.int32) for table in tables)),
        batch_size,
    )


def early_prediction_from_counts(
    counts: ArrayLike, *, num_samples: int, alpha: float
) -> tuple[int, int] | None:
    """What :func:`predict_early` decides on the looks so far; host.

    Args:
        counts: integers [num_seen, num_classes], up to each of the first num_seen of :func:`prediction_looks`.
        num_samples: as in :func:`predict_early`.
        alpha: as there.

    Returns:
        The prediction (or ABSTAIN) and the number of the look that decided; None if none has yet.
    """
    tables = _prediction_tables(alpha, num_samples)
    for look, row in enumerate(np.asarray(counts)):
        leader = int(row.argmax())
        first = int(row[leader])
        second = int(np.delete(row, leader).max()) + max(int(tables.looks[look]) - int(row.sum()), 0)
        place = int(tables.offsets[look]) + first + second
        if first >= tables.thresholds[place]:
            return leader, look
        if first < tables.hopes[place] or look == len(tables.looks) - 1:
            return ABSTAIN, look
    return None


def prediction_looks(num_samples: int, alpha: float) -> list[int]:
    """Numbers of samples after which :func:`predict_early` looks; the last is num_samples."""
    return looks_and_levels(alpha, num_samples)[0]


class _Tables(NamedTuple):
    """What decides at each look, for every number m of trials (leader and runner-up together), at offsets[i] + m.

    Attributes:
        looks: rising to num_samples.
        offsets: where each look begins in what follows.
        thresholds: least count of the leader that is significant at the level of the look.
        hopes: least count of the leader with which it is worth while to go on.
    """

    looks: Any
    offsets: Any
    thresholds: Any
    hopes: Any


@lru_cache(maxsize=4)
def _prediction_tables(alpha: float, num_samples: int) -> _Tables:
    looks, levels = looks_and_levels(alpha, num_samples)
    thresholds = [confidence.binomial_test_table(n, level) for n, level in zip(looks, levels, strict=True)]
    # The share q that the leader needs among as many trials as N samples would bring. Its upper score bound (Wilson
    # 1927) at a count f of m reaches q if f >= m q - z sqrt(m q (1 - q)).
    z = float(special.ndtri(1.0 - _HOPE))
    hopes = []
    for n in looks:
        trials = np.arange(n + 1)
        at_budget = np.rint(trials * (num_samples / n)).astype(np.int64)
        share = np.minimum(thresholds[-1][at_budget] / np.maximum(at_budget, 1), 1.0)
        hopes.append(np.floor(trials * share - z * np.sqrt(trials * share * (1.0 - share))).astype(np.int64))
    return _Tables(
        np.array(looks),
        np.cumsum([0] + [n + 1 for n in looks[:-1]]),
        np.concatenate(thresholds),
        np.concatenate(hopes),
    )


@partial(jax.jit, static_argnames=("apply_fn", "batch_size"))
def _predict_early(
    key: jax.Array,
    apply_fn: ApplyFn,
    params: Any,
    x: jax.Array,
    noise: Noise,
    tables: _Tables,
    batch_size: int,
) -> EarlyPrediction:
    looks = tables.looks

    def decide(stream: Stream, before: EarlyPrediction) -> EarlyPrediction:
        counts = stream.count_all(looks)
        (first, second), leaders = jax.lax.top_k(counts, 2)[0].T, jnp.argmax(counts, axis=-1)
        # Rows that were not finite are the runner-up's; looks beyond this batch are read, and not used.
        second += jnp.maximum(looks - jnp.sum(counts, axis=-1), 0)
        place = tables.offsets + jnp.clip(first + second, 0, looks)
        certain, hopeless = first >= tables.thresholds[place], first < tables.hopes[place]
        stop = stream.seen(looks) & (certain | hopeless | (looks == looks[-1]))
        stopping, look = jnp.any(stop), jnp.argmax(stop)
        answer = jnp.where(certain[look], leaders[look], ABSTAIN).astype(jnp.int32)
        return EarlyPrediction(
            prediction=jnp.where(stopping, answer, before.prediction),
            samples_used=jnp.where(stopping, looks[look], before.samples_used),
            counts=jnp.where(stopping, counts[look], before.counts),
        )

    num_classes = sampling.check_num_classes(apply_fn, params, x.shape, batch_size)
    zero = sampling.zero_from((key, params, x, noise, tables))
    return sample_until(
        lambda prediction: prediction.samples_used > 0,
        decide,
        EarlyPrediction(zero, zero, jnp.zeros(num_classes, jnp.int32) + zero),
        (key, apply_fn, params, x, noise),
        jnp.int32(0),
        batch_size,
        zero,
    )
