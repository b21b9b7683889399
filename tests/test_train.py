"""Whole runs on tiny data: exact resume, starts from one another, and what is left on disk."""

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
from tiny import end, make_config, make_store

from lares_jax import comparison, files, metrics, run, selection
from lares_jax.config import SelectConfig
from lares_jax.data import text
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.training import loop
from lares_jax.training.evaluation import Evaluator

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


@pytest.mark.parametrize('asked, history, split', (
  ([], 'ranked', 'test'), (['--exclude_history', '--split=valid'], 'removed', 'valid')))
def test_a_run_is_evaluated_from_anywhere(finished, tmp_path, asked, history, split):
  """Also where a relative path to its log leads nowhere; by the history, split and phase it names."""
  phase = finished.result()['phase']
  if asked:
    phase = 'posttrain' if phase == 'pretrain' else 'pretrain'
    asked = [*asked, f'--phase={phase}']
  content = json.loads((finished.workdir / 'config.json').read_text())
  content['config']['data']['path'] = 'not/there/log.csv'
  shutil.copytree(finished.workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(content))
  out = subprocess.run(
    [sys.executable, '-m', 'lares_jax.evaluate', '--workdir=run', '--depths=1,2', '--draws=2', *asked],
    cwd=tmp_path, env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(ROOT), *sys.path])}, text=True,
    capture_output=True, timeout=120)
  assert out.returncode == 0, out.stderr[-800:]
  said = json.loads(out.stdout.splitlines()[-1])
  params, _, step = finished.best(phase)
  assert (said['phase'], said['step'], said['split']) == (phase, step, split)
  assert said['chosen_depth'] == np.load(finished.workdir / 'ranks.npz')[f'{phase}_depth']
  rank_2x2xM = [finished.evaluator.ranks(params, split, (1, 2), history=history, draw=draw)
                for draw in (0, 1)]
  for n, depth in enumerate(('1', '2')):
    first, second = (metrics.summary(rank_2xM[n]) for rank_2xM in rank_2x2xM)
    assert said['metrics'][depth] == pytest.approx(first)
    spread = {name: np.std([first[name], second[name]], ddof=1) for name in first}
    assert said['spread_over_draws'][depth] == pytest.approx(spread, abs=1e-9)
  whole = finished.result()['test']['2']
  assert (said['metrics']['2'] == pytest.approx(whole)) == (history == 'ranked')
  assert said['history'] == history and f'{split}, history {history}' in out.stdout


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


@pytest.mark.parametrize('name', ('fmlp', 'transformer'))
def test_a_filter_does_not_start_from_one_of_another_length(store, tmp_path, name):
  """A filter of 8 positions is none of 6, and would be cut; without one any length will do."""
  config = make_config(store)
  backbone = dataclasses.replace(config.model.backbone, name=name)
  config = dataclasses.replace(
    config, data=dataclasses.replace(config.data, rows='prefix'),
    model=dataclasses.replace(config.model, backbone=backbone))
  Experiment.start(config, str(tmp_path / 'first'))
  part = dataclasses.replace(config.pretrain, start=str(tmp_path / 'first'))
  shorter = dataclasses.replace(
    config, pretrain=part, data=dataclasses.replace(config.data, max_history=6))
  later = Experiment(shorter, tmp_path / 'later')
  said = r'is another model: row length \(8 there, 6 here\)' if name == 'fmlp' else r'no result\.json'
  with pytest.raises(InputError, match=said):
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


def test_phase_two_trains_on_prompts_that_any_noisy_pass_ranks_within_top(
    finished, store, tmp_path, monkeypatch):
  posttrain = finished.config.posttrain
  posttrain = dataclasses.replace(
    posttrain, start=str(finished.workdir), dropout=0.3, outer_dropout=0.4,
    train=dataclasses.replace(posttrain.train, batch_rows=1))
  experiment = Experiment(make_config(
    store, phases='select,posttrain', posttrain=posttrain, select=SelectConfig(4, 2)), tmp_path)
  begun = []
  monkeypatch.setattr(loop, 'run', lambda phase, start, *_: begun.append((phase, start())))
  monkeypatch.setattr(run, 'finish', lambda experiment: {})
  run.train(experiment)
  params = finished.best('pretrain')[0]
  rank_2xM = np.concatenate([
    experiment.evaluator.ranks(params, 'train', (2,), draw=draw) for draw in (1, 2)])
  wanted_M = (rank_2xM < 4).any(0)
  assert (wanted_M.sum() > (rank_2xM < 4).sum(1)).all() and (rank_2xM == 4).any(), 'tells nothing'
  kept_N, (_, end_M) = selection.load(experiment), experiment.store.targets('train')
  np.testing.assert_array_equal(kept_N[end_M], wanted_M)
  (phase, start), = begun
  for of_phase in (start, phase.reference):
    jax.tree.map(np.testing.assert_array_equal, of_phase, params)
  model, batches = phase.objective.model.config, phase.batches
  assert (model.embed_dropout, model.pre_dropout, model.core_dropout) == (0.4, 0.4, 0.3)
  scored = sum(batches.batch(step).scored_BxA.sum() for step in range(batches.steps_per_epoch))
  assert scored == wanted_M.sum() == json.loads((tmp_path / 'prompts.json').read_text())['kept']


@pytest.mark.parametrize('initial, draws', (('normal', [1, 2, 3]), ('normal_zero', [1]), ('zero', [1])))
def test_selection_reads_a_state_without_noise_once(store, tmp_path, monkeypatch, initial, draws):
  """Other passes would be the same; and none is of the draw that evaluation has."""
  seen = []

  def ranks(evaluator, params, split, depths, draw):
    seen.append(draw)
    return np.zeros((1, len(evaluator.store.targets(split)[0])))

  monkeypatch.setattr(Evaluator, 'ranks', ranks)
  monkeypatch.setattr(Experiment, 'reference', lambda experiment: None)
  model = dataclasses.replace(make_config(store).model, initial=initial)
  selection.select(Experiment(make_config(store, model=model), tmp_path))
  assert seen == draws


def test_a_start_of_another_scale_is_another_model_and_of_another_dropout_is_not(
    finished, store, tmp_path):
  config = make_config(store)
  pretrain = dataclasses.replace(config.pretrain, start=str(finished.workdir))
  of = lambda **changes: Experiment(dataclasses.replace(config, pretrain=pretrain, **changes), tmp_path)
  of(model=dataclasses.replace(config.model, pre_dropout=0.4)).init_params()
  for name, value in (('tau', 0.5), ('similarity', 'cos')):
    other = of(catalogue=dataclasses.replace(config.catalogue, **{name: value}))
    with pytest.raises(InputError, match=f'is another model: catalogue.{name}'):
      other.init_params()
