import re

import pytest

from jaxsmooth import certification
from jaxsmooth.report import outcomes as outcomes_lib
from jaxsmooth.report.outcomes import Outcomes, differences
from jaxsmooth.validation import InputError

GOOD = {"index": [0, 4, 9], "label": [1, 2, 1], "prediction": [1, 0, -1], "radius": [0.5, 0.25, 0.0]}


def test_abstention_is_the_certifiers():
    assert outcomes_lib.ABSTAIN == certification.ABSTAIN


def test_correct_and_abstained():
    outcomes = Outcomes("a", **GOOD)
    assert outcomes.correct.tolist() == [True, False, False]
    assert outcomes.abstained.tolist() == [False, False, True]
    assert outcomes.num_examples == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [1, 2]}, "label must be an array of shape (3,), got shape (2,)"),
        ({"label": [1, 2, -1]}, "label must be at least 0, got -1"),
        ({"prediction": [1, 0, -2]}, "prediction must be at least -1, got -2"),
        ({"prediction": [1.5, 0, -1]}, "prediction must hold whole numbers, got float64"),
        ({"radius": [0.5, -0.25, 0]}, "radius must be at least 0, got -0.25"),
        ({"radius": [0.5, 0.25, float("nan")]}, "radius must be finite, got nan"),
        ({"radius": [0.5, 0.25, 0.125]}, "radius must be 0 on abstention, got 0.125 in a"),
        ({"index": [0, 4, 4]}, "index must name each example once, got 4 twice"),
        ({"p_a_lower": [0.5, 1.5, 0]}, "p_a_lower must lie in [0, 1], got 1.5"),
        ({name: [] for name in GOOD}, "a holds no examples"),
    ],
)
def test_refuses_in_one_line(change, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Outcomes("a", **(GOOD | change))


def test_like_sources_have_no_differences():
    shuffled = {name: [values[i] for i in (2, 0, 1)] for name, values in GOOD.items()}
    assert differences([Outcomes("a", **GOOD, alpha=0.001), Outcomes("b", **shuffled, alpha=0.001)]) == []


def test_settings_that_differ_are_told():
    sources = [
        Outcomes("a", **GOOD, alpha=0.001, bound="two-sided", num_samples=1000, norm=2.0),
        Outcomes("b", **GOOD, alpha=0.001, bound="one-sided", num_samples=1000, norm=1.0),
        Outcomes("c", **GOOD),
    ]
    assert differences(sources) == [
        "alpha differs: 0.001 (a, b), not recorded (c)",
        "bound differs: two-sided (a), one-sided (b), not recorded (c)",
        "norm differs: 2.0 (a), 1.0 (b), not recorded (c)",
        "num_samples differs: 1000 (a, b), not recorded (c)",
    ]


def test_same_indices_with_other_labels_are_other_examples():
    (note,) = differences([Outcomes("a", **GOOD), Outcomes("b", **(GOOD | {"label": [2, 1, 1]}))])
    assert (
        note
        == "the sources hold different examples: 3 examples (a), 3 examples (b); compare within a group only"
    )


def test_a_source_that_ends_early_is_noticed():
    early = {name: values[:2] for name, values in GOOD.items()}
    notes = differences([Outcomes("short", **early), Outcomes("long", **GOOD), Outcomes("twin", **GOOD)])
    assert notes == ["short holds the first 2 of the 3 examples of long, twin: it may be cut off"]
