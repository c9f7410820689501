"""The lessons that the tiny base is made from: what they say is right, and none of it is in a split."""

import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from prorank_jax.demo import english, lessons, pretrain, world
from prorank_jax.demo.lessons import LESSONS, Segments
from prorank_jax.demo.pretrain import LENGTH, ORDER
from prorank_jax.demo.world import QUALITIES, SPLITS, TOPICS, Aspect, town_name
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import load_tokenizer
from prorank_jax.reranker import Reranker

QUALITY_OF = {
    wording: (topic, quality)
    for topic, qualities in QUALITIES.items()
    for quality, wordings in qualities.items()
    for wording in wordings
}


def meaning(wording: str) -> object:
    """What a wording of the world tells; a coined name means itself."""
    assert wording in QUALITY_OF or wording.startswith("knows "), wording
    return QUALITY_OF.get(wording, wording)


def plain(text: Segments) -> str:
    return "".join(piece if isinstance(piece, str) else "\n".join(piece) for piece, _ in text)


def test_a_lineup_quotes_what_means_the_same_or_says_that_nothing_does() -> None:
    answers = []
    for seed in range(40):
        (told, _), *exchanges, _ = lessons.lineup(np.random.default_rng(seed))
        assert isinstance(told, str)
        held = {meaning(sentence.removeprefix("It ").rstrip(".\n")) for sentence in told.split(". ")}
        assert len(held) == 4
        for (question, _), (answer, weight) in zip(exchanges[::2], exchanges[1::2], strict=True):
            assert isinstance(question, str) and isinstance(answer, str) and weight == 1.0
            asked = meaning(question.partition("Like ")[2].partition("?")[0])
            quoted = answer.replace("<|im_end|>", "").strip()
            assert (meaning(quoted) if asked in held else quoted) == (asked if asked in held else "nothing")
            answers.append(quoted)
    assert 0.2 < np.mean([answer == "nothing" for answer in answers]) < 0.5


def words(text: str) -> set[str]:
    """The words that a question is about, however they are written."""
    return {word.lower() for word in re.findall(r"[A-Za-z]{4,}", text)} - english._FUNCTION_WORDS


def test_an_echo_repeats_what_was_said() -> None:
    for seed in range(20):
        (told, _), *phrases, _ = lessons.echo(np.random.default_rng(seed), longest=12)
        assert isinstance(told, str) and len(told.split()) <= 12
        for (first, _), (rest, weight) in zip(phrases[::2], phrases[1::2], strict=True):
            assert f" {first}{rest}".rstrip("\n") + " " in f" {told.strip()} " and weight == 1.0


def test_a_passage_quotes_the_words_that_it_has() -> None:
    answers = []
    for seed in range(40):
        (told, _), *exchanges, _ = lessons.passage(np.random.default_rng(seed), longest=30)
        assert isinstance(told, str)
        for (question, _), (answer, weight) in zip(exchanges[::2], exchanges[1::2], strict=True):
            assert isinstance(question, str) and isinstance(answer, str) and weight == 1.0
            asked = words(re.sub(r"<\|.*?\|>(user|assistant)?|\nAnswer:", " ", question))
            quoted = answer.replace("<|im_end|>", "").strip()
            held = asked & words(told)
            assert words(quoted) == (held or {"nothing"})
            assert all(word in told for word in quoted.split(" and ")) or not held
            answers.append(bool(held))
    assert 0.3 < np.mean(answers) < 0.8


def test_a_search_is_answered_with_the_words_that_the_document_has() -> None:
    answers = []
    for seed in range(100):
        (pair, _), (answer, weight) = lessons.search(np.random.default_rng(seed), longest=40, digits=0.0)
        assert isinstance(pair, tuple) and isinstance(answer, str) and weight == 1.0
        query, document = pair
        held = words(query) & words(document)
        quoted = answer.removesuffix("<|im_end|>\n")
        assert words(quoted) <= (held or {"nothing"})
        assert len(words(quoted)) == min(3, max(1, len(held)))
        answers.append(bool(held))
    assert 0.3 < np.mean(answers) < 0.8


def test_coined_words_are_endless_and_look_english() -> None:
    rng = np.random.default_rng(0)
    coined = [english.coin(rng) for _ in range(500)]
    assert len(set(coined)) > 400
    assert all(re.fullmatch("[a-z]{4,11}", word) for word in coined)
    known = {word for paragraph in english.paragraphs() for word in words(" ".join(paragraph))}
    assert np.mean([word in known for word in coined]) < 0.5
    assert english.content_words(["The", "Value,", "of", "this", "value."]) == ["Value"]


