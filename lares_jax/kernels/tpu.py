"""The catalogue pass on a TPU: Mosaic kernels whose blocks of scores never leave VMEM.

XLA lays a narrow [R, D] table out with R along the lanes, so the kernels take its transpose, which
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
from lares_jax.scoring import product

LANES = 128
TILE = 512  # queries at a time
BLOCK, COLUMNS = 4096, 512  # items of LANES numbers brought into VMEM, and scored, at a time
RESIDENT = 2**21  # numbers of a query gradient that VMEM holds during a backward pass
VMEM = 48 * 2**20  # bytes that a kernel may take of a chip's 64 MiB or more; RESIDENT takes 16 MiB
CORES = 2  # of a v4 or v5p, which divide a backward pass; v5e and v6e have one, which does both parts


def _tiles(rows: int) -> tuple[int, int]:
  """(Queries a tile, queries with padding): tiles as equal as lanes allow, to pad little."""
  tile = LANES * pl.cdiv(pl.cdiv(rows, pl.cdiv(rows, TILE)), LANES)
  return tile, tile * pl.cdiv(rows, tile)


def _block(width: int) -> int:
  """Items brought into VMEM at a time: the fewer, the wider."""
  return max(BLOCK * LANES // max(width, LANES) // COLUMNS, 1) * COLUMNS


def _scalars(counts_2, row_M, tile: int, padded: int) -> jax.Array:
  """The counts, then the first and the last row that is a target, of each tile."""
  row_Txm = jnp.pad(row_M, (0, padded - len(row_M)), mode='edge').reshape(-1, tile)
  return jnp.concatenate([counts_2, row_Txm[:, 0], row_Txm[:, -1]])


def _over_columns(scalars, tile, tiles, rows, block, item_DxK, body):
  """Calls body(near, columns, their row_1xK, item_DxK) for the parts of a block that count.

  Few blocks are `near`, that is may hold a target of the tile, as queries are sorted by target.
  """
  size = item_DxK.shape[1]
  queries, items, start = scalars[0], scalars[1], block * size
  targets = (scalars[2 + tile] < start + size) & (scalars[2 + tiles + tile] >= start)

  def part(near):
    @pl.loop(0, size // COLUMNS)
    def _(j):
      columns = pl.ds(pl.multiple_of(j * COLUMNS, COLUMNS), COLUMNS)
      row_1xK = jax.lax.broadcasted_iota(jnp.int32, (1, COLUMNS), 1) + (start + j * COLUMNS)
      # Beyond the table's end memory holds anything.
      body(near, columns, row_1xK, jnp.where(row_1xK < items, item_DxK[:, columns], 0))

  for near in (False, True):
    work = (tile * rows < queries) & (start < items) & (targets == near)
    pl.when(work)(functools.partial(part, near))


def _forward_kernel(scalars, query, item, target, *refs, config, rank):
  bounds, sums = refs[: 2 * rank], refs[2 * rank :]
  tile, block = pl.program_id(0), pl.program_id(1)
  lanes = lambda x_mxK: [x_mxK[:, p : p + LANES] for p in range(0, COLUMNS, LANES)]

  @pl.when(block == 0)
  def _():
    for out, first in zip(sums, [0.0] if rank else [score.LOWEST, 0.0, 0.0]):
      out[...] = jnp.full(out.shape, first)

  def body(near, _, row_1xK, item_DxK):
    products_mxK = product('md,dk->mk', query[...], item_DxK, config)
    item_1xK = row_1xK < scalars[1]
    if rank:
      other = item_1xK & (row_1xK != target[...]) if near else item_1xK
      above_mxK = score.above(products_mxK, *(bound[...] for bound in bounds))
      sums[0][...] += sum(lanes(jnp.where(other, above_mxK, 0.0)))
      return
    if near:
      sums[2][...] += sum(lanes(jnp.where(row_1xK == target[...], products_mxK, 0.0)))
    products_mxK = jnp.where(item_1xK, products_mxK, -jnp.inf)
    before_mxP = sums[0][...]
    top_mxP = functools.reduce(jnp.maximum, lanes(products_mxK), before_mxP)
    total_mxP = sums[1][...] * score.power(before_mxP, top_mxP, config)
    for products_mxP in lanes(products_mxK):
      total_mxP += score.power(products_mxP, top_mxP, config)
    sums[0][...], sums[1][...] = top_mxP, total_mxP

  _over_columns(scalars, tile, pl.num_programs(0), query.shape[0], block, item, body)


def forward(counts_2, query_MxD, row_M, bounds, item_RxD, config, interpret):
  """See `kernels.forward`, which prepares the arrays."""
  (rows, width), rank, results = query_MxD.shape, bool(bounds), 1 if bounds else 3
  (tile, padded), items = _tiles(rows), _block(width)
  by_tile = lambda columns: pl.BlockSpec((tile, columns), lambda t, i, _: (t, 0))
  block = pl.BlockSpec((width, items), lambda t, i, _: (0, i))
  sums = pl.pallas_call(
    functools.partial(_forward_kernel, config=config, rank=rank),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1, grid=(padded // tile, pl.cdiv(len(item_RxD), items)),
      in_specs=[by_tile(width), block, *[by_tile(1)] * (1 + 2 * rank)],
      out_specs=[by_tile(LANES)] * results),
    out_shape=[jax.ShapeDtypeStruct((padded, LANES), jnp.float32)] * results,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary'), vmem_limit_bytes=VMEM),
    interpret=interpret, name='catalogue_forward',
  )(_scalars(counts_2, row_M, tile, padded), score.pad(query_MxD, padded, width), item_RxD.T,
    *(score.pad(x_M[:, None], padded, 1) for x_M in (row_M, *bounds)))
  sums = [x[:rows] for x in sums]
  if rank:
    return (sums[0].sum(axis=1),)
  return score.combine(*sums[:2], config, 1), sums[2].sum(axis=1)


def _backward_kernel(
  scalars, query, across, target, lse, g_lse, g_target, item, d_query, d_item, *, blocks, config):
  step, tile = pl.program_id(1), pl.program_id(2)
  block = pl.program_id(0) * pl.num_programs(1) + step

  @pl.when((step == 0) & (tile == 0))
  def _():
    d_query[...] = jnp.zeros_like(d_query)

  @pl.when((block < blocks) & (tile == 0))  # the last part may be a block short
  def _():
    d_item[...] = jnp.zeros_like(d_item)

  def body(near, columns, row_1xK, item_DxK):
    products_mxK = product('md,dk->mk', query[...], item_DxK, config)
    g_mxK = score.power(products_mxK, lse[...], config) * g_lse[...]
    g_mxK = jnp.where(row_1xK < scalars[1], g_mxK, 0.0)
    if near:
      g_mxK += jnp.where(row_1xK == target[...], g_target[...], 0.0)
    rows = pl.ds(pl.multiple_of(tile * query.shape[0], LANES), query.shape[0])
    d_query[0, rows] += product('mk,dk->md', g_mxK, item_DxK, config)
    d_item[:, columns] += product('dm,mk->dk', across[...], g_mxK, config)

  _over_columns(scalars, tile, pl.num_programs(2), query.shape[0], block, item, body)


def backward(counts_2, query_MxD, of_query, item_RxD, config, interpret):
  """See `kernels.backward`, which prepares the arrays."""
  (rows, width), size = query_MxD.shape, len(item_RxD)
  if rows > 1 and rows * LANES * pl.cdiv(width, LANES) > RESIDENT:
    half = rows // 2
    part = lambda first, rows: backward(
      counts_2 - jnp.array([first, 0], counts_2.dtype), query_MxD[rows],
      [x_M[rows] for x_M in of_query], item_RxD, config, interpret)
    (d_MxD, d_RxD), (e_MxD, e_RxD) = part(0, slice(half)), part(half, slice(half, None))
    return jnp.concatenate([d_MxD, e_MxD]), d_RxD + e_RxD
  (tile, padded), items = _tiles(rows), _block(width)
  blocks = pl.cdiv(size, items)
  cores = min(CORES, blocks)
  each = pl.cdiv(blocks, cores)
  by_tile = lambda columns: pl.BlockSpec((tile, columns), lambda core, i, t, _: (t, 0))
  across = pl.BlockSpec((width, tile), lambda core, i, t, _: (0, t))
  block = pl.BlockSpec(
    (width, items), lambda core, i, t, _: (0, jnp.minimum(core * each + i, blocks - 1)))
  d_query, d_item = pl.pallas_call(
    functools.partial(_backward_kernel, blocks=blocks, config=config),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1, grid=(cores, each, padded // tile),
      in_specs=[by_tile(width), across, *[by_tile(1)] * 4, block],
      out_specs=[pl.BlockSpec((1, padded, width), lambda core, i, t, _: (core, 0, 0)), block]),
    out_shape=[jax.ShapeDtypeStruct((cores, padded, width), jnp.float32),
               jax.ShapeDtypeStruct((width, size), jnp.float32)],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=('parallel', 'arbitrary', 'arbitrary'),
      vmem_limit_bytes=VMEM),
    interpret=interpret, name='catalogue_backward',
  )(_scalars(counts_2, of_query[0], tile, padded),
    score.pad(query_MxD, padded, width), score.pad(query_MxD, padded, width).T,
    *(score.pad(x_M[:, None], padded, 1) for x_M in of_query), item_RxD.T)
  return d_query.sum(axis=0)[:rows], d_item.T
