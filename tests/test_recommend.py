"""Recommending for raw histories: the class, the command and the exported artifact say the same."""

import ast
import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lares_jax import export, metrics, recommend
from lares_jax import recommender as recommender_lib
from lares_jax.data.store import Store
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.files import write_json
from lares_jax.recommender import Recommender
from lares_jax.scoring import CatalogueConfig
from lares_jax.training.checkpoint import Checkpoints

HERE = [jax.export.default_export_platform()]
OPTIONS = dict(k=10, depth=None, exclude_history=True)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """What a run of no steps leaves: its workdir, store and recommender."""
  directory = tmp_path_factory.mktemp('run')
  store = tiny.make_store(directory / 'data')
  workdir = directory / 'workdir'
  config = tiny.make_config(directory / 'data')
  evaluate = dataclasses.replace(config.evaluate, noise_seed=5)  # whoever serves must take it, too
  experiment = Experiment.start(dataclasses.replace(config, evaluate=evaluate), str(workdir))
  params = experiment.init_params()
  checkpoints = Checkpoints(workdir, 'pretrain')
  checkpoints.save_best(0, params, {})
  checkpoints.close()
  rank_1xM = experiment.evaluator.ranks(params, 'test', (2,))
  write_json(workdir / 'result.json', {
    'fingerprint': store.fingerprint, 'phase': 'pretrain', 'depth': 2,
    'test_at_depth': metrics.summary(rank_1xM[0])})
  return types.SimpleNamespace(workdir=str(workdir), store=store, experiment=experiment,
                               rank_M=rank_1xM[0], recommender=Recommender.load(str(workdir)))


@pytest.fixture(scope='module')
def artifact(run, tmp_path_factory):
  """The exported directory, and its example imported."""
  directory = tmp_path_factory.mktemp('export') / 'artifact'
  export.export(run.workdir, str(directory), HERE, k=10)
  return types.SimpleNamespace(directory=directory, example=imported(directory))


def imported(directory):
  """The example of an exported directory, as a module."""
  spec = importlib.util.spec_from_file_location('artifact_example', directory / 'example.py')
  example = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(example)
  return example


def raw_histories(store: Store, split: str = 'test') -> tuple[list[list[str]], list[str]]:
  """Histories and targets of a split, as raw ids."""
  user_M, index_M = store.targets(split)
  return store.raw_histories(user_M, index_M), store.item_ids[store.items_N[index_M]].to_list()


def answers(recommender, text: bytes, batch: int = 7, **options) -> list[dict]:
  sink = io.StringIO()
  requests = recommend.asked(io.BytesIO(text), batch)
  recommend.run(recommender.recommend, requests, sink, **{**OPTIONS, **options})
  return [json.loads(line) for line in sink.getvalue().splitlines()]


def untrained(directory, **changes) -> tuple[Experiment, Recommender]:
  """A model of another config, as it was born."""
  tiny.make_store(directory / 'data')
  experiment = Experiment(tiny.make_config(directory / 'data', **changes), directory)
  return experiment, Recommender(experiment, experiment.init_params(), experiment.config.depth.mean)


def hits(recommender, store, **options) -> np.ndarray:
  histories, targets = raw_histories(store)
  out = recommender.recommend(histories, **options)
  return np.array([target in r.items for target, r in zip(targets, out, strict=True)])


@pytest.mark.parametrize('exclude_history', (False, True))
def test_recall_is_that_of_evaluation(run, exclude_history):
  rank_M = run.rank_M
  if exclude_history:
    evaluator = Experiment.load(run.workdir).evaluator
    rank_M = evaluator.ranks(run.recommender.params, 'test', (2,), history='removed')[0]
  hit_M = hits(run.recommender, run.store, exclude_history=exclude_history)
  assert hit_M.mean() == metrics.summary(rank_M)['recall@10']
  np.testing.assert_array_equal(hit_M, rank_M < 10)
  assert 0 < hit_M.mean() < 1, 'this data set no longer tells hits from misses: change its size'


