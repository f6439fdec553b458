"""The training loop: batches, steps over all devices, metrics, checkpoints."""

import dataclasses
import json
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxsmooth import files, validation
from jaxsmooth.data import augmentation
from jaxsmooth.data.batches import Batches
from jaxsmooth.data.dataset import Dataset, LazyImages, to_float
from jaxsmooth.models import registry
from jaxsmooth.noise import Gaussian
from jaxsmooth.signals import Signals
from jaxsmooth.training import checkpoints, objectives
from jaxsmooth.validation import InputError

METRICS = "metrics.jsonl"
SCHEDULES = ("cosine", "step")
COMPUTE_DTYPES = ("float32", "bfloat16")

LOCK = "lock"
# What a training leaves that ends before its first checkpoint.
_BEFORE_A_CHECKPOINT = {LOCK, METRICS, checkpoints.STEPS}

_BATCH_AXIS = "batch"
# How many steps may be on their way before the host looks at a loss.
_STEPS_IN_FLIGHT = 2
_STEPS_BETWEEN_TALKS = 16
# Options that change no number, so that they may differ between the parts of a resumed training.
_MACHINE_OPTIONS = ("checkpoint_every", "checkpoint_seconds", "num_workers")
_KEY_OF_THE_CHECK = 2**31 - 1  # folded in where training folds in its step


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of training. What is random depends on the seed and the step alone, so that resuming is exact.

    Attributes:
        sigma: standard deviation of the noise added to each image.
        epochs: passes over the training images.
        batch_size: images per step, over all devices and hosts together.
        optimizer: "sgd" (momentum 0.9) or "adamw".
        learning_rate: its largest value.
        weight_decay: coefficient of the decay of the weights.
        seed: of the initial weights, the order of images, their augmentation and the noise.
        checkpoint_every: epochs between checkpoints.
        checkpoint_seconds: a checkpoint is also written in the middle of an epoch when the last is this old.
        schedule: "cosine" lets the learning rate fall to zero along a cosine; "step" multiplies it by 0.1 at the
            start of each of the ``decay_epochs``, counted from 0.
        decay_epochs: for the schedule "step".
        warmup_epochs: over these first epochs the learning rate rises in a straight line.
        augmentation: "none", "crop-flip" (CIFAR) or "resized-crop-flip" (ImageNet).
        compute_dtype: in which the network computes, "float32" or "bfloat16"; weights, noise and the loss stay float32.
        held_out: training images, chosen by the seed, that are kept apart for the check of smoothed accuracy.
        check_every: epochs between checks.
        check_samples: noised copies of each image kept apart, whose majority vote is its prediction.
        num_workers: processes that read and augment; 0 reads in threads.
    """

    sigma: float
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    seed: int
    checkpoint_every: int
    checkpoint_seconds: float = 600.0
    schedule: str = "cosine"
    decay_epochs: tuple[int, ...] = ()
    warmup_epochs: int = 0
    augmentation: str = "none"
    compute_dtype: str = "float32"
    held_out: int = 0
    check_every: int = 1
    check_samples: int = 32
    num_workers: int = 0

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
        validation.check_positive("checkpoint_seconds", self.checkpoint_seconds)
        validation.check_choice("schedule", self.schedule, SCHEDULES)
        for epoch in self.decay_epochs:
            validation.check_integer("decay_epochs", epoch, at_least=1)
        if bool(self.decay_epochs) != (self.schedule == "step"):
            raise InputError(
                "decay_epochs must be given with the schedule 'step', and only with it, "
                f"got {list(self.decay_epochs)} with {self.schedule!r}"
            )
        validation.check_integer("warmup_epochs", self.warmup_epochs, at_least=0, at_most=self.epochs)
        validation.check_choice("augmentation", self.augmentation, augmentation.AUGMENTATIONS)
        validation.check_choice("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        validation.check_integer("held_out", self.held_out, at_least=0)
        validation.check_integer("check_every", self.check_every, at_least=1)
        validation.check_integer("check_samples", self.check_samples, at_least=1)
        validation.check_integer("num_workers", self.num_workers, at_least=0)


class Metrics(dict[str, float]):
    """Means over one epoch: epoch, step, loss, accuracy, learning_rate; smoothed_accuracy where it was checked."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        step: steps done.
        num_steps: steps of the whole training.
        resumed: steps that were done when this run began.
        loss: of the step.
        seconds: since the first step of this run was done.
    """

    step: int
    num_steps: int
    resumed: int
    loss: float
    seconds: float


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; a checkpoint was written.

    Attributes:
        signal_number: which.
        step: steps done.
        num_steps: steps of the whole training.
    """

    def __init__(self, signal_number: int, step: int, num_steps: int):
        super().__init__(signal.Signals(signal_number).name)
        self.signal_number, self.step, self.num_steps = signal_number, step, num_steps


