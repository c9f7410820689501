"""Steps compiled for a TPU slice that is not there: what they move, and the command that tells it."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import yaml
from _small_decoder import small_config

from prorank_jax import plan as planner
from prorank_jax.config import MeshConfig
from prorank_jax.config_file import load_config, parse_config
from prorank_jax.model.decoder import DecoderConfig
from prorank_jax.plan import StagePlan, plan
from prorank_jax.planning.chips import open_topology
from prorank_jax.planning.compiled import Collective, collectives
from prorank_jax.planning.steps import jobs
from prorank_jax.runtime.mesh import make_mesh, specs

CONFIGS = Path(__file__).parents[1] / "configs"
PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())


def settings(base: Path | str, **changes: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {
        "model": {"base": str(base), "dtype": "bfloat16", "remat": "full"},
        "prompt": {"max_length": 128},
        "data": {"path": "beir/scifact"},
        "warmup": {"steps": 2, "prompts_per_step": 16, "group_size": 4, "max_new_tokens": 3},
        "score": {"steps": 2, "queries_per_step": 16, "documents_per_query": 2, "accumulation": 2},
    }
    for field, value in changes.items():
        tree[field] = tree.get(field, {}) | value if isinstance(value, dict) else value
    return tree


MODEL = small_config(512, tied=True)


@pytest.fixture(scope="module")
def compiled() -> Any:
    """The steps of both stages and of reranking, for eight chips as 2 x 4: their collectives by name."""
    devices = open_topology("v5e:2x4").devices
    mesh = make_mesh(MeshConfig(data=2, fsdp=4), devices)
    config = parse_config(settings("none", warmup={"beta": 0.1}, mesh={"data": 2, "fsdp": 4}))
    return mesh, {
        job.name: collectives(job.function.lower(*job.arguments.values()).compile().as_text(), mesh)
        for job in jobs(config, MODEL, mesh)
    }


def parts_of_parameters(mesh: Any, model: DecoderConfig) -> set[tuple[int, ...]]:
    from prorank_jax.model.decoder import Decoder

    shapes = jax.eval_shape(Decoder(model).init, jax.random.key(0))
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(specs(mesh, shapes)), strict=True)
    return {jax.sharding.NamedSharding(mesh, spec).shard_shape(leaf.shape) for leaf, spec in leaves}


def test_between_replicas_nothing_moves_but_gradients_and_metrics(compiled: Any) -> None:
    mesh, found = compiled
    for stage in ("warmup", "score"):
        over_data = [one for one in found[stage] if "data" in one.axes]
        assert over_data and {one.kind for one in over_data} == {"all-reduce"}
        shapes = {shape for one in over_data for shape in one.shapes}
        # Activations of a chip have 2 prompts of 128 tokens: [2, 128, 16], [256, 16] and the like.
        assert shapes <= parts_of_parameters(mesh, MODEL) | {()}
        # The gradients move once, however many layers there are.
        assert {one.times for one in over_data} == {1}


def test_within_a_replica_kernels_are_gathered_and_no_activations_change_places(compiled: Any) -> None:
    _, found = compiled
    for one in [one for stage in ("warmup", "score") for one in found[stage] if one.axes == ("fsdp",)]:
        assert one.kind in ("all-gather", "all-reduce", "reduce-scatter", "collective-permute")
        # The tokens of a chip are 256 and the completions of a chip's prompts 2 x 4.
        assert not any({128, 256, 8} & set(shape) for shape in one.shapes), one
    # In each turn of the loop over two layers.
    assert any(one.kind == "all-gather" and one.times % 2 == 0 for one in found["warmup"])
    assert {one.axes for one in found["rerank"]} <= {("fsdp",), ("data", "fsdp")}


def test_the_command_tells_what_fits(prorank: Any, tiny_model: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        yaml.safe_dump(settings(tiny_model, warmup={"prompts_per_step": 8}, score={"queries_per_step": 8}))
    )
    status, out, err = prorank("plan", config, "--topology", "v5e:2x2", "mesh.fsdp=2")
    assert status == 0
    assert out.startswith("v5e:2x2: 4 chips of 16 GiB, mesh data 2 x fsdp 2\n")
    for stage in ("warmup", "score", "rerank"):
        assert f"\n{stage}: fits, 0.0" in out
        assert f"{stage}: compiled in" in err
    assert "all-reduce         over data" in out and "model TFLOPs" in out and "buffer" in out


def test_what_does_not_fit_is_told_with_the_change_that_does(tmp_path: Path) -> None:
    # An embedding of 1.1 billion parameters: 13 GiB with the optimizer's moments, and its gradient beside them.
    sizes = PUBLISHED["Qwen2.5-0.5B"]["config"] | {"num_hidden_layers": 1, "hidden_size": 7168}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    config = parse_config(settings(tmp_path, warmup={}, score={"accumulation": 1}) | {"warmup": None})
    planned = plan(config, "v5e:2x2", lambda line: None)
    score, rerank = planned.stages
    assert not score.fits and score.used > 15.75 * 2**30
    assert rerank.fits
    assert planned.remedies == {"score": "fits with mesh.data=-1 mesh.fsdp=2"}


def test_a_sweep_tries_meshes_and_batch_sizes_and_tells_the_best_first(
    prorank: Any, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(job: Any, mesh: Any, topology: Any, tell: Any) -> StagePlan:
        # What is not split over two devices at least does not fit, and a larger split moves more.
        fsdp, rows = mesh.shape["fsdp"], job.arguments["batch"].labels_P.shape[0]
        moves = [Collective("all-gather", ("fsdp",), 1024 * fsdp, (), 1)]
        return StagePlan(job.name, fsdp > 1, 2.0**30 * rows, {}, 0, 0, 0, [], moves, 0.0, rows / 10)

    monkeypatch.setattr(planner, "_compiled", compiled)
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings(tiny_model, warmup={"prompts_per_step": 8}) | {"score": None}))
    status, out, err = prorank("plan", config, "--topology", "v5e:2x2", "--sweep")
    assert status == 0
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines()]
    assert cells[0] == ["tried", "fits", "GiB a chip", "moved a row", "step, s"]
    best = "warmup mesh.data=-1 mesh.fsdp=2 warmup.prompts_per_step=16"
    assert cells[2] == [best, "yes", "16.00", "128 B", "1.60"]
    assert [row[1] for row in cells[2:]] == ["yes"] * 6 + ["no"] * 3
    # Four, eight and sixteen prompts, and none that the four devices do not divide.
    assert {row[0].split("=")[-1] for row in cells[2:]} == {"4", "8", "16"}
    status, out, err = prorank("plan", config, "--topology", "v5e:2x2", "--sweep", "warmup.prompts_per_step=4")
    assert "warmup.prompts_per_step=2 does not divide over 4 devices" in err
    assert len(out.splitlines()) == 2 + 6


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["mesh.fsdp=3"], "config: mesh.data=-1, mesh.fsdp=3: there are 4 devices"),
        (
            ["warmup.prompts_per_step=6"],
            "config: warmup.prompts_per_step=6 does not divide over 4 devices; the nearest is 8",
        ),
    ],
)
def test_what_training_would_refuse_is_refused(
    refused: Any, tiny_model: Path, tmp_path: Path, changes: list[str], told: str
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(settings(tiny_model)))
    assert refused("plan", config, "--topology", "v5e:2x2", *changes).startswith(told)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_configuration_is_built_for_its_hardware(path: Path, tmp_path: Path) -> None:
    """Its steps are traced with the shapes of its base; that they fit is for benchmarks/planned_configs.py to show."""
    text = path.read_text()
    header = text[: text.index("model:")]
    for field in ("# Command: ", "# Hardware: ", "# Time: ", "# Result: "):
        assert field in header
    config = load_config(path)
    assert f"configs/{path.name}" in header
    if config.model.base == "builtin:tiny":
        return
    size = config.model.base.split("/")[-1].removesuffix("-it").removesuffix("-Instruct")
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[size]["config"]))
    slice_ = next(word.rstrip(";") for word in header.split() if word.startswith("v5e:"))
    mesh = make_mesh(config.mesh, open_topology(slice_).devices)
    built = load_config(path, [f"model.base={tmp_path}"])
    from prorank_jax.model.hf import read_folder

    model = read_folder(tmp_path).config
    assert config.prompt.max_length + 4 <= model.max_positions
    for job in jobs(built, model, mesh):
        shapes = jax.eval_shape(job.function, *job.arguments.values())
        assert all(leaf.dtype != jnp.float16 for leaf in jax.tree.leaves(shapes))
