"""Data sets of tensorflow-datasets, from small ones written here: reading, writing them too, needs no TensorFlow."""

import io
import subprocess
import sys

import numpy as np
import pytest
from etils import epath
from PIL import Image

from jaxsmooth import InputError
from jaxsmooth.data import folders, prepared, registry
from jaxsmooth.data.dataset import LazyImages
from tests.data.folders_of_images import pixels


def encoded(image, kind="png"):
    """An image file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind)
    file.seek(0)
    return file


def write(data_dir, name, features, splits, class_names, version="3.0.2"):
    """Writes a data set of that name as ArrayRecord files; ``splits`` maps names to examples."""
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version(version)
            pkg_dir_path = epath.Path(data_dir)

            def _info(self):
                label = tfds.features.ClassLabel(names=class_names)
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict({**features, "label": label})
                )

            def _split_generators(self, _):
                return {split: self._generate_examples(split) for split in splits}

            def _generate_examples(self, split):
                yield from enumerate(splits[split])

    Builder.name = name
    Builder(data_dir=data_dir, file_format="array_record").download_and_prepare()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Ten images an epoch of CIFAR-10 and MNIST, six of ImageNet, under their real names and features."""
    from tensorflow_datasets import features as f

    root = tmp_path_factory.mktemp("tfds")
    cifar = {
        split: [
            {"id": f"{split}_{n:05d}", "image": encoded(pixels(n + seed, (32, 32))), "label": n % 3}
            for n in range(10)
        ]
        for split, seed in (("train", 0), ("test", 100))
    }
    write(root, "cifar10", {"id": f.Text(), "image": f.Image(shape=(32, 32, 3))}, cifar, ["a", "b", "c"])
    mnist = {"train": [{"image": encoded(pixels(n, (28, 28))[..., 0]), "label": n} for n in range(10)]}
    mnist["test"] = mnist["train"][:4]
    write(
        root,
        "mnist",
        {"image": f.Image(shape=(28, 28, 1))},
        mnist,
        [str(n) for n in range(10)],
        version="3.0.1",
    )

    def photographs():
        for n in range(6):
            file = encoded(pixels(n, (300 + 20 * n, 400)), "jpeg")
            yield {"file_name": f"ILSVRC2012_val_{9 - n:08d}.JPEG", "image": file, "label": (n + 1) % 2}

    write(
        root,
        "imagenet2012",
        {"file_name": f.Text(), "image": f.Image(encoding_format="jpeg")},
        {"train": photographs(), "validation": photographs()},
        ["n01440764", "n01443537"],
        version="5.1.0",
    )
    return root


def test_cifar10_comes_in_the_order_of_its_archive(data_dir):
    train, test = (registry.load("cifar10", split, data_dir) for split in ("train", "test"))
    np.testing.assert_array_equal(test.labels, np.arange(10) % 3)
    np.testing.assert_array_equal(test.images.raw, [pixels(n + 100, (32, 32)) for n in range(10)])
    np.testing.assert_array_equal(train.images[3], pixels(3, (32, 32)).astype(np.float32) / np.float32(255))
    assert (train.name, train.class_names, train.shape) == ("cifar10", ("a", "b", "c"), (32, 32, 3))
    assert train.mean == (0.4914, 0.4822, 0.4465)
    assert train.fingerprint != test.fingerprint == registry.load("cifar10", "test", data_dir).fingerprint


@pytest.mark.parametrize("name", [name for name, source in prepared.SOURCES.items() if source.crop is None])
def test_every_small_data_set_as_tensorflow_datasets_defines_it(tmp_path, name):
    """Version, features and classes are those of the library's own builder; only the images are made up."""
    import tensorflow_datasets as tfds

    source = prepared.SOURCES[name]
    real = tfds.builder(source.tfds_name, data_dir=tmp_path / "nothing", try_gcs=False)
    features = dict(real.info.features)
    label = features.pop("label")
    height, width, channels = features["image"].shape
    images = [pixels(n, (height, width))[..., :channels] for n in range(25)]
    labels = [(7 * n) % label.num_classes for n in range(25)]

    def examples(count):
        for n in range(count):
            example = {
                "id": f"test_{n:06d}",
                "coarse_label": n % 20,
                "image": encoded(images[n].squeeze()),
                "label": labels[n],
            }
            yield {key: example[key] for key in (*features, "label")}

    write(
        tmp_path,
        source.tfds_name,
        features,
        {"train": examples(3), "test": examples(25)},
        [str(n) for n in range(label.num_classes)],
        version=str(real.version),
    )
    test = registry.load(name, "test", tmp_path)
    assert (test.name, test.shape, len(test.class_names)) == (
        name,
        (height, width, channels),
        label.num_classes,
    )
    expected = {image.tobytes(): number for image, number in zip(images, labels, strict=True)}
    assert [expected[image.tobytes()] for image in test.images.raw] == list(test.labels)
    in_order = [image.tobytes() for image in test.images.raw] == list(expected)
    # The archives of MNIST and Fashion-MNIST number nothing.
    assert in_order == ("id" in features)
    assert len(test.mean) == len(test.sd) == channels


