"""Stopping plans against independent computations of their error, power, and behaviour under JAX."""

from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import special, stats

from jaxsmooth import Gaussian, InputError, certify, sample_counts, stopping
from jaxsmooth.stopping import CERTIFIED, NOT_CERTIFIED, UNDECIDED
from jaxsmooth.stopping import prediction as prediction_lib
from jaxsmooth.stopping import tolerance as tolerance_lib

SMALL = [
    (radius, alpha, n)
    for n in (12, 60, 150)
    for alpha in (0.1, 0.02, 0.001)
    for radius in (0.05, 0.3, 0.7, 1.2)
    if special.ndtr(radius) ** n < 0.99 * alpha
]
LARGE = [
    (radius, alpha, n)
    for n, alphas, radii in (
        (1_000, (0.05, 0.001), (0.1, 0.5, 1.0, 1.5, 2.0)),
        (10_000, (0.05, 0.001, 1e-6), (0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 2.9)),
        (100_000, (0.01, 0.001), (0.25, 1.0, 2.0, 3.0, 3.7)),
        (1_000_000, (0.001,), (1.0, 3.0, 4.0)),
    )
    for alpha in alphas
    for radius in radii
]


def error_by_enumeration(plan: stopping.StoppingPlan) -> mpmath.mpf:
    """Error by enumeration over paths, one sample at a time, in 40-digit arithmetic: nothing shared with the code."""
    with mpmath.workdps(40):
        success = mpmath.ncdf(mpmath.mpf(plan.radius) / mpmath.mpf(plan.sigma))
        boundary = dict(zip(plan.looks.tolist(), plan.certify_at.tolist(), strict=True))
        reach = {0: mpmath.mpf(1)}  # successes -> probability of getting here uncertified
        error = mpmath.mpf(0)
        for n in range(1, int(plan.looks[-1]) + 1):
            step: dict[int, mpmath.mpf] = {}
            for count, probability in reach.items():
                step[count + 1] = step.get(count + 1, 0) + probability * success
                step[count] = step.get(count, 0) + probability * (1 - success)
            crossed = [count for count in step if count >= boundary.get(n, n + 1)]
            error += mpmath.fsum(step.pop(count) for count in crossed)
            reach = step
        return error


def error_by_matrix(looks: np.ndarray, certify_at: np.ndarray, p: float) -> float:
    """Error by a separate float64 computation, in successes, with SciPy's binomial probabilities and no spending."""
    low, mass, total, previous = 0, np.ones(1), 0.0, 0
    for look, boundary in zip(looks.tolist(), certify_at.tolist(), strict=True):
        m = look - previous
        previous = look
        spread = 9.5 * np.sqrt(m * p * (1 - p)) + 25.0
        first, last = max(0, int(m * p - spread)), min(m, int(m * p + spread) + 1)
        pmf = stats.binom.pmf(np.arange(first, last + 1), m, p)
        new = np.zeros(mass.size + pmf.size - 1)
        # Sum over the shorter of the two, so that no convolution routine is shared with the code under test.
        short, long = (mass, pmf) if mass.size < pmf.size else (pmf, mass)
        for j, weight in enumerate(short):
            if weight > 1e-25:
                new[j : j + long.size] += weight * long
        low += first
        keep = min(max(boundary - low, 0), new.size)
        total += new[keep:].sum()
        new = new[:keep]
        # Paths too far below to matter: 11 standard deviations.
        cut = max(0, int(look * p - 11.0 * np.sqrt(look * p * (1 - p)) - 60) - low)
        low, mass = low + cut, new[cut:]
    return total


def fixed_boundary(p0: float, alpha: float, n: int) -> int:
    """Least count that certifies with n samples."""
    count = int(stats.binom.isf(alpha, n, p0))
    while stats.binom.sf(count - 1, n, p0) > alpha:
        count += 1
    while stats.binom.sf(count - 2, n, p0) <= alpha:
        count -= 1
    return count


