"""Where a run says how it goes: metrics.jsonl, TensorBoard, and a progress bar on a terminal."""

import json
import os
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np
import tensorboardX
import tqdm

from lares_jax.training import processes


class Log:
  """Metrics of one run. Lines later than `step` (from before a restart) are taken out at opening."""

  def __init__(self, workdir: pathlib.Path, phase: str, step: int, steps: int):
    self._phase = phase
    self._path = workdir / 'metrics.jsonl' if processes.first() else pathlib.Path(os.devnull)
    if processes.first():
      self._forget_after(step)
    self._file = open(self._path, 'a', encoding='utf-8')
    self._board = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard' / phase), purge_step=step, write_to_disk=processes.first())
    self._bar = tqdm.tqdm(total=steps, initial=step, desc=phase, unit='step', mininterval=0.5,
                          disable=not (sys.stderr.isatty() and processes.first()))
    self._sums: dict[str, float] = {}
    self._count = 0
    self._targets = 0.0
    self._since = time.perf_counter()

  def _forget_after(self, step: int) -> None:
    if not self._path.exists():
      return
    kept = []
    for line in self._path.read_text(encoding='utf-8').splitlines(keepends=True):
      try:
        entry = json.loads(line)
      except json.JSONDecodeError:
        continue  # cut short by a kill
      if entry['phase'] != self._phase or entry['step'] <= step:
        kept.append(line)
    aside = self._path.with_suffix('.aside')
    aside.write_text(''.join(kept), encoding='utf-8')
    os.replace(aside, self._path)

  def add(self, metrics: dict[str, float]) -> None:
    """One training step's metrics; they are written as means by `flush`."""
    self._count += 1
    self._targets += metrics['targets']
    for key, value in metrics.items():
      self._sums[key] = self._sums.get(key, 0.0) + float(value)
    self._bar.update()

  def flush(self, step: int, **extra: float) -> None:
    """Means since the last flush, and targets per second."""
    if self._count:
      now = time.perf_counter()
      means = {k: v / self._count for k, v in self._sums.items()}
      rate = self._targets / (now - self._since)
      self.write(step, 'train', {**means, **extra, 'targets_per_s': rate})
      self._bar.set_postfix_str(f'loss {means["loss"]:.4f}, {rate:,.0f} targets/s')
    self.restart()

  def restart(self) -> None:
    """Forgets what was gathered and restarts the clock, so that evaluation does not count."""
    self._sums, self._count, self._targets = {}, 0, 0.0
    self._since = time.perf_counter()

  def write(self, step: int, kind: str, metrics: dict[str, float]) -> None:
    """One line, and the same as TensorBoard scalars."""
    entry = {'phase': self._phase, 'step': step, 'kind': kind}
    # A metric of the same name may not hide the counter, by which a restart forgets lines.
    entry = {**entry, **{k: float(np.float32(v)) for k, v in metrics.items()}, **entry}
    self._file.write(json.dumps(entry) + '\n')
    self._file.flush()
    for key, value in metrics.items():
      self._board.add_scalar(f'{kind}/{key}', value, step)

  def say(self, text: str) -> None:
    """A line for the person watching, above the bar."""
    tqdm.tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()

  def close(self) -> None:
    self._file.close()
    self._board.close()
    self._bar.close()


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
