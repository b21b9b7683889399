"""The catalogue pass on an NVIDIA GPU: Triton kernels whose tiles of scores stay in registers.

One program holds a tile of queries and walks over its share of the items (forward, and gradient of
the queries: partial results, one a share, are combined outside), or holds a block of items and
walks over the queries (gradient of the table). Nothing is added atomically, so results repeat.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from lares_jax.kernels import score

TILE, BLOCK = 128, 128  # queries, items at a time
PROGRAMS = 4 * 132  # enough to fill the card, twice over where two fit a processor
PARAMS = plgpu.CompilerParams(num_warps=8, num_stages=3)


def _within(start, columns: int, shape: tuple[int, int]) -> jax.Array:
  """Mask of a block of rows, its width a power of two, for what lies within the table."""
  return (start + jnp.arange(BLOCK)[:, None] < shape[0]) & (jnp.arange(columns) < shape[1])


def _over_items(table, columns: int, share: int, step, carry):
  """carry = step(items' ids, items, is the block ragged, carry), over this program's blocks."""
  size, width = table.shape
  first = pl.program_id(1) * share
  last = jnp.minimum(first + share, pl.cdiv(size, BLOCK))

  def block(i, carry, ragged):
    start = i * BLOCK
    ref = table.at[pl.ds(start, BLOCK), pl.ds(0, columns)]
    if ragged or columns > width:
      item_KxD = plgpu.load(ref, mask=_within(start, columns, table.shape), other=0)
    else:
      item_KxD = plgpu.load(ref)
    return step(start + jnp.arange(BLOCK), item_KxD, ragged, carry)

  whole = size // BLOCK  # masks are for the last block alone
  carry = jax.lax.fori_loop(
    first, jnp.minimum(last, whole), functools.partial(block, ragged=False), carry
  )
  if size % BLOCK == 0:
    return carry
  return jax.lax.fori_loop(
    jnp.maximum(first, whole), last, functools.partial(block, ragged=True), carry
  )


def _forward_kernel(query, table, *refs, share, config, lse, rank):
  bounds, outs = refs[: 3 * rank], refs[3 * rank :]
  query_mxD = query[...]
  bounds = [bound[...][:, None] for bound in bounds]

  def step(index_K, item_KxD, ragged, carry):
    products_mxK = score.product(query_mxD, item_KxD, (1, 1), config)
    inside_K = index_K < table.shape[0]
    after = []
    if lse:
      if ragged:
        products_mxK = jnp.where(inside_K, products_mxK, -jnp.inf)
      before_m, total_m = carry[:2]
      top_m = jnp.maximum(before_m, products_mxK.max(axis=1))
      fresh_m = score.power(products_mxK, top_m[:, None], config).sum(axis=1)
      after = [top_m, total_m * score.power(before_m, top_m, config) + fresh_m]
    if rank:
      target_mx1, low_mx1, high_mx1 = bounds
      counts_mxK = (index_K != target_mx1) & inside_K
      above_mxK = score.share_above(products_mxK, low_mx1, high_mx1)
      after.append(carry[-1] + jnp.where(counts_mxK, above_mxK, 0.0).sum(axis=1))
    return tuple(after)

  first = [score.LOWEST, 0.0] * lse + [0.0] * rank
  carry = tuple(jnp.full(TILE, x, jnp.float32) for x in first)
  for out, x_m in zip(outs, _over_items(table, query.shape[1], share, step, carry)):
    out[...] = x_m


def _padded(x_MxD: jax.Array) -> jax.Array:
  """Rows to whole tiles, columns to the power of two that Triton asks for."""
  columns = max(16, pl.next_power_of_2(x_MxD.shape[1]))
  x_MxD = jnp.pad(x_MxD, [(0, 0), (0, columns - x_MxD.shape[1])])
  return score.pad_rows(x_MxD, TILE * pl.cdiv(x_MxD.shape[0], TILE))


def _shares(rows: int, size: int) -> tuple[int, int]:
  """(How many programs share the items for one tile, how many blocks one of them takes)."""
  blocks = pl.cdiv(size, BLOCK)
  share = pl.cdiv(blocks, max(1, PROGRAMS // (rows // TILE)))
  return pl.cdiv(blocks, share), share


def forward(query_MxD, table_VxD, bounds, config, lse=True, interpret=False):
  """See `kernels.forward`, which prepares the queries; bounds are of products, or None."""
  rows, size, rank = query_MxD.shape[0], table_VxD.shape[0], bounds is not None
  query_MxD = _padded(query_MxD)
  padded, columns = query_MxD.shape
  item_VxD = score.comparable(table_VxD, config, 1).astype(config.dtype)
  splits, share = _shares(padded, size)
  by_tile = pl.BlockSpec((TILE,), lambda t, s: (t,))
  inputs = query_MxD, item_VxD, *(score.pad_rows(x_M, padded) for x_M in bounds or ())
  sums = pl.pallas_call(
    functools.partial(_forward_kernel, share=share, config=config, lse=lse, rank=rank),
    grid=(padded // TILE, splits),
    in_specs=[
      pl.BlockSpec((TILE, columns), lambda t, s: (t, 0)),
      pl.BlockSpec(memory_space=pl.ANY),
      *[by_tile] * (3 * rank),
    ],
    out_specs=[pl.BlockSpec((None, TILE), lambda t, s: (s, t))] * (2 * lse + rank),
    out_shape=[score.output((splits, padded), *inputs)] * (2 * lse + rank),
    compiler_params=PARAMS,
    interpret=interpret,
    name='catalogue_forward',
  )(*inputs)
  sums = [x[:, :rows] for x in sums]
  lse_M = score.combine(sums[0], sums[1], config, 0) if lse else None
  return lse_M, sums[-1].sum(axis=0) if rank else None


def _query_kernel(query, lse, table, d_query, *, share, config):
  query_mxD, lse_mx1 = query[...], lse[...][:, None]

  def step(index_K, item_KxD, ragged, d_mxD):
    products_mxK = score.product(query_mxD, item_KxD, (1, 1), config)
    p_mxK = score.power(products_mxK, lse_mx1, config)
    if ragged:
      p_mxK = jnp.where(index_K < table.shape[0], p_mxK, 0.0)
    return d_mxD + score.product(p_mxK, item_KxD, (1, 0), config)

  d_query[...] = _over_items(table, query.shape[1], share, step, jnp.zeros(query.shape))


def _table_kernel(query, scaled, lse, table, d_table, *, config):
  start, columns = pl.program_id(0) * BLOCK, query.shape[1]
  block = pl.ds(start, BLOCK), pl.ds(0, columns)
  mask = _within(start, columns, table.shape)
  item_KxD = plgpu.load(table.at[block], mask=mask, other=0)

  def step(t, d_KxD):
    rows = pl.ds(t * TILE, TILE)
    products_Kxm = score.product(item_KxD, query[rows], (1, 1), config)
    p_Kxm = score.power(products_Kxm, lse[rows][None], config)
    return d_KxD + score.product(p_Kxm, scaled[rows], (1, 0), config)

  d_KxD = jax.lax.fori_loop(0, query.shape[0] // TILE, step, jnp.zeros((BLOCK, columns)))
  plgpu.store(d_table.at[block], d_KxD, mask=mask)


def backward(query_MxD, scaled_MxD, lse_M, table_VxD, config, interpret=False):
  """See `kernels.backward`: sums of p_MxV with the items, and with the scaled queries."""
  (rows, width), size = query_MxD.shape, table_VxD.shape[0]
  item_VxD, pull = jax.vjp(lambda x: score.comparable(x, config, 1), table_VxD)
  item_VxD = item_VxD.astype(config.dtype)
  query_MxD, scaled_MxD = _padded(query_MxD), _padded(scaled_MxD)
  padded, columns = query_MxD.shape
  lse_M = score.pad_rows(lse_M, padded)
  splits, share = _shares(padded, size)
  whole = pl.BlockSpec(memory_space=pl.ANY)
  inputs = query_MxD, scaled_MxD, lse_M, item_VxD
  d_query = pl.pallas_call(
    functools.partial(_query_kernel, share=share, config=config),
    grid=(padded // TILE, splits),
    in_specs=[
      pl.BlockSpec((TILE, columns), lambda t, s: (t, 0)),
      pl.BlockSpec((TILE,), lambda t, s: (t,)),
      whole,
    ],
    out_specs=pl.BlockSpec((None, TILE, columns), lambda t, s: (s, t, 0)),
    out_shape=score.output((splits, padded, columns), *inputs),
    compiler_params=PARAMS,
    interpret=interpret,
    name='catalogue_query_gradient',
  )(query_MxD, lse_M, item_VxD)
  d_item_VxD = pl.pallas_call(
    functools.partial(_table_kernel, config=config),
    grid=(pl.cdiv(size, BLOCK),),
    in_specs=[whole] * 4,
    out_specs=whole,
    out_shape=score.output((size, width), *inputs),
    compiler_params=PARAMS,
    interpret=interpret,
    name='catalogue_table_gradient',
  )(*inputs)
  return d_query.sum(axis=0)[:rows, :width], pull(d_item_VxD)[0]
