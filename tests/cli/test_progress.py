"""What a person sees: a bar on a terminal, otherwise a line a minute."""

import io

from jaxsmooth.cli import progress
from jaxsmooth.sweep.engine import Usage
from jaxsmooth.sweep.run import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def at(done, seconds):
    return Progress(
        100, done, 10, done // 2, Usage(samples=1000 * done, busy_seconds=1, wall_seconds=seconds)
    )


def test_a_bar_on_a_terminal_with_rate_and_time_left():
    stream = Terminal()
    bar = progress.SweepProgress("certifying", 2, stream)
    bar.update(at(20, 10.0))
    bar.update(at(60, 50.0))
    bar.close()
    bar.close()
    text = stream.getvalue()
    assert "60/100" in text
    assert "1,200 samples/s (600/device)" in text
    assert "certified correct 30/60" in text


def test_a_line_a_minute_elsewhere(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    bar = progress.SweepProgress("certifying", 1, stream)
    for second in range(0, 150, 10):
        clock[0] = float(second)
        bar.update(at(60, 50.0))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    # 50 examples in 50 s, 40 to go.
    assert lines[0] == "certifying: 60/100 examples, 1,200 samples/s, certified correct 30/60, 40 s left"


def test_durations():
    assert [progress.duration(s) for s in (0.4, 59, 60, 3599, 3600)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "1 h 0 min",
    ]
