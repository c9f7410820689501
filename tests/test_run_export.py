"""Any checkpoint of a run becomes a model folder, with a card that says what it is and what was measured of it."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from conftest import Prorank
from sentence_transformers import CrossEncoder

from prorank_jax import card
from prorank_jax.card import Record, public_name, read_record, run_record
from prorank_jax.config import RunConfig
from prorank_jax.config_file import dump_config, parse_config
from prorank_jax.errors import InputError
from prorank_jax.export import export_checkpoint, saved_parameters
from prorank_jax.model.hf import load_pretrained
from prorank_jax.model.lora import init_adapters
from prorank_jax.reranker import Reranker
from prorank_jax.run_folder import SavedStep, checkpoints, find_checkpoint
from prorank_jax.runtime.checkpoint import Checkpoints
from prorank_jax.runtime.training import TrainState
from prorank_jax.train import Trained, train

pytestmark = pytest.mark.usefixtures("fast_compilation")

PAIRS = [("Which place serves fish?", "It serves fish."), ("Which is cheap?", "It costs a fortune."), ("", "")]


@pytest.fixture(scope="module")
def run(
    tiny_model: Path, tiny_collection: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunConfig, Trained]:
    """A run of 4 steps a stage, with checkpoints after 2 and 4."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    stage = {"steps": 4, "checkpoint_every": 2, "optimizer": {"learning_rate": 0.01}}
    config = parse_config(
        {
            "model": {"base": str(tiny_model)},
            "prompt": {"max_length": 112, "instruction": "Würdig?"},
            "data": {"path": str(tiny_collection / "train"), "depth": 12},
            "warmup": {**stage, "prompts_per_step": 8, "group_size": 2, "max_new_tokens": 2},
            "score": {**stage, "queries_per_step": 8, "documents_per_query": 3},
        }
    )
    return workdir, config, train(config, workdir)


@pytest.fixture
def copied(run: tuple[Path, RunConfig, Trained], tmp_path: Path) -> Path:
    """The run folder, to be changed."""
    return Path(shutil.copytree(run[0], tmp_path / "run"))


def front_matter(folder: Path) -> dict[str, Any]:
    _, metadata, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    loaded = yaml.safe_load(metadata)
    assert isinstance(loaded, dict)
    return loaded


def params_of(folder: Path) -> Any:
    return load_pretrained(folder).params


def warmed_up(workdir: Path, config: RunConfig) -> Any:
    return saved_parameters(workdir, config, SavedStep("warmup", 4), load_pretrained(config.model.base).config)


def adapter_shapes(config: RunConfig) -> Any:
    assert config.warmup and config.warmup.lora
    decoder = load_pretrained(config.model.base).config
    return jax.eval_shape(partial(init_adapters, config.warmup.lora, decoder), jax.random.key(0))


def equal(one: Any, other: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), one, other)))


