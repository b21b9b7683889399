"""The training loop and its log, on tiny data: stopping, resuming, faults, randomness, time."""

import contextlib
import dataclasses
import errno
import json
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tiny import latest, make_config, make_store

from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.training import log as log_lib
from lares_jax.training import loop
from lares_jax.training.log import Log
from lares_jax.training.state import Phase, TrainState


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return make_store(tmp_path_factory.mktemp('store')).directory


class _Stop(Exception):
  pass


@pytest.mark.parametrize('saved', (False, True))
def test_what_was_logged_before_anything_was_saved_is_taken_out(tmp_path, saved):
  """Killed between the first validation and its checkpoint, a phase validates again."""
  log = Log(tmp_path, 'posttrain', 0, 10, saved=False)
  log.write(0, 'validation', {'ndcg@10': 0.5})
  log.close()
  Log(tmp_path, 'posttrain', 0, 10, saved=saved).close()
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == saved


def test_a_second_ctrl_c_stops_at_once():
  with contextlib.closing(loop.Signals()) as signals:
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.caught == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_signals_are_given_back_and_sigterm_may_come_twice():
  before = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  with contextlib.closing(loop.Signals()) as signals:
    for _ in range(2):
      os.kill(os.getpid(), signal.SIGTERM)
    assert signals.caught == signal.SIGTERM
  assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize('ndcg', (0.3, 0.2, float('nan')))
def test_only_what_is_better_is_the_best(ndcg):
  """Phase two must beat its start: what is as good, or no number, is none."""
  progress = loop.Progress()
  assert progress.see(0, 0.0) and progress.see(5, 0.3) and not progress.see(9, ndcg)
  assert progress == loop.Progress(best_step=5, best_ndcg=0.3, stale=1)


def test_patience_ends_a_run_and_it_stays_ended(store, tmp_path, monkeypatch):
  """And the best is of its evaluation: here the third of five, of two without a better one."""
  order, keep, save = [], Log.keep, loop.Checkpoints.save
  monkeypatch.setattr(Log, 'keep', lambda *args: (order.append('keep'), keep(*args)))
  monkeypatch.setattr(loop.Checkpoints, 'save', lambda *args: (order.append('save'), save(*args)))
  experiment = Experiment.start(make_config(store), str(tmp_path))
  phase, scores, seen = experiment.pretraining(), iter((0.1, 0.05, 0.3, 0.2, 0.25)), []

  def validate(params):
    seen.append(jax.device_get(params))
    return {'ndcg@10': next(scores), 'recall@10': 0.0}

  train = dataclasses.replace(phase.train, epochs=9, patience=2)
  phase = dataclasses.replace(phase, train=train, validate=validate)
  for _ in range(2):  # the second time there is nothing to do
    loop.run(phase, experiment.init_params, experiment.abstract_params, tmp_path, {}, experiment.mesh)
    last, (best, metrics, step) = latest(tmp_path, 'pretrain'), experiment.best('pretrain')
    assert len(seen) == 5 and int(last.state['step']) == 5 * phase.eval_every
    assert last.progress == dict(best_step=step, best_ndcg=0.3, stale=2, skipped=0)
    assert step == 3 * phase.eval_every and metrics['ndcg@10'] == 0.3
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(best), seen[2])
  assert order == ['keep', 'save'] * 6, 'lines must outlive a kill wherever their checkpoint does'


def test_the_average_that_is_evaluated(store, tmp_path):
  experiment = Experiment(make_config(store), tmp_path)
  phase = experiment.pretraining()
  phase = dataclasses.replace(phase, train=dataclasses.replace(phase.train, ema=0.15))
  state, step_of = phase.fresh(experiment.init_params()), jax.jit(phase.update)
  want = np.asarray(state.params['item'])
  for step, rate in enumerate((0.1, 0.15, 0.15)):  # 1/10 at first, then no more than asked for
    draw = phase.objective.draw(np.random.default_rng(step))
    state, _ = step_of(state, None, phase.batches.batch(step), draw)
    want = rate * want + (1 - rate) * np.asarray(state.params['item'])
    np.testing.assert_allclose(state.evaluated['item'], want, rtol=1e-5)
  assert np.abs(want - state.params['item']).max() > 1e-5


