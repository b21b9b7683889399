"""LARES: latent reasoning for sequential recommendation, in JAX (arXiv 2505.16865)."""
