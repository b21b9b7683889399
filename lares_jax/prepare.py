"""Prepares a log for training: reads, filters, splits, numbers, audits and stores it.

    python -m lares_jax.prepare --input=log.csv.gz --user=who --item=what --time=when --output=DIR

Several files: commas and globs. A benchmark that comes split (train, valid, test) stays as it is
split. For Amazon Reviews 2023, fetch the three files of a category of the 5-core benchmark
(https://amazon-reviews-2023.github.io, `5core/last_out`), then

    python -m lares_jax.prepare --input='Musical_Instruments.*.csv.gz' --output=data/instruments

The order of work: faulty rows, minimum rating, time order, duplicates, k-core, short users, split,
maximum history. The same input and options give the same bytes.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from lares_jax.data import audit, formats, store
from lares_jax.data.log import Log, compact, k_core, read, without_repeats, without_short
from lares_jax.data.store import PARTS, Store
from lares_jax.errors import InputError, front_door

_CHOICES = {
  'format': ('auto', *formats.FORMATS),
  'duplicates': ('keep', 'first', 'last'),
  'split': ('leave_one_out', 'global_time'),
  'bad_rows': ('stop', 'skip'),
}


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
  """How to prepare a log; `--help` says what each field means."""

  format: str = 'auto'
  user: str = ''
  item: str = ''
  time: str = ''
  rating: str = ''
  k_core: int = 0
  min_rating: float | None = None
  duplicates: str = 'keep'
  max_history: int = 0
  tie_break: str = 'file_order'
  split: str = 'leave_one_out'
  cuts: tuple[float, ...] = ()
  fractions: tuple[float, ...] = (0.1, 0.1)
  bad_rows: str = 'stop'
  min_length: int = 3

  def __post_init__(self) -> None:
    for name, choices in _CHOICES.items():
      if getattr(self, name) not in choices:
        raise InputError(f'--{name}={getattr(self, name)}: choose one of {", ".join(choices)}')
    for name in ('cuts', 'fractions'):
      object.__setattr__(self, name, tuple(getattr(self, name)))
    if self.cuts and (len(self.cuts) != 2 or self.cuts[0] > self.cuts[1]):
      raise InputError(f'--cuts={self.cuts}: give two times, the earlier first')
    if len(self.fractions) != 2 or min(self.fractions) < 0 or sum(self.fractions) >= 1:
      raise InputError(f'--fractions={self.fractions}: give two shares that leave some training')
    if self.min_length < 3:
      raise InputError(f'--min_length={self.min_length}: leave-one-out needs 3 items of each user')


def prepare(
  inputs: str, output: str | os.PathLike[str], options: PrepareOptions | None = None
) -> Store:
  """Prepares `inputs` (paths and globs, commas between) into the directory `output`.

  Raises:
    InputError: whatever is wrong with the input; nothing is written then.
  """
  options = options or PrepareOptions()
  sources = formats.sources(inputs, options.format)
  bar = tqdm(total=len(sources) + 3, desc='read', unit='stage', disable=None)
  with bar, store.written_aside(output) as directory:
    log, left_out = _read(sources, options, bar.update)
    bar.set_description('filter and split')
    log = _filtered(log, options, left_out)
    size_Ux3 = _split(log, options)
    if options.max_history:
      log, size_Ux3 = _latest(log, size_Ux3, options.max_history)
    bar.update()
    bar.set_description('write')
    meta = {
      'sources': [os.path.basename(source.path) for source in sources],
      'format': sources[0].format,
      'options': dataclasses.asdict(options),
      'time_scale': log.time_scale,
      'left_out': left_out,
    }
    opened = _write(directory, log, size_Ux3, meta)
    del log
    bar.update()
    bar.set_description('audit')
    store.write_meta(directory, {**opened.meta, 'audit': audit.audit(opened)})
    bar.update()
  return Store.open(output)


def prepared(path: str, options: PrepareOptions, cache_dir: str | os.PathLike[str]) -> Store:
  """Opens a prepared directory, or prepares a raw log into `cache_dir` unless it is there.

  Raises:
    InputError: the directory is damaged, or the log cannot be prepared.
  """
  if os.path.isdir(path):
    return Store.open(path)
  sources = formats.sources(path, options.format)
  digest = hashlib.sha256(json.dumps([store.FORMAT_VERSION, dataclasses.asdict(options)]).encode())
  for source in sources:
    digest.update(os.path.basename(source.path).encode())
    with open(source.path, 'rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  output = os.path.join(cache_dir, digest.hexdigest()[:16])
  os.makedirs(cache_dir, exist_ok=True)
  with open(f'{output}.lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes, one prepares and the others wait
    if store.is_prepared(output):
      return Store.open(output)
    logging.info('Preparing %s (format: %s) into %s', path, sources[0].format, output)
    return prepare(path, output, options)


def _read(
  sources: list[formats.Source], options: PrepareOptions, done: Callable[[], object]
) -> tuple[Log, Counter[str]]:
  names = {role: getattr(options, role) for role in ('user', 'item', 'time')}
  names = {role: name for role, name in names.items() if name}
  if options.min_rating is not None:
    names['rating'] = options.rating
  if options.tie_break != 'file_order':
    names['tie'] = options.tie_break
  return read(
    sources, names, min_rating=options.min_rating, skip_bad_rows=options.bad_rows == 'skip',
    keep_parts=options.split != 'global_time', done=done)


def _filtered(log: Log, options: PrepareOptions, left_out: Counter[str]) -> Log:
  """Repeats, k-core and short users, in this order; ids that go with them are dropped."""
  stages: dict[str, Callable[[Log], Log]] = {}
  if options.duplicates != 'keep':
    stages['rows that repeat an item'] = lambda log: without_repeats(log, options.duplicates)
  if options.k_core:
    stages[f'rows outside the {options.k_core}-core'] = lambda log: k_core(log, options.k_core)
  if options.split == 'leave_one_out' and 'part' not in log.rows.columns:
    reason = f'rows of users with fewer than {options.min_length}'
    stages[reason] = lambda log: without_short(log, options.min_length)
  for reason, stage in stages.items():
    kept = stage(log)
    left_out[reason] = len(log.rows) - len(kept.rows)
    log = kept
    if log.rows.is_empty():
      raise InputError(f'0 users left (interactions left out: {_listed(left_out)}); ask for less')
  left_out['users'] = len(log.user_ids)
  log = compact(log)
  left_out['users'] -= len(log.user_ids)
  return log


def _split(log: Log, options: PrepareOptions) -> np.ndarray:
  """How many interactions each user has in train, valid and test: int64 [U, 3]."""
  if options.split == 'global_time':
    part_N = _parts_by_time(log, options)
  elif 'part' in log.rows.columns:
    part_N = log.rows['part'].to_numpy()
  else:
    length_U = np.diff(log.offsets)
    return np.stack([length_U - 2, np.ones_like(length_U), np.ones_like(length_U)], axis=1)
  user_N = log.rows['user'].to_numpy().astype(np.int64)
  size_Ux3 = np.bincount(user_N * 3 + part_N, minlength=3 * len(log.user_ids)).reshape(-1, 3)
  for name, size in zip(PARTS, size_Ux3.sum(0), strict=True):
    if size == 0:
      raise InputError(f'the {name} split is empty; choose other cuts, fractions or files')
  return size_Ux3


def _parts_by_time(log: Log, options: PrepareOptions) -> np.ndarray:
  """0, 1 or 2 for each interaction: before both cut times, between them, from the second on."""
  if 'time' not in log.rows.columns:
    raise InputError('--split=global_time: the log has no times; name their column with --time')
  time_N = log.rows['time'].to_numpy()
  valid, test = options.fractions
  cuts = [cut * log.time_scale for cut in options.cuts]
  if not cuts:
    ordered_N = np.sort(time_N)
    last = len(time_N) - 1
    cuts = [ordered_N[min(round(len(time_N) * s), last)] for s in (1 - valid - test, 1 - test)]
  return (time_N >= cuts[0]).astype(np.int8) + (time_N >= cuts[1])


def _latest(log: Log, size_Ux3: np.ndarray, max_history: int) -> tuple[Log, np.ndarray]:
  """Only the latest `max_history` training interactions of each user."""
  offsets = log.offsets
  cut_U = np.maximum(size_Ux3[:, 0] - max_history, 0)
  first_N = np.repeat(offsets[:-1] + cut_U, np.diff(offsets))
  size_Ux3 = size_Ux3 - np.stack([cut_U, 0 * cut_U, 0 * cut_U], axis=1)
  return compact(log.filter(np.arange(len(first_N)) >= first_N)), size_Ux3


def _write(directory: str, log: Log, size_Ux3: np.ndarray, meta: dict[str, Any]) -> Store:
  offsets = log.offsets
  valid_start_U = offsets[:-1] + size_Ux3[:, 0]
  times_N = log.rows['time'].to_numpy() if 'time' in log.rows.columns else None
  return store.write(
    directory, items_N=log.rows['item'].to_numpy(), times_N=times_N, offsets=offsets,
    valid_start_U=valid_start_U, test_start_U=valid_start_U + size_Ux3[:, 1],
    user_ids=log.user_ids, item_ids=log.item_ids, meta=meta)


def _listed(left_out: Mapping[str, int]) -> str:
  return ', '.join(f'{count:,} {reason}' for reason, count in left_out.items() if count) or 'none'


_HELP = {
  'format': 'Of the input; auto goes by name and first line, and says what it took.',
  'user': 'Column of user ids, where the format leaves it open.',
  'item': 'Column of item ids.',
  'time': 'Column of times; without one, file order is time order.',
  'rating': 'Column of ratings, for --min_rating.',
  'k_core': 'Drop users and items with fewer interactions, again and again; 0: keep all.',
  'min_rating': 'Drop interactions rated lower.',
  'duplicates': "Of a user's interactions with the same item, keep all, the first or the last.",
  'max_history': "Keep each user's latest training interactions only; 0: all.",
  'tie_break': 'Column that orders interactions of equal time.',
  'split': 'A log that comes split stays so under leave_one_out.',
  'cuts': 'global_time: when validation begins and when test begins.',
  'fractions': 'global_time without cuts: shares of interactions in validation and test.',
  'bad_rows': 'At a faulty row, stop and say which, or skip and count.',
  'min_length': 'leave_one_out: users with fewer interactions are dropped and counted.',
}


def _define_flags() -> None:
  flags.DEFINE_string('input', None, 'Files of the log: paths and globs, commas between.')
  flags.DEFINE_string('output', None, 'Directory to write; a data set there is replaced.')
  for name, default in dataclasses.asdict(PrepareOptions()).items():
    if name in _CHOICES:
      flags.DEFINE_enum(name, default, _CHOICES[name], _HELP[name])
    elif isinstance(default, tuple):
      flags.DEFINE_list(name, [str(value) for value in default], _HELP[name])
    elif isinstance(default, str):
      flags.DEFINE_string(name, default, _HELP[name])
    elif name == 'min_rating':
      flags.DEFINE_float(name, None, _HELP[name])
    else:
      flags.DEFINE_integer(name, default, _HELP[name])


def _numbers(name: str, values: Sequence[str]) -> tuple[float, ...]:
  try:
    return tuple(float(value) for value in values)
  except ValueError:
    raise InputError(f'--{name}={",".join(values)}: not numbers') from None


def main(argv: list[str]) -> None:
  """The command; see --help."""
  del argv
  values = flags.FLAGS.flag_values_dict()
  for name in ('input', 'output'):
    if not values[name]:
      raise InputError(f'--{name} is missing; --help shows an example')
  chosen = {field.name: values[field.name] for field in dataclasses.fields(PrepareOptions)}
  lists = {name: _numbers(name, chosen[name]) for name in ('cuts', 'fractions')}
  made = prepare(values['input'], values['output'], PrepareOptions(**{**chosen, **lists}))
  print(f'format: {made.meta["format"]}; left out: {_listed(made.meta["left_out"])}')
  print(audit.table(made.meta['audit']))
  print(f'wrote {len(made.items_N):,} interactions to {made.directory}')


if __name__ == '__main__':
  _define_flags()
  front_door(main)
