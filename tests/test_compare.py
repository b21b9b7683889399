"""A comparison: what is trained, what is left alone, and a table that follows from ranks on disk."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from tiny import make_config, make_store

from configs import compare_beauty, compare_ml100k, compare_rows, depth_study
from lares_jax import compare, comparison, metrics, run, significance
from lares_jax import config as config_lib
from lares_jax.comparison import Plan, Row
from lares_jax.config import Config
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.files import write_arrays, write_json
from lares_jax.model.depth import DepthConfig
from lares_jax.prepare import PrepareOptions
from lares_jax.training import loop
from lares_jax.training.evaluation import EvaluationConfig
from lares_jax.training.log import training_seconds

ALL = 'pretrain,select,posttrain'
RESULTS = pathlib.Path(__file__).parents[1] / 'configs' / 'results'


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return make_store(tmp_path_factory.mktemp('store'))


def _plan(store, **changes) -> Plan:
  """The plain backbone, LARES in both phases, and its phase one by itself."""
  config = make_config(store.directory, phases=ALL)
  plain = dataclasses.replace(config, phases='pretrain', depth=DepthConfig(mean=0))
  runs = {'plain': Row(plain), 'lares': Row(config), 'phase_one': Row(of='lares', phase='pretrain'),
          'phase_two': Row(of='lares', phase='posttrain', against='phase_one')}
  return dataclasses.replace(Plan(runs, 'plain', (0,), resamples=199), **changes)


@pytest.fixture(scope='module')
def trained(store, tmp_path_factory):
  """A comparison of which LARES, in both phases, was really trained; the plain run is there already."""
  plan, workdir = _plan(store), tmp_path_factory.mktemp('compare')
  experiments = comparison.start(plan, workdir)
  _pretend(experiments['plain'][0])
  comparison.train(experiments)
  return plan, workdir, experiments


def _pretend(experiment: Experiment, shift=0.0) -> None:
  """Leaves behind what a run of both phases would: ranks that worsen with the seed by chance."""
  rng = np.random.default_rng([experiment.config.seed, round(shift * 10)])
  ranks = {}
  for phase, better in (('pretrain', 0.0), ('posttrain', 1.0)):
    ranks[f'{phase}_depth'] = np.int32(2 if experiment.config.depth.mean else 0)
    for split in ('valid', 'test'):
      targets = len(experiment.store.targets(split)[0])
      rank_M = np.maximum(rng.integers(0, 20, targets) - shift - better, 0).astype(np.float32)
      ranks |= {f'{phase}_{split}_ranked': rank_M, f'{phase}_{split}_removed': rank_M // 2}
  write_arrays(experiment.workdir / 'ranks.npz', ranks)
  c = experiment.config
  write_json(experiment.workdir / 'result.json', {
    'phase': 'posttrain', 'validation_by_phase': {
      phase: metrics.summary(ranks[f'{phase}_valid_ranked']) for phase in ('pretrain', 'posttrain')},
    'settings': {'phases': c.phases, 'evaluate': dataclasses.asdict(c.evaluate)}})
  (experiment.workdir / 'metrics.jsonl').write_text('')


def test_ranks_on_disk_are_those_of_the_result(trained):
  experiment = trained[2]['lares'][0]
  result = experiment.result()
  ranks = np.load(experiment.workdir / 'ranks.npz')
  for phase in ('pretrain', 'posttrain'):
    assert int(ranks[f'{phase}_depth']) in experiment.depths
    for split in ('valid', 'test'):
      targets = len(experiment.store.targets(split)[0])
      ranked, removed = (ranks[f'{phase}_{split}_{h}'] for h in ('ranked', 'removed'))
      assert ranked.shape == removed.shape == (targets,) and ranked.dtype == np.float32
      assert (ranked != removed).any(), 'taking the history out must change some ranks'
  chosen = result['phase']
  assert int(ranks[f'{chosen}_depth']) == result['depth']
  assert metrics.summary(ranks[f'{chosen}_test_ranked']) == pytest.approx(result['test_at_depth'])


def test_the_table_of_real_runs(trained, capsys, monkeypatch):
  plan, workdir, experiments = trained
  monkeypatch.setattr(compare, '_USERS', 16)  # of 40 at once
  lines = compare.compare(plan, experiments)
  compare.write(plan, lines, workdir)
  assert [(x['run'], x['history']) for x in lines] == [
    (name, h) for h in ('ranked', 'removed') for name in (*plan.runs, 'popularity')]
  by_run = {x['run']: x for x in lines if x['history'] == 'ranked'}
  plain, lares, one, two = (by_run[name] for name in plan.runs)
  store = experiments['plain'][0].store
  user_M, index_M = store.targets('test')
  for x in lines:
    if x['run'] == 'popularity':
      hits = []
      for user, n in zip(user_M, index_M):
        history = store.items_N[store.offsets[user]:n] if x['history'] == 'removed' else []
        target, count_V = store.items_N[n], store.train_count_V
        others = np.setdiff1d(np.arange(30), [*history, target])
        above = (count_V[others] > count_V[target]).sum()
        ties = (count_V[others] == count_V[target]).sum()
        hits.append(target not in history and above + ties / 2 < 10)
      assert x['recall@10'] == pytest.approx(np.mean(hits))
  result = experiments['lares'][0].result()
  assert lares['ndcg@10'] == pytest.approx(result['test_at_depth']['ndcg@10'])
  assert plain['ndcg@10_std'] is None and plain['p'] is None and plain['depth'] == '0'
  assert one['against'] == 'plain' and two['against'] == 'phase_one'
  assert 0 < two['p'] <= two['p_holm'] <= 1
  chosen = one if result['phase'] == 'pretrain' else two
  assert lares['ndcg@10'] == chosen['ndcg@10']
  by_phase = [result['validation_by_phase'][p]['ndcg@10'] for p in ('pretrain', 'posttrain')]
  assert [one['validation_ndcg@10'], two['validation_ndcg@10']] == pytest.approx(by_phase)
  assert 0 < one['training_seconds'] < two['training_seconds'], 'phase two has phase one behind it'

  params = experiments['lares'][0].best('pretrain')[0]
  count = sum(x.size for x in jax.tree.leaves(params))
  assert plain['parameters'] < lares['parameters'] == count
  assert lares['parameters_without_items'] == count - params['item'].size
  assert plain['flops_per_user'] < lares['flops_per_user']

  printed = capsys.readouterr().out
  written = (workdir / 'compare.md').read_text(encoding='utf-8')
  assert written.strip() in printed and printed.strip().endswith('compare.json')
  assert written.count('history ranked') == written.count('history removed') == 1
  csv, js = pl.read_csv(workdir / 'compare.csv'), json.loads((workdir / 'compare.json').read_text())
  assert js['rows'] == lines
  assert csv['run'].to_list() == [x['run'] for x in lines]
  assert csv['ndcg@10'].to_list() == pytest.approx([x['ndcg@10'] for x in lines])
  assert not list(workdir.glob('.compare*'))


def test_flops_grow_by_the_same_for_every_step_and_hold_the_catalogue(trained):
  experiment = trained[2]['lares'][0]
  at = {depth: compare.flops_per_user(experiment, depth) for depth in (0, 1, 2, 4)}
  step = at[2] - at[1]
  assert step > 0 and at[4] - at[2] == pytest.approx(2 * step)
  length, width, inner = 8, 8, 16
  # One transformer layer: q, k, v and out; scores and their values; both feed-forward products.
  layer = 2 * length * (4 * width * width + 2 * length * width + 2 * width * inner)
  assert step == pytest.approx(layer)
  assert at[0] == pytest.approx(layer + 2 * 30 * width), 'one pre-layer, and 30 items to score'


def test_flops_of_a_rival_that_has_no_use_for_the_pre_block_s_states(store, tmp_path):
  """ReaRec reads the history itself, once, and thinks no further than it is asked."""
  config = make_config(store.directory, evaluate=EvaluationConfig(depths=(1, 2)), depth=DepthConfig(2))
  model = dataclasses.replace(config.model, reasoner='prl', thoughts=2)
  experiment = Experiment(dataclasses.replace(config, model=model), tmp_path)
  at = [compare.flops_per_user(experiment, depth) for depth in (0, 1, 2)]
  history = at[0] - 2 * 30 * 8  # one layer over eight tokens
  first, second = np.diff(at)
  assert history < first < second < 2 * history, 'a thought reads the history and thoughts before it'


def test_what_is_kept_of_finished_runs_gives_the_same_table(trained, tmp_path, monkeypatch):
  """Without checkpoints, nothing trained; and another config finds another run there."""
  plan, plan_dir, experiments = trained
  shutil.copytree(plan_dir, tmp_path / 'kept', ignore=shutil.ignore_patterns(
    'checkpoints', 'tensorboard', 'items.arrow', '.lock'))
  with pytest.raises(InputError, match='without its checkpoints'):
    run.train(comparison.start(plan, tmp_path / 'kept')['lares'][0])
  monkeypatch.setattr(run, 'train', lambda experiment: pytest.fail('it is finished'))
  again = comparison.start(plan, tmp_path / 'kept')
  comparison.train(again)
  assert compare.compare(plan, again) == compare.compare(plan, experiments)
  wider = dataclasses.replace(plan.runs['plain'].config, depth=DepthConfig(mean=3))
  other = dataclasses.replace(plan, runs={**plan.runs, 'plain': Row(wider)})
  with pytest.raises(InputError, match=r'plain/seed_0 holds another run; differing: depth\.mean'):
    comparison.start(other, tmp_path / 'kept')


def test_finished_runs_are_left_alone_and_an_interrupted_one_goes_on(store, tmp_path, monkeypatch):
  """Stopped in the third of four; the same command trains the third and fourth, no other."""
  begun = []

  def train(experiment):
    begun.append((experiment.workdir.parent.name, experiment.config.seed))
    if len(begun) == 3:
      raise loop.Interrupted(15)
    _pretend(experiment)

  monkeypatch.setattr(run, 'train', train)
  plan = _plan(store, seeds=(0, 1))
  start = lambda: comparison.start(plan, tmp_path)
  with pytest.raises(loop.Interrupted):
    comparison.train(start())
  assert begun == [('plain', 0), ('lares', 0), ('plain', 1)], 'the first seed of every row first'
  comparison.train(start())
  assert begun[3:] == [('plain', 1), ('lares', 1)]
  comparison.train(start())
  assert len(begun) == 5, 'a finished comparison trains nothing'

  deeper = dataclasses.replace(plan.runs['plain'].config.evaluate, depths=(1, 8))
  config = dataclasses.replace(plan.runs['plain'].config, evaluate=deeper)
  changed = dataclasses.replace(plan, runs={**plan.runs, 'plain': Row(config)})
  comparison.train(comparison.start(changed, tmp_path))
  assert begun[5:] == [('plain', 0), ('plain', 1)], 'another evaluation is not finished'


def test_a_setting_newer_than_a_run_counts_as_its_default(store, tmp_path):
  plan = _plan(store)
  experiment = comparison.start(plan, tmp_path)['plain'][0]
  _pretend(experiment)
  for name, part in (('config.json', 'config'), ('result.json', 'settings')):
    file = experiment.workdir / name
    content = json.loads(file.read_text())
    del content[part]['evaluate']['history']
    write_json(file, content)
  again = comparison.start(plan, tmp_path)['plain'][0]
  assert comparison.finished(again)
  content = json.loads((experiment.workdir / 'config.json').read_text())
  content['config']['seeed'] = 1
  write_json(experiment.workdir / 'config.json', content)
  with pytest.raises(InputError, match=r'plain/seed_0/config\.json: config\.seeed does not exist'):
    comparison.start(plan, tmp_path)


def test_statistics_over_seeds(store, tmp_path):
  plan = _plan(store, seeds=(0, 1, 2))
  config = plan.runs['lares'].config
  plan = dataclasses.replace(plan, runs={**plan.runs, 'one_seed': Row(config, seeds=(7,))})
  experiments = comparison.start(plan, tmp_path)
  for name, shift in (('plain', 0.0), ('lares', 6.0), ('one_seed', 0.0)):
    for experiment in experiments[name]:
      _pretend(experiment, shift)
  lines = {(x['run'], x['history']): x for x in compare.compare(plan, experiments)}
  plain, lares = lines['plain', 'ranked'], lines['lares', 'ranked']
  by_seed = [metrics.summary(np.load(e.workdir / 'ranks.npz')['posttrain_test_ranked'])['mrr']
             for e in experiments['lares']]
  assert lares['mrr'] == pytest.approx(np.mean(by_seed))
  assert lares['mrr_std'] == pytest.approx(np.std(by_seed, ddof=1))
  assert lares['difference'] == pytest.approx(lares['ndcg@10'] - plain['ndcg@10'])
  assert lares['relative'] == pytest.approx(lares['ndcg@10'] / plain['ndcg@10'] - 1)
  assert lares['p_holm'] < 0.05 and lares['low'] > 0, 'ranks better by 6 for 40 users and 3 seeds'
  assert lines['one_seed', 'ranked']['p'] > 0.05 and lines['one_seed', 'ranked']['seeds'] == 1
  p = sorted(x['p'] for (_, history), x in lines.items() if history == 'ranked' and x['p'])
  holm = sorted(x['p_holm'] for (_, history), x in lines.items() if history == 'ranked' and x['p'])
  assert len(p) == 4 and holm[0] == pytest.approx(min(4 * p[0], 1)), 'corrected over the table'
  assert lines['lares', 'removed']['ndcg@10'] > lares['ndcg@10']


def test_own_items_are_counted_above_targets_that_rank_within_ten_without_them():
  ranked_M, removed_M = np.array([12.0, 3.0, 50.0, 11.0]), np.array([9.0, 3.0, 20.0, 10.0])
  assert compare._own_above(ranked_M, removed_M) == 1.5  # of the first two, 3 and 0
  assert compare._own_above(ranked_M[2:], removed_M[2:]) == 0.0


def test_training_seconds_add_up_over_starts(tmp_path):
  """Two starts of one phase: 10 steps of 4 targets at 8 a second, 5 at 2; and another phase."""
  lines = [('pretrain', 10, 'train', 4, 8), ('pretrain', 10, 'validation', 0, 0),
           ('pretrain', 15, 'train', 4, 2), ('posttrain', 6, 'train', 3, 1)]
  keys = ('phase', 'step', 'kind', 'targets', 'targets_per_s')
  text = ''.join(json.dumps(dict(zip(keys, line))) + '\n' for line in lines)
  (tmp_path / 'metrics.jsonl').write_text(text)
  assert training_seconds(tmp_path, ('pretrain',)) == pytest.approx(5 + 10)
  assert training_seconds(tmp_path, ('pretrain', 'posttrain')) == pytest.approx(5 + 10 + 18)


def test_what_is_finished_makes_a_table_of_its_own(store, tmp_path, capsys):
  plan = _plan(store, seeds=(0, 1))
  other = dataclasses.replace(plan.runs['plain'], against='lares', seeds=(5,))
  second_look = {name: Row(of='plain', against=name)
                 for name in ('lares', 'other', 'plain_to_lares')}
  plan = dataclasses.replace(plan, runs={**plan.runs, 'other': other, **{
    f'plain_to_{name}': row for name, row in second_look.items()}})
  experiments = comparison.start(plan, tmp_path)
  with pytest.raises(InputError, match='plain: no run of it is finished'):
    comparison.finished_part(plan, experiments)
  circle = dataclasses.replace(plan, reference='plain_to_lares')
  with pytest.raises(InputError, match='plain_to_lares: no run of it is finished'):
    comparison.finished_part(circle, experiments)
  for experiment in (experiments['plain'][1], experiments['other'][0]):
    _pretend(experiment)
  shutil.rmtree(tmp_path / 'lares')  # nothing was trained there
  experiments = comparison.start(plan, tmp_path, to_train=False)
  assert not (tmp_path / 'lares').exists(), 'a run that is only looked for must leave nothing'
  capsys.readouterr()
  some, found = comparison.finished_part(plan, experiments)
  said = capsys.readouterr().out
  assert said == ('not finished: plain, seed 0\nnot finished: lares, seed 0, 1\n'
                  'not finished: what phase_one stands on, lares or plain\n'
                  'not finished: what phase_two stands on, lares or phase_one\n'
                  'not finished: what plain_to_lares stands on, plain or lares\n'
                  'not finished: what plain_to_plain_to_lares stands on, plain or plain_to_lares\n')
  assert found == {'plain': experiments['plain'][1:], 'other': experiments['other'],
                   'plain_to_other': experiments['plain'][1:]}, 'plain_to_lares would repeat plain'
  by_run = {line['run']: line for line in compare.compare(some, found) if line['history'] == 'ranked'}
  assert [*by_run] == ['plain', 'other', 'plain_to_other', 'popularity']
  assert by_run['other']['against'] == 'plain' and by_run['plain_to_other']['against'] == 'other'


def test_a_row_that_cannot_run_is_only_named(store, tmp_path, capsys):
  plan = _plan(store)
  c = plan.runs['plain'].config
  timed = dataclasses.replace(c.model, backbone=dataclasses.replace(
    c.model.backbone, name='hstu', times=True))
  plan = dataclasses.replace(plan, runs={
    'timed': Row(dataclasses.replace(c, model=timed)), 'plain': plan.runs['plain']})
  with pytest.raises(InputError, match='its log has no times'):
    comparison.start(plan, tmp_path / 'all')
  _pretend(comparison.start(dataclasses.replace(plan, runs={'plain': plan.runs['plain']}), tmp_path)
           ['plain'][0])
  _, found = comparison.finished_part(plan, comparison.start(plan, tmp_path, to_train=False))
  assert [*found] == ['plain'] and 'not finished: timed' in capsys.readouterr().out


@pytest.mark.parametrize('change, said', (
  ({'reference': 'none'}, r"config\.reference='none' is not a run; there are"),
  ({'seeds': ()}, r'seeds=\(\)'),
  ({'resamples': 1}, 'resamples=1: use 100 or more'),
  ({'seeds': (1, 1)}, 'different whole numbers'),
  ({'seed': (1,)}, r'config\.seed does not exist; did you mean seeds'),
  ({'runs.again': {'of': 'sasrec', 'seeds': 0}}, r'again\.seeds=0 is not a list'),
  ({'runs.again': {'of': 'laers'}}, r"again\.of='laers'"),
  ({'runs.lares_phase_two.phase': 'select'}, 'use pretrain or posttrain'),
  ({'runs.lares_phase_two.against': 'none'}, r"against='none' is not a run"),
  ({'runs.sasrec.of': 'lares'}, 'give config, or of=NAME'),
  ({'runs.a/b': {'of': 'lares'}}, 'names a directory'),
  ({'runs.again': {'of': 'sasrec', 'phase': 'posttrain'}}, r'config\.runs\.sasrec does not train it'),
  ({'runs.sasrec.config.model.width': 3}, r'runs\.sasrec\.config\.model\.width does not exist'),
), ids=lambda x: next(iter(x)) if isinstance(x, dict) else '')
def test_a_faulty_plan_is_refused_by_its_key(change, said):
  config = compare_beauty.get_config()
  config.unlock()
  for path, value in change.items():
    *way, last = path.split('.')
    place = config
    for key in way:
      place = place[key]
    place[last] = value
  with pytest.raises(InputError, match=said):
    config_lib.typed(config, Plan)


def test_the_plans_of_this_project_are_sound():
  for module in (compare_beauty, compare_ml100k):
    plan = config_lib.typed(module.get_config(), Plan)
    assert plan.runs[plan.reference].config.depth.mean == 0
    assert plan.against('lares_phase_two') == 'lares_phase_one'
    assert plan.runs['lares'].config.phases == 'pretrain'
    assert plan.runs['lares'].config.aligns and not plan.runs['lares_quick'].config.aligns
    assert next(iter(plan.runs)) == plan.reference, 'the reference comes first'
    configs = {str(row.config) for row in plan.runs.values() if row.config}
    assert len(configs) == sum(row.config is not None for row in plan.runs.values()), 'two rows alike'
    depth = config_lib.typed(module.get_config('depth'), Plan)
    assert depth.runs['lares'].config == plan.runs['lares'].config
    assert depth.runs['lares'].config.depth.mean > 0 and depth.runs['lares'].config.phases == 'pretrain'
  rows = config_lib.typed(compare_rows.get_config(), Plan)
  assert {name: row.config.data.rows for name, row in rows.runs.items()} == {n: n for n in rows.runs}


def _small(config: Config, store) -> Config:
  """A row of a plan, with everything that makes it the row it is, at the size of the tests."""
  model = dataclasses.replace(
    config.model, positions=8, fusion=dataclasses.replace(config.model.fusion, text_width=8, experts=2),
    backbone=dataclasses.replace(config.model.backbone, width=8, inner=16))
  smaller = lambda phase: dataclasses.replace(
    phase, train=dataclasses.replace(phase.train, batch_rows=4, pairs=6, epochs=1.0))
  data = dataclasses.replace(
    config.data, path=store.directory, row_length=16, max_history=8, prepare=PrepareOptions())
  return dataclasses.replace(config, data=data, model=model, pretrain=smaller(config.pretrain),
                             posttrain=smaller(config.posttrain))


@pytest.mark.parametrize('kept, plans', (
  ('beauty', (compare_beauty.get_config(), compare_beauty.get_config('depth'))),
  ('ml100k', (compare_ml100k.get_config('text'), compare_ml100k.get_config('depth')))))
def test_kept_runs_are_of_their_rows(kept, plans):
  rows = {name: row.config for plan in plans for name, row in config_lib.typed(plan, Plan).runs.items()}
  files = sorted(RESULTS.glob(f'{kept}/*/seed_*/config.json'))
  assert files
  for file in files:
    theirs = json.loads(file.read_text())['config']
    mine = dataclasses.asdict(rows[file.parts[-3]])
    theirs, mine = (dataclasses.asdict(config_lib.typed(x)) for x in (theirs, mine))
    differing = config_lib.differing({**mine, 'data': 0, 'seed': 0}, {**theirs, 'data': 0, 'seed': 0})
    assert not differing, file


def test_every_row_of_every_plan_can_take_a_step_of_each_phase(tmp_path, monkeypatch):
  store = make_store(tmp_path / 'store')
  store = dataclasses.replace(store, times_N=np.arange(len(store.items_N)))
  plans = (compare_beauty.get_config(), compare_beauty.get_config('depth'),
           compare_ml100k.get_config('text'), compare_rows.get_config(), depth_study.get_config())
  rows = [(row, _small(planned.config, store)) for plan in plans
          for row, planned in config_lib.typed(plan, Plan).runs.items() if planned.config]
  # With times, for rows that want them.
  monkeypatch.setattr(Experiment, '_prepared', lambda experiment: store)
  for config, row in {config: row for row, config in rows}.items():  # many are alike now
    experiment = Experiment(config, tmp_path)
    phases = [experiment.pretraining()]
    if 'posttrain' in experiment.config.phase_list:
      phases.append(experiment.posttraining(experiment.abstract_params, None))
    for phase in phases:
      batch, draw = phase.batches.batch(0), phase.objective.draw(np.random.default_rng(0))
      state = jax.eval_shape(phase.fresh, experiment.abstract_params)
      after, seen = jax.eval_shape(phase.update, state, phase.reference, batch, draw)
      assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state), row
      assert seen['loss'].shape == (), row


def test_runs_of_one_data_set_open_it_once(store, tmp_path):
  """Each opening keeps some files open, and a table may have a hundred runs."""
  experiments = comparison.start(_plan(store, seeds=(0, 1)), tmp_path)
  stores = [e.store for runs in experiments.values() for e in runs]
  assert len(stores) == 8 and len({id(opened) for opened in stores}) == 1


def test_runs_of_different_data_are_not_compared(store, tmp_path):
  plan = _plan(store)
  other = make_config(make_store(tmp_path / 'other', seed=1).directory)
  mixed = dataclasses.replace(plan, runs={**plan.runs, 'other': Row(other)})
  with pytest.raises(InputError, match=r'config\.runs\.other reads another data set than plain'):
    comparison.start(mixed, tmp_path / 'mixed')
  same = dataclasses.replace(mixed, data_path=store.directory)
  assert comparison.start(same, tmp_path / 'same')['other'][0].store.fingerprint == store.fingerprint


def test_p_values_know_the_spread_of_all_runs_and_which_share_their_training(store, tmp_path):
  plan = _plan(store, seeds=(0, 1, 2))
  experiments = comparison.start(plan, tmp_path)
  for name, shift in (('plain', 0.0), ('lares', 1.0)):
    for experiment in experiments[name]:
      _pretend(experiment, shift)
  found = {x['run']: x['p'] for x in compare.compare(plan, experiments) if x['history'] == 'removed'}
  gain = lambda name, phase: np.stack([metrics.per_user(
    np.load(e.workdir / 'ranks.npz')[f'{phase}_test_removed'])['ndcg@10'] for e in experiments[name]])
  plain, one, two = gain('plain', 'posttrain'), gain('lares', 'pretrain'), gain('lares', 'posttrain')
  spread = significance.pooled([plain.mean(1), two.mean(1)])  # a row `of` another has no runs to add
  of = lambda *sides, **how: significance.difference(*sides, spread, resamples=199, **how).p
  assert [found['lares'], found['phase_one'], found['phase_two']] == pytest.approx(
    [of(two, plain), of(one, plain), of(two, one, same_runs=True)])


def test_a_run_of_other_phases_is_not_finished(store, tmp_path):
  plan = _plan(store)
  experiment = comparison.start(plan, tmp_path)['lares'][0]
  _pretend(experiment)
  assert comparison.finished(experiment)
  assert not comparison.finished(dataclasses.replace(
    experiment, config=dataclasses.replace(experiment.config, phases='pretrain')))
  evaluate = dataclasses.replace(experiment.config.evaluate, batch_rows=99)  # changes no rank
  assert comparison.finished(dataclasses.replace(
    experiment, config=dataclasses.replace(experiment.config, evaluate=evaluate)))


@pytest.mark.parametrize('kept, planned', (
  ('beauty', compare_beauty.get_config()), ('beauty_depth', compare_beauty.get_config('depth')),
  ('ml100k', compare_ml100k.get_config('text')), ('ml100k_depth', compare_ml100k.get_config('depth'))))
def test_kept_tables_hold_rows_against_what_the_plan_says(kept, planned):
  plan, seen = config_lib.typed(planned, Plan), 0
  for row in (RESULTS / f'{kept}.md').read_text().splitlines():
    cells = [cell.strip() for cell in row.split('|')[1:-1]]
    if len(cells) == 17 and cells[0] in plan.runs and cells[12]:
      assert cells[12] == plan.against(cells[0]), cells[0]
      assert int(cells[1]) <= len(plan.seeds_of(cells[0])), cells[0]
      seen += 1
  assert seen
