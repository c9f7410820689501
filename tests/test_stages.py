"""The training steps of both stages: the same on every mesh, and they learn."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from _small_decoder import random_params, small_config
from jax.sharding import AxisType
from meshes import MESHES, close, mesh_of
from reference_scores import relevance_scores

from prorank_jax.config import GrpoConfig, LoraConfig, MeshConfig, OptimizerConfig, ScoreConfig
from prorank_jax.data.layout import GroupPrompts, Layout, arrange
from prorank_jax.data.loader import PairBatch
from prorank_jax.errors import InputError
from prorank_jax.model.attention import causal_mask
from prorank_jax.model.decoder import Decoder
from prorank_jax.model.lora import init_learnt
from prorank_jax.runtime.mesh import check_rows, make_mesh, shardings, split_rows
from prorank_jax.runtime.optimizer import make_optimizer
from prorank_jax.runtime.training import TrainState
from prorank_jax.scoring import step as scoring
from prorank_jax.scoring.batches import GroupBatch
from prorank_jax.scoring.losses import listwise_softmax
from prorank_jax.scoring.scores import answer_margin, last_hidden
from prorank_jax.warmup import step as warmup
from prorank_jax.warmup.policy import make_losses
from prorank_jax.warmup.rewards import AnswerTokens

pytestmark = pytest.mark.usefixtures("fast_compilation")

VOCABULARY = 6
ZERO, ONE, END, WORD, RELEVANT, IRRELEVANT = range(VOCABULARY)
ANSWERS = AnswerTokens(ZERO, ONE, END)
DECODER = Decoder(small_config(VOCABULARY, tied=True))


@cache
def base_params():
    return random_params(DECODER, 0, 0.2)


def momentum(learning_rate):
    # Adam divides a gradient by its own size: where the true gradient is nothing (the bias of the keys) it takes
    # rounding errors for a direction, and meshes would differ by whole steps.
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(learning_rate, momentum=0.9))


def start(optimizer, mesh, lora=None):
    def init(params):
        return TrainState(params, optimizer.init(params))

    learnt = init_learnt(lora, DECODER.config, base_params(), jax.random.key(1))
    layout = shardings(mesh, jax.eval_shape(init, learnt))
    return jax.jit(init, out_shardings=layout)(learnt), layout


# Warmup: the last token of a prompt tells its label.


WARMUP = GrpoConfig(steps=60, prompts_per_step=16, group_size=8, max_new_tokens=3, beta=0.02)
CONFIGS = {
    "plain": WARMUP,
    "all": WARMUP.model_copy(
        update={
            "iterations": 2,
            "accumulation": 2,
            "loss_average": "dapo",
            "mask_truncated": True,
            "lora": LoraConfig(rank=4, alpha=8.0),
        }
    ),
}
WARMUP_OPTIMIZER = momentum(0.1)


def pairs_at(step):
    rng = np.random.default_rng(step)
    labels = rng.permutation(np.repeat([0, 1], 8)).astype(np.int32)
    tokens = rng.integers(0, VOCABULARY, (16, 5)).astype(np.int32)
    lengths = rng.integers(2, 6, 16).astype(np.int32)
    tokens[np.arange(16), lengths - 1] = np.where(labels, RELEVANT, IRRELEVANT)
    return PairBatch(tokens, lengths, labels)


@cache
def warmup_run(data, fsdp, steps, config="plain"):
    """Final parameters and the metrics of every step."""
    mesh = mesh_of(data, fsdp)
    step = warmup_step(data, fsdp, config)
    state, layout = start(WARMUP_OPTIMIZER, mesh, CONFIGS[config].lora)
    reference = jax.device_put(base_params(), shardings(mesh, base_params()))
    rows = []
    for number in range(steps):
        state, metrics, _ = step(state, reference, split_rows(mesh, pairs_at(number)), jnp.asarray(number))
        rows.append(jax.device_get(metrics))
    assert_in_place(state, layout)
    return jax.device_get(state.params), rows


@cache
def warmup_step(data, fsdp, config="plain"):
    return warmup.make_step(DECODER, ANSWERS, CONFIGS[config], WARMUP_OPTIMIZER, mesh_of(data, fsdp), seed=3)


def assert_in_place(state, layout):
    """A state that comes back laid out otherwise would compile the next step anew, and not be written in place."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    moved = [
        jax.tree_util.keystr(path)
        for (path, leaf), sharding in zip(leaves, jax.tree.leaves(layout), strict=True)
        if not leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    ]
    assert moved == []


