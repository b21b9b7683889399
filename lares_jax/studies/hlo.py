"""What a compiled program's text says about it."""

import collections
import re

import numpy as np

_KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's64': 8, 'u64': 8, 'f64': 8, 'c64': 8}


def collectives(text: str) -> list[str]:
  """One line for each kind of collective: how many, and the bytes of their results on a chip."""
  sizes = collections.defaultdict(list)
  for line in text.splitlines():
    found = re.search(rf'= (.*?) ({"|".join(_KINDS)})(-start)?\(', line)
    if found:
      shapes = re.findall(r'(\w+)\[([\d,]*)\]', found[1])
      if found[3] and found[2] != 'all-reduce':  # names its operands, and then its results
        shapes = shapes[len(shapes) // 2:]
      sizes[found[2]].append(sum(
        _BYTES.get(kind, 4) * int(np.prod([int(n) for n in dims.split(',') if n]))
        for kind, dims in shapes))
  return [f'{len(sizes[kind])} {kind}: {sum(sizes[kind]):,} bytes, the largest {max(sizes[kind]):,}'
          for kind in _KINDS if sizes[kind]] or ['no collectives']


def cycles(text: str, depth: int) -> int:
  """XLA's estimate for a TPU core: of loops as often as they run, of branches the longest.

  XLA writes an estimate to each fusion, and the bound of a loop as a constant of its condition, but
  for the loop back over the steps taken: `depth` of them. It estimates neither collectives nor
  kernels.
  """
  bodies: dict[str, list[str]] = {}
  for part in re.split(r'\n(?=%|ENTRY)', text):
    name = re.match(r'(?:ENTRY )?%?([\w.\-]+) \(', part)
    if name:
      bodies['ENTRY' if part.startswith('ENTRY') else name[1]] = part.splitlines()[1:]

  def of(name: str) -> int:
    total = 0
    for line in bodies.get(name, ()):
      estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
      loop = re.search(r' while\(.*condition=%([\w.\-]+), body=%([\w.\-]+)', line)
      branches = re.search(r' conditional\(.*branch_computations=\{([^}]*)\}', line)
      called = re.search(r' call\(.*to_apply=%([\w.\-]+)', line)
      if loop:
        bound = re.findall(r'= s32\[\]\S* constant\((\d+)\)', '\n'.join(bodies.get(loop[1], ())))
        total += of(loop[2]) * (int(bound[0]) if bound else depth)
      elif branches:
        total += max(of(b.strip().lstrip('%')) for b in branches[1].split(','))
      elif called:
        total += of(called[1])
      elif estimate:
        total += int(estimate[1])
    return total

  return of('ENTRY')
