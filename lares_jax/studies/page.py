"""Plots of the depth study, and the page that holds them: one file, nothing to load from elsewhere."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

Lines = Sequence[Mapping[str, Any]]


class Curve(NamedTuple):
  """Two columns of some lines, with a band where these have `y`_low and `y`_high."""

  label: str
  lines: Lines
  x: str
  y: str = 'ndcg@10'
  style: str = 'o-'


class Plot(NamedTuple):
  """A plot and the sentence under it."""

  caption: str
  x_label: str
  y_label: str
  curves: list[Curve]
  x_scale: str = 'log'
  y_scale: str = 'linear'


def plots(tables: Mapping[str, Lines]) -> dict[str, Plot]:
  """The plots by name."""
  fixed = [line for line in tables['quality'] if line['depth'] != 'oracle']
  test = [line for line in fixed if line['split'] == 'test']
  oracle = [line for line in tables['quality'] if line not in fixed and line['split'] == 'test']
  programs = grouped(tables['cost'], 'program')
  kinds = grouped(tables['adaptive'], 'criterion')
  chosen = [line for line in tables['adaptive'] if line['chosen']]
  ndcg = 'NDCG@10, test'
  against = lambda x: [*[Curve(kind, lines, x) for kind, lines in kinds.items()],
                       Curve('chosen', chosen, x, style='k*')]
  stepped = [*against('mean_steps'), Curve('oracle', oracle, 'mean_steps', style='rD')]
  latency = []
  for fit, (name, lines) in zip(tables['fit'], programs.items()):
    line = [{**p, 'line': fit['ms_at_0'] + fit['ms_a_step'] * p['depth']} for p in lines]
    latency += [Curve(name, lines, 'depth', 'full_ms', 'o'),
                Curve(f'line, R² {fit["r2"]:.4f}', line, 'depth', 'line', '-')]
  return {
    'quality': Plot('Quality at each depth; bands are 95% bootstrap intervals over users.',
                    'steps', 'NDCG@10', [Curve(split, lines, 'depth')
                                         for split, lines in grouped(fixed, 'split').items()]),
    'cost': Plot('Time for a full batch at each depth, and straight lines through it.', 'steps',
                 'ms a batch, median', latency, x_scale='linear'),
    'adaptive': Plot('Adaptive depth by criterion and threshold beside fixed depth. The oracle knows '
                     'the best depth of each user.', 'mean steps', ndcg, stepped),
    'pareto': Plot('Quality against the time to read a full batch of histories.',
                   'ms a full batch, median', ndcg, against('full_ms'), x_scale='linear'),
    'convergence': Plot('How far a step moves the user vector, relative to its length.', 'step',
                        'mean |Z_i - Z_(i-1)| / |Z_(i-1)|',
                        [Curve('test', test, 'depth', 'state_change')], y_scale='log'),
    'settled': Plot('Users whose ten best items, in order, are those of the deepest run and stay so.',
                    'steps', 'share of users', [Curve('test', test, 'depth', 'settled')]),
    'width': Plot('The mean user vector over draws of the initial state, depth by depth.',
                  'MFLOPs a user', ndcg, [Curve(f'{n} draws', lines, 'mflops_per_user')
                                          for n, lines in grouped(tables['width'], 'draws').items()]),
    'memory': Plot('Temporaries of a program at each depth.', 'steps', 'MiB', [
      Curve(name, lines, 'depth', 'temporaries_mib') for name, lines in programs.items()],
                   x_scale='linear'),
  }


def grouped(lines: Lines, key: str) -> dict[Any, list[Mapping[str, Any]]]:
  """The lines by what they have under a key, in order."""
  return {value: [line for line in lines if line[key] == value]
          for value in dict.fromkeys(line[key] for line in lines)}


def drawn(plot: Plot) -> dict[str, bytes]:
  """The plot as files, by kind; small enough for its letters to be read on a phone."""
  figure = Figure(figsize=(5, 3.6), layout='constrained')
  axes = figure.subplots()
  for label, lines, x, y, style in plot.curves:
    column = lambda key, lines=lines: [line[key] for line in lines]
    line, = axes.plot(column(x), column(y), style, label=label,
                      markersize=9 if style[-1] in '*D' else 4)
    if len(lines) > 1 and f'{y}_low' in lines[0]:
      axes.fill_between(column(x), column(f'{y}_low'), column(f'{y}_high'), alpha=0.2,
                        color=line.get_color(), linewidth=0)
  axes.set(xlabel=plot.x_label, ylabel=plot.y_label, xscale=plot.x_scale, yscale=plot.y_scale)
  if plot.x_scale == 'log':
    axes.set_xticks([line[plot.curves[0].x] for line in plot.curves[0].lines])
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
  axes.grid(alpha=0.3)
  axes.legend(fontsize='small')
  files = {}
  for kind in ('png', 'svg'):
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=160, metadata={'Date': None})
    files[kind] = buffer.getvalue()
  return files


_PAGE = '''<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
  max-width: 75rem; margin: 0 auto; padding: 0 1rem 3rem; overflow-wrap: anywhere; }}
.figures {{ display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }}
figure {{ margin: 0; }} img {{ width: 100%; height: auto; }} figcaption {{ color: #555; }}
.table {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .85rem; white-space: nowrap; }}
td, th {{ padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right; }}
</style></head><body>
<h1>{title}</h1>
<ul>{facts}</ul>
<div class="figures">{figures}</div>
{tables}
</body></html>
'''


def page(title: str, facts: Sequence[str], plots: Mapping[str, tuple[Plot, bytes]],
         tables: Mapping[str, tuple[Sequence[str], Sequence[Sequence[str]]]]) -> str:
  """The report, of facts, plots as SVG, and tables as (head, rows) of text."""
  escape = html.escape
  figures = ''.join(
    f'<figure id="{name}"><img alt="{escape(name)}: {escape(plot.caption)}" '
    f'src="data:image/svg+xml;base64,{base64.b64encode(svg).decode()}">'
    f'<figcaption>{escape(plot.caption)}</figcaption></figure>\n'
    for name, (plot, svg) in plots.items())
  row = lambda cells, tag: '<tr>' + ''.join(f'<{tag}>{escape(c)}</{tag}>' for c in cells) + '</tr>'
  written = ''.join(
    f'<h2>{escape(name.capitalize())}</h2>\n<div class="table"><table>{row(head, "th")}'
    + '\n'.join(row(cells, 'td') for cells in rows) + '</table></div>\n'
    for name, (head, rows) in tables.items())
  return _PAGE.format(title=escape(title), figures=figures, tables=written,
                      facts=''.join(f'<li>{escape(fact)}</li>\n' for fact in facts))
