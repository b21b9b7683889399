"""Tables for people."""

from collections.abc import Mapping, Sequence

SHORT = ('recall@10', 'ndcg@10', 'mrr')


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """Markdown that lines up in a terminal too."""
  width = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
  draw = lambda line: '| ' + ' | '.join(c.ljust(w) for c, w in zip(line, width)) + ' |'
  rule = '|' + '|'.join('-' * (w + 2) for w in width) + '|'
  return '\n'.join([draw(head), rule, *map(draw, lines)])


def depth_table(by_depth: Mapping[int, Mapping[str, float]], chosen: int, title: str) -> str:
  """Metrics by depth; the depth chosen on validation is marked."""
  lines = [[f'{depth} (chosen)' if depth == chosen else str(depth),
            *(f'{value:.4f}' for value in values.values())] for depth, values in by_depth.items()]
  return f'{title}\n' + table(['depth', *next(iter(by_depth.values()))], lines)
