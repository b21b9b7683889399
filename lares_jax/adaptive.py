"""Adaptive depth: each user's thinking stops by itself, and saves time: the others alone go on.

A stage is one `while_loop` over steps. It ends when all are done, or when the histories still in
play have shrunk to less than half of the tokens that it began with; then the host packs these into a
batch of the next power of two of rows that holds them, and the next stage pays for that only. Shapes
after the first, which is the caller's, are powers of two, so the programs to compile are few.
"""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lares_jax.catalogue import Catalogue
from lares_jax.data.rows import Plan, Rows, Segments, fill, pack, rounded_up
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.files import read_json
from lares_jax.model.lares import Lares
from lares_jax.scoring import pair_scores
from lares_jax.training.evaluation import begin

CRITERIA = ('state', 'scores', 'kl')
TOP = 10  # items that `scores` and `kl` look at
FILE = 'adaptive.json'  # in the workdir; the depth study writes it


@dataclasses.dataclass(frozen=True)
class Rule:
  """Stop when `criterion` changes by less than `threshold` in a step; after `most` steps anyway."""

  criterion: str
  threshold: float  # 0: never before `most`
  most: int

  @classmethod
  def load(cls, workdir: pathlib.Path) -> 'Rule':
    """The rule that the depth study chose on validation for the run in `workdir`.

    Raises:
      InputError: there is none, or it was chosen for other parameters.
    """
    file = workdir / FILE
    mend = f'choose one with python -m lares_jax.study depth --workdir={workdir}'
    if not file.exists():
      raise InputError(f'depth=adaptive: {file} does not exist; {mend}')
    content = read_json(file, 'criterion', 'threshold', 'most', 'phase', 'step')
    result = read_json(workdir / 'result.json', 'phase', 'step')
    if [content['phase'], content['step']] != [result['phase'], result['step']]:
      raise InputError(f'depth=adaptive: {file} belongs to another checkpoint; {mend}')
    return cls(content['criterion'], content['threshold'], content['most'])


class _State(NamedTuple):
  """Where S histories stand."""

  z_BxLxD: jax.Array
  vector_SxD: jax.Array  # of the last step taken, float32
  step_S: jax.Array  # steps taken
  running_S: jax.Array


def changes(catalogue: Catalogue, table_RxD, old_MxD, new_MxD, real_M):
  """What a step changed, by criterion [M], and the items that are best after it [M, TOP].

  state: |new - old| / |old|. scores: the largest change of score, in nats, among the best items.
  kl: of the softmax over these, after the step from before it, in nats.
  """
  move_M = jnp.linalg.norm(new_MxD - old_MxD, axis=-1) / (jnp.linalg.norm(old_MxD, axis=-1) + 1e-6)
  _, item_MxK = catalogue.top_k(new_MxD, real_M, table_RxD, min(TOP, catalogue.items))
  item_MxKxD = catalogue.lookup(table_RxD, jnp.maximum(item_MxK, 0))
  of_query = lambda query_MxD: jax.vmap(
    lambda item_MxD: pair_scores(query_MxD, item_MxD, catalogue.config), 1, 1)(item_MxKxD)
  old_MxK, new_MxK = of_query(old_MxD), of_query(new_MxD)
  log_old_MxK, log_new_MxK = jax.nn.log_softmax(old_MxK), jax.nn.log_softmax(new_MxK)
  kl_M = jnp.exp(log_new_MxK) * (log_new_MxK - log_old_MxK)
  kl_M = jnp.maximum(kl_M.sum(axis=-1), 0.0)  # rounding alone makes it less
  score_M = jnp.abs(new_MxK - old_MxK).max(axis=-1)
  return dict(zip(CRITERIA, (move_M, score_M, kl_M), strict=True)), item_MxK


