"""A classifier and a data set, joined into what a sweep takes."""

import importlib
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxsmooth import confidence, sampling, validation
from jaxsmooth.data import registry as data_registry
from jaxsmooth.data.dataset import Dataset
from jaxsmooth.models import registry as model_registry
from jaxsmooth.sampling import ApplyFn
from jaxsmooth.sweep.run import Source
from jaxsmooth.training import checkpoints
from jaxsmooth.training.loop import check_fits
from jaxsmooth.validation import InputError

# Logits in bfloat16 differ from those in float32 by about a hundredth of the largest, in all our networks.
_ROUNDING = 0.1


class Classifier(NamedTuple):
    """A classifier, whoever made it.

    Attributes:
        apply_fn: as in ``sample_counts``.
        params: as there.
        name: for the manifest.
        fingerprint: of ``params``.
        exact: the same network in float32, where this one computes in less.
    """

    apply_fn: ApplyFn
    params: Any
    name: str
    fingerprint: str
    exact: model_registry.Inference | None = None


def load_source(
    checkpoint: Path | None,
    data: str | None,
    split: str,
    data_dir: Path | None = None,
    *,
    model: str | None = None,
    sigma: float | None = None,
    inference_dtype: str = "float32",
) -> tuple[Source, float]:
    """A classifier with the examples of a data set, and the sigma to certify it with.

    Args:
        checkpoint: folder made by ``jaxsmooth train`` or ``import-torch``; None with ``model``.
        data: name of the data set; the one of the training when None.
        split: of the data set.
        data_dir: where prepared data sets are.
        model: a user's own, ``package.module:factory``; see :func:`load_user_model`. None with ``checkpoint``.
        sigma: of the noise; the one of the training when None, which needs a checkpoint.
        inference_dtype: in which the network computes, "float32" or "bfloat16".

    Returns:
        The source, and sigma.

    Raises:
        InputError: for a missing or damaged checkpoint, a model that cannot be loaded, an unknown data set, or one that
            does not fit.
    """
    validation.check_choice("inference_dtype", inference_dtype, model_registry.DTYPES)
    if (checkpoint is None) == (model is None):
        raise InputError(f"either checkpoint or model must be given, got {checkpoint} and {model}")
    if checkpoint is not None:
        network, description = checkpoints.load_model(checkpoint)
        dataset = data_registry.load(data or description.data, split, data_dir)
        check_fits(description.model, dataset)
        sigma = description.sigma if sigma is None else sigma
        classifier = Classifier(
            *model_registry.inference(network, inference_dtype),
            name=description.model.name,
            fingerprint=description.fingerprint,
            exact=_exact(network, inference_dtype),
        )
    else:
        assert model is not None
        if data is None:
            raise InputError(f"data must be given with model {model}")
        if sigma is None:
            raise InputError(
                f"sigma must be given with model {model}, which does not say what it was trained with"
            )
        classifier = load_user_model(model, inference_dtype)
        dataset = data_registry.load(data, split, data_dir)
        _check_user_model(classifier, dataset)
    _check_rounding(classifier, dataset)
    source = Source(
        apply_fn=classifier.apply_fn,
        params=classifier.params,
        model=classifier.name,
        parameters=classifier.fingerprint,
        images=lambda index: dataset.images[index],
        labels=dataset.labels,
        num_classes=dataset.num_classes,
        data={"name": dataset.title, "split": dataset.split, "fingerprint": dataset.fingerprint},
        inference_dtype=inference_dtype,
    )
    return source, sigma


def load_user_model(place: str, inference_dtype: str = "float32") -> Classifier:
    """A user's own classifier: calls ``factory()`` of ``package.module:factory``.

    The module is looked for in the current folder and on Python's path. The factory takes no arguments and returns

    - ``(apply_fn, params)``: ``apply_fn(params, inputs[batch, height, width, channels] float32) -> logits[batch,
      num_classes]``, deterministic, treating each row on its own, with pixels in [0, 1] plus noise coming in and any
      normalisation inside. All weights must be in ``params``, a pytree of arrays: results are kept under its
      fingerprint, and a change outside it goes unnoticed. For Flax Linen that is ``(model.apply, variables)``.
    - or a Flax NNX module, which is put into evaluation mode and has its batch normalisation folded.

    Args:
        place: ``package.module:factory``; the factory may be an attribute of an attribute.
        inference_dtype: for NNX modules; a function of the user's chooses its precision itself.

    Raises:
        InputError: for a module or factory that is not there or fails, or another return value.
    """
    module_name, _, attribute = place.partition(":")
    if not module_name or not attribute:
        raise InputError(f"model must be package.module:factory, got {place!r}")
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory: Any = importlib.import_module(module_name)
        for name in attribute.split("."):
            factory = getattr(factory, name)
        made = factory()
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"model {place} could not be made: {_reason(error)}") from error
    exact = None
    if isinstance(made, nnx.Module):
        apply_fn, params = model_registry.inference(made, inference_dtype)
        exact = _exact(made, inference_dtype)
    elif isinstance(made, tuple) and len(made) == 2 and callable(made[0]):
        apply_fn, params = made
        if inference_dtype != "float32":
            raise InputError(
                f"inference_dtype must be float32 with an apply_fn of your own, which chooses its precision itself, "
                f"got {inference_dtype}"
            )
    else:
        raise InputError(
            f"model {place} must return (apply_fn, params) or a Flax NNX module, got {validation.show(made)}"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float)):
            raise InputError(
                f"model {place} must return params of arrays only, got {type(leaf).__name__} at "
                f"params{jax.tree_util.keystr(path)}"
            )
    return Classifier(apply_fn, params, place, model_registry.fingerprint(params), exact)


