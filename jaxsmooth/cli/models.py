"""``jaxsmooth models``: the networks and what they cost."""

import dataclasses

from jaxsmooth import validation


@dataclasses.dataclass(frozen=True)
class Models:
    """List the networks: parameters, floating-point operations per sample (two per multiply-add), and origin.

    Example: jaxsmooth models --names resnet50 vit-b16
    """

    names: tuple[str, ...] | None = None
    """Just these; all if not given."""


def run(options: Models) -> None:
    """Prints a Markdown table with aligned columns. Nothing is allocated or compiled for it."""
    # Slow imports wait until here, so that --help does not.
    from jaxsmooth.models import cost, registry

    rows: list[tuple[str, ...]] = [("model", "parameters", "GFLOP/sample", "input", "classes", "origin")]
    for name in options.names or registry.names():
        validation.check_choice("names", name, registry.names())
        network = registry.NETWORKS[name]
        channels = network.input_shape[-1]
        spec = registry.ModelSpec(
            name, network.num_classes, network.input_shape, (0.0,) * channels, (1.0,) * channels
        )
        model = registry.abstract(spec)
        flops = cost.flops_per_sample(model, network.input_shape)
        rows.append(
            (
                name,
                f"{cost.num_parameters(model):,}",
                f"{flops / 1e9:.4f}",
                "x".join(map(str, network.input_shape)),
                str(network.num_classes),
                network.origin,
            )
        )
    print(_table(rows, right=(1, 2, 4)))


def _table(rows: list[tuple[str, ...]], right: tuple[int, ...]) -> str:
    """Markdown with columns as wide as their widest cell; the first row is the head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: tuple[str, ...]) -> str:
        return (
            "| "
            + " | ".join(
                cell.rjust(width) if number in right else cell.ljust(width)
                for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            + " |"
        )

    rule = (
        "|"
        + "|".join(
            "-" * (width + 1) + ":" if number in right else ":" + "-" * (width + 1)
            for number, width in enumerate(widths)
        )
        + "|"
    )
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])
