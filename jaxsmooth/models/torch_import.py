"""Published PyTorch checkpoints as networks of this package. Torch itself is not needed: arrays come in.

The formats: Cohen et al. 2019, Salman et al. 2019, Jeong and Shin 2020 ({epoch, arch, state_dict, optimizer},
the network behind a normalisation layer that is not in the file), MACER (Zhai et al. 2020; {net, epoch}, no
normalisation), rs4a (Yang et al. 2020; a bare state_dict with the normalisation in it).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxsmooth import validation
from jaxsmooth.models import registry
from jaxsmooth.models.densenet import DenseNet
from jaxsmooth.models.layers import ConvNorm
from jaxsmooth.models.lenet import LeNet
from jaxsmooth.models.resnet import ResNet
from jaxsmooth.models.wide_resnet import WideResNet
from jaxsmooth.validation import InputError

# Mean and standard deviation per channel, as in the published code.
_IMAGENET_MEAN, _IMAGENET_SD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CIFAR10_MEAN, _CIFAR10_SD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": (_CIFAR10_MEAN, _CIFAR10_SD),
    "cifar10-mean-only": (_CIFAR10_MEAN, (1.0, 1.0, 1.0)),
    "imagenet": (_IMAGENET_MEAN, _IMAGENET_SD),
    "imagenet-mean-only": (_IMAGENET_MEAN, (1.0, 1.0, 1.0)),
    "none": ((0.0,), (1.0,)),
}

# What the files call the networks.
_ARCHS = {
    "cifar_densenet40": "cifar-densenet40",
    "cifar_resnet20": "cifar-resnet20",
    "cifar_resnet56": "cifar-resnet56",
    "cifar_resnet110": "cifar-resnet110",
    "imagenet32_resnet110": "cifar-resnet110",
    "lenet": "lenet",
    "resnet50": "resnet50",
}

# What the keys and shapes look like.
_KINDS = {
    "dense network of (6, 6, 6) layers with growth 12": "cifar-densenet40",
    "residual network of (3, 3, 3) basic blocks from 16 channels": "cifar-resnet20",
    "residual network of (9, 9, 9) basic blocks from 16 channels": "cifar-resnet56",
    "residual network of (18, 18, 18) basic blocks from 16 channels": "cifar-resnet110",
    "residual network of (3, 4, 6, 3) bottleneck blocks from 64 channels": "resnet50",
    "network of two convolutions and two linear layers": "lenet",
    "wide residual network of (4, 4, 4) blocks from 160 channels": "wide-resnet28-10",
    "wide residual network of (6, 6, 6) blocks from 32 channels": "wide-resnet40-2",
}


class Imported(NamedTuple):
    """What a file turned out to hold.

    Attributes:
        model: the network, with the weights of the file.
        spec: how to build it.
        normalization: one of :data:`NORMALIZATIONS`, or "in the file".
        arch: what the file calls the network, or None.
        epoch: of the training, or None.
    """

    model: nnx.Module
    spec: registry.ModelSpec
    normalization: str
    arch: str | None
    epoch: int | None


def convert(content: Any, normalization: str | None = None) -> Imported:
    """The network of a checkpoint file.

    Args:
        content: what the file holds, its tensors as arrays.
        normalization: what the network does with its input first, one of :data:`NORMALIZATIONS`; None where the
            file says it.

    Raises:
        InputError: for a file of none of the formats, an unknown network, keys that are missing or left over, shapes
            that do not fit, weights that are not finite, or a normalisation that has to be given.
    """
    if normalization is not None:
        validation.check_choice("normalization", normalization, tuple(NORMALIZATIONS))
    weights, arch, epoch, is_macer = _weights_of(content)
    # DataParallel puts a module of this name around whatever it holds.
    shorter = {key: ".".join(part for part in key.split(".") if part != "module") for key in weights}
    if len(set(shorter.values())) < len(weights):
        raise InputError("checkpoint must hold one network, got the same keys with and without 'module.'")
    weights = {shorter[key]: value for key, value in weights.items()}
    if "norm.mu" in weights and "norm.log_sig" in weights:
        if normalization is not None:
            raise InputError(f"normalization must not be given, the file has its own, got {normalization!r}")
        mean = tuple(map(float, weights.pop("norm.mu").ravel()))
        sd = tuple(map(float, np.exp(weights.pop("norm.log_sig").ravel())))
        normalization = "in the file"
    elif normalization is None and is_macer:
        normalization = "none"
    prefix = _prefix(weights)
    found = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    outside = [key for key in weights if not key.startswith(prefix)]
    name = _recognize(found, arch)
    network = registry.NETWORKS[name]
    channels = network.input_shape[-1]
    if normalization is None:
        raise InputError(
            f"normalization must be given, since the file does not say it: one of {', '.join(NORMALIZATIONS)} "
            "(Cohen and Jeong: cifar10 or imagenet; Salman: mostly cifar10-mean-only and imagenet-mean-only)"
        )
    if normalization != "in the file":
        mean, sd = (
            values * channels if len(values) == 1 else values for values in NORMALIZATIONS[normalization]
        )
    if not len(mean) == len(sd) == channels:
        raise InputError(
            f"normalization must have the {channels} channel(s) of {name}, got {normalization!r} with {len(mean)}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(sd).all() and min(sd) > 0.0):
        raise InputError(f"normalization must be finite, got mean {mean} and standard deviation {sd}")
    last = {"cifar-densenet40": "classifier.weight", "lenet": "fc2.weight"}.get(name, "fc.weight")
    if last not in found:
        raise InputError(f"checkpoint must have exactly the keys of {name}, got missing {prefix}{last}")
    if found[last].ndim != 2:
        raise _wrong_shape(name, prefix + last, found[last])
    if name == "lenet" and "fc1.weight" in found:
        found["fc1.weight"] = _flattened_channels_last(found["fc1.weight"])
    spec = registry.ModelSpec(name, len(found[last]), network.input_shape, mean, sd)
    model = registry.abstract(spec)
    _fill(model, found, prefix, outside, name)
    return Imported(model, spec, normalization, arch, epoch)


def _weights_of(content: Any) -> tuple[dict[str, np.ndarray], str | None, int | None, bool]:
    """State, arch, epoch and whether the file is one of MACER's."""
    if not isinstance(content, Mapping):
        raise InputError(
            f"checkpoint must hold a dictionary with the weights, got {validation.show(type(content).__name__)}"
        )
    place = next((name for name in ("state_dict", "net") if isinstance(content.get(name), Mapping)), None)
    state = content if place is None else content[place]
    strange = [str(key) for key, value in state.items() if not isinstance(value, np.ndarray)]
    if not state or strange:
        raise InputError(
            "checkpoint must hold weights under 'state_dict' or 'net', or be a dictionary of tensors, got "
            + (f"{_some(strange)} without a tensor" if strange else "an empty dictionary")
        )
    arch, epoch = (None, None) if place is None else (content.get("arch"), content.get("epoch"))
    return (
        {str(key): value for key, value in state.items()},
        arch if isinstance(arch, str) else None,
        epoch if isinstance(epoch, int) and epoch >= 0 else None,
        place == "net",
    )


