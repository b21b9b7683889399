"""Phase one: cross-entropy, trajectory-level and step-level alignment."""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lares_jax.catalogue import Catalogue
from lares_jax.data.batches import Batch
from lares_jax.data.pairs import Pairs
from lares_jax.data.rows import Array
from lares_jax.errors import InputError
from lares_jax.model import depth
from lares_jax.model.depth import DepthConfig
from lares_jax.model.lares import Lares, initial_state
from lares_jax.model.recurrence import at_places
from lares_jax.objectives import history
from lares_jax.scoring import as_query


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
  """Weights and form of the terms: CE + alpha * trajectory + gamma * step."""

  alpha: float = 0.1
  gamma: float = 0.5
  # What gamma aligns: the last state with a step's; with its own of another dropout; or, as DuoRec
  # does in one term (then alpha is 0), that of another dropout with the partner's.
  gamma_view: Literal['step', 'dropout', 'partner'] = 'step'
  # What a target competes with: all items, or all but those of the history that the model reads.
  history: Literal['ranked', 'removed'] = 'ranked'
  similarity: Literal['dot', 'cos'] = 'dot'  # of the alignment terms
  tau: float = 1.0
  mask_same_target: bool = False  # leave out false negatives: other histories with the same target
  views: Literal['shared', 'separate'] = 'shared'  # is the first view the cross-entropy's state?

  def __post_init__(self):
    if self.gamma_view == 'partner' and self.alpha > 0:
      raise InputError('pretrain.loss.gamma_view=partner aligns the partner itself: set '
                       'pretrain.loss.alpha=0')

  def aligns(self, mean_depth: int) -> bool:
    """Whether a batch needs pairs.

    Depth 0 leaves both terms out, so that it is SASRec, unless gamma_view asks for DuoRec's.
    """
    return bool(mean_depth or self.gamma_view != 'step') and max(self.alpha, self.gamma) > 0

  @property
  def partners(self) -> bool:
    """Whether pairs need a partner."""
    return self.alpha > 0 or (self.gamma > 0 and self.gamma_view == 'partner')

  @property
  def copies(self) -> bool:
    """Whether a batch needs its rows twice: for a view besides that of the cross-entropy."""
    return self.views == 'separate' or self.gamma > 0 and self.gamma_view != 'step'


class Draw(NamedTuple):
  """What the host draws for one step: the depth, and the step (from 0) to align with the last."""

  depth: Array
  pick: Array


def infonce(view_PxD, other_PxD, tau: float, counted_PxP, within: bool = False) -> jax.Array:
  """Symmetric InfoNCE of two views, in nats; row p's positive is row p of the other view.

  Its rivals are the other rows of the other view; `within` adds those of its own. `counted_PxP` says
  which pairs enter the softmax; a False diagonal marks a row that is filling and counts for nothing.
  Mean over the real rows and both directions.
  """
  real_P = jnp.diagonal(counted_PxP)

  def logits(a_PxD, b_PxD, counted_PxP):
    product_PxP = jnp.matmul(a_PxD, b_PxD.T, precision='highest')  # float32 on accelerators too
    return jnp.where(counted_PxP, product_PxP / tau, -1e30)

  across_PxP = logits(view_PxD, other_PxD, counted_PxP)
  sides = [across_PxP, across_PxP.T]
  if within:
    apart_PxP = counted_PxP & ~jnp.eye(len(real_P), dtype=bool)
    sides = [jnp.concatenate([side, logits(own_PxD, own_PxD, apart_PxP)], axis=1)
             for side, own_PxD in zip(sides, (view_PxD, other_PxD))]
  label_P = jnp.arange(real_P.shape[0])
  xent = optax.softmax_cross_entropy_with_integer_labels
  both_P = xent(sides[0], label_P) + xent(sides[1], label_P)
  return jnp.where(real_P, both_P, 0.0).sum() / 2 / jnp.maximum(real_P.sum(), 1)


