"""Small files of a run: whole or as they were, and written by one process alone."""

import errno
import os
import pathlib

import pytest

from lares_jax import files, processes
from lares_jax.aside import new_directory
from lares_jax.errors import InputError


def test_a_file_that_could_not_be_written_stays_what_it_was(tmp_path, monkeypatch):
  path = tmp_path / 'result.json'
  files.write_json(path, {'depth': 4})
  before, whole = path.read_bytes(), pathlib.Path.write_bytes

  def half(self, content):
    whole(self, content[: len(content) // 2])
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(pathlib.Path, 'write_bytes', half)
  with pytest.raises(OSError, match='No space left'):
    files.write_json(path, {'depth': 8})
  assert path.read_bytes() == before and os.listdir(tmp_path) == ['result.json']


def test_what_stands_elsewhere_by_a_link_is_written_there(tmp_path):
  (tmp_path / 'disk' / 'run').mkdir(parents=True)
  (tmp_path / 'disk' / 'file').write_bytes(b'old')
  for name in ('file', 'run'):
    (tmp_path / name).symlink_to(tmp_path / 'disk' / name)
  files.write(tmp_path / 'file', b'new')
  with new_directory(tmp_path / 'run') as fresh:
    (fresh / 'part').write_text('made')
  assert (tmp_path / 'file').is_symlink() and (tmp_path / 'run').is_symlink()
  assert (tmp_path / 'disk' / 'file').read_bytes() == b'new'
  assert os.listdir(tmp_path / 'disk' / 'run') == ['part']
  assert sorted(os.listdir(tmp_path)) == ['disk', 'file', 'run']


def test_one_process_alone_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(processes, 'first', lambda: False)
  files.write_json(tmp_path / 'result.json', {})
  with files.held(tmp_path), files.held(tmp_path):  # nor does another hold the directory
    assert not os.listdir(tmp_path)


def test_a_file_that_is_missing_is_not_called_damaged(tmp_path):
  with pytest.raises(InputError, match=r'ranks\.npz is missing; bring it back'):
    files.read_arrays(tmp_path / 'ranks.npz')
