"""proto"""
import dataclasses
import math
import jax, jax.numpy as jnp, numpy as np
LOWEST = float(np.finfo(np.float32).min)

@dataclasses.dataclass(frozen=True)
class Scoring:
  similarity: str
  tau: float
  dtype: str

  @property
  def bits(self): return math.log2(math.e) / self.tau

  def comparable(self, x, axis):
    if self.similarity == 'dot': return x
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=axis, keepdims=True), 1e-24))

  def dot(self, a, b, i, j):
    dims = ((i,), (j,))
    precision = jax.lax.Precision.HIGHEST if self.dtype == 'float32' else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a.astype(self.dtype), b.astype(self.dtype), (dims, ((), ())), precision=precision, preferred_element_type=jnp.float32)
