# SPDX-License-Identifier: Apache-2.0
"""What a flight leaves behind: only what came back over ROS."""

from dataclasses import dataclass, field

import numpy as np

from blabberseg_ros.demo.planner import Viewpoint
from blabberseg_ros.prompts import PromptSet

Position = tuple[float, float, float]


@dataclass(frozen=True)
class Answer:
    """One heatmap that was asked for.

    Attributes:
        time_s: when it arrived, since the start of the flight.
        position_m: where its image was taken: east, north, up.
        success: as answered.
        threshold: as answered.
        safe_fraction: share of the mask that is safe.
        round_trip_ms: from sending the request to receiving the mask.
    """

    time_s: float
    position_m: Position
    success: bool
    threshold: float
    safe_fraction: float
    round_trip_ms: float


@dataclass(frozen=True)
class Fix:
    """Where the vehicle was, and what it was doing.

    Attributes:
        time_s: since the start of the flight.
        position_m: east, north, up.
        phase: text of `lander.Phase`.
    """

    time_s: float
    position_m: Position
    phase: str


@dataclass(frozen=True)
class Moment:
    """One frame with everything that was said about it.

    Attributes:
        time_s: of the capture, since the start of the flight.
        view: where it was taken.
        rgb: uint8 [H, W, 3].
        probability: float32 [H, W].
        mask: uint8 [H, W], above 0 where safe.
        threshold: that made the mask.
        phase: text of `lander.Phase`.
    """

    time_s: float
    view: Viewpoint
    rgb: np.ndarray
    probability: np.ndarray
    mask: np.ndarray
    threshold: float
    phase: str


@dataclass(frozen=True)
class Diagnosis:
    """One message of the heatmap node on /diagnostics.

    Attributes:
        time_s: of its arrival, since the start of the flight.
        message: its sentence.
        values: its figures, by name.
    """

    time_s: float
    message: str
    values: dict[str, str]


@dataclass(frozen=True)
class Event:
    """Something worth a mark on a time axis or on the map.

    Attributes:
        time_s: since the start of the flight.
        kind: `prompts`, `replan`, `touchdown` or `failure`.
        text: one sentence.
        position_m: where the vehicle was.
    """

    time_s: float
    kind: str
    text: str
    position_m: Position


@dataclass(frozen=True)
class PromptChange:
    """The change of the prompts in flight.

    Attributes:
        before: the set until then.
        after: the set from then on.
        success: whether it was accepted.
        message: of the node.
        service_ms: from the call to its reply.
        encode_ms: of it, time spent on encoding text, as replied.
        first_mask_ms: from the call to the first mask made with the new set.
    """

    before: PromptSet
    after: PromptSet
    success: bool
    message: str
    service_ms: float
    encode_ms: float
    first_mask_ms: float | None = None


@dataclass
class Flight:
    """Everything recorded in one flight."""

    answers: list[Answer] = field(default_factory=list)
    track: list[Fix] = field(default_factory=list)
    moments: list[Moment] = field(default_factory=list)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    prompt_change: PromptChange | None = None
    prompts: PromptSet | None = None
    frames_received: int = 0
    requests_sent: int = 0
    requests_lost: int = 0
    duration_s: float = 0.0
    touchdown_m: Position | None = None
    problem: str = ''
    broken: bool = False
