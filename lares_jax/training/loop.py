"""The training loop of both phases: evaluate, save, next batch, step; always in that order."""

import contextlib
import dataclasses
import pathlib
import signal
from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

from lares_jax import processes
from lares_jax.errors import InputError, Interrupted
from lares_jax.training import sharding
from lares_jax.training.checkpoint import Checkpoints
from lares_jax.training.log import Log
from lares_jax.training.state import Phase, split


@dataclasses.dataclass
class Progress:
  """What early stopping remembers; part of every checkpoint."""

  best_step: int = -1
  best_ndcg: float = -1.0
  stale: int = 0  # evaluations since the best
  skipped: int = 0  # steps that were not finite

  def see(self, step: int, ndcg: float) -> bool:
    """Takes in an evaluation; True if it is the best so far."""
    better = ndcg > self.best_ndcg
    if better:
      self.best_step, self.best_ndcg, self.stale = step, ndcg, 0
    else:
      self.stale += 1
    return better


class Signals:
  """SIGTERM and SIGINT ask politely once; the second SIGINT stops at once."""

  def __init__(self):
    self.caught: int | None = None
    self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}

  def _note(self, signum: int, _) -> None:
    if self.caught == signum == signal.SIGINT:
      raise KeyboardInterrupt
    self.caught = signum

  def close(self) -> None:
    for signum, handler in self._before.items():
      signal.signal(signum, handler)


def run(phase: Phase, start: Callable[[], Any], abstract_params, workdir: pathlib.Path,
        config: dict[str, Any], mesh: jax.sharding.Mesh) -> None:
  """Trains a phase to its end or early stop, from its latest checkpoint if there is one.

  Otherwise it begins with the parameters `start()`, of the shapes `abstract_params`. The result is
  the best checkpoint of the phase in `workdir`.

  Raises:
    Interrupted: a signal came; the state is saved.
    InputError: the loss or a gradient was not finite more often than `on_nan` allows.
  """
  checkpoints = Checkpoints(workdir, phase.name)
  abstract_state = sharding.abstract(phase.fresh, abstract_params, mesh)
  places = jax.tree.map(lambda x: x.sharding, abstract_state)
  progress = Progress()
  if checkpoints.latest_step is None:
    own = phase.reference is None  # then nobody else needs the parameters: they are taken over
    state = jax.jit(phase.fresh, out_shardings=places, donate_argnums=0 if own else ())(start())
  else:
    state, saved = checkpoints.restore(abstract_state)
    progress = Progress(**saved)
  step_of = jax.jit(
    phase.update, donate_argnums=0, out_shardings=(places, sharding.replicated(mesh)))

  step = int(state.step)
  log = Log(workdir, phase.name, step, phase.steps, checkpoints.latest_step is not None)
  log.say(sharding.describe((state, phase.reference), mesh))
  if step:
    log.say(f'{phase.name}: going on from step {step} of {phase.steps}')
  with contextlib.closing(Signals()) as signals:
    with contextlib.closing(checkpoints), contextlib.closing(log):
      _loop(phase, state, step, progress, step_of, checkpoints, config, mesh, log, signals)
    if signum := processes.agreed(signals.caught, step, now=True):  # while the last was saved
      raise Interrupted(signum)


def _loop(phase, state, step, progress, step_of, checkpoints, config, mesh, log, signals) -> None:
  batches, began = _inputs(phase, step), step
  last = None  # metrics of the step before, read only once the next is under way
  trained, _ = split(state.params)
  names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(trained)]
  while True:
    over = step >= phase.steps
    due = over or step % phase.eval_every == 0 and (step or phase.validate_first)
    saving = step and phase.train.save_every_steps and step % phase.train.save_every_steps == 0
    if due or saving or processes.agreed(signals.caught, step):
      _settle(last, step, names, progress, phase, log)
      last, said = None, ''
      log.flush(step)
      if due and step != checkpoints.latest_step:
        metrics = phase.validate(state.evaluated)
        log.write(step, 'validation', metrics, history=phase.history)
        if progress.see(step, metrics['ndcg@10']):
          checkpoints.save_best(step, state.evaluated, metrics)
        said = _sentence(phase, step, metrics, progress)
      log.keep()  # before the checkpoint, whose lines they are
      checkpoints.save(step, state, dataclasses.asdict(progress), config)
      if said:
        log.say(said)
      log.restart()
      if signum := processes.agreed(signals.caught, step, now=True):
        raise Interrupted(signum)
    patient = not phase.train.patience or progress.stale < phase.train.patience
    if over or not patient:
      return
    batch, draw = next(batches)
    state, metrics = step_of(state, phase.reference, sharding.put_batch(batch, mesh), draw)
    _settle(last, step, names, progress, phase, log)
    if step == began or step % phase.train.log_every_steps == 0:  # the first one was compiled
      log.flush(step)
    last, step = metrics, step + 1


def _inputs(phase: Phase, step: int):
  """Batches and draws from `step` on, made ahead by grain's threads, in order."""

  def one(step: int):
    generator = np.random.default_rng([phase.seed, 3, step])
    return phase.batches.batch(step), phase.objective.draw(generator)

  dataset = grain.MapDataset.range(step, phase.steps).map(one)
  return iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)))


def _settle(metrics, step: int, names, progress: Progress, phase: Phase, log: Log) -> None:
  """Reads the metrics of step - 1; they are counted, or the run ends because of them."""
  if metrics is None:
    return
  metrics = jax.device_get(metrics)
  bad = metrics.pop('bad')
  if not metrics.pop('finite'):
    progress.skipped += 1
    if progress.skipped > phase.train.on_nan:
      terms = [k for k, v in metrics.items() if not np.isfinite(v)]
      first = names[int(np.argmax(bad))] if bad.any() else 'none'
      raise InputError(
        f'{phase.name}: step {step - 1} is not finite ({", ".join(terms)}; first parameter with a '
        f'bad gradient: {first}); the update was not applied and the last checkpoint is good. '
        f'Lower the learning rate or set clip_norm, in another --workdir; {phase.name}.train.on_nan=n '
        'skips n such steps and goes on in this one')
    log.say(f'{phase.name}: step {step - 1} is not finite; skipped ({progress.skipped} so far)')
    return
  log.add(metrics)


def _sentence(phase: Phase, step: int, metrics: dict[str, float], progress: Progress) -> str:
  epoch = step / phase.batches.steps_per_epoch
  mark = 'best so far' if progress.best_step == step else f'best {progress.best_ndcg:.4f}'
  return (f'{phase.name}: epoch {epoch:.1f}, step {step}: validation Recall@10 '
          f'{metrics["recall@10"]:.4f}, NDCG@10 {metrics["ndcg@10"]:.4f}, history '
          f'{phase.history} ({mark})')
