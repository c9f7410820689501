"""A generated collection in which relevance is about meaning, not shared words.

The world is a coast of small towns, each on a river of its own, with a few dozen places each. A place has a
quality per topic (its weather, its price, ...), and a quality can be told in four ways that share no content
word. A query names a town and two qualities; a place in that town is judged 2 if it has both, 1 if it has one
of them, else 0. The ways of telling are chosen so that the words of one quality turn up in another: a place
that "costs a fortune" shares more words with the query "costs next to nothing" than one that "suits a thin
purse" does. BM25 therefore finds the town and is misled about the place.

Every town belongs to one split, and every text names its town: splits share no query and no document.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

QUALITIES: dict[str, dict[str, tuple[str, str, str, str]]] = {
    "weather": {
        "cold": ("stays cold all year", "sees frost each morning", "never feels the sun", "keeps snow until summer"),
        "hot": ("stays warm at night", "bakes like clay", "feels the sun every day", "is dry all summer"),
        "wet": ("drips from the roof", "is soaked every day", "never sees dry ground", "smells of rain at night"),
    },
    "welcome": {
        "kind": ("greets strangers", "has a warm keeper", "opens its door to all", "feels like home"),
        "rude": ("scowls at strangers", "has a frosty keeper", "shuts its door at dusk", "treats guests like thieves"),
        "shy": ("hides from strangers", "has a silent keeper", "whispers behind its door", "leaves guests alone"),
    },
    "price": {
        "cheap": ("costs next to nothing", "asks for a copper coin", "suits a thin purse", "is a fine bargain"),
        "dear": ("costs a fortune", "asks for a bar of gold", "empties a fat purse", "is fine for the rich"),
        "barter": ("trades copper for salt", "asks for a day of work", "takes no coin or purse", "swaps beds for wool"),
    },
    "food": {
        "fish": ("serves fish", "cooks eels and crabs", "fills plates from the sea", "boils the catch of the day"),
        "meat": ("serves roast lamb", "cooks beef and boar", "fills plates from the hunt", "boils bones for stew"),
        "greens": ("serves roots", "cooks beans and leaves", "fills plates from the garden", "boils barley and peas"),
    },
    "sound": {
        "loud": ("rings with noise", "keeps all awake at night", "roars like the sea", "is full of shouting"),
        "quiet": ("hears no noise", "lets all sleep at night", "is still as snow", "is full of peace"),
        "music": ("rings with songs", "hires a fiddler each night", "plays harps in the yard", "is full of melody"),
    },
    "age": {
        "old": ("was built long ago", "has ancient walls", "stood for ages", "is worn by the storm"),
        "new": ("was built last spring", "has fresh walls", "stood for a week", "is bright with wet paint"),
        "ruined": ("was burnt long ago", "has fallen walls", "stood before the storm", "lost its roof to rain"),
    },
    "craft": {
        "cloth": ("weaves cloth for the rich", "sells cloaks and shirts", "spins wool", "keeps a loom in the yard"),
        "metal": (
            "beats iron all night",
            "sells nails and swords",
            "melts gold",
            "keeps a forge in the yard",
        ),
        "pots": ("shapes clay plates", "sells jugs and bowls", "spins wet mud", "keeps a kiln in the yard"),
    },
    "site": {
        "hill": ("sits on a high ridge", "looks down from a cliff", "needs a steep climb", "has a mountain path"),
        "shore": ("sits on the beach", "looks over the sea", "needs a boat to reach", "lines the harbour walls"),
        "wood": ("sits under oaks", "looks into the forest", "needs a path through pines", "hides among the trees"),
    },
}
"""Topic -> quality -> four ways of telling it."""

TOPICS = tuple(QUALITIES)
SPLITS = {"train": 300, "dev": 20, "test": 60}
"""Towns of each split; a town has `PLACES` places and `QUERIES` queries."""
PLACES = 24
QUERIES = 2
_TOLD = 4  # qualities that a document tells
_EPITHETS = (
    (
        "amber ash black blue broad brown clear coal crow dark deep dun east elm far fern flint fox "
        "glass good green grey half hart hazel hollow lark little mill moon moss "
        "new north otter pale pear queen raven red reed rose rush sand silver south star swan "
        "thorn three tin upper west white wild willow winter wolf wren yarrow"
    )
    .title()
    .split()
)
_LANDS = (
    (
        "acre bank barrow bay beck bend bourne bridge brook burn bury chase comb common cove croft cross dale dean "
        "dell edge end fell fen ferry fold ford furlong gap glen grange green grove hallow ham haven heath "
        "hill holm hurst ing knoll lake lea ley lock mead mere moor mouth nook pass pool rigg "
        "shaw stead stoke strand thorpe tor vale wath way weald well wick wold worth"
    )
    .title()
    .split()
)

TOWN_NAMES = len(_EPITHETS) * len(_LANDS)
_ONSETS = ("b", "br", "d", "dr", "f", "g", "gr", "h", "k", "kr", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v")
_VOWELS = ("a", "e", "i", "o", "u", "au", "ei", "ou")
_CODAS = ("ck", "l", "ld", "m", "n", "nd", "r", "rn", "s", "th", "v", "x")


class Aspect(NamedTuple):
    """One quality of a topic, and a wording that tells it."""

    topic: str
    quality: str
    wording: str


@dataclass(frozen=True)
class Place:
    """A place: the aspects told of it, in the order of the text, and the text that tells them."""

    title: str
    town: str
    told: tuple[Aspect, ...]
    text: str


@dataclass(frozen=True)
class Query:
    town: str
    aspects: tuple[Aspect, ...]

    @property
    def text(self) -> str:
        return f"Which place in {self.town} {' and '.join(aspect.wording for aspect in self.aspects)}?"


@dataclass(frozen=True)
class Town:
    name: str
    places: list[Place]
    queries: list[Query]


def town_name(number: int) -> str:
    """The name of a town: `town_name(0)` is `Amber Acre on Bav`; two towns below `TOWN_NAMES` never share one.

    A town has a river of its own: without it, BM25 would rather find the query's wordings in other towns.
    """
    # 1,009 is prime, so that the numbers of one split do not run through the same first word.
    epithet, land = divmod(number * 1009 % TOWN_NAMES, len(_LANDS))
    # 331 shares no factor with the number of rivers, so that 1,920 towns in a row have different ones.
    rest, coda = divmod(number * 331 + 10, len(_CODAS))
    rest, vowel = divmod(rest, len(_VOWELS))
    river = _ONSETS[rest % len(_ONSETS)] + _VOWELS[vowel] + _CODAS[coda]
    return f"{_EPITHETS[epithet]} {_LANDS[land]} on {river.capitalize()}"


def judge(query: Query, place: Place) -> int:
    """2 if the place has both qualities asked for, 1 if it has one, 0 if none or it lies elsewhere."""
    if query.town != place.town:
        return 0
    told = {aspect.topic: aspect.quality for aspect in place.told}
    return sum(told.get(aspect.topic) == aspect.quality for aspect in query.aspects)


def towns(seed: int, count: int, first: int = 0) -> Iterator[Town]:
    """Towns number `first` to `first + count` of the world with this seed; a number always gives the same town."""
    for number in range(first, first + count):
        rng = np.random.default_rng([seed, number])
        name = town_name(number)
        queries = [_draw_query(rng, name) for _ in range(QUERIES)]
        places = []
        for query in queries:
            for _ in range(3):  # chance alone would leave most queries without a place that has both qualities
                places.append(_draw_place(rng, name, [retell(rng, *aspect[:2]) for aspect in query.aspects]))
            for aspect in query.aspects:
                places += [_draw_place(rng, name, [decoy(rng, aspect)]) for _ in range(2)]
        places += [_draw_place(rng, name, []) for _ in range(PLACES - len(places))]
        yield Town(name, [places[i] for i in rng.permutation(len(places))], queries)


def decoy(rng: np.random.Generator, aspect: Aspect) -> Aspect:
    """Another quality, told in a way that shares a word with this one."""
    words = content_words(aspect.wording)
    sharing = [
        Aspect(topic, quality, wording)
        for topic, qualities in QUALITIES.items()
        for quality, wordings in qualities.items()
        for wording in wordings
        if quality != aspect.quality and words & content_words(wording)
    ]
    return sharing[rng.integers(len(sharing))]


def write_world(folder: Path, seed: int) -> None:
    """Writes one BEIR folder per split (`train`, `dev`, `test`), each with its own corpus, queries and judgements."""
    first = 0
    for split, count in SPLITS.items():
        documents: list[dict[str, str]] = []
        queries: list[dict[str, str]] = []
        judgements = ["query-id\tcorpus-id\tscore"]
        for town in towns(seed, count, first):
            ids = [f"d{len(documents) + i}" for i in range(len(town.places))]
            documents += [
                {"_id": id, "title": place.title, "text": place.text}
                for id, place in zip(ids, town.places, strict=True)
            ]
            for query in town.queries:
                query_id = f"q{len(queries)}"
                queries.append({"_id": query_id, "text": query.text})
                judgements += [
                    f"{query_id}\t{id}\t{judge(query, place)}"
                    for id, place in zip(ids, town.places, strict=True)
                    if judge(query, place)
                ]
        first += count
        (folder / split / "qrels").mkdir(parents=True, exist_ok=True)
        _write_jsonl(folder / split / "corpus.jsonl", documents)
        _write_jsonl(folder / split / "queries.jsonl", queries)
        (folder / split / "qrels" / f"{split}.tsv").write_text("\n".join(judgements) + "\n", encoding="utf-8")


def retell(rng: np.random.Generator, topic: str, quality: str) -> Aspect:
    """A quality in one of its four wordings."""
    return Aspect(topic, quality, QUALITIES[topic][quality][rng.integers(4)])


def _draw_query(rng: np.random.Generator, town: str) -> Query:
    first, second = rng.permutation(len(TOPICS))[:2]
    return Query(town, (draw_aspect(rng, TOPICS[first]), draw_aspect(rng, TOPICS[second])))


def draw_aspect(rng: np.random.Generator, topic: str | None = None) -> Aspect:
    """Any quality, of the topic if one is given."""
    topic = TOPICS[rng.integers(len(TOPICS))] if topic is None else topic
    qualities = list(QUALITIES[topic])
    return retell(rng, topic, qualities[rng.integers(len(qualities))])


def _draw_place(rng: np.random.Generator, town: str, told: Sequence[Aspect]) -> Place:
    aspects = {aspect.topic: aspect for aspect in told}
    for topic in (TOPICS[i] for i in rng.permutation(len(TOPICS))):
        if topic not in aspects and len(aspects) < _TOLD:
            aspects[topic] = draw_aspect(rng, topic)
    order = rng.permutation(len(aspects))
    every = tuple(list(aspects.values())[i] for i in order)
    first, second, third, fourth = (aspect.wording for aspect in every)
    name = "".join(part[rng.integers(len(part))] for part in (_ONSETS, _VOWELS, _CODAS)).capitalize()
    text = f"{name} of {town} {first}. It {second}. It {third} and {fourth}."
    return Place(f"{name}, {town}", town, every, text)


_FUNCTION_WORDS = frozenset(
    "a all an and as at by each every for from has in into is its like no of on or over the to until was".split()
)


def content_words(wording: str) -> frozenset[str]:
    """`"costs a fortune"` -> `{"costs", "fortune"}`: the words that a search engine would match."""
    return frozenset(wording.split()) - _FUNCTION_WORDS


def _write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