def train(
    spec: registry.ModelSpec,
    dataset: Dataset,
    options: Options,
    out: epath.PathLike,
    on_epoch: Callable[[Metrics], None] = lambda _: None,
    on_step: Callable[[Progress], None] = lambda _: None,
    num_devices: int | None = None,
) -> nnx.Module:
    """Trains a network with Gaussian augmentation and leaves a checkpoint folder; resumes one left unfinished.

    Every batch is dealt out over all devices of all hosts. The program is that of one device, so that batch
    normalisation sees the whole batch and the losses do not depend on the number of devices, up to rounding.

    Args:
        spec: the network.
        dataset: training split.
        options: see :class:`Options`.
        out: checkpoint folder, new, empty or one of the same network, data and options.
        on_epoch: called with the metrics of each finished epoch.
        on_step: called when the loss of a step has arrived.
        num_devices: how many devices to use; when None, as many as divide the batch evenly.

    Returns:
        The trained network.

    Raises:
        InputError: for an option outside its range, a data set that does not fit the network, a folder that holds
            something else, or a loss or gradient that is not finite; the last checkpoint is kept then.
        Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
    """
    options.check()
    check_fits(spec, dataset)
    out = epath.Path(out)
    batches, held_out = _split(dataset, options)
    mesh = _mesh(options.batch_size, num_devices)
    num_batches, num_steps = batches.per_epoch, options.epochs * batches.per_epoch
    description = checkpoints.Description(
        spec, dataset.name, options.sigma, dataclasses.asdict(options), data_fingerprint=dataset.fingerprint
    )
    schedule = learning_rates(options, num_batches)
    optimizer = _optimizer(options, schedule)
    graphdef, params, rest = nnx.split(registry.build(spec, options.seed), nnx.Param, ...)  # type: ignore[misc]
    opt_state = optimizer.init(params)
    sums: dict[str, float] = {}
    first_step = 0
    if _is_resumed(out, description):
        if checkpoints.describe(out).step >= num_steps:
            return checkpoints.load_model(out)[0]
        state, opt_state = checkpoints.load_training(out, nnx.merge_state(params, rest), opt_state)
        params, rest = nnx.split_state(state, nnx.Param, ...)
        existing = checkpoints.describe(out)
        first_step, sums = existing.step, dict(existing.sums)
    step_fn = _make_step(graphdef, optimizer, options)
    split = NamedSharding(mesh, PartitionSpec(_BATCH_AXIS))
    params, rest, opt_state = _replicate((params, rest, opt_state), mesh)
    log = _MetricsLog(out, first_step)
    saved_at = time.monotonic()
    started: float | None = None
    in_flight: deque[tuple[int, objectives.Loss]] = deque()

    def receive() -> None:
        nonlocal started
        number, loss = in_flight.popleft()
        values = {"loss": float(loss.value), "accuracy": float(loss.accuracy)}
        _check_finite(out, options, values["loss"], float(loss.gradient_norm), 1 + number // num_batches)
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        started = started or time.monotonic()
        on_step(Progress(number + 1, num_steps, first_step, values["loss"], time.monotonic() - started))

    def save(step: int) -> None:
        nonlocal saved_at
        checkpoints.save(
            out,
            dataclasses.replace(description, step=step, sums=dict(sums)),
            nnx.merge_state(params, rest),
            opt_state if step < num_steps else None,  # half of the size, and of no use any more
        )
        if jax.process_count() > 1:
            # One process writes the description: the others must find it when they look.
            multihost_utils.sync_global_devices("checkpoint")
        saved_at = time.monotonic()

    reading = batches.iterate(first_step, num_steps, options.num_workers)
    lock: AbstractContextManager[None] = nullcontext()
    if jax.process_index() == 0:  # it writes for all hosts
        lock = files.exclusive(out / LOCK, f"got {out}: another run is writing there", remove=True)
    with lock, Signals() as signals, closing(reading):
        for step, batch in enumerate(reading, start=first_step):
            images, labels = (jax.make_array_from_process_local_data(split, part) for part in batch)
            params, rest, opt_state, loss = step_fn(params, rest, opt_state, np.int32(step), images, labels)
            in_flight.append((step, loss))
            while len(in_flight) > _STEPS_IN_FLIGHT:
                receive()
            done = step + 1
            ends_epoch = done % num_batches == 0
            stop, old = _together(
                done, signals.received, time.monotonic() - saved_at > options.checkpoint_seconds
            )
            if not (ends_epoch or stop or old):
                continue
            while in_flight:
                receive()
            if ends_epoch:
                epoch = done // num_batches
                metrics = Metrics(epoch=epoch, step=done)
                metrics |= {name: total / num_batches for name, total in sums.items()}
                metrics["learning_rate"] = float(schedule(step))
                sums.clear()
                if options.held_out and (epoch % options.check_every == 0 or done == num_steps):
                    metrics["smoothed_accuracy"] = smoothed_accuracy(
                        nnx.merge(graphdef, params, rest), held_out, options, mesh
                    )
                log.append(metrics)
            if stop or old or done == num_steps or (done // num_batches) % options.checkpoint_every == 0:
                save(done)
            if ends_epoch:
                on_epoch(metrics)
            if stop and done < num_steps:
                raise Interrupted(stop, done, num_steps)
    return nnx.merge(graphdef, params, rest)


def check_fits(spec: registry.ModelSpec, dataset: Dataset) -> None:
    """Refuses a data set whose images or classes are not those that the network was made for."""
    if tuple(spec.input_shape) != tuple(dataset.shape) or spec.num_classes != dataset.num_classes:
        raise InputError(
            f"data must fit the network {spec.name}, made for images {list(spec.input_shape)} and {spec.num_classes} "
            f"classes, got {dataset.name} with images {list(dataset.shape)} and {dataset.num_classes} classes"
        )


def learning_rates(options: Options, num_batches: int) -> optax.Schedule:
    """The learning rate at each step.

    Args:
        options: of the training.
        num_batches: steps of an epoch.

    Example:
        >>> options = Options(0.25, 90, 256, "sgd", 0.1, 1e-4, 0, 1, schedule="step", decay_epochs=(30, 60))
        >>> rates = learning_rates(options, 10)
        >>> [round(float(rates(step)), 6) for step in (0, 299, 300, 600)]
        [0.1, 0.1, 0.01, 0.001]
    """
    warmup = options.warmup_epochs * num_batches
    if options.schedule == "step":
        borders = {epoch * num_batches - warmup: 0.1 for epoch in options.decay_epochs}
        main = optax.piecewise_constant_schedule(options.learning_rate, borders)
    else:
        main = optax.cosine_decay_schedule(
            options.learning_rate, max(1, options.epochs * num_batches - warmup)
        )
    if not warmup:
        return main
    rising = optax.linear_schedule(options.learning_rate / warmup, options.learning_rate, warmup - 1)
    return optax.join_schedules([rising, main], [warmup])


def smoothed_accuracy(
    model: nnx.Module, part: tuple[np.ndarray, np.ndarray], options: Options, mesh: Mesh
) -> float:
    """Share of images whose class is the majority vote over noised copies of them; an estimate, no certificate.

    Args:
        model: the network, with its running statistics.
        part: images [num_images, ...], uint8 or float32 in [0, 1], and labels.
        options: sigma, ``check_samples`` and the seed.
        mesh: the devices of the training.
    """
    images, labels = part
    graphdef, state = nnx.split(
        nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    )
    rows = options.batch_size
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(_BATCH_AXIS))
    votes_fn = jax.jit(partial(_votes, graphdef, options), out_shardings=everywhere)
    correct = 0
    for start in range(0, len(images), rows):
        batch = images[start : start + rows]
        padded = np.concatenate([batch, np.zeros((rows - len(batch), *images.shape[1:]), images.dtype)])
        sharded = jax.make_array_from_callback(padded.shape, split, padded.__getitem__)
        votes = votes_fn(state, np.int32(start), sharded)
        correct += int(np.sum(np.asarray(votes)[: len(batch)] == labels[start : start + rows]))
    return correct / len(images)


def _votes(graphdef: Any, options: Options, state: Any, start: jax.Array, images: jax.Array) -> jax.Array:
    """The class that most noised copies of each image fall into."""
    noise, clean = Gaussian(options.sigma), to_float(images)
    key = jax.random.fold_in(jax.random.key(options.seed), _KEY_OF_THE_CHECK)
    key = jax.random.fold_in(key, start)

    def vote(sample: jax.Array, counts: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, sample), images.shape[0])
        noised = clean + jax.vmap(lambda key: noise.sample(key, images.shape[1:], jnp.float32))(keys)
        logits = nnx.merge(graphdef, state, copy=True)(noised)
        return counts + jax.nn.one_hot(jnp.argmax(logits, axis=-1), counts.shape[1], dtype=jnp.int32)

    num_classes = jax.eval_shape(lambda x: nnx.merge(graphdef, state, copy=True)(x), clean).shape[1]
    nothing = jnp.zeros((images.shape[0], num_classes), jnp.int32)
    return jnp.argmax(jax.lax.fori_loop(0, options.check_samples, vote, nothing), axis=-1)