def one_step(model: Lares, params, h_BxLxD, rows: Rows, z_BxLxD) -> jax.Array:
  """The next state [B, L, D]."""
  out: Any = model.apply({'params': params}, h_BxLxD, rows, z_BxLxD, 1, 1, method='reason')
  return out.state_BxLxD


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _stage(model: Lares, catalogue: Catalogue, criterion: str, params, rows: Rows, h_BxLxD,
           state: _State, last_S, length_S, threshold, most, enough) -> _State:
  """Steps until no more than `enough` tokens are in play."""
  at_last = lambda z_BxLxD: z_BxLxD.reshape(-1, z_BxLxD.shape[-1])[last_S].astype(jnp.float32)

  def step(state: _State) -> _State:
    z_BxLxD = one_step(model, params, h_BxLxD, rows, state.z_BxLxD)
    new_SxD = at_last(z_BxLxD)
    change, _ = changes(catalogue, params['item'], at_last(state.z_BxLxD), new_SxD, state.running_S)
    step_S = state.step_S + state.running_S
    vector_SxD = jnp.where(state.running_S[:, None], new_SxD, state.vector_SxD)
    stops_S = (change[criterion] < threshold) | (step_S >= most)  # NaN does not stop
    return _State(z_BxLxD, vector_SxD, step_S, state.running_S & ~stops_S)

  in_play = lambda state: jnp.where(state.running_S, length_S, 0).sum()
  return jax.lax.while_loop(lambda state: in_play(state) > enough, step, state)


@jax.jit
def _moved(source_BxL, *states):
  """The states of tokens that moved to other places, by the flat place each comes from."""
  return tuple(x_BxLxD.reshape(-1, x_BxLxD.shape[-1])[source_BxL] for x_BxLxD in states)


def think(experiment: Experiment, params, rule: Rule, items_N: np.ndarray, start_S: np.ndarray,
          length_S: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
  """User vectors [S, D] after as many steps as the rule asks for, and these numbers of steps [S].

  Of the S histories items_N[start : start + length]; `plan` says where they lie at first.
  """
  c, model = experiment.config, experiment.model
  count, length = len(length_S), c.data.length
  full = rounded_up(count, 2)
  filled = lambda x_S: np.pad(x_S, (0, full - count))
  # Where a row is one history's own, its filling takes part, and moves with it.
  room_S = length_S if c.data.rows == 'packed' else np.full_like(length_S, length)
  lay = lambda values, start, sizes, plan: fill(
    values, Segments(start, sizes, plan.row_S, plan.place_S), (plan.rows, length))
  rows = lay(items_N, start_S, length_S, plan)
  h_BxLxD, z_BxLxD = begin(model, params, rows, c.evaluate.noise_seed)
  state = _State(z_BxLxD, jnp.zeros((full, z_BxLxD.shape[-1])), jnp.zeros(full, jnp.int32),
                 jnp.arange(full) < count)
  first_S, alive = plan.row_S * length + plan.place_S, np.arange(count)
  while True:
    enough = length_S[alive].sum() * 7 // 16  # a little less than half, so that half the rows hold it
    state = _stage(model, experiment.catalogue, rule.criterion, params, rows, h_BxLxD, state,
                   filled(first_S + length_S - 1), filled(length_S), rule.threshold, rule.most, enough)
    alive = np.flatnonzero(np.asarray(state.running_S))
    if not alive.size:
      return np.asarray(state.vector_SxD)[:count], np.asarray(state.step_S)[:count]
    plan = pack(room_S[alive], length)
    plan = plan._replace(rows=rounded_up(plan.rows, 2))
    if plan.rows < len(rows.item_BxL):
      rows = lay(items_N, start_S[alive], length_S[alive], plan)
      places_N = np.arange(h_BxLxD.shape[0] * length)
      source_BxL = lay(places_N, first_S[alive], room_S[alive], plan).item_BxL
      h_BxLxD, z_BxLxD = _moved(source_BxL, h_BxLxD, state.z_BxLxD)
      state = state._replace(z_BxLxD=z_BxLxD)
      first_S = np.zeros_like(first_S)
      first_S[alive] = plan.row_S * length + plan.place_S