@pytest.mark.parametrize('kind', ('bsarec', 'plain', 'cos', 'direction'))
def test_other_models_get_the_ranks_of_evaluation_too(tmp_path, kind):
  config = tiny.make_config('')
  changes = {
    'bsarec': dict(
      data=dataclasses.replace(config.data, path=str(tmp_path / 'data'), rows='prefix'),
      model=dataclasses.replace(config.model, backbone=dataclasses.replace(
        config.model.backbone, name='bsarec'))),
    'plain': dict(depth=dataclasses.replace(config.depth, mean=0)),
    **{name: dict(catalogue=CatalogueConfig(name, tau=0.1, tile=16, block=16))
       for name in ('cos', 'direction')},
  }[kind]
  experiment, recommender = untrained(tmp_path, **changes)
  rank_1xM = experiment.evaluator.ranks(recommender.params, 'test', (recommender.depth,))
  hit_M = hits(recommender, experiment.store, exclude_history=False)
  np.testing.assert_array_equal(hit_M, rank_1xM[0] < 10)
  if kind in ('cos', 'direction'):
    check_vectors(recommender)
  if kind == 'plain':
    with pytest.raises(InputError, match='from 0 to 0'):
      recommender.recommend([['i1']], depth=1)


@pytest.mark.parametrize('depth', (None, 0, 3))
@pytest.mark.parametrize('exclude_history', (False, True))
def test_class_command_and_artifact_agree(run, artifact, depth, exclude_history):
  histories = [*raw_histories(run.store)[0], [], ['nobody knows'], ['i3', 'nobody knows', 'i4']]
  options = dict(depth=depth, exclude_history=exclude_history)
  ours = run.recommender.recommend(histories, **options)
  text = ''.join(json.dumps({'user': n, 'history': h}) + '\n' for n, h in enumerate(histories))
  command = answers(run.recommender, text.encode(), batch=len(histories), **options)
  assert command == [{'user': n, **r._asdict()} for n, r in enumerate(ours)]
  theirs = artifact.example.recommend(
    histories, **({} if depth is None else {'depth': depth}), exclude_history=exclude_history)
  assert [[item for item, _ in row] for row in theirs] == [r.items for r in ours]
  for row, r in zip(theirs, ours, strict=True):
    np.testing.assert_allclose([score for _, score in row], r.scores, rtol=1e-4, atol=1e-5)


def test_depth_changes_the_scores(run):
  by_depth = [run.recommender.recommend([['i1', 'i2']], depth=d)[0].scores for d in (0, 1, 2)]
  assert len({tuple(scores) for scores in by_depth}) == 3, 'depth is not passed on'


def test_company_and_order_do_not_matter(run, monkeypatch):
  histories, _ = raw_histories(run.store)
  together = run.recommender.recommend(histories)
  monkeypatch.setattr(recommender_lib, '_CHUNK', 3)
  monkeypatch.setattr(recommender_lib, '_NARROW', 4)  # short and long ones apart
  monkeypatch.setattr(recommender_lib, '_ROOM', 32)  # of 4 items eight at a time, of 16 two
  alone = run.recommender.recommend(histories[::-1])[::-1]
  assert [r.items for r in together] == [r.items for r in alone]


def test_history_is_left_out_when_asked(run):
  histories = [[f'i{n}' for n in range(25)]]  # longer than what the model reads
  kept, = run.recommender.recommend(histories, k=100, exclude_history=False)
  left, = run.recommender.recommend(histories, k=100)
  assert len(kept.items) == 30 and len(set(kept.items)) == 30
  assert sorted(left.items) == sorted(f'i{n}' for n in range(25, 30))
  assert left.items == [item for item in kept.items if item in left.items]
  assert np.isfinite(left.scores).all() and sorted(left.scores, reverse=True) == left.scores


def test_without_a_known_item_there_is_popularity(run):
  empty, unknown, some = run.recommender.recommend([[], ['x', 'y', 'x'], ['x', 'i1']], k=4)
  count_V = run.store.train_count_V
  assert empty.source == unknown.source == 'popularity' and some.source == 'model'
  assert empty.items == run.store.item_ids[:4].to_list() == unknown.items
  assert empty.scores == sorted(count_V.tolist(), reverse=True)[:4]
  assert (empty.unknown, unknown.unknown, some.unknown) == ([], ['x', 'y'], ['x'])
  assert some.items == run.recommender.recommend([['i1']], k=4)[0].items


def test_unknown_items_take_no_room_in_what_is_read(run, artifact):
  read = [f'i{n}' for n in range(8)]  # as many as the model reads
  history = [*read, *(f'x{n}' for n in range(9))]
  ours, alone = run.recommender.recommend([history, read])
  assert ours.items == alone.items and ours.source == 'model' and len(ours.unknown) == 9
  theirs = artifact.example.recommend([history, read, *[[]] * 41])  # a size that is compiled
  assert [item for item, _ in theirs[0]] == [item for item, _ in theirs[1]] == alone.items


