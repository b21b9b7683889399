"""The depth study on a tiny run: what it counts, what it writes, and how its page looks."""

import dataclasses
import functools
import html
import json
import pathlib
import re
import shutil
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
import tiny

from configs.depth_study import get_config
from lares_jax import config as config_lib
from lares_jax import metrics
from lares_jax.adaptive import CRITERIA, Rule
from lares_jax.comparison import Plan
from lares_jax.data import batches
from lares_jax.experiment import Experiment
from lares_jax.files import read_json, write_json
from lares_jax.model.backbone import BackboneConfig
from lares_jax.recommender import Recommender
from lares_jax.studies import cost, depth_study, page, quality, timing
from lares_jax.training.checkpoint import Checkpoints
from lares_jax.training.evaluation import begin, ranks_of_stack, user_vectors

DEPTHS, WIDTHS = [2, 4], [1, 2]
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of no steps, and the study of it."""
  directory = tmp_path_factory.mktemp('depth')
  store = tiny.make_store(directory / 'data')
  workdir = directory / 'workdir'
  config = tiny.make_config(directory / 'data')
  loss = dataclasses.replace(config.pretrain.loss, alpha=0.0, gamma=0.0)  # compiles in half the time
  config = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, loss=loss))
  experiment = Experiment.start(config, str(workdir))
  params = experiment.init_params()
  checkpoints = Checkpoints(workdir, 'pretrain')
  checkpoints.save_best(0, params, {})
  checkpoints.close()
  write_json(workdir / 'result.json', {
    'fingerprint': store.fingerprint, 'phase': 'pretrain', 'step': 0, 'depth': 2})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(quality, '_LEVELS', (0.2, 0.6))  # few rules, as each is timed
    depth_study.study(
      Experiment.load(str(workdir)), '', DEPTHS, WIDTHS, users=0, repeats=1, profile=True)
  output = workdir / 'depth'
  rows = {name: read_json(output / f'{name}.json')['rows']
          for name in ('cost', 'fit', 'quality', 'adaptive', 'width')}
  return types.SimpleNamespace(workdir=workdir, output=output, rows=rows, params=params,
                               experiment=experiment)


def test_every_table_and_plot_is_there(run):
  names = {file.name for file in run.output.iterdir()}
  plots = ('quality', 'cost', 'adaptive', 'pareto', 'convergence', 'settled', 'width', 'memory')
  wanted = {f'{table}.{kind}' for table in run.rows for kind in ('csv', 'json', 'md')}
  wanted |= {f'{plot}.{kind}' for plot in plots for kind in ('png', 'svg')}
  assert names == wanted | {'report.html', 'profile'}
  text = (run.output / 'report.html').read_text()
  assert not re.search(r'(src|href)="(?!data:)', text), 'the page must load nothing from elsewhere'


def test_quality_is_that_of_evaluation(run):
  for split in ('valid', 'test'):
    rank_TxM = run.experiment.evaluator.ranks(run.params, split, tuple(DEPTHS))
    lines = [line for line in run.rows['quality'] if line['split'] == split]
    for rank_M, line in zip(rank_TxM, lines, strict=False):
      for name, value in metrics.summary(rank_M).items():
        assert line[name] == pytest.approx(value)
        assert line[f'{name}_low'] <= value <= line[f'{name}_high']
    oracle = metrics.summary(rank_TxM.min(axis=0))
    assert lines[-1]['depth'] == 'oracle' and lines[-1]['mrr'] == pytest.approx(oracle['mrr'])
    assert lines[-2]['settled'] == 1.0 and lines[0]['settled'] <= lines[1]['settled']


def test_an_interval_is_as_wide_as_theory_says():
  value_MxC = np.random.default_rng(0).normal(size=(400, 2)) * [1, 3]
  low_C, high_C = quality.interval(value_MxC)
  np.testing.assert_allclose(high_C - low_C, 2 * 1.96 * value_MxC.std(0) / 20, rtol=0.1)
  again_C = quality.interval(value_MxC.repeat(9, axis=0), np.arange(400).repeat(9))
  np.testing.assert_allclose(again_C, (low_C, high_C), atol=1e-12)  # as many users, not targets


def test_flops_are_those_of_xla_without_a_loop(tmp_path):
  """Products dominate at this width; the rest is what XLA counts besides them."""
  tiny.make_store(tmp_path / 'data')
  config = tiny.make_config(tmp_path / 'data')
  backbone = BackboneConfig(width=256, inner=1024)
  config = dataclasses.replace(config, model=dataclasses.replace(
    config.model, backbone=backbone, core_layers=2, initial='zero'))  # noise is no product
  experiment = Experiment(config, tmp_path)
  start, each = cost.per_user(experiment).flops
  start -= cost.catalogue_flops(experiment)
  for steps in (1, 3):
    program = functools.partial(cost.unrolled, experiment.model, steps=steps)
    compiled = jax.jit(program).lower(
      experiment.abstract_params, cost._one_history(experiment)).compile()
    by_xla = compiled.cost_analysis()['flops']
    assert 0.9 * by_xla < start + steps * each < by_xla, 'the count left products out, or has too many'


def test_flops_of_training_are_those_of_xla_at_one_step_and_each_more_costs_as_much(run):
  """At one step no loop runs twice, so XLA's count holds; it counts more than products."""
  backbone = BackboneConfig(width=128, inner=512)
  config = run.experiment.config
  config = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=backbone))
  experiment = dataclasses.replace(run.experiment, config=config)
  every = experiment.pretraining()
  phase, draw = cost._at(every, 1, True)
  step = timing.Training(phase, [phase.fresh(experiment.init_params())], [phase.batches.batch(0)], draw)
  by_xla = step._program.cost_analysis()['flops']
  counted = {remat: [cost.training_flops(experiment, every, depth, remat) for depth in (1, 2, 4)]
             for remat in (True, False)}
  assert 0.85 * by_xla < counted[True][0] < by_xla
  each = {remat: two - one for remat, (one, two, _) in counted.items()}
  for remat, (_, two, four) in counted.items():
    assert four - two == pytest.approx(2 * each[remat])
  assert each[True] == pytest.approx(each[False] * 4 / 3)  # forward once more beside 1 + 2


