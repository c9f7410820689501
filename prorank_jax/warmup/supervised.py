"""The plain way to warm up, to compare GRPO with: cross-entropy of the right answer and the end of the turn.

Both answers are computed for each prompt, so the rates that GRPO estimates from samples are exact here: the
probability of an answer in the right format, and of the right one.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh

from prorank_jax.config import SupervisedConfig
from prorank_jax.data.layout import Layout
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.lora import network
from prorank_jax.runtime.training import Metrics, TrainState, make_gradient_step
from prorank_jax.warmup.reading import longest_first
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.rollout import answer_log_probs
from prorank_jax.warmup.step import Step


def make_step(
    decoder: Decoder,
    answers: AnswerTokens,
    config: SupervisedConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    layout: Layout | None = None,
) -> Step:
    """The compiled step, with the arguments of GRPO's; nothing is drawn, so there are no completions to show.

    The loss is the mean over the answer's two tokens. `accuracy` and `format_rate` are what sampling at temperature 1
    would give on average.
    """

    def loss(learnt: Params, base: Params | None, batch: PairBatch[Array]) -> tuple[Array, Metrics]:
        batch = longest_first(batch, batch.lengths_P, layout)
        log_probs_Px2 = answer_log_probs(decoder, network(config.lora, base, learnt), answers, batch, layout)
        right_P = jnp.take_along_axis(log_probs_Px2, batch.labels_P[:, None], axis=1)[:, 0]
        value = -right_P.mean() / 2
        rates = {"accuracy": jnp.exp(right_P).mean(), "format_rate": jnp.exp(log_probs_Px2).sum(axis=1).mean()}
        return value, {"loss": value, **rates}

    update = make_gradient_step(loss, optimizer, mesh)

    @partial(jax.jit, donate_argnums=0)
    def step(
        state: TrainState, base: Params | None, batch: PairBatch[Array], number: Array
    ) -> tuple[TrainState, Metrics, None]:
        return *update(state, base, batch), None

    return step
