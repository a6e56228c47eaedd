"""What a text goes through before it is cut into words: fastai's rules (`fastai.text.core`), in their order.

Each rule takes a string and returns one. They move what a vocabulary should not be spent on (capitals, repetitions)
into tokens of their own.
"""

import html
import re
from collections.abc import Sequence

SPECIAL = ("xxunk", "xxpad", "xxbos", "xxeos", "xxfld", "xxrep", "xxwrep", "xxup", "xxmaj")
"""Special tokens in the order of their ids, which every vocabulary begins with: unknown, padding, beginning and end
of a text, field, repeated character, repeated word, next word in capitals, next word with a capital."""
UNK, PAD, BOS, EOS, FLD, REP, WREP, UP, MAJ = SPECIAL
PAD_ID = SPECIAL.index(PAD)

# One after the other: later pairs see what earlier ones made.
_MARKUP = (
    ("#39;", "'"),
    ("amp;", "&"),
    ("#146;", "'"),
    ("nbsp;", " "),
    ("#36;", "$"),
    ("\\n", "\n"),
    ("quot;", "'"),
    ("<br />", "\n"),
    ('\\"', '"'),
    ("<unk>", UNK),
    (" @.@ ", "."),
    (" @-@ ", "-"),
    ("...", " …"),
)
_REPEATED_CHARACTER = re.compile(r"(\S)\1\1+")
# The characters around a repetition are part of the match, as in fastai: of two in a row the second one stays.
_REPEATED_WORD = re.compile(r"(?:\s|^)(\w++)\s+\1(?:\s+\1)+(\W|$)")
_MARK = re.compile(r"[/#\\]")
_SPACES = re.compile(r"  +")
# Possessive, and the lookbehind after the capital: both keep the search linear and find what fastai's patterns find.
_CAPITALS = re.compile(r"[A-Z](?<!\S[A-Z])[^a-z\s]*+(?!\S)")
_CAPITAL = re.compile(r"[A-Z](?<!\S[A-Z])[^A-Z\s]*+(?!\S)")


def fix_html(text: str) -> str:
    r"""Undo markup that texts from the web are left with, much of it broken, and how WikiText writes "3.5" and "a-b".

    >>> fix_html("Bonnie amp; Clyde<br />#39;60s quot;cult&quot;, &gt; 3 @.@ 5")
    "Bonnie & Clyde\n'60s 'cult&', > 3.5"
    """
    for markup, plain in _MARKUP:
        text = text.replace(markup, plain)
    return html.unescape(text)


def replace_rep(text: str) -> str:
    """Write a character that stands three times or more in a row as xxrep, how often, and the character.

    >>> replace_rep("soooo good!!")
    's xxrep 4 o  good!!'
    """
    return _REPEATED_CHARACTER.sub(lambda found: f" {REP} {len(found[0])} {found[1]} ", text)


def replace_wrep(text: str) -> str:
    """Write a word that stands three times or more in a row as xxwrep, how often, and the word.

    >>> replace_wrep("a very very very, very odd film")
    'a xxwrep 3 very , very odd film'
    """
    return _REPEATED_WORD.sub(lambda found: f" {WREP} {len(found[0].split())} {found[1]} {found[2]}", text)


def spec_add_spaces(text: str) -> str:
    """Put spaces around slashes, backslashes and number signs.

    >>> spec_add_spaces("9/10")
    '9 / 10'
    """
    return _MARK.sub(r" \g<0> ", text)


def rm_useless_spaces(text: str) -> str:
    """Make one space of several.

    >>> rm_useless_spaces("a  film   noir")
    'a film noir'
    """
    return _SPACES.sub(" ", text)


def replace_all_caps(text: str) -> str:
    """Lower words without small letters, after xxup unless they are one character long.

    >>> replace_all_caps("I saw it on DVD, MTV2")
    'i saw it on xxup dvd, xxup mtv2'
    """
    return _CAPITALS.sub(lambda found: _lowered(found[0], UP), text)


def replace_maj(text: str) -> str:
    """Lower words that begin with their only capital, after xxmaj unless they are one character long.

    >>> replace_maj("The McCoy of Texas")
    'xxmaj the McCoy of xxmaj texas'
    """
    return _CAPITAL.sub(lambda found: _lowered(found[0], MAJ), text)


def lowercase(text: str) -> str:
    """Lower everything that is left, strip the ends, and begin with xxbos.

    >>> lowercase(" McCoy ")
    'xxbos mccoy'
    """
    return f"{BOS} {text.lower().strip()}"


def _lowered(word: str, mark: str) -> str:
    return f"{mark} {word.lower()}" if len(word) > 1 else word.lower()


RULES = (
    fix_html,
    replace_rep,
    replace_wrep,
    spec_add_spaces,
    rm_useless_spaces,
    replace_all_caps,
    replace_maj,
    lowercase,
)
"""fastai's `defaults.text_proc_rules`."""


def apply_rules(text: str) -> str:
    """All of `RULES` in order.

    >>> apply_rules("The BEST film of 2001!!!!")
    'xxbos xxmaj the xxup best film of 2001 xxrep 4 !'
    """
    for rule in RULES:
        text = rule(text)
    return text


def join_fields(fields: Sequence[str]) -> str:
    """One text of several columns, each after xxfld and its number; one column stays as it is (fastai's mark_fields).

    >>> join_fields(["Alien", "In space ..."])
    'xxfld 1 Alien xxfld 2 In space ...'
    """
    if len(fields) == 1:
        return fields[0]
    return " ".join(f"{FLD} {i} {field}" for i, field in enumerate(fields, 1))
