"""From tokens back to a text that reads like one: the marks of the rules undone, punctuation closed up."""

import re
from collections.abc import Iterable, Iterator

from jaxfast.data.text.rules import BOS, EOS, FLD, MAJ, PAD, REP, UNK, UP, WREP

SPACE = "▁"
"""Stands for a space within a token (fastai's `replace_space`, SentencePiece)."""

LONGEST = 1000
"""A repetition beyond it, which a model may well write, stays as it is written."""

_TO_THE_LEFT = re.compile(r"[.,;:!?%)\]}…]+|['’](?:s|d|m|re|ve|ll)?|n['’]t", re.IGNORECASE)
_TO_THE_RIGHT = frozenset("([{$£€#")
_TO_BOTH = frozenset("-/\\")


def undo_rules(tokens: Iterable[str]) -> Iterator[str]:
    """The words that marked tokens stand for: capitals set, repetitions written out, xxbos, xxeos and xxpad left out.

    A field begins on a new line; a mark without what belongs to it is left out.

    >>> list(undo_rules("xxbos xxmaj a xxrep 3 ! xxup ok xxwrep 2 so".split()))
    ['A', '!!!', 'OK', 'so', 'so']
    """
    tokens = iter(tokens)
    for token in tokens:
        if token in (BOS, EOS, PAD):
            continue
        if token in (MAJ, UP):
            word = next(tokens, "")
            yield word if word == UNK else word.upper() if token == UP else word[:1].upper() + word[1:]
        elif token == FLD:
            next(tokens, "")
            yield "\n"
        elif token in (REP, WREP):
            count, what = next(tokens, ""), next(tokens, "")
            if not (count.isdecimal() and len(count) < 5 and int(count) <= LONGEST):
                yield from (count, what)
            elif token == REP:
                yield what * int(count)
            else:
                yield from [what] * int(count)
        else:
            yield token


def join_words(words: Iterable[str]) -> str:
    """Words with spaces between them, but none before a comma, after a bracket, within "don't" and "well-known".

    >>> join_words(["He", "'s", '"', "well", "-", "read", '"', "(", "ca", "n't", "be", ")", "."])
    'He\\'s "well-read" (can\\'t be).'
    """
    parts, close, quoted = [], True, False
    for word in words:
        if "\n" in word:
            parts.append(word.replace(SPACE, " "))
            close = True
            continue
        quoted ^= word == '"'
        left = word in _TO_BOTH or (word == '"' and not quoted) or _TO_THE_LEFT.fullmatch(word)
        parts.append(word if close or left else f" {word}")
        close = word in _TO_BOTH or word in _TO_THE_RIGHT or (word == '"' and quoted)
    return "".join(parts).strip()
