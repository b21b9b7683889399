"""Kills a run at random moments of both phases and compares its end with an uninterrupted run's.

    python tests/kill_and_resume.py [--kills=20] [--seed=0]

The run is the real command on the built-in data set, shrunk; it takes some minutes. Exit code 1
if a single bit differs, or if a line of metrics.jsonl is missing or repeated.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tiny import end

from lares_jax.experiment import Experiment

PHASES = ('pretrain', 'posttrain')
SMALL = [
  '--config.phases=pretrain,select,posttrain', '--config.model.backbone.width=16',
  '--config.model.backbone.inner=32', '--config.pretrain.train.epochs=4',
  '--config.posttrain.train.epochs=1', '--config.select.passes=1', '--config.evaluate.depths=(1,)',
  '--config.pretrain.train.eval_every_epochs=0.5', '--config.posttrain.train.eval_every_epochs=0.25',
  '--config.pretrain.train.patience=0',
  '--config.posttrain.train.patience=0', '--config.pretrain.train.pairs=16',
  '--config.pretrain.loss.alpha=0.1', '--config.pretrain.loss.gamma=0.1']


def start(workdir: pathlib.Path, cache: pathlib.Path) -> subprocess.Popen:
  command = [sys.executable, '-m', 'lares_jax.main', '--config=configs/quickstart.py',
             f'--workdir={workdir}', f'--config.data.cache={cache}', *SMALL]
  # Programs are compiled once for all starts, so that most of a run's time is training.
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(cache / 'programs'),
                 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0'}
  return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE)


def finish(run: subprocess.Popen) -> None:
  _, errors = run.communicate()
  if run.returncode:
    sys.exit(f'the run failed with exit code {run.returncode}:\n{errors.decode()[-2000:]}')


def ends(workdir: pathlib.Path):
  """Best parameters and last state of both phases, and which lines metrics.jsonl has."""
  experiment = Experiment.load(str(workdir))
  entries = map(json.loads, (workdir / 'metrics.jsonl').open(encoding='utf-8'))
  return {p: end(experiment, p) for p in PHASES}, [(e['phase'], e['step'], e['kind']) for e in entries]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--kills', type=int, default=20)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  moments = random.Random(args.seed)
  with tempfile.TemporaryDirectory() as folder:
    base, cache = pathlib.Path(folder), pathlib.Path(folder) / 'cache'
    finish(start(base / 'compiled', cache))
    began = time.time()
    finish(start(base / 'whole', cache))
    whole = time.time() - began
    want_params, want_lines = ends(base / 'whole')
    kills, rounds = 0, 0
    while kills < args.kills:
      workdir = base / f'killed_{rounds}'
      rounds += 1
      while True:
        fresh, began, run = not workdir.exists(), time.time(), start(workdir, cache)
        try:
          run.wait(moments.uniform(0.1, 0.9) * whole)
        except subprocess.TimeoutExpired:
          if kills < args.kills:
            run.kill()
            run.communicate()
            kills += 1
            where = sorted(p.name for p in workdir.glob('checkpoints/*/latest/*'))
            print(f'kill {kills}: checkpoints at {", ".join(where) or "none"}', flush=True)
            continue
        finish(run)
        if fresh and kills < args.kills:  # the machine is faster now than it was
          whole = min(whole, time.time() - began)
        break
      params, lines = ends(workdir)
      for phase in PHASES:
        same = [np.array_equal(a, b) for a, b in zip(want_params[phase], params[phase], strict=True)]
        if not all(same):
          sys.exit(f'{phase}: {same.count(False)} of {len(same)} parameters differ')
      if lines != want_lines:
        sys.exit('metrics.jsonl: lines are missing or repeated')
    print(f'{kills} kills over {rounds} runs: every parameter of both phases equals the '
          'uninterrupted run bit for bit; no line of metrics.jsonl is missing or repeated')


if __name__ == '__main__':
  main()
