"""TedRec's input: ids fused with frozen text embeddings in the frequency domain of the row.

Xu et al., "Sequence-level Semantic Representation Fusion for Recommender Systems" (CIKM 2024). Any
backbone may follow. Later positions mix into earlier ones, so a row holds one history and only its
last position means anything.
"""

import dataclasses
from typing import Literal

import jax
from flax import linen as nn

from lares_jax.model.backbone import BackboneConfig, dense
from lares_jax.model.dropout import Dropout
from lares_jax.model.fourier import irfft, learned, rfft


@dataclasses.dataclass(frozen=True)
class FusionConfig:
  """What else goes into the input besides ids."""

  name: Literal['none', 'tedrec'] = 'none'
  text_width: int = 768  # W, of the text embeddings
  experts: int = 8
  dropout: float = 0.2  # of the text embeddings
  noise: bool = True  # trainable noise of the experts' gate, in training


class Expert(nn.Module):
  """linear(dropout(text) - b), b learned for each position."""

  fusion: FusionConfig
  config: BackboneConfig

  @nn.compact
  def __call__(self, text_BxLxW, train: bool):
    bias_1xLxW = self.param('bias', nn.initializers.zeros, (1, *text_BxLxW.shape[1:]))
    shifted_BxLxW = Dropout(self.fusion.dropout)(text_BxLxW, train) - bias_1xLxW
    return dense(self.config.width, self.config, 'lin', use_bias=False)(shifted_BxLxW)


class TedrecFusion(nn.Module):
  """The fused input of each token, from its item embedding and its text embedding."""

  fusion: FusionConfig
  config: BackboneConfig

  @nn.compact
  def __call__(self, item_BxLxD, text_BxLxW, train: bool):
    length = item_BxLxD.shape[1]
    filter_1xFxD = learned(self, length, self.config.width)
    item_BxFxD, text_BxFxD = rfft(item_BxLxD), rfft(self._mixture(text_BxLxW, train))
    alone_BxLxD = irfft(item_BxFxD * filter_1xFxD, length)
    mixed_BxLxD = irfft(item_BxFxD * text_BxFxD, length)
    gated = lambda x, name: x * nn.sigmoid(dense(1, self.config, name)(x))
    return 2 * (gated(alone_BxLxD, 'item_gating') + gated(mixed_BxLxD, 'fusion_gating'))

  def _mixture(self, text_BxLxW, train: bool) -> jax.Array:
    """Text embeddings brought to width D by experts, which a softmax gate weighs."""
    shape = (self.fusion.text_width, self.fusion.experts)
    gate_WxE = self.param('w_gate', nn.initializers.zeros, shape)
    noise_WxE = self.param('w_noise', nn.initializers.zeros, shape)
    logits_BxLxE = text_BxLxW @ gate_WxE
    if train and self.fusion.noise:
      std_BxLxE = nn.softplus(text_BxLxW @ noise_WxE) + 0.01
      draw_BxLxE = jax.random.normal(self.make_rng('dropout'), logits_BxLxE.shape)
      logits_BxLxE = logits_BxLxE + std_BxLxE * draw_BxLxE
    share_BxLxE = nn.softmax(logits_BxLxE)
    return sum(
      share_BxLxE[..., e, None] * Expert(self.fusion, self.config, name=f'expert_{e}')(
        text_BxLxW, train)
      for e in range(self.fusion.experts))
