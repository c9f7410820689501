"""Rollouts against a shared prefix, next to plain forward passes that share nothing."""

from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from _small_decoder import random_params, small_config
from hf_models import write_model

from prorank_jax.config import GrpoConfig
from prorank_jax.data.loader import PairBatch
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.hf import load_pretrained
from prorank_jax.model.prefix import prefill
from prorank_jax.warmup.policy import make_losses
from prorank_jax.warmup.probe import answer_rates
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.rollout import completion_log_probs, sample

pytestmark = pytest.mark.usefixtures("fast_compilation")

VOCABULARY = 5
ZERO, ONE, END = 0, 1, 2
ANSWERS = AnswerTokens(ZERO, ONE, END)
DECODER = Decoder(small_config(VOCABULARY, tied=False))
# Its first layer sees three tokens: of a completion's fourth token, nothing of the prompt.
SLIDING = Decoder(replace(DECODER.config, sliding=(True, False), window=3))


def params_of(seed, spread=0.25):
    return random_params(DECODER, seed, spread)


def random_prompts(seed, lengths, vocabulary=VOCABULARY):
    """Tokens [P, max(lengths)] and lengths [P]; the padding on the right is noise, which nothing may read."""
    tokens = np.random.default_rng(seed).integers(0, vocabulary, (len(lengths), max(lengths)))
    return tokens.astype(np.int32), np.array(lengths, np.int32)


def test_log_probs_and_entropy_equal_torch_on_each_whole_sequence(tmp_path):
    model = write_model(tmp_path, "qwen2", vocab_size=61)
    pretrained = load_pretrained(tmp_path)
    tokens, lengths = random_prompts(0, [37, 5, 1, 30], 61)
    completions = np.random.default_rng(1).integers(0, 61, (4, 3, 5)).astype(np.int32)
    temperature = 0.7

    decoder = Decoder(pretrained.config)
    prefix = prefill(decoder, pretrained.params, jnp.asarray(tokens), jnp.asarray(lengths))
    log_probs, entropies = completion_log_probs(
        decoder, pretrained.params, prefix, jnp.asarray(completions), temperature
    )

    for p, g in np.ndindex(4, 3):
        whole = np.concatenate([tokens[p, : lengths[p]], completions[p, g]]).astype(np.int64)
        with torch.no_grad():
            logits = model(torch.from_numpy(whole)[None]).logits[0] / temperature
        want = torch.log_softmax(logits, -1)[lengths[p] - 1 : -1]
        assert want.std() > 0.5
        np.testing.assert_allclose(log_probs[p, g], want[np.arange(5), completions[p, g]].numpy(), atol=5e-5)
        np.testing.assert_allclose(entropies[p, g], -(want.exp() * want).sum(-1).numpy(), atol=5e-5)


def whole_sequences(tokens, lengths, completions):
    """Each prompt G times with its completions behind it: tokens [P * G, L + T], and where the completions begin."""
    (P, G, T), L = completions.shape, tokens.shape[1]
    rows = np.zeros((P * G, L + T), np.int32)
    for p, g in np.ndindex(P, G):
        rows[p * G + g, : lengths[p] + T] = np.concatenate([tokens[p, : lengths[p]], completions[p, g]])
    return rows, np.repeat(lengths, G)


@partial(jax.jit, static_argnames=("temperature", "decoder"))
def plain_log_probs(params, rows, starts, completions, temperature, decoder=DECODER):
    """Log-probabilities over the vocabulary at each place of the completions [P, G, T, V], by full forward passes."""
    B, S = rows.shape
    P, G, T = completions.shape
    causal = jnp.broadcast_to(jnp.tril(jnp.ones((S, S), bool)), (B, S, S))
    hidden, _ = decoder.forward(params, rows, jnp.broadcast_to(jnp.arange(S), (B, S)), causal)
    logits = jnp.einsum("bsd,vd->bsv", hidden, params["unembedding"]) / temperature
    logits = jax.vmap(lambda row, start: jax.lax.dynamic_slice_in_dim(row, start - 1, T))(logits, jnp.asarray(starts))
    return (logits - jax.scipy.special.logsumexp(logits, axis=-1, keepdims=True)).reshape(P, G, T, -1)


