"""Words: bigrams of scripts without spaces, as Lucene's CJKAnalyzer has them, and words of other scripts."""

import dataclasses
import unicodedata
from pathlib import Path

import pytest
import regex

from prorank_jax.data.beir import read_beir
from prorank_jax.data.bm25_index import BM25
from prorank_jax.data.candidates import candidates
from prorank_jax.data.collections import open_collection
from prorank_jax.data.ndcg import ndcg_at_10
from prorank_jax.data.stems import Stems
from prorank_jax.data.words import SCRIPTS, spaceless_scripts, words
from prorank_jax.evaluation.first_stage import FirstStage


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # By hand: overlapping pairs of a run, across scripts, and never across punctuation or Latin letters.
        ("螃蟹吃藻类，生活在海边。", "螃蟹 蟹吃 吃藻 藻类 生活 活在 在海 海边"),
        ("多くの学生が試験に落ちた。", "多く くの の学 学生 生が が試 試験 験に に落 落ち ちた"),
        ("カラー・テレビ", "カラ ラー テレ レビ"),
        ("한국어를 배우다", "한국 국어 어를 배우 우다"),
        ("あいうabcかき", "あい いう abc かき"),
        ("一 茶。 \U00020000\U00020001丈", "一 茶 \U00020000\U00020001 \U00020001丈"),
        ("2024年3月のTea", "2024 年 月の tea"),
        # Full-width Latin and half-width kana; syllables and kana in parts; a compatibility ideograph.
        ("ＴＥＳＴ１２ ﾊﾟｿｺﾝ", "test12 パソ ソコ コン"),
        ("\u1112\u1161\u11ab\u1100\u116e\u11a8 か\u3099く \uf900子", "한국 がく 豈子"),
        # Consonants keep their vowel signs.
        ("ภาษาไทย ที่", "ภา าษ ษา าไ ไท ทย ที่"),
        ("ພາສາ", "ພາ າສ ສາ"),
        ("ភាសាខ្មែរ", "ភាសា សាខ្ ខ្មែ មែរ"),
        ("မြန်မာ", "မြန် န်မာ"),
        # Scripts with spaces: whole words, with the signs that are no letters.
        ("हिन्दी भाषा", "हिन्दी भाषा"),
        ("தமிழ் மொழி বাংলা", "தமிழ் மொழி বাংলা"),
        ("العربيّة، كتاب", "العربيّة كتاب"),
        ("שָׁלוֹם עולם", "שָׁלוֹם עולם"),
        ("Чай это напиток, ἡ θάλασσα հայերեն ქართული", "чай это напиток θάλασσα հայերեն ქართული"),
        # What else a text holds does not change its Latin words.
        ("m² re\u0301sume ☕\ufe0f naïve", "m² re sume naïve"),
        ("m² re\u0301sume ☕\ufe0f naïve 茶", "m² re sume naïve 茶"),
    ],
)
def test_words_by_hand(text: str, expected: str):
    assert words(text) == expected.split()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_letters_of_a_script_are_unicodes(script: str):
    theirs = regex.compile(rf"\p{{Script={script}}}").match
    letters = [chr(code) for code in range(0x30000) if unicodedata.category(chr(code)) in ("Lo", "Lm")]
    # Half-width letters become the usual ones before; U+30FC is of two scripts, U+16FE3 a sign of the Tangut block.
    odd = {"\u30fc", "\U00016fe3"}
    differing = [x for x in letters if x not in odd and (not 0xFF00 < ord(x) < 0xFFE0)]
    ours = regex.compile(f"[{SCRIPTS[script]}]").match
    assert [x for x in differing if bool(ours(x)) != bool(theirs(x))] == []


def test_stems_of_mixed_text_are_stemmed_and_stopped_as_before():
    stems = Stems()
    stems.encode(["The teas are 饮料。 Drinking"])
    assert list(stems.numbers) == ["tea", "饮料", "drink"]


def test_scripts_without_spaces_are_named():
    assert spaceless_scripts(["what is tea", "茶はｶﾞ", "naïve ☕ हिन्दी"]) == ["Han", "Hiragana", "Katakana"]
    assert spaceless_scripts(["plain", "Ünïcode", "чай"]) == []


def test_chinese_queries_find_their_documents(shared: Path):
    collection = open_collection(shared / "trials" / "15-bm25-chinese" / "collection", "test")
    run = candidates(collection, "bm25", 10)
    # Found by the bigrams 螃蟹 and 蟹吃; d1 by 大蒜, 血压; d2 by the one Latin word.
    assert {query: ranking[0][0] for query, ranking in run.items()} == {"q0": "d0", "q1": "d1", "q2": "d2", "q3": "d3"}
    assert ndcg_at_10(collection.qrels, run) == 1.0
    assert FirstStage().protocol(collection) == ("BM25 (k1 0.9, b 0.4, title and text, character bigrams for Han)")
    assert FirstStage(bm25=BM25(title_weight=1.0)).protocol(collection.only(["q3"])) == (
        "BM25 (k1 0.9, b 0.4, text, title^1)"
    )


def test_chinese_queries_of_english_documents_match_by_their_latin_words(shared: Path):
    collection = read_beir(shared / "trials" / "03-trec-qrels-in-the-folder" / "collection", "test")
    asked = {"q1": "螃蟹 crabs 吃什么", "q2": "大蒜garlic降血压吗", "q3": "茶是什么"}
    collection = dataclasses.replace(collection, queries=asked)
    run = candidates(collection, "bm25", 10)
    assert {query: [name for name, _ in ranking] for query, ranking in run.items()} == {
        "q1": ["d1", "d2"],
        "q2": ["d3"],
        "q3": [],
    }
