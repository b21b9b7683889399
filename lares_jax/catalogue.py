"""The only file that knows all items: whatever compares with all passes here, on one device or many.

On a mesh the table's rows are split over the axis `catalogue` and queries over `data`; each device
scores its own rows (`share`). Along `catalogue` what crosses the wire is of the size of the queries;
along `data` it is the gradient of a share of the table.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lares_jax import kernels, negatives
from lares_jax import share as share_lib
from lares_jax.negatives import Popularity
from lares_jax.scoring import CatalogueConfig, block_scores, pair_scores, tie_slack
from lares_jax.share import Share


class Likelihood(NamedTuple):
  """Of M queries: log-sum-exp of all items' scores, and the target's own score (both nats)."""

  lse_M: jax.Array
  target_score_M: jax.Array

  @property
  def logprob_M(self) -> jax.Array:
    """log softmax score of the target."""
    return self.target_score_M - self.lse_M


@dataclasses.dataclass(frozen=True)
class Catalogue:
  """All items of a data set, their embeddings being the rows of a table [R, D], R >= V.

  Methods take queries of shape [M, D], or [.., M, D] with any axes before M; the axis M is the one
  that is split over `data`, and should be a multiple of that axis. Targets, flags and results have
  the same axes less D.
  """

  config: CatalogueConfig
  items: int  # V
  mesh: Mesh | None = None
  popularity: Popularity | None = None  # for sampled losses

  @property
  def rows(self) -> int:
    """R: V, padded so that every device on the axis `catalogue` holds as many rows."""
    return -(-self.items // self._shares) * self._shares

  def likelihood(self, query_MxD, target_M, real_M, table_RxD, key=None) -> Likelihood:
    """Softmax over the catalogue: exact, or what `catalogue.loss` puts in its place.

    Args:
      query_MxD: user vectors.
      target_M: items.
      real_M: False where a query is filling; its results are to be ignored, and with a key its
        gradients, too, which are 0 without.
      table_RxD: item embeddings.
      key: of the sample of negatives; without one the softmax is exact.
    """
    with jax.named_scope('catalogue'):
      if key is not None and self.config.loss != 'exact':
        return self._sampled(query_MxD, target_M, real_M, table_RxD, key)
      return _likelihood(self, query_MxD, target_M, real_M, table_RxD)

  def total(self, function, query_MxD, target_M, real_M, table_RxD, with_M=(), key=None):
    """Sum of function(logprob, *with) over the real queries; log-probabilities [M], 0 if not real.

    `function` works element by element and closes over no array: those are `with_M`. Only the sum
    has a gradient, by queries and table. Where the catalogue is not split, and small enough
    (`catalogue.keep`), no score is computed twice for it.
    """
    with jax.named_scope('catalogue'):
      sampled = key is not None and self.config.loss != 'exact'
      if sampled or self._shares > 1 or not self.config.kept(self.items):
        logprob_M = self.likelihood(query_MxD, target_M, real_M, table_RxD, key).logprob_M
        total, logprob_M = _sum(function, logprob_M, real_M, with_M)
        return total, jax.lax.stop_gradient(logprob_M)
      return _total(self, function, query_MxD, target_M, real_M, table_RxD, with_M)

  def ranks(self, query_MxD, target_M, real_M, table_RxD, hidden_MxH=None) -> jax.Array:
    """Rank of each target from 0 [M]: items that score higher, plus half of the ties.

    A NaN score never helps: it counts as higher than the target, and a NaN target is last.
    With `hidden_MxH` (items, -1 fills) those items are out of the ranking; a target among them
    cannot be recommended, so it is last.
    """

    def of_share(share, over_shares, query_MxD, target_M, real_M, hidden_MxH):
      item_MxD = share.lookup(target_M)
      score_M = over_shares(pair_scores(query_MxD, item_MxD, self.config))
      slack_M = over_shares(tie_slack(query_MxD, item_MxD, self.config))
      rank_M = over_shares(kernels.count_above(
        share, query_MxD, real_M, target_M, score_M - slack_M, score_M + slack_M, hidden_MxH))
      if hidden_MxH is not None:
        last_M = (hidden_MxH == target_M[:, None]).any(axis=1)
        rank_M = jnp.where(last_M, self.items - 1.0, rank_M)
      return rank_M, None

    with jax.named_scope('catalogue_ranks'):
      return self._on_devices(of_share, table_RxD, query_MxD, target_M, real_M, hidden_MxH)[0]

  def top_k(self, query_MxD, real_M, table_RxD, k: int, hidden_MxH=None):
    """The k best items of each query: (scores [M, k] falling, items [M, k]); ties by lower id.

    Where fewer than k items are left after `hidden_MxH`, the score is -inf and the id -1.
    """

    def of_share(share, _, query_MxD, real_M, hidden_MxH):
      own = share_lib.best(share, query_MxD, real_M, k, hidden_MxH)
      if not self._spread:
        return own, None
      gather = lambda x: jax.lax.all_gather(x, 'catalogue', axis=1, tiled=True)
      return share_lib.best_of(gather(own[0]), gather(own[1]), k), None

    with jax.named_scope('catalogue_top_k'):
      return self._on_devices(of_share, table_RxD, query_MxD, real_M, hidden_MxH)[0]

  def lookup(self, table_RxD, item_BxL) -> jax.Array:
    """Embeddings of the items [B, L, D]; of a split table, only these rows cross the wire."""
    return _lookup(self, table_RxD, item_BxL) if self._spread else table_RxD[item_BxL]

  def _sampled(self, query_XxMxD, target_XxM, real_XxM, table_RxD, key) -> Likelihood:
    c = self.config
    assert self.popularity is not None, 'a sampled loss draws by popularity'
    sample = c.sample
    if c.loss == 'gbce':  # is defined for uniform negatives
      sample = dataclasses.replace(sample, in_batch=0, popular=0)
    negative_N, log_expected_N = negatives.draw(
      sample, self.popularity, target_XxM.reshape(-1), real_XxM.reshape(-1), key)
    item_NxD = self.lookup(table_RxD, negative_N[None])[0]
    shape = target_XxM.shape
    target_XxM = target_XxM.reshape(-1, shape[-1])
    query_XxMxD = query_XxMxD.reshape(*target_XxM.shape, -1)
    own_XxMxD = jnp.moveaxis(self.lookup(table_RxD, target_XxM.T), 0, 1)  # by M: it is split

    @jax.checkpoint
    def of_queries(args):
      query_MxD, own_MxD, target_M = args
      score_MxN = block_scores(query_MxD, item_NxD, c)
      score_M = pair_scores(query_MxD, own_MxD, c)
      if c.loss == 'gbce':
        lse_M = score_M - negatives.gbce(
          score_MxN, score_M, negative_N, target_M, self.items, sample.calibration)
      else:
        lse_M = negatives.log_sum_exp(score_MxN, score_M, negative_N, log_expected_N, target_M)
      return Likelihood(lse_M, score_M)

    out = jax.lax.map(of_queries, (query_XxMxD, own_XxMxD, target_XxM))
    return jax.tree.map(lambda x: x.reshape(shape), out)

  def split(self, rows):
    """Arrays of batch rows, split over `data` if they can be; for those that grew out of a batch."""
    if not self._spread:
      return rows
    mesh = self.mesh
    assert mesh is not None
    place = lambda x: NamedSharding(mesh, PartitionSpec(self._data_axis(len(x))))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, place(x)), rows)

  @property
  def _shares(self) -> int:
    return self.mesh.shape['catalogue'] if self.mesh else 1

  @property
  def _spread(self) -> bool:
    return self.mesh is not None and self.mesh.size > 1

  def _data_axis(self, size: int) -> str | None:
    """The axis that queries or rows of a batch are split over; None where it does not divide."""
    assert self.mesh is not None
    return None if size % self.mesh.shape['data'] else 'data'

  def _share(self, table_RxD) -> Share:
    """Within a `shard_map`: this device's."""
    first = jax.lax.axis_index('catalogue') * table_RxD.shape[0]
    return Share(table_RxD, first, self.items, self.config)

  def _on_devices(self, function, table_RxD, query_XxMxD, *others):
    """Runs `function(share, over_shares, queries, *others)` on every device, for its rows and queries.

    `over_shares` adds up what each share gives. The function gets [M, ..] arrays, all axes before M
    merged into it, and returns what belongs to the queries and what belongs to the table's rows, or
    None. Of the others, too, some may be None.
    """

    def one(share, over_shares, query_XxMxD, *others):
      lead = query_XxMxD.shape[:-1]
      flat = lambda x: x.reshape(math.prod(lead), *x.shape[len(lead):])
      of_queries, of_rows = function(share, over_shares, *jax.tree.map(flat, (query_XxMxD, *others)))
      return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), of_queries), of_rows

    if not self._spread:
      share = Share(table_RxD, 0, self.items, self.config)
      return one(share, lambda x: x, query_XxMxD, *others)

    def on_device(table_RxD, *queries):
      over_shares = lambda x: jax.lax.psum(x, 'catalogue')
      of_queries, of_rows = one(self._share(table_RxD), over_shares, *queries)
      return of_queries, jax.lax.psum(of_rows, 'data' if axis else ())

    axis = self._data_axis(query_XxMxD.shape[-2])
    by_query = PartitionSpec(*[None] * (query_XxMxD.ndim - 2), axis)
    by_row = PartitionSpec('catalogue')
    return jax.shard_map(
      on_device, mesh=self.mesh, in_specs=(by_row, by_query, *[by_query] * len(others)),
      out_specs=(by_query, by_row), check_vma=False)(table_RxD, query_XxMxD, *others)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _likelihood(catalogue: Catalogue, query_MxD, target_M, real_M, table_RxD) -> Likelihood:
  def of_share(share, over_shares, query_MxD, target_M, real_M):
    lse_M, score_M = kernels.likelihood(share, query_MxD, target_M, real_M)
    if catalogue._spread:
      high_M = jax.lax.pmax(lse_M, 'catalogue')
      lse_M = high_M + jnp.log(over_shares(jnp.exp(lse_M - high_M)))
    return Likelihood(lse_M, over_shares(score_M)), None

  return catalogue._on_devices(of_share, table_RxD, query_MxD, target_M, real_M)[0]


