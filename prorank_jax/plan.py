"""Whether a configuration fits a TPU slice, before one is rented: its own steps, compiled for the real chip.

XLA's compiler for TPUs runs without one. It says what a step holds and moves; how long it takes is arithmetic, at a
utilisation that well-tuned training reaches.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from prorank_jax.config import RunConfig
from prorank_jax.config_file import parse_config
from prorank_jax.errors import InputError
from prorank_jax.model.decoder import DecoderConfig
from prorank_jax.model.hf import read_folder
from prorank_jax.model.weights import ADAPTER
from prorank_jax.planning.chips import Topology, bytes_of, exceeded, open_topology
from prorank_jax.planning.compiled import Buffer, Collective, collectives, largest_buffers, moved
from prorank_jax.planning.steps import Job, bytes_on_a_chip, jobs, make_job
from prorank_jax.runtime.mesh import make_mesh
from prorank_jax.tables import markdown_table

UTILISATION = 0.4
_BUFFERS = 5
_GIB = 2.0**30
Change = tuple[str, Any]
"""A field of the configuration, as `mesh.fsdp`, and its new value."""


class StagePlan(NamedTuple):
    """What one step needs of each chip.

    Attributes:
      arguments: bytes of what the step is given, by what it is.
      argument_bytes, output_bytes, temporary_bytes: as XLA lays them out; outputs without those that take the place of
        an argument.
      used: bytes altogether; of a step that does not fit, what XLA says.
      flops: model FLOPs of the step, over all chips.
      seconds: of a step, at 40% of the chips' peak.
    """

    name: str
    fits: bool
    used: float
    arguments: dict[str, int]
    argument_bytes: int
    output_bytes: int
    temporary_bytes: int
    buffers: list[Buffer]
    collectives: list[Collective]
    flops: float
    seconds: float


class Plan(NamedTuple):
    """The plan of a configuration for a slice; `remedies` say of a stage that does not fit with what change it does."""

    topology: Topology
    mesh: dict[str, int]
    stages: list[StagePlan]
    remedies: dict[str, str]


def plan(config: RunConfig, topology: str, tell: Callable[[str], None]) -> Plan:
    """Compiles each step of a configuration for a slice.

    Raises:
      InputError: an unknown slice, a mesh or a batch that does not fit it, no libtpu, a base without `config.json`.
    """
    opened, model = open_topology(topology), _model(config)
    mesh = make_mesh(config.mesh, opened.devices)
    stages, remedies = [], {}
    for job in jobs(config, model, mesh):
        stages.append(_compiled(job, mesh, opened, tell))
        if not stages[-1].fits:
            remedies[job.name] = _remedy(config, model, opened, job.name, tell)
    return Plan(opened, dict(mesh.shape), stages, remedies)


def compile_stage(config: RunConfig, topology: str, stage: str, tell: Callable[[str], None]) -> StagePlan:
    """The plan of one stage, `warmup`, `score` or `rerank`, alone; raises as `plan`."""
    opened = open_topology(topology)
    mesh = make_mesh(config.mesh, opened.devices)
    return _compiled(make_job(config, _model(config), mesh, stage), mesh, opened, tell)


class Candidate(NamedTuple):
    """One of the meshes and batch sizes that a sweep tries."""

    changes: tuple[Change, ...]
    stage: StagePlan
    rows: int


def sweep(config: RunConfig, topology: str, tell: Callable[[str], None]) -> Iterator[Candidate]:
    """Each training stage with each split of the slice, and with half, the same and twice the rows of a step."""
    opened, model = open_topology(topology), _model(config)
    chips = len(opened.devices)
    for stage, field in _row_fields(config).items():
        for fsdp in [2**power for power in range(chips.bit_length()) if chips % 2**power == 0]:
            for factor in (0.5, 1, 2):
                rows = int(_get(config, field) * factor)
                changes = (("mesh.data", -1), ("mesh.fsdp", fsdp), (field, rows))
                try:
                    made = _with_changes(config, changes, model, opened, stage)
                except InputError as error:
                    tell(str(error))
                    continue
                yield Candidate(changes, _compiled(*made, opened, tell), rows)


def describe(plan: Plan) -> str:
    """The plan as text."""
    chip = plan.topology.generation
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    lines = [f"{plan.topology.name}: {len(plan.topology.devices)} chips of {chip.memory:.0f} GiB, mesh {mesh}"]
    for stage in plan.stages:
        verdict = "fits" if stage.fits else "DOES NOT FIT"
        lines += ["", f"{stage.name}: {verdict}, {stage.used / _GIB:.2f} of {chip.memory:.0f} GiB a chip"]
        given = ", ".join(f"{name} {bytes_of(size)}" for name, size in stage.arguments.items() if size)
        lines.append(f"  given       {given}")
        if stage.fits:
            lines.append(
                f"  in memory   arguments {bytes_of(stage.argument_bytes)}, outputs beside them "
                f"{bytes_of(stage.output_bytes)}, temporary {bytes_of(stage.temporary_bytes)}"
            )
        lines.append(
            f"  step        {stage.flops / 1e12:.1f} model TFLOPs, {stage.seconds:.2f} s at {UTILISATION:.0%} of "
            f"{chip.peak:.0f} TFLOP/s a chip"
        )
        for (kind, axes), size in sorted(moved(stage.collectives).items()):
            count = sum(one.times for one in stage.collectives if (one.kind, one.axes) == (kind, axes))
            lines.append(
                f"  {kind:<18} over {'+'.join(axes) or 'none'}: {bytes_of(size)} a chip and step, {count} times"
            )
        for buffer in stage.buffers:
            lines.append(f"  buffer      {bytes_of(buffer.bytes):>10}  {buffer.type}  {buffer.operation}")
        if stage.name in plan.remedies:
            lines.append(f"  remedy      {plan.remedies[stage.name]}")
    return "\n".join(lines)


def describe_sweep(candidates: Iterable[Candidate]) -> str:
    """A table: what fits first, then what moves least for each row."""

    def moved_a_row(one: Candidate) -> float:
        return sum(moved(one.stage.collectives).values()) / one.rows

    def order(one: Candidate) -> tuple[str, bool, float]:
        return one.stage.name, not one.stage.fits, moved_a_row(one)

    rows = {
        f"{one.stage.name} {' '.join(f'{field}={value}' for field, value in one.changes)}": {
            "fits": "yes" if one.stage.fits else "no",
            "GiB a chip": f"{one.stage.used / _GIB:.2f}",
            "moved a row": bytes_of(moved_a_row(one)),
            "step, s": f"{one.stage.seconds:.2f}",
        }
        for one in sorted(candidates, key=order)
    }
    return markdown_table(rows, "tried")


def _model(config: RunConfig) -> DecoderConfig:
    return read_folder(config.model.base, ["config.json", ADAPTER]).config


def _compiled(job: Job, mesh: jax.sharding.Mesh, topology: Topology, tell: Callable[[str], None]) -> StagePlan:
    started = time.monotonic()
    tell(f"{job.name}: compiling for {topology.name}, data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']}")
    chip, chips = topology.generation, len(topology.devices)
    seconds = job.flops / (chips * chip.peak * 1e12 * UTILISATION)
    arguments = {name: bytes_on_a_chip(tree) for name, tree in _by_kind(job.arguments).items()}
    lowered = job.function.lower(*job.arguments.values())
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if (found := exceeded(str(error))) is None:
            raise
        tell(f"{job.name}: does not fit ({time.monotonic() - started:.0f} s)")
        return StagePlan(job.name, False, found[0] * _GIB, arguments, 0, 0, 0, [], [], job.flops, seconds)
    tell(f"{job.name}: compiled in {time.monotonic() - started:.0f} s")
    memory, text = compiled.memory_analysis(), compiled.as_text()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    used = memory.argument_size_in_bytes + outputs + memory.temp_size_in_bytes
    return StagePlan(
        job.name,
        used <= chip.memory * _GIB,
        used,
        arguments,
        memory.argument_size_in_bytes,
        outputs,
        memory.temp_size_in_bytes,
        largest_buffers(text, _BUFFERS),
        collectives(text, mesh),
        job.flops,
        seconds,
    )


def _by_kind(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments, of a training state the parameters and what the optimizer keeps apart."""
    kinds = dict(arguments)
    if (state := kinds.pop("state", None)) is not None:
        kinds = {"parameters": state.params, "optimizer": state.optimizer, **kinds}
    return kinds