class TestError:
    """The error, recomputed by methods that share nothing with the construction."""

    def test_there_are_at_least_sixty_combinations(self):
        assert len(SMALL) + len(LARGE) >= 60

    @pytest.mark.parametrize(("radius", "alpha", "n"), SMALL)
    def test_small_plans_by_enumeration_in_forty_digits(self, radius, alpha, n):
        plan = stopping.stopping_plan(radius, sigma=1.0, alpha=alpha, num_samples=n)
        exact = error_by_enumeration(plan)
        assert exact <= mpmath.mpf(alpha)
        assert exact <= mpmath.mpf(plan.error)
        assert plan.error <= float(exact) * (1 + 2e-8)

    @pytest.mark.parametrize(("radius", "alpha", "n"), LARGE)
    def test_large_plans_by_a_separate_convolution(self, radius, alpha, n):
        plan = stopping.stopping_plan(radius, sigma=1.0, alpha=alpha, num_samples=n)
        exact = error_by_matrix(plan.looks, plan.certify_at, float(special.ndtr(radius)))
        assert exact <= alpha
        assert plan.error <= alpha
        np.testing.assert_allclose(plan.error, exact, rtol=2e-8)
        if n >= 10_000:
            assert exact >= 0.9 * alpha

    def test_enumeration_in_rational_arithmetic(self):
        plan = stopping.stopping_plan(0.3, sigma=1.0, alpha=0.05, num_samples=40)
        p = Fraction(5, 8)
        error, reach = Fraction(0), {0: Fraction(1)}
        boundary = dict(zip(plan.looks.tolist(), plan.certify_at.tolist(), strict=True))
        for n in range(1, int(plan.looks[-1]) + 1):
            step = {
                count: reach.get(count - 1, 0) * p + reach.get(count, 0) * (1 - p) for count in range(n + 1)
            }
            certify_at = boundary.get(n, n + 1)
            error += sum(value for count, value in step.items() if count >= certify_at)
            reach = {count: value for count, value in step.items() if count < certify_at}
        assert stopping.crossing_probability(plan.looks, plan.certify_at, 0.625) == pytest.approx(
            float(error), rel=1e-9
        )

    def test_error_falls_below_the_boundary_and_grows_above_it(self):
        plan = stopping.stopping_plan(1.0, sigma=1.0, alpha=0.001, num_samples=1000)
        errors = [
            stopping.crossing_probability(plan.looks, plan.certify_at, p)
            for p in (0.8, 0.83, 0.8413, 0.85, 0.9)
        ]
        assert errors == sorted(errors)

    def test_the_design_is_a_function_of_the_ratio_alone(self):
        a = stopping.stopping_plan(0.5, sigma=0.5, alpha=0.001, num_samples=2000)
        b = stopping.stopping_plan(2.0, sigma=2.0, alpha=0.001, num_samples=2000)
        np.testing.assert_array_equal(a.certify_at, b.certify_at)
        np.testing.assert_array_equal(a.give_up_at, b.give_up_at)

    def test_a_sigma_that_float32_rounds_down_is_not_taken_at_its_word(self):
        assert float(np.float32(0.7)) < 0.7
        plan = stopping.stopping_plan(0.7, sigma=0.7, alpha=0.001, num_samples=10_000)
        p0 = float(special.ndtr(0.7 / float(np.float32(0.7))))
        assert error_by_matrix(plan.looks, plan.certify_at, p0) <= 0.001

    def test_plans_are_cached(self):
        assert stopping.stopping_plan(0.5, sigma=0.5, alpha=0.01, num_samples=500) is stopping.stopping_plan(
            0.5, sigma=0.5, alpha=0.01, num_samples=500
        )


class TestPower:
    """What a plan costs in power, and saves in samples."""

    @pytest.mark.parametrize(("radius", "alpha", "n"), [c for c in LARGE if c[2] <= 100_000])
    def test_power_within_one_percent_of_the_fixed_test_everywhere(self, radius, alpha, n):
        plan = stopping.stopping_plan(radius, sigma=1.0, alpha=alpha, num_samples=n)
        boundary = fixed_boundary(float(special.ndtr(radius)), alpha, n)
        power = np.array([0.05, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999])
        p = special.betaincinv(boundary, n - boundary + 1, power)
        np.testing.assert_allclose(stats.binom.sf(boundary - 1, n, p), power, rtol=1e-6)
        result = stopping.operating_characteristics(plan, p)
        assert np.all(result.certified >= power - 0.01)

    @pytest.mark.parametrize("p", [0.3, 0.8413, 0.87, 0.95, 1.0])
    def test_operating_characteristics_by_simulation(self, p):
        """40,000 runs; each estimate within 5 standard errors: false alarm below 1e-5 in all."""
        plan = stopping.stopping_plan(1.0, sigma=1.0, alpha=0.01, num_samples=5_000)
        rng = np.random.default_rng(7)
        runs = 40_000
        counts = np.zeros(runs, np.int64)
        verdict, used, previous = np.full(runs, -2), np.zeros(runs), 0
        for look, certify_at, give_up_at in zip(plan.looks, plan.certify_at, plan.give_up_at, strict=True):
            counts += rng.binomial(look - previous, p, runs)
            previous = look
            open_ = verdict == -2
            used[open_] = look
            verdict[open_ & (counts >= certify_at)] = 1
            verdict[open_ & (counts <= give_up_at)] = 0
        result = stopping.operating_characteristics(plan, p)
        for exact, values in (
            (result.certified, verdict == 1),
            (result.given_up, verdict == 0),
            (result.mean_samples, used),
        ):
            assert abs(values.mean() - exact) <= 5 * values.std() / np.sqrt(runs) + 5 / runs

    def test_far_from_the_boundary_a_few_samples_decide(self):
        plan = stopping.stopping_plan(1.0, sigma=1.0, alpha=0.001, num_samples=100_000)
        result = stopping.operating_characteristics(plan, np.array([0.1, 0.45, 0.99]))
        assert np.all(result.mean_samples < [8, 25, 120])
        np.testing.assert_allclose(result.certified, [0, 0, 1], atol=1e-3)

    def test_giving_up_is_looked_at_long_before_certifying_is_possible(self):
        plan = stopping.stopping_plan(1.0, sigma=1.0, alpha=0.001, num_samples=100_000)
        assert plan.looks[np.argmax(plan.give_up_at >= 0)] < 10
        assert plan.looks[np.argmax(plan.certify_at <= plan.looks)] > 50

    def test_shape_of_the_boundaries(self):
        plan = stopping.stopping_plan(0.5, sigma=0.5, alpha=0.001, num_samples=100_000)
        assert np.all(np.diff(plan.looks) > 0)
        assert 0.97 * 100_000 < plan.looks[-1] <= 100_000
        assert np.all(plan.give_up_at < plan.certify_at)
        assert plan.give_up_at[-1] == -1 or plan.give_up_at[-1] < plan.certify_at[-1]


