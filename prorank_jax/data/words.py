"""Text taken apart into words: runs of two or more letters and digits in any script, in lower case.

Scripts that put no space between words become overlapping bigrams of characters, as in Lucene's CJKAnalyzer: of
"tea 是什么" they are `["tea", "是什", "什么"]`, and a character that has no neighbour is a word. Lucene does so for
Chinese, Japanese and Korean. Thai, Lao, Khmer and Burmese, for which it has a dictionary, become bigrams as well: of
consonants with their vowel signs.

Text in which none of these scripts occurs gives the words of `bm25s.tokenize`.
"""

import re
import sys
import unicodedata
from collections.abc import Iterable

SCRIPTS = {
    "Han": "\u2e80-\u2fd5\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufad9"
    "\U00016ff0-\U00016ff6\U00020000-\U000323af",
    "Hiragana": "\u3041-\u309a\u309d-\u309f\U0001b001-\U0001b11f\U0001b132\U0001b150-\U0001b152",
    "Katakana": "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b000\U0001b120-\U0001b122\U0001b155"
    "\U0001b164-\U0001b167",
    "Hangul": "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7fb",
    "Thai": "\u0e01-\u0e3a\u0e40-\u0e4e",
    "Lao": "\u0e81-\u0ece\u0edc-\u0edf",
    "Khmer": "\u1780-\u17d3\u17d7\u17dc\u17dd",
    "Myanmar": "\u1000-\u103f\u104e\u1050-\u108f\u109a-\u109d\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa76\uaa7a-\uaa7f",
}
"""The letters and signs of the scripts without spaces, as in a class of a regular expression."""

# The vowel signs and points that are no letters to `\w`, from Hebrew's on; but not variation selectors and the accents
# of U+1AB0, U+1DC0, U+20D0 and U+FE00, which occur in English text.
_BLOCKS = (range(0x591, 0x1AB0), range(0x1B00, 0x1DC0), range(0xA66F, 0xAC00))
_SIGNS = "".join(chr(code) for block in _BLOCKS for code in block if unicodedata.category(chr(code)).startswith("M"))
_WIDTHS = "\uff01-\uffdc"
"""Latin letters as wide as ideographs, and kana half as wide."""
_SPACELESS = "".join(SCRIPTS.values())

_words = re.compile(r"\b\w\w+\b").findall
_words_with_signs = re.compile(rf"\w[\w{_SIGNS}]+").findall
# All that the rest of this page is about is after the European alphabets and their punctuation.
_other = re.compile("[^\x00-\u0590\u1e00-\u2e7f]").search
_of_width = re.compile(f"[{_WIDTHS}]+")
_spaceless = re.compile(f"([{_SPACELESS}]+)")
_characters = re.compile(f"[^{_SIGNS}][{_SIGNS}]*|[{_SIGNS}]+").findall


def words(text: str) -> list[str]:
    """The words of a text, in order.

    `"Black tea, 3.5 g"` is `["black", "tea"]`; `"螃蟹吃藻类。茶"` is `["螃蟹", "蟹吃", "吃藻", "藻类", "茶"]`.
    """
    text = text.lower()
    if text.isascii() or not _other(text):
        return _words(text)
    text = _of_width.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    found: list[str] = []
    for number, part in enumerate(_spaceless.split(text)):
        found += _bigrams(part) if number % 2 else _words_with_signs(part)
    return found


def spaceless_scripts(texts: Iterable[str]) -> list[str]:
    """The names of the scripts without spaces that occur in texts."""
    found = {
        name
        for text in texts
        if not text.isascii()
        for name, letters in SCRIPTS.items()
        if re.search(f"[{letters}]", unicodedata.normalize("NFKC", text))
    }
    return [name for name in SCRIPTS if name in found]


def _bigrams(run: str) -> list[str]:
    # Composed: voiced kana and syllables of Hangul may be written in parts.
    characters = _characters(unicodedata.normalize("NFC", run))
    if len(characters) == 1:
        return characters
    return [sys.intern(first + second) for first, second in zip(characters, characters[1:], strict=False)]
