"""Data sets of tensorflow-datasets: prepared once, with TensorFlow, then read without it as ArrayRecord files.

Examples come in the order of the original archives, not in the shuffled one on disk, so that "every 20th test
image" means the images of the papers: CIFAR-10, CIFAR-100 and SVHN by number; ImageNet by class, then file name, as
torchvision's ``ImageFolder`` lists them. MNIST and Fashion-MNIST do not say where an image was; they keep the order on
disk.
"""

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxsmooth import validation
from jaxsmooth.data import statistics
from jaxsmooth.data.dataset import Dataset, LazyImages, Pixels
from jaxsmooth.data.folders import resize_and_crop, to_rgb
from jaxsmooth.validation import InputError

_DEFAULT_FOLDER = Path("~/tensorflow_datasets")

# What reading damaged files has been seen to raise.
_DAMAGE = (ValueError, KeyError, IndexError, TypeError, OSError, RuntimeError, SyntaxError)


class Source(NamedTuple):
    """What is known of a data set.

    Attributes:
        tfds_name: its name there.
        statistics: mean and standard deviation of its training pixels, per channel.
        test_split: the name there of the split "test".
        order_by: the feature that tells the original order, or none.
        resize: for images of many sizes: shorter side before the crop.
        crop: and the side of the crop.
    """

    tfds_name: str
    statistics: statistics.Statistics
    test_split: str = "test"
    order_by: str = ""
    resize: int | None = None
    crop: int | None = None


SOURCES = {
    "cifar10": Source("cifar10", statistics.CIFAR10, order_by="id"),
    "cifar100": Source("cifar100", statistics.CIFAR100, order_by="id"),
    "fashion-mnist": Source("fashion_mnist", statistics.FASHION_MNIST),
    "imagenet": Source("imagenet2012", statistics.IMAGENET, "validation", "file_name", 256, 224),
    "mnist": Source("mnist", statistics.MNIST),
    "svhn": Source("svhn_cropped", statistics.SVHN, order_by="id"),
}


