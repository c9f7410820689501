"""Group rollouts against one shared prefix: each prompt is computed once, and G completions are decoded from it.

All P x G completions stand in one row per prompt. The prompt's keys and values are the `Prefix`, which no completion
copies; the completions' own keys and values fill a buffer of T x G slots, and a mask keeps the samples apart.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from prorank_jax.data.layout import Layout
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder, KeyValues, Params
from prorank_jax.model.parts import anywhere
from prorank_jax.model.prefix import Prefix
from prorank_jax.warmup.grpo import entropy
from prorank_jax.warmup.reading import read
from prorank_jax.warmup.rewards import AnswerTokens


class Rollout(NamedTuple):
    """Sampled completions; behind the end of its turn a completion is filled up with ends.

    Attributes:
      tokens_PxGxT: int32.
      lengths_PxG: int32, the tokens of each completion, the end of its turn among them.
      ended_PxG: bool, False where all T tokens were drawn and none ended the turn.
    """

    tokens_PxGxT: Array
    lengths_PxG: Array
    ended_PxG: Array

    @property
    def mask_PxGxT(self) -> Array:
        """1 up to and including the end of the turn, 0 behind it; float32."""
        index_1x1xT = jnp.arange(self.tokens_PxGxT.shape[2])[None, None]
        return (index_1x1xT < self.lengths_PxG[:, :, None]).astype(jnp.float32)


def sample(
    decoder: Decoder,
    params: Params,
    prefix: Prefix,
    keys_P: Array,
    group_size: int,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    end_id: int,
) -> Rollout:
    """Samples `group_size` completions of each prompt, together, until all have ended.

    Args:
      keys_P: one random key per prompt, so that a prompt's completions do not depend on what shares its batch.
      top_k: draws from the k likeliest tokens; 0 draws from all.
      end_id: the token that ends the turn; behind it the tokens are `end_id` and masked.
    """
    P, G, T = len(prefix.lengths_P), group_size, max_new_tokens
    layers, _, _, K, H = prefix.cache.keys.shape
    empty = jnp.zeros((layers, P, T * G, K, H), prefix.cache.keys.dtype)
    sees_prompt = jnp.broadcast_to(prefix.valid_PxL[:, None, :], (P, G, prefix.valid_PxL.shape[1]))
    same_sample = jnp.eye(G, dtype=bool)

    def draw(logits: Array, t: Array) -> Array:
        """A token for each sample, [P, G], from logits [P, G, V], or [P, 1, V] that a group shares."""
        names = None
        if 0 < top_k < decoder.config.vocabulary:
            logits, names = lax.top_k(logits, top_k)
        # One random number a sample and the inverse of the distribution: Gumbel noise would take one a token.
        cumulative = jnp.cumsum(jax.nn.softmax(logits / temperature), axis=-1)
        uniform_PxG = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, t), (G,)))(keys_P)
        passed = cumulative < (1.0 - uniform_PxG)[:, :, None] * cumulative[:, :, -1:]
        drawn_PxG = passed.sum(axis=-1, dtype=jnp.int32)
        if names is None:
            return drawn_PxG
        return jnp.take_along_axis(jnp.broadcast_to(names, passed.shape), drawn_PxG[:, :, None], axis=2)[:, :, 0]

    State = tuple[Array, KeyValues, Array, Array, Array]

    def unfinished(state: State) -> Array:
        t, _, _, _, some_are_open = state
        return (t < T) & some_are_open

    def decode(state: State) -> State:
        t, buffer, tokens_TxPxG, ended_PxG, _ = state
        written = jnp.tile(same_sample, (1, T)) & (jnp.repeat(jnp.arange(T), G) < t - 1)[None]
        own = jnp.broadcast_to(jnp.concatenate([written, same_sample], axis=1), (P, G, T * G + G))
        hidden_PxGxD, new = decoder.forward(
            params,
            tokens_TxPxG[t - 1],
            jnp.broadcast_to(prefix.lengths_P[:, None] + t - 1, (P, G)),
            jnp.concatenate([sees_prompt, own], axis=2),
            (prefix.cache, buffer),
        )
        buffer = buffer.write(new, (t - 1) * G)
        drawn = jnp.where(ended_PxG, end_id, draw(decoder.unembed(params, hidden_PxGxD), t))
        tokens_TxPxG = lax.dynamic_update_index_in_dim(tokens_TxPxG, drawn, t, axis=0)
        ended_PxG |= drawn == end_id
        return t + 1, buffer, tokens_TxPxG, ended_PxG, anywhere(~ended_PxG.all())

    first = draw(decoder.unembed(params, prefix.last_PxD)[:, None], jnp.zeros((), jnp.int32))
    tokens = jnp.full((T, P, G), end_id, jnp.int32).at[0].set(first)
    buffer = KeyValues(empty, empty, jnp.zeros((P, T * G), jnp.int32))
    ended = first == end_id
    state = (jnp.ones((), jnp.int32), buffer, tokens, ended, anywhere(~ended.all()))
    _, _, tokens_TxPxG, ended_PxG, _ = lax.while_loop(unfinished, decode, state)
    open_PxG = (tokens_TxPxG != end_id).sum(axis=0, dtype=jnp.int32)
    return Rollout(tokens_TxPxG.transpose(1, 2, 0), open_PxG + ended_PxG.astype(jnp.int32), ended_PxG)


def completion_log_probs(
    decoder: Decoder, params: Params, prefix: Prefix, tokens_PxGxT: Array, temperature: float
) -> tuple[Array, Array]:
    """Log-probability of each completion token, and the entropy at its place: both float32 [P, G, T].

    The first token is judged by the prompt's last hidden state, once for the whole group; the others by one
    forward pass of all G completions of a prompt as one row against the shared prefix.
    """
    P, G, T = tokens_PxGxT.shape
    fed = tokens_PxGxT[:, :, :-1].reshape(P, G * (T - 1))
    t, g = jnp.tile(jnp.arange(T - 1), G), jnp.repeat(jnp.arange(G), T - 1)
    own = (g[:, None] == g[None, :]) & (t[None, :] <= t[:, None])
    mask = jnp.concatenate(
        [
            jnp.broadcast_to(prefix.valid_PxL[:, None, :], (P, len(t), prefix.valid_PxL.shape[1])),
            jnp.broadcast_to(own, (P, *own.shape)),
        ],
        axis=2,
    )
    positions = prefix.lengths_P[:, None] + t[None, :]
    hidden, _ = decoder.forward(params, fed, positions, mask, (prefix.cache,))

    # The prompt's last place and those of the completions in one product: two would make two gradients of the table.
    logits_PxSxV = decoder.unembed(params, jnp.concatenate([prefix.last_PxD[:, None], hidden], axis=1)) / temperature
    log_probs_PxSxV = jax.nn.log_softmax(logits_PxSxV)
    first = jnp.take_along_axis(log_probs_PxSxV[:, 0], tokens_PxGxT[:, :, 0], axis=1)
    behind = tokens_PxGxT[:, :, 1:].reshape(P, G * (T - 1), 1)
    later = jnp.take_along_axis(log_probs_PxSxV[:, 1:], behind, axis=2).reshape(P, G, T - 1)
    entropy_PxS = entropy(logits_PxSxV)
    first_entropy = jnp.broadcast_to(entropy_PxS[:, :1, None], (P, G, 1))
    return (
        jnp.concatenate([first[:, :, None], later], axis=2),
        jnp.concatenate([first_entropy, entropy_PxS[:, 1:].reshape(P, G, T - 1)], axis=2),
    )


def answer_log_probs(
    decoder: Decoder, params: Params, answers: AnswerTokens, batch: PairBatch[Array], layout: Layout | None = None
) -> Array:
    """Log-probability of each answer with the end of the turn behind it, float32 [P, 2]: not relevant, relevant."""
    answers_2xT = jnp.asarray([[answer, answers.end] for answer in answers[:2]], jnp.int32)
    params = decoder.with_whole_tables(params)
    prefix = read(decoder, params, batch, layout)
    tokens_Px2xT = jnp.broadcast_to(answers_2xT, (len(batch.labels_P), *answers_2xT.shape))
    log_probs, _ = completion_log_probs(decoder, params, prefix, tokens_Px2xT, temperature=1.0)
    return log_probs.sum(axis=2)
