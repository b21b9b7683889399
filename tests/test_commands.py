"""The commands as a person types them: one clear line for what is wrong, and exit code 1."""

import json
import pathlib
import subprocess
import sys

import pytest
from tiny import make_store

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAIN = ['lares_jax.main', '--config=configs/beauty.py']


def run(*arguments, text=''):
  return subprocess.run([sys.executable, '-m', *arguments], cwd=ROOT, input=text, text=True,
                        capture_output=True, timeout=120)


@pytest.mark.parametrize('arguments, said', (
  ([*MAIN, '--workdir=W', '--config.pretrain.train.epoch=3'], 'no key epoch; did you mean epochs?'),
  ([*MAIN, '--workdir=W', '--config.seed=one'], 'config.seed'),
  ([*MAIN, '--workdir=W', '--config.data.path=no/such/log.txt'], 'no/such/log.txt'),
  ([*MAIN, '--workdir=W', '--config.model.combine=sum'], 'use one of add, concat, gated'),
  (['lares_jax.main'], 'error: --workdir, --config missing; --help'),
  (['lares_jax.main', '--workdir=W'], 'error: --config missing; --help'),
  (['lares_jax.export', '--workdir=x', '--output='], '--output= is empty'),
  (['lares_jax.main', '--config=configs/none.py', '--workdir=W'], 'configs/none.py'),
  (['lares_jax.main', '--config=configs/beauty.py:odd', '--workdir=W'], 'odd: use no variant'),
  (['lares_jax.main', '--config=README.md', '--workdir=W'], '--config: SyntaxError'),
  (['lares_jax.main', '--config=tests/amazon.py', '--workdir=W'], "no attribute 'get_config'\n"),
  ([*MAIN, '--workdir=W', '--config.odd=1'], 'the config has no key odd\n'),
  ([*MAIN, '--workdir=gs://bucket/run'], 'a bucket has to be mounted'),
  ([*MAIN, '--workdir=/proc/none', '--config.data.path=', '--config.data.cache=/proc/none'],
   '/proc/none'),
  (['lares_jax.evaluate', '--workdir=no/such/run'], 'no config.json there'),
), ids=lambda x: x if isinstance(x, str) else '')
def test_one_line_and_exit_code_1(tmp_path, arguments, said):
  out = run(*[a.replace('=W', f'={tmp_path / "w"}') for a in arguments])
  assert out.returncode == 1, out.stderr[-800:]
  assert said in out.stderr and 'Traceback' not in out.stderr, out.stderr[-800:]
  assert out.stderr.startswith('error: ') and out.stderr.count('\n') == 1, out.stderr[-800:]
  assert not list(tmp_path.iterdir()), 'nothing may be left behind'


@pytest.mark.parametrize('does, arguments, code, said', (
  ('raise KeyboardInterrupt', (), 130, 'stopped at once; what was saved stands\n'),
  ('raise errors.Interrupted(15)', (), 143, 'SIGTERM: saved; the same command goes on from here\n'),
  ('return 3', (), 3, ''), ('raise OSError(28, "full")', (), 1, 'error: [Errno 28] full\n'),
  ('pass', ('x',), 1, "error: unexpected argument 'x': every option is --name=value\n"),
  ('raise ValueError("a fault of ours")', (), 1, None)))
def test_how_a_command_ends(does, arguments, code, said):
  program = f'from lares_jax import errors\ndef main():\n  {does}\nerrors.front_door(main)'
  out = subprocess.run([sys.executable, '-c', program, *arguments], cwd=ROOT, text=True,
                       capture_output=True, check=False)
  assert out.returncode == code
  assert 'Traceback' in out.stderr if said is None else out.stderr == said


def test_a_platform_that_is_not_here_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'none_such')
  out = run(*MAIN, f'--workdir={tmp_path / "w"}', '--config.data.path=')
  assert out.returncode == 1 and out.stderr.startswith('error: jax has no devices here (Unable')


@pytest.mark.parametrize('content, said', (
  ('', 'empty'), ('1 2 3 4\n2\n', 'row 2'), ('1 2 3 x\n', 'row 1')),
  ids=('empty', 'no items', 'not a number'))
def test_a_faulty_log_is_named_with_its_row(tmp_path, content, said):
  log = tmp_path / 'log.txt'
  log.write_text(content, encoding='utf-8')
  out = run(*MAIN, f'--workdir={tmp_path / "w"}', f'--config.data.path={log}',
            f'--config.data.cache={tmp_path / "cache"}')
  assert out.returncode == 1 and out.stderr.count('\n') == 1, out.stderr[-800:]
  assert 'log.txt' in out.stderr and said in out.stderr


def test_the_benchmark_takes_steps_of_both_phases(tmp_path):
  what = 'prefix,posttrain,recommend'  # prefix is packed, changed
  out = run('lares_jax.benchmark', '--config=tests/tiny_config.py', f'--what={what}', '--depth=2',
            f'--config.data.path={make_store(tmp_path / "data").directory}', '--rounds=1', '--json')
  assert out.returncode == 0, out.stderr[-800:]
  figures = json.loads(out.stdout.splitlines()[-1])['variants']
  assert ','.join(f['what'] for f in figures) == what
  assert [f['unit'] for f in figures] == ['targets', 'prompts', 'histories']
  assert all(f['units/s'] > 0 for f in figures) and all(f['HLO lines'] > 100 for f in figures[:2])
  served = figures[2]  # 4,096 at once, however often it was warmed up
  assert served['units/s'] == pytest.approx(4096e3 / served['p50 ms'], rel=0.01)
