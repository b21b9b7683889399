"""Every test runs on the CPU and refuses silent rank promotion in this package's own arithmetic."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax

# Tests compile many small programs once: less optimisation is less waiting.
jax.config.update('jax_disable_most_optimizations', True)
