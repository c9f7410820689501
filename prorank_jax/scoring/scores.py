"""The relevance score: the difference of two token logits at the answer's place, and no new layer."""

import jax.numpy as jnp
from jax import Array

from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.prefix import prefill


def relevance_scores(
    decoder: Decoder, params: Params, tokens_BxL: Array, lengths_B: Array, answer_ids: tuple[int, int]
) -> Array:
    """`s = z["1"] - z["0"]` of right-padded prompts, float32 [B], from two rows of the unembedding."""
    last_BxD = prefill(decoder, params, tokens_BxL, lengths_B).last_PxD.astype(jnp.float32)
    logits_Bx2 = decoder.unembed(params, last_BxD, jnp.asarray(answer_ids))
    return logits_Bx2[:, 1] - logits_Bx2[:, 0]
