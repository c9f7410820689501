"""Import of full-size models: time, peak memory, and that the logits are torch's.

    python benchmarks/import_model.py [--dtype bfloat16] [--out FILE.json]

torch writes a model with random weights in the shape of a published one. A fresh process imports it into float32 on
the CPU; another loads the same folder with transformers. This is done three times: the shortest times count, and the
highest memory. The file was just written, so it is read from the page cache.

Memory is the most that a process held resident until the model was there, interpreter and libraries included.
Needs 8 GiB of memory, and 3 GB in the folder for temporary files.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _processes import in_fresh_process
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
"""In the shapes that were published."""

TARGETS = {"seconds": 30.0, "ratio": 1.6, "logits_difference": 1e-3}
"""What our import stays below."""

PROMPT_LENGTH = 128
REPETITIONS = 3
_TOKENS, _LOGITS = "tokens.npy", "logits.npy"


class Load(NamedTuple):
    """One load of a model in a process of its own.

    Attributes:
      seconds: wall time of the call that loads it.
      cold_seconds: from the start of the process to the loaded model, imports of libraries included.
      before_bytes: peak memory when the call begins, libraries imported.
      peak_bytes: peak memory when the model is there.
      parameters: how many it has.
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


class Timings(NamedTuple):
    """The loads of one model.

    Attributes:
      ours: `load_pretrained`.
      torch: `from_pretrained`, which may leave the values in the mapped file.
      torch_read: the same, and each value has been read once.
      logits_difference: the largest difference of our logits from torch's.
      largest_logit: of torch, for scale.
    """

    ours: Load
    torch: Load
    torch_read: Load
    logits_difference: float
    largest_logit: float


def write_model(folder: Path, fields: dict[str, Any], dtype: str) -> float:
    """A random model written by torch, a prompt, and torch's float32 logits of it; returns the largest logit."""
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields)).eval()
    with torch.no_grad():  # biases and norms start at constants, which would hide a swapped or dropped one
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    # Not `model.float()`: the rotary frequencies, too, have been rounded to `dtype`.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = np.random.default_rng(0).integers(0, fields["vocab_size"], (1, PROMPT_LENGTH))
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens)).logits[0].numpy()
    np.save(folder / _TOKENS, tokens)
    np.save(folder / _LOGITS, logits)
    return float(np.abs(logits).max())


def load_ours(folder: Path, started: float) -> tuple[Load, float]:
    """Our import, and the largest difference of its logits from torch's.

    Args:
      started: `time.time()` at the start of the process.
    """
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
    seconds, cold_seconds, peak = time.perf_counter() - start, time.time() - started, _peak_bytes()
    load = Load(seconds, cold_seconds, before, peak, sum(leaf.size for leaf in jax.tree.leaves(params)))

    decoder = Decoder(pretrained.config)
    tokens_BxL = jnp.asarray(np.load(folder / _TOKENS), jnp.int32)
    positions_BxL = jnp.arange(PROMPT_LENGTH)[None]
    mask_BxLxL = causal_mask(jnp.array([PROMPT_LENGTH]), PROMPT_LENGTH)
    hidden_BxLxD, _ = decoder.forward(params, tokens_BxL, positions_BxL, mask_BxLxL)
    logits_LxV = np.asarray(decoder.unembed(params, hidden_BxLxD[0]))
    return load, float(np.abs(logits_LxV - np.load(folder / _LOGITS)).max())


def load_torch(folder: Path, started: float) -> tuple[Load, Load]:
    """The load by transformers into float32, and the same up to where each value has been read once."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    before, start = _peak_bytes(), time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    count = sum(parameter.numel() for parameter in model.parameters())

    def until_now() -> Load:
        return Load(time.perf_counter() - start, time.time() - started, before, _peak_bytes(), count)

    called = until_now()
    for parameter in model.parameters():
        parameter.sum()
    return called, until_now()


def measure(fields: dict[str, Any], dtype: str) -> Timings:
    """Writes one model and loads it again and again."""
    ours, torch, torch_read, differences = [], [], [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        largest_logit = in_fresh_process(write_model, folder, fields, dtype)
        for _ in range(REPETITIONS):
            load, difference = in_fresh_process(load_ours, folder, time.time())
            called, read = in_fresh_process(load_torch, folder, time.time())
            ours.append(load)
            torch.append(called)
            torch_read.append(read)
            differences.append(difference)
    return Timings(_summary(ours), _summary(torch), _summary(torch_read), max(differences), largest_logit)


def figures(timings: Timings) -> dict[str, Any]:
    """What is written of one model."""

    def of(load: Load) -> dict[str, float]:
        return {**load._asdict(), "ratio": load.ratio}

    loads = {"ours": timings.ours, "torch": timings.torch, "torch_values_read": timings.torch_read}
    return {
        **{name: of(load) for name, load in loads.items()},
        "seconds_over_torch": timings.ours.seconds / timings.torch.seconds,
        "seconds_over_torch_values_read": timings.ours.seconds / timings.torch_read.seconds,
        "logits_difference": timings.logits_difference,
        "largest_logit": timings.largest_logit,
    }


def table(name: str, timings: Timings) -> str:
    """What is printed of one model."""
    lines = [
        f"{name}: {timings.ours.parameters:,} parameters, logits differ by at most "
        f"{timings.logits_difference:.0e} of {timings.largest_logit:.1f}",
        f"  {'':30} {'seconds':>8} {'cold start':>10} {'peak MiB':>9} {'x float32':>9}",
    ]
    for what, load in (
        ("load_pretrained", timings.ours),
        ("transformers", timings.torch),
        ("transformers, values read once", timings.torch_read),
    ):
        memory = f"{load.peak_bytes / 2**20:9.0f} {load.ratio:9.2f}"
        lines.append(f"  {what:30} {load.seconds:8.1f} {load.cold_seconds:10.1f} {memory}")
    return "\n".join(lines)


def headline(results: dict[str, Timings]) -> str:
    """The figures that have targets, in one line."""
    models = [
        f"{name}: {timings.ours.seconds:.1f} s, {timings.ours.ratio:.2f}x its float32 size"
        for name, timings in results.items()
    ]
    difference = max(timings.logits_difference for timings in results.values())
    return f"import of {'; '.join(models)}; logits differ by at most {difference:.0e}"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the file")
    options = arguments.parse_args()
    results = {}
    for name, fields in MODELS.items():
        results[name] = measure(fields, options.dtype)
        print(table(name, results[name]), flush=True)
    if options.out:
        record = {
            "headline": headline(results),
            "targets": TARGETS,
            "dtype": options.dtype,
            "repetitions": REPETITIONS,
            "file": "just written, read from the page cache",
            "models": {name: figures(timings) for name, timings in results.items()},
        }
        write(options.out, record, libraries=("jax", "numpy", "safetensors", "torch", "transformers"))
    print(headline(results))


def _summary(loads: Sequence[Load]) -> Load:
    return Load(
        min(load.seconds for load in loads),
        min(load.cold_seconds for load in loads),
        max(load.before_bytes for load in loads),
        max(load.peak_bytes for load in loads),
        loads[0].parameters,
    )


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
