"""Between the phases: which training prompts can be rewarded at all."""

import numpy as np

from lares_jax import files, processes
from lares_jax.errors import InputError
from lares_jax.experiment import Experiment


def select(experiment: Experiment) -> None:
  """Keeps the prompts whose target ranks within `top` in any of `passes` noisy passes at depth r.

  An initial state without noise is read once: every pass would be the same.
  """
  c, store = experiment.config, experiment.store
  kept_N = np.zeros(len(store.items_N), bool)
  end_N = store.targets('train')[1]
  params = experiment.reference()
  for draw in range(1, (c.select.passes if c.model.initial == 'normal' else 1) + 1):
    rank_1xM = experiment.evaluator.ranks(params, 'train', (c.depth.mean,), draw=draw)
    kept_N[end_N] |= rank_1xM[0] < c.select.top
  if not kept_N.any():
    raise InputError(f'select: no target of training ranks within select.top={c.select.top} in '
                     f'select.passes={c.select.passes}; train phase one for longer, or raise them')
  share = float(kept_N[end_N].mean())
  files.write_arrays(experiment.workdir / 'prompts.npz', {
    'kept_N': kept_N, 'settings': _settings(experiment)})
  processes.wait('selection')
  files.write_json(experiment.workdir / 'prompts.json', {
    'prompts': len(end_N), 'kept': int(kept_N.sum()), 'share': share})
  print(f'select: {kept_N.sum():,} of {len(end_N):,} prompts kept ({share:.1%})')


def load(experiment: Experiment) -> np.ndarray | None:
  """One flag for every interaction, or None where no selection was made: all prompts count.

  Raises:
    InputError: the selection was made with other settings, or is lost.
  """
  file = experiment.workdir / 'prompts.npz'
  if not file.exists():
    if 'select' in experiment.config.phase_list:
      raise InputError(f'{file} is missing, and with it which prompts phase two began with; bring it '
                       'back, or choose another --workdir')
    return None
  found = files.read_arrays(file)
  if [str(x) for x in found['settings']] != _settings(experiment):
    raise InputError(f'{file}: made with another select.top, select.passes or posttrain.start; add '
                     'select to phases')
  return found['kept_N']


def _settings(experiment: Experiment) -> list[str]:
  """What a selection depends on besides phase one's result here."""
  c = experiment.config
  return [str(c.select.top), str(c.select.passes), *([c.posttrain.start] if c.posttrain.start else [])]
