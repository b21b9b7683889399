"""Batches, built by whole-array gathers; those of training are a pure function of (seed, step)."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np

from lares_jax.data.pairs import Pairs, Partners
from lares_jax.data.rows import Array, Plan, Rows, Segments, fill, pack, ranges
from lares_jax.data.store import Store
from lares_jax.errors import InputError

_WIDTHS = 64 * 4 ** np.arange(12)  # histories of up to so many items share batches without them
_TIMELESS = 0.1  # share of the training rows without times, so that a history without is nothing new


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """How histories become rows."""

  rows: Literal['packed', 'prefix'] = 'packed'  # all tokens of several histories; or the last of one
  row_length: int = 64
  max_history: int = 50

  def __post_init__(self):
    if self.max_history < 2 or self.length < self.max_history:
      raise InputError(f'data.row_length={self.row_length} must hold data.max_history='
                       f'{self.max_history}, and that must be at least 2')

  @property
  def length(self) -> int:
    """L: a row with one prefix has no room for more."""
    return self.row_length if self.rows == 'packed' else self.max_history

  def plan(self, length_S: np.ndarray, most: int | None = None) -> Plan:
    """Where histories or windows of these lengths go, `most` to a packed row."""
    if self.rows == 'packed':
      return pack(length_S, self.length, most)
    return Plan(np.arange(len(length_S)), np.zeros_like(length_S), len(length_S))


class Batch(NamedTuple):
  """One training step's input, for one forward: B rows with A targets each, then rows for the pairs."""

  rows: Rows  # of both kinds
  place_BxA: Array  # int32: which tokens of the first B are scored; None: all in turn
  target_BxA: Array  # int32: the item that follows
  scored_BxA: Array  # bool: the places whose target counts
  pairs: Pairs | None

  @property
  def scored_rows(self) -> Rows:
    """Those that have targets [B, L]."""
    return Rows._make(None if x is None else x[: len(self.target_BxA)] for x in self.rows)


