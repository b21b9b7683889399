"""Advantages of phase two; its loss and gradients are pinned by test_golden."""

import numpy as np

from lares_jax.objectives.posttrain import advantages

REWARD_GxM = np.array([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])


def test_one_hit_in_a_group_of_four():
  advantage_GxM = advantages(REWARD_GxM)
  np.testing.assert_allclose(advantage_GxM[:2, 0], (0.75 / 0.5001, -0.25 / 0.5001), rtol=1e-6)
  np.testing.assert_array_equal(advantage_GxM[:, 1:], np.zeros((4, 2)))