def linear(params, inputs):
    """Two classes; class 0 exactly where the first coordinate is positive."""
    return jnp.stack([inputs[:, 0], -inputs[:, 0]], axis=1) * params


def three_ways(params, inputs):
    """Three classes, a third each at the origin; far along the first axis only class 0 is left."""
    angle = jnp.arctan2(inputs[:, 1], inputs[:, 0])[:, None]
    centres = 2 * jnp.pi / 3 * jnp.arange(3)
    return jnp.cos(angle - centres) * params


KEY = jax.random.key(3)
NOISE = Gaussian(0.5)
PLAN = stopping.stopping_plan(0.5, sigma=0.5, alpha=0.001, num_samples=4_000)


def replay(key, apply_fn, params, x, plan, selection_samples=100):
    """The verdict, from counts drawn by ``sample_counts`` up to each look."""
    draw = partial(sample_counts, key, apply_fn, params, x, noise=NOISE, batch_size=500)
    selection = np.asarray(draw(num_samples=selection_samples))
    counts, previous = 0, 0
    for look, certify_at, give_up_at in zip(plan.looks, plan.certify_at, plan.give_up_at, strict=True):
        first = selection_samples + previous
        counts = counts + np.asarray(draw(num_samples=int(look) - previous, first_sample=first))
        previous = int(look)
        if counts[selection.argmax()] >= certify_at:
            return CERTIFIED, previous, counts
        if counts[selection.argmax()] <= give_up_at:
            return NOT_CERTIFIED, previous, counts
    return UNDECIDED, previous, counts


