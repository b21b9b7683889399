"""A softmax that leaves out what the user has, for recommenders that leave it out when they serve.

    log p(v) = s_v - log(sum over all items of exp(s) - sum over the history's items of exp(s))

The first sum is the catalogue's pass; the second is small, for the history is in the row. It reaches
as far back as the model reads, while evaluation and recommendation leave out all that a user has.
"""

import math

import jax
import jax.numpy as jnp

from lares_jax.catalogue import Catalogue, Likelihood
from lares_jax.data.batches import Batch
from lares_jax.data.rows import Rows
from lares_jax.model.recurrence import at_places
from lares_jax.scoring import block_scores

_MOST = math.log(0.999)  # share of the sum that may be taken off, at most: float32 has no more digits


def owned(batch: Batch) -> tuple[jax.Array, jax.Array]:
  """What each place's history holds, from the batch alone.

  Returns:
    Which tokens of the row are items of it, each item once, bool [B, A, L]; and which places are
    scored [B, A]: a target that is in its own history is never recommended, so it does not count.
  """
  rows = batch.scored_rows
  at_place = lambda x_BxL: at_places(x_BxL[..., None], batch.place_BxA)
  own_BxAxL = at_place(rows.segment_BxL) == rows.segment_BxL[:, None]
  own_BxAxL &= at_place(rows.position_BxL) >= rows.position_BxL[:, None]
  own_BxAxL &= _first(rows)[:, None]
  again_BxA = (own_BxAxL & (batch.target_BxA[..., None] == rows.item_BxL[:, None])).any(axis=2)
  return own_BxAxL, batch.scored_BxA & ~again_BxA


def without(found: Likelihood, query_BxAxD, own_BxAxL, rows: Rows, table_RxD,
            catalogue: Catalogue) -> jax.Array:
  """Log-probabilities [B, A] of the targets among the items that are not in the history.

  Args:
    found: of the same queries over the whole catalogue, [B * A].
    query_BxAxD: user vectors, float32.
    own_BxAxL: which tokens of the row are the history's, see `owned`.
    rows: the histories.
    table_RxD: item embeddings.
    catalogue: says how to score.
  """
  item_BxLxD = catalogue.lookup(table_RxD, rows.item_BxL)
  score_BxAxL = jax.vmap(lambda q_AxD, e_LxD: block_scores(q_AxD, e_LxD, catalogue.config))(
    query_BxAxD, item_BxLxD)
  own_BxA = jax.nn.logsumexp(jnp.where(own_BxAxL, score_BxAxL, -1e30), axis=2)
  lse_BxA, logprob_BxA = (x.reshape(own_BxA.shape) for x in (found.lse_M, found.logprob_M))
  return logprob_BxA - jnp.log1p(-jnp.exp(jnp.minimum(own_BxA - lse_BxA, _MOST)))


def _first(rows: Rows) -> jax.Array:
  """Whether a token is real and the first of its item in its history [B, L]."""
  same = lambda x_BxL: x_BxL[:, :, None] == x_BxL[:, None]
  earlier_BxLxL = rows.position_BxL[:, :, None] > rows.position_BxL[:, None]
  return rows.real_BxL & ~(same(rows.item_BxL) & same(rows.segment_BxL) & earlier_BxLxL).any(axis=2)