@pytest.mark.parametrize(("data", "fsdp"), MESHES)
def test_warmup_gives_the_same_parameters_on_every_mesh(data, fsdp):
    params, rows = warmup_run(1, 1, 5)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (params, base_params())), strict=True)) > 1e-2
    assert any(row["grad_norm"] > 0.01 for row in rows)
    meshed, meshed_rows = warmup_run(data, fsdp, 5)
    close(meshed, params)
    # Means over tokens too: over all tokens, not over the means of each device's.
    for name in rows[0]:
        close([row[name] for row in meshed_rows], [row[name] for row in rows])


@pytest.mark.parametrize(("data", "fsdp"), [(4, 2), (2, 4)])
def test_all_options_together_give_the_same_adapters_on_every_mesh(data, fsdp):
    adapters, rows = warmup_run(1, 1, 5, "all")
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(adapters)} == {"lora_a", "lora_b"}
    # B begins at 0, and completions are masked: rows of different numbers of tokens on each device and in each part.
    assert np.abs(adapters["layers"]["mlp"]["up"]["lora_b"]).max() > 1e-3
    assert any(0 < row["completions/clipped_ratio"] < 1 for row in rows)
    meshed, meshed_rows = warmup_run(data, fsdp, 5, "all")
    close(meshed, adapters)
    for name in rows[0]:
        close([row[name] for row in meshed_rows], [row[name] for row in rows])


def test_warmup_learns_format_and_relevance():
    _, rows = warmup_run(1, 1, WARMUP.steps)
    before, after = ({name: np.mean([row[name] for row in part]) for name in rows[0]} for part in (rows[:3], rows[-3:]))
    assert before["reward"] < 0.5
    assert before["format_rate"] < 0.5 and after["format_rate"] > 0.95
    # One answer to everything would be right half of the time.
    assert before["accuracy"] < 0.5 and after["accuracy"] > 0.9
    assert after["reward"] > 1.9
    # The reference is the model before the first step.
    assert abs(rows[0]["kl"]) < 1e-6 and after["kl"] > 0.1


def test_warmup_reports_under_trls_names():
    _, rows = warmup_run(1, 1, 5)
    assert rows[0].keys() == {
        "loss",
        "grad_norm",
        "reward",
        "reward_std",
        "rewards/format/mean",
        "rewards/relevance/mean",
        "frac_reward_zero_std",
        "kl",
        "entropy",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "completions/mean_length",
        "completions/clipped_ratio",
        "positive_rate",
        "accuracy",
        "format_rate",
    }
    assert {value.shape for row in rows for value in row.values()} == {()}


def test_rollouts_differ_from_step_to_step():
    mesh = mesh_of(1, 1)
    reference = jax.device_put(base_params(), shardings(mesh, base_params()))

    def entropy(number):
        state, _ = start(WARMUP_OPTIMIZER, mesh)
        _, metrics, _ = warmup_step(1, 1)(state, reference, split_rows(mesh, pairs_at(0)), jnp.asarray(number))
        return float(metrics["entropy"])

    assert entropy(0) == entropy(0) != entropy(1)


# Score learning: the first token of a document tells its label.


SCORE = ScoreConfig(steps=20, queries_per_step=16, documents_per_query=3)
SCORES = {
    "plain": SCORE,
    "all": SCORE.model_copy(
        update={
            "loss": {"listwise_softmax": 1.0, "bce": 0.5},
            "temperature": 2.0,
            "anchor": 0.1,
            "accumulation": 2,
            "lora": LoraConfig(rank=4, alpha=8.0),
        }
    ),
}
SCORE_OPTIMIZER = momentum(0.1)


LAYOUT = Layout(prefix=4, widths=(5, 5, 5))


def groups_at(step, units=1, layout=LAYOUT):
    """16 queries with two or three documents, laid out in so many units."""
    rng = np.random.default_rng(step)
    prompts, labels, mask = [], np.zeros((16, 3), np.float32), np.zeros((16, 3), bool)
    for query in range(16):
        shared = rng.integers(0, VOCABULARY, rng.integers(1, 5)).tolist()
        documents = 3 if rng.random() < 0.6 else 2
        relevant = rng.integers(documents)
        labels[query, relevant], mask[query, :documents] = 1.0, True
        kinds = [RELEVANT if place == relevant else IRRELEVANT for place in range(documents)]
        prompts.append([[*shared, kind, *rng.integers(0, VOCABULARY, rng.integers(1, 5)).tolist()] for kind in kinds])
    return GroupBatch(arrange(prompts, 3, layout, units, END), labels, mask)


