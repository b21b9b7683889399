"""Phase two beyond the figures of test_golden: advantages, and batches in which not all is scored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL, make_store

from lares_jax.catalogue import Catalogue, CatalogueConfig
from lares_jax.data.batches import DataConfig, TrainBatches
from lares_jax.metrics import gain
from lares_jax.model.depth import DepthConfig
from lares_jax.model.lares import Lares
from lares_jax.objectives import posttrain
from lares_jax.objectives.posttrain import Posttrain, PosttrainConfig, advantages, divergence

REWARD_GxM = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
DEPTH_G = np.array([1, 3, 5], np.int32)


def test_one_hit_in_a_group_of_four():
  advantage_GxM = advantages(REWARD_GxM)
  np.testing.assert_allclose(advantage_GxM[:2, 0], (0.75 / 0.5001, -0.25 / 0.5001), rtol=1e-6)
  np.testing.assert_array_equal(advantage_GxM[:, 1:], np.zeros((4, 2)))


@pytest.mark.parametrize('rollouts', (3, 4, 5, 7, 8))
def test_groups_of_equal_rewards_have_no_advantage_at_all(rollouts):
  reward_M = gain(np.arange(0, 12, 0.5), 10, 'ndcg').astype(np.float32)
  advantage_GxM = jax.jit(advantages)(jnp.broadcast_to(reward_M, (rollouts, len(reward_M))))
  np.testing.assert_array_equal(advantage_GxM, 0)


@pytest.fixture(scope='module')
def batches(tmp_path_factory):
  """All prompts in one batch, some of the targets kept: as packed rows, and as prefixes."""
  store = make_store(tmp_path_factory.mktemp('store'), users=12, longest=10)
  kept_N = np.random.default_rng(1).random(len(store.items_N)) < 0.7
  prompts = int(kept_N[store.targets('train')[1]].sum())
  made = {}
  for rows in ('packed', 'prefix'):
    config = DataConfig(rows=rows, row_length=16, max_history=8)
    made[rows] = TrainBatches(store, config, 60, 0, 0, kept_N).batch(0)
    assert made[rows].scored_BxA.sum() == prompts, 'not all in the first batch'
  assert not made['packed'].scored_BxA[made['packed'].rows.real_BxL].all()
  return made


def _objective(**changes) -> Posttrain:
  model = dataclasses.replace(MODEL, embed_dropout=0.0, pre_dropout=0.0, core_dropout=0.0)
  return Posttrain(Lares(model, 30), Catalogue(CatalogueConfig(tile=16, block=16), 30), DepthConfig(2),
                   PosttrainConfig(rollouts=3, k=5, reward='ndcg', beta=0.5, **changes))


def _params(objective, batch, seed):
  rows, rng = batch.rows, np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: objective.model.init(
    jax.random.key(0), rows, jnp.zeros((*rows.item_BxL.shape, 8)), 1, cap=1))['params']
  return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), jnp.float32), shapes)


def test_packed_prompts_and_prefixes_have_one_loss_and_gradient(batches):
  objective = _objective()
  policy, reference = (_params(objective, batches['packed'], seed) for seed in (0, 1))

  @jax.jit
  def outcome(batch):
    z_NxLxD = jnp.zeros((3 * len(batch.rows.item_BxL), batch.rows.item_BxL.shape[1], 8))
    return jax.value_and_grad(lambda params: objective.loss(
      params, reference, batch, DEPTH_G, (z_NxLxD, z_NxLxD), jax.random.key(0)), has_aux=True)(policy)

  (loss, seen), grads = outcome(batches['packed'])
  (alone, wanted), want = outcome(batches['prefix'])
  assert abs(loss) > 0.01 and seen['kl'] > 0.01
  np.testing.assert_allclose(loss, alone, rtol=1e-5)
  for name in ('targets', 'reward', 'kl', 'advantage_spread', 'equal_groups', 'reward_spread'):
    np.testing.assert_allclose(seen[name], wanted[name], rtol=1e-5, err_msg=name)
  alike_M = np.ptp(np.asarray(seen['advantage_GxM']), axis=0) == 0
  share = alike_M[batches['packed'].scored_BxA.reshape(-1)].mean()
  np.testing.assert_allclose(seen['equal_groups'], share, rtol=1e-5, err_msg='groups of equal rewards')
  largest = max(np.abs(x).max() for x in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * largest), grads, want)

  packed = batches['packed']  # what stands where nothing is scored does not count
  other = np.where(packed.scored_BxA, packed.target_BxA, np.int32(29))
  jax.tree.map(np.testing.assert_array_equal, outcome(packed._replace(target_BxA=other))[1], grads)


@pytest.mark.parametrize('noise', ('shared', 'independent'))
def test_a_policy_is_its_reference_where_they_share_their_noise(batches, noise):
  objective = _objective(reference_noise=noise)
  params = _params(objective, batches['packed'], 0)
  _, seen = jax.jit(objective)(params, params, batches['packed'], DEPTH_G, jax.random.key(0))
  assert seen['kl'] == 0 if noise == 'shared' else seen['kl'] > 1e-6


@pytest.mark.parametrize('noise', ('shared', 'independent'))
def test_rollouts_differ_by_initial_state_and_depth(batches, monkeypatch, noise):
  monkeypatch.setattr(Posttrain, 'loss', lambda *args: args[5])
  objective, rows = _objective(reference_noise=noise), batches['packed'].rows
  ours, theirs = objective(None, None, batches['packed'], DEPTH_G, jax.random.key(0))
  z_BxGxLxD = ours.reshape(len(rows.item_BxL), 3, -1, 8)
  assert (z_BxGxLxD[:, :1] != z_BxGxLxD[:, 1:]).all(), 'rollouts share their initial state'
  assert (ours == theirs).all() == (noise == 'shared')
  depth_SxG = [objective.draw(np.random.default_rng(n)) for n in range(20)]
  assert (np.ptp(depth_SxG, axis=1) > 0).mean() > 0.5, 'rollouts share their depth'


@pytest.mark.parametrize('part', ('pre_dropout', 'core_dropout'))
def test_the_policy_drops_and_its_reference_does_not(batches, monkeypatch, part):
  objective, batch, called = _objective(), batches['packed'], []
  model = dataclasses.replace(objective.model.config, **{part: 0.5})
  objective = dataclasses.replace(objective, model=Lares(model, 30))
  params = _params(objective, batch, 0)
  z_NxLxD = jnp.zeros((3 * len(batch.rows.item_BxL), batch.rows.item_BxL.shape[1], 8))
  monkeypatch.setattr(posttrain, 'divergence', lambda *args: called.append(args) or divergence(*args))

  @jax.jit
  def logprobs(key):
    objective.loss(params, params, batch, DEPTH_G, (z_NxLxD, z_NxLxD), key)
    return called[-1]

  (policy, reference), (other, again) = map(logprobs, jax.random.split(jax.random.key(0)))
  assert (policy != other).any()
  np.testing.assert_array_equal(reference, again)
  # After one step of one initial state the rollouts of a prompt differ by their dropout alone.
  first_GxM, held_GxM = (x[0][:, batch.scored_BxA.reshape(-1)] for x in (policy, reference))
  assert np.abs(np.diff(first_GxM, axis=0)).max(axis=1).min() > 1e-3, 'rollouts share their dropout'
  np.testing.assert_allclose(held_GxM, np.broadcast_to(held_GxM[:1], held_GxM.shape), rtol=1e-4)
