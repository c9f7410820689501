"""A GRPO step against the plain way in torch, against TRL's own loss, and against its own promises."""

import copy
import math
import re
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hf_models import write_model
from jax.sharding import AxisType, Mesh

from prorank_jax.config import GrpoConfig, LoraConfig
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.attention import Rope, causal_mask
from prorank_jax.model.decoder import Decoder, DecoderConfig
from prorank_jax.model.hf import load_pretrained
from prorank_jax.model.lora import init_adapters, merged, network
from prorank_jax.model.prefix import prefill
from prorank_jax.model.tensors import get, tensor_table
from prorank_jax.runtime.training import TrainState
from prorank_jax.seeds import key
from prorank_jax.warmup.policy import make_losses
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.rollout import sample
from prorank_jax.warmup.step import make_step

pytestmark = pytest.mark.usefixtures("fast_compilation")

VOCABULARY = 5
ZERO, ONE, END = 0, 4, 2
ANSWERS = AnswerTokens(ZERO, ONE, END)
LENGTHS = [6, 3, 1, 5]
P, T = len(LENGTHS), 4
FIVE: dict[str, Any] = {"group_size": 5, "beta": 0.04}
AVERAGES = ["grpo", "dr_grpo", "dapo"]
RATE = 0.1
SEED = 111
"""Of rollouts of all lengths in groups whose rewards differ."""


class Models(NamedTuple):
    """Two Qwen2 that differ in every weight, each in torch and in our layout."""

    decoder: Decoder
    policy: Any
    params: Any
    reference: Any
    base: Any


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Threads of torch that wait for each other are most of the time that such small networks take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    def ours(model, name):
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        return load_pretrained(folder)

    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        # Logits near to each other: every token is drawn now and then, answers and ends among them.
        "initializer_range": 0.03,
    }
    policy = write_model(tmp_path_factory.mktemp("written"), "qwen2", **shape)
    reference = moved(policy, seed=1)
    pretrained = ours(policy, "policy")
    return Models(Decoder(pretrained.config), policy, pretrained.params, reference, ours(reference, "reference").params)


def moved(model, seed):
    """A copy with noise on every weight."""
    model, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@pytest.fixture(scope="module")
def experience(models, fast_compilation):
    """Rollouts of the policy, five of each prompt, with all that is learnt from."""
    return draw_and_differentiate(models.decoder, models.params, models.base, **FIVE)[3]


@pytest.fixture(scope="module")
def masked(models, fast_compilation):
    """The same with the truncated ones masked."""
    return draw_and_differentiate(models.decoder, models.params, models.base, **FIVE, mask_truncated=True)[3]


def grpo(**fields):
    # Temperature and the two clips are no defaults, and no two numbers are alike.
    defaults: dict[str, Any] = {
        "steps": 1,
        "prompts_per_step": P,
        "max_new_tokens": T,
        "temperature": 0.7,
        "clip_low": 0.2,
        "clip_high": 0.28,
        "rewards": {"format": 1.0, "relevance": 0.5},
    }
    return GrpoConfig(**(defaults | fields))


def prompts():
    """Four prompts, padded on the right with noise, which nothing may read; numpy."""
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (P, max(LENGTHS) + 1)).astype(np.int32)
    return PairBatch(tokens, np.array(LENGTHS, np.int32), np.array([0, 1, 1, 0], np.int32))


def on_device(batch):
    return jax.tree.map(jnp.asarray, batch)


QUICKLY: Any = {"xla_cpu_parallel_codegen_split_count": 1}
if jax.__version_info__ < (0, 11):
    # The other emitters of fusions compute the same, and take three times as long to be compiled.
    QUICKLY["xla_cpu_use_fusion_emitters"] = False


@cache
def fresh(decoder, **fields):
    loss = make_losses(decoder, ANSWERS, grpo(**fields)).fresh
    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY)


@cache
def replay(decoder, **fields):
    loss = make_losses(decoder, ANSWERS, grpo(**fields)).replay
    return jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICKLY)


