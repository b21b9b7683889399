"""Where arrays live: a mesh of (data, catalogue), and an ordered list of rules for parameters."""

import dataclasses
import math
import re

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lares_jax.errors import InputError

# First match wins. Paths read like `params/item` or `opt_state/0/mu/scan/step/core_0/ffn/...`.
RULES = (
  (r'(^|/)(item|text)$', PartitionSpec('catalogue', None)),
  (r'', PartitionSpec()),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; 0 for `data` means all that `catalogue` leaves."""

  data: int = 0
  catalogue: int = 1


def build(config: MeshConfig, devices=None) -> Mesh:
  """A mesh over the given devices, or all devices of all processes."""
  devices = devices or jax.devices()
  count = len(devices)
  if count % config.catalogue:
    raise InputError(f'mesh.catalogue={config.catalogue} does not divide the {count} devices')
  data = config.data or count // config.catalogue
  if data * config.catalogue != count:
    raise InputError(f'mesh {data} x {config.catalogue} does not use the {count} devices; '
                     'set mesh.data=0 to infer it')
  slices = len({getattr(device, 'slice_index', 0) for device in devices})
  if count % slices:
    raise InputError(f'{count} devices on {slices} slices or machines: each must have as many')
  # The slow network between them carries `data` alone where it can.
  shared = math.gcd(data, slices)
  outer = shared, slices // shared
  inner, split = (data // outer[0], config.catalogue // outer[1]), {'allow_split_physical_axes': True}
  grid = (mesh_utils.create_device_mesh(inner, devices, **split) if slices == 1 else
          mesh_utils.create_hybrid_device_mesh(inner, outer, devices, **split))
  return Mesh(grid, ('data', 'catalogue'), axis_types=(AxisType.Auto,) * 2)


def abstract(function, argument, mesh: Mesh):
  """Shapes, types and places, by the rules, of the arrays that function(argument) gives."""
  of = lambda path, x: jax.ShapeDtypeStruct(
    x.shape, x.dtype, sharding=NamedSharding(mesh, _rule(path)[1]))
  return jax.tree.map_with_path(of, jax.eval_shape(function, argument))


def _rule(path) -> tuple[str, PartitionSpec]:
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  return next(rule for rule in RULES if re.search(rule[0], name))


def describe(tree, mesh: Mesh) -> str:
  """What each rule places where, and the bytes that it takes on every device."""
  arrays, held = dict.fromkeys(RULES, 0), dict.fromkeys(RULES, 0)
  for path, x in jax.tree.leaves_with_path(tree):
    found = _rule(path)
    arrays[found] += 1
    held[found] += int(np.prod(NamedSharding(mesh, found[1]).shard_shape(x.shape))) * x.dtype.itemsize
  lines = [f'mesh: data {mesh.shape["data"]} x catalogue {mesh.shape["catalogue"]} of '
           f'{mesh.devices.flat[0].device_kind}; kept between steps, {sum(held.values()):,} '
           'bytes a device:']
  for rule, spec in RULES:
    where = ' x '.join(axis or 'whole' for axis in spec) or 'a copy on every device'
    lines.append(f'  {rule or "everything else":<18} {where}: {arrays[rule, spec]} arrays, '
                 f'{held[rule, spec]:,} bytes')
  return '\n'.join(lines)


def replicated(mesh: Mesh) -> NamedSharding:
  """A copy on every device, which every process can read."""
  return NamedSharding(mesh, PartitionSpec())


def put_batch(batch, mesh: Mesh):
  """Host arrays, whole on every process, as global arrays with their rows split over `data`.

  Rows are filled up to a multiple of the axis with zeros, which every mask calls filling.
  """
  shards = mesh.shape['data']
  sharding = NamedSharding(mesh, PartitionSpec('data'))

  def put(x):
    x = np.pad(x, [(0, -len(x) % shards)] + [(0, 0)] * (x.ndim - 1))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(put, batch)
