"""LARES: latent reasoning for sequential recommendation, in JAX (arXiv 2505.16865)."""

from typing import Any


def __getattr__(name: str) -> Any:
  """`lares_jax.Recommender`, loaded when first asked for: the package itself stays light."""
  if name == 'Recommender':
    from lares_jax.recommender import Recommender
    return Recommender
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