@pytest.mark.parametrize(
    ("named", "stage", "step"),
    [
        ("", "score", 4),
        ("score", "score", 4),
        ("score/checkpoints", "score", 4),
        ("score/checkpoints/2", "score", 2),
        ("warmup", "warmup", 4),
        ("warmup/checkpoints/2", "warmup", 2),
    ],
)
def test_each_step_can_be_exported(
    run: tuple[Path, RunConfig, Trained], tmp_path: Path, named: str, stage: str, step: int
) -> None:
    workdir, config, trained = run
    assert export_checkpoint(workdir / named, tmp_path / "out") == (stage, step)
    exported = params_of(tmp_path / "out")
    # What the stage had at that step, read whole by the stage's own checkpoints.
    saved = checkpoints(workdir, stage)
    tree = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trained.final)
    assert equal(exported, saved.restore_params(step, tree))
    assert equal(exported, trained.final) == ((stage, step) == ("score", 4))
    assert equal(exported, warmed_up(workdir, config)) == ((stage, step) == ("warmup", 4))
    assert not equal(exported, params_of(Path(config.model.base)))
    record = read_record(tmp_path / "out")
    assert record == run_record(config, stage, step)
    assert f"Step {step} of `{stage}`." in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    if (stage, step) == ("score", 4):
        own, again = (
            {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            for folder in (trained.export, tmp_path / "out")
        )
        assert own == again


def test_a_stage_that_has_saved_nothing_is_passed_over(copied: Path) -> None:
    shutil.rmtree(copied / "score")
    assert find_checkpoint(copied) == (copied, ("warmup", 4))
    shutil.rmtree(copied / "warmup")
    with pytest.raises(InputError, match=f"^{copied}: no finished checkpoint here; train first"):
        find_checkpoint(copied)


def test_a_measured_stage_means_its_best_step(copied: Path, run: tuple[Path, RunConfig, Trained]) -> None:
    state = TrainState(run[2].final, ())
    kept = Checkpoints(copied / "score" / "checkpoints", keep=3)
    kept.save(6, state, measure=0.5)
    kept.save(7, state, measure=0.4)
    assert find_checkpoint(copied) == find_checkpoint(copied / "score") == (copied, ("score", 6))
    assert find_checkpoint(copied / "score" / "checkpoints" / "7") == (copied, ("score", 7))


def test_a_path_that_names_no_checkpoint(run: tuple[Path, RunConfig, Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    workdir, _, _ = run
    for named in ("..", "export", "score/metrics.jsonl", "score/checkpoints/2/default", "x/checkpoints/2", "nowhere"):
        with pytest.raises(InputError, match="not a checkpoint of a run; give a run folder .with config.yaml., or RUN"):
            find_checkpoint(workdir / named)
    with pytest.raises(InputError, match="checkpoints/3: no step 3; the saved steps are 2, 4$"):
        find_checkpoint(workdir / "score" / "checkpoints" / "3")
    monkeypatch.chdir(workdir / "score")
    assert find_checkpoint(Path("checkpoints/2")) == (workdir, ("score", 2))


def test_other_formats_and_dtypes(run: tuple[Path, RunConfig, Trained], tmp_path: Path) -> None:
    workdir, _, trained = run
    export_checkpoint(workdir, tmp_path / "half", dtype="bfloat16")
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (trained.export, tmp_path / "half")]
    assert 1.9 < sizes[0] / sizes[1] < 2
    ours = Reranker.from_pretrained(trained.export).predict(PAIRS)
    np.testing.assert_allclose(Reranker.from_pretrained(tmp_path / "half").predict(PAIRS), ours, rtol=0.05)
    export_checkpoint(workdir, tmp_path / "classifier", kind="seq-cls")
    theirs = CrossEncoder(str(tmp_path / "classifier"), device="cpu").predict(PAIRS)
    np.testing.assert_allclose(theirs, ours, atol=1e-4)
    for changes, told in (
        ({"kind": "onnx"}, "format='onnx': not known; use causal or seq-cls"),
        ({"dtype": "int8"}, "dtype='int8': not known; use float32, bfloat16 or float16"),
    ):
        with pytest.raises(InputError, match=f"^{told}$"):
            export_checkpoint(workdir, tmp_path / "none", **changes)


def test_a_damaged_checkpoint_is_refused(copied: Path, tmp_path: Path) -> None:
    weights = copied / "score" / "checkpoints" / "4" / "manifest.ocdbt"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(InputError, match=r"score/checkpoints/4: damaged \('manifest.ocdbt' does not hold"):
        export_checkpoint(copied, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_refused(copied: Path, untied_model: Path, tmp_path: Path) -> None:
    config = (copied / "config.yaml").read_text()
    base = yaml.safe_load(config)["model"]["base"]
    (copied / "config.yaml").write_text(config.replace(base, str(untied_model)))
    with pytest.raises(InputError, match="saved from another model or optimizer: unembedding is not there, expected"):
        export_checkpoint(copied, tmp_path / "out")


def test_the_card_says_what_the_model_is(run: tuple[Path, RunConfig, Trained]) -> None:
    _, config, trained = run
    text = (trained.export / "README.md").read_text(encoding="utf-8")
    base = Path(config.model.base)
    assert front_matter(trained.export) == {
        "pipeline_tag": "text-ranking",
        "library_name": "sentence-transformers",
        "tags": ["reranker", "cross-encoder", "prorank"],
    }
    assert f"# A reranker made from {base.name}\n" in text
    assert "<|im_start|>system\nWürdig?<|im_end|>\n<|im_start|>user\nQuery:\n{query}\nDocument:\n{document}\n" in text
    assert "at most 112 tokens" in text
    [settings] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    told = yaml.safe_load(settings)
    assert told["warmup"]["group_size"] == 2
    assert told["score"]["optimizer"]["learning_rate"] == 0.01
    assert told["model"]["base"] == base.name
    assert told["data"]["path"] == "train"
    # Nothing of the machine is published.
    for file in ("README.md", "prorank.json", "config.json", "tokenizer_config.json"):
        assert str(base.parent) not in (trained.export / file).read_text(encoding="utf-8")
    assert "Not measured yet" in text


def test_a_hub_id_is_the_base_model_in_the_metadata() -> None:
    base = {"model": {"base": "Qwen/Qwen2.5-0.5B"}, "data": {"path": "/home/someone/nfcorpus"}, "score": {"steps": 1}}
    record = run_record(parse_config(base), "score", 1)
    assert record.base == "Qwen/Qwen2.5-0.5B"
    assert record.configuration is not None and record.configuration["data"]["path"] == "nfcorpus"
    assert public_name("builtin:tiny") == "builtin:tiny"
    assert public_name("~/models/mine") == public_name("../models/mine") == public_name("/models/mine") == "mine"


def test_measurements_are_shown_and_belong_to_these_weights(
    copied: Path, tiny_collection: Path, tmp_path: Path, prorank: Prorank
) -> None:
    data = ("--data", tiny_collection / "test", "--depth", 10)
    assert prorank("evaluate", copied / "export", *data)[0] == 0
    text = (copied / "export" / "README.md").read_text()
    figures = json.loads((copied / "evaluation" / "test-test" / "metrics.json").read_text())
    first, reranked = (figures[name]["ndcg@10"] for name in ("first_stage", "metrics"))
    stage = "BM25 (k1 0.9, b 0.4, title and text)"
    row = f"| test test | 4 | {stage} | 10 | 112 | float32 | {first:.4f} | **{reranked:.4f}** |"
    assert row in text
    # Measured again, the figures are replaced; by another protocol, they come to them.
    assert prorank("evaluate", copied / "export", *data)[0] == 0
    assert prorank("evaluate", copied / "export", *data, "--max-length", 100)[0] == 0
    text = (copied / "export" / "README.md").read_text()
    assert text.count(f"| test test | 4 | {stage} | 10 |") == 2
    assert "at most 112 tokens" in text

    assert prorank("export", copied, tmp_path / "same")[0] == 0
    assert (tmp_path / "same" / "README.md").read_text() == text
    for other in (("export", copied / "score/checkpoints/2"), ("export", "--dtype", "float16", copied)):
        assert prorank(*other, tmp_path / "other")[0] == 0
        assert "Not measured yet" in (tmp_path / "other" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["causal", "seq-cls"])
def test_the_snippets_of_the_card_run(run: tuple[Path, RunConfig, Trained], tmp_path: Path, kind: str) -> None:
    workdir, _, trained = run
    folder = tmp_path / "out"
    export_checkpoint(workdir, folder, kind=kind)
    pairs = [("a query", "a document"), ("a query", "another document")]
    ours = Reranker.from_pretrained(trained.export).predict(pairs)
    text = (folder / "README.md").read_text()
    snippets = {name: code for name, code in re.findall(r"With (\S+):\n\n```python\n(.*?)```", text, re.DOTALL)}
    assert list(snippets) == ["sentence-transformers", "transformers", "prorank_jax"][: 3 if kind == "causal" else 2]
    assert ("vllm serve FOLDER" in text) == (kind == "seq-cls")
    for name, code in snippets.items():
        found: dict[str, Any] = {}
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code.replace("FOLDER", str(folder)), found)
        if name == "sentence-transformers":
            np.testing.assert_allclose(found["scores"], ours, atol=1e-4)
        elif name == "transformers":
            np.testing.assert_allclose(found["score"], ours[0], atol=1e-4)
        else:
            scores = [float(line.split()[0]) for line in printed.getvalue().splitlines()]
            np.testing.assert_allclose(scores, sorted(ours, reverse=True), atol=1e-5)


def test_a_record_that_is_damaged(copied: Path) -> None:
    path = copied / "export" / "prorank.json"
    for text in ("{", "[]", '{"base": "x"}', '{"base": "x", "measured": [], "colour": 1}'):
        path.write_text(text)
        with pytest.raises(InputError, match=f"^{path}: not what prorank export writes .*; export the model again$"):
            read_record(copied / "export")


def test_a_card_of_a_model_that_was_not_trained_here(tiny_model: Path) -> None:
    text = card.model_card(Record("someone/some-model"), Reranker.from_pretrained(tiny_model).prompt)
    assert "base_model: someone/some-model\n" in text
    assert text.endswith("## Training\n\nExported as it was imported.\n")
    # What gives scores of another order, and what works in its place.
    assert 'AnswerDotAI `rerankers` with this folder is one. Its `model_type="cohere"` with the `url` of\n' in text


def test_bad_arguments_of_the_verb(
    copied: Path, tmp_path: Path, refused: Callable[..., str], run: tuple[Path, RunConfig, Trained]
) -> None:
    out = tmp_path / "out"
    assert "nowhere: not a checkpoint of a run" in refused("export", copied / "nowhere", out)
    assert "Missing argument 'out'" in refused("export", copied)
    assert "format='gguf': not known" in refused("export", copied, out, "--format", "gguf")
    assert "there already, and not an exported model" in refused("export", copied, tmp_path)
    (copied / "config.yaml").write_text(dump_config(run[1]).replace("steps: 4", "steps: -4"))
    assert "steps=-4" in refused("export", copied, out)
    assert not out.exists()


def test_adapters_are_merged_and_survive_a_restart(run: tuple[Path, RunConfig, Trained], tmp_path: Path) -> None:
    _, plain, _ = run
    tree = plain.model_dump(mode="json")
    tree["warmup"] |= {"lora": {"rank": 2, "alpha": 4.0, "targets": ["q_proj", "down_proj"]}, "beta": 0.04}
    tree["score"]["lora"] = {"rank": 3}
    config = parse_config(tree)
    workdir = tmp_path / "run"
    trained = train(config, workdir)
    base = load_pretrained(plain.model.base).params
    # Only the targets have moved, and both of them.
    moved = jax.tree_util.tree_map_with_path(lambda path, a, b: bool((a != b).any()), base, warmed_up(workdir, config))
    names = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, is_so in jax.tree_util.tree_leaves_with_path(moved)
        if is_so
    }
    assert names == {"layers/attention/query/kernel", "layers/mlp/down/kernel"}
    # A checkpoint holds the adapters alone: A and B of rank 2 for each of two matrices a layer.
    c = trained.decoder.config
    adapters = checkpoints(workdir, "warmup").restore_params(4, adapter_shapes(config))
    assert sum(leaf.size for leaf in jax.tree.leaves(adapters)) == c.layers * 2 * (
        c.width + c.heads * c.head_size + c.mlp_width + c.width
    )

    for named, want in (("warmup", warmed_up(workdir, config)), ("score/checkpoints/4", trained.final)):
        export_checkpoint(workdir / named, tmp_path / named.replace("/", "-"))
        assert equal(params_of(tmp_path / named.replace("/", "-")), want)
    assert equal(params_of(workdir / "export"), trained.final)
    export_checkpoint(workdir / "score/checkpoints/2", tmp_path / "half")
    assert not equal(params_of(tmp_path / "half"), trained.final)

    shutil.rmtree(workdir / "score/checkpoints/4")
    assert equal(train(config, workdir).final, trained.final)
