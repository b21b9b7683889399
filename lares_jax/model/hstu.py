"""The HSTU backbone: attention whose weights are not a distribution, gated instead of fed forward.

Zhai et al., "Actions Speak Louder than Words" (arXiv 2402.17152). Two things differ from there,
besides details (configs/results/README.md): a weight is divided by the number of tokens the query
sees instead of by the row's length, so that a history's states do not depend on its company in the
row; and gaps in time are those between the tokens themselves, since the time of the item to come is
not known when one recommends. A raw history has no times at all: for it one more bucket stands, which
training learns from the rows whose times its batches hide (data/batches.py).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lares_jax.model.backbone import Context, Layer, Norm, dense
from lares_jax.model.dropout import Dropout

_EPSILON = 1e-6  # of this backbone's norms
_TIME_BUCKETS = 32  # bucket b: gaps of b binary digits, so 0, 1, 2..3, 4..7, ... ticks; and unknown


class HstuLayer(Layer):
  """x + W2 (LN(A V) * U), A = silu(Q K' + bias) / n, and U, V, Q, K = silu(W1 LN(x))."""

  @nn.compact
  def __call__(self, x_BxLxD, context: Context, train: bool):
    c = self.config
    split = lambda x: x.reshape(*x.shape[:2], c.heads, c.width // c.heads)
    normed_BxLxD = Norm(_EPSILON, name='input_norm')(x_BxLxD)
    uvqk_BxLx4D = nn.silu(dense(4 * c.width, c, 'uvqk', use_bias=False)(normed_BxLxD))
    gate_BxLxD, value, query, key = jnp.split(uvqk_BxLx4D, 4, axis=-1)
    att_BxHxLxL = jnp.einsum('blhd,bkhd->bhlk', split(query), split(key)).astype(jnp.float32)
    att_BxHxLxL = nn.silu(att_BxHxLxL + self._bias(context))
    seen_Bx1xLx1 = (context.position_BxL + 1)[:, None, :, None]
    att_BxHxLxL = jnp.where(context.visible_Bx1xLxL, att_BxHxLxL / seen_Bx1xLx1, 0.0)
    mixed = jnp.einsum('bhlk,bkhd->blhd', att_BxHxLxL.astype(c.dtype), split(value))
    out_BxLxD = Norm(_EPSILON, name='norm')(mixed.reshape(x_BxLxD.shape)) * gate_BxLxD
    return x_BxLxD + dense(c.width, c, 'output')(Dropout(self.rate)(out_BxLxD, train))

  def _bias(self, context: Context) -> jax.Array:
    """Learned weight of each distance in tokens and, with `times`, of each gap in time."""
    c, normal = self.config, nn.initializers.normal(0.02)
    place_L = jnp.arange(context.position_BxL.shape[1])
    distance_LxL = place_L[:, None] - place_L[None, :]
    bias_P = self.param('position_bias', normal, (c.distances,))
    bias_Bx1xLxL = bias_P[jnp.clip(distance_LxL, 0, c.distances - 1)][None, None]
    if not c.times:
      return bias_Bx1xLxL
    time_BxL = context.time_BxL
    if time_BxL is None:
      time_BxL = jnp.full_like(context.position_BxL, -1)
    gap_BxLxL = time_BxL[:, :, None] - time_BxL[:, None, :]
    digits_BxLxL = 32 - jax.lax.clz(jnp.maximum(gap_BxLxL, 0))
    bucket_BxLxL = jnp.where(time_BxL[:, :, None] < 0, _TIME_BUCKETS, digits_BxLxL)
    bias_K = self.param('time_bias', normal, (_TIME_BUCKETS + 1,))
    return bias_Bx1xLxL + bias_K[bucket_BxLxL][:, None]
