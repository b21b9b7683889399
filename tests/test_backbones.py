"""Every backbone: the laws of causality and company, all depths, both precisions, training.

Parity with the published procedure is in test_golden.py.
"""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL

from lares_jax.data.rows import Segments, fill, units_per_tick
from lares_jax.model import fourier
from lares_jax.model.backbone import Context
from lares_jax.model.bsarec import Rescaler
from lares_jax.model.fmlp import Filter
from lares_jax.model.hstu import HstuLayer
from lares_jax.model.lares import LAYERS, Lares
from lares_jax.model.tedrec import Expert, FusionConfig, TedrecFusion
from lares_jax.model.transformer import FeedForward

ITEMS = np.arange(20, dtype=np.int32)
TIMES = np.cumsum(ITEMS**3).astype(np.int64) + 10**9
EXAMPLE: dict[str, Any] = {'__name__': 'example'}  # the backbone that the README adds
exec(pathlib.Path(__file__).parents[1].joinpath('README.md').read_text(encoding='utf-8')
     .split('```python\n')[1].split('```')[0], EXAMPLE)
LAYERS['conv'] = EXAMPLE['ConvLayer']
NAMES = (*LAYERS, 'tedrec')
CAUSAL = ('transformer', 'hstu', 'gru', 'conv')


@pytest.fixture(autouse=True)
def _explicit_broadcasts():
  with jax.numpy_rank_promotion('raise'):
    yield


def _config(name, **backbone):
  fusion = FusionConfig('tedrec', text_width=6, experts=2) if name == 'tedrec' else FusionConfig()
  layer = 'transformer' if name == 'tedrec' else name
  backbone = {'name': layer, 'times': name == 'hstu', **backbone}
  return dataclasses.replace(
    MODEL, backbone=dataclasses.replace(MODEL.backbone, **backbone), fusion=fusion)


def _rows(starts, lengths, rows, places):
  """Rows [2, 8], always, so that a backbone is compiled once for all tests."""
  return fill(ITEMS, Segments(*map(np.array, (starts, lengths, rows, places))), (2, 8), TIMES)


PREFIXES = _rows([0, 8], [5, 8], [0, 1], [0, 0])


def _noise(rows):
  """Z_0, a function of each token's item."""
  return np.random.default_rng(1).normal(size=(20, 8)).astype(np.float32)[rows.item_BxL]


@functools.cache
def _params(name):
  """Parameters far from their start, so that a leak would show."""
  init = lambda key: Lares(_config(name), 20).init(key, PREFIXES, _noise(PREFIXES), 1, cap=1)
  shapes = jax.eval_shape(init, jax.random.key(0))['params']
  draw = np.random.default_rng(0).normal
  return jax.tree.map_with_path(
    lambda path, x: jnp.array(draw(size=x.shape) * 0.3 + (path[-1].key == 'scale'), x.dtype),
    shapes)


def _states(config, params, rows, z_BxLxD, depth, **kwargs):
  out = Lares(config, 20).apply({'params': params}, rows, z_BxLxD, depth, cap=4, **kwargs)
  return out.state_BxLxD


@functools.cache
def _run(name, dtype='float32'):
  config, params = _config(name, dtype=dtype), _params(name)
  run = jax.jit(lambda rows, z_BxLxD, depth: _states(config, params, rows, z_BxLxD, depth))
  return lambda rows, depth: run(rows, _noise(rows), depth)


@functools.cache
def _pull(name):
  """(rows, weight [2, 8]) -> gradients of the weighted states in training: parameters, and Z_0."""
  config, key = _config(name), jax.random.key(3, impl='unsafe_rbg')

  def total(params, z_BxLxD, rows, weight_BxL):
    state_BxLxD = _states(config, params, rows, z_BxLxD, 3, train=True, rngs={'dropout': key})
    return (state_BxLxD * weight_BxL[..., None] * jnp.arange(8.0)[None, None]).sum()

  grad = jax.jit(jax.grad(total, (0, 1)))
  return lambda rows, weight_BxL: grad(_params(name), _noise(rows), rows, weight_BxL)


