"""The built-in data set: a made-up world whose true next-item probabilities are known exactly.

The generative process, for interests k, routes r, stages j of a route, items v and steps t:

    pi(v)       = (rank_v + offset)^-exponent / sum          popularity; ranks are a random order
    e(v | k)    = (1 - noise) pi(v) [interest_v = k] / pi(k) + noise pi(v)
    (r, j)_1    ~ uniform over routes and stages
    (r, j)_t+1  = with probability drift:  uniform over routes and stages
                  otherwise, with stay:    (r, j)_t
                  otherwise:               (r, j + 1 modulo the route's length)_t
    item_t      ~ e(v | route[r, j]_t) (1 + habit n_t(v)) / sum,     n_t(v) = [item_1..t-1 = v] times

A route is a cycle through some of the interests. Each interest lies on several routes, with other
interests after it, so the last item does not tell what comes next: that takes the route, which
shows in the items before; and which items of the next interest a user is fond of shows in all the
history. Nothing but items is observed.

Given the items, n_t is known, so routes and stages are a hidden Markov chain: the forward algorithm
gives p(item_t+1 | item_1..t) exactly, and ranking by it is the best that any model can do. As users
return to items, rank with the history included. All randomness is a function of the seed.

Suffixes: U users, M users whose step is known, V items, T steps, K interests, R routes, J stages,
N interactions.
"""

import dataclasses
import os
from typing import NamedTuple

import numpy as np
import polars as pl
from scipy import stats

from lares_jax.errors import InputError

_FIRST_SECOND = 1_704_067_200  # 2024-01-01, in Unix time
_DAY = 86_400


@dataclasses.dataclass(frozen=True)
class World:
  """Sizes and constants of the process above; `seed` draws both the world and its users.

  Attributes:
    num_routes, route_length: their product is a multiple of `num_interests`, so that every interest
      lies on equally many routes.
    min_length, max_length: a user's number of items is uniform between these two.
    exponent, offset: of the popularity law.
    stay, drift, noise: probabilities.
    habit: weight that each earlier taking adds to an item, as a multiple of its own.

  Raises:
    InputError: a constant is out of range.
  """

  num_users: int = 2000
  num_items: int = 1000
  seed: int = 0
  num_interests: int = 20
  num_routes: int = 8
  route_length: int = 10
  min_length: int = 5
  max_length: int = 45
  exponent: float = 1.2
  offset: float = 20.0
  stay: float = 0.3
  drift: float = 0.02
  noise: float = 0.1
  habit: float = 4.0

  def __post_init__(self) -> None:
    if not 3 <= self.min_length <= self.max_length:
      raise InputError('World: lengths must satisfy 3 <= min_length <= max_length')
    if not 1 <= self.route_length <= self.num_interests <= self.num_items:
      raise InputError('World: must satisfy 1 <= route_length <= num_interests <= num_items')
    if self.num_users < 1 or self.num_routes * self.route_length % self.num_interests:
      raise InputError('World: num_routes * route_length must be a multiple of num_interests')
    for name in ('stay', 'drift', 'noise'):
      if not 0 <= getattr(self, name) <= 1:
        raise InputError(f'World: {name}={getattr(self, name)} is no probability')
    if self.habit < 0:
      raise InputError(f'World: habit={self.habit} must be 0 or more')


class Tables(NamedTuple):
  """What the users of a world share: the interests along each route, and e(v | k)."""

  routes_RxJ: np.ndarray
  emission_KxV: np.ndarray


class RawLog(NamedTuple):
  """Interactions in time order, each user's times rising: ids as strings, times in seconds."""

  users_N: np.ndarray
  items_N: np.ndarray
  times_N: np.ndarray


