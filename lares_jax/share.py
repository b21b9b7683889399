"""One device's share of the catalogue: a pass over its items, tile by tile, never [M, V].

Queries are taken in tiles and items in blocks, so that the largest temporary is one tile by one
block, whatever the batch and the catalogue; the backward pass computes the blocks anew. A small
catalogue (`catalogue.keep`) is the exception: `objective` keeps a tile's scores with all of its
items, and takes the gradients while they are at hand. What the shares of several devices add up to
is the business of `catalogue`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from lares_jax.scoring import CatalogueConfig, as_item, as_query, block_scores, pair_products, product


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
  """Rows of the item table in equal blocks; the last starts early enough to end with the rows.

  Row r holds item `first` + r. Rows beyond the `items` of the whole catalogue are padding: never
  a class, never a target.
  """

  table_RxD: jax.Array
  first: jax.Array | int
  items: int
  config: CatalogueConfig

  @property
  def size(self) -> int:
    return self.table_RxD.shape[0]

  @property
  def block(self) -> int:
    """Items of a block: as `config.block` allows, and such that the last overlaps the least."""
    step = math.gcd(self.config.block, 8)  # where rows lie well in memory
    count = -(-self.size // self.config.block)
    return min(self.size, step * -(-self.size // (step * count)))

  @property
  def count(self) -> int:
    return -(-self.size // self.block)

  def start(self, i: jax.Array) -> jax.Array:
    return jnp.minimum(i * self.block, self.size - self.block)

  def take(self, x_RxD: jax.Array, i: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(x_RxD, self.start(i), self.block)

  def scores(self, query_mxD: jax.Array, i: jax.Array, hidden_mxH=None) -> jax.Array:
    """Scores with block i [m, K]; those of each query's hidden items (-1 fills), if given, are -inf."""
    scores_mxK = block_scores(query_mxD, self.take(self.table_RxD, i), self.config)
    if hidden_mxH is None:
      return scores_mxK
    row_mx1 = jnp.arange(scores_mxK.shape[0])[:, None]
    column_mxH = hidden_mxH - self.item(i)[0]
    return scores_mxK.at[row_mx1, column_mxH].set(
      -jnp.inf, mode='drop', wrap_negative_indices=False)  # no [M, V] mask is built

  def item(self, i: jax.Array) -> jax.Array:
    """Items of block i [K]."""
    return self.first + self.start(i) + jnp.arange(self.block)

  def counts(self, i: jax.Array) -> jax.Array:
    """Which of them are items at all, and in no earlier block [K]."""
    item_K = self.item(i)
    return (item_K >= self.first + i * self.block) & (item_K < self.items)

  def add(self, total_RxD: jax.Array, part_KxD: jax.Array, i: jax.Array) -> jax.Array:
    """`total` with `part` added at the rows of block i, in place where XLA can."""
    sum_KxD = self.take(total_RxD, i) + part_KxD
    return jax.lax.dynamic_update_slice_in_dim(total_RxD, sum_KxD, self.start(i), 0)

  def lookup(self, item: jax.Array) -> jax.Array:
    """Embeddings of items [.., D]; zeros for those that another device holds.

    Items of an earlier share are negative here, and must not count from the end.
    """
    return jnp.asarray(self.table_RxD).at[item - self.first].get(
      mode='fill', fill_value=0.0, wrap_negative_indices=False)

  def scatter(self, item: jax.Array, d: jax.Array) -> jax.Array:
    """The gradient of `lookup` with respect to the rows [R, D]."""
    return jnp.zeros_like(self.table_RxD).at[item - self.first].add(
      d, mode='drop', wrap_negative_indices=False)


