"""Every backbone: the laws of causality and company, all depths, both precisions, training.

Parity with the published procedure is in test_golden.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL

from lares_jax.data.rows import fill, units_per_tick
from lares_jax.errors import InputError
from lares_jax.model import fourier
from lares_jax.model.lares import LAYERS, Lares, initial_state
from lares_jax.model.tedrec import FusionConfig

ITEMS = np.arange(20, dtype=np.int32)
TIMES = np.cumsum(ITEMS**3).astype(np.int64) + 10**9
NAMES = (*LAYERS, 'hstu_times', 'tedrec')
CAUSAL = tuple(n for n in LAYERS if n not in ('fmlp', 'bsarec')) + ('hstu_times',)


@pytest.fixture(autouse=True)
def _explicit_broadcasts():
  with jax.numpy_rank_promotion('raise'):
    yield


def _config(name, **backbone):
  fusion = FusionConfig('tedrec', text_width=6, experts=2) if name == 'tedrec' else FusionConfig()
  layer = 'transformer' if name == 'tedrec' else name.split('_')[0]
  backbone = dataclasses.replace(MODEL.backbone, name=layer, times=name == 'hstu_times', **backbone)
  return dataclasses.replace(MODEL, backbone=backbone, fusion=fusion)


def _rows(starts, lengths, rows, places, shape):
  as_array = lambda x: np.array(x, np.int64)
  return fill(ITEMS, as_array(starts), as_array(lengths), as_array(rows), as_array(places), shape,
              TIMES)


PREFIXES = _rows([0, 5, 9], [5, 3, 8], [0, 1, 2], [0, 0, 0], (3, 8))


@functools.cache
def _params(name):
  """Parameters far from their start, so that a leak would show."""
  config = _config(name)
  z0 = initial_state(config, PREFIXES, jax.random.key(1), train=False)
  init = jax.jit(lambda key: Lares(config, 20).init(key, PREFIXES, z0, 1, cap=1)['params'])
  leaves, tree = jax.tree.flatten(init(jax.random.key(0)))
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return jax.tree.unflatten(tree, [x * 3 + 0.1 * jax.random.normal(k, x.shape)
                                   for x, k in zip(leaves, keys, strict=True)])


def _states(config, params, rows, depth, cap=4, **kwargs):
  z0 = initial_state(config, rows, jax.random.key(1), train=False)
  return Lares(config, 20).apply({'params': params}, rows, z0, depth, cap=cap, **kwargs).state_BxLxD


@pytest.mark.parametrize('name', NAMES)
def test_one_set_of_parameters_serves_every_depth_and_both_precisions(name):
  config, params = _config(name), _params(name)
  run = jax.jit(lambda params, depth: _states(config, params, PREFIXES, depth))
  one, four = run(params, 1), run(params, 4)
  assert np.isfinite(one).all() and np.isfinite(four).all()
  assert np.abs(one - four)[PREFIXES.real_BxL].max() > 1e-2, 'depth must change the states'
  plain = dataclasses.replace(config, core_layers=0)
  # The plain model's parameters are the reasoning one's, less the core-block's.
  rest = {key: value for key, value in params.items() if key != 'scan'}
  shallow = _states(plain, rest, PREFIXES, 0)
  prelude = Lares(config, 20).apply({'params': params}, PREFIXES, method='prelude')
  np.testing.assert_array_equal(shallow, prelude)
  half = _config(name, dtype='bfloat16')
  coarse = _states(half, params, PREFIXES, 2)
  assert coarse.dtype == jnp.bfloat16
  gap = np.abs(coarse.astype(jnp.float32) - run(params, 2))[PREFIXES.real_BxL]
  assert gap.mean() < 0.05, f'bfloat16 is off by {gap.mean():.3f} on average'


@pytest.mark.parametrize('name', NAMES)
def test_every_parameter_learns_in_training(name):
  config = _config(name)

  @jax.jit
  def grads(params, depth):
    loss = lambda params: jnp.square(_states(
      config, params, PREFIXES, depth, train=True, rngs={'dropout': jax.random.key(3)}
      ) - jnp.arange(8.0)[None, None, :])[PREFIXES.real_BxL].sum()
    return jax.grad(loss)(params)

  for path, grad in jax.tree.leaves_with_path(grads(_params(name), 3)):
    assert np.isfinite(grad).all(), jax.tree_util.keystr(path)
    learns = path[0].key != 'text'
    assert np.any(grad) == learns, f'{jax.tree_util.keystr(path)}: gradient should be non-zero: {learns}'


@pytest.mark.parametrize('name', NAMES)
def test_gradients_flow_from_no_later_token_and_no_other_segment(name):
  rows = _rows([0, 5], [5, 3], [0, 0], [0, 5], (1, 8))
  config, params = _config(name), _params(name)

  @jax.jit
  def jacobian(item_LxD):  # as a function of each token's own embedding
    table = lambda item_LxD: {**params, 'item': params['item'].at[rows.item_BxL[0]].set(item_LxD)}
    out = lambda item_LxD: _states(config, table(item_LxD), rows, 2)[0] @ jnp.arange(8.0)
    return jax.jacrev(out)(item_LxD)

  flows_LxL = np.abs(jacobian(params['item'][rows.item_BxL[0]])).max(-1) > 0
  segment = rows.segment_BxL[0]
  allowed_LxL = np.tri(8, dtype=bool) & (segment[:, None] == segment[None, :])
  assert config.causal == (name in CAUSAL)
  if config.causal:
    np.testing.assert_array_equal(flows_LxL, allowed_LxL)
  else:
    assert flows_LxL.all(), 'a backbone that is causal need not say that it is not'


@pytest.mark.parametrize('name', CAUSAL)
def test_a_history_alone_or_in_company_gives_the_same_states(name):
  alone = _rows([4], [5], [0], [0], (1, 8))
  company = _rows([0, 4, 9], [3, 5, 4], [0, 0, 1], [0, 3, 2], (2, 10))  # in longer rows, too
  config, params = _config(name), _params(name)
  ours = _states(config, params, alone, 3)[0, :5]
  theirs = _states(config, params, company, 3)[0, 3:8]
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_hstu_with_times_reads_gaps_alone_and_asks_for_them():
  config, params = _config('hstu_times'), _params('hstu_times')
  run = lambda time_BxL: _states(config, params, PREFIXES._replace(time_BxL=time_BxL), 2)
  time_BxL = np.where(PREFIXES.real_BxL, PREFIXES.time_BxL, 0)
  base = run(time_BxL)
  np.testing.assert_allclose(run(time_BxL + 77), base, rtol=1e-5, atol=1e-6)
  assert np.abs(run(time_BxL * 64) - base)[PREFIXES.real_BxL].max() > 1e-3
  assert np.isfinite(run(np.where(time_BxL > 0, np.int32(2**31 - 1), 0))).all()
  with pytest.raises(InputError, match=r'backbone\.times'):
    run(None)


def test_times_in_rows_fit_whatever_their_unit():
  offsets = np.array([0, 5, 5, 20])
  assert units_per_tick(TIMES, offsets) == 1
  nanoseconds = TIMES * 10**9
  units = units_per_tick(nanoseconds, offsets)
  assert (nanoseconds[19] - nanoseconds[5]) / units <= 2**31 - 1 < (TIMES[19] - TIMES[5]) * 10**9
  rows = fill(ITEMS, np.array([5]), np.array([3]), np.array([0]), np.array([1]), (1, 5), TIMES)
  np.testing.assert_array_equal(rows.time_BxL, [[0, 0, 6**3, 6**3 + 7**3, 0]])
  without = fill(ITEMS, np.array([5]), np.array([3]), np.array([0]), np.array([1]), (1, 5))
  assert without.time_BxL is None


@pytest.mark.parametrize('length', (7, 8))
def test_transform_is_numpys(length):
  x_BxLxD, y_BxLxD = np.random.default_rng(0).normal(size=(2, 3, length, 4)).astype(np.float32)
  want = np.fft.rfft(x_BxLxD, axis=1, norm='ortho')
  ours = fourier.rfft(x_BxLxD)
  np.testing.assert_allclose(ours.real_BxFxD + 1j * ours.imag_BxFxD, want, atol=1e-5)
  np.testing.assert_allclose(fourier.irfft(ours, length), x_BxLxD, atol=1e-5)
  product = want * np.fft.rfft(y_BxLxD, axis=1, norm='ortho')
  mixed = fourier.irfft(fourier.times(ours, fourier.rfft(y_BxLxD)), length)
  np.testing.assert_allclose(mixed, np.fft.irfft(product, length, 1, 'ortho'), atol=1e-5)
  want[:, 2:] = 0
  low = fourier.irfft(fourier.rfft(x_BxLxD, 2), length)
  np.testing.assert_allclose(low, np.fft.irfft(want, length, 1, 'ortho'), atol=1e-5)


def test_the_noise_of_the_gate_is_for_training_alone():
  config = _config('tedrec')
  config = dataclasses.replace(
    config, embed_dropout=0.0, fusion=dataclasses.replace(config.fusion, dropout=0.0))
  quiet = dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, noise=False))
  config, quiet = (dataclasses.replace(c, pre_dropout=0.0) for c in (config, quiet))
  h = lambda c, train: np.asarray(Lares(c, 20).apply(
    {'params': _params('tedrec')}, PREFIXES, train, method='prelude',
    rngs={'dropout': jax.random.key(0)}))
  np.testing.assert_array_equal(h(config, False), h(quiet, True))
  assert (h(config, True) != h(config, False)).any()
