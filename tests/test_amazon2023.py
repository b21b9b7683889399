"""The commands of configs/amazon2023.py, on small generated files of that very format."""

import gzip
import json
import pathlib
import subprocess
import sys

import amazon

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
