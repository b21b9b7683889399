"""The catalogue pass on an NVIDIA GPU: Triton kernels whose tiles of scores stay in registers.

One program holds a tile of queries and walks over its part of the items (forward, and gradient of
the queries: the parts are combined outside), or holds a block of items and walks over the queries
(gradient of the items). No kernel adds atomically; XLA's own additions into rows of a table do,
unless `--xla_gpu_deterministic_ops=true` forbids it. Triton rather than Mosaic GPU: its compiler makes
the same asynchronous products and copies here, in a third of the code, for older cards too, and
without barriers to get wrong.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lares_jax.kernels import score
from lares_jax.scoring import product, rounded

PROGRAMS = 4 * 132  # at most, unless tiles alone are more: some for each of the card's processors
_WHOLE = pl.BlockSpec(memory_space=pl.ANY)


class _Plan(NamedTuple):
  """Rows that a program holds, rows it takes at a time of those it walks over, and the like."""

  held: int
  walked: int
  warps: int
  stages: int

  @classmethod
  def of(cls, width: int, dtype: str) -> '_Plan':
    """The largest that leave room for two programs a processor and spill no register (sm_90)."""
    if width > 256:
      return cls(32, 16, 4, 2)
    if dtype == 'float32':  # no matrix unit multiplies these exactly
      return cls(32, 32, 4, 3)
    return cls(128, 64, 8, 3) if width <= 128 else cls(64, 32, 4, 3)

  def pad(self, x: jax.Array) -> jax.Array:
    """Rows to whole tiles, columns (if any) to the power of two that Triton asks for."""
    columns = [max(16, pl.next_power_of_2(size)) for size in x.shape[1:]]
    return score.pad(x, self.held * pl.cdiv(len(x), self.held), *columns)

  def parts(self, queries: int, items: int) -> tuple[int, int]:
    """(Programs that divide the items for one tile of queries, blocks that each of them takes)."""
    blocks = items // self.walked
    each = pl.cdiv(blocks, max(1, PROGRAMS // (queries // self.held)))
    return pl.cdiv(blocks, each), each

  def call(self, kernel, name: str, interpret: bool, **specs):
    return pl.pallas_call(
      kernel, name=name, interpret=interpret, **specs,
      compiler_params=plgpu.CompilerParams(num_warps=self.warps, num_stages=self.stages))


def _over_items(counts, item, each: int, plan: _Plan, step, carry):
  """carry = step(item_KxD, row_K, real_K, carry) over this program's part of the items."""
  first = pl.program_id(1) * each
  last = jnp.minimum(first + each, pl.cdiv(counts[1], plan.walked))
  last = jnp.where(pl.program_id(0) * plan.held < counts[0], last, first)  # no mere filling

  def take(i, carry):
    row_K = i * plan.walked + jnp.arange(plan.walked)
    return step(item[pl.ds(i * plan.walked, plan.walked)], row_K, row_K < counts[1], carry)

  return jax.lax.fori_loop(first, last, take, carry)


def _forward_kernel(counts, query, item, target, *refs, plan, each, config, rank):
  query_mxD = query[...]
  target_mx1, bounds = target[...][:, None], [bound[...][:, None] for bound in refs[: 2 * rank]]

  def step(item_KxD, row_K, real_K, carry):
    products_mxK = product('md,kd->mk', query_mxD, item_KxD, config)
    if rank:
      above_mxK = score.above(products_mxK, *bounds)
      other_mxK = real_K & (row_K != target_mx1)
      return (carry[0] + jnp.where(other_mxK, above_mxK, 0.0).sum(axis=1),)
    before_m, total_m = carry
    finite_mxK = jnp.where(real_K, products_mxK, -jnp.inf)
    top_m = jnp.maximum(before_m, finite_mxK.max(axis=1))
    fresh_m = score.power(finite_mxK, top_m[:, None], config).sum(axis=1)
    return top_m, total_m * score.power(before_m, top_m, config) + fresh_m

  first = [0.0] if rank else [score.LOWEST, 0.0]
  carry = tuple(jnp.full(plan.held, x, jnp.float32) for x in first)
  for out, x_m in zip(refs[2 * rank :], _over_items(counts, item, each, plan, step, carry)):
    out[...] = x_m


