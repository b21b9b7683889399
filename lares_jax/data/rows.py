"""Rows: fixed-size stretches of tokens, each holding one or several histories (segments)."""

from typing import Any, NamedTuple

import numpy as np

Array = Any  # numpy on the host, jax on the device


class Rows(NamedTuple):
  """What the encoder reads; a token is one item of one history.

  `real` alone says what is a token and what is filling: item 0 is an item like any other.
  """

  item_BxL: Array  # int32; 0 at filling
  position_BxL: Array  # int32, from 0 at the start of each segment
  segment_BxL: Array  # int32; tokens see each other only within a segment
  real_BxL: Array  # bool
  time_BxL: Array | None = None  # int32, ticks since the segment's start; None, or below 0: unknown


def blank(shape: tuple[int, int], times: bool) -> Rows:
  """Rows [B, L] full of one history of item 0, for their shapes alone."""
  zero_BxL = np.zeros(shape, np.int32)
  position_BxL = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  return Rows(zero_BxL, position_BxL, zero_BxL, zero_BxL == 0, zero_BxL if times else None)


class Segments(NamedTuple):
  """Histories, or parts of them, and where in the rows they go."""

  start_S: np.ndarray  # in the interactions
  length_S: np.ndarray
  row_S: np.ndarray
  place_S: np.ndarray  # in that row

  def first(self, row_length: int) -> np.ndarray:
    """Where each begins in the flattened rows."""
    return self.row_S * row_length + self.place_S


class Plan(NamedTuple):
  """Where each of S segments goes: its row, and its first place in that row."""

  row_S: np.ndarray
  place_S: np.ndarray
  rows: int


def pack(length_S: np.ndarray, row_length: int, most: int | None = None) -> Plan:
  """Packs segments into rows, longest first, each row filled with the longest that still fits.

  A row holds `most` segments (None: as many as fit).

  Works on counts by length and repeats a pattern of lengths as often as the counts allow, so the
  time depends on the number of distinct lengths, not of segments.
  """
  # Longest first. A small type is sorted by its digits, in a fraction of the time.
  order_S = np.argsort(
    (row_length - length_S).astype(np.min_scalar_type(row_length)), kind='stable')
  left = np.bincount(length_S, minlength=row_length + 1)
  first = len(length_S) - np.cumsum(left)  # in order_S, of the segments of each length still to lay
  row_S, place_S, rows = np.empty_like(length_S), np.empty_like(length_S), 0
  while left.any():
    pattern: list[int] = []
    room, used = row_length, np.zeros_like(left)
    while room and len(pattern) != most and (fits := np.flatnonzero((left > used)[: room + 1])).size:
      pattern.append(int(fits[-1]))
      used[fits[-1]] += 1
      room -= pattern[-1]
    times = int((left[used > 0] // used[used > 0]).min())  # as often as the counts allow
    left -= times * used
    place = np.cumsum(pattern) - pattern
    for length in np.flatnonzero(used):
      count = used[length]
      alike = order_S[first[length] : first[length] + times * count]
      row_S[alike] = np.repeat(np.arange(rows, rows + times), count)
      place_S[alike] = np.tile(place[np.array(pattern) == length], times)
      first[length] += len(alike)
    rows += times
  return Plan(row_S, place_S, rows)


def rounded_up(size: int, base: int) -> int:
  """The least power of `base` not below the size: few sizes, so few programs to compile."""
  rounded = 1
  while rounded < size:
    rounded *= base
  return rounded


def ranges(length_S: np.ndarray, first_S=0) -> np.ndarray:
  """first..first+n-1 for each length n, one after the other: the tokens of segments laid end to end."""
  start_S = np.cumsum(length_S) - length_S
  out = np.repeat(first_S - start_S, length_S)
  out += np.arange(len(out))
  return out


def units_per_tick(times_N: np.ndarray, offsets: np.ndarray) -> int:
  """How coarse ticks must be for the longest history's span to fit int32: 1 for seconds.

  Times rise within a user u, who owns [offsets[u], offsets[u + 1]), but for logs that come split, whose
  parts may overlap in time.
  """
  first_U, end_U = offsets[:-1], offsets[1:]
  some = end_U > first_U
  longest = int((times_N[end_U[some] - 1] - times_N[first_U[some]]).max(initial=0))
  return longest // np.iinfo(np.int32).max + 1


def fill(items_N, segments: Segments, shape: tuple[int, int], times_N=None, units: int = 1) -> Rows:
  """Rows [B, L] of the given shape, holding items_N[start : start + length] of each segment.

  With `times_N` (int64, of all interactions) rows have times, in ticks of `units`: see
  `units_per_tick`.
  """
  length_S = segments.length_S
  step = ranges(length_S)
  flat = np.repeat(segments.first(shape[1]), length_S) + step
  real = np.zeros(shape, bool)
  item, segment = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
  # Filling counts on, so that a row with one segment has the positions 0..L-1 throughout.
  position = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape).copy()
  index = np.repeat(segments.start_S, length_S) + step
  item.flat[flat] = items_N[index]
  position.flat[flat] = step
  segment.flat[flat] = np.repeat(np.arange(len(length_S)), length_S)
  real.flat[flat] = True
  if times_N is None:
    return Rows(item, position, segment, real)
  time = np.zeros(shape, np.int32)
  since = (times_N[index] - times_N[index - step]) // units
  time.flat[flat] = np.clip(since, 0, np.iinfo(np.int32).max)
  return Rows(item, position, segment, real, time)
