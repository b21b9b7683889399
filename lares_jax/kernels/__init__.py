"""The catalogue pass as kernels: the same functions as `share`, with blocks of scores kept on chip."""

import jax
import jax.numpy as jnp

from lares_jax import share as plain
from lares_jax.kernels import gpu, score, tpu
from lares_jax.share import Share


def _on_platform(config, of_kernel, of_plain):
  """What `catalogue.kernel` asks for, on the machine that the code is compiled for."""
  if config.kernel == 'plain':
    return of_plain()
  kernels = {'tpu': lambda: of_kernel(tpu)}
  if config.kernel == 'pallas':
    kernels |= {'cuda': lambda: of_kernel(gpu), 'cpu': lambda: of_kernel(tpu, interpret=True)}
  return jax.lax.platform_dependent(**kernels, default=of_plain)


class _Queries:
  """Queries as the kernels take them: those that count first, zeros for the rest."""

  def __init__(self, share: Share, query_MxD: jax.Array, real_M: jax.Array):
    self._real_M, self._share = real_M, share
    self._order_M = jnp.argsort(~real_M)  # stable
    self.query_MxD, self._pull = jax.vjp(self._prepare, query_MxD)
    items = jnp.clip(share.items - share.first, 0, share.size)
    self.counts_2 = jnp.stack([real_M.sum(), items]).astype(jnp.int32)

  def _prepare(self, query_MxD):
    query_MxD = score.comparable(query_MxD, self._share.config, 1)
    return self.take(query_MxD)

  def take(self, x):
    real = self._real_M.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(real, x, 0)[self._order_M]


def forward(kernel, share: Share, query_MxD, real_M, bounds=None, lse=True, interpret=False):
  order_M = jnp.argsort(~real_M)
  config = share.config
  take = lambda x_M: jnp.where(real_M, x_M, 0)[order_M]
  query_MxD = score.comparable(query_MxD, config, 1)
  query_MxD = jnp.where(real_M[:, None], query_MxD, 0)[order_M].astype(config.dtype)
  if bounds is not None:
    target_M, low_M, high_M = bounds
    bounds = take(target_M - share.first), take(low_M * config.tau), take(high_M * config.tau)
  out = kernel.forward(_counts(share, real_M), query_MxD, share.table_RxD, bounds, config, lse, interpret)
  back = lambda x_M: None if x_M is None else jnp.where(real_M, jnp.zeros_like(x_M).at[order_M].set(x_M, unique_indices=True), 0)
  return back(out[0]), back(out[1])


def _counts(share, real_M):
  items = jnp.clip(share.items - share.first, 0, share.size)
  return jnp.stack([real_M.sum(), items]).astype(jnp.int32)


def backward(kernel, share: Share, query_MxD, real_M, lse_M, g_M, interpret=False):
  order_M, config = jnp.argsort(~real_M), share.config
  take = lambda x_M: jnp.where(real_M, x_M, 0)[order_M]
  prepare = lambda x: jnp.where(real_M[:, None], score.comparable(x, config, 1), 0)[order_M]
  query_MxD, pull = jax.vjp(prepare, query_MxD)
  g_Mx1 = take(g_M / config.tau)[:, None]
  d_MxD, d_table_RxD = kernel.backward(_counts(share, real_M), query_MxD.astype(config.dtype), (query_MxD * g_Mx1).astype(config.dtype), take(lse_M * config.tau), share.table_RxD, config, interpret)
  return pull(d_MxD * g_Mx1)[0], d_table_RxD.astype(share.table_RxD.dtype)


def log_sum_exp(share, query_MxD, real_M):
  return _on_platform(share.config, lambda k, **o: forward(k, share, query_MxD, real_M, **o)[0], lambda: plain.log_sum_exp(share, query_MxD, real_M))


def count_above(share, query_MxD, real_M, target_M, low_M, high_M, hidden_MxH):
  args = share, query_MxD, real_M
  bounds = target_M, low_M, high_M
  of_plain = lambda: plain.count_above(*args, *bounds, hidden_MxH)
  if hidden_MxH.shape[1]:
    return of_plain()
  return _on_platform(share.config, lambda k, **o: forward(k, *args, bounds, lse=False, **o)[1], of_plain)


def gradients(share, query_MxD, real_M, lse_M, g_M, d_table_RxD):
  def of_kernel(kernel, **o):
    d_query_MxD, d_RxD = backward(kernel, share, query_MxD, real_M, lse_M, g_M, **o)
    return d_query_MxD, d_table_RxD + d_RxD
  return _on_platform(share.config, of_kernel, lambda: plain.gradients(share, query_MxD, real_M, lse_M, g_M, d_table_RxD))