def test_one_compilation_for_all_depths_and_steps(store, tmp_path, monkeypatch):
  traces, update = [], Phase.update

  def counted(*args):
    traces.append(1)
    return update(*args)

  monkeypatch.setattr(Phase, 'update', counted)
  experiment = Experiment.start(make_config(store), str(tmp_path))
  loop.run(experiment.pretraining(), experiment.init_params, experiment.abstract_params, tmp_path, {},
           experiment.mesh)
  assert len(traces) == 1


def test_a_gradient_that_is_not_finite_stops_before_the_update(store, tmp_path):
  experiment = Experiment.start(make_config(store), str(tmp_path))
  phase = experiment.pretraining()
  params = experiment.init_params()
  params['position'] = params['position'].at[0, 0].set(np.nan)
  said = r'step 0 is not finite \(.*loss.*first parameter.*input_norm.*on_nan'
  with pytest.raises(InputError, match=said):
    loop.run(phase, lambda: params, experiment.abstract_params, tmp_path, {}, experiment.mesh)
  assert loop.Checkpoints(tmp_path, 'pretrain').latest_step is None


def test_a_finite_loss_of_a_gradient_that_is_not_changes_nothing(store, tmp_path):
  experiment = Experiment(make_config(store), tmp_path)
  phase = dataclasses.replace(experiment.pretraining(), objective=lambda params, *_: (
    jnp.sqrt(0.0 * params['item']).sum(), {}))  # 0, of an infinite slope
  state = phase.fresh(experiment.init_params())
  after, metrics = phase.update(state, None, None, None)
  assert metrics['loss'] == 0 and not metrics['finite'] and metrics['bad'].sum() == 1
  jax.tree.map(np.testing.assert_array_equal, after, state._replace(step=after.step))
  assert int(after.step) == 1


def test_on_nan_skips_so_many_steps_and_goes_on(store, tmp_path, capsys):
  experiment = Experiment.start(make_config(store), str(tmp_path))
  phase = experiment.pretraining()

  class Faulty:
    """The objective, but that step 1 is not finite."""

    def draw(self, generator):
      faulty = generator.bit_generator.state == np.random.default_rng([0, 3, 1]).bit_generator.state
      return phase.objective.draw(generator), np.float32(np.nan if faulty else 1)

    def __call__(self, params, reference, batch, draw, key):
      loss, seen = phase.objective(params, reference, batch, draw[0], key)
      return loss * draw[1], seen

  train = dataclasses.replace(phase.train, on_nan=1)
  faulty = dataclasses.replace(phase, objective=Faulty(), train=train)
  loop.run(faulty, experiment.init_params, experiment.abstract_params, tmp_path, {}, experiment.mesh)
  assert 'step 1 is not finite; skipped (1 so far)' in capsys.readouterr().out
  last = latest(tmp_path, 'pretrain')
  assert last.progress['skipped'] == 1 and int(last.state['step']) == phase.steps
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(last.state))


def test_a_half_written_checkpoint_is_ignored_with_a_warning(tmp_path, capsys):
  left = tmp_path / 'checkpoints' / 'pretrain' / 'latest' / '7.orbax-checkpoint-tmp-1'
  left.mkdir(parents=True)
  for phase in ('pretrain', 'posttrain'):  # a reader, beside a run that is still saving
    reader = loop.Checkpoints(tmp_path, phase, read_only=True)
    assert reader.latest_step is None and left.exists()
    reader.close()
  assert not (tmp_path / 'checkpoints' / 'posttrain').exists() and not capsys.readouterr().err
  checkpoints = loop.Checkpoints(tmp_path, 'pretrain')
  assert checkpoints.latest_step is None
  assert f'{left} was left half written' in capsys.readouterr().err


def test_a_phase_that_was_not_trained_is_named(tmp_path):
  checkpoints = loop.Checkpoints(tmp_path, 'posttrain', read_only=True)
  with pytest.raises(InputError, match='posttrain: no checkpoint yet; train this phase first'):
    checkpoints.restore_best(None)
  checkpoints.close()


