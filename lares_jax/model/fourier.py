"""The Fourier transform over the positions of a row, as products with a fixed matrix.

At the lengths of histories a product costs little more than an FFT; it runs on matrix units, and
XLA splits it over devices by rows of the batch where it would gather an FFT's input onto each.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn


def _waves(length: int, frequencies: int) -> tuple[np.ndarray, np.ndarray]:
  """The real and imaginary part of the orthonormal transform, [F, L] each."""
  turn_FxL = 2 * np.pi * np.outer(np.arange(frequencies), np.arange(length)) / length
  waves = np.cos(turn_FxL) / np.sqrt(length), -np.sin(turn_FxL) / np.sqrt(length)
  return waves[0].astype(np.float32), waves[1].astype(np.float32)


def rfft(x_BxLxD: jax.Array, frequencies: int | None = None) -> jax.Array:
  """Orthonormal transform of real rows, complex64 [B, F, D].

  F is the number of lowest `frequencies`; L // 2 + 1, which say all, unless given.
  """
  length = x_BxLxD.shape[1]
  x_BxLxD = x_BxLxD.astype(jnp.float32)
  all_of_them = length // 2 + 1
  waves = _waves(length, min(frequencies or all_of_them, all_of_them))
  return jax.lax.complex(*(jnp.einsum('fl,bld->bfd', wave_FxL, x_BxLxD, precision='highest')
                           for wave_FxL in waves))


def irfft(spectrum_BxFxD: jax.Array, length: int) -> jax.Array:
  """The real rows [B, L, D] of a spectrum; frequencies it does not hold count as zero."""
  frequency_Fx1 = np.arange(spectrum_BxFxD.shape[1])[:, None]
  # All but the first and, at even length, the last stand for their mirror image as well.
  alone_Fx1 = (frequency_Fx1 == 0) | (2 * frequency_Fx1 == length)
  weight_Fx1 = np.where(alone_Fx1, np.float32(1), np.float32(2))
  waves = _waves(length, len(frequency_Fx1))
  real_BxLxD, imag_BxLxD = (
    jnp.einsum('fl,bfd->bld', weight_Fx1 * wave_FxL, part_BxFxD, precision='highest')
    for wave_FxL, part_BxFxD in zip(waves, (spectrum_BxFxD.real, spectrum_BxFxD.imag), strict=True))
  return real_BxLxD + imag_BxLxD


def learned(module: nn.Module, length: int, width: int) -> jax.Array:
  """A filter [1, F, D] for rows of a length: the module's own, kept as (real, imaginary)."""
  shape = (1, length // 2 + 1, width, 2)
  weight_1xFxDx2 = module.param('complex_weight', nn.initializers.normal(0.02), shape)
  return jax.lax.complex(weight_1xFxDx2[..., 0], weight_1xFxDx2[..., 1])
