"""The model's own laws: company, depth, one set of parameters. Of every backbone: test_backbones.py."""

import dataclasses
import functools
import math
import types
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL

from lares_jax import config as config_lib
from lares_jax.data.rows import Rows, Segments, fill
from lares_jax.errors import InputError
from lares_jax.model import depth
from lares_jax.model.depth import DepthConfig
from lares_jax.model.dropout import Dropout
from lares_jax.model.lares import Lares, initial_state
from lares_jax.objectives.pretrain import Pretrain, PretrainConfig

ITEMS = np.arange(20, dtype=np.int32)


def _rows(starts, lengths, rows, places, shape) -> Rows:
  return fill(ITEMS, Segments(*map(np.array, (starts, lengths, rows, places))), shape)


def _init(config, rows, cap=3):
  model = Lares(config, len(ITEMS))
  z0 = initial_state(config, rows, jax.random.key(1), train=False)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), rows, z0, 1, cap=cap))['params']
  draw = np.random.default_rng(0).normal  # larger weights than at the start, so that a leak would show
  return model, jax.tree.map(
    lambda x: jnp.asarray(0.1 * draw(size=x.shape) + (x.ndim == 1), jnp.float32), shapes)


def test_a_history_alone_or_in_company_gives_the_same_states():
  alone = _rows([4], [5], [0], [0], (1, 8))
  company = _rows([0, 4, 9], [3, 5, 4], [0, 0, 1], [0, 3, 2], (2, 8))
  model, params = _init(MODEL, alone)
  run = lambda rows: model.apply(
    {'params': params}, rows, initial_state(MODEL, rows, jax.random.key(1), train=False), 3, cap=4
    ).state_BxLxD
  np.testing.assert_allclose(run(alone)[0, :5], run(company)[0, 3:8], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('combine', ('add', 'concat', 'gated'))
def test_parameters_and_program_are_the_same_at_every_depth(combine):
  config = dataclasses.replace(MODEL, combine=combine)
  rows = _rows([0, 5], [5, 3], [0, 1], [0, 0], (2, 8))
  shapes = [jax.tree.map(jnp.shape, _init(config, rows, cap)[1]) for cap in (1, 6)]
  assert shapes[0] == shapes[1]
  model, params = _init(config, rows)
  traces = []

  @jax.jit
  def run(depth_B):
    traces.append(1)
    z0 = initial_state(config, rows, jax.random.key(1), train=False)
    place = np.array([[4], [2]])
    out = model.apply({'params': params}, rows, z0, depth_B, cap=6, place_BxA=place)
    return out.state_BxLxD, out.states_TxBxAxD, out.distance_T

  deep, states, _ = run(jnp.array([6, 6]))
  for d in (1, 2, 5):
    state, _, distance = run(jnp.array([d, d]))
    np.testing.assert_allclose(state[0, 4], states[d - 1, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(state[1, 2], states[d - 1, 1, 0], rtol=1e-6)
    assert (distance[:d] > 0).all() and (distance[d:] == 0).all()
  mixed, _, _ = run(jnp.array([6, 2]))
  np.testing.assert_allclose(mixed[0], deep[0], rtol=1e-6)
  np.testing.assert_allclose(mixed[1, 2], states[1, 1, 0], rtol=1e-6)
  assert len(traces) == 1, 'depth must be traced: one program for all'


@pytest.mark.parametrize('changes', (
  {}, {'core_dropout': 0.0}, {'core_blocks': 2, 'combine': 'concat'}))
def test_the_gradient_of_a_run_is_that_of_the_program_differentiated(changes):
  """By parameters, Z_0 and, through it, what H is made of; of all that a run leaves behind."""
  rows = _rows([0, 5], [5, 3], [0, 1], [0, 0], (2, 8))
  config = dataclasses.replace(MODEL, **{'core_dropout': 0.3, **changes})
  z0 = initial_state(config, rows, jax.random.key(1), train=False)
  place_BxA = np.array([[1, 4, 4], [0, 2, 2]])
  # A plain sum of a norm is constant.
  normal = lambda *shape: np.random.default_rng(0).normal(size=shape)

  def gradients(remat: bool, cap: int):
    model, params = _init(dataclasses.replace(config, remat=remat), rows)

    def loss(params, z0, depth_B, pick):
      out = model.apply({'params': params}, rows, z0, depth_B, cap=cap, train=True, pick=pick,
                        place_BxA=place_BxA, rngs={'dropout': jax.random.key(2)})
      left = out.state_BxLxD, out.picked_BxLxD ** 2, out.states_TxBxAxD[:4]
      return sum((x * normal(*x.shape)).sum() for x in left)

    return functools.partial(jax.jit(jax.grad(loss, (0, 1))), params, z0)

  plain = gradients(False, 4)
  # Another cap has other masks of dropout.
  others = [(True, 4)] + [(remat, 7) for remat in (False, True) if not config.core_dropout]
  ours = [gradients(remat, cap) for remat, cap in others]
  # Rounding is of an array's largest entry, here up to 90.
  floor = lambda x: max(1e-5, 4 * np.finfo(np.float32).eps * np.abs(x).max())
  for depths, pick in (([3, 3], 1), ([1, 4], 2), ([2, 1], 2)):
    want = plain(jnp.array(depths), pick)
    for gradient in ours:
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=floor(b)),
                   gradient(jnp.array(depths), pick), want)


@pytest.mark.parametrize('rate', (0.3, 0.0))
def test_each_step_has_masks_of_its_own(rate):
  """So that two steps are not one step twice."""
  config = dataclasses.replace(MODEL, core_dropout=rate)
  rows = _rows([0, 5], [5, 3], [0, 1], [0, 0], (2, 8))
  model, params = _init(config, rows)
  apply = functools.partial(
    model.apply, {'params': params}, cap=2, train=True, rngs={'dropout': jax.random.key(2)})
  run = jax.jit(lambda z0, depth: apply(rows, z0, depth).state_BxLxD)
  z0 = initial_state(config, rows, jax.random.key(1), train=False)
  alike = np.allclose(run(run(z0, 1), 1), run(z0, 2), atol=1e-5)
  assert alike == (not rate)


def test_initial_states():
  rows = _rows([0, 5], [5, 3], [0, 1], [0, 0], (2, 8))
  draw = lambda initial, train, key=0: np.asarray(initial_state(
    dataclasses.replace(MODEL, initial=initial), rows, jax.random.key(key), train))
  assert (draw('zero', True) == 0).all() and (draw('normal_zero', False) == 0).all()
  assert np.abs(draw('normal_zero', True)).max() > 0
  assert np.abs(draw('normal', True)).max() <= 9.0, 'cut at 3 std, then scaled by 3'
  wide = Rows(*(np.tile(x, (200, 1)) for x in rows))
  sample = np.asarray(initial_state(MODEL, wide, jax.random.key(3), train=True))
  assert abs(sample.std() - 3 * 0.9866) < 0.05 and abs(sample.mean()) < 0.05
  assert np.abs(sample).max() <= 9.0, 'cut, where 70 of so many would lie beyond'
  first, again, other = draw('normal', False), draw('normal', False), draw('normal', False, 1)
  assert (first == again).all() and (first != other).any()
  for z_BxLxD in (first, draw('normal', True)):
    assert (z_BxLxD[0, 0] != z_BxLxD[0, 1]).any(), 'noise is drawn for every token'


def test_dropout_leaves_out_its_rate_and_keeps_the_mean():
  x = jnp.ones((1000, 999))  # no multiple of the four masks of a word
  out = np.asarray(Dropout(0.3).apply({}, x, True, rngs={'dropout': jax.random.key(0)}))
  kept = round(0.7 * 256)
  assert set(np.unique(out)) == {np.float32(0), np.float32(256 / kept)}
  assert abs((out > 0).mean() - kept / 256) < 0.003 and abs(out.mean() - 1) < 0.004
  assert abs((out[:, 1:] > 0)[out[:, :-1] > 0].mean() - kept / 256) < 0.003, 'neighbours share nothing'
  np.testing.assert_array_equal(Dropout(0.3).apply({}, x, False), x)


@pytest.mark.parametrize('rate, least', ((0.0, 1.0), (0.001, 1.0), (0.003, 0.99), (0.95, 0.04)))
def test_no_rate_drops_far_more_than_it_says(rate, least):
  """One too small for a byte drops nothing, not all."""
  out = Dropout(rate).apply({}, jnp.ones((100, 100)), True, rngs={'dropout': jax.random.key(0)})
  assert (out > 0).mean() >= least


@pytest.mark.parametrize('law', typing.get_args(depth.Distribution))
def test_depths_stay_in_bounds_and_are_a_function_of_the_generator(law):
  config = DepthConfig(4, law)
  draws = depth.draw(config, np.random.default_rng(0), 20_000)
  assert draws.min() >= 1 and draws.max() <= config.cap
  mean = {'poisson_lognormal': 4.9, 'uniform': 4.5, 'constant': 4.0}.get(law, 4.0)
  assert abs(draws.mean() - mean) < 0.1, f'mean depth {draws.mean():.2f} where {mean} was expected'
  again = depth.draw(config, np.random.default_rng(0), 20_000)
  np.testing.assert_array_equal(draws, again)
  assert depth.draw(DepthConfig(0, law), np.random.default_rng(0)) == 0


def test_settings_that_cannot_be_are_named():
  for key, value in (('model.combine', 'sum'), ('depth.distribution', 'normal'), ('data.rows', 'both')):
    config = config_lib.defaults()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(InputError, match=f"config.{key}='{value}': use one of "):
      config_lib.typed(config)


@pytest.mark.parametrize('combine', ('concat', 'gated'))
def test_parameters_are_born_as_published(combine):
  """Weights and tables from normal(0, 0.02), biases 0, and a gate that is half open."""
  backbone = dataclasses.replace(MODEL.backbone, width=64, inner=128)
  config = dataclasses.replace(MODEL, backbone=backbone, combine=combine, positions=50)
  rows = _rows([0], [5], [0], [0], (1, 8))
  params = Lares(config, 200).init(jax.random.key(0), rows, jnp.zeros((1, 8, 64)), 1, cap=1)['params']
  for path, x in jax.tree.leaves_with_path(params):
    if path[-1].key in ('bias', 'gate', 'scale'):
      np.testing.assert_array_equal(x, path[-1].key == 'scale')
    else:
      assert 0.019 < x.std() < 0.021 and abs(x.mean()) < 0.002, jax.tree_util.keystr(path)


def test_depths_are_as_wide_as_published():
  """Of mean recurrence 4: the spread by the log-normal's, and where a law is cut."""
  for law, std, most in (('poisson_lognormal', 2.69, 12), ('poisson_bounded', 1.88, 8),
                         ('uniform', 2.29, 8)):
    draws = depth.draw(DepthConfig(4, law), np.random.default_rng(0), 40_000)
    assert abs(draws.std() - std) < 0.05 and draws.max() == most, law
  free = depth.draw(DepthConfig(4, 'poisson'), np.random.default_rng(0), 40_000)
  share = [np.exp(-4) * 4.0 ** n / math.factorial(n) for n in range(13)]
  count = np.bincount(free, minlength=13)[:13] / len(free)
  np.testing.assert_allclose(count, [0, share[0] + share[1], *share[2:]], atol=0.01)
  assert free.max() > 12, 'poisson is not cut where it can be drawn'


def test_phase_one_draws_a_state_for_each_row_and_any_step_that_was_taken(monkeypatch):
  objective = Pretrain(Lares(MODEL, 20), None, DepthConfig(4, 'constant'), PretrainConfig())
  picks = [int(objective.draw(np.random.default_rng(n)).pick) for n in range(400)]
  step, count = np.unique(picks, return_counts=True)
  np.testing.assert_array_equal(step, [0, 1, 2, 3])
  assert (abs(count - 100) < 5 * np.sqrt(75)).all()
  monkeypatch.setattr(Pretrain, 'loss', lambda *args: args[4])
  twice = types.SimpleNamespace(rows=_rows([4, 4], [5, 5], [0, 1], [0, 0], (2, 8)))
  z_BxLxD = objective(None, None, twice, None, jax.random.key(0))
  assert (z_BxLxD[0] != z_BxLxD[1]).all(), 'a copy of a row is another view of it'
