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


@contextlib.contextmanager
def new_directory(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Where to fill a directory that appears at `path` if the block succeeds.

  Raises:
    InputError: something is there, before or after, other than an empty directory.
  """
  path = pathlib.Path(path)
  with aside(path) as fresh:
    _check_free(path)
    fresh.mkdir()
    yield fresh
    _check_free(path)


def _check_free(path: pathlib.Path) -> None:
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise InputError(f'{path}: exists; choose another place, or delete it')
