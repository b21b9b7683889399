"""The catalogue pass of `share` by kernels, which keep every block of scores on the chip.

TODO table
"""

import jax
import jax.numpy as jnp

from lares_jax import share as plain
from lares_jax.kernels import gpu, score, tpu
from lares_jax.share import Share


def log_sum_exp(share: Share, query_MxD: jax.Array, real_M: jax.Array) -> jax.Array:
  """As `share.log_sum_exp`, by the kernel that `catalogue.kernel` asks for."""
  args = share, query_MxD, real_M
  return _choose(
    share, lambda *kernel: forward(*kernel, *args)[0], lambda: plain.log_sum_exp(*args)
  )


def count_above(share: Share, query_MxD, real_M, target_M, low_M, high_M, hidden_MxH):
  """As `share.count_above`; where there are items to hide, it is that."""
  args, bounds = (share, query_MxD, real_M), (target_M, low_M, high_M)
  of_plain = lambda: plain.count_above(*args, *bounds, hidden_MxH)
  if hidden_MxH.shape[1]:
    return of_plain()
  return _choose(share, lambda *kernel: forward(*kernel, *args, bounds, lse=False)[1], of_plain)


def gradients(share: Share, query_MxD, real_M, lse_M, g_M, d_table_RxD):
  """As `share.gradients`."""
  args = share, query_MxD, real_M, lse_M, g_M

  def of_kernel(*kernel):
    d_query_MxD, d_RxD = backward(*kernel, *args)
    return d_query_MxD, d_table_RxD + d_RxD

  return _choose(share, of_kernel, lambda: plain.gradients(*args, d_table_RxD))


def _choose(share: Share, of_kernel, of_plain):
  """of_kernel(module, interpreted) or of_plain(), by the machine that the code is compiled for."""
  if share.config.kernel == 'plain':
    return of_plain()
  kernels = {'tpu': lambda: of_kernel(tpu, False)}
  if share.config.kernel == 'pallas':
    kernels['cuda'] = lambda: of_kernel(gpu, False)
    kernels['cpu'] = lambda: of_kernel(tpu, True)
  return jax.lax.platform_dependent(**kernels, default=of_plain)


def forward(kernel, interpret: bool, share, query_MxD, real_M, bounds=None, lse=True):
  """One pass over the items: (log-sum-exp [M] or None, what `count_above` counts [M] or None).

  Args:
    kernel: the module, `tpu` or `gpu`.
    interpret: run it as plain JAX, slowly, for tests.
    share: the items.
    query_MxD: user vectors.
    real_M: False where a query is filling; its results are 0.
    bounds: target_M, low_M, high_M, if the count is wanted.
    lse: whether the log-sum-exp is.
  """
  order = _Order(real_M)
  config = share.config
  query_MxD = order.take(score.comparable(query_MxD, config, 1)).astype(config.dtype)
  if bounds is not None:
    target_M, low_M, high_M = bounds
    bounds = (
      order.take(target_M - share.first),
      order.take(low_M * config.tau),
      order.take(high_M * config.tau),
    )
  out = kernel.forward(
    _counts(share, real_M), query_MxD, share.table_RxD, bounds, config, lse, interpret
  )
  return tuple(x if x is None else order.put(x) for x in out)


def backward(kernel, interpret: bool, share, query_MxD, real_M, lse_M, g_M):
  """Gradients (d_query_MxD, d_table_RxD) of sum(g * lse), `lse_M` being of the whole catalogue."""
  order = _Order(real_M)
  config = share.config
  prepare = lambda x_MxD: order.take(score.comparable(x_MxD, config, 1))
  query_MxD, pull = jax.vjp(prepare, query_MxD)
  # With p the softmax: d_query = g/tau * (p @ items), d_items = p.T @ (g/tau * query).
  g_Mx1 = order.take(g_M / config.tau)[:, None]
  d_MxD, d_table_RxD = kernel.backward(
    _counts(share, real_M),
    query_MxD.astype(config.dtype),
    (query_MxD * g_Mx1).astype(config.dtype),
    order.take(lse_M * config.tau),
    share.table_RxD,
    config,
    interpret,
  )
  return pull(d_MxD * g_Mx1)[0], d_table_RxD.astype(share.table_RxD.dtype)


class _Order:
  """Queries with those that count first, so that tiles of mere filling are skipped."""

  def __init__(self, real_M: jax.Array):
    self._real_M = real_M
    self._order_M = jnp.argsort(~real_M)  # stable

  def _clear(self, x: jax.Array) -> jax.Array:
    return jnp.where(self._real_M.reshape(-1, *[1] * (x.ndim - 1)), x, 0)

  def take(self, x: jax.Array) -> jax.Array:
    return self._clear(x)[self._order_M]

  def put(self, x_M: jax.Array) -> jax.Array:
    return self._clear(jnp.zeros_like(x_M).at[self._order_M].set(x_M, unique_indices=True))


def _counts(share: Share, real_M: jax.Array) -> jax.Array:
  """How many queries count, and how many rows are items [2]."""
  items = jnp.clip(share.items - share.first, 0, share.size)
  return jnp.stack([real_M.sum(), items]).astype(jnp.int32)
