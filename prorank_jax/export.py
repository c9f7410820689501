"""Writes the model folder that other tools load: weights, tokenizer, prompt, and how to read the score.

`transformers.AutoModelForCausalLM` reads the weights; `sentence_transformers.CrossEncoder(folder)` gives our scores,
since the folder names the prompt's template, the two answer tokens and the identity as activation; `Reranker` reads the
same files back. A folder appears whole or not at all.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from prorank_jax.model.decoder import Params
from prorank_jax.model.hf import Pretrained, save_pretrained
from prorank_jax.prompt import Prompt, load_tokenizer

LOGIT_SCORE = "1_LogitScore"


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
    for name, content in _sentence_transformers_files(prompt).items():
        path = unfinished / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def _sentence_transformers_files(prompt: Prompt) -> dict[str, Any]:
    no_id, yes_id = prompt.answer_ids
    modality = {"method": "forward", "method_output_name": "logits"}
    return {
        "generation_config.json": {"eos_token_id": prompt.end_id, "pad_token_id": prompt.pad_id, "do_sample": False},
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
            {
                "idx": 1,
                "name": "1",
                "path": LOGIT_SCORE,
                "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
            },
        ],
        f"{LOGIT_SCORE}/config.json": {
            "true_token_id": yes_id,
            "false_token_id": no_id,
            "module_input_name": "causal_logits",
        },
        "sentence_bert_config.json": {
            "transformer_task": "text-generation",
            "modality_config": {"text": modality, "message": {**modality, "format": "flat"}},
            "module_output_name": "causal_logits",
        },
        "config_sentence_transformers.json": {
            "model_type": "CrossEncoder",
            "prompts": {},
            "default_prompt_name": None,
            "activation_fn": "torch.nn.modules.linear.Identity",
            "requirements": {
                "sentence-transformers": {"specifier": ">=5.6", "reason": "scores are read from causal logits"}
            },
        },
    }
