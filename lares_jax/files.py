"""Small files of a run, which the first process alone writes."""

import contextlib
import fcntl
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lares_jax import processes
from lares_jax.aside import aside
from lares_jax.errors import InputError


@contextlib.contextmanager
def held(directory: pathlib.Path) -> Iterator[None]:
  """Keeps a run's directory to this start of it: two at once would spoil each other's checkpoints.

  Raises:
    InputError: another start of it is at work.
  """
  if not processes.first():
    yield
    return
  with open(directory / '.lock', 'w', encoding='utf-8') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InputError(f'{directory}: another process trains here; wait until it has ended, or choose '
                       'another --workdir') from None
    except OSError:  # a file system without locks
      pass
    yield


def write(path: pathlib.Path, content: bytes) -> None:
  """A file that is there is whole: a kill in between leaves the one before."""
  if not processes.first():
    return
  with aside(path) as fresh:
    fresh.write_bytes(content)


def as_json(content: Mapping[str, Any]) -> bytes:
  return (json.dumps(content, indent=2) + '\n').encode()


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  write(path, as_json(content))


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """An .npz file."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  write(path, buffer.getvalue())


def read_json(path: pathlib.Path, *keys: str) -> dict[str, Any]:
  """The object of a JSON file, which must have the keys."""
  try:
    content = json.loads(path.read_text(encoding='utf-8'))
    _ = [content[key] for key in keys]
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f'{path} is damaged: {type(error).__name__}: {error}') from None
  return content


def read_arrays(path: pathlib.Path) -> dict[str, Any]:
  """The arrays of an .npz file."""
  try:
    return dict(np.load(path))
  except Exception as error:  # numpy, zip and zlib each have their own
    fault = f'is damaged: {error}' if path.exists() else 'is missing'
    raise InputError(f'{path} {fault}; bring it back') from None