def draw_and_differentiate(decoder, learnt, base, **fields):
    """The mean loss of fresh rollouts, its gradient, the means, and the experience."""
    keys_P = jax.random.split(jax.random.fold_in(key(SEED, "warmup/rollouts"), 0), P)  # those of a step's number 0
    (total, (means, experience)), gradient = fresh(decoder, **fields)(learnt, base, on_device(prompts()), keys_P)
    weight = means["loss"].weight
    return total / weight, jax.tree.map(lambda leaf: leaf / weight, gradient), means, experience


def differentiate_again(decoder, learnt, base, experience, **fields):
    """The mean loss of an experience, its gradient, and the means."""
    (total, means), gradient = replay(decoder, **fields)(learnt, base, experience)
    weight = means["loss"].weight
    return total / weight, jax.tree.map(lambda leaf: leaf / weight, gradient), means


def compiled_step(decoder, config, optimizer, *arguments, answers=ANSWERS, seed=SEED):
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    step: Any = make_step(decoder, answers, config, optimizer, mesh, seed)
    return step.lower(*arguments).compile(QUICKLY)


def run_steps(decoder, config, learnt, base, optimizer=None, count=1, **settings):
    """The state after some steps, by default of plain gradient descent, and what every step gave."""
    optimizer = optimizer or optax.sgd(RATE)
    # A step takes the buffers of its state.
    state = jax.tree.map(jnp.copy, TrainState(learnt, optimizer.init(learnt)))
    batch = on_device(prompts())
    step = compiled_step(decoder, config, optimizer, state, base, batch, jnp.asarray(0), **settings)
    results = []
    for number in range(count):
        state, metrics, completions = step(state, base, batch, jnp.asarray(number))
        results.append((jax.device_get(metrics), completions))
    return state, results


def leaves(tree):
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def assert_close(ours, theirs, atol=1e-5):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, atol=atol, rtol=0, err_msg=name)


# The plain way: every prompt G times, whole sequences, and gradients by torch.


