"""What a model answers to the relevance prompt: how often in the right format, how often rightly."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from prorank_jax.data.loader import pad_prompts
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.prefix import prefill
from prorank_jax.prompt import Prompt
from prorank_jax.seeds import key
from prorank_jax.warmup.rewards import AnswerTokens, format_reward, relevance_reward
from prorank_jax.warmup.rollout import sample

_ROWS = 64


def answer_rates(
    decoder: Decoder,
    params: Params,
    prompt: Prompt,
    pairs: Sequence[tuple[str, str]],
    labels: np.ndarray,
    *,
    samples: int = 8,
    max_new_tokens: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """`format_rate` and `accuracy` of answers sampled at temperature 1, over all pairs and `samples` of each.

    An answer out of format counts as wrong. `labels` is int [len(pairs)], 0 or 1; there is at least one pair.
    """
    prompts = prompt.encode_batch(pairs)
    keys = jax.random.split(key(seed, "warmup/probe"), len(prompts))
    totals = np.zeros(2)
    for start in range(0, len(prompts), _ROWS):
        real = min(_ROWS, len(prompts) - start)
        rows = np.minimum(np.arange(start, start + _ROWS), len(prompts) - 1)  # the last batch is filled up
        tokens, lengths = pad_prompts([prompts[i] for i in rows], prompt.max_length, prompt.pad_id)
        rewards = _mean_rewards(
            decoder,
            params,
            tokens,
            lengths,
            labels[rows],
            keys[rows],
            samples=samples,
            max_new_tokens=max_new_tokens,
            answer_ids=prompt.answer_ids,
            end_id=prompt.end_id,
        )
        totals += np.asarray(rewards)[:, :real].sum(axis=1)
    format_rate, accuracy = totals / len(prompts)
    return {"format_rate": float(format_rate), "accuracy": float(accuracy)}


@partial(jax.jit, static_argnames=("decoder", "samples", "max_new_tokens", "answer_ids", "end_id"))
def _mean_rewards(
    decoder: Decoder,
    params: Params,
    tokens_PxL: Array,
    lengths_P: Array,
    labels_P: Array,
    keys_P: Array,
    *,
    samples: int,
    max_new_tokens: int,
    answer_ids: tuple[int, int],
    end_id: int,
) -> Array:
    """Format and relevance reward of each prompt, over its samples: float32 [2, P]."""
    prefix = prefill(decoder, params, tokens_PxL, lengths_P)
    rollout = sample(decoder, params, prefix, keys_P, samples, max_new_tokens, 1.0, 0, end_id)
    arguments = rollout.tokens_PxGxT, rollout.lengths_PxG, labels_P, AnswerTokens(*answer_ids, end_id)
    return jnp.stack([format_reward(*arguments), relevance_reward(*arguments)]).mean(axis=2)