def test_greyscale_keeps_one_channel(data_dir):
    train = registry.load("mnist", "train", data_dir)
    assert train.shape == (28, 28, 1)
    for image, label in zip(train.images.raw, train.labels, strict=True):
        np.testing.assert_array_equal(image, pixels(int(label), (28, 28))[..., :1])
    assert (train.mean, train.sd) == ((0.1307,), (0.3081,))


def test_imagenet_is_read_lazily_by_class_then_file_name(data_dir):
    for _ in range(2):  # the second time from the order kept beside the files
        test = registry.load("imagenet", "test", data_dir)
        assert isinstance(test.images, LazyImages)
        assert test.shape == (224, 224, 3)
        np.testing.assert_array_equal(test.labels, [0, 0, 0, 1, 1, 1])
        # Class 0 has the odd numbers; the later ones have the smaller file names.
        for index, number in enumerate((5, 3, 1, 4, 2, 0)):
            original = folders.to_rgb(Image.open(encoded(pixels(number, (300 + 20 * number, 400)), "jpeg")))
            expected = np.asarray(folders.resize_and_crop(original, 256, 224))
            np.testing.assert_array_equal(test.images.read(index), expected)
            assert test.images.original(index).shape == (300 + 20 * number, 400, 3)
    assert test.images[np.array([1, 4])].shape == (2, 224, 224, 3)
    assert list((data_dir / "imagenet2012" / "5.1.0").glob("jaxsmooth-order-*"))
    assert len(test.fingerprint) == 64


def test_the_environment_says_where_data_sets_are(data_dir, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert len(registry.load("cifar10", "test")) == 10
    assert prepared.prepare("cifar10") == data_dir / "cifar10" / "3.0.2"  # what is there needs nothing


@pytest.mark.parametrize("name", prepared.SOURCES)
def test_a_missing_data_set_says_the_command_that_prepares_it(tmp_path, name):
    with pytest.raises(InputError) as error:
        registry.load(name, "test", tmp_path)
    assert str(error.value) == (
        f"data {name} is not in {tmp_path}; prepare it once with `jaxsmooth prepare {name} --data-dir {tmp_path}`"
    )


def test_preparing_without_tensorflow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match=r"TensorFlow.*: pip install 'jaxsmooth\[tfds\]'"):
        prepared.prepare("mnist", tmp_path)


def test_damaged_files_are_refused_in_one_line(tmp_path, data_dir):
    import shutil

    shutil.copytree(data_dir / "cifar10", tmp_path / "cifar10")
    version = tmp_path / "cifar10" / "3.0.2"
    (file,) = version.glob("*-test.*")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(
        InputError, match=r"data cifar10 in .* is damaged .*jaxsmooth prepare cifar10"
    ) as error:
        registry.load("cifar10", "test", tmp_path)
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(InputError, match="is damaged"):
        registry.load("cifar10", "test", tmp_path)
    (version / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        registry.load("cifar10", "test", tmp_path)


def test_a_newer_version_on_disk_is_the_one_that_is_read(tmp_path, data_dir):
    import shutil

    for version in ("3.0.2", "3.0.10"):
        shutil.copytree(data_dir / "cifar10" / "3.0.2", tmp_path / "cifar10" / version)
    assert prepared.prepare("cifar10", tmp_path).name == "3.0.10"


def test_reading_loads_no_tensorflow(data_dir):
    program = (
        "import sys, pathlib; from jaxsmooth.data import registry; "
        f"registry.load('cifar10', 'test', pathlib.Path({str(data_dir)!r})); print('tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
