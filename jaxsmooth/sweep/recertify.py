"""New certificates from stored counts: another alpha or bound, without a model or an accelerator."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxsmooth import noise as noise_lib
from jaxsmooth import validation
from jaxsmooth.certification import ABSTAIN, BOUNDS, certificate_from_counts, split_level
from jaxsmooth.confidence import clopper_pearson
from jaxsmooth.sweep.records import VERDICTS, Manifest, Results, Row, dense
from jaxsmooth.validation import InputError

_CHUNK = 4096  # rows whose counts are held as dense arrays at once
_FLOAT32_STEPS = 1e-6  # relative; a stored radius was computed in float32


class Settings(NamedTuple):
    """What a manifest says about the certificates, checked."""

    noise: noise_lib.Noise
    num_classes: int
    num_samples: int
    alpha: float
    bound: str
    stopping: str | None
    radii: tuple[float, ...]
    only_correct: bool


def settings(manifest: Manifest) -> Settings:
    """Reads the settings that certificates are computed from.

    Raises:
        InputError: for a manifest that lacks one, or holds one outside its range.
    """
    bound = _entry(manifest, "bound")
    rule = manifest.determines.get("stopping")
    stopping: str | None = None
    radii: tuple[float, ...] = ()
    if rule is not None:
        if not isinstance(rule, dict) or rule.get("rule") not in ("radii", "tolerance"):
            raise InputError(
                f"the manifest tells of a rule for stopping that this version does not know: {rule}"
            )
        if rule["rule"] == "radii":
            radii = tuple(float(radius) for radius in _entry(manifest, "stopping", "radii"))
            stopping = f"radii ({rule['guarantee']})" if "guarantee" in rule else "radius"
        else:
            stopping = f"tolerance {_entry(manifest, 'stopping', 'tolerance'):g}"
    return Settings(
        noise=noise_lib.from_name(
            _entry(manifest, "noise", "name"),
            validation.check_positive("sigma", _entry(manifest, "noise", "sigma")),
        ),
        num_classes=validation.check_integer(
            "num_classes", _entry(manifest, "data", "num_classes"), at_least=1
        ),
        num_samples=validation.check_integer("num_samples", _entry(manifest, "num_samples"), at_least=1),
        alpha=validation.check_alpha(_entry(manifest, "alpha")),
        bound=validation.check_choice("bound", bound, BOUNDS),
        stopping=stopping,
        radii=radii,
        only_correct=bool(manifest.determines.get("only_correct", False)),
    )


def recertify(results: Results, *, alpha: float | None = None, bound: str | None = None) -> Results:
    """Certifies every row again from its counts, on the host in float64.

    One set of counts supports one statement of level alpha for each example; picking the best of several alphas or
    bounds after seeing the radii does not. The number of samples must have been fixed in advance.

    Args:
        results: a results folder in memory.
        alpha: probability that one certificate is false, in (0, 1); that of the manifest by default.
        bound: "two-sided" or "one-sided"; that of the manifest by default.

    Returns:
        Results whose rows and manifest state the new certificates; counts are unchanged.

    Raises:
        InputError: for arguments outside their ranges, a manifest without what is needed, counts that
            cannot be (the example is named), samples that stopped early, or a bound that needs a selection stage
            where there was none.
    """
    told = settings(results.manifest)
    if told.stopping is not None:
        raise InputError(
            f"examples that stopped early (by {told.stopping}) cannot be certified again: how many samples they have "
            "depends on what these were"
        )
    alpha = told.alpha if alpha is None else validation.check_alpha(alpha)
    bound = told.bound if bound is None else validation.check_choice("bound", bound, BOUNDS)
    if told.bound == "selection-free" != bound:
        raise InputError(
            f"bound {bound!r} needs counts of a selection stage, which bound 'selection-free' has not"
        )
    rows = sorted(_certified(results.rows, told, alpha, bound), key=lambda row: row.index)
    determines = results.manifest.determines | {"alpha": alpha, "bound": bound}
    return Results(dataclasses.replace(results.manifest, determines=determines), rows)


def unsupported(results: Results) -> list[int]:
    """Indices of examples whose stored certificate claims more than their counts support.

    Stored radii may be a little smaller than recomputed ones (they were rounded down in float32), never larger. A
    row that was changed by hand, or rows under the manifest of another run, come to light here. Of an example that
    stopped early each decision has to hold for a fixed number of samples at the same level, which any valid plan
    implies.

    Raises:
        InputError: as :func:`recertify`.
    """
    if settings(results.manifest).stopping is not None:
        return _unsupported_decisions(results)
    stored = {row.index: row for row in results.rows}
    return [
        row.index
        for row in recertify(results).rows
        if stored[row.index].radius > row.radius * (1.0 + _FLOAT32_STEPS)
        or stored[row.index].prediction not in (ABSTAIN, row.prediction)
    ]


def _unsupported_decisions(results: Results) -> list[int]:
    told = settings(results.manifest)
    level_a, level_b = split_level(told.alpha, told.bound)
    doubtful = []
    for row in results.rows:
        selection_counts = _dense_counts([row], "selection_counts", told.num_classes)[0]
        selected = int(np.argmax(selection_counts))
        said = [decision for decision in row.decisions if decision.verdict == VERDICTS[0]]
        claimed = max((decision.radius for decision in said), default=0.0)
        if row.radius > claimed or row.prediction not in (ABSTAIN, selected if said else ABSTAIN):
            doubtful.append(row.index)
            continue
        for decision in said:
            counts = dense(decision.counts, told.num_classes)
            p_a = clopper_pearson(counts[selected], decision.num_samples, level_a, bound="lower")
            p_b = 1.0 - p_a
            if level_b is not None:
                others = np.delete(counts, selected).max() + decision.num_samples - counts.sum()
                p_b = np.minimum(p_b, clopper_pearson(others, decision.num_samples, level_b, bound="upper"))
            radius = 0.5 * float(told.noise.scale) * (special.ndtri(p_a) - special.ndtri(p_b))
            if decision.radius > radius * (1.0 + _FLOAT32_STEPS):
                doubtful.append(row.index)
                break
    return doubtful


def _certified(rows: list[Row], told: Settings, alpha: float, bound: str) -> Iterator[Row]:
    by_num_samples: dict[int, list[Row]] = {}
    for row in rows:
        by_num_samples.setdefault(row.num_samples, []).append(row)
    if told.only_correct:
        for row in by_num_samples.pop(0, []):  # left at its selection stage: its counts support nothing
            yield dataclasses.replace(row, prediction=ABSTAIN, radius=0.0, p_a_lower=0.0, p_b_upper=1.0)
    for num_samples, group in by_num_samples.items():
        for start in range(0, len(group), _CHUNK):
            chunk = group[start : start + _CHUNK]
            certificate = certificate_from_counts(
                _dense_counts(chunk, "selection_counts", told.num_classes),
                _dense_counts(chunk, "counts", told.num_classes),
                noise=told.noise,
                num_samples=num_samples,
                alpha=alpha,
                bound=bound,
            )
            for place, row in enumerate(chunk):
                yield dataclasses.replace(
                    row,
                    prediction=int(certificate.prediction[place]),
                    radius=float(certificate.radius[place]),
                    p_a_lower=float(certificate.p_a_lower[place]),
                    p_b_upper=float(certificate.p_b_upper[place]),
                )


def _dense_counts(rows: list[Row], name: str, num_classes: int) -> np.ndarray:
    """int64[len(rows), num_classes]."""
    for row in rows:
        if (largest := max(getattr(row, name), default=0)) >= num_classes:
            raise InputError(
                f"example {row.index} has {name} for class {largest}, but the manifest tells of {num_classes} classes"
            )
    return np.stack([dense(getattr(row, name), num_classes) for row in rows])


def _entry(manifest: Manifest, *keys: str) -> Any:
    value: Any = manifest.determines
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            raise InputError(f"the manifest is damaged: it lacks determines.{'.'.join(keys)}")
        value = value[key]
    return value
