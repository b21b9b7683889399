"""The optimizer: its learning rate by step, and what weight decay spares."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import MODEL

from lares_jax.data.rows import blank
from lares_jax.errors import InputError
from lares_jax.model.lares import Lares
from lares_jax.training.optimizer import OptimizerConfig, build, decays, schedule


@pytest.mark.parametrize('options, wanted', (
  ({}, {0: 1.0, 99: 1.0}),
  ({'warmup_steps': 10}, {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
  ({'warmup_epochs': 2.0}, {0: 0.0, 10: 0.5, 20: 1.0}),  # ten steps an epoch
  ({'warmup_percent': 10.0}, {0: 0.0, 5: 0.5, 10: 1.0}),
  ({'schedule': 'cosine'}, {0: 1.0, 50: 0.5, 100: 0.0}),
  ({'schedule': 'cosine', 'warmup_steps': 20}, {0: 0.0, 10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0}),
), ids=str)
def test_the_rate_of_each_step(options, wanted):
  rate = schedule(OptimizerConfig(learning_rate=0.1, **options), steps=100, steps_per_epoch=10)
  for step, share in wanted.items():
    assert float(rate(step)) == pytest.approx(0.1 * share, abs=1e-7), step


def test_the_chain_by_hand():
  """Two steps: nothing at a rate of 0, then clipped gradients, Adam, and decay of the kernel alone."""
  config = OptimizerConfig(
    learning_rate=0.1, warmup_steps=1, b1=0.8, b2=0.9, weight_decay=0.5, clip_norm=1.0)
  chain = build(config, steps=10, steps_per_epoch=10)
  params = {'kernel': jnp.array([2.0]), 'bias': jnp.array([2.0])}
  state, m, v = chain.init(params), np.zeros(2), np.zeros(2)
  for gradient, rate in (((3.0, 4.0), 0.0), ((0.3, 0.4), 0.1)):
    gradient = np.array(gradient, np.float32)
    updates, state = chain.update(dict(zip(params, gradient[:, None])), state, params)
    clipped = gradient / max(1.0, np.linalg.norm(gradient))
    m, v = 0.8 * m + 0.2 * clipped, 0.9 * v + 0.1 * clipped ** 2
    steps = 1 if rate == 0 else 2
    adam = (m / (1 - 0.8 ** steps)) / (np.sqrt(v / (1 - 0.9 ** steps)) + 1e-8)
    want = -rate * (adam + [0.5 * 2.0, 0.0])
    np.testing.assert_allclose([updates['kernel'][0], updates['bias'][0]], want, rtol=1e-5)


def test_only_one_warm_up_is_given():
  with pytest.raises(InputError, match='one of warmup_steps, warmup_percent, not both'):
    OptimizerConfig(warmup_steps=1, warmup_percent=1.0)


@pytest.mark.parametrize('name', ('transformer', 'gru'))
def test_weight_decay_spares_what_is_no_linear_map(name):
  config = dataclasses.replace(MODEL, backbone=dataclasses.replace(MODEL.backbone, name=name))
  rows = blank((1, 8), False)
  params = jax.eval_shape(lambda: Lares(config, 20).init(
    jax.random.key(0), rows, jnp.zeros((1, 8, 8)), 1, cap=1))['params']
  for (path, x), decayed in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(decays(params))):
    table = path[0].key in ('item', 'position')
    assert decayed == (x.ndim == 2 and not table), jax.tree_util.keystr(path)
