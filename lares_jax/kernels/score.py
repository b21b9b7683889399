"""What the kernels share. They work on products q.e, before `tau`: the numbers of `scoring`."""

import jax
import jax.numpy as jnp
import numpy as np

from lares_jax.scoring import CatalogueConfig

LOWEST = float(np.finfo(np.float32).min)
_LOG2_E = float(np.log2(np.e))  # the machines raise 2 to a power, not e


def power(products, reference, config: CatalogueConfig) -> jax.Array:
  """exp of the score less a reference score, both given as products."""
  return jnp.exp2((products - reference) * (_LOG2_E / config.tau))


def combine(top, total, config: CatalogueConfig, axis: int) -> jax.Array:
  """Log-sum-exp of the scores from parts along `axis`: their largest product, their sum."""
  highest = top.max(axis=axis, keepdims=True)
  total = (total * power(top, highest, config)).sum(axis=axis)
  return highest.squeeze(axis) / config.tau + jnp.log(total)


def above(products, low, high) -> jax.Array:
  """What an item adds to the rank: 0 if below the target, 1 if above or NaN, a half if tied."""
  return jnp.where(products < low, 0.0, jnp.where(products <= high, 0.5, 1.0))


def pad(x: jax.Array, *shape: int) -> jax.Array:
  """`x` with zeros after it, up to `shape`."""
  return jnp.pad(x, [(0, after - size) for size, after in zip(x.shape, shape)])
