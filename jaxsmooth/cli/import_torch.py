"""``jaxsmooth import-torch``: a published PyTorch checkpoint as a checkpoint folder."""

import dataclasses
import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from jaxsmooth import validation
from jaxsmooth.validation import InputError

# Where a wrong --data can be noticed before anything is certified.
_NUM_CLASSES = {
    "cifar10": 10,
    "cifar100": 100,
    "fashion-mnist": 10,
    "imagenet": 1000,
    "mnist": 10,
    "svhn": 10,
}


@dataclasses.dataclass(frozen=True)
class ImportTorch:
    """Turn a published PyTorch checkpoint into a checkpoint folder that the other commands take.

    Reads the files of Cohen, Salman, Jeong, MACER and rs4a, and finds out by itself which network they hold.
    Nothing in a file is executed. Needs PyTorch: pip install 'jaxsmooth[torch]'.

    Example: jaxsmooth import-torch checkpoint.pth.tar --out runs/cohen-0.25 --sigma 0.25 --data cifar10
    --normalization cifar10
    """

    file: Positional[Path]
    """The checkpoint, such as checkpoint.pth.tar."""
    out: Path
    """Checkpoint folder to write: new or empty."""
    sigma: float
    """Standard deviation of the noise that the network was trained with; the file does not say it."""
    data: str
    """Data set that it was trained on, such as cifar10 or imagenet."""
    normalization: str | None = None
    """What the network does with its input first: cifar10, cifar10-mean-only, imagenet, imagenet-mean-only or none.
    Needed unless the file says it (MACER and rs4a do). Salman's networks mostly subtract the mean only."""
    data_dir: Path | None = None
    """Where prepared data sets are, for --check; $TFDS_DATA_DIR or ~/tensorflow_datasets if not given."""
    check: int = 0
    """Measure the accuracy on so many noised test images first; needs the data set. Shows a wrong normalization."""


def run(options: ImportTorch) -> None:
    """Imports, and says what the file holds. Nothing is written unless all of it was understood."""
    # Slow imports wait until here, so that --help does not.
    import jax.numpy as jnp
    from flax import nnx

    from jaxsmooth.models import torch_import
    from jaxsmooth.training import checkpoints

    sigma = validation.check_positive("sigma", options.sigma)
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise InputError(f"out must be a new or an empty folder, got {options.out}, which holds something")
    imported = torch_import.convert(_read(options.file), options.normalization)
    spec = imported.spec
    classes = _NUM_CLASSES.get(options.data, spec.num_classes)
    if classes != spec.num_classes:
        raise InputError(
            f"data must have the {spec.num_classes} classes of the network, got {options.data} with {classes}"
        )
    measured = _check_accuracy(imported, options) if options.check else "accuracy not checked (see --check)"
    provenance = {
        "imported_from": options.file.name,
        "sha256": hashlib.sha256(options.file.read_bytes()).hexdigest(),
        "arch": imported.arch,
        "epoch": imported.epoch,
        "normalization": imported.normalization,
    }
    description = checkpoints.Description(spec, options.data, sigma, provenance, step=imported.epoch or 0)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"could not write {options.out}: {error.strerror or error}") from None
    # There is no optimizer state to keep, but Orbax refuses an empty tree.
    checkpoints.save(options.out, description, nnx.state(imported.model), [jnp.int32(0)])
    print(
        f"imported {spec.name} with {spec.num_classes} classes, normalisation {imported.normalization}, "
        f"into {options.out}; {measured}"
    )


def _check_accuracy(imported: Any, options: ImportTorch) -> str:
    """Accuracy on test images spread over the data set, one noised copy of each.

    Nothing in a file says whether its network divides by the standard deviation, or which data it is for; a
    network that is fed the wrong way answers at random.
    """
    import jax
    import numpy as np

    from jaxsmooth.data import registry as data_registry
    from jaxsmooth.models import registry
    from jaxsmooth.noise import Gaussian
    from jaxsmooth.training.loop import check_fits

    number = validation.check_integer("check", options.check, at_least=1)
    dataset = data_registry.load(options.data, "test", options.data_dir)
    check_fits(imported.spec, dataset)
    indices = np.unique(np.linspace(0, len(dataset) - 1, number).astype(int))
    apply_fn, params = registry.inference(imported.model)
    noise = Gaussian(options.sigma)

    @jax.jit
    def answer(params: Any, image: jax.Array, index: int) -> jax.Array:
        noised = image + noise.sample(jax.random.fold_in(jax.random.key(0), index), image.shape, image.dtype)
        return apply_fn(params, noised[None])[0].argmax()

    correct = sum(int(answer(params, dataset.images[i], i)) == int(dataset.labels[i]) for i in indices)
    if correct <= 2 * len(indices) / dataset.num_classes:
        warnings.warn(
            f"{correct} of {len(indices)} noised test images are classified correctly, which is chance: normalization "
            f"{imported.normalization}, sigma or data may be another one's",
            stacklevel=2,
        )
    return f"{correct} of {len(indices)} noised test images are classified correctly"


def _read(path: Path) -> Any:
    """What a file holds, its tensors as arrays; nothing in it is executed."""
    if not path.is_file():
        raise InputError(f"checkpoint must be a file, got {path}")
    try:
        import torch
    except ImportError:
        raise InputError("import-torch needs PyTorch: pip install 'jaxsmooth[torch]'") from None

    def as_arrays(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            # NumPy has no bfloat16.
            return (value.detach().float() if value.is_floating_point() else value.detach()).numpy()
        return {key: as_arrays(v) for key, v in value.items()} if isinstance(value, Mapping) else value

    try:
        return as_arrays(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # anything may come out of a damaged file
        message = str(error).strip()
        forbidden = re.search(r"GLOBAL ([\w.]+)", message)
        if forbidden:
            raise InputError(
                f"checkpoint must hold nothing but tensors and plain values, got {forbidden[1]} in {path}; "
                "it was not executed"
            ) from None
        # PyTorch's first lines advise to load the file unsafely.
        message = message.partition("WeightsUnpickler error:")[2].strip() or message or type(error).__name__
        reason = message.splitlines()[0][:120]
        raise InputError(f"checkpoint {path} is damaged or not one of PyTorch's: {reason}") from None