def _prefix(weights: Mapping[str, np.ndarray]) -> str:
    """What stands before most keys of the network, such as "1." inside a Sequential."""
    start = re.compile(r"(|.*?\.)(conv1|bn1|layer\d+|block\d+|fc\d?|features|classifier)\.")
    prefixes = [match[1] for key in weights if (match := start.match(key))]
    return max(set(prefixes), key=prefixes.count) if prefixes else ""


def _recognize(found: Mapping[str, np.ndarray], arch: str | None) -> str:
    """Name of the network with such keys and shapes, cross-checked with what the file calls it."""

    def counts(pattern: str) -> tuple[int, ...]:
        """Number of blocks of each stage, from keys with a stage and a block number."""
        pairs = {match.groups() for key in found if (match := re.match(pattern, key))}
        stages = [stage for stage, _ in pairs]
        return tuple(stages.count(stage) for stage in sorted(set(stages)))

    def out_features(key: str) -> int:
        return found[key].shape[0] if key in found and found[key].ndim else 0

    blocks: tuple[int, ...]
    if blocks := counts(r"layer(\d+)\.(\d+)\."):
        style = "bottleneck" if "layer1.0.conv3.weight" in found else "basic"
        kind = f"residual network of {blocks} {style} blocks from {out_features('conv1.weight')} channels"
    elif blocks := counts(r"block(\d+)\.layer\.(\d+)\."):
        width = out_features("block1.layer.0.conv1.weight")
        kind = f"wide residual network of {blocks} blocks from {width} channels"
    elif blocks := counts(r"features\.block(\d+)\.layer(\d+)\."):
        growth = out_features("features.block1.layer1.brc_2.conv.weight")
        kind = f"dense network of {blocks} layers with growth {growth}"
    elif {key.rpartition(".")[0] for key in found} == {"conv1", "conv2", "fc1", "fc2"}:
        kind = "network of two convolutions and two linear layers"
    else:
        kind = f"network with keys such as {_some(list(found))}"
    if kind not in _KINDS:
        said = "" if arch is None else f" (the file calls it {arch!r})"
        raise InputError(f"checkpoint must hold one of {', '.join(_KINDS.values())}, got a {kind}{said}")
    name = _KINDS[kind]
    if arch in _ARCHS and _ARCHS[arch] != name:
        raise InputError(f"checkpoint must be what it says it is, {arch!r}, got the weights of {name}")
    return name


Layers = Iterator[tuple[nnx.Module, str]]


def _layers(model: nnx.Module) -> Layers:
    """Every layer with weights, and what PyTorch's state calls it."""
    if isinstance(model, ResNet):
        return _residual_layers(model)
    if isinstance(model, WideResNet):
        return _wide_layers(model)
    if isinstance(model, DenseNet):
        return _dense_layers(model)
    assert isinstance(model, LeNet)
    names = ("conv1", "conv2", "fc1", "fc2")
    return zip((model.conv1, model.conv2, model.hidden, model.linear), names, strict=True)


