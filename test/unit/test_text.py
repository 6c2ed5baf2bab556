# SPDX-License-Identifier: Apache-2.0
"""Text cleaning and tokens, against open_clip's own tokenizer."""

import gzip
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip import tokenizer as open_clip_tokenizer

from blabberseg_ros.errors import BundleError, PromptError
from blabberseg_ros.prompts import default_prompts
from blabberseg_ros.text import (
    CONTEXT_LENGTH,
    END,
    END_ID,
    START,
    START_ID,
    Tokenizer,
    clean_text,
    words_of,
    write_tokenizer_json,
)

PIECES = [
    'grass', 'Lawn', 'PARKING lot', "it's", "don't", "we'll", "I'D", "they're", "'s", "''ve", "'ſ",
    'naïve', 'façade', 'Straße', 'ŁÓDŹ', 'Ωμέγα', 'ὈΔΥΣΣΕΎΣ', 'Привет', 'שלום', 'مرحبا', 'नमस्ते',
    '草地', '屋根', '잔디', 'ไทย', '🌳', '👩‍👩‍👧‍👦', '🏳️‍🌈', '🇫🇷', 'e\u0301', 'a\u0300\u0323',
    '\u0345',
    'İstanbul', 'ﬁeld', 'ﬆone', '&amp;', '&amp;amp;', '&lt;b&gt;', '&#8217;', '&#xfb06;', '&nbsp;',
    '&notanentity;', 'â€™', 'Ã©', '…', '—', '“roof”', '½', '²', 'Ⅷ', '٣', '१२', '10', '3.14',
    '1,000', '0x1F', 'C++', 'a_b', '__', '#tag', '@me', 'www.x.org/?a=b&c=d', '<tag>',
    '<|startoftext|>', '<ſtart_of_text>', '<start_of', 'text>', '\t', '\n', '\r\n', '\x0b', '\x0c',
    '\x1c', '\x1f', '\x85', '\xa0', '\u2003', '\u2028', '\u3000', '\u200b', '\u200d', '\ufeff',
    '\u202e', '\x00', '\x07', '\x7f', '\x9f', '\ufffd', '\ufffe', '\ue000', '\U000e0041',
    '\U0010ffff', 'x' * 40, 'ab' * 30, '!' * 30, 'supercalifragilistic', "o'clock", "rock'n'roll",
    '/', '\\', '"', '`', '{}', ';', '|',
]


@pytest.fixture(scope='session')
def tokenizer_json(tmp_path_factory):
    path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
    write_tokenizer_json(open_clip_tokenizer.default_bpe(), path)
    return path


@pytest.fixture(scope='session')
def tokenizer(tokenizer_json):
    return Tokenizer.from_file(tokenizer_json)


@pytest.fixture(scope='session')
def reference():
    return open_clip_tokenizer.SimpleTokenizer()


def assert_same(tokenizer, reference, text):
    cleaned = open_clip_tokenizer.get_clean_fn('lower')(text)
    assert clean_text(text) == cleaned
    if START in cleaned or END in cleaned:
        with pytest.raises(PromptError, match='control token'):
            tokenizer.encode(text)
        return
    tokens = tokenizer.encode(text)
    np.testing.assert_array_equal(tokens.ids, reference(text)[0].numpy(), err_msg=repr(text))
    assert tokens.ids.dtype == np.int32
    whole = len(reference.encode(text)) <= CONTEXT_LENGTH - 2
    assert (tokens.truncated_at is None) == whole
    assert cleaned.startswith(tokens.kept)
    assert (tokens.kept == cleaned) == whole


def test_default_prompts_get_the_ids_of_open_clip(tokenizer, reference):
    for text in default_prompts().texts:
        assert_same(tokenizer, reference, text)


def test_3000_varied_strings_get_the_ids_of_open_clip(tokenizer, reference):
    draw = random.Random(20240601)
    for _ in range(3000):
        pieces = draw.choices(PIECES, k=draw.choice((1, 2, 3, 5, 8, 13, 40)))
        text = ''.join(piece + draw.choice(('', '', ' ', '  ')) for piece in pieces)
        assert_same(tokenizer, reference, text)