def check_vectors(recommender):
  """Inner products of user and item vectors are the scores, and a user without items has zeros."""
  histories = [['i1', 'i2'], [], ['i7']]
  user_MxD, item_VxD = recommender.user_vectors(histories), recommender.item_vectors()
  assert not user_MxD[1].any() and item_VxD.shape == (30, 8)
  score_MxV = user_MxD @ item_VxD.T / recommender.experiment.config.catalogue.tau
  out = recommender.recommend(histories, k=30, exclude_history=False)
  for m in (0, 2):
    column = [recommender.item_ids.index(item) for item in out[m].items]
    np.testing.assert_allclose(out[m].scores, score_MxV[m, column], rtol=1e-4, atol=1e-5)


def test_vectors_give_the_scores(run):
  check_vectors(run.recommender)
  assert run.recommender.user_vectors([]).shape == (0, 8)


@pytest.mark.parametrize('call, message', (
  (lambda r: r.recommend([['i1']], k=0), 'k=0'),
  (lambda r: r.recommend([['i1']], k=2.5), 'k=2.5'),
  (lambda r: r.recommend([5]), r'histories\[0\]=5'),
  (lambda r: r.recommend([['i1']], depth=65), 'depth=65: this model goes from 0 to 64'),
  (lambda r: r.recommend([['i1']], depth=-1), 'depth=-1'),
  (lambda r: r.recommend(['i1']), r'histories\[0\]'),
))
def test_bad_arguments_are_named(run, call, message):
  with pytest.raises(InputError, match=message):
    call(run.recommender)


def test_a_run_recommends_without_its_data_set(run, tmp_path):
  workdir = tmp_path / 'workdir'
  shutil.copytree(run.workdir, workdir)
  text = (workdir / 'config.json').read_text().replace(run.store.fingerprint, 'other')
  (workdir / 'config.json').write_text(text)
  with pytest.raises(InputError, match='item numbers'):
    Recommender.load(str(workdir))
  run.experiment.keep_items()
  shutil.copy(os.path.join(run.workdir, 'items.arrow'), workdir)
  histories, _ = raw_histories(run.store)
  ours = Recommender.load(str(workdir)).recommend(histories, k=3)
  assert ours == run.recommender.recommend(histories, k=3)
  with pytest.raises(InputError, match='item numbers'):
    _ = Experiment.load(str(workdir)).store
  (workdir / 'items.arrow').write_bytes(b'ARROW1')
  with pytest.raises(InputError, match=r'items\.arrow is damaged'):
    Recommender.load(str(workdir))


BAD = {
  b'': 'not JSON', b'{': 'not JSON', b'\xff\xfe': 'not UTF-8', b'3': 'neither a list',
  b'{"user": "u"}': 'neither a list', b'{"history": "i1"}': '"history" is not a list',
  b'{"history": [], "user": [1]}': '"user"', b'[1.5]': '"history"[0]', b'["i1", true]': '[1]',
  b'[null]': '[0]', b'[NaN]': 'NaN', b'[' * 100_000: 'too deeply', b'[1e999]': '[0]',
}


def test_a_mark_of_the_encoding_is_no_part_of_the_line(run):
  marked, plain = answers(run.recommender, b'\xef\xbb\xbf["i1"]\n["i1"]\n')
  assert marked == plain and 'items' in marked


def test_a_bad_line_gets_an_error_in_its_place(run):
  text = b''.join(line + b'\n["i1"]\n' for line in BAD)
  out = answers(run.recommender, text)
  assert len(out) == 2 * len(BAD)
  for n, (line, message) in enumerate(BAD.items()):
    error, answer = out[2 * n], out[2 * n + 1]
    assert error['line'] == 2 * n + 1 and message in error['error'], line[:40]
    assert answer['user'] is None and answer['items'] == out[1]['items']


def test_a_line_too_long_is_an_error_and_not_kept(run, monkeypatch):
  monkeypatch.setattr(recommend, 'MAX_LINE', 20)
  monkeypatch.setattr(recommend, '_MAX_BATCH_BYTES', 30)
  fits = b'["' + b'x' * 16 + b'"]'
  text = b'["i1"]\n' + b'[' + b' ' * 99 + b']\n' + fits + b'\n["i1"]\n' + b' ' * 21
  out = answers(run.recommender, text)
  assert ['error' in line for line in out] == [False, True, False, False, True]
  assert out[2]['unknown'] == ['x' * 16] and out[0]['items'] == out[3]['items']


_json = st.recursive(
  st.none() | st.booleans() | st.floats() | st.integers() | st.text()
  | st.sampled_from(['i1', 'i2', 'user', 'history']),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.sampled_from(['user', 'history', 'x']), inner), max_leaves=8)
