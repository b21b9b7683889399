"""Every setting of a run, typed, with its default; configs/ only say what differs.

A config file's ConfigDict is checked against these classes at the door: a key that does not exist
is refused with the nearest one that does.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from flax import traverse_util

from lares_jax.catalogue import CatalogueConfig
from lares_jax.data.batches import DataConfig
from lares_jax.errors import InputError
from lares_jax.model.depth import DepthConfig
from lares_jax.model.dropout import MOST_DROPOUT
from lares_jax.model.lares import ModelConfig
from lares_jax.objectives.posttrain import PosttrainConfig
from lares_jax.objectives.pretrain import PretrainConfig
from lares_jax.objectives.rearec import RearecConfig
from lares_jax.prepare import PrepareOptions
from lares_jax.training.evaluation import EvaluationConfig
from lares_jax.training.optimizer import OptimizerConfig
from lares_jax.training.sharding import MeshConfig

PHASES = ('pretrain', 'select', 'posttrain')
# Settings, by their last name, that 0 makes senseless.
_ABOVE_ZERO = {
  'width', 'heads', 'inner', 'distances', 'positions', 'core_blocks', 'text_width', 'experts',
  'batch_rows', 'epochs', 'log_every_steps', 'eval_every_epochs', 'top', 'passes', 'tau', 'heat',
  'tile', 'block', 'catalogue', 'k'}


@dataclasses.dataclass(frozen=True)
class SourceConfig(DataConfig):
  """Where the log is, how it is prepared, and how histories become rows."""

  path: str = ''  # a prepared directory or a raw log; empty: the built-in data set
  cache: str = 'runs/cache'  # where raw logs are prepared
  prepare: PrepareOptions = PrepareOptions()


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One phase of training."""

  epochs: float = 300.0
  batch_rows: int = 32  # rows a step; a packed row has 61 targets on Beauty, 31 on ML-100K
  pairs: int = 512  # a step, of phase one's alignment terms; at most one for each history in the rows
  eval_every_epochs: float = 1.0
  patience: int = 10  # evaluations without a better validation NDCG@10 before stopping; 0: never
  save_every_steps: int = 0  # besides where it is evaluated
  log_every_steps: int = 50
  ema: float = 0.0  # decay of a running average of the weights, which evaluation then takes
  on_nan: int = 0  # non-finite steps to skip before stopping
  optimizer: OptimizerConfig = OptimizerConfig()

  def __post_init__(self):
    if self.ema >= 1:
      raise InputError(f'train.ema={self.ema}: use less than 1')


@dataclasses.dataclass(frozen=True)
class SelectConfig:
  """Prompts worth reinforcing: target within `top` in any of `passes` noisy passes at depth r.

  Without `select` among the phases all prompts are, unless the run has selected before.
  """

  top: int = 100
  passes: int = 3


@dataclasses.dataclass(frozen=True)
class PretrainPhase:
  start: str = ''  # workdir of a phase one whose best parameters to start from; empty: drawn
  loss: PretrainConfig = PretrainConfig()
  rearec: RearecConfig = RearecConfig()  # takes its place where model.reasoner is erl or prl
  train: TrainConfig = TrainConfig()