@pytest.mark.parametrize('name', NAMES)
def test_one_set_of_parameters_serves_every_depth_and_both_precisions(name):
  config, run = _config(name), _run(name)
  one, four = run(PREFIXES, 1), run(PREFIXES, 4)
  assert np.isfinite(one).all() and np.isfinite(four).all()
  assert np.abs(one - four)[PREFIXES.real_BxL].max() > 1e-2, 'depth must change the states'
  born = jax.eval_shape(lambda: Lares(_config(name, dtype='bfloat16'), 20).init(
    jax.random.key(0), PREFIXES, _noise(PREFIXES), 1, cap=1))['params']
  assert {x.dtype for x in jax.tree.leaves(born)} == {jnp.dtype('float32')}
  half = _run(name, 'bfloat16')(PREFIXES, 4)
  assert half.dtype == jnp.bfloat16
  gap = np.abs(half.astype(jnp.float32) - four)[PREFIXES.real_BxL]
  assert gap.mean() < 0.05, f'bfloat16 is off by {gap.mean():.3f} on average'
  # The plain model's parameters are the reasoning one's, less the core-block's.
  plain = dataclasses.replace(config, core_layers=0)
  rest = {key: value for key, value in _params(name).items() if key != 'scan'}
  shallow = jax.eval_shape(lambda: _states(plain, rest, PREFIXES, _noise(PREFIXES), 0))
  assert shallow.shape == (2, 8, 8)


@pytest.mark.parametrize('name', NAMES)
def test_every_parameter_learns_in_training(name):
  grads, _ = _pull(name)(PREFIXES, PREFIXES.real_BxL * 1.0)
  for path, grad in jax.tree.leaves_with_path(grads):
    assert np.isfinite(grad).all(), jax.tree_util.keystr(path)
    learns = path[0].key != 'text'
    assert np.any(grad) == learns, f'{jax.tree_util.keystr(path)} learns: should be {learns}'


@pytest.mark.parametrize('name', NAMES)
def test_gradients_flow_from_no_later_token_and_no_other_segment(name):
  rows = _rows([0, 5], [5, 3], [0, 0], [0, 5])
  flows_2xLxL = np.zeros((2, 8, 8), bool)  # of the items' embeddings, of the initial noise
  for place in range(8):
    weight_BxL = np.zeros((2, 8), np.float32)
    weight_BxL[0, place] = 1
    grads, grad_BxLxD = _pull(name)(rows, weight_BxL)
    flows_2xLxL[:, place] = np.any([grads['item'][:8], grad_BxLxD[0]], axis=-1)  # item l is at place l
  segment = rows.segment_BxL[0]
  allowed_LxL = np.tri(8, dtype=bool) & (segment[:, None] == segment[None, :])
  assert _config(name).causal == (name in CAUSAL)
  if name in CAUSAL:
    np.testing.assert_array_equal(flows_2xLxL, np.stack([allowed_LxL] * 2))
  else:
    assert flows_2xLxL.any(axis=0).all(), 'a backbone that is causal need not say that it is not'


