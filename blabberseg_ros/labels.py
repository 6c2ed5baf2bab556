# SPDX-License-Identifier: Apache-2.0
"""Prompts for models with a fixed list of labels: which labels a text stands for.

A text is compared as a whole, then each of its parts between commas, with the labels and with the
aliases: 'meadow, paved path' may stand for grass by an alias and for paved path by its name. Upper
and lower case, hyphens and a plural s make no difference.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from blabberseg_ros.errors import BundleError

Aliases = Mapping[str, tuple[str, ...]]
_SEPARATORS = re.compile(r'[\s_\-/]+')


@dataclass(frozen=True)
class LabelMatch:
    """What a text stands for.

    Attributes:
        text: as it was given.
        labels: indices of the labels, ascending; empty if it stands for none.
        known: parts of the text that stand for a label.
        unknown: parts that do not.
    """

    text: str
    labels: tuple[int, ...]
    known: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def rest(self) -> str:
        """Return what of the text stands for no label; an empty text if all of it does."""
        return ', '.join(self.unknown) if self.labels or self.unknown else self.text


class LabelMatcher:
    """The labels of a model and the other words for them."""

    def __init__(self, labels: Sequence[str], aliases: Aliases | None = None) -> None:
        """Index the words.

        Raises:
            BundleError: an alias stands for something that is no label.
        """
        self.labels = tuple(labels)
        self._meanings: dict[str, set[int]] = {}
        for index, label in enumerate(self.labels):
            self._meanings.setdefault(plain(label), set()).add(index)
        exact = frozenset(self._meanings)
        for word, names in (aliases or {}).items():
            unknown = sorted({name for name in names if plain(name) not in exact})
            if unknown:
                raise BundleError(
                    f'the alias {word!r} stands for {", ".join(unknown)}, which the model does '
                    f'not have; its labels are {", ".join(self.labels)}')
            if plain(word) not in exact:
                self._meanings[plain(word)] = {
                    index for name in names for index in self._meanings[plain(name)]}

    def match(self, text: str) -> LabelMatch:
        """Return the labels that a text, or any part of it between commas, stands for."""
        parts = [text] if plain(text) in self._meanings else [
            part.strip() for part in text.split(',') if part.strip()]
        known = tuple(part for part in parts if plain(part) in self._meanings)
        found = {index for part in known for index in self._meanings[plain(part)]}
        return LabelMatch(text, tuple(sorted(found)), known,
                          tuple(part for part in parts if part not in known))

    def is_plain(self, match: LabelMatch) -> bool:
        """Return whether a match needs no explanation: every part is a label's own name."""
        named = {plain(self.labels[index]) for index in match.labels}
        return not match.unknown and {plain(part) for part in match.known} == named


def plain(text: str) -> str:
    """Return a text in the form that is compared: lower case, single spaces, no plural s."""
    words = _SEPARATORS.sub(' ', text.strip().casefold()).split(' ')
    return ' '.join(word[:-1] if len(word) > 3 and word.endswith('s') and not word.endswith('ss')
                    else word for word in words)


def read_aliases(path: Path) -> dict[str, tuple[str, ...]]:
    """Read a YAML file of aliases: a word, and the label or the labels that it stands for.

    Raises:
        BundleError: missing or not such a file.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BundleError(f'the aliases {path} cannot be read: {error}') from error
    aliases = {}
    for word, names in (content.items() if isinstance(content, dict) else [(None, None)]):
        names = [names] if isinstance(names, str) else names
        if not isinstance(word, str) or not isinstance(names, list) or not names or not all(
                isinstance(name, str) for name in names):
            raise BundleError(f'{path} is not a file of aliases; each line gives a word and the '
                              'labels that it stands for, such as `meadow: [grass, field]`')
        aliases[word] = tuple(names)
    return aliases
