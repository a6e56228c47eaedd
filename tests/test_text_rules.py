"""The rules before and after tokenizing: fastai's results worked by hand from its source, and slow references."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfast.data.text import rules
from jaxfast.data.text.readable import join_words, undo_rules

TABLE = [
    (rules.fix_html, "#39;60s &amp; &lt;b&gt; amp;amp; quot;x#146;", "'60s && <b> && 'x'"),  # "&amp;" too
    (rules.fix_html, r"one\ntwo<br />three nbsp; #36;5 \"x\"", 'one\ntwo\nthree   $5 "x"'),
    (rules.fix_html, "<unk> 3 @.@ 5 a @-@ b wait... &eacute;&#8230;", "xxunk 3.5 a-b wait … é…"),
    (rules.fix_html, "amp;quot;", "&'"),  # later pairs see what earlier ones made
    (rules.fix_html, "&&lt;lt;", "&<lt;"),  # unescaped once
    (rules.replace_rep, "aa bbb", "aa  xxrep 3 b "),
    (rules.replace_rep, "sooooo!!!!", "s xxrep 5 o  xxrep 4 ! "),
    (rules.replace_rep, "   \n\n\n", "   \n\n\n"),  # not white space
    (rules.replace_rep, "éééaaaA", " xxrep 3 é  xxrep 3 a A"),
    (rules.replace_wrep, "ah ah", "ah ah"),
    (rules.replace_wrep, "ah ah ah", " xxwrep 3 ah "),
    (rules.replace_wrep, "ah ah   ah  ah", " xxwrep 4 ah "),
    (rules.replace_wrep, "ah ah ah ah ", " xxwrep 4 ah  "),
    (rules.replace_wrep, "ah ah ah ah.", " xxwrep 4 ah ."),
    (rules.replace_wrep, "ah ah ahi", "ah ah ahi"),
    (rules.replace_wrep, "ah ah ah ahi", " xxwrep 3 ah  ahi"),
    (rules.replace_wrep, "x\nah ah ah", "x xxwrep 3 ah "),  # the white space before becomes a space
    (rules.replace_wrep, "(ah ah ah)", "(ah ah ah)"),  # a repetition begins after white space
    (rules.replace_wrep, "a a a b b b", " xxwrep 3 a  b b b"),  # the space between them is taken by the first
    (rules.replace_wrep, "Ah ah ah ah", "Ah xxwrep 3 ah "),
    (rules.replace_wrep, "aaa aa aa", "aaa aa aa"),
    (rules.spec_add_spaces, "#fastai a/b c\\d", " # fastai a / b c \\ d"),
    (rules.rm_useless_spaces, "a  b   c \n  d", "a b c \n d"),
    (rules.replace_all_caps, "I AM A MAN", "i xxup am a xxup man"),
    (rules.replace_all_caps, "AT&T U.S. MTV2 I'M O.K.,", "xxup at&t xxup u.s. xxup mtv2 xxup i'm xxup o.k.,"),
    (rules.replace_all_caps, 'DVDs "WOW" mTV É ÉA AÉ', 'DVDs "WOW" mTV É ÉA xxup aé'),
    (rules.replace_all_caps, "A\nB\tC", "a\nb\tc"),
    (rules.replace_all_caps, "XX,", "xxup xx,"),
    (rules.replace_maj, "Then I saw McCoy.", "xxmaj then i saw McCoy."),
    (rules.replace_maj, "U.S. (The 'The The, T", "U.S. (The 'The xxmaj the, t"),
    (rules.replace_maj, "Don't Élan R2d2", "xxmaj don't Élan xxmaj r2d2"),
    (rules.lowercase, "  McCoy ÉLAN \n", "xxbos mccoy élan"),
    (rules.lowercase, "", "xxbos "),
    (rules.apply_rules, "", "xxbos "),
    (
        rules.apply_rules,
        "This is SOOOO good!!! very very very GOOD 10/10<br /><br />See IT.",
        "xxbos xxmaj this is s xxrep 4 o good xxrep 3 ! xxwrep 3 very xxup good 10 / 10\n\nxxmaj see xxup it.",
    ),
    (rules.apply_rules, "NOOO", "xxbos n xxrep 3 o"),  # one character is not marked
    (rules.apply_rules, "YESSS", "xxbos xxup ye xxrep 3 s"),
]


@pytest.mark.parametrize("rule, text, expected", TABLE, ids=lambda value: getattr(value, "__name__", ""))
def test_rules(rule, text, expected):
    assert rule(text) == expected


def test_special_tokens_and_rules_are_in_fastais_order():
    assert rules.SPECIAL == ("xxunk", "xxpad", "xxbos", "xxeos", "xxfld", "xxrep", "xxwrep", "xxup", "xxmaj")
    assert rules.PAD_ID == 1
    assert [rule.__name__ for rule in rules.RULES] == [
        "fix_html", "replace_rep", "replace_wrep", "spec_add_spaces", "rm_useless_spaces", "replace_all_caps",
        "replace_maj", "lowercase",
    ]  # fmt: skip


LETTERS = st.text("aAbBéÉ1.'- \n\t_!", max_size=20)


def slow_caps(word):
    caps = word[:1] in set("ABCDEFGHIJKLMNOPQRSTUVWXYZ") and not any("a" <= c <= "z" for c in word)
    return ("xxup " if len(word) > 1 else "") + word.lower() if caps else word


def slow_maj(word):
    capital = lambda c: "A" <= c <= "Z"
    if not word or not capital(word[0]) or any(capital(c) for c in word[1:]):
        return word
    return ("xxmaj " if len(word) > 1 else "") + word.lower()


@settings(max_examples=300, deadline=None)
@given(LETTERS)
def test_capitals_word_by_word(text):
    for rule, slow in ((rules.replace_all_caps, slow_caps), (rules.replace_maj, slow_maj)):
        assert rule(text) == "".join(slow(part) for part in re.split(r"(\s)", text))


@settings(max_examples=200, deadline=None)
@given(st.text("ab !\n", max_size=20))
def test_repeated_characters_run_by_run(text):
    runs = [(char, len(list(group))) for char, group in itertools.groupby(text)]
    expected = "".join(f" xxrep {n} {c} " if n > 2 and not c.isspace() else c * n for c, n in runs)
    assert rules.replace_rep(text) == expected


@pytest.mark.parametrize("text", ["AB" * 100_000 + "a", "A'" * 100_000, "ab " * 100_000, "a_" * 100_000 + " " * 1000])
def test_long_texts_take_linear_time(text):
    """A pattern that tries all ways of splitting such a text does not come back."""
    assert rules.apply_rules(text).startswith("xxbos ")


def test_fields_are_numbered_only_where_there_are_several():
    assert rules.join_fields(["One"]) == "One"
    joined = rules.apply_rules(rules.join_fields(["The Title", "A body"]))
    assert joined == "xxbos xxfld 1 xxmaj the xxmaj title xxfld 2 a body"


@pytest.mark.parametrize(
    "tokens, words",
    [
        ("xxbos xxmaj the xxup dvd xxpad xxeos", "The DVD"),
        ("s xxrep 4 o xxwrep 3 very", "s oooo very very very"),
        ("xxup xxunk xxmaj xxunk", "xxunk xxunk"),
        ("xxfld 1 a xxfld 2 b", "\n a \n b"),
        ("a xxmaj", "a "),
        ("xxrep 99999999 a", "99999999 a"),  # what a model writes is not worth all memory
        ("xxwrep the end", "the end"),
        ("xxrep ٣ a", "aaa"),
        ("xxrep ² a xxrep", "² a  "),
    ],
)
def test_rules_undone(tokens, words):
    assert " ".join(undo_rules(tokens.split())) == words


@pytest.mark.parametrize(
    "words, text",
    [
        ("He did n't , did he ? No .", "He didn't, did he? No."),
        ("the film 's plot ( if any ) is well - made", "the film's plot (if any) is well-made"),
        ('a " great " film " .', 'a "great" film ".'),
        ("$ 5 [ or so ] % 10 / 10", "$5 [or so]% 10/10"),
        ("\n \n▁ one \n\n two", "one\n\ntwo"),
        ("they 'RE here … now", "they'RE here… now"),
        ("", ""),
    ],
)
def test_words_joined(words, text):
    assert join_words(words.split(" ")) == text
