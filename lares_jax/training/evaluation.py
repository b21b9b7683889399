"""Full-ranking evaluation: the rank of every user's target among the whole catalogue, by depth."""

import dataclasses
import functools
import sys
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from lares_jax.catalogue import Catalogue
from lares_jax.data.batches import Clock, DataConfig, EvalBatch, eval_batches
from lares_jax.data.rows import Rows
from lares_jax.data.store import Store
from lares_jax.errors import InputError
from lares_jax.model.lares import Lares, at_places, initial_state
from lares_jax.training import sharding


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
  """`depths` are those that the final report shows and validation chooses from."""

  batch_rows: int = 128
  depths: tuple[int, ...] = (1, 2, 4, 8, 12, 16)
  history: Literal['ranked', 'removed'] = 'ranked'  # in what validation chooses by
  noise_seed: int = 0  # of Z_0; the spread over draws is reported by `evaluate --draws`

  def __post_init__(self):
    if self.batch_rows < 1 or not self.depths:
      raise InputError(f'evaluate.batch_rows={self.batch_rows}, evaluate.depths={self.depths}: use at '
                       'least 1 row and one depth')


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
  """Ranks targets of a data set under a model, with no hidden noise."""

  store: Store
  model: Lares
  catalogue: Catalogue
  data: DataConfig
  config: EvaluationConfig
  mesh: jax.sharding.Mesh
  clock: Clock = Clock()

  def ranks(self, params, split: str, depths: tuple[int, ...], *, exclude_history: bool = False,
            draw: int = 0) -> np.ndarray:
    """Ranks [depth, M] of the split's targets, in the order of `store.targets(split)`.

    All depths come from one run to the deepest: a state at depth 4 is on the way to depth 16.
    """
    count = len(self.store.targets(split)[0])
    out = np.full((len(depths), count), np.nan)
    bar = tqdm.tqdm(total=count, desc=f'evaluate {split}', unit='user', leave=False,
                    disable=not sys.stderr.isatty())
    pending: list[tuple[np.ndarray, jax.Array]] = []

    def collect():
      index_BxA, rank = pending.pop(0)
      real = index_BxA >= 0
      out[:, index_BxA[real]] = np.asarray(rank)[:, : len(real)][:, real]
      bar.update(int(real.sum()))

    for batch in self.batches(split, exclude_history=exclude_history):
      index_BxA, batch = batch.index_BxA, batch._replace(index_BxA=None)
      batch = sharding.put_batch(batch, self.mesh)
      pending.append((index_BxA, self.batch_ranks(params, batch, np.int32(draw), depths)))
      if len(pending) > 1:  # read a result only once the next batch is under way
        collect()
    while pending:
      collect()
    bar.close()
    return out

  def batches(self, split: str, chosen_M=slice(None), rows: int = 0, *, exclude_history: bool = False):
    """Batches of the split's targets, or of some of them; of `config.batch_rows` rows if 0."""
    items_N = self.store.items_N
    user_M, index_M = (x[chosen_M] for x in self.store.targets(split))
    return eval_batches(items_N, self.store.offsets[user_M], index_M, items_N[index_M], self.data,
                        rows or self.config.batch_rows, exclude_history, self.clock)

  @functools.partial(jax.jit, static_argnums=(0, 4))
  def batch_ranks(self, params, batch: EvalBatch, draw, depths):
    """Ranks [depth, B, A] of one batch's targets."""
    start = begin(self.model, params, batch.rows, self.config.noise_seed, draw)
    states = user_vectors(self.model, params, batch.rows, batch.place_BxA, start, depths)
    count, shape = len(depths), batch.target_BxA.shape
    flat = lambda x_BxA: x_BxA.reshape(-1, *x_BxA.shape[2:])
    wide = lambda x_BxA: jnp.broadcast_to(flat(x_BxA), (count, *flat(x_BxA).shape))
    hidden = None if batch.hidden_BxAxH is None else wide(batch.hidden_BxAxH)
    rank_TxM = self.catalogue.ranks(states.reshape(count, -1, states.shape[-1]), wide(batch.target_BxA),
                                    wide(batch.scored_BxA), params['item'], hidden)
    return sharding.everywhere(rank_TxM.reshape(count, *shape), self.mesh)


@functools.partial(jax.jit, static_argnums=0)
def begin(model: Lares, params, rows: Rows, noise_seed, draw=0) -> tuple[jax.Array, jax.Array]:
  """H and Z_0 [B, L, D] of a draw of the initial noise."""
  h_BxLxD: Any = model.apply({'params': params}, rows, method='prelude')
  key = jax.random.fold_in(jax.random.key(noise_seed), draw)
  return h_BxLxD, initial_state(model.config, rows, key, train=False).astype(h_BxLxD.dtype)


def user_vectors(model: Lares, params, rows: Rows, place_BxA, start, depths: tuple[int, ...]):
  """User vectors [depth, B, A, D] (float32) at the given places, at each of the static depths.

  `start` comes from `begin`. Depth 0, or a model without core-block, gives H.
  """
  h_BxLxD, z_BxLxD = start
  plain_BxAxD = at_places(h_BxLxD, place_BxA).astype(jnp.float32)
  deepest = max(depths) if model.config.core_layers else 0
  if not deepest:
    return jnp.stack([plain_BxAxD] * len(depths))
  out: Any = model.apply({'params': params}, h_BxLxD, rows, z_BxLxD, deepest, deepest,
                         place_BxA=place_BxA, method='reason')
  states = out.states_TxBxAxD.astype(jnp.float32)
  return jnp.stack([states[d - 1] if d else plain_BxAxD for d in depths])
