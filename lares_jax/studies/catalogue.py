"""How fast the catalogue pass is, against what the machine could do: `benchmark --what=catalogue`."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lares_jax import report
from lares_jax.catalogue import Catalogue
from lares_jax.scoring import CatalogueConfig, Kernel
from lares_jax.studies import timing

# M, V, D; small enough for a laptop first, the sizes that the kernels are for last.
SIZES = ((1024, 12_101, 64), (4096, 100_000, 64), (4096, 1_000_000, 64), (4096, 1_000_000, 256))
_CHAIN = 16  # exponentials, each of the one before
_SMALL = 1e9  # scores of a pass above which a CPU would take minutes: left out there


def run(config: CatalogueConfig, rounds: int) -> list[dict]:
  """Times forward and backward, plain and kernel in turns, and prints them beside the ceilings.

  `from plain` is how far, in norm, the kernel's value or a gradient is at most from the plain pass's.
  """
  accelerated = jax.default_backend() != 'cpu'
  dtype = 'bfloat16' if accelerated else config.dtype
  kernels: tuple[Kernel, ...] = ('plain', 'pallas') if accelerated else ('plain',)
  ceilings = _ceilings(dtype)
  print('ceilings: ' + ', '.join(f'{k} {v:.3g}/s' for k, v in ceilings.items()))
  rows = []
  for queries, items, width in SIZES:
    if not accelerated and queries * items > _SMALL:
      continue
    passes = {k: _pass(dataclasses.replace(config, kernel=k, dtype=dtype), queries, items, width)
              for k in kernels}
    calls = {k: functools.partial(compiled, *args) for k, (compiled, args) in passes.items()}
    seconds = timing.in_turns(calls, rounds)
    results = {k: call() for k, call in calls.items()}
    for kernel, (compiled, _) in passes.items():
      median = float(np.median(seconds[kernel]))
      scores = queries * items / median
      # A product forward and two backward, 2 D operations a score each, and one exponential; where
      # no scores are kept, backward makes the first product and the exponential again. The table is
      # read twice, and its gradient written.
      again = not dataclasses.replace(config, kernel=kernel).kept(items)
      bound = min(ceilings['operations'] / ((8 if again else 6) * width),
                  ceilings['exponentials'] / (2 if again else 1),
                  ceilings['bytes copied'] / (3 * 4 * width) * queries)
      rows.append({
        'M': queries, 'V': items, 'D': width, 'kernel': kernel, 'ms': round(median * 1e3, 1),
        'scores/s': scores, 'of ceiling': scores / bound,
        'temporaries MiB': round(compiled.memory_analysis().temp_size_in_bytes / 2**20),
        'from plain': _apart(results[kernel], results['plain'])})
  shown = {'ms': ',.1f', 'scores/s': '.3g', 'of ceiling': '.0%', 'from plain': '.0e'}
  print(report.table(list(rows[0]), [
    [f'{x:{shown.get(key, "")}}' for key, x in row.items()] for row in rows]))
  return rows


def _apart(ours, theirs) -> float:
  """The largest distance of two arrays in the trees, relative to the second."""
  apart = jax.tree.map(
    lambda a, b: jnp.linalg.norm(a - b) / jnp.linalg.norm(b), ours, theirs)
  return float(max(jax.tree.leaves(apart)))


def _pass(config: CatalogueConfig, queries: int, items: int, width: int):
  """A compiled gradient of the mean log-probability, and its arguments."""
  keys = jax.random.split(jax.random.key(0), 3)
  args = (jax.random.normal(keys[0], (queries, width)),
          jax.random.normal(keys[1], (items, width)) * 0.1,
          jax.random.randint(keys[2], (queries,), 0, items))
  catalogue = Catalogue(config, items)

  def loss(query_MxD, table_VxD, target_M):
    real_M = jnp.ones(queries, bool)
    return catalogue.total(
      lambda logprob_M: -logprob_M / queries, query_MxD, target_M, real_M, table_VxD)[0]

  return jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*args).compile(), args


def _ceilings(dtype: str) -> dict[str, float]:
  """What the device reaches in a large product, a large copy and a large exponential."""
  size = 8192 if jax.default_backend() != 'cpu' else 2048
  x = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
  wide = jnp.zeros((size * size,), jnp.float32)
  product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=jnp.float32))
  best = lambda f, *args: min(timing.in_turns({'': functools.partial(f, *args)}, 6)[''])
  # One of the other, so that memory does not bind.
  chain = lambda x: functools.reduce(lambda y, _: jnp.exp(-y), range(_CHAIN), x).sum()
  return {
    'operations': 2 * size**3 / best(product, x, x),
    'bytes copied': 8 * wide.size / best(jax.jit(lambda x: x + 1), wide),
    'exponentials': _CHAIN * wide.size / best(jax.jit(chain), wide),
  }
