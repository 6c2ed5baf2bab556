# SPDX-License-Identifier: Apache-2.0
"""A training run on disk: state to go on from, and a log that fits it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blabberseg_ros.atomic import write_atomically, write_text
from blabberseg_ros.errors import ParameterError

STATE = 'state.safetensors'
LOG = 'log.jsonl'
_FORMAT = 'fpseg-run/1'


@dataclass(frozen=True)
class Position:
    """How far a run is.

    Attributes:
        step: updates done.
        best: best figure so far, or None before the first test.
        best_step: updates done when it was reached.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0


def save_state(folder: Path, position: Position, what: Mapping[str, Any],
               tensors: Mapping[str, Tensor], optimiser: torch.optim.Optimizer) -> None:
    """Write all that the next step depends on, atomically.

    Args:
        folder: of the run.
        position: how far it is.
        what: settings that decide the result; a run goes on only with the same ones.
        tensors: that training changes, by name.
        optimiser: its moments are kept.
    """
    content = {f'network.{name}': value for name, value in tensors.items()}
    for index, moments in optimiser.state_dict()['state'].items():
        content.update({f'optimiser.{index}.{name}': value for name, value in moments.items()})
    # Copies: some weights share memory, which the format refuses.
    copies = {name: value.detach().cpu().clone() for name, value in content.items()}
    metadata = {'format': _FORMAT, 'what': json.dumps(what, sort_keys=True),
                'position': json.dumps(vars(position))}
    write_atomically(folder / STATE, lambda path: save_file(copies, path, metadata))


def load_state(folder: Path, what: Mapping[str, Any], tensors: Mapping[str, Tensor],
               optimiser: torch.optim.Optimizer) -> Position:
    """Take up a run where it stopped; a folder without a run starts one.

    Args:
        folder: of the run.
        what: see `save_state`.
        tensors: filled in place.
        optimiser: its moments are replaced.

    Raises:
        ParameterError: the state is damaged, or of a run with other settings.
    """
    path = folder / STATE
    if not path.exists():
        return Position()
    try:
        with safe_open(path, 'pt') as stream:
            metadata = stream.metadata() or {}
            if metadata.get('format') != _FORMAT:
                raise ValueError('it is no state of a run')
            _check_same(json.loads(metadata['what']), what, folder)
            position = Position(**json.loads(metadata['position']))
            content = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        with torch.no_grad():
            for name, value in tensors.items():
                value.copy_(content[f'network.{name}'])
        optimiser.load_state_dict({**optimiser.state_dict(), 'state': _moments(content)})
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ParameterError(f'{path} is damaged ({error}); delete {folder} to start anew') \
            from error
    return position


def _moments(content: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in content.items():
        if name.startswith('optimiser.'):
            _, index, key = name.split('.')
            moments.setdefault(int(index), {})[key] = value
    return moments


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    # Through JSON, where tuples are lists.
    now = json.loads(json.dumps(now))
    different = [f'{name} was {before.get(name)!r} and is {now.get(name)!r}'
                 for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    if different:
        raise ParameterError(f'{folder} holds a run with other settings: {"; ".join(different)}. '
                             'Give another folder by --set out=FOLDER, or the same settings')


class RunLog:
    """One JSON object a line: training and test records, each with its step."""

    def __init__(self, folder: Path, step: int) -> None:
        """Open the log of a run that is at `step`; what a killed run logged beyond is dropped."""
        self._path = folder / LOG
        kept = [line for line in self._lines() if json.loads(line)['step'] <= step]
        write_text(self._path, ''.join(f'{line}\n' for line in kept if step))

    def add(self, step: int, record: Mapping[str, Any]) -> None:
        """Append a record."""
        with open(self._path, 'a', encoding='utf-8') as stream:
            stream.write(json.dumps({'step': step, **record}) + '\n')

    def _lines(self) -> list[str]:
        """Return the whole lines; the last one may have been cut by a kill."""
        if not self._path.is_file():
            return []
        text = self._path.read_text(encoding='utf-8')
        return text[:text.rfind('\n') + 1].splitlines()
