"""One way to name, build and use networks."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxsmooth import validation
from jaxsmooth.models import densenet, products, resnet, vit, wide_resnet
from jaxsmooth.models.digits_cnn import DigitsCNN
from jaxsmooth.models.layers import fold_batch_norm
from jaxsmooth.models.lenet import LeNet
from jaxsmooth.sampling import ApplyFn

DTYPES = ("float32", "bfloat16")


class Network(NamedTuple):
    """A kind of network.

    Attributes:
        make: ``make(num_classes, input_shape, mean, sd, rngs=...)`` builds one.
        num_classes: number of classes in its usual use.
        input_shape: [height, width, channels] there.
        origin: where it comes from.
    """

    make: Callable[..., nnx.Module]
    num_classes: int
    input_shape: tuple[int, int, int]
    origin: str


_CIFAR = (32, 32, 3)
_IMAGENET = (224, 224, 3)
NETWORKS: dict[str, Network] = {
    "cifar-densenet40": Network(densenet.cifar_densenet40, 10, _CIFAR, "Huang 2017; Jeong & Shin 2020"),
    "cifar-resnet20": Network(resnet.cifar_resnet20, 10, _CIFAR, "He 2016; Cohen 2019"),
    "cifar-resnet56": Network(resnet.cifar_resnet56, 10, _CIFAR, "He 2016"),
    "cifar-resnet110": Network(resnet.cifar_resnet110, 10, _CIFAR, "He 2016; Cohen 2019"),
    "digits-cnn": Network(DigitsCNN, 10, (8, 8, 1), "the demo"),
    "lenet": Network(LeNet, 10, (28, 28, 1), "LeCun 1998; Zhai 2020"),
    "resnet50": Network(resnet.resnet50, 1000, _IMAGENET, "He 2016; Cohen 2019"),
    "vit-b16": Network(vit.vit_b16, 1000, _IMAGENET, "Dosovitskiy 2021"),
    "vit-s16": Network(vit.vit_s16, 1000, _IMAGENET, "Touvron 2021"),
    "wide-resnet28-10": Network(wide_resnet.wide_resnet28_10, 10, _CIFAR, "Zagoruyko & Komodakis 2016"),
    "wide-resnet40-2": Network(
        wide_resnet.wide_resnet40_2, 10, _CIFAR, "Zagoruyko & Komodakis 2016; Yang 2020"
    ),
}


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build a network, apart from its weights; kept beside every checkpoint.

    Attributes:
        name: one of :func:`names`.
        num_classes: number of classes.
        input_shape: [height, width, channels].
        mean: per channel, of the normalisation layer inside the network.
        sd: per channel.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """The inverse of ``dataclasses.asdict``, after a trip through JSON.

        Raises:
            InputError: for missing or unknown fields.
        """
        try:
            return cls(
                str(values["name"]),
                int(values["num_classes"]),
                *(tuple(values[name]) for name in ("input_shape", "mean", "sd")),
            )
        except (KeyError, TypeError, ValueError):
            raise validation.InputError(f"model is not described completely, got {values}") from None


class Inference(NamedTuple):
    """A network as the two arguments that sampling takes.

    Attributes:
        apply_fn: ``(params, inputs[batch, ...]) -> logits[batch, num_classes]``, in evaluation mode.
        params: its weights.
    """

    apply_fn: ApplyFn
    params: Any


def names() -> list[str]:
    """Names of the networks that :func:`build` knows."""
    return sorted(NETWORKS)


def build(spec: ModelSpec, seed: int = 0) -> nnx.Module:
    """A network with fresh weights.

    Raises:
        InputError: for an unknown name, or an input shape that the network cannot take.
    """
    validation.check_choice("model", spec.name, names())
    return NETWORKS[spec.name].make(
        spec.num_classes, spec.input_shape, spec.mean, spec.sd, rngs=nnx.Rngs(seed)
    )


def abstract(spec: ModelSpec) -> nnx.Module:
    """The same network with shapes in place of weights, to be filled: drawing random weights only to replace them costs
    several seconds of compilation.

    Raises:
        InputError: as :func:`build`.
    """
    return nnx.eval_shape(lambda: build(spec))


def evaluation_view(model: nnx.Module) -> nnx.Module:
    """The same network with deterministic layers and running statistics switched on.

    A network left in training mode makes every row depend on its batch, and a certificate from it is worthless.
    """
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def inference(model: nnx.Module, dtype: str = "float32") -> Inference:
    """A network in evaluation mode with its batch normalisation folded into the convolutions, for certification.

    On a CPU convolutions in bfloat16 become matrix products where these are faster (:mod:`jaxsmooth.models.products`).

    The certificate is about the function that ran, so its arithmetic is pinned: "float32" asks for the highest
    precision of convolutions and matrix products (otherwise GPUs use TF32 and TPUs bfloat16 for them); "bfloat16"
    casts the parameters here and the inputs inside ``apply_fn``, after the noise was added in float32. Folding, the
    normalisation layer and softmax are in float32 in both.

    Args:
        model: any NNX network.
        dtype: one of :data:`DTYPES`.

    Returns:
        ``apply_fn`` and ``params``; the logits are float32 in both.

    Raises:
        InputError: for another dtype.
    """
    validation.check_choice("inference_dtype", dtype, DTYPES)
    folded = fold_batch_norm(model)
    products.use_products(folded)
    graphdef, params = nnx.split(evaluation_view(folded))
    compute = jnp.dtype(dtype)
    precision = "highest" if dtype == "float32" else "default"

    def cast(leaf: Any) -> Any:
        return leaf.astype(compute) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    def apply_fn(params: Any, inputs: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(precision):
            return nnx.merge(graphdef, params)(inputs.astype(compute)).astype(jnp.float32)

    return Inference(apply_fn, jax.tree.map(cast, params))


def fingerprint(params: Any) -> str:
    """A hash of every array of a pytree, with its place, shape and dtype."""
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, leaf in leaves:
        key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if key else leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
