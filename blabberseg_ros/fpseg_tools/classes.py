# SPDX-License-Identifier: Apache-2.0
"""What FPSeg learns to see: named classes, each a set of label ids of the data set."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from blabberseg_ros.errors import ParameterError


@dataclass(frozen=True)
class ClassList:
    """Classes in the order of their prompts.

    Classes may overlap: Cityscapes' categories are classes beside their members.

    Attributes:
        names: one text a class.
        label_ids: for each class the label ids that belong to it.
        ignored: label ids of pixels that no figure but the pooled IoU counts.
        exclusive: names of classes that do not overlap, among which a semantic map chooses.
    """

    names: tuple[str, ...]
    label_ids: tuple[tuple[int, ...], ...]
    ignored: tuple[int, ...] = ()
    exclusive: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check that the parts fit together.

        Raises:
            ParameterError: they do not.
        """
        if not self.names or len(set(self.names)) != len(self.names):
            raise ParameterError('a list of classes needs at least one name and each name once')
        ids = [*(number for group in self.label_ids for number in group), *self.ignored]
        if len(self.label_ids) != len(self.names) or not all(
                group for group in self.label_ids) or not all(0 <= number < 256 for number in ids):
            raise ParameterError('each class needs label ids from 0 to 255')
        strangers = set(self.exclusive) - set(self.names)
        if strangers:
            raise ParameterError(f'{", ".join(sorted(strangers))} is called exclusive but is no '
                                 f'class; the classes are {", ".join(self.names)}')
        taken = [number for name in self.exclusive for number in self.ids_of(name)]
        if len(set(taken)) != len(taken):
            raise ParameterError('exclusive classes share a label id; a semantic map cannot '
                                 'choose between them')

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.names)

    def ids_of(self, name: str) -> tuple[int, ...]:
        """Return the label ids of a class."""
        return self.label_ids[self.names.index(name)]

    def membership(self) -> np.ndarray:
        """Return whether a label id belongs to a class: bool [N, 256]."""
        table = np.zeros((len(self), 256), bool)
        for row, ids in zip(table, self.label_ids, strict=True):
            row[list(ids)] = True
        return table


def read_classes(path: Path | None) -> ClassList:
    """Read a list of classes, or return Cityscapes' with its categories.

    Args:
        path: YAML file with the keys `classes` (name to label ids), and optionally `ignored`
            (label ids) and `exclusive` (names; by default all); None for Cityscapes.

    Raises:
        ParameterError: the file cannot be read or makes no sense.
    """
    if path is None:
        return cityscapes_classes()
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        classes = {str(name): tuple(map(int, ids)) for name, ids in content['classes'].items()}
        ignored = tuple(map(int, content.get('ignored', ())))
        exclusive = tuple(map(str, content.get('exclusive', classes)))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError, ValueError,
            AttributeError) as error:
        raise ParameterError(
            f'{path} is not a list of classes ({error!r}); it needs a mapping `classes` from '
            'names to lists of label ids') from error
    return ClassList(tuple(classes), tuple(classes.values()), ignored, exclusive)


# Label id, class and category of Cityscapes, and whether its benchmark counts the class.
_CITYSCAPES = (
    (7, 'road', 'flat', True), (8, 'sidewalk', 'flat', True), (9, 'parking', 'flat', False),
    (10, 'rail track', 'flat', False), (11, 'building', 'construction', True),
    (12, 'wall', 'construction', True), (13, 'fence', 'construction', True),
    (14, 'guard rail', 'construction', False), (15, 'bridge', 'construction', False),
    (16, 'tunnel', 'construction', False), (17, 'pole', 'object', True),
    (18, 'polegroup', 'object', False), (19, 'traffic light', 'object', True),
    (20, 'traffic sign', 'object', True), (21, 'vegetation', 'nature', True),
    (22, 'terrain', 'nature', True), (23, 'sky', 'sky', True), (24, 'person', 'human', True),
    (25, 'rider', 'human', True), (26, 'car', 'vehicle', True), (27, 'truck', 'vehicle', True),
    (28, 'bus', 'vehicle', True), (29, 'caravan', 'vehicle', False),
    (30, 'trailer', 'vehicle', False), (31, 'train', 'vehicle', True),
    (32, 'motorcycle', 'vehicle', True), (33, 'bicycle', 'vehicle', True))


def cityscapes_classes() -> ClassList:
    """Return the 33 classes and categories of the published FPSeg weights, in their order.

    Each category stands after the first of its members.
    """
    members: dict[str, tuple[int, ...]] = {}
    for number, name, category, _ in _CITYSCAPES:
        members[name] = (number,)
        members[category] = tuple(row[0] for row in _CITYSCAPES if row[2] == category)
    return ClassList(tuple(members), tuple(members.values()), ignored=tuple(range(7)),
                     exclusive=tuple(row[1] for row in _CITYSCAPES if row[3]))