def forward(counts_2, query_MxD, row_M, bounds, item_RxD, config, interpret):
  """See `kernels.forward`, which prepares the arrays."""
  (rows, width), rank, results = query_MxD.shape, bool(bounds), 1 if bounds else 2
  target_M = (query_MxD.astype(jnp.float32) * _lookup(item_RxD, row_M, config)).sum(axis=1)
  plan = _Plan.of(width, config.dtype)
  query_MxD, item_RxD = plan.pad(query_MxD), plan.pad(item_RxD.astype(config.dtype))
  padded, columns = query_MxD.shape
  parts, each = plan.parts(padded, len(item_RxD))
  by_tile = pl.BlockSpec((plan.held,), lambda t, s: (t,))
  sums = plan.call(
    functools.partial(_forward_kernel, plan=plan, each=each, config=config, rank=rank),
    'catalogue_forward', interpret, grid=(padded // plan.held, parts),
    in_specs=[_WHOLE, pl.BlockSpec((plan.held, columns), lambda t, s: (t, 0)), _WHOLE,
              *[by_tile] * (1 + 2 * rank)],
    out_specs=[pl.BlockSpec((None, plan.held), lambda t, s: (s, t))] * results,
    out_shape=[jax.ShapeDtypeStruct((parts, padded), jnp.float32)] * results,
  )(counts_2, query_MxD, item_RxD, *map(plan.pad, (row_M, *bounds)))
  sums = [x[:, :rows] for x in sums]
  if rank:
    return (sums[0].sum(axis=0),)
  return score.combine(*sums, config, 0), target_M


def _lookup(item_RxD, row_M, config):
  """Items as they are multiplied, float32, zeros for row R (a gather costs nothing here)."""
  return rounded(item_RxD.at[row_M].get(mode='fill', fill_value=0), config)


def _query_kernel(counts, query, lse, item, d_query, *, plan, each, config):
  query_mxD, lse_mx1 = query[...], lse[...][:, None]

  def step(item_KxD, _, real_K, d_mxD):
    products_mxK = product('md,kd->mk', query_mxD, item_KxD, config)
    p_mxK = jnp.where(real_K, score.power(products_mxK, lse_mx1, config), 0.0)
    return d_mxD + product('mk,kd->md', p_mxK, item_KxD, config)

  d_query[...] = _over_items(counts, item, each, plan, step, jnp.zeros(query.shape))


def _item_kernel(counts, query, scaled, lse, item, d_item, *, plan, config):
  item_KxD = item[...]
  real_Kx1 = pl.program_id(0) * plan.held + jnp.arange(plan.held)[:, None] < counts[1]

  def step(t, d_KxD):
    rows = pl.ds(t * plan.walked, plan.walked)
    products_Kxm = product('kd,md->km', item_KxD, query[rows], config)
    p_Kxm = score.power(products_Kxm, lse[rows][None], config)
    return d_KxD + product('km,md->kd', p_Kxm, scaled[rows], config)

  tiles, d_KxD = pl.cdiv(counts[0], plan.walked), jnp.zeros(item.shape)
  d_item[...] = jnp.where(real_Kx1, jax.lax.fori_loop(0, tiles, step, d_KxD), 0.0)


def backward(counts_2, query_MxD, of_query, item_RxD, config, interpret):
  """See `kernels.backward`, which prepares the arrays."""
  (rows, width), size = query_MxD.shape, len(item_RxD)
  row_M, lse_M, g_lse_M, g_target_M = of_query
  # With p the softmax: d_query = g (p @ items), d_item = p.T @ (g query).
  scaled_MxD = (query_MxD * g_lse_M[:, None]).astype(config.dtype)
  d_target_MxD = g_target_M[:, None] * _lookup(item_RxD, row_M, config)
  of_target_MxD = g_target_M[:, None] * query_MxD
  plan = _Plan.of(width, config.dtype)
  query_MxD, scaled_MxD, lse_M, item_RxD = map(
    plan.pad, (query_MxD, scaled_MxD, lse_M, item_RxD.astype(config.dtype)))
  padded, columns = query_MxD.shape
  parts, each = plan.parts(padded, len(item_RxD))
  held = pl.BlockSpec((plan.held, columns), lambda i, *_: (i, 0))
  d_query = plan.call(
    functools.partial(_query_kernel, plan=plan, each=each, config=config),
    'catalogue_query_gradient', interpret, grid=(padded // plan.held, parts),
    in_specs=[_WHOLE, held, pl.BlockSpec((plan.held,), lambda t, s: (t,)), _WHOLE],
    out_specs=pl.BlockSpec((None, plan.held, columns), lambda t, s: (s, t, 0)),
    out_shape=jax.ShapeDtypeStruct((parts, padded, columns), jnp.float32),
  )(counts_2, query_MxD, lse_M, item_RxD)
  d_item_RxD = plan.call(
    functools.partial(_item_kernel, plan=plan, config=config),
    'catalogue_item_gradient', interpret, grid=(len(item_RxD) // plan.held,),
    in_specs=[*[_WHOLE] * 4, held], out_specs=held,
    out_shape=jax.ShapeDtypeStruct(item_RxD.shape, jnp.float32),
  )(counts_2, query_MxD, scaled_MxD, lse_M, item_RxD)
  d_query_MxD = g_lse_M[:, None] * d_query.sum(axis=0)[:rows, :width] + d_target_MxD
  return d_query_MxD, d_item_RxD[:size, :width].at[row_M].add(of_target_MxD, mode='drop')
