"""Plain English for the tiny base model: Python's own help texts, and coined words that look English.

The help texts come with every Python (`pydoc_data.topics`), so nothing is downloaded or kept here; those of another
version differ a little, and so does what is made of them. They have few distinct words; coined ones in their
place are endless, so that a model has to compare words letter by letter and not remember them.
"""

import re
from collections import defaultdict
from functools import cache
from pydoc_data.topics import topics

import numpy as np

_WORD = re.compile(r"[A-Za-z]{4,}")
_FUNCTION_WORDS = frozenset(
    "about after also because been before being between both could does each even from have into more most must only "
    "other same should some such than that their them then there these they this those used what when where which "
    "while will with would".split()
)
_LONGEST_WORD = 11


@cache
def paragraphs() -> list[list[str]]:
    """The help texts' paragraphs of prose, in words."""
    found = []
    for text in topics.values():
        for paragraph in re.split(r"\n\s*\n", text):
            letters = sum(character.isalpha() or character in " ,.;'" for character in paragraph)
            words = paragraph.split()
            if len(words) >= 12 and letters > 0.9 * len(paragraph):
                found.append(words)
    return found


def coin(rng: np.random.Generator) -> str:
    """A new word of 4 to 11 letters, drawn letter by letter as English words go on after two letters."""
    following = _following()
    while True:
        word = "^^"
        while word[-1] != "$" and len(word) <= _LONGEST_WORD + 2:
            choices = following[word[-2:]]
            word += choices[rng.integers(len(choices))]
        word = word[2:].removesuffix("$")
        if 4 <= len(word) <= _LONGEST_WORD and word not in _FUNCTION_WORDS:
            return word


def excerpt(rng: np.random.Generator, length: int) -> list[str]:
    """`length` words of running text in which a random share of the content words is coined anew."""
    texts = paragraphs()
    words = list(texts[rng.integers(len(texts))])
    while len(words) < length:
        words += texts[rng.integers(len(texts))]
    start = int(rng.integers(len(words) - length + 1))
    share = rng.random()
    return [
        _WORD.sub(lambda _: coin(rng), word, count=1) if rng.random() < share and content_words([word]) else word
        for word in words[start : start + length]
    ]


def content_words(words: list[str]) -> list[str]:
    """The words of four letters and more without function words and punctuation, each once, however it is written.

    `content_words(["The", "Value,", "of", "this", "value."])` is `["Value"]`.
    """
    found: dict[str, str] = {}
    for text in words:
        for word in _WORD.findall(text):
            if word.lower() not in _FUNCTION_WORDS:
                found.setdefault(word.lower(), word)
    return list(found.values())


@cache
def _following() -> dict[str, list[str]]:
    """Two letters -> every letter that follows them in the help texts, as often as it does; `^` and `$` are ends."""
    following: dict[str, list[str]] = defaultdict(list)
    for words in paragraphs():
        for text in words:
            for word in _WORD.findall(text):
                marked = f"^^{word.lower()}$"
                for i in range(2, len(marked)):
                    following[marked[i - 2 : i]].append(marked[i])
    return dict(following)
