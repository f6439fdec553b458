"""One way to name, build and use networks."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from jaxsmooth import validation
from jaxsmooth.models import resnet
from jaxsmooth.models.digits_cnn import DigitsCNN
from jaxsmooth.models.layers import fold_batch_norm
from jaxsmooth.sampling import ApplyFn

_NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "cifar-resnet20": resnet.cifar_resnet20,
    "cifar-resnet56": resnet.cifar_resnet56,
    "cifar-resnet110": resnet.cifar_resnet110,
    "digits-cnn": DigitsCNN,
    "resnet50": resnet.resnet50,
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
    return sorted(_NETWORKS)


def build(spec: ModelSpec, seed: int = 0) -> nnx.Module:
    """A network with fresh weights.

    Raises:
        InputError: for an unknown name.
    """
    validation.check_choice("model", spec.name, names())
    return _NETWORKS[spec.name](spec.num_classes, spec.input_shape, spec.mean, spec.sd, rngs=nnx.Rngs(seed))


def inference(model: nnx.Module) -> Inference:
    """A network in evaluation mode with its batch normalisation folded into the convolutions, for certification.

    Deterministic layers and running statistics are switched on: a network left in training mode makes
    every row depend on its batch, and a certificate from it is worthless.
    """
    view = nnx.view(
        fold_batch_norm(model), deterministic=True, use_running_average=True, raise_if_not_found=False
    )
    graphdef, params = nnx.split(view)

    def apply_fn(params: Any, inputs: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, params)(inputs)

    return Inference(apply_fn, params)


def fingerprint(params: Any) -> str:
    """A hash of every array of a pytree, with its place, shape and dtype."""
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    for path, leaf in leaves:
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
