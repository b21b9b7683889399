"""What a reasoning step costs: counted, compiled and timed."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.interpreters.partial_eval import dce_jaxpr

from lares_jax.adaptive import TOP
from lares_jax.data.batches import EvalBatch
from lares_jax.data.rows import Rows, blank
from lares_jax.experiment import Experiment
from lares_jax.model.backbone import Context
from lares_jax.model.depth import DepthConfig
from lares_jax.model.lares import Lares, Step
from lares_jax.model.recurrence import at_places
from lares_jax.studies import flops, timing
from lares_jax.training import sharding
from lares_jax.training.evaluation import begin, user_vectors
from lares_jax.training.state import Phase

MEDIAN_TURNS = 5  # at most, where only the median counts and a call is long


class PerUser(NamedTuple):
  """Of a history of `max_history` items by itself, at T steps: (intercept, slope) of each cost."""

  flops: tuple[float, float]  # of matrix products, the catalogue's included
  bytes: tuple[float, float]  # read and written, by XLA's count

  def at(self, depth: float) -> dict[str, float]:
    line = lambda intercept, slope: (intercept + depth * slope) / 1e6
    return {'mflops_per_user': line(*self.flops), 'mbytes_per_user': line(*self.bytes)}


def flops_per_user(experiment: Experiment, depth: int) -> float:
  """Of matrix products, to read one history of `max_history` items and score the whole catalogue."""
  e, rows = experiment, _one_history(experiment)
  place_1x1 = np.full((1, 1), rows.item_BxL.shape[1] - 1)
  encode = lambda params: user_vectors(
    e.model, params, rows, place_1x1, begin(e.model, params, rows, 0), (depth,))
  program = jax.jit(encode).trace(e.abstract_params).jaxpr.jaxpr
  needed, _ = dce_jaxpr(program, [True] * len(program.outvars))  # ReaRec has no use for H
  return flops.count(needed, 1.0, depth) + catalogue_flops(e)


def catalogue_flops(experiment: Experiment) -> float:
  """Of one user vector against every item."""
  return 2.0 * experiment.store.num_items * experiment.config.model.backbone.width


def per_user(experiment: Experiment) -> PerUser:
  """Counts with one and two steps: what the second adds is what each step costs."""
  once, twice = (flops_per_user(experiment, depth) for depth in (1, 2))
  moved = []
  for steps in (1, 2):
    program = functools.partial(unrolled, experiment.model, steps=steps)
    compiled, _ = timing.compiled(program, experiment.abstract_params, _one_history(experiment))
    moved.append(float(compiled.cost_analysis()['bytes accessed']))
  moved_by_catalogue = 4.0 * experiment.store.num_items * experiment.config.model.backbone.width
  return PerUser((2 * once - twice, twice - once),
                 (2 * moved[0] - moved[1] + moved_by_catalogue, moved[1] - moved[0]))


def training_flops(experiment: Experiment, phase: Phase, depth: int, remat: bool) -> float:
  """Of matrix products, on each chip, in a step of phase one at a constant depth."""
  own, draw = _at(phase, depth, remat)
  catalogue = own.objective.catalogue
  plain = dataclasses.replace(catalogue, config=dataclasses.replace(catalogue.config, kernel='plain'))
  own = dataclasses.replace(own, objective=dataclasses.replace(own.objective, catalogue=plain))
  state = jax.eval_shape(own.fresh, experiment.abstract_params)
  program = jax.jit(own.update).trace(state, own.reference, own.batches.batch(0), draw).jaxpr.jaxpr
  return flops.count(program, 1 / experiment.mesh.shape['data'], depth)


def unrolled(model: Lares, params, rows: Rows, steps: int) -> jax.Array:
  """States [B, L, D] after `steps` steps with no loop: a loop's body XLA counts only once."""
  h_BxLxD, z_BxLxD = begin(model, params, rows, 0)
  for i in range(steps):
    z_BxLxD = Step(model.config).apply({'params': params['scan']['step']}, z_BxLxD, h_BxLxD,
                                       Context.of(rows), False, i)
  return z_BxLxD


