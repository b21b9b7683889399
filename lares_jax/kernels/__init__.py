"""The catalogue pass of `share` by kernels, which keep every block of scores on the chip.

TODO table
"""

import jax
import jax.numpy as jnp

from lares_jax import share as plain
from lares_jax.kernels import gpu, tpu
from lares_jax.scoring import comparable
from lares_jax.share import Share


def log_sum_exp(share: Share, query_MxD, real_M) -> jax.Array:
  """As `share.log_sum_exp`, by what `catalogue.kernel` asks for."""
  args = share, query_MxD, real_M
  return _choose(share, lambda *kernel: forward(*kernel, *args)[0],
                 lambda: plain.log_sum_exp(*args))


def count_above(share: Share, query_MxD, real_M, target_M, low_M, high_M, hidden_MxH) -> jax.Array:
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

  `bounds` are target_M, low_M and high_M, if the count is wanted. `interpret` runs the kernel
  (the module `tpu` or `gpu`) as plain JAX, slowly.
  """
  config = share.config
  counts_2, take, put = _real_first(share, real_M)
  query_MxD = comparable(take(query_MxD), config).astype(config.dtype)
  if bounds is not None:
    target_M, low_M, high_M = bounds
    bounds = take(target_M - share.first), take(low_M * config.tau), take(high_M * config.tau)
  item_RxD = comparable(share.table_RxD, config)
  out = kernel.forward(counts_2, query_MxD, item_RxD, bounds, config, lse, interpret)
  return tuple(x if x is None else put(x) for x in out)


def backward(kernel, interpret: bool, share, query_MxD, real_M, lse_M, g_M):
  """Gradients (d_query_MxD, d_table_RxD) of sum(g * lse), `lse_M` being of the whole catalogue."""
  config = share.config
  counts_2, take, _ = _real_first(share, real_M)
  query_MxD, pull_query = jax.vjp(lambda x: comparable(take(x), config), query_MxD)
  item_RxD, pull_item = jax.vjp(lambda x: comparable(x, config), share.table_RxD)
  # With p the softmax: d_query = g/tau * (p @ items), d_item = p.T @ (g/tau * query).
  g_Mx1 = take(g_M / config.tau)[:, None]
  rounded, scaled = (x.astype(config.dtype) for x in (query_MxD, query_MxD * g_Mx1))
  d_MxD, d_item_RxD = kernel.backward(
    counts_2, rounded, scaled, take(lse_M * config.tau), item_RxD, config, interpret)
  return *pull_query(d_MxD * g_Mx1), *pull_item(d_item_RxD)


def _real_first(share: Share, real_M):
  """(Numbers of queries and of items that count [2]; take(x): those queries first, then zeros;
  put(x): back in the caller's order, zeros elsewhere)."""
  order_M = jnp.argsort(~real_M)  # stable
  clear = lambda x: jnp.where(jnp.expand_dims(real_M, tuple(range(1, x.ndim))), x, 0)
  put = lambda x: clear(jnp.zeros_like(x).at[order_M].set(x, unique_indices=True))
  items = jnp.clip(share.items - share.first, 0, share.size)
  return jnp.stack([real_M.sum(), items]).astype(jnp.int32), lambda x: clear(x)[order_M], put
