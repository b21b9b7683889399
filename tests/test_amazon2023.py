"""The commands of configs/amazon2023.py, on small generated files of that very format."""

import dataclasses
import gzip
import json
import pathlib
import subprocess
import sys

import amazon

from configs import amazon2023
from lares_jax import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
  'model.backbone.width': 8, 'model.backbone.inner': 16, 'model.pre_layers': 1, 'model.core_layers': 1,
  'depth.distribution': 'constant', 'depth.mean': 2, 'evaluate.depths': '(1,2)', 'data.row_length': 32,
  'catalogue.tile': 128, 'catalogue.block': 64, 'evaluate.batch_rows': 16, 'select.top': 30,
  'pretrain.train.pairs': 32, 'pretrain.train.epochs': 2, 'posttrain.train.epochs': 1}


def _command(name, *arguments, text=''):
  done = subprocess.run([sys.executable, '-m', f'lares_jax.{name}', *arguments], cwd=ROOT, text=True,
                        input=text, capture_output=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]
  return done.stdout


def test_the_settings_are_those_that_were_published():
  """Of depth, both phases and the selection; those of defaults, which nothing else holds, too."""
  c = config_lib.typed(amazon2023.get_config('instruments'))
  model, loss, rollouts = c.model, c.pretrain.loss, c.posttrain.loss
  assert dataclasses.astuple(model.backbone)[:4] == ('transformer', 64, 2, 256)
  assert (model.pre_layers, model.core_layers, model.combine, model.initial) == (2, 2, 'add', 'normal')
  assert (model.embed_dropout, model.pre_dropout, model.core_dropout) == (0.5, 0.5, 0.5)
  assert (model.initial_std, model.initial_scale) == (1.0, 3.0)
  assert (c.depth.mean, c.depth.distribution) == (4, 'poisson_lognormal')
  assert c.evaluate.depths == (1, 2, 4, 8, 12, 16) and c.evaluate.history == 'ranked'
  assert (c.catalogue.similarity, c.catalogue.tau, c.catalogue.loss) == ('dot', 1.0, 'exact')
  assert (loss.alpha, loss.gamma, loss.similarity, loss.tau) == (0.1, 0.5, 'dot', 1.0)
  assert not loss.mask_same_target
  for phase, rate in ((c.pretrain, 1e-3), (c.posttrain, 5e-4)):
    adam = phase.train.optimizer
    assert (adam.learning_rate, adam.schedule, adam.weight_decay) == (rate, 'constant', 0)
  train = c.pretrain.train
  assert (train.patience, train.eval_every_epochs, train.epochs, train.ema) == (10, 1.0, 300, 0)
  assert train.batch_rows * c.data.row_length == 1024
  assert (c.select.top, c.select.passes) == (100, 3)
  assert (c.posttrain.dropout, c.posttrain.outer_dropout) == (0.1, 0.1)
  assert (rollouts.rollouts, rollouts.beta, rollouts.k, rollouts.reward) == (4, 1.0, 10, 'recall')


def test_fetched_files_become_recommendations(tmp_path):
  rows = amazon.log()
  files = amazon.write(tmp_path / 'fetched', rows, opened=gzip.open, ending='csv.gz')
  _command('prepare', f'--input={files}', f'--output={tmp_path / "instruments"}')
  out = _command('main', '--config=configs/amazon2023.py:instruments', f'--workdir={tmp_path / "run"}',
                 f'--config.data.path={tmp_path / "instruments"}',
                 *[f'--config.{key}={value}' for key, value in SMALL.items()])
  assert 'prompts kept' in out and 'wrote' in out
  result = json.loads((tmp_path / 'run' / 'result.json').read_text())
  assert result['phase'] in ('pretrain', 'posttrain')
  line = json.dumps({'user': rows[0][0], 'history': [rows[0][1], rows[1][1]]})
  answer = json.loads(_command('recommend', f'--workdir={tmp_path / "run"}', text=line + '\n'))
  assert answer['user'] == rows[0][0] and answer['source'] == 'model'
  assert len(answer['items']) == 10 and {*answer['items']} <= {row[1] for row in rows}
