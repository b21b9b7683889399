"""What is written is whole or not there: made aside, then renamed."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator

from lares_jax.errors import InputError


@contextlib.contextmanager
def aside(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Where to make a file or directory, which takes the place of `path` if the block succeeds.

  A file replaces the one that is there; a directory needs a free place.
  """
  path = pathlib.Path(os.path.realpath(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
      prefix=f'.{path.name}.', dir=path.parent, ignore_cleanup_errors=True) as near:
    fresh = pathlib.Path(near, 'new')
    yield fresh
    os.replace(fresh, path)


def check_free(directory: str | os.PathLike[str]) -> None:
  """A new directory takes nobody's place.

  Raises:
    InputError: there is something, other than an empty directory.
  """
  directory = pathlib.Path(directory)
  if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
    raise InputError(f'{directory}: exists; delete it, or choose another place')
