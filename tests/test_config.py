"""Settings: faults in them, and which may change between the starts of one run."""

import dataclasses
import shutil

import ml_collections
import pytest
from tiny import make_config, make_store

from lares_jax import config as config_lib
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.model.depth import DepthConfig
from lares_jax.prepare import PrepareOptions

ALL = 'pretrain,select,posttrain'


@pytest.fixture(scope='module')
def store(tmp_path_factory):
  return make_store(tmp_path_factory.mktemp('store')).directory


def test_a_misspelt_key_names_the_nearest():
  values = config_lib.defaults()
  values.unlock()
  values.pretrain.train.epoch = 3
  with pytest.raises(InputError, match=r'train\.epoch does not exist; did you mean epochs'):
    config_lib.typed(values)
  values = config_lib.defaults()
  with values.ignore_type():
    values.seed = 'one'
  with pytest.raises(InputError, match=r'config\.seed'):
    config_lib.typed(values)
  assert config_lib.typed(config_lib.defaults()) == config_lib.Config()


@pytest.mark.parametrize('key, value, said', (
  ('seed', -1, r'config\.seed=-1: use 0 or more'),
  ('evaluate.depths', (1, -2), r'config\.evaluate\.depths\[1\]=-2: use 0 or more'),
  ('evaluate.depths', (1, 'two'), r"config\.evaluate\.depths\[1\]='two' is not of type int"),
  ('evaluate.depths', (), r'evaluate\.depths=\(\): use at least one'),
  ('depth.mean', 65, r'depth\.mean=65, .*: this model goes from 0 to 64'),
  ('pretrain.train.log_every_steps', 0, 'log_every_steps=0: use more than 0'),
  ('catalogue.tau', 0.0, r'config\.catalogue\.tau=0\.0: use more than 0'),
  ('model.backbone.width', 0, r'config\.model\.backbone\.width=0: use more than 0'),
  ('model.core_blocks', 0, r'core_blocks=0: use more than 0'),
  ('catalogue.block', 0, r'config\.catalogue\.block=0: use more than 0'),
  ('pretrain.train.ema', 1.0, r'train\.ema=1\.0: use less than 1'),
  ('pretrain.train.optimizer.learning_rate', float('nan'), 'learning_rate=nan: use a finite number'),
  ('model.pre_dropout', 1.0, 'use at most 0.95'),
  ('model.core_layers', 0, 'set depth.mean=0'),
  ('depth.mean', -1, r'config\.depth\.mean=-1: use 0 or more'),
  ('catalogue.dtype', 'bf16', 'use one of float32, bfloat16'),
  ('model.backbone.dtype', 'int32', 'use one of float32, bfloat16'),
  ('phases', 'pretrain,postrain', "phases='pretrain,postrain': use some of pretrain,select,posttrain"),
  ('phases', ' ', 'use some of pretrain,select,posttrain'),
  ('data.max_history', 1, 'and that must be at least 2'),
  ('catalogue.sample.calibration', 1.5, r'calibration=1\.5: use 0 to 1'),
))
def test_values_that_cannot_be_are_refused(key, value, said):
  values = config_lib.defaults()
  with values.ignore_type():
    values.update_from_flattened_dict({key: value})
  with pytest.raises(InputError, match=said):
    config_lib.typed(values)


def test_settings_that_do_not_go_together_are_refused(store):
  config = make_config(store)
  with pytest.raises(InputError, match='positions=8 must reach'):
    dataclasses.replace(config, data=dataclasses.replace(config.data, max_history=12))
  bsarec = dataclasses.replace(config.model.backbone, name='bsarec')
  with pytest.raises(InputError, match='rows=prefix'):
    dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=bsarec))
  gbce = dataclasses.replace(config.catalogue, loss='gbce')
  with pytest.raises(InputError, match=r'catalogue\.loss=gbce: gives no probabilities'):
    dataclasses.replace(config, catalogue=gbce, phases='pretrain,posttrain')


def test_a_workdir_of_another_config_or_data_set_is_refused(store, tmp_path):
  Experiment.start(make_config(store, seed=1), str(tmp_path))  # nothing saved: it claims nothing
  (tmp_path / 'checkpoints/pretrain/latest/3.orbax-checkpoint-tmp').mkdir(parents=True)  # killed
  Experiment.start(make_config(store), str(tmp_path))
  (tmp_path / 'checkpoints/pretrain/latest/3').mkdir()
  with pytest.raises(InputError, match=r'seed \(0 there, 1 here\)'):
    Experiment.start(make_config(store, seed=1), str(tmp_path))
  other = make_store(tmp_path / 'other', seed=1).directory
  with pytest.raises(InputError, match='the data set'):
    Experiment.start(make_config(other), str(tmp_path))
  later = dataclasses.replace(make_config(store).posttrain, dropout=0.3)
  Experiment.start(make_config(store, posttrain=later), str(tmp_path))  # phase two is still to come
  Experiment.start(make_config(store, posttrain=later, phases=ALL), str(tmp_path))  # and comes
  with pytest.raises(InputError, match=r'posttrain\.dropout \(0\.3 there'):
    Experiment.start(make_config(store, phases=ALL), str(tmp_path))
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(InputError, match=r'config\.json is damaged'):
    Experiment.start(make_config(store), str(tmp_path))
  (tmp_path / 'config.json').unlink()
  with pytest.raises(InputError, match=r'config\.json is missing beside a trained run'):
    Experiment.start(make_config(store), str(tmp_path))


