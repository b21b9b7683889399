"""Phase two: group-relative reinforcement of rollouts that rank the target well."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lares_jax import metrics
from lares_jax.catalogue import Catalogue
from lares_jax.data.batches import Batch
from lares_jax.errors import InputError
from lares_jax.model import depth
from lares_jax.model.depth import DepthConfig
from lares_jax.model.lares import Lares, initial_state


@dataclasses.dataclass(frozen=True)
class PosttrainConfig:
  """Rollouts, their reward, and how tightly the reference holds the policy."""

  rollouts: int = 4  # G
  reward: metrics.Kind = 'recall'
  k: int = 10
  beta: float = 1.0
  reference_noise: Literal['shared', 'independent'] = 'shared'  # the rollout's Z_0; or as published

  def __post_init__(self):
    if self.rollouts < 2:
      raise InputError(f'posttrain.loss.rollouts={self.rollouts}: a group needs at least 2')


def advantages(reward_GxM: jax.Array) -> jax.Array:
  """(reward - mean of the group) / (unbiased std of the group + 1e-4); 0 where all are equal."""
  apart_GxM = reward_GxM - reward_GxM.mean(axis=0)
  apart_GxM = jnp.where(_equal(reward_GxM), 0.0, apart_GxM)  # a mean of equals is rounded, too
  return apart_GxM / (reward_GxM.std(axis=0, ddof=1) + 1e-4)


def _equal(reward_GxM):
  return reward_GxM.max(axis=0) == reward_GxM.min(axis=0)


def divergence(logprob, reference):
  """KL to the reference as estimated from the target alone: exp(ref - lp) - (ref - lp) - 1."""
  gap = reference - logprob
  return jnp.expm1(gap) - gap


def policy_loss(beta: float, logprob, reference, advantage, weight):
  """The loss of one step of one rollout: -w (exp(lp - stop(lp)) A - beta KL), element by element.

  The weight w is 0 for steps beyond the rollout's depth, and makes the sum a mean.
  """
  ratio = jnp.exp(logprob - jax.lax.stop_gradient(logprob))
  return -weight * (ratio * advantage - beta * divergence(logprob, reference))


@dataclasses.dataclass(frozen=True)
class Posttrain:
  """The loss of phase two: `objective(params, reference, batch, depth_G, key) -> (loss, metrics)`.

  The model carries phase two's dropout. A batch's prompts are its scored places.
  """

  model: Lares
  catalogue: Catalogue
  depth: DepthConfig
  config: PosttrainConfig

  def draw(self, generator: np.random.Generator) -> np.ndarray:
    """The depth of each rollout [G], for one step."""
    return depth.draw(self.depth, generator, self.config.rollouts)

  def __call__(self, params, reference, batch: Batch, depth_G, key):
    key_z, key_reference, key_dropout = jax.random.split(key, 3)
    rows = self._repeated(batch.rows)
    z0 = lambda key: initial_state(self.model.config, rows, key, train=True)
    z_NxLxD = z0(key_z)
    shared = self.config.reference_noise == 'shared'
    return self.loss(params, reference, batch, depth_G,
                     (z_NxLxD, z_NxLxD if shared else z0(key_reference)), key_dropout)

  def loss(self, params, reference, batch: Batch, depth_G, initial, key):
    """The loss given Z_0 of policy and reference, [B * G, L, D], the rollouts of a row side by side."""
    c = self.config
    states_TxGxMxD, distance_T = self._states(params, batch, depth_G, initial[0], True, key)
    reference = jax.lax.stop_gradient(reference)
    frozen_TxGxMxD, _ = self._states(reference, batch, depth_G, initial[1], False, key)
    prompt_M, target_M = batch.scored_BxA.reshape(-1), batch.target_BxA.reshape(-1)
    final_GxMxD = jax.lax.stop_gradient(states_TxGxMxD[depth_G - 1, jnp.arange(c.rollouts)])
    each = lambda x_M: jnp.broadcast_to(x_M, final_GxMxD.shape[:2])
    rank_GxM = self.catalogue.ranks(final_GxMxD.astype(jnp.float32), each(target_M), each(prompt_M),
                                    jax.lax.stop_gradient(params['item']))
    reward_GxM = metrics.gain(rank_GxM, c.k, c.reward, jnp)
    advantage_GxM = advantages(reward_GxM)

    prompts = jnp.maximum(prompt_M.sum(), 1)
    over = lambda x_M: jnp.where(prompt_M, x_M, 0.0).sum() / prompts
    shape = states_TxGxMxD.shape[:3]
    step_TxGx1 = jnp.arange(shape[0])[:, None, None] < depth_G[:, None]
    real_TxGxM = step_TxGx1 & prompt_M
    weight_TxGxM = jnp.where(real_TxGxM, 1 / depth_G[:, None], 0.0) / prompts / c.rollouts
    wide = lambda x: jnp.broadcast_to(x, shape)
    sample = jax.random.fold_in(key, 1)  # of negatives, the same for policy and reference
    reference_TxGxM = jnp.where(real_TxGxM, self.catalogue.likelihood(
      frozen_TxGxMxD.astype(jnp.float32), wide(target_M), real_TxGxM, reference['item'],
      sample).logprob_M, 0.0)
    loss, logprob_TxGxM = self.catalogue.total(
      functools.partial(policy_loss, c.beta), states_TxGxMxD.astype(jnp.float32), wide(target_M),
      real_TxGxM, params['item'], (reference_TxGxM, wide(advantage_GxM), weight_TxGxM), sample)
    kl_TxGxM = divergence(logprob_TxGxM, reference_TxGxM)
    seen = {
      'targets': prompts, 'depth': depth_G.mean(),
      'reward': over(reward_GxM.mean(axis=0)), 'reward_spread': over(reward_GxM.std(axis=0)),
      'equal_groups': over(_equal(reward_GxM)),
      'advantage_spread': jnp.sqrt(over(jnp.square(advantage_GxM).mean(axis=0))),
      'kl': (weight_TxGxM * kl_TxGxM).sum(), 'distance_last': distance_T[depth_G.max() - 1],
      'advantage_GxM': advantage_GxM,
    }
    return loss, seen

  def _states(self, params, batch, depth_G, z_NxLxD, train: bool, key):
    """States after every step at the scored places [T, G, M, D], M = B * A."""
    c, model, groups = self.model.config, self.model, self.config.rollouts
    rows = self._repeated(batch.rows)
    prelude_key, reason_key = jax.random.split(key)

    def apply(key, *args, **kwargs) -> Any:
      return model.apply({'params': params}, *args, **kwargs, rngs={'dropout': key})

    if train and (c.embed_dropout or c.pre_dropout):
      h_NxLxD = apply(prelude_key, rows, train, method='prelude')
    else:  # every rollout would get the same H: compute it once
      h_BxLxD = apply(prelude_key, batch.rows, False, method='prelude')
      h_NxLxD = self._repeated(h_BxLxD)
    count, length = batch.rows.item_BxL.shape
    every_BxL = jnp.broadcast_to(jnp.arange(length), (count, length))
    place_BxA = every_BxL if batch.place_BxA is None else batch.place_BxA
    depth_N = jnp.tile(depth_G, count)
    out = apply(reason_key, h_NxLxD, rows, z_NxLxD, depth_N, self.depth.cap, train,
                place_BxA=self._repeated(place_BxA), method='reason')
    steps, _, places, width = out.states_TxBxAxD.shape
    states_TxGxBxAxD = out.states_TxBxAxD.reshape(steps, count, groups, places, width).swapaxes(1, 2)
    return states_TxGxBxAxD.reshape(steps, groups, count * places, width), out.distance_T

  def _repeated(self, rows):
    """Rows, or arrays of rows, once for each rollout: [B * G, ..].

    The rollouts of a row stay on the device that holds it.
    """
    repeat = lambda x: jnp.repeat(x, self.config.rollouts, axis=0)
    return self.catalogue.split(jax.tree.map(repeat, rows))
