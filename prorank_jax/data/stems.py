"""Texts as numbers of stems: the words of `words.py` without English stop words, by Snowball's English stemmer.

The stems are those of `bm25s.tokenize(texts, stopwords="en", stemmer=Stemmer.Stemmer("english"))`, of which a million
documents would make lists of Python objects. Words of other scripts than the Latin are left as they are.
"""

from collections.abc import Callable, Iterable

import numpy as np

from prorank_jax.data.words import words

_LEFT_OUT = -1


class Stems:
    """Numbers each stem, in the order of first occurrence.

    Attributes:
      numbers: stem -> its number.
    """

    def __init__(self, numbers: dict[str, int] | None = None) -> None:
        """Begins with no stem. Stems given are all that there will be: others are left out."""
        import bm25s.stopwords
        import Stemmer

        self.numbers = {} if numbers is None else numbers
        self._of_words = _OfWords(
            self.numbers, numbers is None, frozenset(bm25s.stopwords.STOPWORDS_EN), Stemmer.Stemmer("english").stemWord
        )

    def encode(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """The stems of texts, in order of occurrence, one text after another: int32 [stems], and how many each text
        has: int32 [texts].

        `["black tea", "", "Teas"]` is `[0, 1, 1]` and `[2, 0, 1]`.
        """
        number = self._of_words.__getitem__
        stems: list[int] = []
        ends = []
        for text in texts:
            stems.extend(map(number, words(text)))
            ends.append(len(stems))
        every = np.array(stems, np.int32)
        kept = every != _LEFT_OUT
        kept_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
        return every[kept], np.diff(kept_before[[0, *ends]]).astype(np.int32)


class _OfWords(dict[str, int]):
    """The number of a word's stem; a word is stemmed once."""

    def __init__(
        self, numbers: dict[str, int], growing: bool, stop_words: frozenset[str], stem: Callable[[str], str]
    ) -> None:
        self._numbers, self._growing, self._stop_words, self._stem = numbers, growing, stop_words, stem

    def __missing__(self, word: str) -> int:
        if word in self._stop_words:
            number = _LEFT_OUT
        else:
            stem = self._stem(word)
            number = self._numbers.get(stem, _LEFT_OUT)
            if number == _LEFT_OUT and self._growing:
                number = self._numbers[stem] = len(self._numbers)
        self[word] = number
        return number
