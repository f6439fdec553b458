"""What a network costs: parameters and floating-point operations, without allocating or compiling anything."""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxsmooth.models import registry


def num_parameters(model: nnx.Module) -> int:
    """Number of trained weights (running statistics of batch normalisation are not trained)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def flops_per_sample(model: nnx.Module, input_shape: tuple[int, ...]) -> int:
    """Floating-point operations of one forward pass: two per multiply-add of convolutions and matrix products.

    As papers count: taps on the padding included, everything else (normalisation, relu, pooling) left out.

    Args:
        model: a network, or its abstract shape (``nnx.eval_shape``).
        input_shape: of one input, without a batch axis.
    """
    graphdef, state = nnx.split(registry.evaluation_view(model))
    inputs = jax.ShapeDtypeStruct((1, *input_shape), jnp.float32)
    traced = jax.make_jaxpr(lambda state, x: nnx.merge(graphdef, state)(x))(state, inputs)
    return sum(_flops(equation) for equation in equations(traced.jaxpr))


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, those of inner programs (jit, custom derivatives, all branches) included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, tuple) else (value,):
                inner = getattr(part, "jaxpr", part)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def _flops(equation: Any) -> int:
    out = math.prod(equation.outvars[0].aval.shape)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * out * math.prod(left[axis] for axis in contracted)
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return 2 * out * math.prod(kernel) // kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return 0
