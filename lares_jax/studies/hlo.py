"""What a compiled program says about itself."""

import collections
import re

import numpy as np

_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's64': 8, 'u64': 8, 'f64': 8}


def collectives(text: str) -> list[str]:
  """One line for each kind of collective: how many, and the bytes of their results on a chip."""
  sizes = collections.defaultdict(list)
  for line in text.splitlines():
    found = re.search(rf'= (.*?) ({"|".join(_KINDS)})(-start)?\(', line)
    if found:
      shapes = re.findall(r'(\w+)\[([\d,]*)\]', found[1])
      if found[3]:  # an asynchronous one names its operand and its result
        shapes = shapes[len(shapes) // 2:]
      sizes[found[2]].append(sum(
        _BYTES.get(kind, 4) * int(np.prod([int(n) for n in dims.split(',') if n]))
        for kind, dims in shapes))
  return [f'{len(sizes[kind])} {kind}: {sum(sizes[kind]):,} bytes, the largest {max(sizes[kind]):,}'
          for kind in _KINDS if sizes[kind]] or ['no collectives']


def seconds(compiled) -> float | None:
  """XLA's own estimate of the time of one run on a TPU; None where it makes none."""
  try:
    cost = compiled.cost_analysis()
  except NotImplementedError:
    return None
  return cost.get('optimal_seconds') if cost else None
