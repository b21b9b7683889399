"""Writes a trained run as one directory that serves without this package.

    python -m lares_jax.export --workdir=DIR --output=DIR2 [--platforms=cpu,cuda,tpu] [--k=10] \\
        [--table=float32|bfloat16|int8]

    program.bin   StableHLO by jax.export: (params, history [B, L], hidden [B, H], depth) ->
                  (scores [B, k], items [B, k], user vectors [B, D]); B, H and depth at run time
    params.npz    its parameters      items.json    raw id of each item number
    config.json   of the run          metrics.json  its result, and what the type of table costs
    about.json    limits, defaults    example.py    runs it with jax, numpy, flatbuffers alone
    SHA256SUMS    of all the others, for `sha256sum --check`

A narrow table makes a smaller file; the program widens it when it runs.
"""

import dataclasses
import hashlib
import json
import operator
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import traverse_util

from lares_jax import metrics
from lares_jax.aside import new_directory
from lares_jax.catalogue import Catalogue
from lares_jax.data.rows import Rows
from lares_jax.errors import InputError, front_door
from lares_jax.files import write_json
from lares_jax.model.recurrence import at_places
from lares_jax.recommender import Recommender, encode
from lares_jax.scoring import as_query

PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')
USUAL = ('cpu', 'cuda', 'tpu')
_MAX_BATCH = 1024  # histories a call: one tile of the catalogue pass


def _define_flags() -> None:
  flags.DEFINE_string('workdir', None, 'A trained run.', required=True)
  flags.DEFINE_string('output', None, 'The directory to write, new or empty.', required=True)
  flags.DEFINE_list('platforms', [*USUAL], 'Where the program can run.')
  flags.DEFINE_integer('k', 10, 'Items that a call returns for each history.')
  flags.DEFINE_enum('table', 'float32', ['float32', 'bfloat16', 'int8'], 'Type of the item embeddings.')


def main() -> None:
  given = flags.FLAGS
  export(given.workdir, given.output, given.platforms, given.k, given.table)
  print(f'wrote {given.output}: try python {given.output}/example.py ITEM ITEM ...')


def export(workdir: str, output: str, platforms: Sequence[str] = USUAL, k: int = 10,
           table: str = 'float32') -> None:
  """Writes the artifact of the run in `workdir` into the new directory `output`.

  Raises:
    InputError: there is no finished run, `output` is taken, or a platform or k is wrong.
  """
  if not platforms or not set(platforms) <= {*PLATFORMS}:
    raise InputError(f'--platforms={",".join(platforms)}: use some of {",".join(PLATFORMS)}')
  with new_directory(output) as fresh:
    recommender = Recommender.load(workdir)
    if not 1 <= k <= len(recommender.item_ids):
      raise InputError(f'--k={k}: from 1 to the {len(recommender.item_ids)} items there are')
    experiment, params = recommender.experiment, flat_params(recommender, table)
    np.savez(fresh / 'params.npz', **params)  # type: ignore[arg-type]
    (fresh / 'program.bin').write_bytes(serialized(recommender, params, platforms, k))
    (fresh / 'items.json').write_text(json.dumps(recommender.item_ids) + '\n', encoding='utf-8')
    shutil.copy(experiment.workdir / 'config.json', fresh)
    write_json(fresh / 'metrics.json', _metrics(recommender, params, table))
    write_json(fresh / 'about.json', {
      'k': k, 'depth': recommender.depth, 'max_depth': experiment.model.config.deepest,
      'max_history': experiment.config.data.max_history, 'max_batch': _MAX_BATCH,
      'platforms': list(platforms), 'table': table, 'jax': jax.__version__})
    shutil.copy(pathlib.Path(__file__).with_name('export_example.py'), fresh / 'example.py')
    sums = []
    for path in sorted(fresh.iterdir()):
      with open(path, 'rb') as file:
        sums.append(f'{hashlib.file_digest(file, "sha256").hexdigest()}  {path.name}\n')
    (fresh / 'SHA256SUMS').write_text(''.join(sums), encoding='utf-8')


