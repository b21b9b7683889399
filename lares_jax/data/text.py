"""Text embeddings of a data set's items, for models that read text: text.npy, float32 [V, W].

    python -m lares_jax.data.text --data=DIR --input=meta.jsonl.gz --item=parent_asin --title=title \\
        [--encoder=NAME]

The table stands beside the items in DIR, row v for item v; an item without a title gets zeros.
"""

import functools
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import tqdm
from absl import flags

from lares_jax.aside import aside
from lares_jax.data.formats import reading, scan, sources
from lares_jax.data.store import Store
from lares_jax.errors import InputError, front_door

Encode = Callable[[Sequence[str]], np.ndarray]  # N texts to [N, W]

_FILE = 'text.npy'
_TEXTS = 1024  # encoded, or checked, at a time
_WORDS = 1 << 17  # remembered


def titles(store: Store, inputs: str, item: str, title: str) -> list[str]:
  """The title of each item, '' where there is none; of several, the first.

  `inputs` are tables (CSV, TSV, JSON Lines, Parquet), paths and globs with commas between, which
  have columns `item` of raw ids and `title`.

  Raises:
    InputError: a file cannot be read, or none has a title for any item.
  """
  ids = pl.DataFrame({'item': store.item_ids})
  found = []
  for source in sources(inputs):
    # A table of titles reads like a log in which the titles are the users.
    try:
      table = scan(source, {'user': title, 'item': item}).select('item', title=pl.col('user'))
    except InputError as error:
      said = str(error).replace('--user', '--title').replace('the user column', 'the title column')
      raise InputError(said) from None
    table = table.filter(pl.col('title').fill_null('') != '').join(ids.lazy(), on='item', how='semi')
    with reading(source.path):
      found.append(table.collect(engine='streaming'))
  known = pl.concat(found).unique('item', keep='first', maintain_order=True)
  if known.is_empty():
    raise InputError(f'{inputs}: no title for any item of {store.directory}; are --item={item} and '
                     f'--title={title} the right columns?')
  joined = ids.join(known, on='item', how='left', maintain_order='left')
  return joined['title'].fill_null('').to_list()


def write(store: Store, title_V: Sequence[str], encode: Encode) -> str:
  """Encodes every title into text.npy; returns its path."""
  path = os.path.join(store.directory, _FILE)
  starts = range(0, len(title_V), _TEXTS)
  with aside(path) as fresh, open(fresh, 'wb') as file:  # not mapped: a full disk would be a SIGBUS
    shape = (len(title_V), encode(title_V[:1]).shape[1])
    np.lib.format.write_array_header_1_0(
      file, {'descr': '<f4', 'fortran_order': False, 'shape': shape})
    for start in tqdm.tqdm(starts, 'encode titles', disable=None):
      texts = title_V[start : start + _TEXTS]
      has_title = np.array([text != '' for text in texts])
      file.write(np.where(has_title[:, None], encode(texts), 0).astype('<f4').tobytes())
  return path


def part(table_VxW: np.ndarray, index: Any) -> np.ndarray:
  """What `index` takes out of the table, filled up with rows of zeros beyond the items, float32."""
  found = table_VxW[index].astype(np.float32)
  start, stop, _ = index[0].indices(np.iinfo(np.int64).max)
  return np.pad(found, [(0, stop - start - len(found)), (0, 0)]) if index[0].stop else found


def fingerprint(store: Store, width: int) -> str:
  """Changes whenever an embedding does; raises as `opened` does."""
  return hashlib.sha256(np.ascontiguousarray(opened(store, width)).data).hexdigest()


def opened(store: Store, width: int) -> np.ndarray:
  """The text table of a data set, mapped into memory [V, W].

  Raises:
    InputError: there is none, or it does not fit the data set, or is not `width` wide.
  """
  path = os.path.join(store.directory, _FILE)
  if not os.path.exists(path):
    raise InputError(f'{path}: no such file; make it with python -m lares_jax.data.text '
                     f'--data={store.directory}')
  try:
    table_VxW = np.load(path, mmap_mode='r')
  except (OSError, ValueError, EOFError):
    raise InputError(f'{path}: not a readable array; make it again') from None
  if table_VxW.dtype.kind not in 'fiu':
    raise InputError(f'{path}: {table_VxW.dtype} where numbers are needed; make it again')
  if table_VxW.ndim != 2 or len(table_VxW) != store.num_items:
    raise InputError(f'{path}: shape {table_VxW.shape} where {store.num_items} items need one row '
                     'each; make it again')
  if table_VxW.shape[1] != width:
    raise InputError(f'{path}: embeddings of {table_VxW.shape[1]} dimensions; set '
                     f'model.fusion.text_width={table_VxW.shape[1]}')
  for start in range(0, len(table_VxW), _TEXTS):
    bad_N = ~np.isfinite(table_VxW[start : start + _TEXTS]).all(axis=1)
    if bad_N.any():
      raise InputError(f'{path}: row {start + int(bad_N.argmax())} is not finite; make it again')
  return table_VxW


def word_encoder(width: int = 128) -> Encode:
  """No model at all: the sum of a text's words, each a random direction of its own, at length one."""

  @functools.lru_cache(_WORDS)
  def direction(word: str) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=width)

  def encode(texts: Sequence[str]) -> np.ndarray:
    out = np.stack([sum(map(direction, t.lower().split()), np.zeros(width)) for t in texts])
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9)

  return encode


def sentence_encoder(name: str) -> Encode:
  """A sentence-transformers model by name or directory.

  Raises:
    InputError: the library is not installed, or there is no such model.
  """
  try:
    import sentence_transformers
  except ImportError:
    raise InputError('encoding titles needs one more library: '
                     'pip install sentence-transformers') from None
  try:
    model = sentence_transformers.SentenceTransformer(name)
  except (OSError, ValueError) as error:
    raise InputError(f'--encoder={name}: {error}') from None
  return lambda texts: model.encode(list(texts), show_progress_bar=False)


def main() -> None:
  """The command; see --help."""
  given = flags.FLAGS
  store = Store.open(given.data)
  title_V = titles(store, given.input, given.item, given.title)
  path = write(store, title_V,
               word_encoder() if given.encoder == 'words' else sentence_encoder(given.encoder))
  count, width = np.load(path, mmap_mode='r').shape
  print(f'wrote {path}: {count:,} items of {width} dimensions, {title_V.count(""):,} without a title')


if __name__ == '__main__':
  flags.DEFINE_string('data', None, 'A prepared data set.', required=True)
  flags.DEFINE_string('input', None, 'Tables with a title for each item; paths and globs.',
                      required=True)
  flags.DEFINE_string('item', None, 'Their column of raw item ids.', required=True)
  flags.DEFINE_string('title', None, 'Their column of titles.', required=True)
  flags.DEFINE_string('encoder', 'sentence-transformers/sentence-t5-base',
                      'A sentence-transformers model, by name or directory; or words: sums of '
                      'random directions, 128 wide, which need nothing installed.')
  front_door(main)