class TestCertifyRadius:
    """The pure function."""

    @pytest.mark.parametrize("margin", [0.1, 0.42, 0.5, 0.55, 0.9])
    def test_agrees_with_a_replay_on_sample_counts(self, margin):
        x = jnp.array([margin, 0.0])
        found = stopping.certify_radius(KEY, linear, 1.0, x, noise=NOISE, plan=PLAN, batch_size=100)
        verdict, used, counts = replay(KEY, linear, 1.0, x, PLAN)
        assert (int(found.verdict), int(found.samples_used)) == (verdict, used)
        np.testing.assert_array_equal(found.counts, counts)
        assert int(found.prediction) == (0 if verdict == CERTIFIED else -1)
        assert int(found.selection_counts.sum()) == 100
        assert all(leaf.dtype == jnp.int32 for leaf in found)

    @pytest.mark.parametrize("margin", [0.2, 0.5, 0.7])
    def test_batch_size_changes_nothing(self, margin):
        x = jnp.array([margin, 0.0])
        results = [
            stopping.certify_radius(KEY, linear, 1.0, x, noise=NOISE, plan=PLAN, batch_size=b)
            for b in (100, 6000)
        ]
        for result in results[1:]:
            jax.tree.map(np.testing.assert_array_equal, result, results[0])

    def test_jit_vmap_pmap_and_shard_map(self):
        xs = jnp.linspace(0.0, 1.2, 8)[:, None] * jnp.array([1.0, 0.0])
        keys = jax.vmap(partial(jax.random.fold_in, KEY))(jnp.arange(8))
        one = partial(stopping.certify_radius, noise=NOISE, plan=PLAN, batch_size=100)

        def run(key, x):
            return one(key, linear, 1.0, x)

        expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(run, keys, xs))
        assert set(expected.verdict.tolist()) >= {CERTIFIED, NOT_CERTIFIED}
        mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
        sharded = jax.shard_map(
            lambda keys, xs: jax.vmap(run)(keys, xs),
            mesh=mesh,
            in_specs=jax.sharding.PartitionSpec("i"),
            out_specs=jax.sharding.PartitionSpec("i"),
        )
        for mapped in (jax.pmap(run), jax.jit(sharded)):
            jax.tree.map(np.testing.assert_array_equal, mapped(keys, xs), expected)

    def test_traced_sigma_does_not_recompile(self):
        traces = []

        def counted(params, inputs):
            traces.append(None)
            return linear(params, inputs)

        run = jax.jit(
            lambda sigma, x: stopping.certify_radius(
                KEY, counted, 1.0, x, noise=Gaussian(sigma), plan=PLAN, batch_size=100
            )
        )
        run(0.5, jnp.array([0.9, 0.0]))
        first = len(traces)
        run(0.4, jnp.array([0.2, 0.0]))
        assert len(traces) == first

    def test_agrees_with_the_margin_of_a_linear_classifier(self):
        """300 inputs; false certificates have probability at most alpha = 0.001 each, so more than 4 among the 150
        at a radius just too small happens with probability below 1e-6; the other bounds are likewise generous.
        """
        margins = jnp.concatenate([jnp.full(150, 0.499), jnp.full(75, 0.65), jnp.full(75, 0.3)])
        xs = margins[:, None] * jnp.array([1.0, 0.0])
        keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(11)))(jnp.arange(300))
        verdicts = jax.jit(
            jax.vmap(
                lambda key, x: (
                    stopping.certify_radius(
                        key, linear, 1.0, x, noise=NOISE, plan=PLAN, batch_size=100
                    ).verdict
                )
            )
        )(keys, xs)
        verdicts = np.asarray(verdicts)
        assert np.sum(verdicts[:150] == CERTIFIED) <= 4
        assert np.all(verdicts[150:225] == CERTIFIED)
        assert np.all(verdicts[225:] == NOT_CERTIFIED)

    def test_fixed_number_of_samples_says_the_same_and_costs_more(self):
        x = jnp.array([0.8, 0.0])
        fixed = certify(
            KEY,
            linear,
            1.0,
            x,
            noise=NOISE,
            num_samples=4_000,
            alpha=0.001,
            batch_size=500,
            bound="one-sided",
        )
        early = stopping.certify_radius(KEY, linear, 1.0, x, noise=NOISE, plan=PLAN, batch_size=100)
        assert float(fixed.radius) > PLAN.radius
        assert int(early.verdict) == CERTIFIED
        assert int(early.samples_used) < 1_000
        np.testing.assert_array_equal(fixed.selection_counts, early.selection_counts)

    def test_rows_that_are_not_finite_are_failures(self):
        def broken(params, inputs):
            logits = linear(1.0, inputs)
            return jnp.where(inputs[:, 1:] > 0, jnp.nan, logits)  # half of all rows

        found = stopping.certify_radius(
            KEY, broken, 1.0, jnp.array([5.0, 0.0]), noise=NOISE, plan=PLAN, batch_size=100
        )
        assert int(found.verdict) == NOT_CERTIFIED
        assert int(found.counts.sum()) < int(found.samples_used)

    def test_undecided_at_the_last_look(self):
        plan = stopping.StoppingPlan(
            looks=np.array([10, 20]),
            certify_at=np.array([11, 21]),
            give_up_at=np.array([-1, -1]),
            radius=0.5,
            sigma=0.5,
            alpha=0.001,
            num_samples=20,
            error=0.0,
        )
        found = stopping.certify_radius(
            KEY, linear, 1.0, jnp.array([0.5, 0.0]), noise=NOISE, plan=plan, batch_size=7
        )
        assert (int(found.verdict), int(found.samples_used), int(found.counts.sum())) == (UNDECIDED, 20, 20)
        assert int(found.prediction) == -1


class TestSeveralRadii:
    """One stream, several questions."""

    PLANS = stopping.stopping_plans([0.25, 0.5, 0.75], sigma=0.5, alpha=0.001, num_samples=4_000)

    def run(self, margin, guarantee, batch_size=100, key=KEY):
        return stopping.certify_radii(
            key,
            linear,
            1.0,
            jnp.array([margin, 0.0]),
            noise=NOISE,
            plans=self.PLANS,
            batch_size=batch_size,
            guarantee=guarantee,
        )

    @pytest.mark.parametrize("margin", [0.1, 0.3, 0.5, 0.6, 0.9])
    def test_each_radius_gets_the_verdict_it_would_get_alone(self, margin):
        found = self.run(margin, "each")
        for k, plan in enumerate(self.PLANS):
            alone = stopping.certify_radius(
                KEY, linear, 1.0, jnp.array([margin, 0.0]), noise=NOISE, plan=plan, batch_size=128
            )
            for together, single in zip(found[:-1], alone[:-1], strict=True):
                np.testing.assert_array_equal(together[k], single)
            np.testing.assert_array_equal(found.selection_counts, alone.selection_counts)

    @pytest.mark.parametrize("guarantee", ["each", "simultaneous"])
    @pytest.mark.parametrize("margin", [0.1, 0.4, 0.62])
    def test_batch_size_changes_nothing(self, guarantee, margin):
        results = [self.run(margin, guarantee, batch_size) for batch_size in (100, 30)]
        for result in results[1:]:
            jax.tree.map(np.testing.assert_array_equal, result, results[0])

    @pytest.mark.parametrize("margin", [0.1, 0.2, 0.3, 0.4, 0.5, 0.62, 0.9])
    def test_simultaneous_certifies_an_unbroken_run_of_those_certified_each(self, margin):
        each, together = self.run(margin, "each"), self.run(margin, "simultaneous")
        expected = np.cumprod(np.asarray(each.verdict) == CERTIFIED).astype(bool)
        np.testing.assert_array_equal(np.asarray(together.verdict) == CERTIFIED, expected)
        assert np.all(np.asarray(together.samples_used) <= np.asarray(each.samples_used))
        np.testing.assert_array_equal(together.prediction, np.where(expected, 0, -1))

    def test_a_failed_radius_ends_the_larger_ones(self):
        never = np.full(PLAN.looks.size, -1)
        stubborn = stopping.StoppingPlan(
            PLAN.looks, PLAN.looks + 1, never, 0.75, 0.5, 0.001, PLAN.num_samples, 0.0
        )
        found = stopping.certify_radii(
            KEY,
            linear,
            1.0,
            jnp.array([0.1, 0.0]),
            noise=NOISE,
            plans=(PLAN, stubborn),
            batch_size=50,
            guarantee="simultaneous",
        )
        assert found.verdict.tolist() == [NOT_CERTIFIED, NOT_CERTIFIED]
        assert int(found.samples_used[0]) == int(found.samples_used[1]) < 100


