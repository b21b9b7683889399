"""The catalogue pass on a TPU: Mosaic kernels whose blocks of scores never leave VMEM.

XLA lays a narrow [V, D] table out with V along the lanes, so the kernels take its transpose, which
costs nothing, and every matrix product is in the order the MXU likes: queries are sublanes (rows),
items are lanes. A running maximum, sum or rank is kept for each of the 128 lanes, so that the
loop over items never reduces across lanes; the 128 columns are combined outside.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from lares_jax.kernels import parts

LANES = 128
TILE, BLOCK = 1024, 4096  # queries, items brought into VMEM at a time
ROWS, COLUMNS = 512, 512  # queries, items scored at a time
CORES = 2  # of a v5p chip, which share a call; the other chips take the two shares in turn


def _items(table_DxK, index_1xK, size: int, scoring: parts.Scoring):
  """The block as it is compared; zero beyond the table's end, where memory holds anything."""
  table_DxK = jnp.where(index_1xK < size, table_DxK.astype(jnp.float32), 0.0)
  return scoring.comparable(table_DxK, 0)


def _lanes(x_mxK):
  return [x_mxK[:, lane : lane + LANES] for lane in range(0, x_mxK.shape[1], LANES)]


def _forward_kernel(
  real_T, query, bounds, table, *outs, size: int, scoring: parts.Scoring, lse: bool, rank: bool
):
  tile, block = pl.program_id(0), pl.program_id(1)
  start = block * table.shape[1]

  @pl.when(block == 0)
  def _():
    for out, first in zip(outs, [parts.LOWEST, 0.0] * lse + [0.0] * rank):
      out[...] = jnp.full(out.shape, first)

  def score(i, j, ragged):
    rows, columns = pl.ds(i * ROWS, ROWS), pl.ds(j * COLUMNS, COLUMNS)
    index_1xK = start + j * COLUMNS + jax.lax.broadcasted_iota(jnp.int32, (1, COLUMNS), 1)
    item_DxK = _items(table[:, columns], index_1xK, size, scoring)
    scores_mxK = scoring.dot(query[rows], item_DxK, 1, 0)
    if rank:
      target_mx1, low_mx1, high_mx1 = (bounds[b, rows] for b in range(3))
      total_mxP = outs[-1][rows]
      for s, index_1xP in zip(_lanes(scores_mxK), _lanes(index_1xK)):
        above = jnp.where(s < low_mx1, 0.0, jnp.where(s <= high_mx1, 0.5, 1.0))
        if ragged:
          above = jnp.where(index_1xP < size, above, 0.0)
        total_mxP += jnp.where(index_1xP.astype(jnp.float32) == target_mx1, 0.0, above)
      outs[-1][rows] = total_mxP
    if lse:
      if ragged:
        scores_mxK = jnp.where(index_1xK < size, scores_mxK, -jnp.inf)
      top_mxP = functools.reduce(jnp.maximum, _lanes(scores_mxK), outs[0][rows])
      sum_mxP = outs[1][rows] * jnp.exp2((outs[0][rows] - top_mxP) * scoring.bits)
      for s in _lanes(scores_mxK):
        sum_mxP += jnp.exp2((s - top_mxP) * scoring.bits)
      outs[0][rows], outs[1][rows] = top_mxP, sum_mxP

  for ragged in (False, True):
    @pl.when((real_T[tile] > 0) & ((start + table.shape[1] > size) == ragged))
    def _():
      @pl.loop(0, table.shape[1] // COLUMNS)
      def _(j):
        @pl.loop(0, query.shape[0] // ROWS)
        def _(i):
          score(i, j, ragged)


def forward(query_MxD, real_M, table_VxD, scoring, lse=True, rank=False, interpret=False):
  rows, (size, width) = query_MxD.shape[0], table_VxD.shape
  grid = rows // TILE, pl.cdiv(size, BLOCK)
  lanes = pl.BlockSpec((TILE, LANES), lambda t, i, *_: (t, 0))
  out = jax.ShapeDtypeStruct((rows, LANES), jnp.float32)
  n = 2 * lse + rank
  kernel = functools.partial(_forward_kernel, size=size, scoring=scoring, lse=lse, rank=rank)
  return pl.pallas_call(
    kernel,
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=grid,
      in_specs=[
        pl.BlockSpec((TILE, width), lambda t, i, *_: (t, 0)),
        pl.BlockSpec((3, TILE, 1), lambda t, i, *_: (0, t, 0)),
        pl.BlockSpec((width, BLOCK), lambda t, i, *_: (0, i)),
      ],
      out_specs=[lanes] * n,
    ),
    out_shape=[out] * n,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'),
    ),
    interpret=interpret,
    name='catalogue_forward',
  )(real_M.reshape(-1, TILE).any(1).astype(jnp.int32), query_MxD, jnp.zeros((3, rows, 1)), table_VxD.T)


