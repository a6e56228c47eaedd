"""Texts: rules, tokens, the token store, and the batches of language models and classifiers."""

from jaxfast.data.text.classification import TextData, TextDataset, text_data
from jaxfast.data.text.codec import TextCodec
from jaxfast.data.text.corpus import tokenize
from jaxfast.data.text.documents import Documents
from jaxfast.data.text.language import LanguageData, LanguageDataset, language_data
from jaxfast.data.text.rules import RULES, SPECIAL, apply_rules, join_fields
from jaxfast.data.text.tokenizer import TextTokenizer
from jaxfast.data.text.vocabulary import train_tokenizer, word_tokenizer

__all__ = [
    "RULES",
    "SPECIAL",
    "Documents",
    "LanguageData",
    "LanguageDataset",
    "TextCodec",
    "TextData",
    "TextDataset",
    "TextTokenizer",
    "apply_rules",
    "join_fields",
    "language_data",
    "text_data",
    "tokenize",
    "train_tokenizer",
    "word_tokenizer",
]
