"""Parity with the published procedure, from tests/golden (see its README)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_file import config, load, rows, tree
from scipy.special import logsumexp

from lares_jax.catalogue import Catalogue, CatalogueConfig
from lares_jax.data.batches import Batch
from lares_jax.data.pairs import Pairs
from lares_jax.model.depth import DepthConfig
from lares_jax.model.lares import Lares
from lares_jax.objectives import posttrain, pretrain

NAMES = ('transformer_add_dot', 'transformer_add_cos', 'transformer_concat_dot',
         'transformer_gated_dot', 'bsarec_add_dot', 'fmlp_add_dot', 'tedrec_add_cos')
DEPTH = DepthConfig(mean=4, distribution='constant')


def _scoring(name: str) -> Catalogue:
  cos = name.endswith('_cos')
  return Catalogue(
    CatalogueConfig('cos' if cos else 'dot', 0.07 if cos else 1.0, tile=4, block=7), 30)


def _batch(golden) -> Batch:
  place = golden['input/length_B'][:, None] - 1
  batch = Batch(rows(golden['input/item_BxL'], golden['input/length_B']), place,
                golden['input/target_B'][:, None], np.ones((6, 1), bool), None)
  return jax.tree.map(jnp.asarray, batch)


def _paired(golden) -> Batch:
  """Three rows for each target: its own, a copy, and the partner's."""
  items, lengths = (np.concatenate([golden[f'input/{name}'] for name in names]) for names in (
    ('item_BxL', 'item_BxL', 'partner_item_BxL'), ('length_B', 'length_B', 'partner_length_B')))
  last = (np.arange(18) * 8 + lengths - 1).reshape(3, 6)
  batch = _batch(golden)._replace(rows=rows(items, lengths), pairs=Pairs(
    last[0], last[2], last[1], golden['input/target_B'], np.ones(6, bool)))
  return jax.tree.map(jnp.asarray, batch)


def _compare(ours: dict, golden: dict, prefix: str, tolerance: float):
  """Every gradient, relative to the largest entry of its array; row 0 of tables is not compared."""
  theirs = tree(golden, prefix)
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  # The gradient of a key's bias is 0 but for rounding, hence a floor for what counts as large.
  floor = 3e-3 * max(np.abs(x).max() for x in jax.tree.leaves(theirs))
  for (path, want), got in zip(jax.tree.leaves_with_path(theirs), jax.tree.leaves(ours)):
    if path[0].key == 'item':
      got, want = got[1:], want[1:]
    gap = np.abs(got - want).max() / max(np.abs(want).max(), floor)
    assert gap < tolerance, f'{prefix} {jax.tree_util.keystr(path)}: off by {gap:.1e} of its largest'


