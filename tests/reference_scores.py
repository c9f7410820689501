"""The score of whole prompts at once: the definition that what shares and packs is held to."""

from jax import Array

from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.prefix import prefill
from prorank_jax.scoring.scores import answer_margin


def relevance_scores(
    decoder: Decoder, params: Params, tokens_BxL: Array, lengths_B: Array, answer_ids: tuple[int, int]
) -> Array:
    """`s = z["1"] - z["0"]` of right-padded prompts, float32 [B]."""
    return answer_margin(decoder, params, prefill(decoder, params, tokens_BxL, lengths_B).last_PxD, answer_ids)
