"""A checkpoint and a data set, joined into what a sweep takes."""

import warnings
from pathlib import Path

from jaxsmooth import confidence
from jaxsmooth.data import registry as data_registry
from jaxsmooth.models import registry as model_registry
from jaxsmooth.sweep.run import Source
from jaxsmooth.training import checkpoints
from jaxsmooth.training.loop import check_fits


def load_source(
    checkpoint: Path, data: str | None, split: str, data_dir: Path | None = None
) -> tuple[Source, float]:
    """The network of a checkpoint with the examples of a data set, and the sigma of its training.

    Args:
        checkpoint: folder made by ``jaxsmooth train``.
        data: name of the data set; the one of the training when None.
        split: of the data set.
        data_dir: where prepared data sets are.

    Raises:
        InputError: for a missing or damaged checkpoint, an unknown data set, or one that does not fit.
    """
    model, description = checkpoints.load_model(checkpoint)
    dataset = data_registry.load(data or description.data, split, data_dir)
    check_fits(description.model, dataset)
    apply_fn, params = model_registry.inference(model)
    source = Source(
        apply_fn=apply_fn,
        params=params,
        model=description.model.name,
        parameters=description.fingerprint,
        images=lambda index: dataset.images[index],
        labels=dataset.labels,
        num_classes=dataset.num_classes,
        data={"name": dataset.title, "split": dataset.split, "fingerprint": dataset.fingerprint},
    )
    return source, description.sigma


def warn_if_hopeless(num_samples: int, alpha: float) -> None:
    """Warns when so few samples can certify nothing at this alpha."""
    largest = float(confidence.largest_bound(num_samples, alpha))
    if largest <= 0.5:
        warnings.warn(
            f"with num_samples {num_samples} and alpha {alpha} everything abstains: the largest possible bound on p_A "
            f"is {largest:.4f}; at least {confidence.least_num_samples(alpha)} samples are needed",
            stacklevel=2,
        )
