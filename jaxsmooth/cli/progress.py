"""What a person sees while a command runs."""

import sys
import time
from typing import TextIO

from tqdm import tqdm

from jaxsmooth.sweep.run import Progress

_SECONDS_BETWEEN_LINES = 60.0


class SweepProgress:
    """A bar over examples with samples/s and time left; one line a minute when not on a terminal.

    Args:
        title: shown in front.
        num_devices: for samples/s per device.
        stream: where to write; stderr by default.
    """

    def __init__(self, title: str, num_devices: int, stream: TextIO | None = None):
        self._title, self._num_devices = title, num_devices
        self._stream = stream or sys.stderr
        self._bar: tqdm | None = None
        self._last_line = time.monotonic()

    def update(self, progress: Progress) -> None:
        """Called after every step of a sweep."""
        if not self._stream.isatty():
            if time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
                self._last_line = time.monotonic()
                print(f"{self._title}: {self._line(progress)}", file=self._stream, flush=True)
            return
        if self._bar is None:
            self._bar = tqdm(
                total=progress.num_examples,
                initial=progress.resumed,
                desc=self._title,
                unit="example",
                file=self._stream,
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
            )
        self._bar.set_postfix_str(self._rates(progress), refresh=False)
        self._bar.update(progress.done - self._bar.n)
        self._bar.refresh()

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _rates(self, progress: Progress) -> str:
        rate = progress.usage.samples / max(progress.usage.wall_seconds, 1e-9)
        per_device = f" ({rate / self._num_devices:,.0f}/device)" if self._num_devices > 1 else ""
        accuracy = f", certified correct {progress.correct}/{progress.done}" if progress.done else ""
        return f"{rate:,.0f} samples/s{per_device}{accuracy}"

    def _line(self, progress: Progress) -> str:
        fresh, seconds = progress.done - progress.resumed, progress.usage.wall_seconds
        left = progress.num_examples - progress.done
        remaining = f", {duration(seconds * left / fresh)} left" if fresh else ""
        return f"{progress.done}/{progress.num_examples} examples, {self._rates(progress)}{remaining}"


def duration(seconds: float) -> str:
    """A time for people: ``42 s``, ``3 min 20 s``, ``5 h 10 min``.

    Example:
        >>> duration(200), duration(18_600)
        ('3 min 20 s', '5 h 10 min')
    """
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
