"""``jaxsmooth import-torch``: logits equal to PyTorch's for every published format, one line for every bad file."""

import json
import re
import sys
import warnings

import jax
import numpy as np
import pytest

from jaxsmooth import InputError
from jaxsmooth.cli.main import main
from jaxsmooth.models import registry, torch_import
from jaxsmooth.training import checkpoints

torch = pytest.importorskip("torch")
from tests.models import torch_networks  # noqa: E402

CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NONE = ((0.0,), (1.0,))


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


def behind_normalization(net, prefix="1.", **more):
    """As Cohen, Salman and Jeong save: Sequential(normalisation, network), and the optimizer beside it."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    return {
        "epoch": 90,
        "state_dict": prefixed(net.state_dict(), prefix),
        "optimizer": optimizer.state_dict(),
        **more,
    }


def macer(net):
    return {"net": net.state_dict(), "epoch": 440}


def rs4a(net):
    mean, sd = (torch.tensor(values).reshape(3, 1, 1) for values in CIFAR10)
    return {
        **prefixed(net.state_dict(), "model.module."),
        "norm.module.mu": mean,
        "norm.module.log_sig": sd.log(),
    }


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


def call(capsys, *arguments):
    """Exit code, stdout and stderr of one call."""
    code = 0
    try:
        main(["import-torch", *map(str, arguments)])
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def options(out, data="cifar10", normalization="cifar10"):
    return (
        *("--out", out, "--sigma", 0.25, "--data", data),
        *(("--normalization", normalization) if normalization else ()),
    )


SLOW = pytest.mark.slow
FORMATS = [
    # name, classes, content, normalization option, what the network subtracts and divides by, arch
    pytest.param("cifar-resnet20", 10, "cohen", "cifar10", CIFAR10, "cifar_resnet20", id="cohen-cifar"),
    pytest.param("cifar-resnet110", 10, "macer", None, NONE, None, marks=SLOW, id="macer"),
    pytest.param("lenet", 10, "macer", None, NONE, None, id="macer-mnist"),
    pytest.param("lenet", 10, "cohen", "none", NONE, "lenet", id="jeong-mnist"),
    pytest.param(
        "cifar-densenet40", 10, "cohen", "cifar10", CIFAR10, "cifar_densenet40", id="jeong-densenet"
    ),
    pytest.param("wide-resnet40-2", 10, "rs4a", None, CIFAR10, None, id="rs4a"),
    pytest.param("resnet50", 1000, "parallel", "imagenet", IMAGENET, "resnet50", id="cohen-imagenet"),
    pytest.param(
        "resnet50",
        1000,
        "parallel",
        "imagenet-mean-only",
        (IMAGENET[0], (1.0,) * 3),
        "resnet50",
        marks=SLOW,
        id="salman-imagenet",
    ),
    pytest.param(
        "cifar-resnet110",
        10,
        "cohen",
        "cifar10-mean-only",
        (CIFAR10[0], (1.0,) * 3),
        "cifar_resnet110",
        marks=SLOW,
        id="salman-cifar",
    ),
    pytest.param(
        "cifar-resnet110",
        1000,
        "cohen",
        "cifar10",
        CIFAR10,
        "imagenet32_resnet110",
        marks=SLOW,
        id="salman-imagenet32",
    ),
    pytest.param("cifar-resnet56", 10, "cohen", "cifar10", CIFAR10, None, marks=SLOW, id="resnet56"),
    pytest.param("wide-resnet28-10", 10, "cohen", "cifar10", CIFAR10, None, marks=SLOW, id="wide-28-10"),
]


@pytest.mark.parametrize(
    ("name", "classes", "form", "normalization", "constants", "arch"),
    FORMATS,
)
def test_logits_equal_those_of_pytorch(capsys, tmp_path, name, classes, form, normalization, constants, arch):
    net = torch_networks.make(name, classes)
    content = {
        "cohen": lambda: behind_normalization(net, arch=arch),
        "parallel": lambda: behind_normalization(net, "1.module.", arch=arch),
        "macer": lambda: macer(net),
        "rs4a": lambda: rs4a(net),
    }[form]()
    file = save(tmp_path / "checkpoint.pth.tar", content)
    data = {10: "cifar10", 1000: "imagenet"}[classes]
    code, out, err = call(capsys, file, *options(tmp_path / "out", data, normalization))
    assert (code, err) == (0, "")
    assert f"imported {name} with {classes} classes" in out

    model, description = checkpoints.load_model(tmp_path / "out")
    assert description.model.name == name
    assert (description.data, description.sigma) == (data, 0.25)
    assert description.training["imported_from"] == "checkpoint.pth.tar"
    shape = description.model.input_shape
    images = np.random.default_rng(0).uniform(-0.5, 1.5, (3, *shape)).astype(np.float32)
    mean, sd = (torch.tensor(values).reshape(1, -1, 1, 1) for values in constants)
    with torch.no_grad():
        theirs = net((torch.from_numpy(images.transpose(0, 3, 1, 2)) - mean) / sd).numpy()
    apply_fn, params = registry.inference(model)
    ours = np.asarray(jax.jit(apply_fn)(params, images))
    assert theirs.std(axis=0).max() > 1e-3  # the images matter
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * max(1.0, np.abs(theirs).max()))


@pytest.fixture(scope="module")
def net():
    return torch_networks.make("cifar-resnet20")


@pytest.fixture(scope="module")
def good(net):
    return behind_normalization(net, arch="cifar_resnet20")


def refused(capsys, tmp_path, file, *arguments):
    """The one line that a refused call prints; nothing is written."""
    code, out, err = call(capsys, file, *(arguments or options(tmp_path / "out")))
    assert code == 2
    assert out == ""
    assert err.startswith("jaxsmooth import-torch: error: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    return err


def test_old_files_are_read(capsys, tmp_path, good):
    """The published files are from before PyTorch's zip format."""
    file = save(tmp_path / "c", good, _use_new_zipfile_serialization=False)
    code, _, err = call(capsys, file, *options(tmp_path / "out"))
    assert (code, err) == (0, "")