def full_batch(experiment: Experiment) -> np.ndarray:
  """Test targets, drawn at random, whose histories fill one batch of evaluation."""
  length_M = _lengths(experiment)
  data, rows = experiment.config.data, experiment.config.evaluate.batch_rows
  order_M = np.random.default_rng(0).permutation(len(length_M))
  if data.rows != 'packed':
    return order_M[:rows]
  room = 0.95 * rows * data.length  # what packing can be trusted to fill
  return order_M[: max(np.searchsorted(np.cumsum(length_M[order_M]), room), 1)]


def programs(experiment: Experiment, phase: Phase, params, depths: Sequence[int],
             repeats: int) -> list[dict[str, Any]]:
  """A line for each program and depth: size, time to compile, temporaries, median and p95 latency.

  Inference reads histories and finds the ten best items. A step of training is one of `phase`.
  """
  longest = np.argsort(-_lengths(experiment), kind='stable')[:1]
  inputs = {'one': batch(experiment, longest, 1), 'full': batch(experiment, full_batch(experiment))}
  train_batch = sharding.put_batch(phase.batches.batch(0), experiment.mesh)
  state = [phase.fresh(jax.tree.map(jnp.copy, params))]  # its steps go on from one another's
  lines: list[dict[str, Any]] = []
  inference: dict[tuple[int, str], Callable[[], Any]] = {}
  training: dict[tuple[int, str], Callable[[], Any]] = {}
  for depth in tqdm.tqdm(depths, desc='compile', unit='depth', leave=False, disable=None):
    infer = functools.partial(answer, experiment, depth)
    for size in ('one', 'full'):
      compiled, line = timing.compiled(infer, params, inputs[size])
      inference[len(lines), size] = functools.partial(compiled, params, inputs[size])
    lines.append({'program': 'inference', 'depth': depth, **line})
    for name, remat in (('train, remat', True), ('train, no remat', False)):
      own, draw = _at(phase, depth, remat)
      step = timing.Training(own, state, itertools.repeat(train_batch), draw)
      training[len(lines), 'full'] = step
      lines.append({'program': name, 'depth': depth, **step.sizes,
                    'gflops_a_step': training_flops(experiment, phase, depth, remat) / 1e9})
  seconds_of = (timing.in_turns(inference, repeats) |
                timing.in_turns(training, min(repeats, MEDIAN_TURNS)))
  for (n, size), seconds in seconds_of.items():
    lines[n][f'{size}_ms'] = 1e3 * float(np.median(seconds))
    if len(seconds) > MEDIAN_TURNS:
      lines[n][f'{size}_p95_ms'] = 1e3 * float(np.quantile(seconds, 0.95))
  return lines


def answer(experiment: Experiment, depth: int, params, batch: EvalBatch):
  """Scores and items of the ten best for every history of a batch."""
  e, rows = experiment, batch.rows
  h_BxLxD, z_BxLxD = begin(e.model, params, rows, e.config.evaluate.noise_seed)
  out: Any = e.model.apply({'params': params}, h_BxLxD, rows, z_BxLxD, depth, depth, method='reason')
  state_BxAxD = at_places(out.state_BxLxD, batch.place_BxA).astype(jnp.float32)
  return e.catalogue.top_k(state_BxAxD.reshape(-1, state_BxAxD.shape[-1]),
                           batch.scored_BxA.reshape(-1), params['item'], min(TOP, e.catalogue.items))


def _at(phase: Phase, depth: int, remat: bool):
  """Phase one at a constant depth, and what its host draws."""
  model = phase.objective.model
  objective = dataclasses.replace(
    phase.objective, model=model.clone(config=dataclasses.replace(model.config, remat=remat)),
    depth=DepthConfig(depth, 'constant'))
  return dataclasses.replace(phase, objective=objective), objective.draw(np.random.default_rng(0))


def _one_history(experiment: Experiment) -> Rows:
  c = experiment.config
  return blank((1, c.data.max_history), c.model.backbone.times)


def _lengths(experiment: Experiment) -> np.ndarray:
  user_M, index_M = experiment.store.targets('test')
  return np.minimum(index_M - experiment.store.offsets[user_M], experiment.config.data.max_history)


def batch(experiment: Experiment, chosen_M: np.ndarray, rows: int = 0) -> EvalBatch:
  """The first batch of some of the test targets, on the device; of the evaluation's rows if 0."""
  first = next(experiment.evaluator.batches('test', chosen_M, rows, history='ranked'))
  return sharding.put_batch(first._replace(index_BxA=None), experiment.mesh)
