"""The only file that scores items: one pass over the catalogue, tile by tile, never [M, V].

Everything that compares a user vector with items goes through here: the cross-entropy of phase
one, the reward and the target log-probabilities of phase two, evaluation, and recommendation.
Queries are taken in tiles and items in blocks, so that the largest temporary is one tile by one
block, whatever the batch and the catalogue; the backward pass computes the blocks anew.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lares_jax.errors import InputError

# A tie is a difference within the rounding error of a dot product, relative to |q||e|.
TIE_TOLERANCE = 2.0**-21
_LOWEST = float(np.finfo(np.float32).min)


@dataclasses.dataclass(frozen=True)
class CatalogueConfig:
  """How a user vector u scores item v: `dot` u.e / tau, or `cos` of the two / tau."""

  similarity: str = 'dot'
  tau: float = 1.0
  tile: int = 1024  # queries at a time
  block: int = 2048  # items at a time
  dtype: str = 'float32'  # of the products; sums are float32 always

  def __post_init__(self):
    if self.similarity not in ('dot', 'cos'):
      raise InputError(f'catalogue.similarity={self.similarity!r}: use dot or cos')
    if self.tau <= 0:
      raise InputError(f'catalogue.tau={self.tau}: use a number above 0')


class Likelihood(NamedTuple):
  """Of M queries: log-sum-exp of all items' scores, and the target's own score (both nats)."""

  lse_M: jax.Array
  target_score_M: jax.Array

  @property
  def logprob_M(self) -> jax.Array:
    """log softmax score of the target."""
    return self.target_score_M - self.lse_M


def unit(x_MxD: jax.Array) -> jax.Array:
  """Rows scaled to length one; a zero row stays zero (and has a gradient of zero)."""
  square_Mx1 = jnp.sum(jnp.square(x_MxD), axis=-1, keepdims=True)
  return x_MxD * jax.lax.rsqrt(jnp.maximum(square_Mx1, 1e-24))


def _comparable(x_MxD: jax.Array, config: CatalogueConfig) -> jax.Array:
  x_MxD = x_MxD.astype(jnp.float32)
  return unit(x_MxD) if config.similarity == 'cos' else x_MxD


def pair_scores(query_MxD, item_MxD, config: CatalogueConfig) -> jax.Array:
  """Scores of matching rows [M]: the scoring function itself."""
  query_MxD = _comparable(query_MxD, config).astype(config.dtype)
  item_MxD = _comparable(item_MxD, config).astype(config.dtype)
  return jnp.einsum('md,md->m', query_MxD, item_MxD, preferred_element_type=jnp.float32) / config.tau


def block_scores(query_MxD, item_KxD, config: CatalogueConfig) -> jax.Array:
  """Scores of every query with every item of one block [M, K]."""
  query_MxD = _comparable(query_MxD, config).astype(config.dtype)
  item_KxD = _comparable(item_KxD, config).astype(config.dtype)
  scores_MxK = jnp.einsum('md,kd->mk', query_MxD, item_KxD, preferred_element_type=jnp.float32)
  return scores_MxK / config.tau


class _Blocks(NamedTuple):
  """Equal blocks over `size` rows; the last starts early enough to end with the table."""

  size: int
  block: int

  @classmethod
  def over(cls, size: int, block: int) -> '_Blocks':
    return cls(size, min(size, block))

  @property
  def count(self) -> int:
    return -(-self.size // self.block)

  def start(self, i: jax.Array) -> jax.Array:
    return jnp.minimum(i * self.block, self.size - self.block)

  def take(self, x: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x, self.start(i), self.block)

  def index(self, i: jax.Array) -> jax.Array:
    return self.start(i) + jnp.arange(self.block)

  def fresh(self, i: jax.Array) -> jax.Array:
    """Rows of block i that no earlier block held [block]."""
    return self.index(i) >= i * self.block

  def add(self, total: jax.Array, part: jax.Array, i: jax.Array) -> jax.Array:
    """`total` with `part` added at the rows of block i, in place where XLA can."""
    return jax.lax.dynamic_update_slice_in_dim(total, self.take(total, i) + part, self.start(i), 0)


class _Tiles:
  """Queries in equal tiles, those that count first, so that tiles of mere filling are skipped."""

  def __init__(self, real_M: jax.Array, tile: int):
    self._rows = real_M.shape[0]
    self._tile = min(self._rows, tile)
    self._count = -(-self._rows // self._tile)
    self._order_M = jnp.argsort(~real_M)  # stable
    self.real = self.split(real_M)

  def split(self, x: jax.Array) -> jax.Array:
    """[M, ..] -> [tiles, tile, ..]."""
    padding = [(0, self._count * self._tile - self._rows)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x[self._order_M], padding).reshape(self._count, self._tile, *x.shape[1:])

  def join(self, x: jax.Array) -> jax.Array:
    """[tiles, tile, ..] -> [M, ..], in the caller's order."""
    x = x.reshape(-1, *x.shape[2:])[: self._rows]
    return jnp.zeros_like(x).at[self._order_M].set(x, unique_indices=True)

  def map(self, function, *arrays):
    """`function(tile of each array)` for every tile with something real; elsewhere zeros."""
    arrays = tuple(map(self.split, arrays))
    shapes = jax.eval_shape(function, *(x[0] for x in arrays))
    skip = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    one = lambda args: jax.lax.cond(args[0].any(), function, skip, *args[1:])
    return jax.tree.map(self.join, jax.lax.map(one, (self.real, *arrays)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def likelihood(query_MxD, target_M, real_M, table_VxD, config: CatalogueConfig) -> Likelihood:
  """Exact softmax over the catalogue for M queries.

  Args:
    query_MxD: user vectors.
    target_M: item ids of the targets.
    real_M: False where a query is filling; its results are to be ignored, its gradients are 0.
    table_VxD: item embeddings.
    config: scores and block sizes.
  """
  blocks = _Blocks.over(table_VxD.shape[0], config.block)

  def lse_of(query_mxD):
    def step(i, carry):
      high_m, sum_m = carry
      scores_mxK = block_scores(query_mxD, blocks.take(table_VxD, i), config)
      scores_mxK = jnp.where(blocks.fresh(i), scores_mxK, -jnp.inf)
      new_m = jnp.maximum(high_m, scores_mxK.max(axis=1))
      sum_m = sum_m * jnp.exp(high_m - new_m) + jnp.exp(scores_mxK - new_m[:, None]).sum(axis=1)
      return new_m, sum_m

    first = jnp.full(query_mxD.shape[0], _LOWEST), jnp.zeros(query_mxD.shape[0])
    high_m, sum_m = jax.lax.fori_loop(0, blocks.count, step, first)
    return high_m + jnp.log(sum_m)

  with jax.named_scope('catalogue'):
    lse_M = _Tiles(real_M, config.tile).map(lse_of, query_MxD)
    target_score_M = pair_scores(query_MxD, table_VxD[target_M], config)
    return Likelihood(lse_M, jnp.where(real_M, target_score_M, 0.0))


def _likelihood_forward(query_MxD, target_M, real_M, table_VxD, config):
  out = likelihood(query_MxD, target_M, real_M, table_VxD, config)
  return out, (query_MxD, target_M, real_M, table_VxD, out.lse_M)


def _likelihood_backward(config, saved, grads):
  query_MxD, target_M, real_M, table_VxD, lse_M = saved
  g_lse_M, g_target_M = (jnp.where(real_M, g, 0.0) for g in grads)
  blocks = _Blocks.over(table_VxD.shape[0], config.block)
  tiles = _Tiles(real_M, config.tile)

  def per_tile(d_table_VxD, args):
    real_m, query_mxD, lse_m, g_lse_m = args

    def per_block(i, carry):
      d_query_mxD, d_table_VxD = carry
      score = lambda query, item: block_scores(query, item, config)
      scores_mxK, pull = jax.vjp(score, query_mxD, blocks.take(table_VxD, i))
      g_mxK = jnp.exp(scores_mxK - lse_m[:, None]) * g_lse_m[:, None]
      d_query, d_item_KxD = pull(jnp.where(blocks.fresh(i), g_mxK, 0.0))
      return d_query_mxD + d_query, blocks.add(d_table_VxD, d_item_KxD, i)

    work = lambda carry: jax.lax.fori_loop(0, blocks.count, per_block, carry)
    carry = jnp.zeros_like(query_mxD), d_table_VxD
    d_query_mxD, d_table_VxD = jax.lax.cond(real_m.any(), work, lambda carry: carry, carry)
    return d_table_VxD, d_query_mxD

  with jax.named_scope('catalogue_backward'):
    _, pull = jax.vjp(lambda q, e: pair_scores(q, e, config), query_MxD, table_VxD[target_M])
    d_query_target_MxD, d_target_MxD = pull(g_target_M)
    d_table_VxD = jnp.zeros_like(table_VxD).at[target_M].add(d_target_MxD)
    args = (tiles.real, *map(tiles.split, (query_MxD, lse_M, g_lse_M)))
    d_table_VxD, d_query = jax.lax.scan(per_tile, d_table_VxD, args)
  return tiles.join(d_query) + d_query_target_MxD, None, None, d_table_VxD


likelihood.defvjp(_likelihood_forward, _likelihood_backward)


def _hide(scores_mxK, start, hidden_mxH):
  """Scores with each query's hidden items (ids, -1 fills) at -inf; no [M, V] mask is built."""
  column_mxH = hidden_mxH - start
  inside_mxH = (column_mxH >= 0) & (column_mxH < scores_mxK.shape[1])
  column_mxH = jnp.where(inside_mxH, column_mxH, scores_mxK.shape[1])  # out of range: dropped
  row_mx1 = jnp.arange(scores_mxK.shape[0])[:, None]
  return scores_mxK.at[row_mx1, column_mxH].set(-jnp.inf, mode='drop')


def ranks(query_MxD, target_M, real_M, table_VxD, config, hidden_MxH=None) -> jax.Array:
  """Rank of each target from 0 [M]: items that score higher, plus half of the ties.

  A NaN score never helps: it counts as higher than the target, and a NaN target is last.
  With `hidden_MxH` (item ids, -1 fills) those items are out of the ranking; a target among them
  cannot be recommended, so it is last.
  """
  blocks = _Blocks.over(table_VxD.shape[0], config.block)
  if hidden_MxH is None:
    hidden_MxH = jnp.full((real_M.shape[0], 0), -1)

  def rank_of(query_mxD, target_m, hidden_mxH):
    item_mxD = table_VxD[target_m]
    target_score_m = pair_scores(query_mxD, item_mxD, config)
    lengths_m = [jnp.linalg.norm(_comparable(x, config), axis=-1) for x in (query_mxD, item_mxD)]
    slack_m = TIE_TOLERANCE * lengths_m[0] * lengths_m[1] / config.tau
    low_mx1, high_mx1 = (target_score_m - slack_m)[:, None], (target_score_m + slack_m)[:, None]

    def step(i, rank_m):
      scores_mxK = block_scores(query_mxD, blocks.take(table_VxD, i), config)
      scores_mxK = _hide(scores_mxK, blocks.start(i), hidden_mxH)
      # Written with "not below" so that a comparison with NaN counts against the target.
      above_mxK = 0.5 * ~(scores_mxK < low_mx1) + 0.5 * ~(scores_mxK <= high_mx1)
      other_mxK = blocks.fresh(i) & (blocks.index(i) != target_m[:, None])
      return rank_m + jnp.where(other_mxK, above_mxK, 0.0).sum(axis=1)

    rank_m = jax.lax.fori_loop(0, blocks.count, step, jnp.zeros(target_m.shape[0]))
    last = (hidden_mxH == target_m[:, None]).any(axis=1)
    return jnp.where(last, table_VxD.shape[0] - 1.0, rank_m)

  with jax.named_scope('catalogue_ranks'):
    return _Tiles(real_M, config.tile).map(
      rank_of, query_MxD, target_M, hidden_MxH)


def top_k(query_MxD, real_M, table_VxD, k: int, config, hidden_MxH=None):
  """The k best items of each query: (scores [M, k] falling, item ids [M, k]); ties by lower id.

  Where fewer than k items are left after `hidden_MxH`, the score is -inf and the id -1.
  """
  blocks = _Blocks.over(table_VxD.shape[0], config.block)
  if hidden_MxH is None:
    hidden_MxH = jnp.full((real_M.shape[0], 0), -1)

  def best_of(query_mxD, hidden_mxH):
    def step(i, best):
      scores_mxK = block_scores(query_mxD, blocks.take(table_VxD, i), config)
      scores_mxK = _hide(scores_mxK, blocks.start(i), hidden_mxH)
      scores_mxK = jnp.where(blocks.fresh(i) & ~jnp.isnan(scores_mxK), scores_mxK, -jnp.inf)
      score_mxk, column_mxk = jax.lax.top_k(scores_mxK, min(k, blocks.block))
      both = jnp.concatenate([best[0], score_mxk], axis=1)
      items = jnp.concatenate([best[1], column_mxk + blocks.start(i)], axis=1)
      score_mxk, place_mxk = jax.lax.top_k(both, k)
      return score_mxk, jnp.take_along_axis(items, place_mxk, axis=1)

    rows = query_mxD.shape[0]
    first = jnp.full((rows, k), -jnp.inf), jnp.full((rows, k), -1)
    score_mxk, item_mxk = jax.lax.fori_loop(0, blocks.count, step, first)
    return score_mxk, jnp.where(jnp.isneginf(score_mxk), -1, item_mxk)

  with jax.named_scope('catalogue_top_k'):
    return _Tiles(real_M, config.tile).map(best_of, query_MxD, hidden_MxH)
