"""Small files of a run: written aside, then renamed, by the first process alone."""

import io
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lares_jax.training import processes


def write(path: pathlib.Path, content: bytes) -> None:
  """A file that is there is whole: a kill in between leaves the one before."""
  if not processes.first():
    return
  aside = path.with_suffix('.aside')
  aside.write_bytes(content)
  os.replace(aside, path)


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  write(path, (json.dumps(content, indent=2) + '\n').encode())


def write_arrays(path: pathlib.Path, arrays: Mapping[str, Any]) -> None:
  """An .npz file."""
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  write(path, buffer.getvalue())


def read_json(path: pathlib.Path) -> dict[str, Any]:
  return json.loads(path.read_text(encoding='utf-8'))
