"""Folders of images, one sub-folder per class, below a level ``train`` and ``test`` (or ``val``).

The classes are the names of the sub-folders in sorted order. Every image becomes RGB: greyscale is repeated over
the three channels, CMYK and palettes are converted, transparency is laid on white (Pillow does the rest).
Names that begin with a dot are passed over; any other file that is not an image is an error.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxsmooth import validation
from jaxsmooth.data import statistics
from jaxsmooth.data.dataset import Dataset, LazyImages, Pixels
from jaxsmooth.validation import InputError

PREFIX = "folder:"
SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}
_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

# Images up to this side and this many bytes together are decoded once and kept in memory.
_SMALL_SIDE = 96
_MEMORY = 2**31

# How many files, evenly spaced, are hashed whole for the fingerprint of images that are not in memory.
_HASHED_FILES = 64


class Place(NamedTuple):
    """What ``folder:PATH,resize=R,crop=C`` says.

    Attributes:
        path: the folder.
        resize: the shorter side is brought to this many pixels first, or None.
        crop: then the centre square of this side is cut out, or None.
    """

    path: Path
    resize: int | None
    crop: int | None


def parse(name: str) -> Place:
    """The parts of a data set's name.

    Raises:
        InputError: for a name without a path, or sizes below 1.

    Example:
        >>> parse("folder:photos,resize=256,crop=224")[1:]
        (256, 224)
    """
    found = re.fullmatch(r"folder:(?P<path>[^,].*?)(,resize=(?P<resize>\d+))?(,crop=(?P<crop>\d+))?", name)
    if found is None:
        raise InputError(f"data must be folder:PATH or folder:PATH,resize=256,crop=224, got {name!r}")
    sizes = [None if found[key] is None else int(found[key]) for key in ("resize", "crop")]
    for key, size in zip(("resize", "crop"), sizes, strict=True):
        if size is not None:
            validation.check_integer(key, size, at_least=1)
    return Place(Path(found["path"]), *sizes)


def load(name: str, split: str) -> Dataset:
    """Loads one split of a folder of images.

    Small images (sides up to 96) are decoded at once; others, and those to be resized, when they are asked for.

    Args:
        name: ``folder:PATH``, with ``,resize=256,crop=224`` for the evaluation of ImageNet as the field does it.
        split: "train" or "test"; the folder of the latter may also be called ``val`` or ``validation``.

    Raises:
        InputError: for a folder that is not there or not of this form, an empty class, a file that is not an
            image or cannot be read, sizes that differ without a crop.
    """
    validation.check_choice("split", split, tuple(SPLITS))
    place = parse(name)
    folder = _split_folder(place.path, split)
    if folder is None:
        raise InputError(
            f"data must be a folder with a sub-folder {' or '.join(SPLITS[split])} for split {split!r}, "
            f"got {place.path}, which {'has none' if place.path.is_dir() else 'is not there'}"
        )
    class_names, paths, labels = _listing(folder)
    _check_same_classes(place.path, folder, class_names)
    images, hash_of_images = _images(place, folder, paths)
    known = statistics.published(class_names, tuple(images.shape[1:]))
    if known is None:
        trained = _split_folder(place.path, "train")
        known = statistics.measured(
            images if trained in (None, folder) else _lazy_images(place, _listing(trained)[1])
        )
    sizes = [f",{key}={size}" for key, size in place._asdict().items() if isinstance(size, int)]
    title = "".join([PREFIX, place.path.resolve().name, *sizes])
    return Dataset(
        name, split, images, labels, class_names, *known, title=title, hash_of_images=hash_of_images
    )


def read_image(path: Path) -> Image.Image:
    """An image file as RGB.

    Raises:
        InputError: for a file that cannot be read, with its name.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image)
    except UnidentifiedImageError:
        raise InputError(f"data has a file that is not an image: {path}") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"data has an image that cannot be read: {path} ({reason})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB of any image: greyscale is repeated, transparency laid on white, 16 bits brought down to 8."""
    if image.mode.startswith("I;16"):  # Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def resize_and_crop(image: Image.Image, resize: int | None, crop: int | None) -> Image.Image:
    """Shorter side to ``resize`` (bilinear, longer side truncated), then the centre square, as torchvision does.

    ``torchvision.transforms.Resize(resize)`` and ``CenterCrop(crop)`` on a Pillow image, pixel for pixel: an image
    smaller than the crop is padded with black.

    Example:
        >>> resize_and_crop(Image.new("RGB", (500, 375)), 256, 224).size
        (224, 224)
    """
    width, height = image.size
    if resize is not None and min(width, height) != resize:
        short, long = min(width, height), max(width, height)
        other = int(resize * long / short)
        size = (resize, other) if width <= height else (other, resize)
        image = image.resize(size, Image.Resampling.BILINEAR)
        width, height = image.size
    if crop is None:
        return image
    if crop > width or crop > height:
        left, top = (max(crop - side, 0) // 2 for side in (width, height))
        right, bottom = ((max(crop - side, 0) + 1) // 2 for side in (width, height))
        image = ImageOps.expand(image, (left, top, right, bottom), fill=0)
        width, height = image.size
    # Python's round, half to even, as there.
    left, top = round((width - crop) / 2.0), round((height - crop) / 2.0)
    return image.crop((left, top, left + crop, top + crop))


def _split_folder(path: Path, split: str) -> Path | None:
    return next((path / name for name in SPLITS[split] if (path / name).is_dir()), None)


def _listing(folder: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """Class names, files and labels, in sorted order."""
    classes: list[str] = []
    paths: list[Path] = []
    labels: list[int] = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            raise InputError(
                f"data must have one sub-folder per class in {folder}, got the file {entry.name}"
            )
        files = [name for name in sorted(os.listdir(entry.path)) if not name.startswith(".")]
        for name in files:
            if not name.lower().endswith(_SUFFIXES):
                raise InputError(f"data has a file that is not an image: {Path(entry.path) / name}")
        if not files:
            raise InputError(f"data has a class without images: {entry.path} is empty")
        paths += [Path(entry.path) / name for name in files]
        labels += [len(classes)] * len(files)
        classes.append(entry.name)
    if not classes:
        raise InputError(f"data must have one sub-folder per class, got {folder}, which is empty")
    return tuple(classes), paths, np.array(labels, np.int32)


def _check_same_classes(path: Path, folder: Path, class_names: tuple[str, ...]) -> None:
    """Refuses levels with different classes: the numbers of the labels would mean different things."""
    for other in filter(None, (_split_folder(path, split) for split in SPLITS)):
        found = {entry.name for entry in os.scandir(other) if entry.is_dir() and entry.name[0] != "."}
        differing = sorted(found ^ set(class_names))
        if differing:
            raise InputError(
                f"data must have the same classes in {folder} and {other}, got {differing[0]!r} in one of them only"
            )


def _images(
    place: Place, folder: Path, paths: list[Path]
) -> tuple[Pixels | LazyImages, Callable[[], str] | None]:
    """The images of some files, in memory when they are small, and what stands for them in a fingerprint."""
    lazy = _lazy_images(place, paths)
    first = lazy.shape[1:]
    resized = (place.resize, place.crop) != (None, None)
    if not resized and max(first[:2]) <= _SMALL_SIDE and len(paths) * int(np.prod(first)) <= _MEMORY:
        raw = np.empty((len(paths), *first), np.uint8)
        for index, path in enumerate(paths):
            image = lazy.read(index)
            _check_size(path, image.shape[:2], paths[0], first[:2])
            raw[index] = image
        return Pixels(raw), None
    if place.crop is None:  # then sizes may differ; their headers tell without decoding
        for path in paths:
            _check_size(path, _size(path, place.resize), paths[0], first[:2])
    return lazy, lambda: _hash_of_files(place, folder, paths)


def _lazy_images(place: Place, paths: list[Path]) -> LazyImages:
    def read(index: int) -> np.ndarray:
        return np.asarray(resize_and_crop(read_image(paths[index]), place.resize, place.crop))

    def original(index: int) -> np.ndarray:
        return np.asarray(read_image(paths[index]))

    return LazyImages(read, original, (len(paths), *read(0).shape))


def _check_size(path: Path, size: tuple[int, ...], first_path: Path, first: tuple[int, ...]) -> None:
    if tuple(size) != tuple(first):
        raise InputError(
            f"data must have images of one size, or be given as folder:PATH,resize=256,crop=224; {path} is "
            f"{size[1]}x{size[0]}, {first_path} is {first[1]}x{first[0]}"
        )


def _size(path: Path, resize: int | None) -> tuple[int, int]:
    """[height, width] after resizing, from the header alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        read_image(path)  # explains
        raise
    if resize is None:
        return height, width
    short, long = min(width, height), max(width, height)
    other = resize if short == long else int(resize * long / short)
    return (other, resize) if width <= height else (resize, other)


def _hash_of_files(place: Place, folder: Path, paths: list[Path]) -> str:
    """Names and sizes of all files, and the contents of 64 of them: hashing all of ImageNet would take an hour."""
    digest = hashlib.sha256(f"resize {place.resize} crop {place.crop}\n".encode())
    for path in paths:
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
    for index in sorted({len(paths) * part // _HASHED_FILES for part in range(_HASHED_FILES)}):
        digest.update(paths[index].read_bytes())
    return digest.hexdigest()
