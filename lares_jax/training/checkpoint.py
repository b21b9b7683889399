"""Checkpoints of one phase: the latest, to go on from, and the best, to use.

    WORKDIR/checkpoints/PHASE/latest/STEP    state, progress, config
    WORKDIR/checkpoints/PHASE/best/STEP      the evaluated parameters, and their validation metrics

Both are written aside and renamed by orbax: a half-written one is never seen. They restore onto any
mesh: the padding of a split table, which depends on it, is cut off or filled up (`strict=False`).
"""

import contextlib
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp

from lares_jax.errors import InputError


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
      max_to_keep=1, cleanup_tmp_directories=not read_only, create=not read_only)
    self._latest = ocp.CheckpointManager(self.directory / 'latest', options=options)
    self._best = ocp.CheckpointManager(self.directory / 'best', options=options)

  @property
  def latest_step(self) -> int | None:
    return self._latest.latest_step()

  @property
  def best_step(self) -> int | None:
    return self._best.latest_step()

  def save(self, step: int, state, progress: dict[str, Any], config: dict[str, Any]) -> None:
    """Saves in the background; a step that is there already is the same, and stays."""
    if step in self._latest.all_steps():
      return
    self.wait()
    self._latest.save(step, args=ocp.args.Composite(
      state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress),
      config=ocp.args.JsonSave(config)))

  def restore(self, abstract_state) -> tuple[Any, dict[str, Any]]:
    """The latest state, laid out like `abstract_state` (on any mesh), and its progress.

    Raises:
      InputError: it is damaged.
    """
    step = self._latest.latest_step()
    with _readable(self.directory / 'latest' / str(step)):
      out = self._latest.restore(step, args=ocp.args.Composite(
        state=ocp.args.StandardRestore(abstract_state, strict=False),
        progress=ocp.args.JsonRestore()))
    return out.state, out.progress

  def save_best(self, step: int, params, metrics: dict[str, float]) -> None:
    if step in self._best.all_steps():
      return
    self.wait()
    self._best.save(step, args=ocp.args.Composite(
      params=ocp.args.StandardSave(params), metrics=ocp.args.JsonSave(metrics)))

  def restore_best(self, abstract_params) -> tuple[Any, dict[str, float], int]:
    """(parameters, validation metrics, step) of the best evaluation so far.

    Raises:
      InputError: nothing was saved yet, or it is damaged.
    """
    self.wait()
    step = self._best.latest_step()
    if step is None:
      raise InputError(f'{self.directory}: no checkpoint yet; train this phase first')
    with _readable(self.directory / 'best' / str(step)):
      out = self._best.restore(step, args=ocp.args.Composite(
        params=ocp.args.StandardRestore(abstract_params, strict=False),
        metrics=ocp.args.JsonRestore()))
    return out.params, out.metrics, step

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


@contextlib.contextmanager
def _readable(directory: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except (OSError, ValueError, KeyError) as error:
    raise InputError(f'{directory} is damaged ({error}). If it cannot be brought back, delete '
                     f'{directory.parent.parent}: the phase then begins anew') from error


def abstract(tree, shardings):
  """Shapes, types and places of a tree's arrays, to restore into."""
  of = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
  return jax.tree.map(of, tree, shardings)
