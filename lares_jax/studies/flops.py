"""FLOPs of matrix products, counted in the traced program.

XLA's own count takes the body of a loop once, whatever its length; here it counts as often as it
runs. The depth is set by tracing the program anew with a constant depth, so that no step beyond it
is there to be counted; a loop whose length is not known is the one back over the steps taken.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from lares_jax.model.depth import DepthConfig


def of(experiment, build, depth: int) -> float:
  """Per chip, at a constant depth, of the program that `build(experiment)` traces."""
  c = experiment.config
  config = dataclasses.replace(
    c, depth=DepthConfig(depth, 'constant'),
    catalogue=dataclasses.replace(c.catalogue, kernel='plain'))
  traced = build(dataclasses.replace(experiment, config=config))
  return count(traced.jaxpr.jaxpr, 1 / experiment.mesh.shape['data'], depth)


def count(jaxpr, share: float, depth: int) -> float:
  """FLOPs of a program; `share` is what one chip does of a product that is written for all."""
  total = 0.0
  for eqn in jaxpr.eqns:
    name, params = eqn.primitive.name, eqn.params
    if name == 'dot_general':
      (left, _), _ = params['dimension_numbers']
      contracted = np.prod([eqn.invars[0].aval.shape[axis] for axis in left])
      total += 2.0 * share * contracted * np.prod(eqn.outvars[0].aval.shape)
    elif name == 'cond':
      total += max(count(branch.jaxpr, share, depth) for branch in params['branches'])
    elif name == 'shard_map':  # written for one chip
      total += count(_inner(params['jaxpr']), 1.0, depth)
    else:
      times = params['length'] if name == 'scan' else depth if name == 'while' else 1
      inner = [_inner(value) for value in jax.tree.leaves(params)]
      total += times * sum(count(j, share, depth) for j in inner if hasattr(j, 'eqns'))
  return total


def _inner(jaxpr: Any) -> Any:
  return getattr(jaxpr, 'jaxpr', jaxpr)
