"""Full-ranking evaluation: the rank of every user's target among the whole catalogue, by depth."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from lares_jax.catalogue import Catalogue
from lares_jax.data.batches import DataConfig, EvalBatch, eval_batches
from lares_jax.data.rows import Rows
from lares_jax.data.store import Store
from lares_jax.errors import InputError
from lares_jax.model.lares import Lares, initial_state
from lares_jax.model.recurrence import at_places
from lares_jax.training import sharding

History = Literal['ranked', 'removed']  # whether a user's own items stay in the ranking


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """`depths` are those that the final report shows and validation chooses from."""

  batch_rows: int = 128
  depths: tuple[int, ...] = (1, 2, 4, 8, 12, 16)
  history: History = 'ranked'  # in what validation chooses by
  users: int = 0  # that training validates on, at even distances; 0: all, as in the final report
  noise_seed: int = 0  # of Z_0; the spread over draws is reported by `evaluate --draws`

  def __post_init__(self):
    if not self.depths:
      raise InputError('evaluate.depths=(): use at least one')


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
  """Ranks targets of a data set under a model, with no hidden noise."""

  store: Store
  model: Lares
  catalogue: Catalogue
  data: DataConfig
  config: EvaluationConfig
  mesh: jax.sharding.Mesh

  def ranks(self, params, split: str, depths: tuple[int, ...], *, history: History | None = None,
            draw: int = 0, users: int = 0) -> np.ndarray:
    """Ranks [depth, M] of the split's targets in their order: see `over` for `users`.

    All depths come from one run to the deepest: a state at depth 4 is on the way to depth 16. The
    history is ranked or removed as the config says, unless `history` does.
    """
    if not len(self.store.targets(split)[0]):
      return np.zeros((len(depths), 0))
    function = lambda batch: self.batch_ranks(params, batch, np.int32(draw), depths)
    return self.over(function, split, users, history=history).astype(np.float64)

  def over(self, function, split: str, users: int = 0, *, history: History | None = None) -> Any:
    """`function(batch)`, a tree of arrays [X, B * A, ..], over a split's targets: a tree of [X, M, ..].

    Over `users` of them at even distances, or all if 0; there must be one.
    """
    chosen_M = self.chosen(split, users)
    parts, index = [], []
    bar = tqdm.tqdm(total=len(self.store.targets(split)[0][chosen_M]), desc=f'evaluate {split}',
                    unit='user', leave=False, disable=None)

    def collect(index_M, out):
      real = np.flatnonzero(index_M >= 0)
      index.append(index_M[real])
      parts.append(jax.tree.map(lambda x: np.asarray(x)[:, real], out))
      bar.update(len(real))

    last = None  # read only once the next batch is under way
    for batch in self.batches(split, chosen_M, history=history):
      out = function(sharding.put_batch(batch._replace(index_BxA=None), self.mesh))
      if last:
        collect(*last)
      last = batch.index_BxA.reshape(-1), out
    if last:
      collect(*last)
    bar.close()
    order_M = np.argsort(np.concatenate(index))
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1)[:, order_M], *parts)

  def chosen(self, split: str, users: int) -> Any:
    """Which of a split's targets [M]: `users` of them at even distances, or all if 0."""
    if not users:
      return slice(None)
    count = len(self.store.targets(split)[0])
    return np.linspace(0, count - 1, min(users, count)).astype(int)

  def batches(self, split: str, chosen_M=slice(None), rows: int = 0, *,
              history: History | None = None):
    """Batches of the split's targets, or of some of them; of `config.batch_rows` rows if 0."""
    user_M, index_M = (x[chosen_M] for x in self.store.targets(split))
    hide = (history or self.config.history) == 'removed'
    return eval_batches(
      self.store, user_M, index_M, self.data, rows or self.config.batch_rows, hide)

  @functools.partial(jax.jit, static_argnums=(0, 4))
  def batch_ranks(self, params, batch: EvalBatch, draw, depths):
    """Ranks [depth, B * A] of one batch's targets."""
    start = begin(self.model, params, batch.rows, self.config.noise_seed, draw)
    states = user_vectors(self.model, params, batch.rows, batch.place_BxA, start, depths)
    rank_TxM = ranks_of_stack(self.catalogue, states.reshape(len(depths), -1, states.shape[-1]), batch,
                              params['item'])
    return jax.lax.with_sharding_constraint(rank_TxM, sharding.replicated(self.mesh))  # for the host


def ranks_of_stack(catalogue: Catalogue, vector_XxMxD, batch: EvalBatch, table_RxD) -> jax.Array:
  """Ranks [X, M] of the batch's targets under each of X user vectors of every history."""
  count, hidden_MxH = len(vector_XxMxD), batch.hidden_MxH
  wide = lambda x_M: jnp.broadcast_to(x_M, (count, *x_M.shape))
  return catalogue.ranks(
    vector_XxMxD, wide(batch.target_BxA.reshape(-1)), wide(batch.scored_BxA.reshape(-1)), table_RxD,
    None if hidden_MxH is None else wide(hidden_MxH))


@functools.partial(jax.jit, static_argnums=0)
def begin(model: Lares, params, rows: Rows, noise_seed, draw=0) -> tuple[jax.Array, jax.Array]:
  """H and Z_0 [B, L, D] of a draw of the initial noise."""
  h_BxLxD: Any = model.apply({'params': params}, rows, method='prelude')
  key = jax.random.fold_in(jax.random.key(noise_seed), draw)
  return h_BxLxD, initial_state(model.config, rows, key, train=False).astype(h_BxLxD.dtype)


def user_vectors(model: Lares, params, rows: Rows, place_BxA, start, depths: tuple[int, ...]):
  """User vectors [depth, B, A, D] (float32) at the given places, at each of the static depths.

  `start` comes from `begin`. Depth 0 gives H, and so does a model that has no other.
  """
  h_BxLxD, z_BxLxD = start
  plain_BxAxD = at_places(h_BxLxD, place_BxA).astype(jnp.float32)
  deepest = max(depths) if model.config.deepest else 0
  if not deepest:
    return jnp.stack([plain_BxAxD] * len(depths))
  out: Any = model.apply({'params': params}, h_BxLxD, rows, z_BxLxD, deepest, deepest,
                         place_BxA=place_BxA, method='reason')
  states = out.states_TxBxAxD.astype(jnp.float32)
  return jnp.stack([states[d - 1] if d else plain_BxAxD for d in depths])
