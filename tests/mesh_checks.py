"""Eight simulated devices against one; run by test_sharding.py in a process of its own.

    python tests/mesh_checks.py DIRECTORY

Prints one line a check: its name, and `ok` or what went wrong.
"""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import re
import sys
import traceback
import types

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
sys.path[:0] = [str(pathlib.Path(__file__).parents[1]), str(pathlib.Path(__file__).parent)]

import jax
import jax.numpy as jnp
import numpy as np
import tiny
from jax.sharding import NamedSharding, PartitionSpec

from lares_jax.catalogue import Catalogue, CatalogueConfig
from lares_jax.data import text
from lares_jax.experiment import Experiment
from lares_jax.model.depth import DepthConfig
from lares_jax.model.tedrec import FusionConfig
from lares_jax.negatives import Popularity, SampleConfig
from lares_jax.studies import compile
from lares_jax.training import sharding
from lares_jax.training.checkpoint import Checkpoints
from lares_jax.training.sharding import MeshConfig

MESHES = {'8x1': (8, 1), '1x8': (1, 8), '2x4': (2, 4)}
M, V, D = 16, 21, 4  # 21 items: no axis divides them, and the last of eight shares holds none
CHECKS = {}


def check(*meshes):
  """Registers a check for each mesh; 2x4 alone has both axes."""

  def register(function):
    CHECKS.update({f'{function.__name__} {name}': (function, name, MESHES[name]) for name in meshes})
    return function

  return register


def mesh_of(shape):
  return sharding.build(MeshConfig(*shape))


def padded(table_VxD, catalogue):
  """The table as a mesh holds it; the padding is large, so that any use of it shows."""
  rows = catalogue.rows - len(table_VxD)
  table = np.concatenate([table_VxD, np.full((rows, table_VxD.shape[1]), 1e4, np.float32)])
  return jax.device_put(table, NamedSharding(catalogue.mesh, PartitionSpec('catalogue')))


def arrays():
  rng = np.random.default_rng(0)
  table_VxD = rng.normal(size=(V, D)).astype(np.float32)
  table_VxD[5] = table_VxD[17]  # a tie across shares
  target_M = rng.integers(V, size=M)
  target_M[:2] = 5, 17
  return (rng.normal(size=(M, D)).astype(np.float32), target_M, rng.random(M) < 0.8, table_VxD,
          np.stack([(target_M + 1) % V, np.where(rng.random(M) < 0.2, target_M, -1)], axis=1))


def close(ours, theirs, what: str, tolerance: float = 1e-5):
  for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    a, b = (x[:min(len(a), len(b))] if x.ndim else x for x in (a, b))  # without padding
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance,
                               err_msg=f'{what} {jax.tree_util.keystr(path)}')


def everything(catalogue, table):
  query, target, real, _, hidden = map(jnp.asarray, arrays())

  def loss(query, table):
    out = catalogue.likelihood(query, target, real, table)
    fetched = catalogue.lookup(table, target.reshape(8, 2))
    return jnp.where(real, out.logprob_M, 0.0) @ jnp.arange(M) + jnp.sin(fetched).sum(), out

  (value, out), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(query, table)
  lse_M = jnp.where(real, out.lse_M, 0.0)
  both = [jnp.where(real, catalogue.ranks(query, target, real, table, h), 0) for h in (None, hidden)]
  wide = lambda x: jnp.broadcast_to(x, (3, *x.shape))
  stacked = catalogue.ranks(wide(query), wide(target), wide(real), table)
  top = catalogue.top_k(query, jnp.ones(M, bool), table, 5, hidden)
  return value, lse_M, out.target_score_M, grads, both, jnp.where(real, stacked, 0), top


@functools.cache
def on_one_device(config: CatalogueConfig):
  return jax.jit(everything, static_argnums=0)(Catalogue(config, V), jnp.asarray(arrays()[3]))


@check(*MESHES)
def scores(name, shape):
  for config in (CatalogueConfig('dot', 0.7, 3, 2), CatalogueConfig('direction', 0.2, 3, 2),
                 CatalogueConfig('cos', 0.1, 100, 100)):
    many = Catalogue(config, V, mesh_of(shape))
    got = jax.jit(everything, static_argnums=0)(many, padded(arrays()[3], many))
    close(got, on_one_device(config), f'{config.similarity} {name}')


