"""Compiles a run's programs for accelerators that are not there, and says what each chip would hold.

    python -m lares_jax.study compile --config=configs/large_catalogue.py --topology=v5p:2x2x4 \\
        [--num_slices=2] [--items=100000000] [--config.mesh.catalogue=16]

A topology is v4, v5e, v5p or v6e and the chips along each axis, or h200 and the number of GPUs. For
TPU install requirements-tpu.txt, for GPU requirements-aot.txt. `--items` stands in for a data set.
"""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # only a compiler here: no chip is claimed

import dataclasses
import functools
import pathlib
import re
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import config_flags

from lares_jax import config as config_lib
from lares_jax.data.store import Store
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.negatives import Popularity
from lares_jax.studies import flops, hlo
from lares_jax.training import sharding
from lares_jax.training.evaluation import Evaluator
from lares_jax.training.state import Phase

_CONFIG = config_flags.DEFINE_config_file('config', help_string='A file of configs/.')
flags.mark_flag_as_required('config')
_TOPOLOGY = flags.DEFINE_string('topology', 'v5e:4x4', 'Such as v5e:4x4, v5p:2x2x4, h200:8.')
_SLICES = flags.DEFINE_integer('num_slices', 1, 'TPU slices, or GPU machines.', lower_bound=1)
_ITEMS = flags.DEFINE_integer(
  'items', 0, 'Size of the catalogue; 0: that of the data set.', lower_bound=0)

GIB = 2**30
CLOCK = {'v4': 1.05e9, 'v5e': 1.5e9, 'v5p': 1.75e9, 'v6e': 1.75e9}  # Hz, from the published peaks
MEMORY = {'v4': 32, 'v5e': 16, 'v5p': 95, 'v6e': 32, 'h200': 141}  # GiB a chip


def main() -> int:
  config = config_lib.typed(_CONFIG.value)
  devices, kind = topology(_TOPOLOGY.value, _SLICES.value)
  experiment = Unbuilt(config, pathlib.Path(), wanted_items=_ITEMS.value, devices=tuple(devices))
  shape = experiment.mesh.shape
  print(f'{_TOPOLOGY.value} x {_SLICES.value}: {len(devices)} chips, mesh data {shape["data"]} x '
        f'catalogue {shape["catalogue"]}; {experiment.catalogue.items:,} items in '
        f'{experiment.catalogue.rows:,} rows')
  fits = [report(name, build, depth, experiment, kind)
          for name, (build, depth) in programs(experiment).items()]
  print(f'everything fits into {MEMORY[kind]} GiB a chip' if all(fits) else
        f'does not fit into {MEMORY[kind]} GiB a chip: take more chips, a longer axis `catalogue` or '
        'fewer rows a step')
  return 0 if all(fits) else 1


def topology(name: str, slices: int) -> tuple[list[Any], str]:
  """Devices to compile for, and their kind.

  Raises:
    InputError: no such topology, or the compiler for it is not installed.
  """
  if not re.fullmatch(r'(v4|v5e|v5p|v6e):\d+(x\d+)*|h200:\d+', name):
    raise InputError(f'--topology={name}: use v4, v5e, v5p or v6e with the chips along each axis, '
                     'such as v5e:4x4, or h200:8')
  kind, _, chips = name.partition(':')
  options: dict[str, Any] = {'platform': 'tpu', 'topology_name': name}
  if kind == 'h200':
    target = pathlib.Path(__file__).with_name('h200.txtpb').read_text(encoding='utf-8')
    options = {'platform': 'cuda', 'topology_name': kind, 'target_config': target,
               'topology': f'{slices}x1x{chips}'}
  elif slices > 1:
    options['num_slices'] = slices
  try:
    return list(topologies.get_topology_desc(**options).devices), kind
  except (RuntimeError, ValueError) as error:
    extra = '--no-deps -r requirements-aot.txt' if kind == 'h200' else '-r requirements-tpu.txt'
    raise InputError(f'--topology={name}: {str(error).splitlines()[0]} (pip install {extra} ?)'
                     ) from None


