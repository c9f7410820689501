"""Training examples: what a pair and a group hold, and that a batch depends on seed and step alone."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from prorank_jax.data.beir import Collection, read_beir
from prorank_jax.data.candidates import Run, candidates
from prorank_jax.data.examples import Groups, Pairs, Selection
from prorank_jax.data.loader import group_batch, pad_prompts, pair_batch
from prorank_jax.errors import InputError

# Texts name their ids, so that a pair of texts tells where it came from.
COLLECTION = Collection(
    name="made",
    split="train",
    documents={f"d{i}": f"document {i}" for i in range(20)},
    queries={"a": "query a", "b": "query b", "c": "query c"},
    qrels={
        # "gone" has no text; d3 is judged, but not relevant; 2 and 1 are grades.
        "a": {"d0": 2, "d1": 1, "d2": 1, "d3": 0, "gone": 2},
        "b": {"d4": 1},
        "c": {"d5": 1, "d6": 2},
    },
)
RUN: Run = {
    "a": [(f"d{i}", 10.0 - i) for i in range(10)],
    "b": [("d4", 3.0), ("d7", 2.0)],
    "c": [],
}
POSITIVES = {"a": {0: 2, 1: 1, 2: 1}, "b": {4: 1}, "c": {5: 1, 6: 2}}


@dataclass(frozen=True)
class FakePrompt:
    """Encodes a pair as the letter of its query and the number of its document, once for each token of length."""

    max_length: int = 5
    pad_id: int = 99

    def encode_batch(self, pairs):
        return [[ord(query[-1])] + [int(document.split()[1])] * (1 + len(document) % 2) for query, document in pairs]


PROMPT: Any = FakePrompt()


def named(pair: tuple[str, str]) -> tuple[str, int]:
    query, document = pair
    assert query in COLLECTION.queries.values()
    assert document in COLLECTION.documents.values()
    return query.removeprefix("query "), int(document.removeprefix("document "))


def pairs_of(seed: int, step: int, size: int, relevant_from: int = 1) -> tuple[list[tuple[str, int]], np.ndarray]:
    pairs, labels = Pairs.from_collection(COLLECTION, RUN, Selection(relevant_from)).batch(seed, step, size)
    return [named(pair) for pair in pairs], labels


def groups_of(seed: int, steps: int, queries: int, documents: int) -> list[tuple[str, list[int], list[float]]]:
    stream = Groups.from_collection(COLLECTION, RUN, Selection())
    found = []
    for step in range(steps):
        groups, labels = stream.batch(seed, step, queries, documents)
        assert labels.shape == (queries, documents)
        assert labels.dtype == np.float32
        for group, row in zip(groups, labels, strict=True):
            names = [named(pair) for pair in group]
            assert len({query for query, _ in names}) == 1
            found.append((names[0][0], [document for _, document in names], row.tolist()))
    return found


def test_pairs_are_label_balanced_and_labelled_right():
    for step in range(30):
        names, labels = pairs_of(seed=0, step=step, size=4)
        assert labels.tolist() == [1, 0, 1, 0]
        assert labels.dtype == np.int32
        for (query, document), label in zip(names, labels, strict=True):
            assert (document in POSITIVES[query]) == bool(label)
        # A negative is of the same query as the positive before it.
        assert [query for query, _ in names[0::2]] == [query for query, _ in names[1::2]]


def test_every_positive_is_seen_once_an_epoch():
    everything = {(query, document) for query, documents in POSITIVES.items() for document in documents}
    for epoch in range(3):
        # Six positives: an epoch is three batches of two.
        seen = [pair for step in range(3) for pair in pairs_of(0, 3 * epoch + step, 4)[0][0::2]]
        assert Counter(seen) == Counter(everything)
    assert [pairs_of(0, step, 12)[0][0::2] for step in (0, 1)] != [pairs_of(0, 0, 12)[0][0::2]] * 2


def test_negatives_are_the_candidates_of_the_query_and_otherwise_any_document():
    negatives: dict[str, set[int]] = {"a": set(), "b": set(), "c": set()}
    for step in range(300):
        for query, document in pairs_of(0, step, 4)[0][1::2]:
            negatives[query].add(document)
    # All candidates of "a" that are not relevant, the judged d3 included, and of "b".
    assert negatives["a"] == {3, 4, 5, 6, 7, 8, 9}
    assert negatives["b"] == {7}
    assert negatives["c"] == set(range(20)) - {5, 6}


def test_relevant_from_moves_lower_grades_to_the_negatives():
    drawn = [pairs_of(0, step, 4, relevant_from=2) for step in range(100)]
    assert {pair for names, _ in drawn for pair in names[0::2]} == {("a", 0), ("c", 6)}
    assert {document for names, _ in drawn for query, document in names[1::2] if query == "a"} == set(range(1, 10))


def test_a_batch_is_a_window_of_one_stream():
    # Odd sizes too: five rows a step hold two or three positives, and never lose one.
    whole, labels = pairs_of(seed=7, step=0, size=60)
    for size in (1, 4, 5):
        parts = [pairs_of(seed=7, step=step, size=size) for step in range(60 // size)]
        assert [name for names, _ in parts for name in names] == whole
        assert np.concatenate([row for _, row in parts]).tolist() == labels.tolist()


def test_the_seed_matters_and_repetition_does_not():
    assert pairs_of(1, 5, 8)[0] == pairs_of(1, 5, 8)[0]
    assert pairs_of(1, 5, 8)[0] != pairs_of(2, 5, 8)[0]
    assert groups_of(1, 3, 2, 4) == groups_of(1, 3, 2, 4)
    assert groups_of(1, 3, 2, 4) != groups_of(2, 3, 2, 4)
    # The stream of groups does not depend on how it is cut.
    assert groups_of(1, 6, 1, 4) == groups_of(1, 3, 2, 4) == groups_of(1, 1, 6, 4)


def test_a_group_has_its_positive_first_then_another_grade_then_negatives():
    for query, documents, labels in groups_of(seed=0, steps=100, queries=3, documents=5):
        assert len(set(documents)) == 5
        assert labels == [POSITIVES[query].get(document, 0) for document in documents]
        relevant = 1 if query == "b" else 2
        assert [document in POSITIVES[query] for document in documents] == [True] * relevant + [False] * (5 - relevant)
        if query != "b":
            assert sorted(labels[:2]) == [1, 2]


def test_a_group_of_two_is_a_positive_and_a_negative():
    for query, documents, labels in groups_of(seed=0, steps=30, queries=3, documents=2):
        assert documents[0] in POSITIVES[query]
        assert labels == [POSITIVES[query][documents[0]], 0]


def test_groups_take_hard_negatives_before_random_documents():
    filled: set[int] = set()
    for query, documents, _ in groups_of(seed=0, steps=200, queries=3, documents=5):
        if query == "a":
            # Seven candidates are not relevant, more than the three places.
            assert set(documents[2:]) <= {3, 4, 5, 6, 7, 8, 9}
        if query == "b":
            assert documents[:2] == [4, 7]
            filled |= set(documents[2:])
    assert filled == set(range(20)) - {4, 7}


def test_groups_see_each_query_once_an_epoch_and_every_positive_in_time():
    found = groups_of(seed=0, steps=40, queries=3, documents=4)
    for epoch in range(40):
        assert {query for query, _, _ in found[3 * epoch : 3 * epoch + 3]} == {"a", "b", "c"}
    firsts = {(query, documents[0]) for query, documents, _ in found}
    assert firsts == {(query, document) for query, documents in POSITIVES.items() for document in documents}


def test_only_positives_that_the_first_stage_found():
    found = {"a": {0, 1, 2}, "b": {4}}
    pairs = Pairs.from_collection(COLLECTION, RUN, Selection(found_only=True))
    drawn = [named(pair) for step in range(50) for pair in pairs.batch(0, step, 4)[0]]
    assert set(drawn[0::2]) == {(query, document) for query, documents in found.items() for document in documents}
    groups = Groups.from_collection(COLLECTION, {**RUN, "c": [("d5", 1.0), ("d8", 0.5)]}, Selection(found_only=True))
    seen = {named(pair) for step in range(50) for group in groups.batch(0, step, 3, 6)[0] for pair in group}
    assert ("c", 5) in seen
    # d6 is relevant to "c" and was not found: it is no positive, and no negative either.
    assert ("c", 6) not in seen
    with pytest.raises(InputError, match=r"judged 1 or higher and among its query's candidates; set data.found_only"):
        Pairs.from_collection(COLLECTION, {"a": [("d9", 1.0)]}, Selection(found_only=True))


@pytest.mark.parametrize(("share", "random"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_a_share_of_the_negatives_is_from_the_whole_corpus(share: float, random: int):
    run: Run = {"a": [(f"d{i}", 10.0 - i) for i in range(10)]}
    groups = Groups.from_collection(COLLECTION, run, Selection(random_negatives=share))
    beyond = set()
    for step in range(60):
        for group in groups.batch(0, step, 3, 6)[0]:
            (query, *_), documents = zip(*map(named, group), strict=True)
            if query == "a":
                # A positive of each grade, then four negatives: what is hard comes first.
                assert len(set(documents)) == 6
                assert set(documents[2 : 6 - random]) <= {3, 4, 5, 6, 7, 8, 9}
                assert not set(documents[2:]) & {0, 1, 2}
                beyond |= set(documents[6 - random :]) - set(range(10))
    assert (beyond == set(range(10, 20))) == (random > 0)
    pairs = Pairs.from_collection(COLLECTION, run, Selection(random_negatives=share))
    drawn = [named(pair) for step in range(400) for pair in pairs.batch(0, step, 4)[0][1::2]]
    of_a = [document for query, document in drawn if query == "a"]
    # Of the 17 documents that are no positive of "a", 10 are none of its candidates.
    assert np.mean([document >= 10 for document in of_a]) == pytest.approx(share * 10 / 17, abs=0.06)
    assert not set(of_a) & {0, 1, 2}


def test_a_corpus_too_small_for_a_group_leaves_places_free():
    small = Collection("small", "train", {"x": "document 1", "y": "document 2"}, {"a": "query a"}, {"a": {"x": 1}})
    stream = Groups.from_collection(small, {"a": []}, Selection())
    groups, labels = stream.batch(0, 0, 1, 4)
    assert groups == [[("query a", "document 1"), ("query a", "document 2")]]
    assert labels.tolist() == [[1, 0, 0, 0]]
    batch = group_batch(stream, PROMPT, 1, 4, 0, 0)
    assert batch.mask_QxN.tolist() == [[True, True, False, False]]
    assert batch.tokens_QxNxL[0, 2:].tolist() == [[99] * 5] * 2
    assert batch.lengths_QxN.tolist() == [[2, 2, 1, 1]]


def test_the_document_with_the_id_of_the_query_is_no_example():
    own = Collection("own", "train", {"a": "document 0", "x": "document 1", "y": "document 2"}, {"a": "query a"}, {})
    own.qrels["a"] = {"a": 1, "x": 1}
    for step in range(20):
        pairs, _ = Pairs.from_collection(own, {}, Selection()).batch(0, step, 2)
        assert pairs == [("query a", "document 1"), ("query a", "document 2")]


def test_a_copy_of_a_positive_is_never_a_negative():
    documents = {"x": "document 1", "copy": "document 1", "y": "document 2"}
    twice = Collection("twice", "train", documents, {"a": "query a"}, {"a": {"x": 1}})
    for run in ({"a": [("x", 3.0), ("copy", 2.0), ("y", 1.0)]}, {"a": [("copy", 2.0)]}, {}):
        for step in range(20):
            expected = [("query a", "document 1"), ("query a", "document 2")]
            assert Pairs.from_collection(twice, run, Selection()).batch(0, step, 2)[0] == expected
            assert Groups.from_collection(twice, run, Selection()).batch(0, step, 1, 3)[0] == [expected]


def test_a_collection_without_a_positive_or_a_negative_is_refused():
    with pytest.raises(InputError, match="made/train: no document of the corpus is judged 3 or higher"):
        Pairs.from_collection(COLLECTION, RUN, Selection(3))
    full = Collection("full", "train", {"x": "1", "a": "2"}, {"a": "query a"}, {"a": {"x": 1}})
    with pytest.raises(InputError, match="full/train: every document is relevant to query 'a'"):
        Groups.from_collection(full, {}, Selection())


def test_padding():
    tokens, lengths = pad_prompts([[5, 6], [7], [1, 2, 3]], 3, 0)
    assert tokens.tolist() == [[5, 6, 0], [7, 0, 0], [1, 2, 3]]
    assert lengths.tolist() == [2, 1, 3]
    assert tokens.dtype == lengths.dtype == np.int32
    with pytest.raises(ValueError, match="a prompt of 3 tokens does not fit length=2"):
        pad_prompts([[1, 2, 3]], 2, 0)


def test_pair_batch_is_the_stream_as_arrays():
    names, labels = pairs_of(3, 2, 4)
    batch = pair_batch(Pairs.from_collection(COLLECTION, RUN, Selection()), PROMPT, 4, 3, 2)
    assert batch.tokens_PxL.shape == (4, 5)
    assert batch.labels_P.tolist() == labels.tolist()
    for row, (query, document) in enumerate(names):
        length = 1 + (1 + len(f"document {document}") % 2)
        assert batch.lengths_P[row] == length
        assert batch.tokens_PxL[row].tolist() == [ord(query)] + [document] * (length - 1) + [99] * (5 - length)


@dataclass(frozen=True)
class Labelled:
    """A stream of pairs whose labels are graded judgements: those of the second batch of four."""

    labels: tuple[int, ...]

    def batch(self, seed, step, size):
        assert (seed, step, size) == (3, 2, 4)
        texts = [("query a", "document 1"), ("query " + "long " * 9, "document 2 " + "of many words " * 3)] * 2
        return texts, np.array(self.labels, np.int32)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        # Counted over the whole stream: the first of batch 2 is pair 8.
        ((2, 0, 1, 0), "pair 8: the label 2 of query 'query a' and document 'document 1' "),
        ((1, 0, 1, -1), "pair 11: the label -1 of query {query!r} and document {document!r} "),
        # The first one is told; a label of 1 before it is none.
        ((1, 3, 2, 0), "pair 9: the label 3 of query {query!r} and document {document!r} "),
    ],
)
def test_a_pair_is_relevant_or_not(labels, message):
    stream: Any = Labelled(labels)
    with pytest.raises(InputError) as caught:
        pair_batch(stream, PROMPT, 4, 3, 2)
    # Forty characters of each text tell which it is.
    cut = {"query": "query long long long long long long long", "document": "document 2 of many words of many words o"}
    assert {len(text) for text in cut.values()} == {40}
    assert str(caught.value) == message.format(**cut) + (
        "is not 0 or 1; judge pairs as relevant or not (data.relevant_from)"
    )


def test_group_batch_is_the_stream_as_arrays():
    found = groups_of(3, 3, 2, 4)[4:]
    batch = group_batch(Groups.from_collection(COLLECTION, RUN, Selection()), PROMPT, 2, 4, 3, 2)
    assert batch.tokens_QxNxL.shape == (2, 4, 5)
    assert batch.tokens_QxNxL.dtype == batch.lengths_QxN.dtype == np.int32
    assert batch.mask_QxN.all()
    assert batch.labels_QxN.tolist() == [labels for _, _, labels in found]
    assert batch.tokens_QxNxL[:, :, 0].tolist() == [[ord(query)] * 4 for query, _, _ in found]
    assert batch.tokens_QxNxL[:, :, 1].tolist() == [documents for _, documents, _ in found]


def test_no_negative_of_a_real_collection_is_a_judged_positive(shared):
    collection = read_beir(shared / "data" / "nfcorpus", "dev")
    run = candidates(collection, str(shared / "data" / "nfcorpus" / "runs" / "bm25s.dev.top100.trec"), 100)
    # Two queries have the same text; here each is its id.
    collection = replace(collection, queries={name: name for name in collection.queries})
    # The corpus has 40 texts twice: a text counts by the highest judgement that any of its ids has.
    best: dict[tuple[str, str], int] = {}
    for query, judgements in collection.qrels.items():
        for name, judgement in judgements.items():
            pair = (query, collection.documents[name])
            best[pair] = max(best.get(pair, 0), judgement)
    pairs, labels = Pairs.from_collection(collection, run, Selection()).batch(0, 3, 4000)
    relevant = [(query, document) in best for query, document in pairs]
    assert relevant == (labels == 1).tolist()
    groups, grades = Groups.from_collection(collection, run, Selection()).batch(0, 3, 400, 8)
    judged = [[(query, document) in best for query, document in group] for group in groups]
    assert judged == (grades > 0).tolist()
    # Where a query has both grades, about one in three, its groups show both.
    both = [set(collection.qrels[group[0][0]].values()) == {1, 2} for group in groups]
    assert ((grades == 2).any(1) & (grades == 1).any(1)).tolist() == both
    assert 0.2 < np.mean(both) < 0.5