def test_unrolled_is_the_model(run):
  rows = cost._one_history(run.experiment)
  ours = cost.unrolled(run.experiment.model, run.params, rows, 3)
  h_BxLxD, z_BxLxD = cost.begin(run.experiment.model, run.params, rows, 0)
  theirs = run.experiment.model.apply({'params': run.params}, h_BxLxD, rows, z_BxLxD, 3, 3,
                                      method='reason').state_BxLxD
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_programs_do_not_grow_with_depth(run):
  for program in ('inference', 'train, remat', 'train, no remat'):
    lines = [line['hlo_lines'] for line in run.rows['cost'] if line['program'] == program]
    assert len(lines) == len(DEPTHS) and max(lines) <= 1.02 * min(lines), (
      f'{program}: HLO of {lines} lines at depths {DEPTHS}; steps must be a loop')


def test_lines_are_fitted_through_the_costs(run):
  for line in run.rows['fit']:
    costs = {c['depth']: c['full_ms'] for c in run.rows['cost'] if c['program'] == line['program']}
    slope, start = np.polyfit([*costs], [*costs.values()], 1)
    assert (line['ms_a_step'], line['ms_at_0']) == pytest.approx((slope, start), rel=1e-6)
    for depth, cost_ms in costs.items():
      residual = cost_ms - start - slope * depth
      assert line[f'residual_at_{depth}'] == pytest.approx(residual, abs=1e-6 * cost_ms)


def test_the_rule_is_the_cheapest_that_keeps_quality_on_validation(run):
  lines = [line for line in run.rows['adaptive'] if line['criterion'] != 'fixed']
  assert {line['criterion'] for line in lines} == {*CRITERIA}
  rule = Rule.load(run.workdir)
  chosen, = (line for line in lines if line['chosen'])
  assert (rule.criterion, rule.threshold) == (chosen['criterion'], chosen['threshold'])
  best = max(line['ndcg@10'] for line in run.rows['quality']
             if line['split'] == 'valid' and line['depth'] in DEPTHS)
  good = [line for line in lines if line['valid_ndcg@10'] >= quality.KEPT * best]
  assert chosen in good
  assert chosen['valid_mflops_per_user'] == min(line['valid_mflops_per_user'] for line in good)
  for line in lines:
    assert line['threshold'] > 0 or line['mean_steps'] == rule.most


