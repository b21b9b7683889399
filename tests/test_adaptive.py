"""Adaptive depth: what it gives at its ends, and that company changes nothing."""

import dataclasses
import json
import types

import numpy as np
import pytest
import tiny
from scipy import stats
from scipy.special import softmax

from lares_jax import adaptive
from lares_jax.adaptive import CRITERIA, Rule
from lares_jax.catalogue import Catalogue, CatalogueConfig
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.files import write_json
from lares_jax.recommender import Recommender
from lares_jax.studies import quality

MOST = 6


@pytest.fixture(scope='module', params=('transformer', 'bsarec'))
def run(tmp_path_factory, request):
  """A model as it was born, causal in packed rows or not, and the histories of its test users."""
  directory = tmp_path_factory.mktemp('adaptive')
  tiny.make_store(directory / 'data', users=60)
  config = tiny.make_config(directory / 'data')
  if request.param == 'bsarec':
    model = dataclasses.replace(config.model, backbone=dataclasses.replace(
      config.model.backbone, name='bsarec'))
    data = dataclasses.replace(config.data, rows='prefix')
    config = dataclasses.replace(config, model=model, data=data)
  config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, batch_rows=16))
  experiment = Experiment(config, directory)
  recommender = Recommender(experiment, experiment.init_params(), 2)
  histories = experiment.store.raw_histories(*experiment.store.targets('test'))
  return types.SimpleNamespace(experiment=experiment, recommender=recommender, histories=histories)


def thought(run, monkeypatch, histories, rule):
  """User vectors, and the steps that each history took."""
  steps, original = [], adaptive.think

  def noted(*args):
    out = original(*args)
    steps.append(out[1])
    return out

  monkeypatch.setattr(adaptive, 'think', noted)
  vectors = run.recommender.user_vectors(histories, rule)
  monkeypatch.undo()
  return vectors, steps


@pytest.mark.parametrize('criterion', CRITERIA)
@pytest.mark.parametrize('threshold, depth', ((0.0, MOST), (1e9, 1)))
def test_the_ends_are_fixed_depths(run, criterion, threshold, depth):
  ours = run.recommender.user_vectors(run.histories, Rule(criterion, threshold, MOST))
  fixed = run.recommender.user_vectors(run.histories, depth)
  np.testing.assert_allclose(ours, fixed, rtol=1e-4, atol=1e-5)


