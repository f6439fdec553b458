"""The schedule of a sweep: samples of many examples packed end to end into steps of one compiled shape.

An example is a stream of samples 0, 1, 2, ... Its procedure names *marks*, the sample indices at which the counts
so far are wanted (the end of the selection stage, each look of a sequential test), and says when the
stream may end. A step is a run of rows cut into segments: of whichever examples come next, each
segment within one example and between two marks. Rows are never left empty while there is work, one
compiled program serves every step, and the host plans a step while the one before it runs.

Nothing here touches a disk.
"""

import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from jaxsmooth import devices
from jaxsmooth.noise import Noise
from jaxsmooth.sampling import ApplyFn, Segments
from jaxsmooth.validation import InputError

# A step is made long enough that starting it costs little (on a CPU some 20% of one batch, for fresh pages of
# memory), short enough to stop soon: so many batches, within these limits in seconds.
_BATCHES_PER_STEP = 16
_SECONDS_PER_STEP = (2.0, 6.0)
_STEPS_IN_FLIGHT = 2
_NUM_SLOTS = 32  # examples in one step
_MAX_ROWS = 2**30


@dataclasses.dataclass
class Stream:
    """One example and the counts received so far.

    Attributes:
        index: position in the data set.
        scheduled: number of samples given to a step.
        received: number of samples whose counts are in; always a prefix of the stream.
        counts: int64[num_marks, num_classes], counts between consecutive marks.
        seconds: share of the steps' time.
    """

    index: int
    scheduled: int
    received: int
    counts: np.ndarray
    seconds: float


class Procedure(Protocol):
    """How many samples an example gets."""

    @property
    def marks(self) -> ArrayLike:
        """Rising sample indices at which counts are wanted; the last is the most that is ever drawn."""
        ...

    def horizon(self, stream: Stream) -> int:
        """How many samples may be scheduled with what is known now, at most the last mark."""
        ...

    def finished(self, stream: Stream) -> bool:
        """Whether what was received decides the example."""
        ...


@dataclasses.dataclass
class Usage:
    """What a sweep has used so far.

    Attributes:
        samples: rows drawn.
        not_finite: rows among them whose logits were not finite.
        busy_seconds: time during which a step was running on the devices.
        wall_seconds: time since the sweep began.
    """

    samples: int = 0
    not_finite: int = 0
    busy_seconds: float = 0.0
    wall_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class _Step:
    counts: jax.Array
    segments: list[tuple[Stream, int, int]]  # stream, mark interval, number of samples
    rows: int
    dispatched: float