def test_no_rule_is_tried_twice(run):
  """Where the state has come to rest, quantiles of its changes are 0, which is tried anyway."""
  rank_TxM, still = np.zeros((4, 5)), {criterion: np.zeros((4, 5)) for criterion in CRITERIA}
  measured = dict.fromkeys(('valid', 'test'), quality.Measured(rank_TxM, rank_TxM == 0, still))
  _, lines = quality.adaptive_lines(run.experiment, measured, 4, cost.PerUser((1, 1), (1, 1)))
  assert [(line['criterion'], line['threshold']) for line in lines] == [(c, 0.0) for c in CRITERIA]


def test_recommend_takes_the_rule(run):
  recommender = Recommender.load(str(run.workdir))
  out = recommender.recommend([['i1', 'i2']], depth='adaptive')[0]
  by_depth = [recommender.recommend([['i1', 'i2']], depth=d)[0] for d in range(1, 5)]
  assert any(out.items == r.items and out.scores == pytest.approx(r.scores, 1e-4) for r in by_depth)


def test_a_study_put_elsewhere_leaves_the_run_its_rule(tmp_path):
  workdir, other = tmp_path / 'run', tmp_path / 'trial'
  for usual in ('', str(workdir / 'depth')):
    assert depth_study.places(workdir, usual) == (workdir / 'depth', workdir / 'adaptive.json')
  assert depth_study.places(workdir, str(other)) == (other, other / 'adaptive.json')


def test_a_place_that_cannot_be_written_is_told_before_all_the_work(tmp_path):
  (tmp_path / 'file').write_text('mine')
  with pytest.raises(OSError):  # before the run is even loaded: there is none
    depth_study.study(types.SimpleNamespace(workdir=tmp_path), str(tmp_path / 'file' / 'x'), DEPTHS,
                      WIDTHS, users=0, repeats=1)


def test_one_draw_is_plain_evaluation(run):
  test = [line for line in run.rows['quality'] if line['split'] == 'test']
  for d, line in enumerate(run.rows['width'][: len(DEPTHS)]):
    assert line['draws'] == 1 and line['mrr'] == pytest.approx(test[d]['mrr'])
  assert {line['draws'] for line in run.rows['width']} == {*WIDTHS}


def test_the_trace_knows_the_parts_of_the_model(run):
  infer = jax.jit(lambda params, batch: cost.answer(run.experiment, 2, params, batch))
  chosen = cost.full_batch(run.experiment)
  text = infer.lower(run.params, cost.batch(run.experiment, chosen, 4)).compile().as_text()
  for scope in ('embed', 'pre', 'core', 'catalogue'):
    assert re.search(rf'op_name="[^"]*/{scope}', text), f'no jax.named_scope({scope!r}) any more'
  assert list((run.output / 'profile').rglob('*.xplane.pb'))


def test_a_full_batch_has_histories_of_all_lengths(run, monkeypatch):
  monkeypatch.setattr(batches, '_WIDTHS', [4, 64])  # apart from one another once they are removed
  c = run.experiment.config
  removed = dataclasses.replace(run.experiment, config=dataclasses.replace(
    c, evaluate=dataclasses.replace(c.evaluate, history='removed')))
  for experiment in (run.experiment, removed):
    chosen_M = cost.full_batch(experiment)
    assert cost.batch(experiment, chosen_M).scored_BxA.sum() == len(chosen_M)


def test_the_training_side_study_is_a_plan():
  plan = config_lib.typed(get_config(), Plan)
  assert {plan.runs[f'r{r}'].config.depth.mean for r in (1, 2, 4, 8)} == {1, 2, 4, 8}
  for name, row in plan.runs.items():
    assert row.config.depth.mean in row.config.evaluate.depths, name


