"""What every backbone shares: one signature and one context.

A backbone is a stack of layers, each called as `layer(x_BxLxD, context, train) -> x_BxLxD`. LARES
repeats a stack of them in its core-block; a plain recommender applies a stack once.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lares_jax.data.rows import Rows
from lares_jax.model.dropout import Dropout
from lares_jax.scoring import Dtype


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
  """Shape of a layer, whichever backbone it belongs to."""

  name: str = 'transformer'
  width: int = 64
  heads: int = 2
  inner: int = 256  # of the feed-forward sub-layer; of the state, for gru
  dtype: Dtype = 'float32'  # of the products; parameters and norms are float32 always
  filter_share: float = 0.7  # bsarec: a, what the filter weighs beside attention
  low_band: int = 3  # bsarec: c; the c // 2 + 1 lowest frequencies are the low ones
  distances: int = 64  # hstu: distances in tokens told apart; all beyond share the last
  times: bool = False  # hstu: weigh gaps in time too; needs the time of every interaction


class Context(NamedTuple):
  """What a layer may know of its rows besides the states."""

  visible_Bx1xLxL: jax.Array  # bool: query l may look at key k
  real_BxL: jax.Array
  position_BxL: jax.Array
  time_BxL: jax.Array | None  # int32, ticks since the segment's start; None, or below 0: unknown
  # Where each token thinks by itself (transformer only): what it looks at in place of the others'
  # own states, and what this layer read at each earlier thought, which only its own token sees.
  memory_BxLxD: jax.Array | None = None
  earlier_thoughts: tuple[jax.Array, ...] = ()  # [B, L, D] each

  @classmethod
  def of(cls, rows: Rows) -> 'Context':
    """Causal, within the segment, and never at filling.

    Filling looks at all before it: where a row holds one history and a layer is not causal, its state
    matters, and it is the published one.
    """
    causal_LxL = jnp.tri(rows.item_BxL.shape[1], dtype=bool)
    same_BxLxL = rows.segment_BxL[:, :, None] == rows.segment_BxL[:, None, :]
    seen_BxLxL = (same_BxLxL | ~rows.real_BxL[:, :, None]) & rows.real_BxL[:, None, :]
    visible_BxLxL = causal_LxL[None] & seen_BxLxL
    return cls(visible_BxLxL[:, None], rows.real_BxL, rows.position_BxL, rows.time_BxL)


class Norm(nn.Module):
  """LayerNorm in float32 with the published eps; gives back the type it was given."""

  epsilon: float = 1e-12

  @nn.compact
  def __call__(self, x):
    norm = nn.LayerNorm(epsilon=self.epsilon, dtype=jnp.float32, use_fast_variance=False, name='norm')
    return norm(x).astype(x.dtype)


class Layer(nn.Module):
  """Base of every layer and of its parts, made as (config, rate)."""

  config: BackboneConfig
  rate: float  # of its dropout

  def residual(self, x_BxLxD, out_BxLxD, train: bool) -> jax.Array:
    """LN(x + dropout(out)), for layers that norm what they give."""
    return Norm(name='norm')(x_BxLxD + Dropout(self.rate)(out_BxLxD, train))


def dense(features: int, config: BackboneConfig, name: str, **kwargs) -> nn.Dense:
  """A linear map with the published initialisation: normal(0, 0.02), bias 0."""
  init = nn.initializers.normal(0.02)
  return nn.Dense(features, kernel_init=init, dtype=config.dtype, name=name, **kwargs)
