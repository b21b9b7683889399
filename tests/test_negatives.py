"""Sampled losses against the sums over all items that they stand for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lares_jax import negatives
from lares_jax.catalogue import Catalogue, CatalogueConfig
from lares_jax.errors import InputError
from lares_jax.negatives import Popularity, SampleConfig

M, V, D = 32, 60, 4
COUNT_V = np.sort(np.random.default_rng(1).geometric(0.1, V))[::-1]
SAMPLE = SampleConfig(in_batch=20, uniform=20, popular=20)


def _arrays():
  rng = np.random.default_rng(0)
  target_M = rng.choice(V, M, p=COUNT_V / COUNT_V.sum())
  return (jnp.asarray(rng.normal(size=(M, D)), jnp.float32), jnp.asarray(target_M),
          jnp.ones(M, bool).at[3].set(False), jnp.asarray(rng.normal(size=(V, D)), jnp.float32))


def _catalogue(loss='sampled', sample=SAMPLE) -> Catalogue:
  config = CatalogueConfig(loss=loss, sample=sample, tile=8, block=16)
  return Catalogue(config, V, None, Popularity.of(COUNT_V))


def test_popularity_is_a_law_over_the_items_and_falls_with_them():
  law = Popularity.of(np.array([50, 30, 10, 5, 5]))
  p_V = np.asarray(law.probability(jnp.arange(5)))
  np.testing.assert_allclose(p_V, [0.5, 0.3, 0.1, 0.05, 0.05], atol=1e-4)
  wide = Popularity.of(np.arange(100_000, 0, -1))
  p_V = np.asarray(wide.probability(jnp.arange(100_000)))
  np.testing.assert_allclose(p_V.sum(), 1, rtol=1e-4)
  np.testing.assert_allclose(p_V[[0, 50_000]] * 5e9, [1e5, 5e4], rtol=0.02)


def test_items_are_drawn_as_often_as_is_expected_of_them():
  law = Popularity.of(COUNT_V)
  drawn_N = np.asarray(law.draw(jax.random.key(0), 200_000))
  share_V = np.bincount(drawn_N, minlength=V) / 200_000
  np.testing.assert_allclose(share_V, law.probability(jnp.arange(V)), atol=3e-3)


@pytest.mark.parametrize('sample', (
  SampleConfig(0, 40, 0), SampleConfig(0, 20, 40), SampleConfig(0, 400, 400)))
def test_the_estimate_of_the_sum_over_all_items_is_unbiased(sample):
  query, target, real, table = _arrays()
  catalogue = _catalogue(sample=sample)
  ours = jax.jit(jax.vmap(
    lambda key: jnp.exp(catalogue.likelihood(query, target, real, table, key).lse_M)))
  sums_SxM = np.asarray(ours(jax.random.split(jax.random.key(0), 200)))
  want_M = np.exp(catalogue.likelihood(query, target, real, table).lse_M)
  error_M = sums_SxM.std(axis=0) / np.sqrt(200)
  off_M = np.abs(sums_SxM.mean(axis=0) - want_M)[np.asarray(real)]
  assert (off_M < (4.5 * error_M + 1e-3 * want_M)[np.asarray(real)]).all()


def test_in_batch_negatives_of_targets_by_popularity_are_unbiased_too():
  query, _, real, table = _arrays()
  catalogue = _catalogue(sample=SampleConfig(400, 100, 0))
  law_V = np.asarray(Popularity.of(COUNT_V).probability(jnp.arange(V)))

  def off(key):
    key_target, key = jax.random.split(key)
    target = jax.random.choice(key_target, V, (M,), p=law_V)
    ours, exact = (catalogue.likelihood(query, target, real, table, k).lse_M for k in (key, None))
    return jnp.exp(ours - exact) - 1

  off_SxM = np.asarray(jax.jit(jax.vmap(off))(jax.random.split(jax.random.key(0), 400)))
  off_M = np.abs(off_SxM.mean(axis=0))[np.asarray(real)]
  assert (off_M < 4.5 * off_SxM.std(axis=0)[np.asarray(real)] / 20).all() and off_M.mean() < 0.05


def test_gbce_takes_uniform_negatives_alone():
  arrays, key = _arrays(), jax.random.key(0)
  with_others, alone = (_catalogue('gbce', SampleConfig(n, 40, n)).likelihood(*arrays, key).lse_M
                        for n in (9, 0))
  np.testing.assert_array_equal(with_others, alone)


def test_a_negative_that_is_the_target_does_not_count():
  score, own = jnp.zeros((2, 3)), jnp.zeros(2)
  lse_M = negatives.log_sum_exp(score, own, jnp.array([4, 4, 7]), jnp.zeros(3), jnp.array([4, 7]))
  np.testing.assert_allclose(lse_M, np.log([1 + 1, 1 + 2]), rtol=1e-6)


def test_in_batch_negatives_are_real_targets_and_all_follow_the_key():
  _, target, real, _ = _arrays()
  real = jnp.zeros(M, bool).at[5].set(True)
  draw = lambda seed: negatives.draw(
    SAMPLE, Popularity.of(COUNT_V), target, real, jax.random.key(seed))[0]
  assert (draw(0)[:20] == target[5]).all()
  np.testing.assert_array_equal(draw(0), draw(0))
  assert (draw(0)[20:] != draw(1)[20:]).any()


def test_gbce_by_hand():
  score, own = np.array([[0.5, -1.0, 2.0]]), np.array([0.3])
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  share = 3 / (V - 1)
  power = share * (0.75 * (1 - 1 / share) + 1 / share)
  want = power * np.log(sigmoid(0.3)) + np.log(sigmoid(-0.5)) + np.log(sigmoid(1.0))
  got = negatives.gbce(jnp.asarray(score), jnp.asarray(own), jnp.array([1, 2, 9]),
                       jnp.array([9]), V, 0.75)
  np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize('loss', ('sampled', 'gbce'))
def test_one_interface_and_finite_gradients_for_any_axes_before_m(loss):
  query, target, real, table = _arrays()
  catalogue, key = _catalogue(loss), jax.random.key(3)
  flat = catalogue.likelihood(query, target, real, table, key)
  wide = catalogue.likelihood(query[None], target[None], real[None], table, key)
  np.testing.assert_allclose(wide.logprob_M[0], flat.logprob_M, rtol=1e-5)
  assert (np.asarray(flat.logprob_M) < 0).all()
  mean = lambda query, table: catalogue.likelihood(query, target, real, table, key).logprob_M.mean()
  for g in jax.grad(mean, (0, 1))(query, table):
    assert np.isfinite(g).all() and np.abs(g).max() > 0


def test_without_a_key_the_softmax_is_exact():
  query, target, real, table = _arrays()
  exact = dataclasses.replace(_catalogue(), config=CatalogueConfig(tile=8, block=16))
  np.testing.assert_array_equal(_catalogue().likelihood(query, target, real, table).lse_M,
                                exact.likelihood(query, target, real, table, jax.random.key(0)).lse_M)


def test_no_negatives_are_refused():
  with pytest.raises(InputError, match='numbers of negatives'):
    SampleConfig(0, 0, 5)
