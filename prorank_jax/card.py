"""The model card: `README.md` of an exported folder, written from what is known of the model (`prorank.json`).

A measurement is kept in the folder that was measured. So a card never shows the figures of other weights.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from prorank_jax import __version__
from prorank_jax.config import RunConfig
from prorank_jax.errors import InputError
from prorank_jax.json_text import parse_json
from prorank_jax.prompt import Prompt
from prorank_jax.storage import Place, exists, fetched, in_bucket, write_text
from prorank_jax.templates import DOCUMENT, PAIR, QUERY, render

RECORD = "prorank.json"
CARD = "README.md"
Figures = dict[str, Any]
"""What `evaluate` writes to `metrics.json`."""


@dataclass(frozen=True)
class Record:
    """What is known of an exported model.

    Attributes:
      base: hub id or name of the model that it was trained from.
      kind: `causal`, or `seq-cls` for a classifier of one label.
      stage, step: how far it was trained; None where it is exported as it was imported.
      configuration: of the run, without the paths of the machine.
      measured: one entry for each collection.
    """

    base: str
    kind: str = "causal"
    stage: str | None = None
    step: int | None = None
    configuration: dict[str, Any] | None = None
    measured: tuple[Figures, ...] = ()
    version: str = __version__


def run_record(config: RunConfig, stage: str, step: int) -> Record:
    """The record of a model that a run trained."""
    configuration = config.model_dump(mode="json")
    data, dev = configuration["data"], (configuration["score"] or {}).get("dev") or {}
    named = [(configuration["model"], "base"), (configuration["prompt"], "template"), (data, "cache")]
    named += [(source, field) for source in (data, *data["mix"], dev) for field in ("path", "candidates")]
    for section, field in named:
        if section.get(field):
            section[field] = public_name(section[field])
    return Record(configuration["model"]["base"], stage=stage, step=step, configuration=configuration)


def public_name(source: str) -> str:
    """A hub id or a builtin as it is; of a path or a URL of a bucket, which are nobody else's, the last part."""
    path = Path(source)
    if in_bucket(source):
        return path.name
    return path.resolve().name if path.exists() or path.is_absolute() or source.startswith((".", "~")) else source


