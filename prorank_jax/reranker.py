"""Ranking documents with a model folder.

    reranker = Reranker.from_pretrained("runs/demo/export")
    for hit in reranker.rank(query, documents, top_k=3):
        print(hit.score, hit.document)

What the prompts of a query share is computed once (`scoring/shared.py`). On a CPU a pair's score is the same, bit for
bit, whatever is scored at the same time. `prorank_jax.keep_compiled()` keeps what is compiled for the next process.
"""

import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from prorank_jax.ahead import ahead
from prorank_jax.answer_place import warn_unlikely
from prorank_jax.config import MeshConfig, Order, PromptConfig
from prorank_jax.cross_encoder import read_answer_ids
from prorank_jax.data.beir_files import full_text
from prorank_jax.errors import InputError
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.digest import params_digest
from prorank_jax.model.hf import ModelFolder, check_weights, load_pretrained, read_folder
from prorank_jax.model.long_attention import kernel_for, scoring_kernel
from prorank_jax.progress import progress, tell
from prorank_jax.prompt import KnownDocuments, Prompt, PromptParts, load_prompt
from prorank_jax.relevance import finite, probabilities
from prorank_jax.runtime.memory import free_bytes
from prorank_jax.runtime.mesh import largest, make_mesh, mesh_of, shardings
from prorank_jax.scoring.shapes import every_shape
from prorank_jax.scoring.shared import Scorer, Unit, arrange, least_tokens, make_scorer, tokens_for

DEFAULT_MAX_LENGTH = 512
_CHUNK = 1024
"""Pairs tokenised at a time: memory does not grow with the number of pairs."""
_USUAL_QUERY = 32
"""Tokens of a query, about; few are longer."""
_one_at_a_time = threading.Lock()
"""Devices must get the work of several threads in one order, or they wait for one another."""

