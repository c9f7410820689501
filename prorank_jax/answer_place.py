"""Whether a model would say either answer where its prompt ends: one forward pass, before a base model is trained."""

import logging
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.prefix import prefill
from prorank_jax.prompt import Prompt
from prorank_jax.runtime.mesh import WHOLE, on_devices, specs
from prorank_jax.thinking import TAIL

_log = logging.getLogger(__name__)
_PAIR = "what do crabs eat?", "Crabs eat algae."
LEAST = 1e-3
"""Of the likelier answer's probability to that of the likeliest token. Untuned small models, which would rather begin a
sentence, have .02 and more (SmolLM2-135M .14, Gemma 3 270M .02); one that is about to think has 1e-6 and less."""


def warn_unlikely(decoder: Decoder, params: Params, prompt: Prompt, mesh: Mesh) -> None:
    """Warns where the model would say something else by far: then its prompt ends in the wrong place.

    All processes of a run call it.
    """
    ids = prompt.encode(*_PAIR)
    logits_V = np.asarray(_next(decoder, mesh)(params, np.array([ids], np.int32), np.array([len(ids)], np.int32)))
    likeliest = int(logits_V.argmax())
    ratio = float(np.exp(logits_V[list(prompt.answer_ids)].max() - logits_V[likeliest]))
    if ratio < LEAST:
        no, yes = prompt.answers
        _log.warning(
            "%s: after the prompt's end %r the model says %r, and neither %r nor %r (%.0e times as likely); name a "
            "template in prompt.template that ends where the answer begins",
            prompt.place,
            prompt.tokenizer.decode(ids)[-TAIL:],
            prompt.tokenizer.decode([likeliest]),
            no,
            yes,
            ratio,
        )


@lru_cache(maxsize=1)
def _next(decoder: Decoder, mesh: Mesh) -> Any:
    """Compiled: the logits of the next token of one prompt, float32 [V]."""

    def here(params: Params, tokens_1xL: Array, lengths_1: Array) -> Array:
        last_1xD = prefill(decoder, params, tokens_1xL, lengths_1).last_PxD
        return decoder.unembed(params, last_1xD)[0].astype(jnp.float32)

    @jax.jit
    def logits(params: Params, tokens_1xL: Array, lengths_1: Array) -> Array:
        places = (specs(mesh, params), WHOLE, WHOLE)
        found: Array = on_devices(mesh, here, places, WHOLE)(params, tokens_1xL, lengths_1)
        return found

    return logits
