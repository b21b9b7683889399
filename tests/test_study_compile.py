"""The counting of the compile study; real topologies only where their compilers are installed."""

import importlib.util
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from lares_jax.studies import flops, hlo
from lares_jax.training import sharding
from lares_jax.training.sharding import MeshConfig

_TEXT = """
  %a = f32[8,4]{1,0} all-gather(f32[2,4]{1,0} %x), dimensions={0}
  ROOT %b = (f32[16]{0}, bf16[3,2]{1,0}) all-reduce(f32[16]{0} %y, bf16[3,2]{1,0} %z)
  %c = (f32[4]{0}, f32[16]{0}) all-gather-start(f32[4]{0} %w), dimensions={0}
  %d = f32[16]{0} all-gather-done((f32[4]{0}, f32[16]{0}) %c)
  %e = c64[5]{0} collective-permute(c64[5]{0} %v)
"""


def test_collectives_are_counted_by_kind_with_the_bytes_of_their_results():
  assert hlo.collectives(_TEXT) == [
    '1 all-reduce: 76 bytes, the largest 76', '2 all-gather: 192 bytes, the largest 128',
    '1 collective-permute: 40 bytes, the largest 40']
  assert hlo.collectives('%a = f32[2] add(x, y)') == ['no collectives']


_LOOPS = '''HloModule step

%three (s: (s32[])) -> pred[] {
  %bound = s32[]{:T(128)} constant(3)
}

%taken (s: (s32[])) -> pred[] {
  %steps = s32[] get-tuple-element(%s), index=1
}

%body (s: (s32[])) -> (s32[]) {
  %f = f32[2] fusion(%x), backend_config={"estimated_cycles":"10"}
}

%cheap (x: f32[2]) -> f32[2] {
  %g = f32[2] fusion(%x), backend_config={"estimated_cycles":"50"}
}

%dear (x: f32[2]) -> f32[2] {
  %h = f32[2] fusion(%x), backend_config={"estimated_cycles":"700"}
}

ENTRY %main (p: f32[2]) -> f32[2] {
  %a = f32[2] fusion(%p), backend_config={"estimated_cycles":"1000"}
  %v = (s32[]) while(%t), condition=%three, body=%body
  %w = (s32[]) while(%t), condition=%taken, body=%body
  %c = f32[2] conditional(%i, %x, %y), branch_computations={%dear, %cheap}
  %d = f32[2] call(%a), to_apply=%cheap
  ROOT %e = f32[2] all-reduce(%d), to_apply=%cheap
}
'''


def test_cycles_are_those_of_loops_as_often_as_they_run_and_of_the_longest_branch():
  assert hlo.cycles(_LOOPS, 4) == 1000 + 3 * 10 + 4 * 10 + 700 + 50


def test_flops_of_what_is_written_for_one_chip_are_not_shared_out():
  mesh = sharding.build(MeshConfig(), jax.devices()[:1])
  one, all_chips = jnp.ones((3, 4)), jax.sharding.PartitionSpec()
  product = lambda x, y: x @ y
  program = lambda x, y: jax.shard_map(
    product, mesh=mesh, in_specs=all_chips, out_specs=all_chips, check_vma=False)(x, y).sum() + (x @ y)
  count = flops.count(jax.make_jaxpr(program)(one, one.T).jaxpr, 0.25, 1)
  assert count == 1.25 * 2 * 3 * 4 * 3


def test_flops_count_a_loop_as_often_as_it_runs_and_the_dearer_branch():
  weight = jnp.ones((4, 4))

  def program(x):
    x = jax.lax.scan(lambda x, _: (x @ weight, None), x, None, length=5)[0]
    taken = x.astype(int).max()
    x = jax.lax.fori_loop(0, taken, lambda _, x: x @ weight, x)
    return jax.lax.cond(x.sum() > 0, lambda x: x @ weight, lambda x: x, x)

  count = flops.count(jax.make_jaxpr(program)(jnp.ones((3, 4))).jaxpr, 0.5, 7)
  assert count == (5 + 1 + 7) * 2 * 3 * 4 * 4 / 2


def _study(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run([sys.executable, '-m', 'lares_jax.study', *arguments], text=True,
                        capture_output=True, check=False, cwd=pathlib.Path(__file__).parents[1])


@pytest.mark.parametrize('arguments, said', (
  (('nonsense',), 'error: name a study'),
  (('compile', '--config=configs/lares.py', '--topology=v9:2x2'), 'error: --topology=v9:2x2')))
def test_what_does_not_exist_is_named(arguments, said):
  out = _study(*arguments)
  assert out.returncode == 1 and said in out.stderr and 'Traceback' not in out.stderr, out.stderr


@pytest.mark.skipif(not importlib.util.find_spec('libtpu'), reason='needs requirements-tpu.txt')
def test_a_tpu_slice():
  out = _study('compile', '--config=configs/lares.py', '--items=50000', '--topology=v5e:2x2',
               '--config.mesh.catalogue=2', '--config.pretrain.train.batch_rows=8')
  assert out.returncode == 0, out.stderr
  for said in ('4 chips, mesh data 2 x catalogue 2', 'phase one, a step', 'evaluation, a batch',
               'all-reduce', 'FLOPs', 'everything fits'):
    assert said in out.stdout, out.stdout
