"""Where arrays live: a mesh of (data, catalogue), and an ordered list of rules for parameters."""

import dataclasses
import re

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lares_jax.errors import InputError

# First match wins. Paths read like `params/item` or `opt_state/0/mu/scan/step/core_0/ffn/...`.
RULES = (
  (r'(^|/)item$', PartitionSpec('catalogue', None)),
  (r'', PartitionSpec()),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; 0 for `data` means all that `catalogue` leaves."""

  data: int = 0
  catalogue: int = 1


def build(config: MeshConfig) -> Mesh:
  """A mesh over all devices of all processes."""
  devices = jax.device_count()
  if config.catalogue < 1 or devices % config.catalogue:
    raise InputError(f'mesh.catalogue={config.catalogue} does not divide the {devices} devices')
  data = config.data or devices // config.catalogue
  if data * config.catalogue != devices:
    raise InputError(f'mesh {data} x {config.catalogue} does not use the {devices} devices; '
                     'set mesh.data=0 to infer it')
  return jax.make_mesh((data, config.catalogue), ('data', 'catalogue'),
                       axis_types=(AxisType.Auto,) * 2)


def of_tree(tree, mesh: Mesh):
  """The sharding of every array of a state, by the rules."""

  def one(path, _):
    name = '/'.join(str(getattr(p, 'key', getattr(p, 'name', getattr(p, 'idx', p)))) for p in path)
    return NamedSharding(mesh, next(spec for rule, spec in RULES if re.search(rule, name)))

  return jax.tree.map_with_path(one, tree)


def put_batch(batch, mesh: Mesh):
  """Host arrays, whole on every process, as global arrays: rows split over `data` where they can be."""
  shards = mesh.shape['data']

  def put(x):
    x = np.asarray(x)
    split = x.ndim and x.shape[0] % shards == 0
    sharding = NamedSharding(mesh, PartitionSpec('data') if split else PartitionSpec())
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(put, batch)
