"""Ranking documents with a model folder.

    reranker = Reranker.from_pretrained("runs/demo/export")
    for hit in reranker.rank(query, documents, top_k=3):
        print(hit.score, hit.document)

Pairs are sorted by length and padded to one of a few lengths, so that little is computed for padding and few
shapes are compiled. A score does not depend on what shares its batch beyond rounding.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from prorank_jax.ahead import ahead
from prorank_jax.config import MeshConfig, Order, PromptConfig
from prorank_jax.cross_encoder import read_answer_ids
from prorank_jax.data.loader import pad_prompts, padded_length
from prorank_jax.errors import InputError
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.hf import load_pretrained
from prorank_jax.model.long_attention import kernel_for
from prorank_jax.progress import progress
from prorank_jax.prompt import KnownDocuments, Prompt, load_prompt
from prorank_jax.runtime.mesh import make_mesh, mesh_of, shardings
from prorank_jax.scoring.scores import make_scorer

DEFAULT_MAX_LENGTH = 512
Batch = tuple[list[int], np.ndarray, np.ndarray]
"""Positions of pairs, with their tokens and lengths."""
_CHUNK = 4096
"""Pairs tokenised at a time: memory does not grow with the number of pairs."""
_TOKENS_PER_BATCH = 8192
_SHORTEST = 32
"""Shorter prompts are computed with this many tokens, so that fewer shapes are compiled."""


@dataclasses.dataclass(frozen=True)
class Hit:
    """A ranked document: its place in the list given, its score (a difference of two logits), its text."""

    index: int
    score: float
    document: str


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
    ) -> "Reranker":
        """Loads an exported folder, the folder of another reranker (mxbai-rerank-v2, Qwen3-Reranker), whose own
        template and answers it then uses, any base model of a supported family, or `builtin:tiny`.

        Args:
          source: folder or Hugging Face hub id.
          dtype: of the parameters and of what is computed, `float32` or `bfloat16`; scores are float32 either way.
          max_length: tokens of a prompt; default: what the folder's tokenizer says, 512 for a base model.
          order: `query_first` or `document_first`, for a model whose prompt we make; an exported folder has its own.
          fsdp: devices that hold one copy of the parameters together; the pairs are shared among all devices.

        Raises:
          InputError: the folder cannot be loaded, the prompt does not fit, or `fsdp` does not divide the devices.
        """
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype={dtype!r}: not known; use float32 or bfloat16")
        orders = get_args(Order)
        if order not in (None, *orders):
            raise InputError(f"order={order!r}: not known; use {' or '.join(orders)}")
        if fsdp < 1 or jax.device_count() % fsdp:
            raise InputError(f"fsdp={fsdp}: there are {jax.device_count()} devices; use a divisor of that")
        mesh = make_mesh(MeshConfig(fsdp=fsdp))
        pretrained = load_pretrained(source, dtype, partial(shardings, mesh))
        limit = pretrained.config.max_positions
        config = PromptConfig(order=cast(Order | None, order))
        # Not checked by itself: what is too short for a template is for the prompt to say.
        config = config.model_copy(update={"max_length": limit if max_length is None else max_length})
        prompt = load_prompt(pretrained, config, str(source))
        if max_length is None:
            trained = read_answer_ids(pretrained.folder) is not None
            longest = prompt.tokenizer.model_max_length if trained else DEFAULT_MAX_LENGTH
            prompt = dataclasses.replace(prompt, max_length=min(longest, limit))
        decoder = Decoder(pretrained.config, jnp.dtype(dtype), kernel=kernel_for(mesh))
        return cls(decoder, pretrained.params, prompt)

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
        pairs: Sequence[tuple[str, str]],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Scores (query, document) pairs: float32 [len(pairs)], in their order.

        Args:
          instruction: the task in place of the template's own (`prompt=` of sentence-transformers' CrossEncoder).
          batch_size: prompts computed together; default: as many as make about 8,000 tokens on each device.
          show_progress: a progress bar on a terminal, plain lines elsewhere, on standard error.

        Raises:
          InputError: the template has no place for an instruction.
        """
        chunks = (pairs[start : start + _CHUNK] for start in range(0, len(pairs), _CHUNK))
        found = [np.empty(0, np.float32)]
        with progress("reranking", len(pairs), show_progress) as advance:
            for scores in self.predict_chunks(chunks, instruction=instruction, batch_size=batch_size):
                found.append(scores)
                advance(len(scores))
        return np.concatenate(found)

    def predict_chunks(
        self,
        chunks: Iterable[Sequence[tuple[str, str]]],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
    ) -> Iterator[np.ndarray]:
        """Scores of each chunk of pairs, float32 [its length], in their order.

        The next chunk is read and tokenised by another thread while one is computed. Only pairs of one chunk share
        batches, so that the scores of a chunk are the same wherever the chunks begin.

        Raises:
          InputError: as `predict`.
        """
        score = _scorer(self.decoder, self.prompt.answer_ids, self.mesh)
        prompt = self.prompt if instruction is None else self.prompt.with_instruction(instruction)
        known = KnownDocuments()

        def batches() -> Iterator[tuple[int, list[Batch]]]:
            for pairs in chunks:
                yield len(pairs), list(self._batches(prompt.encode_batch(pairs, known), batch_size))

        begun: tuple[int, list[tuple[list[int], Array]]] | None = None
        for count, prepared in ahead(batches()):
            # Devices work on this chunk while the scores of the one before are used.
            dispatched = [(rows, score(self.params, tokens_BxL, lengths_B)) for rows, tokens_BxL, lengths_B in prepared]
            if begun is not None:
                yield _collected(*begun)
            begun = count, dispatched
        if begun is not None:
            yield _collected(*begun)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that a score comes from: the weights, the tokenizer, the template and the answers."""
        digest = hashlib.sha256(repr(self.decoder.config).encode())
        digest.update(self.prompt.tokenizer.backend_tokenizer.to_str().encode())
        digest.update(json.dumps([self.prompt.template, self.prompt.answer_ids, self.prompt.pad_id]).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).view(np.uint8).data)
        return digest.hexdigest()

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, *, instruction: str | None = None
    ) -> list[Hit]:
        """The documents, best first; equal scores keep the order given. `top_k` keeps so many."""
        scores = self.predict([(query, document) for document in documents], instruction=instruction)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Hit(int(i), float(scores[i]), documents[i]) for i in order]

    def _batches(self, prompts: list[list[int]], batch_size: int | None) -> Iterator[Batch]:
        """Rows (positions in `prompts`) and their padded tokens, by falling length.

        The last batch is filled up to a power of two, and each to a multiple of the devices: few shapes, and little
        wasted on a handful of documents.
        """
        devices = self.mesh.size
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        start = 0
        while start < len(order):
            length = padded_length(max(len(prompts[order[start]]), _SHORTEST), self.max_length)
            size = batch_size or rows_per_batch(length, self.mesh)
            rows = order[start : start + size]
            start += len(rows)
            wanted = min(size, 1 << (len(rows) - 1).bit_length())
            filled = rows + rows[-1:] * (-(-wanted // devices) * devices - len(rows))
            yield rows, *pad_prompts([prompts[i] for i in filled], length, self.prompt.pad_id)


def rows_per_batch(length: int, mesh: Mesh) -> int:
    """Prompts of so many tokens that are computed together."""
    return max(_TOKENS_PER_BATCH // length, 1) * mesh.size


def _collected(count: int, dispatched: list[tuple[list[int], Array]]) -> np.ndarray:
    """The scores of a chunk; a batch may have rows more than it has pairs."""
    scores = np.empty(count, np.float32)
    for rows, batch_scores in dispatched:
        scores[rows] = np.asarray(batch_scores)[: len(rows)]
    return scores


@lru_cache(maxsize=8)
def _scorer(
    decoder: Decoder, answer_ids: tuple[int, int], mesh: Mesh
) -> Callable[[Params, np.ndarray, np.ndarray], Array]:
    """The compiled scores; rerankers of one decoder share it, as while a model is trained."""
    return make_scorer(decoder, answer_ids, mesh)
