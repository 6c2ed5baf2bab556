# SPDX-License-Identifier: Apache-2.0
"""Which labels a text stands for."""

import pytest

from blabberseg_ros.errors import BundleError
from blabberseg_ros.labels import LabelMatcher, plain, read_aliases
from blabberseg_ros.prompts import DEFAULT_NEGATIVE, DEFAULT_POSITIVE
from blabberseg_ros.sim.classes import CLASSES, SAFE

LABELS = ('flat-road', 'flat-sidewalk', 'nature-vegetation', 'sky', 'grass', 'rail track')


@pytest.fixture
def matcher():
    return LabelMatcher(LABELS, {'lawn': ('grass',), 'ground': ('flat-road', 'flat-sidewalk'),
                                 'sky': ('grass',)})


@pytest.mark.parametrize(('text', 'labels'), [
    ('grass', (4,)), ('Grass', (4,)), (' grass ', (4,)), ('flat road', (0,)), ('flat_road', (0,)),
    ('FLAT-ROADS', (0,)), ('rail tracks', (5,)), ('lawn', (4,)), ('ground', (0, 1)),
    ('grass, sky', (3, 4)), ('moss, lawn, sky', (3, 4)), ('glass', ()), ('gras', ()), ('', ()),
    (',,', ()), ('road', ())])
def test_matches(matcher, text, labels):
    assert matcher.match(text).labels == labels


def test_a_label_is_never_renamed_by_an_alias(matcher):
    assert matcher.match('sky').labels == (3,)


def test_what_is_known_and_what_is_not(matcher):
    match = matcher.match('moss, lawn, sky')
    assert (match.known, match.unknown) == (('lawn', 'sky'), ('moss',))
    assert [matcher.match(text).rest for text in ('moss, lawn, bog', 'lawn', 'moss', ',,')] == [
        'moss, bog', '', 'moss', ',,']
    assert not matcher.is_plain(match)
    assert matcher.is_plain(matcher.match('sky, grass'))
    assert not matcher.is_plain(matcher.match('lawn'))


def test_labels_with_commas_are_matched_as_a_whole():
    assert LabelMatcher(('door, double door', 'wall')).match('door, double door').labels == (0,)


def test_an_alias_for_no_label_is_refused():
    with pytest.raises(BundleError, match=r"'meadow' stands for field, which the model does not"):
        LabelMatcher(('grass', 'sky'), {'meadow': ('field',)})


@pytest.mark.parametrize(('text', 'expected'), [
    ('Trees', 'tree'), ('glass', 'glass'), ('bus', 'bus'), ('a  b-c_d/e', 'a b c d e')])
def test_plain_form(text, expected):
    assert plain(text) == expected


def test_aliases_of_the_demonstration_know_every_word_of_doveseis_prompts(root_dir):
    matcher = LabelMatcher(tuple(CLASSES.values()),
                           read_aliases(root_dir / 'config' / 'aliases_demo.yaml'))
    ids = tuple(CLASSES)
    for prompts, wanted in ((DEFAULT_POSITIVE, True), (DEFAULT_NEGATIVE, False)):
        for prompt in prompts:
            match = matcher.match(prompt)
            assert match.labels
            assert not match.unknown, prompt
            assert all((ids[index] in SAFE) is wanted for index in match.labels), prompt


def test_alias_files(tmp_path):
    path = tmp_path / 'aliases.yaml'
    path.write_text('meadow: [grass, field]\nlawn: grass\n')
    assert read_aliases(path) == {'meadow': ('grass', 'field'), 'lawn': ('grass',)}


@pytest.mark.parametrize('text', ['', 'just words', '[a, b]', 'lawn: 5', 'lawn: []', 'lawn: [1]',
                                  '5: grass', 'a: {b: c}', '\tx: [', 'lawn:'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / 'aliases.yaml'
    path.write_text(text)
    with pytest.raises(BundleError, match='aliases'):
        read_aliases(path)
    with pytest.raises(BundleError, match='cannot be read'):
        read_aliases(tmp_path / 'absent.yaml')