Document = str | Mapping[str, str]
"""A text, or a mapping with `text` and, if it has one, `title`."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """A ranked document: its place in the list given, its score, and the document as it was given.

    `hit["corpus_id"]`, `hit["score"]` and `hit["text"]` are the same under the names of sentence-transformers'
    `CrossEncoder.rank`, and `dict(hit)` is what that returns.
    """

    index: int
    score: float
    document: Document | None
    """None where documents were not asked for."""

    def keys(self) -> tuple[str, ...]:
        """The keys that `hit[key]` answers."""
        return ("corpus_id", "score") if self.document is None else ("corpus_id", "score", "text")

    def __getitem__(self, key: str) -> Any:
        if key not in self.keys():
            raise KeyError(key)
        return {"corpus_id": self.index, "score": self.score, "text": text_of(self.document or "")}[key]


@dataclasses.dataclass(frozen=True)
class Reranker:
    """A decoder, its parameters and its prompt. The devices where the parameters lie share the work."""

    decoder: Decoder
    params: Params
    prompt: Prompt

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        dtype: str = "float32",
        max_length: int | None = None,
        order: str | None = None,
        fsdp: int = 1,
        mesh: Mesh | None = None,
    ) -> "Reranker":
        """Loads an exported folder, the folder of another reranker (mxbai-rerank-v2, Qwen3-Reranker), whose own
        template and answers it then uses, any base model of a supported family, or `builtin:tiny`.

        Args:
          source: folder or Hugging Face hub id.
          dtype: of the parameters and of what is computed, `float32` or `bfloat16`; scores are float32 either way.
          max_length: tokens of a prompt; default: what the folder's tokenizer says, 512 for a base model.
          order: `query_first` or `document_first`, for a model whose prompt we make; an exported folder has its own.
          fsdp: devices that hold one copy of the parameters together; the pairs are shared among all devices.
          mesh: the devices, as from `runtime.mesh.make_mesh`, in place of all of them in the way that `fsdp` says.

        Raises:
          InputError: the folder cannot be loaded, the prompt does not fit, or `fsdp` does not divide the devices.
        """
        mesh = _mesh(dtype, order, fsdp, mesh)
        pretrained = load_pretrained(source, dtype, partial(shardings, mesh))
        prompt = _prompt(pretrained, source, max_length, order)
        decoder = Decoder(pretrained.config, jnp.dtype(dtype), kernel=kernel_for(mesh))
        if read_answer_ids(pretrained.folder) is None:
            warn_unlikely(decoder, pretrained.params, prompt, mesh)
        return cls(decoder, pretrained.params, prompt)

    @staticmethod
    def check_pretrained(
        source: str | Path,
        *,
        dtype: str = "float32",
        max_length: int | None = None,
        order: str | None = None,
        fsdp: int = 1,
    ) -> None:
        """Refuses what `from_pretrained` refuses, except for what the values of the weights alone show.

        Of the weights, only the names and shapes in the files' headers are read: it takes a second and no memory.
        A hub id or a folder in a bucket is downloaded.

        Raises:
          InputError: as `from_pretrained`.
        """
        _mesh(dtype, order, fsdp, None)
        model = read_folder(source)
        check_weights(model)
        _prompt(model, source, max_length, order)

    @property
    def mesh(self) -> Mesh:
        """The devices that share the work."""
        return mesh_of(self.params)

    @property
    def max_length(self) -> int:
        """Tokens of a prompt at most."""
        return self.prompt.max_length

    @property
    def dtype(self) -> str:
        """The compute dtype's name."""
        return self.decoder.dtype.name

    def predict(
        self,
        pairs: Sequence[tuple[str, Document]],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        normalize: bool = False,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Scores (query, document) pairs: float32 [len(pairs)], in their order. Several threads may call at once.

        Args:
          pairs: of a query and a text, or a mapping with `title` and `text`.
          instruction: the task in place of the template's own (`prompt=` of sentence-transformers' CrossEncoder).
          batch_size: prompts computed together at most; default: as many as the devices have memory for.
          normalize: scores between 0 and 1, `sigmoid(z["1"] - z["0"])`, in place of the difference itself.
          show_progress: a progress bar on a terminal, plain lines elsewhere, on standard error.

        Raises:
          InputError: a pair is not one, the template has no place for an instruction, or a score is not finite: names
            the pair.
        """
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size={batch_size}: use 1 or more, or leave it out")
        texts = [_texts(number, pair) for number, pair in enumerate(pairs)]
        chunks = (texts[start : start + _CHUNK] for start in range(0, len(texts), _CHUNK))
        found, done = [np.empty(0, np.float32)], 0
        with progress("reranking", len(pairs), show_progress) as advance:
            for scores in self.predict_chunks(chunks, instruction=instruction, batch_size=batch_size):
                found.append(finite(scores, lambda number: _named(number, texts[number]), first=done))
                done += len(scores)
                advance(len(scores))
        scores = np.concatenate(found)
        return probabilities(scores).astype(np.float32) if normalize else scores

    def predict_chunks(
        self,
        chunks: Iterable[Sequence[tuple[str, str]]],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Scores of each chunk of pairs, float32 [its length], in their order.

        The next chunk is read and tokenised by another thread while one is computed. What the pairs of a query share is
        computed once in each chunk. Who asks names the pairs, and refuses those whose score is not finite
        (`relevance.finite`).

        Raises:
          InputError: the template has no place for an instruction.
        """
        for scores, _ in self._counted_chunks(chunks, instruction, batch_size):
            yield scores

    def predict_counted(
        self, pairs: Sequence[tuple[str, str]], *, instruction: str | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores of texts, as `predict` gives them, and the tokens of each prompt, int64 [len(pairs)].

        A prompt is the template, the query and the document, after the cut to the maximum length. The prefix that the
        prompts of a query share counts for each of them.

        Raises:
          InputError: as `predict_chunks`; of scores that are not finite, too, the caller decides.
        """
        chunks = (pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK))
        empty = np.empty(0, np.float32), np.empty(0, np.int64)
        scores, tokens = zip(empty, *self._counted_chunks(chunks, instruction, None), strict=True)
        return np.concatenate(scores), np.concatenate(tokens)

    def _counted_chunks(
        self, chunks: Iterable[Sequence[tuple[str, str]]], instruction: str | None, batch_size: int | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        prompt = self.prompt if instruction is None else self.prompt.with_instruction(instruction)
        known = KnownDocuments()

        def units() -> Iterator[tuple[np.ndarray, list[Unit]]]:
            for pairs in chunks:
                parts = prompt.encode_parts(pairs, known)
                tokens = np.array([len(part.shared) + len(part.own) for part in parts], np.int64)
                yield tokens, list(self._arranged(parts, batch_size))

        begun: tuple[np.ndarray, list[tuple[list[int], Array]]] | None = None
        for tokens, prepared in ahead(units()):
            # Devices work on this chunk while the scores of the one before are used.
            dispatched = list(self._dispatched(prepared))
            if begun is not None:
                yield _collected(len(begun[0]), begun[1]), begun[0]
            begun = tokens, dispatched
        if begun is not None:
            yield _collected(len(begun[0]), begun[1]), begun[0]

    def warm_up(self, pairs: int, stopping: Callable[[], bool] = lambda: False) -> None:
        """Compiles what `predict` needs for up to so many pairs at once, of any documents and of queries as people ask
        them, so that later calls of such pairs do not wait for the compiler.

        Args:
          pairs: of any number of queries.
          stopping: whether to end early; is asked after each batch.
        """
        queries = [" a" * words for words in range(1, _USUAL_QUERY + 1)]
        some = self.prompt.encode_parts([(query, document) for query in queries for document in ("a", "")])
        # A document can have any length that there is room for, and none at all has just that.
        lengths = [
            (len(shared), range(len(own), self.max_length - len(shared) + 1 if shared else len(own) + 1))
            for shared, own in some
        ]
        units = list(every_shape(lengths, pairs, self._arranged))
        count = sum(len(unit.batches) for unit in units)
        for number, (_, scores) in enumerate(self._dispatched(units), start=1):
            if stopping():
                return
            scores.block_until_ready()
            if number % 20 == 0 or number == count:
                tell(f"warming up {number}/{count}")

    def _arranged(self, prompts: Sequence[PromptParts], batch_size: int | None = None) -> Iterator[Unit]:
        return arrange(prompts, self.prompt.pad_id, self.mesh.size, self._tokens, batch_size)

    def _dispatched(self, units: Sequence[Unit]) -> Iterator[tuple[list[int], Array]]:
        """Starts the work, batch by batch; gives the places of prompts with their scores to come."""
        scorer = _scorer(self.decoder, self.prompt.answer_ids, self.mesh)
        # Several CPU devices share threads, which wait for one another where several programs are under way.
        settle = jax.block_until_ready if _shares_threads(self.mesh) else lambda made: made
        for unit in units:
            with _one_at_a_time:
                begun = settle(scorer.begin(self.params, unit.prefix_QxP, unit.lengths_Q))
            for places, prefixes_B, *batch in unit.batches:
                with _one_at_a_time:
                    before = settle(scorer.spread(begun, prefixes_B))
                    scores = settle(scorer.score(self.params, before, *batch))
                yield places, scores

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that a score comes from: the weights, the tokenizer, the template and the answers.

        It is computed once, by all CPUs, parameter by parameter; no copy of the weights stays on the host.
        """
        digest = hashlib.sha256(repr(self.decoder.config).encode())
        digest.update(self.prompt.tokenizer.backend_tokenizer.to_str().encode())
        digest.update(json.dumps([self.prompt.template, self.prompt.answer_ids, self.prompt.pad_id]).encode())
        digest.update(params_digest(self.params))
        return digest.hexdigest()

    def rank(
        self,
        query: str,
        documents: Sequence[Document],
        top_k: int | None = None,
        *,
        instruction: str | None = None,
        return_documents: bool = True,
    ) -> list[Hit]:
        """The documents, best first; equal scores keep the order given.

        Args:
          documents: texts, or mappings with `title` and `text`.
          top_k: how many to keep; default: all.
          instruction: as for `predict`.
          return_documents: whether each hit holds its document.

        Raises:
          InputError: as `predict`; `documents` is one text, or `top_k` is below 1.
        """
        if isinstance(documents, str):
            raise InputError(f"documents={documents[:60]!r}: is one text; give a list of documents")
        if top_k is not None and top_k < 1:
            raise InputError(f"top_k={top_k}: use 1 or more, or leave it out")
        scores = self.predict([(query, document) for document in documents], instruction=instruction)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Hit(int(i), float(scores[i]), documents[i] if return_documents else None) for i in order]

    @cached_property
    def _tokens(self) -> tuple[int, int]:
        """Tokens of a batch on each device, at least and at most."""
        # Processes that share a mesh make the same batches.
        return least_tokens(self.decoder), -largest(-tokens_for(self.decoder, self.mesh, free_bytes(self.mesh)))