def middle(run, criterion: str) -> tuple[Rule, quality.Measured]:
  """A rule that stops some early and others late, and far from any user's change."""
  measured = quality.measure(run.experiment, run.recommender.params, 'test', MOST)
  change = np.sort(measured.change[criterion][1:4].ravel())
  change = change[len(change) // 4 : -len(change) // 4]
  widest = np.diff(change).argmax()
  return Rule(criterion, float(change[widest : widest + 2].mean()), MOST), measured


@pytest.mark.parametrize('criterion', ('state', 'kl'))
def test_stages_stop_each_user_where_the_measured_changes_say(run, monkeypatch, criterion):
  rule, measured = middle(run, criterion)
  step_M = quality.stops(measured, rule)
  assert len(set(step_M)) > 2, 'the rule no longer tells users apart: change the data set'
  fixed = np.stack([run.recommender.user_vectors(run.histories, t) for t in range(1, MOST + 1)])
  ours, steps = thought(run, monkeypatch, run.histories, rule)
  np.testing.assert_allclose(ours, fixed[step_M - 1, np.arange(len(step_M))], rtol=1e-4, atol=1e-5)
  assert sorted(np.concatenate(steps)) == sorted(step_M)


def test_company_and_order_do_not_matter(run, monkeypatch):
  rule, _ = middle(run, 'state')
  together, _ = thought(run, monkeypatch, run.histories, rule)
  reverse, _ = thought(run, monkeypatch, run.histories[::-1], rule)
  np.testing.assert_allclose(reverse[::-1], together, rtol=1e-4, atol=1e-5)
  for n in range(0, len(run.histories), 13):
    alone, _ = thought(run, monkeypatch, run.histories[n : n + 1], rule)
    np.testing.assert_allclose(alone[0], together[n], rtol=1e-4, atol=1e-5)


def test_those_who_are_done_take_no_more_room(run, monkeypatch):
  rule, _ = middle(run, 'state')
  sizes, original = [], adaptive._stage

  def noted(*args):
    sizes.append(args[6].z_BxLxD.shape[0])
    return original(*args)

  monkeypatch.setattr(adaptive, '_stage', noted)
  run.recommender.user_vectors(run.histories[:40], rule)
  assert min(sizes) < max(sizes), 'the batch never shrinks'
  assert all(size & (size - 1) == 0 for size in sizes), 'sizes are powers of two, to compile few'


def test_the_rule_comes_from_the_study(run):
  workdir = run.experiment.workdir
  with pytest.raises(InputError, match=r'lares_jax\.study depth --workdir='):
    run.recommender.recommend([['i1']], depth='adaptive')
  with pytest.raises(InputError, match='depth=deep: use a whole number, or adaptive'):
    run.recommender.recommend([['i1']], depth='deep')
  content = {'criterion': 'state', 'threshold': 1e9, 'most': 4, 'phase': 'pretrain', 'step': 7}
  write_json(workdir / 'result.json', {'phase': 'pretrain', 'step': 7})
  write_json(workdir / 'adaptive.json', {key: content[key] for key in content if key != 'most'})
  with pytest.raises(InputError, match=r'adaptive\.json is damaged'):
    run.recommender.recommend([['i1']], depth='adaptive')
  write_json(workdir / 'adaptive.json', content)
  ours, = run.recommender.recommend([['i1']], depth='adaptive')
  fixed, deeper = (run.recommender.recommend([['i1']], depth=depth)[0] for depth in (1, 2))
  # Two programs, which round otherwise on some processors; a step more is more than that.
  assert ours._replace(scores=fixed.scores) == fixed
  assert ours.scores == pytest.approx(fixed.scores, rel=1e-5)
  assert ours.scores != pytest.approx(deeper.scores, rel=1e-4)
  write_json(workdir / 'result.json', {'phase': 'pretrain', 'step': 8})
  with pytest.raises(InputError, match='another checkpoint'):
    run.recommender.recommend([['i1']], depth='adaptive')
  assert json.loads((workdir / 'adaptive.json').read_text()) == content
  for name in ('adaptive.json', 'result.json'):
    (workdir / name).unlink()


def test_changes_by_hand():
  """Of five queries, over the ten items of twelve that are best after the step."""
  table_VxD, old_MxD, new_MxD = (np.random.default_rng(n).normal(size=(rows, 3)).astype(np.float32)
                                 for n, rows in enumerate((12, 5, 5)))
  catalogue = Catalogue(CatalogueConfig(tau=0.5, tile=4, block=4), 12)
  found, item_MxK = adaptive.changes(catalogue, table_VxD, old_MxD, new_MxD, np.ones(5, bool))
  best_MxK = np.argsort(-new_MxD @ table_VxD.T)[:, :10]
  np.testing.assert_array_equal(item_MxK, best_MxK)
  old, new = (np.take_along_axis(x @ table_VxD.T / 0.5, best_MxK, 1) for x in (old_MxD, new_MxD))
  length = lambda x_MxD: np.linalg.norm(x_MxD, axis=1)
  wanted = {'state': length(new_MxD - old_MxD) / length(old_MxD), 'scores': np.abs(new - old).max(1),
            'kl': stats.entropy(softmax(new, 1), softmax(old, 1), axis=1)}
  for name, value_M in wanted.items():
    np.testing.assert_allclose(found[name], value_M, rtol=1e-4, err_msg=name)