@cache
def score_run(data, fsdp, steps, config="plain"):
    mesh = mesh_of(data, fsdp)
    lora = SCORES[config].lora
    step = scoring.make_step(DECODER, ANSWERS[:2], SCORES[config], SCORE_OPTIMIZER, mesh)
    state, layout = start(SCORE_OPTIMIZER, mesh, lora)
    base = jax.device_put(base_params(), shardings(mesh, base_params()))
    rows = []
    for number in range(steps):
        batch = groups_at(number, units=data * fsdp * SCORES[config].accumulation)
        state, metrics = step(state, base, split_rows(mesh, batch))
        rows.append(jax.device_get(metrics))
    assert_in_place(state, layout)
    return jax.device_get(state.params), rows


@pytest.mark.parametrize(("data", "fsdp"), MESHES)
def test_score_learning_gives_the_same_parameters_on_every_mesh(data, fsdp):
    params, rows = score_run(1, 1, 5)
    assert max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (params, base_params())), strict=True)) > 5e-3
    meshed, meshed_rows = score_run(data, fsdp, 5)
    close(meshed, params)
    for name in ("loss", "top1_accuracy", "grad_norm"):
        close([row[name] for row in meshed_rows], [row[name] for row in rows])


@pytest.mark.parametrize(("data", "fsdp"), MESHES)
def test_all_options_of_score_learning_together_give_the_same_adapters_on_every_mesh(data, fsdp):
    params, rows = score_run(1, 1, 5, "all")
    meshed, meshed_rows = score_run(data, fsdp, 5, "all")
    close(meshed, params)
    for name in ("loss", "kl", "grad_norm"):
        close([row[name] for row in meshed_rows], [row[name] for row in rows])
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6) and rows[2]["kl"] > 1e-5


@pytest.mark.parametrize("layout", [LAYOUT, Layout(prefix=0, widths=(9,))])
def test_parts_give_the_gradient_of_the_whole(layout):
    whole, rows = score_run(1, 1, 3)
    parts = SCORE.model_copy(update={"accumulation": 4})
    step = scoring.make_step(DECODER, ANSWERS[:2], parts, SCORE_OPTIMIZER, mesh_of(1, 1))
    state, _ = start(SCORE_OPTIMIZER, mesh_of(1, 1))
    for number in range(3):
        state, metrics = step(state, None, jax.tree.map(jnp.asarray, groups_at(number, 4, layout)))
        close(metrics["loss"], rows[number]["loss"])
        close(metrics["grad_norm"], rows[number]["grad_norm"])
    close(jax.device_get(state.params), whole)


def test_the_anchor_is_the_divergence_at_the_answer():
    batch, params = jax.tree.map(jnp.asarray, groups_at(0)), base_params()
    moved = random_params(DECODER, 1, 0.2)
    config = SCORE.model_copy(update={"anchor": 0.5})
    value, metrics = scoring.make_loss(DECODER, ANSWERS[:2], config)(moved, params, batch)
    plain, _ = scoring.make_loss(DECODER, ANSWERS[:2], SCORE)(moved, None, batch)

    def outcomes(params):
        log_probs = jax.nn.log_softmax(DECODER.unembed(params, last_hidden(DECODER, params, batch.prompts)))
        probs = np.asarray(jnp.exp(log_probs), np.float64)
        answers = probs[..., [ZERO, ONE]]
        return np.concatenate([answers, 1 - answers.sum(axis=-1, keepdims=True)], axis=-1)

    # 0.5 KL(policy || anchor) over three outcomes; the other way round it differs.
    policy, anchor = outcomes(moved), outcomes(params)
    kl_QxC = (policy * np.log(policy / anchor)).sum(axis=-1)
    kl = np.mean([row[mask].mean() for row, mask in zip(kl_QxC, np.asarray(batch.mask_QxC), strict=True)])
    assert kl > 1e-3
    assert metrics["kl"] == pytest.approx(kl, rel=1e-4)
    assert float(value - plain) == pytest.approx(0.5 * kl, rel=1e-3)


def test_score_learning_ranks():
    _, rows = score_run(1, 1, SCORE.steps)
    assert rows[0].keys() == {"loss", "grad_norm", "top1_accuracy", "margin"}
    assert rows[0]["loss"] > 0.5 and rows[-1]["loss"] < 0.1
    assert rows[0]["top1_accuracy"] < 0.9 and rows[-1]["top1_accuracy"] == 1.0
    assert rows[-1]["margin"] > 3.0


