"""The supervised warmup, next to plain forward passes over whole sequences, on every mesh, and that it learns."""

from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from _small_decoder import random_params, small_config
from hf_models import write_model
from meshes import MESHES, close, mesh_of

from prorank_jax.config import LoraConfig, SupervisedConfig
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.hf import load_pretrained
from prorank_jax.model.lora import init_adapters, merged
from prorank_jax.runtime.mesh import shardings, split_rows
from prorank_jax.runtime.training import TrainState
from prorank_jax.warmup.probe import answer_rates
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.rollout import answer_log_probs
from prorank_jax.warmup.supervised import make_step

pytestmark = pytest.mark.usefixtures("fast_compilation")

VOCABULARY = 6
ZERO, ONE, END, WORD, RELEVANT, IRRELEVANT = range(VOCABULARY)
ANSWERS = AnswerTokens(ZERO, ONE, END)
DECODER = Decoder(small_config(VOCABULARY, tied=True))
LORA = LoraConfig(rank=3, alpha=6.0)
CONFIG = SupervisedConfig(method="supervised", steps=40, prompts_per_step=8)
SGD, SLOW_SGD = optax.sgd(1.0), optax.sgd(0.1)
MOMENTUM = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))


@cache
def base_params():
    return random_params(DECODER, 0, 0.2)


