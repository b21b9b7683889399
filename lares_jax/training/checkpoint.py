"""Checkpoints of one phase: the latest, to go on from, and the best, to use.

    WORKDIR/checkpoints/PHASE/latest/STEP    state, progress, config
    WORKDIR/checkpoints/PHASE/best/STEP      the evaluated parameters, and their validation metrics

Both are written aside and renamed by orbax: a half-written one is never seen. They restore onto any
mesh: the padding of a split table, which depends on it, is cut off or filled up (`strict=False`).
"""

import pathlib
import sys
from typing import Any

import orbax.checkpoint as ocp

from lares_jax.errors import InputError

# Seconds that one save may take until it counts as failed, which ends the run. Orbax's own 20 minutes
# are too few for 100 GB on a disk of 80 MB/s; were it more, a process whose disk fails would keep the
# others waiting for longer.
_SAVING = 2 * 3600


class Checkpoints:
  """The two checkpoint series of a phase.

  One of them writes at a time: two saves under way would meet in the same barriers between processes,
  which orbax names alike for all its managers, and the processes would be lost.
  """

  def __init__(self, workdir: pathlib.Path, phase: str, read_only: bool = False):
    self.directory = pathlib.Path(workdir).absolute() / 'checkpoints' / phase
    for left in () if read_only else self.directory.glob('*/*orbax-checkpoint-tmp*'):
      print(f'warning: {left} was left half written by a killed run; ignored', file=sys.stderr)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=1, cleanup_tmp_directories=not read_only, create=not read_only,
      async_options=ocp.AsyncOptions(timeout_secs=_SAVING))
    try:
      self._latest, self._best = (
        ocp.CheckpointManager(self.directory / name, options=options) for name in ('latest', 'best'))
    except ValueError as error:  # it reads what was saved of the metrics
      raise self._damaged(self.directory, error) from error

  @property
  def latest_step(self) -> int | None:
    return self._latest.latest_step()

  @property
  def best_step(self) -> int | None:
    return self._best.latest_step()

  def save(self, step: int, state, progress: dict[str, Any], config: dict[str, Any]) -> None:
    """Saves in the background."""
    self._save(self._latest, step, state=ocp.args.StandardSave(state),
               progress=ocp.args.JsonSave(progress), config=ocp.args.JsonSave(config))

  def restore(self, abstract_state) -> tuple[Any, dict[str, Any]]:
    """The latest state, laid out like `abstract_state` (on any mesh), and its progress.

    Raises:
      InputError: it is damaged.
    """
    out = self._restore(
      self._latest, state=ocp.args.StandardRestore(abstract_state, strict=False),
      progress=ocp.args.JsonRestore())
    return out.state, out.progress

  def save_best(self, step: int, params, metrics: dict[str, float]) -> None:
    self._save(self._best, step, params=ocp.args.StandardSave(params),
               metrics=ocp.args.JsonSave(metrics))

  def restore_best(self, abstract_params) -> tuple[Any, dict[str, float], int]:
    """(parameters, validation metrics, step) of the best evaluation so far.

    Raises:
      InputError: nothing was saved yet, or it is damaged.
    """
    if self.best_step is None:
      raise InputError(f'{self.directory}: no checkpoint yet; train this phase first')
    out = self._restore(
      self._best, params=ocp.args.StandardRestore(abstract_params, strict=False),
      metrics=ocp.args.JsonRestore())
    return out.params, out.metrics, self.best_step

  def _save(self, series: ocp.CheckpointManager, step: int, **items) -> None:
    if step not in series.all_steps():  # what is there already is the same, and stays
      self.wait()
      series.save(step, args=ocp.args.Composite(**items))

  def _restore(self, series: ocp.CheckpointManager, **items) -> Any:
    step = series.latest_step()
    try:
      return series.restore(step, args=ocp.args.Composite(**items))
    except (OSError, ValueError, KeyError) as error:
      raise self._damaged(series.directory / str(step), error) from error

  def _damaged(self, place: object, error: Exception) -> InputError:
    said = ' '.join(str(error).split())[:300]  # of what may be pages
    return InputError(f'{place} is damaged ({said}). If it cannot be brought back, delete '
                      f'{self.directory}: the phase then begins anew')

  def wait(self) -> None:
    """Until everything is on disk.

    Raises:
      InputError: it could not be written.
    """
    try:
      self._latest.wait_until_finished()
      self._best.wait_until_finished()
    except (OSError, ValueError) as error:  # ValueError: what writes arrays says so
      raise InputError(f'{self.directory}: not saved, but the checkpoint before is whole: {error}'
                       ) from error

  def close(self) -> None:
    self.wait()
    self._latest.close()
    self._best.close()
