"""The catalogue pass on an NVIDIA GPU: Triton kernels whose tiles of scores stay in registers.

One program holds a tile of queries and walks over its part of the items (forward, and gradient of
the queries: the parts are combined outside), or holds a block of items and walks over the queries
(gradient of the table). Nothing is added atomically, so results repeat to the bit.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lares_jax.kernels import score

PROGRAMS = 4 * 132  # at least: some for each of the card's processors
_WHOLE = pl.BlockSpec(memory_space=pl.ANY)


class _Plan(NamedTuple):
  """Rows that a program holds, rows it takes at a time of those it walks over, and the like."""

  held: int
  walked: int
  warps: int
  stages: int

  @classmethod
  def of(cls, columns: int, dtype: str) -> '_Plan':
    """The largest that leave room for two programs a processor and spill no register (sm_90)."""
    if columns > 256:
      return cls(32, 16, 4, 2)
    if dtype == 'float32':  # no matrix unit multiplies these exactly
      return cls(32, 32, 4, 3)
    return cls(128, 64, 8, 3) if columns <= 128 else cls(64, 32, 4, 3)

  @property
  def params(self) -> plgpu.CompilerParams:
    return plgpu.CompilerParams(num_warps=self.warps, num_stages=self.stages)

  def parts(self, rows: int, size: int) -> tuple[int, int]:
    """(Programs that divide the items for one tile of queries, blocks that each of them takes)."""
    blocks = pl.cdiv(size, self.walked)
    each = pl.cdiv(blocks, max(1, PROGRAMS // (rows // self.held)))
    return pl.cdiv(blocks, each), each


def _padded(x_MxD: jax.Array, config) -> tuple[jax.Array, _Plan]:
  """Rows to whole tiles, columns to the power of two that Triton asks for; and the plan."""
  rows, width = x_MxD.shape
  columns = max(16, pl.next_power_of_2(width))
  plan = _Plan.of(columns, config.dtype)
  x_MxD = jnp.pad(x_MxD, [(0, 0), (0, columns - width)])
  return score.pad_rows(x_MxD, plan.held * pl.cdiv(rows, plan.held)), plan


def _rows(table, start, count: int, columns: int, size):
  """(A block of a table, as wide as a power of two; the mask of what exists, up to `size`)."""
  row_Kx1 = start + jnp.arange(count)[:, None]
  mask_KxD = (row_Kx1 < size) & (jnp.arange(columns) < table.shape[1])
  return table.at[pl.ds(start, count), pl.ds(0, columns)], mask_KxD


def _over_items(counts, table, columns: int, plan: _Plan, each: int, step, carry):
  """carry = step(rows, items, is the block ragged, carry) over this program's part of the items."""
  items, block = counts[1], plan.walked
  first = pl.program_id(1) * each
  last = jnp.minimum(first + each, pl.cdiv(items, block))
  last = jnp.where(pl.program_id(0) * plan.held < counts[0], last, first)  # no mere filling
  whole = items // block

  def take(i, carry, ragged):
    ref, mask = _rows(table, i * block, block, columns, items)
    masked = {'mask': mask, 'other': 0} if ragged or columns > table.shape[1] else {}
    return step(i * block + jnp.arange(block), plgpu.load(ref, **masked), ragged, carry)

  # Two loops, so that only the last block of the table pays for its mask.
  plain, ragged = (functools.partial(take, ragged=ragged) for ragged in (False, True))
  carry = jax.lax.fori_loop(first, jnp.minimum(last, whole), plain, carry)
  return jax.lax.fori_loop(jnp.maximum(first, whole), last, ragged, carry)


def _forward_kernel(counts, query, table, *refs, plan, each, config, lse, rank):
  bounds, outs = refs[: 3 * rank], refs[3 * rank :]
  query_mxD = query[...]
  bounds = [bound[...][:, None] for bound in bounds]

  def step(row_K, item_KxD, ragged, carry):
    products_mxK = score.product(query_mxD, item_KxD, (1, 1), config)
    after = []
    if lse:
      if ragged:
        products_mxK = jnp.where(row_K < counts[1], products_mxK, -jnp.inf)
      before_m, total_m = carry[:2]
      top_m = jnp.maximum(before_m, products_mxK.max(axis=1))
      fresh_m = score.power(products_mxK, top_m[:, None], config).sum(axis=1)
      after = [top_m, total_m * score.power(before_m, top_m, config) + fresh_m]
    if rank:
      target_mx1, low_mx1, high_mx1 = bounds
      other_mxK = (row_K != target_mx1) & (row_K < counts[1])
      above_mxK = score.share_above(products_mxK, low_mx1, high_mx1)
      after.append(carry[-1] + jnp.where(other_mxK, above_mxK, 0.0).sum(axis=1))
    return tuple(after)

  first = [score.LOWEST, 0.0] * lse + [0.0] * rank
  carry = tuple(jnp.full(plan.held, x, jnp.float32) for x in first)
  carry = _over_items(counts, table, query.shape[1], plan, each, step, carry)
  for out, x_m in zip(outs, carry):
    out[...] = x_m


