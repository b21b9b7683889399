"""The depth study: measures what steps cost and give, and writes tables, plots and report."""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from scipy import stats

from lares_jax import adaptive, files, report
from lares_jax.adaptive import Rule
from lares_jax.data.batches import Batch
from lares_jax.experiment import Experiment
from lares_jax.recommender import Recommender
from lares_jax.studies import cost, page, quality, timing

Tables = dict[str, list[dict[str, Any]]]


def study(experiment: Experiment, place: str, depths: Sequence[int], widths: Sequence[int],
          users: int, repeats: int, profile: bool = False) -> None:
  """Measures and writes everything; see `places`."""
  output, rule_file = places(experiment.workdir, place)
  output.mkdir(parents=True, exist_ok=True)  # a place that cannot be written shows before all the work
  recommender = Recommender.of(experiment)
  params = recommender.params
  counted = cost.per_user(experiment)
  phase = experiment.pretraining()
  tables: Tables = {'cost': cost.programs(experiment, phase, params, depths, repeats)}
  for line in tables['cost']:
    line |= counted.at(line['depth']) if line['program'] == 'inference' else {}
  tables['fit'] = [_fit(program, lines)
                   for program, lines in page.grouped(tables['cost'], 'program').items()]
  measured = {split: quality.measure(experiment, params, split, max(depths), users)
              for split in ('valid', 'test')}
  tables['quality'] = [line for split, m in measured.items()
                       for line in quality.by_depth(split, m, depths)]
  valid = [line for line in tables['quality'] if line['split'] == 'valid' and line['depth'] in depths]
  best = max(valid, key=lambda line: line['ndcg@10'])['depth']
  rule, lines = quality.adaptive_lines(experiment, measured, best, counted)
  tables['adaptive'] = served(recommender, experiment, tables['quality'], lines, best, repeats)
  tables['width'] = quality.width_lines(experiment, params, depths, widths, users, counted)
  facts = _facts(experiment, phase.batches.batch(0), tables, best)
  _write(output, tables, facts)
  result = experiment.result()
  files.write_json(rule_file, {
    **dataclasses.asdict(rule), 'phase': result['phase'], 'step': result['step'], 'users': users})
  if profile:
    _trace(experiment, params, best, output / 'profile')
  print('\n'.join(facts))
  print(f'wrote {output}/report.html with tables and plots, and {rule_file}')


def places(workdir: pathlib.Path, place: str) -> tuple[pathlib.Path, pathlib.Path]:
  """Where the report goes (empty: into the run), and the rule: put elsewhere, the run keeps its own."""
  usual = workdir / 'depth'
  output = pathlib.Path(place) if place else usual
  return output, (workdir if output.resolve() == usual.resolve() else output) / adaptive.FILE


def served(recommender: Recommender, experiment: Experiment, fixed: Sequence[Mapping[str, Any]],
           rules: list[dict[str, Any]], most: int, repeats: int) -> list[dict[str, Any]]:
  """Lines of fixed depths and of rules, with the time that a full batch of histories takes to read."""
  user_M, end_M = (x[cost.full_batch(experiment)] for x in experiment.store.targets('test'))
  histories = experiment.store.raw_histories(user_M, end_M)
  lines = [{'criterion': 'fixed', 'threshold': None, 'mean_steps': line['depth'], 'chosen': False,
            **{name: line[name] for name in report.SHORT}} for line in fixed
           if line['split'] == 'test' and line['depth'] != 'oracle'] + rules
  depth_of = lambda line: line['mean_steps'] if line['threshold'] is None else Rule(
    line['criterion'], line['threshold'], most)
  calls = {n: functools.partial(recommender.user_vectors, histories, depth_of(line))
           for n, line in enumerate(lines)}
  seconds = timing.in_turns(calls, min(repeats, cost.MEDIAN_TURNS))
  return [{**line, 'full_ms': 1e3 * float(np.median(seconds[n]))} for n, line in enumerate(lines)]


def _fit(program: str, lines: page.Lines) -> dict[str, Any]:
  """The straight line over depth through the time of a full batch."""
  fit = _line_through(lines, 'full_ms')
  return {'program': program, 'ms_at_0': fit.intercept, 'ms_a_step': fit.slope, 'r2': fit.rvalue**2, **{
    f'residual_at_{p["depth"]}': p['full_ms'] - fit.intercept - fit.slope * p['depth'] for p in lines}}