@dataclasses.dataclass(frozen=True)
class PosttrainPhase:
  start: str = ''  # workdir of the phase one to start from; empty: this run's own
  loss: PosttrainConfig = PosttrainConfig()
  # As published: about 400 of the selected prompts a step.
  train: TrainConfig = TrainConfig(batch_rows=8, optimizer=OptimizerConfig(learning_rate=5e-4))
  dropout: float = 0.1  # of the core-block; and of embedding and pre-block below
  # And of text; 0 runs the pre-block once a history, not once a rollout, and as in evaluation.
  outer_dropout: float = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
  """A run."""

  seed: int = 0
  phases: str = 'pretrain'  # of pretrain, select, posttrain; separated by commas, in this order
  data: SourceConfig = SourceConfig()
  model: ModelConfig = ModelConfig()
  depth: DepthConfig = DepthConfig()
  catalogue: CatalogueConfig = CatalogueConfig()
  pretrain: PretrainPhase = PretrainPhase()
  select: SelectConfig = SelectConfig()
  posttrain: PosttrainPhase = PosttrainPhase()
  evaluate: EvaluationConfig = EvaluationConfig()
  mesh: MeshConfig = MeshConfig()

  def __post_init__(self):
    unknown = [p for p in self.phase_list if p not in PHASES]
    if unknown or not self.phase_list:
      raise InputError(f'phases={self.phases!r}: use some of {",".join(PHASES)}')
    if self.model.positions < self.data.max_history:
      raise InputError(f'model.positions={self.model.positions} must reach data.max_history='
                       f'{self.data.max_history}')
    if self.data.rows == 'packed' and not self.model.causal:
      raise InputError('data.rows=packed: this backbone or fusion sees the whole row; '
                       'set data.rows=prefix')
    if self.depth.mean and not self.model.deepest:
      raise InputError('model.core_layers=0 is the plain backbone, without depth: set depth.mean=0')
    if not self.depth.mean and 'posttrain' in self.phase_list:
      raise InputError('phases: posttrain needs a model that reasons; set depth.mean above 0')
    reasoner, thoughts = self.model.reasoner, self.model.thoughts
    if reasoner != 'lares':
      if not thoughts or self.depth.mean != thoughts or 'posttrain' in self.phase_list:
        raise InputError(f'model.reasoner={reasoner} thinks model.thoughts={thoughts} times: set '
                         'depth.mean to this, above 0, and leave out posttrain')
      if self.catalogue.similarity != 'dot':  # divergence and temperatures take scores as linear
        raise InputError(f'model.reasoner={reasoner}: needs catalogue.similarity=dot')
    removed = self.pretrain.loss.history == 'removed'
    if removed and (self.catalogue.loss, self.catalogue.dtype, reasoner) != (
        'exact', 'float32', 'lares'):  # what is taken off may be nearly all: few digits do not do
      raise InputError('pretrain.loss.history=removed: needs catalogue.loss=exact, catalogue.dtype='
                       'float32 and model.reasoner=lares')
    removed |= self.evaluate.history == 'removed'
    if removed and {'select', 'posttrain'} & {*self.phase_list}:
      raise InputError('pretrain.loss.history, evaluate.history=removed: for phase one alone; phase '
                       'two ranks the history when it selects and rewards; set phases=pretrain')
    if self.depth.mean and max(*self.evaluate.depths, self.depth.mean) > self.model.deepest:
      raise InputError(f'depth.mean={self.depth.mean}, evaluate.depths={self.evaluate.depths}: this '
                       f'model goes from 0 to {self.model.deepest}')
    if self.catalogue.loss == 'gbce' and 'posttrain' in self.phase_list:
      raise InputError('catalogue.loss=gbce: gives no probabilities, and phase two compares those; set '
                       'phases=pretrain, or catalogue.loss=exact or sampled')
    if self.aligns and not self.pretrain.train.pairs:
      raise InputError('pretrain.train.pairs=0, but a term of the loss compares pairs: say how many '
                       'a step, or set its weight (pretrain.loss.alpha, .gamma; .rearec.contrast) to 0')

  @property
  def aligns(self) -> bool:
    """Whether phase one compares pairs of histories, or of states."""
    if self.model.reasoner == 'lares':
      return self.pretrain.loss.aligns(self.depth.mean)
    return self.model.reasoner == 'prl' and self.pretrain.rearec.contrast > 0

  @property
  def phase_list(self) -> list[str]:
    return [p.strip() for p in self.phases.split(',') if p.strip()]


def defaults() -> ml_collections.ConfigDict:
  """All settings with their defaults, for a config file to change."""
  config = ml_collections.ConfigDict(dataclasses.asdict(Config()))
  config.data.prepare.min_rating = ml_collections.config_dict.placeholder(float)  # None, but typed
  return config


def typed(config: Mapping[str, Any], kind: type = Config, path: str = 'config'):
  """The frozen dataclass of a config.

  Raises:
    InputError: a key that does not exist, or a value of another type.
  """
  settings, hints = _group(config, path), typing.get_type_hints(kind)
  for key in settings:
    if key not in hints:
      near = difflib.get_close_matches(key, hints, 1)
      raise InputError(f'{path}.{key} does not exist; ' + (
        f'did you mean {near[0]}?' if near else f'there are {", ".join(hints)}'))
  return kind(**{key: _value(x, hints[key], f'{path}.{key}') for key, x in settings.items()})


def differing(a: dict, b: dict) -> list[str]:
  """What is set differently, each as `key (b's value there, a's here)`."""
  a, b = (traverse_util.flatten_dict(x, sep='.') for x in (a, b))
  return [f'{key} ({b.get(key)} there, {a.get(key)} here)'
          for key in sorted({*a, *b}) if a.get(key) != b.get(key)]


def _group(value, path: str) -> dict[str, Any]:
  if not hasattr(value, 'items'):
    raise InputError(f'{path}={value!r} is not a group of settings')
  return dict(value.items())


def _value(value, hint, path: str):
  if dataclasses.is_dataclass(hint):
    return typed(value, typing.cast(type, hint), path)
  if isinstance(hint, types.UnionType):  # of a type and None
    return None if value is None else _value(value, typing.get_args(hint)[0], path)
  choices = typing.get_args(hint)
  if typing.get_origin(hint) is Mapping:
    return {key: _value(x, choices[1], f'{path}.{key}') for key, x in _group(value, path).items()}
  if typing.get_origin(hint) is typing.Literal:
    if value not in choices:
      raise InputError(f'{path}={value!r}: use one of {", ".join(choices)}')
    return value
  if typing.get_origin(hint) is tuple:
    if not isinstance(value, list | tuple):
      raise InputError(f'{path}={value!r} is not a list')
    return tuple(_value(x, choices[0], f'{path}[{n}]') for n, x in enumerate(value))
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if not isinstance(value, hint):
    raise InputError(f'{path}={value!r} is not of type {hint.__name__}')
  if hint is float and not math.isfinite(value):
    raise InputError(f'{path}={value}: use a finite number')
  if hint in (int, float) and value < 0 and '.prepare.' not in path:  # ratings may be negative
    raise InputError(f'{path}={value}: use 0 or more')
  if hint in (int, float) and not value and path.split('.')[-1] in _ABOVE_ZERO:
    raise InputError(f'{path}={value}: use more than 0')
  if hint is float and path.endswith('dropout') and value > MOST_DROPOUT:
    raise InputError(f'{path}={value}: use at most {MOST_DROPOUT}')
  return value
