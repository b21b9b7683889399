import jax.numpy as jnp
import numpy as np
import pytest

from lares_jax import metrics, report


def test_by_hand():
  rank = np.array([0, 4.5, 9, 10, 99, np.nan])
  out = metrics.per_user(rank)
  np.testing.assert_array_equal(out['recall@5'], [1, 1, 0, 0, 0, 0])
  np.testing.assert_array_equal(out['recall@10'], [1, 1, 1, 0, 0, 0])
  np.testing.assert_allclose(out['ndcg@10'], [1, 1 / np.log2(6.5), 1 / np.log2(11), 0, 0, 0])
  np.testing.assert_allclose(out['mrr'], [1, 1 / 5.5, 0.1, 1 / 11, 0.01, 0])
  assert metrics.summary(rank)['recall@20'] == pytest.approx(4 / 6)


def test_numpy_and_jax_agree():
  rank = np.array([0.0, 2.5, 9.5, 10.0, np.nan], np.float32)
  for kind in ('recall', 'ndcg'):
    np.testing.assert_allclose(metrics.gain(rank, 10, kind),
                               metrics.gain(jnp.asarray(rank), 10, kind, jnp), rtol=1e-6)


def test_an_empty_split_is_nan_and_not_zero():
  assert np.isnan(metrics.summary(np.zeros(0))['ndcg@10'])


def test_an_unknown_reward_is_refused():
  with pytest.raises(ValueError, match='recall or ndcg'):
    metrics.gain(np.zeros(1), 10, 'map')


def test_ranks_count_ties_half():
  np.testing.assert_array_equal(metrics.ranks(np.array([9, 5, 5, 1])), [0, 1.5, 1.5, 3])


def test_a_table_lines_up_and_marks_the_depth_that_was_chosen():
  assert report.depth_table({1: {'mrr': 0.5}, 12: {'mrr': 0.25}}, 12, 'test, history ranked') == (
    'test, history ranked\n'
    '| depth       | mrr    |\n'
    '|-------------|--------|\n'
    '| 1           | 0.5000 |\n'
    '| 12 (chosen) | 0.2500 |')
