"""What training changes, and the one step that changes it, for both phases."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lares_jax.data.batches import TrainBatches
from lares_jax.model.lares import GIVEN
from lares_jax.training import optimizer


class TrainState(NamedTuple):
  """Parameters, optimizer state, steps taken, and a running average of what is trained if kept."""

  params: Any
  opt_state: Any
  step: jax.Array
  average: Any = None

  @property
  def evaluated(self):
    """The parameters that evaluation and the best checkpoint take."""
    return self.params if self.average is None else {**self.params, **self.average}


def split(params) -> tuple[dict[str, Any], dict[str, Any]]:
  """The parameters that are trained, and those that are given: without gradient or moments."""
  given = {key: params[key] for key in GIVEN & {*params}}
  return {key: x for key, x in params.items() if key not in given}, given


@dataclasses.dataclass(frozen=True, eq=False)
class Phase:
  """What differs between the phases, and the step that does not."""

  name: str
  objective: Any  # of objectives/
  batches: TrainBatches
  train: Any  # config.TrainConfig
  seed: int
  validate: Callable[[Any], dict[str, float]]  # parameters -> metrics, ndcg@10 among them
  history: str  # ranked or removed, in these
  reference: Any = None  # frozen parameters, or None
  validate_first: bool = False  # before any update, so that training must beat its start

  @property
  def steps(self) -> int:
    return max(int(self.train.epochs * self.batches.steps_per_epoch), 1)

  @functools.cached_property
  def optimizer(self) -> optax.GradientTransformation:
    return optimizer.build(self.train.optimizer, self.steps, self.batches.steps_per_epoch)

  @property
  def eval_every(self) -> int:
    return max(int(self.train.eval_every_epochs * self.batches.steps_per_epoch), 1)

  def fresh(self, params) -> TrainState:
    """A state before its first step."""
    trained, _ = split(params)
    average = jax.tree.map(jnp.copy, trained) if self.train.ema else None
    return TrainState(params, self.optimizer.init(trained), jnp.zeros((), jnp.int32), average)

  def update(self, state: TrainState, reference, batch, draw):
    """One step, to be compiled; returns the new state and the step's metrics.

    A loss or gradient that is not finite leaves parameters and optimizer as they were, and says so:
    `metrics['bad']` holds one flag for each trained parameter, in the order of the flattened tree.
    """
    key = jax.random.fold_in(jax.random.key(self.seed), state.step)
    trained, given = split(state.params)
    loss = lambda trained: self.objective({**trained, **given}, reference, batch, draw, key)
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(trained)
    # Not optax.global_norm: each square tells, too, whether its gradient is finite.
    square_N = jnp.stack([jnp.square(g).sum() for g in jax.tree.leaves(grads)])
    norm = jnp.sqrt(square_N.sum())

    def updated(state: TrainState) -> TrainState:
      updates, opt_state = self.optimizer.update(grads, state.opt_state, trained)
      params = optax.apply_updates(trained, updates)
      average = state.average
      if self.train.ema:
        # Early averages forget their start: the decay grows to `ema`.
        rate = jnp.minimum(self.train.ema, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(lambda old, new: rate * old + (1 - rate) * new, average, params)
      return TrainState({**params, **given}, opt_state, state.step, average)

    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    state = jax.lax.cond(finite, updated, lambda state: state, state)
    scalars = {k: v for k, v in metrics.items() if jnp.ndim(v) == 0}
    metrics = {'loss': value, 'grad_norm': norm, **scalars, 'finite': finite,
               'bad': ~jnp.isfinite(square_N)}
    return state._replace(step=state.step + 1), metrics
