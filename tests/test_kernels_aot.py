"""The kernels compile for real chips, none being here, and keep their blocks of scores on them.

Needs packages of requirements-tpu.txt and requirements-aot.txt; skipped where they are absent.
"""

import importlib.util
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import topologies

from lares_jax import kernels
from lares_jax.scoring import CatalogueConfig, pair_scores
from lares_jax.share import Share

M, R, D = 1500, 50_001, 64

ROOT = pathlib.Path(__file__).parents[1]
H200 = (ROOT / 'lares_jax/studies/h200.txtpb').read_text(encoding='utf-8')  # what XLA asks a driver

CHIPS = {
  'v5e:2x4': ('libtpu', 'tpu', 'tpu', {}),
  'v5p:2x2x1': ('libtpu', 'tpu', 'tpu', {}),
  'v6e:2x4': ('libtpu', 'tpu', 'tpu', {}),
  'h200': ('jax_cuda12_plugin', 'aot', 'cuda', dict(target_config=H200, topology='1x1x8')),
}


@pytest.fixture(scope='module', params=CHIPS)
def chip(request):
  """A device to compile for."""
  package, file, platform, options = CHIPS[request.param]
  if importlib.util.find_spec(package) is None:
    pytest.skip(f'{package} is not installed: see requirements-{file}.txt')
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # this is no TPU machine
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # other processes may compile too
  return topologies.get_topology_desc(
    platform=platform, topology_name=request.param, **options).devices[0]


def passes(config):
  """All that a training step and its metrics ask of the catalogue."""
  def run(table, query, target, real, low, high, g):
    share = Share(table, 0, R - 1, config)
    lse, score = kernels.likelihood(share, query, target, real)
    rank = kernels.count_above(share, query, real, target, low, high)
    return lse, score, rank, *kernels.gradients(share, query, target, real, lse, g, -g)
  return run


def compiled(chip, config):
  f32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  args = (f32(R, D), f32(M, D), jax.ShapeDtypeStruct((M,), jnp.int32),
          jax.ShapeDtypeStruct((M,), bool), f32(M), f32(M), f32(M))
  place = jax.sharding.SingleDeviceSharding(chip)
  run = jax.jit(passes(config), in_shardings=place, out_shardings=place)
  return run.lower(*args).compile()


def blocks_of_scores(hlo: str) -> set[str]:
  """Arrays with an axis of queries and an axis of items, both longer than D or the 128 lanes."""
  shapes = re.findall(r'\b(?:f32|bf16|pred|s32)\[([\d,]+)\]', hlo)
  long = lambda shape: sum(int(size) > 128 for size in shape.split(',')) > 1
  return {shape for shape in shapes if long(shape)}


@pytest.mark.parametrize('similarity, dtype', [('dot', 'bfloat16'), ('cos', 'float32')])
def test_scores_never_reach_main_memory(chip, similarity, dtype):
  program = compiled(chip, CatalogueConfig(
    similarity=similarity, tau=0.5, dtype=dtype, kernel='pallas'))
  hlo = program.as_text()
  calls = hlo.count('custom_call_target="tpu_custom_call"') + hlo.count('"__gpu$xla.gpu.triton"')
  assert calls >= 3, 'the kernels are not in the program: mend kernels._choose'
  assert not blocks_of_scores(hlo), 'a block of scores is an array of the program'
  tables = program.memory_analysis().temp_size_in_bytes / (4 * R * D)
  assert tables < 3, f'temporaries are as large as {tables:.1f} tables: at most 3'


def test_the_plain_pass_is_told_apart(chip):
  hlo = compiled(chip, CatalogueConfig(kernel='plain')).as_text()
  assert blocks_of_scores(hlo), 'the search for blocks of scores finds none where there are some'


@pytest.mark.parametrize('rows, size, width', [
  (5, 1, 8), (1200, 700, 50), (16384, 9000, 256), (8192, 9000, 512)])
def test_odd_and_large_sizes_compile(chip, rows, size, width):
  def run(table, query, target, real):
    share = Share(table, 0, size, CatalogueConfig(dtype='bfloat16', kernel='pallas'))
    lse, score = kernels.likelihood(share, query, target, real)
    return kernels.gradients(share, query, target, real, lse, lse, score)

  shape = jax.ShapeDtypeStruct
  args = (shape((size, width), jnp.float32), shape((rows, width), jnp.float32),
          shape((rows,), jnp.int32), shape((rows,), bool))
  place = jax.sharding.SingleDeviceSharding(chip)
  jax.jit(run, in_shardings=place, out_shardings=place).lower(*args).compile()


def test_a_target_is_scored_as_its_block_is(chip):
  """Factors are rounded to bfloat16 though no matrix unit multiplies pairs: else nothing would tie."""
  config = CatalogueConfig(dtype='bfloat16')
  place, rows = jax.sharding.SingleDeviceSharding(chip), jax.ShapeDtypeStruct((M, D), jnp.float32)
  score = jax.jit(lambda query, item: pair_scores(query, item, config),
                  in_shardings=place, out_shardings=place)
  hlo = score.lower(rows, rows).compile().as_text()
  assert 'bf16[' in hlo or 'reduce-precision(' in hlo, 'the compiler left the rounding out'