def flat_params(recommender: Recommender, table: str) -> dict[str, np.ndarray]:
  """Parameters by path, the item table as `table` says, and the items' training counts."""
  params = traverse_util.flatten_dict(jax.device_get(recommender.params), sep='/')
  for name in {'item', 'text'} & params.keys():  # a mesh pads them
    params[name] = params[name][: len(recommender.item_ids)]
  item_VxD = np.asarray(params['item'], np.float32)
  if table == 'bfloat16':  # as bits: numpy's files do not know the type
    params['item'] = np.asarray(jnp.asarray(item_VxD, jnp.bfloat16)).view(np.uint16)
  elif table == 'int8':
    scale_Vx1 = np.maximum(np.abs(item_VxD).max(axis=1, keepdims=True) / 127, 1e-30)
    params['item'] = np.rint(item_VxD / scale_Vx1).astype(np.int8)
    params['item_scale'] = scale_Vx1
  train_count_V = recommender.experiment.items['train_count'].to_numpy()
  return {**params, 'train_count': train_count_V.astype(np.float32)}


def model_params(flat: dict[str, Any]) -> dict[str, Any]:
  """The model's parameters from `flat_params`, all float32 again."""
  model = {name: x for name, x in flat.items() if name not in ('train_count', 'item_scale')}
  item_VxD = model['item']
  if item_VxD.dtype == jnp.uint16:
    item_VxD = jax.lax.bitcast_convert_type(item_VxD, jnp.bfloat16)
  model['item'] = item_VxD.astype(jnp.float32) * flat.get('item_scale', 1.0)
  return traverse_util.unflatten_dict(model, sep='/')


def serialized(recommender: Recommender, params: dict[str, np.ndarray], platforms: Sequence[str],
               k: int) -> bytes:
  """The program of the artifact; see the head of this file."""
  config = recommender.experiment.config
  scoring = dataclasses.replace(config.catalogue, tile=_MAX_BATCH)
  catalogue = Catalogue(scoring, len(recommender.item_ids))
  model = recommender.experiment.model.clone(items=catalogue.items, lookup=operator.getitem)

  def program(params, history_BxL, hidden_BxH, depth):
    tree, real_BxL = model_params(params), history_BxL >= 0
    place_BxL = jnp.broadcast_to(jnp.arange(history_BxL.shape[1]), history_BxL.shape)
    rows = Rows(jnp.where(real_BxL, history_BxL, 0), place_BxL, real_BxL - 1, real_BxL)
    state_BxLxD = encode(model, tree, rows, config.evaluate.noise_seed, depth)
    last_Bx1 = jnp.maximum(real_BxL.sum(axis=1, keepdims=True) - 1, 0)
    some_Bx1 = real_BxL.any(axis=1, keepdims=True)
    vector_BxD = jnp.where(some_Bx1, at_places(state_BxLxD, last_Bx1)[:, 0], 0.0)
    score_BxK, item_BxK = catalogue.top_k(
      vector_BxD, some_Bx1[:, 0], tree['item'], k, hidden_BxH)
    score_BxK = jnp.where(some_Bx1, score_BxK, params['train_count'][:k])
    item_BxK = jnp.where(some_Bx1, item_BxK, jnp.arange(k))  # numbered by falling popularity
    return score_BxK, item_BxK, as_query(vector_BxD, scoring.similarity)

  b, h = jax.export.symbolic_shape('b, h', constraints=[f'b <= {_MAX_BATCH}'])
  array = jax.ShapeDtypeStruct
  exported = jax.export.export(jax.jit(program), platforms=platforms)(
    jax.tree.map(lambda x: array(x.shape, x.dtype), params),
    array((b, config.data.max_history), jnp.int32), array((b, h), jnp.int32),
    array((), jnp.int32))
  return bytes(exported.serialize())


def _metrics(recommender: Recommender, params: dict[str, np.ndarray], table: str) -> dict[str, Any]:
  """The run's result and, of a narrow table, the test metrics with it and their change."""
  experiment = recommender.experiment
  result = experiment.result()
  if table == 'float32':
    return {'result': result}
  padded = model_params(jax.device_put(params))
  for name in {'item', 'text'} & padded.keys():
    spare = experiment.catalogue.rows - len(padded[name])
    padded[name] = jnp.pad(padded[name], [(0, spare), (0, 0)])
  rank_1xM = experiment.evaluator.ranks(padded, 'test', (recommender.depth,))
  narrow, full = metrics.summary(rank_1xM[0]), result['test_at_depth']
  change = {name: narrow[name] - full[name] for name in full}
  return {'result': result, 'test_at_depth': {'float32': full, table: narrow, 'change': change}}


if __name__ == '__main__':
  _define_flags()
  front_door(main)
