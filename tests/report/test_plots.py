import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from jaxsmooth.report import plots
from jaxsmooth.report.outcomes import Outcomes
from jaxsmooth.validation import InputError

TINY = Outcomes(
    "costs $5",
    [0, 1, 2, 3],
    [0, 0, 0, 0],
    [0, 0, 1, -1],
    [0.5, 0.25, 0.9, 0.0],
    sigma=0.25,
    alpha=0.001,
    norm=2.0,
)
STARTS = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.mark.parametrize("suffix", plots.SUFFIXES)
def test_writes_a_picture_of_that_kind(tmp_path, suffix):
    path = tmp_path / f"curve{suffix}"
    plots.plot_curves([TINY], path)
    assert path.read_bytes().startswith(STARTS[suffix])


def test_draws_the_steps_and_the_settings():
    figure = plots.draw_curves([TINY], title="Digits", confidence=0.95)
    (axes,) = figure.axes
    (line,) = axes.lines
    assert line.get_drawstyle() == "steps-pre"
    np.testing.assert_array_equal(line.get_xydata(), [(0, 0.5), (0.25, 0.5), (0.5, 0.25), (0.5, 0.0)])
    (text,) = figure.legends[0].get_texts()
    assert text.get_text() == "costs \\$5\n\u03c3 = 0.25, \u03b1 = 0.001, 4 examples, 25.0% abstained"


def test_the_legend_fits():
    long = dataclasses.replace(TINY, name="n" * 60, num_samples=100_000)
    for sources in ([TINY, TINY, TINY], [long, long]):
        figure = plots.draw_curves(sources, title="Digits", confidence=0.95)
        figure.draw_without_rendering()
        box = figure.legends[0].get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width
        assert box.y1 < figure.axes[0].get_tightbbox().y0


def test_many_curves_and_a_curve_without_correct_examples(tmp_path):
    nothing = Outcomes("n" * 80, [0], [0], [-1], [0.0])
    plots.plot_curves([TINY] * 9 + [nothing], tmp_path / "many.png")
    plots.plot_curves([nothing], tmp_path / "nothing.png")


def test_refuses_other_endings_and_missing_folders(tmp_path):
    with pytest.raises(InputError, match=r"^plot must end in .png, .pdf, .svg, got .*curve.gif$"):
        plots.plot_curves([TINY], tmp_path / "curve.gif")
    with pytest.raises(InputError, match=r"^plot must lie in a folder that is there, got .*curve.png$"):
        plots.plot_curves([TINY], tmp_path / "not" / "curve.png")


def test_matplotlib_is_loaded_only_to_draw():
    code = "import sys, jaxsmooth.report.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "import sys, jaxsmooth; sys.exit(bool({'matplotlib', 'pandas'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