def plain_log_probs(model, batch, completions, temperature):
    """Log-probabilities [P * G, T, V] by one full forward pass of each prompt with each of its completions."""
    P, G, T = completions.shape
    starts = np.repeat(batch.lengths_P, G)
    rows = torch.zeros(P * G, max(starts) + T, dtype=torch.long)
    for i, start in enumerate(starts):
        rows[i, :start] = torch.from_numpy(batch.tokens_PxL[i // G, :start])
        rows[i, start : start + T] = torch.from_numpy(completions[i // G, i % G])
    every = torch.log_softmax(model(rows).logits / temperature, -1)
    return torch.stack([row[start - 1 : start - 1 + T] for row, start in zip(every, starts, strict=True)])


def plain_judge(config, batch, completions):
    """Mask [P * G, T] and advantages [P * G, 1], completion by completion."""
    P, G, T = completions.shape
    mask, reward = torch.zeros(P, G, T), torch.zeros(P, G)
    for p, g in np.ndindex(P, G):
        answer = completions[p, g].tolist()
        length = answer.index(END) + 1 if END in answer else T
        mask[p, g, :length] = END in answer or not config.mask_truncated
        right = [[ZERO, END], [ONE, END]][batch.labels_P[p]]
        reward[p, g] += config.rewards["format"] * (answer[:2] in ([ZERO, END], [ONE, END]))
        reward[p, g] += config.rewards["relevance"] * (answer[:2] == right)
    advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
    return mask.reshape(-1, T), advantage.reshape(-1, 1)


def plain_updates(models, config, completions):
    """The network after all iterations of gradient descent, with its last gradients, and metrics of each iteration."""
    batch, model, completions = prompts(), copy.deepcopy(models.policy), np.array(completions)
    mask, advantage = plain_judge(config, batch, completions)
    index = torch.from_numpy(completions.reshape(-1, completions.shape[2], 1)).long()

    def mean(value):
        return ((value * mask).sum() / mask.sum()).item()

    with torch.no_grad():
        reference = plain_log_probs(models.reference, batch, completions, config.temperature).gather(2, index)[..., 0]
    old, rows = None, []
    for _ in range(config.iterations):
        every = plain_log_probs(model, batch, completions, config.temperature)
        chosen = every.gather(2, index)[..., 0]
        old = chosen.detach() if old is None else old
        ratio = torch.exp(chosen - old)
        clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        divergence = torch.exp(reference - chosen) - (reference - chosen) - 1
        loss = config.beta * divergence - torch.minimum(ratio * advantage, clipped * advantage)
        if config.loss_average == "grpo":
            loss = ((loss * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()
        elif config.loss_average == "dr_grpo":
            loss = (loss * mask).sum() / mask.numel()
        else:
            loss = (loss * mask).sum() / mask.sum()
        model.zero_grad()
        loss.backward()
        row = {
            "loss": loss.item(),
            "entropy": mean(-(every.exp() * every).sum(-1)),
            "clip_ratio/low_mean": mean((ratio < 1 - config.clip_low) & (advantage < 0)),
            "clip_ratio/high_mean": mean((ratio > 1 + config.clip_high) & (advantage > 0)),
            "grad_norm": sum((weight.grad**2).sum() for weight in model.parameters()).sqrt().item(),
        }
        rows.append(row | ({"kl": mean(divergence)} if config.beta else {}))
        with torch.no_grad():
            for weight in model.parameters():
                weight -= RATE * weight.grad
    return model, rows


def gradients(model):
    return {name: weight.grad.numpy() for name, weight in model.named_parameters()}


def in_their_layout(config, tree):
    """Our parameters, or their gradients, as tensors by Hugging Face's names."""
    return {
        name: entry.to_theirs(np.asarray(get(tree, entry.path))[layer if entry.stacked else ...])
        for entry in tensor_table(config)
        for layer, name in enumerate(entry.names(config.layers))
    }


# Of group size, beta and average, every two options meet among these.
ONE_UPDATE = [
    (2, 0.0, "grpo"),
    (2, 0.04, "dr_grpo"),
    (5, 0.0, "dapo"),
    (5, 0.04, "grpo"),
    (8, 0.0, "dr_grpo"),
    (8, 0.04, "dapo"),
]
# The three pairs of size and average that were left.
THREE_UPDATES = [(2, 0.04, "dapo"), (5, 0.0, "dr_grpo"), (8, 0.04, "grpo")]


@pytest.mark.parametrize(("G", "beta", "average"), ONE_UPDATE)
def test_the_loss_and_every_gradient_equal_the_plain_way(models, G, beta, average):
    fields = {"group_size": G, "beta": beta, "loss_average": average}
    loss, gradient, _, experience = draw_and_differentiate(
        models.decoder, models.params, models.base if beta else None, **fields
    )
    model, [row] = plain_updates(models, grpo(**fields), experience.rollout.tokens_PxGxT)
    want = gradients(model)
    # Thirty times the tolerance and more, in the least of all tensors: a bias of the keys.
    assert min(np.abs(tensor).max() for tensor in want.values()) > 3e-4
    assert_close(in_their_layout(models.decoder.config, gradient), want)
    assert loss == pytest.approx(row["loss"], abs=1e-5)
    # There were completions of one token to all four, and two groups or more to learn from.
    assert {1, 2, 4} <= set(np.asarray(experience.rollout.lengths_PxG).ravel().tolist())
    assert (np.abs(experience.advantage_PxG).max(axis=1) > 0.1).sum() >= 2


@pytest.mark.parametrize(("G", "beta", "average"), THREE_UPDATES)
def test_three_updates_from_the_same_rollouts_equal_the_plain_way(models, G, beta, average):
    config = grpo(group_size=G, beta=beta, loss_average=average, iterations=3)
    state, [(metrics, completions)] = run_steps(models.decoder, config, models.params, models.base if beta else None)
    model, rows = plain_updates(models, config, completions.rollout.tokens_PxGxT)
    # At first nothing is clipped, as every ratio is 1. Were the old log-probabilities computed anew, it would stay so.
    assert rows[0]["clip_ratio/low_mean"] == rows[0]["clip_ratio/high_mean"] == 0
    assert rows[1]["clip_ratio/low_mean"] > 0.05 and rows[1]["clip_ratio/high_mean"] > 0.05
    weights = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    assert_close(in_their_layout(models.decoder.config, state.params), weights)
    for name in rows[0]:
        assert metrics[name] == pytest.approx(np.mean([row[name] for row in rows]), abs=1e-5), name


@pytest.mark.parametrize("average", AVERAGES)
def test_truncated_completions_count_nothing_where_they_are_masked(models, experience, masked, average):
    # The rollouts are the same, and truncated ones still belong to their groups: some have an advantage.
    jax.tree.map(np.testing.assert_array_equal, masked.rollout, experience.rollout)
    np.testing.assert_array_equal(masked.advantage_PxG, experience.advantage_PxG)
    truncated = ~np.asarray(masked.rollout.ended_PxG)
    assert (np.abs(masked.advantage_PxG)[truncated] > 0.1).any() and not truncated.all()

    config = grpo(**FIVE, loss_average=average, mask_truncated=True)
    model, [row] = plain_updates(models, config, masked.rollout.tokens_PxGxT)
    _, [unmasked] = plain_updates(models, grpo(**FIVE, loss_average=average), masked.rollout.tokens_PxGxT)
    assert abs(unmasked["loss"] - row["loss"]) > 1e-3
    loss, gradient, means = differentiate_again(
        models.decoder, models.params, None, masked, **FIVE, loss_average=average
    )
    assert loss == pytest.approx(row["loss"], abs=1e-5)
    assert means["kl"].value == pytest.approx(row["kl"], abs=1e-5)
    assert_close(in_their_layout(models.decoder.config, gradient), gradients(model))


@pytest.mark.parametrize("average", AVERAGES)
def test_the_gradient_of_no_token_is_nothing(models, experience, average):
    none = experience._replace(mask_PxGxT=jnp.zeros_like(experience.mask_PxGxT))
    (total, means), gradient = replay(models.decoder, **FIVE, loss_average=average)(models.params, None, none)
    assert total == means["loss"].value == means["kl"].value == 0
    assert all((leaf == 0).all() for leaf in leaves(gradient).values())


def test_where_all_are_truncated_and_masked_nothing_moves(models):
    # A token that the vocabulary lacks ends no turn. `dapo` divides nothing by no token, the others by a constant.
    endless = AnswerTokens(ZERO, ONE, VOCABULARY)
    config = grpo(**FIVE, loss_average="dapo", mask_truncated=True)
    state, [(metrics, completions)] = run_steps(models.decoder, config, models.params, models.base, answers=endless)
    assert not completions.rollout.ended_PxG.any()
    assert metrics["loss"] == metrics["grad_norm"] == metrics["kl"] == 0
    assert metrics["completions/clipped_ratio"] == 1
    assert all(math.isfinite(value) for value in metrics.values())
    jax.tree.map(np.testing.assert_array_equal, state.params, models.params)


# TRL's own loss.


def trl_trainer(models, config, experience, folder):
    """A trainer whose rollouts and rewards are those of an experience, and whose reference is the reference."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    models.reference.save_pretrained(folder / "reference")
    backend = Tokenizer(WordLevel({"<end>" if token == END else str(token): token for token in range(VOCABULARY)}))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<end>", eos_token="<end>")
    batch, lengths = experience.batch, np.asarray(experience.rollout.lengths_PxG)
    completions = np.asarray(experience.rollout.tokens_PxGxT)
    P, G, T = completions.shape

    def rollouts(prompts, trainer):
        return {
            "prompt_ids": [batch.tokens_PxL[p, : batch.lengths_P[p]].tolist() for p in range(P) for _ in range(G)],
            "completion_ids": [completions[p, g, : lengths[p, g]].tolist() for p, g in np.ndindex(P, G)],
            "logprobs": None,
        }

    def reward(name, **_):
        return np.asarray(experience.rewards[name]).ravel().tolist()

    settings: dict[str, Any] = {
        "output_dir": str(folder / "output"),
        "per_device_train_batch_size": P * G,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": 1,
        "num_iterations": 2,
        "num_generations": G,
        "max_completion_length": T,
        "temperature": config.temperature,
        "beta": config.beta,
        "epsilon": config.clip_low,
        "epsilon_high": config.clip_high,
        "loss_type": config.loss_average,
        "mask_truncated_completions": config.mask_truncated,
        "scale_rewards": "group",
        "reward_weights": list(config.rewards.values()),
        # The plain estimate of the divergence, as ours.
        "use_bias_correction_kl": False,
        # By default it computes in bfloat16, and uses a name that transformers warns of.
        "bf16": False,
        "gradient_checkpointing": None,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
    }
    return GRPOTrainer(
        model=str(folder / "reference"),
        reward_funcs=[partial(reward, name) for name in config.rewards],
        args=GRPOConfig(**settings),
        train_dataset=Dataset.from_dict({"prompt": ["0"] * P}),
        processing_class=tokenizer,
        rollout_func=rollouts,
    )


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # TRL asks transformers
@pytest.mark.parametrize(("average", "mask_truncated"), [("grpo", False), ("dr_grpo", False), ("dapo", True)])
def test_a_second_update_has_the_loss_and_the_gradient_of_trl(
    models, request, tmp_path, monkeypatch, average, mask_truncated
):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")  # it may change `rollout_func`, and warns of that
    experience = request.getfixturevalue("masked" if mask_truncated else "experience")
    now = moved(models.policy, seed=2)
    now.save_pretrained(tmp_path / "now")
    loss, gradient, means = differentiate_again(
        models.decoder, load_pretrained(tmp_path / "now").params, None, experience, **FIVE, loss_average=average
    )
    assert means["clip_ratio/low_mean"].value > 0.02 and means["clip_ratio/high_mean"].value > 0.02

    config = grpo(**FIVE, loss_average=average, mask_truncated=mask_truncated)
    trainer = trl_trainer(models, config, experience, tmp_path)
    # The rollouts are the policy's: TRL computes their log-probabilities, the reference's, and the advantages.
    trainer.model.load_state_dict(models.policy.state_dict())
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": "0"}] * (P * 5))
    real = inputs["completion_mask"].numpy() > 0
    np.testing.assert_array_equal(real, np.asarray(experience.mask_PxGxT).reshape(-1, T) > 0)
    old = np.asarray(experience.old_log_prob_PxGxT).reshape(-1, T)
    np.testing.assert_allclose(inputs["old_per_token_logps"].numpy()[real], old[real], atol=1e-5)
    np.testing.assert_allclose(inputs["advantages"].numpy(), np.asarray(experience.advantage_PxG).ravel(), atol=1e-5)

    trainer.model.load_state_dict(now.state_dict())
    # Its training loop sets this. TRL divides a loss by it, as the gradients of that many batches add up; `dapo`'s sum
    # it divides by it over `steps_per_generation` times `num_items_in_batch`, the tokens of a whole generation. All
    # being 1, what comes out is the loss of the batch.
    trainer.current_gradient_accumulation_steps = 1
    theirs = trainer._compute_loss(trainer.model, inputs)
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), abs=1e-5)
    assert_close(in_their_layout(models.decoder.config, gradient), gradients(trainer.model))
    for name in ("kl", "entropy", "clip_ratio/low_mean", "clip_ratio/high_mean"):
        assert means[name].value == pytest.approx(trainer._metrics["train"][name][-1], abs=1e-5), name


# Parts, seeds, adapters, a shortlist of tokens, half the bits.


def of_parts(parts, iterations):
    return grpo(**FIVE, loss_average="dapo", accumulation=parts, iterations=iterations)


@pytest.fixture(scope="module")
def whole(models, fast_compilation):
    """Steps of one and of two iterations whose prompts are computed all at once."""
    return {n: run_steps(models.decoder, of_parts(1, n), models.params, models.base) for n in (1, 2)}


@pytest.mark.parametrize(("parts", "iterations"), [(2, 1), (4, 1), (2, 2)])
def test_parts_of_a_batch_give_the_update_of_the_whole(models, whole, parts, iterations):
    want, [(want_metrics, want_completions)] = whole[iterations]
    tokens_P = np.asarray(want_completions.rollout.lengths_PxG).sum(axis=1)
    assert len(set(tokens_P.reshape(parts, -1).sum(axis=1))) > 1
    state, [(metrics, completions)] = run_steps(models.decoder, of_parts(parts, iterations), models.params, models.base)
    jax.tree.map(np.testing.assert_array_equal, completions, want_completions)
    assert_close(leaves(state.params), leaves(want.params), atol=1e-6)
    assert metrics.keys() == want_metrics.keys()
    for name, value in want_metrics.items():
        assert metrics[name] == pytest.approx(value, abs=2e-6), name


def test_a_step_follows_from_its_seed(models, whole):
    first, _ = whole[1]
    again, _ = run_steps(models.decoder, of_parts(1, 1), models.params, models.base)
    other, _ = run_steps(models.decoder, of_parts(1, 1), models.params, models.base, seed=SEED + 1)
    jax.tree.map(np.testing.assert_array_equal, again, first)
    assert any((leaf != leaves(first)[name]).any() for name, leaf in leaves(other).items())


SEVEN = LoraConfig(rank=2, alpha=4.0)
TWO = LoraConfig(rank=2, alpha=4.0, targets=("q_proj", "down_proj"))
ADAPTERS = pytest.mark.parametrize("lora", [pytest.param(TWO, id="two"), pytest.param(SEVEN, id="seven")])


def random_adapters(decoder, lora):
    rng, shapes = np.random.default_rng(0), init_adapters(lora, decoder.config, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.1, leaf.shape), jnp.float32), shapes)


@ADAPTERS
def test_adapters_begin_as_the_base_network(models, lora):
    adapters = init_adapters(lora, models.decoder.config, jax.random.key(0))
    loss, _, _, alone = draw_and_differentiate(models.decoder, models.params, models.params, **FIVE)
    got, gradient, means, experience = draw_and_differentiate(
        models.decoder, adapters, models.params, **FIVE, lora=lora
    )
    jax.tree.map(np.testing.assert_array_equal, experience.rollout, alone.rollout)
    assert got == pytest.approx(float(loss), abs=1e-6)
    assert means["kl"].value == pytest.approx(0.0, abs=1e-7)
    assert len(leaves(adapters)) == 2 * len(lora.targets) and leaves(gradient).keys() == leaves(adapters).keys()
    for name, leaf in leaves(gradient).items():
        # As B is zero, so is the gradient of A. Were both zero, neither would ever move.
        assert (np.abs(leaf).max() > 1e-3) == name.endswith("lora_b"), name


def test_adapters_are_all_that_learns(models):
    adapters = init_adapters(SEVEN, models.decoder.config, jax.random.key(0))
    before = leaves(jax.tree.map(np.array, models.params))
    state, [(first, _), (second, _)] = run_steps(
        models.decoder, grpo(**FIVE, lora=SEVEN), adapters, models.params, optax.sgd(3.0), count=2
    )
    assert leaves(state.params).keys() == leaves(adapters).keys()
    assert all((leaf != leaves(adapters)[name]).any() for name, leaf in leaves(state.params).items())
    assert first["kl"] == pytest.approx(0.0, abs=1e-7) and second["kl"] > 1e-5
    for name, leaf in leaves(models.params).items():
        np.testing.assert_array_equal(leaf, before[name], err_msg=name)


@ADAPTERS
def test_adapters_have_the_gradient_of_the_matrices_that_they_add_to(models, experience, lora):
    adapters, scale = random_adapters(models.decoder, lora), lora.alpha / lora.rank
    # W + alpha / rank * A B by hand; from its gradient D those of A and B follow by the chain rule.
    by_hand, want = leaves(models.params), {}
    pairs = {name[: -len("lora_a")]: leaf for name, leaf in leaves(adapters).items() if name.endswith("lora_a")}
    pairs = {name: (a, leaves(adapters)[name + "lora_b"]) for name, a in pairs.items()}
    for name, (a, b) in pairs.items():
        kernel = by_hand[name + "kernel"]
        by_hand[name + "kernel"] = kernel + (scale * a @ b).reshape(kernel.shape)
    assert_close(leaves(merged(lora, models.params, adapters)), by_hand, atol=1e-6)
    tree = jax.tree.unflatten(jax.tree.structure(models.params), [jnp.asarray(leaf) for leaf in by_hand.values()])
    want_loss, dense, _ = differentiate_again(models.decoder, tree, None, experience, **FIVE)
    for name, (a, b) in pairs.items():
        D = leaves(dense)[name + "kernel"].reshape(-1, a.shape[1], b.shape[2])
        want[name + "lora_a"] = scale * D @ b.swapaxes(1, 2)
        want[name + "lora_b"] = scale * a.swapaxes(1, 2) @ D
    assert min(np.abs(leaf).max() for leaf in want.values()) > 1e-3

    loss, gradient, _ = differentiate_again(models.decoder, adapters, models.params, experience, **FIVE, lora=lora)
    assert loss == pytest.approx(float(want_loss), abs=1e-5)
    assert_close(leaves(gradient), want)


@ADAPTERS
def test_merged_adapters_give_the_logits_of_attached_ones(models, lora):
    adapters, batch = random_adapters(models.decoder, lora), on_device(prompts())

    @jax.jit
    def logits(params):
        prefix = prefill(models.decoder, params, batch.tokens_PxL, batch.lengths_P)
        return models.decoder.unembed(params, prefix.last_PxD)

    attached = logits(network(lora, models.params, adapters))
    np.testing.assert_allclose(logits(merged(lora, models.params, adapters)), attached, atol=1e-5)
    assert np.abs(attached - logits(models.params)).max() > 0.01


def test_top_k_draws_from_the_likeliest_and_judges_by_all(models):
    _, _, _, experience = draw_and_differentiate(models.decoder, models.params, models.base, **FIVE, top_k=2)
    completions = np.array(experience.rollout.tokens_PxGxT)
    with torch.no_grad():
        every = plain_log_probs(models.policy, prompts(), completions, grpo().temperature).numpy()
    chosen = np.take_along_axis(every, completions.reshape(-1, T, 1), axis=2)
    # Over the two alone they would be larger: by 0.2 at the least.
    assert np.log(np.exp(np.sort(every)[..., -2:]).sum(-1)).max() < -0.2
    np.testing.assert_allclose(np.asarray(experience.old_log_prob_PxGxT).reshape(-1, T), chosen[..., 0], atol=1e-5)
    rank = (every > chosen).sum(axis=2)[np.asarray(experience.rollout.mask_PxGxT).reshape(-1, T) > 0]
    assert set(rank.tolist()) == {0, 1}


def test_top_k_keeps_the_odds_of_what_it_keeps(models):
    P, G, temperature = 1000, 10, 0.7
    batch = on_device(jax.tree.map(lambda leaf: np.repeat(leaf[2:3], P, axis=0), prompts()))

    @partial(jax.jit, static_argnums=1, compiler_options=QUICKLY)
    def draw(params, top_k):
        prefix = prefill(models.decoder, params, batch.tokens_PxL, batch.lengths_P)
        keys = jax.random.split(jax.random.key(5), P)
        return sample(models.decoder, params, prefix, keys, G, 2, temperature, top_k, END).tokens_PxGxT[..., 0]

    with torch.no_grad():
        exact = plain_log_probs(models.policy, prompts(), np.zeros((4, 1, 1), int), temperature)[2, 0].exp().numpy()
    likeliest = np.argsort(exact)[-2:]
    counts = np.bincount(np.asarray(draw(models.params, 2)).ravel(), minlength=VOCABULARY)[likeliest]
    assert counts.sum() == P * G
    expected = P * G * exact[likeliest] / exact[likeliest].sum()
    # 0.999 of all honest samplers stay below. One without the temperature, or that draws half of each, is far above.
    assert ((counts - expected) ** 2 / expected).sum() < 10.83
    flat = P * G * exact[likeliest] ** temperature / (exact[likeliest] ** temperature).sum()
    for other in (flat, np.full(2, P * G / 2)):
        assert ((other - expected) ** 2 / expected).sum() > 100

    # As many as there are, or more, are all.
    every = np.asarray(draw(models.params, 0))
    assert len(np.unique(every)) == VOCABULARY
    for top_k in (VOCABULARY, 1000):
        np.testing.assert_array_equal(draw(models.params, top_k), every)


def test_bfloat16_computes_near_to_float32_and_keeps_a_state_of_float32(models, experience):
    half = replace(models.decoder, dtype=jnp.dtype("bfloat16"))
    fields = FIVE | {"loss_average": "dapo"}
    loss, gradient, _ = differentiate_again(models.decoder, models.params, None, experience, **fields)
    near, rough, _ = differentiate_again(half, models.params, None, experience, **fields)
    assert near == pytest.approx(float(loss), abs=1e-3) and abs(loss) > 0.1
    # The gradient tells that it was computed in other bits, and that they are the same numbers.
    apart = optax.tree.norm(jax.tree.map(jnp.subtract, rough, gradient)) / optax.tree.norm(gradient)
    assert 1e-3 < apart < 0.03

    state, [(metrics, completions)] = run_steps(
        half, grpo(**fields), models.params, models.base, optax.sgd(RATE, momentum=0.9)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert all(math.isfinite(value) for value in metrics.values()) and metrics["grad_norm"] > 0.1
    assert {"loss", "reward", "reward_std", "rewards/format/mean", "rewards/relevance/mean", "kl"} <= metrics.keys()
    assert completions.rewards["format"].shape == (P, 5)


# What the compiled step holds in memory.


def wide(vocabulary):
    return Decoder(
        DecoderConfig(
            vocabulary=vocabulary,
            width=64,
            layers=2,
            heads=4,
            kv_heads=2,
            head_size=16,
            mlp_width=128,
            rope=Rope(),
            norm_epsilon=1e-6,
            query_scale=0.25,
            tied=True,
        )
    )


def step_of_shapes(decoder, P, L, G, iterations):
    """The compiled step of P prompts of L tokens, without a single array."""
    optimizer = optax.sgd(RATE)
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    state = jax.eval_shape(lambda params: TrainState(params, optimizer.init(params)), params)
    batch = PairBatch(*(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((P, L), (P,), (P,))))
    config = grpo(prompts_per_step=P, group_size=G, beta=0.04, iterations=iterations)
    return compiled_step(decoder, config, optimizer, state, params, batch, jax.ShapeDtypeStruct((), jnp.int32))


def test_the_compiled_step_holds_no_logits_of_prompts_and_no_prompt_twice():
    P, L, G, V = 2, 97, 5, 521  # primes, so that no reshape hides them
    decoder = wide(V)
    keys_of_repeated = G * L * decoder.config.kv_heads * decoder.config.head_size

    def too_large(program):
        """Sizes of arrays with V for each token of a prompt, with a prompt's keys G times, or larger than P * L * V."""
        shapes = set(re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", program.as_text()))
        sizes = {math.prod(map(int, shape.split(","))) for shape in shapes}
        assert {P * L * 64, V * 64} <= sizes
        return {size for size in sizes if not (size % (L * V) and size % keys_of_repeated) or size >= P * L * V}

    assert too_large(step_of_shapes(decoder, P, L, G, iterations=2)) == set()

    # Either would be found.
    params = jax.eval_shape(decoder.init, jax.random.key(0))
    tokens, lengths = jax.ShapeDtypeStruct((P, L), jnp.int32), jax.ShapeDtypeStruct((P,), jnp.int32)

    @jax.jit
    def logits_of_prompts(params, tokens_PxL, lengths_P):
        positions = jnp.broadcast_to(jnp.arange(L), (P, L))
        hidden, _ = decoder.forward(params, tokens_PxL, positions, causal_mask(lengths_P, L))
        return jax.nn.logsumexp(decoder.unembed(params, hidden), axis=-1)

    @jax.jit
    def repeated_prompts(params, tokens_PxL, lengths_P):
        once = prefill(decoder, params, tokens_PxL, lengths_P)
        return once.last_PxD, prefill(decoder, params, jnp.repeat(tokens_PxL, G, 0), jnp.repeat(lengths_P, G)).last_PxD

    assert P * L * V in too_large(logits_of_prompts.lower(params, tokens, lengths).compile(QUICKLY))
    assert P * keys_of_repeated in too_large(repeated_prompts.lower(params, tokens, lengths).compile(QUICKLY))


def test_a_larger_group_costs_the_memory_of_its_completions_alone():
    # What is optimised of a compiled program's instructions leaves its buffers as they are: without the fixture that
    # compiles fast they are the same to a thousandth.
    def temporary(L, G, P=4):
        return step_of_shapes(wide(512), P, L, G, iterations=1).memory_analysis().temp_size_in_bytes

    four, sixteen = temporary(512, 4), temporary(512, 16)
    own = temporary(8, 16) - temporary(8, 4)
    # 72.1 and 75.2 MB, of which 2.2 MB are of completions alone. Repeated prompts would be 16 of them: 288 MB.
    assert four > 50e6 and own > 1e6
    assert sixteen - four - own < 0.1 * four