class Engine:
    """Draws samples of many examples on all devices of a mesh.

    Args:
        mesh: from ``devices.noise_mesh``.
        apply_fn: as in ``sample_counts``.
        params: as there.
        noise: as there.
        seed: of all noise: example i uses ``fold_in(jax.random.key(seed), i)``.
        procedure: how many samples an example gets.
        images: ``images(i)`` is the input of example i, float32.
        num_classes: number of classes.
        batch_size: rows per call of the model, over all devices together.
    """

    def __init__(
        self,
        mesh: Mesh,
        apply_fn: ApplyFn,
        params: Any,
        noise: Noise,
        *,
        seed: int,
        procedure: Procedure,
        images: Any,
        num_classes: int,
        batch_size: int,
    ):
        self._key, self._params = devices.replicate((jax.random.key(seed, impl="threefry2x32"), params), mesh)
        self._noise, self._procedure, self._images = noise, procedure, images
        self._num_classes = num_classes
        self._batch_size = batch_size
        self._step_fn = devices.segment_step(mesh, apply_fn, batch_size)
        self._marks = np.asarray(procedure.marks, np.int64)
        self._rows_per_step = batch_size
        self._num_segments = 2 * _NUM_SLOTS * min(len(self._marks), 16)
        self._open: dict[int, Stream] = {}
        self._shape: tuple[int, ...] | None = None
        self.usage = Usage()

    def unfinished(self) -> list[Stream]:
        """Examples that have begun, with what was received of each."""
        return [stream for stream in self._open.values() if stream.received > 0]

    def fresh(self, index: int) -> Stream:
        """A stream from its beginning."""
        counts = np.zeros((len(self._marks), self._num_classes), np.int64)
        return Stream(index, scheduled=0, received=0, counts=counts, seconds=0.0)

    def run(self, streams: Iterable[Stream]) -> Iterator[list[Stream]]:
        """Runs streams to their end.

        Args:
            streams: what to do, in order; consumed as room appears.

        Yields:
            After every step, the streams that it finished (often none). Stopping the iteration loses what is in flight
            and nothing else.
        """
        waiting = iter(streams)
        started = self._last_done = time.monotonic()
        in_flight: deque[_Step] = deque()
        more = True
        while True:
            if len(in_flight) < _STEPS_IN_FLIGHT:
                step, more = self._dispatch(waiting, more)
                if step is not None:
                    in_flight.append(step)
                    continue
            if not in_flight:
                return
            finished = self._receive(in_flight.popleft())
            self.usage.wall_seconds = time.monotonic() - started
            yield finished

    def _dispatch(self, waiting: Iterator[Stream], more: bool) -> tuple[_Step | None, bool]:
        """Plans one step and starts it; None when nothing can be scheduled now."""
        rows = 0
        segments: list[tuple[Stream, int, int]] = []
        slots: dict[int, int] = {}  # example index -> slot
        slot_of, first_sample, edges = [], [], [0]
        candidates = iter(list(self._open.values()))
        while rows < self._rows_per_step and len(segments) < self._num_segments:
            stream = next(candidates, None)
            if stream is None and more:
                stream = next(waiting, None)
                if stream is None:
                    more = False
                else:
                    self._open[stream.index] = stream
            if stream is None:
                break
            horizon = self._procedure.horizon(stream)
            if stream.scheduled < horizon and len(slots) == _NUM_SLOTS:
                break
            while (
                stream.scheduled < horizon
                and rows < self._rows_per_step
                and len(segments) < self._num_segments
            ):
                interval = int(np.searchsorted(self._marks, stream.scheduled, side="right"))
                end = min(horizon, int(self._marks[interval]))
                length = min(end - stream.scheduled, self._rows_per_step - rows)
                slot_of.append(slots.setdefault(stream.index, len(slots)))
                first_sample.append(stream.scheduled)
                edges.append(rows + length)
                segments.append((stream, interval, length))
                stream.scheduled += length
                rows += length
        if not segments:
            return None, more
        return self._launch(list(slots), slot_of, first_sample, edges, segments), more

    def _launch(
        self,
        examples: list[int],
        slot_of: list[int],
        first_sample: list[int],
        edges: list[int],
        segments: list[tuple[Stream, int, int]],
    ) -> _Step:
        images = [self._image(index) for index in examples]
        xs = np.zeros((_NUM_SLOTS, *images[0].shape), np.float32)
        xs[: len(images)] = images
        indices = np.zeros(_NUM_SLOTS, np.uint32)
        indices[: len(examples)] = examples
        missing = self._num_segments - len(segments)
        packed = Segments(
            slot=np.array(slot_of + [0] * missing, np.int32),
            first_sample=np.array(first_sample + [0] * missing, np.int32),
            edges=np.array(edges + edges[-1:] * missing, np.int32),
        )
        counts = self._step_fn(self._key, indices, self._params, xs, self._noise, packed)
        counts.copy_to_host_async()
        return _Step(counts, segments, edges[-1], time.monotonic())

    def _image(self, index: int) -> np.ndarray:
        image = np.asarray(self._images(index), np.float32)
        if self._shape is None:
            self._shape = image.shape
        if image.shape != self._shape:
            raise InputError(
                f"images must have one shape {self._shape}, got {image.shape} for example {index}"
            )
        if not np.isfinite(image).all():
            raise InputError(f"images must be finite, got NaN or infinity in example {index}")
        return image

    def _receive(self, step: _Step) -> list[Stream]:
        """Waits for a step and adds its counts to the streams; returns those that are finished."""
        counts = np.asarray(step.counts).sum(axis=0)
        now = time.monotonic()
        seconds = now - max(step.dispatched, self._last_done)
        self._last_done = now
        self.usage.samples += step.rows
        self.usage.not_finite += step.rows - int(counts.sum())
        self.usage.busy_seconds += seconds
        self._set_rows_per_step(step.rows, seconds)
        for number, (stream, interval, length) in enumerate(step.segments):
            stream.counts[interval] += counts[number]
            stream.received += length
            stream.seconds += seconds * length / step.rows
        finished = [
            stream
            for stream in {stream.index: stream for stream, _, _ in step.segments}.values()
            if stream.index in self._open and self._procedure.finished(stream)
        ]
        for stream in finished:
            del self._open[stream.index]
        return finished

    def _set_rows_per_step(self, rows: int, seconds: float) -> None:
        """Sets the length of the next steps, in whole batches; at most doubles."""
        if rows < self._rows_per_step:  # a last, short step says little
            return
        seconds_per_row = max(seconds, 1e-6) / rows
        shortest, longest = _SECONDS_PER_STEP
        wanted = max(shortest / seconds_per_row, _BATCHES_PER_STEP * self._batch_size)
        wanted = min(wanted, longest / seconds_per_row, 2.0 * rows, _MAX_ROWS)
        self._rows_per_step = max(1, round(wanted / self._batch_size)) * self._batch_size
