"""Checkpoints on disk: the only module that knows Orbax.

A checkpoint folder holds ``checkpoint.json`` (what the network is, how it was trained, a fingerprint of the
newest weights), ``steps/NNNNNNNN`` (Orbax; weights and optimizer state) and ``metrics.jsonl``.
"""

import dataclasses
import hashlib
import json
from typing import Any

import jax
from etils import epath
from flax import nnx
from orbax.checkpoint import v1 as ocp

from jaxsmooth import files
from jaxsmooth.models import registry
from jaxsmooth.validation import InputError

FORMAT = "jaxsmooth-checkpoint"
VERSION = 1
DESCRIPTION = "checkpoint.json"
STEPS = "steps"


@dataclasses.dataclass(frozen=True)
class Description:
    """What a checkpoint folder says about itself.

    Attributes:
        model: how to build the network.
        data: name of the data set that it was trained on.
        sigma: standard deviation of the noise in training.
        training: all training options.
        data_fingerprint: of the training split.
        step: newest step on disk.
        sums: of the metrics over the steps of the epoch that it lies in, when it is not the end of one.
        fingerprint: of the weights at that step.
        shapes: of the weights, by place.
        files: SHA-256 of the files of that step.
    """

    model: registry.ModelSpec
    data: str
    sigma: float
    training: dict[str, Any]
    data_fingerprint: str = ""
    step: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""
    shapes: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)


def save(folder: epath.PathLike, description: Description, model: nnx.State, optimizer: Any) -> None:
    """Writes one step, then the description that points to it, then removes the steps before it.

    Args:
        folder: the checkpoint folder.
        description: with ``step`` set; what depends on the weights is filled in here.
        model: all variables of the network.
        optimizer: state of the optimizer, any pytree of arrays; None when training is over.
    """
    folder = _absolute(folder)
    writes = jax.process_index() == 0  # Orbax is called by all processes of a job, the rest is for one
    if writes:
        (folder / STEPS).mkdir(parents=True, exist_ok=True)
    target = folder / STEPS / f"{description.step:08d}"
    weights = nnx.to_pure_dict(model)
    try:
        if writes and target.exists():
            target.rmtree()
        parts = {"model": weights} | ({} if optimizer is None else {"optimizer": jax.tree.leaves(optimizer)})
        ocp.save_checkpointables(target, parts)
    except OSError as error:
        raise InputError(
            f"could not write {target}: {error.strerror or error}; earlier steps are intact"
        ) from None
    if not writes:
        return
    description = dataclasses.replace(
        description,
        fingerprint=registry.fingerprint(weights),
        shapes=_shapes(weights),
        files=_file_hashes(target),
    )
    text = json.dumps({"format": FORMAT, "version": VERSION, **dataclasses.asdict(description)}, indent=2)
    files.write_atomically(folder / DESCRIPTION, text + "\n")
    for old in sorted((folder / STEPS).iterdir()):
        if old.name != target.name:
            old.rmtree()


def exists(folder: epath.PathLike) -> bool:
    """Whether a folder holds a checkpoint."""
    return (epath.Path(folder) / DESCRIPTION).exists()


def describe(folder: epath.PathLike) -> Description:
    """Reads a checkpoint's description.

    Raises:
        InputError: for a folder without one, a damaged one, or one of a newer format.
    """
    path = epath.Path(folder) / DESCRIPTION
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"checkpoint must be a folder made by `jaxsmooth train`, got {folder}") from None
    except OSError as error:
        raise InputError(f"could not read {path}: {error.strerror or error}") from None
    except ValueError:
        raise InputError(f"checkpoint {folder} is damaged: {DESCRIPTION} is not valid JSON") from None
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise InputError(f"checkpoint {folder} is not one of jaxsmooth's: see {DESCRIPTION}")
    version = values.pop("version", None)
    if version != VERSION:
        raise InputError(f"checkpoint {folder} has format version {version}, this jaxsmooth reads {VERSION}")
    try:
        return Description(**{**values, "model": registry.ModelSpec.from_dict(values["model"])})
    except (KeyError, TypeError):
        raise InputError(f"checkpoint {folder} is damaged: {DESCRIPTION} lacks fields") from None


def load_model(folder: epath.PathLike) -> tuple[nnx.Module, Description]:
    """Rebuilds the network of a checkpoint with its weights, and checks their fingerprint.

    Raises:
        InputError: for a missing or damaged checkpoint, or weights of another architecture.
    """
    description = describe(folder)
    graphdef, state = nnx.split(registry.abstract(description.model))
    weights = _load(folder, description, {"model": nnx.to_pure_dict(state)})["model"]
    nnx.replace_by_pure_dict(state, weights)
    return nnx.merge(graphdef, state), description


def load_training(folder: epath.PathLike, model: nnx.State, optimizer: Any) -> tuple[nnx.State, Any]:
    """Weights and optimizer state at the newest step, in the structures of the arguments.

    Raises:
        InputError: as :func:`load_model`.
    """
    leaves, structure = jax.tree.flatten(optimizer)
    like = {"model": nnx.to_pure_dict(model), "optimizer": leaves}
    loaded = _load(folder, describe(folder), like)
    nnx.replace_by_pure_dict(model, loaded["model"])
    return model, jax.tree.unflatten(structure, loaded["optimizer"])


def _load(folder: epath.PathLike, description: Description, like: dict[str, Any]) -> dict[str, Any]:
    """Reads parts of a step, after checking files and shapes: Orbax's own errors run to pages."""
    path = _absolute(folder) / STEPS / f"{description.step:08d}"
    found = _file_hashes(path) if path.exists() else {}
    for name, digest in description.files.items():
        if found.get(name) != digest:
            state = "lacks" if name not in found else "has other bytes in"
            raise InputError(f"checkpoint {folder} is damaged: it {state} {STEPS}/{path.name}/{name}")
    wanted = _shapes(like["model"])
    for place in dict.fromkeys([*wanted, *description.shapes]):
        if wanted.get(place) != description.shapes.get(place):
            raise InputError(
                f"checkpoint {folder} is of another architecture than {description.model.name}: {place} has shape "
                f"{description.shapes.get(place)}, not {wanted.get(place)}"
            )
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), like
    )
    return ocp.load_checkpointables(path, abstract)


def _file_hashes(folder: epath.Path, prefix: str = "") -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    hashes: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            hashes |= _file_hashes(path, f"{prefix}{path.name}/")
        else:
            hashes[prefix + path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def _shapes(tree: Any) -> dict[str, list[int]]:
    return {
        jax.tree_util.keystr(place): list(leaf.shape)
        for place, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _absolute(folder: epath.PathLike) -> epath.Path:
    """Orbax refuses relative paths."""
    return epath.Path(folder).resolve()