def data_folder(data_dir: Path | None) -> Path:
    """Where data sets are: the argument, else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    return (data_dir or Path(os.environ.get("TFDS_DATA_DIR") or _DEFAULT_FOLDER)).expanduser()


def load(name: str, split: str, data_dir: Path | None = None) -> Dataset:
    """Loads one split of a prepared data set, all of it decoded but for ImageNet.

    Args:
        name: key of ``SOURCES``.
        split: "train" or "test".
        data_dir: see :func:`data_folder`.

    Raises:
        InputError: for a data set that is not prepared, with the command that prepares it, or for damaged files.
    """
    validation.check_choice("data", name, tuple(SOURCES))
    validation.check_choice("split", split, ("train", "test"))
    source = SOURCES[name]
    folder = _version_folder(name, data_dir)
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(folder)
        records = builder.as_data_source(
            split=source.test_split if split == "test" else split,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        features = builder.info.features
    except NotImplementedError:
        raise InputError(
            f"data {name} in {folder} has a file format that only TensorFlow can read; prepare it elsewhere with "
            f"`{_command(name, Path('OTHER_FOLDER'))}`"
        ) from None
    except Exception as error:  # of protobuf, of file systems, ...: the files are all that it depends on
        raise _damaged(name, folder, error) from None
    class_names = tuple(features["label"].names)
    if source.crop is None:
        raw, labels = _all(name, folder, source, records)
        return Dataset(name, split, Pixels(raw), labels, class_names, *source.statistics)
    order, labels, digest = _order(name, folder, split, source, records)

    def original(index: int) -> np.ndarray:
        try:
            return np.asarray(to_rgb(Image.open(io.BytesIO(_example(records, int(order[index]))["image"]))))
        except _DAMAGE as error:
            raise _damaged(name, folder, error) from None

    def read(index: int) -> np.ndarray:
        return np.asarray(resize_and_crop(Image.fromarray(original(index)), source.resize, source.crop))

    images = LazyImages(read, original, (len(order), source.crop, source.crop, 3))
    return Dataset(
        name, split, images, labels, class_names, *source.statistics, hash_of_images=lambda: digest
    )


def prepare(name: str, data_dir: Path | None = None) -> Path:
    """Downloads a data set and writes it as ArrayRecord files; does nothing when it is there.

    Args:
        name: key of ``SOURCES``.
        data_dir: see :func:`data_folder`.

    Returns:
        The folder of its files.

    Raises:
        InputError: without TensorFlow, or when the download fails.
    """
    validation.check_choice("data", name, tuple(SOURCES))
    target = data_folder(data_dir)
    try:
        return _version_folder(name, data_dir)
    except InputError:
        pass
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        raise InputError(
            "preparing a data set must have TensorFlow, which reading it does not need: pip install 'jaxsmooth[tfds]'"
        ) from None
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

    manual = target / "downloads" / "manual"
    try:
        builder = tfds.builder(SOURCES[name].tfds_name, data_dir=target, file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual))
    except (OSError, AssertionError, tfds.download.DownloadError, NonMatchingChecksumError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"data {name} could not be prepared ({reason}); archives that are put into {manual} are used instead "
            "of a download"
        ) from None
    return _version_folder(name, data_dir)


def _command(name: str, folder: Path) -> str:
    return f"jaxsmooth prepare {name} --data-dir {folder}"


def _version_folder(name: str, data_dir: Path | None) -> Path:
    """The newest version of a data set on disk."""
    folder = data_folder(data_dir)
    found = [path.parent for path in (folder / SOURCES[name].tfds_name).glob("*.*.*/dataset_info.json")]
    if not found:
        raise InputError(
            f"data {name} is not in {folder}; prepare it once with `{_command(name, folder)}`"
        ) from None
    return max(found, key=lambda path: [int(part) if part.isdigit() else -1 for part in path.name.split(".")])


def _all(
    name: str, folder: Path, source: Source, records: Sequence[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray]:
    """All images as bytes, and their labels, in the original order."""
    try:
        examples = [_example(records, index) for index in range(len(records))]
        if source.order_by:
            examples.sort(key=lambda example: example[source.order_by])
        # Greyscale keeps its single channel: MNIST's networks take one.
        decoded = [np.asarray(Image.open(io.BytesIO(example["image"]))) for example in examples]
        raw = np.stack([image[..., None] if image.ndim == 2 else image for image in decoded])
        return raw, np.array([example["label"] for example in examples], np.int32)
    except _DAMAGE as error:
        raise _damaged(name, folder, error) from None


def _order(
    name: str, folder: Path, split: str, source: Source, records: Sequence[dict[str, Any]]
) -> tuple[np.ndarray, np.ndarray, str]:
    """Places on disk by class and file name, labels in that order, and a hash of labels, names and image sizes.

    It takes a pass over all files the first time, and is kept beside them.
    """
    path = folder / f"jaxsmooth-order-{split}.npz"
    try:
        with np.load(path) as kept:
            if len(kept["order"]) == len(records):
                return kept["order"], kept["labels"], str(kept["digest"])
    except (OSError, ValueError, KeyError, EOFError):
        pass
    try:
        rows = []
        for index in range(len(records)):
            example = _example(records, index)
            rows.append((int(example["label"]), example[source.order_by], index, len(example["image"])))
    except _DAMAGE as error:
        raise _damaged(name, folder, error) from None
    rows.sort()
    order = np.array([row[2] for row in rows], np.int64)
    labels = np.array([row[0] for row in rows], np.int32)
    digest = hashlib.sha256("\n".join(f"{row[0]} {row[1]!r} {row[3]}" for row in rows).encode()).hexdigest()
    _try_to_write(
        path, lambda temporary: np.savez(temporary, order=order, labels=labels, digest=np.array(digest))
    )
    return order, labels, digest


def _try_to_write(path: Path, write: Callable[[Path], None]) -> None:
    """Whole or not at all; a folder that may not be written to costs only time."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)


def _example(records: Sequence[dict[str, Any]], index: int) -> dict[str, Any]:
    """One example; half a file gives examples of nothing without complaint."""
    example = records[index]
    if any(value is None for value in example.values()):
        raise ValueError(f"example {index} is empty")
    return example


def _damaged(name: str, folder: Path, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(
        f"data {name} in {folder} is damaged ({type(error).__name__}: {reason}); remove that folder and prepare it "
        f"anew with `{_command(name, folder.parent.parent)}`"
    )