_line = st.binary(max_size=30) | _json.map(lambda x: json.dumps(x).encode()) | st.lists(
  st.sampled_from(['i1', 'i2', 'x', '\ud800']), max_size=4).map(lambda x: json.dumps(x).encode())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(lines=st.lists(_line.map(lambda line: line.replace(b'\n', b' ')), max_size=4))
def test_no_line_ends_it(run, lines):
  out = answers(run.recommender, b''.join(line + b'\n' for line in lines), k=2)
  assert len(out) == len(lines)
  assert all(('error' in line) != ('items' in line) for line in out)


def test_command(run):
  """Through the front door, in a process of its own; its reader leaves before the end."""
  command = [sys.executable, '-m', 'lares_jax.recommend', f'--workdir={run.workdir}', '--k=3',
             '--depth=2', '--batch=1']
  with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE) as process:
    out = []
    for line in (b'{"user": 7, "history": ["i1", "z"]}\n', b'[]\n', b'!\n'):
      process.stdin.write(line)
      process.stdin.flush()
      out.append(json.loads(process.stdout.readline()))  # each line is answered at once
    process.stdout.close()
    process.stdin.write(b'[]\n[]\n')
    process.stdin.close()
    err = process.stderr.read().decode()
  assert process.returncode == 0 and 'Broken' not in err and 'Traceback' not in err, err
  first, second, third = out
  assert first['user'] == 7 and first['unknown'] == ['z'] and len(first['items']) == 3
  ours, = run.recommender.recommend([['i1']], k=3, depth=2)
  np.testing.assert_allclose(first['scores'], ours.scores, rtol=1e-4, atol=1e-5)
  assert second['source'] == 'popularity' and third['line'] == 3


def test_every_user_of_the_data_set_is_answered_by_all_that_they_have(run):
  sink, store = io.StringIO(), run.store
  requests = recommend.everyone(store, batch=7)
  recommend.run(run.recommender.recommend_numbers, requests, sink, store.num_users, **OPTIONS)
  out = [json.loads(line) for line in sink.getvalue().splitlines()]
  assert [line['user'] for line in out] == store.user_ids.to_list()
  whole = [store.item_ids[store.items_N[a:b]].to_list() for a, b in itertools.pairwise(store.offsets)]
  for line, history, answer in zip(out, whole, run.recommender.recommend(whole), strict=True):
    assert line['items'] == answer.items and not {*line['items']} & {*history}


def test_the_last_line_says_what_was_done(run):
  requests = recommend.asked(io.BytesIO(b'["i1"]\n[]\n!\n'), 2)
  done = recommend.run(run.recommender.recommend, requests, io.StringIO())
  assert done.endswith('3 lines to stdout: 1 from the model, 1 from popularity, 1 errors')


def test_artifact_is_whole_and_needs_nothing_of_the_package(artifact):
  names = {file.name for file in artifact.directory.iterdir()}
  assert names == {'program.bin', 'params.npz', 'items.json', 'config.json', 'metrics.json',
                   'about.json', 'example.py', 'SHA256SUMS'}
  sums = (artifact.directory / 'SHA256SUMS').read_text().splitlines()
  assert {line.split('  ')[1] for line in sums} == names - {'SHA256SUMS'}
  for line in sums:
    digest, name = line.split('  ')
    assert hashlib.sha256((artifact.directory / name).read_bytes()).hexdigest() == digest, name
  source = (artifact.directory / 'example.py').read_text()
  imported = {a.name if isinstance(n, ast.Import) else n.module for n in ast.walk(ast.parse(source))
              if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}
  assert imported <= {'json', 'pathlib', 'sys', 'jax', 'numpy'}
  assert len(source.splitlines()) <= 40
  item = json.loads((artifact.directory / 'items.json').read_text())[0]
  out = subprocess.run([sys.executable, 'example.py', item], cwd=artifact.directory, text=True,
                       capture_output=True, timeout=120)
  assert out.returncode == 0 and item not in out.stdout.split() and out.stdout, out.stderr[-800:]


@pytest.mark.parametrize('table, kind', (('bfloat16', np.uint16), ('int8', np.int8)))
def test_narrow_tables_are_near(run, table, kind):
  flat = export.flat_params(run.recommender, table)
  assert flat['item'].dtype == kind
  kept, full = np.asarray(export.model_params(flat)['item']), run.recommender.item_vectors()
  step_Vx1 = np.abs(full).max(axis=1, keepdims=True) / 127
  assert (np.abs(kept - full) <= 0.51 * step_Vx1).all() and (kept != full).any()