def _likelihood_forward(catalogue, query_MxD, target_M, real_M, table_RxD):
  out = _likelihood(catalogue, query_MxD, target_M, real_M, table_RxD)
  return out, (query_MxD, target_M, real_M, table_RxD, out.lse_M)


def _likelihood_backward(catalogue, saved, grads):
  query_MxD, target_M, real_M, table_RxD, lse_M = saved

  def of_share(share, over_shares, query_MxD, target_M, real_M, lse_M, g_lse_M, g_target_M):
    d_query_MxD, d_table_RxD = kernels.gradients(
      share, query_MxD, target_M, real_M, lse_M, g_lse_M, g_target_M)
    return over_shares(d_query_MxD), d_table_RxD

  with jax.named_scope('catalogue_backward'):
    grads = [jnp.where(real_M, g, 0.0) for g in grads]
    d_query_MxD, d_table_RxD = catalogue._on_devices(
      of_share, table_RxD, query_MxD, target_M, real_M, lse_M, *grads)
  return d_query_MxD, None, None, d_table_RxD


_likelihood.defvjp(_likelihood_forward, _likelihood_backward)


def _sum(function, logprob_M, real_M, with_M) -> tuple[jax.Array, jax.Array]:
  logprob_M = jnp.where(real_M, logprob_M, 0.0)
  return jnp.where(real_M, function(logprob_M, *with_M), 0.0).sum(), logprob_M


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _total(catalogue: Catalogue, function, query_MxD, target_M, real_M, table_RxD, with_M):
  logprob_M = _likelihood(catalogue, query_MxD, target_M, real_M, table_RxD).logprob_M
  return _sum(function, logprob_M, real_M, with_M)