def _line_through(lines: page.Lines, key: str):
  """By least squares: its slope, intercept and rvalue."""
  return stats.linregress([p['depth'] for p in lines], [p[key] for p in lines])


def _facts(experiment: Experiment, batch: Batch, tables: Tables, best: int) -> list[str]:
  """What a reader should take home."""
  chosen = next(line for line in tables['adaptive'] if line['chosen'])
  fixed = next(line for line in tables['adaptive']
               if line['criterion'] == 'fixed' and line['mean_steps'] == best)
  at = {line['depth']: line for line in tables['quality'] if line['split'] == 'test'}
  name = 'ndcg@10'
  backbone, users = experiment.config.model.backbone, len(cost.full_batch(experiment))
  carried = batch.rows.item_BxL.size * backbone.width * jnp.dtype(backbone.dtype).itemsize / timing.MIB
  span = lambda lines, key: f'{lines[0][key]:,.1f} to {lines[-1][key]:,.1f}'
  each = lambda lines: _line_through(lines, 'temporaries_mib').slope
  share = lambda key: f'{chosen[key] / max(fixed[key], 1e-9):.1%}'
  facts = [
    f'Best fixed depth on validation: {best}; test NDCG@10 {at[best][name]:.4f} '
    f'({at[best][f"{name}_low"]:.4f} to {at[best][f"{name}_high"]:.4f}), history '
    f'{experiment.config.evaluate.history}.',
    f'Adaptive depth, {chosen["criterion"]} < {chosen["threshold"]:.3g}: {share(name)} of that NDCG@10 '
    f'with {share("mean_steps")} of the steps ({chosen["mean_steps"]:.2f}) and {share("full_ms")} of '
    f'the time for a full batch of {users} histories ({chosen["full_ms"]:.0f} ms).',
    f'An oracle that knew the best depth of each user: NDCG@10 {at["oracle"][name]:.4f} in '
    f'{at["oracle"]["mean_steps"]:.2f} steps.']
  for fit, (p, lines) in zip(tables['fit'], page.grouped(tables['cost'], 'program').items()):
    facts.append(
      f'{p}: {fit["ms_at_0"]:.1f} ms + {fit["ms_a_step"]:.2f} ms a step, R² {fit["r2"]:.4f}; from '
      f'depth {lines[0]["depth"]} to {lines[-1]["depth"]}: HLO {lines[0]["hlo_lines"]:,} to '
      f'{lines[-1]["hlo_lines"]:,} lines, compiled in {span(lines, "compile_s")} s, temporaries '
      f'{span(lines, "temporaries_mib")} MiB, {each(lines):.2f} a step.')
  return [*facts, f'The state that a training step must carry, of partners too, is {carried:.2f} MiB.']


def _write(output: pathlib.Path, tables: Tables, facts: Sequence[str]) -> None:
  texts = {}
  for name, lines in tables.items():
    frame = pl.DataFrame(lines, infer_schema_length=None, strict=False)
    shown = [c for c in frame.columns if not c.endswith(('_low', '_high', '@5', '@20'))]
    texts[name] = shown, [[_cell(line, c) for c in shown] for line in lines]
    files.write(output / f'{name}.csv', frame.write_csv().encode())
    files.write(output / f'{name}.md', (report.table(*texts[name]) + '\n').encode())
    files.write_json(output / f'{name}.json', {'rows': lines})
  drawn = {}
  for name, plot in page.plots(tables).items():
    images = page.drawn(plot)
    for kind, content in images.items():
      files.write(output / f'{name}.{kind}', content)
    drawn[name] = plot, images['svg']
  files.write(output / 'report.html', page.page('Depth study', facts, drawn, texts).encode())


def _cell(line: Mapping[str, Any], column: str) -> str:
  value = line.get(column)
  if f'{column}_low' in line:
    return f'{value:.4f} ({line[f"{column}_low"]:.4f} to {line[f"{column}_high"]:.4f})'
  if value is None:
    return ''
  return f'{value:.4g}' if isinstance(value, float) else str(value)


def _trace(experiment: Experiment, params, depth: int, directory: pathlib.Path) -> None:
  infer = jax.jit(functools.partial(cost.answer, experiment, depth))
  batch = cost.batch(experiment, cost.full_batch(experiment))
  jax.block_until_ready(infer(params, batch))
  with jax.profiler.trace(str(directory)):
    jax.block_until_ready(infer(params, batch))
