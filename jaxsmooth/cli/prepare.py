"""``jaxsmooth prepare``: a data set of tensorflow-datasets, written so that TensorFlow is not needed again."""

import dataclasses
from pathlib import Path

from tyro.conf import Positional


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Download a data set and write it as files that are read without TensorFlow.

    This, and only this, needs TensorFlow: pip install 'jaxsmooth[tfds]'.

    ImageNet cannot be downloaded: put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into
    DATA_DIR/downloads/manual first. Archives of the other data sets may be put there too.

    Example: jaxsmooth prepare cifar10 --data-dir ~/tensorflow_datasets
    """

    name: Positional[str]
    """cifar10, cifar100, fashion-mnist, imagenet, mnist or svhn."""
    data_dir: Path | None = None
    """Where to put it; $TFDS_DATA_DIR or ~/tensorflow_datasets when not given."""


def run(options: Prepare) -> None:
    """Prepares, reads both splits once, and says how large they are."""
    from jaxsmooth.data import prepared

    folder = prepared.prepare(options.name, options.data_dir)
    sizes = []
    for split in ("train", "test"):
        dataset = prepared.load(options.name, split, options.data_dir)
        shape = "x".join(map(str, dataset.shape))
        sizes.append(f"{len(dataset):,} {split}")
    print(
        f"{options.name}: {' and '.join(sizes)} images, {shape}, {dataset.num_classes} classes, in {folder}"
    )
