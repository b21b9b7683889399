"""What a comparison consists of, and its training: rows of a table, each of several seeds."""

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from lares_jax import config as config_lib
from lares_jax import run
from lares_jax.config import Config
from lares_jax.data.store import Store
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.training.evaluation import EvaluationConfig


@dataclasses.dataclass(frozen=True)
class Row:
  """A row of the table; see compare.py."""

  config: Config | None = None
  of: str = ''
  phase: str = ''
  against: str = ''
  seeds: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
  """What to run and to compare."""

  runs: Mapping[str, Row] = dataclasses.field(default_factory=dict)
  reference: str = ''
  seeds: tuple[int, ...] = (0, 1, 2)
  data_path: str = ''  # a log or a prepared directory for all runs; empty: as their configs say
  resamples: int = 1999

  def __post_init__(self):
    names = ', '.join(self.runs)
    if self.resamples < 100:
      raise InputError(f'config.resamples={self.resamples}: use 100 or more')
    if self.reference not in self.runs:
      raise InputError(f'config.reference={self.reference!r} is not a run; there are {names}')
    for name, row in self.runs.items():
      where = f'config.runs.{name}'
      origin = self.runs.get(row.of)
      if not re.fullmatch(r'[\w-]+', name):
        raise InputError(f'{where}: it names a directory; use letters, digits, _ and -')
      if (row.config is None) == (not row.of):
        raise InputError(f'{where}: give config, or of=NAME of a run that has one')
      if row.of and (origin is None or origin.of or row.seeds):
        raise InputError(f'{where}.of={row.of!r} must be a run with a config, which says the seeds too')
      if row.phase not in ('', 'pretrain', 'posttrain'):
        raise InputError(f'{where}.phase={row.phase!r}: use pretrain or posttrain')
      trains = self.runs[self.source(name)].config
      if row.phase and trains is not None and row.phase not in trains.phase_list:
        raise InputError(f'{where}.phase={row.phase!r}: config.runs.{self.source(name)} does not train '
                         'it; name it in its config.phases')
      if self.against(name) not in self.runs:
        raise InputError(f'{where}.against={row.against!r} is not a run; there are {names}')
      seeds = self.seeds_of(name)
      if not seeds or len({*seeds}) < len(seeds):
        raise InputError(f'{where}: seeds={seeds}: give different whole numbers, such as 0,1,2')

  def source(self, name: str) -> str:
    """The row whose runs this row shows."""
    return self.runs[name].of or name

  def against(self, name: str) -> str:
    return self.runs[name].against or self.reference

  def seeds_of(self, name: str) -> tuple[int, ...]:
    return self.runs[self.source(name)].seeds or self.seeds


def start(plan: Plan, workdir: pathlib.Path, to_train: bool = True) -> dict[str, list[Experiment]]:
  """Opens every run before the first is trained, so that a fault shows at once; by row, then seed.

  Where none is to be trained, one without a result leaves no directory and need not be able to run.
  """
  out: dict[str, list[Experiment]] = {}
  first: Experiment | None = None
  stores: dict[Any, Store] = {}  # one each for all: a table's runs may be more than a process may open
  for name, row in plan.runs.items():
    if row.config is None:
      continue
    data = dataclasses.replace(row.config.data, path=plan.data_path or row.config.data.path)
    source = data.path, data.cache, data.prepare, row.config.model.backbone.times
    out[name] = []
    for seed in plan.seeds_of(name):
      config = dataclasses.replace(row.config, seed=seed, data=data)
      experiment = Experiment(config, workdir.absolute() / name / f'seed_{seed}')
      if to_train or (experiment.workdir / 'result.json').exists():
        experiment = Experiment.start(config, str(experiment.workdir), stores.get(source))
        stores[source] = experiment.store
        first = first or experiment
        if experiment.store.fingerprint != first.store.fingerprint:
          raise InputError(f'config.runs.{name} reads another data set than '
                           f'{first.workdir.parent.name}; give all one with --config.data_path')
      out[name].append(experiment)
  return {name: out[plan.source(name)] for name in plan.runs}


def train(experiments: Mapping[str, Sequence[Experiment]]) -> None:
  """Trains what is not finished, the first seed of every row first."""
  by_seed = itertools.zip_longest(*experiments.values())  # rows that look again share their runs
  todo = dict.fromkeys(e for column in by_seed for e in column if e and not finished(e))
  for n, e in enumerate(todo, 1):
    print(f'\nrun {n} of {len(todo)}: {e.workdir.parent.name}, seed {e.config.seed}', flush=True)
    run.train(e)
    jax.clear_caches()  # the next run compiles its own


def finished_part(plan: Plan, experiments: Mapping[str, Sequence[Experiment]]
                  ) -> tuple[Plan, dict[str, list[Experiment]]]:
  """Rows with a finished run, of these runs alone; what is left out is printed.

  A row whose `against` is left out stands against the reference; one that shows another's runs
  again, to hold them against something else (`of`), is left out with it.

  Raises:
    InputError: of the reference no run is finished.
  """
  done = {name: [e for e in runs if finished(e)] for name, runs in experiments.items()}
  for name, runs in experiments.items():
    missing = [str(e.config.seed) for e in runs if e not in done[name]]
    if missing and not plan.runs[name].of:
      print(f'not finished: {name}, seed {", ".join(missing)}')
  found = {name: runs for name, runs in done.items() if runs}
  while lost := [name for name in found
                 if plan.runs[name].of and plan.against(name) not in found]:
    found = {name: runs for name, runs in found.items() if name not in lost}
  if plan.reference not in found:
    raise InputError(f'{plan.reference}: no run of it is finished, and the others stand against it; '
                     'train it first, or name another with --config.reference')
  for name in plan.runs:
    if name not in found and plan.runs[name].of:
      print(f'not finished: what {name} stands on, {plan.source(name)} or {plan.against(name)}')
  against = lambda name: plan.against(name) if plan.against(name) in found else ''
  rows = {name: dataclasses.replace(plan.runs[name], against=against(name)) for name in found}
  return dataclasses.replace(plan, runs=rows), found


def finished(experiment: Experiment) -> bool:
  """Whether the result is there, of just these phases and this evaluation; `start` saw to the rest."""
  file = experiment.workdir / 'result.json'
  c = experiment.config
  if not file.exists():
    return False
  settings = experiment.result().get('settings', {})
  found = config_lib.typed(settings.get('evaluate', {}), EvaluationConfig, str(file))
  found = dataclasses.replace(found, batch_rows=c.evaluate.batch_rows)  # changes no rank
  return settings.get('phases') == c.phases and found == c.evaluate
