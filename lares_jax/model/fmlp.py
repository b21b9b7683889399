"""The FMLP backbone: a learned filter over the whole row, then a feed-forward sub-layer.

Zhou et al., "Filter-enhanced MLP is All You Need for Sequential Recommendation" (WWW 2022). The
filter mixes later positions into earlier ones, so a row holds one history and only its last
position means anything; its weights fix the length of a row.
"""

from flax import linen as nn

from lares_jax.model.backbone import Context, Layer
from lares_jax.model.fourier import irfft, learned, rfft
from lares_jax.model.transformer import FeedForward


class Filter(Layer):
  """LN(x + dropout(irfft(rfft(x) * W))), W complex of L // 2 + 1 frequencies by D."""

  @nn.compact
  def __call__(self, x_BxLxD, train: bool):
    length = x_BxLxD.shape[1]
    out_BxLxD = irfft(rfft(x_BxLxD) * learned(self, length, self.config.width), length)
    return self.residual(x_BxLxD, out_BxLxD.astype(x_BxLxD.dtype), train)


class FmlpLayer(Layer):
  """Filter, then feed-forward (4D wide as published)."""

  @nn.compact
  def __call__(self, x_BxLxD, context: Context, train: bool):
    x_BxLxD = Filter(self.config, self.rate, name='filter')(x_BxLxD, train)
    return FeedForward(self.config, self.rate, name='ffn')(x_BxLxD, train)
