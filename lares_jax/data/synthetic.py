"""The built-in data set: a made-up world whose true next-item probabilities are known exactly.

The generative process, for interests k, routes r, stages j of a route, items v and steps t:

    pi(v)       = (rank_v + offset)^-exponent / sum          popularity; ranks are a random order
    e(v | k)    = (1 - noise) pi(v) [interest_v = k] / pi(k) + noise pi(v)
    (r, j)_1    ~ uniform over routes and stages
    (r, j)_t+1  = with probability drift:  uniform over routes and stages
                  otherwise, with stay:    (r, j)_t
                  otherwise:               (r, j + 1 modulo the route's length)_t
    item_t      ~ e(v | route[r, j]_t) (1 + habit n_t(v)) / sum,     n_t(v) = [item_1..t-1 = v] times

Each interest lies on several routes, with other interests after it, so the last item does not tell
what comes next: that takes the route, which shows in the items before; and which items of the next
interest a user is fond of shows in all the history. Nothing but items is observed.

Given the items, n_t is known, so routes and stages are a hidden Markov chain: the forward algorithm
gives p(item_t+1 | item_1..t) exactly, and ranking by it is the best that any model can do. As users
return to items, rank with the history included. All randomness is a function of the seed.

Suffixes: U users, V items, T steps, K interests, R routes, J stages, N interactions, M users with
an item at the step at hand.
"""

import dataclasses
import os

import numpy as np
import polars as pl

from lares_jax import metrics
from lares_jax.aside import aside

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
    habit: weight that each earlier taking adds to an item, as a multiple of the item's own.
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


def tables(world: World) -> tuple[np.ndarray, np.ndarray]:
  """What users share: the interests along each route, int64 [R, J], and e(v | k) [K, V]."""
  rng = np.random.default_rng([world.seed, 0])
  decks = world.num_routes * world.route_length // world.num_interests
  dealt = rng.permuted(np.tile(np.arange(world.num_interests), (decks, 1)), axis=1)
  rank_V = rng.permutation(world.num_items) + 1
  popularity_V = (rank_V + world.offset) ** -world.exponent
  popularity_V /= popularity_V.sum()
  interest_V = rng.permutation(world.num_items) % world.num_interests
  own_KxV = np.where(interest_V == np.arange(world.num_interests)[:, None], popularity_V, 0)
  own_KxV /= own_KxV.sum(1, keepdims=True)
  routes_RxJ = dealt.reshape(world.num_routes, world.route_length)
  return routes_RxJ, (1 - world.noise) * own_KxV + world.noise * popularity_V


def histories(world: World) -> tuple[np.ndarray, np.ndarray]:
  """Draws each user's items, oldest first, -1 after the last, int64 [U, T], and their number [U]."""
  routes_RxJ, emission_KxV = tables(world)
  rng = np.random.default_rng([world.seed, 1])
  users, steps = world.num_users, world.max_length
  length_U = rng.integers(world.min_length, steps + 1, users)
  items_UxT = np.empty((users, steps), np.int64)
  habit_UxV = np.ones((users, world.num_items))
  route_U = stage_U = np.zeros(users, np.int64)
  for t in range(steps):
    drifts_U = rng.random(users) < (world.drift if t else 1)
    stage_U = (stage_U + (rng.random(users) >= world.stay)) % world.route_length
    route_U = np.where(drifts_U, rng.integers(world.num_routes, size=users), route_U)
    stage_U = np.where(drifts_U, rng.integers(world.route_length, size=users), stage_U)
    upto_UxV = (emission_KxV[routes_RxJ[route_U, stage_U]] * habit_UxV).cumsum(1)
    items_UxT[:, t] = (upto_UxV <= rng.random((users, 1)) * upto_UxV[:, -1:]).sum(1)
    habit_UxV[np.arange(users), items_UxT[:, t]] += world.habit
  return np.where(np.arange(steps) < length_U[:, None], items_UxT, -1), length_U


