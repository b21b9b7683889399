"""Meshes of eight simulated devices against one device; the checks themselves are in mesh_checks.py."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from lares_jax.errors import InputError
from lares_jax.training import sharding
from lares_jax.training.sharding import MeshConfig

FOLDER = pathlib.Path(__file__).parent


@pytest.fixture(scope='module')
def verdicts(tmp_path_factory):
  """What the checks said, by name; they share a process, since most of the time is its start."""
  out = subprocess.run(
    [sys.executable, FOLDER / 'mesh_checks.py', tmp_path_factory.mktemp('mesh')],
    env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': ''}, capture_output=True, text=True, check=False)
  found = dict(line.split(': ', 1) for line in out.stdout.splitlines() if ': ' in line)
  assert found, f'mesh_checks.py did not start: {out.stderr[-2000:]}'
  return found


CHECKS = (*[f'{name} {mesh}' for name in ('scores', 'training') for mesh in ('8x1', '1x8', '2x4')],
          *[f'{name} 2x4' for name in ('other_passes', 'removed', 'text_table', 'traffic', 'fits')])


@pytest.mark.parametrize('name', CHECKS)
def test_mesh(verdicts, name):
  """scores: loss, gradients, ranks, top-K; training: 20 steps, checkpoint; traffic: the HLO.

  other_passes: kernels and sampled losses; removed: training without the history's items;
  text_table: what TedRec is given; fits: what a chip holds, by the compile study.
  """
  assert verdicts.get(name) == 'ok'


def test_no_check_of_a_mesh_goes_unread(verdicts):
  assert verdicts.keys() == {*CHECKS}


def _mesh():
  return sharding.build(MeshConfig(), jax.devices()[:1])


def test_the_description_counts_the_bytes():
  tree = {'item': np.zeros((6, 4), np.float32), 'bias': np.zeros(5, np.float32)}
  text = sharding.describe(tree, _mesh())
  assert '116 bytes a device' in text and '1 arrays, 96 bytes' in text and '1 arrays, 20 bytes' in text


@pytest.mark.parametrize('path, split', (
  ('item', True), ('text', True), ('item_gating', False), ('position', False)))
def test_tables_of_items_are_split_and_nothing_else(path, split):
  state = sharding.abstract(lambda state: state, {'mu': {path: np.zeros((2, 2))}}, _mesh())
  assert ('catalogue' in state['mu'][path].sharding.spec) == split


@dataclasses.dataclass(frozen=True)
class Chip:
  """Stands in for a chip of a torus."""

  device_kind: str
  coords: tuple[int, ...]
  slice_index: int
  id: int
  platform: str = 'tpu'
  core_on_chip: int = 0
  process_index: int = 0


def _chips(kind: str, shape, slices: int) -> list[Chip]:
  places = [(n, coords) for n in range(slices) for coords in np.ndindex(*shape)]
  return [Chip(kind, coords, n, i) for i, (n, coords) in enumerate(places)]


@pytest.mark.parametrize('kind, shape, slices, catalogue', (
  ('TPU v6 lite', (4, 4, 1), 1, 2), ('TPU v6 lite', (4, 4, 1), 1, 8), ('TPU v5', (4, 4, 4), 1, 2),
  ('TPU v5', (2, 2, 4), 1, 16), ('TPU v5 lite', (4, 4, 1), 2, 2), ('TPU v5 lite', (4, 4, 1), 2, 32),
  ('TPU v5 lite', (1, 1, 1), 4, 2)))
def test_any_division_of_a_torus_is_a_mesh(kind, shape, slices, catalogue):
  mesh = sharding.build(MeshConfig(catalogue=catalogue), _chips(kind, shape, slices))
  chips = int(np.prod(shape)) * slices
  assert dict(mesh.shape) == {'data': chips // catalogue, 'catalogue': catalogue}
  assert len({chip.id for chip in mesh.devices.flat}) == chips
  if slices > 1:  # no share of the table lies across slices unless it must
    across = max(len({chip.slice_index for chip in row}) for row in mesh.devices)
    assert across == slices // np.gcd(slices, chips // catalogue)


def test_a_mesh_that_does_not_fit_is_refused():
  with pytest.raises(InputError, match='31 devices on 2 slices'):
    sharding.build(MeshConfig(), _chips('TPU v5 lite', (4, 4, 1), 2)[1:])
  with pytest.raises(InputError, match=r'mesh\.catalogue=3 does not divide the 1 devices'):
    sharding.build(MeshConfig(catalogue=3), jax.devices()[:1])
  with pytest.raises(InputError, match=r'mesh\.data=0'):
    sharding.build(MeshConfig(data=2), jax.devices()[:1])