def test_the_score_is_the_difference_of_the_answers_logits_at_the_last_token():
    params = base_params()
    [(tokens, lengths, _)] = groups_at(0, layout=Layout(0, (9,))).prompts.parts

    @jax.jit
    def scores_and_logits(params, tokens, lengths):
        positions = jnp.broadcast_to(jnp.arange(9), (48, 9))
        hidden, _ = DECODER.forward(params, tokens, positions, causal_mask(lengths, 9))
        return relevance_scores(DECODER, params, tokens, lengths, (WORD, ONE)), DECODER.unembed(params, hidden)

    got, logits = scores_and_logits(params, tokens, lengths)
    logits = np.asarray(logits)[np.arange(48), lengths - 1]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, logits[:, ONE] - logits[:, WORD], atol=1e-6)


def test_prefixes_computed_once_and_rests_in_parts_give_the_scores_and_gradients_of_whole_prompts():
    batch, params = groups_at(0), base_params()
    whole = groups_at(0, layout=Layout(0, (9,))).prompts

    @jax.jit
    @jax.value_and_grad
    def total(params, prompts):
        scores = answer_margin(DECODER, params, last_hidden(DECODER, params, prompts), ANSWERS[:2])
        # A different weight for each document, so that none may take the place of another.
        weights = jnp.arange(48.0).reshape(16, 3)
        return jnp.where(batch.mask_QxC, weights * jnp.sin(scores), 0.0).sum() / 1000

    value, gradient = total(params, jax.tree.map(jnp.asarray, batch.prompts))
    expected, expected_gradient = total(params, jax.tree.map(jnp.asarray, whole))
    assert float(value) == pytest.approx(float(expected), abs=1e-5)
    close(gradient, expected_gradient)
    # Not what the rests alone would give.
    none = batch.prompts._replace(prefix_lengths_Q=np.zeros(16, np.int32))
    alone, _ = total(params, jax.tree.map(jnp.asarray, none))
    assert abs(alone - expected) > 1e-3


def test_what_score_learning_reports(monkeypatch):
    scores = np.array([[3.0, 1.0, 9.0], [0.0, 2.0, -1.0], [1.0, 0.5, 0.0], [1.0, -5.0, 0.0]], np.float32)
    labels = np.array([[2.0, 1.0, 5.0], [2.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], np.float32)
    mask = np.array([[True, True, False], [True, True, True], [True, True, True], [True, False, False]])
    monkeypatch.setattr(scoring, "last_hidden", lambda *_: None)
    monkeypatch.setattr(scoring, "answer_margin", lambda *_: jnp.asarray(scores))
    prompts = GroupPrompts(np.zeros(0, np.int32), np.zeros(0, np.int32), ())
    batch = jax.tree.map(jnp.asarray, GroupBatch(prompts, labels, mask))
    loss, metrics = scoring.make_loss(DECODER, ANSWERS[:2], SCORE)({}, None, batch)
    assert loss == metrics["loss"] == listwise_softmax(*map(jnp.asarray, (scores, labels, mask)))
    # Wrong only in query 1, where a lesser grade is on top; the masked 9 does not count.
    assert metrics["top1_accuracy"] == 0.75
    # Positives 3, 1, 0, 2, 1, 0 and the others -1, 0.5, 1; with what is masked it would be 2.0 - -0.9.
    assert metrics["margin"] == pytest.approx(7 / 6 - 0.5 / 3)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_both_losses_trace_in_bfloat16_with_float32_gradients(remat):
    decoder = Decoder(DECODER.config, jnp.dtype("bfloat16"), remat)
    params, keys = base_params(), jax.random.split(jax.random.key(0), 16)
    losses: list[tuple[Any, tuple[Any, ...]]] = [
        (make_losses(decoder, ANSWERS, WARMUP).fresh, (params, jax.tree.map(jnp.asarray, pairs_at(0)), keys)),
        (scoring.make_loss(decoder, ANSWERS[:2], SCORES["all"]), (params, jax.tree.map(jnp.asarray, groups_at(0)))),
    ]
    for loss, arguments in losses:
        (value, _), gradient = jax.eval_shape(jax.value_and_grad(loss, has_aux=True), params, *arguments)
        assert {leaf.dtype for leaf in jax.tree.leaves((value, gradient))} == {jnp.dtype("float32")}


# Where arrays lie.


def test_matrices_are_split_over_fsdp_and_norms_and_biases_are_whole():
    mesh = mesh_of(2, 4)
    untied = Decoder(small_config(VOCABULARY, tied=False))

    def state(key):
        params = untied.init(key)
        return {"params": params, "optimizer": make_optimizer(OptimizerConfig(), 10).init(params)}

    shapes = jax.eval_shape(state, jax.random.key(0))
    flat, _ = jax.tree_util.tree_flatten_with_path(shapes)
    share = {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, sharding.shard_shape(leaf.shape))
        for (path, leaf), sharding in zip(flat, jax.tree.leaves(shardings(mesh, shapes)), strict=True)
    }
    split = {
        "embedding": ((6, 16), (6, 4)),
        "unembedding": ((6, 16), (6, 4)),
        "layers/attention/query/kernel": ((2, 16, 4, 4), (2, 4, 4, 4)),
        "layers/attention/key/kernel": ((2, 16, 2, 4), (2, 4, 2, 4)),
        "layers/attention/value/kernel": ((2, 16, 2, 4), (2, 4, 2, 4)),
        "layers/attention/output/kernel": ((2, 4, 4, 16), (2, 4, 4, 4)),
        "layers/mlp/gate/kernel": ((2, 16, 24), (2, 4, 24)),
        "layers/mlp/up/kernel": ((2, 16, 24), (2, 4, 24)),
        "layers/mlp/down/kernel": ((2, 24, 16), (2, 24, 4)),
    }
    for name, shapes in split.items():
        holders = [path for path in share if path.endswith(f"/{name}")]
        # The parameter and Adam's two moments of it.
        assert len(holders) == 3
        assert {share[path] for path in holders} == {shapes}, name
    whole = {path.removeprefix("params/") for path, (full, part) in share.items() if full == part}
    assert {path for path in whole if not path.startswith("optimizer/")} == {
        "final_norm/scale",
        "layers/attention_norm/scale",
        "layers/mlp_norm/scale",
        "layers/attention/query/bias",
        "layers/attention/key/bias",
        "layers/attention/value/bias",
    }


