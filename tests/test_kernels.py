"""The kernels, interpreted on the CPU, against the plain pass of `share`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lares_jax import kernels
from lares_jax import share as plain
from lares_jax.kernels import gpu, tpu
from lares_jax.scoring import CatalogueConfig, pair_scores, tie_slack
from lares_jax.share import Share
from lares_jax.studies import catalogue

M, R, D = 150, 300, 24  # nothing fits a tile, a block or a power of two
FIRST, ITEMS = 5, 295  # this share begins with item 5 and ends with ten rows of padding

def setting(similarity, tau, dtype):
  return CatalogueConfig(
    similarity=similarity, tau=tau, dtype=dtype, tile=64, block=64, kernel='plain')


SETTINGS = {
  'tpu dot float32': (tpu, setting('dot', 0.5, 'float32')),
  'tpu cos bfloat16': (tpu, setting('cos', 0.07, 'bfloat16')),
  'gpu cos float32': (gpu, setting('cos', 0.07, 'float32')),
  'gpu dot bfloat16': (gpu, setting('dot', 0.5, 'bfloat16')),
  'gpu direction float32': (gpu, setting('direction', 0.2, 'float32')),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Several tiles and blocks of few queries and items, the last of each ragged."""
  for name, size in dict(TILE=128, BLOCK=256, COLUMNS=128).items():
    monkeypatch.setattr(tpu, name, size)
  # Of the GPU's, several programs for a tile of queries, each of several blocks of items.
  monkeypatch.setattr(gpu, 'PROGRAMS', 10)


def arrays():
  random = np.random.default_rng(7)
  query_MxD, table_RxD = (random.normal(size=(n, D)).astype(np.float32) for n in (M, R))
  return query_MxD, table_RxD, random.integers(FIRST, ITEMS, M), random.random(M) < 0.8


def ordinary(query, table, target, real):
  return query, table, target, real


def large(query, table, target, real):
  return 1e4 * query, table, target, real


def small(query, table, target, real):
  return 1e-7 * query, table, target, real


def all_equal(query, table, target, real):
  return query, 0 * table + table[:1], target, real


def all_zero(query, table, target, real):
  return query, 0 * table, target, real


def ties(query, table, target, real):
  table = table.copy()
  table[::7] = table[target[0] - FIRST]
  return query, table, np.full_like(target, target[0]), real


def elsewhere(query, table, target, real):
  """A third of the targets are items of other shares, before this one and after."""
  return query, table, np.where(np.arange(M) % 3, target, FIRST - 2 + (R + 3) * (target % 2)), real


def filling(query, table, target, real):
  """Whole tiles of it, whose content must not matter."""
  real = np.arange(M) == M - 1
  return np.where(real[:, None], query, np.nan), table, target, real


def poisoned(query, table, target, real):
  query = query.copy()
  query[np.flatnonzero(real)[1]] = np.nan
  return query, table, target, real


VALUES = [ordinary, large, small, all_equal, all_zero, ties, elsewhere, filling, poisoned]


def of_kernel(kernel, share, query, target, real, bounds, lse, g, h):
  return (*kernels.forward(kernel, True, share, query, target, real),
          *kernels.forward(kernel, True, share, query, target, real, bounds),
          *kernels.backward(kernel, True, share, query, target, real, lse, g, h))


def forward_of_plain(share, query, target, real, bounds):
  return (*kernels.likelihood(share, query, target, real),
          plain.count_above(share, query, real, target, *bounds))


@pytest.fixture(scope='module', params=SETTINGS)
def passes(request):
  """(config, the kernel's pass, the plain pass), compiled once for all values."""
  kernel, config = SETTINGS[request.param]
  share = lambda table, first: Share(table, first, ITEMS, config)
  by_kernel = jax.jit(lambda table, first, *args: of_kernel(kernel, share(table, first), *args))
  by_plain, gradients = (
    jax.jit(lambda table, first, *args, of=of: of(share(table, first), *args))
    for of in (forward_of_plain, kernels.gradients))
  return config, by_kernel, by_plain, gradients


