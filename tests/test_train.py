"""Whole runs on tiny data: one program, exact resume, faults, and what is left on disk."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from tiny import end, latest, make_config, make_store

from lares_jax import comparison, files, metrics, run, selection
from lares_jax import config as config_lib
from lares_jax.config import SelectConfig
from lares_jax.data import text
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.training import loop
from lares_jax.training.log import Log
from lares_jax.training.state import Phase

ALL = 'pretrain,select,posttrain'
ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return make_store(tmp_path_factory.mktemp('store')).directory


def _lines(workdir):
  """metrics.jsonl, but for what depends on the clock."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').open())
  return [{k: v for k, v in line.items() if k != 'targets_per_s'} for line in lines]


@pytest.fixture(scope='module')
def finished(store, tmp_path_factory):
  """An uninterrupted run of all three phases."""
  experiment = Experiment.start(make_config(store, phases=ALL), str(tmp_path_factory.mktemp('run')))
  run.train(experiment)
  return experiment


def test_a_run_leaves_what_it_promises(finished):
  result = finished.result()
  assert set(result['test']) == {'1', '2', '4'}
  assert result['depth'] in (1, 2, 4)
  assert result['fingerprint'] == finished.store.fingerprint and result['seed'] == 0
  store = finished.store
  assert (finished.workdir / 'items.arrow').read_bytes() == pathlib.Path(
    store.directory, 'items.arrow').read_bytes(), 'recommend must do without the data set'
  best = max(result['validation'].values(), key=lambda m: m['ndcg@10'])
  assert result['validation'][str(result['depth'])] == best, 'depth is chosen on validation'
  lines = [json.loads(line) for line in (finished.workdir / 'metrics.jsonl').open()]
  kinds = {(line['phase'], line['kind']) for line in lines}
  assert kinds == {(p, k) for p in ('pretrain', 'posttrain') for k in ('train', 'validation')}
  first = next(line for line in lines if line['phase'] == 'posttrain')
  assert first['kind'] == 'validation' and first['step'] == 0, 'phase two is validated before it starts'
  for key in ('loss', 'cross_entropy', 'trajectory', 'step_alignment', 'grad_norm', 'depth',
              'targets_per_s'):
    assert any(key in line for line in lines if line['phase'] == 'pretrain'), key
  for key in ('reward', 'equal_groups', 'kl', 'advantage_spread'):
    assert any(key in line for line in lines if line['phase'] == 'posttrain'), key
  again = Experiment.load(str(finished.workdir))
  assert again.config == finished.config


@pytest.mark.parametrize('better', ('pretrain', 'posttrain'))
def test_the_phase_that_is_better_on_validation_is_tested(finished, tmp_path, monkeypatch, better):
  shutil.copytree(finished.workdir, tmp_path / 'run')
  best = Experiment.best
  monkeypatch.setattr(Experiment, 'best', lambda experiment, phase: (
    best(experiment, phase)[0], {'ndcg@10': 0.2 if phase == better else 0.1}, 3))
  result = run.finish(Experiment.start(finished.config, str(tmp_path / 'run')))
  assert result['phase'] == better and [*result['validation_by_phase']] == ['pretrain', 'posttrain']


def test_a_selection_of_other_settings_is_not_taken_for_this_one(finished, tmp_path):
  kept_N = selection.load(finished)
  told = json.loads((finished.workdir / 'prompts.json').read_text())
  assert kept_N.sum() == told['kept'] and len(kept_N) == len(finished.store.items_N)
  other = dataclasses.replace(finished.config, select=SelectConfig(top=3))
  with pytest.raises(InputError, match=r'prompts\.npz: made with another select\.top'):
    selection.load(dataclasses.replace(finished, config=other))
  elsewhere = dataclasses.replace(finished, workdir=tmp_path)
  with pytest.raises(InputError, match=r'prompts\.npz is missing'):
    selection.load(elsewhere)
  all_count = dataclasses.replace(finished.config, phases='pretrain,posttrain')
  assert selection.load(dataclasses.replace(elsewhere, config=all_count)) is None


def test_a_selection_can_be_made_alone_from_another_run(finished, store, tmp_path):
  posttrain = dataclasses.replace(finished.config.posttrain, start=str(finished.workdir))
  config = make_config(store, phases='select', posttrain=posttrain)
  assert run.train(Experiment.start(config, str(tmp_path))) == {}
  np.testing.assert_array_equal(selection.load(Experiment(config, tmp_path)), selection.load(finished))


