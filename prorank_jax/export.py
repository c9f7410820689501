"""Writes the model folder that other tools load: weights, tokenizer, prompt, and how to read the score.

`transformers.AutoModelForCausalLM` reads the weights; `sentence_transformers.CrossEncoder(folder)` gives our scores,
since the folder names the prompt's template, the two answer tokens and the identity as activation; `Reranker` reads the
same files back. A folder appears whole or not at all.
"""

import json
import shutil
from pathlib import Path

from prorank_jax.cross_encoder import causal_files
from prorank_jax.model.decoder import Params
from prorank_jax.model.hf import Pretrained, save_pretrained
from prorank_jax.prompt import Prompt, load_tokenizer


def export_model(folder: Path, base: Pretrained, params: Params, prompt: Prompt) -> None:
    """Writes `params`, trained from `base`, with its prompt; what stood in `folder` is replaced."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_pretrained(unfinished, params, base.config, base.hf_config)
    tokenizer = load_tokenizer(base.folder)
    tokenizer.chat_template = prompt.template
    tokenizer.model_max_length = prompt.max_length
    # transformers saves the attribute only where the tokenizer was made with it.
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = "left"
    tokenizer.save_pretrained(unfinished)
    generation = {"eos_token_id": prompt.end_id, "pad_token_id": prompt.pad_id, "do_sample": False}
    for name, content in {"generation_config.json": generation, **causal_files(prompt.answer_ids)}.items():
        path = unfinished / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)
