"""certify, predict and certificate_from_counts: exact coverage, 40-digit radii, classifiers whose truth is known."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from scipy import special, stats

from jaxsmooth import (
    ABSTAIN,
    Certificate,
    Gaussian,
    InputError,
    certificate_from_counts,
    certify,
    predict,
    sample_counts,
)

KEY = jax.random.fold_in(jax.random.key(7), 11)
BOUNDS = ["two-sided", "one-sided"]
ALPHAS = [0.001, 0.05, 0.2]
mpmath.mp.dps = 40


def levels(alpha, bound):
    """Levels of the bounds on p_A and p_B that the method promises."""
    return (alpha, None) if bound == "one-sided" else (0.98 * alpha, alpha - 0.98 * alpha)


# --- Exact coverage -----------------------------------------------------------------------------------------------


@cache
def compositions(total, parts):
    """All vectors of ``parts`` counts that sum to ``total``."""
    grid = np.indices((total + 1,) * (parts - 1)).reshape(parts - 1, -1).T
    grid = grid[grid.sum(1) <= total]
    return np.column_stack([grid, total - grid.sum(1)])


def true_unit_radius(p, selected):
    """Unit radius of the worst classifier with these probabilities; negative if the class is not on top."""
    return 0.5 * (stats.norm.ppf(p[selected]) - stats.norm.ppf(np.delete(p, selected).max()))


@cache
def stated_radii(num_samples, classes, parts, alpha, bound):
    """For each selected class, the radii stated for all outcomes; -1 on abstention."""
    counts = compositions(num_samples, parts)[:, :classes]
    radii = []
    for selected in range(classes):
        selection = np.broadcast_to(np.eye(classes, dtype=int)[selected], counts.shape)
        certificates = certificate_from_counts(
            selection, counts, noise=Gaussian(1.0), num_samples=num_samples, alpha=alpha, bound=bound
        )
        stated = certificates.prediction != ABSTAIN
        assert np.all(certificates.prediction[stated] == selected)
        radii.append(np.where(stated, certificates.radius, -1.0))
    return radii


def failure_probability(p, num_samples, alpha, bound):
    """Exact probability that more than the true radius is stated: of the whole procedure, and per selected class.

    ``p`` holds the classes' probabilities; what is missing to 1 are rows that are not finite. A class that is not
    on top has no true radius: to state it is a failure.
    """
    p = np.array(p, np.float64)
    classes, missing = len(p), 1.0 - p.sum()
    full = np.append(p, missing) if missing > 1e-9 else p
    outcomes = stats.multinomial.pmf(compositions(num_samples, len(full)), num_samples, full)
    radii = stated_radii(num_samples, classes, len(full), alpha, bound)
    given = [outcomes[(radii[a] >= 0) & (radii[a] > true_unit_radius(p, a))].sum() for a in range(classes)]
    # The first stage: three samples, the first of equal counts.
    selections = compositions(3, len(full))
    weights = stats.multinomial.pmf(selections, 3, full)
    selected = np.argmax(selections[:, :classes], axis=1)
    whole = sum(weights[selected == a].sum() * given[a] for a in range(classes))
    return max(whole, *given)


THREE_CLASSES = [
    (1 / 3, 1 / 3, 1 / 3),
    (0.5, 0.5, 0.0),
    (0.5, 0.25, 0.25),
    (0.45, 0.44, 0.11),
    (0.6, 0.3, 0.1),
    (0.8, 0.1, 0.1),
    (0.8, 0.2, 0.0),
    (0.9, 0.09, 0.01),
    (0.98, 0.01, 0.01),
    (1.0, 0.0, 0.0),
]


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_exact_coverage_three_classes(alpha, bound):
    """Whatever class the first stage selects, a false statement has probability at most alpha. Enumerated."""
    for num_samples in (1, 10, 40):
        for p in THREE_CLASSES:
            assert failure_probability(p, num_samples, alpha, bound) <= alpha * (1 + 1e-12), (num_samples, p)


@pytest.mark.parametrize("bound", BOUNDS)
def test_exact_coverage_with_rows_that_are_not_finite(bound):
    for p in [(0.6, 0.2), (0.45, 0.45), (0.3, 0.1), (0.9, 0.0)]:
        assert failure_probability(p, 30, 0.05, bound) <= 0.05 * (1 + 1e-12)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_exact_coverage_two_classes(alpha, bound):
    """Up to n = 300, on a grid of p and where the bounds are hardest pressed: at, just below, just above them."""
    worst = 0.0
    alpha_a = levels(alpha, bound)[0]
    for num_samples in (2, 60, 300):
        wins = np.unique(np.linspace(0.5 * num_samples, num_samples, 8).astype(int))
        edges = stats.beta.ppf(alpha_a, wins, num_samples - wins + 1)
        grid = np.concatenate([np.linspace(0.4, 1.0, 13), edges * (1 - 1e-9), edges * (1 + 1e-9)])
        for p in grid:
            failure = failure_probability([p, 1 - p], num_samples, alpha, bound)
            assert failure <= alpha * (1 + 1e-12), (num_samples, p)
            worst = max(worst, failure)
    assert worst > 0.97 * alpha, "somewhere the level is used up: the bounds are exact, not merely safe"


def test_exact_coverage_three_classes_at_300():
    """The two-sided bound with a real runner-up, n = 300: 45,451 outcomes each."""
    for p in [(0.45, 0.44, 0.11), (0.7, 0.2, 0.1), (0.95, 0.03, 0.02)]:
        assert failure_probability(p, 300, 0.05, "two-sided") <= 0.05


# --- Radii against 40 digits --------------------------------------------------------------------------------------


def exact_tail(k, n, p):
    """P(Bin(n, p) >= k), summed term by term until the rest is below the last digit."""
    term = total = mpmath.binomial(n, k) * p**k * (1 - p) ** (n - k)
    for j in range(k, n):
        term *= (n - j) * p / ((j + 1) * (1 - p))
        total += term
        if term < total * mpmath.mpf(10) ** -45:
            break
    return total


@cache
def exact_lower(count, num_samples, level):
    """Clopper-Pearson lower bound: the root of P(Bin(n, p) >= k) = level, to 40 digits, less its upper tail."""
    k, n, level = int(count), int(num_samples), mpmath.mpf(level)
    if k == 0:
        return mpmath.mpf(0)
    if k == n:
        return level ** (mpmath.mpf(1) / n)

    def log_tail(p):
        return mpmath.log(exact_tail(k, n, p) / level)

    start = mpmath.mpf(float(stats.beta.ppf(float(level), k, n - k + 1)))
    root = mpmath.findroot(log_tail, (start, start * (1 - mpmath.mpf(10) ** -6)), tol=mpmath.mpf(10) ** -60)
    assert abs(log_tail(root)) < mpmath.mpf(10) ** -30
    return root


def exact_quantile(p):
    if p == 0:
        return -mpmath.inf
    start = mpmath.mpf(float(stats.norm.ppf(float(p))))
    root = mpmath.findroot(
        lambda z: mpmath.log(mpmath.ncdf(z) / p),
        (start, start + mpmath.mpf(10) ** -6),
        tol=mpmath.mpf(10) ** -60,
    )
    return root


@cache
def exact_certificate(count_a, count_b, num_samples, alpha, bound):
    """(unit radius, p_A, p_B) to 40 digits; ``count_b`` is that of the runner-up."""
    level_a, level_b = levels(alpha, bound)
    p_a = exact_lower(count_a, num_samples, level_a)
    quantile_a = exact_quantile(p_a)
    if level_b is None:
        return quantile_a, p_a, 1 - p_a
    not_b = exact_lower(num_samples - count_b, num_samples, level_b)
    if not_b <= p_a:
        return quantile_a, p_a, 1 - p_a
    return (quantile_a + exact_quantile(not_b)) / 2, p_a, 1 - not_b


COUNTS = [
    (1, 0, 1),
    (2, 0, 2),
    (9, 0, 10),
    (10, 0, 10),
    (50, 0, 50),
    (41, 3, 50),
    (25, 12, 50),
    (100, 0, 100),
    (60, 10, 100),
    (80, 20, 100),
    (99, 1, 100),
    (990, 5, 1000),
    (500, 300, 1000),
    (1000, 0, 1000),
    (99000, 600, 100000),
    (60000, 10000, 100000),
    (45000, 30000, 100000),
    (100000, 0, 100000),
]


def three_counts(count_a, count_b, num_samples):
    """Counts of many classes in which A has count_a, and no other more than the runner-up's count_b."""
    rest = num_samples - count_a - count_b
    others = [min(count_b, rest - i * count_b) for i in range(-(-rest // max(count_b, 1)))] if rest else []
    return np.array(([count_a, count_b, *others] + [0] * 12)[: max(3, 2 + len(others))])


def certificate_of(count_a, count_b, num_samples, alpha, bound, sigma=1.0):
    if count_b == 0 and count_a < num_samples:
        count_b = num_samples - count_a
    counts = three_counts(count_a, count_b, num_samples)
    assert counts.sum() == num_samples
    return certificate_from_counts(
        np.eye(len(counts), dtype=int)[0],
        counts,
        noise=Gaussian(sigma),
        num_samples=num_samples,
        alpha=alpha,
        bound=bound,
    ), exact_certificate(count_a, count_b, num_samples, alpha, bound)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_host_radius_against_40_digits(counts, bound):
    """Never above, and at most 1e-9 below; each bound on its safe side."""
    alpha = 0.001
    certificate, (unit, p_a, p_b) = certificate_of(*counts, alpha, bound)
    radius = max(unit, mpmath.mpf(0))
    assert mpmath.mpf(float(certificate.radius)) <= radius
    assert float(radius - mpmath.mpf(float(certificate.radius))) <= 1e-9
    assert int(certificate.prediction) == (0 if certificate.radius > 0 else ABSTAIN)
    assert 0 <= p_a - mpmath.mpf(float(certificate.p_a_lower)) <= 1e-9
    assert 0 <= mpmath.mpf(float(certificate.p_b_upper)) - p_b <= 1e-9


@pytest.mark.parametrize("sigma", [0.12, 0.25, 0.7, 0.136, 3.0])
def test_host_radius_is_sigma_times_the_unit_radius(sigma):
    """With the sigma of the noise that was drawn, which is its float32 rounding if that is less."""
    certificate, (unit, _, _) = certificate_of(990, 5, 1000, 0.001, "two-sided", sigma)
    radius = unit * min(mpmath.mpf(sigma), mpmath.mpf(float(np.float32(sigma))))
    assert 0 <= radius - mpmath.mpf(float(certificate.radius)) <= 1e-9


@pytest.mark.parametrize(
    ("p_a", "p_b", "one_sided", "two_sided"),
    [
        (0.6, 0.1, 0.241, 0.750),
        (0.8, 0.1, 0.828, 1.044),
        (0.45, 0.3, 0.0, 0.185),
        (0.8, 0.2, 0.8277, 0.8276),
    ],
)
def test_published_comparison_of_the_bounds(p_a, p_b, one_sided, two_sided):
    """R/sigma at alpha = 1e-3 and n = 1e5, from expected counts, to one in the last digit stated."""
    n = 100_000
    counts = three_counts(round(p_a * n), round(p_b * n), n)
    for bound, expected in (("one-sided", one_sided), ("two-sided", two_sided)):
        certificate = certificate_from_counts(
            np.eye(len(counts), dtype=int)[0],
            counts,
            noise=Gaussian(1.0),
            num_samples=n,
            alpha=0.001,
            bound=bound,
        )
        assert abs(float(certificate.radius) - expected) < (1e-4 if p_b == 0.2 else 1e-3)
        assert int(certificate.prediction) == (0 if expected else ABSTAIN)


# --- A classifier whose counts a test can dictate -----------------------------------------------------------------


@cache
def drawn(num_samples):
    """Noise of the samples of KEY for an input of one entry, sigma 1, in order."""
    noise = Gaussian(1.0)
    sample = jax.jit(lambda j: noise.sample(jax.random.fold_in(KEY, j), (1,), jnp.float32)[0])
    return np.array([float(sample(j)) for j in range(num_samples)])


def scripted(params, inputs):
    """Sample j, known by its noise, gets class ``answers[j]``, and NaN for -1. Three classes."""
    positions, sigma, answers = params
    sample = jnp.argmin(jnp.abs(inputs / sigma - positions), axis=1)
    logits = jax.nn.one_hot(answers[sample], 3)
    return jnp.where(answers[sample][:, None] < 0, jnp.nan, logits)


def run_script(fn, scripts, sigma=1.0, selection_samples=5, **settings):
    """``fn`` on every script [num_scripts, num_samples] of answers."""
    scripts = jnp.asarray(scripts)
    length = scripts.shape[1]
    positions = jnp.asarray(drawn(length), jnp.float32)
    if fn is certify:
        settings["selection_samples"] = selection_samples
        settings["num_samples"] = length - selection_samples
    else:
        settings["num_samples"] = length

    def one(answers):
        params = (positions, sigma, answers)
        return fn(KEY, scripted, params, jnp.zeros(1), noise=Gaussian(sigma), batch_size=length, **settings)

    return jax.vmap(one)(scripts)


def script(counts, selection=(5, 0, 0)):
    """Answers that give these counts of classes 0, 1, 2 and -1 (not finite) after this selection stage."""
    classes = [0, 1, 2, -1]
    return np.concatenate([np.repeat(classes[: len(c)], c) for c in (selection, counts)])


def test_the_script_is_followed():
    certificates = run_script(certify, [script((10, 20, 30, 40), (1, 3, 1))], alpha=0.05)
    assert certificates.counts.tolist() == [[10, 20, 30]]
    assert certificates.selection_counts.tolist() == [[1, 3, 1]]


N = 100
SCRIPTED = [(a, b, N - a - b) for a in range(0, N + 1, 2) for b in (0, 1, 5, 10, 30) if a + b <= N]


@pytest.mark.parametrize("bound", BOUNDS)
def test_float32_radius_against_40_digits(bound):
    """Never above the true value for the sigma in use, and within 5 units in the last place; bounds safe too."""
    alpha = 0.001
    counts = [c for c in SCRIPTED if c[2] <= c[1] or c[1] == 0]
    scripts = [script(c) for c in counts]
    for sigma in (1.0, 0.25, 0.12, 0.7, 0.136):
        certificates = run_script(certify, scripts, sigma, alpha=alpha, bound=bound)
        assert certificates.radius.dtype == np.float32
        scale = min(mpmath.mpf(sigma), mpmath.mpf(float(np.float32(sigma))))
        for i, (a, b, c) in enumerate(counts):
            unit, p_a, p_b = exact_certificate(a, max(b, c), N, alpha, bound)
            radius = np.float32(certificates.radius[i])
            true = max(scale * unit, mpmath.mpf(0))
            assert mpmath.mpf(float(radius)) <= true, (sigma, a, b)
            assert float(true - mpmath.mpf(float(radius))) <= 5 * np.spacing(max(radius, np.float32(0.1)))
            assert int(certificates.prediction[i]) == (0 if radius > 0 else ABSTAIN)
            assert 0 <= float(p_a - mpmath.mpf(float(certificates.p_a_lower[i]))) <= 1.3e-7
            assert 0 <= float(mpmath.mpf(float(certificates.p_b_upper[i])) - p_b) <= 1.3e-7


def test_traced_sigma_gives_no_larger_radius_than_40_digits():
    """Sigma as an argument of a compiled program: then it is the float32 number that the noise was drawn with."""
    counts = [c for c in SCRIPTED if c[0] > 60 and (c[2] <= c[1] or c[1] == 0)]
    scripts = jnp.asarray([script(c) for c in counts])
    sigmas = np.array([0.12, 0.25, 0.7, 0.136], np.float32)
    certificates = jax.vmap(lambda s: run_script(certify, scripts, s, alpha=0.001))(sigmas)
    for i, sigma in enumerate(sigmas):
        for j, (a, b, c) in enumerate(counts):
            unit = exact_certificate(a, max(b, c), N, 0.001, "two-sided")[0]
            true = mpmath.mpf(float(sigma)) * unit
            radius = certificates.radius[i, j]
            assert mpmath.mpf(float(radius)) <= max(true, mpmath.mpf(0))
            assert float(true - mpmath.mpf(float(radius))) <= 5 * np.spacing(np.float32(radius))


@pytest.mark.parametrize("bound", BOUNDS)
def test_rows_that_are_not_finite_cost_certainty(bound):
    """They lower p_A, and raise p_B as if all had been of one other class."""
    scripts = [script((80, 10, 10)), script((70, 10, 10, 10)), script((0, 0, 0, 100))]
    certificates = run_script(certify, scripts, alpha=0.001, bound=bound)
    finite, lost, gone = (Certificate(*row) for row in zip(*certificates, strict=True))
    assert lost.p_a_lower < finite.p_a_lower
    assert lost.p_b_upper > finite.p_b_upper
    assert lost.radius < finite.radius
    host = certificate_from_counts(
        [5, 0, 0], [70, 20, 10], noise=Gaussian(1.0), num_samples=N, alpha=0.001, bound=bound
    )
    np.testing.assert_allclose(lost.p_b_upper, host.p_b_upper, rtol=1e-6)
    np.testing.assert_allclose(lost.radius, host.radius, rtol=1e-5, atol=1e-6)
    assert int(gone.prediction) == ABSTAIN
    assert float(gone.radius) == 0.0
    assert float(gone.p_a_lower) == 0.0


def test_model_that_is_never_finite():
    for fn, extra in ((certify, {"selection_samples": 10}), (predict, {})):
        answer = fn(
            KEY,
            lambda _, inputs: jnp.full((inputs.shape[0], 4), jnp.nan),
            None,
            jnp.zeros(3),
            noise=Gaussian(0.5),
            num_samples=100,
            alpha=0.05,
            batch_size=32,
            **extra,
        )
        assert int(answer.prediction) == ABSTAIN
        assert answer.counts.tolist() == [0, 0, 0, 0]


# --- predict ------------------------------------------------------------------------------------------------------


@cache
def predictions(num_samples, alpha):
    """What predict says for every outcome (n_0, n_1, n_2, not finite)."""
    outcomes = compositions(num_samples, 4)
    scripts = [script(outcome, (0,)) for outcome in outcomes]
    answers = run_script(predict, scripts, alpha=alpha)
    np.testing.assert_array_equal(answers.counts, outcomes[:, :3])
    return outcomes, np.asarray(answers.prediction)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_predict_is_the_exact_binomial_test(alpha):
    """Two-sided test of the two largest counts; rows that are not finite side with the second."""
    for outcome, prediction in zip(*predictions(14, alpha), strict=True):
        top = int(np.argmax(outcome[:3]))
        first = outcome[top]
        second = np.delete(outcome[:3], top).max() + outcome[3]
        sure = first > second and stats.binomtest(int(first), int(first + second), 0.5).pvalue <= alpha
        assert prediction == (top if sure else ABSTAIN), outcome
    assert set(predictions(14, alpha)[1].tolist()) == {ABSTAIN, 0, 1, 2}


def test_predict_abstains_on_a_tie():
    outcomes, said = predictions(14, 0.2)
    tie = (outcomes[:, 0] == outcomes[:, 1]) & (outcomes[:, 2] <= outcomes[:, 0])
    assert tie.sum() > 20
    assert np.all(said[tie] == ABSTAIN)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_predict_errs_with_probability_at_most_alpha(alpha):
    """Enumerated: the probability of an answer that is not (uniquely) the likeliest class."""
    outcomes, said = predictions(14, alpha)
    worst = 0.0
    for p in [
        (0.5, 0.5, 0, 0),
        (0.4, 0.4, 0.2, 0),
        (1 / 3, 1 / 3, 1 / 3, 0),
        (0.51, 0.49, 0, 0),
        (0.4, 0.3, 0.2, 0.1),
    ]:
        top = np.argmax(p[:3]) if max(p[:3]) > np.sort(p[:3])[1] else None
        wrong = (said != ABSTAIN) & (said != top)
        error = stats.multinomial.pmf(outcomes[wrong], 14, p).sum()
        assert error <= alpha
        worst = max(worst, error)
    assert worst > 0


def test_predict_for_many_samples():
    """Answers of both kinds, against SciPy, n = 1000."""
    n = 1000
    scripts = [np.repeat([0, 1], (k, n - k)) for k in range(440, 561, 5)]
    answers = run_script(predict, scripts, alpha=0.05)
    for k, prediction in zip(range(440, 561, 5), answers.prediction.tolist(), strict=True):
        sure = stats.binomtest(k, n, 0.5).pvalue <= 0.05
        assert prediction == ((0 if k > n - k else 1) if sure else ABSTAIN)


# --- Classifiers whose truth is known -----------------------------------------------------------------------------


def linear(params, inputs):
    """Two classes on either side of w.x + b = 0."""
    w, b = params
    score = inputs @ w + b
    return jnp.stack([score, -score], axis=1)


def ball(params, inputs):
    """Class 1 within rho of the centre."""
    centre, rho = params
    inside = rho - jnp.linalg.norm(inputs - centre, axis=1)
    return jnp.stack([-inside, inside], axis=1)


@pytest.mark.parametrize("bound", BOUNDS)
def test_linear_classifier(bound):
    """True radius: the margin over |w|. Twelve certificates at alpha = 1e-3: false alarm 1.2%, with this seed none."""
    w = np.array([3.0, -4.0, 12.0])
    x = np.array([0.2, 0.4, 0.1])
    for sigma in (0.25, 0.5):
        for margin in (0.02, 0.1, 0.25, 0.5, 1.0, 2.0):
            b = 13 * margin - w @ x
            certificate = certify(
                KEY,
                linear,
                (jnp.asarray(w, jnp.float32), b),
                x,
                noise=Gaussian(sigma),
                num_samples=10_000,
                alpha=0.001,
                batch_size=1000,
                bound=bound,
            )
            assert float(certificate.radius) <= margin
            assert int(certificate.prediction) in (0, ABSTAIN)
            p = stats.norm.cdf(margin / sigma)
            assert certificate.p_a_lower <= p
            assert certificate.p_b_upper >= 1 - p
            # The count is below this quantile once in a million.
            least = stats.binom.ppf(1e-6, 10_000, p)
            reached = sigma * stats.norm.ppf(stats.beta.ppf(0.00098, least, 10_001 - least))
            assert float(certificate.radius) >= 0.999 * reached


@pytest.mark.parametrize("bound", BOUNDS)
def test_linear_classifier_within_one_percent(bound):
    """At n = 100,000 and alpha = 0.05 the gap is 0.67% on average, with a standard deviation of 0.41%.

    So the mean of 16 is within 1%; false alarm 1e-3.
    """
    sigma, margin = 0.5, 0.75
    keys = jax.random.split(KEY, 16)
    certificates = jax.vmap(
        lambda key: certify(
            key,
            linear,
            (jnp.array([1.0, 0.0]), margin),
            jnp.zeros(2),
            noise=Gaussian(sigma),
            num_samples=100_000,
            alpha=0.05,
            batch_size=10_000,
            bound=bound,
        )
    )(keys)
    assert np.all(certificates.prediction == 0)
    assert 0.99 * margin <= float(np.mean(certificates.radius)) <= margin
    assert np.sum(certificates.radius > margin) <= 5  # Bin(16, 0.05) exceeds 5 with probability 1e-4


@pytest.mark.parametrize("distance", [0.0, 0.3, 0.6, 1.5])
def test_ball_classifier(distance):
    """Inside a ball in 10 dimensions p is a noncentral chi-square, and g changes where it passes 1/2.

    Eight certificates at alpha = 1e-3: false alarm 0.8%.
    """
    d, rho, sigma = 10, 1.5, 0.4
    away = np.linspace(0, 4, 4001)
    p_inside = stats.ncx2.cdf((rho / sigma) ** 2, d, (away / sigma) ** 2)
    boundary = away[np.argmax(p_inside < 0.5)]
    p = stats.ncx2.cdf((rho / sigma) ** 2, d, (distance / sigma) ** 2)
    direction = np.ones(d) / np.sqrt(d)
    for bound in BOUNDS:
        certificate = certify(
            KEY,
            ball,
            (jnp.ones(d), rho),
            np.ones(d) + distance * direction,
            noise=Gaussian(sigma),
            num_samples=20_000,
            alpha=0.001,
            batch_size=1000,
            bound=bound,
        )
        assert int(certificate.prediction) in (int(p > 0.5), ABSTAIN)
        assert float(certificate.radius) <= abs(boundary - distance)
        assert float(certificate.p_a_lower) <= max(p, 1 - p) <= 1.0
        assert float(certificate.p_a_lower) > max(p, 1 - p) - 0.02
        assert float(certificate.p_b_upper) >= min(p, 1 - p)


# --- Under every transformation -----------------------------------------------------------------------------------


def certify_linear(x, w, sigma=0.5, key=KEY):
    return certify(
        key,
        linear,
        (w, 0.1),
        x,
        noise=Gaussian(sigma),
        num_samples=500,
        alpha=0.01,
        batch_size=64,
        selection_samples=30,
    )


XS = np.array([[0.5, 0.1], [-0.4, 0.3], [0.0, -0.1], [1.0, 1.0]], np.float32)
W = jnp.array([1.0, -0.5])


def assert_same(certificates, alone):
    for i, certificate in enumerate(alone):
        for name in Certificate._fields:
            np.testing.assert_array_equal(
                getattr(certificates, name)[i], getattr(certificate, name), err_msg=name
            )


@pytest.mark.parametrize("how", ["jit", "vmap", "jit of vmap", "pmap", "shard_map", "shard_map over params"])
def test_certify_under(how):
    """Every field is the same as in a call without any transformation."""
    mesh = jax.make_mesh((2,), ("d",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    alone = [certify_linear(x, W) for x in XS]
    if how == "shard_map over params":
        ws = jnp.stack([W, 2 * W])
        over_w = jax.vmap(certify_linear, (None, 0))
        sharded = jax.shard_map(over_w, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"))
        certificates = jax.jit(sharded)(XS[0], ws)
        assert_same(certificates, [certify_linear(XS[0], w) for w in ws])
        return
    over_x = jax.vmap(certify_linear, (0, None))
    run = {
        "jit": lambda: jax.tree.map(
            lambda *rows: np.stack(rows), *[jax.jit(certify_linear)(x, W) for x in XS]
        ),
        "vmap": lambda: over_x(XS, W),
        "jit of vmap": lambda: jax.jit(over_x)(XS, W),
        "pmap": lambda: jax.pmap(certify_linear, in_axes=(0, None), devices=jax.devices()[:4])(XS, W),
        "shard_map": lambda: jax.jit(
            jax.shard_map(over_x, mesh=mesh, in_specs=(P("d"), P()), out_specs=P("d"))
        )(XS, W),
    }[how]
    assert_same(run(), alone)


def test_vmap_over_sigma():
    sigmas = np.array([0.12, 0.5, 0.7], np.float32)
    certificates = jax.vmap(partial(certify_linear, XS[0], W))(sigmas)
    assert_same(certificates, [certify_linear(XS[0], W, sigma) for sigma in sigmas])


def test_x64():
    """In float64 mode the noise is the same, and the radius is that of the host."""
    ordinary = certify_linear(XS[0], W)
    with jax.enable_x64(True):
        certificate = certify_linear(XS[0], W)
        traced = jax.jit(lambda sigma: certify_linear(XS[0], W, sigma))(0.7)
    np.testing.assert_array_equal(certificate.counts, ordinary.counts)
    assert certificate.radius.dtype == np.float64
    host = certificate_from_counts(
        certificate.selection_counts, certificate.counts, noise=Gaussian(0.5), num_samples=500, alpha=0.01
    )
    for name in ("radius", "p_a_lower", "p_b_upper"):
        np.testing.assert_allclose(getattr(certificate, name), getattr(host, name), rtol=1e-14)
    assert float(certificate.radius) >= float(ordinary.radius)
    # float32(0.7) < 0.7, and the noise was drawn with the former.
    host = certificate_from_counts(
        traced.selection_counts, traced.counts, noise=Gaussian(0.7), num_samples=500, alpha=0.01
    )
    assert traced.radius.dtype == np.float64
    assert float(traced.radius) <= host.radius * (1 + 1e-15)


def test_device_and_host_say_the_same():
    for bound in BOUNDS:
        certificates = run_script(certify, [script(c) for c in SCRIPTED[::7]], alpha=0.01, bound=bound)
        host = certificate_from_counts(
            certificates.selection_counts,
            certificates.counts,
            noise=Gaussian(1.0),
            num_samples=N,
            alpha=0.01,
            bound=bound,
        )
        np.testing.assert_array_equal(certificates.prediction, host.prediction)
        np.testing.assert_allclose(certificates.radius, host.radius, rtol=1e-6, atol=1e-6)


# --- Bad input ----------------------------------------------------------------------------------------------------


def assert_one_line(error, *words):
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 300
    for word in words:
        assert word in message


def call(fn, **changes):
    arguments = {"num_samples": 20, "batch_size": 10, "alpha": 0.01, "noise": Gaussian(0.5)} | changes
    return fn(KEY, linear, (W, 0.1), XS[0], **arguments)


BAD_ALPHAS = [
    0,
    1,
    0.0,
    1.0,
    1.5,
    -0.001,
    float("nan"),
    float("inf"),
    True,
    None,
    "0.001",
    np.full((2, 2), 0.1),
]


@pytest.mark.parametrize("alpha", BAD_ALPHAS, ids=str)
@pytest.mark.parametrize("fn", [certify, predict])
def test_bad_alpha(fn, alpha):
    with pytest.raises(InputError, match=r"^alpha\b") as error:
        call(fn, alpha=alpha)
    assert_one_line(error, "(2, 2)" if isinstance(alpha, np.ndarray) else str(alpha))


@pytest.mark.parametrize("fn", [certify, predict])
def test_traced_alpha(fn):
    with pytest.raises(InputError, match=r"^alpha\b") as error:
        jax.jit(lambda alpha: call(fn, alpha=alpha))(0.01)
    assert_one_line(error, "traced")


@pytest.mark.parametrize("bound", ["both", "Two-Sided", "", None, 2, ("two-sided",)])
def test_bad_bound(bound):
    with pytest.raises(InputError, match=r"^bound\b") as error:
        call(certify, bound=bound)
    assert_one_line(error, repr(bound), "'two-sided'", "'one-sided'")


@pytest.mark.parametrize("selection_samples", [0, -1, 2.5, True, None, float("nan"), 10**400, 2**31])
def test_bad_selection_samples(selection_samples):
    with pytest.raises(InputError, match=r"^selection_samples\b") as error:
        call(certify, selection_samples=selection_samples)
    assert_one_line(error)


@pytest.mark.parametrize("fn", [certify, predict])
def test_more_samples_than_the_tables_hold(fn):
    with pytest.raises(InputError, match=r"^num_samples\b") as error:
        call(fn, num_samples=10_000_001)
    assert_one_line(error, "10000001")


BAD_COUNTS = {
    "more than n": ({"counts": [11, 0]}, "counts", "11"),
    "sum above n": ({"counts": [6, 6]}, "counts", "12"),
    "negative": ({"counts": [-1, 3]}, "counts", "-1"),
    "not whole": ({"counts": [1.5, 3]}, "counts", "1.5"),
    "nan": ({"counts": [np.nan, 3]}, "counts", "nan"),
    "text": ({"counts": ["a", "b"]}, "counts", "'a'"),
    "scalar": ({"counts": 3}, "counts", "()"),
    "one class": ({"counts": [3], "selection_counts": [3]}, "counts", "(1,)"),
    "two shapes": ({"counts": [1, 2, 3]}, "counts", "(3,)"),
    "negative selection": ({"selection_counts": [-1, 3]}, "selection_counts", "-1"),
    "selection not whole": ({"selection_counts": [0.5, 3]}, "selection_counts", "0.5"),
    "no samples": ({"num_samples": 0}, "num_samples", "0"),
    "half a sample": ({"num_samples": 10.5}, "num_samples", "10.5"),
    "alpha": ({"alpha": 1.5}, "alpha", "1.5"),
    "bound": ({"bound": "both"}, "bound", "'both'"),
    "sigma for noise": ({"noise": 0.5}, "noise", "0.5"),
}


@pytest.mark.parametrize("wrong", BAD_COUNTS)
def test_bad_counts(wrong):
    changes, name, value = BAD_COUNTS[wrong]
    good = {
        "selection_counts": [5, 0],
        "counts": [9, 1],
        "noise": Gaussian(0.5),
        "num_samples": 10,
        "alpha": 0.01,
    }
    certificate_from_counts(**good)
    with pytest.raises(InputError, match=rf"^{name}\b") as error:
        certificate_from_counts(**(good | changes))
    assert_one_line(error, value)


class TestSelectionFree:
    """One stage that selects and certifies."""

    N, ALPHA = 30, 0.05

    def error(self, p, level_factor=1.0):
        """Exact probability of a false statement, by enumeration of all counts of three classes."""
        states = [(i, j, self.N - i - j) for i in range(self.N + 1) for j in range(self.N + 1 - i)]
        found = certificate_from_counts(
            np.zeros_like(states),
            states,
            noise=Gaussian(1.0),
            num_samples=self.N,
            alpha=self.ALPHA * level_factor,
            bound="selection-free",
        )
        said = found.prediction >= 0
        false = said & (found.p_a_lower > np.array(p)[found.prediction])
        return stats.multinomial.pmf(states, self.N, p)[false].sum()

    def test_error_by_enumeration(self):
        rng = np.random.default_rng(0)
        k = np.arange(16, 31)
        edges = special.betaincinv(k, self.N - k + 1, self.ALPHA / 2) * (1 - 1e-9)
        cases = [(0.5, 0.5, 0.0), (0.5, 0.25, 0.25), (0.4, 0.4, 0.2), *rng.dirichlet([1, 1, 1], 40)]
        cases += [(e, 1 - e, 0.0) for e in edges]
        assert max(self.error(p) for p in cases) <= self.ALPHA

    def test_half_of_alpha_is_needed(self):
        assert self.error((0.5, 0.5, 0.0), level_factor=2.0) > self.ALPHA

    def test_a_single_vote_costs_little(self):
        found = certificate_from_counts(
            [0, 0],
            [0, 100_000],
            noise=Gaussian(0.25),
            num_samples=100_000,
            alpha=0.001,
            bound="selection-free",
        )
        assert int(found.prediction) == 1
        assert 0.99 < float(found.radius) / 0.952864140847488 < 0.995

    def test_certify_draws_one_stage(self):
        """All samples from the first on are counted, and the statement is that of their counts."""
        arguments = {"noise": Gaussian(0.5), "num_samples": 300, "batch_size": 64}
        x = jnp.array([0.6, 0.0])
        found = certify(
            jax.random.key(1),
            lambda params, inputs: inputs,
            None,
            x,
            alpha=0.01,
            bound="selection-free",
            selection_samples=7,
            **arguments,
        )
        counts = sample_counts(jax.random.key(1), lambda params, inputs: inputs, None, x, **arguments)
        np.testing.assert_array_equal(found.counts, counts)
        assert not np.any(found.selection_counts)
        on_host = certificate_from_counts(
            [0, 0], counts, noise=Gaussian(0.5), num_samples=300, alpha=0.01, bound="selection-free"
        )
        assert int(found.prediction) == int(on_host.prediction) == 0
        assert 0 < float(on_host.radius) * (1 - 1e-6) < float(found.radius) <= float(on_host.radius)
