"""The two ways to train ReaRec (arXiv 2503.22675): ensemble (erl) and progressive (prl) reasoning."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lares_jax.catalogue import Catalogue
from lares_jax.data.batches import Batch
from lares_jax.model.rearec import ReaRec, all_at
from lares_jax.objectives.pretrain import infonce
from lares_jax.scoring import as_query


@dataclasses.dataclass(frozen=True)
class RearecConfig:
  """Weights of the terms; the defaults are those published."""

  kl: float = 0.05  # erl: of the divergence between thoughts, which is rewarded
  early: float = 1.0  # prl: of the cross-entropy of all thoughts but the last
  heat: float = 5.0  # prl: the thought n before the last is scored at tau * heat ** n
  contrast: float = 1.0  # prl: of the contrast with noisy thoughts; over pretrain.train.pairs tokens
  noise: float = 0.01  # prl: standard deviation of that noise


@dataclasses.dataclass(frozen=True)
class Rearec:
  """The loss of phase one: `objective(params, None, batch, (), key) -> (loss, metrics)`."""

  model: ReaRec
  catalogue: Catalogue
  config: RearecConfig

  def draw(self, _: np.random.Generator) -> tuple[()]:
    return ()

  def __call__(self, params, _, batch: Batch, draw: tuple[()], key):
    c, keys = self.config, jax.random.split(key, 4)

    def think(start_TxBxLxD, key):
      return self.model.apply({'params': params}, batch.rows, True, start_TxBxLxD, method='thoughts',
                              rngs={'dropout': key})

    state_TxBxLxD = think(None, keys[0])
    count, *_, width = state_TxBxLxD.shape
    thought_TxMxD = all_at(state_TxBxLxD.astype(jnp.float32), batch.place_BxA).reshape(count, -1, width)
    target_M, scored_M = batch.target_BxA.reshape(-1), batch.scored_BxA.reshape(-1)
    targets = jnp.maximum(scored_M.sum(), 1)
    mean = lambda x_XxM: jnp.where(scored_M, x_XxM, 0.0).sum(axis=-1) / targets

    def likelihood(query_XxMxD, table_RxD, key=None):
      wide = lambda x_M: jnp.broadcast_to(x_M, query_XxMxD.shape[:2])
      return self.catalogue.likelihood(query_XxMxD, wide(target_M), wide(scored_M), table_RxD, key)

    cross_entropy = lambda query_XxMxD: -mean(
      likelihood(query_XxMxD, params['item'], keys[1]).logprob_M)
    if self.model.config.reasoner == 'erl':
      loss = cross_entropy(thought_TxMxD.mean(axis=0)[None])[0]
      metrics = {'cross_entropy': loss, 'targets': targets}
      if c.kl > 0:
        lse = lambda query_TxMxD: likelihood(query_TxMxD, jax.lax.stop_gradient(params['item'])).lse_M
        metrics['divergence'] = divergence(lse, thought_TxMxD, mean)
        loss -= c.kl * metrics['divergence']
      return loss, metrics

    heat_T = c.heat ** jnp.arange(count - 1.0, -1.0, -1.0)
    cross_entropy_T = cross_entropy(thought_TxMxD / heat_T[:, None, None])
    last, early = cross_entropy_T[-1], cross_entropy_T[:-1].mean()
    metrics = {'cross_entropy': last, 'early': early, 'targets': targets}
    loss = last + c.early * early
    if batch.pairs is not None:  # of them, the anchors alone
      noise_TxBxLxD = c.noise * jax.random.normal(keys[2], state_TxBxLxD[1:].shape)
      # Each starts from the clean thought before it, so that noise and dropout do not add up.
      noisy_TxBxLxD = think(state_TxBxLxD[:-1] + noise_TxBxLxD.astype(state_TxBxLxD.dtype), keys[3])
      at = lambda x_BxLxD: as_query(
        x_BxLxD.reshape(-1, width)[batch.pairs.anchor_P], self.catalogue.config.similarity)
      metrics['contrast'] = jnp.stack([
        infonce(at(noisy), at(clean), self.catalogue.config.tau, batch.pairs.real_PxP)
        for noisy, clean in zip(noisy_TxBxLxD[1:], state_TxBxLxD[1:])]).mean()
      loss += c.contrast * metrics['contrast']
    return loss, metrics


def divergence(lse, query_TxMxD, mean) -> jax.Array:
  """Mean KL(p_s || p_t), in nats, over pairs of thoughts s != t, of their softmax over all items.

  With scores linear in the query, KL(p_s || p_t) = lse_t - lse_s - m_s.(q_t - q_s), where m_s, the
  gradient of lse_s, is the mean item under p_s: nothing of the catalogue's size is built. p_s is held
  fixed, where the published code holds p_t; over both orders of a pair the gradients agree to first
  order.
  """
  fixed_TxMxD, count = jax.lax.stop_gradient(query_TxMxD), len(query_TxMxD)
  mean_TxMxD = jax.grad(lambda query_TxMxD: lse(query_TxMxD).sum())(fixed_TxMxD)
  lse_TxM = lse(query_TxMxD)
  rest_TxM = jax.lax.stop_gradient(lse_TxM) - (mean_TxMxD * fixed_TxMxD).sum(axis=-1)
  cross_SxTxM = jnp.einsum('smd,tmd->stm', mean_TxMxD, query_TxMxD, precision='highest')
  kl_SxTxM = lse_TxM[None] - rest_TxM[:, None] - cross_SxTxM
  return mean(kl_SxTxM).sum() / (count * (count - 1))
