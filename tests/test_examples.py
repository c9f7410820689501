"""Examples of BEIR splits: what a pair and a group hold; and prompts as arrays."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from prorank_jax.data.beir import Collection, read_beir
from prorank_jax.data.candidate_table import Candidates
from prorank_jax.data.candidates import candidates
from prorank_jax.data.examples import JudgedSource, Selection
from prorank_jax.data.loader import encode, pad_prompts, pair_batch
from prorank_jax.data.runs import Run
from prorank_jax.data.stream import Pairs, groups, pairs
from prorank_jax.errors import InputError
from prorank_jax.prompt import Prompt

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


def judged(collection: Collection, run: Run, **selection: Any) -> JudgedSource:
    return JudgedSource.from_collection(collection, Candidates.of_run(collection, run), Selection(**selection))


def source_of(run: Run = RUN, **selection: Any) -> JudgedSource:
    return judged(COLLECTION, run, **selection)


def stream_of(source: JudgedSource, seed: int = 0) -> Pairs:
    return pairs([source], [1.0], seed)


def pairs_of(seed: int, rows: range, **selection: Any) -> tuple[list[tuple[str, int]], list[int]]:
    examples = stream_of(source_of(**selection), seed).rows(rows)
    return [named((query, document)) for query, document, *_ in examples], [example.label for example in examples]


def groups_of(seed: int, positions: range, documents: int) -> list[tuple[str, list[int], list[float]]]:
    stream = groups([source_of()], [1.0], seed, documents)
    found = []
    for position in positions:
        group = stream[position]
        assert group.targets == group.labels and group.instruction is None
        names = [named((group.query, document)) for document in group.documents]
        found.append((names[0][0], [document for _, document in names], list(group.labels)))
    return found


def test_pairs_are_label_balanced_and_labelled_right():
    names, labels = pairs_of(0, range(120))
    assert labels == [1, 0] * 60
    for (query, document), label in zip(names, labels, strict=True):
        assert (document in POSITIVES[query]) == bool(label)
    # A negative is of the same query as the positive before it.
    assert [query for query, _ in names[0::2]] == [query for query, _ in names[1::2]]


def test_every_query_is_seen_once_an_epoch_and_every_positive_in_time():
    names, _ = pairs_of(0, range(180))
    firsts = names[0::2]
    for epoch in range(30):
        assert {query for query, _ in firsts[3 * epoch : 3 * epoch + 3]} == {"a", "b", "c"}
    assert set(firsts) == {(query, document) for query, documents in POSITIVES.items() for document in documents}
    # Each epoch has an order of its own.
    assert len({tuple(query for query, _ in firsts[3 * epoch : 3 * epoch + 3]) for epoch in range(30)}) > 3


def test_negatives_are_the_candidates_of_the_query_and_otherwise_any_document():
    negatives: dict[str, set[int]] = {"a": set(), "b": set(), "c": set()}
    for query, document in pairs_of(0, range(1200))[0][1::2]:
        negatives[query].add(document)
    # All candidates of "a" that are not relevant, the judged d3 included, and of "b".
    assert negatives["a"] == {3, 4, 5, 6, 7, 8, 9}
    assert negatives["b"] == {7}
    assert negatives["c"] == set(range(20)) - {5, 6}


def test_relevant_from_moves_lower_grades_to_the_negatives():
    names, _ = pairs_of(0, range(400), relevant_from=2)
    assert set(names[0::2]) == {("a", 0), ("c", 6)}
    assert {document for query, document in names[1::2] if query == "a"} == set(range(1, 10))


def test_rows_do_not_depend_on_how_they_are_cut():
    # Odd sizes too: five rows hold two or three positives, and never lose one.
    whole, labels = pairs_of(7, range(60))
    for size in (1, 4, 5):
        parts = [pairs_of(7, range(start, start + size)) for start in range(0, 60, size)]
        assert [name for names, _ in parts for name in names] == whole
        assert [label for _, part in parts for label in part] == labels
    stream = stream_of(source_of(), 7)
    assert [named((stream[row].query, stream[row].document)) for row in range(60)] == whole


def test_the_seed_matters_and_repetition_does_not():
    assert pairs_of(1, range(40, 48)) == pairs_of(1, range(40, 48)) != pairs_of(2, range(40, 48))
    assert groups_of(1, range(6), 4) == groups_of(1, range(6), 4) != groups_of(2, range(6), 4)


def test_draws_of_a_seed_stay_what_they_were():
    """Written down once: a run that is resumed by a later version goes through the same batches."""
    assert groups_of(0, range(4), 5) == [
        ("c", [6, 5, 14, 0, 18], [2.0, 1.0, 0.0, 0.0, 0.0]),
        ("a", [1, 0, 3, 4, 5], [1.0, 2.0, 0.0, 0.0, 0.0]),
        ("b", [4, 7, 1, 19, 16], [1.0, 0.0, 0.0, 0.0, 0.0]),
        ("a", [1, 0, 9, 3, 5], [1.0, 2.0, 0.0, 0.0, 0.0]),
    ]
    drawn, _ = pairs_of(0, range(8))
    assert drawn == [("c", 6), ("c", 17), ("a", 2), ("a", 9), ("b", 4), ("b", 7), ("c", 6), ("c", 14)]
    drawn, _ = pairs_of(0, range(8), found_only=True, random_negatives=0.5)
    assert drawn == [("b", 4), ("b", 7), ("a", 2), ("a", 14), ("b", 4), ("b", 17), ("a", 1), ("a", 13)]


def test_a_group_has_its_positive_first_then_another_grade_then_negatives():
    for query, documents, labels in groups_of(0, range(300), 5):
        assert len(set(documents)) == 5
        assert labels == [POSITIVES[query].get(document, 0) for document in documents]
        relevant = 1 if query == "b" else 2
        assert [document in POSITIVES[query] for document in documents] == [True] * relevant + [False] * (5 - relevant)
        if query != "b":
            assert sorted(labels[:2]) == [1, 2]


def test_a_group_of_two_is_a_positive_and_a_negative():
    for query, documents, labels in groups_of(0, range(90), 2):
        assert documents[0] in POSITIVES[query]
        assert labels == [POSITIVES[query][documents[0]], 0]


def test_groups_take_hard_negatives_before_random_documents():
    filled: set[int] = set()
    for query, documents, _ in groups_of(0, range(600), 5):
        if query == "a":
            # Seven candidates are not relevant, more than the three places.
            assert set(documents[2:]) <= {3, 4, 5, 6, 7, 8, 9}
        if query == "b":
            assert documents[:2] == [4, 7]
            filled |= set(documents[2:])
    assert filled == set(range(20)) - {4, 7}


def test_a_group_of_one_is_a_positive_or_a_negative_alike():
    found = groups_of(0, range(300), 1)
    for query, [document], [label] in found:
        assert label == POSITIVES[query].get(document, 0)
    # Within 4 standard deviations of half; a positive always would be 1.
    assert np.mean([label > 0 for _, _, [label] in found]) == pytest.approx(0.5, abs=0.12)


def test_groups_see_each_query_once_an_epoch_and_every_positive_in_time():
    found = groups_of(0, range(120), 4)
    for epoch in range(40):
        assert {query for query, _, _ in found[3 * epoch : 3 * epoch + 3]} == {"a", "b", "c"}
    firsts = {(query, documents[0]) for query, documents, _ in found}
    assert firsts == {(query, document) for query, documents in POSITIVES.items() for document in documents}


def test_only_positives_that_the_first_stage_found():
    found = {"a": {0, 1, 2}, "b": {4}}
    drawn, _ = pairs_of(0, range(200), found_only=True)
    assert set(drawn[0::2]) == {(query, document) for query, documents in found.items() for document in documents}
    source = source_of({**RUN, "c": [("d5", 1.0), ("d8", 0.5)]}, found_only=True)
    stream = groups([source], [1.0], 0, 6)
    seen = {named((stream[i].query, document)) for i in range(150) for document in stream[i].documents}
    assert ("c", 5) in seen
    # d6 is relevant to "c" and was not found: it is no positive, and no negative either.
    assert ("c", 6) not in seen
    with pytest.raises(InputError, match=r"judged 1 or higher and among its query's candidates; set data.found_only"):
        source_of({"a": [("d9", 1.0)]}, found_only=True)


@pytest.mark.parametrize(("share", "random"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_a_share_of_the_negatives_is_from_the_whole_corpus(share: float, random: int):
    source = source_of({"a": [(f"d{i}", 10.0 - i) for i in range(10)]}, random_negatives=share)
    stream = groups([source], [1.0], 0, 6)
    beyond = set()
    for position in range(180):
        group = stream[position]
        documents = [named((group.query, document))[1] for document in group.documents]
        if group.query == "query a":
            # A positive of each grade, then four negatives: what is hard comes first.
            assert len(set(documents)) == 6
            assert set(documents[2 : 6 - random]) <= {3, 4, 5, 6, 7, 8, 9}
            assert not set(documents[2:]) & {0, 1, 2}
            beyond |= set(documents[6 - random :]) - set(range(10))
    assert (beyond == set(range(10, 20))) == (random > 0)
    negatives = [named(example[:2]) for example in stream_of(source).rows(range(2400))[1::2]]
    of_a = [document for query, document in negatives if query == "a"]
    # Of the 17 documents that are no positive of "a", 10 are none of its candidates.
    assert np.mean([document >= 10 for document in of_a]) == pytest.approx(share * 10 / 17, abs=0.09)
    assert not set(of_a) & {0, 1, 2}


def test_a_corpus_too_small_for_a_group_leaves_places_free():
    small = Collection("small", "train", {"x": "document 1", "y": "document 2"}, {"a": "query a"}, {"a": {"x": 1}})
    group = groups([judged(small, {"a": []})], [1.0], 0, 4)[0]
    assert group == ("query a", ("document 1", "document 2"), (1.0, 0.0), (1.0, 0.0), None)


def test_the_document_with_the_id_of_the_query_is_no_example():
    own = Collection("own", "train", {"a": "document 0", "x": "document 1", "y": "document 2"}, {"a": "query a"}, {})
    own.qrels["a"] = {"a": 1, "x": 1}
    examples = stream_of(judged(own, {})).rows(range(40))
    assert [example.document for example in examples] == ["document 1", "document 2"] * 20


def test_a_copy_of_a_positive_is_never_a_negative():
    documents = {"x": "document 1", "copy": "document 1", "y": "document 2"}
    twice = Collection("twice", "train", documents, {"a": "query a"}, {"a": {"x": 1}})
    for run in ({"a": [("x", 3.0), ("copy", 2.0), ("y", 1.0)]}, {"a": [("copy", 2.0)]}, {}):
        source = judged(twice, run)
        assert [example.document for example in stream_of(source).rows(range(40))] == ["document 1", "document 2"] * 20
        stream = groups([source], [1.0], 0, 3)
        assert {stream[i].documents for i in range(20)} == {("document 1", "document 2")}


def test_a_collection_without_a_positive_or_a_negative_is_refused():
    with pytest.raises(InputError, match="made/train: no document of the corpus is judged 3 or higher"):
        source_of(relevant_from=3)
    full = Collection("full", "train", {"x": "1", "a": "2"}, {"a": "query a"}, {"a": {"x": 1}})
    with pytest.raises(InputError, match="full/train: every document is relevant to query 'a'"):
        judged(full, {})


def test_padding():
    tokens, lengths = pad_prompts([[5, 6], [7], [1, 2, 3]], 3, 0)
    assert tokens.tolist() == [[5, 6, 0], [7, 0, 0], [1, 2, 3]]
    assert lengths.tolist() == [2, 1, 3]
    assert tokens.dtype == lengths.dtype == np.int32
    with pytest.raises(ValueError, match="a prompt of 3 tokens does not fit length=2"):
        pad_prompts([[1, 2, 3]], 2, 0)


def test_pair_batch_is_the_stream_as_arrays():
    rows = range(9, 13)
    names, labels = pairs_of(3, rows)
    batch = pair_batch(stream_of(source_of(), 3), PROMPT, rows)
    assert batch.tokens_PxL.shape == (4, 5)
    assert batch.tokens_PxL.dtype == batch.lengths_P.dtype == batch.labels_P.dtype == np.int32
    assert batch.labels_P.tolist() == labels == [0, 1, 0, 1]
    for row, (query, document) in enumerate(names):
        length = 1 + (1 + len(f"document {document}") % 2)
        assert batch.lengths_P[row] == length
        assert batch.tokens_PxL[row].tolist() == [ord(query)] + [document] * (length - 1) + [99] * (5 - length)


def test_an_instruction_of_a_row_reaches_its_prompt_alone(prompt: Prompt):
    rows = [("what", "this", None), ("what", "that", "Judge the second."), ("who", "these", "Judge the third.")]
    rows += [("where", "those", None), ("when", "such", "Judge the second.")]
    expected = [
        (prompt if instruction is None else prompt.with_instruction(instruction)).encode(query, document)
        for query, document, instruction in rows
    ]
    assert encode(prompt, rows) == expected
    assert len({tuple(ids) for ids in expected}) == 5
    # Prompts that are not the same one keep their own.
    longer = replace(prompt, max_length=60)
    assert encode(longer, [("what", "that " * 99, "Judge the second.")]) == [
        longer.with_instruction("Judge the second.").encode("what", "that " * 99)
    ]
    assert encode(prompt, []) == []


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
    source = judged(collection, run)
    examples = stream_of(source).rows(range(12_000, 16_000))
    assert [(example.query, example.document) in best for example in examples] == [True, False] * 2000
    stream = groups([source], [1.0], 0, 8)
    drawn = [stream[position] for position in range(1200, 1600)]
    for group in drawn:
        assert [(group.query, document) in best for document in group.documents] == [x > 0 for x in group.labels]
    # Where a query has both grades, about one in three, its groups show both.
    both = [set(collection.qrels[group.query].values()) == {1, 2} for group in drawn]
    assert [{1.0, 2.0} <= set(group.labels) for group in drawn] == both
    assert 0.2 < np.mean(both) < 0.5