def test_some_settings_may_change_between_starts_and_others_not(store, tmp_path):
  def start(**changes):
    values = ml_collections.ConfigDict(dataclasses.asdict(make_config(store)))
    values.update_from_flattened_dict(changes)
    return Experiment.start(config_lib.typed(values), str(tmp_path))

  start()
  (tmp_path / 'checkpoints' / 'pretrain' / 'latest' / '3').mkdir(parents=True)
  for free in ({'pretrain.train.on_nan': 3}, {'pretrain.train.save_every_steps': 5},
               {'evaluate.batch_rows': 9}, {'evaluate.depths': (1, 3)}, {'mesh.catalogue': 2}):
    start(**free)
  for fixed in ({'evaluate.history': 'removed'}, {'evaluate.users': 5}, {'pretrain.train.epochs': 4}):
    with pytest.raises(InputError, match=f'differing: {next(iter(fixed))}'):
      start(**fixed)


def test_phase_two_that_began_keeps_its_settings_when_it_was_left_out_once(store, tmp_path):
  start = lambda **changes: Experiment.start(make_config(store, **changes), str(tmp_path))
  start(phases=ALL)
  (tmp_path / 'checkpoints' / 'posttrain' / 'latest' / '3').mkdir(parents=True)
  start(phases='pretrain')
  later = dataclasses.replace(make_config(store).posttrain, dropout=0.3)
  with pytest.raises(InputError, match=r'posttrain\.dropout \(0\.1 there'):
    start(phases=ALL, posttrain=later)


def test_a_run_finds_its_data_set_where_main_says_that_it_is(store, tmp_path):
  shutil.copytree(store, tmp_path / 'data')
  start = lambda name: Experiment.start(make_config(tmp_path / name), str(tmp_path / 'run'))
  start('data')
  (tmp_path / 'run' / 'checkpoints' / 'pretrain' / 'latest' / '3').mkdir(parents=True)
  (tmp_path / 'data').rename(tmp_path / 'moved')
  load = lambda: Experiment.load(str(tmp_path / 'run'))
  with pytest.raises(InputError, match=r'run: its data set is not where it was: .*data\.path=PLACE'):
    _ = load().store
  start('moved')
  assert load().store.directory == str(tmp_path / 'moved')


def test_a_log_whose_cache_was_deleted_is_prepared_again(tmp_path):
  log, cache = tmp_path / 'log.csv', tmp_path / 'cache'
  log.write_text('user,item\n' + ''.join(f'u{n % 5},i{n % 7}\n' for n in range(30)))
  config = make_config(log)
  data = dataclasses.replace(config.data, cache=str(cache), prepare=PrepareOptions(
    user='user', item='item', min_length=4))
  first = Experiment.start(dataclasses.replace(config, data=data), str(tmp_path / 'run')).store
  shutil.rmtree(cache)
  again = Experiment.load(str(tmp_path / 'run')).store
  assert again.fingerprint == first.fingerprint and again.directory.startswith(str(cache))


def test_what_a_data_set_without_targets_can_do(tmp_path):
  """Nothing could be chosen without validation; without a test, training is as good as ever."""
  made = make_store(tmp_path / 'data')
  start = lambda changed: Experiment.start(make_config(made.directory), str(tmp_path / 'run'), changed)
  with pytest.raises(InputError, match='no validation target with a history, so nothing could'):
    start(dataclasses.replace(made, valid_start_U=made.test_start_U))
  assert not (tmp_path / 'run').exists()
  untested = start(dataclasses.replace(made, test_start_U=made.offsets[1:]))
  assert untested.evaluator.ranks(None, 'test', (1, 2)).shape == (2, 0)


def test_the_final_report_has_the_depth_of_validation(store, tmp_path):
  evaluate = dataclasses.replace(make_config(store).evaluate, depths=(8, 1))
  of = lambda mean: Experiment(make_config(store, evaluate=evaluate, depth=DepthConfig(mean)), tmp_path)
  assert [of(mean).depths for mean in (4, 8, 0)] == [(1, 4, 8), (1, 8), (0,)]
