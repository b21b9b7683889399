"""Reads tests/golden/*.npz into this package's own parameter tree; see tests/golden/README.md."""

import pathlib

import numpy as np

from lares_jax.data.rows import Rows
from lares_jax.model.backbone import BackboneConfig
from lares_jax.model.lares import ModelConfig

FOLDER = pathlib.Path(__file__).parent / 'golden'
_LEAF = {'weight': 'kernel', 'bias': 'bias'}
_FFN = {'in': 'inner', 'out': 'outer'}


def load(name: str) -> dict[str, np.ndarray]:
  with np.load(FOLDER / f'{name}.npz') as file:
    return dict(file)


def rows(item_BxL, length_B) -> Rows:
  shape = item_BxL.shape
  place = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  return Rows(item_BxL, place, np.zeros(shape, np.int32), place < length_B[:, None])


def config(name: str) -> ModelConfig:
  backbone, combine, _ = name.split('_')
  inner = 64 if backbone == 'fmlp' else 32
  return ModelConfig(
    backbone=BackboneConfig(name='transformer' if backbone == 'tedrec' else backbone,
                            width=16, heads=2, inner=inner),
    positions=8, pre_layers=2, core_layers=1, combine=combine,
    embed_dropout=0.0, pre_dropout=0.0, core_dropout=0.0)


def path_of(key: str) -> tuple[str, ...]:
  """Where this package keeps the parameter that the golden file calls `key`."""
  parts = key.split('.')
  if parts[0] in ('item_embedding', 'position_embedding'):
    return (parts[0].split('_')[0],)
  if parts[0] == 'adapter':
    return ('scan', 'step', 'gate') if len(parts) == 1 else ('scan', 'step', 'adapter', _LEAF[parts[1]])
  if parts[0] in ('input_norm', 'step_norm'):
    head = ('input_norm',) if parts[0] == 'input_norm' else ('scan', 'step', 'step_norm')
    return (*head, 'norm', 'scale' if parts[1] == 'weight' else 'bias')
  stack, layer, block, *rest = parts
  head = (f'pre_{layer}',) if stack == 'pre' else ('scan', 'step', f'core_{layer}')
  if rest[0] == 'norm':
    return (*head, block, 'norm', 'norm', 'scale' if rest[1] == 'weight' else 'bias')
  if len(rest) == 1:  # a bare parameter, such as a filter's weights
    return (*head, block, rest[0])
  return (*head, block, _FFN.get(rest[0], rest[0]), _LEAF[rest[1]])


def tree(golden: dict[str, np.ndarray], prefix: str) -> dict:
  """The golden arrays below `prefix` as a nested parameter tree."""
  out: dict = {}
  for key, value in golden.items():
    if key.startswith(prefix):
      *path, leaf = path_of(key.removeprefix(prefix))
      node = out
      for part in path:
        node = node.setdefault(part, {})
      node[leaf] = value
  return out
