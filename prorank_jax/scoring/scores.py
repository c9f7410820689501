"""The relevance score: the difference of two token logits at the answer's place, and no new layer."""

import jax
import jax.numpy as jnp
from jax import Array

from prorank_jax.data.layout import GroupPrompts, Part
from prorank_jax.model.attention import causal
from prorank_jax.model.decoder import Block, Decoder, Params


def answer_margin(decoder: Decoder, params: Params, last: Array, answer_ids: tuple[int, int]) -> Array:
    """`z["1"] - z["0"]` of hidden states [..., D] at the answer's place, float32 [...]."""
    logits = decoder.unembed(params, last.astype(jnp.float32), jnp.asarray(answer_ids))
    return logits[..., 1] - logits[..., 0]


def last_hidden(decoder: Decoder, params: Params, prompts: GroupPrompts[Array]) -> Array:
    """The hidden state after the last token of each prompt, [Q, C, D]."""
    Q, P = prompts.prefix_QxP.shape
    places_B = jnp.concatenate([part.places_B for part in prompts.parts])
    documents = len(places_B) // Q
    positions_QxP = jnp.broadcast_to(jnp.arange(P), (Q, P))
    prefix = [Block(prompts.prefix_QxP, positions_QxP, causal(prompts.prefix_lengths_Q, P))] if P else []

    def rests(part: Part[Array]) -> Block:
        L = part.tokens_BxL.shape[1]
        query_B = part.places_B // documents
        start_B = prompts.prefix_lengths_Q[query_B]
        return Block(
            part.tokens_BxL,
            start_B[:, None] + jnp.arange(L)[None],
            causal(part.lengths_B, L, jnp.arange(P)[None] < start_B[:, None]),
            query_B if P else None,
        )

    hidden, _ = decoder.forward_blocks(params, [*prefix, *map(rests, prompts.parts)])
    last_BxD = jnp.concatenate(
        [
            jnp.take_along_axis(hidden_BxLxD, (part.lengths_B - 1)[:, None, None], axis=1)[:, 0]
            for hidden_BxLxD, part in zip(hidden[len(prefix) :], prompts.parts, strict=True)
        ]
    )
    return last_BxD[jnp.argsort(places_B)].reshape(Q, documents, -1)


def answer_log_probs(decoder: Decoder, params: Params, last_QxCxD: Array, answer_ids: tuple[int, int]) -> Array:
    """Log-probabilities of both answers and of the rest of the vocabulary at the answer's place, float32 [Q, C, 3].

    The logits of a query are made when it is their turn, so that there are never more than C x V.
    """
    ids = jnp.asarray(answer_ids)
    params = decoder.with_whole_tables(params)

    @jax.checkpoint
    def of_query(last_CxD: Array) -> Array:
        logits_CxV = decoder.unembed(params, last_CxD.astype(jnp.float32))
        chosen_Cx2 = logits_CxV[:, ids]
        rest_C = jax.nn.logsumexp(logits_CxV.at[:, ids].set(-jnp.inf), axis=1)
        return jax.nn.log_softmax(jnp.concatenate([chosen_Cx2, rest_C[:, None]], axis=1), axis=1)

    return jax.lax.map(of_query, last_QxCxD)
