"""Folders of images: order, pixels, sizes, statistics, and everything that can be wrong with them."""

import numpy as np
import pytest
from PIL import Image

from jaxsmooth import InputError
from jaxsmooth.data import folders, registry, statistics
from jaxsmooth.data.dataset import LazyImages, Pixels
from tests.data.folders_of_images import make, pixels


def load(root, split="train", suffix=""):
    return registry.load(f"folder:{root}{suffix}", split)


def refused(root, said, split="train", suffix=""):
    """The data set is refused with one line."""
    with pytest.raises(InputError, match=said) as error:
        load(root, split, suffix)
    assert "\n" not in str(error.value)


def test_images_come_by_class_then_name_with_their_pixels(tmp_path):
    make(tmp_path, classes=("dog", "cat"))  # cat is class 0: the order of the names counts
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.class_names == ("cat", "dog")
    np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1, 1])
    assert (train.labels.dtype, train.images[0].dtype) == (np.int32, np.float32)
    written = np.stack([pixels(seed) for seed in (3, 4, 5, 0, 1, 2)])
    np.testing.assert_array_equal(train.images[np.arange(6)], written.astype(np.float32) / np.float32(255))
    np.testing.assert_array_equal(test.images[5], pixels(8).astype(np.float32) / np.float32(255))
    assert (len(train), train.shape, train.num_classes) == (6, (8, 8, 3), 2)
    assert isinstance(train.images, Pixels)


def test_the_title_leaves_out_where_the_folder_is(tmp_path, monkeypatch):
    make(tmp_path / "photos")
    assert load(tmp_path / "photos", suffix=",crop=4").title == "folder:photos,crop=4"
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "./photos", "photos/"):
        dataset = registry.load(f"folder:{name}", "train")
        assert (dataset.name, dataset.title) == (f"folder:{name}", "folder:photos")


@pytest.mark.parametrize("level", ["val", "validation"])
def test_the_test_split_may_have_other_names(tmp_path, level):
    make(tmp_path, splits=(level,))
    assert len(load(tmp_path, "test")) == 6


def test_statistics_are_those_of_the_training_images_for_both_splits(tmp_path):
    make(tmp_path)
    train, test = load(tmp_path), load(tmp_path, "test")
    images = train.images[np.arange(6)].astype(np.float64)
    assert train.mean == test.mean == pytest.approx(images.mean((0, 1, 2)), abs=1e-4)
    assert train.sd == test.sd == pytest.approx(images.std((0, 1, 2)), abs=1e-4)


def test_known_data_sets_get_the_published_statistics(tmp_path):
    cifar = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    make(tmp_path / "c", classes=cifar, per_class=1, size=(32, 32))
    assert load(tmp_path / "c").sd == statistics.CIFAR10[1]
    make(tmp_path / "i", classes=("n01440764", "n01443537"), per_class=1)
    assert load(tmp_path / "i").mean == (0.485, 0.456, 0.406)


def test_a_channel_without_contrast_can_be_normalised():
    assert min(statistics.measured(np.zeros((3, 2, 2, 1), np.float32))[1]) > 0


def test_large_images_are_read_when_asked_for(tmp_path):
    make(tmp_path, size=(100, 120))
    dataset = load(tmp_path)
    assert isinstance(dataset.images, LazyImages)
    np.testing.assert_array_equal(dataset.images[4], pixels(4, (100, 120)).astype(np.float32) / 255)
    np.testing.assert_array_equal(dataset.images[np.array([4, 1])][1], dataset.images[1])


def test_fingerprints_see_pixels_names_and_preprocessing(tmp_path):
    make(tmp_path / "small")
    make(tmp_path / "large", size=(100, 100))
    prints = [
        load(tmp_path / "small").fingerprint,
        load(tmp_path / "small", "test").fingerprint,
        load(tmp_path / "large").fingerprint,
        load(tmp_path / "large", suffix=",crop=50").fingerprint,
    ]
    assert prints == [
        load(tmp_path / "small").fingerprint,
        load(tmp_path / "small", "test").fingerprint,
        load(tmp_path / "large").fingerprint,
        load(tmp_path / "large", suffix=",crop=50").fingerprint,
    ]
    for folder in ("small", "large"):
        path = tmp_path / folder / "train" / "cat" / "0.png"
        with Image.open(path) as image:
            changed = np.array(image)
        changed[0, 0] ^= 255
        Image.fromarray(changed).save(path)
    prints += [load(tmp_path / "small").fingerprint, load(tmp_path / "large").fingerprint]
    (tmp_path / "large" / "train" / "cat" / "0.png").rename(tmp_path / "large" / "train" / "cat" / "00.png")
    prints.append(load(tmp_path / "large").fingerprint)
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("size", "resized"),
    [((500, 375), (341, 256)), ((375, 500), (256, 341)), ((256, 300), (256, 300)), ((100, 100), (256, 256))],
)
def test_resize_and_crop_are_torchvisions(size, resized):
    """Bilinear, shorter side 256 and the longer truncated, then 224 rows and columns from round((side - 224) / 2)."""
    image = Image.fromarray(pixels(0, size[::-1]))
    found = np.asarray(folders.resize_and_crop(image, 256, 224))
    whole = np.asarray(image.resize(resized, Image.Resampling.BILINEAR))
    top, left = round((resized[1] - 224) / 2), round((resized[0] - 224) / 2)
    np.testing.assert_array_equal(found, whole[top : top + 224, left : left + 224])


