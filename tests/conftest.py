"""Every test runs on the CPU; programs compile quickly rather than well, and once in a session."""

import os
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax

jax.config.update('jax_disable_most_optimizations', True)
_CACHE = tempfile.TemporaryDirectory(prefix='lares_jax_tests_')
jax.config.update('jax_compilation_cache_dir', _CACHE.name)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
