"""The training loop: batches, steps, metrics, checkpoints."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx

from jaxsmooth import files, validation
from jaxsmooth.data.dataset import Dataset
from jaxsmooth.models import registry
from jaxsmooth.noise import Gaussian
from jaxsmooth.training import checkpoints, objectives


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of training. What is random depends on the seed and the step alone, so that resuming is exact.

    Attributes:
        sigma: standard deviation of the noise added to each image.
        epochs: passes over the training images.
        batch_size: images per step.
        optimizer: "sgd" (momentum 0.9) or "adamw".
        learning_rate: at the start; it falls to zero along a cosine.
        weight_decay: coefficient of the decay of the weights.
        seed: of the initial weights, the order of images and the noise.
        checkpoint_every: epochs between checkpoints.
    """

    sigma: float
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    seed: int
    checkpoint_every: int

    def check(self) -> None:
        """Raises InputError for an option outside its range."""
        validation.check_positive("sigma", self.sigma)
        validation.check_integer("epochs", self.epochs, at_least=1)
        validation.check_integer("batch_size", self.batch_size, at_least=1)
        validation.check_choice("optimizer", self.optimizer, ("sgd", "adamw"))
        validation.check_positive("learning_rate", self.learning_rate)
        validation.check_not_negative("weight_decay", self.weight_decay)
        validation.check_integer("seed", self.seed, at_least=0)
        validation.check_integer("checkpoint_every", self.checkpoint_every, at_least=1)


class Metrics(dict[str, float]):
    """Means over one epoch: epoch, step, loss, accuracy, learning_rate."""


def train(
    spec: registry.ModelSpec,
    dataset: Dataset,
    options: Options,
    out: epath.PathLike,
    on_epoch: Callable[[Metrics], None] = lambda _: None,
) -> nnx.Module:
    """Trains a network with Gaussian augmentation and leaves a checkpoint folder; resumes one left unfinished.

    Args:
        spec: the network.
        dataset: training split.
        options: see :class:`Options`.
        out: checkpoint folder, new, empty or one of the same network, data and options.
        on_epoch: called with the metrics of each finished epoch.

    Returns:
        The trained network.

    Raises:
        InputError: for an option outside its range, a data set that does not fit the network, or a folder that holds
            something else.
    """
    options.check()
    check_fits(spec, dataset)
    out = epath.Path(out)
    num_batches = len(dataset) // options.batch_size
    if num_batches == 0:
        raise validation.InputError(
            f"batch_size must be at most the {len(dataset)} training images, got {options.batch_size}"
        )
    description = checkpoints.Description(spec, dataset.name, options.sigma, dataclasses.asdict(options))
    schedule = optax.cosine_decay_schedule(options.learning_rate, options.epochs * num_batches)
    optimizer = _optimizer(options, schedule)
    graphdef, params, rest = nnx.split(registry.build(spec, options.seed), nnx.Param, ...)  # type: ignore[misc]
    opt_state = optimizer.init(params)
    first_epoch = 0
    if checkpoints.exists(out):
        _check_same(out, checkpoints.describe(out), description)
        state, opt_state = checkpoints.load_training(out, nnx.merge_state(params, rest), opt_state)
        params, rest = nnx.split_state(state, nnx.Param, ...)
        first_epoch = checkpoints.describe(out).step // num_batches
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise validation.InputError(
            f"out must be a new, an empty or a checkpoint folder, got {out}, which holds something else"
        )
    step_fn = _make_step(graphdef, optimizer, Gaussian(options.sigma))
    key = jax.random.key(options.seed)
    for epoch in range(first_epoch, options.epochs):
        collected = []
        for i, (images, labels) in enumerate(batches(dataset, options.batch_size, options.seed, epoch)):
            step_key = jax.random.fold_in(key, epoch * num_batches + i)
            params, rest, opt_state, loss = step_fn(params, rest, opt_state, step_key, images, labels)
            collected.append(loss)
        losses, accuracies = (np.array([float(v) for v in column]) for column in zip(*collected, strict=True))
        step = (epoch + 1) * num_batches
        metrics = Metrics(
            epoch=epoch + 1,
            step=step,
            loss=float(losses.mean()),
            accuracy=float(accuracies.mean()),
            learning_rate=float(schedule(step - 1)),
        )
        if not np.isfinite(losses).all():
            last = (
                f"the checkpoint of step {checkpoints.describe(out).step} is kept"
                if checkpoints.exists(out)
                else ("no checkpoint was written yet")
            )
            raise validation.InputError(
                f"learning_rate must be small enough to train, got {options.learning_rate}: the loss was "
                f"{losses[~np.isfinite(losses)][0]} in epoch {epoch + 1}; {last}"
            )
        if (epoch + 1) % options.checkpoint_every == 0 or epoch + 1 == options.epochs:
            description = dataclasses.replace(description, step=step)
            checkpoints.save(out, description, nnx.merge_state(params, rest), opt_state)
        _append_metrics(out, metrics)
        on_epoch(metrics)
    return nnx.merge(graphdef, params, rest)


def batches(
    dataset: Dataset, batch_size: int, seed: int, epoch: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Full batches of one epoch, in an order that depends on the seed and the epoch; the remainder is left out."""
    order = np.random.default_rng((seed, epoch)).permutation(len(dataset))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        yield dataset.images[chosen], dataset.labels[chosen]


def check_fits(spec: registry.ModelSpec, dataset: Dataset) -> None:
    """Refuses a data set whose images or classes are not those that the network was made for."""
    if tuple(spec.input_shape) != tuple(dataset.shape) or spec.num_classes != dataset.num_classes:
        raise validation.InputError(
            f"data must fit the network {spec.name}, made for images {list(spec.input_shape)} and {spec.num_classes} "
            f"classes, got {dataset.name} with images {list(dataset.shape)} and {dataset.num_classes} classes"
        )


def _optimizer(options: Options, schedule: optax.Schedule) -> optax.GradientTransformation:
    if options.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=options.weight_decay)
    return optax.chain(optax.add_decayed_weights(options.weight_decay), optax.sgd(schedule, momentum=0.9))


def _make_step(graphdef: Any, optimizer: optax.GradientTransformation, noise: Gaussian) -> Callable[..., Any]:
    @jax.jit
    def step(
        params: Any, rest: Any, opt_state: Any, key: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[Any, Any, Any, objectives.Loss]:
        def loss_fn(params: Any) -> tuple[jax.Array, tuple[objectives.Loss, Any]]:
            model = nnx.merge(graphdef, params, rest)
            loss = objectives.gaussian_augmentation(model, key, jnp.asarray(images), labels, noise=noise)
            return loss.value, (loss, nnx.state(model, nnx.Not(nnx.Param)))

        grads, (loss, new_rest) = jax.grad(loss_fn, has_aux=True)(params)
        updates, new_opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), new_rest, new_opt_state, loss

    return step


def _check_same(out: epath.Path, existing: checkpoints.Description, wanted: checkpoints.Description) -> None:
    def determining(description: checkpoints.Description) -> dict[str, Any]:
        values = json.loads(json.dumps(dataclasses.asdict(description)))
        return {
            "model": values["model"],
            "data": values["data"],
            "training": {k: v for k, v in values["training"].items() if k != "checkpoint_every"},
        }

    files.check_same(out, determining(existing), determining(wanted))


def _append_metrics(out: epath.Path, metrics: Metrics) -> None:
    path = out / "metrics.jsonl"
    out.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(metrics) + "\n")
