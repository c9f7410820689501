"""A whole run: base model -> prompt warmup -> score learning -> exported folder, in one run folder.

Started again on the same folder, a run goes on where it stopped; a finished stage is only read back.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax.numpy as jnp

from prorank_jax.card import run_record
from prorank_jax.config import RunConfig
from prorank_jax.data.beir import read_beir
from prorank_jax.data.candidates import candidates
from prorank_jax.data.examples import Groups, Pairs, Selection
from prorank_jax.export import check_out, export_model
from prorank_jax.model.decoder import Decoder, Params
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import Prompt, load_prompt
from prorank_jax.run_folder import check_run_folder, open_run_folder
from prorank_jax.runtime.mesh import check_rows, make_mesh, shardings
from prorank_jax.scoring.stage import train_score
from prorank_jax.warmup.stage import check_warmup, train_warmup


@dataclass(frozen=True)
class Trained:
    """What a run leaves in memory: the parameters before and after each stage (a skipped stage changes nothing)."""

    decoder: Decoder
    prompt: Prompt
    base: Params
    warmed_up: Params
    final: Params
    export: Path


def train(config: RunConfig, workdir: Path) -> Trained:
    """Runs the stages that the configuration names, and exports the result to `workdir/export`.

    Raises:
      InputError: before any training, for bad input: model, tokenizer, prompt, collection, mesh, or a `workdir` made
        with another configuration.
    """
    mesh = make_mesh(config.mesh)
    pretrained = load_pretrained(config.model.base, place=partial(shardings, mesh))
    prompt = load_prompt(pretrained, config.prompt, config.model.base)
    decoder = Decoder(pretrained.config, jnp.dtype(config.model.dtype), config.model.remat)
    if config.warmup is not None:
        check_warmup(config.warmup, prompt, decoder, mesh)
    if config.score is not None:
        check_rows(mesh, "score.queries_per_step", config.score.queries_per_step)
    check_run_folder(config, workdir)
    check_out(workdir / "export", pretrained.folder)
    collection = read_beir(config.data.path, config.data.split)
    run = candidates(collection, config.data.candidates, config.data.depth)
    selection = Selection(config.data.relevant_from, config.data.found_only, config.data.random_negatives)
    pairs = Pairs.from_collection(collection, run, selection)
    groups = Groups.from_collection(collection, run, selection)
    open_run_folder(config, workdir)

    warmed_up = pretrained.params
    if config.warmup is not None:
        warmed_up = train_warmup(config, decoder, warmed_up, prompt, pairs, mesh, workdir / "warmup")
    final = warmed_up
    if config.score is not None:
        final = train_score(config, decoder, final, prompt, groups, mesh, workdir / "score")
    stage, steps = ("warmup", config.warmup) if config.score is None else ("score", config.score)
    assert steps is not None
    export_model(workdir / "export", pretrained, final, prompt, run_record(config, stage, steps.steps))
    return Trained(decoder, prompt, pretrained.params, warmed_up, final, workdir / "export")
