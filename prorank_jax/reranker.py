"""Ranking documents with a model folder.

    reranker = Reranker.from_pretrained("runs/demo/export")
    for hit in reranker.rank(query, documents, top_k=3):
        print(hit.score, hit.document)

Pairs are sorted by length and padded to one of a few lengths, so that little is computed for padding and few
shapes are compiled. A score does not depend on what shares its batch beyond rounding.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from rich.console import Console
from rich.progress import Progress

from prorank_jax.config import Order, PromptConfig
from prorank_jax.data.loader import pad_prompts
from prorank_jax.errors import InputError
from prorank_jax.export import LOGIT_SCORE
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import Prompt, build_prompt, load_tokenizer
from prorank_jax.scoring.scores import relevance_scores

DEFAULT_MAX_LENGTH = 512
_CHUNK = 4096
"""Pairs tokenised at a time: memory does not grow with the number of pairs."""
_TOKENS_PER_BATCH = 8192


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
        """Loads an exported folder, any base model of a supported family, or `builtin:tiny`.

        Args:
          source: folder or Hugging Face hub id.
          dtype: compute dtype, `float32` or `bfloat16`.
          max_length: tokens of a prompt; default: what the folder was trained with, else 512.
          order: `query_first` or `document_first`, for a model whose prompt we make; an exported folder has its own.

        Raises:
          InputError: the folder cannot be loaded, or the prompt does not fit.
        """
        if dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype={dtype!r}: not known; use float32 or bfloat16")
        orders = get_args(Order)
        if order not in (None, *orders):
            raise InputError(f"order={order!r}: not known; use {' or '.join(orders)}")
        pretrained = load_pretrained(source)
        tokenizer = load_tokenizer(pretrained.folder)
        config = PromptConfig(max_length=DEFAULT_MAX_LENGTH, order=cast(Order | None, order))
        head = pretrained.folder / LOGIT_SCORE / "config.json"
        answer_ids = _read_answer_ids(head) if head.exists() else None
        if answer_ids is not None:
            no, yes = (str(tokenizer.decode([id_])) for id_ in answer_ids)
            config = PromptConfig(max_length=tokenizer.model_max_length, answers=(no, yes), order=config.order)
        prompt = build_prompt(tokenizer, config, place=str(source))
        if answer_ids is not None:
            # Not every token is the one that its own text gives: SentencePiece has a 0 with and one without a space.
            prompt = dataclasses.replace(prompt, answer_ids=answer_ids)
        if max_length is not None:
            prompt = dataclasses.replace(prompt, max_length=max_length)
        return cls(Decoder(pretrained.config, jnp.dtype(dtype)), pretrained.params, prompt)

    @property
    def max_length(self) -> int:
        """Tokens of a prompt at most."""
        return self.prompt.max_length

    @property
    def dtype(self) -> str:
        """The compute dtype's name."""
        return self.decoder.dtype.name

    @cached_property
    def _score(self) -> Callable[[Params, np.ndarray, np.ndarray], Array]:
        return jax.jit(partial(relevance_scores, self.decoder, answer_ids=self.prompt.answer_ids))

    def predict(
        self, pairs: Sequence[tuple[str, str]], *, batch_size: int | None = None, show_progress: bool = False
    ) -> np.ndarray:
        """Scores (query, document) pairs: float32 [len(pairs)], in their order.

        Args:
          batch_size: prompts computed together; default: as many as make about 8,000 tokens.
          show_progress: a progress bar on a terminal, plain lines elsewhere, on standard error.
        """
        scores = np.empty(len(pairs), np.float32)
        console = Console(stderr=True)
        with Progress(console=console, disable=not (show_progress and console.is_terminal)) as progress:
            task = progress.add_task("reranking", total=len(pairs))
            for start in range(0, len(pairs), _CHUNK):
                prompts = self.prompt.encode_batch(pairs[start : start + _CHUNK])
                pending: list[tuple[list[int], Array]] = []
                for rows, tokens_BxL, lengths_B in self._batches(prompts, batch_size):
                    pending.append((rows, self._score(self.params, tokens_BxL, lengths_B)))
                for rows, batch_scores in pending:
                    scores[[start + row for row in rows]] = np.asarray(batch_scores)[: len(rows)]
                    progress.advance(task, len(rows))
                if show_progress and not console.is_terminal:
                    print(f"reranking {start + len(prompts)}/{len(pairs)}", file=sys.stderr)
        return scores

    def rank(self, query: str, documents: Sequence[str], top_k: int | None = None) -> list[Hit]:
        """The documents, best first; equal scores keep the order given. `top_k` keeps so many."""
        scores = self.predict([(query, document) for document in documents])
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
            length = self._padded(len(prompts[order[start]]))
            size = batch_size or max(_TOKENS_PER_BATCH // length, 1)
            rows = order[start : start + size]
            start += len(rows)
            filled = rows + rows[-1:] * (min(size, 1 << (len(rows) - 1).bit_length()) - len(rows))
            yield rows, *pad_prompts([prompts[i] for i in filled], length, self.prompt.pad_id)

    def _padded(self, length: int) -> int:
        """The compiled length for a prompt: 32, 48, 64, 96, 128, ... and the maximum."""
        for power in range(5, 30):
            for size in (2**power, 3 * 2 ** (power - 1)):
                if length <= size:
                    return min(size, self.prompt.max_length)
        return self.prompt.max_length


def _read_answer_ids(head: Path) -> tuple[int, int]:
    """The tokens of the answers "0" and "1" whose logits an exported folder names as its score."""
    try:
        ids = json.loads(head.read_text(encoding="utf-8"))
        return int(ids["false_token_id"]), int(ids["true_token_id"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{head}: does not name false_token_id and true_token_id; export the model again") from None
