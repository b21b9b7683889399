"""LARES: a pre-block once, then one weight-tied core-block as often as depth says (arXiv 2505.16865).

    x   = dropout(LN(E[item] + P[position]))
    H   = pre(x)
    Z_i = core(LN(f(Z_{i-1}, H))),  i = 1..T          one nn.scan; the same weights at every step

Two ablations depart from this: `refine` and `core_blocks` of ModelConfig.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from lares_jax.data.rows import Rows
from lares_jax.errors import InputError
from lares_jax.model.backbone import BackboneConfig, Context, Norm, dense
from lares_jax.model.bsarec import BsarecLayer
from lares_jax.model.dropout import Dropout
from lares_jax.model.fmlp import FmlpLayer
from lares_jax.model.gru import GruLayer
from lares_jax.model.hstu import HstuLayer
from lares_jax.model.recurrence import Given, Reasoning, Recurrence, recomputed
from lares_jax.model.tedrec import FusionConfig, TedrecFusion
from lares_jax.model.transformer import TransformerLayer

LAYERS = {'transformer': TransformerLayer, 'fmlp': FmlpLayer, 'bsarec': BsarecLayer,
          'hstu': HstuLayer, 'gru': GruLayer}
NOT_CAUSAL = frozenset({'fmlp', 'bsarec'})
DEEPEST = 64  # for whoever asks a trained model; steps not asked for cost nothing
GIVEN = frozenset({'text'})  # parameters that are data: no gradient, nothing for an optimizer


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The model; what differs between training and inference is an argument, not a field."""

  backbone: BackboneConfig = BackboneConfig()
  fusion: FusionConfig = FusionConfig()
  positions: int = 50  # that have an embedding; data.max_history or more
  pre_layers: int = 2
  core_layers: int = 2  # 0: no reasoning, the plain backbone
  core_blocks: int = 1  # with weights of their own, taken in turn by the steps; 1: all steps tied
  # Every token; or last: each as if it alone were refined, beside the H of others.
  refine: Literal['all', 'last'] = 'all'
  # The core-block; or ReaRec (model/rearec.py) in its place, trained in one of its two ways.
  reasoner: Literal['lares', 'erl', 'prl'] = 'lares'
  thoughts: int = 2  # T of ReaRec
  combine: Literal['add', 'concat', 'gated'] = 'add'  # f(Z, H)
  initial: Literal['normal', 'zero', 'normal_zero'] = 'normal'  # Z_0; the last: noise in training only
  initial_std: float = 1.0
  initial_scale: float = 3.0
  embed_dropout: float = 0.5
  pre_dropout: float = 0.5
  core_dropout: float = 0.5
  remat: bool = True  # recompute a step in the backward pass instead of keeping its insides

  def __post_init__(self):
    if self.backbone.name not in LAYERS:
      raise InputError(f'model.backbone.name={self.backbone.name!r}: use one of {", ".join(LAYERS)}')
    if self.backbone.width % self.backbone.heads:
      raise InputError(f'model.backbone.width={self.backbone.width} is not a multiple of '
                       f'heads={self.backbone.heads}')
    if self.backbone.times and self.backbone.name != 'hstu':
      raise InputError('model.backbone.times=True: only backbone.name=hstu reads times')
    alone = self.refine == 'last' or self.reasoner != 'lares'
    if alone and (self.backbone.name != 'transformer' or not self.causal):
      raise InputError('model.refine=last and model.reasoner=erl or prl: only '
                       'backbone.name=transformer without fusion can do this')

  @property
  def causal(self) -> bool:
    """Whether no token sees a later one; if not, a row must hold one history and score its last."""
    return self.backbone.name not in NOT_CAUSAL and self.fusion.name == 'none'

  @property
  def deepest(self) -> int:
    """The most steps that a trained model can be asked for."""
    if self.reasoner != 'lares':
      return self.thoughts
    return DEEPEST if self.core_layers else 0

  @property
  def recurrent(self) -> bool:
    """Whether a step depends on nothing but the state, so that one can go on from any state."""
    return self.core_layers > 0 and self.core_blocks == 1 and self.reasoner == 'lares'


