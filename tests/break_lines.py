"""Breaks ten central lines, one at a time, and says which tests notice: all should.

    python tests/break_lines.py [NAME ...]

Works on a copy; only the tests that are about the line are run, in some minutes in all. Exit code 1
if a broken line leaves them green.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
# name: file of lares_jax/, the line, what it becomes, and the tests that are about it
LINES = {
  'mask': ('model/backbone.py', '(same_BxLxL | ~rows.real_BxL[:, :, None]) & ', '',
           'test_backbones.py', 'company'),
  'tie-break': ('share.py', '0.5 * ~(scores_mxK < low_m[:, None])', '0.0 * scores_mxK',
                'test_catalogue.py', 'by_hand or alike'),
  'depth': ('model/recurrence.py', 'jnp.where((i < given.depth_B)[:, None, None]',
            'jnp.where((i <= given.depth_B)[:, None, None]', 'test_model.py', 'every_depth'),
  'advantage': ('objectives/posttrain.py', 'reward_GxM.std(axis=0, ddof=1)', 'reward_GxM.std(axis=0)',
                'test_posttrain.py', ''),
  'kl': ('objectives/posttrain.py', 'jnp.expm1(gap) - gap', 'jnp.expm1(gap)',
         'test_golden.py', 'posttraining'),
  'block edge': ('share.py', '(item_K >= self.first + i * self.block) & ', '', 'test_catalogue.py',
                 'likelihood or top_k'),
  'pad rows': ('share.py', ' & (item_K < self.items)', '', 'test_sharding.py', 'mesh'),
  'resume': ('training/loop.py', '_inputs(phase, step), step', '_inputs(phase, 0), step',
             'test_train.py', 'killed'),
  'partner': ('data/pairs.py', 'partner_P - length_P, length_P', 'partner_P - length_P + 1, length_P',
              'test_batches.py', 'pairs'),
  'split': ('prepare.py', 'log.offsets[:-1] + size_Ux3[:, 0]', 'log.offsets[:-1] + size_Ux3[:, 0] - 1',
            'test_prepare.py', 'equal'),
}


def noticed(tree: pathlib.Path, name: str) -> bool:
  file, line, broken, tests, about = LINES[name]
  path = tree / 'lares_jax' / file
  whole = path.read_text(encoding='utf-8')
  if whole.count(line) != 1:
    sys.exit(f'{name}: {file} has {whole.count(line)} such lines, not one: {line}')
  path.write_text(whole.replace(line, broken), encoding='utf-8')
  command = [sys.executable, '-m', 'pytest', '-q', '-x', f'tests/{tests}', '-k', about]
  done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
  path.write_text(whole, encoding='utf-8')
  if done.returncode not in (0, 1):
    sys.exit(f'{name}: the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}')
  failed = [line for line in done.stdout.splitlines() if line.startswith('FAILED')]
  print(f'{name}: noticed, {failed[0][:90]}' if failed else f'{name}: NOT NOTICED', flush=True)
  return done.returncode == 1


def main() -> int:
  with tempfile.TemporaryDirectory() as directory:
    tree = pathlib.Path(directory) / 'tree'
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns('.venv', 'runs', '.git', '*cache*'))
    return 0 if all([noticed(tree, name) for name in sys.argv[1:] or LINES]) else 1


if __name__ == '__main__':
  sys.exit(main())