@pytest.mark.parametrize(
    "size", [(500, 375), (333, 500), (256, 257), (257, 256), (60, 301), (224, 224), (225, 230)]
)
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (None, 224), (64, 65)])
def test_resize_and_crop_equal_torchvision_itself(size, resize, crop):
    transforms = pytest.importorskip("torchvision.transforms")
    image = Image.fromarray(pixels(1, size))
    steps = [transforms.CenterCrop(crop)]
    if resize is not None:
        steps.insert(0, transforms.Resize(resize))
    expected = np.asarray(transforms.Compose(steps)(image))
    np.testing.assert_array_equal(np.asarray(folders.resize_and_crop(image, resize, crop)), expected)


def test_images_smaller_than_the_crop_are_padded_with_black():
    image = Image.fromarray(np.full((3, 8, 3), 200, np.uint8))
    found = np.asarray(folders.resize_and_crop(image, None, 6))
    assert found.shape == (6, 6, 3)
    # One row above and two below, as torchvision rounds.
    np.testing.assert_array_equal(found[:, 0, 0], [0, 200, 200, 200, 0, 0])


def test_mixed_sizes_are_fine_with_a_crop(tmp_path):
    make(tmp_path, size=(100, 120))
    Image.fromarray(pixels(9, (90, 70))).save(tmp_path / "train" / "cat" / "other.png")
    dataset = load(tmp_path, suffix=",resize=32,crop=28")
    assert dataset.shape == (28, 28, 3)
    assert dataset.images[np.arange(7)].shape == (7, 28, 28, 3)
    refused(tmp_path, r"images of one size.*other.png is 70x90, .*0.png is 120x100")
    refused(tmp_path, r"images of one size.*other.png is 32x41", suffix=",resize=32")


def test_mixed_sizes_of_small_images_are_refused(tmp_path):
    make(tmp_path)
    Image.fromarray(pixels(9, (8, 9))).save(tmp_path / "train" / "dog" / "9.png")
    refused(tmp_path, r"folder:PATH,resize=256,crop=224; .*dog/9.png is 9x8, .*cat/0.png is 8x8")


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("LA", (40, 255), (40, 40, 40)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 257 * 90, (90, 90, 90)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
    ],
)
def test_every_image_becomes_rgb(tmp_path, mode, value, expected):
    make(tmp_path, per_class=1)
    deep = mode == "I;16"
    image = Image.fromarray(np.full((8, 8), value, np.uint16)) if deep else Image.new(mode, (8, 8), value)
    image.save(tmp_path / "train" / "cat" / ("0.tif" if mode == "CMYK" else "0.png"))
    if mode == "CMYK":
        (tmp_path / "train" / "cat" / "0.png").unlink()
    found = load(tmp_path).images.raw[0]
    np.testing.assert_array_equal(found, np.broadcast_to(np.array(expected, np.uint8), (8, 8, 3)))


def test_a_palette_with_transparency_becomes_rgb(tmp_path):
    make(tmp_path, per_class=1)
    image = Image.new("P", (8, 8), 0)
    image.putpalette([10, 20, 30] * 256)
    image.save(tmp_path / "train" / "cat" / "0.png", transparency=0)
    assert load(tmp_path).images.raw[0].min() == 255


def test_hidden_files_are_passed_over(tmp_path):
    make(tmp_path)
    (tmp_path / "train" / ".DS_Store").write_text("x")
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("x")
    assert len(load(tmp_path)) == 6


def test_an_empty_class_is_refused(tmp_path):
    make(tmp_path)
    (tmp_path / "train" / "eel").mkdir()
    refused(tmp_path, r"class without images: .*/train/eel is empty")


@pytest.mark.parametrize("split", ["train", "test"])
def test_splits_with_other_classes_are_refused(tmp_path, split):
    """Labels count the classes of one split: they would mean other classes in the other."""
    make(tmp_path)
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "eel")
    refused(tmp_path, r"the same classes in .* and .*, got 'cat' in one of them only", split)


def test_files_that_are_not_images_are_refused(tmp_path):
    make(tmp_path)
    notes = tmp_path / "train" / "cat" / "notes.txt"
    notes.write_text("x")
    refused(tmp_path, r"a file that is not an image: .*notes.txt$")
    notes.rename(tmp_path / "train" / "cat" / "notes.png")
    refused(tmp_path, r"a file that is not an image: .*notes.png$")


@pytest.mark.parametrize("size", [(8, 8), (120, 120)])
def test_a_truncated_image_is_refused_by_name(tmp_path, size):
    make(tmp_path, size=size)
    path = tmp_path / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match=r"an image that cannot be read: .*dog/1.png \(") as error:
        load(tmp_path).images[4]  # large images are read only now
    assert "\n" not in str(error.value)


def test_an_empty_file_is_refused_by_name(tmp_path):
    make(tmp_path)
    (tmp_path / "train" / "dog" / "1.png").write_bytes(b"")
    refused(tmp_path, r"not an image: .*dog/1.png")


def test_folders_of_another_form_are_refused(tmp_path):
    refused(tmp_path / "nothing", r"a sub-folder train .*nothing, which is not there")
    refused(tmp_path, r"a sub-folder test or val or validation .*, which has none", split="test")
    (tmp_path / "train").mkdir()
    refused(tmp_path, "one sub-folder per class, got .*, which is empty")
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "0.png")
    refused(tmp_path, r"one sub-folder per class in .*, got the file 0.png")
    refused(tmp_path, "split must be one of 'train', 'test', got 'val'", split="val")


@pytest.mark.parametrize("name", ["folder:", "folder:,crop=0", "folder:x,resize=0"])
def test_names_of_another_form_are_refused(name):
    with pytest.raises(InputError, match=r"must be (folder:PATH|at least 1)|which is not there"):
        registry.load(name, "train")