@check('2x4')
def other_passes(name, shape):
  """Kernels on each share, and losses of drawn negatives, which every device draws alike."""
  popularity = Popularity.of(np.arange(V))

  def gradient(catalogue, table):
    query, target, real, *_ = map(jnp.asarray, arrays())
    loss = lambda query, table: catalogue.total(
      lambda logprob_M: -logprob_M, query, target, real, table, (), jax.random.key(0))[0]
    return jax.value_and_grad(loss, (0, 1))(query, table)

  for config in (CatalogueConfig('dot', 0.7, 3, 2, kernel='pallas'),
                 CatalogueConfig('dot', 0.7, 3, 2, loss='sampled', sample=SampleConfig(4, 6, 6)),
                 CatalogueConfig('dot', 0.7, 3, 2, loss='gbce', sample=SampleConfig(4, 6, 6))):
    many, one = (Catalogue(config, V, mesh, popularity) for mesh in (mesh_of(shape), None))
    got = jax.jit(gradient, static_argnums=0)(many, padded(arrays()[3], many))
    want = jax.jit(gradient, static_argnums=0)(one, jnp.asarray(arrays()[3]))
    close(got, want, f'{config.kernel} {config.loss} {name}', 1e-4)


def experiment(shape, data='data') -> Experiment:
  config = tiny.make_config(DIRECTORY / data, mesh=MeshConfig(*shape))
  config = dataclasses.replace(config, pretrain=dataclasses.replace(
    config.pretrain, train=dataclasses.replace(config.pretrain.train, batch_rows=8)))
  return Experiment(config, DIRECTORY / 'run')


@functools.cache
def phase_one(experiment: Experiment):
  """The phase, and its step, to be compiled once."""
  phase = experiment.pretraining()
  return phase, jax.jit(lambda state, batch, draw: phase.update(state, None, batch, draw))


def train(experiment: Experiment, state, first: int, steps: int):
  """The state after `steps` steps of phase one, and the metrics of each."""
  (phase, step_of), mesh = phase_one(experiment), experiment.mesh
  if state is None:
    state = sharding.abstract(phase.fresh, experiment.abstract_params, mesh)
    places = jax.tree.map(lambda x: x.sharding, state)
    state = jax.jit(phase.fresh, out_shardings=places)(experiment.init_params())
  seen = []
  for step in range(first, first + steps):
    draw = phase.objective.draw(np.random.default_rng([0, 3, step]))
    state, metrics = step_of(state, sharding.put_batch(phase.batches.batch(step), mesh), draw)
    seen.append({k: float(metrics[k]) for k in ('loss', 'grad_norm')})
  return state, seen


@functools.cache
def one_device() -> dict:
  """The run on one device that all others are held against: 20 steps, saved, and 5 more."""
  alone = OneDevice(experiment((1, 1)).config, DIRECTORY / 'run')
  after_20, seen = train(alone, None, 0, 20)
  save(DIRECTORY / 'one', after_20)
  after_25, _ = train(alone, after_20, 20, 5)
  return {'alone': alone, 'seen': seen, 'after 20': after_20, 'after 25': after_25}


def save(directory, state):
  with contextlib.closing(Checkpoints(directory, 'pretrain')) as checkpoints:
    checkpoints.save(20, state, {'best_step': -1}, {})


def restore(directory, state, mesh):
  """What `save` wrote, laid out for `mesh`, whose padding is that of `state`."""
  with contextlib.closing(Checkpoints(directory, 'pretrain')) as checkpoints:
    return checkpoints.restore(sharding.abstract(lambda state: state, state, mesh))[0]


class OneDevice(Experiment):
  """An experiment that leaves all devices but one alone."""

  @functools.cached_property
  def mesh(self):
    return sharding.build(MeshConfig(), jax.devices()[:1])


@check(*MESHES)
def training(name, shape):
  cache, split = one_device(), experiment(shape)
  state, seen = train(split, None, 0, 20)
  close(seen, cache['seen'], 'metrics', 1e-4)
  close(state, cache['after 20'], f'state after 20 steps on {name}', 1e-5)
  shares = {x.data.shape for tree in (state.params, state.opt_state[0].mu, state.opt_state[0].nu)
            for x in tree['item'].addressable_shards}
  rows = split.catalogue.rows // shape[1]
  assert shares == {(rows, 8)}, f'a device holds {shares}, not {rows} rows of table and moments'
  rank = split.evaluator.ranks(state.params, 'valid', (1, 2, 4))
  want = cache['alone'].evaluator.ranks(cache['after 20'].params, 'valid', (1, 2, 4))
  np.testing.assert_allclose(rank, want, atol=1.0, err_msg='ranks')  # near ties may turn
  assert (rank == want).mean() > 0.98, 'ranks differ beyond near ties'

  # Its checkpoint goes on where there is one device only, and that of one device on this mesh.
  save(DIRECTORY / name, state)
  alone = cache['alone']
  for way, directory, on, like in (
      (f'from {name} to one device', DIRECTORY / name, alone, cache['after 20']),
      (f'from one device to {name}', DIRECTORY / 'one', split, state)):
    state, _ = train(on, restore(directory, like, on.mesh), 20, 5)
    close(state, cache['after 25'], f'25 steps, 20 of them before it went {way}', 1e-5)


