"""Sweeps on disk: rows, resuming, refusing, stopping."""

import os
import signal

import numpy as np
import pytest

from jaxsmooth import Gaussian, InputError, certificate_from_counts, devices
from jaxsmooth.sweep import records, run
from tests.sweep import exact_model

SETTINGS = run.Settings(0.5, num_samples=500, selection_samples=20, alpha=0.001, bound="two-sided", seed=1)
SOURCE = run.Source(
    apply_fn=exact_model.apply_fn,
    params=exact_model.PARAMS,
    model="exact",
    parameters="fingerprint",
    images=exact_model.images,
    labels=np.zeros(12, np.int32),
    num_classes=exact_model.NUM_CLASSES,
    data={"name": "made", "split": "test", "fingerprint": "f"},
)


def sweep(out, indices=range(12), settings=SETTINGS, **options):
    options = {"mesh": devices.noise_mesh(2), "batch_size": 64, **options}
    return run.certify_dataset(out, SOURCE, settings, indices, **options)


def comparable(folder):
    return [{**row.__dict__, "seconds": 0} for row in records.read_results(folder).rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "results"
    sweep(folder)
    return comparable(folder)


def test_rows_say_what_their_counts_support(whole):
    assert [row["index"] for row in whole] == list(range(12))
    for row in whole:
        certificate = certificate_from_counts(
            records.dense(row["selection_counts"], 7),
            records.dense(row["counts"], 7),
            noise=Gaussian(0.5),
            num_samples=500,
            alpha=0.001,
        )
        assert row["radius"] == certificate.radius > 0
        assert row["prediction"] == certificate.prediction == 0
        assert sum(row["counts"].values()) == 500
        assert sum(row["selection_counts"].values()) == 20


@pytest.mark.parametrize(("num_devices", "batch_size"), [(1, 40), (8, 333)])
def test_rows_do_not_depend_on_devices_or_batches(tmp_path, whole, num_devices, batch_size):
    sweep(tmp_path / "r", mesh=devices.noise_mesh(num_devices), batch_size=batch_size)
    assert comparable(tmp_path / "r") == whole


def test_going_on_adds_only_what_is_missing(tmp_path, whole):
    sweep(tmp_path / "r", indices=range(0, 12, 3))
    progress = sweep(tmp_path / "r")
    assert (progress.resumed, progress.done) == (4, 12)
    assert progress.usage.samples == 8 * 520
    assert comparable(tmp_path / "r") == whole


def test_shards_merge_to_the_whole(tmp_path, whole):
    sweep(tmp_path / "r", shard=(1, 2))
    sweep(tmp_path / "r", shard=(0, 2))
    assert comparable(tmp_path / "r") == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_writes_everything_and_resuming_completes(tmp_path, whole, number):
    calls = []

    def interrupt(progress):
        calls.append(progress)
        if len(calls) == 3:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(run.Interrupted) as stop:
        sweep(tmp_path / "r", on_update=interrupt, batch_size=8)
    assert stop.value.signal_number == number
    assert signal.getsignal(number) == before
    received = stop.value.progress.usage.samples
    assert (tmp_path / "r" / "partial").exists()
    progress = sweep(tmp_path / "r")
    assert progress.usage.samples == 12 * 520 - received  # nothing received was drawn again
    assert comparable(tmp_path / "r") == whole


def test_damaged_parts_are_named_and_done_again(tmp_path, whole):
    sweep(tmp_path / "r")
    (part,) = (tmp_path / "r" / "parts").iterdir()
    lines = part.read_text().splitlines()
    part.write_text("\n".join(lines[:5]) + "\n" + lines[5][:40])
    with pytest.warns(UserWarning, match="line 6 is damaged: .* set aside and its example is done again"):
        sweep(tmp_path / "r")
    assert comparable(tmp_path / "r") == whole


def test_damaged_partial_counts_are_not_used(tmp_path, whole):
    (tmp_path / "r" / "partial").mkdir(parents=True)
    records.create(tmp_path / "r2", run.make_manifest(SOURCE, SETTINGS, 12, devices.noise_mesh(1), 8))
    (tmp_path / "r2" / "partial").mkdir()
    (tmp_path / "r2" / "partial" / "x.json").write_text('{"examples": [{"index": 0, "received": 99')
    sweep(tmp_path / "r2")
    assert comparable(tmp_path / "r2") == whole


def test_another_run_is_refused(tmp_path):
    sweep(tmp_path / "r", indices=[0])
    other = run.Settings(0.25, 500, 20, 0.001, "one-sided", 1)
    with pytest.raises(
        InputError, match=r"noise.sigma: 0.5 there, 0.25 now; bound: two-sided there, one-sided now"
    ):
        sweep(tmp_path / "r", settings=other)


def test_a_second_run_on_the_same_shard_is_refused(tmp_path):
    def again(progress):
        with pytest.raises(InputError, match="another run is writing shard 00000-of-00001"):
            sweep(tmp_path / "r")

    sweep(tmp_path / "r", indices=[0, 1], on_update=again)


@pytest.mark.parametrize(
    "settings",
    [
        {"sigma": 0.0},
        {"sigma": float("nan")},
        {"alpha": 1.5},
        {"num_samples": 0},
        {"selection_samples": 0},
        {"bound": "three-sided"},
        {"seed": -1},
    ],
)
def test_settings_outside_their_range_are_refused_before_anything_is_written(tmp_path, settings):
    ((name, value),) = settings.items()
    with pytest.raises(InputError, match=f"{name} .*{value}"):
        sweep(tmp_path / "r", settings=run.Settings(**{**SETTINGS.__dict__, **settings}))
    assert not (tmp_path / "r").exists()


def test_choosing_indices():
    assert run.choose_indices(10, skip=4) == [0, 4, 8]
    assert run.choose_indices(10, maximum=3) == [0, 1, 2]
    assert run.choose_indices(10, indices=[7, 2, 7]) == [2, 7]
    for options in (
        {"indices": [10]},
        {"indices": [-1]},
        {"skip": 0},
        {"maximum": 0},
        {"indices": [1], "skip": 2},
    ):
        with pytest.raises(InputError):
            run.choose_indices(10, **options)


def nan_above(limit):
    """The exact model, with NaN logits where the first entry of the row exceeds a limit."""

    def apply_fn(params, inputs):
        logits = exact_model.apply_fn(params, inputs)
        return logits + np.nan * (inputs.reshape(inputs.shape[0], -1)[:, :1] > limit)

    return run.Source(**{**SOURCE.__dict__, "apply_fn": apply_fn})


def test_rows_that_are_not_finite_are_counted_for_no_class(tmp_path):
    """About 4% of the rows; their number is what the counts fall short by."""
    with pytest.warns(UserWarning, match="not finite"):
        progress = run.certify_dataset(
            tmp_path / "r",
            nan_above(0.9),
            SETTINGS,
            [0, 1],
            mesh=devices.noise_mesh(1),
            batch_size=64,
            max_not_finite=0.5,
        )
    rows = records.read_results(tmp_path / "r").rows
    missing = sum(520 - sum(row.counts.values()) - sum(row.selection_counts.values()) for row in rows)
    assert progress.usage.not_finite == missing > 10
    assert all(row.p_b_upper >= (500 - sum(row.counts.values())) / 500 for row in rows)


def test_too_many_rows_that_are_not_finite_stop_the_run(tmp_path):
    with pytest.raises(InputError, match=r"apply_fn must give finite logits, got \d+ of \d+ samples"):
        run.certify_dataset(
            tmp_path / "r", nan_above(-9), SETTINGS, range(12), mesh=devices.noise_mesh(1), batch_size=64
        )


def test_examples_of_different_shapes_are_refused(tmp_path):
    source = run.Source(**{**SOURCE.__dict__, "images": lambda i: np.zeros((3, 2, 1 + i // 2), np.float32)})
    with pytest.raises(
        InputError, match=r"images must have one shape \(3, 2, 1\), got \(3, 2, 2\) for example 2"
    ):
        run.certify_dataset(
            tmp_path / "r", source, SETTINGS, range(4), mesh=devices.noise_mesh(1), batch_size=64
        )


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0), (0, 13)])
def test_shards_that_cannot_be(tmp_path, shard):
    with pytest.raises(InputError, match="shard"):
        sweep(tmp_path / "r", shard=shard)
    assert not (tmp_path / "r").exists()


def test_merged_folders_are_the_whole(tmp_path, whole):
    for i in range(2):
        sweep(tmp_path / str(i), shard=(i, 2))
    assert records.merge([tmp_path / "0", tmp_path / "1"], tmp_path / "all") == 12
    assert comparable(tmp_path / "all") == whole
    assert records.read_manifest(tmp_path / "all").describes["num_examples"] == 12
    progress = sweep(tmp_path / "all")  # a merged folder can be gone on with
    assert progress.resumed == 12


def test_merging_different_runs_is_refused(tmp_path):
    sweep(tmp_path / "0", indices=[0])
    sweep(tmp_path / "1", indices=[1], settings=run.Settings(**{**SETTINGS.__dict__, "alpha": 0.01}))
    with pytest.raises(InputError, match=r"alpha: 0.001 there, 0.01 in .*1\); they cannot be merged"):
        records.merge([tmp_path / "0", tmp_path / "1"], tmp_path / "all")
    with pytest.raises(InputError, match="out must be a new or an empty folder"):
        records.merge([tmp_path / "0"], tmp_path / "1")
    assert not (tmp_path / "all").exists()


def test_parts_of_a_newer_version_are_never_left_out(tmp_path):
    sweep(tmp_path / "r", indices=[0])
    (part,) = (tmp_path / "r" / "parts").iterdir()
    part.write_text(part.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(InputError, match="format version 2 is newer than 1"):
        sweep(tmp_path / "r")


def test_writing_at_every_step_gives_the_same_rows(tmp_path, whole):
    sweep(tmp_path / "r", batch_size=8, checkpoint_every=1e-9)
    assert len(list((tmp_path / "r" / "parts").iterdir())) > 1
    assert comparable(tmp_path / "r") == whole
