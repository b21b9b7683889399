"""Recommendations for raw histories: raw ids in, raw ids out.

    recommender = lares_jax.Recommender.load('runs/beauty')
    recommender.recommend([['1482', '933'], []], k=10)

The exported artifact (export.py) runs the same two functions, `encode` and `Catalogue.top_k`.
"""

import dataclasses
import functools
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lares_jax import adaptive
from lares_jax.adaptive import Rule
from lares_jax.catalogue import Catalogue
from lares_jax.data.rows import Plan, Rows, Segments, fill, rounded_up
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment
from lares_jax.model.lares import DEEPEST, Lares
from lares_jax.scoring import as_item, as_query
from lares_jax.training.evaluation import begin

Depth = int | str | Rule | None
_CHUNK = 4096  # histories at a time: enough to pack rows well
_NARROW = 64  # items to leave out: histories with fewer are ranked together
_ROOM = 1 << 22  # items that are left out at a time


class Recommendation(NamedTuple):
  """What one history gets."""

  items: list[str]  # raw ids, best first; fewer than k only where the catalogue has no more
  scores: list[float]  # the model's scores, or training counts if `source` is popularity
  source: str  # 'model', or 'popularity' where no item of the history is known
  unknown: list[str]  # raw ids of the history that the model does not know, each once


