"""Held-out queries on which a warmup is measured while it goes on: what the model answers, and how it would rank.

The probabilities of both answers are computed and not sampled, so that what is measured has no noise but that of the
choice of prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import jax
import numpy as np
from jax import Array, lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from prorank_jax.config import WarmupDevConfig
from prorank_jax.data.candidates import open_candidates
from prorank_jax.data.examples import Example, JudgedSource, Selection
from prorank_jax.data.loader import PairBatch, pad_prompts
from prorank_jax.data.stream import pairs
from prorank_jax.errors import InputError
from prorank_jax.evaluation.development import METRIC, Development
from prorank_jax.evaluation.rerank import PairScorer
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.prompt import Prompt
from prorank_jax.runtime.mesh import AXES, ROWS, on_devices, own_rows, specs, split_rows
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.rollout import answer_log_probs

BEST_BY = "dev/accuracy"
COLLAPSED = 0.97
"""The share of one answer above which a model has settled on it, as half of the prompts ask for the other."""
_ROWS = 32
"""Prompts that a device computes at once."""


@dataclass(frozen=True)
class WarmupDevelopment:
    """Prompts with their right answers, as many relevant as not, and the queries that they are of."""

    held_out: Development
    examples: Sequence[Example]
    ndcg: bool

    @classmethod
    def open(
        cls, config: WarmupDevConfig, training: str, reranker: Callable[[Params], PairScorer]
    ) -> "WarmupDevelopment":
        """Reads the collection, `training` where the configuration names none, and draws the prompts.

        Raises:
          InputError: as `evaluation.development.Development.open`; or the queries have documents of one kind only.
        """
        held_out = Development.open(config, training, reranker, place="warmup.dev")
        collection = held_out.collection
        found = open_candidates(collection, config.candidates, config.depth)
        try:
            source = JudgedSource.from_collection(collection, found, Selection(config.relevant_from))
        except InputError as error:
            raise InputError(f"config: warmup.dev: {error}") from None
        return cls(held_out, pairs([source], [1.0], seed=0).rows(range(config.pairs + config.pairs % 2)), config.ndcg)

    def measure(self, decoder: Decoder, params: Params, prompt: Prompt, mesh: Mesh) -> dict[str, float]:
        """`dev/accuracy`, `dev/format_rate`, `dev/positive_rate`, `dev/auc` and, where asked for, `dev/ndcg@10`.

        Accuracy counts answers in the right format alone; the positive rate is the share of "relevant" among these.
        """
        measured = measure_answers(self.examples, decoder, params, prompt, mesh)
        if self.ndcg:
            measured[METRIC] = self.held_out.measure(params)
        return measured


def measure_answers(
    examples: Sequence[Example], decoder: Decoder, params: Params, prompt: Prompt, mesh: Mesh
) -> dict[str, float]:
    """What the model answers to examples, some of which are relevant and some not: see `answer_measures`."""
    ids = prompt.encode_batch([(example.query, example.document) for example in examples])
    answers = AnswerTokens(*prompt.answer_ids, prompt.end_id)
    rows, compute = _ROWS * mesh.size, _computed(decoder, answers, mesh)
    own, found = own_rows(mesh, rows), []
    for start in range(0, len(ids), rows):
        some = [ids[min(start + row, len(ids) - 1)] for row in own]  # the last batch is filled up
        tokens, lengths = pad_prompts(some, prompt.max_length, prompt.pad_id)
        batch = split_rows(mesh, PairBatch(tokens, lengths, np.zeros(len(own), np.int32)))
        found.append(np.asarray(compute(params, batch)))
    log_prob_Nx2 = np.concatenate(found)[: len(ids)]
    return answer_measures(log_prob_Nx2, np.array([example.label for example in examples]))


def answer_measures(log_prob_Nx2: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """What log-probabilities of the answers "not relevant" and "relevant" say of the right ones.

    The area under the ROC curve is that of their difference, ties counted half.
    """
    answered_Nx2 = np.exp(log_prob_Nx2.astype(np.float64))
    in_format = answered_Nx2.sum()
    _, place_N, counts = np.unique(log_prob_Nx2[:, 1] - log_prob_Nx2[:, 0], return_inverse=True, return_counts=True)
    ranks_N = (np.cumsum(counts) - (counts - 1) / 2)[place_N]
    positives = int(labels_N.sum())
    above = ranks_N[labels_N == 1].sum() - positives * (positives + 1) / 2
    return {
        BEST_BY: float(answered_Nx2[np.arange(len(labels_N)), labels_N].mean()),
        "dev/format_rate": float(in_format / len(labels_N)),
        "dev/positive_rate": float(answered_Nx2[:, 1].sum() / in_format) if in_format > 0 else 0.5,
        "dev/auc": float(above / (positives * (len(labels_N) - positives))),
    }


def has_collapsed(measured: dict[str, float]) -> bool:
    """Whether the model answers in format, and nearly always the same."""
    share = measured["dev/positive_rate"]
    return measured["dev/format_rate"] > 0.9 and not 1 - COLLAPSED <= share <= COLLAPSED


@cache
def _computed(decoder: Decoder, answers: AnswerTokens, mesh: Mesh) -> Callable[[Params, PairBatch[Array]], Array]:
    """Log-probabilities [P, 2] of both answers with the end of the turn, on every device; compiled once."""

    def on_device(params: Params, batch: PairBatch[Array]) -> Array:
        return lax.all_gather(answer_log_probs(decoder, params, answers, batch), AXES, tiled=True)

    @jax.jit
    def compute(params: Params, batch: PairBatch[Array]) -> Array:
        found: Array = on_devices(mesh, on_device, (specs(mesh, params), ROWS), P())(params, batch)
        return found

    return compute
