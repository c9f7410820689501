"""The files by which sentence-transformers' CrossEncoder knows a reranker: written into ours, read in those of others.

A causal reranker is a chain of two modules: a language model, and a `LogitScore` that names the tokens of the two
answers. A classifier is one module, whose only output is the score.
"""

from pathlib import Path
from typing import Any

from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json

LOGIT_SCORE = "1_LogitScore"
_TRANSFORMER = "sentence_transformers.base.modules.transformer.Transformer"
_LOGIT_SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"


def causal_files(answer_ids: tuple[int, int]) -> dict[str, Any]:
    """Path -> JSON of a reranker that is a language model; the answers are "not relevant" and "relevant"."""
    no_id, yes_id = answer_ids
    return {
        "modules.json": [_module(0, "", _TRANSFORMER), _module(1, LOGIT_SCORE, _LOGIT_SCORE)],
        f"{LOGIT_SCORE}/config.json": {
            "true_token_id": yes_id,
            "false_token_id": no_id,
            "module_input_name": "causal_logits",
        },
        "sentence_bert_config.json": _transformer("text-generation", "causal_logits"),
        "config_sentence_transformers.json": _CROSS_ENCODER,
    }


def classifier_files() -> dict[str, Any]:
    """Path -> JSON of a reranker that is a classifier of one label."""
    return {
        "modules.json": [_module(0, "", _TRANSFORMER)],
        "sentence_bert_config.json": _transformer("sequence-classification", "scores"),
        "config_sentence_transformers.json": _CROSS_ENCODER,
    }


def read_answer_ids(folder: Path) -> tuple[int, int] | None:
    """The tokens of the answers "not relevant" and "relevant" whose logits a folder names as its score.

    Returns:
      None where the folder names none: it is a language model, and not yet a reranker.

    Raises:
      InputError: its files are damaged, or its score is the logit of one token alone.
    """
    modules = folder / "modules.json"
    if not modules.exists():
        return None
    try:
        named = [entry["path"] for entry in _read(modules) if entry["type"].rpartition(".")[2] == "LogitScore"]
    except (KeyError, TypeError, AttributeError):
        raise InputError(f"{modules}: does not list modules with type and path; export the model again") from None
    if not named:
        return None
    head = folder / str(named[0]) / "config.json"
    content = _read(head)
    ids = [content.get(key) for key in ("false_token_id", "true_token_id")] if isinstance(content, dict) else []
    if not ids or not isinstance(ids[1], int):
        raise InputError(f"{head}: does not name true_token_id and false_token_id; export the model again")
    if not isinstance(ids[0], int):
        raise InputError(
            f"{head}: false_token_id={ids[0]!r}: a score that is the logit of one token alone is not supported; "
            "use a reranker with two answer tokens"
        )
    return ids[0], ids[1]


def _read(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); export the model again") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); export the model again") from None


def _module(index: int, path: str, kind: str) -> dict[str, Any]:
    return {"idx": index, "name": str(index), "path": path, "type": kind}


def _transformer(task: str, output: str) -> dict[str, Any]:
    modality = {"method": "forward", "method_output_name": "logits"}
    return {
        "transformer_task": task,
        "modality_config": {"text": modality, "message": {**modality, "format": "flat"}},
        "module_output_name": output,
    }


_CROSS_ENCODER = {
    "model_type": "CrossEncoder",
    "prompts": {},
    "default_prompt_name": None,
    # Without it CrossEncoder puts a sigmoid over the score.
    "activation_fn": "torch.nn.modules.linear.Identity",
    "requirements": {
        "sentence-transformers": {"specifier": ">=5.6", "reason": "pairs reach the model through its chat template"}
    },
}
