"""Several processes on one machine, started by the scripts of launch/, against one process."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import stat
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tiny

from lares_jax import processes
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.training import sharding
from lares_jax.training.checkpoint import Checkpoints
from lares_jax.training.sharding import MeshConfig

ROOT = pathlib.Path(__file__).parents[1]
TASKS = """#!/usr/bin/env bash
# Stands in for srun: two tasks on this machine, known by the variables that SLURM sets.
[[ $1 == --kill-on-bad-exit=1 ]] && shift
export SLURM_NTASKS=2 SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
first=$?
wait $! && exit $first
"""
GCLOUD = """#!/usr/bin/env bash
# Stands in for gcloud compute tpus tpu-vm scp|ssh: the one worker is a directory.
set -e
for argument in "$@"; do
  [[ $argument == --command=* ]] && command=${argument#--command=}
done
if [[ $4 == scp ]]; then cp "$5" "$WORKER/lares_jax.tar.gz"; else cd "$WORKER"; bash -c "$command"; fi
"""
SAVES = """
import pathlib, sys
import jax
import jax.numpy as jnp
from absl import flags
from lares_jax import processes
from lares_jax.training.checkpoint import Checkpoints
flags.FLAGS.mark_as_parsed()
with processes.joined():
  rows = jax.sharding.NamedSharding(jax.make_mesh((2,), ('rows',)), jax.sharding.PartitionSpec('rows'))
  params = {'x': jax.device_put(jnp.zeros(8), rows)}
  checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), 'pretrain')
  for step in range(1, 9):
    checkpoints.save_best(step, params, {})
    checkpoints.save(step, params, {}, {})
  checkpoints.close()
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  return tiny.make_store(tmp_path_factory.mktemp('data') / 'tiny').directory


def _port() -> int:
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _environment(devices: int = 1, **more: str) -> dict[str, str]:
  xla = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'
  return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'PLATFORM': 'cpu', 'PYTHON': sys.executable,
          'XLA_FLAGS': xla, **more}


def _arguments(data, workdir, *more: str) -> list[str]:
  return ['--config=tests/tiny_config.py', f'--config.data.path={data}', f'--workdir={workdir}', *more]


def _start(script: str, arguments, **environment) -> subprocess.Popen:
  return subprocess.Popen(['bash', ROOT / 'launch' / script, *arguments], cwd=ROOT, text=True,
                          env=_environment(**environment), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def _finish(process: subprocess.Popen) -> str:
  out, err = process.communicate(timeout=1800)
  assert process.returncode == 0, f'exit code {process.returncode}: {err[:3000]}'
  return out


def _stand_in(directory: pathlib.Path, name: str, text: str) -> str:
  """The search path with a command of this name put first."""
  file = directory / name
  file.write_text(text)
  file.chmod(file.stat().st_mode | stat.S_IXUSR)
  return f'{directory}:{os.environ["PATH"]}'


def _latest(workdir, phase: str):
  """The parameters of the latest checkpoint and its step, on one device whatever wrote it."""
  trained = Experiment.load(workdir)
  one = Experiment(dataclasses.replace(trained.config, mesh=MeshConfig()), trained.workdir)
  state = sharding.abstract(one.pretraining().fresh, one.abstract_params, one.mesh)
  checkpoints = Checkpoints(workdir, phase)
  state, _ = checkpoints.restore(state)
  checkpoints.close()
  return state.params, int(state.step)


def _same(workdir, other, phases=('pretrain', 'posttrain')):
  for phase in phases:
    (ours, step), (theirs, other_step) = (_latest(w, phase) for w in (workdir, other))
    assert step == other_step >= 20
    for (path, x), y in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs)):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5,
                                 err_msg=f'{phase} {jax.tree_util.keystr(path)}')


@pytest.fixture(scope='module')
def alone(data, tmp_path_factory):
  """One process on one device, by launch/gpu.sh."""
  workdir = tmp_path_factory.mktemp('alone')
  out = _finish(_start('gpu.sh', _arguments(data, workdir)))
  assert 'mesh: data 1 x catalogue 1' in out and 'wrote' in out
  return workdir


def test_two_slurm_tasks_equal_one_process(alone, data, tmp_path):
  path = _stand_in(tmp_path, 'srun', TASKS)
  arguments = _arguments(data, tmp_path / 'run', '--config.mesh.catalogue=2')
  out = _finish(_start('slurm.sh', arguments, PATH=path, SLURM_JOB_ID=str(_port()),
                       SLURM_SUBMIT_DIR=str(ROOT)))
  assert out.count('mesh: data 1 x catalogue 2') == 2, 'one process alone is to speak, once a phase'
  _same(tmp_path / 'run', alone)
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  assert len(lines) == len((alone / 'metrics.jsonl').read_text().splitlines())