@pytest.mark.parametrize('values', VALUES)
def test_kernel_agrees_with_the_plain_pass(passes, values):
  config, by_kernel, by_plain, gradients = passes
  query, table, target, real = values(*arrays())
  item = Share(jnp.asarray(table), FIRST, ITEMS, config).lookup(target)
  score = np.asarray(pair_scores(query, item, config))
  slack = np.asarray(tie_slack(query, item, config))
  bounds = score - slack, score + slack
  g, h = (np.where(real, np.linspace(-1, end, M), 0).astype(np.float32) for end in (1, 2))

  lse, score, rank = by_plain(table, FIRST, query, target, real, bounds)
  clear = np.where(real[:, None], query, 0), target, real, np.where(real, lse, 0)  # NaN times zero
  d_query, d_table = gradients(table, FIRST, *clear, g, h)
  out = by_kernel(table, FIRST, query, target, real, bounds, lse, g, h)

  rounding = 3e-7 * np.nanmax(np.abs(lse), initial=0, where=real)  # of scores as large as that
  rough = 1e-5 if config.dtype == 'float32' else 1e-2
  same = lambda name, got, want, tolerance: np.testing.assert_allclose(
    got, want, rtol=0, atol=tolerance * np.nanmax(np.abs(want), initial=1e-30),
    err_msg=f'{name} of the kernel is not that of the plain pass (share.py), the specification')
  same('log-sum-exp', out[0][real], lse[real], 1e-6)
  same('score', out[1], score, 1e-6)
  np.testing.assert_array_equal(out[2][real], rank[real], 'rank: share.count_above is right')
  same('d_query', out[3], d_query, rough + rounding)
  items, padding = np.split(np.asarray(out[4]), [ITEMS - FIRST])
  same('d_table', items, d_table[: len(items)], rough + rounding)
  assert not np.asarray(out[3])[~real].any(), 'filling has a gradient: mask it in kernels.backward'
  assert values is poisoned or not padding.any(), 'rows beyond the items have a gradient: mask them'


@pytest.mark.parametrize('kernel', [tpu, gpu])
def test_one_item_is_certain(kernel):
  query, table, *_ = arrays()
  query, item, every, ones = query[:3], table[:1], np.ones(3, bool), np.ones(3, np.float32)
  share = Share(jnp.asarray(item), 0, 1, CatalogueConfig(tau=0.5))
  score = pair_scores(query, np.repeat(item, 3, 0), share.config)
  lse, own, rank, d_query, d_table = jax.jit(lambda query: of_kernel(
    kernel, share, query, jnp.zeros(3, int), every, (score, score), score, ones, 0 * ones))(query)
  np.testing.assert_allclose(lse, score, rtol=1e-6)
  np.testing.assert_allclose(own, score, rtol=1e-6)
  np.testing.assert_array_equal(rank, 0)
  np.testing.assert_allclose(d_query, np.repeat(item, 3, 0) / 0.5, atol=1e-4)
  np.testing.assert_allclose(d_table[0], query.sum(0) / 0.5, atol=1e-4)


def test_factors_are_rounded_and_not_merely_cast():
  """Of a cast there and back XLA for GPUs makes nothing: a target would be scored unlike its rivals."""
  query, table, target, real = arrays()
  share = Share(jnp.asarray(table), FIRST, ITEMS, CatalogueConfig(dtype='bfloat16'))
  zeros = np.zeros(M, np.float32)
  for run in (lambda query: kernels.forward(gpu, True, share, query, target, real),
              lambda query: kernels.backward(gpu, True, share, query, target, real, *[zeros] * 3)):
    text = str(jax.make_jaxpr(run)(query))
    assert text.count('reduce_precision') == 2, 'the queries and the targets: see scoring.rounded'


