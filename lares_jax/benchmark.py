"""Measures speed and memory on this machine; variants take turns in one process.

    python -m lares_jax.benchmark --config=configs/beauty.py \\
        --config.data.path=../shared/data/beauty.txt [--what=packed,prefix,posttrain,evaluate] \\
        [--depth=4] [--rounds=5] [--json]

  packed     phase one, rows of several histories, the config's batch
  prefix     phase one as published: a row for every target, three views, 1,024 targets a step
  posttrain  phase two: prompts/s, every training target a prompt
  evaluate   full ranking of every user's test target
  recommend  ten items for 4,096 raw histories at once; recommend_one: for one at a time
  catalogue  the pass over the items alone, by itself: sizes swept, plain and kernel, share of the
             measured ceilings

Each is called --rounds times, every time after a call to warm up. Depth is held at --depth. For
recommend_one take --rounds=300, or p99 says little.
"""

import dataclasses
import functools
import itertools
import json
import pathlib
import resource
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from lares_jax import config as config_lib
from lares_jax import report
from lares_jax.errors import InputError, front_door
from lares_jax.experiment import Experiment
from lares_jax.recommender import Recommender
from lares_jax.studies import catalogue as catalogue_study
from lares_jax.studies import timing
from lares_jax.training import sharding
from lares_jax.training.state import Phase

_CONFIG = config_flags.DEFINE_config_file('config', help_string='A file of configs/.')
flags.mark_flag_as_required('config')
_WHAT = flags.DEFINE_list('what', ['packed', 'prefix', 'posttrain', 'evaluate'], 'What to measure.')
_DEPTH = flags.DEFINE_integer('depth', 4, 'Steps of reasoning, held fixed.', lower_bound=0)
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Turns of each variant.', lower_bound=1)
_JSON = flags.DEFINE_bool('json', False, 'One JSON object as the last line.')

COMPILED = '/jax/core/compile/backend_compile_duration'  # an event of jax.monitoring
PUBLISHED_BATCH = 1024
RECOMMEND_BATCH = 4096


@dataclasses.dataclass
class Variant:
  """One thing to time: `once` does a unit of work and says how many targets or users it held."""

  unit: str
  once: Callable[[], int]
  sizes: dict[str, float] = dataclasses.field(default_factory=dict)  # of a step's program
  counts: list[int] = dataclasses.field(default_factory=list)  # what each unit held

  def __call__(self) -> None:
    self.counts.append(self.once())


def main() -> None:
  config = config_lib.typed(_CONFIG.value)
  if _WHAT.value == ['catalogue']:
    rows = catalogue_study.run(config.catalogue, _ROUNDS.value)
    if _JSON.value:
      print(json.dumps(rows))
    return
  if config.depth.mean and not 1 <= _DEPTH.value <= config.model.deepest:
    raise InputError(f'--depth={_DEPTH.value}: this model goes from 1 to {config.model.deepest}; its '
                     'backbone alone is --config=FILE:plain')
  makers: dict[str, Callable[[Experiment], Variant]] = {
    'packed': packed, 'prefix': prefix, 'posttrain': posttrain, 'evaluate': evaluate,
    'recommend': functools.partial(recommend, RECOMMEND_BATCH),
    'recommend_one': functools.partial(recommend, 1)}
  unknown = [w for w in _WHAT.value if w not in makers]
  if unknown:
    raise InputError(f'--what={unknown[0]}: use some of {", ".join(makers)}; or catalogue, by itself')
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: compiled.append(event) if event == COMPILED else None)
  experiment = Experiment(config, pathlib.Path())
  variants = [makers[w](experiment) for w in _WHAT.value]
  seconds = timing.in_turns(dict(enumerate(variants)), _ROUNDS.value)
  figures = [{'what': w, **_figures(v, seconds[n])}
             for n, (w, v) in enumerate(zip(_WHAT.value, variants))]
  shown = lambda x: f'{x:,}' if isinstance(x, int | float) else x or ''
  print(report.table(list(figures[0]), [[shown(x) for x in f.values()] for f in figures]))
  unit = 2**30 if sys.platform == 'darwin' else 2**20  # macOS counts bytes, Linux KiB
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
  device = jax.devices()[0]
  print(f'{device.device_kind}, {jax.device_count()} device(s), depth '
        f'{_DEPTH.value if config.depth.mean else 0}; {len(compiled)} programs compiled; '
        f'peak host memory of the whole process {peak:.2f} GiB')
  if _JSON.value:
    print(json.dumps({'variants': figures, 'device': device.device_kind, 'compiled': len(compiled),
                      'host_peak_gib': peak}))


