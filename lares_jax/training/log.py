"""Where a run says how it goes: metrics.jsonl, TensorBoard, and a progress bar on a terminal."""

import collections
import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np
import tqdm
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from lares_jax import files, processes


class _Board:
  """Points for TensorBoard.

  tensorboardX's own SummaryWriter writes in a thread; where the disk is full the thread dies, and who
  adds an eleventh point waits for it for ever.
  """

  def __init__(self, directory: pathlib.Path, purge: int):
    """Points from step `purge` on, of starts before, are taken out."""
    directory.mkdir(parents=True, exist_ok=True)
    self._events = EventsWriter(str(directory / 'events'))
    self._write(purge, session_log=SessionLog(status=SessionLog.START))

  def write(self, step: int, kind: str, metrics: dict[str, float]) -> None:
    for key, value in metrics.items():
      self._write(step, summary=scalar(f'{kind}/{key}', value))
    self._events.flush()

  def close(self) -> None:
    self._events.close()

  def _write(self, step: int, **content) -> None:
    self._events.write_event(Event(step=step, wall_time=time.time(), **content))


class Log:
  """Metrics of one run, from `step` on.

  Lines and points from before a restart are taken out at opening: later than `step`, or, where
  nothing was saved, all of the phase, its first validation too.
  """

  def __init__(self, workdir: pathlib.Path, phase: str, step: int, steps: int, saved: bool):
    self._phase = phase
    speaks = processes.first()
    path = workdir / 'metrics.jsonl' if speaks else pathlib.Path(os.devnull)
    if speaks and path.exists():
      _forget(path, phase, step if saved else -1)
    self._file = open(path, 'a', encoding='utf-8')
    self._board = _Board(workdir / 'tensorboard' / phase, step + saved) if speaks else None
    self._bar = tqdm.tqdm(total=steps, initial=step, desc=phase, unit='step', mininterval=0.5,
                          disable=None if speaks else True)
    self.restart()

  def add(self, metrics: dict[str, float]) -> None:
    """One training step's metrics; they are written as means by `flush`."""
    self._steps += 1
    for key, value in metrics.items():
      self._sums[key] += float(value)
    self._bar.update()

  def flush(self, step: int) -> None:
    """Means since the last flush, and targets per second."""
    if self._steps:
      rate = self._sums['targets'] / (time.perf_counter() - self._since)
      means = {key: total / self._steps for key, total in self._sums.items()}
      self.write(step, 'train', {**means, 'targets_per_s': rate})
      self._bar.set_postfix_str(f'loss {means["loss"]:.4f}, {rate:,.0f} targets/s')
    self.restart()

  def restart(self) -> None:
    """Forgets what was gathered and restarts the clock, so that evaluating and saving do not count."""
    self._sums, self._steps = collections.defaultdict[str, float](float), 0
    self._since = time.perf_counter()

  def write(self, step: int, kind: str, metrics: dict[str, float], **words: str) -> None:
    """One line, and the same numbers as TensorBoard scalars."""
    entry = {'phase': self._phase, 'step': step, 'kind': kind, **words}
    assert not entry.keys() & metrics.keys(), 'a metric may not take the name of what counts lines'
    entry |= {k: float(np.float32(v)) for k, v in metrics.items()}
    self._file.write(json.dumps(entry) + '\n')
    self._file.flush()
    if self._board:
      self._board.write(step, kind, metrics)

  def keep(self) -> None:
    """Makes the lines so far outlive a kill: a mounted bucket takes what a file holds as it closes."""
    self._file.close()
    self._file = open(self._file.name, 'a', encoding='utf-8')

  def say(self, text: str) -> None:
    """A line for the person watching, above the bar."""
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()

  def close(self) -> None:
    self._file.close()
    if self._board:
      self._board.close()
    self._bar.close()


def _forget(path: pathlib.Path, phase: str, after: int) -> None:
  """Takes out a phase's lines later than a step, and what a kill cut short."""
  kept = []
  for line in path.read_text(encoding='utf-8').splitlines(keepends=True):
    try:
      entry = json.loads(line)
    except json.JSONDecodeError:
      continue
    if entry['phase'] != phase or entry['step'] <= after:
      kept.append(line)
  files.write(path, ''.join(kept).encode())


def training_seconds(workdir: pathlib.Path, phases: Sequence[str]) -> float:
  """Time spent in training steps over all starts; not in the first compilation nor in evaluation.

  Work that a kill undid does not count.
  """
  total, before = 0.0, dict.fromkeys(phases, 0)
  for line in (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines():
    entry = json.loads(line)
    phase = entry['phase']
    if entry['kind'] == 'train' and phase in before:
      steps, before[phase] = entry['step'] - before[phase], entry['step']
      total += steps * entry['targets'] / entry['targets_per_s']
  return total
