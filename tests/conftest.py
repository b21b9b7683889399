"""Tests, and the commands they start, run on the CPU; programs compile quickly rather than well, and
once in a session."""

import atexit
import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
# References are float32; a GPU would round the factors of its products to ten bits.
os.environ.setdefault('JAX_DEFAULT_MATMUL_PRECISION', 'highest')
# A GPU adds a gradient's parts in any order, unless it is told not to.
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_gpu_deterministic_ops=true'
if importlib.metadata.version('jaxlib') < '0.11':  # later ones end the process: they know no such flag
  os.environ['XLA_FLAGS'] += ' --xla_cpu_use_fusion_emitters=false'

# The workers of a session share its compiled programs.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='lares_jax_tests_')
  atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
