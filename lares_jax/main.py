"""Trains: the config's phases in order, then the test at every depth.

    python -m lares_jax.main --config=configs/beauty.py --workdir=runs/beauty \\
        --config.data.path=../shared/data/beauty.txt [--config.any.key=value ...]

Stopped by a signal or killed, the same command goes on where it was. On several machines, start it on
all of them with LARES_PROCESSES set (see processes.py and launch/).
"""

from absl import flags
from ml_collections import config_flags

from lares_jax import config as config_lib
from lares_jax import processes, run
from lares_jax.errors import front_door
from lares_jax.experiment import Experiment

_CONFIG = config_flags.DEFINE_config_file('config', help_string='A file of configs/.')
_WORKDIR = flags.DEFINE_string('workdir', None, 'Where checkpoints, metrics and results go.',
                               required=True)
flags.mark_flag_as_required('config')


def main() -> None:
  with processes.joined():
    run.train(Experiment.start(config_lib.typed(_CONFIG.value), _WORKDIR.value))


if __name__ == '__main__':
  front_door(main)
