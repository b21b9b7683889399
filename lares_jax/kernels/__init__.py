"""Kernels of the catalogue pass, one for TPU and one for GPU, behind the same two functions."""

import functools

import jax
import jax.numpy as jnp

from lares_jax.kernels import gpu, score, tpu


def _on_platform(function: str, config, **options):
  """The kernel of the machine that the code is compiled for; interpreted, and slow, on a CPU."""
  run = lambda module, **more: functools.partial(
    getattr(module, function), config=config, **options, **more
  )
  return lambda *arrays: jax.lax.platform_dependent(
    *arrays, tpu=run(tpu), cuda=run(gpu), cpu=run(tpu, interpret=True)
  )


def _comparable(query_MxD, real_M, config):
  return jnp.where(real_M[:, None], score.comparable(query_MxD, config, 1), 0.0)


def forward(query_MxD, real_M, table_VxD, config, bounds=None, lse=True):
  """One pass over the items: (log-sum-exp of the scores [M], rank of the targets [M]).
  """
  query_MxD = _comparable(query_MxD, real_M, config).astype(config.dtype)
  if bounds is not None:
    target_M, low_M, high_M = bounds
    bounds = target_M, low_M * config.tau, high_M * config.tau
  run = _on_platform('forward', config, lse=lse)
  lse_M, rank_M = run(query_MxD, table_VxD, bounds)
  clean = lambda x_M: None if x_M is None else jnp.where(real_M, x_M, 0.0)
  return clean(lse_M), clean(rank_M)


def backward(query_MxD, real_M, table_VxD, lse_M, g_M, config):
  """Gradients (d_query, d_table) of sum(g * log-sum-exp)."""
  comparable_MxD, pull = jax.vjp(lambda x: _comparable(x, real_M, config), query_MxD)
  g_Mx1 = (jnp.where(real_M, g_M, 0.0) / config.tau)[:, None]
  lse_M = jnp.where(real_M, lse_M, 0.0) * config.tau
  query_MxD, scaled_MxD = (x.astype(config.dtype) for x in (comparable_MxD, comparable_MxD * g_Mx1))
  d_MxD, d_table_VxD = _on_platform('backward', config)(query_MxD, scaled_MxD, lse_M, table_VxD)
  return pull(d_MxD * g_Mx1)[0], d_table_VxD.astype(table_VxD.dtype)