@pytest.mark.parametrize(
    ("beta", "advantage", "weights"),
    [
        (0.0, "group_std", {"format": 1.0, "relevance": 1.0}),
        (0.04, "group_mean", {"format": 0.5, "relevance": 2.0}),
    ],
)
def test_the_loss_its_gradient_and_the_metrics_equal_the_plain_computation(beta, advantage, weights):
    P, G, T, temperature = 4, 8, 3, 0.8
    config = GrpoConfig(
        steps=1,
        group_size=G,
        max_new_tokens=T,
        temperature=temperature,
        beta=beta,
        advantage=advantage,
        rewards=weights,
    )
    params, reference = params_of(11), params_of(50)
    tokens, lengths = random_prompts(0, [6, 3, 1, 5])
    labels = np.array([0, 1, 1, 0], np.int32)
    keys = jax.random.split(jax.random.key(2), P)
    batch = jax.tree.map(jnp.asarray, PairBatch(tokens, lengths, labels))

    grad = jax.jit(jax.value_and_grad(make_losses(DECODER, ANSWERS, config).fresh, has_aux=True))
    (total, (means, _)), gradient = grad(params, reference if beta else None, batch, keys)
    assert total == means["loss"].total
    gradient = jax.tree.map(lambda leaf: leaf / means["loss"].weight, gradient)
    metrics = {name: mean.value for name, mean in means.items()}

    completions = np.asarray(draw(params, tokens, lengths, keys, G, T, temperature).tokens_PxGxT)
    format_, right, mask = np.zeros((P, G)), np.zeros((P, G)), np.zeros((P, G, T), np.float32)
    for p, g in np.ndindex(P, G):
        answer = completions[p, g].tolist()
        ends = answer.index(END) if END in answer else T - 1
        mask[p, g, : ends + 1] = 1
        format_[p, g] = answer[:2] in ([ZERO, END], [ONE, END])
        right[p, g] = answer[:2] == [[ZERO, END], [ONE, END]][labels[p]]
    reward = weights["format"] * format_ + weights["relevance"] * right
    deviation = reward.std(1, ddof=1)
    assert (deviation > 0).sum() >= 2 and (deviation == 0).any() and 0 < right.sum() < format_.sum()
    scale = deviation[:, None] + 1e-4 if advantage == "group_std" else 1.0
    centred = ((reward - reward.mean(1, keepdims=True)) / scale).astype(np.float32)
    rows, starts = whole_sequences(tokens, lengths, completions)

    def plain(params):
        every = plain_log_probs(params, rows, starts, completions, temperature)
        chosen = jnp.take_along_axis(every, completions[..., None], axis=3)[..., 0]
        ratio = jnp.exp(chosen - jax.lax.stop_gradient(chosen))
        apart = plain_log_probs(reference, rows, starts, completions, temperature)
        apart = jnp.take_along_axis(apart, completions[..., None], axis=3)[..., 0] - chosen
        kl = jnp.exp(apart) - apart - 1.0
        token_loss = -ratio * centred[..., None] + beta * kl
        entropy = -(jnp.exp(every) * every).sum(axis=3)
        per_completion = (token_loss * mask).sum(axis=2) / mask.sum(axis=2)
        return per_completion.mean(), ((kl * mask).sum() / mask.sum(), (entropy * mask).sum() / mask.sum())

    (want_value, (want_kl, want_entropy)), want = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(want)) > 0.05
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, want)
    expected = {
        "loss": want_value,
        "reward": reward.mean(),
        "reward_std": deviation.mean(),
        "frac_reward_zero_std": (deviation == 0).mean(),
        "rewards/format/mean": format_.mean(),
        "rewards/relevance/mean": right.mean(),
        "format_rate": format_.mean(),
        "accuracy": right.mean(),
        "positive_rate": (format_ * (completions[:, :, 0] == ONE)).sum() / format_.sum(),
        "entropy": want_entropy,
        "clip_ratio/low_mean": 0.0,
        "clip_ratio/high_mean": 0.0,
        "completions/mean_length": mask.sum(2).mean(),
        "completions/clipped_ratio": np.array([END not in answer for answer in completions.reshape(-1, T)]).mean(),
    } | ({"kl": want_kl} if beta else {})
    assert metrics.keys() == expected.keys()
    for name, number in expected.items():
        assert metrics[name] == pytest.approx(float(number), abs=1e-5), name


@partial(jax.jit, static_argnames=("G", "T", "temperature", "decoder"))
def draw(params, tokens, lengths, keys, G=6, T=4, temperature=1.0, decoder=DECODER):
    prefix = prefill(Decoder(decoder.config), params, tokens, lengths)
    return sample(decoder, params, prefix, keys, G, T, temperature, 0, END)


