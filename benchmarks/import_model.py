"""Import of full-size models: time, peak memory, and that the logits are torch's.

    python benchmarks/import_model.py [--dtype bfloat16] [--out FILE.json]

torch writes a model with random weights in the shape of a published one. A fresh process imports it, on the CPU, into
float32; another loads the same folder with transformers, for comparison. Each is done a few times in turn: the
shortest time counts, and the highest memory. The file was just written, so that it is read from the page cache.

Memory is the most that a process held resident up to the end of the import, interpreter and libraries included, over
the size of the parameters in float32. Needs 8 GiB of memory and 3 GB of disk in the temporary folder.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

from _record import parser, write

_COMMON = {"vocab_size": 151_936, "tie_word_embeddings": True, "rope_theta": 1e6, "rms_norm_eps": 1e-6}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2.5-0.5B": {
        **_COMMON,
        "model_type": "qwen2",
        "hidden_size": 896,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "intermediate_size": 4864,
    },
    "Qwen3-0.6B": {
        **_COMMON,
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
    },
}
"""As the published models have them."""

TARGETS = {"seconds": 30.0, "ratio": 1.6, "logits": 1e-3}
PROMPT_LENGTH = 128
_TOKENS, _LOGITS = "tokens.npy", "logits.npy"

P = ParamSpec("P")
T = TypeVar("T")


class Load(NamedTuple):
    """One load of a model in a process of its own.

    Attributes:
      seconds: wall time of the call that loads it.
      cold_seconds: from the start of the process to the loaded model, imports of libraries included.
      before_bytes: peak memory when the libraries are imported and the call begins.
      peak_bytes: peak memory when the model is loaded.
      parameters: how many there are.
    """

    seconds: float
    cold_seconds: float
    before_bytes: int
    peak_bytes: int
    parameters: int

    @property
    def ratio(self) -> float:
        """Peak memory over the size of the parameters in float32."""
        return self.peak_bytes / (4 * self.parameters)


def in_fresh_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """The result of a function that runs in a new interpreter.

    A process starts with the peak memory of the one that started it; so this one imports nothing that is large.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args, **kwargs).result()


def write_model(folder: Path, fields: dict[str, Any], dtype: str) -> None:
    """A model with random weights, written by torch; beside it a prompt and torch's logits of it, in float32."""
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).eval()
    with torch.no_grad():  # biases and norms start at constants, which would hide a swapped or dropped one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, fields["vocab_size"], (1, PROMPT_LENGTH))
    with torch.no_grad():
        logits = model.float()(torch.from_numpy(tokens)).logits[0].numpy()
    np.save(folder / _TOKENS, tokens)
    np.save(folder / _LOGITS, logits)


def load_here(folder: Path, started: float) -> tuple[Load, float]:
    """Our import, and the largest difference of its logits from torch's; `started` is the time of day."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp
    import numpy as np

    from prorank_jax.model.attention import causal_mask
    from prorank_jax.model.decoder import Decoder
    from prorank_jax.model.hf import load_pretrained

    jax.devices()
    before, start = _peak_bytes(), time.perf_counter()
    pretrained = load_pretrained(folder)
    params = jax.block_until_ready(pretrained.params)
    seconds = time.perf_counter() - start
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    load = Load(seconds, time.time() - started, before, _peak_bytes(), parameters)

    decoder = Decoder(pretrained.config)
    tokens_BxL = jnp.asarray(np.load(folder / _TOKENS), jnp.int32)
    positions_BxL = jnp.arange(PROMPT_LENGTH)[None]
    mask_BxLxL = causal_mask(jnp.array([PROMPT_LENGTH]), PROMPT_LENGTH)
    hidden_BxLxD, _ = decoder.forward(params, tokens_BxL, positions_BxL, mask_BxLxL)
    logits_LxV = np.asarray(decoder.unembed(params, hidden_BxLxD))[0]
    return load, float(np.abs(logits_LxV - np.load(folder / _LOGITS)).max())


def load_with_torch(folder: Path, started: float) -> Load:
    """The same folder through transformers, into float32."""
    import torch
    from transformers import AutoModelForCausalLM

    before, start = _peak_bytes(), time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seconds = time.perf_counter() - start
    cold_seconds, peak = time.time() - started, _peak_bytes()
    return Load(seconds, cold_seconds, before, peak, sum(parameter.numel() for parameter in model.parameters()))


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
