"""Programs compiled and timed, for the studies and the benchmark."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import tqdm

from lares_jax.training.state import Phase, TrainState

MIB = 2**20


def in_turns(calls: Mapping[Any, Callable[[], Any]], repeats: int) -> dict[Any, list[float]]:
  """Seconds of each call by name, `repeats` times.

  In turns, so that a slow minute of the machine hits all alike; each is called once before it is
  timed, so that it does not pay for the caches and the memory that the one before it left.
  """
  seconds: dict[Any, list[float]] = {name: [] for name in calls}
  for _ in tqdm.trange(repeats, desc='time', unit='round', leave=False, disable=None):
    for name, call in calls.items():
      jax.block_until_ready(call())
      start = time.perf_counter()
      jax.block_until_ready(call())
      seconds[name].append(time.perf_counter() - start)
  return seconds


def compiled(function, *args, **options) -> tuple[Any, dict[str, float]]:
  """The program of jit(function, **options) for these arguments, and its sizes."""
  start = time.perf_counter()
  program: Any = jax.jit(function, **options).lower(*args).compile()
  return program, {'compile_s': time.perf_counter() - start,
                   'hlo_lines': program.as_text().count('\n'),
                   'temporaries_mib': program.memory_analysis().temp_size_in_bytes / MIB}


class Training:
  """Real steps of a phase, one compiled program for all; a call takes one and returns its metrics.

  The state is the one element of a list, which several may share: there is room for one alone where
  the catalogue is large.
  """

  def __init__(self, phase: Phase, state: list[TrainState], batches: Iterable, draw):
    self._batches, self._reference, self._draw = iter(batches), phase.reference, draw
    self._state = state
    self._program, self.sizes = compiled(
      phase.update, state[0], self._reference, next(self._batches), draw, donate_argnums=0)

  def __call__(self) -> dict[str, jax.Array]:
    self._state[0], metrics = self._program(
      self._state[0], self._reference, next(self._batches), self._draw)
    return metrics
