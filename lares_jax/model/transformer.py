"""The transformer backbone: causal self-attention, then a feed-forward sub-layer, post-LN."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lares_jax.model.backbone import Context, Layer, dense
from lares_jax.model.dropout import Dropout


class Attention(Layer):
  """Multi-head self-attention with its residual: LN(x + dropout(attention(x)))."""

  @nn.compact
  def __call__(self, x_BxLxD, context: Context, train: bool):
    c = self.config
    memory_BxLxD = x_BxLxD if context.memory_BxLxD is None else context.memory_BxLxD
    split = lambda x: x.reshape(*x.shape[:-1], c.heads, c.width // c.heads)
    query, key, value = (dense(c.width, c, name) for name in ('query', 'key', 'value'))
    query_BxLxHxd = split(query(x_BxLxD))
    att_BxHxLxL = jnp.einsum('blhd,bkhd->bhlk', query_BxLxHxd, split(key(memory_BxLxD)))
    # A finite floor: filling that sees nothing gets an average, not NaN.
    att = jnp.where(context.visible_Bx1xLxL, att_BxHxLxL.astype(jnp.float32), -1e9)
    if context.memory_BxLxD is not None:
      own_BxLxOxD = jnp.stack([*context.earlier_thoughts, x_BxLxD], axis=2)
      att_BxHxLxO = jnp.einsum('blhd,blohd->bhlo', query_BxLxHxd, split(key(own_BxLxOxD)))
      att = jnp.concatenate([att, att_BxHxLxO.astype(jnp.float32)], axis=-1)
    att = jax.nn.softmax(att * (c.width // c.heads) ** -0.5)
    att = Dropout(self.rate)(att.astype(c.dtype), train)
    others, own = jnp.split(att, [x_BxLxD.shape[1]], axis=-1)
    mixed = jnp.einsum('bhlk,bkhd->blhd', others, split(value(memory_BxLxD)))
    if context.memory_BxLxD is not None:
      mixed += jnp.einsum('bhlo,blohd->blhd', own, split(value(own_BxLxOxD)))
    return self.residual(x_BxLxD, dense(c.width, c, 'dense')(mixed.reshape(x_BxLxD.shape)), train)


class FeedForward(Layer):
  """LN(x + dropout(W2 gelu(W1 x)))."""

  @nn.compact
  def __call__(self, x_BxLxD, train: bool):
    c = self.config
    inner_BxLxF = nn.gelu(dense(c.inner, c, 'inner')(x_BxLxD), approximate=False)
    return self.residual(x_BxLxD, dense(c.width, c, 'outer')(inner_BxLxF), train)


class TransformerLayer(Layer):
  """Attention, then feed-forward."""

  @nn.compact
  def __call__(self, x_BxLxD, context: Context, train: bool):
    x_BxLxD = Attention(self.config, self.rate, name='attention')(x_BxLxD, context, train)
    return FeedForward(self.config, self.rate, name='ffn')(x_BxLxD, train)
