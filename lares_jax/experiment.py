"""From a config to the things that a run needs: data, model, evaluator, phases, and their files."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
import polars as pl

from lares_jax import config as config_lib
from lares_jax import metrics, processes
from lares_jax.aside import aside
from lares_jax.catalogue import Catalogue
from lares_jax.config import Config
from lares_jax.data import synthetic, text
from lares_jax.data.batches import TrainBatches
from lares_jax.data.rows import blank
from lares_jax.data.store import Store, is_prepared
from lares_jax.errors import InputError
from lares_jax.files import as_json, held, read_json, write
from lares_jax.model.lares import Lares
from lares_jax.model.rearec import ReaRec
from lares_jax.negatives import Popularity
from lares_jax.objectives.posttrain import Posttrain
from lares_jax.objectives.pretrain import Pretrain
from lares_jax.objectives.rearec import Rearec
from lares_jax.prepare import PrepareOptions, prepared
from lares_jax.training import sharding
from lares_jax.training.checkpoint import Checkpoints
from lares_jax.training.evaluation import Evaluator
from lares_jax.training.sharding import MeshConfig
from lares_jax.training.state import Phase

_ITEMS = 'items.arrow'  # of a data set, and of a run

# Settings that may change between the starts of one run: no step that was taken hangs on them.
_FREE = ('phases', 'pretrain.train.on_nan', 'posttrain.train.on_nan',
         'pretrain.train.save_every_steps', 'posttrain.train.save_every_steps', 'evaluate.depths',
         'evaluate.batch_rows', 'mesh', 'data.path', 'data.cache', 'data.prepare')

# Settings of the model that may change between a phase and the one that it starts from.
_OF_TRAINING = ('model.embed_dropout', 'model.pre_dropout', 'model.core_dropout',
                'model.remat', 'model.fusion.dropout', 'model.fusion.noise')


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """One config in one workdir."""

  config: Config
  workdir: pathlib.Path
  trained_on: str = ''  # the fingerprint that its data set must have; of a run that is loaded

  @classmethod
  def start(cls, config: Config, workdir: str, store: Store | None = None) -> 'Experiment':
    """Opens or makes the workdir.

    With the `store` of another run that reads the same log, prepared and read in the same way, the
    data set is not opened once more: each time takes the place of some open files.

    Raises:
      InputError: the workdir holds a run of another config or data set, or one that trains just
        now, or the data set lacks what the model reads.
    """
    if '://' in workdir:
      raise InputError(f'--workdir={workdir}: use a directory; a bucket has to be mounted as one')
    experiment = cls(config, pathlib.Path(workdir).absolute())
    if store is not None:
      experiment.__dict__['store'] = store  # where the cached property keeps it
    store = experiment.store
    if not len(store.targets('valid')[0]):
      raise InputError(f'{store.directory}: no validation target with a history, so nothing could be '
                       'chosen; prepare the log with another split')
    mine = {'config': dataclasses.asdict(config), 'data': store.fingerprint,
            'store': os.path.abspath(store.directory)}
    if config.model.fusion.name != 'none':
      mine['text'] = text.fingerprint(store, config.model.fusion.text_width)
    # Each process may find the data set where it likes.
    shared = dataclasses.replace(config, data=dataclasses.replace(config.data, path='', cache=''))
    if processes.differ(repr((shared, mine['data'], mine.get('text'))).encode()):
      raise InputError('the processes were started with different settings or data sets; give all '
                       'the same')
    file = experiment.workdir / 'config.json'
    # A run that never saved anything, such as one whose settings were refused, claims no workdir.
    # While a step is being saved its directory has a longer name.
    saved = (experiment.workdir / 'result.json').exists() or any(
      step.name.isdigit() for step in experiment.workdir.glob('checkpoints/*/*/*'))
    if saved and not file.exists():
      raise InputError(f'{file} is missing beside a trained run, so nobody can say whether this is the '
                       'same one; choose another --workdir, or bring it back')
    if saved:
      theirs = read_json(file, 'config', 'data')
      # What is newer than that run counts as it is by default.
      before = config_lib.typed(theirs['config'], path=f'{file}: config')
      _check_same(mine, {**theirs, 'config': dataclasses.asdict(before)}, experiment.workdir)
    experiment.workdir.mkdir(parents=True, exist_ok=True)
    content = as_json(mine)
    if not file.exists() or file.read_bytes() != content:
      with held(experiment.workdir):  # a run that is under way keeps its own
        write(file, content)
    return experiment

  @classmethod
  def load(cls, workdir: str) -> 'Experiment':
    """The experiment that trained in `workdir`, on the devices that are here.

    Its data set is looked for where something asks for it; `items` a finished run has itself.

    Raises:
      InputError: there is none.
    """
    directory = pathlib.Path(workdir).absolute()
    file = directory / 'config.json'
    if not file.exists():
      raise InputError(f'{workdir}: no config.json there; --workdir must name a trained run')
    content = read_json(file, 'config', 'data')
    config = config_lib.typed(content['config'], path=f'{file}: config')
    mesh = MeshConfig(catalogue=math.gcd(config.mesh.catalogue, jax.device_count()))
    data = config.data
    place = content.get('store')
    if place and is_prepared(place):  # else it is found, or prepared again, from where it came
      data = dataclasses.replace(data, path=place, prepare=PrepareOptions())
    return cls(dataclasses.replace(config, mesh=mesh, data=data), directory, content['data'])

  @functools.cached_property
  def store(self) -> Store:
    """The data set, with times if the model reads them.

    Raises:
      InputError: it cannot be had, is not the one that the run was trained on, or lacks times.
    """
    try:
      store = self._prepared()
    except InputError as error:
      if not self.trained_on:
        raise
      raise InputError(f'{self.workdir}: its data set is not where it was: {error}; main with '
                       '--config.data.path=PLACE tells the run where it is now') from None
    if self.trained_on and store.fingerprint != self.trained_on:
      raise InputError(f'{store.directory}: not the data set that {self.workdir} was trained on, so '
                       'its item numbers mean other items; prepare that one again')
    if not self.config.model.backbone.times:
      return dataclasses.replace(store, times_N=None)
    if store.times_N is None:
      raise InputError(f'{store.directory}: its log has no times; set model.backbone.times=False, or '
                       'prepare it with a time column')
    return store

  @functools.cached_property
  def items(self) -> pl.DataFrame:
    """Raw `id` and `train_count` of each item, [V] rows: what a run keeps of its data set."""
    if not self._has_items:
      return self.store.items
    file = self.workdir / _ITEMS
    try:
      return pl.read_ipc(file)
    except (OSError, pl.exceptions.PolarsError):
      raise InputError(f'{file} is damaged; copy the run again, or delete this where its data set '
                       'still is') from None

  @functools.cached_property
  def num_items(self) -> int:
    """V; training need not read the table of ids for it."""
    return len(self.items) if self._has_items else self.store.num_items

  @property
  def _has_items(self) -> bool:
    return bool(self.trained_on) and (self.workdir / _ITEMS).exists()

  def keep_items(self) -> None:
    """Copies `items` into the workdir, which then recommends without the data set."""
    if processes.first():
      with aside(self.workdir / _ITEMS) as fresh:
        shutil.copyfile(pathlib.Path(self.store.directory, _ITEMS), fresh)

  def _prepared(self) -> Store:
    if not processes.first():
      processes.wait('data')  # the first process prepares it, once for all that see its disk
    data = self.config.data
    if data.path:
      store = prepared(data.path, data.prepare, data.cache)
    else:
      columns = PrepareOptions(format='csv', user='user_id', item='item_id', time='timestamp')
      store = prepared(synthetic.built_in(data.cache), columns, data.cache)
    if processes.first():
      processes.wait('data')
    return store

  @functools.cached_property
  def mesh(self) -> jax.sharding.Mesh:
    return sharding.build(self.config.mesh)

  @functools.cached_property
  def model(self) -> Lares:
    plain = {} if self.config.depth.mean else {'core_layers': 0}
    return self._model(**plain)

  def _model(self, **changes) -> Lares:
    config = dataclasses.replace(self.config.model, **changes)
    kind = Lares if config.reasoner == 'lares' else ReaRec
    return kind(config, self.catalogue.rows, self.catalogue.lookup)

  @functools.cached_property
  def catalogue(self) -> Catalogue:
    c = self.config.catalogue
    popularity = None if c.loss == 'exact' else self.popularity
    return Catalogue(c, self.num_items, self.mesh, popularity)

  @functools.cached_property
  def popularity(self) -> Popularity:
    return Popularity.of(self.items['train_count'].to_numpy())

  @functools.cached_property
  def evaluator(self) -> Evaluator:
    c = self.config
    return Evaluator(self.store, self.model, self.catalogue, c.data, c.evaluate, self.mesh)

  @property
  def depths(self) -> tuple[int, ...]:
    """The depths of the final report, that of training's validation among them."""
    mean = self.config.depth.mean
    return tuple(sorted({*self.config.evaluate.depths, mean})) if mean else (0,)

  def init_params(self) -> Any:
    """Those of `pretrain.start`, or fresh ones, born where they live, and what the data set gives.

    Raises:
      InputError: the model reads text embeddings, and the data set has none that fit.
    """
    if self.config.pretrain.start:
      return self._trained('pretrain', self.config.pretrain.start)
    places = jax.tree.map(lambda x: x.sharding, self.abstract_params)
    params = jax.jit(self._init, out_shardings=places)(jax.random.key(self.config.seed))
    if 'text' in params:
      table_VxW = text.opened(self.store, self.config.model.fusion.text_width)
      params['text'] = jax.make_array_from_callback(
        params['text'].shape, places['text'], lambda index: text.part(table_VxW, index))
    return params

  @functools.cached_property
  def abstract_params(self) -> Any:
    return sharding.abstract(self._init, jax.random.key(0), self.mesh)

  def _init(self, key) -> Any:
    rows = blank((1, self.config.data.length), self.config.model.backbone.times)
    z0 = np.zeros((*rows.item_BxL.shape, self.config.model.backbone.width), np.float32)
    return self.model.init(key, rows, z0, 1, cap=1)['params']

  def best(self, phase: str, workdir: pathlib.Path | None = None) -> tuple[Any, dict[str, float], int]:
    """(parameters, validation metrics, step) of a phase's best checkpoint, here or in another run."""
    with contextlib.closing(Checkpoints(workdir or self.workdir, phase, read_only=True)) as checkpoints:
      return checkpoints.restore_best(self.abstract_params)

  def reference(self) -> Any:
    """Phase two's start and frozen reference: the best of phase one, here or in another run."""
    start = self.config.posttrain.start
    return self._trained('posttrain', start) if start else self.best('pretrain')[0]

  def _trained(self, phase: str, start: str) -> Any:
    """The best parameters that phase one left in the workdir `start`, for a phase to start from."""
    other = Experiment.load(start)
    if other.trained_on != self.store.fingerprint:
      raise InputError(f'{phase}.start={start} was trained on another data set')
    # Orbax would cut or fill arrays of another shape without a word, such as a filter of positions.
    mine, theirs = (
      {'model': dataclasses.asdict(e.model.config), 'catalogue.tau': e.config.catalogue.tau,
       'catalogue.similarity': e.config.catalogue.similarity,
       'row length': None if e.model.config.causal else e.config.data.length} for e in (self, other))
    differing = [d for d in config_lib.differing(mine, theirs) if not d.startswith(_OF_TRAINING)]
    if differing:
      raise InputError(f'{phase}.start={start} is another model: {", ".join(differing)}')
    if (fusion := self.config.model.fusion).name != 'none' and text.fingerprint(
        self.store, fusion.text_width) != read_json(other.workdir / 'config.json').get('text'):
      raise InputError(f'{phase}.start={start} was trained with another text.npy')
    other.result()  # of a run that still trains, the best may be another after a restart
    return self.best('pretrain', other.workdir)[0]

  def result(self) -> dict[str, Any]:
    file = self.workdir / 'result.json'
    if not file.exists():
      raise InputError(f'{self.workdir}: no result.json; the run has not finished')
    return read_json(file, 'phase')

  def validate(self, params) -> dict[str, float]:
    """Validation metrics at the mean recurrence."""
    rank_1xM = self.evaluator.ranks(
      params, 'valid', (self.config.depth.mean,), users=self.config.evaluate.users)
    return metrics.summary(rank_1xM[0])

  def pretraining(self) -> Phase:
    c = self.config
    objective: Pretrain | Rearec = Pretrain(self.model, self.catalogue, c.depth, c.pretrain.loss)
    if isinstance(self.model, ReaRec):
      objective = Rearec(self.model, self.catalogue, c.pretrain.rearec)
    train, lares = c.pretrain.train, isinstance(objective, Pretrain)
    pairs = train.pairs if c.aligns else 0
    batches = TrainBatches(
      self.store, c.data, train.batch_rows, pairs, c.seed,
      partners=lares and c.pretrain.loss.partners, copies=lares and c.pretrain.loss.copies)
    if batches.pairs < pairs:
      print(f'pretrain: {batches.pairs} pairs a step, one for each history in its rows')
    return Phase('pretrain', objective, batches, train, c.seed, self.validate, c.evaluate.history,
                 validate_first=bool(c.pretrain.start))

  def posttraining(self, reference, kept_N: np.ndarray | None) -> Phase:
    """Phase two against a frozen reference, on the kept prompts (one flag an interaction)."""
    c, p = self.config, self.config.posttrain
    fusion = dataclasses.replace(c.model.fusion, dropout=p.outer_dropout)
    model = self._model(embed_dropout=p.outer_dropout, pre_dropout=p.outer_dropout,
                        core_dropout=p.dropout, fusion=fusion)
    objective = Posttrain(model, self.catalogue, c.depth, p.loss)
    batches = TrainBatches(self.store, c.data, p.train.batch_rows, 0, c.seed + 1, kept_N)
    return Phase('posttrain', objective, batches, p.train, c.seed, self.validate, c.evaluate.history,
                 reference, validate_first=True)


def _check_same(mine: dict, theirs: dict, workdir: pathlib.Path) -> None:
  differing = config_lib.differing(mine['config'], theirs['config'])
  asked = 'posttrain' in theirs['config']['phases'] or (workdir / 'checkpoints/posttrain').exists()
  free = _FREE if asked else (*_FREE, 'select.', 'posttrain.')  # phase two is still to come
  differing = [d for d in differing if not d.startswith(free)]
  differing += [f'the {what}' for key, what in (('data', 'data set'), ('text', 'text embeddings'))
                if mine.get(key) != theirs.get(key)]
  if differing:
    raise InputError(f'{workdir} holds another run; differing: {", ".join(differing)}. '
                     'Choose another --workdir, or delete this one')
