"""A whole run: base model -> prompt warmup -> score learning -> exported folder, in one run folder.

Started again on the same folder, a run goes on where it stopped; a finished stage is only read back.
"""

from dataclasses import dataclass
from functools import partial

import jax.numpy as jnp

from prorank_jax import __version__
from prorank_jax.answer_place import warn_unlikely
from prorank_jax.card import run_record
from prorank_jax.config import PolicyConfig, RunConfig
from prorank_jax.config_file import dump_config
from prorank_jax.data.mixture import open_mixture
from prorank_jax.data.stream import groups, pairs
from prorank_jax.evaluation.development import Development
from prorank_jax.export import check_out, export_model
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.hf import load_pretrained
from prorank_jax.model.long_attention import kernel_for
from prorank_jax.prompt import Prompt, load_prompt
from prorank_jax.reranker import Reranker
from prorank_jax.run_folder import SavedStep, check_run_folder, open_run_folder
from prorank_jax.runtime.distributed import check_agreement
from prorank_jax.runtime.mesh import make_mesh, on_process_0, shardings, wait_for_all
from prorank_jax.runtime.preemption import Preemption
from prorank_jax.runtime.room import Room
from prorank_jax.scoring.record import Moment, ScoreRecord, draw
from prorank_jax.scoring.stage import check_score, train_score
from prorank_jax.storage import Place, kept_here
from prorank_jax.warmup.development import WarmupDevelopment
from prorank_jax.warmup.stage import check_warmup, train_warmup


@dataclass(frozen=True)
class Trained:
    """What a run leaves in memory: one copy of the parameters, after the last stage."""

    decoder: Decoder
    prompt: Prompt
    final: Params
    export: Place
    development: dict[str, float]
    """nDCG@10 of the held-out queries of `score.dev`: "first stage", "before" and "after"; empty without any."""


def train(config: RunConfig, workdir: Place, preemption: Preemption | None = None) -> Trained:
    """Runs the stages that the configuration names, and exports the result to `workdir/export`.

    In a run of several processes each of them makes this call, on one `workdir` that all of them see.

    Args:
      preemption: what says when to end early; default: nothing does.

    Raises:
      InputError: before any training, for bad input: model, tokenizer, prompt, collection, mesh, or a `workdir` made
        with another configuration or used by another run.
    """
    check_agreement({"prorank_jax": __version__, "config": dump_config(config)})
    preemption = preemption or Preemption()
    mesh = make_mesh(config.mesh)
    check_run_folder(config, workdir)
    pretrained = load_pretrained(config.model.base, place=partial(shardings, mesh))
    prompt = load_prompt(pretrained, config.prompt, config.model.base)
    decoder = Decoder(pretrained.config, jnp.dtype(config.model.dtype), config.model.remat, kernel_for(mesh))
    if config.warmup is not None:
        check_warmup(config.warmup, prompt.max_length, pretrained.config.max_positions, mesh)
    if config.score is not None:
        check_score(config.score, mesh)
    check_out(workdir / "export", pretrained.folder)
    warn_unlikely(decoder, pretrained.params, prompt, mesh)
    dev = config.score.dev if config.score else None
    reranker = partial(Reranker, decoder, prompt=prompt)
    development = Development.open(dev, config.data.path, reranker) if dev else None
    warmup_dev = config.warmup.dev if config.warmup else None
    judged = WarmupDevelopment.open(warmup_dev, config.data.path, reranker) if warmup_dev else None
    single = config.score is not None and config.score.documents_per_query == 1
    losses = config.score.loss if config.score else ()
    mixture = open_mixture(config.data, kept_here(workdir / "data"), single=single, losses=losses)
    for instruction in mixture.instructions:
        prompt.with_instruction(instruction)
    sources, weights, _ = mixture
    # Both streams draw once here, so that a warmup does not run before the other is refused.
    matched = not isinstance(config.warmup, PolicyConfig) or config.warmup.matched
    pair_stream = pairs(sources, weights, config.seed, matched=matched) if config.warmup else None
    group_stream = groups(sources, weights, config.seed, config.score.documents_per_query) if config.score else None
    held_out = (development.collection, development.run) if development else None
    record = ScoreRecord(reranker, draw(config, held_out, sources, weights), Room(preemption))
    with open_run_folder(config, workdir):
        params, learnt = pretrained.params, None
        saved = SavedStep("warmup", 0)
        # The warmup ends with the model that score learning begins with.
        between: list[tuple[Place, Moment]] = []
        if pair_stream is not None:
            record.keep(params, (workdir / "warmup", "begin"))
            warmed_up = train_warmup(
                config, decoder, params, prompt, pair_stream, mesh, workdir / "warmup", preemption, judged
            )
            params, saved = warmed_up.params, SavedStep("warmup", warmed_up.step)
            between.append((workdir / "warmup", "end"))
        if group_stream is not None:
            between.append((workdir / "score", "begin"))
        record.keep(params, *between)
        if group_stream is not None:
            learnt = train_score(
                config, decoder, params, prompt, group_stream, development, mesh, workdir / "score", preemption
            )
            params, saved = learnt.params, SavedStep("score", learnt.step)
            record.keep(params, (workdir / "score", "end"))
        if (whole := on_process_0(params)) is not None:
            export_model(workdir / "export", pretrained, whole, prompt, run_record(config, *saved))
        wait_for_all("export")
    table = learnt.development if learnt else {}
    return Trained(decoder, prompt, params, workdir / "export", table)