def grow(states: dict, num_samples: int, p: tuple[float, ...]) -> dict:
    """Distribution of counts (all classes) after more samples, by one multinomial step per sample."""
    for _ in range(num_samples):
        new: dict = {}
        for counts, probability in states.items():
            for c, p_c in enumerate(p):
                grown = (*counts[:c], counts[c] + 1, *counts[c + 1 :])
                new[grown] = new.get(grown, 0.0) + probability * p_c
        states = new
    return states


def unit_radius(plan, i, count_a, count_b):
    """Radius over sigma at look i, from the formula of Theorem 1 and SciPy's beta quantiles: no table."""
    n, level = plan.looks[i], plan.levels[i]
    share = 1.0 if plan.bound == "one-sided" else 0.98
    if count_a == 0:
        return -np.inf
    p_a = (
        special.betaincinv(count_a, n - count_a + 1, share * level)
        if count_a < n
        else (share * level) ** (1 / n)
    )
    quantile_a = special.ndtri(p_a)
    if plan.bound == "one-sided" or count_b == n:
        return quantile_a
    p_b = (
        special.betaincinv(count_b + 1, n - count_b, 1 - 0.02 * level)
        if count_b
        else 1 - (0.02 * level) ** (1 / n)
    )
    return max(quantile_a, 0.5 * (quantile_a - special.ndtri(p_b)))


