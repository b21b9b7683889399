"""One program on many machines: joining in, one voice, and an end for all when one is lost."""

import contextlib
import hashlib
import itertools
import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost  # defines the flag that _join sets, too

from lares_jax.errors import InputError

VARIABLE = 'LARES_PROCESSES'
_JOINING = 1800  # seconds for all to come, some of which may have an image to fetch
_HEARTBEAT = 60  # seconds without a sign of life after which a process counts as lost
_PREPARING = 24 * 3600  # seconds that a process may let the others wait, as when it prepares a log
_EVERY = 10  # steps between asking whether a signal has come
_waits = itertools.count()  # every barrier has a name of its own


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Joins the other processes of the launcher for the length of the block, if the environment asks.

  LARES_PROCESSES=auto takes number and address from the launcher: Cloud TPU, GKE with TPUs, SLURM,
  Open MPI.
  LARES_PROCESSES=0/2@host:1234 gives them by hand: process 0 of 2; process 0 listens at host:1234.
  Only process 0 writes to stdout. A process that loses another ends within a minute or two, with one
  line and exit code 1, or by JAX's own hand.

  Raises:
    InputError: the variable does not read so, or there is no such launcher.
  """
  wanted = os.environ.get(VARIABLE, '')
  if not wanted:
    yield
    return
  _join(wanted)
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).strip().partition('\n')[0]
    _end(f'process {jax.process_index()} of {jax.process_count()} stopped, most likely because '
         f'another was lost ({reason}); start all again to go on from the last checkpoint')
  except (InputError, OSError) as error:
    _end(str(error))


def _end(why: str) -> None:
  sys.stdout.flush()
  print(f'error: {why}', file=sys.stderr, flush=True)
  os._exit(1)  # the orderly way out would wait for the others, of which one may be gone


def _join(wanted: str) -> None:
  by_hand = re.fullmatch(r'(\d+)/(\d+)@(\S+:\d+)', wanted)
  if not by_hand and wanted != 'auto':
    raise InputError(f'{VARIABLE}={wanted}: use auto, or process/processes@host:port')
  # Collectives on CPUs are matched by order of arrival: were two programs under way at once, or a
  # program and a checkpoint's barrier, the processes could answer each other's calls crosswise.
  jax.config.update('jax_cpu_enable_async_dispatch', False)
  # It would swallow a SIGTERM that comes outside training, when the process should just end.
  jax.config.update('jax_enable_preemption_service', False)
  flags.FLAGS['experimental_orbax_use_distributed_barrier'].value = True
  if by_hand and not int(by_hand[1]):
    _check_free(wanted, int(by_hand[3].rsplit(':', 1)[1]))
  try:
    where: dict[str, Any] = {}
    print(f'{VARIABLE}={wanted}: waits up to {_JOINING // 60} minutes for the others', file=sys.stderr)
    if by_hand:
      where = {'coordinator_address': by_hand[3], 'num_processes': int(by_hand[2]),
               'process_id': int(by_hand[1])}
    jax.distributed.initialize(
      **where, initialization_timeout=_JOINING, heartbeat_timeout_seconds=_HEARTBEAT,
      shutdown_timeout_seconds=_HEARTBEAT)
  except (ValueError, jax.errors.JaxRuntimeError) as error:
    said = str(error).strip().partition('\n')[0]
    raise InputError(f'{VARIABLE}={wanted}: {said} Is this started by the launcher?') from None
  if not first():
    sys.stdout = open(os.devnull, 'w', encoding='utf-8')  # until the process ends


def _check_free(wanted: str, port: int) -> None:
  """jax would crash where it cannot listen."""
  try:
    socket.create_server(('', port)).close()
  except (OSError, OverflowError) as error:
    raise InputError(f'{VARIABLE}={wanted}: port {port}: {error}; choose another, or end what holds '
                     'it') from None


def first() -> bool:
  """Whether this is the process that writes files other than checkpoints."""
  return jax.process_index() == 0


def wait(name: str) -> None:
  """Until every process has come to the place of this name."""
  if jax.process_count() > 1:  # by word of mouth: devices would give up after half a minute
    multihost.sync_global_processes(f'{name}_{next(_waits)}', timeout=_PREPARING)


def differ(content: bytes) -> bool:
  """Whether the processes hold different contents: the same answer on all."""
  mine = np.frombuffer(hashlib.sha256(content).digest(), np.int32)
  return jax.process_count() > 1 and bool((multihost_utils.process_allgather(mine) != mine).any())


def agreed(signum: int | None, step: int, now: bool = False) -> int | None:
  """The signal that has reached any of the processes: the same answer on all, at the same step.

  They ask each other at every tenth step, or `now`.
  """
  if jax.process_count() == 1:
    return signum
  if step % _EVERY and not now:
    return None
  return int(multihost_utils.process_allgather(np.int32(signum or 0)).max()) or None