@dataclasses.dataclass(frozen=True)
class Pretrain:
  """The loss of phase one: `objective(params, None, batch, draw, key) -> (loss, metrics)`.

  At depth 0 with `gamma_view='partner'` it is DuoRec's (Qiu et al., WSDM 2022): one term aligns a
  history, of another dropout, with one that has the same target. With `'dropout'` and alpha these are
  two terms, of the state that the cross-entropy reads.
  """

  model: Lares
  catalogue: Catalogue
  depth: DepthConfig
  config: PretrainConfig

  def draw(self, generator: np.random.Generator) -> Draw:
    steps = depth.draw(self.depth, generator)
    return Draw(steps, np.int32(generator.integers(max(steps, 1))))

  def __call__(self, params, _, batch: Batch, draw: Draw, key):
    noise, *keys = jax.random.split(key, 3)
    z_BxLxD = initial_state(self.model.config, batch.rows, noise, train=True)
    return self.loss(params, batch, draw, z_BxLxD, keys)

  def loss(self, params, batch: Batch, draw: Draw, z_BxLxD, keys):
    """The loss given the initial state, and keys of dropout and of the sample of negatives."""
    c, steps = self.config, draw.depth
    of_step = c.gamma > 0 and c.gamma_view == 'step' and batch.pairs is not None
    out: Any = self.model.apply(
      {'params': params}, batch.rows, z_BxLxD, steps, cap=self.depth.cap, train=True,
      pick=draw.pick if of_step else None, rngs={'dropout': keys[0]})
    scored_BxA = batch.scored_BxA
    if c.history == 'removed':
      own_BxAxL, scored_BxA = history.owned(batch)
    scored_M = scored_BxA.reshape(-1)
    targets = jnp.maximum(scored_M.sum(), 1)

    state_BxLxD = self.catalogue.split(out.state_BxLxD[: len(scored_BxA)])
    query_BxAxD = at_places(state_BxLxD, batch.place_BxA).astype(jnp.float32)
    args = (query_BxAxD.reshape(scored_M.shape[0], -1), batch.target_BxA.reshape(-1), scored_M,
            params['item'])
    if c.history == 'ranked':
      total, _ = self.catalogue.total(lambda logprob_M: -logprob_M, *args, key=keys[1])
    else:
      logprob_BxA = history.without(self.catalogue.likelihood(*args), query_BxAxD, own_BxAxL,
                                    batch.scored_rows, params['item'], self.catalogue)
      total = -jnp.where(scored_BxA, logprob_BxA, 0.0).sum()
    loss = total / targets
    metrics = {'cross_entropy': loss, 'targets': targets, 'depth': steps,
               'distance_first': out.distance_T[:1].sum(),
               'distance_last': out.distance_T[jnp.maximum(steps - 1, 0)] if self.depth.cap else 0.0}
    if batch.pairs is None:
      return loss, metrics

    pairs = batch.pairs
    own_P, other_P = pairs.anchor_P, pairs.copy_P
    if c.views == 'separate':
      own_P, other_P = other_P, own_P
    counted_PxP = self._counted(pairs)
    view = lambda x_BxLxD, place_P: as_query(
      x_BxLxD.reshape(-1, x_BxLxD.shape[-1])[place_P], c.similarity)
    last_PxD = view(out.state_BxLxD, own_P)
    if c.alpha > 0:
      partner_PxD = view(out.state_BxLxD, pairs.partner_P)
      metrics['trajectory'] = infonce(last_PxD, partner_PxD, c.tau, counted_PxP)
      loss += c.alpha * metrics['trajectory']
    if c.gamma > 0:
      if c.gamma_view == 'partner':
        mine_PxD, other_PxD = (view(out.state_BxLxD, x_P) for x_P in (pairs.partner_P, pairs.copy_P))
        term = infonce(mine_PxD, other_PxD, c.tau, counted_PxP, within=True)
      elif c.gamma_view == 'dropout':
        term = infonce(last_PxD, view(out.state_BxLxD, other_P), c.tau, counted_PxP)
      else:
        term = infonce(last_PxD, view(out.picked_BxLxD, own_P), c.tau, counted_PxP)
        term = jnp.where(steps > 1, term, 0.0)
      metrics[f'{c.gamma_view}_alignment'] = term
      loss += c.gamma * term
    return loss, metrics

  def _counted(self, pairs: Pairs) -> jax.Array:
    counted_PxP = pairs.real_PxP
    if self.config.mask_same_target:
      target_P = pairs.target_P
      same_PxP = target_P[:, None] == target_P[None, :]
      counted_PxP &= ~same_PxP | jnp.eye(len(target_P), dtype=bool)
    return counted_PxP