@cache
def adapters():
    """Adapters with a B, so that each matrix of either has a gradient."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.0, 0.3, leaf.shape), jnp.float32),
        init_adapters(LORA, DECODER.config, jax.random.key(0)),
    )


def pairs_at(step):
    """Prompts of mixed lengths with noise behind them; the last token tells the label."""
    rng = np.random.default_rng(step)
    labels = rng.permutation(np.repeat([0, 1], 4)).astype(np.int32)
    tokens = rng.integers(0, VOCABULARY, (8, 5)).astype(np.int32)
    lengths = rng.integers(2, 6, 8).astype(np.int32)
    tokens[np.arange(8), lengths - 1] = np.where(labels, RELEVANT, IRRELEVANT)
    return PairBatch(tokens, lengths, labels)


def test_log_probs_of_both_answers_equal_torch_on_each_whole_sequence(tmp_path):
    model = write_model(tmp_path, "qwen2", vocab_size=61)
    pretrained = load_pretrained(tmp_path)
    lengths = np.array([37, 5, 1, 30], np.int32)
    tokens = np.random.default_rng(0).integers(0, 61, (4, 37)).astype(np.int32)
    answers = AnswerTokens(50, 7, 13)
    batch = jax.tree.map(jnp.asarray, PairBatch(tokens, lengths, np.zeros(4, np.int32)))
    log_probs = answer_log_probs(Decoder(pretrained.config), pretrained.params, answers, batch)
    assert (log_probs.shape, log_probs.dtype) == ((4, 2), jnp.float32)
    for p, column in np.ndindex(4, 2):
        answer = answers[column]
        whole = np.concatenate([tokens[p, : lengths[p]], [answer, 13]]).astype(np.int64)
        with torch.no_grad():
            every = torch.log_softmax(model(torch.from_numpy(whole)[None]).logits[0], -1)
        # Of the answer at the prompt's last token, and of the end at the answer.
        want = float(every[-3, answer] + every[-2, 13])
        assert float(log_probs[p, column]) == pytest.approx(want, abs=1e-4)


def plain(params, batch):
    """Log-probability of each answer and the end behind it [P, 2], by full forward passes that share nothing."""
    P, L = batch.tokens_PxL.shape
    rows = np.zeros((P, 2, L + 2), np.int32)
    for p, column in np.ndindex(P, 2):
        length = batch.lengths_P[p]
        rows[p, column, : length + 2] = [*batch.tokens_PxL[p, :length], (ZERO, ONE)[column], END]
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((L + 2, L + 2), bool)), (P * 2, L + 2, L + 2))
    positions = jnp.broadcast_to(jnp.arange(L + 2), (P * 2, L + 2))
    hidden, _ = DECODER.forward(params, jnp.asarray(rows.reshape(P * 2, L + 2)), positions, causal)
    every = jax.nn.log_softmax(jnp.einsum("bsd,vd->bsv", hidden, params["embedding"])).reshape(P, 2, L + 2, VOCABULARY)
    p, column, last = np.arange(P)[:, None], np.arange(2)[None], batch.lengths_P[:, None] - 1
    return every[p, column, last, np.array([[ZERO, ONE]])] + every[p, column, last + 1, END]


@cache
def step_of(data, fsdp, optimizer=SGD, lora=None):
    return make_step(DECODER, ANSWERS, CONFIG.model_copy(update={"lora": lora}), optimizer, mesh_of(data, fsdp))


def run(data, fsdp, steps, learnt, optimizer=SGD, lora=None):
    """Final parameters and the metrics of every step."""
    mesh, step = mesh_of(data, fsdp), step_of(data, fsdp, optimizer, lora)

    def init(learnt):
        return TrainState(learnt, optimizer.init(learnt))

    layout = shardings(mesh, jax.eval_shape(init, learnt))
    state = jax.jit(init, out_shardings=layout)(learnt)
    base = jax.device_put(base_params(), shardings(mesh, base_params())) if lora else None
    rows = []
    for number in range(steps):
        state, metrics, completions = step(state, base, split_rows(mesh, pairs_at(number)), jnp.asarray(number))
        assert completions is None
        rows.append(jax.device_get(metrics))
    for leaf, place in zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True):
        assert leaf.sharding.is_equivalent_to(place, leaf.ndim)
    return jax.device_get(state.params), rows


def test_the_loss_and_the_rates_are_those_of_the_formula():
    batch = pairs_at(0)
    _, (metrics,) = run(1, 1, 1, base_params())
    each = np.asarray(jax.jit(lambda params: plain(params, batch))(base_params()), np.float64)
    right = each[np.arange(8), batch.labels_P]
    assert np.std(right) > 0.1 and (each[:, 0] != each[:, 1]).all()
    assert metrics.keys() == {"loss", "accuracy", "format_rate", "grad_norm"}
    assert {(value.shape, value.dtype.name) for value in metrics.values()} == {((), "float32")}
    # The mean over two tokens; the sum over them would be twice that.
    assert metrics["loss"] == pytest.approx(-right.mean() / 2, abs=1e-6)
    # Means of probabilities; the probability of the mean would be less.
    assert metrics["accuracy"] == pytest.approx(np.exp(right).mean(), abs=1e-6)
    assert metrics["format_rate"] == pytest.approx(np.exp(each).sum(axis=1).mean(), abs=1e-6)
    assert np.exp(right).mean() - np.exp(right.mean()) > 1e-4


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_the_gradient_is_that_of_plain_forward_passes(lora):
    batch, learnt = pairs_at(0), adapters() if lora else base_params()

    def loss(learnt):
        log_probs = plain(merged(lora, base_params(), learnt), batch)
        return -log_probs[np.arange(8), batch.labels_P].mean() / 2

    value, want = jax.jit(jax.value_and_grad(loss))(learnt)
    assert min(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want) if leaf.ndim > 2) > 1e-4
    # With a learning rate of 1, a step of plain SGD takes the gradient off.
    after, (metrics,) = run(1, 1, 1, learnt, lora=lora)
    assert metrics["loss"] == pytest.approx(float(value), abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(float(optax.tree.norm(want)), rel=1e-5)
    close(jax.tree.map(jnp.subtract, learnt, after), want)


@cache
def mesh_run(data, fsdp, lora):
    # With a learning rate of 1, rounding errors would grow from step to step.
    return run(data, fsdp, 3, adapters() if lora else base_params(), SLOW_SGD, lora)


@pytest.mark.parametrize(("data", "fsdp", "lora"), [*((*mesh, None) for mesh in MESHES), (2, 4, LORA)])
def test_the_same_parameters_on_every_mesh(data, fsdp, lora):
    learnt = adapters() if lora else base_params()
    params, rows = mesh_run(1, 1, lora)
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (params, learnt)), strict=True)]
    assert max(moved) > 1e-2
    meshed, meshed_rows = mesh_run(data, fsdp, lora)
    close(meshed, params)
    close(meshed_rows, rows)


def test_it_learns_format_and_relevance():
    _, rows = run(1, 1, CONFIG.steps, base_params(), MOMENTUM)
    before, after = ({name: np.mean([row[name] for row in part]) for name in rows[0]} for part in (rows[:1], rows[-3:]))
    # One answer to everything would be right half of the time.
    assert before["accuracy"] < 0.2 and after["accuracy"] > 0.9
    assert before["format_rate"] < 0.3 and after["format_rate"] > 0.95
    assert after["loss"] < 0.1 * before["loss"]


def test_the_rates_are_those_of_sampling():
    batch, times, samples = pairs_at(0), 160, 10
    # Half way to the answers, where no rate is near 0 or 1.
    params, _ = run(1, 1, 8, base_params(), MOMENTUM)
    _, (metrics,) = run(1, 1, 1, params)
    rows = [tokens[:length].tolist() for tokens, length in zip(batch.tokens_PxL, batch.lengths_P, strict=True)] * times
    prompt: Any = SimpleNamespace(
        answer_ids=(ZERO, ONE), end_id=END, max_length=5, pad_id=WORD, encode_batch=lambda pairs: rows
    )
    pairs, labels = [("", "")] * len(rows), np.tile(batch.labels_P, times)
    got = answer_rates(DECODER, params, prompt, pairs, labels, samples=samples, max_new_tokens=3)
    for name, rate in got.items():
        error = np.sqrt(rate * (1 - rate) / (len(rows) * samples))
        assert abs(metrics[name] - rate) < 4 * error, name
    # Taken for one another, the rates would be far off.
    assert 0.2 < got["accuracy"] < got["format_rate"] - 0.05 < 0.9