@pytest.mark.parametrize('name', CAUSAL)
def test_a_history_alone_or_in_company_gives_the_same_states(name):
  alone = _run(name)(_rows([4], [5], [0], [0]), 3)[0, :5]
  company = _run(name)(_rows([0, 4, 9], [3, 5, 4], [0, 0, 1], [0, 3, 2]), 3)[0, 3:8]
  np.testing.assert_allclose(alone, company, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', [name for name in NAMES if name not in CAUSAL])
def test_filling_is_no_item(name):
  """Where a layer sees the whole row, filling reaches the last token, and holds nothing of item 0."""
  rows, params = _rows([3, 11], [5, 8], [0, 1], [0, 0]), _params(name)
  run = jax.jit(lambda params: _states(_config(name), params, rows, _noise(rows), 2)[0, 4])

  def of_other(item):
    tables = {key: params[key].at[item].multiply(-3.0) for key in ('item', 'text') if key in params}
    return run({**params, **tables})

  np.testing.assert_array_equal(of_other(0), run(params))
  assert np.abs(of_other(3) - run(params)).max() > 1e-3


def test_hstu_with_times_reads_gaps_alone_or_takes_them_as_unknown():
  run = lambda time_BxL: _run('hstu')(PREFIXES._replace(time_BxL=time_BxL), 2)
  time_BxL, real_BxL = PREFIXES.time_BxL, PREFIXES.real_BxL
  base = run(time_BxL)
  np.testing.assert_allclose(run(time_BxL + 77)[real_BxL], base[real_BxL], rtol=1e-5, atol=1e-6)
  assert np.abs(run(time_BxL * 64) - base)[real_BxL].max() > 1e-3
  assert np.isfinite(run(np.where(time_BxL > 0, np.int32(2**31 - 1), 0).astype(np.int32))).all()
  unknown = run(None)
  np.testing.assert_array_equal(run(np.full_like(time_BxL, -1)), unknown)
  assert np.abs(unknown - base)[real_BxL].max() > 1e-3
  without = HstuLayer(_config('hstu', times=False).backbone, 0.0)
  context = Context.of(PREFIXES._replace(time_BxL=None))
  params = without.init(jax.random.key(0), _noise(PREFIXES), context, False)['params']
  assert 'time_bias' not in params


def test_times_in_rows_fit_whatever_their_unit():
  offsets = np.array([0, 5, 5, 20])
  assert units_per_tick(TIMES, offsets) == 1
  nanoseconds = TIMES * 10**9
  units = units_per_tick(nanoseconds, offsets)
  assert (nanoseconds[19] - nanoseconds[5]) / units <= 2**31 - 1 < (TIMES[19] - TIMES[5]) * 10**9
  segment = Segments(*map(np.array, ([5], [3], [0], [1])))
  rows = fill(ITEMS, segment, (1, 5), TIMES)
  np.testing.assert_array_equal(rows.time_BxL, [[0, 0, 6**3, 6**3 + 7**3, 0]])
  without = fill(ITEMS, segment, (1, 5))
  assert without.time_BxL is None


@pytest.mark.parametrize('length', (7, 8))
def test_transform_is_numpys(length):
  x_BxLxD, y_BxLxD = np.random.default_rng(0).normal(size=(2, 3, length, 4)).astype(np.float32)
  want = np.fft.rfft(x_BxLxD, axis=1, norm='ortho')
  ours = fourier.rfft(x_BxLxD)
  np.testing.assert_allclose(ours, want, atol=1e-5)
  np.testing.assert_allclose(fourier.irfft(ours, length), x_BxLxD, atol=1e-5)
  product = want * np.fft.rfft(y_BxLxD, axis=1, norm='ortho')
  mixed = fourier.irfft(ours * fourier.rfft(y_BxLxD), length)
  np.testing.assert_allclose(mixed, np.fft.irfft(product, length, 1, 'ortho'), atol=1e-5)
  want[:, 2:] = 0
  low = fourier.irfft(fourier.rfft(x_BxLxD, 2), length)
  np.testing.assert_allclose(low, np.fft.irfft(want, length, 1, 'ortho'), atol=1e-5)


def test_the_noise_of_the_gate_is_for_training_alone():
  rng = np.random.default_rng(0)
  item_BxLxD, text_BxLxW = rng.normal(size=(2, 8, 8)), rng.normal(size=(2, 8, 6))
  config = dataclasses.replace(_config('tedrec').fusion, dropout=0.0)

  def fused(noise, train):
    layer = TedrecFusion(dataclasses.replace(config, noise=noise), MODEL.backbone)
    return np.asarray(layer.apply({'params': _params('tedrec')['fusion']}, item_BxLxD, text_BxLxW,
                                  train, rngs={'dropout': jax.random.key(0)}))

  np.testing.assert_array_equal(fused(True, False), fused(False, True))
  assert (fused(True, True) != fused(True, False)).any()


@pytest.mark.parametrize('name', LAYERS)
def test_each_part_drops_by_its_own_rate_in_training_alone(name):
  z_BxLxD = _noise(PREFIXES)

  def parts(train, **rates):
    rates = {'embed_dropout': 0.0, 'pre_dropout': 0.0, 'core_dropout': 0.0, **rates}
    model = Lares(dataclasses.replace(_config(name), **rates), 20).bind(
      {'params': _params(name)}, rngs={'dropout': jax.random.key(0)})
    return (model.embedded(PREFIXES, train), model.prelude(PREFIXES, train),
            model.reason(z_BxLxD, PREFIXES, z_BxLxD, 1, 1, train).state_BxLxD)

  for part, where in (('embed', [1, 1, 0]), ('pre', [0, 1, 0]), ('core', [0, 0, 1])):
    rate = {f'{part}_dropout': 0.5}
    plain, dropped = parts(False, **rate), parts(True, **rate)
    assert [not np.allclose(a, b, atol=1e-4) for a, b in zip(plain, dropped)] == where, part


@pytest.mark.parametrize('part, name, where', (
  (Filter, 'fmlp', 'filter'), (Rescaler, 'bsarec', 'filter'), (FeedForward, 'transformer', 'ffn')))
def test_every_sub_layer_drops_what_it_adds(part, name, where):
  layer, params = part(_config(name).backbone, 0.5), _params(name)['pre_0'][where]
  plain, dropped = (layer.apply({'params': params}, _noise(PREFIXES), train,
                                rngs={'dropout': jax.random.key(0)}) for train in (False, True))
  assert not np.allclose(plain, dropped, atol=1e-3)


def test_an_expert_drops_its_text():
  fusion = dataclasses.replace(_config('tedrec').fusion, dropout=0.5)
  params = _params('tedrec')['fusion']['expert_0']
  apply = lambda text_BxLxW, train: np.asarray(Expert(fusion, MODEL.backbone).apply(
    {'params': params}, text_BxLxW, train, rngs={'dropout': jax.random.key(0)}))
  text_BxLxW = np.ones((2, 8, 6), np.float32)
  assert not np.allclose(apply(text_BxLxW, True), apply(text_BxLxW, False), atol=1e-3)
  zero_BxLxW = np.zeros_like(text_BxLxW)  # its bias is taken off what is left
  np.testing.assert_array_equal(apply(zero_BxLxW, True), apply(zero_BxLxW, False))


def test_a_gru_layer_by_hand():
  p, x_LxD = jax.tree.map(np.asarray, _params('gru')['pre_0']), _noise(PREFIXES)[1]
  layer = LAYERS['gru'](_config('gru').backbone, 0.0)
  got_LxD = layer.apply({'params': p}, _noise(PREFIXES), Context.of(PREFIXES), False)[1]
  sigmoid, state_F = lambda x: 1 / (1 + np.exp(-x)), np.zeros(16)
  for x_D, got_D in zip(x_LxD, got_LxD):
    said, kept = x_D @ p['input']['kernel'] + p['input']['bias'], state_F @ p['recurrent']
    reset_F, update_F = sigmoid(said[:16] + kept[:16]), sigmoid(said[16:32] + kept[16:32])
    new_F = np.tanh(said[32:] + reset_F * kept[32:])
    state_F = update_F * state_F + (1 - update_F) * new_F
    out_D = x_D + state_F @ p['output']['kernel'] + p['output']['bias']
    norm = p['norm']['norm']
    want_D = (out_D - out_D.mean()) / out_D.std() * norm['scale'] + norm['bias']
    np.testing.assert_allclose(got_D, want_D, rtol=1e-4, atol=1e-4)


def test_an_hstu_layer_by_hand():
  p, x_LxD = jax.tree.map(np.asarray, _params('hstu')['pre_0']), _noise(PREFIXES)[1]
  layer, time_L = HstuLayer(_config('hstu').backbone, 0.0), PREFIXES.time_BxL[1]
  got_LxD = layer.apply({'params': p}, _noise(PREFIXES), Context.of(PREFIXES), False)[1]
  silu = lambda x: x / (1 + np.exp(-x))
  norm = lambda x, p: (x - x.mean()) / np.sqrt(x.var() + 1e-6) * p['norm']['scale'] + p['norm']['bias']
  uvqk_Lx4D = silu(np.stack([norm(x_D, p['input_norm']) for x_D in x_LxD]) @ p['uvqk']['kernel'])
  u, v, q, k = np.split(uvqk_Lx4D, 4, axis=1)
  for n in range(8):  # the query; it sees n + 1 tokens
    digits = [int(gap).bit_length() for gap in time_L[n] - time_L[: n + 1]]
    bias = p['position_bias'][np.arange(n, -1, -1)] + p['time_bias'][digits]
    mixed_D = np.concatenate([silu(k[: n + 1, h] @ q[n, h] + bias) @ v[: n + 1, h] / (n + 1)
                              for h in (slice(4), slice(4, 8))])
    want_D = x_LxD[n] + norm(mixed_D, p['norm']) * u[n] @ p['output']['kernel'] + p['output']['bias']
    np.testing.assert_allclose(got_LxD[n], want_D, rtol=1e-4, atol=1e-4)