def _exact(network: nnx.Module, inference_dtype: str) -> model_registry.Inference | None:
    return None if inference_dtype == "float32" else model_registry.inference(network)


def _check_user_model(classifier: Classifier, dataset: Dataset) -> None:
    """Refuses a model that does not fit the data, or whose rows depend on each other or on their place.

    A network left in training mode would pass everything else, and its certificates would be worthless.
    """
    rows = np.resize(np.asarray(dataset.images[0], np.float32), (4, *dataset.shape))
    try:
        num_classes = sampling.check_num_classes(
            classifier.apply_fn, classifier.params, dataset.shape, len(rows)
        )
        apply_fn = jax.jit(classifier.apply_fn)
        first = apply_fn(classifier.params, jnp.asarray(rows))
        others = apply_fn(classifier.params, jnp.asarray(rows).at[1:].set(1.0 - 3.0 * rows[1:]))
    except InputError:
        raise
    except Exception as error:  # the user's code may raise anything
        shape = [len(rows), *dataset.shape]
        raise InputError(
            f"model {classifier.name} failed on inputs of shape {shape}: {_reason(error)}"
        ) from error
    if num_classes != dataset.num_classes:
        raise InputError(
            f"model {classifier.name} must return logits for the {dataset.num_classes} classes of {dataset.name}, "
            f"got {num_classes}"
        )
    # Rounding may differ a little; dropout and batch statistics make a large difference.
    tolerance = 1e-2 * float(jnp.max(jnp.abs(first)))
    same_everywhere = jnp.allclose(first, first[0], rtol=0.0, atol=tolerance, equal_nan=True)
    if not (same_everywhere and jnp.allclose(others[0], first[0], rtol=0.0, atol=tolerance, equal_nan=True)):
        raise InputError(
            f"model {classifier.name} must treat each row on its own, got logits that change with "
            + ("the other rows" if same_everywhere else "the row's place in the batch")
            + "; is it in evaluation mode?"
        )


def _check_rounding(classifier: Classifier, dataset: Dataset) -> None:
    """Refuses a network whose logits in a lower precision are not those in float32, to what rounding explains.

    XLA has been seen to return numbers without meaning in bfloat16, finite ones among them.
    """
    if classifier.exact is None:
        return
    noise = np.random.default_rng(0).normal(0.0, 0.25, (4, *dataset.shape))
    rows = jnp.asarray(np.asarray(dataset.images[0], np.float32) + noise, jnp.float32)
    expected = np.asarray(jax.jit(classifier.exact.apply_fn)(classifier.exact.params, rows))
    actual = np.asarray(jax.jit(classifier.apply_fn)(classifier.params, rows))
    known = np.isfinite(expected)
    largest = np.max(np.abs(expected), where=known, initial=0.0)
    with np.errstate(invalid="ignore"):
        off = np.max(np.abs(actual - expected), where=known, initial=0.0)  # NaN where only `actual` is
    if not off <= _ROUNDING * largest:
        raise InputError(
            f"inference_dtype must be float32 for model {classifier.name} on this device, got bfloat16, whose logits "
            f"are off by {off:.3g}, the largest being {largest:.3g}"
        )


def _reason(error: Exception) -> str:
    """An exception on one short line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:200] if text else type(error).__name__


def warn_if_hopeless(num_samples: int, alpha: float) -> None:
    """Warns when so few samples can certify nothing at this alpha."""
    largest = float(confidence.largest_bound(num_samples, alpha))
    if largest <= 0.5:
        warnings.warn(
            f"with num_samples {num_samples} and alpha {alpha} everything abstains: the largest possible bound on p_A "
            f"is {largest:.4f}; at least {confidence.least_num_samples(alpha)} samples are needed",
            stacklevel=2,
        )
