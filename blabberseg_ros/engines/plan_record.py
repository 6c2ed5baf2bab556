# SPDX-License-Identifier: Apache-2.0
"""What a plan was built from and for: the key that it is found by, and the record beside it."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from blabberseg_ros.errors import EngineError

FORMAT = 1
# Instead of a GPU's name, for plans that are built without one.
NO_GPU = 'none'
_DIGEST_LENGTH = 16
# Seven parts and the suffix of a temporary file stay below the 255 bytes of a file name.
_SLUG_LENGTH = 28
_AMPERE = (8, 0)
_ABSENT = 'absent'


@dataclass(frozen=True)
class PlanKey:
    """Everything that decides what a plan is and where it runs.

    Attributes:
        bundle: name of the model.
        fingerprint: of its weights and tokenizer.
        stage: of the model.
        graph_sha256: of the stage's ONNX file.
        precision: of the graph or, for TensorRT 10, of the builder.
        profiles: for each optimisation profile, input name to smallest, best, largest shape.
        builder: `tensorrt` or `tensorrt_rtx`.
        builder_version: its version.
        gpu: name of the GPU, or NO_GPU.
        compute_capability: of the GPU, for example `8.7`.
        options: the builder's settings.
    """

    bundle: str
    fingerprint: str
    stage: str
    graph_sha256: str
    precision: str
    profiles: list[dict[str, list[list[int]]]]
    builder: str
    builder_version: str
    gpu: str
    compute_capability: str
    options: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the plan's name in the store, without suffix."""
        relaxed = _relaxed(self.options)
        decisive = {name: value for name, value in asdict(self).items() if name not in relaxed}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        parts = (self.bundle, self.stage, self.precision,
                 'any' if 'gpu' in relaxed else self.gpu, self.builder,
                 'any' if 'builder_version' in relaxed else self.builder_version,
                 digest[:_DIGEST_LENGTH])
        return '_'.join(_slug(part) for part in parts)

    def differences(self, found: 'PlanKey') -> list[str]:
        """Return in words why a plan with another key cannot be used for this one."""
        relaxed = _relaxed(self.options)
        reasons = []
        for name, wanted in _shallow(self).items():
            other = getattr(found, name)
            if other == wanted or name in relaxed:
                continue
            if name == 'profiles':
                reasons.append('it was built for other shapes')
            elif name == 'options':
                reasons += [f'its option {option} is {other.get(option, _ABSENT)}, not '
                            f'{wanted.get(option, _ABSENT)}'
                            for option in sorted({*wanted, *other})
                            if other.get(option, _ABSENT) != wanted.get(option, _ABSENT)]
            else:
                reasons.append(f'its {name} is {other}, not {wanted}')
        if 'builder_version' in relaxed and (
                _numbers(found.builder_version) > _numbers(self.builder_version)):
            reasons.append(f'it was built by {self.builder} {found.builder_version}, later than '
                           f'{self.builder_version}')
        if 'compute_capability' in relaxed and self.gpu != NO_GPU and (
                _numbers(self.compute_capability) < _AMPERE):
            reasons.append('it runs from compute capability 8.0 on, and this GPU has '
                           f'{self.compute_capability}')
        return reasons


@dataclass(frozen=True)
class PlanRecord:
    """What the store knows of a plan; the content of its JSON file.

    Attributes:
        key: what it was built from and for.
        sha256: of the plan.
        bytes: length of the plan.
        built_at: time of the build, UTC, ISO 8601.
        build_s: how long the build took, in seconds.
        parity: figures of the comparison with the reference, or None if there was none.
    """

    key: PlanKey
    sha256: str
    bytes: int
    built_at: str
    build_s: float
    parity: dict[str, float] | None = None

    def to_json(self) -> str:
        """Return the content of the record's file."""
        return json.dumps({'format': FORMAT, **asdict(self)}, indent=2) + '\n'


def read_record(text: bytes) -> PlanRecord:
    """Return what `PlanRecord.to_json` wrote.

    Raises:
        EngineError: it is damaged, or of another format.
    """
    try:
        content = json.loads(text)
        if content.pop('format') != FORMAT:
            raise EngineError('it is of another format')
        record = PlanRecord(**{**content, 'key': PlanKey(**content['key'])})
        _check_types(record)
        return record
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EngineError(f'it is damaged ({error})') from error


def _check_types(record: PlanRecord) -> None:
    key = record.key
    texts = [record.sha256, record.built_at,
             *(value for name, value in _shallow(key).items()
               if name not in ('profiles', 'options'))]
    if not (all(isinstance(text, str) for text in texts) and isinstance(key.options, dict)
            and isinstance(key.profiles, list) and isinstance(record.bytes, int)
            and isinstance(record.build_s, int | float)
            and isinstance(record.parity, dict | None)):
        raise TypeError('a field is of the wrong type')


def _shallow(key: PlanKey) -> dict[str, Any]:
    return {field.name: getattr(key, field.name) for field in fields(key)}


def _relaxed(options: Mapping[str, Any]) -> set[str]:
    """Return the fields of a key that do not matter for a plan that is built to be compatible."""
    relaxed = {'builder_version'} if options.get('version_compatible') else set()
    return relaxed | {'ampere_plus': {'gpu', 'compute_capability'},
                      'same_compute_capability': {'gpu'}}.get(
                          options.get('hardware_compatibility', 'none'), set())


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r'\d+', version))


def _slug(text: str) -> str:
    return re.sub(r'[^A-Za-z0-9.+-]+', '-', text).strip('.-')[:_SLUG_LENGTH] or 'none'
