"""Studies of a config or a run: `python -m lares_jax.study NAME --option=value ...`

    depth      what thinking longer costs and gives              (studies/depth.py)
    compile    memory, traffic and time on a TPU or GPU topology, with none at hand (studies/compile.py)
"""

import importlib
import sys

from absl import flags

from lares_jax.errors import front_door

NAMES = ('depth', 'compile')

if __name__ == '__main__':
  if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
    print(f'error: name a study: python -m lares_jax.study {"|".join(NAMES)}', file=sys.stderr)
    sys.exit(1)
  study = importlib.import_module(f'lares_jax.studies.{sys.argv.pop(1)}')
  __doc__ = str(study.__doc__)  # what --help shows, with the study's own flags
  flags.adopt_module_key_flags(study)
  front_door(study.main)
