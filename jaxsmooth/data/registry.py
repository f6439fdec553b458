"""One way to name and load data sets."""

from pathlib import Path

from jaxsmooth import validation
from jaxsmooth.data import digits, folders, prepared
from jaxsmooth.data.dataset import Dataset


def names() -> list[str]:
    """Names of the data sets that :func:`load` knows, apart from ``folder:PATH``."""
    return sorted(["digits", *prepared.SOURCES])


def load(name: str, split: str, data_dir: Path | None = None) -> Dataset:
    """Loads one split of a data set.

    Args:
        name: one of :func:`names`, or ``folder:PATH`` for a folder of images (:mod:`jaxsmooth.data.folders`).
        split: "train" or "test".
        data_dir: where data sets of tensorflow-datasets are; $TFDS_DATA_DIR or ~/tensorflow_datasets when None.

    Raises:
        InputError: for an unknown name or split, or data that are not there or damaged.
    """
    if name.startswith(folders.PREFIX):
        return folders.load(name, split)
    validation.check_choice("data", name, [*names(), "folder:PATH"])
    if name == "digits":
        return digits.load(split)
    return prepared.load(name, split, data_dir)