class Step(nn.Module):
  """One reasoning step: Z_i = core(LN(f(Z_{i-1}, H)))."""

  config: ModelConfig

  @nn.compact
  def __call__(self, z_BxLxD, h_BxLxD, context: Context, train: bool, _):
    c = self.config
    if c.combine == 'add':
      x_BxLxD = (z_BxLxD + h_BxLxD) / 2
    elif c.combine == 'concat':
      both_BxLx2D = jnp.concatenate([z_BxLxD, h_BxLxD], axis=-1)
      x_BxLxD = dense(c.backbone.width, c.backbone, 'adapter')(both_BxLx2D)
    else:
      gate = nn.sigmoid(self.param('gate', nn.initializers.zeros, ())).astype(z_BxLxD.dtype)
      x_BxLxD = gate * z_BxLxD + (1 - gate) * h_BxLxD
    x_BxLxD = Norm(name='step_norm')(x_BxLxD)
    if c.refine == 'last':
      others_LxL = ~jnp.eye(x_BxLxD.shape[1], dtype=bool)
      context = context._replace(visible_Bx1xLxL=context.visible_Bx1xLxL & others_LxL[None, None],
                                 memory_BxLxD=h_BxLxD)
    for n in range(c.core_layers):
      layer = LAYERS[c.backbone.name](c.backbone, c.core_dropout, name=f'core_{n}')
      x_BxLxD = layer(x_BxLxD, context, train)
    return x_BxLxD


class _Blocks(nn.Module):
  """Step i through the block i modulo `core_blocks`."""

  config: ModelConfig

  def setup(self):
    self.blocks = [Step(self.config) for _ in range(self.config.core_blocks)]

  def __call__(self, z_BxLxD, h_BxLxD, context: Context, train: bool, i):
    through = lambda n: lambda self, z_BxLxD: self.blocks[n](z_BxLxD, h_BxLxD, context, train, i)
    choices = [through(n) for n in range(self.config.core_blocks)]
    if self.is_initializing():  # all of them
      z_BxLxD, *_ = [choice(self, z_BxLxD) for choice in choices]
      return z_BxLxD
    return nn.switch(i % self.config.core_blocks, choices, self, z_BxLxD)