def test_a_phase_that_is_not_asked_for_any_more_is_not_in_the_result(finished, tmp_path):
  shutil.copytree(finished.workdir, tmp_path / 'run')
  config = dataclasses.replace(finished.config, phases='pretrain')
  result = run.train(Experiment.start(config, str(tmp_path / 'run')))
  assert result['phase'] == 'pretrain' and [*result['validation_by_phase']] == ['pretrain']


def test_a_run_is_evaluated_from_anywhere(finished, tmp_path):
  """Also where a relative path to its log leads nowhere."""
  content = json.loads((finished.workdir / 'config.json').read_text())
  content['config']['data']['path'] = 'not/there/log.csv'
  shutil.copytree(finished.workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(content))
  out = subprocess.run(
    [sys.executable, '-m', 'lares_jax.evaluate', '--workdir=run', '--depths=1,2', '--draws=2'],
    cwd=tmp_path, env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path])}, text=True,
    capture_output=True, timeout=120)
  assert out.returncode == 0, out.stderr[-800:]
  said = json.loads(out.stdout.splitlines()[-1])
  assert said['metrics']['2'] == pytest.approx(finished.result()['test']['2'])
  assert said['history'] == 'ranked' and set(said['spread_over_draws']) == {'1', '2'}


def test_a_run_whose_data_set_changed_is_refused(finished, tmp_path):
  content = json.loads((finished.workdir / 'config.json').read_text())
  content['data'] = 'another'
  (tmp_path / 'config.json').write_text(json.dumps(content))
  with pytest.raises(InputError, match='not the data set'):
    _ = Experiment.load(str(tmp_path)).store


@pytest.mark.parametrize('phase', ('pretrain', 'posttrain'))
def test_a_phase_starts_from_the_best_of_another_run(finished, store, tmp_path, phase):
  config = make_config(store, phases=phase)
  part = dataclasses.replace(getattr(config, phase), start=str(finished.workdir))
  experiment = Experiment(dataclasses.replace(config, **{phase: part}), tmp_path)
  theirs = jax.tree.leaves(finished.best('pretrain')[0])
  ours = experiment.init_params() if phase == 'pretrain' else experiment.reference()
  for a, b in zip(theirs, jax.tree.leaves(ours), strict=True):
    np.testing.assert_array_equal(a, b)
  started = experiment.pretraining() if phase == 'pretrain' else experiment.posttraining(ours, None)
  assert started.validate_first, 'training must beat its start'
  backbone = dataclasses.replace(config.model.backbone, inner=24)
  model = dataclasses.replace(config.model, backbone=backbone)
  wider = Experiment(dataclasses.replace(experiment.config, model=model), tmp_path)
  with pytest.raises(InputError, match=f'{phase}.start=.* is another model: model.backbone.inner'):
    wider.init_params() if phase == 'pretrain' else wider.reference()
  (tmp_path / 'other').mkdir()
  other = make_store(tmp_path / 'other', seed=5).directory
  moved = dataclasses.replace(experiment.config, data=make_config(other).data)
  strange = Experiment(moved, tmp_path)
  with pytest.raises(InputError, match=f'{phase}.start=.* was trained on another data set'):
    strange.init_params() if phase == 'pretrain' else strange.reference()
  shutil.copytree(finished.workdir, tmp_path / 'training', ignore=shutil.ignore_patterns('result.json'))
  part = dataclasses.replace(part, start=str(tmp_path / 'training'))
  early = Experiment(dataclasses.replace(config, **{phase: part}), tmp_path)
  with pytest.raises(InputError, match=r'no result\.json; the run has not finished'):
    early.init_params() if phase == 'pretrain' else early.reference()


def test_a_phase_does_not_start_from_a_run_of_other_text_embeddings(tmp_path):
  store = make_store(tmp_path / 'data')
  config = make_config(store.directory)
  fusion = dataclasses.replace(config.model.fusion, name='tedrec', text_width=3)
  data = dataclasses.replace(config.data, rows='prefix')
  config = dataclasses.replace(
    config, data=data, model=dataclasses.replace(config.model, fusion=fusion))
  text.write(store, ['a'] * 30, lambda texts: np.ones((len(texts), 3), np.float32))
  Experiment.start(config, str(tmp_path / 'first'))
  text.write(store, ['a'] * 30, lambda texts: np.zeros((len(texts), 3), np.float32))
  part = dataclasses.replace(config.pretrain, start=str(tmp_path / 'first'))
  later = Experiment(dataclasses.replace(config, pretrain=part), tmp_path / 'later')
  with pytest.raises(InputError, match=r'pretrain\.start=.* was trained with another text\.npy'):
    later.init_params()


