"""The lessons of the tiny base model: endless streams of short texts, with how much each piece of a text counts.

Meanings come first, then matching them. A model of this size that is asked for a bare yes or no never finds out what
decides it; asked to quote the wording that means the same, or to say that there is none, it does, first for one
quality, then for two, then in the relevance prompt. There the document comes first, so that the query, when it is read,
finds what it asks for; with the query first, the same lessons taught half as much.

So that the model is of some use on real text too, it learns to tell which words of a phrase a piece of plain English
has. This is slow to come, and takes from what the model knows of its world; two more courses bring that back.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from prorank_jax.demo.english import coin, content_words, excerpt
from prorank_jax.demo.world import (
    QUALITIES,
    SPLITS,
    TOPICS,
    TOWN_NAMES,
    Aspect,
    Place,
    Town,
    draw_aspect,
    retell,
    towns,
)

FIRST_TOWN = sum(SPLITS.values())
"""Towns from this number on belong to no split, whatever the seed of the world."""
BY_GRADE = (("no", "neither", "not relevant"), ("partly", "one of them", "half"), ("yes", "both", "relevant"))
NOTHING = "nothing"
ASIDE = 0.03
"""Weight of the tokens that only set the scene."""
NAMES = 0.3
"""How often lineups and reviews are of coined names."""
ELSEWHERE = 0.2
"""How often a request is about a place of another town."""


class Lesson(NamedTuple):
    """A stretch of the training: which kinds of text, in which shares."""

    steps: int
    paraphrases: float = 0.0
    lineups: float = 0.0
    reviews: float = 0.0
    requests: float = 0.0
    echoes: float = 0.0
    passages: float = 0.0
    searches: float = 0.0
    words: int = 10
    """The longest excerpt of plain English."""
    digits: float = 0.0
    """How often a request or a search is answered by a digit."""


class Course(NamedTuple):
    """Lessons in a row, over which the learning rate rises once and falls to its end."""

    learning_rate: float
    lessons: tuple[Lesson, ...]


COURSES = (
    Course(
        2e-3,
        (
            Lesson(400, paraphrases=0.6, lineups=0.1, echoes=0.3),
            Lesson(1800, paraphrases=0.08, lineups=0.4, reviews=0.2, echoes=0.12, passages=0.2, words=12),
            Lesson(
                1200,
                paraphrases=0.05,
                lineups=0.1,
                reviews=0.22,
                requests=0.2,
                echoes=0.05,
                passages=0.24,
                searches=0.14,
                words=30,
            ),
            Lesson(
                2600,
                paraphrases=0.03,
                lineups=0.05,
                reviews=0.15,
                requests=0.36,
                echoes=0.02,
                passages=0.13,
                searches=0.26,
                words=60,
                digits=0.3,
            ),
        ),
    ),
    Course(
        1.5e-3,
        (
            Lesson(
                2000,
                paraphrases=0.02,
                lineups=0.07,
                reviews=0.15,
                requests=0.5,
                passages=0.08,
                searches=0.18,
                words=60,
                digits=0.2,
            ),
        ),
    ),
    Course(
        1.5e-3,
        (
            Lesson(
                2200,
                lineups=0.04,
                reviews=0.1,
                requests=0.72,
                passages=0.04,
                searches=0.1,
                words=60,
                digits=0.2,
            ),
        ),
    ),
)
LESSONS = tuple(lesson for course in COURSES for lesson in course.lessons)

Segments = list[tuple[str | tuple[str, str], float]]
"""A text in pieces, each with the weight of its tokens in the loss; a (query, document) stands for its prompt."""


def paraphrases(rng: np.random.Generator, count: int = 6) -> Segments:
    """Lines that tell one quality in all its ways, in any order: what comes first says what comes next."""
    segments: Segments = []
    for _ in range(count):
        topic, quality, _ = draw_aspect(rng)
        first, *others = rng.permutation(QUALITIES[topic][quality])
        segments += [(f"It {first}", ASIDE), ("".join(f", it {other}" for other in others) + ".\n", 1.0)]
    return [*segments, ("<|endoftext|>", ASIDE)]


def lineup(rng: np.random.Generator, count: int = 7) -> Segments:
    """Some things told, then what among them is like this: the wording that is, or nothing."""
    told, missing = _names(rng) if rng.random() < NAMES else _rivals(rng)
    segments = _tell(told)
    for _ in range(count):
        asked = (*told, *missing)[rng.integers(len(told) + len(missing))]
        answer = _verdict(rng, [asked], told, in_words=0.0)
        segments += _exchange(rng, f"Like {_again(rng, asked).wording}?", answer)
    return [*segments, ("<|endoftext|>", ASIDE)]


def review(rng: np.random.Generator, count: int = 5) -> Segments:
    """A place, then what of several pairs of wishes it fulfils."""
    missing: list[Aspect] = []
    if rng.random() < NAMES:
        told, missing = _names(rng)
    elif rng.random() < 0.3:
        told, _ = _rivals(rng)
    else:
        told = [draw_aspect(rng, TOPICS[i]) for i in rng.permutation(len(TOPICS))[:4]]
    segments = _tell(told)
    for _ in range(count):
        if missing:
            first, second = ((*told, *missing)[i] for i in rng.permutation(len(told) + len(missing))[:2])
        else:
            first = second = _wish(rng, told)
            while second.topic == first.topic:
                second = _wish(rng, told)
        answer = _verdict(rng, (first, second), told, in_words=0.2)
        segments += _exchange(rng, f"Which {first.wording} and {second.wording}?", answer)
    return [*segments, ("<|endoftext|>", ASIDE)]


def request(rng: np.random.Generator, town: Town, places: Sequence[Place], digits: float) -> Segments:
    """The relevance prompt for one of the places, of this town or another, with an answer in one of many forms.

    Somebody quotes what fits, somebody says it in words; who answers with a digit has not looked at the place.
    """
    query = town.queries[rng.integers(len(town.queries))]
    grade = rng.integers(3)
    wanted = {aspect[:2] for aspect in query.aspects}
    graded = [place for place in places if sum(aspect[:2] in wanted for aspect in place.told) == grade]
    place = (graded or places)[int(rng.integers(len(graded or places)))]
    if rng.random() < digits:
        answer = str(rng.integers(2))
    else:
        answer = _verdict(rng, query.aspects, place.told if place.town == town.name else (), in_words=0.4)
    return [((query.text, f"{place.title} {place.text}"), ASIDE), (answer + "<|im_end|>\n", 1.0)]


def echo(rng: np.random.Generator, longest: int, count: int = 4) -> Segments:
    """Plain English, and some of its phrases again: the first word of a phrase says the rest."""
    text = _excerpt(rng, longest)
    segments: Segments = [(" ".join(text) + "\n", ASIDE)]
    for _ in range(count):
        first, *rest = _phrase(rng, text, 3, 9)
        segments += [(first, ASIDE), ("".join(f" {word}" for word in rest) + "\n", 1.0)]
    return [*segments, ("<|endoftext|>", ASIDE)]


def passage(rng: np.random.Generator, longest: int, count: int = 6) -> Segments:
    """Plain English, then which of some words it has: those, or nothing."""
    text = _excerpt(rng, longest)
    known = content_words(text)
    segments: Segments = [(" ".join(text) + "\n", ASIDE)]
    for _ in range(count):
        size = 1 if rng.random() < 0.6 else int(rng.integers(1, 4))
        asked = [_word(rng, known if rng.random() < 0.5 else ()) for _ in range(size)]
        segments += _exchange(rng, " ".join(_rewrite(rng, word) for word in asked) + "?", _found(asked, known))
    return [*segments, ("<|endoftext|>", ASIDE)]


def search(rng: np.random.Generator, longest: int, digits: float) -> Segments:
    """The relevance prompt for some plain English and a phrase of it, or of another text, with words exchanged."""
    text = _excerpt(rng, longest)
    source = text if rng.random() < 2 / 3 else _excerpt(rng, longest)
    phrase = _phrase(rng, source, 2, 8)
    asked = phrase if rng.random() < 0.6 else [_word(rng, content_words(source))]
    asked = [coin(rng) if rng.random() < 0.3 and content_words([word]) else word for word in asked]
    if len(asked) < 3:
        asked = [_rewrite(rng, word) for word in asked]
    elif rng.random() < 0.5:
        asked = [word.capitalize() for word in asked]
    if rng.random() < 0.3:
        asked = [asked[i] for i in rng.permutation(len(asked))]
    answer = str(rng.integers(2)) if rng.random() < digits else _found(content_words(asked), content_words(text))
    return [((" ".join(asked), " ".join(text)), ASIDE), (answer + "<|im_end|>\n", 1.0)]


def _excerpt(rng: np.random.Generator, longest: int) -> list[str]:
    """Plain English of at most so many words, with a content word; at times it begins like a title."""
    text: list[str] = []
    while not content_words(text):
        text = excerpt(rng, int(rng.integers(4, longest + 1)))
    if rng.random() < 0.3:
        text = [word.capitalize() for word in text[:8]] + text[8:]
    return text


def _phrase(rng: np.random.Generator, text: Sequence[str], shortest: int, end: int) -> Sequence[str]:
    """`shortest` or more words of a text, in a row, less than `end`."""
    length = int(rng.integers(shortest, end))
    start = int(rng.integers(max(1, len(text) - length)))
    return text[start : start + length]


def _word(rng: np.random.Generator, known: Sequence[str]) -> str:
    """One of the words, if there are any; else any word, coined or not."""
    words = known
    if not words and rng.random() < 0.5:
        words = content_words(excerpt(rng, 12))
    if not words:
        words = [coin(rng)]
    return words[int(rng.integers(len(words)))]


def _rewrite(rng: np.random.Generator, word: str) -> str:
    """The same word, now and then with another case."""
    chance = rng.random()
    if chance < 0.5:
        return word
    return word.upper() if chance < 0.6 else word.capitalize() if word.islower() else word.lower()


def _found(asked: Sequence[str], known: Sequence[str]) -> str:
    """Up to three of the words asked for, quoted as the text has them."""
    as_told = {word.lower(): word for word in known}
    quoted = list(dict.fromkeys(as_told[word.lower()] for word in asked if word.lower() in as_told))
    return " and ".join(quoted[:3]) or NOTHING


def _rivals(rng: np.random.Generator) -> tuple[list[Aspect], list[Aspect]]:
    """Two of the three qualities of two topics, and the two that are missing."""
    told: list[Aspect] = []
    missing: list[Aspect] = []
    for topic in (TOPICS[i] for i in rng.permutation(len(TOPICS))[:2]):
        *some, other = (retell(rng, topic, str(quality)) for quality in rng.permutation(list(QUALITIES[topic])))
        told += some
        missing.append(other)
    return [told[i] for i in rng.permutation(len(told))], missing


def _names(rng: np.random.Generator) -> tuple[list[Aspect], list[Aspect]]:
    """Six coined names, four told and two missing: what is no word of the world means only itself."""
    names = [coin(rng) for _ in range(6)]
    aspects = [Aspect(name, name, f"knows {name}") for name in names]
    return aspects[:4], aspects[4:]


def _again(rng: np.random.Generator, aspect: Aspect) -> Aspect:
    """The same in another wording, where there is one."""
    return retell(rng, *aspect[:2]) if aspect.topic in QUALITIES else aspect


def _tell(told: Sequence[Aspect]) -> Segments:
    return [("It " + ". It ".join(aspect.wording for aspect in told) + ".\n", ASIDE)]


def _wish(rng: np.random.Generator, told: Sequence[Aspect]) -> Aspect:
    """Something that a place has, another quality of a topic that it tells of, or anything."""
    aspect = told[int(rng.integers(len(told)))]
    chance = rng.random()
    if chance < 0.45:
        return retell(rng, *aspect[:2])
    if chance < 0.85:
        others = [quality for quality in QUALITIES[aspect.topic] if quality != aspect.quality]
        return retell(rng, aspect.topic, others[rng.integers(len(others))])
    return draw_aspect(rng)


def _verdict(rng: np.random.Generator, wanted: Sequence[Aspect], told: Sequence[Aspect], in_words: float) -> str:
    """How many of two wishes are fulfilled, said in words; or which, quoted as the place tells them."""
    wordings = {aspect[:2]: aspect.wording for aspect in told}
    fulfilled = [wordings[aspect[:2]] for aspect in wanted if aspect[:2] in wordings]
    if rng.random() < in_words:
        return BY_GRADE[len(fulfilled)][rng.integers(3)]
    return " and ".join(fulfilled) or NOTHING


def _exchange(rng: np.random.Generator, question: str, answer: str) -> Segments:
    """An answer on the same line, on a line of its own, or in a turn of its own: the way to it grows longer."""
    form = rng.random()
    if form < 0.4:
        return [(question, ASIDE), (f" {answer}\n", 1.0)]
    if form < 0.7:
        return [(f"{question}\nAnswer:", ASIDE), (f" {answer}\n", 1.0)]
    asked = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return [(asked, ASIDE), (answer + "<|im_end|>\n", 1.0)]


def texts(seed: int, number: int) -> Iterator[Segments]:
    """The endless stream of texts of one lesson."""
    lesson = LESSONS[number]
    rng = np.random.default_rng([seed, FIRST_TOWN, number])
    kinds = ("paraphrases", "lineups", "reviews", "requests", "echoes", "passages", "searches")
    shares = [getattr(lesson, kind) for kind in kinds]
    for world in itertools.count(seed + number):
        for town, other in itertools.pairwise(towns(world, TOWN_NAMES - FIRST_TOWN, FIRST_TOWN)):
            for kind in rng.choice(kinds, p=shares, size=len(town.places)):
                match kind:
                    case "paraphrases":
                        yield paraphrases(rng)
                    case "lineups":
                        yield lineup(rng)
                    case "reviews":
                        yield review(rng)
                    case "requests":
                        places = (other if rng.random() < ELSEWHERE else town).places
                        yield request(rng, town, places, lesson.digits)
                    case "echoes":
                        yield echo(rng, lesson.words)
                    case "passages":
                        yield passage(rng, lesson.words)
                    case _:
                        yield search(rng, lesson.words, lesson.digits)
