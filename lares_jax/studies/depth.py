"""What does another reasoning step cost, and what does it buy?

    python -m lares_jax.study depth --workdir=DIR --depths=1,2,4,8,16,32,64 [--output=DIR] \\
        [--widths=1,2,4,8] [--users=N] [--repeats=20] [--profile]

Writes to --output (WORKDIR/depth if not given) the tables cost, fit, quality, adaptive and width
(.csv, .json, .md), a plot of each question (.png, .svg), and report.html, which holds all of it.
Quality ranks the history or removes it as the run's evaluate.history says; a user's ten best, whose
settling is watched, are of all items.
--profile adds profile/, a trace for xprof or TensorBoard. The rule of adaptive depth that validation
chose goes to WORKDIR/adaptive.json, from where `recommend --depth=adaptive` takes it; with --output
it goes there, and the run keeps the rule that it has.
"""

from absl import flags

from lares_jax.errors import InputError, whole_numbers
from lares_jax.experiment import Experiment
from lares_jax.model.lares import DEEPEST
from lares_jax.studies import depth_study

_WORKDIR = flags.DEFINE_string('workdir', None, 'A trained run.', required=True)
_OUTPUT = flags.DEFINE_string('output', '', 'Where the report goes; WORKDIR/depth if empty.')
_DEPTHS = flags.DEFINE_list('depths', ['1', '2', '4', '8', '16', '32', '64'], 'Steps to look at.')
_WIDTHS = flags.DEFINE_list('widths', ['1', '2', '4', '8'], 'Draws of the initial state to average.')
_USERS = flags.DEFINE_integer('users', 0, 'Users to measure quality on; 0: all.', lower_bound=0)
_REPEATS = flags.DEFINE_integer('repeats', 20, 'Timed runs of each program.', lower_bound=1)
_PROFILE = flags.DEFINE_bool('profile', False, 'Write a jax.profiler trace of a batch.')


def main() -> None:
  depths, widths = (whole_numbers(name, given, 1, DEEPEST) for name, given in (
    ('depths', _DEPTHS.value), ('widths', _WIDTHS.value)))
  if len(depths) < 2:
    raise InputError(f'--depths={depths[0]}: two or more, for cost is a line over them')
  experiment = Experiment.load(_WORKDIR.value)
  if not experiment.model.config.recurrent:
    raise InputError(f'{_WORKDIR.value}: this model does not repeat one core-block, which is what the '
                     'study measures')
  depth_study.study(experiment, _OUTPUT.value, depths, widths, _USERS.value, _REPEATS.value,
                    _PROFILE.value)