def _backward_kernel(real_T, query, scaled, lse, table, d_query, d_table, *, size, scoring):
  core, step, tile = (pl.program_id(axis) for axis in range(3))
  block = core * pl.num_programs(1) + step
  start = block * table.shape[1]
  inside = start < size

  @pl.when((step == 0) & (tile == 0))
  def _():
    d_query[...] = jnp.zeros_like(d_query)

  @pl.when(inside & (tile == 0))
  def _():
    d_table[...] = jnp.zeros_like(d_table)

  def work(i, j, ragged):
    rows, columns = pl.ds(i * ROWS, ROWS), pl.ds(j * COLUMNS, COLUMNS)
    index_1xK = start + j * COLUMNS + jax.lax.broadcasted_iota(jnp.int32, (1, COLUMNS), 1)
    item_DxK = _items(table[:, columns], index_1xK, size, scoring)
    scores_mxK = scoring.dot(query[rows], item_DxK, 1, 0)
    p_mxK = jnp.exp2((scores_mxK - lse[rows]) * scoring.bits)
    if ragged:
      p_mxK = jnp.where(index_1xK < size, p_mxK, 0.0)
    p_mxK = p_mxK.astype(scoring.dtype)
    d_query[0, pl.ds(tile * query.shape[0] + i * ROWS, ROWS)] += scoring.dot(p_mxK, item_DxK, 1, 1)
    d_table[:, columns] += scoring.dot(scaled[:, rows], p_mxK, 1, 0)

  for ragged in (False, True):
    @pl.when(inside & (real_T[tile] > 0) & ((start + table.shape[1] > size) == ragged))
    def _():
      @pl.loop(0, table.shape[1] // COLUMNS)
      def _(j):
        @pl.loop(0, query.shape[0] // ROWS)
        def _(i):
          work(i, j, ragged)

  if scoring.similarity == 'cos':
    @pl.when(inside & (tile == pl.num_programs(2) - 1))
    def _():
      _, pull = jax.vjp(lambda x: scoring.comparable(x, 0), table[...].astype(jnp.float32))
      d_table[...] = pull(d_table[...])[0]


def backward(query_MxD, real_M, table_VxD, lse_M, g_M, scoring, interpret=False):
  rows, (size, width) = query_MxD.shape[0], table_VxD.shape
  count = pl.cdiv(size, BLOCK)
  each = pl.cdiv(count, CORES)
  place = lambda core, step, *_: (0, jnp.minimum(core * each + step, count - 1))
  d_query, d_table = pl.pallas_call(
    functools.partial(_backward_kernel, size=size, scoring=scoring),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=(CORES, each, rows // TILE),
      in_specs=[
        pl.BlockSpec((TILE, width), lambda c, i, t, *_: (t, 0)),
        pl.BlockSpec((width, TILE), lambda c, i, t, *_: (0, t)),
        pl.BlockSpec((TILE, 1), lambda c, i, t, *_: (t, 0)),
        pl.BlockSpec((width, BLOCK), place),
      ],
      out_specs=[
        pl.BlockSpec((1, rows, width), lambda c, i, t, *_: (c, 0, 0)),
        pl.BlockSpec((width, BLOCK), place),
      ],
    ),
    out_shape=[jax.ShapeDtypeStruct((CORES, rows, width), jnp.float32), jax.ShapeDtypeStruct((width, size), jnp.float32)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=64*2**20
    ),
    interpret=interpret,
    name='catalogue_backward',
  )(real_M.reshape(-1, TILE).any(1).astype(jnp.int32), query_MxD, (query_MxD*g_M[:,None]).T.astype(scoring.dtype), lse_M[:,None], table_VxD.T)
  return d_query.sum(0), d_table.T