@pytest.mark.parametrize('arguments, said', (
  ([], '--workdir missing'), (['--workdir=no/such'], 'no config.json there'),
  (['--workdir=x', '--depths=2'], 'two or more'),
  (['--workdir=x', '--depths=1,65'], '--depths=1,65: whole numbers from 1 to 64')))
def test_what_is_wrong_is_said_in_one_line(arguments, said):
  out = subprocess.run([sys.executable, '-m', 'lares_jax.study', 'depth', *arguments], text=True,
                       capture_output=True, check=False, cwd=ROOT)
  assert out.returncode == 1 and said in out.stderr, out.stderr
  assert out.stderr.count('\n') == 1, out.stderr


def test_help_shows_the_options_of_the_study():
  out = subprocess.run([sys.executable, '-m', 'lares_jax.study', 'depth', '--help'], text=True,
                       capture_output=True, check=False, cwd=ROOT)
  assert 'What does another reasoning step cost' in out.stdout and '--widths:' in out.stdout


_BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'chrome')
CHROMIUM = next(filter(None, map(shutil.which, _BROWSERS)), None)
_FRAMES = '''<!doctype html><body>{frames}<pre id="out"></pre><script>
onload = () => {{ document.getElementById('out').textContent = JSON.stringify(
  [...document.querySelectorAll('iframe')].map(frame => ({{
    inner: frame.contentWindow.innerWidth,
    scroll: frame.contentDocument.documentElement.scrollWidth,
    images: [...frame.contentDocument.images].map(i => [i.complete, i.naturalWidth, i.clientWidth]),
    columns: new Set([...frame.contentDocument.querySelectorAll('figure')].map(f => f.offsetLeft)).size,
  }}))) }}
</script>'''


@pytest.mark.skipif(CHROMIUM is None, reason='no chromium or chrome found: apt-get install chromium')
def test_the_page_fits_a_phone_and_a_wide_screen(run, tmp_path):
  """In frames: a window of a browser without a screen cannot be as narrow as a phone."""
  text = html.escape((run.output / 'report.html').read_text())
  widths = (390, 1400)
  frames = ''.join(f'<iframe width="{w}" height="3000" frameborder="0" srcdoc="{text}"></iframe>'
                   for w in widths)
  (tmp_path / 'frames.html').write_text(_FRAMES.format(frames=frames))
  out = subprocess.run(
    [CHROMIUM, '--headless', '--no-sandbox', '--disable-gpu', '--window-size=1900,1000',
     f'--user-data-dir={tmp_path / "profile"}', '--virtual-time-budget=10000', '--dump-dom',
     f'file://{tmp_path}/frames.html'], capture_output=True, text=True, timeout=120, check=False)
  found = re.search(r'<pre id="out">(.+?)</pre>', out.stdout)
  assert found, f'the browser showed nothing: {out.stderr[-800:]}'
  seen = json.loads(html.unescape(found[1]))
  assert [s['inner'] for s in seen] == [*widths]
  for s in seen:
    assert s['scroll'] <= s['inner'], f'the page is {s["scroll"]} wide in a window of {s["inner"]}'
    assert len(s['images']) == 8, 'a figure is missing'
    assert all(complete and natural and shown > 300 for complete, natural, shown in s['images']), s
  assert [s['columns'] for s in seen] == [1, 2], 'one figure beside the other on a wide screen only'


def test_page_escapes_what_it_is_given():
  plot = page.Plot('<b>', 'x', 'y', [])
  text = page.page('a & b', ['1 < 2'], {'p': (plot, b'')}, {'t': (['<i>'], [['&']])})
  assert '&lt;b&gt;' in text and '1 &lt; 2' in text and '<i>' not in text and 'a &amp; b' in text