class _Stop(Exception):
  pass


@pytest.mark.parametrize('phase, at, every, saved', (
  ('pretrain', 6, 0, 4), ('pretrain', 9, 3, 6), ('posttrain', 5, 0, 0), ('posttrain', 7, 0, 4)))
def test_a_killed_run_ends_with_the_same_bits(
    finished, store, tmp_path, monkeypatch, phase, at, every, saved):
  """Killed without warning after `at` readings of metrics; the same command goes on from `saved`."""
  config = make_config(store, phases=ALL)
  train = dataclasses.replace(config.pretrain.train, save_every_steps=every)
  config = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, train=train))
  experiment = lambda: Experiment.start(config, str(tmp_path))
  count, settle = 0, loop._settle

  def deadly(*args):
    nonlocal count
    count += args[4].name == phase
    if count > at:
      raise _Stop
    return settle(*args)

  with monkeypatch.context() as patch:
    patch.setattr(loop, '_settle', deadly)
    with pytest.raises(_Stop):
      run.train(experiment())
  assert loop.Checkpoints(tmp_path, phase).latest_step == saved
  assert (tmp_path / 'items.arrow').exists(), 'whose checkpoints are these items of?'
  run.train(experiment())
  for phase in ('pretrain', 'posttrain'):
    for a, b in zip(end(finished, phase), end(experiment(), phase), strict=True):
      np.testing.assert_array_equal(a, b)
  if not every:  # each save writes a line
    assert _lines(tmp_path) == _lines(finished.workdir), 'metrics lines differ, are missing or repeated'


@pytest.mark.parametrize('saved', (False, True))
def test_what_was_logged_before_anything_was_saved_is_taken_out(tmp_path, saved):
  """Killed between the first validation and its checkpoint, a phase validates again."""
  log = Log(tmp_path, 'posttrain', 0, 10, saved=False)
  log.write(0, 'validation', {'ndcg@10': 0.5})
  log.close()
  Log(tmp_path, 'posttrain', 0, 10, saved=saved).close()
  assert len((tmp_path / 'metrics.jsonl').read_text().splitlines()) == saved


def test_a_signal_saves_and_says_how_it_ended(store, tmp_path, monkeypatch):
  experiment = Experiment.start(make_config(store), str(tmp_path))
  settle, count = loop._settle, 0

  def signalled(*args):
    nonlocal count
    count += 1
    if count == 3:
      os.kill(os.getpid(), signal.SIGTERM)
    return settle(*args)

  monkeypatch.setattr(loop, '_settle', signalled)
  with pytest.raises(loop.Interrupted) as stop:
    run.train(experiment)
  assert stop.value.code == 143
  assert loop.Checkpoints(tmp_path, 'pretrain').latest_step in (3, 4)

  close = loop.Checkpoints.close
  monkeypatch.setattr(loop, '_settle', settle)
  monkeypatch.setattr(loop.Checkpoints, 'close', lambda self: (
    os.kill(os.getpid(), signal.SIGINT), close(self)))
  with pytest.raises(loop.Interrupted) as stop:  # one that comes while the last of a phase is saved
    run.train(experiment)
  assert stop.value.code == 130


def test_a_second_ctrl_c_stops_at_once():
  with contextlib.closing(loop.Signals()) as signals:
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.caught == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_patience_ends_a_run_and_it_stays_ended(store, tmp_path):
  """And the best is of its evaluation: here the third of five, of two without a better one."""
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


@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')  # of its threads
def test_a_damaged_checkpoint_and_one_that_cannot_be_written_are_named(
    finished, tmp_path, monkeypatch):
  shutil.copytree(finished.workdir, tmp_path / 'run')
  experiment = Experiment.load(str(tmp_path / 'run'))
  for file in experiment.workdir.glob('checkpoints/pretrain/**/d/*'):
    os.truncate(file, 10)
  with pytest.raises(InputError, match=r'pretrain/best/\d+ is damaged \(.*pretrain: the phase then'):
    experiment.best('pretrain')
  with pytest.raises(InputError, match=r'pretrain/latest/\d+ is damaged'):
    run.train(experiment)
  checkpoints = loop.Checkpoints(tmp_path, 'pretrain')

  def full(*_):
    raise ValueError('No space left on device')

  monkeypatch.setattr(checkpoints._best, 'wait_until_finished', full)
  with pytest.raises(InputError, match=r'pretrain: not saved.*No space left'):
    checkpoints.save(1, {}, {}, {})
  monkeypatch.undo()
  checkpoints.close()


