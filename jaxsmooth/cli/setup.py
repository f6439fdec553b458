"""Options and set-up that the commands which sample have in common."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from jax.sharding import Mesh

from jaxsmooth import devices
from jaxsmooth.cli import machine

if TYPE_CHECKING:
    from jaxsmooth.sweep.run import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Which model, which examples, which devices."""

    checkpoint: Path | None = None
    """Checkpoint folder made by `jaxsmooth train` or `jaxsmooth import-torch`."""
    model: str | None = None
    """Your own classifier instead, package.module:factory; needs --data and --sigma."""
    inference_dtype: str = "float32"
    """float32 or bfloat16: in which the network computes. The noise is added in float32 in both."""
    data: str | None = None
    """Data set; the one of the training if not given."""
    data_dir: Path | None = None
    """Where prepared data sets are; $TFDS_DATA_DIR or ~/tensorflow_datasets if not given."""
    split: str = "test"
    """Split of the data set."""
    sigma: float | None = None
    """Standard deviation of the noise, in units of the image; the one of the training if not given."""
    seed: int = 0
    """Of all noise."""
    skip: int = 1
    """Do every so-manieth example."""
    max: int | None = None
    """Stop before this index."""
    indices: tuple[int, ...] | None = None
    """Do just these examples."""
    batch_size: str = "auto"
    """Noised copies per call of the network, over all devices; auto fits it to the memory. Changes speed only."""
    platform: str | None = None
    """cpu, gpu or tpu; JAX's choice if not given."""
    num_devices: int | None = None
    """Devices of this process to use; all if not given."""
    compilation_cache: str = "auto"
    """Folder for compiled programs; auto is in the user's cache folder, off keeps none."""


class SetUp(NamedTuple):
    """What the options mean here.

    Attributes:
        mesh: devices of this process.
        source: model and data.
        sigma: standard deviation of the noise.
        indices: which examples.
        batch_size: rows per call of the model, over all devices together.
    """

    mesh: Mesh
    source: "Source"
    sigma: float
    indices: list[int]
    batch_size: int


def set_up(options: SamplingOptions) -> SetUp:
    """Devices, model, data and examples; ``machine.prepare`` has to come first.

    Raises:
        InputError: for an option that cannot be followed.
    """
    from jaxsmooth.cli import sources
    from jaxsmooth.sweep import run as sweep

    batch_size = machine.parse_batch_size(options.batch_size)
    mesh = devices.noise_mesh(options.num_devices, options.platform)
    source, sigma = sources.load_source(
        options.checkpoint,
        options.data,
        options.split,
        options.data_dir,
        model=options.model,
        sigma=options.sigma,
        inference_dtype=options.inference_dtype,
    )
    indices = sweep.choose_indices(
        len(source.labels), skip=options.skip, maximum=options.max, indices=options.indices
    )
    if batch_size is None:
        batch_size = devices.auto_batch_size(mesh, source.apply_fn, source.params, source.images(0).shape)
    return SetUp(mesh, source, sigma, indices, batch_size)