def _events(directory):
  """What a directory of TensorBoard's holds."""
  for file in sorted(directory.iterdir()):
    data = file.read_bytes()
    while data:  # length, its checksum, the event, its checksum
      size = int.from_bytes(data[:8], 'little')
      yield Event.FromString(data[12:12 + size])
      data = data[16 + size:]


def _purged(directory):
  """The step of each start that it tells."""
  return sorted(event.step for event in _events(directory) if event.HasField('session_log'))


def test_a_restart_takes_out_the_lines_that_a_kill_undid(tmp_path):
  """Here the one at step 6; no metric may hide the counter that tells."""
  for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):
    log = Log(tmp_path, 'pretrain', start, 10, start > 0)
    for step in steps:
      log.add({'loss': 1.0, 'targets': 5.0})
      log.flush(step)
      log.keep()
    log.close()
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').open()]
  assert [line['step'] for line in lines] == [2, 4, 6, 8]
  # TensorBoard takes points out from there on. (Of two starts in one second it keeps the later file.)
  assert _purged(tmp_path / 'tensorboard' / 'pretrain')[-1] == 5
  log = Log(tmp_path, 'pretrain', 8, 10, True)
  with pytest.raises(AssertionError):
    log.write(9, 'validation', {'step': 3})
  log.close()


def test_a_line_that_a_kill_cut_short_is_taken_out(tmp_path):
  whole = json.dumps({'phase': 'pretrain', 'step': 2, 'kind': 'train'}) + '\n'
  (tmp_path / 'metrics.jsonl').write_text(whole + whole[:20])
  log = Log(tmp_path, 'pretrain', 2, 10, True)
  log.write(4, 'validation', {'mrr': 0.5})
  log.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines(keepends=True)
  assert lines[0] == whole and [json.loads(line)['step'] for line in lines] == [2, 4]


def test_points_reach_tensorboard(tmp_path):
  log = Log(tmp_path, 'pretrain', 0, 10, False)
  log.write(4, 'validation', {'mrr': 0.5})  # and are there while the run goes on
  points = [(event.step, value.tag, value.simple_value) for event in _events(
    tmp_path / 'tensorboard' / 'pretrain') for value in event.summary.value]
  assert points == [(4, 'validation/mrr', 0.5)]
  log.close()


def test_a_full_disk_ends_the_log_with_an_error(tmp_path, monkeypatch):
  """Points go to TensorBoard's file at once: a thread that writes them dies, and the run hangs."""

  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  log = Log(tmp_path, 'pretrain', 0, 10, False)
  monkeypatch.setattr(EventsWriter, 'write_event', full)
  with pytest.raises(OSError, match='No space left'):
    log.write(1, 'train', {f'loss_{n}': 1.0 for n in range(12)})
  monkeypatch.undo()
  log.close()


def test_a_line_of_training_has_means_and_targets_a_second(tmp_path, monkeypatch):
  times = iter((10.0, 14.0, 14.0))
  monkeypatch.setattr(log_lib, 'time', types.SimpleNamespace(
    perf_counter=lambda: next(times), time=lambda: 0.0))
  log = Log(tmp_path, 'pretrain', 0, 10, False)
  for loss, targets in ((1.0, 5.0), (3.0, 7.0)):
    log.add({'loss': loss, 'targets': targets})
  log.flush(2)
  log.close()
  line, = map(json.loads, (tmp_path / 'metrics.jsonl').open())
  assert (line['loss'], line['targets'], line['targets_per_s']) == (2.0, 6.0, 3.0)


class _Noise:
  """An objective that says which random numbers a step is given."""

  def draw(self, generator):
    return np.float32(generator.random())

  def __call__(self, params, reference, batch, draw, key):
    return params['item'].sum() * 0 + jax.random.uniform(key), {}


