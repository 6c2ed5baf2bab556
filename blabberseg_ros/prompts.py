# SPDX-License-Identifier: Apache-2.0
"""What to look for: the positive and negative prompts and the template around them."""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blabberseg_ros.errors import PromptError

MAX_PROMPTS = 256
MAX_PROMPT_CHARACTERS = 10_000
SEPARATOR = ';'
PLACEHOLDER = '{}'
# Typed in a prompt, these become CLIP's real control tokens and cut the sentence there.
CONTROL_STRINGS = ('<start_of_text>', '<end_of_text>')

DEFAULT_TEMPLATE = (
    'aerial view, drone footage photo of {}, shade, shadows, low resolution')
DEFAULT_NEGATIVE = (
    'building, house, apartment-building, warehouse, shed, garage',
    'roof, rooftop, terrace, shelter, dome, canopy, ceiling',
    'tree, bare tree, tree during autumn, bush, tall-plant',
    'water, lake, river, swimming pool',
    'people, crowd',
    'vehicle, car, train',
    'lamp-post, transmission-line',
    'fence, wall, hedgerow',
    'road, street, avenue, highway, drive, lane',
    'stairs, steps, footsteps',
)
DEFAULT_POSITIVE = (
    'grass, dead grass, backyard, frontyard, courtyard, lawn',
    'sports-field, park, open-area, open-space, agricultural land',
    'parking lot, sidewalk, gravel, dirt, sand, concrete floor, asphalt',
)


@dataclass(frozen=True)
class PromptSet:
    """Positive (safe) and negative (unsafe) prompts, and the sentence that they are put into.

    Attributes:
        positive: texts of what is safe to land on, at least one.
        negative: texts of what is not, at least one.
        template: sentence with one literal `{}` that each prompt replaces. Nothing else in it is
            formatted: a template is data, not code.

    Raises:
        PromptError: on construction, when the set cannot be used; the message says why.
    """

    positive: tuple[str, ...]
    negative: tuple[str, ...]
    template: str = PLACEHOLDER

    def __post_init__(self) -> None:
        """Refuse a set that would give a meaningless heatmap."""
        check_template(self.template)
        for kind, prompts in (('positive', self.positive), ('negative', self.negative)):
            if not any(prompt.strip() for prompt in prompts):
                raise PromptError(
                    f'there is no {kind} prompt; a heatmap compares what is safe with what is '
                    f'not, so give at least one {kind} prompt')
            for prompt in prompts:
                _check_prompt(kind, prompt)
        if len(self) > MAX_PROMPTS:
            raise PromptError(
                f'{len(self)} prompts were given; at most {MAX_PROMPTS} are taken. '
                'Join related words into one prompt with commas')

    def __len__(self) -> int:
        """Return the number of prompts of both kinds."""
        return len(self.negative) + len(self.positive)

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the filled-in sentences, negatives first (DOVESEI's order)."""
        return tuple(self.template.replace(PLACEHOLDER, prompt)
                     for prompt in self.negative + self.positive)

    @property
    def bare_texts(self) -> tuple[str, ...]:
        """Return the prompts in the order of `texts`, without the sentence around them."""
        return self.negative + self.positive

    @property
    def is_positive(self) -> tuple[bool, ...]:
        """Return for each of `texts` whether it stands for safe ground."""
        return (False,) * len(self.negative) + (True,) * len(self.positive)

    @classmethod
    def from_wire(cls, positive: str, negative: str, template: str) -> 'PromptSet':
        """Make a set from DOVESEI's request fields.

        Args:
            positive: prompts separated by `;`; blank items are dropped.
            negative: likewise.
            template: sentence with one `{}`.

        Raises:
            PromptError: as for the constructor.
        """
        return cls(_split(positive), _split(negative), template)

    @classmethod
    def from_yaml(cls, path: str | Path) -> 'PromptSet':
        """Read a set from a YAML file with the keys `positive`, `negative` and `template`.

        Raises:
            PromptError: the file is missing or is not such a file, or as for the constructor.
        """
        import yaml

        path = Path(path).expanduser()
        try:
            content = yaml.safe_load(path.read_text(encoding='utf-8'))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise PromptError(f'the prompts file {path} cannot be read: {error}') from error
        expected = {'positive', 'negative', 'template'}
        if not isinstance(content, dict) or not expected >= set(content):
            raise PromptError(
                f'{path} is not a prompts file; it takes the keys positive and negative (lists of '
                'texts) and template (a sentence with {}), no others')
        template = content.get('template', PLACEHOLDER)
        if not isinstance(template, str):
            raise PromptError(f'{path}: template must be a text with {{}} in it')
        return cls(_texts_of(path, content, 'positive'), _texts_of(path, content, 'negative'),
                   template)


def default_prompts() -> PromptSet:
    """Return DOVESEI's ten negative and three positive prompts for aerial views."""
    return PromptSet(DEFAULT_POSITIVE, DEFAULT_NEGATIVE, DEFAULT_TEMPLATE)


def check_template(template: str) -> None:
    """Refuse a template that does not hold exactly one `{}`.

    Without it all prompts would be equal, and every pixel would get the same probability.

    Raises:
        PromptError: naming what is wrong.
    """
    count = template.count(PLACEHOLDER)
    if count != 1:
        raise PromptError(
            f'the template {_shorten(template)!r} holds {count} times {{}}; it needs exactly one, '
            f'where each prompt is put, for example {DEFAULT_TEMPLATE!r}')
    _check_text('the template', template)


def _check_prompt(kind: str, prompt: str) -> None:
    if not prompt.strip():
        raise PromptError(f'a {kind} prompt is blank; remove it or write what to look for')
    _check_text(f'the {kind} prompt', prompt)


def _check_text(what: str, text: str) -> None:
    if len(text) > MAX_PROMPT_CHARACTERS:
        raise PromptError(
            f'{what} {_shorten(text)!r} is {len(text)} characters long; CLIP reads about 300, and '
            f'more than {MAX_PROMPT_CHARACTERS} are refused')
    # The text cleaning unescapes HTML twice, so an escaped control string is one as well.
    plain = html.unescape(html.unescape(text)).lower()
    for control in CONTROL_STRINGS:
        if control in plain:
            raise PromptError(
                f'{what} {_shorten(text)!r} contains {control}, which CLIP reads as a control '
                'token and not as words; remove it')


def _split(wire: str) -> tuple[str, ...]:
    return tuple(item for item in wire.split(SEPARATOR) if item.strip())


def _texts_of(path: Path, content: dict[str, Any], key: str) -> tuple[str, ...]:
    values = content.get(key)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise PromptError(f'{path}: {key} must be a list of texts')
    return tuple(values)


def _shorten(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[:limit - 1] + '…'
