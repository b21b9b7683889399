"""What a person did wrong, said in one line."""

import sys
from collections.abc import Callable
from typing import Any

from absl import app, logging


class InputError(ValueError):
  """Bad input: the message is one line that names the file, row or key, and the mend."""


def front_door(main: Callable[[list[str]], Any]) -> None:
  """Runs `main` under absl; an `InputError` becomes one line on stderr and exit code 1."""

  def guarded(argv: list[str]) -> Any:
    logging.set_verbosity(logging.WARNING)  # orbax tells its life otherwise
    if len(argv) > 1:
      raise InputError(f'unexpected argument {argv[1]!r}: every option is --name=value')
    return main(argv)

  def reported(argv: list[str]) -> Any:
    try:
      return guarded(argv)
    except InputError as error:
      print(f'error: {error}', file=sys.stderr)
      return 1

  app.run(reported)