def test_behind_the_end_are_only_ends_and_the_mask_stops_there():
    tokens, lengths = random_prompts(0, [4, 7, 2, 6])
    rollout = draw(params_of(11), tokens, lengths, jax.random.split(jax.random.key(0), 4))
    completions, mask = np.asarray(rollout.tokens_PxGxT), np.asarray(rollout.mask_PxGxT)
    assert completions.shape == mask.shape == (4, 6, 4)
    ended = np.asarray(rollout.ended_PxG).ravel()
    np.testing.assert_array_equal(rollout.lengths_PxG, mask.sum(axis=2))
    seen = set()
    for completion, kept, end in zip(completions.reshape(-1, 4), mask.reshape(-1, 4), ended, strict=True):
        first = completion.tolist().index(END) if END in completion else 3
        assert end == (END in completion)
        seen.add((first, END in completion))
        assert (completion[first + 1 :] == END).all()
        # The end itself is learnt: a mask that stops before it would teach no one to stop.
        np.testing.assert_array_equal(kept, np.arange(4) <= first)
    assert seen >= {(0, True), (1, True), (2, True), (3, False)}


def test_completions_follow_from_the_keys():
    tokens, lengths = random_prompts(0, [4, 7, 2, 6])
    params = params_of(11)
    first, again, other = (
        np.asarray(draw(params, tokens, lengths, jax.random.split(jax.random.key(seed), 4)).tokens_PxGxT)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    # The samples of a group are different draws, and so are those of prompts with different keys.
    assert len(np.unique(first[0], axis=0)) > 1


def test_a_prompts_completions_do_not_depend_on_its_batch():
    params = params_of(11)
    tokens, lengths = random_prompts(0, [4, 7, 2, 6])
    keys = jax.random.split(jax.random.key(0), 4)
    together = draw(params, tokens, lengths, keys)
    other_tokens, other_lengths = random_prompts(1, [7, 1, 3, 5])
    other_keys = jax.random.split(jax.random.key(1), 4)
    for p in range(4):
        # Prompt p moves to row 3 - p, among strangers.
        rows = np.arange(4)[:, None] == 3 - p
        elsewhere = draw(
            params,
            np.where(rows, tokens[p], other_tokens),
            np.where(rows[:, 0], lengths[p], other_lengths),
            other_keys.at[3 - p].set(keys[p]),
        )
        np.testing.assert_array_equal(elsewhere.tokens_PxGxT[3 - p], together.tokens_PxGxT[p])
        np.testing.assert_array_equal(elsewhere.mask_PxGxT[3 - p], together.mask_PxGxT[p])


@dataclass(frozen=True)
class Scripted(Decoder):
    """Counts its forward passes, and ends every turn at the `ends`-th token."""

    calls: list[int] = field(default_factory=list, compare=False)
    ends: int = 0

    def forward(self, params, tokens, positions, mask, cache=()):
        jax.debug.callback(lambda: self.calls.append(1))
        return super().forward(params, tokens, positions, mask, cache)

    def unembed(self, params, hidden, token_ids=None):
        # Hidden states [P, D] belong to the first token, [P, G, D] to a later one.
        logits = super().unembed(params, hidden, token_ids)
        return logits.at[..., END].set(1e4 if self.ends == hidden.ndim - 2 else -1e4)


@pytest.mark.parametrize(("ends", "passes", "length"), [(0, 0, 1), (1, 1, 2), (2, 7, 8)])
def test_sampling_stops_when_all_have_ended(ends, passes, length):
    decoder = Scripted(DECODER.config, ends=ends)
    tokens, lengths = random_prompts(0, [4, 7])
    rollout = draw(params_of(11), tokens, lengths, jax.random.split(jax.random.key(0), 2), T=8, decoder=decoder)
    jax.effects_barrier()
    assert len(decoder.calls) == passes
    np.testing.assert_array_equal(rollout.mask_PxGxT.sum(axis=2), length)


@dataclass(frozen=True)
class Recording(Decoder):
    """Keeps the logits that every token is drawn from."""

    logits: list[np.ndarray] = field(default_factory=list, compare=False)

    def unembed(self, params, hidden, token_ids=None):
        logits = super().unembed(params, hidden, token_ids)
        jax.debug.callback(lambda logits: self.logits.append(np.asarray(logits)), logits, ordered=True)
        return logits


@pytest.mark.parametrize("plain", [DECODER, SLIDING], ids=["full", "sliding"])
def test_every_token_is_drawn_from_the_logits_of_its_own_whole_sequence(plain):
    params = params_of(11)
    tokens, lengths = random_prompts(0, [4, 7, 1, 6])
    decoder = Recording(plain.config)
    rollout = draw(params, tokens, lengths, jax.random.split(jax.random.key(0), 4), T=5, decoder=decoder)
    completions, mask = np.asarray(rollout.tokens_PxGxT), np.asarray(rollout.mask_PxGxT)
    jax.effects_barrier()
    first, *later = decoder.logits
    drawn_from = np.stack([np.repeat(first[:, None], 6, axis=1), *later], axis=2)

    rows, starts = whole_sequences(tokens, lengths, completions)
    want = np.asarray(plain_log_probs(params, rows, starts, completions, temperature=1.0, decoder=plain))
    assert mask[..., -1].any()
    np.testing.assert_allclose(jax.nn.log_softmax(drawn_from)[mask > 0], want[mask > 0], atol=1e-5)
    prefix = prefill(plain, params, jnp.asarray(tokens), jnp.asarray(lengths))
    log_probs, _ = completion_log_probs(plain, params, prefix, jnp.asarray(completions), 1.0)
    np.testing.assert_allclose(log_probs, np.take_along_axis(want, completions[..., None], axis=3)[..., 0], atol=1e-5)


def chi_square(counts, probabilities):
    expected = counts.sum() * probabilities
    assert expected.min() > 5
    return ((counts - expected) ** 2 / expected).sum()


def test_the_first_two_tokens_follow_the_models_distribution():
    P, G, temperature = 2000, 10, 0.7
    params = params_of(11, 0.15)
    prompt, length = random_prompts(3, [5])
    rows, starts = whole_sequences(prompt, length, np.array([[[x, 0] for x in range(VOCABULARY)]], np.int32))
    exact = np.exp(plain_log_probs(params, rows, starts, np.zeros((1, VOCABULARY, 2), int), temperature)[0]).astype(
        np.float64
    )
    first, second = exact[0, 0], exact[:, 1]
    joint = first[:, None] * second

    tokens, lengths = np.repeat(prompt, P, axis=0), np.repeat(length, P)
    keys = jax.random.split(jax.random.key(5), P)
    completions = np.asarray(draw(params, tokens, lengths, keys, G, T=2, temperature=temperature).tokens_PxGxT)
    counts = np.zeros((VOCABULARY, VOCABULARY))
    np.add.at(counts, (completions[..., 0], completions[..., 1]), 1)
    assert counts[END].sum() == counts[END, END]

    going = [0, 1, 3, 4]
    cells = np.append(counts[going].ravel(), counts[END, END])
    # 0.999 of all honest samplers stay below these: chi-square of 4 * 5 + 1 - 1 = 20 and of 24 degrees of freedom.
    assert chi_square(cells, np.append(joint[going].ravel(), first[END])) < 45.31
    # Temperature 1 would be told apart.
    flat = exact[0, 0] ** temperature / (exact[0, 0] ** temperature).sum()
    assert chi_square(counts.sum(axis=1), flat) > 45.31
    # Two samples of a group are independent.
    pairs = np.zeros((VOCABULARY, VOCABULARY))
    np.add.at(pairs, (completions[:, 0::2, 0], completions[:, 1::2, 0]), 1)
    assert chi_square(pairs, first[:, None] * first[None, :]) < 51.18


def test_answer_rates_are_the_models_probabilities():
    # 70 pairs are a full batch and one that is filled up, which must not count.
    tokens, lengths = random_prompts(4, np.random.default_rng(4).integers(1, 7, 70).tolist())
    labels = np.random.default_rng(5).integers(0, 2, 70)
    prompt: Any = SimpleNamespace(
        answer_ids=(ZERO, ONE),
        end_id=END,
        pad_id=END,
        max_length=8,
        encode_batch=lambda pairs: [tokens[int(query), : lengths[int(query)]].tolist() for query, _ in pairs],
    )
    params = params_of(11)
    pairs = [(str(p), "") for p in range(70)]
    rates = answer_rates(DECODER, params, prompt, pairs, labels, samples=100, max_new_tokens=3, seed=1)

    answers = np.broadcast_to(np.array([[ZERO, END], [ONE, END]], np.int32), (70, 2, 2))
    rows, starts = whole_sequences(tokens, lengths, answers)
    every = np.asarray(plain_log_probs(params, rows, starts, answers, temperature=1.0))
    said = np.exp(np.take_along_axis(every, answers[..., None], axis=3)[..., 0].sum(axis=2))
    right = said[np.arange(70), labels]
    # Four standard errors of a mean over 7000 samples.
    for got, want in ((rates["format_rate"], said.sum(1).mean()), (rates["accuracy"], right.mean())):
        assert abs(got - want) < 4 * np.sqrt(want / 7000)
    assert rates["accuracy"] < rates["format_rate"]
