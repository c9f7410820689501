"""The limit of GRPO: its formulas on numbers, its gradient by sums and by sampling, and what a step does with it."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _small_decoder import random_params, small_config
from meshes import MESHES, close, mesh_of

from prorank_jax.config import ExpectedConfig, GrpoConfig, LoraConfig, RunConfig
from prorank_jax.config_file import parse_config
from prorank_jax.data.loader import PairBatch
from prorank_jax.errors import InputError
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.lora import init_adapters, network
from prorank_jax.runtime.mesh import shardings, split_rows
from prorank_jax.runtime.training import TrainState
from prorank_jax.warmup import expected, policy
from prorank_jax.warmup.expected import expected_advantages, outcomes
from prorank_jax.warmup.grpo import balanced
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.rollout import answer_log_probs
from prorank_jax.warmup.step import make_step

pytestmark = pytest.mark.usefixtures("fast_compilation")

ZERO, ONE, END = range(3)
ANSWERS = AnswerTokens(ZERO, ONE, END)
VOCABULARY, P = 6, 8
DECODER = Decoder(small_config(VOCABULARY, tied=True))
RATE = 0.5
LORA = LoraConfig(rank=3, alpha=6.0)


def config(**fields: Any) -> ExpectedConfig:
    plain = {"method": "expected", "steps": 1, "prompts_per_step": P, "entropy": 0.0, "advantage": "group_std"}
    return ExpectedConfig.model_validate(plain | fields)


def prompts() -> PairBatch[np.ndarray]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 6, P).astype(np.int32)
    return PairBatch(
        rng.integers(0, VOCABULARY, (P, 5)).astype(np.int32), lengths, np.tile([1, 0], P // 2).astype(np.int32)
    )


def on_device(batch: PairBatch[np.ndarray]) -> PairBatch[jax.Array]:
    return PairBatch(*map(jnp.asarray, batch))


@cache
def params(seed: int) -> Params:
    return random_params(DECODER, seed, 0.4)


def probabilities(learnt: Params) -> jax.Array:
    """Of either answer with the end behind it, [P, 2], and of the rest."""
    answered = jnp.exp(answer_log_probs(DECODER, learnt, ANSWERS, on_device(prompts())))
    return jnp.concatenate([answered, 1.0 - answered.sum(axis=1, keepdims=True)], axis=1)


def reward_of_outcomes(labels: np.ndarray) -> np.ndarray:
    """Format 1 and relevance 1: 2 for the right answer, 1 for the other, 0 for the rest."""
    return np.stack([2.0 - labels, 1.0 + labels, 0.0 * labels], axis=1)


def test_the_example_of_the_docstring() -> None:
    probability = outcomes(jnp.log(jnp.array([[0.5, 0.25]])))
    np.testing.assert_allclose(probability, [[0.5, 0.25, 0.25]], atol=1e-6)
    centred, mean, deviation = expected_advantages(probability, jnp.array([[2.0, 1.0]]), divided=False)
    np.testing.assert_allclose(centred, [[0.75, -0.25, -1.25]], atol=1e-6)
    np.testing.assert_allclose(mean, [1.25], atol=1e-6)
    np.testing.assert_allclose(deviation, [np.sqrt(0.5 * 0.75**2 + 0.25 * 0.25**2 + 0.25 * 1.25**2)], atol=1e-6)
    divided, *_ = expected_advantages(probability, jnp.array([[2.0, 1.0]]), divided=True)
    np.testing.assert_allclose(divided, np.asarray(centred) / (np.asarray(deviation)[:, None] + 1e-4), rtol=1e-5)
    # Answers that are as good as impossible are no NaN.
    assert np.isfinite(np.log(outcomes(jnp.array([[-500.0, -1e-8]])))).all()


def gradient_of(fields: dict[str, Any], learnt: Params, base: Params | None = None) -> tuple[Params, dict[str, float]]:
    losses = expected.make_losses(DECODER, ANSWERS, config(**fields))
    keys = jax.random.split(jax.random.key(0), P)
    gradient, (means, _) = jax.jit(jax.grad(losses.fresh, has_aux=True))(learnt, base, on_device(prompts()), keys)
    weight = means["loss"].weight
    return jax.tree.map(lambda leaf: leaf / weight, gradient), {k: float(mean.value) for k, mean in means.items()}


@pytest.mark.parametrize("advantage", ["group_mean", "group_std"])
def test_the_gradient_is_the_sum_over_outcomes(advantage: str) -> None:
    reward = reward_of_outcomes(prompts().labels_P)
    now = np.asarray(probabilities(params(0)))
    mean = (now * reward).sum(1, keepdims=True)
    deviation = np.sqrt((now * (reward - mean) ** 2).sum(1, keepdims=True))
    weight = (reward - mean) / (deviation + 1e-4 if advantage == "group_std" else 1.0)
    wanted = jax.grad(lambda learnt: -(jnp.asarray(weight, jnp.float32) * probabilities(learnt)).sum() / P)(params(0))
    found, means = gradient_of({"advantage": advantage}, params(0))
    close(found, wanted)
    assert means["reward"] == pytest.approx(float(mean.mean()), abs=1e-5)
    assert means["reward_std"] == pytest.approx(float(deviation.mean()), abs=1e-5)
    assert means["format_rate"] == pytest.approx(float(now[:, :2].sum(1).mean()), abs=1e-5)
    right = now[np.arange(P), prompts().labels_P]
    assert means["accuracy"] == means["rewards/relevance/mean"] == pytest.approx(float(right.mean()), abs=1e-5)
    assert means["positive_rate"] == pytest.approx(float(now[:, 1].sum() / now[:, :2].sum()), abs=1e-5)
    assert 0.0 == means["clip_ratio/low_mean"] == means["clip_ratio/high_mean"] == means["frac_reward_zero_std"]


def test_sampled_groups_have_it_as_their_mean() -> None:
    wanted, _ = gradient_of({"advantage": "group_mean"}, params(0))
    # Of whole completions of at most two tokens: each sums its tokens' log-probabilities, over the most there could be.
    grpo = GrpoConfig(
        steps=1, prompts_per_step=P, group_size=256, max_new_tokens=2, advantage="group_mean", loss_average="dr_grpo"
    )
    fresh = jax.jit(jax.grad(policy.make_losses(DECODER, ANSWERS, grpo).fresh, has_aux=True))
    total = jax.tree.map(jnp.zeros_like, params(0))
    for number in range(8):
        keys = jax.random.split(jax.random.key(number), P)
        gradient, (means, _) = fresh(params(0), None, on_device(prompts()), keys)
        # The weight counts tokens, of which a completion has two.
        share = 2 / means["loss"].weight / 8
        total = jax.tree.map(lambda a, b, share=share: a + share * b, total, gradient)
    ours, theirs = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (wanted, total))
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.97
    assert np.linalg.norm(theirs) == pytest.approx(np.linalg.norm(ours), rel=0.1)


def test_the_divergence_and_the_bonus_are_those_of_the_outcomes() -> None:
    now, before = (np.asarray(probabilities(params(seed)), np.float64) for seed in (0, 1))
    even = before.copy()
    even[:, :2] = before[:, :2].mean(1, keepdims=True)
    choice = now[:, :2] / now[:, :2].sum(1, keepdims=True)
    for fields, reference in (({"beta": 0.3}, before), ({"beta": 0.3, "balanced": True}, even)):
        _, means = gradient_of(fields | {"entropy": 0.2}, params(0), params(1))
        assert means["kl"] == pytest.approx((now * np.log(now / reference)).sum(1).mean(), abs=1e-4)
        assert means["entropy"] == pytest.approx(-(now * np.log(now)).sum(1).mean(), abs=1e-4)
        assert means["choice_entropy"] == pytest.approx(-(choice * np.log(choice)).sum(1).mean(), abs=1e-4)
        # What the rewards add to the loss is 0 where the ratio is 1: advantages have the mean 0.
        assert means["loss"] == pytest.approx(0.3 * means["kl"] - 0.2 * means["choice_entropy"], abs=1e-4)
    np.testing.assert_allclose(np.exp(balanced(jnp.log(jnp.array([[0.6, 0.2]])))), [[0.4, 0.4]], atol=1e-6)


@cache
def step_of(data: int, fsdp: int, **fields: Any) -> Any:
    return make_step(DECODER, ANSWERS, config(**fields), optax.sgd(RATE), mesh_of(data, fsdp), seed=0)


def after(data: int, fsdp: int, learnt: Params, count: int = 2, **fields: Any) -> tuple[Params, list[dict[str, float]]]:
    mesh, step = mesh_of(data, fsdp), step_of(data, fsdp, **fields)
    layout = shardings(mesh, jax.eval_shape(lambda tree: TrainState(tree, optax.sgd(RATE).init(tree)), learnt))
    state = jax.jit(lambda tree: TrainState(tree, optax.sgd(RATE).init(tree)), out_shardings=layout)(learnt)
    base = jax.device_put(params(1), shardings(mesh, params(1))) if {"beta", "lora"} & fields.keys() else None
    rows = []
    for number in range(count):
        state, metrics, completions = step(state, base, split_rows(mesh, prompts()), jnp.asarray(number))
        assert completions.rollout.tokens_PxGxT.shape == (P, 2, 2)
        rows.append({name: float(value) for name, value in jax.device_get(metrics).items()})
    return jax.device_get(state.params), rows


OPTIONS: dict[str, Any] = {"beta": 0.1, "balanced": True, "entropy": 0.05, "iterations": 2}


@pytest.mark.parametrize("mesh", MESHES[1:])
def test_devices_and_parts_give_the_same(mesh: tuple[int, int]) -> None:
    whole, rows = after(1, 1, params(0), **OPTIONS)
    parts, of_parts = after(1, 1, params(0), **OPTIONS, accumulation=4)
    spread, of_devices = after(*mesh, params(0), **OPTIONS)
    close(parts, whole)
    close(spread, whole)
    for row, *others in zip(rows, of_parts, of_devices, strict=True):
        for other in others:
            assert other == pytest.approx(row, abs=1e-4)


def test_a_second_update_is_clipped_where_the_first_went_far() -> None:
    _, (row, *_) = after(1, 1, params(0), count=1, iterations=3)
    assert row["clip_ratio/low_mean"] + row["clip_ratio/high_mean"] > 0
    _, (loose, *_) = after(1, 1, params(0), count=1, iterations=3, clip_low=1.0, clip_high=1e6)
    assert loose["clip_ratio/low_mean"] == loose["clip_ratio/high_mean"] == 0.0


def test_adapters_learn_what_the_network_would() -> None:
    adapters = init_adapters(LORA, DECODER.config, jax.random.key(0))
    _, (row, *_) = after(1, 1, adapters, count=1, lora=LORA)
    found, means = gradient_of({}, network(LORA, params(1), adapters))
    assert row["reward"] == pytest.approx(means["reward"], abs=1e-5)
    assert row["grad_norm"] > 0 and optax.tree.norm(found) > 0


def test_rewards_of_ones_own_see_the_two_answers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "import jax.numpy as jnp\n"
        "def says_one(tokens, lengths, labels, answers):\n"
        "    return jnp.where(tokens[:, :, 0] == answers.positive, 3.0, 0.0)\n"
    )
    monkeypatch.chdir(tmp_path)
    _, means = gradient_of({"rewards": {"mine:says_one": 1.0}}, params(0))
    assert means["rewards/says_one/mean"] == pytest.approx(3 * float(probabilities(params(0))[:, 1].mean()), abs=1e-5)


def test_the_configuration() -> None:
    def run(**warmup: Any) -> RunConfig:
        return parse_config({"model": {"base": "x"}, "data": {"path": "y"}, "warmup": {"steps": 1} | warmup})

    assert isinstance(run(method="expected").warmup, ExpectedConfig)
    for fields, told in (
        ({"method": "expected", "group_size": 4}, "warmup.group_size: unknown key"),
        ({"balanced": True}, "warmup.balanced=true: is of the reference, which beta=0 leaves out; give beta a weight"),
        (
            {"method": "expected", "rewards": {"formt": 1}},
            "warmup.rewards.formt: unknown reward; did you mean 'format'?",
        ),
        ({"method": "expected", "advantage": "batch_std"}, "warmup.advantage='batch_std': "),
        ({"oversampling": 0}, "warmup.oversampling=0: "),
        ({"method": "exact"}, "warmup.method='exact': no way to warm up; use grpo, expected, supervised"),
    ):
        with pytest.raises(InputError) as caught:
            run(**fields)
        assert told in str(caught.value)