@pytest.mark.parametrize('name', NAMES)
def test_states_of_every_step(name):
  golden = load(name)
  model, batch = Lares(config(name), 30), _batch(golden)
  out = model.apply({'params': tree(golden, 'param/')}, batch.rows,
                    golden['input/initial_state_SxBxLxD'][0], 4, cap=6, place_BxA=batch.place_BxA)
  ours = np.asarray(out.states_TxBxAxD)[:4, :, 0].transpose(1, 0, 2)
  if name == 'tedrec_add_cos':  # its published code normalises here, ours when it scores
    ours = ours / np.linalg.norm(ours, axis=-1, keepdims=True)
  np.testing.assert_allclose(ours, golden['forward/user_vectors_by_step'], rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(out.distance_T[4:], 0)


@pytest.mark.parametrize('name', NAMES)
def test_pretraining_terms_and_gradients(name):
  golden = load(name)
  scoring = _scoring(name)
  objective = pretrain.Pretrain(
    Lares(config(name), 30), scoring, DEPTH,
    pretrain.PretrainConfig(similarity=scoring.config.similarity, tau=scoring.config.tau,
                            views='separate'))
  z = golden['input/initial_state_SxBxLxD']
  @jax.jit
  def outcome(draw):
    return jax.value_and_grad(lambda params: objective.loss(
      params, _paired(golden), draw, z[:3].reshape(18, 8, 16), [jax.random.key(0)] * 2),
      has_aux=True)(tree(golden, 'param/'))

  (total, terms), grads = outcome(pretrain.Draw(np.int32(4), np.int32(1)))
  for ours, theirs in (('cross_entropy', 'recommendation'), ('trajectory',) * 2,
                       ('step_alignment', 'step')):
    np.testing.assert_allclose(terms[ours], golden[f'spt/{theirs}'], rtol=1e-5, err_msg=ours)
  np.testing.assert_allclose(total, golden['spt/loss'], rtol=1e-5)
  (_, alone), _ = outcome(pretrain.Draw(np.int32(1), np.int32(0)))
  assert alone['step_alignment'] == 0, 'one step has no other to agree with'
  if name == 'tedrec_add_cos':  # the text is given, and the gate's noise is off
    for unused in (grads.pop('text'), grads['fusion'].pop('w_noise')):
      np.testing.assert_array_equal(unused, 0)
  _compare(grads, golden, 'spt/grad/', 1e-4)


def test_false_negatives_leave_the_alignment_where_asked():
  """A pair that shares a target with another is no longer held against it; counted by hand."""
  golden = load('transformer_add_dot')
  pairs = _paired(golden).pairs
  target_P = pairs.target_P
  target_P = np.where(np.arange(len(target_P)) == 1, target_P[0], target_P)
  pairs = pairs._replace(target_P=target_P)
  for masked in (False, True):
    objective = pretrain.Pretrain(
      Lares(config('transformer_add_dot'), 30), _scoring('transformer_add_dot'), DEPTH,
      pretrain.PretrainConfig(mask_same_target=masked))
    counted_PxP = np.asarray(objective._counted(pairs))
    for p, q in np.ndindex(counted_PxP.shape):
      alike = p != q and target_P[p] == target_P[q]
      assert counted_PxP[p, q] == (pairs.real_P[p] and pairs.real_P[q] and not (masked and alike))


@pytest.mark.parametrize('masked', (False, True))
def test_both_alignments_leave_false_negatives_out_where_asked(masked):
  """By their formula, of three views in one forward: pairs 0 and 1 have one target."""
  name, golden = 'transformer_add_dot', load('transformer_add_dot')
  model, batch, params = Lares(config(name), 30), _paired(golden), tree(golden, 'param/')
  target_P = batch.pairs.target_P
  batch = batch._replace(pairs=batch.pairs._replace(target_P=target_P.at[1].set(target_P[0])))
  z_BxLxD = golden['input/initial_state_SxBxLxD'][:3].reshape(18, 8, 16)
  objective = pretrain.Pretrain(
    model, _scoring(name), DEPTH, pretrain.PretrainConfig(tau=0.7, mask_same_target=masked))
  _, seen = jax.jit(objective.loss)(
    params, batch, pretrain.Draw(np.int32(4), np.int32(1)), z_BxLxD, [jax.random.key(0)] * 2)
  last_BxLxD, second_BxLxD = (
    model.apply({'params': params}, batch.rows, z_BxLxD, depth, cap=4).state_BxLxD for depth in (4, 2))
  at = lambda x_BxLxD, place_P: np.asarray(x_BxLxD, np.float64).reshape(-1, 16)[np.asarray(place_P)]
  anchor_P, partner_P, _ = batch.pairs[:3]
  counted_PxP = np.ones((6, 6), bool)
  counted_PxP[[0, 1], [1, 0]] = not masked
  for term, other_PxD in (('trajectory', at(last_BxLxD, partner_P)),
                          ('step_alignment', at(second_BxLxD, anchor_P))):
    logits_PxP = np.where(counted_PxP, at(last_BxLxD, anchor_P) @ other_PxD.T / 0.7, -np.inf)
    want = np.mean([logsumexp(x, axis=1) - np.diag(x) for x in (logits_PxP, logits_PxP.T)])
    np.testing.assert_allclose(seen[term], want, rtol=1e-4, atol=1e-5, err_msg=term)


class _Filled(Lares):
  """With item 0 at filling, as in the figures: the reference's is not zero, and some layers see it."""

  def embedded(self, rows, train):
    return self.input_norm(self.item_VxD[rows.item_BxL] + self.position_PxD[rows.position_BxL])


@pytest.mark.parametrize('reward', ('recall', 'ndcg'))
@pytest.mark.parametrize('name', [n for n in NAMES if n.endswith('_dot')])
def test_posttraining_losses_and_gradients(name, reward):
  golden = load(name)
  objective = posttrain.Posttrain(
    _Filled(config(name), 30), _scoring(name), DEPTH,
    posttrain.PosttrainConfig(rollouts=3, reward=reward, k=5, beta=0.5))
  z = golden['input/initial_state_SxBxLxD']
  initial = tuple(z[i:i + 3].swapaxes(0, 1).reshape(18, 8, 16) for i in (3, 6))
  depth_G = np.array([3, 1, 4], np.int32)

  def loss(params):
    return objective.loss(params, tree(golden, 'ref_param/'), _batch(golden), depth_G, initial,
                          jax.random.key(0))

  (total, seen), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tree(golden, 'param/'))
  want = lambda key: golden[f'rpt/{reward}/{key}']
  np.testing.assert_allclose(3 * seen['targets'] * seen['reward'], want('reward_sum'), rtol=1e-5)
  np.testing.assert_allclose(seen['advantage_GxM'].T, want('advantage_BxG'), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(total, want('loss'), rtol=1e-4, atol=1e-6)
  _compare(grads, golden, f'rpt/{reward}/grad/', 1e-4)


@pytest.mark.parametrize('view', ('dropout', 'partner'))
def test_duorec_s_term_is_of_the_views_that_it_names(view):
  name, golden = 'transformer_add_dot', load('transformer_add_dot')
  model, batch, params = Lares(config(name), 30), _paired(golden), tree(golden, 'param/')
  z_BxLxD = golden['input/initial_state_SxBxLxD'][:3].reshape(18, 8, 16)
  objective = pretrain.Pretrain(model, _scoring(name), DEPTH,
                                pretrain.PretrainConfig(alpha=0.0, gamma_view=view))
  _, seen = jax.jit(objective.loss)(
    params, batch, pretrain.Draw(4, 0), z_BxLxD, [jax.random.key(0)] * 2)
  state_BxLxD = model.apply({'params': params}, batch.rows, z_BxLxD, 4, cap=4).state_BxLxD
  anchor_PxD, partner_PxD, copy_PxD = (
    state_BxLxD.reshape(-1, 16)[place_P] for place_P in batch.pairs[:3])
  first_PxD = anchor_PxD if view == 'dropout' else partner_PxD
  want = pretrain.infonce(first_PxD, copy_PxD, 1.0, batch.pairs.real_PxP, within=view == 'partner')
  np.testing.assert_allclose(seen[f'{view}_alignment'], want, rtol=1e-5)
