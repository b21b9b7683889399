"""The transformer backbone: causal self-attention, then a feed-forward sub-layer, post-LN."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lares_jax.model.backbone import BackboneConfig, Context, Norm, dense
from lares_jax.model.dropout import Dropout


class Attention(nn.Module):
  """Multi-head self-attention with its residual: LN(x + dropout(attention(x)))."""

  config: BackboneConfig
  rate: float

  @nn.compact
  def __call__(self, x_BxLxD, context: Context, train: bool):
    c = self.config
    split = lambda x: x.reshape(*x.shape[:2], c.heads, c.width // c.heads)
    query, key, value = (split(dense(c.width, c, n)(x_BxLxD)) for n in ('query', 'key', 'value'))
    att_BxHxLxL = jnp.einsum('blhd,bkhd->bhlk', query, key).astype(jnp.float32)
    att_BxHxLxL = att_BxHxLxL * (c.width // c.heads) ** -0.5
    # A finite floor: filling that sees nothing gets an average, not NaN.
    att_BxHxLxL = jax.nn.softmax(jnp.where(context.visible_Bx1xLxL, att_BxHxLxL, -1e9))
    att_BxHxLxL = Dropout(self.rate)(att_BxHxLxL.astype(c.dtype), train)
    mixed_BxLxD = jnp.einsum('bhlk,bkhd->blhd', att_BxHxLxL, value).reshape(x_BxLxD.shape)
    out_BxLxD = Dropout(self.rate)(dense(c.width, c, 'dense')(mixed_BxLxD), train)
    return Norm(name='norm')(x_BxLxD + out_BxLxD)


class FeedForward(nn.Module):
  """LN(x + dropout(W2 gelu(W1 x)))."""

  config: BackboneConfig
  rate: float

  @nn.compact
  def __call__(self, x_BxLxD, train: bool):
    c = self.config
    inner_BxLxF = nn.gelu(dense(c.inner, c, 'inner')(x_BxLxD), approximate=False)
    out_BxLxD = Dropout(self.rate)(dense(c.width, c, 'outer')(inner_BxLxF), train)
    return Norm(name='norm')(x_BxLxD + out_BxLxD)


class TransformerLayer(nn.Module):
  """Attention, then feed-forward."""

  config: BackboneConfig
  rate: float

  @nn.compact
  def __call__(self, x_BxLxD, context: Context, train: bool):
    x_BxLxD = Attention(self.config, self.rate, name='attention')(x_BxLxD, context, train)
    return FeedForward(self.config, self.rate, name='ffn')(x_BxLxD, train)
