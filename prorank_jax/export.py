"""Writes the model folder that other tools load: weights, tokenizer, prompt, model card, and how to read the score.

`causal` is the language model itself: `transformers.AutoModelForCausalLM` reads it, sentence-transformers'
`CrossEncoder` gives our scores, and `Reranker` reads the same files back. `seq-cls` is a classifier of one label with
the same scores, for servers that know classifiers only. A folder appears whole or not at all.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from prorank_jax.card import RECORD, Record, read_record, run_record, write_record
from prorank_jax.config import RunConfig
from prorank_jax.config_file import load_config
from prorank_jax.cross_encoder import causal_files, classifier_files
from prorank_jax.errors import InputError
from prorank_jax.model.decoder import Decoder, DecoderConfig, Params
from prorank_jax.model.hf import (
    ModelFolder,
    causal_config,
    classifier_config,
    load_pretrained,
    read_folder,
    save_pretrained,
)
from prorank_jax.model.lora import init_adapters, merged
from prorank_jax.prompt import Prompt, load_prompt, load_tokenizer
from prorank_jax.run_folder import CONFIG_FILE, SavedStep, checkpoints, find_checkpoint, warmed_up
from prorank_jax.runtime.room import full
from prorank_jax.storage import Place, copy_of, exists, holds_files, replaced

KINDS = ("causal", "seq-cls")
DTYPES = ("float32", "bfloat16", "float16")


def export_checkpoint(source: Place, out: Place, *, kind: str = "causal", dtype: str = "float32") -> SavedStep:
    """Exports any step of a run folder: RUN, RUN/score, RUN/score/checkpoints/STEP (see `find_checkpoint`).

    The card shows what was measured of the run's own export where that is of the same step and dtype.

    Returns:
      the step that was exported.

    Raises:
      InputError: no such checkpoint, one that is damaged or of another model, or `out` is not to be written.
    """
    _check_choice("format", kind, KINDS)
    _check_choice("dtype", dtype, DTYPES)
    workdir, saved = find_checkpoint(source)
    config = load_config(workdir / CONFIG_FILE)
    base = read_folder(config.model.base)
    prompt = load_prompt(base, config.prompt, config.model.base)
    check_out(out, base.folder)
    params = saved_parameters(workdir, config, saved, base.config)
    record = run_record(config, *saved)
    own = read_record(workdir / "export")
    if own is not None and (own.stage, own.step) == saved and dtype == "float32":
        record = replace(record, measured=own.measured)
    export_model(out, base, params, prompt, replace(record, kind=kind), dtype=dtype)
    return saved


def export_model(
    folder: Place, base: ModelFolder, params: Params, prompt: Prompt, record: Record, *, dtype: str = "float32"
) -> None:
    """Writes `params`, trained from `base`, with its prompt and what is known of it; an older export is replaced.

    Raises:
      InputError: `folder` holds something else or cannot be written; a classifier is asked for that would have other
        scores.
    """
    check_out(folder, base.folder)
    with _writing(folder), replaced(folder, last="config.json") as unfinished:
        if record.kind == "causal":
            save_pretrained(unfinished, params, base.config, causal_config(base.hf_config), dtype=dtype)
            generation = {"eos_token_id": prompt.end_id, "pad_token_id": prompt.pad_id, "do_sample": False}
            files = {"generation_config.json": generation, **causal_files(prompt.answer_ids)}
        else:
            row = _classifier(base, params, prompt)
            config = classifier_config(base.hf_config, prompt.pad_id)
            save_pretrained(unfinished, params, base.config, config, dtype=dtype, classifier=row)
            files = classifier_files()
        tokenizer = load_tokenizer(base.folder)
        tokenizer.chat_template = prompt.template
        tokenizer.model_max_length = prompt.max_length
        # transformers saves the attribute only where the tokenizer was made with it.
        tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
        tokenizer.save_pretrained(unfinished)
        for name, content in files.items():
            path = unfinished / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        write_record(unfinished, record, prompt)


@contextmanager
def _writing(folder: Place) -> Iterator[None]:
    # Libraries in Rust say in words alone that the disk is full.
    try:
        yield
    except Exception as error:
        reason = full(error) or (isinstance(error, OSError) and error.strerror)
        if not reason:
            raise
        raise InputError(f"{folder}: cannot be written ({reason}); make room, and start the command again") from None


def check_out(folder: Place, base: Path) -> None:
    """Refuses to replace anything but an older export.

    Raises:
      InputError: there is a file, a folder with other things in it, or the base model.
    """
    if holds_files(folder) and copy_of(folder).resolve() == base.resolve():
        raise InputError(f"{folder}: is the base model itself; give another folder")
    if holds_files(folder) and not exists(folder / RECORD):
        raise InputError(f"{folder}: there already, and not an exported model; give another folder")


def saved_parameters(workdir: Place, config: RunConfig, saved: SavedStep, decoder: DecoderConfig) -> Params:
    """The parameters after a step; adapters are merged into the network that they were trained beside."""
    stage = config.warmup if saved.stage == "warmup" else config.score
    lora = None if stage is None else stage.lora
    key = jax.random.key(0)
    if lora is None:
        return checkpoints(workdir, saved.stage).restore_params(saved.step, jax.eval_shape(Decoder(decoder).init, key))
    if saved.stage == "score" and config.warmup is not None:
        base = saved_parameters(workdir, config, warmed_up(workdir, config.warmup), decoder)
    else:
        base = load_pretrained(config.model.base).params
    shapes = jax.eval_shape(partial(init_adapters, lora, decoder), key)
    return merged(lora, base, checkpoints(workdir, saved.stage).restore_params(saved.step, shapes))


def _classifier(base: ModelFolder, params: Params, prompt: Prompt) -> np.ndarray:
    """The row of the second answer in the unembedding less that of the first, float32 [1, D]."""
    if base.config.logit_cap is not None:
        raise InputError(
            f"format=seq-cls: a classifier does not cap its logit (final_logit_softcapping={base.config.logit_cap}), "
            "and would rank otherwise; use format causal"
        )
    if prompt.pieces.tail_ids[-1:] == [prompt.pad_id]:
        raise InputError(
            f"format=seq-cls: the prompt ends with the padding token {prompt.pad_id}, which a classifier overlooks; "
            "use format causal"
        )
    table = params["embedding" if base.config.tied else "unembedding"]
    no, yes = (np.asarray(table[id_], np.float32) for id_ in prompt.answer_ids)
    return (yes - no)[None]


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{name}={value!r}: not known; use {', '.join(known[:-1])} or {known[-1]}")
