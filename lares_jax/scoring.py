"""How a user vector scores an item: the one formula of training, evaluation and serving."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from lares_jax.errors import InputError
from lares_jax.negatives import SampleConfig

# A tie is a difference within the rounding error of a dot product, relative to |q||e|.
TIE_TOLERANCE = 2.0**-21
Dtype = Literal['float32', 'bfloat16']
Kernel = Literal['auto', 'plain', 'pallas']
FEW = 64  # queries: with fewer at a time, passing over the table costs more than its products


@dataclasses.dataclass(frozen=True)
class CatalogueConfig:
  """How a user vector u scores item v: `dot` u.e / tau, `cos` of the two / tau, or `direction`.

  The last is u.e / |u| / tau: how large scores are is for the items alone to learn.
  """

  similarity: Literal['dot', 'cos', 'direction'] = 'dot'
  tau: float = 1.0
  tile: int = 1024  # queries at a time
  block: int = 2040  # items at a time, at most; a power of two makes CPUs lose a fifth of their speed
  keep: int = 2**22  # scores to keep for the gradient, at most; else blocks are computed again
  dtype: Dtype = 'float32'  # of the products; sums are float32 always
  loss: Literal['exact', 'sampled', 'gbce'] = 'exact'  # of training; where a catalogue is too large
  sample: SampleConfig = SampleConfig()
  kernel: Kernel = 'auto'  # auto: plain XLA; kernels says why

  def __post_init__(self):
    if self.loss == 'gbce' and not self.sample.uniform:
      raise InputError('catalogue.loss=gbce: its negatives are uniform; set catalogue.sample.uniform')

  def kept(self, items: int) -> int:
    """How many queries' scores with so many items may be kept; 0 where too few to be worth it."""
    queries = min(self.tile, self.keep // items)
    return queries if queries >= FEW and self.kernel != 'pallas' else 0


def unit(x_MxD: jax.Array) -> jax.Array:
  """Rows scaled to length one; a zero row stays zero."""
  square_Mx1 = jnp.sum(jnp.square(x_MxD), axis=-1, keepdims=True)
  return x_MxD * jax.lax.rsqrt(jnp.maximum(square_Mx1, 1e-24))


def as_query(x_MxD: jax.Array, similarity: str) -> jax.Array:
  """User vectors as they are compared, float32: of length one but for `dot`."""
  x_MxD = x_MxD.astype(jnp.float32)
  return x_MxD if similarity == 'dot' else unit(x_MxD)


def as_item(x_MxD: jax.Array, similarity: str) -> jax.Array:
  """Item embeddings as they are compared, float32: of length one for `cos`."""
  x_MxD = x_MxD.astype(jnp.float32)
  return unit(x_MxD) if similarity == 'cos' else x_MxD


def _compared(query, item, config: CatalogueConfig) -> tuple[jax.Array, jax.Array]:
  return as_query(query, config.similarity), as_item(item, config.similarity)


def pair_scores(query_MxD, item_MxD, config: CatalogueConfig) -> jax.Array:
  """Scores of matching rows [M]: the scoring function itself."""
  return pair_products(*_compared(query_MxD, item_MxD, config), config) / config.tau


def block_scores(query_MxD, item_KxD, config: CatalogueConfig) -> jax.Array:
  """Scores of every query with every item of one block [M, K]."""
  return product('md,kd->mk', *_compared(query_MxD, item_KxD, config), config) / config.tau


def pair_products(query_MxD, item_MxD, config: CatalogueConfig) -> jax.Array:
  """Products of matching rows as they are compared [M]: those of the same items in a block."""
  # No matrix unit makes these: unless told, XLA would not round a score as its rivals' are, and it
  # would never tie with them.
  return product('md,md->m', rounded(query_MxD, config), rounded(item_MxD, config), config)


def rounded(x: jax.Array, config: CatalogueConfig) -> jax.Array:
  """`x` as `product` rounds it, still float32: of a cast there and back XLA for GPUs makes nothing."""
  kind = jnp.finfo(config.dtype)
  return jax.lax.reduce_precision(x, kind.nexp, kind.nmant)


def product(axes: str, x, y, config: CatalogueConfig) -> jax.Array:
  """The sum of products that `axes` says: factors rounded to `config.dtype`, summed in float32."""
  # Accelerators would quietly round the factors of a float32 product, and of others there is nothing
  # to be exact about, whatever jax_default_matmul_precision says.
  precision = jax.lax.Precision.HIGHEST if config.dtype == 'float32' else jax.lax.Precision.DEFAULT
  return jnp.einsum(axes, x.astype(config.dtype), y.astype(config.dtype),
                    precision=precision, preferred_element_type=jnp.float32)


def tie_slack(query_MxD, item_MxD, config: CatalogueConfig) -> jax.Array:
  """How far apart two scores may lie and still tie [M]; a zero item has none."""
  query_M, item_M = (jnp.linalg.norm(x, axis=-1) for x in _compared(query_MxD, item_MxD, config))
  return TIE_TOLERANCE * query_M * item_M / config.tau