def _total_forward(catalogue, function, query_MxD, target_M, real_M, table_RxD, with_M):
  """With the gradients, while the scores are at hand."""

  def of_share(share, _, query_MxD, target_M, real_M, *with_M):  # the share is the whole catalogue
    logprob_M, d_query_MxD, d_table_RxD = share_lib.objective(
      share, function, query_MxD, target_M, real_M, with_M)
    return (logprob_M, d_query_MxD), d_table_RxD

  (logprob_M, d_query_MxD), d_table_RxD = catalogue._on_devices(
    of_share, table_RxD, query_MxD, target_M, real_M, *with_M)
  return _sum(function, logprob_M, real_M, with_M), (d_query_MxD, d_table_RxD)


def _total_backward(catalogue, function, saved, grads):
  d_query_MxD, d_table_RxD = saved
  return grads[0] * d_query_MxD, None, None, grads[0] * d_table_RxD, None


_total.defvjp(_total_forward, _total_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(catalogue: Catalogue, table_RxD, item_BxL):
  # Items stand as B queries of L numbers.
  of_share = lambda share, over_shares, item_BxL: (over_shares(share.lookup(item_BxL)), None)
  return catalogue._on_devices(of_share, table_RxD, item_BxL)[0]


def _lookup_backward(catalogue, saved, d_BxLxD):
  """Every device gathers the batch's gradients and keeps its own rows': a table is larger."""
  table_RxD, item_BxL = saved
  axis = catalogue._data_axis(len(item_BxL))

  def on_device(table_RxD, item_BxL, d_BxLxD):
    if axis:
      gather = lambda x: jax.lax.all_gather(x, axis, tiled=True)
      item_BxL, d_BxLxD = gather(item_BxL), gather(d_BxLxD)
    return catalogue._share(table_RxD).scatter(item_BxL, d_BxLxD)

  by_row, by_batch = PartitionSpec('catalogue'), PartitionSpec(axis)
  d_table_RxD = jax.shard_map(
    on_device, mesh=catalogue.mesh, in_specs=(by_row, by_batch, by_batch), out_specs=by_row,
    check_vma=False)(table_RxD, item_BxL, d_BxLxD)
  return d_table_RxD, None


_lookup.defvjp(lambda catalogue, table_RxD, item_BxL: (
  _lookup(catalogue, table_RxD, item_BxL), (table_RxD, item_BxL)), _lookup_backward)