class TestTolerance:
    """Radii that are refined until they are good enough."""

    @pytest.mark.parametrize("alpha", [0.2, 0.02])
    @pytest.mark.parametrize("n", [25, 70])
    def test_coverage_one_sided_by_enumeration(self, alpha, n):
        """The exact probability that any look claims too much, at p just below every bound there is."""
        plan = stopping.tolerance_plan(0.1, alpha=alpha, num_samples=n, bound="one-sided")
        bounds = np.unique(special.ndtr(plan.bound_a))
        worst = 0.0
        for p in bounds[(bounds > 0.3) & (bounds < 1)] * (1 - 1e-9):
            mass, previous, total = np.ones(1), 0, 0.0
            for look, offset in zip(plan.looks, plan.offsets, strict=True):
                step = look - previous
                previous = look
                mass = np.convolve(mass, stats.binom.pmf(np.arange(step + 1), step, p))
                false = special.ndtr(plan.bound_a[offset : offset + look + 1]) > p
                total += mass[false].sum()
                mass = np.where(false, 0.0, mass)
            worst = max(worst, total)
        assert 0.5 * alpha < worst <= alpha

    @pytest.mark.parametrize("p", [(0.5, 0.3, 0.2), (0.4, 0.31, 0.29), (0.8, 0.1, 0.1), (0.85, 0.15, 0.0)])
    def test_coverage_two_sided_by_enumeration(self, p):
        alpha = 0.1
        plan = stopping.tolerance_plan(0.1, alpha=alpha, num_samples=34, bound="two-sided")
        truth = 0.5 * (special.ndtri(p[0]) - special.ndtri(p[1]))
        states, previous, total = {(0, 0, 0): 1.0}, 0, 0.0
        for i, look in enumerate(plan.looks.tolist()):
            states = grow(states, look - previous, p)
            previous = look
            false = [k for k in states if unit_radius(plan, i, k[0], max(k[1:])) > truth]
            total += sum(states.pop(k) for k in false)
        assert total <= alpha

    def test_tables_against_the_formula(self):
        plan = stopping.tolerance_plan(0.1, alpha=0.01, num_samples=100, bound="two-sided")
        for i, (look, offset) in enumerate(zip(plan.looks, plan.offsets, strict=True)):
            for k in (1, look // 2, look - 1, look):
                expected = unit_radius(plan, i, k, look - k)
                found = max(
                    plan.bound_a[offset + k], 0.5 * (plan.bound_a[offset + k] + plan.bound_b[offset + k])
                )
                assert found == pytest.approx(expected, rel=1e-7, abs=1e-9)
        assert plan.levels.sum() <= 0.01

    @pytest.mark.parametrize("p", [0.52, 0.9, 0.999])
    def test_coverage_at_the_full_budget_by_simulation(self, p):
        """20,000 runs at alpha = 0.02: at most alpha + 5 standard errors (0.005) fail; false alarm below 1e-6."""
        plan = stopping.tolerance_plan(0.05, alpha=0.02, num_samples=100_000, bound="one-sided")
        rng = np.random.default_rng(5)
        counts, previous, false = np.zeros(20_000, np.int64), 0, np.zeros(20_000, bool)
        for look, offset in zip(plan.looks, plan.offsets, strict=True):
            counts += rng.binomial(look - previous, p, counts.size)
            previous = look
            false |= plan.bound_a[offset + counts] > special.ndtri(p)
        assert false.mean() <= 0.02 + 5 * np.sqrt(0.02 * 0.98 / 20_000)

    @pytest.mark.parametrize("bound", ["one-sided", "two-sided"])
    @pytest.mark.parametrize("margin", [0.0, 0.3, 0.9])
    def test_agrees_with_a_replay_on_sample_counts(self, bound, margin):
        plan = stopping.tolerance_plan(0.1, alpha=0.001, num_samples=3_000, bound=bound)
        x = jnp.array([margin, 0.0])
        found = stopping.certify_tolerance(KEY, linear, 1.0, x, noise=NOISE, plan=plan, batch_size=100)
        other = stopping.certify_tolerance(KEY, linear, 1.0, x, noise=NOISE, plan=plan, batch_size=999)
        jax.tree.map(np.testing.assert_array_equal, found, other)
        i = plan.looks.tolist().index(int(found.samples_used))
        draw = partial(sample_counts, KEY, linear, 1.0, x, noise=NOISE, batch_size=500)
        selected = int(np.argmax(draw(num_samples=100)))
        best = 0.0
        for j in range(i + 1):
            counts = np.asarray(draw(num_samples=int(plan.looks[j]), first_sample=100))
            best = max(best, unit_radius(plan, j, counts[selected], counts[1 - selected]))
        np.testing.assert_array_equal(found.counts, counts)
        assert float(found.radius) == pytest.approx(0.5 * best, rel=1e-6)
        assert float(found.radius) <= 0.5 * best
        assert int(found.prediction) == (selected if best > 0 else -1)

    @pytest.mark.slow
    def test_stops_within_the_tolerance_and_leaves_abstentions_early(self):
        """Means over 20 examples, with room of many standard errors."""
        plan = stopping.tolerance_plan(0.1, alpha=0.001, num_samples=20_000)
        run = jax.jit(
            jax.vmap(
                lambda key, x: stopping.certify_tolerance(
                    key, three_ways, 1.0, x, noise=NOISE, plan=plan, batch_size=100
                )
            )
        )
        keys = jax.vmap(partial(jax.random.fold_in, KEY))(jnp.arange(40))
        found = run(keys, jnp.repeat(jnp.array([[0.6, 0.0], [0.0, 0.0]]), 20, axis=0))
        whole = certify(
            KEY,
            three_ways,
            1.0,
            jnp.array([0.6, 0.0]),
            noise=NOISE,
            num_samples=20_000,
            alpha=0.001,
            batch_size=100,
        )
        assert np.mean(found.radius[:20]) > 0.87 * whole.radius
        assert np.mean(found.radius[:20]) < 0.99 * whole.radius
        assert np.mean(found.samples_used[:20]) < 10_000
        # At the centre three classes have a third each: nothing can be certified, and that is seen early.
        assert np.all(found.prediction[20:] == -1)
        assert np.all(found.radius[20:] == 0)
        assert np.mean(found.samples_used[20:]) < 10_000

    @pytest.mark.slow
    def test_shard_map(self):
        plan = stopping.tolerance_plan(0.2, alpha=0.01, num_samples=1_000)
        keys = jax.vmap(partial(jax.random.fold_in, KEY))(jnp.arange(8))
        xs = jnp.linspace(0.0, 1.2, 8)[:, None] * jnp.array([1.0, 0.0])

        def run(keys, xs):
            def one(key, x):
                radius = stopping.certify_tolerance(
                    key, linear, 1.0, x, noise=NOISE, plan=plan, batch_size=100
                )
                early = stopping.predict_early(
                    key, linear, 1.0, x, noise=NOISE, num_samples=1_000, alpha=0.01, batch_size=100
                )
                return radius, early

            return jax.vmap(one)(keys, xs)

        mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.PartitionSpec("i")
        sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec))
        jax.tree.map(np.testing.assert_array_equal, sharded(keys, xs), jax.jit(run)(keys, xs))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"tolerance": 0.0}, "tolerance must lie in (0, 1), got 0.0"),
            ({"tolerance": 1.0}, "tolerance must lie in (0, 1), got 1.0"),
            ({"tolerance": float("nan")}, "tolerance must lie in (0, 1), got nan"),
            ({"alpha": 2.0}, "alpha must lie in (0, 1), got 2.0"),
            ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
            ({"bound": "both"}, "bound must be one of 'two-sided', 'one-sided', got 'both'"),
        ],
    )
    def test_bad_input(self, change, message):
        arguments = {"tolerance": 0.1, "alpha": 0.001, "num_samples": 1000, **change}
        with pytest.raises(InputError) as error:
            stopping.tolerance_plan(arguments.pop("tolerance"), **arguments)
        assert str(error.value) == message

    def test_a_plan_of_the_other_kind(self):
        with pytest.raises(InputError, match="plan must come from tolerance_plan, got StoppingPlan"):
            stopping.certify_tolerance(KEY, linear, 1.0, jnp.zeros(2), noise=NOISE, plan=PLAN, batch_size=10)