def test_every_character_is_split_as_in_open_clip(tokenizer, reference):
    """Between a letter, a digit and a sign, whatever Unicode version the libraries know."""
    # The planes in between hold no characters.
    points = (*range(0xd800), *range(0xe000, 0x40000), *range(0xe0000, 0xe0200), 0x10ffff)
    text = ' '.join(f'a{chr(point)}1{chr(point)}!' for point in points)
    expected = [match.span() for match in reference.pat.finditer(text)]
    words = tokenizer._bpe.pre_tokenizer.pre_tokenize_str(text)
    different = {text[start:end] for start, end in
                 {span for _, span in words} ^ set(expected)}
    assert not different


@settings(max_examples=600, deadline=None)
@given(st.text(st.characters(exclude_categories=['Cs']), max_size=200))
def test_any_text_gets_the_ids_of_open_clip(tokenizer, reference, text):
    assert_same(tokenizer, reference, text)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=60).map(''.join))
def test_any_mixture_gets_the_ids_of_open_clip(tokenizer, reference, text):
    assert_same(tokenizer, reference, text)


def test_a_very_long_text_is_cut_and_keeps_its_end(tokenizer, reference):
    text = 'Lawn and gravel, ' * 500
    tokens = tokenizer.encode(text)
    np.testing.assert_array_equal(tokens.ids, reference(text)[0].numpy())
    assert tokens.ids[-1] == END_ID
    assert tokens.truncated_at == len(tokens.kept)
    assert tokens.kept == 'lawn and gravel, ' * 18 + 'lawn and gravel'


def test_a_text_of_exactly_75_tokens_is_not_cut(tokenizer):
    assert tokenizer.encode('grass ' * 75).truncated_at is None
    cut = tokenizer.encode('grass ' * 76)
    assert cut.truncated_at == 75 * len('grass ')
    assert cut.ids[76] == END_ID


def test_an_empty_text_is_start_and_end(tokenizer):
    ids = tokenizer.encode(' \n').ids
    assert ids[:3].tolist() == [START_ID, END_ID, 0]


@pytest.mark.parametrize('text', [
    START, END, 'a <START_OF_TEXT> b', 'x<End_Of_Text>', '&lt;end_of_text&gt;',
    '&amp;lt;start_of_text&amp;gt;', '!!<start_of_text>'])
def test_control_strings_are_refused_by_name(tokenizer, text):
    with pytest.raises(PromptError, match=r'<(start|end)_of_text>'):
        tokenizer.encode(text)


def test_other_control_like_strings_are_words(tokenizer, reference):
    for text in ('<|startoftext|>', '<|endoftext|>', '<pad>', 'start_of_text'):
        assert_same(tokenizer, reference, text)
        assert (tokenizer.encode(text).ids[1:] == START_ID).sum() == 0


def test_words_of_a_cleaned_text():
    assert words_of("dead-grass, it's a_lawn 2") == ['dead', 'grass', 'it', 's', 'a', 'lawn', '2']


def test_a_damaged_tokenizer_is_refused(tmp_path, tokenizer_json):
    damaged = tmp_path / 'tokenizer.json'
    damaged.write_text(tokenizer_json.read_text(encoding='utf-8')[:10000], encoding='utf-8')
    with pytest.raises(BundleError, match='cannot be read'):
        Tokenizer.from_file(damaged)
    with pytest.raises(BundleError, match='cannot be read'):
        Tokenizer.from_file(tmp_path / 'absent.json')


def test_another_tokenizer_is_refused(tmp_path, tokenizer_json):
    other = tmp_path / 'tokenizer.json'
    content = tokenizer_json.read_text(encoding='utf-8')
    other.write_text(content.replace('_of_text>', '_of_speech>'), encoding='utf-8')
    with pytest.raises(BundleError, match="not CLIP's"):
        Tokenizer.from_file(other)


def test_a_wrong_merges_file_is_refused(tmp_path):
    path = tmp_path / 'merges.txt.gz'
    with pytest.raises(BundleError, match='cannot be read'):
        write_tokenizer_json(path, tmp_path / 'tokenizer.json')
    with gzip.open(path, 'wt', encoding='utf-8') as stream:
        stream.write('#version\na b\n')
    with pytest.raises(BundleError, match="not CLIP's"):
        write_tokenizer_json(path, tmp_path / 'tokenizer.json')
    assert not (tmp_path / 'tokenizer.json').exists()
