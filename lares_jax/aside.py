"""What is written is whole or not there: made aside, then renamed."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def aside(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Where to make a file or directory, which takes the place of `path` if the block succeeds."""
  path = pathlib.Path(os.path.realpath(path))
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
      prefix=f'.{path.name}.', dir=path.parent, ignore_cleanup_errors=True) as near:
    fresh = pathlib.Path(near, 'new')
    yield fresh
    if path.is_dir():
      os.rename(path, pathlib.Path(near, 'old'))
    os.replace(fresh, path)