class TestPredictEarly:
    """PREDICT that stops."""

    @pytest.mark.parametrize("p", [(0.34, 0.33, 0.33), (0.5, 0.5, 0.0), (0.45, 0.44, 0.11), (0.6, 0.4, 0.0)])
    def test_error_by_enumeration(self, p):
        """A class that is not (strictly) the most likely one is returned with probability at most alpha.

        Giving up is left out: it can only lower the error.
        """
        alpha, n = 0.1, 34
        looks, offsets, thresholds, _ = prediction_lib._prediction_tables(alpha, n)
        states, previous, wrong = {(0, 0, 0): 1.0}, 0, 0.0
        for look, offset in zip(looks.tolist(), offsets.tolist(), strict=True):
            states = grow(states, look - previous, p)
            previous = look
            for counts in list(states):
                first, second = sorted(counts)[:0:-1]
                if first >= thresholds[offset + first + second]:
                    probability = states.pop(counts)
                    wrong += probability * (p[int(np.argmax(counts))] < max(p) or p[0] == p[1])
        assert wrong <= alpha

    @pytest.mark.parametrize("x", [(0.7, 0.0), (-0.2, 0.0)])
    def test_first_look_that_predict_would_answer(self, x):
        found = [
            stopping.predict_early(
                KEY, linear, 1.0, jnp.array(x), noise=NOISE, num_samples=400, alpha=0.01, batch_size=b
            )
            for b in (7, 100)
        ]
        jax.tree.map(np.testing.assert_array_equal, *found)
        looks, levels = tolerance_lib.looks_and_levels(0.01, 400)
        assert sum(levels) <= 0.01
        for look, level in zip(looks, levels, strict=True):
            counts = np.asarray(
                sample_counts(KEY, linear, 1.0, jnp.array(x), noise=NOISE, num_samples=look, batch_size=100)
            )
            answer = int(counts.argmax()) if stats.binomtest(int(counts.max()), look).pvalue <= level else -1
            if answer >= 0:
                break
        assert (int(found[0].prediction), int(found[0].samples_used)) == (answer, look)
        np.testing.assert_array_equal(found[0].counts, counts)

    def test_ties_are_given_up_early(self):
        """A fair coin over 100,000 samples; the share of answers lost to giving up is small where there are any."""
        rng = np.random.default_rng(5)
        looks = stopping.prediction_looks(100_000, 0.001)
        steps = np.diff([0, *looks])

        def outcomes(p, runs):
            counts = np.cumsum(rng.binomial(steps, p, (runs, len(steps))), axis=1)
            found = [
                stopping.early_prediction_from_counts(
                    np.stack([row, looks - row], axis=1), num_samples=100_000, alpha=0.001
                )
                for row in counts
            ]
            return [answer for answer, _ in found], np.mean([looks[look] for _, look in found])

        answers, mean = outcomes(0.5, 200)
        assert answers.count(-1) >= 198
        assert mean < 75_000
        answers, mean = outcomes(0.51, 200)  # PREDICT answers with probability 0.9988 from 100,000
        assert answers.count(0) >= 185
        assert mean < 75_000

    def test_clear_cases_take_few_samples(self):
        found = stopping.predict_early(
            KEY,
            linear,
            1.0,
            jnp.array([2.0, 0.0]),
            noise=NOISE,
            num_samples=100_000,
            alpha=0.001,
            batch_size=100,
        )
        assert (int(found.prediction), int(found.samples_used)) == (0, 20)

    def test_bad_input(self):
        with pytest.raises(InputError, match="num_samples must be at least 1, got 0"):
            stopping.predict_early(
                KEY, linear, 1.0, jnp.zeros(2), noise=NOISE, num_samples=0, alpha=0.1, batch_size=1
            )


