"""Every test runs on the CPU; programs compile quickly rather than well, and once in a session."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax

jax.config.update('jax_disable_most_optimizations', True)

# Compiled programs are shared by the session's workers, which inherit the variable.
if 'LARES_TEST_CACHE' not in os.environ:
  os.environ['LARES_TEST_CACHE'] = tempfile.mkdtemp(prefix='lares_jax_tests_')
  atexit.register(shutil.rmtree, os.environ['LARES_TEST_CACHE'], ignore_errors=True)
jax.config.update('jax_compilation_cache_dir', os.environ['LARES_TEST_CACHE'])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