def test_a_verdict_says_how_many_wishes_are_fulfilled_or_which() -> None:
    rng = np.random.default_rng(0)
    cold, rude = (Aspect(topic, *item) for topic, item in (("weather", ("cold", "a")), ("welcome", ("rude", "b"))))
    told = [Aspect("weather", "cold", "sees frost each morning"), Aspect("welcome", "kind", "feels like home")]
    assert lessons._verdict(rng, (cold, rude), told, in_words=0.0) == "sees frost each morning"
    assert lessons._verdict(rng, (rude,), told, in_words=0.0) == "nothing"
    said = {lessons._verdict(rng, (cold, rude), told, in_words=1.0) for _ in range(50)}
    assert said == {"partly", "one of them", "half"}


def test_no_lesson_is_of_a_town_of_a_split() -> None:
    of_splits = {town_name(number) for number in range(sum(SPLITS.values()))}
    for lesson in range(len(LESSONS)):
        for text in itertools.islice(lessons.texts(0, lesson), 1500):
            said = plain(text)
            assert not any(name in said for name in of_splits)


def test_nothing_fits_in_another_town() -> None:
    near, far = world.towns(seed=1, count=2, first=500)
    rng = np.random.default_rng(0)
    said = {lessons.request(rng, near, far.places, digits=0.0)[1][0] for _ in range(60)}
    assert said == {f"{answer}<|im_end|>\n" for answer in ("nothing", *lessons.BY_GRADE[0])}
    said = {lessons.request(rng, near, near.places, digits=0.0)[1][0] for _ in range(60)}
    assert {f"{answers[0]}<|im_end|>\n" for answers in lessons.BY_GRADE} <= said


def test_digits_say_nothing_about_relevance() -> None:
    digits = []
    for text in itertools.islice(lessons.texts(0, len(LESSONS) - 1), 3000):
        (prompt, _), *_, (answer, _) = text
        if isinstance(prompt, tuple) and isinstance(answer, str) and answer[0] in "01":
            digits.append(answer[0] == "1")
            assert answer[1:] == "<|im_end|>\n"
    assert 200 < len(digits) < 1000
    assert 0.4 < np.mean(digits) < 0.6


def test_a_packed_text_sees_itself_alone() -> None:
    texts = [[(10 * number + i, 1.0) for i in range(size)] for number, size in enumerate((100, 150, 60, 300, 190))]
    batch = next(pretrain.pack(iter([*texts, *texts]), rows=2))
    assert batch["text"][0].tolist() == [0] * 100 + [1] * 150 + [-1] * (LENGTH - 250)
    assert batch["positions"][0, 98:103].tolist() == [98, 99, 0, 1, 2]
    assert batch["weights"][0, [0, 1, 100, 101]].tolist() == [0, 1, 0, 1]  # nothing foretells a text's first token
    assert batch["tokens"][1, 60] == 40  # the text of 300 tokens fits in no row, and is left out


def test_pretraining_writes_a_model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = [
        course._replace(lessons=tuple(lesson._replace(steps=1) for lesson in course.lessons))
        for course in lessons.COURSES
    ]
    monkeypatch.setattr(pretrain, "COURSES", short)
    with jax.numpy_dtype_promotion("standard"):  # optax raises a number to an integer array
        pretrain.pretrain(tmp_path / "base", rows=2, seed=0)
    reranker = Reranker.from_pretrained(tmp_path / "base", max_length=LENGTH)
    assert np.isfinite(reranker.predict([("Which place in Amber Acre is new?", "Bal of Amber Acre.")])).all()


def test_the_shipped_base_has_this_architecture_and_size() -> None:
    shipped = load_pretrained("builtin:tiny")
    assert {key: shipped.hf_config[key] for key in pretrain.HF_CONFIG} == pretrain.HF_CONFIG
    tokenizer = load_tokenizer(shipped.folder)
    assert len(tokenizer) == pretrain.VOCABULARY
    assert all(len(tokenizer.encode(digit)) == 1 for digit in "01")
    size = sum(path.stat().st_size for path in shipped.folder.iterdir())
    assert size < 6_000_000
    assert ORDER == "document_first" and len(TOPICS) == 8
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(shipped.params))
