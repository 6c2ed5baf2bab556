# SPDX-License-Identifier: Apache-2.0
"""Prompts to CLIP's token ids, exactly as open_clip does it.

The text is cleaned here, then split and merged by the bundle's `tokenizer.json`. CLIP's
tokenizer: byte-level BPE, lower case, a mark at each word's end (Radford et al., 2021).
"""

import gzip
import html
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
from tokenizers import Tokenizer as BpeTokenizer

from blabberseg_ros.atomic import write_text
from blabberseg_ros.errors import BundleError, PromptError

CONTEXT_LENGTH = 77
START_ID, END_ID = 49406, 49407
START, END = '<start_of_text>', '<end_of_text>'
_WORD_END = '</w>'
# Words as open_clip finds them, without its control strings, which are refused before. It ignores
# case, and a long s folds to an s.
_CONTRACTIONS = r"<\x{17f}tart_of_text>|'[s\x{17f}]|'t|'re|'ve|'m|'ll|'d"


def clean_text(text: str) -> str:
    """Return the text as CLIP wants it: repaired, unescaped, single spaces, lower case."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return ' '.join(text.split()).lower()


def words_of(cleaned: str) -> list[str]:
    """Return the words of a cleaned text, runs of letters or digits, in order."""
    return re.findall(r'[^\W_]+', cleaned)


@dataclass(frozen=True)
class Tokens:
    """A prompt as CLIP reads it.

    Attributes:
        ids: int32 [77]: start, text, end, then zeros.
        truncated_at: character of the cleaned text where it was cut, None if it was not.
        kept: the part of the cleaned text that CLIP reads.
    """

    ids: np.ndarray
    truncated_at: int | None
    kept: str


class Tokenizer:
    """CLIP's tokenizer, or a part of it (see `write_tokenizer_json`).

    Attributes:
        size: number of tokens.
        start_id, end_id: of the control tokens, always the last two.
    """

    def __init__(self, bpe: BpeTokenizer) -> None:
        """Wrap a loaded tokenizer; see `from_file`."""
        self._bpe = bpe
        self.size: int = bpe.get_vocab_size()
        self.start_id, self.end_id = self.size - 2, self.size - 1

    @classmethod
    def from_file(cls, path: str | Path) -> 'Tokenizer':
        """Read a bundle's `tokenizer.json`.

        Raises:
            BundleError: it is missing, damaged or not CLIP's.
        """
        try:
            bpe = BpeTokenizer.from_file(str(path))
        # The Rust library raises bare Exceptions.
        except Exception as error:
            raise BundleError(f'the tokenizer {path} cannot be read: {error}. Copy the bundle '
                              'again or import it again') from error
        size = bpe.get_vocab_size()
        if (bpe.token_to_id(START), bpe.token_to_id(END)) != (size - 2, size - 1):
            raise BundleError(f"{path} is not CLIP's tokenizer; import the bundle again")
        return cls(bpe)

    @property
    def ids(self) -> dict[str, int]:
        """Return the id of each token."""
        return self._bpe.get_vocab()

    def encode(self, text: str) -> Tokens:
        """Turn one prompt into token ids; one that is too long is cut and keeps its end token.

        Raises:
            PromptError: the prompt contains a control string.
        """
        cleaned = clean_text(text)
        for control in (START, END):
            if control in cleaned:
                raise PromptError(
                    f'the prompt {text!r} contains {control}, which CLIP reads as a control token '
                    'and not as words; remove it')
        encoding = self._bpe.encode(cleaned, add_special_tokens=False)
        body = encoding.ids
        room = CONTEXT_LENGTH - 2
        truncated_at = encoding.offsets[room][0] if len(body) > room else None
        ids = np.zeros(CONTEXT_LENGTH, np.int32)
        sentence = [self.start_id, *body[:room], self.end_id]
        ids[:len(sentence)] = sentence
        return Tokens(ids, truncated_at, cleaned[:truncated_at])


def vocabulary_texts(path: str | Path) -> tuple[str, ...]:
    """Return every different text that one token of a bundle's `tokenizer.json` stands for.

    Words, parts of words and signs, cleaned, in the order of their ids; bytes that are no text of
    their own are left out.

    Raises:
        BundleError: the file cannot be read.
    """
    try:
        vocabulary = json.loads(Path(path).read_text(encoding='utf-8'))['model']['vocab']
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f'the tokenizer {path} cannot be read: {error}. Copy the bundle again '
                          'or import it again') from error
    byte_of = dict(zip(_byte_alphabet(), _byte_order(), strict=True))
    texts: dict[str, None] = {}
    for token in sorted(vocabulary, key=vocabulary.get):
        if token in (START, END):
            continue
        data = bytes(byte_of[symbol] for symbol in token.removesuffix(_WORD_END))
        try:
            texts[clean_text(data.decode())] = None
        except UnicodeDecodeError:
            continue
    texts.pop('', None)
    return tuple(texts)


def write_tokenizer_json(merges_path: str | Path, path: str | Path,
                         texts: Iterable[str] | None = None) -> None:
    """Build a bundle's `tokenizer.json` from CLIP's merges file. Needs no network.

    Args:
        merges_path: `bpe_simple_vocab_16e6.txt.gz`, as open_clip installs it.
        path: file to write.
        texts: keep only the tokens that these need, in CLIP's order but numbered anew: they are
            split as CLIP splits them, and any other word into smaller pieces. None: all tokens.

    Raises:
        BundleError: the merges file is missing or is not CLIP's.
    """
    try:
        with gzip.open(merges_path, 'rt', encoding='utf-8') as stream:
            lines = stream.read().split('\n')
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BundleError(f'the merges file {merges_path} cannot be read: {error}. It comes with '
                          'open_clip_torch') from error
    alphabet = _byte_alphabet()
    symbols = alphabet + [symbol + _WORD_END for symbol in alphabet]
    # The first line is a comment; CLIP uses as many merges as its vocabulary has room for.
    merges = [tuple(line.split()) for line in lines[1:START_ID - len(symbols) + 1]]
    if len(merges) != START_ID - len(symbols) or any(len(pair) != 2 for pair in merges):
        raise BundleError(f"{merges_path} is not CLIP's merges file")
    content = _tokenizer_json(symbols, merges)
    if texts is not None:
        bpe = BpeTokenizer.from_str(json.dumps(content))
        used = {token for text in texts for token in bpe.encode(clean_text(text)).tokens}
        content = _tokenizer_json(symbols, _merges_of(used, merges))
    write_text(Path(path), json.dumps(content, ensure_ascii=False, separators=(',', ':')))


def _merges_of(used: set[str], merges: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the merges that lead to these tokens, in their order."""
    needed, kept = set(used), []
    for pair in reversed(merges):
        if ''.join(pair) in needed:
            needed.update(pair)
            kept.append(pair)
    return kept[::-1]