class Windows(NamedTuple):
  """Stretches of training histories: tokens [start, start + length), targets one further on.

  The first `context` tokens only lend context: an earlier window scores them.
  """

  start_S: np.ndarray
  length_S: np.ndarray
  context_S: np.ndarray

  @classmethod
  def sliding(cls, store: Store, size: int) -> 'Windows':
    """Every training target once, with at least half of the context its own prefix would have."""
    first_U, end_U = store.offsets[:-1], store.valid_start_U
    tokens_U = np.maximum(end_U - first_U - 1, 0)
    stride = size // 2
    count_U = np.where(tokens_U > 0, 1 + -(-np.maximum(tokens_U - size, 0) // stride), 0)
    user_S = np.repeat(np.arange(len(tokens_U)), count_U)
    start_S = ranges(count_U) * stride
    length_S = np.minimum(tokens_U[user_S] - start_S, size)
    context_S = np.where(start_S > 0, size - stride, 0)
    return cls(first_U[user_S] + start_S, length_S, context_S)

  @classmethod
  def prefixes(cls, store: Store, size: int) -> 'Windows':
    """One window for every training target, which alone is scored."""
    user_N, end_N = store.targets('train')
    length_N = np.minimum(end_N - store.offsets[user_N], size)
    return cls(end_N - length_N, length_N, length_N - 1)

  def ending_in(self, kept_N: np.ndarray) -> 'Windows':
    """Windows cut off after their last kept target; those without one are left out."""
    last_N = np.maximum.accumulate(np.where(kept_N, np.arange(len(kept_N)), -1))
    length_S = last_N[self.start_S + self.length_S] - self.start_S
    some = length_S > self.context_S
    return Windows(self.start_S[some], length_S[some], self.context_S[some])


class TrainBatches:
  """All batches of a run: `batch_rows` rows with targets, and rows for at most `pairs` pairs.

  Order, company in a row and partners follow the seed. Rows have times where the data set has.
  `kept_N` flags the interactions that count as targets (None: all of training). With `partners`
  pairs have these, and batches more rows for them; with `copies` the rows with targets come twice.
  """

  def __init__(self, store: Store, config: DataConfig, batch_rows: int, pairs: int, seed: int,
               kept_N: np.ndarray | None = None, *, partners: bool = True, copies: bool = False):
    packed = config.rows == 'packed'
    windows = (Windows.sliding if packed else Windows.prefixes)(store, config.max_history)
    self._windows = windows if kept_N is None else windows.ending_in(kept_N)
    length_S = self._windows.length_S
    if not length_S.size:
      raise InputError(f'{store.directory}: no training target; a user needs two training items')
    self._plan = config.plan(length_S)
    self._by_row_S = np.argsort(self._plan.row_S, kind='stable')
    self._row_first = np.searchsorted(self._plan.row_S[self._by_row_S], np.arange(self._plan.rows + 1))
    self._store, self._config, self._seed, self._kept_N = store, config, seed, kept_N
    # There is one anchor a segment: more pairs than a batch has segments would be filling.
    segments = batch_rows * len(length_S) / self._plan.rows * (1.2 if packed else 1.0)
    self.batch_rows, self.pairs = batch_rows, min(pairs, int(segments) + 1)
    self.steps_per_epoch = max(self._plan.rows // batch_rows, 1)
    self._partners = Partners(store, config.max_history) if pairs and partners else None
    self._copies = batch_rows if pairs and copies else 0
    self._partner_rows = self._rows_for(self._partners) if self._partners else 0

  def _rows_for(self, partners: Partners) -> int:
    if self._config.rows == 'prefix':
      return self.pairs
    store, rng = self._store, np.random.default_rng(0)
    # The n-th target, users in turn, without a list of all.
    end_U = np.cumsum(np.maximum(store.valid_start_U - store.offsets[:-1] - 1, 0))
    n = rng.integers(end_U[-1], size=10_000)
    user = np.searchsorted(end_U, n, side='right')
    _, length_P = partners.draw(store.valid_start_U[user] + n - end_U[user], rng)
    return int(np.ceil(1.1 * self.pairs * length_P.mean() / self._config.length)) + 1

  @functools.lru_cache(maxsize=2)  # noqa: B019 - lives as long as the run
  def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(window of each slot, order of rows). Windows of one length change places among themselves."""
    generator = np.random.default_rng([self._seed, 1, epoch])
    # A small type is sorted by its digits.
    length_S = self._windows.length_S.astype(np.min_scalar_type(self._config.max_history))
    shuffled_S = generator.permutation(len(length_S))
    window_of_slot = np.empty_like(shuffled_S)
    # Slot s was planned for window s: give it any window of that length.
    window_of_slot[np.argsort(length_S, kind='stable')] = shuffled_S[
      np.argsort(length_S[shuffled_S], kind='stable')]
    return window_of_slot, generator.permutation(self._plan.rows)

  def batch(self, step: int) -> Batch:
    """The batch of one step, whole; a process slices its own rows out of it."""
    epoch, i = divmod(step, self.steps_per_epoch)
    window_of_slot, row_order = self._epoch(epoch)
    row_R = row_order[i * self.batch_rows : (i + 1) * self.batch_rows]
    first_R = self._row_first[row_R]
    count_R = self._row_first[row_R + 1] - first_R
    slot_S = self._by_row_S[ranges(count_R, first_R)]
    row_S = np.repeat(np.arange(len(row_R)), count_R)
    start_S, length_S, context_S = (x[window_of_slot[slot_S]] for x in self._windows)
    segments = Segments(start_S, length_S, row_S, self._plan.place_S[slot_S])

    items_N, shape = self._store.items_N, (self.batch_rows, self._config.length)
    after = segments._replace(start_S=start_S + 1)  # targets stand one further on
    target, position, segment, real, _ = fill(items_N, after, shape)
    scored = real & (position >= context_S[segment])
    if self._kept_N is not None:
      scored &= fill(self._kept_N, after, shape).item_BxL.astype(bool)
    place = None
    if self._config.rows == 'prefix':  # only the last token of a row counts: leave the others out
      place = np.zeros((shape[0], 1), np.int32)
      place[row_S, 0] = length_S - 1
      target, scored = (np.take_along_axis(x, place, axis=1) for x in (target, scored))

    generator = np.random.default_rng([self._seed, 2, step])
    pairs = None
    if self.pairs:
      pairs, *company = self._pair_up(segments, context_S, generator)
      segments = Segments(*map(np.concatenate, zip(segments, *company)))
    shape = self.batch_rows + self._copies + self._partner_rows, shape[1]
    rows = self._some_without_times(fill(items_N, segments, shape, *self._store.clock), generator)
    return Batch(rows, place, target, scored, pairs)

  def _pair_up(self, segments: Segments, context_S, generator: np.random.Generator):
    """Pairs, and the segments that they need besides those of the targets.

    One anchor a segment, uniform over its scored tokens; segments in random order.
    """
    scored_S = segments.length_S - context_S
    token_S = context_S + (generator.random(len(scored_S)) * scored_S).astype(np.int64)
    chosen = generator.permutation(len(scored_S))[: self.pairs]
    end_p = (segments.start_S + token_S + 1)[chosen]
    filled = lambda x, kind=np.int32: np.pad(x.astype(kind), (0, self.pairs - len(chosen)))
    places = lambda segments: filled((segments.first(self._config.length) + token_S)[chosen])
    target_P, real_P = filled(self._store.items_N[end_p]), filled(np.ones(len(chosen)), bool)
    pairs, company = Pairs(places(segments), None, None, target_P, real_P), []
    if self._copies:
      copies = segments._replace(row_S=segments.row_S + self.batch_rows)
      company.append(copies)
      pairs = pairs._replace(copy_P=places(copies))
    if self._partners:
      start_p, length_p = self._partners.draw(end_p, generator)
      others, last_p, fits_p = self._lay(start_p, length_p, generator)
      company.append(others)
      pairs = pairs._replace(partner_P=filled(last_p), real_P=filled(fits_p, bool))
    return pairs, *company

  def _lay(self, start_P, length_P, generator: np.random.Generator):
    """The partners that fit into their rows, the place of each one's last token, and which fit."""
    plan, room = self._config.plan(length_P), self._partner_rows
    # Rows are kept at random, so that lack of room favours no length.
    row_P = generator.permutation(plan.rows)[plan.row_S] if plan.rows > room else plan.row_S
    fits = row_P < room
    segments = Segments(start_P, length_P, self.batch_rows + self._copies + row_P, plan.place_S)
    last_P = np.where(fits, segments.first(self._config.length) + length_P - 1, 0)
    return Segments(*(x[fits] for x in segments)), last_P, fits

  def _some_without_times(self, rows: Rows, generator: np.random.Generator) -> Rows:
    """The rows, some of them without their times; a copy is as its row."""
    if rows.time_BxL is None:
      return rows
    hidden_B = generator.random(len(rows.time_BxL) - self._copies) < _TIMELESS
    hidden_B = np.concatenate([hidden_B[: self._copies], hidden_B])
    return rows._replace(time_BxL=np.where(hidden_B[:, None], np.int32(-1), rows.time_BxL))


class EvalBatch(NamedTuple):
  """Histories to rank a target for, A to a row at most."""

  rows: Rows
  place_BxA: Array  # int32: last token of each history
  target_BxA: Array  # int32
  scored_BxA: Array  # bool: False fills
  index_BxA: Array  # which of the caller's targets this is; -1 fills
  hidden_BxAxH: Array  # items to leave out of the ranking, -1 fills; or None

  @property
  def hidden_MxH(self) -> Array | None:
    """The same, rows and places flattened."""
    hidden = self.hidden_BxAxH
    return None if hidden is None else hidden.reshape(-1, hidden.shape[-1])


def eval_batches(store: Store, user_M: np.ndarray, index_M: np.ndarray, config: DataConfig,
                 batch_rows: int, hide: bool = False) -> Iterator[EvalBatch]:
  """Batches for targets of a data set (see `Store.targets`), all of one shape.

  Each target has a history of one item or more, of which the last `max_history` are read. With
  `hide` the items of the whole history are left out of the ranking; then long histories have batches,
  and shapes, of their own, so that one of them does not make all batches wide.
  """
  if not hide:
    yield from _batches_alike(store, user_M, index_M, config, batch_rows, hide)
    return
  kind_M = np.searchsorted(_WIDTHS, index_M - store.offsets[user_M])
  for kind in np.unique(kind_M):
    m = np.flatnonzero(kind_M == kind)
    for batch in _batches_alike(store, user_M[m], index_M[m], config, batch_rows, hide):
      index = np.where(batch.scored_BxA, m[batch.index_BxA], -1).astype(np.int32)
      yield batch._replace(index_BxA=index)


def _batches_alike(store: Store, user_M, index_M, config: DataConfig, batch_rows: int,
                   hide: bool) -> Iterator[EvalBatch]:
  """`eval_batches` of histories that may share a batch."""
  if not len(user_M):
    return
  length_M = index_M - store.offsets[user_M]
  longest = int(length_M.max())
  np.minimum(length_M, config.max_history, out=length_M)
  # Without the limit one row of the shortest would make room for as many in all.
  plan = config.plan(length_M, 2 * math.ceil(config.length / length_M.mean()))
  last_M = (plan.place_S + length_M - 1).astype(np.int32)
  target_M = store.items_N[index_M]
  order_M = np.argsort(plan.row_S, kind='stable')
  count_R = np.bincount(plan.row_S, minlength=plan.rows)
  nth_M = ranges(count_R)  # which history of its row each one is, in this order
  shape = batch_rows, int(count_R.max(initial=0))
  edges = np.searchsorted(plan.row_S[order_M], np.arange(0, plan.rows + batch_rows, batch_rows))
  for b, (low, high) in enumerate(itertools.pairwise(edges)):
    m, nth = order_M[low:high], nth_M[low:high]
    row, length = plan.row_S[m] - b * batch_rows, length_M[m]
    segments = Segments(index_M[m] - length, length, row, plan.place_S[m])
    rows = fill(store.items_N, segments, (batch_rows, config.length), *store.clock)
    index = np.full(shape, -1, np.int32)
    index[row, nth] = m
    scored = index >= 0
    hidden = None
    if hide:
      first = store.offsets[user_M[m]]
      whole = index_M[m] - first
      hidden = np.full((*shape, longest), -1, np.int32)
      hidden[np.repeat(row, whole), np.repeat(nth, whole), ranges(whole)] = store.items_N[
        ranges(whole, first)]
    yield EvalBatch(rows, np.where(scored, last_M[index], 0), np.where(scored, target_M[index], 0),
                    scored, index, hidden)
