import io
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest

from jaxsmooth.report import tables
from jaxsmooth.report.outcomes import Outcomes
from jaxsmooth.validation import InputError


def hundred(num_correct: int, **settings) -> Outcomes:
    """100 examples of class 0, the first ones right with radius 0.29, the others abstentions."""
    right = np.arange(100) < num_correct
    return Outcomes(
        "hundred",
        np.arange(100),
        np.zeros(100, int),
        np.where(right, 0, -1),
        np.where(right, 0.29, 0.0),
        **settings,
    )


@pytest.mark.parametrize("count", range(101))
def test_hundredths_stay_what_they_are(count):
    """0.29 * 100 is 28.999999999999996: a floor of that would lose a hundredth."""
    expected = f"{count // 100}.{count % 100:02d}"
    assert tables.number(Fraction(count, 100), 2) == expected
    assert tables.number(Fraction(count, 100), 2, "up") == expected
    assert tables.number(count / 100, 2) == expected
    frame = tables.summary([hundred(count)], [0.0], digits=2)
    assert frame["r=0"][0] == (expected if count else "0")
    assert frame["abstain"][0] == f"{(100 - count) // 100}.{(100 - count) % 100:02d}"


def test_numbers_go_the_way_they_should():
    rng = np.random.default_rng(0)
    for value in rng.random(300) * 3:
        for digits in (1, 3, 5):
            step = Decimal(1).scaleb(-digits)
            assert Decimal(tables.number(value, digits)) == Decimal(value).quantize(step, ROUND_FLOOR)
            assert Decimal(tables.number(value, digits, "up")) == Decimal(value).quantize(step, ROUND_CEILING)


def test_summary_by_hand():
    one = Outcomes(
        "one",
        index=[0, 1, 2],
        label=[5, 5, 5],
        prediction=[5, -1, 5],
        radius=[0.75, 0.0, 0.5],
        p_a_lower=[0.9999269, 0.25, 0.9],
        alpha=0.001,
        bound="two-sided",
        num_samples=100_000,
        sigma=0.5,
    )
    two = Outcomes("two", index=[0, 1], label=[5, 5], prediction=[5, 4], radius=[0.25, 0.5])
    frame = tables.summary([one, two], [0, 0.5, 0.75], digits=3)
    assert frame.to_dict("list") == {
        "source": ["one", "two"],
        "sigma": ["0.5", ""],
        "n": ["100000", ""],
        "alpha": ["0.001", ""],
        "bound": ["two-sided", ""],
        "examples": ["3", "2"],
        "r=0": ["0.666", "0.500"],
        "r=0.5": ["0.666", "0"],
        "r=0.75": ["0.333", "0"],
        "ACR": ["0.416", "0.125"],  # 1.25 / 3 = 0.41666...
        "abstain": ["0.334", "0.000"],
        "p_A 10%": ["0.25000", ""],
        "p_A 50%": ["0.90000", ""],
        "p_A 90%": ["0.90000", ""],
    }


@pytest.mark.parametrize(
    ("reach", "expected"),
    [
        (0.0, [0]),
        (0.3, [0, 0.125, 0.25]),
        (0.952, [0, 0.25, 0.5, 0.75]),
        (2.25, [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.25]),
        (3.81, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5]),
    ],
)
def test_default_radii(reach, expected):
    wrong = Outcomes("wrong", [0], [1], [0], [100.0])
    assert list(tables.default_radii([Outcomes("a", [0], [0], [0], [reach]), wrong])) == expected


def test_markdown_is_aligned():
    frame = pd.DataFrame([{"source": "a|b", "r=0": "0.5"}, {"source": "longer", "r=0": "0.25"}])
    lines = tables.markdown(frame).splitlines()
    assert lines == [
        "| source |  r=0 |",
        "|:-------|-----:|",
        "| a\\|b   |  0.5 |",
        "| longer | 0.25 |",
    ]


def test_latex_escapes():
    frame = pd.DataFrame([{"source": r"50%_a&b#{$}~^\ ".strip(), "alpha": "0.001", "p_A 10%": "0.5"}])
    lines = tables.latex(frame).splitlines()
    assert lines[3] == r"source & $\alpha$ & $p_A$ 10\% \\"
    assert lines[5] == (
        r"50\%\_a\&b\#\{\$\}\textasciitilde{}\textasciicircum{}\textbackslash{} & 0.001 & 0.5 \\"
    )


def test_csv_reads_back():
    frame = tables.summary([hundred(29, sigma=0.25)], [0, 0.29], digits=9)
    back = pd.read_csv(io.StringIO(tables.csv(frame)))
    assert back["r=0.29"][0] == 0.29
    assert back["ACR"][0] == 0.0841
    assert back["source"][0] == "hundred"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"digits": 0}, "digits must be at least 1, got 0"),
        ({"rounding": "up"}, "rounding must be one of 'down', 'nearest', got 'up'"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(InputError, match=message):
        tables.summary([hundred(1)], [0.0], **options)