def generate(world: World) -> pl.DataFrame:
  """The raw log in order of time: user_id and item_id (item 7 is item-0007), timestamp in seconds.

  There is a day between a user's items on average.
  """
  items_UxT, length_U = histories(world)
  rng = np.random.default_rng([world.seed, 2])
  gaps_UxT = 1 + rng.exponential(_DAY, items_UxT.shape).astype(np.int64)
  start_Ux1 = _FIRST_SECOND + rng.integers(365 * _DAY, size=(world.num_users, 1))
  real_UxT = items_UxT >= 0
  name = lambda kind, number_N: [f'{kind}-{number:04}' for number in number_N]
  return pl.DataFrame({
    'user_id': name('user', np.repeat(np.arange(world.num_users), length_U)),
    'item_id': name('item', items_UxT[real_UxT]),
    'timestamp': (start_Ux1 + gaps_UxT.cumsum(1))[real_UxT]}).sort('timestamp', maintain_order=True)


def built_in(cache: str | os.PathLike[str]) -> str:
  """The path of the raw log of the built-in world, which is written on first use."""
  path = os.path.join(cache, 'built_in.csv')
  if not os.path.exists(path):
    with aside(path) as fresh:
      generate(World()).write_csv(fresh)
  return path


def predictive(world: World, items_UxT: np.ndarray, length_U: np.ndarray) -> np.ndarray:
  """p(next item | the first `length_U` items of each row) by the forward algorithm, [U, V].

  Rows need not be the world's own users; items from `length_U` on are not looked at.
  """
  routes_RxJ, emission_KxV = tables(world)
  uniform = 1 / routes_RxJ.size
  belief_UxRxJ = np.full((len(items_UxT), *routes_RxJ.shape), uniform)
  habit_UxV = np.ones((len(items_UxT), world.num_items))
  total_UxK = np.ones((len(items_UxT), world.num_interests))  # sum over v of e(v | k) habit(v)
  for t in range(items_UxT.shape[1]):
    known_M = np.flatnonzero(t < length_U)
    item_M = items_UxT[known_M, t]
    emission_MxK = emission_KxV[:, item_M].T
    # The item's own habit factor is the same in every state, so it cancels.
    now_MxRxJ = belief_UxRxJ[known_M] * (emission_MxK / total_UxK[known_M])[:, routes_RxJ]
    now_MxRxJ /= now_MxRxJ.sum((1, 2), keepdims=True)
    moved_MxRxJ = world.stay * now_MxRxJ + (1 - world.stay) * np.roll(now_MxRxJ, 1, axis=2)
    belief_UxRxJ[known_M] = (1 - world.drift) * moved_MxRxJ + world.drift * uniform
    habit_UxV[known_M, item_M] += world.habit
    total_UxK[known_M] += world.habit * emission_MxK
  on_RxJxK = np.eye(world.num_interests)[routes_RxJ]
  belief_UxK = np.tensordot(belief_UxRxJ, on_RxJxK, 2)
  return (belief_UxK / total_UxK) @ emission_KxV * habit_UxV


def oracle(world: World) -> np.ndarray:
  """True probabilities of every user's test target given all items before it, [U, V].

  Rows and columns are in the order of the ids that `generate` gives.
  """
  items_UxT, length_U = histories(world)
  return predictive(world, items_UxT, length_U - 1)


def ranking_metrics(scores_UxV: np.ndarray, prob_UxV: np.ndarray) -> dict[str, float]:
  """Expected Recall@10, NDCG@10 and MRR when `scores_UxV` rank all items, ties counting half.

  `prob_UxV` says how likely each item is the user's target; with those of `oracle` the result is
  free of the luck of the draw.
  """
  gains = metrics.per_user(metrics.ranks(scores_UxV), (10,))
  return {name: float((gain_UxV * prob_UxV).sum(1).mean()) for name, gain_UxV in gains.items()}


def best_metrics(world: World) -> dict[str, float]:
  """Metrics of ranking by the true probabilities: no model can expect more on this data set."""
  prob_UxV = oracle(world)
  return ranking_metrics(prob_UxV, prob_UxV)