def test_draws_are_different_and_their_vectors_averaged(run):
  e, depths = run.experiment, tuple(DEPTHS)

  def of(draws, batch):
    vector_TxBxAxD = sum(user_vectors(
      e.model, run.params, batch.rows, batch.place_BxA,
      begin(e.model, run.params, batch.rows, 0, draw), depths) for draw in draws)
    return ranks_of_stack(
      e.catalogue, vector_TxBxAxD.reshape(len(depths), -1, 8), batch, run.params['item'])

  one, two = ([metrics.summary(rank_M)['mrr'] for rank_M in e.evaluator.over(
    functools.partial(of, draws), 'test')] for draws in ((0,), (0, 1)))
  assert one != two, 'these draws tell nothing'
  assert [line['mrr'] for line in run.rows['width']] == pytest.approx([*one, *two])


def test_settled_are_the_ten_best_in_order_from_a_step_on():
  item_MxTxK = np.array([[[1, 2], [2, 1], [1, 2], [1, 2]], [[3, 4], [3, 5], [3, 6], [3, 4]]])
  evaluator = types.SimpleNamespace(
    over=lambda *_: (np.zeros((4, 2)), item_MxTxK.swapaxes(0, 1), {}), chosen=lambda *_: slice(None))
  store = types.SimpleNamespace(targets=lambda split: (np.arange(2), np.arange(2)))
  measured = quality.measure(types.SimpleNamespace(evaluator=evaluator, store=store), {}, 'test', 4)
  np.testing.assert_array_equal(measured.settled_TxM.T, [[0, 0, 1, 1], [0, 0, 0, 1]])


def test_the_line_of_a_depth_is_of_that_step():
  rng = np.random.default_rng(0)
  rank_TxM, change_TxM = rng.integers(0, 30, (4, 50)), rng.random((4, 50))
  measured = quality.Measured(rank_TxM, change_TxM < 0.5, {'state': change_TxM})
  second, last, oracle = quality.by_depth('test', measured, [2, 4])
  for line, t in ((second, 1), (last, 3)):
    assert line['state_change'] == pytest.approx(change_TxM[t].mean())
    assert line['settled'] == (change_TxM[t] < 0.5).mean()
    assert line['mrr'] == pytest.approx(metrics.summary(rank_TxM[t])['mrr'])
  deeper_M = rank_TxM[3] < rank_TxM[1]
  assert oracle['mean_steps'] == pytest.approx(2 + 2 * deeper_M.mean())


def test_the_report_says_what_the_tables_say(run):
  chosen, = (line for line in run.rows['adaptive'] if line['chosen'])
  best = max((line for line in run.rows['quality'] if line['split'] == 'valid'
              and line['depth'] != 'oracle'), key=lambda line: line['ndcg@10'])['depth']
  fixed, = (line for line in run.rows['adaptive']
            if line['criterion'] == 'fixed' and line['mean_steps'] == best)
  share = lambda key: f'{chosen[key] / fixed[key]:.1%}'
  text = html.unescape((run.output / 'report.html').read_text())
  assert f'Best fixed depth on validation: {best}; test NDCG@10 {fixed["ndcg@10"]:.4f} (' in text
  assert f': {share("ndcg@10")} of that NDCG@10 with {share("mean_steps")} of the steps' in text
  assert f'and {share("full_ms")} of the time' in text


def test_a_rule_that_scores_pays_for_its_scores_and_every_draw_for_its_steps(run):
  per_step = cost.catalogue_flops(run.experiment) / 1e6
  counted = cost.per_user(run.experiment)
  for line in run.rows['adaptive']:
    if line['criterion'] != 'fixed':
      for of in ('', 'valid_'):
        steps = line[f'{of}mean_steps']
        extra = steps * per_step if line['criterion'] != 'state' else 0
        assert line[f'{of}mflops_per_user'] == pytest.approx(
          counted.at(steps)['mflops_per_user'] + extra)
  start = counted.at(0)['mflops_per_user']  # pre-block and catalogue, once for all draws
  for line in run.rows['width']:
    steps = counted.at(line['depth'])['mflops_per_user'] - start
    assert line['mflops_per_user'] == pytest.approx(start + line['draws'] * steps)
  for line in run.rows['cost']:
    if line['program'] == 'inference':
      assert line['mflops_per_user'] == pytest.approx(counted.at(line['depth'])['mflops_per_user'])
