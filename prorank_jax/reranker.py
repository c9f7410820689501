"""Ranking documents with a model folder.

    reranker = Reranker.from_pretrained("runs/demo/export")
    for hit in reranker.rank(query, documents, top_k=3):
        print(hit.score, hit.document)

Pairs are sorted by length and padded to one of a few lengths, so that little is computed for padding and few
shapes are compiled. A score does not depend on what shares its batch beyond rounding.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console
from rich.progress import Progress

from prorank_jax.config import Order, PromptConfig
from prorank_jax.cross_encoder import read_answer_ids
from prorank_jax.data.loader import pad_prompts, padded_length
from prorank_jax.errors import InputError
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import Prompt, load_prompt
from prorank_jax.scoring.scores import relevance_scores

DEFAULT_MAX_LENGTH = 512
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
    """A decoder, its parameters and its prompt."""

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
    ) -> "Reranker":
        """Loads an exported folder, the folder of another reranker (mxbai-rerank-v2, Qwen3-Reranker), whose own
        template and answers it then uses, any base model of a supported family, or `builtin:tiny`.

        Args:
          source: folder or Hugging Face hub id.
          dtype: of the parameters and of what is computed, `float32` or `bfloat16`; scores are float32 either way.
          max_length: tokens of a prompt; default: what the folder's tokenizer says, 512 for a base model.
          order: `query_first` or `document_first`, for a model whose prompt we make; an exported folder has its own.

        Raises:
          InputError: the folder cannot be loaded, or the prompt does not fit.
        """
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype={dtype!r}: not known; use float32 or bfloat16")
        orders = get_args(Order)
        if order not in (None, *orders):
            raise InputError(f"order={order!r}: not known; use {' or '.join(orders)}")
        pretrained = load_pretrained(source, dtype)
        limit = pretrained.config.max_positions
        config = PromptConfig(order=cast(Order | None, order))
        # Not checked by itself: what is too short for a template is for the prompt to say.
        config = config.model_copy(update={"max_length": limit if max_length is None else max_length})
        prompt = load_prompt(pretrained, config, str(source))
        if max_length is None:
            trained = read_answer_ids(pretrained.folder) is not None
            longest = prompt.tokenizer.model_max_length if trained else DEFAULT_MAX_LENGTH
            prompt = dataclasses.replace(prompt, max_length=min(longest, limit))
        return cls(Decoder(pretrained.config, jnp.dtype(dtype)), pretrained.params, prompt)

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
          batch_size: prompts computed together; default: as many as make about 8,000 tokens.
          show_progress: a progress bar on a terminal, plain lines elsewhere, on standard error.

        Raises:
          InputError: the template has no place for an instruction.
        """
        score = _scorer(self.decoder, self.prompt.answer_ids)
        prompt = self.prompt if instruction is None else self.prompt.with_instruction(instruction)
        scores = np.empty(len(pairs), np.float32)
        console = Console(stderr=True)
        with Progress(console=console, disable=not (show_progress and console.is_terminal)) as progress:
            task = progress.add_task("reranking", total=len(pairs))
            for start in range(0, len(pairs), _CHUNK):
                prompts = prompt.encode_batch(pairs[start : start + _CHUNK])
                pending: list[tuple[list[int], Array]] = []
                for rows, tokens_BxL, lengths_B in self._batches(prompts, batch_size):
                    pending.append((rows, score(self.params, tokens_BxL, lengths_B)))
                for rows, batch_scores in pending:
                    scores[[start + row for row in rows]] = np.asarray(batch_scores)[: len(rows)]
                    progress.advance(task, len(rows))
                if show_progress and not console.is_terminal:
                    print(f"reranking {start + len(prompts)}/{len(pairs)}", file=sys.stderr)
        return scores

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, *, instruction: str | None = None
    ) -> list[Hit]:
        """The documents, best first; equal scores keep the order given. `top_k` keeps so many."""
        scores = self.predict([(query, document) for document in documents], instruction=instruction)
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [Hit(int(i), float(scores[i]), documents[i]) for i in order]

    def _batches(
        self, prompts: list[list[int]], batch_size: int | None
    ) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """Rows (positions in `prompts`) and their padded tokens, by falling length.

        The last batch is filled up to a power of two: few shapes, and little wasted on a handful of documents.
        """
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        start = 0
        while start < len(order):
            length = padded_length(max(len(prompts[order[start]]), _SHORTEST), self.max_length)
            size = batch_size or max(_TOKENS_PER_BATCH // length, 1)
            rows = order[start : start + size]
            start += len(rows)
            filled = rows + rows[-1:] * (min(size, 1 << (len(rows) - 1).bit_length()) - len(rows))
            yield rows, *pad_prompts([prompts[i] for i in filled], length, self.prompt.pad_id)


@lru_cache(maxsize=8)
def _scorer(decoder: Decoder, answer_ids: tuple[int, int]) -> Callable[[Params, np.ndarray, np.ndarray], Array]:
    """The compiled scores; rerankers of one decoder share it, as while a model is trained."""
    return jax.jit(partial(relevance_scores, decoder, answer_ids=answer_ids))