def _mesh(dtype: str, order: str | None, fsdp: int, mesh: Mesh | None) -> Mesh:
    """The devices, once what was asked for is known to be possible; raises as `Reranker.from_pretrained`."""
    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"dtype={dtype!r}: not known; use float32 or bfloat16")
    orders = get_args(Order)
    if order not in (None, *orders):
        raise InputError(f"order={order!r}: not known; use {' or '.join(orders)}")
    if mesh is None:
        if fsdp < 1 or jax.device_count() % fsdp:
            raise InputError(f"fsdp={fsdp}: there are {jax.device_count()} devices; use a divisor of that")
        return make_mesh(MeshConfig(fsdp=fsdp))
    if fsdp != 1:
        raise InputError(f"fsdp={fsdp}: has no meaning with a mesh, which says it; leave it out")
    return mesh


def _prompt(model: ModelFolder, source: str | Path, max_length: int | None, order: str | None) -> Prompt:
    """The prompt of a model folder; raises as `Reranker.from_pretrained`."""
    limit = model.config.max_positions
    config = PromptConfig(order=cast(Order | None, order))
    # Not checked by itself: what is too short for a template is for the prompt to say.
    config = config.model_copy(update={"max_length": limit if max_length is None else max_length})
    prompt = load_prompt(model, config, str(source))
    if max_length is not None:
        return prompt
    trained = read_answer_ids(model.folder) is not None
    longest = prompt.tokenizer.model_max_length if trained else DEFAULT_MAX_LENGTH
    return dataclasses.replace(prompt, max_length=min(longest, limit))