def tables(world: World) -> Tables:
  """Draws the world without its users."""
  rng = np.random.default_rng([world.seed, 0])
  shape = (world.num_routes * world.route_length // world.num_interests, 1)
  decks = rng.permuted(np.tile(np.arange(world.num_interests), shape), axis=1)
  rank_V = rng.permutation(world.num_items) + 1
  popularity_V = (rank_V + world.offset) ** -world.exponent
  popularity_V /= popularity_V.sum()
  interest_V = rng.permutation(world.num_items) % world.num_interests
  own_KxV = np.where(interest_V == np.arange(world.num_interests)[:, None], popularity_V, 0)
  own_KxV /= own_KxV.sum(1, keepdims=True)
  return Tables(
    routes_RxJ=decks.reshape(world.num_routes, world.route_length),
    emission_KxV=(1 - world.noise) * own_KxV + world.noise * popularity_V,
  )


def histories(world: World) -> tuple[np.ndarray, np.ndarray]:
  """Draws every user's items, oldest first, -1 after the last [U, T], and their number [U]."""
  routes_RxJ, emission_KxV = tables(world)
  rng = np.random.default_rng([world.seed, 1])
  users, steps = world.num_users, world.max_length
  length_U = rng.integers(world.min_length, steps + 1, users)
  items_UxT = np.empty((users, steps), np.int64)
  habit_UxV = np.ones((users, world.num_items))
  drifts_U = np.ones(users, bool)  # the first state is drawn as after a drift
  route_U = stage_U = np.zeros(users, np.int64)
  for t in range(steps):
    stage_U = (stage_U + (rng.random(users) >= world.stay)) % world.route_length
    route_U = np.where(drifts_U, rng.integers(world.num_routes, size=users), route_U)
    stage_U = np.where(drifts_U, rng.integers(world.route_length, size=users), stage_U)
    drifts_U = rng.random(users) < world.drift
    upto_UxV = (emission_KxV[routes_RxJ[route_U, stage_U]] * habit_UxV).cumsum(1)
    items_UxT[:, t] = (upto_UxV <= rng.random((users, 1)) * upto_UxV[:, -1:]).sum(1)
    habit_UxV[np.arange(users), items_UxT[:, t]] += world.habit
  return np.where(np.arange(steps) < length_U[:, None], items_UxT, -1), length_U


def generate(world: World) -> RawLog:
  """The raw log: item v is called item-000v, user u user-000u; a day between items on average."""
  items_UxT, length_U = histories(world)
  rng = np.random.default_rng([world.seed, 2])
  gaps_UxT = 1 + rng.exponential(_DAY, items_UxT.shape).astype(np.int64)
  start_Ux1 = _FIRST_SECOND + rng.integers(365 * _DAY, size=(world.num_users, 1))
  real_UxT = items_UxT >= 0
  times_N = (start_Ux1 + gaps_UxT.cumsum(1))[real_UxT]
  order_N = np.argsort(times_N, kind='stable')
  users_N = np.repeat(np.arange(world.num_users), length_U)[order_N]
  return RawLog(
    _names('user', world.num_users)[users_N],
    _names('item', world.num_items)[items_UxT[real_UxT][order_N]],
    times_N[order_N],
  )


def write(world: World, path: str | os.PathLike[str]) -> None:
  """Writes the raw log as CSV with the columns user_id, item_id and timestamp."""
  log = generate(world)
  aside = f'{os.fspath(path)}.part'
  columns = {'user_id': log.users_N, 'item_id': log.items_N, 'timestamp': log.times_N}
  pl.DataFrame(columns).write_csv(aside)
  os.replace(aside, path)


def predictive(world: World, items_UxT: np.ndarray, length_U: np.ndarray) -> np.ndarray:
  """p(next item | the first `length_U` items of each row), float64 [U, V]: the forward algorithm.

  Args:
    world: may have another number of users than there are rows.
    items_UxT: integers below V; those from `length_U` on are not looked at.
    length_U: 0 or more.
  """
  routes_RxJ, emission_KxV = tables(world)
  uniform = 1 / routes_RxJ.size
  belief_UxRxJ = np.full((len(items_UxT), *routes_RxJ.shape), uniform)
  habit_UxV = np.ones((len(items_UxT), world.num_items))
  total_UxK = np.ones((len(items_UxT), world.num_interests))  # of e(. | k) * habit
  for t in range(items_UxT.shape[1]):
    known_M = np.flatnonzero(t < length_U)
    item_M = items_UxT[known_M, t]
    likelihood_MxK = emission_KxV[:, item_M].T / total_UxK[known_M]  # up to a factor of the user
    now_MxRxJ = belief_UxRxJ[known_M] * likelihood_MxK[:, routes_RxJ]
    now_MxRxJ /= now_MxRxJ.sum((1, 2), keepdims=True)
    moved_MxRxJ = world.stay * now_MxRxJ + (1 - world.stay) * np.roll(now_MxRxJ, 1, axis=2)
    belief_UxRxJ[known_M] = (1 - world.drift) * moved_MxRxJ + world.drift * uniform
    habit_UxV[known_M, item_M] += world.habit
    total_UxK[known_M] += world.habit * emission_KxV[:, item_M].T
  one_hot_RxJxK = np.eye(world.num_interests)[routes_RxJ]
  belief_UxK = np.einsum('urj,rjk->uk', belief_UxRxJ, one_hot_RxJxK)
  return (belief_UxK / total_UxK) @ emission_KxV * habit_UxV


def oracle(world: World) -> np.ndarray:
  """True probabilities of each user's last item, the test target, float64 [U, V].

  Rows and columns go by the numbers in the ids that `generate` gives.
  """
  items_UxT, length_U = histories(world)
  return predictive(world, items_UxT, length_U - 1)


def ranking_metrics(
  world: World, scores_UxV: np.ndarray, realised: bool = False, k: int = 10
) -> dict[str, float]:
  """Recall@k, NDCG@k and MRR on test of ranking all items by `scores_UxV`, ties counting half.

  Expected, over what the users could have taken next, which is free of the luck of one draw; or
  realised, on the targets that were drawn, as for any model.
  """
  rank_UxV = stats.rankdata(-scores_UxV, axis=1) - 1
  if realised:
    items_UxT, length_U = histories(world)
    target_Ux1 = np.take_along_axis(items_UxT, length_U[:, None] - 1, 1)
    rank_UxV, weight_UxV = np.take_along_axis(rank_UxV, target_Ux1, 1), np.ones((1, 1))
  else:
    weight_UxV = oracle(world)
  hit_UxV = rank_UxV < k
  gains = {f'recall@{k}': hit_UxV, f'ndcg@{k}': hit_UxV / np.log2(rank_UxV + 2),
           'mrr': 1 / (rank_UxV + 1)}
  return {name: float((gain * weight_UxV).sum(1).mean()) for name, gain in gains.items()}


def best_metrics(world: World, realised: bool = False, k: int = 10) -> dict[str, float]:
  """Metrics of ranking by the true probabilities: no model can expect more on this data set."""
  return ranking_metrics(world, oracle(world), realised, k)


def _names(kind: str, count: int) -> np.ndarray:
  """Ids from 0, padded with zeros to a width of at least 4."""
  width = max(len(str(count - 1)), 4)
  return np.array([f'{kind}-{number:0{width}}' for number in range(count)])
