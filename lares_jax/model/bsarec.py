"""The BSARec backbone: attention beside a filter that weighs high frequencies against low ones.

Shin et al., "An Attentive Inductive Bias for Sequential Recommendation beyond the Self-Attention"
(AAAI 2024). The filter sees the whole row, so a row holds one history and only its last position
means anything.
"""

from flax import linen as nn

from lares_jax.model.backbone import Context, Layer
from lares_jax.model.fourier import irfft, rfft
from lares_jax.model.transformer import Attention, FeedForward


class Rescaler(Layer):
  """LN(x + dropout(low + beta^2 * (x - low))), low being the c // 2 + 1 lowest frequencies of x."""

  @nn.compact
  def __call__(self, x_BxLxD, train: bool):
    c = self.config
    low_BxLxD = irfft(rfft(x_BxLxD, c.low_band // 2 + 1), x_BxLxD.shape[1]).astype(x_BxLxD.dtype)
    beta_1x1xD = self.param('sqrt_beta', nn.initializers.normal(1.0), (1, 1, c.width)) ** 2
    out_BxLxD = low_BxLxD + beta_1x1xD.astype(x_BxLxD.dtype) * (x_BxLxD - low_BxLxD)
    return self.residual(x_BxLxD, out_BxLxD, train)


class BsarecLayer(Layer):
  """a * filter + (1 - a) * attention, then feed-forward."""

  @nn.compact
  def __call__(self, x_BxLxD, context: Context, train: bool):
    share = self.config.filter_share
    filtered_BxLxD = Rescaler(self.config, self.rate, name='filter')(x_BxLxD, train)
    attended_BxLxD = Attention(self.config, self.rate, name='attention')(x_BxLxD, context, train)
    x_BxLxD = share * filtered_BxLxD + (1 - share) * attended_BxLxD
    return FeedForward(self.config, self.rate, name='ffn')(x_BxLxD, train)
