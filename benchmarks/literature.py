"""Published ways to decide "is p at least p0?" early, written from their papers, for comparison.

Each sequential procedure is a pair of boundaries for every number of samples n = 0..N: "certified" is said when
the number of successes reaches ``certify_at[n]``, "not certified" when it falls to ``give_up_at[n]``.
"""

from typing import NamedTuple

import numpy as np
from scipy import special, stats


class Boundaries(NamedTuple):
    """Decisions after n = 0..N samples; int64[N + 1] each, out of reach where there is none."""

    certify_at: np.ndarray
    give_up_at: np.ndarray


def fixed_boundary(p0: float, alpha: float, num_samples: int) -> int:
    """Least count that the one-sided exact test with a fixed number of samples certifies.

    Cohen et al. (2019), CERTIFY with pB = 1 - pA: Clopper-Pearson bound above p0.

    Example:
        >>> fixed_boundary(0.5, 0.001, 10)
        10
    """
    count = int(stats.binom.isf(alpha, num_samples, p0))
    while stats.binom.sf(count - 1, num_samples, p0) > alpha:
        count += 1
    while stats.binom.sf(count - 2, num_samples, p0) <= alpha:
        count -= 1
    return count


def staged(
    rng: np.random.Generator,
    p: np.ndarray,
    p0: float,
    alpha: float,
    stages: tuple[int, ...] = (1_000, 10_000, 100_000),
    beta: float = 1e-4,
) -> tuple[np.ndarray, np.ndarray]:
    """CertifyAdp, Horvath et al. (2022, algorithm 2): fresh samples in each stage, Bonferroni over stages.

    Stage j certifies with a lower Clopper-Pearson bound at alpha/s and, before the last, gives up with an upper bound
    at beta/(s-1). Samples of the selection stages are not counted.

    Returns:
        certified: bool, and samples used: int64, one per entry of p.
    """
    certified = np.zeros(p.shape, bool)
    samples = np.zeros(p.shape, np.int64)
    active = np.ones(p.shape, bool)
    for stage, n in enumerate(stages):
        counts = rng.binomial(n, p)
        samples += n * active
        certify_at = fixed_boundary(p0, alpha / len(stages), n)
        certified |= active & (counts >= certify_at)
        active &= counts < certify_at
        if stage < len(stages) - 1:
            give_up_at = n - fixed_boundary(1.0 - p0, beta / (len(stages) - 1), n)
            active &= counts > give_up_at
    return certified, samples


def union_bound(p0: float, alpha: float, num_samples: int) -> Boundaries:
    """Union-bound confidence sequence, Voracek (2024): exact tests at n = 1.1^k, level 5 alpha/((k+4)(k+5)).

    Both sides at alpha, as in the paper. Between looks it stops as soon as the next boundary is reached, since
    counts only grow.

    Example:
        >>> union_bound(0.84, 0.001, 1000).certify_at[900].item()
        855
    """
    return Boundaries(
        _union_bound_side(p0, alpha, num_samples),
        np.arange(num_samples + 1) - _union_bound_side(1.0 - p0, alpha, num_samples),
    )


def _union_bound_side(p0: float, alpha: float, num_samples: int) -> np.ndarray:
    boundary = np.full(num_samples + 1, 2 * num_samples)
    exponent = 11  # the first power of 1.1 above 2
    look = 0
    while (n := int(1.1**exponent) + 1) <= num_samples:
        look += 1
        level = 5.0 * alpha / ((look + 4) * (look + 5))
        boundary[n] = int(stats.binom.isf(level, n, p0)) + 1
        exponent += 1
    # A count that has reached the boundary of a later look will have it then, too.
    return np.minimum.accumulate(boundary[::-1])[::-1]


def betting(p0: float, alpha: float, num_samples: int) -> Boundaries:
    """Betting confidence sequence (Waudby-Smith and Ramdas 2024; Voracek 2024), Krichevsky-Trofimov bettor.

    The wealth against p0 after A successes in n is the Beta(1/2, 1/2) mixture of likelihood ratios; it exceeds
    1/alpha anywhere with probability at most alpha (Ville). Both sides at alpha.

    Example:
        >>> betting(0.5, 0.001, 100).certify_at[-1].item()
        72
    """
    return Boundaries(
        _betting_side(p0, alpha, num_samples),
        np.arange(num_samples + 1) - _betting_side(1.0 - p0, alpha, num_samples),
    )


def _betting_side(p0: float, alpha: float, num_samples: int) -> np.ndarray:
    n = np.arange(num_samples + 1)

    def rich(count: np.ndarray) -> np.ndarray:
        log_mixture = special.betaln(count + 0.5, n - count + 0.5) - special.betaln(0.5, 0.5)
        log_null = count * np.log(p0) + (n - count) * np.log1p(-p0)
        return (log_mixture - log_null > np.log(1.0 / alpha)) & (count >= p0 * n)

    low, high = np.ceil(p0 * n).astype(int) - 1, n.copy()  # wealth grows with the count above p0 n
    while np.any(high - low > 1):
        middle = np.clip((low + high) // 2, 0, n)
        enough = rich(middle)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(rich(high), high, 2 * num_samples)


def wald_lower_bound(
    p: np.ndarray, p0: float, num_samples: int, alpha: float = 1e-3, beta: float = 0.05
) -> np.ndarray:
    """Wald-type lower bound on the mean samples of a test that errs with alpha at p0 and with beta at p.

    ``[(1-b) log((1-b)/a) + b log(b/(1-a))] / KL(p || p0)`` (Wald 1945), the two levels exchanged below p0, and at
    most num_samples. A test that may err more often than beta at p close below p0 can need less.

    Example:
        >>> f"{wald_lower_bound(np.array(0.9), 0.84, 100_000):.0f}"
        '422'
    """
    a = np.where(p > p0, alpha, beta)
    b = np.where(p > p0, beta, alpha)
    divergence = special.rel_entr(p, p0) + special.rel_entr(1.0 - p, 1.0 - p0)
    information = (1.0 - b) * np.log((1.0 - b) / a) + b * np.log(b / (1.0 - a))
    with np.errstate(divide="ignore"):
        return np.minimum(num_samples, information / divergence)
