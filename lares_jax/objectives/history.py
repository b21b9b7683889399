"""A softmax that leaves out what the user has, for recommenders that leave it out when they serve.

    log p(v) = s_v - log(sum over all items of exp(s) - sum over the history's items of exp(s))

The first sum is the catalogue's pass; the second is small, for the history is in the row.
"""

import jax
import jax.numpy as jnp

from lares_jax.catalogue import Catalogue, Likelihood
from lares_jax.data.batches import Batch
from lares_jax.model.lares import at_places
from lares_jax.scoring import block_scores

_MOST = 0.999  # share of the whole sum that may be taken off: float32 has no digits for more


def without(found: Likelihood, query_BxAxD, batch: Batch, table_RxD, catalogue: Catalogue) -> jax.Array:
  """Log-probabilities [B * A] of the targets among the items that are not in the history.

  Args:
    found: of the same queries over the whole catalogue, [B * A].
    query_BxAxD: user vectors at `batch.place_BxA`, float32.
    batch: its rows hold the histories as far as the model reads them; a target that is in its own
      history stays.
    table_RxD: item embeddings.
    catalogue: scores.
  """
  own_M = own_lse(query_BxAxD, batch, table_RxD, catalogue).reshape(-1)
  share_M = jnp.minimum(jnp.exp(own_M - found.lse_M), _MOST)
  return found.logprob_M - jnp.log1p(-share_M)


def own_lse(query_BxAxD, batch: Batch, table_RxD, catalogue: Catalogue) -> jax.Array:
  """Log-sum-exp [B, A] of the scores of the items of each history, each once, without the target."""
  rows = batch.rows
  item_BxLxD = catalogue.lookup(table_RxD, rows.item_BxL)
  score_BxAxL = jax.vmap(lambda q_AxD, e_LxD: block_scores(q_AxD, e_LxD, catalogue.config))(
    query_BxAxD, item_BxLxD)
  there = lambda x_BxL: at_places(x_BxL[..., None], batch.place_BxA)
  mine_BxAxL = there(rows.segment_BxL) == rows.segment_BxL[:, None]
  mine_BxAxL &= there(rows.position_BxL) >= rows.position_BxL[:, None]
  mine_BxAxL &= _first(rows)[:, None] & (batch.target_BxA[..., None] != rows.item_BxL[:, None])
  return jax.nn.logsumexp(jnp.where(mine_BxAxL, score_BxAxL, -1e30), axis=2)


def _first(rows) -> jax.Array:
  """Whether a token is real and the first of its item in its history [B, L]."""
  same = lambda x_BxL: x_BxL[:, :, None] == x_BxL[:, None]
  earlier_BxLxL = rows.position_BxL[:, :, None] > rows.position_BxL[:, None]
  return rows.real_BxL & ~(same(rows.item_BxL) & same(rows.segment_BxL) & earlier_BxLxL).any(axis=2)