def _split(dataset: Dataset, options: Options) -> tuple[Batches, tuple[Any, np.ndarray]]:
    """The batches to train on, and the images kept apart with their labels."""
    if options.held_out >= len(dataset):
        raise InputError(
            f"held_out must be less than the {len(dataset)} training images, got {options.held_out}"
        )
    apart = np.sort(np.random.default_rng((options.seed, 0, 0)).permutation(len(dataset))[: options.held_out])
    examples = np.setdiff1d(np.arange(len(dataset)), apart)
    if options.batch_size > len(examples):
        raise InputError(
            f"batch_size must be at most the {len(examples)} training images, got {options.batch_size}"
        )
    if options.augmentation == "resized-crop-flip" and not (
        isinstance(dataset.images, LazyImages) and dataset.shape[0] == dataset.shape[1]
    ):
        raise InputError(
            "augmentation must be 'none' or 'crop-flip' unless the images are cut to squares when they are read "
            f"(folder:PATH,resize=256,crop=224), got 'resized-crop-flip' with {dataset.name}"
        )
    hosts = (jax.process_index(), jax.process_count())
    batches = Batches(dataset, examples, options.batch_size, options.seed, options.augmentation, hosts)
    images = augmentation.read(dataset.images, apart, slice(None), "none", ()) if options.held_out else None
    return batches, (images, dataset.labels[apart])


