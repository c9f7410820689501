"""A warmup that is measured on held-out prompts: what is measured, which model is kept, and when the stage ends."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from meshes import mesh_of

from prorank_jax.config import PromptConfig, WarmupDevConfig
from prorank_jax.config_file import parse_config
from prorank_jax.data.loader import PairBatch, pad_prompts
from prorank_jax.errors import InputError
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import Prompt, load_prompt
from prorank_jax.reranker import Reranker
from prorank_jax.run_folder import SavedStep, warmed_up
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.mesh import shardings
from prorank_jax.runtime.metrics import read_metrics
from prorank_jax.train import train
from prorank_jax.warmup.development import WarmupDevelopment, answer_measures, has_collapsed
from prorank_jax.warmup.rewards import AnswerTokens
from prorank_jax.warmup.rollout import answer_log_probs

pytestmark = pytest.mark.usefixtures("fast_compilation")

SHOWN = ["dev/accuracy", "dev/format_rate", "dev/positive_rate", "dev/auc", "dev/ndcg@10"]


def test_what_answers_say() -> None:
    probabilities = np.array([[0.1, 0.8], [0.2, 0.6], [0.7, 0.1], [0.3, 0.4]])
    labels = np.array([1, 0, 0, 1])
    measured = answer_measures(np.log(probabilities), labels)
    assert measured["dev/accuracy"] == pytest.approx((0.8 + 0.2 + 0.7 + 0.4) / 4)
    assert measured["dev/format_rate"] == pytest.approx(3.2 / 4)
    assert measured["dev/positive_rate"] == pytest.approx(1.9 / 3.2)
    margin = np.log(probabilities[:, 1] / probabilities[:, 0])
    above = [float(margin[p] > margin[n]) for p in (0, 3) for n in (1, 2)]
    assert measured["dev/auc"] == pytest.approx(np.mean(above)) == 0.75
    tied = answer_measures(np.log(np.full((4, 2), 0.5)), labels)
    assert tied["dev/auc"] == tied["dev/accuracy"] == tied["dev/positive_rate"] == 0.5
    # Nothing in format at all is no division by nothing.
    assert answer_measures(np.full((4, 2), -1e9), labels)["dev/positive_rate"] == 0.5


@pytest.mark.parametrize(
    ("format_rate", "positive_rate", "collapsed"),
    [(0.99, 0.98, True), (0.99, 0.02, True), (0.99, 0.96, False), (0.5, 0.99, False)],
)
def test_a_collapse(format_rate: float, positive_rate: float, collapsed: bool) -> None:
    assert has_collapsed({"dev/format_rate": format_rate, "dev/positive_rate": positive_rate}) == collapsed


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> tuple[Decoder, Params, Prompt]:
    pretrained = load_pretrained(tiny_model)
    return Decoder(pretrained.config), pretrained.params, load_prompt(pretrained, PromptConfig(max_length=112), "tiny")


def opened(model: tuple[Decoder, Params, Prompt], collection: Path, **fields: Any) -> WarmupDevelopment:
    decoder, _, prompt = model
    config = WarmupDevConfig.model_validate({"split": "test", "depth": 10, "pairs": 20} | fields)
    return WarmupDevelopment.open(config, str(collection / "test"), partial(Reranker, decoder, prompt=prompt))


@pytest.mark.parametrize("mesh", [(1, 1), (2, 4)])
def test_every_mesh_measures_the_same(
    mesh: tuple[int, int], model: tuple[Decoder, Params, Prompt], tiny_collection: Path
) -> None:
    decoder, params, prompt = model
    held_out = opened(model, tiny_collection)
    assert [example.label for example in held_out.examples] == [1, 0] * 10
    assert [example.query for example in held_out.examples[::2]] == [e.query for e in held_out.examples[1::2]]
    placed = jax.device_put(params, shardings(mesh_of(*mesh), params))
    measured = held_out.measure(decoder, placed, prompt, mesh_of(*mesh))
    assert list(measured) == SHOWN
    texts = [(example.query, example.document) for example in held_out.examples]
    tokens, lengths = pad_prompts(prompt.encode_batch(texts), 112, prompt.pad_id)
    batch = PairBatch(jnp.asarray(tokens), jnp.asarray(lengths), jnp.zeros(20, jnp.int32))
    answers = AnswerTokens(*prompt.answer_ids, prompt.end_id)
    plain = answer_measures(np.asarray(answer_log_probs(decoder, params, answers, batch)), np.tile([1, 0], 10))
    assert {name: measured[name] for name in plain} == pytest.approx(plain, abs=1e-4)
    # The difference of the answers' log-probabilities has the end of the turn in it; the score has not.
    reranker = Reranker(decoder, params, prompt)
    assert measured["dev/ndcg@10"] == pytest.approx(held_out.held_out.measure(params), abs=1e-3)
    assert len(reranker.predict(texts)) == 20


def test_it_can_do_without_a_ranking(model: tuple[Decoder, Params, Prompt], tiny_collection: Path) -> None:
    decoder, params, prompt = model
    held_out = opened(model, tiny_collection, ndcg=False, pairs=7)
    assert len(held_out.examples) == 8
    assert list(held_out.measure(decoder, params, prompt, mesh_of(1, 1))) == SHOWN[:-1]


def test_judgements_of_one_kind_are_refused(
    model: tuple[Decoder, Params, Prompt], tiny_collection: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^config: warmup.dev: .*no document of the corpus is judged 9 or higher"):
        opened(model, tiny_collection, relevant_from=9)
    (tmp_path / "test" / "qrels").mkdir(parents=True)
    (tmp_path / "test" / "corpus.jsonl").write_text('{"_id": "d", "title": "", "text": "the only mill"}\n')
    (tmp_path / "test" / "queries.jsonl").write_text('{"_id": "q", "text": "mill"}\n')
    (tmp_path / "test" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    with pytest.raises(InputError, match=r"^config: warmup.dev: .*every document is relevant to query 'q'"):
        opened(model, tmp_path)


@pytest.fixture
def run(tiny_model: Path, tiny_collection: Path) -> Callable[..., Any]:
    """Trains a warmup of 12 steps that is measured every third one."""

    def trained(workdir: Path, dev: dict[str, Any] | None = None, **warmup: Any) -> Any:
        measured = {"path": str(tiny_collection / "test"), "split": "test", "depth": 10, "pairs": 16, "every": 3}
        stage = {"steps": 12, "prompts_per_step": 8, "log_every": 1, "checkpoint_every": 5, "keep_checkpoints": 1}
        settings = {
            "seed": 3,
            "model": {"base": str(tiny_model)},
            "prompt": {"max_length": 112},
            "data": {"path": str(tiny_collection / "train"), "depth": 12},
            "warmup": stage | {"optimizer": {"learning_rate": 3e-3}, "dev": measured | (dev or {})} | warmup,
        }
        config = parse_config(settings)
        return config, train(config, workdir)

    return trained


@pytest.mark.parametrize("method", ["grpo", "expected", "supervised"])
def test_the_best_model_is_the_result(method: str, run: Callable[..., Any], tmp_path: Path) -> None:
    config, trained = run(tmp_path / "run", method=method)
    rows = read_metrics(tmp_path / "run" / "warmup" / "metrics.jsonl")
    measured = {row["step"]: row["dev/accuracy"] for row in rows if "dev/accuracy" in row}
    assert sorted(measured) == [0, 3, 6, 9, 12]
    assert set(SHOWN) < rows[-1].keys()
    best = max((step for step in measured if step), key=lambda step: (measured[step], -step))
    assert warmed_up(tmp_path / "run", config.warmup) == SavedStep("warmup", best)
    kept = Checkpoints(tmp_path / "run" / "warmup" / "checkpoints", 1)
    assert kept.steps() == sorted({best, 12})
    restored = kept.restore_params(best, jax.eval_shape(lambda: trained.final))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), trained.final, restored)
    exported = load_pretrained(str(trained.export)).params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), exported, restored)
    # A second start only reads it back.
    _, again = run(tmp_path / "run", method=method)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), again.final, restored)
    assert read_metrics(tmp_path / "run" / "warmup" / "metrics.jsonl") == rows


def test_patience_ends_the_stage(run: Callable[..., Any], tmp_path: Path) -> None:
    # Nothing is learnt at such a rate, so no measurement is better than the first.
    optimizer = {"learning_rate": 1e-12}
    config, _ = run(tmp_path / "run", {"patience": 2}, method="expected", steps=30, optimizer=optimizer)
    rows = read_metrics(tmp_path / "run" / "warmup" / "metrics.jsonl")
    assert rows[-1]["step"] == 9 and warmed_up(tmp_path / "run", config.warmup).step == 3


def test_a_collapse_ends_the_stage_with_the_best_model(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "always.py").write_text(
        "import jax.numpy as jnp\n"
        "def one(tokens, lengths, labels, answers):\n"
        "    return jnp.where(tokens[:, :, 0] == answers.positive, 1.0, 0.0)\n"
    )
    monkeypatch.chdir(tmp_path)
    rewards = {"format": 1.0, "always:one": 2.0}
    config, _ = run(tmp_path / "run", method="expected", steps=60, rewards=rewards)
    rows = read_metrics(tmp_path / "run" / "warmup" / "metrics.jsonl")
    ended = rows[-1]
    assert ended["step"] < 60 and ended["dev/positive_rate"] > 0.97
    best = warmed_up(tmp_path / "run", config.warmup).step
    assert best < ended["step"]
    told = capsys.readouterr().err
    share = f"{ended['dev/positive_rate']:.1%}"
    assert (
        f"warmup {ended['step']}: the model has settled on one answer ({share} of the held-out prompts get it, " in told
    )
    assert f"the stage ends with step {best}; begin again with warmup.method=expected or supervised, or " in told
    run(tmp_path / "run", method="expected", steps=60, rewards=rewards)
    assert read_metrics(tmp_path / "run" / "warmup" / "metrics.jsonl") == rows
