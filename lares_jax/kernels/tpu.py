"""The catalogue pass on a TPU: Mosaic kernels whose blocks of scores never leave VMEM.

XLA lays a narrow [V, D] table out with V along the lanes, so the kernels take its transpose, which
costs nothing, and every product is in the order that the matrix unit likes: queries are sublanes,
items are lanes. A running maximum, sum or rank is kept for each of the 128 lanes (P), so that the
loop over items never reduces across lanes; the P parts of a query are combined outside.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lares_jax.kernels import score

LANES = 128
TILE = 512  # queries at a time
BLOCK, COLUMNS = 4096, 512  # items brought into VMEM, and scored, at a time
RESIDENT = 2**21  # numbers of a query gradient that VMEM holds during a backward pass
CORES = 2  # of a v5p, which share a call; the other chips have one, which takes both shares


def _tile(rows: int) -> int:
  """Queries a tile: equal tiles, so that little is padded."""
  return 32 * pl.cdiv(pl.cdiv(rows, pl.cdiv(rows, TILE)), 32)


def _lanes(x_mxK: jax.Array) -> list[jax.Array]:
  return [x_mxK[:, lane : lane + LANES] for lane in range(0, x_mxK.shape[1], LANES)]


def _over_columns(block, table_DxK, size, config, body):
  """Calls body(columns, index_1xK, item_DxK) for each part of a block in VMEM.

  Beyond the table's end memory holds anything: there the item is made zero.
  """

  @pl.loop(0, table_DxK.shape[1] // COLUMNS)
  def _(j):
    columns = pl.ds(j * COLUMNS, COLUMNS)
    index_1xK = jax.lax.broadcasted_iota(jnp.int32, (1, COLUMNS), 1)
    index_1xK += block * table_DxK.shape[1] + j * COLUMNS
    item_DxK = jnp.where(index_1xK < size, table_DxK[:, columns], 0)
    body(columns, index_1xK, score.comparable(item_DxK, config, 0))


def _forward_kernel(query, table, *refs, size, config, lse, rank):
  bounds, sums = refs[: 3 * rank], refs[3 * rank :]

  @pl.when(pl.program_id(1) == 0)
  def _():
    for out, first in zip(sums, [score.LOWEST, 0.0] * lse + [0.0] * rank):
      out[...] = jnp.full(out.shape, first)

  def body(_, index_1xK, item_DxK):
    products_mxK = score.product(query[...], item_DxK, (1, 0), config)
    if rank:
      target_mx1, low_mx1, high_mx1 = (bound[...] for bound in bounds)
      total_mxP = sums[-1][...]
      for products_mxP, index_1xP in zip(_lanes(products_mxK), _lanes(index_1xK)):
        counts_mxP = (index_1xP < size) & (index_1xP != target_mx1)
        above_mxP = score.share_above(products_mxP, low_mx1, high_mx1)
        total_mxP += jnp.where(counts_mxP, above_mxP, 0.0)
      sums[-1][...] = total_mxP
    if lse:
      products_mxK = jnp.where(index_1xK < size, products_mxK, -jnp.inf)
      before_mxP = sums[0][...]
      top_mxP = functools.reduce(jnp.maximum, _lanes(products_mxK), before_mxP)
      total_mxP = sums[1][...] * score.power(before_mxP, top_mxP, config)
      for products_mxP in _lanes(products_mxK):
        total_mxP += score.power(products_mxP, top_mxP, config)
      sums[0][...], sums[1][...] = top_mxP, total_mxP

  _over_columns(pl.program_id(1), table, size, config, body)


def forward(query_MxD, table_VxD, bounds, config, lse=True, interpret=False):
  """See `kernels.forward`, which prepares the queries; bounds are of products, or None."""
  (rows, width), size, rank = query_MxD.shape, table_VxD.shape[0], bounds is not None
  tile = _tile(rows)
  padded = tile * pl.cdiv(rows, tile)
  by_tile = lambda columns: pl.BlockSpec((tile, columns), lambda t, i: (t, 0))
  inputs = [query_MxD, *(x_M[:, None] for x_M in bounds or ())]
  inputs = [score.pad_rows(x, padded) for x in inputs]
  inputs.insert(1, table_VxD.T)
  sums = pl.pallas_call(
    functools.partial(_forward_kernel, size=size, config=config, lse=lse, rank=rank),
    grid=(padded // tile, pl.cdiv(size, BLOCK)),
    in_specs=[
      by_tile(width),
      pl.BlockSpec((width, BLOCK), lambda t, i: (0, i)),
      *[by_tile(1)] * (3 * rank),
    ],
    out_specs=[by_tile(LANES)] * (2 * lse + rank),
    out_shape=[score.output((padded, LANES), *inputs)] * (2 * lse + rank),
    compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel', 'arbitrary')),
    interpret=interpret,
    name='catalogue_forward',
  )(*inputs)
  sums = [x[:rows] for x in sums]
  lse_M = score.combine(sums[0], sums[1], config, 1) if lse else None
  return lse_M, sums[-1].sum(axis=1) if rank else None


def _backward_kernel(query, scaled, lse, table, d_query, d_table, *, size, config):
  core, step, tile = (pl.program_id(axis) for axis in range(3))
  block = core * pl.num_programs(1) + step
  inside = block * table.shape[1] < size  # the last core's share may be one block short

  @pl.when((step == 0) & (tile == 0))
  def _():
    d_query[...] = jnp.zeros_like(d_query)

  @pl.when(inside & (tile == 0))
  def _():
    d_table[...] = jnp.zeros_like(d_table)

  def body(columns, index_1xK, item_DxK):
    products_mxK = score.product(query[...], item_DxK, (1, 0), config)
    p_mxK = score.power(products_mxK, lse[...], config)
    p_mxK = jnp.where(index_1xK < size, p_mxK, 0.0).astype(config.dtype)
    rows = pl.ds(pl.multiple_of(tile * query.shape[0], 32), query.shape[0])
    d_query[0, rows] += score.product(p_mxK, item_DxK, (1, 1), config)
    d_table[:, columns] += score.product(scaled[...], p_mxK, (1, 0), config)

  @pl.when(inside)
  def _():
    _over_columns(block, table, size, config, body)

  if config.similarity == 'cos':

    @pl.when(inside & (tile == pl.num_programs(2) - 1))
    def _():
      _, pull = jax.vjp(lambda x: score.comparable(x, config, 0), table[...])
      (d_table[...],) = pull(d_table[...])


def backward(query_MxD, scaled_MxD, lse_M, table_VxD, config, interpret=False):
  """See `kernels.backward`: sums of p_MxV with the items, and with the scaled queries."""
  (rows, width), size = query_MxD.shape, table_VxD.shape[0]
  if rows > 1 and rows * LANES * pl.cdiv(width, LANES) > RESIDENT:
    half = lambda part: backward(
      query_MxD[part], scaled_MxD[part], lse_M[part], table_VxD, config, interpret
    )
    (a_query, a_table), (b_query, b_table) = half(slice(rows // 2)), half(slice(rows // 2, None))
    return jnp.concatenate([a_query, b_query]), a_table + b_table
  tile, count = _tile(rows), pl.cdiv(size, BLOCK)
  padded, share = tile * pl.cdiv(rows, tile), pl.cdiv(count, CORES)
  place = lambda core, step, _: (0, jnp.minimum(core * share + step, count - 1))
  query_MxD, scaled_MxD, lse_Mx1 = (
    score.pad_rows(x, padded) for x in (query_MxD, scaled_MxD, lse_M[:, None])
  )
  inputs = query_MxD, scaled_MxD.T, lse_Mx1, table_VxD.T
  d_query, d_table = pl.pallas_call(
    functools.partial(_backward_kernel, size=size, config=config),
    grid=(CORES, share, padded // tile),
    in_specs=[
      pl.BlockSpec((tile, width), lambda c, i, t: (t, 0)),
      pl.BlockSpec((width, tile), lambda c, i, t: (0, t)),
      pl.BlockSpec((tile, 1), lambda c, i, t: (t, 0)),
      pl.BlockSpec((width, BLOCK), place),
    ],
    out_specs=[
      pl.BlockSpec((1, padded, width), lambda c, i, t: (c, 0, 0)),
      pl.BlockSpec((width, BLOCK), place),
    ],
    out_shape=[
      score.output((CORES, padded, width), *inputs),
      score.output((width, size), *inputs),
    ],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=16 * 2**20 + 2 * 4 * RESIDENT,
    ),
    interpret=interpret,
    name='catalogue_backward',
  )(*inputs)
  return d_query.sum(axis=0)[:rows], d_table.T
