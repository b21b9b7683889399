"""Prepares a log for training: reads, filters, splits, numbers, audits and stores it.

    python -m lares_jax.prepare --input=log.csv.gz --user=who --item=what --time=when --output=DIR

Several files: commas and globs. A benchmark that comes split (train, valid, test) stays as it is
split; configs/amazon2023.py has the commands for Amazon Reviews 2023.

The order of work: faulty rows, minimum rating, time order, duplicates, k-core, short users, split,
maximum history. The same input and options give the same bytes.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from lares_jax.aside import new_directory
from lares_jax.data import audit, formats, store
from lares_jax.data.log import Log, compact, core, read, repeats
from lares_jax.data.store import PARTS, Store
from lares_jax.errors import InputError, front_door


def _option(default: Any, says: str, *choices: str) -> Any:
  """A field of the options; as a flag it says what it is for."""
  return dataclasses.field(default=default, metadata={'help': says, 'choices': choices})


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
  """How to prepare a log."""

  format: str = _option(
    'auto', 'Of the input; auto goes by name and first line, and says what it took.',
    'auto', *formats.FORMATS)
  user: str = _option('', 'Column of user ids, where the format leaves it open.')
  item: str = _option('', 'Column of item ids.')
  time: str = _option('', 'Column of times; without one, file order is time order.')
  rating: str = _option('', 'Column of ratings, for --min_rating.')
  k_core: int = _option(0, 'Drop users and items with fewer interactions, again and again; 0: none.')
  min_rating: float | None = _option(None, 'Drop interactions rated lower.')
  duplicates: str = _option(
    'keep', "Of a user's interactions with the same item, keep all, the first or the last.",
    'keep', 'first', 'last')
  max_history: int = _option(0, "Keep each user's latest training interactions only; 0: all.")
  tie_break: str = _option('file_order', 'Column that orders interactions of equal time.')
  split: str = _option('leave_one_out', 'A log that comes split stays so under leave_one_out.',
                       'leave_one_out', 'global_time')
  cuts: tuple[float, ...] = _option(
    (), 'global_time: when validation begins and when test begins; dates in seconds since 1970.')
  fractions: tuple[float, ...] = _option(
    (0.1, 0.1), 'global_time without cuts: shares of interactions in validation and test.')
  bad_rows: str = _option(
    'stop', 'At a faulty row, stop and say which, or skip and count.', 'stop', 'skip')
  min_length: int = _option(3, 'leave_one_out: users with fewer interactions are dropped and counted.')

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value, choices = getattr(self, field.name), field.metadata['choices']
      if choices and value not in choices:
        raise InputError(f'--{field.name}={value}: choose one of {", ".join(choices)}')
      if isinstance(value, int) and value < 0:
        raise InputError(f'--{field.name}={value}: use 0 or more')
    for name in ('cuts', 'fractions'):
      given = getattr(self, name)
      try:
        object.__setattr__(self, name, tuple(map(float, given)))
      except ValueError:
        raise InputError(f'--{name}={",".join(given)}: numbers, please; times as seconds since 1970'
                         ) from None
    if self.cuts and not (len(self.cuts) == 2 and self.cuts[0] <= self.cuts[1]):  # nor not a number
      raise InputError(f'--cuts={self.cuts}: give two times, the earlier first')
    if not (len(self.fractions) == 2 and min(self.fractions) >= 0 and sum(self.fractions) < 1):
      raise InputError(f'--fractions={self.fractions}: give two shares that leave some training')
    if self.rating and self.min_rating is None:
      raise InputError(f'--rating={self.rating}: ratings are read for --min_rating alone; give it, too')
    if self.cuts and self.split != 'global_time':
      raise InputError(f'--cuts={self.cuts}: only --split=global_time has cuts')
    if self.min_length < 3:
      raise InputError(f'--min_length={self.min_length}: leave-one-out needs 3 items of each user')


def prepare(
  inputs: str, output: str | os.PathLike[str], options: PrepareOptions | None = None
) -> Store:
  """Prepares `inputs` (paths and globs, commas between) into the directory `output`.

  Raises:
    InputError: `output` is taken, or whatever is wrong with the input; nothing is written then.
  """
  options = options or PrepareOptions()
  sources = formats.sources(inputs, options.format)
  bar = tqdm(total=len(sources) + 3, desc='read', unit='stage', disable=None)
  with bar, new_directory(output) as fresh:
    log, left_out = _read(sources, options, bar.update)
    bar.set_description('filter and split')
    log = _filtered(log, options, left_out)
    size_Ux3 = _split(log, options)
    if options.max_history:
      before = len(log.rows)
      log, size_Ux3 = _latest(log, size_Ux3, options.max_history)
      left_out[f'training rows before the latest {options.max_history}'] = before - len(log.rows)
    bar.update()
    bar.set_description('write')
    meta = {
      'sources': [os.path.basename(source.path) for source in sources],
      'format': sources[0].format,
      'options': dataclasses.asdict(options),
      'time_scale': log.time_scale,
      'left_out': left_out,
    }
    valid_start_U = log.offsets[:-1] + size_Ux3[:, 0]
    opened = store.write(
      fresh, items_N=log.rows['item'].to_numpy(), times_N=_times(log), offsets=log.offsets,
      valid_start_U=valid_start_U, test_start_U=valid_start_U + size_Ux3[:, 1],
      user_ids=log.user_ids, item_ids=log.item_ids, meta=meta)
    del log
    bar.update()
    bar.set_description('audit')
    store.write_meta(fresh, {**opened.meta, 'audit': audit.audit(opened)})
    bar.update()
  return Store.open(output)


_OF_READING = ('format', 'user', 'item', 'time', 'rating')  # matter only while a log is read


def prepared(path: str, options: PrepareOptions, cache_dir: str | os.PathLike[str]) -> Store:
  """Opens a prepared directory, or prepares a raw log into `cache_dir` unless it is there.

  Raises:
    InputError: the directory is damaged, or the log cannot be prepared.
  """
  if os.path.isdir(path):
    opened = Store.open(path)
    made = opened.meta.get('options', {})
    for field in dataclasses.fields(options):
      mine, theirs = getattr(options, field.name), made.get(field.name, field.default)
      theirs = tuple(theirs) if isinstance(theirs, list) else theirs
      if field.name not in _OF_READING and mine not in (theirs, field.default):
        raise InputError(f'{path} was prepared with {field.name}={theirs}, not {mine}; leave the '
                         'option out, or prepare the log again')
    return opened
  try:
    return _cached(path, options, cache_dir)
  except InputError as error:  # in the words of whoever asked: options are keys of a config here
    said = str(error).replace('--input', '--config.data.path')
    names = '|'.join(field.name for field in dataclasses.fields(options))
    raise InputError(re.sub(rf'--({names})\b', r'--config.data.prepare.\1', said)) from None


def _cached(path: str, options: PrepareOptions, cache_dir: str | os.PathLike[str]) -> Store:
  sources = formats.sources(path, options.format)
  digest = hashlib.sha256(json.dumps([store.FORMAT_VERSION, dataclasses.asdict(options)]).encode())
  for source in sources:
    digest.update(os.path.basename(source.path).encode())
    with open(source.path, 'rb') as file:
      digest.update(hashlib.file_digest(file, 'sha256').digest())
  output = os.path.join(cache_dir, digest.hexdigest()[:16])
  if not os.path.isdir(output):  # what is there is whole: it was renamed
    os.makedirs(cache_dir, exist_ok=True)
    with open(f'{output}.lock', 'w') as lock:
      with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes, one prepares and the others wait
      if not os.path.isdir(output):
        report = _report(prepare(path, output, options))
        print(f'prepared {path} into {output}\n{report}', file=sys.stderr)  # stdout may be data
  return Store.open(output)


def _read(
  sources: list[formats.Source], options: PrepareOptions, done: Callable[[], object]
) -> tuple[Log, Counter[str]]:
  names = {role: getattr(options, role) for role in ('user', 'item', 'time') if getattr(options, role)}
  if options.min_rating is not None:
    names['rating'] = options.rating
  if options.tie_break != 'file_order':
    names['tie_break'] = options.tie_break
  return read(
    sources, names, min_rating=options.min_rating, skip_bad_rows=options.bad_rows == 'skip',
    keep_parts=options.split != 'global_time', done=done)


def _filtered(log: Log, options: PrepareOptions, left_out: Counter[str]) -> Log:
  """Without repeats, k-core and short users, in this order; ids that go with them are dropped."""
  k, least, keep = options.k_core, options.min_length, options.duplicates
  stages: dict[str, Callable[[Log], Log]] = {}
  if keep != 'keep':
    stages['rows that repeat an item'] = lambda log: log.filter(
      ~repeats(log.rows['item'].to_numpy(), log.offsets, keep))
  if k:
    stages[f'rows outside the {k}-core'] = lambda log: core(log, k, k)
  if options.split == 'leave_one_out' and 'part' not in log.rows.columns:
    short = f'rows of users with fewer than {least}'
    stages[f'{short}, and what leaves the core with them' if k else short] = (
      lambda log: core(log, least, k))
  for reason, stage in stages.items():
    before, log = len(log.rows), stage(log)
    left_out[reason] = before - len(log.rows)
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
    return np.diff(log.offsets)[:, None] * [1, 0, 0] + [-2, 1, 1]
  user_N = log.rows['user'].to_numpy().astype(np.int64)
  size_Ux3 = np.bincount(user_N * 3 + part_N, minlength=3 * len(log.user_ids)).reshape(-1, 3)
  for name, size in zip(PARTS, size_Ux3.sum(0), strict=True):
    if size == 0:
      raise InputError(f'the {name} split is empty; choose other cuts, fractions or files')
  return size_Ux3


def _parts_by_time(log: Log, options: PrepareOptions) -> np.ndarray:
  """0, 1 or 2 for each interaction: before both cut times, between them, from the second on."""
  time_N = _times(log)
  if time_N is None:
    raise InputError('--split=global_time: the log has no times; name their column with --time')
  valid, test = options.fractions
  cuts = [cut * log.time_scale for cut in options.cuts]
  if not cuts:
    ordered_N = np.sort(time_N)
    last = len(time_N) - 1
    cuts = [ordered_N[min(round(len(time_N) * s), last)] for s in (1 - valid - test, 1 - test)]
  return (time_N >= cuts[0]).astype(np.int8) + (time_N >= cuts[1])


def _latest(log: Log, size_Ux3: np.ndarray, max_history: int) -> tuple[Log, np.ndarray]:
  """Only the latest `max_history` training interactions of each user."""
  cut_U = np.maximum(size_Ux3[:, 0] - max_history, 0)
  first_N = np.repeat(log.offsets[:-1] + cut_U, np.diff(log.offsets))
  return compact(log.filter(np.arange(len(first_N)) >= first_N)), size_Ux3 - cut_U[:, None] * [1, 0, 0]


def _times(log: Log) -> np.ndarray | None:
  return log.rows['time'].to_numpy() if 'time' in log.rows.columns else None


def _report(made: Store) -> str:
  return (f'format: {made.meta["format"]}; left out: {_listed(made.meta["left_out"])}\n'
          f'{audit.table(made.meta["audit"])}')


def _listed(left_out: Mapping[str, int]) -> str:
  return ', '.join(f'{count:,} {reason}' for reason, count in left_out.items() if count) or 'none'


def _define_flags() -> None:
  flags.DEFINE_string('input', None, 'Files of the log: paths and globs, commas between.',
                      required=True)
  flags.DEFINE_string('output', None, 'Directory to write, new or empty.', required=True)
  define: dict[Any, Callable[..., Any]] = {
    str: flags.DEFINE_string, int: flags.DEFINE_integer, float | None: flags.DEFINE_float,
    tuple[float, ...]: flags.DEFINE_list}
  for field in dataclasses.fields(PrepareOptions):
    default: Any = list(field.default) if isinstance(field.default, tuple) else field.default
    says, choices = field.metadata['help'], field.metadata['choices']
    if choices:
      flags.DEFINE_enum(field.name, default, choices, says)
    else:
      define[field.type](field.name, default, says)


def main() -> None:
  """The command; see --help."""
  values = flags.FLAGS.flag_values_dict()
  options = {field.name: values[field.name] for field in dataclasses.fields(PrepareOptions)}
  made = prepare(values['input'], values['output'], PrepareOptions(**options))
  print(_report(made))
  print(f'wrote {len(made.items_N):,} interactions to {made.directory}')


if __name__ == '__main__':
  _define_flags()
  front_door(main)