@check('2x4')
def removed(name, shape):
  """Three steps in which a history's own items are no rivals of its targets.

  With rows of partners and copies, of which no mesh takes as many to a device.
  """

  def of(shape, kind=Experiment):
    config = experiment(shape).config
    loss = dataclasses.replace(config.pretrain.loss, history='removed', views='separate')
    train = dataclasses.replace(config.pretrain.train, batch_rows=5)
    pretrain = dataclasses.replace(config.pretrain, loss=loss, train=train)
    return kind(dataclasses.replace(config, pretrain=pretrain), DIRECTORY / 'run')

  (state, seen), (want, wanted) = (train(e, None, 0, 3) for e in (of(shape), of((1, 1), OneDevice)))
  close(seen, wanted, 'metrics', 1e-4)
  close(state, want, f'state after 3 steps on {name}', 1e-5)


@check('2x4')
def text_table(name, shape):
  """The text is split like the items, filled up with zeros, without moments, and read where it lies."""

  def of(shape, kind=Experiment):
    config = experiment(shape).config
    model = dataclasses.replace(config.model, core_layers=0, fusion=FusionConfig('tedrec', 5, 2))
    return kind(dataclasses.replace(
      config, model=model, data=dataclasses.replace(config.data, rows='prefix'),
      depth=DepthConfig(0)), DIRECTORY / 'run')

  alone, split = of((1, 1), OneDevice), of(shape)
  params = split.init_params()
  share, = {x.data.shape for x in params['text'].addressable_shards}
  assert share == (split.catalogue.rows // shape[1], 5), share
  assert not np.asarray(params['text'])[split.store.num_items:].any(), 'the padding is not zero'
  assert 'text' not in phase_one(split)[0].fresh(params).opt_state[0].mu
  rank, want = (e.evaluator.ranks(p, 'valid', (0,)) for e, p in (
    (split, params), (alone, alone.init_params())))
  np.testing.assert_allclose(rank, want, atol=1.0, err_msg='ranks')  # near ties may turn
  assert (rank == want).mean() > 0.98, 'ranks differ beyond near ties'


@check('2x4')
def traffic(name, shape):
  """No gather in a train step or in evaluation comes near the size of a share of the table.

  Nor, in phase two, of the states of a device's rollouts: each stays where its row is.
  """
  split = experiment(shape, 'large')
  share = split.catalogue.rows // shape[1] * 8
  for program, (build, _) in compile.programs(split).items():
    hlo = build(split).lower().compile().as_text()
    gathered = max(gathers(hlo), default=0)
    assert gathered < share / 4, (
      f'{program}: a gather of {gathered} numbers; a share of the table has {share}')
    assert 'all-reduce' in hlo, f'{program}: no collective at all: this test has lost its subject'


@check('2x4')
def fits(name, shape):
  """What study compile says that a chip holds: what is donated once, and no byte beyond its memory."""
  for spare, said in ((0, True), (-1, False)):
    memory = types.SimpleNamespace(
      argument_size_in_bytes=5 * compile.GIB, output_size_in_bytes=6 * compile.GIB,
      alias_size_in_bytes=4 * compile.GIB, temp_size_in_bytes=8 * compile.GIB,
      generated_code_size_in_bytes=compile.GIB - spare)
    compiled = types.SimpleNamespace(memory_analysis=lambda memory=memory: memory, as_text=str)
    lowered = types.SimpleNamespace(compile=lambda compiled=compiled: compiled)
    traced = types.SimpleNamespace(lower=lambda lowered=lowered: lowered,
                                   jaxpr=jax.make_jaxpr(lambda x: x)(0))
    with contextlib.redirect_stdout(io.StringIO()) as out:
      found = compile.report('a step', lambda _, traced=traced: traced, 4, experiment(shape), 'v5e')
    assert found is said and ('DOES NOT FIT' in out.getvalue()) is not said, out.getvalue()
    assert '100% of 16 GiB' in out.getvalue() and 'no collectives' in out.getvalue(), out.getvalue()


def gathers(hlo: str) -> list[int]:
  """Numbers in the result of every all-gather and all-to-all of a compiled program."""
  out = []
  for line in hlo.splitlines():
    found = re.search(r'= (.*?) (all-gather|all-to-all|collective-permute)(-start)?\(', line)
    if found:
      out += [int(np.prod([int(n) for n in dims.split(',') if n]))
              for dims in re.findall(r'\w+\[([\d,]*)\]', found[1])]
  return out


if __name__ == '__main__':
  DIRECTORY = pathlib.Path(sys.argv[1])
  store = tiny.make_store(DIRECTORY / 'data')
  text.write(store, store.item_ids.to_list(), text.word_encoder(5))
  tiny.make_store(DIRECTORY / 'large', users=900, items=5003)
  for label, (function, name, shape) in CHECKS.items():
    if len(sys.argv) > 2 and sys.argv[2] not in label:
      continue
    try:
      function(name, shape)
      print(f'{label}: ok', flush=True)
    except Exception as error:
      traceback.print_exc()
      print(f'{label}: {" ".join(str(error).split())[:600]}', flush=True)