@pytest.mark.parametrize('name, content, read', (
  ('config.json', '[]', lambda e: Experiment.load(str(e.workdir))),
  ('config.json', '{"config": {}}', lambda e: Experiment.load(str(e.workdir))),
  ('result.json', '[]', comparison.finished),
  ('result.json', '{}', lambda e: e.result()),
  ('ranks.npz', 'junk', lambda e: files.read_arrays(e.workdir / 'ranks.npz')),
  ('ranks.npz', '', lambda e: files.read_arrays(e.workdir / 'ranks.npz')),
  ('checkpoints/pretrain/best/{}/metrics/metrics', '', lambda e: e.best('pretrain'))))
def test_a_damaged_file_of_a_run_is_named(finished, tmp_path, name, content, read):
  shutil.copytree(finished.workdir, tmp_path / 'run')
  experiment = Experiment.load(str(tmp_path / 'run'))
  name = name.format(experiment.best('pretrain')[2])
  assert (experiment.workdir / name).exists()
  (experiment.workdir / name).write_text(content)
  with pytest.raises(InputError, match=f'(?s){name.split("/")[0]}.* is damaged'):
    read(experiment)


def test_a_run_that_is_under_way_is_left_alone(finished, store, tmp_path):
  Experiment.start(make_config(store), str(tmp_path))
  before = (tmp_path / 'config.json').read_bytes()
  with files.held(tmp_path):  # with nothing saved yet
    Experiment.start(make_config(store), str(tmp_path))
    with pytest.raises(InputError, match='another process trains here'):
      Experiment.start(make_config(store, seed=1), str(tmp_path))
  assert (tmp_path / 'config.json').read_bytes() == before
  with files.held(finished.workdir), pytest.raises(InputError, match='another process trains here'):
    run.train(finished)
  with files.held(finished.workdir):
    pass  # free again


def test_a_workdir_of_another_config_or_data_set_is_refused(store, tmp_path):
  Experiment.start(make_config(store, seed=1), str(tmp_path))  # nothing saved: it claims nothing
  Experiment.start(make_config(store), str(tmp_path))
  (tmp_path / 'checkpoints' / 'pretrain' / 'latest' / '3').mkdir(parents=True)
  with pytest.raises(InputError, match=r'seed \(0 there, 1 here\)'):
    Experiment.start(make_config(store, seed=1), str(tmp_path))
  other = make_store(tmp_path / 'other', seed=1).directory
  with pytest.raises(InputError, match='the data set'):
    Experiment.start(make_config(other), str(tmp_path))
  later = dataclasses.replace(make_config(store).posttrain, dropout=0.3)
  Experiment.start(make_config(store, posttrain=later), str(tmp_path))  # phase two is still to come
  Experiment.start(make_config(store, posttrain=later, phases=ALL), str(tmp_path))  # and comes
  with pytest.raises(InputError, match=r'posttrain\.dropout \(0\.3 there'):
    Experiment.start(make_config(store, phases=ALL), str(tmp_path))
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(InputError, match=r'config\.json is damaged'):
    Experiment.start(make_config(store), str(tmp_path))
  (tmp_path / 'config.json').unlink()
  with pytest.raises(InputError, match=r'config\.json is missing beside a trained run'):
    Experiment.start(make_config(store), str(tmp_path))


def _purged(directory):
  """The step of each start that a directory of TensorBoard's tells."""
  steps = []
  for file in sorted(directory.iterdir()):
    data = file.read_bytes()
    while data:  # length, its checksum, the event, its checksum
      size = int.from_bytes(data[:8], 'little')
      event = Event.FromString(data[12:12 + size])
      if event.HasField('session_log'):
        steps.append(event.step)
      data = data[16 + size:]
  return sorted(steps)


def test_a_restart_takes_out_the_lines_that_a_kill_undid(tmp_path):
  """Here the one at step 6; no metric may hide the counter that tells."""
  for start, steps in ((0, (2, 4, 6)), (4, (6, 8))):
    log = Log(tmp_path, 'pretrain', start, 10, start > 0)
    for step in steps:
      log.add({'loss': 1.0, 'targets': 5.0})
      log.flush(step)
    log.close()
  lines = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').open()]
  assert [line['step'] for line in lines] == [2, 4, 6, 8]
  # TensorBoard takes points out from there on. (Of two starts in one second it keeps the later file.)
  assert _purged(tmp_path / 'tensorboard' / 'pretrain')[-1] == 5
  log = Log(tmp_path, 'pretrain', 8, 10, True)
  with pytest.raises(AssertionError):
    log.write(9, 'validation', {'step': 3})
  log.close()


