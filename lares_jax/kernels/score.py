"""What the two kernels share: how an item is scored, and how parts of a sum become one."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
  from lares_jax.catalogue import CatalogueConfig

LOWEST = float(np.finfo(np.float32).min)
LOG2_E = float(np.log2(np.e))  # both machines raise 2, not e, to a power


def comparable(x: jax.Array, config: 'CatalogueConfig', axis: int) -> jax.Array:
  """Vectors along `axis` as they are compared, float32: of length one for `cos`."""
  x = x.astype(jnp.float32)
  if config.similarity == 'dot':
    return x
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-24))


def product(a, b, contract: tuple[int, int], config: 'CatalogueConfig') -> jax.Array:
  """Matrix product over an axis of each: factors of `config.dtype`, float32 sums."""
  exact = config.dtype == 'float32'  # the default would quietly round the factors
  return jax.lax.dot_general(
    a.astype(config.dtype),
    b.astype(config.dtype),
    (((contract[0],), (contract[1],)), ((), ())),
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )


def power(products, reference, config: 'CatalogueConfig') -> jax.Array:
  """exp of a score less a reference, both given as products, that is before `tau`."""
  return jnp.exp2((products - reference) * (LOG2_E / config.tau))


def combine(top, total, config: 'CatalogueConfig', axis: int) -> jax.Array:
  """Log-sum-exp of the scores from parts along `axis`: largest product, and sum of powers."""
  highest = top.max(axis=axis, keepdims=True)
  total = (total * power(top, highest, config)).sum(axis=axis)
  return highest.squeeze(axis) / config.tau + jnp.log(total)


def share_above(products, low, high) -> jax.Array:
  """What an item adds to the rank: 0 if below the target, 1 if above or NaN, a half if tied."""
  return jnp.where(products < low, 0.0, jnp.where(products <= high, 0.5, 1.0))


def pad_rows(x: jax.Array, rows: int) -> jax.Array:
  return jnp.pad(x, [(0, rows - x.shape[0])] + [(0, 0)] * (x.ndim - 1))


def output(shape: tuple[int, ...], *inputs: jax.Array) -> jax.ShapeDtypeStruct:
  """A kernel's float32 output; under `shard_map` it varies along every axis its inputs do."""
  kind = jax.typeof(inputs[0]).manual_axis_type
  axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in inputs))
  return jax.ShapeDtypeStruct(shape, jnp.float32, manual_axis_type=kind.update(varying=axes))
