"""Advantages of phase two; its loss and gradients are pinned by test_golden."""

import numpy as np
import pytest

from lares_jax.objectives.posttrain import advantages

REWARD_GxM = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize('kind, wanted', (
  ('group', (0.75 / 0.5001, -0.25 / 0.5001)), ('positive', (0.75 / 0.5001, 0.0)),
  ('reward', (1.0, 0.0))))
def test_one_hit_in_a_group_of_four(kind, wanted):
  advantage_GxM = advantages(REWARD_GxM, kind)
  np.testing.assert_allclose(advantage_GxM[:2, 0], wanted, rtol=1e-6)
  equal = REWARD_GxM[:, 1:] if kind == 'reward' else 0.0
  np.testing.assert_array_equal(advantage_GxM[:, 1:], np.broadcast_to(equal, (4, 2)))