def test_the_reference_stays_as_it_was_while_the_policy_moves(store, tmp_path):
  """Also after a restart, for which it is fetched anew."""

  class Told(_Noise):
    def __call__(self, params, reference, *_):
      moves = sum(x.sum() for x in jax.tree.leaves(params))
      return moves, {'targets': 1.0, 'policy': params['item'].sum(), 'frozen': reference['item'].sum()}

  experiment = Experiment(make_config(store), tmp_path)
  reference = experiment.init_params()
  phase = dataclasses.replace(
    experiment.posttraining(reference, None), objective=Told(),
    validate=lambda params: {'ndcg@10': 0.1, 'recall@10': 0.1})
  for epochs in (1, 3):
    train = dataclasses.replace(phase.train, epochs=epochs, log_every_steps=1)
    loop.run(dataclasses.replace(phase, train=train), lambda: reference, experiment.abstract_params,
             tmp_path, {}, experiment.mesh)
  lines = [line for line in map(json.loads, (tmp_path / 'metrics.jsonl').open()) if 'frozen' in line]
  began = float(reference['item'].sum())
  assert [line['frozen'] for line in lines] == pytest.approx([began] * len(lines), abs=1e-4)
  assert lines[0]['policy'] == pytest.approx(began, abs=1e-4), 'the policy is to begin as its reference'
  moved = np.diff([line['policy'] for line in lines])
  assert len(moved) > 2 and (moved < -0.01).all()


def test_neither_compilation_nor_evaluation_is_training_time(store, tmp_path, monkeypatch):
  """By a clock that they alone move far, over two starts."""
  now = [0.0]

  def passes(seconds):
    now[0] += seconds
    return now[0]

  class Quick(_Noise):
    def __call__(self, *args):
      passes(1000)  # once a start: where the step is traced
      return super().__call__(*args)[0], {'targets': 4.0}

  monkeypatch.setattr(log_lib, 'time', types.SimpleNamespace(
    perf_counter=lambda: passes(0.001), time=lambda: 0.0))
  experiment = Experiment(make_config(store), tmp_path)
  phase = dataclasses.replace(
    experiment.pretraining(), objective=Quick(), validate=lambda params: (
      passes(1000), {'ndcg@10': 0.1, 'recall@10': 0.1})[1])
  for epochs in (1, 3):
    train = dataclasses.replace(phase.train, epochs=epochs, log_every_steps=1000)
    loop.run(dataclasses.replace(phase, train=train), experiment.init_params,
             experiment.abstract_params, tmp_path, {}, experiment.mesh)
  assert now[0] > 5000 and 0 < log_lib.training_seconds(tmp_path, ('pretrain',)) < 1


def test_every_seed_and_every_step_draws_anew(store, tmp_path):
  """First parameters, batches, what the host draws, and the noise within a step."""

  def noise(*args):
    raise _Stop(jax.random.key_data(args[-1]).tolist())

  noise.draw = lambda generator: generator.random()
  for kind, more in (('pretraining', ()), ('posttraining', (None, None))):
    seen = []
    for seed, step in ((0, 0), (0, 1), (1, 0)):
      experiment = Experiment(make_config(store, seed=seed), tmp_path)
      params = experiment.init_params()
      phase = dataclasses.replace(getattr(experiment, kind)(*more), objective=noise)
      batch, draw = next(loop._inputs(phase, step))
      with pytest.raises(_Stop) as stop:
        phase.update(TrainState(params, None, np.int32(step)), None, batch, draw)
      found = params['item'], batch.rows.item_BxL, draw, stop.value.args
      seen.append([str(np.asarray(x).tolist()) for x in found])
    assert [len({*values}) for values in zip(*seen)] == [2, 3, 3, 3], kind


def test_a_phase_warms_up_over_its_own_steps(store, tmp_path):
  phase = Experiment(make_config(store), tmp_path).pretraining()
  optimizer = dataclasses.replace(phase.train.optimizer, learning_rate=0.1, warmup_epochs=1.0)
  phase = dataclasses.replace(phase, train=dataclasses.replace(phase.train, optimizer=optimizer))
  chain, x = phase.optimizer, jnp.ones(1)
  state, seen = chain.init(x), []
  for _ in range(phase.steps):
    update, state = chain.update(x, state, x)
    seen.append(-float(update[0]))
  epoch = phase.batches.steps_per_epoch
  np.testing.assert_allclose(seen, 0.1 * np.minimum(np.arange(3 * epoch) / epoch, 1), rtol=1e-4)
