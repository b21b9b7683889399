"""How deep to think at each training step: a pure function of (seed, step), the same on every host."""

import dataclasses
from typing import Literal

import numpy as np

Distribution = Literal['poisson_lognormal', 'poisson', 'poisson_bounded', 'uniform', 'constant']
_SPREAD = 0.5  # s of the log-normal rate


@dataclasses.dataclass(frozen=True)
class DepthConfig:
  """The law of the training depth, with mean recurrence `mean` (r); 0 is the plain backbone.

  What is drawn is r on average by `constant` and about that by the Poisson laws, r + 1/2 by `uniform`,
  and by `poisson_lognormal`, which adds a step as published, nearly r + 1: 4.9 where r is 4.
  """

  mean: int = 4
  distribution: Distribution = 'poisson_lognormal'

  @property
  def cap(self) -> int:
    """The largest depth that training can draw: where a law without an end is cut."""
    r = self.mean
    return {'poisson_lognormal': 3 * r, 'uniform': 2 * r, 'poisson_bounded': 2 * r,
            'poisson': 4 * r + 4, 'constant': r}[self.distribution] if r else 0


def draw(config: DepthConfig, generator: np.random.Generator, size: int | None = None):
  """One depth, or `size` independent ones (int32), between 1 and the cap."""
  r = config.mean
  if not r:
    return np.zeros(size or (), np.int32)
  if config.distribution == 'poisson_lognormal':
    rate = generator.lognormal(np.log(r) - _SPREAD**2 / 2, _SPREAD, size)
    depth = generator.poisson(rate) + 1
  elif config.distribution == 'uniform':
    depth = generator.integers(1, 2 * r + 1, size)
  elif config.distribution == 'constant':
    depth = np.full(size or (), r)
  else:
    depth = generator.poisson(r, size)
  return np.clip(depth, 1, config.cap).astype(np.int32)
