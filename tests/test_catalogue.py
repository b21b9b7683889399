"""The catalogue pass against plain formulas over [M, V]."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lares_jax import kernels, share
from lares_jax.catalogue import Catalogue, CatalogueConfig
from lares_jax.errors import InputError
from lares_jax.negatives import SampleConfig

M, V, D = 7, 23, 4
SMALL = Catalogue(CatalogueConfig(tile=3, block=5), V)  # neither divides


def _arrays(seed=0):
  rng = np.random.default_rng(seed)
  return (jnp.asarray(rng.normal(size=(M, D)), jnp.float32),
          jnp.asarray(rng.integers(V, size=M)),
          jnp.asarray([True] * 5 + [False, True]),
          jnp.asarray(rng.normal(size=(V, D)), jnp.float32))


def _plain_scores(query_MxD, table_VxD, config):
  if config.similarity != 'dot':
    query_MxD = query_MxD / jnp.linalg.norm(query_MxD, axis=1, keepdims=True)
  if config.similarity == 'cos':
    table_VxD = table_VxD / jnp.linalg.norm(table_VxD, axis=1, keepdims=True)
  return query_MxD @ table_VxD.T / config.tau


@pytest.mark.parametrize('similarity', ('dot', 'cos', 'direction'))
@pytest.mark.parametrize('tile, block', ((3, 5), (7, 23), (100, 100), (1, 1)))
def test_likelihood_and_gradients_equal_the_plain_softmax(similarity, tile, block):
  query, target, real, table = _arrays()
  config = CatalogueConfig(similarity, 0.5, tile, block)
  catalogue = Catalogue(config, V)

  def ours(query, table):
    out = catalogue.likelihood(query, target, real, table)
    return (jnp.where(real, out.logprob_M, 0.0) * jnp.arange(M)).sum() + out.target_score_M.sum()

  def plain(query, table):
    scores = _plain_scores(query, table, config)
    logprob = jax.nn.log_softmax(scores)[jnp.arange(M), target]
    target_score = jnp.where(real, scores[jnp.arange(M), target], 0.0)
    return (jnp.where(real, logprob, 0.0) * jnp.arange(M)).sum() + target_score.sum()

  got, want = (jax.value_and_grad(f, (0, 1))(query, table) for f in (ours, plain))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize('similarity', ('dot', 'cos', 'direction'))
@pytest.mark.parametrize('keep', (0, 64 * V, 2**22))
def test_totals_equal_the_plain_softmax_whether_scores_are_kept_or_not(similarity, keep, monkeypatch):
  query, target, real, table = (
    jnp.concatenate([x] * 30) if len(x) == M else x for x in _arrays())  # several tiles
  catalogue = Catalogue(CatalogueConfig(similarity, 0.5, 100, 5, keep), V)
  assert catalogue.config.kept(V) == {0: 0, 64 * V: 64, 2**22: 100}[keep]
  monkeypatch.setattr(*((kernels, 'gradients') if keep else (share, 'objective')), None)  # not used
  weight = jnp.asarray(np.random.default_rng(1).normal(size=len(real)), jnp.float32)
  loss = lambda logprob, weight: weight * jnp.exp(-logprob / 5) - jnp.square(logprob)

  def ours(query, table):
    sum_, logprob = catalogue.total(loss, query, target, real, table, (weight,))
    return 3 * sum_, logprob

  def plain(query, table):
    scores = _plain_scores(query, table, catalogue.config)
    logprob = jnp.where(real, jax.nn.log_softmax(scores)[jnp.arange(len(real)), target], 0.0)
    return 3 * jnp.where(real, loss(logprob, weight), 0.0).sum(), logprob

  got, want = (jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(query, table)
               for f in (ours, plain))
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4)
  np.testing.assert_allclose(ours(query, table)[0], want[0][0], rtol=2e-5)  # without a gradient


def test_scores_far_from_zero_neither_overflow_nor_vanish():
  query, target, real, table = _arrays()
  for scale in (1e4, 1e-8, -1e4):
    out = SMALL.likelihood(query * scale, target, real, table)
    want = jax.nn.logsumexp(query * scale @ table.T, axis=1)
    np.testing.assert_allclose(out.lse_M[real], want[real], rtol=1e-5)


def _rank_by_hand(scores_V, target):
  others = np.delete(scores_V, target)
  return (others > scores_V[target]).sum() + 0.5 * (others == scores_V[target]).sum()


@pytest.mark.parametrize('tile, block', ((3, 5), (7, 23)))
def test_ranks_by_hand(tile, block):
  query, target, real, table = _arrays()
  catalogue = Catalogue(CatalogueConfig(tile=tile, block=block), V)
  rank = catalogue.ranks(query, target, real, table)
  scores = np.asarray(query @ table.T)
  want = [_rank_by_hand(scores[m], int(target[m])) for m in range(M)]
  np.testing.assert_array_equal(rank[real], np.asarray(want)[real])


def test_a_model_that_scores_all_alike_ranks_in_the_middle():
  query, target, _, table = _arrays()
  same = jnp.broadcast_to(table[:1], table.shape)
  rank = SMALL.ranks(query, target, jnp.ones(M, bool), same)
  np.testing.assert_array_equal(rank, (V - 1) / 2)


def test_nan_is_never_a_hit():
  query, target, _, table = _arrays()
  everywhere = SMALL.ranks(query * jnp.nan, target, jnp.ones(M, bool), table)
  np.testing.assert_array_equal(everywhere, V - 1)
  one = table.at[(target[0] + 1) % V].set(jnp.nan)
  with_nan = SMALL.ranks(query, target, jnp.ones(M, bool), one)[0]
  scores = np.array(query[0] @ table.T)
  scores[(int(target[0]) + 1) % V] = np.inf
  assert with_nan == _rank_by_hand(scores, int(target[0]))


def test_hidden_items_leave_the_ranking_and_a_hidden_target_is_last():
  query, target, _, table = _arrays()
  hidden = jnp.stack([(target + 1) % V, (target + 2) % V, jnp.full(M, -1)], axis=1)
  hidden = hidden.at[3, 0].set(target[3])
  rank = SMALL.ranks(query, target, jnp.ones(M, bool), table, hidden)
  scores = np.array(query @ table.T)
  for m in range(M):
    out = [i for i in np.asarray(hidden[m]) if i >= 0]
    if m == 3:
      assert rank[m] == V - 1
    else:
      scores[m, out] = -np.inf
      assert rank[m] == _rank_by_hand(scores[m], int(target[m]))


@pytest.mark.parametrize('block', (2, 5, 23))
def test_top_k_is_the_full_sort(block):
  query, target, _, table = _arrays()
  hidden = target[:, None]
  catalogue = Catalogue(CatalogueConfig(tile=3, block=block), V)
  score, item = catalogue.top_k(query, jnp.ones(M, bool), table, 6, hidden)
  scores = np.array(query @ table.T)
  scores[np.arange(M), target] = -np.inf
  want = np.argsort(-scores, axis=1, kind='stable')[:, :6]
  np.testing.assert_array_equal(item, want)
  np.testing.assert_allclose(score, np.take_along_axis(scores, want, 1), rtol=1e-5)


def test_top_k_beyond_what_is_left_says_so():
  query, _, _, table = _arrays()
  score, item = Catalogue(CatalogueConfig(block=2), 3).top_k(
    query, jnp.ones(M, bool), table[:3], 5)
  assert (np.asarray(item)[:, 3:] == -1).all() and np.isneginf(np.asarray(score)[:, 3:]).all()
  assert (np.sort(np.asarray(item)[:, :3], 1) == np.arange(3)).all()


def test_equals_stand_in_the_order_of_their_ids():
  score, item = SMALL.top_k(jnp.ones((M, D)), jnp.ones(M, bool), jnp.ones((V, D)), 8)
  np.testing.assert_array_equal(item, np.tile(np.arange(8), (M, 1)))  # of two blocks
  np.testing.assert_array_equal(score, D)


def test_top_k_and_rank_agree_on_who_is_first():
  query, _, _, table = _arrays()
  _, item = SMALL.top_k(query, jnp.ones(M, bool), table, 3)
  for k in range(3):
    rank = SMALL.ranks(query, item[:, k], jnp.ones(M, bool), table)
    np.testing.assert_array_equal(rank, k)


def test_bf16_products_stay_close():
  query, target, real, table = _arrays()
  exact, rough = (Catalogue(CatalogueConfig(dtype=d, block=5), V).likelihood(
    query, target, real, table) for d in ('float32', 'bfloat16'))
  np.testing.assert_allclose(rough.lse_M[real], exact.lse_M[real], rtol=2e-2)


def test_bad_settings_are_named():
  with pytest.raises(InputError, match='gbce: its negatives are uniform'):
    CatalogueConfig(loss='gbce', sample=SampleConfig(uniform=0))


@pytest.mark.parametrize('dtype, exact', (('float32', True), ('bfloat16', False)))
def test_float32_scores_are_float32_on_every_machine(dtype, exact):
  """Accelerators round the factors of a float32 product unless told otherwise: ties would part."""
  query, target, real, table = _arrays()
  catalogue = Catalogue(CatalogueConfig(dtype=dtype, tile=3, block=5), V)
  mean = lambda query, table: catalogue.likelihood(query, target, real, table).logprob_M.mean()
  text = jax.jit(jax.value_and_grad(mean, (0, 1))).lower(query, table).as_text()
  products = [line for line in text.splitlines() if 'dot_general' in line]
  assert len(products) > 3
  told = [line.count('HIGHEST') == 2 for line in products]
  assert all(told) if exact else not any(told), 'a product that is not scoring.product'


def test_a_tie_is_rounding_and_no_more():
  table = jnp.ones((3, 4)).at[1].set(1 + 1e-5).at[2].set(1 + 1e-7)
  rank = Catalogue(CatalogueConfig(block=2), 3).ranks(
    jnp.ones((1, 4)), jnp.array([0]), jnp.array([True]), table)
  assert rank[0] == 1.5