class TestBadInput:
    """One line that names the argument and the value."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"radius": 0.0}, "radius must be positive and finite, got 0.0"),
            ({"radius": -1.0}, "radius must be positive and finite, got -1.0"),
            ({"radius": float("nan")}, "radius must be positive and finite, got nan"),
            ({"radius": float("inf")}, "radius must be positive and finite, got inf"),
            ({"radius": "1"}, "radius must be a number, got '1'"),
            ({"sigma": 0.0}, "sigma must be positive and finite, got 0.0"),
            ({"alpha": 1.0}, "alpha must lie in (0, 1), got 1.0"),
            ({"alpha": 0.0}, "alpha must lie in (0, 1), got 0.0"),
            ({"num_samples": 0}, "num_samples must be at least 1, got 0"),
            ({"num_samples": 10.5}, "num_samples must be a whole number, got 10.5"),
            ({"num_samples": 10**8}, "num_samples must be at most 10000000, got 100000000"),
            (
                {"radius": 2.0},
                "radius must be at most 1.23163, the most that num_samples = 1000 can certify at sigma = 0.5 and "
                "alpha = 0.001, got 2.0",
            ),
        ],
    )
    def test_plan(self, change, message):
        arguments = {"radius": 0.5, "sigma": 0.5, "alpha": 0.001, "num_samples": 1000, **change}
        with pytest.raises(InputError) as error:
            stopping.stopping_plan(arguments.pop("radius"), **arguments)
        assert str(error.value) == message

    @pytest.mark.parametrize("n", [10, 100, 1000, 100_000, 10_000_000])
    def test_the_largest_radius_that_the_message_names_works(self, n):
        with pytest.raises(InputError) as error:
            stopping.stopping_plan(50.0, sigma=0.5, alpha=0.001, num_samples=n)
        largest = float(str(error.value).split()[5].rstrip(","))
        plan = stopping.stopping_plan(largest, sigma=0.5, alpha=0.001, num_samples=n)
        assert plan.certify_at[-1] == plan.looks[-1]
        assert largest == pytest.approx(0.5 * special.ndtri(0.001 ** (1 / n)), rel=2e-5)

    def test_too_few_samples_for_any_radius(self):
        with pytest.raises(InputError, match=r"radius must be at most 0\.0, the most that num_samples = 9"):
            stopping.stopping_plan(0.1, sigma=0.5, alpha=0.001, num_samples=9)

    @pytest.mark.parametrize(
        ("radii", "message"),
        [
            ([], "radii must hold at least one radius, got none"),
            ([0.5, 0.5], "radii must increase, each given once, got [0.5, 0.5]"),
            ([0.5, 0.25], "radii must increase, each given once, got [0.5, 0.25]"),
        ],
    )
    def test_radii(self, radii, message):
        with pytest.raises(InputError) as error:
            stopping.stopping_plans(radii, sigma=0.5, alpha=0.001, num_samples=1000)
        assert str(error.value) == message

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"looks": [10, 10]}, "looks must be positive and increase, got [10 10]"),
            ({"looks": [20, 10]}, "looks must be positive and increase, got [20 10]"),
            ({"looks": [0, 10]}, "looks must be positive and increase, got [ 0 10]"),
            (
                {"certify_at": [10]},
                "looks, certify_at and give_up_at must have one shape, got (2,), (1,) and (2,)",
            ),
            ({"give_up_at": [9, 10]}, "give_up_at must lie below certify_at at every look"),
        ],
    )
    def test_plans_by_hand(self, change, message):
        arguments = {"looks": [10, 20], "certify_at": [10, 10], "give_up_at": [1, 2], **change}
        with pytest.raises(InputError) as error:
            stopping.StoppingPlan(**arguments, radius=1.0, sigma=1.0, alpha=0.1, num_samples=20, error=0.1)
        assert str(error.value) == message

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"plan": 3}, "plan must come from stopping_plan, got int"),
            ({"noise": Gaussian(0.25)}, "noise must have the plan's sigma = 0.5, got 0.25"),
            ({"noise": 0.5}, "noise must be Gaussian for a radius of this plan, got 0.5"),
            ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
            ({"selection_samples": 0}, "selection_samples must be at least 1, got 0"),
        ],
    )
    def test_certify_radius(self, change, message):
        arguments = {"noise": NOISE, "plan": PLAN, "batch_size": 100, **change}
        with pytest.raises(InputError) as error:
            stopping.certify_radius(KEY, linear, 1.0, jnp.zeros(2), **arguments)
        assert str(error.value) == message

    def test_model_and_input(self):
        arguments = {"noise": NOISE, "plan": PLAN, "batch_size": 100}
        with pytest.raises(InputError, match="x must be floating point, got int32"):
            stopping.certify_radius(KEY, linear, 1.0, jnp.zeros(2, int), **arguments)
        with pytest.raises(InputError, match="apply_fn must be a hashable function"):
            stopping.certify_radius(KEY, [], 1.0, jnp.zeros(2), **arguments)
        with pytest.raises(InputError, match="key must be a typed key"):
            stopping.certify_radius(np.zeros(2, np.uint32), linear, 1.0, jnp.zeros(2), **arguments)
        with pytest.raises(InputError, match="guarantee must be one of 'each', 'simultaneous', got 'all'"):
            stopping.certify_radii(
                KEY, linear, 1.0, jnp.zeros(2), noise=NOISE, plans=(PLAN,), batch_size=9, guarantee="all"
            )
