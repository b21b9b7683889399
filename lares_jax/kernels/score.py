"""What the kernels share: how an item is scored, and how the parts of a sum become one.

Kernels work on products q.e, before `tau`, so that they are the very numbers `scoring` computes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lares_jax.scoring import CatalogueConfig

LOWEST = float(np.finfo(np.float32).min)
_LOG2_E = float(np.log2(np.e))  # the machines raise 2 to a power, not e


def comparable(x: jax.Array, config: CatalogueConfig, axis: int) -> jax.Array:
  """Vectors along `axis` as they are compared, float32: of length one for `cos`."""
  x = x.astype(jnp.float32)
  if config.similarity == 'dot':
    return x
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-24))


def product(a, b, contract: tuple[int, int], config: CatalogueConfig) -> jax.Array:
  """Matrix product over an axis of each: factors of `config.dtype`, float32 sums."""
  exact = config.dtype == 'float32'  # the default would quietly round the factors
  return jax.lax.dot_general(
    a.astype(config.dtype),
    b.astype(config.dtype),
    (((contract[0],), (contract[1],)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )


def power(products, reference, config: CatalogueConfig) -> jax.Array:
  """exp of the score less a reference score, both given as products."""
  return jnp.exp2((products - reference) * (_LOG2_E / config.tau))


def combine(top, total, config: CatalogueConfig, axis: int) -> jax.Array:
  """Log-sum-exp of the scores from parts along `axis`: their largest product, their sum."""
  highest = top.max(axis=axis, keepdims=True)
  total = (total * power(top, highest, config)).sum(axis=axis)
  return highest.squeeze(axis) / config.tau + jnp.log(total)


def share_above(products, low, high) -> jax.Array:
  """What an item adds to the rank: 0 if below the target, 1 if above or NaN, a half if tied."""
  return jnp.where(products < low, 0.0, jnp.where(products <= high, 0.5, 1.0))


def pad_rows(x: jax.Array, rows: int) -> jax.Array:
  return jnp.pad(x, [(0, rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))
