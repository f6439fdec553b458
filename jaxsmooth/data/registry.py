"""One way to name and load data sets."""

from collections.abc import Callable

from jaxsmooth import validation
from jaxsmooth.data import digits, folders
from jaxsmooth.data.dataset import Dataset

_DATASETS: dict[str, Callable[[str], Dataset]] = {
    "digits": digits.load,
}


def names() -> list[str]:
    """Names of the data sets that :func:`load` knows, apart from ``folder:PATH``."""
    return sorted(_DATASETS)


def load(name: str, split: str) -> Dataset:
    """Loads one split of a data set.

    Args:
        name: one of :func:`names`, or ``folder:PATH`` for a folder of images (:mod:`jaxsmooth.data.folders`).
        split: "train" or "test".

    Raises:
        InputError: for an unknown name or split.
    """
    if name.startswith(folders.PREFIX):
        return folders.load(name, split)
    validation.check_choice("data", name, [*names(), "folder:PATH"])
    return _DATASETS[name](split)
