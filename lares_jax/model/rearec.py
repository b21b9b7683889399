"""ReaRec, the rival idea: latent tokens appended to the history (Tang et al., arXiv 2503.22675).

    r_0 = H,  r_t = layers(dropout(LN(r_{t-1} + Q[t]))),  t = 1..T

Thought t sees the history and the thoughts before it, in every layer. There one thinks behind the
last item alone; since no item sees a thought, every token of a row can have a chain of its own
without touching the others, and packed rows serve as they are.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lares_jax.data.rows import Rows
from lares_jax.model.backbone import Context
from lares_jax.model.lares import Lares
from lares_jax.model.recurrence import Reasoning, at_places


class ReaRec(Lares):
  """Thinks with the pre-block's layers; the user vector is the mean of thoughts (erl) or the last."""

  def setup(self):
    super().setup()
    shape = (self.config.thoughts, self.config.backbone.width)
    self.thought_TxD = self.param('thought', nn.initializers.normal(0.02), shape)

  def thoughts(self, rows: Rows, train: bool, start_TxBxLxD=None, cap: int | None = None) -> jax.Array:
    """r_0..r_T of every token [T + 1, B, L, D]; with `cap`, at most so many thoughts.

    Thought t starts from `start_TxBxLxD[t]`, if given, in place of the thought before it.
    """
    context, x_BxLxD = Context.of(rows), self.embedded(rows, train)
    read = []  # by each layer, of the history
    for layer in self.pre:
      read.append(x_BxLxD)
      x_BxLxD = layer(x_BxLxD, context, train)
    states = [x_BxLxD]
    before: list[tuple[jax.Array, ...]] = [()] * len(self.pre)  # read by each layer, of thoughts
    for t in range(self.config.thoughts if cap is None else min(cap, self.config.thoughts)):
      if start_TxBxLxD is not None:
        x_BxLxD = start_TxBxLxD[t]
      x_BxLxD = x_BxLxD + self.thought_TxD[t].astype(x_BxLxD.dtype)[None, None]
      x_BxLxD = self.input_dropout(self.input_norm(x_BxLxD), train)
      for n, layer in enumerate(self.pre):
        own = context._replace(memory_BxLxD=read[n], earlier_thoughts=before[n])
        before[n] = (*before[n], x_BxLxD)
        x_BxLxD = layer(x_BxLxD, own, train)
      states.append(x_BxLxD)
    return jnp.stack(states)

  def reason(self, h_BxLxD, rows: Rows, z_BxLxD, depth_B, cap: int, train: bool = False, pick=None,
             place_BxA=None) -> Reasoning:
    """As `Lares.reason`, without initial state or `pick`; a depth beyond T is T."""
    vector_TxBxLxD = self.thoughts(rows, train, cap=cap)
    made = len(vector_TxBxLxD) - 1
    if self.config.reasoner == 'erl':
      count_T = jnp.arange(1, made + 2, dtype=vector_TxBxLxD.dtype)
      vector_TxBxLxD = jnp.cumsum(vector_TxBxLxD, axis=0) / count_T[:, None, None, None]
    last_B = jnp.minimum(jnp.broadcast_to(depth_B, rows.item_BxL.shape[:1]), made)
    state_BxLxD = jnp.take_along_axis(vector_TxBxLxD, last_B[None, :, None, None], axis=0)[0]
    step_T = jnp.minimum(jnp.arange(cap) + 1, made)
    states_TxBxAxD = None if place_BxA is None else all_at(vector_TxBxLxD, place_BxA)[step_T]
    return Reasoning(state_BxLxD, None, states_TxBxAxD, jnp.zeros((cap,)))


all_at = jax.vmap(at_places, (0, None))  # the states of several steps at the given tokens
