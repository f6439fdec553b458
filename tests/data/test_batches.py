"""Batches: every example once, the same from any step, host and worker, and augmented as the papers do it."""

import numpy as np
import pytest
from PIL import Image

from jaxsmooth.data import augmentation, registry
from jaxsmooth.data.batches import Batches
from jaxsmooth.data.dataset import Dataset, Pixels
from tests.data.folders_of_images import make, pixels


def small(num_examples=20, **options):
    """Batches of 4x4 images, all pixels of the first column of which are the example's number."""
    raw = np.random.default_rng(0).integers(0, 256, (num_examples, 4, 4, 3), dtype=np.uint8)
    raw[:, :, 0] = np.arange(num_examples)[:, None, None]
    labels = np.arange(num_examples, dtype=np.int32) % 3
    dataset = Dataset("x", "train", Pixels(raw), labels, ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)
    return Batches(dataset, **{"examples": np.arange(num_examples), "batch_size": 4, "seed": 3, **options})


def same(first, second):
    """Both parts of batches are equal."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_an_epoch_takes_every_example_once_in_a_new_order():
    batches = small()
    epochs = [
        np.concatenate([batches.batch(step)[0][:, 0, 0, 0] for step in range(5 * e, 5 * e + 5)])
        for e in (0, 1)
    ]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(20))
    assert (epochs[0] != epochs[1]).any()
    images, labels = batches.batch(7)
    np.testing.assert_array_equal(labels, images[:, 0, 0, 0] % 3)


def test_examples_kept_apart_are_not_trained_on():
    batches = small(examples=np.arange(5, 15))
    assert batches.per_epoch == 2
    seen = np.concatenate([batches.batch(step)[0][:, 0, 0, 0] for step in range(20)])
    assert set(seen) == set(range(5, 15))


@pytest.mark.parametrize("kind", ["none", "crop-flip"])
def test_reading_ahead_gives_the_batches_of_the_steps_from_any_step_on(kind):
    batches = small(augmentation=kind)
    same(list(batches.iterate(3, 12)), [batches.batch(step) for step in range(3, 12)])


def test_worker_processes_read_the_same_batches():
    batches = small(augmentation="crop-flip")
    same(list(batches.iterate(3, 12, num_workers=2)), [batches.batch(step) for step in range(3, 12)])


@pytest.mark.parametrize("kind", ["none", "crop-flip", "resized-crop-flip"])
def test_hosts_read_their_parts_of_the_same_batch(tmp_path, kind):
    if kind == "resized-crop-flip":
        dataset = registry.load(f"folder:{make(tmp_path, size=(20, 30))},resize=10,crop=8", "train")
        whole = Batches(dataset, np.arange(6), 4, 0, kind)
        hosts = [Batches(dataset, np.arange(6), 4, 0, kind, (i, 2)) for i in range(2)]
    else:
        whole = small(augmentation=kind)
        hosts = [small(augmentation=kind, host=(i, 2)) for i in range(2)]
    for step in range(6):
        parts = [host.batch(step) for host in hosts]
        assert [len(part[1]) for part in parts] == [2, 2]
        same([whole.batch(step)], [tuple(np.concatenate(column) for column in zip(*parts, strict=True))])


def test_crops_are_pieces_of_the_padded_image():
    """All 81 places with and without a flip, against slices of one padded image."""
    image = pixels(0, (6, 5))
    tops, lefts, flips = (a.ravel() for a in np.meshgrid(range(9), range(9), (False, True)))
    found = augmentation.crop_flip(np.broadcast_to(image, (162, 6, 5, 3)), tops, lefts, flips)
    padded = np.zeros((14, 13, 3), np.uint8)
    padded[4:10, 4:9] = image
    for crop, top, left, flip in zip(found, tops, lefts, flips, strict=True):
        expected = padded[top : top + 6, left : left + 5]
        np.testing.assert_array_equal(crop, expected[:, ::-1] if flip else expected)


def test_every_place_and_flip_is_as_likely():
    """Chi-squared over 9 x 9 x 2 outcomes of 40,000 draws: 161 degrees of freedom; above 240 by chance 5e-5."""
    image = np.zeros((1, 9, 9, 1), np.float32)
    image[0, 4, 4, 0] = 1  # where it lands tells the place; the second tells whether it is mirrored
    image[0, 4, 3, 0] = 2
    batch = augmentation.read(
        np.broadcast_to(image, (40_000, 9, 9, 1)), np.arange(40_000), slice(None), "crop-flip", (5,)
    )
    ones = np.argwhere(batch[..., 0] == 1)
    twos = np.argwhere(batch[..., 0] == 2)
    kept = np.intersect1d(ones[:, 0], twos[:, 0])
    one, two = ones[np.isin(ones[:, 0], kept)], twos[np.isin(twos[:, 0], kept)]
    assert len(kept) > 33_000  # the second pixel falls off the edge in one place of nine, mirrored or not
    outcomes = np.stack([one[:, 1], one[:, 2], (two[:, 2] > one[:, 2]).astype(int)], axis=1)
    _, counts = np.unique(outcomes, axis=0, return_counts=True)
    assert len(counts) == 9 * 8 * 2
    assert np.sum((counts - counts.mean()) ** 2 / counts.mean()) < 240


def test_resized_crops_are_parts_of_the_image_of_the_sizes_asked_for():
    """Area between 8 and 100%, ratio between 3/4 and 4/3, inside of the image; up to rounding to whole pixels."""
    rng = np.random.default_rng(0)
    parts = np.array([augmentation._random_part(300, 400, rng) for _ in range(2000)], float)
    top, left, height, width = parts.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 300).all()
    assert (left + width <= 400).all()
    share, ratio = height * width / 120_000, width / height
    assert 0.078 < share.min() < 0.1
    assert 0.9 < share.max() <= 1
    assert 0.74 < ratio.min() < 0.77
    assert 1.3 < ratio.max() < 1.35


@pytest.mark.parametrize(
    ("height", "width", "part"), [(300, 10, (143, 0, 13, 10)), (10, 300, (0, 143, 10, 13))]
)
def test_images_too_narrow_for_a_random_part_give_the_centre(height, width, part):
    """A ratio of 3/4 to 4/3 and at least 8% of the area do not fit: the largest centred part of such a ratio."""
    assert augmentation._random_part(height, width, np.random.default_rng(0)) == part


def test_a_resized_crop_shows_its_part():
    image = pixels(2, (40, 50))
    found = augmentation.random_resized_crop_flip(image, 16, np.random.default_rng(7))
    rng = np.random.default_rng(7)
    top, left, height, width = augmentation._random_part(40, 50, rng)
    part = Image.fromarray(image[top : top + height, left : left + width])
    expected = np.asarray(part.resize((16, 16), Image.Resampling.BILINEAR))
    if rng.random() < 0.5:
        expected = expected[:, ::-1]
    np.testing.assert_array_equal(found, expected)