def read_record(folder: Place) -> Record | None:
    """The record of an exported folder; None where it has none.

    Raises:
      InputError: it is damaged.
    """
    path = folder / RECORD
    if not exists(path):
        return None
    try:
        content = parse_json(Path(fetched(path)).read_text(encoding="utf-8"))
        return Record(**(content | {"measured": tuple(content["measured"])}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not what prorank export writes ({error}); export the model again") from None


def write_record(folder: Place, record: Record, prompt: Prompt) -> None:
    """Writes `prorank.json` and `README.md`."""
    write_text(folder / RECORD, json.dumps(asdict(record), indent=2, ensure_ascii=False) + "\n")
    write_text(folder / CARD, model_card(record, prompt))


def add_measurement(folder: Place, figures: Figures, prompt: Prompt) -> None:
    """Adds the figures of a collection to an exported folder and its card; those of the same protocol are replaced.

    Nothing is added to a folder that is not an export or cannot be written, and no figures without nDCG@10, which is
    what the card shows.
    """
    record = read_record(folder)
    if record is None or "ndcg@10" not in figures["metrics"]:
        return
    protocol = figures["protocol"]
    figures = figures | {"protocol": protocol | {"first_stage": public_name(protocol["first_stage"])}}
    # What was measured may have been cut shorter than what the folder is made for.
    prompt = replace(prompt, max_length=prompt.tokenizer.model_max_length)
    kept = [known for known in record.measured if known["protocol"] != figures["protocol"]]
    with suppress(OSError, InputError):  # the figures are in metrics.json as well
        write_record(folder, replace(record, measured=(*kept, figures)), prompt)


def model_card(record: Record, prompt: Prompt) -> str:
    """The card as Markdown, with the metadata that the Hugging Face hub reads."""
    metadata: dict[str, Any] = {
        "pipeline_tag": "text-ranking",
        "library_name": "sentence-transformers",
        "tags": ["reranker", "cross-encoder", "prorank"],
    }
    if record.base.count("/") == 1:
        metadata["base_model"] = record.base
    no, yes = prompt.answers
    wording = render(prompt.template, PAIR, prompt.tokenizer).replace(QUERY, "{query}").replace(DOCUMENT, "{document}")
    score = (
        f"the logit of `{yes}` less that of `{no}` at the answer's place"
        if record.kind == "causal"
        else f"the only logit of a classifier, which is the difference of the logits of `{yes}` and `{no}`"
    )
    return "\n".join(
        [
            "---",
            yaml.safe_dump(metadata, sort_keys=False).rstrip(),
            "---",
            "",
            f"# A reranker made from {record.base}",
            "",
            f"The score of a query and a document is {score}; higher is more relevant. Made with prorank_jax",
            f"{record.version}, after ProRank (arXiv 2506.03487).",
            "",
            "## Measured",
            "",
            *_measured(record),
            "",
            "## Use",
            "",
            *_usage(record, prompt),
            "",
            "## Prompt",
            "",
            "```text",
            wording,
            "```",
            "",
            f"A prompt has at most {prompt.max_length} tokens, of which a query takes up to three quarters of what",
            "the template leaves; documents are cut to fit. prorank_jax reads what a query or a document says as",
            "plain text, also where it spells control tokens; tools that tokenise the rendered template do not.",
            "",
            "A tool that doesn't render `chat_template.jinja` sends the model raw pairs, and its scores have another",
            'order: AnswerDotAI `rerankers` with this folder is one. Its `model_type="cohere"` with the `url` of',
            "`prorank serve FOLDER` works.",
            *_order_note(prompt),
            "",
            "## Training",
            "",
            *_training(record),
            "",
        ]
    )


def _order_note(prompt: Prompt) -> list[str]:
    if not prompt.pieces.document_first:
        return []
    return [
        "The document comes first: where a prompt is too long, those tools cut the query away, so shorten documents."
    ]


def _measured(record: Record) -> list[str]:
    if not record.measured:
        return ["Not measured yet: `prorank evaluate FOLDER --data COLLECTION` measures it and fills this table."]
    rows = [
        "| collection | queries | first stage | depth | tokens | dtype | nDCG@10 first stage | nDCG@10 reranked |",
        "|------------|--------:|-------------|------:|-------:|-------|--------------------:|-----------------:|",
    ]
    for figures in record.measured:
        protocol = figures["protocol"]
        cells = [
            f"{protocol['collection']} {protocol['split']}",
            protocol["queries"],
            protocol["first_stage"],
            protocol["depth"],
            protocol["max_length"],
            protocol["dtype"],
            f"{figures['first_stage']['ndcg@10']:.4f}",
            f"**{figures['metrics']['ndcg@10']:.4f}**",
        ]
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return [
        *rows,
        "",
        "Ties are broken by first-stage rank; a document whose id is the query's is left out; judged queries without",
        "candidates count 0.",
    ]


def _training(record: Record) -> list[str]:
    if record.configuration is None:
        return ["Exported as it was imported."]
    told = {name: value for name, value in record.configuration.items() if value is not None}
    return [
        f"Step {record.step} of `{record.stage}`. The configuration of the run:",
        "",
        "```yaml",
        yaml.safe_dump(told, sort_keys=False, allow_unicode=True).rstrip(),
        "```",
    ]


def _usage(record: Record, prompt: Prompt) -> list[str]:
    no_id, yes_id = prompt.answer_ids
    sentence_transformers = """from sentence_transformers import CrossEncoder

model = CrossEncoder("FOLDER")
scores = model.predict([("a query", "a document"), ("a query", "another document")])"""
    messages = """tokenizer = AutoTokenizer.from_pretrained("FOLDER")
messages = [{"role": "query", "content": "a query"}, {"role": "document", "content": "a document"}]
inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)"""
    causal = f"""from transformers import AutoModelForCausalLM, AutoTokenizer

{messages}
logits = AutoModelForCausalLM.from_pretrained("FOLDER")(**inputs).logits[0, -1]
score = (logits[{yes_id}] - logits[{no_id}]).item()"""
    classifier = f"""from transformers import AutoModelForSequenceClassification, AutoTokenizer

{messages}
score = AutoModelForSequenceClassification.from_pretrained("FOLDER")(**inputs).logits.item()"""
    prorank = """from prorank_jax import Reranker

reranker = Reranker.from_pretrained("FOLDER")
for hit in reranker.rank("a query", ["a document", "another document"]):
    print(hit.score, hit.document)"""
    vllm = "vllm serve FOLDER --runner pooling --chat-template FOLDER/chat_template.jinja"
    if record.kind == "causal":
        tools = {"sentence-transformers": sentence_transformers, "transformers": causal, "prorank_jax": prorank}
    else:
        tools = {"sentence-transformers": sentence_transformers, "transformers": classifier}
    lines = []
    for name, code in tools.items():
        lines += [f"With {name}:", "", "```python", code, "```", ""]
    if record.kind == "seq-cls":
        # Not run by anybody here, so the card says where it is from.
        lines += ["With vLLM (after its documentation), then `POST /score`:", "", "```bash", vllm, "```", ""]
    return lines[:-1]