def _figures(variant: Variant, seconds: list[float]) -> dict[str, Any]:
  median = float(np.median(seconds))
  sizes = variant.sizes
  return {'unit': variant.unit,
          'units/s': round(float(np.mean(variant.counts)) / median),
          **{f'p{q} ms': round(float(np.percentile(seconds, q)) * 1e3, 1) for q in (50, 95, 99)},
          'temporaries MiB': round(sizes['temporaries_mib']) if sizes else None,
          'HLO lines': sizes.get('hlo_lines')}


def _training(unit: str, experiment: Experiment, phase: Phase, draw) -> Variant:
  """A variant that takes real steps of a phase, one compiled program for all of them."""
  depth = experiment.config.depth
  if depth.mean and _DEPTH.value > depth.cap:
    raise InputError(f'--depth={_DEPTH.value}: a step of training goes from 1 to {depth.cap}; raise '
                     'depth.mean for more')
  put = lambda step: sharding.put_batch(phase.batches.batch(step), experiment.mesh)
  state = [phase.fresh(experiment.init_params())]
  step = timing.Training(phase, state, map(put, itertools.count()), draw)
  once = lambda: int(jax.device_get(step()['targets']))
  return Variant(unit, once, step.sizes)


def packed(experiment: Experiment) -> Variant:
  phase = experiment.pretraining()
  draw = phase.objective.draw(np.random.default_rng(0))
  config = experiment.config
  if config.model.reasoner == 'lares':  # the others draw nothing
    draw = draw._replace(depth=np.int32(_DEPTH.value if config.depth.mean else 0), pick=np.int32(1))
  return _training('targets', experiment, phase, draw)


def prefix(experiment: Experiment) -> Variant:
  """As published, alignment terms included: they are what the three views are for."""
  config = experiment.config
  loss = dataclasses.replace(config.pretrain.loss, alpha=0.1, gamma=0.5, views='separate')
  train = dataclasses.replace(config.pretrain.train, batch_rows=PUBLISHED_BATCH, pairs=PUBLISHED_BATCH)
  return packed(dataclasses.replace(experiment, config=dataclasses.replace(
    config, data=dataclasses.replace(config.data, rows='prefix'),
    pretrain=dataclasses.replace(config.pretrain, loss=loss, train=train))))


def posttrain(experiment: Experiment) -> Variant:
  config = experiment.config
  if not config.depth.mean or config.model.reasoner != 'lares':
    raise InputError('--what=posttrain: phase two is of LARES alone; give --what=packed,evaluate')
  phase = experiment.posttraining(experiment.init_params(), None)
  depth_G = np.full(config.posttrain.loss.rollouts, _DEPTH.value, np.int32)
  return _training('prompts', experiment, phase, depth_G)


def evaluate(experiment: Experiment) -> Variant:
  params = experiment.init_params()
  return Variant(
    'users', lambda: experiment.evaluator.ranks(params, 'test', (_DEPTH.value,)).shape[1])


def recommend(count: int, experiment: Experiment) -> Variant:
  """Different test users' histories at every call, their own items left out."""
  recommender = Recommender(experiment, experiment.init_params(), _DEPTH.value)
  histories = experiment.store.raw_histories(*experiment.store.targets('test'))
  order = itertools.cycle(np.random.default_rng(0).permutation(len(histories)))
  once = lambda: len(recommender.recommend([histories[m] for m in itertools.islice(order, count)]))
  for _ in range(300 // count):  # so that every size of history has met its program
    once()
  return Variant('histories', once)


if __name__ == '__main__':
  front_door(main)