def _mesh(batch_size: int, num_devices: int | None) -> Mesh:
    """The devices of all hosts, or the largest number of them that divides the batch."""
    devices = jax.devices()
    if jax.process_count() > 1:
        if num_devices is not None:
            raise InputError(f"num_devices must not be given with several hosts, got {num_devices}")
        if batch_size % len(devices):
            raise InputError(
                f"batch_size must be a multiple of the {len(devices)} devices of all hosts, got {batch_size}"
            )
    elif num_devices is None:
        devices = devices[: max(n for n in range(1, len(devices) + 1) if batch_size % n == 0)]
    else:
        num_devices = validation.check_integer(
            "num_devices", num_devices, at_least=1, at_most=len(jax.devices())
        )
        if batch_size % num_devices:
            raise InputError(f"batch_size must be a multiple of num_devices {num_devices}, got {batch_size}")
        devices = devices[:num_devices]
    return Mesh(np.array(devices), (_BATCH_AXIS,), axis_types=(AxisType.Auto,))


def _optimizer(options: Options, schedule: optax.Schedule) -> optax.GradientTransformation:
    if options.optimizer == "adamw":
        return optax.adamw(schedule, weight_decay=options.weight_decay)
    return optax.chain(optax.add_decayed_weights(options.weight_decay), optax.sgd(schedule, momentum=0.9))


def _replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of every array on every device, those of other hosts included: each host fills its own."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def replicate(leaf: jax.Array) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, everywhere, array.__getitem__)

    return jax.tree.map(replicate, tree)