def _by_tile(function, tile: int, real_M: jax.Array, arrays, carry=None):
  """carry, result = function(carry, *tile of each array) for all tiles: the carry, results [M, ..].

  Queries that count come first, so that tiles of mere filling are skipped; their results are zeros.
  """
  rows = real_M.shape[0]  # not len: a shape may be symbolic
  tile = min(rows, tile)
  count = -(-rows // tile)
  seen_M = jnp.cumsum(real_M)  # counting keeps the order, and takes a tenth of the time of a sort
  place_M = jnp.where(real_M, seen_M - 1, seen_M[-1] + jnp.arange(rows) - seen_M)
  order_M = jnp.zeros_like(place_M).at[place_M].set(jnp.arange(rows), unique_indices=True)

  def split(x):
    padding = [(0, count * tile - rows)] + [(0, 0)] * (x.ndim - 1)
    return jnp.pad(x[order_M], padding).reshape(count, tile, *x.shape[1:])

  join = lambda x: x.reshape(-1, *x.shape[2:])[place_M]

  def step(carry, args):
    real_m, *tiles = args
    work = lambda carry: function(carry, *tiles)
    _, shapes = jax.eval_shape(work, carry)
    skip = lambda carry: (carry, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
    return jax.lax.cond(real_m.any(), work, skip, carry)

  carry, results = jax.lax.scan(step, carry, jax.tree.map(split, (real_M, *arrays)))
  return carry, jax.tree.map(join, results)


def log_sum_exp(share: Share, query_MxD: jax.Array, real_M: jax.Array) -> jax.Array:
  """Log-sum-exp of every query's scores with the items of the share [M]."""

  def of_tile(_, query_mxD):
    def step(i, carry):
      high_m, sum_m = carry
      scores_mxK = jnp.where(share.counts(i), share.scores(query_mxD, i), -jnp.inf)
      new_m = jnp.maximum(high_m, scores_mxK.max(axis=1))
      sum_m = sum_m * jnp.exp(high_m - new_m) + jnp.exp(scores_mxK - new_m[:, None]).sum(axis=1)
      return new_m, sum_m

    first = jnp.full(query_mxD.shape[0], jnp.finfo(jnp.float32).min), jnp.zeros(query_mxD.shape[0])
    high_m, sum_m = jax.lax.fori_loop(0, share.count, step, first)
    return None, high_m + jnp.log(sum_m)

  return _by_tile(of_tile, share.config.tile, real_M, (query_MxD,))[1]


def lse_gradients(share: Share, query_MxD, real_M, lse_M, g_M, d_table_RxD):
  """Gradients of sum(g * lse) by queries and rows, the latter added to `d_table_RxD`.

  `lse_M` is that of the whole catalogue, so each share's gradient is a part of the whole one.
  """

  def of_tile(d_table_RxD, query_mxD, lse_m, g_m):
    def step(i, carry):
      d_table_RxD, d_query_mxD = carry
      score = lambda query, item: block_scores(query, item, share.config)
      scores_mxK, pull = jax.vjp(score, query_mxD, share.take(share.table_RxD, i))
      g_mxK = jnp.exp(scores_mxK - lse_m[:, None]) * g_m[:, None]
      d_query, d_item_KxD = pull(jnp.where(share.counts(i), g_mxK, 0.0))
      return share.add(d_table_RxD, d_item_KxD, i), d_query_mxD + d_query

    return jax.lax.fori_loop(0, share.count, step, (d_table_RxD, jnp.zeros_like(query_mxD)))

  d_table_RxD, d_query_MxD = _by_tile(
    of_tile, share.config.tile, real_M, (query_MxD, lse_M, g_M), d_table_RxD)
  return d_query_MxD, d_table_RxD


def objective(share: Share, function, query_MxD, target_M, real_M, with_M):
  """Log-probabilities, and the gradients of the sum of function(logprob, *with) of all real queries.

  The share is to be the whole catalogue. A tile's scores are kept until its gradients are taken: a
  quarter less products, and half of the exponentials, than by `log_sum_exp` and `lse_gradients`.

  Returns: logprob_M (0 where not real), d_query_MxD, d_table_RxD.
  """
  config = share.config
  times = lambda axes, x, y: product(axes, x, y, config)
  query_MxD, pull_query = jax.vjp(lambda x: as_query(x, config.similarity), query_MxD)
  item_RxD, pull_item = jax.vjp(lambda x: as_item(x, config.similarity), share.table_RxD)

  def of_tile(d_item_RxD, real_m, query_mxD, own_mxD, with_m):
    score_m = pair_products(query_mxD, own_mxD, config) / config.tau
    scores_mxR = times('md,rd->mr', query_mxD, item_RxD) / config.tau
    high_m = scores_mxR.max(axis=1)
    exp_mxR = jnp.exp(scores_mxR - high_m[:, None])
    sum_m = exp_mxR.sum(axis=1)
    logprob_m = jnp.where(real_m, score_m - high_m - jnp.log(sum_m), 0.0)
    g_m = jax.grad(lambda logprob_m: function(logprob_m, *with_m).sum())(logprob_m)
    g_mx1 = jnp.where(real_m, g_m / config.tau, 0.0)[:, None]
    part_mx1 = g_mx1 / sum_m[:, None]  # scales queries, not their many scores
    d_query_mxD = g_mx1 * own_mxD - part_mx1 * times('mr,rd->md', exp_mxR, item_RxD)
    d_item_RxD -= times('mr,md->rd', exp_mxR, part_mx1 * query_mxD)
    return d_item_RxD, (logprob_m, d_query_mxD, g_mx1 * query_mxD)

  d_item_RxD, (logprob_M, d_query_MxD, d_own_MxD) = _by_tile(
    of_tile, config.kept(share.size), real_M, (real_M, query_MxD, item_RxD[target_M], with_M),
    jnp.zeros_like(item_RxD))
  d_item_RxD = d_item_RxD.at[target_M].add(d_own_MxD)
  return logprob_M, *pull_query(d_query_MxD), *pull_item(d_item_RxD)


def count_above(share: Share, query_MxD, real_M, target_M, low_M, high_M, hidden_MxH=None):
  """Items of the share but the target that score above `high`, half of those from `low` on [M].

  A NaN score counts as above; items of `hidden_MxH` (-1 fills), if given, do not count.
  """

  def of_tile(_, query_mxD, target_m, low_m, high_m, hidden_mxH):
    def step(i, rank_m):
      scores_mxK = share.scores(query_mxD, i, hidden_mxH)
      # Written with "not below" so that a comparison with NaN counts against the target.
      above_mxK = 0.5 * ~(scores_mxK < low_m[:, None]) + 0.5 * ~(scores_mxK <= high_m[:, None])
      other_mxK = share.counts(i) & (share.item(i) != target_m[:, None])
      return rank_m + jnp.where(other_mxK, above_mxK, 0.0).sum(axis=1)

    return None, jax.lax.fori_loop(0, share.count, step, jnp.zeros(target_m.shape[0]))

  queries = query_MxD, target_M, low_M, high_M, hidden_MxH
  return _by_tile(of_tile, share.config.tile, real_M, queries)[1]


def best(share: Share, query_MxD, real_M, k: int, hidden_MxH=None):
  """The k best items of the share: (scores [M, k] falling, items [M, k]); ties by lower id."""

  def of_tile(_, query_mxD, hidden_mxH):
    def step(i, best):
      scores_mxK = share.scores(query_mxD, i, hidden_mxH)
      scores_mxK = jnp.where(share.counts(i) & ~jnp.isnan(scores_mxK), scores_mxK, -jnp.inf)
      score_mxk, column_mxk = jax.lax.top_k(scores_mxK, min(k, share.block))
      both = jnp.concatenate([best[0], score_mxk], axis=1)
      items = jnp.concatenate([best[1], column_mxk + share.item(i)[0]], axis=1)
      return best_of(both, items, k)

    rows = query_mxD.shape[0]
    first = jnp.full((rows, k), -jnp.inf), jnp.full((rows, k), -1)
    return None, jax.lax.fori_loop(0, share.count, step, first)

  return _by_tile(of_tile, share.config.tile, real_M, (query_MxD, hidden_MxH))[1]


def best_of(score_MxN, item_MxN, k: int):
  """The k best of N candidates; of equal ones, those that come first. None left: -inf and -1."""
  score_Mxk, place_Mxk = jax.lax.top_k(score_MxN, k)
  item_Mxk = jnp.take_along_axis(item_MxN, place_Mxk, axis=1)
  return score_Mxk, jnp.where(jnp.isneginf(score_Mxk), -1, item_Mxk)