def test_a_width_that_fsdp_does_not_divide_stays_whole():
    tree = {"embedding": np.zeros((8, 12), np.float32), "layers": {"mlp": {"up": {"kernel": np.zeros((2, 16, 3))}}}}
    places = shardings(mesh_of(1, 8), tree)
    assert places["embedding"].shard_shape((8, 12)) == (8, 12)
    assert places["layers"]["mlp"]["up"]["kernel"].shard_shape((2, 16, 3)) == (2, 2, 3)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), {"data": 8, "fsdp": 1}),
        (MeshConfig(fsdp=4), {"data": 2, "fsdp": 4}),
        (MeshConfig(data=4, fsdp=-1), {"data": 4, "fsdp": 2}),
        (MeshConfig(data=2, fsdp=4), {"data": 2, "fsdp": 4}),
    ],
)
def test_the_mesh_takes_all_devices(config, shape):
    mesh = make_mesh(config)
    assert dict(mesh.shape) == shape
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize(("data", "fsdp"), [(4, 1), (-1, 3), (-1, 16), (16, -1), (8, 2)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(data, fsdp):
    with pytest.raises(InputError) as error:
        make_mesh(MeshConfig(data=data, fsdp=fsdp))
    assert str(error.value) == (
        f"config: mesh.data={data}, mesh.fsdp={fsdp}: there are 8 devices; "
        "make the product equal to that, or leave one at -1"
    )


@pytest.mark.parametrize(("rows", "nearest"), [(3, 8), (11, 8), (13, 16), (21, 24)])
def test_rows_that_do_not_divide_over_the_devices_are_refused(rows, nearest):
    for data, fsdp in MESHES:
        with pytest.raises(InputError) as error:
            check_rows(mesh_of(data, fsdp), "warmup.prompts_per_step", rows)
        assert str(error.value) == (
            f"config: warmup.prompts_per_step={rows} does not divide over 8 devices; the nearest is {nearest}"
        )
    check_rows(mesh_of(8, 1), "warmup.prompts_per_step", nearest)
    check_rows(mesh_of(1, 1), "warmup.prompts_per_step", rows)


def test_rows_that_do_not_divide_into_parts_are_refused():
    with pytest.raises(InputError) as error:
        check_rows(mesh_of(2, 4), "score.queries_per_step", 40, 2)
    assert str(error.value) == (
        "config: score.queries_per_step=40 does not divide over 8 devices x 2 parts of score.accumulation; "
        "the nearest is 32"
    )
    check_rows(mesh_of(2, 4), "score.queries_per_step", 48, 2)


def test_every_device_has_rows_of_its_own():
    batch = split_rows(mesh_of(2, 4), pairs_at(0))
    assert [shard.index[0] for shard in batch.labels_P.addressable_shards] == [
        slice(start, start + 2) for start in range(0, 16, 2)
    ]
    np.testing.assert_array_equal(batch.tokens_PxL, pairs_at(0).tokens_PxL)
