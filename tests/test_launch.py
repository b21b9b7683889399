"""Launch scripts are sound shell, manifests parse, and both start commands that exist."""

import pathlib
import re
import shutil
import subprocess
import sys

import break_lines
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / 'launch'
SHELLCHECK = shutil.which('shellcheck', path=str(pathlib.Path(sys.executable).parent)) or 'shellcheck'


@pytest.mark.parametrize('script', sorted(LAUNCH.glob('*.sh')), ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
  run = subprocess.run([SHELLCHECK, script], capture_output=True, text=True)
  assert run.returncode == 0, run.stdout


def test_the_jobset_parses_and_starts_the_training():
  (jobset,) = yaml.safe_load_all((LAUNCH / 'gke_jobset.yaml').read_text())
  assert jobset['kind'] == 'JobSet'
  pods = [job['template']['spec']['template']['spec'] for job in jobset['spec']['replicatedJobs']]
  (container,) = [c for pod in pods for c in pod['containers']]
  environment = {v['name']: v.get('value') for v in container['env']}
  assert environment['LARES_PROCESSES'] == 'auto'
  assert any('google.com/tpu' in str(c) for c in container['resources'].values())
  given = dict(argument.split('=', 1) for argument in container['args'])
  assert {'--config', '--workdir', '--config.data.path'} <= given.keys()
  assert (ROOT / given['--config'].split(':')[0]).exists()


@pytest.mark.parametrize('file', sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_modules_and_files_that_are_named_exist(file):
  text = file.read_text()
  for module in re.findall(r'-m"?,? "?(lares_jax[\w.]*)', text):
    assert (ROOT / (module.replace('.', '/') + '.py')).exists(), module
  for name in re.findall(r'(?:launch|configs)/\w+\.(?:sh|py)\b', text):
    assert (ROOT / name).exists(), name


@pytest.mark.parametrize('name', break_lines.LINES)
def test_the_lines_that_break_lines_breaks_are_there(name):
  file, line, broken, *_ = break_lines.LINES[name]
  assert (ROOT / 'lares_jax' / file).read_text().count(line) == 1 and broken != line
