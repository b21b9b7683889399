"""Pairs of training histories with the same target, for the terms of a loss that compare them."""

from typing import NamedTuple

import numpy as np

from lares_jax.data.rows import Array
from lares_jax.data.store import Store


class Pairs(NamedTuple):
  """P pairs: places in a batch's flattened rows, int32."""

  anchor_P: Array
  partner_P: Array  # of another history with the anchor's target; None: not asked for
  copy_P: Array  # of the anchor in another copy of its row; None: not asked for
  target_P: Array  # int32: the item that follows anchor and partner
  real_P: Array  # bool: False fills

  @property
  def real_PxP(self) -> Array:
    """Whether neither of two pairs is filling."""
    return self.real_P[:, None] & self.real_P[None, :]


class Partners:
  """Other training occurrences of the same target item."""

  def __init__(self, store: Store, max_history: int):
    self._store, self._max_history = store, max_history
    _, end_N = store.targets('train')
    target_N = np.asarray(store.items_N)[end_N]
    self._by_item_N = end_N[np.argsort(target_N, kind='stable')]  # rising within an item
    self._first_V = np.concatenate([[0], np.cumsum(np.bincount(target_N, minlength=store.num_items))])

  def draw(self, end_P: np.ndarray, generator: np.random.Generator):
    """For targets at `end_P`: start and length of a partner's history; itself if it has none."""
    items_N, offsets = self._store.items_N, self._store.offsets
    target_P = items_N[end_P]
    first_P, last_P = self._first_V[target_P], self._first_V[target_P + 1]
    # Uniform over the others: draw among one fewer, and step over one's own place.
    chosen_P = first_P + (generator.random(len(end_P)) * (last_P - first_P - 1)).astype(np.int64)
    own_P = self._by_item_N[chosen_P] >= end_P
    chosen_P = np.where(last_P - first_P > 1, chosen_P + own_P, first_P)
    partner_P = self._by_item_N[chosen_P]
    user_P = np.searchsorted(offsets, partner_P, side='right') - 1
    length_P = np.minimum(partner_P - offsets[user_P], self._max_history)
    return partner_P - length_P, length_P