def test_a_misspelt_key_names_the_nearest():
  values = config_lib.defaults()
  values.unlock()
  values.pretrain.train.epoch = 3
  with pytest.raises(InputError, match=r'train\.epoch does not exist; did you mean epochs'):
    config_lib.typed(values)
  values = config_lib.defaults()
  with values.ignore_type():
    values.seed = 'one'
  with pytest.raises(InputError, match=r'config\.seed'):
    config_lib.typed(values)
  assert config_lib.typed(config_lib.defaults()) == config_lib.Config()


@pytest.mark.parametrize('key, value, said', (
  ('seed', -1, r'config\.seed=-1: use 0 or more'),
  ('evaluate.depths', (1, -2), r'config\.evaluate\.depths\[1\]=-2: use 0 or more'),
  ('evaluate.depths', (1, 'two'), r"config\.evaluate\.depths\[1\]='two' is not of type int"),
  ('evaluate.depths', (), r'evaluate\.depths=\(\): use at least one'),
  ('depth.mean', 65, r'depth\.mean=65, .*: this model goes from 0 to 64'),
  ('pretrain.train.log_every_steps', 0, 'log_every_steps=0: use more than 0'),
  ('catalogue.tau', 0.0, r'config\.catalogue\.tau=0\.0: use more than 0'),
  ('model.backbone.width', 0, r'config\.model\.backbone\.width=0: use more than 0'),
  ('model.core_blocks', 0, r'core_blocks=0: use more than 0'),
  ('catalogue.block', 0, r'config\.catalogue\.block=0: use more than 0'),
  ('pretrain.train.ema', 1.0, r'train\.ema=1\.0: use less than 1'),
  ('pretrain.train.optimizer.learning_rate', float('nan'), 'learning_rate=nan: use a finite number'),
  ('model.pre_dropout', 1.0, 'use at most 0.95'),
  ('model.core_layers', 0, 'set depth.mean=0'),
  ('depth.mean', -1, r'config\.depth\.mean=-1: use 0 or more'),
  ('catalogue.dtype', 'bf16', 'use one of float32, bfloat16'),
  ('model.backbone.dtype', 'int32', 'use one of float32, bfloat16'),
))
def test_values_that_cannot_be_are_refused(key, value, said):
  values = config_lib.defaults()
  with values.ignore_type():
    values.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=said):
    config_lib.typed(values)


def test_settings_that_do_not_go_together_are_refused(store):
  config = make_config(store)
  with pytest.raises(InputError, match='positions=8 must reach'):
    dataclasses.replace(config, data=dataclasses.replace(config.data, max_history=12))
  bsarec = dataclasses.replace(config.model.backbone, name='bsarec')
  with pytest.raises(InputError, match='rows=prefix'):
    dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=bsarec))
  gbce = dataclasses.replace(config.catalogue, loss='gbce')
  with pytest.raises(InputError, match=r'catalogue\.loss=gbce: gives no probabilities'):
    dataclasses.replace(config, catalogue=gbce, phases='pretrain,posttrain')


def test_training_validates_on_as_many_users_as_it_is_told(finished):
  params, _, _ = finished.best('pretrain')
  rank_M, = finished.evaluator.ranks(params, 'valid', (2,))
  evaluate = dataclasses.replace(finished.config.evaluate, users=7)
  some = dataclasses.replace(finished, config=dataclasses.replace(finished.config, evaluate=evaluate))
  chosen = np.arange(7) * (len(rank_M) - 1) // 6
  assert some.validate(params) == metrics.summary(rank_M[chosen]) != finished.validate(params)
  assert finished.validate(params) == metrics.summary(rank_M)


def test_evaluation_does_not_depend_on_the_batch(finished):
  params, _, _ = finished.best('pretrain')
  ranks = [dataclasses.replace(
    finished.evaluator, config=dataclasses.replace(finished.config.evaluate, batch_rows=rows)
    ).ranks(params, 'test', (1, 4)) for rows in (4, 7)]
  np.testing.assert_array_equal(*ranks)
  draws = [finished.evaluator.ranks(params, 'test', (1,), draw=d) for d in (0, 1)]
  assert (draws[0] != draws[1]).any(), 'another draw of the noise is another result'
