# SPDX-License-Identifier: Apache-2.0
"""What is measured: jobs, each for one engine in a process of its own."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from blabberseg_ros.bench.timing import Limits
from blabberseg_ros.prompts import PromptSet, default_prompts

OURS, DOVESEI, ORIGINAL, BATCHED = 'ours', 'dovesei', 'blabberseg-original', 'batched'
SIZES_PX = ((640, 480), (352, 352))
# Not one: a set holds both kinds, and the softmax over one prompt is 1 whatever the network says.
PROMPT_COUNTS = (2, 3, 13, 64)
MAIN_PROMPTS, MAIN_SIZE_PX = 13, SIZES_PX[0]
_WORDS = ('grass', 'gravel', 'sand', 'meadow', 'lawn', 'soil', 'roof', 'wall', 'fence', 'tree',
          'hedge', 'pond', 'river', 'canal', 'road', 'rail', 'bridge', 'car', 'truck', 'crane')


@dataclass(frozen=True)
class Case:
    """Number of prompts, and width and height of the frame in pixels."""

    prompts: int
    size_px: tuple[int, int]


@dataclass(frozen=True)
class Job:
    """One engine or baseline on one model.

    Attributes:
        contestant: OURS, DOVESEI, ORIGINAL or BATCHED.
        bundle: folder of the model.
        engine: name of an engine of ours; empty for baselines.
        precision: of the image path.
        device: `cpu` or `cuda`, for baselines.
        cases: what to measure, in this order.
        seconds: that one scenario may take.
        repeats: most repetitions of one scenario.
        folder: where answers are left to be compared.
        cache: folder of the prompt cache and of what torch compiles; empty for baselines.
        started_at: wall clock when the process was started, in seconds.
        start_only: measure no more than the start.
        batch: frames at once, for BATCHED.
    """

    contestant: str
    bundle: str
    engine: str
    precision: str
    device: str
    cases: tuple[Case, ...]
    seconds: float
    repeats: int
    folder: str
    cache: str = ''
    started_at: float = 0.0
    start_only: bool = False
    batch: int = 64

    @property
    def limits(self) -> Limits:
        """Return how often and how long one scenario is measured."""
        return Limits(self.repeats, self.seconds)

    @property
    def label(self) -> str:
        """Return what rows call it."""
        return self.engine if self.contestant in (OURS, BATCHED) else self.contestant

    def to_json(self) -> str:
        """Return the job for a child process."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> 'Job':
        """Return what `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        cases = tuple(Case(case['prompts'], tuple(case['size_px']))
                      for case in values.pop('cases'))
        return cls(**values, cases=cases)


def prompt_sets(count: int) -> tuple[PromptSet, PromptSet]:
    """Return two sets of the same number of prompts with no text in common.

    Thirteen are DOVESEI's; its words in other counts are ours.
    """
    if count == MAIN_PROMPTS:
        first = default_prompts()
        return first, PromptSet(first.positive, first.negative, 'a photo of {} from above')
    positives = max(count // 4, 1)
    words = [f'{_WORDS[index % len(_WORDS)]} {index // len(_WORDS) or ""}'.strip()
             for index in range(count)]
    return (PromptSet(tuple(words[:positives]), tuple(words[positives:]), 'aerial view of {}'),
            PromptSet(tuple(words[:positives]), tuple(words[positives:]), 'drone photo of {}'))


def unseen_prompts(count: int, number: int) -> PromptSet:
    """Return a set that differs in every text from all others of this function."""
    base = prompt_sets(count)[0]
    return PromptSet(base.positive, base.negative, f'aerial view number {number} of {{}}')