def test_a_2x4_checkpoint_goes_on_under_two_processes(alone, data, tmp_path):
  arguments = _arguments(data, tmp_path / 'run', '--config.phases=pretrain')
  process = _start('train.sh', [*arguments, '--config.mesh.catalogue=4'], devices=8)
  metrics = tmp_path / 'run' / 'metrics.jsonl'
  while process.poll() is None and not (
      metrics.exists() and any(json.loads(line)['step'] >= 2
                               for line in metrics.read_text().splitlines())):
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=1800)
  assert process.returncode == 143, err[-3000:]
  address = f'localhost:{_port()}'
  both = [_start('train.sh', arguments, LARES_PROCESSES=f'{p}/2@{address}') for p in range(2)]
  first, second = map(_finish, both)
  assert 'going on from step' in first and 'mesh: data 2 x catalogue 1' in first
  assert 'wrote' in first and 'wrote' not in second, 'only process 0 prints'
  _same(tmp_path / 'run', alone, ('pretrain',))


def test_saves_in_quick_succession_do_not_meet(tmp_path):
  """Best and latest right after another, eight times: each takes barriers between the processes."""
  address = f'localhost:{_port()}'
  both = [subprocess.Popen([sys.executable, '-c', SAVES, tmp_path], cwd=ROOT, text=True,
                           env=_environment(LARES_PROCESSES=f'{p}/2@{address}'),
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE) for p in range(2)]
  for process in both:
    _finish(process)
  for series in ('latest', 'best'):
    assert [d.name for d in (tmp_path / 'checkpoints/pretrain' / series).iterdir()] == ['8']


def test_the_tpu_script_brings_the_code_and_runs_it(data, tmp_path):
  (tmp_path / 'worker').mkdir()
  path = _stand_in(tmp_path, 'gcloud', GCLOUD)
  arguments = [f'--config={ROOT}/tests/tiny_config.py', f'--config.data.path={data}',
               f'--workdir={tmp_path / "run"}', '--config.phases=pretrain',
               '--config.pretrain.train.epochs=1']
  out = _finish(_start('tpu_vm.sh', arguments, PATH=path, WORKER=str(tmp_path / 'worker'), TPU='t',
                       ZONE='z', PROJECT='p', LARES_PROCESSES=f'0/1@localhost:{_port()}'))
  assert 'wrote' in out and (tmp_path / 'worker' / 'lares_jax' / 'launch' / 'train.sh').exists()


def test_a_lost_process_ends_the_other_with_a_clear_line(data, tmp_path):
  address = f'localhost:{_port()}'
  arguments = _arguments(data, tmp_path / 'run', '--config.pretrain.train.epochs=10000')
  both = [_start('train.sh', arguments, LARES_PROCESSES=f'{p}/2@{address}') for p in range(2)]
  metrics = tmp_path / 'run' / 'metrics.jsonl'
  while not metrics.exists() and all(p.poll() is None for p in both):
    time.sleep(0.05)
  time.sleep(2)
  both[1].kill()
  _, err = both[0].communicate(timeout=150)
  both[1].communicate()
  assert both[0].returncode not in (0, None)
  assert 'most likely because another was lost' in err, err[-3000:]


def test_processes_of_different_settings_do_not_train(data, tmp_path):
  address = f'localhost:{_port()}'
  both = [_start('train.sh', _arguments(data, tmp_path / 'run', f'--config.seed={p}'),
                 LARES_PROCESSES=f'{p}/2@{address}') for p in range(2)]
  said = [p.communicate(timeout=150)[1] for p in both]
  assert any('error: the processes were started with different settings' in err for err in said), said
  assert all(p.returncode for p in both) and not (tmp_path / 'run').exists()


@pytest.mark.parametrize('step, now, heard', ((10, False, 15), (7, False, None), (7, True, 15)))
def test_processes_ask_each_other_now_and_then(monkeypatch, step, now, heard):
  monkeypatch.setattr(processes.jax, 'process_count', lambda: 2)
  other = lambda mine: np.array([int(mine), 15])
  monkeypatch.setattr(processes.multihost_utils, 'process_allgather', other)
  assert processes.agreed(None, step, now) == heard


def test_a_port_that_is_taken_is_told(data, tmp_path):
  with socket.socket() as taken:
    taken.bind(('localhost', 0))
    taken.listen()
    where = f'0/2@localhost:{taken.getsockname()[1]}'
    process = _start('train.sh', _arguments(data, tmp_path / 'run'), LARES_PROCESSES=where)
    _, err = process.communicate(timeout=150)
  assert process.returncode == 1 and f'error: LARES_PROCESSES={where}: ' in err, err[-3000:]
  assert 'Traceback' not in err


def test_a_wrong_variable_is_named(monkeypatch):
  monkeypatch.setenv('LARES_PROCESSES', 'two')
  with pytest.raises(InputError, match='LARES_PROCESSES=two'), processes.joined():
    pass
