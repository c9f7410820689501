"""The reranker: scores as computed one by one, whatever the batch, and documents in their order."""

import copy
import dataclasses
import shutil
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec
from sentence_transformers import CrossEncoder
from transformers import AutoModelForCausalLM

import prorank_jax
from prorank_jax.card import Record
from prorank_jax.cross_encoder import LOGIT_SCORE
from prorank_jax.errors import InputError
from prorank_jax.export import export_model
from prorank_jax.model.decoder import Params
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import Prompt
from prorank_jax.reranker import Hit, Reranker, _scorer

pytestmark = pytest.mark.usefixtures("fast_compilation")

QUERY = "Which place serves fish?"
WORDS = "a town on the coast with a keeper who cooks eels and crabs in the yard under oaks".split()


def documents(count: int, longest: int = 60) -> list[str]:
    rng = np.random.default_rng(count)
    return [" ".join(rng.choice(WORDS, rng.integers(0, longest))) for _ in range(count)]


@pytest.fixture(scope="module")
def reranker(tiny_model: Path) -> Reranker:
    return Reranker.from_pretrained(tiny_model, max_length=160)


@pytest.fixture(scope="module")
def exported(tiny_model: Path, reranker: Reranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "export"
    export_model(folder, load_pretrained(tiny_model), reranker.params, reranker.prompt, Record("base"))
    return folder


def copy_with_head(exported: Path, folder: Path, content: str) -> Path:
    """The exported folder with another `1_LogitScore/config.json`."""
    shutil.copytree(exported, folder)
    (folder / LOGIT_SCORE / "config.json").write_text(content)
    return folder


def one_by_one(folder: Path, prompt: Prompt, pairs: list[tuple[str, str]]) -> np.ndarray:
    """z1 - z0 behind each prompt alone, without padding, by torch."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        answers = [
            model(input_ids=torch.tensor([prompt.encode(*pair)])).logits[0, -1, list(prompt.answer_ids)]
            for pair in pairs
        ]
    return np.array([float(z1 - z0) for z0, z1 in answers])


def test_scores_are_those_of_each_pair_alone_in_the_order_given(tiny_model: Path, reranker: Reranker) -> None:
    pairs = [(QUERY, document) for document in documents(24)] + [("Where is it quiet?", "It is full of peace.")]
    expected = one_by_one(tiny_model, reranker.prompt, pairs)
    assert expected.std() > 0.05  # a model that scores all alike would pass in any order
    scores = reranker.predict(pairs)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=2e-5)


def texts_of_all_lengths() -> list[tuple[str, str]]:
    """Several documents for each of several queries, empty ones among them, in no order."""
    words = " ".join(documents(9))
    queries = [QUERY, "", "warm?", words[:150], words]
    pairs = [(query, document) for query in queries for document in (*documents(7), "", words, "It serves fish.")]
    return [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))]


@pytest.mark.parametrize("devices", [1, 8])
def test_a_score_is_the_same_to_the_bit_whatever_is_scored_beside_it(reranker: Reranker, devices: int) -> None:
    placed = reranker
    if devices == 1:
        placed = dataclasses.replace(reranker, params=jax.device_put(reranker.params, jax.devices()[0]))
    pairs = texts_of_all_lengths()
    together = placed.predict(pairs)
    alone = [placed.predict([pair])[0] for pair in pairs]
    np.testing.assert_array_equal(together, alone)
    for batch_size in (1, 7, 64):
        np.testing.assert_array_equal(placed.predict(pairs, batch_size=batch_size), together)
    np.testing.assert_array_equal(placed.predict(pairs[::-1])[::-1], together)


def test_several_threads_get_the_scores_of_one(reranker: Reranker) -> None:
    pairs = texts_of_all_lengths()
    expected = reranker.predict(pairs)
    shares = [range(start, len(pairs), 8) for start in range(8)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda share: reranker.predict([pairs[i] for i in share]), shares))
    for share, scores in zip(shares, found, strict=True):
        np.testing.assert_array_equal(scores, expected[list(share)])


def test_scores_between_0_and_1(reranker: Reranker) -> None:
    pairs = [(QUERY, document) for document in documents(5)]
    scores, normalized = reranker.predict(pairs), reranker.predict(pairs, normalize=True)
    assert normalized.dtype == np.float32
    # Not divided by two or three before, as some rerankers do.
    np.testing.assert_allclose(np.log(normalized / (1 - normalized)), scores, atol=1e-5)


@pytest.mark.filterwarnings("error")
def test_a_score_between_0_and_1_neither_overflows_nor_ties(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = np.array([-3e38, -100.0, -89.0, 0.0, 89.0, 3e38], np.float32)
    monkeypatch.setattr(Reranker, "predict_chunks", lambda *_, **__: iter([far]))
    normalized = reranker.predict([(QUERY, "d")] * len(far), normalize=True)
    # exp(-89) in 32 bits, where 1 / (1 + exp(89)) would be 1 / inf.
    np.testing.assert_allclose(normalized, [0, 3.7835e-44, 2.2273e-39, 0.5, 1, 1], rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_by_pair(
    reranker: Reranker, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    """The embedding of one token is spoilt, and one document has it."""
    plain, ours = ["It serves fish.", "It is cold."], "It serves eels%"
    ids = {text: set(reranker.prompt.encode(QUERY, text)) for text in (*plain, ours)}
    [spoilt, *_] = ids[ours] - ids[plain[0]] - ids[plain[1]]
    embedding = np.array(reranker.params["embedding"])
    embedding[spoilt] = bad
    place = reranker.params["embedding"].sharding
    broken = dataclasses.replace(reranker, params=reranker.params | {"embedding": jax.device_put(embedding, place)})
    assert [hit.index for hit in broken.rank(QUERY, plain)] == [hit.index for hit in reranker.rank(QUERY, plain)]
    told = (
        f"pair {{}}, query {QUERY!r} and document {ours!r}: the score is nan, not a finite number: values in the model "
        "overflow; use float32, or another checkpoint"
    )
    for normalize in (False, True):
        with pytest.raises(InputError) as refused:
            broken.predict([(QUERY, plain[0]), (QUERY, ours), (QUERY, ours)], normalize=normalize)
        assert str(refused.value) == told.format(1)
    with pytest.raises(InputError) as refused:
        broken.rank(QUERY, [*plain, {"text": ours}], top_k=1)
    assert str(refused.value) == told.format(2)
    # In whatever chunk of the pairs it is.
    monkeypatch.setattr("prorank_jax.reranker._CHUNK", 2)
    with pytest.raises(InputError) as refused:
        broken.predict([(QUERY, text) for text in (*plain, plain[0], ours, *plain)])
    assert str(refused.value) == told.format(3)


def test_documents_may_have_titles(reranker: Reranker) -> None:
    given = [
        {"title": "Lorn", "text": "It serves fish."},
        {"text": "It is cold."},
        {"title": "", "text": "x"},
    ]
    told = ["Lorn It serves fish.", "It is cold.", "x"]
    hits = reranker.rank(QUERY, given)
    assert [hit.score for hit in hits] == [hit.score for hit in reranker.rank(QUERY, told)]
    assert all(hit.document is given[hit.index] for hit in hits)
    np.testing.assert_array_equal(
        reranker.predict([(QUERY, document) for document in given]),
        reranker.predict([(QUERY, document) for document in told]),
    )


def test_hits_answer_the_keys_of_sentence_transformers(exported: Path, reranker: Reranker) -> None:
    texts = documents(5)
    theirs = CrossEncoder(str(exported), device="cpu").rank(QUERY, texts, return_documents=True)
    ours = [dict(hit) for hit in reranker.rank(QUERY, [{"text": text} for text in texts])]
    assert [sorted(hit) for hit in ours] == [sorted(hit) for hit in theirs]
    assert [(hit["corpus_id"], hit["text"]) for hit in ours] == [(hit["corpus_id"], hit["text"]) for hit in theirs]
    without = reranker.rank(QUERY, texts, return_documents=False)[0]
    assert without.document is None and set(dict(without)) == {"corpus_id", "score"}
    with pytest.raises(KeyError, match="text"):
        without["text"]


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        ("ab", "pair 1, 'ab': is not a query and a document"),
        ((QUERY,), "is not a query and a document"),
        ((QUERY, None), "document 'None': use a string, or a mapping"),
        ((QUERY, {"title": "x"}), "use a string, or a mapping with the strings `text` and `title`"),
        ((QUERY, {"title": 3, "text": "x"}), "use a string, or a mapping"),
        ((None, "x"), "is not a query and a document"),
    ],
)
def test_what_is_no_pair_is_refused(reranker: Reranker, pair: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        reranker.predict([(QUERY, "fine"), pair])
    assert told in str(caught.value)


def test_chunks_are_joined_in_order(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [(QUERY, document) for document in documents(41)]
    together = reranker.predict(pairs)
    monkeypatch.setattr("prorank_jax.reranker._CHUNK", 10)
    np.testing.assert_array_equal(reranker.predict(pairs), together)


def test_tokens_are_those_of_each_prompt_as_it_is_computed(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prorank_jax.reranker._CHUNK", 4)
    texts = [*documents(5), "", " ".join(WORDS * 20)]
    pairs = [(query, text) for text in texts for query in (QUERY, "eels")]
    scores, tokens = reranker.predict_counted(pairs)
    np.testing.assert_array_equal(scores, reranker.predict(pairs))
    assert tokens.tolist() == [len(reranker.prompt.encode(*pair)) for pair in pairs]
    assert tokens[-2:].tolist() == [160, 160] and tokens[:-2].max() < 160
    # Not of the query and the document alone.
    assert tokens.min() > 30
    task = "eels " * 20
    [longer] = reranker.predict_counted([(QUERY, "eels")], instruction=task)[1]
    assert longer == len(reranker.prompt.with_instruction(task).encode(QUERY, "eels"))
    assert [len(one) for one in reranker.predict_counted([])] == [0, 0]


def test_nothing_to_score(reranker: Reranker) -> None:
    assert reranker.predict([]).shape == (0,)
    assert reranker.rank(QUERY, []) == []


def test_rank_sorts_keeps_ties_in_order_and_cuts(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"a": 1.0, "b": 3.0, "c": 1.0, "d": -2.0, "e": 3.0}

    def predict(self: Reranker, pairs: list[tuple[str, str]], instruction: None) -> np.ndarray:
        assert {query for query, _ in pairs} == {QUERY}
        return np.array([scores[document] for _, document in pairs], np.float32)

    monkeypatch.setattr(Reranker, "predict", predict)
    # An unstable or reversed sort would give e before b, or c before a.
    ranked = [Hit(1, 3.0, "b"), Hit(4, 3.0, "e"), Hit(0, 1.0, "a"), Hit(2, 1.0, "c"), Hit(3, -2.0, "d")]
    assert reranker.rank(QUERY, list("abcde")) == ranked
    assert reranker.rank(QUERY, list("abcde"), top_k=2) == ranked[:2]
    assert reranker.rank(QUERY, list("abcde"), top_k=9) == ranked
    for documents, top_k, message in (
        (list("abcde"), -1, r"top_k=-1: use 1 or more, or leave it out"),
        (list("abcde"), 0, r"top_k=0: use 1 or more, or leave it out"),
        ("abcde", 2, r"documents='abcde': is one text; give a list of documents"),
    ):
        with pytest.raises(InputError, match=message):
            reranker.rank(QUERY, documents, top_k=top_k)


def test_rank_scores_as_predict_does(reranker: Reranker) -> None:
    texts = documents(9)
    scores = reranker.predict([(QUERY, text) for text in texts])
    hits = reranker.rank(QUERY, texts)
    assert sorted(hit.index for hit in hits) == list(range(9))
    for hit in hits:
        assert hit.document == texts[hit.index]
        assert hit.score == float(scores[hit.index])


def test_a_long_document_is_cut_and_a_long_query_leaves_it_room(reranker: Reranker) -> None:
    long = " ".join(documents(40))
    cut, longer = reranker.predict([(QUERY, long), (QUERY, long + " and no end")])
    assert cut == pytest.approx(longer, abs=1e-6)
    scores = reranker.predict([(long, "It serves fish."), (long, "It is full of peace.")])
    assert abs(scores[0] - scores[1]) > 1e-3


def test_few_shapes_are_compiled_over_many_lengths(tiny_model: Path) -> None:
    reranker = Reranker.from_pretrained(tiny_model, max_length=256)
    _scorer.cache_clear()
    lengths = set()
    for count in (300, 3, 1, 2):
        pairs = [(QUERY, document) for document in documents(count, longest=150)]
        lengths |= {len(ids) for ids in reranker.prompt.encode_batch(pairs)}
        reranker.predict(pairs)
    assert len(lengths) > 100
    compiled: Any = _scorer(reranker.decoder, reranker.prompt.answer_ids, reranker.mesh)
    # One query, and nothing that an empty document shares; of what follows, the 12 widths up to 224, with one or two
    # sizes of a batch.
    assert compiled.begin._cache_size() == 2
    assert compiled.score._cache_size() <= 24


def test_a_model_may_be_split_over_devices(tiny_model: Path, reranker: Reranker) -> None:
    split = Reranker.from_pretrained(tiny_model, max_length=160, fsdp=4)
    assert dict(split.mesh.shape) == {"data": 2, "fsdp": 4}
    assert split.params["embedding"].addressable_shards[0].data.shape == (700, 8)
    pairs = [(QUERY, document) for document in documents(21)]
    np.testing.assert_allclose(split.predict(pairs), reranker.predict(pairs), atol=1e-5)
    with pytest.raises(InputError, match="fsdp=3: there are 8 devices; use a divisor of that"):
        Reranker.from_pretrained(tiny_model, fsdp=3)


def test_the_maximum_length_is_the_callers_or_the_folders_or_512(tiny_model: Path, exported: Path) -> None:
    assert Reranker.from_pretrained(tiny_model).max_length == 512
    assert Reranker.from_pretrained(exported).max_length == 160
    assert Reranker.from_pretrained(exported, max_length=96).max_length == 96
    cut = Reranker.from_pretrained(exported, max_length=96)
    assert max(len(ids) for ids in cut.prompt.encode_batch([(QUERY, " ".join(documents(9)))])) == 96


def test_a_dtype_of_less_precision_gives_nearly_the_same(tiny_model: Path, reranker: Reranker) -> None:
    half = Reranker.from_pretrained(str(tiny_model), max_length=160, dtype="bfloat16")
    assert (reranker.dtype, half.dtype) == ("float32", "bfloat16")
    pairs = [(QUERY, document) for document in documents(16)]
    exact, rounded = reranker.predict(pairs), half.predict(pairs)
    assert 0 < np.abs(exact - rounded).max() < 0.2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"dtype": "float16"}, "dtype='float16': not known; use float32 or bfloat16"),
        ({"max_length": 10}, "max_length=10: the template takes"),
        ({"max_length": 0}, "max_length=0: the template takes"),
    ],
)
def test_bad_arguments_are_refused(tiny_model: Path, arguments: dict, told: str) -> None:
    with pytest.raises(InputError) as caught:
        Reranker.from_pretrained(tiny_model, **arguments)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not valid JSON"),
        ("[]", "does not name true_token_id and false_token_id; export the model again"),
        ('{"false_token_id": 4}', "does not name true_token_id and false_token_id; export the model again"),
        ('{"true_token_id": 4, "false_token_id": null}', "false_token_id=None: a score that is the logit of one token"),
    ],
)
def test_a_damaged_score_head_is_refused(exported: Path, tmp_path: Path, content: str, told: str) -> None:
    folder = copy_with_head(exported, tmp_path / "damaged", content)
    with pytest.raises(InputError) as caught:
        Reranker.from_pretrained(folder)
    assert str(caught.value).startswith(f"{folder / LOGIT_SCORE / 'config.json'}: ")
    assert told in str(caught.value)


def test_the_score_is_of_the_tokens_that_the_folder_names(exported: Path, tmp_path: Path) -> None:
    folder = copy_with_head(exported, tmp_path / "other", '{"false_token_id": 41, "true_token_id": 42}')
    reranker = Reranker.from_pretrained(folder)
    assert reranker.prompt.answer_ids == (41, 42)
    assert reranker.prompt.answers == tuple(reranker.prompt.tokenizer.decode([id_]) for id_ in (41, 42))


def test_the_package_offers_the_reranker() -> None:
    assert prorank_jax.Reranker is Reranker


def test_a_prompt_that_we_make_shows_either_first(tiny_model: Path, exported: Path) -> None:
    pair = ("Which is warm?", "It is cold.")
    first, second = (
        Reranker.from_pretrained(tiny_model, max_length=160, order=order) for order in ("query_first", "document_first")
    )
    assert first.prompt.encode(*pair) == Reranker.from_pretrained(tiny_model, max_length=160).prompt.encode(*pair)
    assert second.prompt.pieces.document_first and not first.prompt.pieces.document_first
    assert Reranker.from_pretrained(exported, order="query_first").max_length == 160
    with pytest.raises(InputError, match="prints the query first, and prompt.order is document_first"):
        Reranker.from_pretrained(exported, order="document_first")
    with pytest.raises(InputError, match="order='up': not known; use query_first or document_first"):
        Reranker.from_pretrained(tiny_model, order="up")


def test_chunks_have_the_scores_of_their_pairs_and_are_read_one_ahead(reranker: Reranker) -> None:
    pairs = [(QUERY, document) for document in documents(23)]
    taken = []

    def chunks() -> Iterator[list[tuple[str, str]]]:
        for start in (0, 10, 20):
            taken.append(start)
            yield pairs[start : start + 10]

    found = []
    for scores in reranker.predict_chunks(chunks()):
        found.append(scores)
        assert len(taken) <= len(found) + 3
    assert [len(scores) for scores in found] == [10, 10, 3]
    np.testing.assert_allclose(np.concatenate(found), reranker.predict(pairs), atol=1e-5)
    # Bit for bit those of the chunk alone: what was tokenised for another chunk changes nothing.
    for start, scores in zip((0, 10, 20), found, strict=True):
        [alone] = reranker.predict_chunks([pairs[start : start + 10]])
        np.testing.assert_array_equal(scores, alone)
    assert list(reranker.predict_chunks([])) == []


def test_what_reading_a_chunk_raises_is_raised_in_its_place(reranker: Reranker) -> None:
    def chunks() -> Iterator[list[tuple[str, str]]]:
        yield [(QUERY, "a")]
        raise InputError("the disk is gone")

    with pytest.raises(InputError, match="the disk is gone"):
        list(reranker.predict_chunks(chunks()))


def test_the_digest_is_of_all_that_a_score_comes_from(reranker: Reranker, untied_model: Path) -> None:
    same = Reranker(reranker.decoder, dict(reranker.params), reranker.prompt)
    assert same.digest == reranker.digest
    tokenizer = copy.deepcopy(reranker.prompt.tokenizer)
    tokenizer.add_tokens(["eels and crabs"])
    leaves, tree = jax.tree.flatten(reranker.params)
    changed = jax.tree.unflatten(tree, [*leaves[:-1], jax.numpy.nextafter(leaves[-1], jax.numpy.inf)])
    others = [
        Reranker.from_pretrained(untied_model),
        dataclasses.replace(reranker, params=changed),
        dataclasses.replace(reranker, prompt=dataclasses.replace(reranker.prompt, answer_ids=(5, 6))),
        dataclasses.replace(reranker, prompt=dataclasses.replace(reranker.prompt, template="other")),
    ]
    others.append(dataclasses.replace(reranker, prompt=dataclasses.replace(reranker.prompt, tokenizer=tokenizer)))
    assert len({reranker.digest, *(other.digest for other in others)}) == 6


def test_the_digest_leaves_no_weights_on_the_host(tiny_model: Path) -> None:
    reranker = Reranker.from_pretrained(tiny_model, fsdp=8)
    large = jax.device_put(np.ones((1 << 21,), np.float32), NamedSharding(reranker.mesh, PartitionSpec("fsdp")))
    reranker = dataclasses.replace(reranker, params=reranker.params | {"embedding": large})
    tracemalloc.start()
    try:
        assert len(reranker.digest) == 64
        # What is kept of an array on several devices is numpy's, and so is counted.
        assert tracemalloc.get_traced_memory()[0] < large.nbytes / 8
    finally:
        tracemalloc.stop()


def test_the_digest_is_of_every_block(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prorank_jax.model.digest.BLOCK_BYTES", 1000)

    def digest(params: Params) -> str:
        return dataclasses.replace(reranker, params=params).digest

    before = digest(reranker.params)
    embedding = reranker.params["embedding"]
    for place in (0, embedding.size // 2, embedding.size - 1):
        values = np.array(embedding).reshape(-1)
        values[place] += 1
        changed = jax.device_put(values.reshape(embedding.shape), embedding.sharding)
        assert digest(reranker.params | {"embedding": changed}) != before
