"""Sampled losses: a few thousand negatives a step, where all items are too many.

A sample shared by all queries of a step: some of the batch's own targets, some items uniformly, and
some by popularity. Item v is expected E(v) times in it, and its score is lowered by log E(v), which
makes the sum over the sample an unbiased estimate of the sum over the catalogue (importance
sampling from a mixture; the target itself is always there and is not lowered). E takes the batch's
targets to be drawn by popularity. That is nearly so: a user's first item is counted and never a
target, nor are, in phase two, the items of prompts that are left out.

Popularity is a histogram over item numbers, which fall by popularity: within a bin all items are
alike, so that it fits into a few numbers whatever the catalogue, and drawing from it is exact.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lares_jax.errors import InputError

_BINS = 512


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """How many negatives a step of each kind; shared by all of its queries."""

  in_batch: int = 1024
  uniform: int = 1024
  popular: int = 1024
  calibration: float = 0.75  # t of gBCE: 0 leaves plain BCE, 1 undoes its overconfidence

  def __post_init__(self):
    if min(self.in_batch, self.uniform, self.popular) < 0 or self.in_batch + self.uniform < 1:
      raise InputError('catalogue.sample: numbers of negatives are 0 or more, and some must be '
                       'in_batch or uniform')
    if not 0 <= self.calibration <= 1:
      raise InputError(f'catalogue.sample.calibration={self.calibration}: use 0 to 1')


@dataclasses.dataclass(frozen=True)
class Popularity:
  """Share of the training interactions that each bin of items has."""

  edge: tuple[int, ...]  # first item of each bin, and V
  share: tuple[float, ...]

  @classmethod
  def of(cls, train_count_V: np.ndarray) -> 'Popularity':
    """Bins that grow with the item number, since popular items differ most."""
    items = len(train_count_V)
    edge = np.unique(np.geomspace(1, items + 1, _BINS).astype(np.int64)) - 1
    total = np.concatenate([[0], np.cumsum(train_count_V, dtype=np.float64)])[edge]
    share = np.diff(total) + 1e-6 * np.diff(edge)  # every item may be drawn
    return cls(tuple(edge.tolist()), tuple((share / share.sum()).tolist()))

  def probability(self, item_N: jax.Array) -> jax.Array:
    edge = jnp.asarray(self.edge, jnp.int32)
    each = jnp.asarray(np.asarray(self.share) / np.diff(self.edge), jnp.float32)
    return each[jnp.searchsorted(edge, item_N, side='right') - 1]

  def draw(self, key: jax.Array, count: int) -> jax.Array:
    key_bin, key_item = jax.random.split(key)
    chosen_N = jax.random.categorical(key_bin, jnp.log(jnp.asarray(self.share)), shape=(count,))
    low_N, high_N = (jnp.asarray(x, jnp.int32)[chosen_N] for x in (self.edge[:-1], self.edge[1:]))
    return jax.random.randint(key_item, (count,), low_N, high_N)


def draw(config: SampleConfig, popularity: Popularity, target_M, real_M, key):
  """Negatives [N] and the log of how often each is expected among them [N].

  A function of the key and of the whole batch's targets: the same on every host. All are drawn with
  replacement.
  """
  keys = jax.random.split(key, 3)
  items = popularity.edge[-1]
  seen_M = jnp.cumsum(real_M)  # the n-th real one is where it first reaches n
  nth_N = jax.random.randint(keys[0], (config.in_batch,), 1, jnp.maximum(seen_M[-1], 1) + 1)
  of_batch = jnp.searchsorted(seen_M, nth_N)
  negative_N = jnp.concatenate([
    target_M[of_batch], jax.random.randint(keys[1], (config.uniform,), 0, items),
    popularity.draw(keys[2], config.popular)])
  by_popularity = config.in_batch + config.popular
  expected_N = by_popularity * popularity.probability(negative_N) + config.uniform / items
  return negative_N, jnp.log(expected_N)


def log_sum_exp(score_MxN, target_score_M, negative_N, log_expected_N, target_M) -> jax.Array:
  """Estimate of the log-sum-exp over all items [M]; a negative that is the target is left out."""
  hit_MxN = negative_N[None, :] == target_M[:, None]
  lowered_MxN = jnp.where(hit_MxN, -jnp.inf, score_MxN - log_expected_N)
  return jnp.logaddexp(target_score_M, jax.nn.logsumexp(lowered_MxN, axis=1))


def gbce(score_MxN, target_score_M, negative_N, target_M, items: int, calibration: float):
  """Minus the generalised binary cross-entropy (Petrov & Macdonald 2023, arXiv 2308.07192) [M].

  `negative_N` is uniform; with a share a = N / (V - 1) of the items sampled, the positive's
  probability is raised to the power b = a (t (1 - 1 / a) + 1 / a).
  """
  share = len(negative_N) / (items - 1)
  power = calibration * (share - 1) + 1
  hit_MxN = negative_N[None, :] == target_M[:, None]
  others_M = jnp.where(hit_MxN, 0.0, jax.nn.log_sigmoid(-score_MxN)).sum(axis=1)
  return power * jax.nn.log_sigmoid(target_score_M) + others_M