def _make_step(
    graphdef: Any, optimizer: optax.GradientTransformation, options: Options
) -> Callable[..., Any]:
    noise, compute_dtype = Gaussian(options.sigma), options.compute_dtype

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(
        params: Any, rest: Any, opt_state: Any, number: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[Any, Any, Any, objectives.Loss]:
        key = jax.random.fold_in(jax.random.key(options.seed), number)

        def loss_fn(params: Any) -> tuple[jax.Array, tuple[objectives.Loss, Any]]:
            computing = jax.tree.map(lambda leaf: leaf.astype(compute_dtype), params)
            # Copied, because variables made outside may not be changed inside of a gradient.
            model = nnx.merge(graphdef, computing, rest, copy=True)

            def logits_fn(noised: jax.Array) -> jax.Array:
                return model(noised.astype(compute_dtype)).astype(jnp.float32)

            loss = objectives.gaussian_augmentation(logits_fn, key, to_float(images), labels, noise=noise)
            return loss.value, (loss, nnx.state(model, nnx.Not(nnx.Param)))

        grads, (loss, new_rest) = jax.grad(loss_fn, has_aux=True)(params)
        updates, new_opt_state = optimizer.update(grads, opt_state, params)
        loss = loss._replace(gradient_norm=optax.global_norm(grads))
        return optax.apply_updates(params, updates), new_rest, new_opt_state, loss

    return step


def _check_finite(out: epath.Path, options: Options, loss: float, gradient_norm: float, epoch: int) -> None:
    if np.isfinite(loss) and np.isfinite(gradient_norm):
        return
    kept = (
        f"the checkpoint of step {checkpoints.describe(out).step} is kept"
        if checkpoints.exists(out)
        else "no checkpoint was written yet"
    )
    what = (
        f"the loss was {loss}" if not np.isfinite(loss) else f"the norm of the gradient was {gradient_norm}"
    )
    raise InputError(
        f"learning_rate must be small enough to train, got {options.learning_rate}: {what} in epoch {epoch}; {kept}"
    )


def _together(step: int, signal_number: int, old: bool) -> tuple[int, bool]:
    """The largest of what the hosts say, so that all of them stop and write at the same step.

    Talking waits for the devices, so that several hosts do it only now and then.
    """
    if jax.process_count() == 1:
        return signal_number, old
    if step % _STEPS_BETWEEN_TALKS:
        return 0, False
    said = multihost_utils.process_allgather(np.array([signal_number, old], np.int32))
    return int(said[:, 0].max()), bool(said[:, 1].max())


def _is_resumed(out: epath.Path, description: checkpoints.Description) -> bool:
    """Whether a folder holds an unfinished training of this description; refuses folders of anything else."""
    if checkpoints.exists(out):
        _check_same(out, checkpoints.describe(out), description)
        return True
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - _BEFORE_A_CHECKPOINT):
        raise InputError(
            f"out must be a new, an empty or a checkpoint folder, got {out}, which holds something else"
        )
    return False


def _check_same(out: epath.Path, existing: checkpoints.Description, wanted: checkpoints.Description) -> None:
    defaults = {
        field.name: field.default
        for field in dataclasses.fields(Options)
        if field.default is not dataclasses.MISSING
    }

    def determining(description: checkpoints.Description) -> dict[str, Any]:
        # Options that are younger than the checkpoint had their defaults then.
        training = {**defaults, **description.training}
        training = {name: value for name, value in training.items() if name not in _MACHINE_OPTIONS}
        fingerprint = description.data_fingerprint or wanted.data_fingerprint
        values = {
            "model": dataclasses.asdict(description.model),
            "data_fingerprint": fingerprint,
            "training": training,
        }
        return json.loads(json.dumps(values))

    files.check_same(out, determining(existing), determining(wanted))


class _MetricsLog:
    """``metrics.jsonl``: a line per epoch; lines of steps after the checkpoint that is resumed are taken back."""

    def __init__(self, out: epath.Path, first_step: int):
        self._path = out / METRICS
        if jax.process_index() or not self._path.exists():
            return
        lines = self._path.read_text().splitlines()
        kept = [line for line in lines if _step_of(line) <= first_step]
        if kept != lines:
            files.write_atomically(self._path, "".join(f"{line}\n" for line in kept))

    def append(self, metrics: Metrics) -> None:
        if jax.process_index():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            file.write(json.dumps(metrics) + "\n")


def _step_of(line: str) -> float:
    """The step of a line, or infinity for half a line that a kill left."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