def _remedy(
    config: RunConfig, model: DecoderConfig, topology: Topology, stage: str, tell: Callable[[str], None]
) -> str:
    """The first of some changes, from small to large, with which the stage compiles into the memory."""
    tried = []
    for changes in _changes(config, topology, stage):
        told = " ".join(f"{field}={value}" for field, value in changes)
        try:
            made = _with_changes(config, changes, model, topology, stage)
        except InputError:
            continue
        tell(f"{stage}: trying {told}")
        if _compiled(*made, topology, tell).fits:
            return f"fits with {told}"
        tried.append(told)
    return f"none of {'; '.join(tried) or 'the usual changes'} is enough; use a larger slice, LoRA or a shorter prompt"


def _changes(config: RunConfig, topology: Topology, stage: str) -> Iterator[tuple[Change, ...]]:
    chips = len(topology.devices)
    now = make_mesh(config.mesh, topology.devices).shape["fsdp"]
    splits = [fsdp for fsdp in (2 * now, 4 * now, 8 * now, 16 * now) if fsdp <= chips and chips % fsdp == 0]
    meshes: list[tuple[Change, ...]] = [(("mesh.data", -1), ("mesh.fsdp", fsdp)) for fsdp in splits]
    remat: tuple[Change, ...] = () if config.model.remat == "full" else (("model.remat", "full"),)
    if remat:
        yield remat
    yield from meshes
    last = meshes[-1] if meshes else ()
    if remat and last:
        yield (*last, *remat)
    if (field := _row_fields(config).get(stage)) is not None:
        rows = _get(config, field)
        while rows % 2 == 0 and rows > chips:
            rows //= 2
            yield (*last, *remat, (field, rows))


def _row_fields(config: RunConfig) -> dict[str, str]:
    """The field that says how many rows a stage's step has."""
    fields = {}
    if config.warmup is not None:
        fields["warmup"] = "warmup.prompts_per_step"
    if config.score is not None:
        fields["score"] = "score.queries_per_step"
    return fields


def _get(config: RunConfig, field: str) -> Any:
    section, name = field.split(".")
    return config.model_dump()[section][name]


def _with_changes(
    config: RunConfig, changes: Iterable[Change], model: DecoderConfig, topology: Topology, stage: str
) -> tuple[Job, jax.sharding.Mesh]:
    """The job of a stage with some fields changed, and its mesh."""
    tree = config.model_dump(mode="json")
    for field, value in changes:
        section, name = field.split(".")
        tree[section][name] = value
    changed = parse_config(tree)
    mesh = make_mesh(changed.mesh, topology.devices)
    return make_job(changed, model, mesh, stage), mesh