def _tokenizer_json(symbols: list[str], merges: list[tuple[str, ...]]) -> dict[str, Any]:
    """Return what the file says, from single symbols and the pairs that are merged in turn."""
    tokens = symbols + [''.join(pair) for pair in merges] + [START, END]
    return {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': [
            {'id': token_id, 'content': token, 'single_word': False, 'lstrip': False,
             'rstrip': False, 'normalized': False, 'special': True}
            for token_id, token in enumerate(tokens[-2:], len(tokens) - 2)],
        'normalizer': None,
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [
            {'type': 'Split', 'pattern': {'Regex': _word_pattern()}, 'behavior': 'Removed',
             'invert': True},
            {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False,
             'use_regex': False}]},
        'post_processor': None,
        'decoder': None,
        'model': {
            'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': '',
            'end_of_word_suffix': _WORD_END, 'fuse_unk': False, 'byte_fallback': False,
            'ignore_merges': False,
            'vocab': {token: token_id for token_id, token in enumerate(tokens)},
            'merges': [' '.join(pair) for pair in merges]},
    }


@lru_cache(maxsize=1)
def _word_pattern() -> str:
    """Return the pattern of a word with each class of characters spelt out as ranges.

    What counts as a letter depends on the Unicode version of the regex library and, with its
    ignored case, on its folding. Taken from the library that open_clip uses, and written down,
    the answer no longer depends on the one inside `tokenizers`.
    """
    import regex

    every = ''.join(map(chr, (*range(0xd800), *range(0xe000, sys.maxunicode + 1))))
    letters, numbers, others = (
        ''.join(f'\\x{{{ord(run[0]):x}}}-\\x{{{ord(run[-1]):x}}}'
                for block in regex.findall(f'{kind}+', every, regex.IGNORECASE)
                for run in _without_surrogates(block))
        for kind in (r'[\p{L}]', r'[\p{N}]', r'[^\s\p{L}\p{N}]'))
    return f'{_CONTRACTIONS}|[{letters}]+|[{numbers}]|[{others}]+'


def _without_surrogates(block: str) -> list[str]:
    """Split a run of consecutive code points where the surrogates would lie in it."""
    below = [character for character in block if character < '\ud800']
    return [run for run in (block[:len(below)], block[len(below):]) if run]


def _byte_alphabet() -> list[str]:
    """Return the character that stands for each byte, in the order of CLIP's vocabulary.

    Printable bytes of Latin-1 stand for themselves, the others for code points from 256 on.
    """
    printable = _printable_bytes()
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(others)]


def _byte_order() -> list[int]:
    """Return the bytes in the order of CLIP's vocabulary: printable ones of Latin-1 first."""
    printable = _printable_bytes()
    return printable + sorted(set(range(256)) - set(printable))


def _printable_bytes() -> list[int]:
    return [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1),
            *range(ord('®'), ord('ÿ') + 1)]
