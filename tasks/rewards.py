"""Soft indicator functions that rewards are made of (Tassa et al., arXiv 1801.00690, section 2)."""

import math

import jax
import jax.numpy as jnp

# Value at one margin's distance from the bounds, unless a task says otherwise.
VALUE_AT_MARGIN = 0.1


def tolerance(
    x: jax.Array,
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: float = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = VALUE_AT_MARGIN,
) -> jax.Array:
    """Returns 1 where `x` lies within `bounds`, falling to `value_at_margin` at `margin` outside.

    Args:
      x: any shape, in the unit of `bounds` and `margin`.
      bounds: inclusive (lower, upper); either may be infinite.
      margin: distance over which the value falls; 0 makes a hard indicator.
      sigmoid: "gaussian", "linear", "quadratic" or "reciprocal".
      value_at_margin: value at the margin; "gaussian" and "reciprocal" need it positive.

    Returns:
      Values in [0, 1], the shape of `x`.

    Raises:
      ValueError: bounds out of order, a negative margin or an unknown sigmoid.
    """
    lower, upper = bounds
    if lower > upper or margin < 0:
        raise ValueError(f"needs lower <= upper and margin >= 0, got {bounds=}, {margin=}")
    inside = (lower <= x) & (x <= upper)
    if margin == 0:
        return jnp.where(inside, 1.0, 0.0)
    distance = jnp.where(x < lower, lower - x, x - upper) / margin
    return jnp.where(inside, 1.0, _falloff(distance, value_at_margin, sigmoid))


def _falloff(distance: jax.Array, value_at_1: float, sigmoid: str) -> jax.Array:
    """Returns the value at `distance` >= 0 margins: 1 at 0, `value_at_1` at 1."""
    if sigmoid == "gaussian":
        return jnp.exp(math.log(value_at_1) * distance**2)
    if sigmoid == "linear":
        return jnp.maximum(1 - (1 - value_at_1) * distance, 0.0)
    if sigmoid == "quadratic":
        return jnp.maximum(1 - (1 - value_at_1) * distance**2, 0.0)
    if sigmoid == "reciprocal":
        return 1 / (1 + (1 / value_at_1 - 1) * distance)
    known = "gaussian, linear, quadratic or reciprocal"
    raise ValueError(f"unknown sigmoid {sigmoid!r}: use {known}")


def small_control(ctrl: jax.Array) -> jax.Array:
    """Returns the mean over actuators of 1 - ctrl^2, clipped to [0, 1]. ctrl: (A,)."""
    return tolerance(ctrl, margin=1, value_at_margin=0, sigmoid="quadratic").mean()