@dataclasses.dataclass(frozen=True, eq=False)
class Recommender:
  """A trained model with the raw ids of its items. Open one with `Recommender.load`.

  A history is a sequence of raw item ids, oldest first; its last `data.max_history` known items
  are read. A depth is the number of reasoning steps (of LARES, 0 to 64); None is what validation chose,
  and 'adaptive' stops for each history by the rule that the depth study chose on validation.
  """

  experiment: Experiment
  params: Any
  depth: int

  @classmethod
  def load(cls, workdir: str) -> 'Recommender':
    """The model, phase and depth that the run in `workdir` chose on validation.

    Raises:
      InputError: no finished run there.
    """
    return cls.of(Experiment.load(workdir))

  @classmethod
  def of(cls, experiment: Experiment) -> 'Recommender':
    """The same, of a finished experiment."""
    result = experiment.result()
    if experiment.config.model.backbone.times:
      print(f'warning: {experiment.workdir} was trained with times, and raw histories have none: they '
            'are read like the tenth of the training rows whose times were hidden', file=sys.stderr)
    return cls(experiment, experiment.best(result['phase'])[0], result['depth'])

  @functools.cached_property
  def item_ids(self) -> list[str]:
    """Raw ids, by item number."""
    return self.experiment.items['id'].to_list()

  def recommend(self, histories: Sequence[Sequence[str]], k: int = 10, depth: Depth = None,
                exclude_history: bool = True) -> list[Recommendation]:
    """The k best items for each history, in the order given.

    Args:
      histories: raw ids; those unknown to the model are ignored, and listed in the answer.
      k: how many items; a catalogue with fewer gives what it has.
      depth: reasoning steps, or 'adaptive'.
      exclude_history: never recommend an item of the whole history, beyond what is read included.

    Raises:
      InputError: k, depth or the type of a history is wrong.
    """
    depth, k = self.checked_depth(depth), self._checked_k(k)
    ids = lambda number_N: [self.item_ids[n] for n in number_N.tolist()]  # at once where they are few
    return [answer for known, unknown in self._chunks(histories)
            for answer in self._answers(known, unknown, k, depth, exclude_history, ids)]

  def recommend_numbers(self, histories: list[np.ndarray], k: int = 10, depth: Depth = None,
                        exclude_history: bool = True) -> list[Recommendation]:
    """The same for histories of item numbers, which are places in `item_ids`: it spares the ids."""
    depth, k = self.checked_depth(depth), self._checked_k(k)
    ids = lambda number_N: self.experiment.items['id'].gather(number_N).to_list()
    return [answer for known in _split(histories, _CHUNK)
            for answer in self._answers(known, [[]] * len(known), k, depth, exclude_history, ids)]

  def user_vectors(self, histories: Sequence[Sequence[str]], depth: Depth = None) -> np.ndarray:
    """A vector for each history, float32 [M, D]; zeros where no item of it is known.

    Its inner product with `item_vectors()` over `config.catalogue.tau` is the score of `recommend`.
    """
    depth = self.checked_depth(depth)
    config = self.experiment.config
    parts = [np.zeros((0, config.model.backbone.width), np.float32)]
    for known, _ in self._chunks(histories):
      query_MxD, _ = self._encoded(known, depth)
      parts.append(np.asarray(as_query(jnp.asarray(query_MxD), config.catalogue.similarity)))
    return np.concatenate(parts)

  def item_vectors(self) -> np.ndarray:
    """A vector for each item, float32 [V, D], in the order of `item_ids`; to fill an ANN index."""
    item_VxD = self.params['item'][: self.experiment.num_items]
    return np.asarray(as_item(item_VxD, self.experiment.config.catalogue.similarity))

  def checked_depth(self, depth: Depth) -> int | Rule:
    """The depth to use, or the rule that finds it.

    Raises:
      InputError: not one that the model has, or nobody has chosen a rule yet.
    """
    if depth is None:
      return self.depth
    if depth == 'adaptive' or isinstance(depth, Rule):
      if not self.experiment.model.config.recurrent:
        raise InputError('depth=adaptive: this model does not repeat one core-block')
      return depth if isinstance(depth, Rule) else Rule.load(self.experiment.workdir)
    try:
      steps = int(depth) if isinstance(depth, str) else operator.index(depth)
    except (TypeError, ValueError):
      raise InputError(f'depth={depth}: use a whole number, or adaptive') from None
    most = self.experiment.model.config.deepest
    if not 0 <= steps <= most:
      raise InputError(f'depth={depth}: this model goes from 0 to {most}')
    return steps

  def _checked_k(self, k: int) -> int:
    if not isinstance(k, int | np.integer) or k < 1:
      raise InputError(f'k={k}: use a whole number, 1 or more')
    return min(k, self.experiment.num_items)

  @functools.cached_property
  def _number(self) -> dict[str, int]:
    return {raw: number for number, raw in enumerate(self.item_ids)}

  def _chunks(self, histories) -> Iterator[tuple[list[np.ndarray], list[list[str]]]]:
    """(known items as numbers, unknown raw ids) of the histories, some at a time."""
    number = self._number
    for low in range(0, len(histories), _CHUNK):
      known, unknown = [], []
      for n, history in enumerate(histories[low : low + _CHUNK], low):
        if isinstance(history, str | bytes) or not isinstance(history, Iterable):
          raise InputError(f'histories[{n}]={history!r}: a history is a list of item ids')
        raw = [str(item) for item in history]
        known.append(np.array([number[i] for i in raw if i in number], np.int32))
        unknown.append(list(dict.fromkeys(i for i in raw if i not in number)))
      yield known, unknown

  def _answers(self, known: list[np.ndarray], unknown: Sequence[list[str]], k: int,
               depth: int | Rule, exclude_history: bool,
               ids: Callable[[np.ndarray], list[str]]) -> Iterator[Recommendation]:
    # Items are numbered by falling popularity in training.
    popular_K = self.experiment.items['train_count'][:k].to_numpy().astype(np.float32)
    score_MxK, item_MxK = np.tile(popular_K, (len(known), 1)), np.tile(np.arange(k), (len(known), 1))
    query_MxD, some_S = self._encoded(known, depth)
    hidden = [np.unique(known[m]) if exclude_history else known[m][:0] for m in some_S]
    score_MxK[some_S], item_MxK[some_S] = self._ranked(query_MxD[some_S], hidden, k)
    raw = ids(np.maximum(item_MxK, 0).reshape(-1))
    count_M = (item_MxK >= 0).sum(axis=1)  # where fewer are left, -1 is last
    for m, (score_K, count) in enumerate(zip(score_MxK.tolist(), count_M.tolist())):
      source = 'model' if len(known[m]) else 'popularity'
      yield Recommendation(raw[m * k : m * k + count], score_K[:count], source, unknown[m])

  def _encoded(self, known: list[np.ndarray], depth: int | Rule) -> tuple[np.ndarray, np.ndarray]:
    """User vectors [M, D], zeros where a history is empty, and which ones [S] are not."""
    model, c = self.experiment.model, self.experiment.config
    some_S = np.flatnonzero([len(items) > 0 for items in known])
    read = [known[m][-c.data.max_history :] for m in some_S]
    length_S = np.array([len(items) for items in read], np.int64)
    start_S = np.cumsum(length_S) - length_S
    items_N = np.concatenate([np.zeros(0, np.int32), *read])
    plan, most = c.data.plan(length_S), c.evaluate.batch_rows
    out_MxD = np.zeros((len(known), c.model.backbone.width), np.float32)
    for low in range(0, plan.rows, most):
      s = np.flatnonzero((plan.row_S >= low) & (plan.row_S < low + most))
      shape = (min(rounded_up(plan.rows - low, 4), most), c.data.length)
      row_s, place_s = plan.row_S[s] - low, plan.place_S[s]
      if isinstance(depth, Rule):
        out_MxD[some_S[s]], _ = adaptive.think(
          self.experiment, self.params, depth, items_N, start_S[s], length_S[s],
          Plan(row_s, place_s, shape[0]))
        continue
      rows = fill(items_N, Segments(start_S[s], length_S[s], row_s, place_s), shape)
      state_BxLxD = encode(model, self.params, rows, c.evaluate.noise_seed, depth)
      out_MxD[some_S[s]] = np.asarray(state_BxLxD)[row_s, place_s + length_S[s] - 1]
    return out_MxD, some_S

  def _ranked(self, query_SxD: np.ndarray, hidden: list[np.ndarray], k: int):
    """Scores and items [S, k] of the best not hidden; -inf and -1 where there are no more."""
    width_S = np.array([max(rounded_up(len(items), 4), _NARROW) for items in hidden], int)
    score_SxK = np.full((len(hidden), k), -np.inf, np.float32)
    item_SxK = np.full((len(hidden), k), -1, np.int32)
    alike = [(width, s) for width in np.unique(width_S) for s in _split(
      np.flatnonzero(width_S == width), max(_ROOM // width, 1))]
    for width, s in alike:
      rows = rounded_up(len(s), 4)
      query = np.pad(query_SxD[s], [(0, rows - len(s)), (0, 0)])
      hidden_SxH = np.full((rows, width), -1, np.int32)
      for row, m in enumerate(s):
        hidden_SxH[row, : len(hidden[m])] = hidden[m]
      score, item = best(self.experiment.catalogue, query, np.arange(rows) < len(s),
                         self.params['item'], k, hidden_SxH)
      score_SxK[s], item_SxK[s] = np.asarray(score)[: len(s)], np.asarray(item)[: len(s)]
    return score_SxK, item_SxK


def _split(many: Any, most: int) -> list[Any]:
  return [many[low : low + most] for low in range(0, len(many), most)]


@functools.partial(jax.jit, static_argnums=0)
def encode(model: Lares, params, rows: Rows, noise_seed, depth) -> jax.Array:
  """States [B, L, D] (float32) of every token after `depth` steps: one program for all depths.

  The noise is that of evaluation's first draw, so a history gets the state that evaluation gave it.
  """
  h_BxLxD, z_BxLxD = begin(model, params, rows, noise_seed)
  if not model.config.deepest:
    return h_BxLxD.astype(jnp.float32)
  out: Any = model.apply({'params': params}, h_BxLxD, rows, z_BxLxD, depth, DEEPEST, method='reason')
  return jnp.where(depth > 0, out.state_BxLxD, h_BxLxD).astype(jnp.float32)


best = jax.jit(Catalogue.top_k, static_argnums=(0, 4))
