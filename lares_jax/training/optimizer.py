"""The optimizer of a phase, from its config."""

import dataclasses
from typing import Literal

import jax
import optax

from lares_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """Adam, with decoupled weight decay where `weight_decay` is above 0.

  A warm-up is given in steps, in epochs or in percent of the run: at most one of the three.
  """

  learning_rate: float = 1e-3
  schedule: Literal['constant', 'cosine'] = 'constant'  # after the warm-up; cosine: to 0 at the end
  warmup_steps: int = 0
  warmup_epochs: float = 0.0
  warmup_percent: float = 0.0
  b1: float = 0.9
  b2: float = 0.999
  weight_decay: float = 0.0
  clip_norm: float = 0.0  # of the whole gradient; 0: no clipping

  def __post_init__(self):
    given = [n for n in ('steps', 'epochs', 'percent') if getattr(self, f'warmup_{n}')]
    if len(given) > 1:
      raise InputError(f'optimizer: give one of {", ".join(f"warmup_{n}" for n in given)}, not both')


def schedule(config: OptimizerConfig, steps: int, steps_per_epoch: int) -> optax.Schedule:
  """Learning rate by step, over `steps` in all."""
  warmup = int(config.warmup_steps or config.warmup_epochs * steps_per_epoch
               or config.warmup_percent / 100 * steps)
  if config.schedule == 'cosine':
    return optax.warmup_cosine_decay_schedule(
      0.0, config.learning_rate, warmup, max(steps, warmup + 1))
  return (optax.linear_schedule(0.0, config.learning_rate, warmup) if warmup
          else optax.constant_schedule(config.learning_rate))


def decays(params):
  """True for the weights of linear maps and of the GRU; all else is spared."""
  return jax.tree.map_with_path(lambda path, _: path[-1].key in ('kernel', 'recurrent'), params)


def build(config: OptimizerConfig, steps: int, steps_per_epoch: int) -> optax.GradientTransformation:
  """The chain: clip, Adam, weight decay, learning rate."""
  chain = []
  if config.clip_norm > 0:
    chain.append(optax.clip_by_global_norm(config.clip_norm))
  chain.append(optax.scale_by_adam(config.b1, config.b2))
  if config.weight_decay > 0:
    chain.append(optax.add_decayed_weights(config.weight_decay, mask=decays))
  chain.append(optax.scale_by_learning_rate(schedule(config, steps, steps_per_epoch)))
  return optax.chain(*chain)
