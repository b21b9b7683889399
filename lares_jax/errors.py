"""What a person did wrong, said in one line."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging


class InputError(ValueError):
  """Bad input: the message is one line that names the file, row or key, and the mend."""


class Interrupted(Exception):
  """A signal asked the run to stop; it was saved first. `code` is the exit code."""

  def __init__(self, signum: int):
    super().__init__(signal.Signals(signum).name)
    self.code = 128 + signum


def front_door(main: Callable[[], Any]) -> None:
  """Runs `main` under absl; bad flags, an `InputError` or `OSError` become one line and exit code 1.

  So does a signal that ended training, with its own exit code.
  """

  def reported(argv: list[str]) -> Any:
    logging.set_verbosity(logging.WARNING)  # orbax tells its whole life otherwise
    try:
      if len(argv) > 1:
        raise InputError(f'unexpected argument {argv[1]!r}: every option is --name=value')
      return main()
    except KeyboardInterrupt:
      print('stopped at once; what was saved stands', file=sys.stderr)
      return 128 + signal.SIGINT
    except (InputError, OSError) as error:  # the latter: a full disk, a place that cannot be written
      return _say(str(error))
    except (RuntimeError, AssertionError):
      if not (fault := _no_devices()):
        raise
      return _say(f'jax has no devices here ({fault}); JAX_PLATFORMS is '
                  f'{os.environ.get("JAX_PLATFORMS")!r}; see PLATFORM in launch/setup.sh')
    except Interrupted as stop:
      print(f'{stop}: saved; the same command goes on from here', file=sys.stderr)
      return stop.code

  app.run(reported, flags_parser=_parsed)


def whole_numbers(flag: str, given: Sequence[str], low: int, high: int) -> tuple[int, ...]:
  """The numbers of a list flag, rising, each once.

  Raises:
    InputError: there are none, or one is not a whole number from low to high.
  """
  try:
    numbers = sorted({int(x) for x in given})
  except ValueError:
    numbers = []
  if not numbers or numbers[0] < low or numbers[-1] > high:
    raise InputError(f'--{flag}={",".join(given)}: whole numbers from {low} to {high}, commas between')
  return tuple(numbers)


def _parsed(argv: list[str]) -> list[str]:
  empty = [option for option in argv[1:] if re.fullmatch(r'--\w+=', option)]
  if empty:
    sys.exit(_say(f'{empty[0]} is empty; give it a value, or leave it out'))
  try:
    return flags.FLAGS(argv)
  # A config file is read while flags are parsed, so its own faults come up here: no such file,
  # no such key, a value of another type, or whatever its code raises.
  except Exception as error:
    # ml_collections quotes what others said, line ends and all.
    said = str(error).replace('\\n', '\n').replace("\\'", "'")
    if missing := re.findall(r'flag (--\w+)=None:', said):
      said = f'{", ".join(missing)} missing; --help says more'
    elif near := re.search(r'Did you mean "(.*)" instead of "(.*)"', said):
      said = f'the config has no key {near[2]}; did you mean {near[1]}?'
    elif isinstance(error, AttributeError) and ' ' not in said:
      said = 'the config has no key ' + said.strip('\'"')
    elif not isinstance(error, flags.Error):
      said = f'--config: {type(error).__name__}: {said}'
      frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is this file's
      own = [frame for frame in frames if not re.search('^<|site-packages', frame.filename)]
      if own and not isinstance(error, SyntaxError):  # which says itself where it is
        said += f' ({own[-1].filename}, line {own[-1].lineno})'
    sys.exit(_say(said))


def _no_devices() -> str:
  """Why jax cannot have the devices that the environment asks for; empty if it can."""
  import jax  # not above: not every command needs it
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    return str(error).strip().split('\n')[0] or 'jax was installed without them'
  return ''


def _say(said: str) -> int:
  lines = said.strip().splitlines()
  if any('Traceback (most' in line for line in lines):  # a config file raised: its words are enough
    lines = [lines[-1].removeprefix('ValueError: ')]
  elif said.startswith('Configuration is not available'):
    lines = [lines[-1].split(': ')[-1].strip("'") + ': no such file; check --config']
  print('error: ' + ' '.join(' '.join(lines).split()), file=sys.stderr)
  return 1
