"""Dropout that draws one byte a value: four masks from each random word."""

import jax
import jax.numpy as jnp
from flax import linen as nn

MOST_DROPOUT = 0.95  # what a rate may be


class Dropout(nn.Module):
  """Inverted dropout; the rate is met to within 1/256, and the scale is that of the rate met.

  On a CPU the random words cost more than the layer they regularise, hence the byte.
  """

  rate: float

  @nn.compact
  def __call__(self, x, train: bool):
    kept = round((1.0 - self.rate) * 256)
    if not train or kept == 256:  # of a rate below 1/512, too: a byte compared with 256 would wrap to 0
      return x
    words = -(-x.shape[-1] // 4)
    bits = jax.random.bits(self.make_rng('dropout'), (*x.shape[:-1], words), jnp.uint32)
    byte = jax.lax.bitcast_convert_type(bits, jnp.uint8).reshape(*x.shape[:-1], words * 4)
    keep = byte[..., : x.shape[-1]] < kept
    return jnp.where(keep, x * jnp.asarray(256 / kept, x.dtype), jnp.zeros((), x.dtype))
