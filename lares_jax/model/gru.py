"""The GRU backbone: a recurrence over positions that starts anew with each history in a row.

Hidasi et al., "Session-based Recommendations with Recurrent Neural Networks" (ICLR 2016); the
residual and the LN around it are this project's, so that layers stack and LARES can repeat them.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lares_jax.model.backbone import Context, Layer, dense


class GruLayer(Layer):
  """LN(x + dropout(W gru(x))), with a hidden state of `inner` dimensions."""

  @nn.compact
  def __call__(self, x_BxLxD, context: Context, train: bool):
    c = self.config
    xavier = nn.initializers.xavier_uniform()
    # What the tokens say is one product for the whole row; only the state must wait its turn.
    said_BxLx3F = nn.Dense(3 * c.inner, kernel_init=xavier, dtype=c.dtype, name='input')(x_BxLxD)
    recurrent_Fx3F = self.param('recurrent', xavier, (c.inner, 3 * c.inner)).astype(c.dtype)
    start_BxLx1 = (context.position_BxL == 0)[..., None]

    def step(state_BxF, token):
      said_Bx3F, start_Bx1 = token
      state_BxF = jnp.where(start_Bx1, 0.0, state_BxF)
      kept_Bx3F = (state_BxF.astype(c.dtype) @ recurrent_Fx3F).astype(jnp.float32)
      said, kept = (jnp.split(x, 3, axis=-1) for x in (said_Bx3F.astype(jnp.float32), kept_Bx3F))
      reset_BxF, update_BxF = nn.sigmoid(said[0] + kept[0]), nn.sigmoid(said[1] + kept[1])
      new_BxF = jnp.tanh(said[2] + reset_BxF * kept[2])
      state_BxF = update_BxF * state_BxF + (1 - update_BxF) * new_BxF
      return state_BxF, state_BxF.astype(c.dtype)

    by_position = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (said_BxLx3F, start_BxLx1))
    _, state_LxBxF = jax.lax.scan(step, jnp.zeros((x_BxLxD.shape[0], c.inner)), by_position)
    out_BxLxD = dense(c.width, c, 'output')(jnp.swapaxes(state_LxBxF, 0, 1))
    return self.residual(x_BxLxD, out_BxLxD, train)