def _shares_threads(mesh: Mesh) -> bool:
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"


def _collected(count: int, dispatched: list[tuple[list[int], Array]]) -> np.ndarray:
    """The scores of a chunk; a batch may have rows more than it has pairs."""
    scores = np.empty(count, np.float32)
    for rows, batch_scores in dispatched:
        scores[rows] = np.asarray(batch_scores)[: len(rows)]
    return scores


def text_of(document: Document) -> str:
    """What a document says: its title and its text, as BEIR has it.

    Raises:
      InputError: it is neither a string nor a mapping with a string `text`, and a string `title` if any.
    """
    if isinstance(document, str):
        return document
    if isinstance(document, Mapping):
        title, text = document.get("title") or "", document.get("text")
        if isinstance(title, str) and isinstance(text, str):
            return full_text(title, text)
    raise InputError(f"document {str(document)[:60]!r}: use a string, or a mapping with the strings `text` and `title`")


def _named(number: int, pair: tuple[str, str]) -> str:
    query, document = (text[:60] for text in pair)
    return f"pair {number}, query {query!r} and document {document!r}: the score"


def _texts(number: int, pair: tuple[str, Document]) -> tuple[str, str]:
    try:
        query, document = pair
    except (TypeError, ValueError):
        raise InputError(f"pair {number}, {str(pair)[:60]!r}: is not a query and a document") from None
    if isinstance(pair, str) or not isinstance(query, str):
        raise InputError(f"pair {number}, {str(pair)[:60]!r}: is not a query and a document; give two strings")
    return query, text_of(document)


@lru_cache(maxsize=8)
def _scorer(decoder: Decoder, answer_ids: tuple[int, int], mesh: Mesh) -> Scorer:
    """The compiled scores; rerankers of one decoder share it, as while a model is trained."""
    for_scores = dataclasses.replace(decoder, kernel=scoring_kernel(mesh), remat="none")
    return make_scorer(for_scores, answer_ids, mesh)
