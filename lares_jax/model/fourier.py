"""The Fourier transform over the positions of a row, as products with a fixed matrix.

At the lengths of histories a product costs little more than an FFT; it runs on matrix units, and
XLA splits it over devices by rows of the batch where it would gather an FFT's input onto each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Spectrum(NamedTuple):
  """Frequencies 0..F-1 of each row and dimension; L // 2 + 1 of them say all."""

  real_BxFxD: jax.Array
  imag_BxFxD: jax.Array


def _waves(length: int, frequencies: int) -> tuple[np.ndarray, np.ndarray]:
  """The real and imaginary part of the orthonormal transform, [F, L] each."""
  turn_FxL = 2 * np.pi * np.outer(np.arange(frequencies), np.arange(length)) / length
  waves = np.cos(turn_FxL) / np.sqrt(length), -np.sin(turn_FxL) / np.sqrt(length)
  return waves[0].astype(np.float32), waves[1].astype(np.float32)


def rfft(x_BxLxD: jax.Array, frequencies: int | None = None) -> Spectrum:
  """Orthonormal transform of real rows, in float32; only the lowest `frequencies` if given."""
  length = x_BxLxD.shape[1]
  x_BxLxD = x_BxLxD.astype(jnp.float32)
  all_of_them = length // 2 + 1
  waves = _waves(length, min(frequencies or all_of_them, all_of_them))
  return Spectrum(*(jnp.einsum('fl,bld->bfd', wave_FxL, x_BxLxD, precision='highest')
                    for wave_FxL in waves))


def irfft(spectrum: Spectrum, length: int) -> jax.Array:
  """The real rows [B, L, D] of a spectrum; frequencies it does not hold count as zero."""
  frequency_Fx1 = np.arange(spectrum.real_BxFxD.shape[1])[:, None]
  # All but the first and, at even length, the last stand for their mirror image as well.
  alone_Fx1 = (frequency_Fx1 == 0) | (2 * frequency_Fx1 == length)
  weight_Fx1 = np.where(alone_Fx1, np.float32(1), np.float32(2))
  waves = _waves(length, len(frequency_Fx1))
  real_BxLxD, imag_BxLxD = (
    jnp.einsum('fl,bfd->bld', weight_Fx1 * wave_FxL, part_BxFxD, precision='highest')
    for wave_FxL, part_BxFxD in zip(waves, spectrum, strict=True))
  return real_BxLxD + imag_BxLxD


def times(a: Spectrum, b: Spectrum) -> Spectrum:
  """The product of two spectra: circular convolution of their rows."""
  return Spectrum(a.real_BxFxD * b.real_BxFxD - a.imag_BxFxD * b.imag_BxFxD,
                  a.real_BxFxD * b.imag_BxFxD + a.imag_BxFxD * b.real_BxFxD)


def learned(weight_1xFxDx2: jax.Array) -> Spectrum:
  """A filter kept as real numbers, (real, imaginary) on the last axis."""
  return Spectrum(weight_1xFxDx2[..., 0], weight_1xFxDx2[..., 1])
