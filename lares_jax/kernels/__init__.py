"""The catalogue pass of `share` by kernels, which keep every block of scores on the chip.

`catalogue.kernel=pallas` takes them; `auto` is plain for now: a kernel is to be taken unasked only
where it has been shown, on the chip itself, to be right and to win. On an H200, in bfloat16, it wins,
and likelihood and gradients are within 1e-5 of the plain pass's, in norm (2026-11-27, three
sizes of 10^5 items and more). Ranks, float32 and other cards have not been compared. On TPUs they were
compiled, for items of up to 512 numbers; wider ones find no room.

What binds on each chip, what was compiled and what was measured: configs/results/README.md.
"""

import jax
import jax.numpy as jnp

from lares_jax import share as plain
from lares_jax.kernels import gpu, tpu
from lares_jax.scoring import as_item, as_query, pair_scores, rounded
from lares_jax.share import Share


def likelihood(share: Share, query_MxD, target_M, real_M) -> tuple[jax.Array, jax.Array]:
  """(Log-sum-exp of the scores with the share's items, score of the target or 0 if elsewhere)."""

  def of_plain():
    score_M = pair_scores(query_MxD, share.lookup(target_M), share.config)
    return plain.log_sum_exp(share, query_MxD, real_M), jnp.where(real_M, score_M, 0.0)

  return _choose(share, of_plain, lambda kernel, interpret: forward(
    kernel, interpret, share, query_MxD, target_M, real_M))


def gradients(share: Share, query_MxD, target_M, real_M, lse_M, g_lse_M, g_target_M):
  """Gradients (d_query_MxD, d_table_RxD) of sum(g_lse * lse + g_target * score).

  `lse_M` is that of the whole catalogue, so each share's gradient is a part of the whole one.
  """

  def of_plain():
    score = lambda query, item: pair_scores(query, item, share.config)
    _, pull = jax.vjp(score, query_MxD, share.lookup(target_M))
    d_target_query_MxD, d_item_MxD = pull(g_target_M)
    d_query_MxD, d_table_RxD = plain.lse_gradients(
      share, query_MxD, real_M, lse_M, g_lse_M, share.scatter(target_M, d_item_MxD))
    return d_query_MxD + d_target_query_MxD, d_table_RxD

  return _choose(share, of_plain, lambda kernel, interpret: backward(
    kernel, interpret, share, query_MxD, target_M, real_M, lse_M, g_lse_M, g_target_M))


def count_above(
    share: Share, query_MxD, real_M, target_M, low_M, high_M, hidden_MxH=None) -> jax.Array:
  """As `share.count_above`; where there are items to hide, it is that."""
  of_plain = lambda: plain.count_above(
    share, query_MxD, real_M, target_M, low_M, high_M, hidden_MxH)
  if hidden_MxH is not None:
    return of_plain()
  return _choose(share, of_plain, lambda kernel, interpret: forward(
    kernel, interpret, share, query_MxD, target_M, real_M, (low_M, high_M))[0])


def _choose(share: Share, of_plain, of_kernel):
  """of_kernel(module, interpreted) by the machine that the code is compiled for, or of_plain()."""
  if share.config.kernel != 'pallas':
    return of_plain()
  return jax.lax.platform_dependent(
    tpu=lambda: of_kernel(tpu, False), cuda=lambda: of_kernel(gpu, False),
    cpu=lambda: of_kernel(tpu, True), default=of_plain)


def forward(kernel, interpret, share, query_MxD, target_M, real_M, bounds=()):
  """One pass over the items: (lse_M, score_M), or (rank_M,) if bounds are given.

  `bounds` are low_M and high_M of `count_above`. `interpret` runs the kernel (the module `tpu` or
  `gpu`) as plain JAX, slowly. Results for filling are 0.
  """
  config, (counts_2, row_M, take, put) = share.config, _prepare(share, target_M, real_M)
  query_MxD = rounded(as_query(take(query_MxD), config.similarity), config).astype(config.dtype)
  bounds = [take(x_M * config.tau) for x_M in bounds]
  item_RxD = as_item(share.table_RxD, config.similarity)
  out = [put(x_M) for x_M in kernel.forward(
    counts_2, query_MxD, row_M, bounds, item_RxD, config, interpret)]
  if not bounds:
    out[1] /= config.tau
  return tuple(out)


def backward(kernel, interpret, share, query_MxD, target_M, real_M, lse_M, g_lse_M, g_target_M):
  """As `gradients`; for `kernel` and `interpret` see `forward`."""
  config, (counts_2, row_M, take, _) = share.config, _prepare(share, target_M, real_M)
  query_MxD, pull_query = jax.vjp(lambda x: as_query(take(x), config.similarity), query_MxD)
  item_RxD, pull_item = jax.vjp(lambda x: as_item(x, config.similarity), share.table_RxD)
  of_query = row_M, *map(take, (lse_M * config.tau, g_lse_M / config.tau, g_target_M / config.tau))
  d_query_MxD, d_item_RxD = kernel.backward(
    counts_2, rounded(query_MxD, config).astype(config.dtype), of_query, item_RxD, config, interpret)
  return *pull_query(d_query_MxD), *pull_item(d_item_RxD)


def _prepare(share: Share, target_M, real_M):
  """What kernels want to know of queries: sorted by target, filling last and zero.

  Returns how many queries and how many rows count [2]; the targets' rows, ascending, R for those
  elsewhere; take(x), which puts queries in that order; put(x), which puts results back.
  """
  items = jnp.clip(share.items - share.first, 0, share.size)
  row_M = target_M - share.first
  row_M = jnp.where(real_M & (row_M >= 0) & (row_M < items), row_M, share.size)
  order_M = jnp.argsort(jnp.where(real_M, row_M, share.size + 1))
  clear = lambda x: jnp.where(jnp.expand_dims(real_M, tuple(range(1, x.ndim))), x, 0)
  take = lambda x: clear(x)[order_M]
  put = lambda x: clear(jnp.zeros_like(x).at[order_M].set(x, unique_indices=True))
  return jnp.stack([real_M.sum(), items]).astype(jnp.int32), row_M[order_M], take, put