class Lares(nn.Module):
  """The model over a catalogue of `items` rows of embeddings, which `lookup(table, items)` fetches."""

  config: ModelConfig
  items: int
  lookup: Callable = operator.getitem  # Catalogue.lookup where a mesh splits the table

  def setup(self):
    c = self.config
    normal = nn.initializers.normal(0.02)
    self.item_VxD = self.param('item', normal, (self.items, c.backbone.width))
    self.position_PxD = self.param('position', normal, (c.positions, c.backbone.width))
    if c.fusion.name == 'tedrec':
      text_shape = (self.items, c.fusion.text_width)
      self.text_VxW = self.param('text', nn.initializers.zeros, text_shape)
      self.fusion = TedrecFusion(c.fusion, c.backbone)
    self.input_norm = Norm()
    self.input_dropout = Dropout(c.embed_dropout)
    layer = LAYERS[c.backbone.name]
    self.pre = [layer(c.backbone, c.pre_dropout) for _ in range(c.pre_layers)]
    if c.core_layers:
      self.scan = self._recurrence(1).scan()  # holds the parameters; see `reason`

  def __call__(self, rows: Rows, z_BxLxD, depth_B, *, cap: int, train: bool = False, **wanted):
    """Z_T of every token, and what `reason` is asked for besides; see there."""
    return self.reason(self.prelude(rows, train), rows, z_BxLxD, depth_B, cap, train, **wanted)

  def prelude(self, rows: Rows, train: bool = False) -> jax.Array:
    """H [B, L, D]: the pre-block's view of every token."""
    x_BxLxD = self.embedded(rows, train)
    with jax.named_scope('pre'):
      for layer in self.pre:
        x_BxLxD = layer(x_BxLxD, Context.of(rows), train)
    return x_BxLxD

  def embedded(self, rows: Rows, train: bool) -> jax.Array:
    """x [B, L, D]: what the first layer reads."""
    c = self.config
    with jax.named_scope('embed'):
      item_BxLxD = jnp.where(rows.real_BxL[..., None], self.lookup(self.item_VxD, rows.item_BxL), 0.0)
      if c.fusion.name == 'tedrec':
        text_BxLxW = self.lookup(jax.lax.stop_gradient(self.text_VxW), rows.item_BxL)
        text_BxLxW = jnp.where(rows.real_BxL[..., None], text_BxLxW, 0.0)
        item_BxLxD = self.fusion(item_BxLxD, text_BxLxW, train)
      x_BxLxD = item_BxLxD + self.position_PxD[jnp.minimum(rows.position_BxL, c.positions - 1)]
      x_BxLxD = self.input_norm(x_BxLxD.astype(c.backbone.dtype))
      return self.input_dropout(x_BxLxD, train)

  def reason(self, h_BxLxD, rows: Rows, z_BxLxD, depth_B, cap: int, train: bool = False,
             pick=None, place_BxA=None) -> Reasoning:
    """The core-block, applied to row b depth_B[b] times.

    Args:
      h_BxLxD, z_BxLxD: H from `prelude`, and the initial state Z_0.
      depth_B: steps for each row, or one number for all; traced, so one program serves all depths.
      cap: static upper bound of the depth; steps beyond the largest depth are not taken.
      pick: index from 0 of a step whose state is wanted besides the last.
      place_BxA: tokens of each row whose state is wanted after every step.
    """
    if not self.config.core_layers:
      return Reasoning(h_BxLxD, None, None, jnp.zeros((0,)))
    depth_B = jnp.broadcast_to(depth_B, rows.item_BxL.shape[:1])
    keys = None  # of each step's dropout [T]
    if train and self.has_rng('dropout'):
      keys = jax.random.split(self.make_rng('dropout'), cap)
    given = Given(Context.of(rows), depth_B, jnp.minimum(depth_B.max(), cap),
                  keys, pick, place_BxA)
    z_BxLxD = z_BxLxD.astype(h_BxLxD.dtype)
    recurrence = self._recurrence(cap, train)
    with jax.named_scope('core'):
      if self.is_initializing():  # for the parameters alone
        return Reasoning(self.scan(z_BxLxD, jnp.arange(1), h_BxLxD, given)[0], None, None, jnp.zeros(1))
      args = self.scan.variables['params'], z_BxLxD, h_BxLxD, given
      return recomputed(recurrence, *args) if self.config.remat else recurrence.run(*args)[0]

  def _recurrence(self, cap: int, train: bool = False) -> Recurrence:
    make = Step if self.config.core_blocks == 1 else _Blocks
    return Recurrence(functools.partial(make, self.config), cap, train)


def initial_state(config: ModelConfig, rows: Rows, key: jax.Array, train: bool) -> jax.Array:
  """Z_0 [B, L, D]: scale * truncated normal(0, std), cut at 3 std, drawn for every token.

  In training the draw is over the whole batch. Otherwise a token's noise is a function of the key,
  its item and its position alone, so that neither the order of users nor their company in a row or
  batch changes a result, and a raw history gets the very state that evaluation gave it.
  """
  shape = (*rows.item_BxL.shape, config.backbone.width)
  if config.initial == 'zero' or (config.initial == 'normal_zero' and not train):
    return jnp.zeros(shape)
  draw = lambda key, shape: jax.random.truncated_normal(key, -3.0, 3.0, shape)
  if train:
    z_BxLxD = draw(key, shape)
  else:
    fold = jax.random.fold_in
    of_token = lambda item, position: draw(fold(fold(key, item), position), shape[2:])
    z_BxLxD = jax.vmap(jax.vmap(of_token))(rows.item_BxL, rows.position_BxL)
  return config.initial_scale * config.initial_std * z_BxLxD