def test_a_long_batch_is_divided(monkeypatch):
  """The query gradient of a backward pass has to fit in VMEM.

  Of three blocks of items one of two cores has one, and must not lose it to the one that it lacks.
  """
  for name in ('BLOCK', 'COLUMNS'):
    monkeypatch.setattr(tpu, name, tpu.LANES)
  query, table, target, real = arrays()
  share = Share(jnp.asarray(table), FIRST, ITEMS, CatalogueConfig())
  lse, g = plain.log_sum_exp(share, query, real), jnp.where(real, 1.0, 0.0)
  args = jnp.asarray(target), real, lse, g, g
  backward = lambda query: kernels.backward(tpu, True, share, query, *args)
  whole = jax.jit(backward)(query)
  want = jax.jit(lambda *args: kernels.gradients(share, *args))(query, *args)
  monkeypatch.setattr(tpu, 'RESIDENT', M // 2 * tpu.LANES)
  divided = jax.jit(lambda query: backward(query))(query)  # traced anew
  for one, other, gradient in zip(whole, divided, want):
    np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(one, gradient, atol=1e-4)


def test_wide_items_come_in_smaller_blocks():
  """Some two MiB of them at a time have to fit in VMEM."""
  assert [tpu._block(width) for width in (8, 128, 130, 600)] == [256, 256, 128, 128]
  random, width = np.random.default_rng(3), 300
  query, table = (random.normal(size=(n, width)).astype(np.float32) / 8 for n in (M, R))
  _, _, target, real = arrays()
  share, ones = Share(jnp.asarray(table), FIRST, ITEMS, CatalogueConfig()), np.ones(M, np.float32)
  lse = plain.log_sum_exp(share, query, real)
  got, _ = jax.jit(lambda query: kernels.forward(
    tpu, True, share, query, jnp.asarray(target), real))(query)
  np.testing.assert_allclose(got[real], lse[real], rtol=1e-5)
  d_query, _ = jax.jit(lambda query: kernels.backward(
    tpu, True, share, query, jnp.asarray(target), real, lse, ones, 0 * ones))(query)
  scores = query @ table[:ITEMS - FIRST].T
  share_MxR = np.exp(scores - scores.max(1, keepdims=True))
  want = (share_MxR / share_MxR.sum(1, keepdims=True)) @ table[:ITEMS - FIRST]
  np.testing.assert_allclose(d_query[real], want[real], atol=1e-5)


def three_passes(config):
  """What the catalogue calls, as a function of arrays."""
  def run(table, query, target, real):
    share, g = Share(table, 0, R, config), jnp.where(real, 1.0, 0.0)
    lse, score = kernels.likelihood(share, query, target, real)
    rank = kernels.count_above(share, query, real, target, score, score)
    return lse * g, score, rank * g, *kernels.gradients(share, query, target, real, lse, g, -g)
  return run


def test_the_functions_of_the_catalogue_by_kernel():
  want, got = (
    jax.jit(three_passes(CatalogueConfig(kernel=kernel)))(arrays()[1], arrays()[0], *arrays()[2:])
    for kernel in ('plain', 'pallas'))
  for name, one, other in zip(['lse', 'score', 'rank', 'd_query', 'd_table'], want, got):
    np.testing.assert_allclose(other, one, atol=2e-5, err_msg=f'{name} differs by kernel')


@pytest.mark.parametrize('kernel, platform, calls', [
  ('auto', 'tpu', False), ('auto', 'cuda', False), ('auto', 'cpu', False),
  ('pallas', 'tpu', True), ('pallas', 'cuda', True), ('plain', 'tpu', False)])
def test_the_kernel_is_chosen_by_platform(kernel, platform, calls):
  if (kernel, platform) == ('pallas', 'cuda') and jax.default_backend() != 'gpu' and (
      jax.__version_info__ >= (0, 11)):
    pytest.skip('from jax 0.11 on a Triton call is lowered only where a GPU is')
  query, table, target, real = arrays()
  traced = jax.jit(three_passes(CatalogueConfig(kernel=kernel))).trace(table, query, target, real)
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  found = 'tpu_custom_call' in text or 'xla.gpu.triton' in text
  assert found == calls, f'catalogue.kernel={kernel} on {platform}: mend kernels._choose'


def test_hidden_items_take_the_plain_pass():
  query, table, target, real = arrays()
  bounds, hidden = (target, np.zeros(M), np.zeros(M)), np.full((M, 1), 9)
  count = lambda kernel: kernels.count_above(
    Share(jnp.asarray(table), 0, R, CatalogueConfig(kernel=kernel)), query, real, *bounds, hidden)
  np.testing.assert_array_equal(count('pallas'), count('plain'))


def test_the_benchmark_compares_what_it_times(monkeypatch):
  monkeypatch.setattr(catalogue, 'SIZES', ((24, 40, 8),))
  ceilings = dict.fromkeys(('operations', 'bytes copied', 'exponentials'), 1e9)
  monkeypatch.setattr(catalogue, '_ceilings', lambda dtype: ceilings)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  plain, kernel = catalogue.run(CatalogueConfig(), rounds=1)
  assert (plain['kernel'], kernel['kernel']) == ('plain', 'pallas')
  assert plain['from plain'] == 0 < kernel['from plain'] < 0.02
