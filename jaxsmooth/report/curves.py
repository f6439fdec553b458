"""Numbers over a set of examples: certified accuracy, average radius, abstention, and how sure they are."""

import math
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxsmooth import validation
from jaxsmooth.report.outcomes import Outcomes


class Curve(NamedTuple):
    """Certified accuracy as a function of the radius: a step function and a band around it.

    Attributes:
        radius: float64[K], increasing, from 0: the accuracy holds on (radius[i-1], radius[i]], and is 0 beyond.
        accuracy: float64[K], share of examples whose certified class is the true one, with at least this radius.
        lower: float64[K], lower edge of the band.
        upper: float64[K], upper edge of the band.
    """

    radius: np.ndarray
    accuracy: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def certified_counts(outcomes: Outcomes, radii: ArrayLike) -> np.ndarray:
    """How many examples are certified, correctly, at each radius.

    Certified accuracy is this over ``outcomes.num_examples``; as integers the two can be rounded without surprise.

    Args:
        outcomes: N examples.
        radii: float[R], at least 0, in the units of the outcomes' radii.

    Returns:
        int64[R], the number of examples with prediction == label and radius >= r.

    Raises:
        InputError: for a radius below 0, or one that was not tested where only some were.

    Example:
        >>> outcomes = Outcomes("tiny", index=[0, 1, 2], label=[3, 5, 1], prediction=[3, 4, 1],
        ...                     radius=[0.5, 0.75, 0.25])
        >>> certified_counts(outcomes, [0, 0.25, 0.5, 0.75]).tolist()
        [2, 2, 1, 0]
    """
    radii = validation.check_not_negative("radii", radii)
    if outcomes.tested_radii is not None:
        return _counts_at_tested(outcomes, radii)
    certified = np.sort(outcomes.radius[outcomes.correct])
    return certified.size - np.searchsorted(certified, radii, side="left")


def is_known(outcomes: Outcomes, radius: float) -> bool:
    """Whether the certified accuracy at a radius is known: always, unless only some radii were tested.

    Example:
        >>> tested = Outcomes("tested", index=[0], label=[3], prediction=[3], radius=[0.5],
        ...                   tested_radii=[0.5, 1.0], certified=[[True, False]])
        >>> is_known(tested, 0.5), is_known(tested, 0.25)
        (True, False)
    """
    return outcomes.tested_radii is None or bool(np.any(outcomes.tested_radii == radius))


def _counts_at_tested(outcomes: Outcomes, radii: np.ndarray) -> np.ndarray:
    for radius in radii.ravel():
        if not is_known(outcomes, radius):
            raise validation.InputError(
                f"radii must be among those tested in {outcomes.name}, "
                f"{', '.join(f'{tested:g}' for tested in outcomes.tested_radii)}, got {radius:g}"
            )
    counts = np.sum(outcomes.certified & outcomes.correct[:, None], axis=0)
    return counts[np.searchsorted(outcomes.tested_radii, radii)]


def average_certified_radius(outcomes: Outcomes) -> Fraction:
    """The mean over the examples of radius * correct (ACR, Zhai et al. 2020, MACER), exactly.

    Each radius stands for the shortest decimal that names its float64, which is what a log shows.

    Raises:
        InputError: where only some radii were tested.

    Example:
        >>> outcomes = Outcomes("tiny", index=[0, 1, 2], label=[3, 5, 1], prediction=[3, 4, 1],
        ...                     radius=[0.5, 0.75, 0.1])
        >>> average_certified_radius(outcomes)
        Fraction(1, 5)
    """
    if outcomes.tested_radii is not None:
        raise validation.InputError(
            f"the average radius is not known for {outcomes.name}: it was tested at some radii"
        )
    radii = outcomes.radius[outcomes.correct].tolist()
    return sum((Fraction(repr(radius)) for radius in radii), Fraction(0)) / outcomes.num_examples


def p_a_quantiles(outcomes: Outcomes, probabilities: ArrayLike) -> np.ndarray:
    """Quantiles over the examples of the lower bound on p_A; each is a value that occurs, the next one down.

    Args:
        outcomes: N examples whose ``p_a_lower`` is known.
        probabilities: float[Q] in [0, 1].

    Returns:
        float64[Q].

    Raises:
        InputError: for outcomes without ``p_a_lower``, or probabilities outside [0, 1].

    Example:
        >>> outcomes = Outcomes("tiny", index=[0, 1], label=[0, 0], prediction=[0, 0], radius=[1, 1],
        ...                     p_a_lower=[0.75, 0.5])
        >>> p_a_quantiles(outcomes, [0, 0.5, 1]).tolist()
        [0.5, 0.5, 0.75]
    """
    if outcomes.p_a_lower is None:
        raise validation.InputError(f"p_a_lower is not known for {outcomes.name}")
    probabilities = validation.check_probabilities("probabilities", probabilities)
    return np.quantile(outcomes.p_a_lower, probabilities, method="lower")


def band_half_width(num_examples: int, *, confidence: float = 0.95) -> float:
    r"""Half-width of the simultaneous confidence band around a certified-accuracy curve.

    ``eps = sqrt(log(2 / (1 - confidence)) / (2 N))``, the inequality of Dvoretzky, Kiefer and Wolfowitz (1956)
    with the constant of Massart (1990): ``P(sup_r |F_N(r) - F(r)| > eps) <= 2 exp(-2 N eps^2)`` for any
    distribution. It is applied to the radius of a correctly certified example, and minus infinity for any
    other, with the examples taken for independent draws. So the whole true curve lies in the band, at all radii at
    once, with this probability.

    Args:
        num_examples: N, at least 1.
        confidence: in (0, 1).

    Returns:
        eps; more than 1 where N is too small to say anything.

    Raises:
        InputError: for arguments outside their ranges.

    Example:
        >>> print(f"{band_half_width(500):.4f}")
        0.0607
    """
    num_examples = validation.check_integer("num_examples", num_examples, at_least=1)
    confidence = validation.check_alpha(confidence, "confidence")
    return math.sqrt(math.log(2.0 / (1.0 - confidence)) / (2.0 * num_examples))


def certified_accuracy_curve(outcomes: Outcomes, *, confidence: float = 0.95) -> Curve:
    """The whole curve, with one step at each certified radius, and its simultaneous band.

    Where only some radii were tested, these are the curve's radii, and it says nothing between them.

    The band is about the choice of examples: where another sample of as many would have put the curve.
    See :func:`band_half_width`.

    Example:
        >>> outcomes = Outcomes("tiny", index=[0, 1, 2, 3], label=[3, 5, 1, 1], prediction=[3, 4, 1, 1],
        ...                     radius=[0.5, 0.75, 0.25, 0.5])
        >>> curve = certified_accuracy_curve(outcomes)
        >>> curve.radius.tolist(), curve.accuracy.tolist()
        ([0.0, 0.25, 0.5], [0.75, 0.75, 0.5])
    """
    radius = outcomes.tested_radii
    if radius is None:
        radius = np.unique(np.append(outcomes.radius[outcomes.correct], 0.0))
    accuracy = certified_counts(outcomes, radius) / outcomes.num_examples
    half_width = band_half_width(outcomes.num_examples, confidence=confidence)
    return Curve(
        radius, accuracy, np.maximum(accuracy - half_width, 0.0), np.minimum(accuracy + half_width, 1.0)
    )
