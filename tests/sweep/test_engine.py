"""The packed engine: exactly the counts of sample_counts, whatever the packing."""

import jax
import numpy as np
import pytest

from jaxsmooth import Gaussian, devices, sample_counts
from jaxsmooth.sweep.engine import Engine
from jaxsmooth.sweep.procedures import FixedSize
from tests.sweep import exact_model

NOISE = Gaussian(0.5)


def make_engine(batch_size=64, num_devices=2, procedure=None, seed=3):
    return Engine(
        devices.noise_mesh(num_devices),
        exact_model.apply_fn,
        exact_model.PARAMS,
        NOISE,
        seed=seed,
        procedure=procedure or FixedSize(Gaussian(0.5), 10, 333, 0.001, "two-sided"),
        images=exact_model.images,
        num_classes=exact_model.NUM_CLASSES,
        batch_size=batch_size,
    )


def expected(index, first, num):
    key = jax.random.fold_in(jax.random.key(3), index)
    return np.asarray(
        sample_counts(
            key,
            exact_model.apply_fn,
            exact_model.PARAMS,
            exact_model.images(index),
            noise=NOISE,
            num_samples=num,
            batch_size=50,
            first_sample=first,
        )
    )


@pytest.fixture(scope="module")
def truth():
    return {i: np.stack([expected(i, 0, 10), expected(i, 10, 333)]) for i in range(40)}


@pytest.mark.parametrize(
    ("batch_size", "num_devices"), [(1, 1), (7, 2), (96, 1), (96, 8), (1000, 8), (20_000, 2)]
)
def test_counts_do_not_depend_on_batches_or_devices(truth, batch_size, num_devices):
    engine = make_engine(batch_size, num_devices)
    indices = range(3) if batch_size == 1 else range(40)
    done = {s.index: s.counts for some in engine.run(engine.fresh(i) for i in indices) for s in some}
    assert sorted(done) == list(indices)
    for index in indices:
        np.testing.assert_array_equal(done[index], truth[index])
    assert engine.usage.samples == 343 * len(indices)
    assert not engine.unfinished()


def test_a_stream_goes_on_from_what_was_received(truth):
    """Cut anywhere, a prefix and its continuation give the counts of the whole."""
    engine = make_engine(batch_size=16)
    steps = engine.run(engine.fresh(i) for i in range(40))
    finished = [s for _, some in zip(range(4), steps, strict=False) for s in some]
    partial = {s.index: s for s in engine.unfinished()}
    assert partial
    again = make_engine(batch_size=32)
    streams = []
    for index in range(40):
        stream = again.fresh(index)
        if index in partial:
            stream.counts += partial[index].counts
            stream.scheduled = stream.received = partial[index].received
        if index not in {s.index for s in finished}:
            streams.append(stream)
    for some in again.run(streams):
        finished += some
    assert sorted(s.index for s in finished) == list(range(40))
    for stream in finished:
        np.testing.assert_array_equal(stream.counts, truth[stream.index])


class StopAt:
    """A sequential procedure that learns only from what has been received: stops at its own sample number."""

    marks = tuple(range(25, 401, 25))

    def stop(self, stream):
        return 25 * (1 + stream.index % 16)

    def horizon(self, stream):
        return min(self.stop(stream), stream.received + 50, 400)

    def finished(self, stream):
        return stream.received >= self.stop(stream)


def test_examples_with_different_budgets_share_steps():
    engine = make_engine(batch_size=128, procedure=StopAt())
    done = {s.index: s for some in engine.run(engine.fresh(i) for i in range(40)) for s in some}
    assert sorted(done) == list(range(40))
    for index, stream in done.items():
        num = StopAt().stop(stream)
        assert stream.received == num
        np.testing.assert_array_equal(stream.counts.sum(axis=0), expected(index, 0, num))
        np.testing.assert_array_equal(stream.counts[0], expected(index, 0, 25))


def test_one_program_serves_the_whole_sweep():
    """Different examples, budgets and lengths of steps do not trace the model again."""
    traces = []

    def counting(params, inputs):
        traces.append(inputs.shape)
        return exact_model.apply_fn(params, inputs)

    engine = make_engine(batch_size=64)
    engine._step_fn = devices.segment_step(devices.noise_mesh(2), counting, 64)
    for _ in engine.run(engine.fresh(i) for i in range(20)):
        pass
    # Once for the number of classes, once for the program.
    assert len(traces) <= 2
    assert engine._rows_per_step > 64
