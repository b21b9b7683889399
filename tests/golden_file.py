"""Reads tests/golden/*.npz into this package's own parameter tree; see tests/golden/README.md."""

import pathlib

import numpy as np

from lares_jax.data.rows import Rows, Segments, fill
from lares_jax.model.backbone import BackboneConfig
from lares_jax.model.lares import ModelConfig
from lares_jax.model.tedrec import FusionConfig

FOLDER = pathlib.Path(__file__).parent / 'golden'
_LEAF = {'weight': 'kernel', 'bias': 'bias'}
_FFN = {'in': 'inner', 'out': 'outer'}
_FUSION = ('complex_weight', 'item_gating', 'fusion_gating', 'moe_adaptor')


def load(name: str) -> dict[str, np.ndarray]:
  with np.load(FOLDER / f'{name}.npz') as file:
    return dict(file)


def rows(item_BxL, length_B) -> Rows:
  """As the data set's rows are made, filling and all."""
  row_S = np.arange(len(length_B))
  shape = item_BxL.shape
  return fill(item_BxL.reshape(-1), Segments(row_S * shape[1], length_B, row_S, 0 * row_S), shape)


def config(name: str) -> ModelConfig:
  backbone, combine, _ = name.split('_')
  inner = 64 if backbone == 'fmlp' else 32
  return ModelConfig(
    backbone=BackboneConfig(name='transformer' if backbone == 'tedrec' else backbone,
                            width=16, heads=2, inner=inner),
    fusion=FusionConfig(name='tedrec' if backbone == 'tedrec' else 'none', text_width=12,
                        experts=2, dropout=0.0, noise=False),
    positions=8, pre_layers=2, core_layers=1, combine=combine,
    embed_dropout=0.0, pre_dropout=0.0, core_dropout=0.0)


def path_of(key: str) -> tuple[str, ...]:
  """Where this package keeps the parameter that the golden file calls `key`."""
  parts = key.split('.')
  if parts[0] in ('item_embedding', 'position_embedding', 'text_embedding'):
    return (parts[0].split('_')[0],)
  if parts[0] == 'adapter':
    return ('scan', 'step', 'gate') if len(parts) == 1 else ('scan', 'step', 'adapter', _LEAF[parts[1]])
  if parts[0] in ('input_norm', 'step_norm'):
    head = ('input_norm',) if parts[0] == 'input_norm' else ('scan', 'step', 'step_norm')
    return (*head, 'norm', 'scale' if parts[1] == 'weight' else 'bias')
  if parts[0] in _FUSION:
    if parts[:2] == ['moe_adaptor', 'experts']:
      parts = [f'expert_{parts[2]}', *parts[3:]]
    *modules, leaf = [part for part in parts if part != 'moe_adaptor']
    return ('fusion', *modules, leaf if modules == [] else _LEAF[leaf])
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
