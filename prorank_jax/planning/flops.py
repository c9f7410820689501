"""Model FLOPs of a step: what the mathematics needs, whatever is computed again to save memory.

A product of [m, k] and [k, n] is 2mkn. A backward pass is twice its forward pass, or once where the matrices are frozen
(LoRA), whose own gradients are not computed. Causal attention sees half of its square. After PaLM's appendix B
(arXiv 2204.02311).
"""

import math

from prorank_jax.config import ExpectedConfig, GrpoConfig, LoraConfig, ScoreConfig, SupervisedConfig
from prorank_jax.model.decoder import DecoderConfig
from prorank_jax.model.tensors import tensor_table


def forward(c: DecoderConfig, tokens: float, keys: float) -> float:
    """The layers, for so many tokens that attend to so many keys each."""
    kernels = sum(c.layers * math.prod(entry.ours) for entry in tensor_table(c) if entry.kernel)
    return tokens * (2 * kernels + 4 * c.layers * c.heads * c.head_size * keys)


def unembedding(c: DecoderConfig, positions: float) -> float:
    """Logits of all tokens at so many positions."""
    return 2.0 * positions * c.vocabulary * c.width


def warmup(c: DecoderConfig, config: GrpoConfig | ExpectedConfig | SupervisedConfig, length: int) -> float:
    """A step of prompt warmup by its method."""
    if isinstance(config, GrpoConfig):
        return grpo(c, config, length)
    return expected(c, config, length) if isinstance(config, ExpectedConfig) else supervised(c, config, length)


def grpo(c: DecoderConfig, config: GrpoConfig, length: int) -> float:
    """A step of GRPO: rollouts, the reference where there is one, and the updates."""
    P, completion = config.prompts_per_step, config.prompts_per_step * config.group_size * (config.max_new_tokens - 1)
    prompts = forward(c, P * length, length / 2)
    completions = forward(c, completion, length) + unembedding(c, P + completion)
    reference = (prompts + completions) if config.beta else 0.0
    drawn = completions + reference
    if config.oversampling > 1 or config.advantage.startswith("batch"):
        # Before it is known what is learnt from, all of it is computed once without a gradient.
        drawn = config.oversampling * (drawn + prompts + completions)
    return drawn + config.iterations * _with_backward(config.lora) * (prompts + completions)


def expected(c: DecoderConfig, config: ExpectedConfig, length: int) -> float:
    """A step of GRPO's limit: the answers' probabilities, the reference's where there is one, and the updates."""
    network = _answers(c, config.prompts_per_step, length)
    return (network if config.beta else 0.0) + config.iterations * _with_backward(config.lora) * network


def supervised(c: DecoderConfig, config: SupervisedConfig, length: int) -> float:
    """A step on the log-probabilities of both answers."""
    return _with_backward(config.lora) * _answers(c, config.prompts_per_step, length)


def _answers(c: DecoderConfig, prompts: int, length: int) -> float:
    """Prompts, and behind each both answers and the end of the turn."""
    answers = forward(c, 2 * prompts, length) + unembedding(c, 3 * prompts)
    return forward(c, prompts * length, length / 2) + answers


def score(c: DecoderConfig, config: ScoreConfig, length: int) -> float:
    """A step of score learning on prompts of full length that share nothing."""
    prompts = config.queries_per_step * config.documents_per_query
    network = forward(c, prompts * length, length / 2)
    anchor = network + 4 * unembedding(c, prompts) if config.anchor else 0.0
    return _with_backward(config.lora) * network + anchor


def _with_backward(lora: LoraConfig | None) -> int:
    return 3 if lora is None else 2