@dataclasses.dataclass(frozen=True, eq=False)
class Unbuilt(Experiment):
  """An experiment of which only the shapes are wanted."""

  wanted_items: int = 0  # 0: those of the data set
  devices: tuple[Any, ...] = ()

  @functools.cached_property
  def num_items(self) -> int:
    return self.wanted_items or Experiment(self.config, self.workdir).num_items

  @functools.cached_property
  def mesh(self) -> Mesh:
    return sharding.build(self.config.mesh, list(self.devices))

  @functools.cached_property
  def popularity(self) -> Popularity:
    return Popularity.of(np.broadcast_to(1, self.num_items))

  @functools.cached_property
  def store(self) -> Store:
    """Enough users of `max_history` items each for a batch, over a catalogue of the wanted size."""
    c = self.config
    length = c.data.max_history
    rows = max(c.pretrain.train.batch_rows, c.posttrain.train.batch_rows, c.evaluate.batch_rows)
    offsets = np.arange(rows * (c.data.length // length) + 1) * (length + 3)
    items_N = np.zeros(offsets[-1], np.int32)
    times_N = np.zeros(len(items_N), np.int64) if c.model.backbone.times else None
    return Store('', items_N, times_N, offsets, offsets[1:] - 2, offsets[1:] - 1,
                 {'counts': {'items': self.num_items, 'users': len(offsets) - 1}})


def programs(experiment: Unbuilt) -> dict[str, Any]:
  """By name: a function of an experiment to a traced program, and how deep the program goes."""
  depth = experiment.config.depth
  out = {'phase one, a step': (lambda e: step(e, e.pretraining()), depth.cap)}
  if depth.mean and experiment.config.model.reasoner == 'lares':
    out['phase two, a step'] = lambda e: step(e, e.posttraining(e.abstract_params, None)), depth.cap
  return {**out, 'evaluation, a batch': (evaluation, depth.mean)}


def step(experiment: Unbuilt, phase: Phase):
  mesh = experiment.mesh
  state = sharding.abstract(phase.fresh, experiment.abstract_params, mesh)
  places = jax.tree.map(lambda x: x.sharding, state)
  draw = phase.objective.draw(np.random.default_rng(0))
  jitted = jax.jit(phase.update, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))
  batch = abstract_batch(phase.batches.batch(0), mesh)
  return jitted.trace(state, phase.reference, batch, draw)


def evaluation(experiment: Unbuilt):
  evaluator = experiment.evaluator
  batch = next(evaluator.batches('valid'))._replace(index_BxA=None)
  return Evaluator.batch_ranks.trace(
    evaluator, experiment.abstract_params, abstract_batch(batch, experiment.mesh), np.int32(0),
    (experiment.config.depth.mean,))


def abstract_batch(batch, mesh: Mesh):
  """The shapes and places of `sharding.put_batch`."""
  rows = mesh.shape['data']
  one = lambda x: jax.ShapeDtypeStruct((-(-len(x) // rows) * rows, *x.shape[1:]), x.dtype,
                                       sharding=NamedSharding(mesh, PartitionSpec('data')))
  return jax.tree.map(one, batch)


def report(name: str, build, deepest: int, experiment: Unbuilt, kind: str) -> bool:
  """Compiles one program and prints what a chip holds, sends and computes; whether it fits."""
  start = time.time()
  print(f'\n{name}')
  try:
    compiled = build(experiment).lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    print('  the compiler finds no room: ' + str(error).strip().splitlines()[0])
    return False
  memory = compiled.memory_analysis()
  parts = {'arguments': memory.argument_size_in_bytes,
           'results beyond them': memory.output_size_in_bytes - memory.alias_size_in_bytes,
           'temporaries': memory.temp_size_in_bytes,
           'code': memory.generated_code_size_in_bytes}
  total = sum(parts.values())
  for part, size in parts.items():
    print(f'  {part:<20} {size:>17,} bytes a chip')
  fits = total <= MEMORY[kind] * GIB
  print(f'  {"in all":<20} {total:>17,} bytes: {"fits" if fits else "DOES NOT FIT"}, '
        f'{total / GIB / MEMORY[kind]:.0%} of {MEMORY[kind]} GiB')
  text = compiled.as_text()
  for line in hlo.collectives(text):
    print(f'  {line}')
  r = experiment.config.depth.mean
  print(f'  {flops.of(experiment, build, r):>14,.0f} FLOPs a chip in matrix products at depth {r}')
  if kind in CLOCK:
    estimate = hlo.cycles(text, deepest) / CLOCK[kind] * 1e3
    print(f'  {estimate:>14,.1f} ms by XLA\'s estimate at depth {deepest}, '
          'collectives and kernels not included')
  print(f'  compiled in {time.time() - start:.0f} s')
  return fits