@pytest.mark.parametrize(("old", "share"), [(False, 0.6), (True, 0.6), (True, 0.001), (False, 0.0)])
def test_truncated_file(capsys, tmp_path, good, old, share):
    file = save(tmp_path / "c", good, _use_new_zipfile_serialization=not old)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    assert "is damaged or not one of PyTorch's" in refused(capsys, tmp_path, file)


def test_file_of_another_kind(capsys, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("not a checkpoint\n")
    err = refused(capsys, tmp_path, file)
    assert "is damaged or not one of PyTorch's" in err
    assert "weights_only" not in err  # PyTorch's own message advises to load the file unsafely
    assert "must be a file" in refused(capsys, tmp_path, tmp_path / "nowhere")
    assert "must be a file" in refused(capsys, tmp_path, tmp_path)


class Evil:
    """Unpickling it would write a file."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (exec, (f"open({str(self.target)!r}, 'w').close()",))


@pytest.mark.parametrize("old", [False, True])
def test_code_in_a_file_is_not_executed(capsys, tmp_path, good, old):
    target = tmp_path / "executed"
    file = save(
        tmp_path / "c",
        {**good, "extra": Evil(target)},
        _use_new_zipfile_serialization=not old,
    )
    err = refused(capsys, tmp_path, file)
    assert "got exec in" in err
    assert "was not executed" in err
    assert not target.exists()
    torch.load(file, weights_only=False)  # the file would have done it
    assert target.exists()


def test_normalization_must_be_given_where_the_file_does_not_say(capsys, tmp_path, good, net):
    file = save(tmp_path / "c", good)
    err = refused(capsys, tmp_path, file, *options(tmp_path / "out", normalization=None))
    assert "normalization must be given" in err
    assert "cifar10-mean-only" in err
    err = refused(capsys, tmp_path, file, *options(tmp_path / "out", normalization="cifar"))
    assert "normalization must be one of 'cifar10'" in err
    file = save(tmp_path / "r", rs4a(torch_networks.make("wide-resnet40-2")))
    assert "normalization must not be given" in refused(capsys, tmp_path, file)
    file = save(tmp_path / "l", macer(torch_networks.make("lenet")))
    assert "normalization must have the 1 channel(s) of lenet" in refused(capsys, tmp_path, file)


def changed(content, change):
    state = dict(content["state_dict"])
    change(state)
    return {**content, "state_dict": state}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("1.layer2.1.bn2.running_var"), "missing 1.layer2.1.bn2.running_var"),
        (lambda s: s.pop("1.fc.weight"), "missing 1.fc.weight"),
        (lambda s: s.pop("1.conv1.weight"), "from 0 channels"),
        (lambda s: s.update({"1.extra.weight": torch.zeros(3)}), "left over 1.extra.weight"),
        (lambda s: s.update({"0.mean": torch.zeros(3)}), "left over 0.mean"),
        (
            lambda s: s.update({"1.layer3.0.conv1.weight": torch.zeros(3, 3)}),
            "1.layer3.0.conv1.weight of shape [3, 3]",
        ),
        (lambda s: s.update({"1.module.conv1.weight": torch.zeros(3)}), "with and without 'module.'"),
        (lambda s: s.update({"1.bn1.bias": torch.full((16,), torch.nan)}), "NaN or infinity in 1.bn1.bias"),
        (lambda s: s.update({"1.bn1.bias": "text"}), "1.bn1.bias without a tensor"),
        (lambda s: s.clear(), "got an empty dictionary"),
    ],
)
def test_keys_and_shapes_that_do_not_fit(capsys, tmp_path, good, change, message):
    assert message in refused(capsys, tmp_path, save(tmp_path / "c", changed(good, change)))


@pytest.mark.parametrize("replacement", [None, np.float32(1.0), np.zeros(0), np.zeros((2, 2, 2, 2, 2))])
def test_every_damaged_key_is_refused_by_name(replacement):
    state = {key: value.numpy() for key, value in torch_networks.make("lenet").state_dict().items()}
    for key in state:
        damaged = {**state, key: np.asarray(replacement)}
        if replacement is None:
            del damaged[key]
        with pytest.raises(InputError, match=re.escape(key)):
            torch_import.convert({"net": damaged})


def test_normalisation_in_the_file_is_checked():
    state = {key: value.numpy() for key, value in torch_networks.make("lenet").state_dict().items()}
    with pytest.raises(InputError, match=r"normalization must have the 1 channel.*got 'in the file' with 3"):
        torch_import.convert({**state, "norm.mu": np.zeros(3), "norm.log_sig": np.zeros(3)})
    with pytest.raises(InputError, match="normalization must be finite"):
        torch_import.convert({**state, "norm.mu": np.zeros(1), "norm.log_sig": np.full(1, -np.inf)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold a dictionary with the weights, got 'list'"),
        ({"epoch": 3}, "epoch without a tensor"),
        ({"state_dict": {"transformer.weight": torch.zeros(2)}, "arch": "vit"}, "(the file calls it 'vit')"),
    ],
)
def test_files_without_a_known_network(capsys, tmp_path, content, message):
    assert message in refused(capsys, tmp_path, save(tmp_path / "c", content))


def test_another_architecture_than_the_file_says(capsys, tmp_path, net):
    file = save(tmp_path / "c", behind_normalization(net, arch="cifar_resnet110"))
    assert "'cifar_resnet110', got the weights of cifar-resnet20" in refused(capsys, tmp_path, file)
    shallow = torch_networks.Residual(torch_networks.Basic, (2, 2, 2, 2), 10)
    file = save(tmp_path / "c", behind_normalization(shallow, arch="resnet18"))
    err = refused(capsys, tmp_path, file)
    assert "got a residual network of (2, 2, 2, 2) basic blocks from 16 channels" in err


def test_another_number_of_classes(capsys, tmp_path, good):
    err = refused(capsys, tmp_path, save(tmp_path / "c", good), *options(tmp_path / "out", "imagenet"))
    assert "data must have the 10 classes of the network, got imagenet with 1000" in err


def test_other_bad_options(capsys, tmp_path, good):
    file = save(tmp_path / "c", good)
    out = tmp_path / "out"
    bad_sigma = ("--out", out, "--data", "cifar10", "--normalization", "cifar10", "--sigma", "-1")
    assert "sigma must be positive and finite, got -1.0" in refused(capsys, tmp_path, file, *bad_sigma)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("here")
    err = refused(capsys, tmp_path, file, *options(tmp_path / "full"))
    assert "out must be a new or an empty folder" in err
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["precious"]
    assert "could not write" in refused(
        capsys, tmp_path, file, *options(tmp_path / "full" / "precious" / "out")
    )


def test_without_pytorch(capsys, tmp_path, good, monkeypatch):
    file = save(tmp_path / "c", good)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "needs PyTorch: pip install 'jaxsmooth[torch]'" in refused(capsys, tmp_path, file)


@pytest.fixture
def mnist(monkeypatch):
    """Sixteen images, whose labels are what the network of :func:`lenet` says about them."""
    from jaxsmooth.data import registry as data_registry
    from jaxsmooth.data.dataset import Dataset

    images = np.random.default_rng(0).normal(size=(16, 28, 28, 1)).astype(np.float32)
    with torch.no_grad():
        labels = (
            torch_networks.make("lenet")(torch.from_numpy(images.transpose(0, 3, 1, 2))).argmax(1).numpy()
        )
    dataset = Dataset("mnist", "test", images, labels, tuple("0123456789"), (0.0,), (1.0,))
    monkeypatch.setattr(data_registry, "load", lambda name, split, data_dir: dataset)
    return dataset


@pytest.fixture
def lenet(tmp_path):
    return save(tmp_path / "c", macer(torch_networks.make("lenet")))


def test_other_commands_take_the_folder(capsys, tmp_path, mnist, lenet):
    """LeNet, for speed: import, then certify."""
    assert call(capsys, lenet, *options(tmp_path / "out", "mnist", None))[0] == 0
    main(
        [
            *("certify", "--checkpoint", str(tmp_path / "out"), "--out", str(tmp_path / "results")),
            *("--num-samples", "200", "--max", "2"),
        ]
    )
    manifest = json.loads((tmp_path / "results" / "manifest.json").read_text())
    assert "lenet" in json.dumps(manifest)


def test_check_measures_the_accuracy_and_warns_at_chance(capsys, tmp_path, mnist, lenet):
    arguments = ("--sigma", 1e-4, "--data", "mnist", "--check", 16)
    code, out, err = call(capsys, lenet, "--out", tmp_path / "right", *arguments)
    assert (code, err) == (0, "")
    assert "16 of 16 noised test images are classified correctly" in out
    mnist.labels[:] = (mnist.labels + 1) % 10
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        code, out, err = call(capsys, lenet, "--out", tmp_path / "wrong", *arguments)
    assert code == 0
    assert "0 of 16 noised test images are classified correctly, which is chance" in err


def test_check_with_data_that_do_not_fit(capsys, tmp_path, good, mnist):
    file = save(tmp_path / "c", good)
    err = refused(capsys, tmp_path, file, *options(tmp_path / "out"), "--check", 3)
    assert "data must fit the network cifar-resnet20" in err
    assert "check must be at least 1, got -1" in refused(
        capsys, tmp_path, file, *options(tmp_path / "out"), "--check", -1
    )