def forward(counts_2, query_MxD, table_RxD, bounds, config, lse, interpret=False):
  """See `kernels.forward`, which prepares the queries; bounds are of products, or None."""
  rows, rank = query_MxD.shape[0], bounds is not None
  query_MxD, plan = _padded(query_MxD, config)
  padded, columns = query_MxD.shape
  parts, each = plan.parts(padded, table_RxD.shape[0])
  by_tile = pl.BlockSpec((plan.held,), lambda t, s: (t,))
  sums = pl.pallas_call(
    functools.partial(
      _forward_kernel, plan=plan, each=each, config=config, lse=lse, rank=rank
    ),
    grid=(padded // plan.held, parts),
    in_specs=[
      _WHOLE,
      pl.BlockSpec((plan.held, columns), lambda t, s: (t, 0)),
      _WHOLE,
      *[by_tile] * (3 * rank),
    ],
    out_specs=[pl.BlockSpec((None, plan.held), lambda t, s: (s, t))] * (2 * lse + rank),
    out_shape=[jax.ShapeDtypeStruct((parts, padded), jnp.float32)] * (2 * lse + rank),
    compiler_params=plan.params,
    interpret=interpret,
    name='catalogue_forward',
  )(
    counts_2,
    query_MxD,
    score.comparable(table_RxD, config, 1).astype(config.dtype),
    *(score.pad_rows(x_M, padded) for x_M in bounds or ()),
  )
  sums = [x[:, :rows] for x in sums]
  lse_M = score.combine(sums[0], sums[1], config, 0) if lse else None
  return lse_M, sums[-1].sum(axis=0) if rank else None


def _query_kernel(counts, query, lse, table, d_query, *, plan, each, config):
  query_mxD, lse_mx1 = query[...], lse[...][:, None]

  def step(row_K, item_KxD, ragged, d_mxD):
    products_mxK = score.product(query_mxD, item_KxD, (1, 1), config)
    p_mxK = score.power(products_mxK, lse_mx1, config)
    if ragged:
      p_mxK = jnp.where(row_K < counts[1], p_mxK, 0.0)
    return d_mxD + score.product(p_mxK, item_KxD, (1, 0), config)

  d_mxD = jnp.zeros(query.shape)
  d_query[...] = _over_items(counts, table, query.shape[1], plan, each, step, d_mxD)


def _table_kernel(counts, query, scaled, lse, table, d_table, *, plan, config):
  block = pl.program_id(0) * plan.held, plan.held, query.shape[1]
  ref, mask = _rows(table, *block, counts[1])
  item_KxD = plgpu.load(ref, mask=mask, other=0)

  def step(t, d_KxD):
    rows = pl.ds(t * plan.walked, plan.walked)
    products_Kxm = score.product(item_KxD, query[rows], (1, 1), config)
    p_Kxm = score.power(products_Kxm, lse[rows][None], config)
    return d_KxD + score.product(p_Kxm, scaled[rows], (1, 0), config)

  d_KxD = jnp.zeros(item_KxD.shape)
  d_KxD = jax.lax.fori_loop(0, pl.cdiv(counts[0], plan.walked), step, d_KxD)
  ref, exists = _rows(d_table, *block, d_table.shape[0])
  plgpu.store(ref, jnp.where(mask, d_KxD, 0.0), mask=exists)


def backward(counts_2, query_MxD, scaled_MxD, lse_M, table_RxD, config, interpret=False):
  """See `kernels.gradients`: sums of p_MxR with the items, and with the scaled queries."""
  (rows, width), size = query_MxD.shape, table_RxD.shape[0]
  item_RxD, pull = jax.vjp(lambda x: score.comparable(x, config, 1), table_RxD)
  item_RxD = item_RxD.astype(config.dtype)
  (query_MxD, plan), (scaled_MxD, _) = _padded(query_MxD, config), _padded(scaled_MxD, config)
  padded, columns = query_MxD.shape
  lse_M = score.pad_rows(lse_M, padded)
  parts, each = plan.parts(padded, size)
  d_query = pl.pallas_call(
    functools.partial(_query_kernel, plan=plan, each=each, config=config),
    grid=(padded // plan.held, parts),
    in_specs=[
      _WHOLE,
      pl.BlockSpec((plan.held, columns), lambda t, s: (t, 0)),
      pl.BlockSpec((plan.held,), lambda t, s: (t,)),
      _WHOLE,
    ],
    out_specs=pl.BlockSpec((None, plan.held, columns), lambda t, s: (s, t, 0)),
    out_shape=jax.ShapeDtypeStruct((parts, padded, columns), jnp.float32),
    compiler_params=plan.params,
    interpret=interpret,
    name='catalogue_query_gradient',
  )(counts_2, query_MxD, lse_M, item_RxD)
  d_item_RxD = pl.pallas_call(
    functools.partial(_table_kernel, plan=plan, config=config),
    grid=(pl.cdiv(size, plan.held),),
    in_specs=[_WHOLE] * 5,
    out_specs=_WHOLE,
    out_shape=jax.ShapeDtypeStruct((size, width), jnp.float32),
    compiler_params=plan.params,
    interpret=interpret,
    name='catalogue_table_gradient',
  )(counts_2, query_MxD, scaled_MxD, lse_M, item_RxD)
  return d_query.sum(axis=0)[:rows, :width], pull(d_item_RxD)[0]