def _residual_layers(model: ResNet) -> Layers:
    yield from _conv_norm(model.stem, "conv1", "bn1")
    for block, place in zip(model.blocks, _places("layer{}.{}", model.stages), strict=True):
        for number in "123" if hasattr(block, "conv3") else "12":
            conv = getattr(block, f"conv{number}")
            yield from _conv_norm(conv, f"{place}.conv{number}", f"{place}.bn{number}")
        if block.shortcut is not None:
            yield from _conv_norm(block.shortcut, f"{place}.downsample.0", f"{place}.downsample.1")
    yield model.linear, "fc"


def _wide_layers(model: WideResNet) -> Layers:
    yield model.stem, "conv1"
    places = _places("block{}.layer.{}", (len(model.blocks) // 3,) * 3)
    for block, place in zip(model.blocks, places, strict=True):
        yield block.norm, f"{place}.bn1"
        yield from _conv_norm(block.conv1, f"{place}.conv1", f"{place}.bn2")
        yield block.conv2, f"{place}.conv2"
        if block.shortcut is not None:
            yield block.shortcut, f"{place}.convShortcut"
    yield model.norm, "bn1"
    yield model.linear, "fc"


def _dense_layers(model: DenseNet) -> Layers:
    yield model.stem, "features.conv0"
    for stage, block in enumerate(model.blocks, 1):
        for number, layer in enumerate(block, 1):
            place = f"features.block{stage}.layer{number}"
            yield layer.norm, f"{place}.brc_1.norm"
            yield from _conv_norm(layer.conv1, f"{place}.brc_1.conv", f"{place}.brc_2.norm")
            yield layer.conv2, f"{place}.brc_2.conv"
    yield model.norm, "features.norm_last"
    yield model.linear, "classifier"


def _conv_norm(layer: ConvNorm, conv: str, norm: str) -> Layers:
    assert layer.norm is not None
    yield layer.conv, conv
    yield layer.norm, norm


def _places(pattern: str, stages: tuple[int, ...]) -> list[str]:
    """Names of the blocks; PyTorch counts stages from 1 in residual networks, and blocks from 0."""
    return [pattern.format(stage, number) for stage, count in enumerate(stages, 1) for number in range(count)]


def _fill(
    model: nnx.Module, found: dict[str, np.ndarray], prefix: str, outside: list[str], name: str
) -> None:
    """Puts every array into its place; each place must get one, and each array must find one."""
    missing, used = [], set()
    for layer, place in _layers(model):
        for key, variable in _variables(layer, place):
            used.add(key)
            if key not in found:
                missing.append(prefix + key)
                continue
            array = _to_jax_layout(found[key], variable.shape)
            if array is None:
                raise _wrong_shape(name, prefix + key, found[key])
            if not np.all(np.isfinite(array)):
                raise InputError(f"checkpoint must have finite weights, got NaN or infinity in {prefix}{key}")
            variable.set_value(jnp.asarray(array))
    counters = {key for key in found if key.endswith(".num_batches_tracked")}
    left_over = outside + [prefix + key for key in found if key not in used and key not in counters]
    if missing or left_over:
        faults = [f"missing {_some(missing)}"] * bool(missing) + [f"left over {_some(left_over)}"] * bool(
            left_over
        )
        raise InputError(f"checkpoint must have exactly the keys of {name}, got {'; '.join(faults)}")


def _variables(layer: nnx.Module, place: str) -> Iterator[tuple[str, nnx.Variable]]:
    """PyTorch's keys of a layer, with the variables they belong to."""
    if isinstance(layer, nnx.BatchNorm):
        pairs = {
            "weight": layer.scale,
            "bias": layer.bias,
            "running_mean": layer.mean,
            "running_var": layer.var,
        }
    else:
        assert isinstance(layer, (nnx.Conv, nnx.Linear))
        pairs = {"weight": layer.kernel, "bias": layer.bias}
    for name, variable in pairs.items():
        if variable is not None:
            yield f"{place}.{name}", variable


def _to_jax_layout(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Kernels from [out, in, height, width] and [out, in] to [height, width, in, out] and [in, out].

    None where the shape does not fit.
    """
    array = np.asarray(array, np.float32)
    if array.ndim == 4:
        array = array.transpose(2, 3, 1, 0)
    elif array.ndim == 2:
        array = array.T
    return array if array.shape == shape else None


def _wrong_shape(name: str, key: str, array: np.ndarray) -> InputError:
    return InputError(f"checkpoint must have weights of {name}, got {key} of shape {list(array.shape)}")


def _flattened_channels_last(weight: np.ndarray) -> np.ndarray:
    """LeNet's first linear layer reads [50, 4, 4] in PyTorch and [4, 4, 50] here; [500, 800] in and out."""
    if weight.shape != (500, 800):
        return weight  # refused with the other shapes
    return weight.reshape(500, 50, 4, 4).transpose(0, 2, 3, 1).reshape(500, 800)


def _some(names: list[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
