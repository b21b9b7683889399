"""Text embeddings beside a data set, with an encoder made up for the test."""

import contextlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from tiny import make_store

from lares_jax.data import text
from lares_jax.errors import InputError


@pytest.fixture
def store(tmp_path):
  return make_store(tmp_path / 'data')


def _encode(texts):
  return np.array([[len(t), t.count('a'), 1] for t in texts], np.float32)


@pytest.mark.parametrize('kind', ('csv', 'jsonl'))
def test_each_title_is_encoded_into_its_own_item(store, tmp_path, kind, monkeypatch):
  monkeypatch.setattr(text, '_TEXTS', 7)
  named = {f'i{v}': 'a' * v + ', "x"' for v in range(1, 30)}  # i0 has none
  if kind == 'csv':
    lines = ['asin,price,name', 'unknown,1,other']
    lines += [f'{k},2,"{v.replace(chr(34), chr(34) * 2)}"' for k, v in named.items()]
    lines += ['i5,3,a second title', 'i0,3,']
  else:
    lines = ['{"name": "other", "asin": "unknown"}', '{"asin": "i0", "name": null}']
    lines += [f'{{"asin": "{k}", "name": "{v.replace(chr(34), chr(92) + chr(34))}"}}'
              for k, v in named.items()]
  path = tmp_path / f'meta.{kind}'
  path.write_text('\n'.join(lines) + '\n')
  title_V = text.titles(store, str(path), 'asin', 'name')
  assert title_V == [named.get(i, '') for i in store.item_ids]
  written = text.write(store, title_V, _encode)
  assert os.listdir(store.directory).count('text.npy') == 1
  assert not [f for f in os.listdir(store.directory) if f.startswith('.')]
  table = text.part(text.opened(store, 3), (slice(0, 32), slice(None)))
  np.testing.assert_array_equal(table[:30, 1], [t.count('a') for t in title_V])
  nothing = list(store.item_ids).index('i0')
  assert not table[nothing].any() and not table[30:].any()
  np.testing.assert_array_equal(np.load(written), table[:30])
  share, whole = (text.part(text.opened(store, 3), (rows, slice(None))) for rows in (
    slice(16, 32), slice(None)))
  assert table.shape == (32, 3) and whole.shape == (30, 3)
  np.testing.assert_array_equal(share, table[16:])


def test_words_that_texts_share_bring_them_closer():
  encode = text.word_encoder(64)
  a, b, c, nothing = encode(['the blue train', 'the blue bus', 'red', ''])
  np.testing.assert_allclose([a @ a, b @ b, c @ c, nothing @ nothing], [1, 1, 1, 0], atol=1e-6)
  assert a @ b > 0.4 > abs(a @ c)
  np.testing.assert_array_equal(encode(['the blue train'])[0], a)


def test_a_failing_encoder_leaves_the_former_table(store):
  text.write(store, ['a'] * 30, _encode)
  fed = []

  def breaks(texts):
    fed.append(texts)
    raise RuntimeError('out of memory')

  with pytest.raises(RuntimeError):
    text.write(store, ['b'] * 30, breaks)
  assert fed and (text.opened(store, 3)[:, 1] == 1).all()
  assert not [f for f in os.listdir(store.directory) if f.startswith('.')]


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='a device of Linux')
def test_a_full_disk_is_an_error(store, monkeypatch):
  """Of a table that is mapped it would be the end of the process, without a word (SIGBUS)."""
  monkeypatch.setattr(np.lib.format, 'open_memmap', lambda *_: pytest.fail('mapped'))
  monkeypatch.setattr(text, 'aside', lambda path: contextlib.nullcontext('/dev/full'))
  with pytest.raises(OSError, match='No space left'):
    text.write(store, ['a'] * 30, _encode)


def test_what_does_not_fit_is_said(store, tmp_path, monkeypatch):
  with pytest.raises(InputError, match=r'lares_jax\.data\.text'):
    text.opened(store, 3)
  text.write(store, ['a'] * 30, _encode)
  with pytest.raises(InputError, match=r'text_width=3'):
    text.opened(store, 768)
  path = os.path.join(store.directory, 'text.npy')
  monkeypatch.setattr(text, '_TEXTS', 3)  # rows are checked by shares
  np.save(path, np.zeros((29, 3), np.float32))
  with pytest.raises(InputError, match='30 items'):
    text.opened(store, 3)
  broken = np.zeros((30, 3), np.float32)
  broken[4, 1] = np.nan
  np.save(path, broken)
  with pytest.raises(InputError, match='row 4'):
    text.opened(store, 3)
  np.save(path, np.full((30, 3), 'a'))
  with pytest.raises(InputError, match='<U1 where numbers are needed'):
    text.opened(store, 3)
  other = tmp_path / 'meta.csv'
  other.write_text('asin,name\nx,y\n')
  with pytest.raises(InputError, match='no title for any item'):
    text.titles(store, str(other), 'asin', 'name')
  with pytest.raises(InputError, match='--title=NAME'):
    text.titles(store, str(other), 'asin', 'title')
  numbers = tmp_path / 'meta.parquet'
  pl.DataFrame({'asin': ['i0'], 'name': [1.5]}).write_parquet(numbers)
  with pytest.raises(InputError, match='the title column is Float64'):
    text.titles(store, str(numbers), 'asin', 'name')
  monkeypatch.setitem(sys.modules, 'sentence_transformers', None)
  with pytest.raises(InputError, match='pip install sentence-transformers'):
    text.sentence_encoder('any')


def test_the_command(store, tmp_path):
  titles = tmp_path / 'meta.csv'
  titles.write_text('asin,name\ni3,a red shoe\nnobody,other\n')
  out = subprocess.run(
    [sys.executable, '-m', 'lares_jax.data.text', f'--data={store.directory}', f'--input={titles}',
     '--item=asin', '--title=name', '--encoder=words'],
    cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True, check=False)
  assert out.returncode == 0, out.stderr
  assert out.stdout.endswith('30 items of 128 dimensions, 29 without a title\n')
  table_VxW, row = text.opened(store, 128), store.item_ids.to_list().index('i3')
  np.testing.assert_allclose(table_VxW[row], text.word_encoder()(['a red shoe'])[0], rtol=1e-6)
  assert not np.delete(table_VxW, row, axis=0).any()
