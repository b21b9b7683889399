"""One step of reasoning, applied as often as depth says, and the gradient of that.

The scan takes a fixed number of steps, those beyond the depth by a branch that does nothing: one
program serves every depth. Differentiated as it stands, a step not taken would hand on zeros for
each parameter and each intermediate of one that is, which takes a GPU as long. So the gradient is
written here: a run keeps the state before each step, and a loop goes back over the steps that were
taken, computing each again.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lares_jax.model.backbone import Context


class Reasoning(NamedTuple):
  """What a run leaves behind."""

  state_BxLxD: jax.Array  # Z_T
  picked_BxLxD: jax.Array | None  # Z at the step that was asked for
  states_TxBxAxD: jax.Array | None  # Z_1.. at the places asked for; beyond the depth Z_T again
  distance_T: jax.Array  # mean over tokens of |Z_i - Z_{i-1}| / |Z_{i-1}|; zeros beyond the depth


class Given(NamedTuple):
  """What a run reads besides parameters, Z_0 and H; nothing of it has a gradient."""

  context: Context
  depth_B: jax.Array  # steps of each row
  taken: jax.Array  # the most of them
  key_T: jax.Array | None  # of each step's dropout; None: there is none
  pick: jax.Array | None  # index from 0 of a step whose state is wanted besides the last
  place_BxA: jax.Array | None  # tokens of each row whose state is wanted after every step


@dataclasses.dataclass(frozen=True)
class Recurrence:
  """Runs of up to `cap` steps of the module that `make` makes, a function of

      z_BxLxD, h_BxLxD, context, train, i

  Its parameters, {'step': ..}, are the same at every step.
  """

  make: Callable[..., nn.Module]
  cap: int
  train: bool = False

  def scan(self, **kwargs) -> nn.Module:
    """The module of all steps."""
    return nn.scan(_ScannedStep, variable_broadcast='params', split_rngs={'params': False},
                   in_axes=(0, nn.broadcast, nn.broadcast))(self, **kwargs)

  def step(self, params, z_BxLxD, h_BxLxD, given: Given, i) -> jax.Array:
    """Z after step i; that of a row at its depth stays as it is."""
    rngs = {} if given.key_T is None else {'dropout': given.key_T[i]}
    new_BxLxD: Any = self.make(parent=None).apply(
      {'params': params['step']}, z_BxLxD, h_BxLxD, given.context, self.train, i, rngs=rngs)
    return jnp.where((i < given.depth_B)[:, None, None], new_BxLxD, z_BxLxD)

  def run(self, params, z_BxLxD, h_BxLxD, given: Given) -> tuple[Reasoning, jax.Array]:
    """What a run leaves behind, and the states before each step [T, B, L, D]."""
    out: Any = self.scan(parent=None).apply(
      {'params': params}, z_BxLxD, jnp.arange(self.cap), h_BxLxD, given)
    state_BxLxD, (distance_T, states_TxBxAxD, z_TxBxLxD) = out
    picked_BxLxD = None
    if given.pick is not None:  # the state after a step is that before the next
      after = jnp.asarray(given.pick) + 1
      picked_BxLxD = jnp.where(after < self.cap, z_TxBxLxD[after], state_BxLxD)
    return Reasoning(state_BxLxD, picked_BxLxD, states_TxBxAxD, distance_T), z_TxBxLxD


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recomputed(recurrence: Recurrence, params, z_BxLxD, h_BxLxD, given: Given) -> Reasoning:
  """`Recurrence.run`, whose gradient computes each taken step again."""
  return recurrence.run(params, z_BxLxD, h_BxLxD, given)[0]


def _forward(recurrence: Recurrence, params, z_BxLxD, h_BxLxD, given: Given):
  out, z_TxBxLxD = recurrence.run(params, z_BxLxD, h_BxLxD, given)
  return out, (params, z_TxBxLxD, h_BxLxD, given)


def _backward(recurrence: Recurrence, saved, d: Reasoning):
  """Gradients by parameters, Z_0 and H, from those by what a run leaves behind."""
  params, z_TxBxLxD, h_BxLxD, given = saved
  taken, pick = given.taken, given.pick

  def plus(d_z_BxLxD, d_BxAxD):
    row_Bx1 = jnp.arange(len(d_z_BxLxD))[:, None]
    return d_z_BxLxD.at[row_Bx1, given.place_BxA].add(d_BxAxD)

  def back(n, carry):
    d_z_BxLxD, d_h_BxLxD, d_params = carry
    i = taken - 1 - n
    if d.picked_BxLxD is not None:
      d_z_BxLxD += jnp.where(i == pick, d.picked_BxLxD, 0)
    if d.states_TxBxAxD is not None:
      d_z_BxLxD = plus(d_z_BxLxD, d.states_TxBxAxD[i])
    step = lambda params, z_BxLxD, h_BxLxD: recurrence.step(params, z_BxLxD, h_BxLxD, given, i)
    _, pull = jax.vjp(step, params, z_TxBxLxD[i], h_BxLxD)
    more, d_z_BxLxD, more_BxLxD = pull(d_z_BxLxD)
    return d_z_BxLxD, d_h_BxLxD + more_BxLxD, jax.tree.map(jnp.add, d_params, more)

  d_z_BxLxD = d.state_BxLxD
  if d.picked_BxLxD is not None:  # beyond the depth all states are the last
    d_z_BxLxD += jnp.where(taken <= pick, d.picked_BxLxD, 0)
  if d.states_TxBxAxD is not None:
    late_Tx1x1x1 = jnp.arange(recurrence.cap)[:, None, None, None] >= taken
    d_z_BxLxD = plus(d_z_BxLxD, jnp.where(late_Tx1x1x1, d.states_TxBxAxD, 0).sum(0))
  zeros = jax.tree.map(jnp.zeros_like, (h_BxLxD, params))
  d_z_BxLxD, d_h_BxLxD, d_params = jax.lax.fori_loop(0, taken, back, (d_z_BxLxD, *zeros))
  return d_params, d_z_BxLxD, d_h_BxLxD, None


recomputed.defvjp(_forward, _backward)


class _ScannedStep(nn.Module):
  """The body of the scan: a step while i < depth, nothing at all beyond it."""

  recurrence: Recurrence

  @nn.compact
  def __call__(self, z_BxLxD, i, h_BxLxD, given: Given):
    if self.is_initializing():
      self.recurrence.make(name='step')(z_BxLxD, h_BxLxD, given.context, False, i)

    def think(z_BxLxD):
      new_BxLxD = self.recurrence.step(self.variables['params'], z_BxLxD, h_BxLxD, given, i)
      real_BxL = given.context.real_BxL & (i < given.depth_B)[:, None]
      return new_BxLxD, _distance(z_BxLxD, new_BxLxD, real_BxL)

    rest = lambda z_BxLxD: (z_BxLxD, jnp.zeros(()))
    new_BxLxD, distance = jax.lax.cond(i < given.taken, think, rest, z_BxLxD)
    out_BxAxD = None if given.place_BxA is None else at_places(new_BxLxD, given.place_BxA)
    return new_BxLxD, (distance, out_BxAxD, z_BxLxD)


def at_places(x_BxLxD: jax.Array, place_BxA: jax.Array | None) -> jax.Array:
  """The states at the given tokens of each row [B, A, D]; None: all of them."""
  return x_BxLxD if place_BxA is None else jnp.take_along_axis(x_BxLxD, place_BxA[..., None], axis=1)


def _distance(old_BxLxD, new_BxLxD, real_BxL):
  old, new = (jax.lax.stop_gradient(x).astype(jnp.float32) for x in (old_BxLxD, new_BxLxD))
  moved_BxL = jnp.linalg.norm(new - old, axis=-1) / (jnp.linalg.norm(old, axis=-1) + 1e-6)
  return jnp.where(real_BxL, moved_BxL, 0.0).sum() / jnp.maximum(real_BxL.sum(), 1)
