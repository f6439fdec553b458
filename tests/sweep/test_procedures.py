"""Sweeps that stop early say what the pure functions say of the same samples."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsmooth import ABSTAIN, Gaussian, InputError, devices, stopping
from jaxsmooth.sweep import procedures, records, run
from tests.sweep import exact_model
from tests.sweep.test_run import SETTINGS, SOURCE, comparable

# Class 0 has probability 0.806 and the radius is about 0.43.
RADII = (0.1, 0.3, 0.4, 0.5)
BY_RADII = dataclasses.replace(SETTINGS, num_samples=4000, bound="one-sided", radii=RADII)
BY_TOLERANCE = dataclasses.replace(SETTINGS, num_samples=4000, tolerance=0.1)
NAMES = {
    stopping.CERTIFIED: "certified",
    stopping.NOT_CERTIFIED: "not certified",
    stopping.UNDECIDED: "undecided",
}


def sweep(out, settings, indices=range(12), source=SOURCE, **options):
    options = {"mesh": devices.noise_mesh(2), "batch_size": 64, **options}
    return run.certify_dataset(out, source, settings, indices, **options)


def key(index):
    return jax.random.fold_in(jax.random.key(SETTINGS.seed), index)


@pytest.mark.parametrize("guarantee", stopping.GUARANTEES)
@pytest.mark.parametrize("batch_size", [16, 1000])
def test_rows_of_fixed_radii(tmp_path, guarantee, batch_size):
    settings = dataclasses.replace(BY_RADII, guarantee=guarantee)
    progress = sweep(tmp_path / "r", settings, batch_size=batch_size)
    rows = records.read_results(tmp_path / "r").rows
    plans = stopping.stopping_plans(RADII, sigma=0.5, alpha=0.001, num_samples=4000)
    for row in rows:
        found = stopping.certify_radii(
            key(row.index),
            exact_model.apply_fn,
            exact_model.PARAMS,
            exact_model.images(row.index),
            noise=Gaussian(0.5),
            plans=plans,
            batch_size=100,
            selection_samples=20,
            guarantee=guarantee,
        )
        assert [d.radius for d in row.decisions] == list(RADII)
        assert [d.verdict for d in row.decisions] == [NAMES[v] for v in found.verdict.tolist()]
        assert [d.num_samples for d in row.decisions] == found.samples_used.tolist()
        for decision, counts in zip(row.decisions, found.counts, strict=True):
            np.testing.assert_array_equal(records.dense(decision.counts, 7), counts)
        np.testing.assert_array_equal(records.dense(row.selection_counts, 7), found.selection_counts)
        assert row.prediction == max(found.prediction.tolist())
        assert row.radius == max(np.where(found.verdict == 1, RADII, 0.0))
        assert row.num_samples == max(found.samples_used.tolist())
    verdicts = [decision.verdict for row in rows for decision in row.decisions]
    assert set(verdicts) >= {"certified", "not certified"}, "the test covers both"
    assert progress.usage.samples >= sum(row.num_samples + 20 for row in rows)


def test_few_samples_are_drawn_in_vain(tmp_path):
    """A batch or two and an eighth of each example beyond the look that decided it."""
    progress = sweep(tmp_path / "r", dataclasses.replace(BY_RADII, radii=(0.1, 0.25)), batch_size=16)
    used = sum(row.num_samples + 20 for row in records.read_results(tmp_path / "r").rows)
    assert used < 12 * 4020 / 3
    assert progress.usage.samples <= 1.25 * used + 12 * 3 * procedures._LEAST_AHEAD


def test_rows_of_a_free_radius(tmp_path):
    sweep(tmp_path / "r", BY_TOLERANCE)
    plan = stopping.tolerance_plan(0.1, alpha=0.001, num_samples=4000)
    for row in records.read_results(tmp_path / "r").rows:
        found = stopping.certify_tolerance(
            key(row.index),
            exact_model.apply_fn,
            exact_model.PARAMS,
            exact_model.images(row.index),
            noise=Gaussian(0.5),
            plan=plan,
            batch_size=100,
            selection_samples=20,
        )
        assert row.prediction == int(found.prediction) == 0
        assert 0 < row.radius * (1 - 1e-5) < float(found.radius) <= row.radius
        assert row.num_samples == int(found.samples_used)
        np.testing.assert_array_equal(records.dense(row.counts, 7), found.counts)
        (decision,) = row.decisions
        assert decision.verdict == "certified"
        assert decision.num_samples in plan.looks[plan.looks <= row.num_samples]
        assert 0.5 < row.p_a_lower < 0.83 < 1 - row.p_b_upper + 0.2


@pytest.mark.parametrize(
    "settings",
    [BY_RADII, BY_TOLERANCE, dataclasses.replace(BY_RADII, only_correct=True)],
    ids=["radii", "tolerance", "only-correct"],
)
def test_interrupted_and_resumed_rows_are_the_same(tmp_path, settings):
    sweep(tmp_path / "whole", settings)
    calls = []

    def interrupt(progress):
        calls.append(progress)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            sweep(tmp_path / "r", settings, batch_size=8, on_update=interrupt)
    assert any((tmp_path / "r" / "partial").iterdir())
    sweep(tmp_path / "r", settings, batch_size=40, mesh=devices.noise_mesh(8))
    assert comparable(tmp_path / "r") == comparable(tmp_path / "whole")


def test_wrong_predictions_cost_the_selection_stage_only(tmp_path):
    """Class 0 is named for every example; the others have been given another label."""
    source = dataclasses.replace(SOURCE, labels=np.arange(12) % 2)
    settings = dataclasses.replace(SETTINGS, only_correct=True)
    progress = sweep(tmp_path / "r", settings, source=source)
    assert progress.usage.samples == 6 * 520 + 6 * 20
    sweep(tmp_path / "all", SETTINGS, source=source)
    for row, full in zip(comparable(tmp_path / "r"), comparable(tmp_path / "all"), strict=True):
        if row["label"] == 0:
            assert row == full
        else:
            assert (row["prediction"], row["radius"], row["num_samples"]) == (ABSTAIN, 0.0, 0)
            assert row["counts"] == {}
            assert row["selection_counts"] == full["selection_counts"]


def test_selection_free_rows(tmp_path):
    settings = dataclasses.replace(SETTINGS, bound="selection-free")
    progress = sweep(tmp_path / "r", settings)
    assert progress.usage.samples == 12 * 500
    for row in records.read_results(tmp_path / "r").rows:
        assert (row.selection_samples, row.selection_counts, row.prediction) == (0, {}, 0)
        assert sum(row.counts.values()) == 500


def test_every_kind_of_row_survives_the_disk():
    decisions = (
        records.Decision(0.25, "certified", 50, {3: 49}),
        records.Decision(0.5, "undecided", 90, {3: 80}),
    )
    row = records.Row(7, 3, 3, 0.25, 0.0, 1.0, {3: 80, 1: 2}, {3: 20}, 90, 20, 0.5, decisions)
    assert records.decode(records.encode(row)) == row


@pytest.mark.parametrize(
    "damage",
    [
        {"verdict": "maybe"},
        {"num_samples": 1.5},
        {"counts": {"3": 51}},
        {"counts": {"3": -1}},
        {"radius": "far"},
        {"counts": None},
    ],
)
def test_damaged_decisions(damage):
    decision = {"radius": 0.25, "verdict": "certified", "num_samples": 50, "counts": {"3": 49}, **damage}
    row = records.Row(7, 3, 3, 0.25, 0.0, 1.0, {3: 80}, {3: 20}, 90, 20, 0.5)
    line = json.dumps({**json.loads(records.encode(row)), "decisions": [decision]})
    with pytest.raises(InputError):
        records.decode(line)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radii": (0.1, 0.3)}, r"stopping.radii: \[0.1, 0.3, 0.4, 0.5\] there, \[0.1, 0.3\] now"),
        ({"guarantee": "simultaneous"}, "stopping.guarantee: each there, simultaneous now"),
        ({"radii": (), "tolerance": 0.1}, "stopping.rule: radii there, tolerance now"),
        ({"radii": ()}, "stopping.rule: radii there, None now"),
        ({"only_correct": True}, "only_correct: None there, True now"),
        ({"num_samples": 5000}, "num_samples: 4000 there, 5000 now"),
    ],
)
def test_resuming_under_another_plan_is_refused(tmp_path, change, message):
    sweep(tmp_path / "r", BY_RADII, indices=[0])
    before = comparable(tmp_path / "r")
    with pytest.raises(InputError, match=message):
        sweep(tmp_path / "r", dataclasses.replace(BY_RADII, **change))
    assert comparable(tmp_path / "r") == before


def test_another_design_is_another_plan(tmp_path, monkeypatch):
    """A later version may look elsewhere; its rows are not of the same procedure."""
    sweep(tmp_path / "r", BY_RADII, indices=[0])
    monkeypatch.setattr(stopping.plans, "_LOOK_RATIO", 1.2)
    stopping.plans._stopping_plan.cache_clear()
    with pytest.raises(InputError, match=r"stopping\.plan: "):
        sweep(tmp_path / "r", BY_RADII)
    stopping.plans._stopping_plan.cache_clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radii": (0.0,)}, "radius must be positive and finite, got 0.0"),
        ({"radii": (float("inf"),)}, "radius must be positive and finite, got inf"),
        ({"radii": (0.5, 0.5)}, r"radii must increase, each given once, got \[0.5, 0.5\]"),
        ({"radii": (0.5, 0.25)}, r"radii must increase, each given once, got \[0.5, 0.25\]"),
        ({"radii": (9.0,)}, "radius must be at most 1.4"),
        (
            {"radii": (0.5,), "tolerance": 0.1},
            r"radii must not be given together with tolerance, got \[0.5\] and 0.1",
        ),
        ({"radii": (0.5,), "bound": "two-sided"}, "bound must be 'one-sided' with radii"),
        (
            {"radii": (0.5,), "guarantee": "some"},
            "guarantee must be one of 'each', 'simultaneous', got 'some'",
        ),
        ({"tolerance": 1.0}, r"tolerance must lie in \(0, 1\), got 1.0"),
        ({"tolerance": 0.1, "bound": "selection-free"}, "tolerance needs a selection stage"),
        ({"only_correct": True, "bound": "selection-free"}, "only_correct needs a selection stage"),
    ],
)
def test_bad_settings(tmp_path, change, message):
    settings = dataclasses.replace(SETTINGS, num_samples=4000, **{"bound": "one-sided", **change})
    with pytest.raises(InputError, match=message):
        sweep(tmp_path / "r", settings)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("x", [(0.7, 0.0), (-0.2, 0.0), (0.02, 0.0)])
def test_early_predictions(x):
    """The engine's looks decide as predict_early does."""
    from jaxsmooth.sweep.engine import Engine

    def linear(scale, inputs):
        return scale * jnp.stack([inputs[:, 0], -inputs[:, 0]], axis=1)

    procedure = procedures.EarlyPredictions(400, 0.01)
    engine = Engine(
        devices.noise_mesh(2),
        linear,
        np.float32(1),
        Gaussian(0.5),
        seed=1,
        procedure=procedure,
        images=lambda index: np.array(x, np.float32),
        num_classes=2,
        batch_size=16,
    )
    ((stream,),) = [done for done in engine.run([engine.fresh(5)]) if done]
    found = stopping.predict_early(
        key(5),
        linear,
        np.float32(1),
        jnp.array(x),
        noise=Gaussian(0.5),
        num_samples=400,
        alpha=0.01,
        batch_size=50,
    )
    assert procedure.answer(stream) == int(found.prediction)
    assert stream.received == int(found.samples_used)