def test_a_narrow_table_says_what_it_costs(run, tmp_path, monkeypatch):
  blank = lambda recommender, table: {
    name: x * (name != 'item') for name, x in export_flat(recommender, table).items()}
  export_flat = export.flat_params
  monkeypatch.setattr(export, 'flat_params', blank)  # so that the loss cannot be overlooked
  export.export(run.workdir, str(tmp_path / 'out'), HERE, k=30, table='int8')
  report = json.loads((tmp_path / 'out' / 'metrics.json').read_text())['test_at_depth']
  assert report['float32'] == metrics.summary(run.rank_M)
  assert report['int8']['mrr'] == 1 / (29 / 2 + 1), 'with all items alike, half of the others tie'
  for name, change in report['change'].items():
    assert change == report['int8'][name] - report['float32'][name]
  example = imported(tmp_path / 'out')
  scores = [score for _, score in example.recommend([['i1']])[0]]
  with pytest.raises(ValueError, match='depth 65: from 0 to 64'):
    example.recommend([['i1']], depth=65)
  assert scores == [0.0] * 29, 'an item table of int8 is widened by the program'


@pytest.mark.parametrize('options, message', (
  (dict(platforms=['gpu']), '--platforms=gpu'), (dict(platforms=[]), '--platforms'),
  (dict(k=31), '--k=31: from 1 to the 30'),
))
def test_export_refuses_and_leaves_nothing(run, tmp_path, options, message):
  with pytest.raises(InputError, match=message):
    export.export(run.workdir, str(tmp_path / 'out'), **options)
  assert not list(tmp_path.iterdir())


def test_export_never_overwrites(run, tmp_path):
  (tmp_path / 'mine').write_text('dear')
  with pytest.raises(InputError, match='exists'):
    export.export(run.workdir, str(tmp_path))
  assert [file.name for file in tmp_path.iterdir()] == ['mine']


def test_importing_the_package_is_light():
  code = 'import sys, lares_jax; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], check=False).returncode == 0, (
    'import lares_jax imports jax: keep the import inside __getattr__')


def test_the_phase_and_depth_that_the_result_chose_recommend(run, tmp_path):
  shutil.copytree(run.workdir, tmp_path / 'run')
  params = jax.tree.map(lambda x: x + 1, run.recommender.params)
  with contextlib.closing(Checkpoints(tmp_path / 'run', 'posttrain')) as checkpoints:
    checkpoints.save_best(0, params, {})
  result = run.experiment.result()
  write_json(tmp_path / 'run' / 'result.json', {**result, 'phase': 'posttrain', 'depth': 1})
  chosen = Recommender.load(str(tmp_path / 'run'))
  np.testing.assert_array_equal(chosen.params['item'], params['item'])
  assert chosen.depth == 1


@pytest.mark.parametrize('times', (False, True))
def test_who_trained_with_times_is_told_that_raw_histories_have_none(times, capsys):
  backbone = types.SimpleNamespace(times=times)
  config = types.SimpleNamespace(model=types.SimpleNamespace(backbone=backbone))
  Recommender.of(types.SimpleNamespace(
    config=config, workdir='runs/mine', result=lambda: {'phase': 'pretrain', 'depth': 2},
    best=lambda phase: ({}, {}, 0)))
  assert ('runs/mine was trained with times' in capsys.readouterr().err) == times


def test_a_run_of_many_devices_recommends_on_one(run, tmp_path):
  shutil.copytree(run.workdir, tmp_path / 'run')
  content = json.loads((tmp_path / 'run' / 'config.json').read_text())
  content['config']['mesh'] = {'data': 2, 'catalogue': 4}
  write_json(tmp_path / 'run' / 'config.json', content)
  here = Recommender.load(str(tmp_path / 'run')).recommend([['i1']])
  assert here == run.recommender.recommend([['i1']])


def test_the_command_answers_all_users_as_asked(run):
  out = subprocess.run(
    [sys.executable, '-m', 'lares_jax.recommend', f'--workdir={run.workdir}', '--k=3', '--depth=1',
     '--all_users', '--noexclude_history'], text=True, capture_output=True, check=True)
  store, lines = run.store, [json.loads(line) for line in out.stdout.splitlines()]
  whole = [store.item_ids[store.items_N[a:b]].to_list() for a, b in itertools.pairwise(store.offsets)]
  wanted = run.recommender.recommend(whole, k=3, depth=1, exclude_history=False)
  assert [line['user'] for line in lines] == store.user_ids.to_list()
  assert [line['items'] for line in lines] == [r.items for r in wanted]
