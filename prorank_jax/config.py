"""The run configuration: one YAML file, frozen and checked once, before any work starts.

Every field has a default where a sensible one exists, so that a file states only what it changes.
Unknown keys are refused with the nearest right one. `key=value` overrides reach any field by its
dotted path (`warmup.steps=50`), and are read as YAML.
"""

import difflib
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator

from prorank_jax.errors import InputError

Positive = Annotated[int, Field(ge=1)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Order = Literal["query_first", "document_first"]
Reward = Literal["format", "relevance"]
Loss = Literal["bce", "mse", "margin_mse", "ranknet", "listwise_softmax", "list_mle", "lambda_loss"]
POINTWISE: tuple[Loss, ...] = ("bce", "mse")
"""Losses that learn from a document alone."""
GAINS: tuple[Loss, ...] = ("bce", "listwise_softmax", "lambda_loss")
"""Losses of labels that are 0 or more."""
Matrix = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Section(BaseModel):
    """A frozen mapping that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    """The base model and how it is computed."""

    base: str
    """Hugging Face folder or hub id, or `builtin:tiny` for the demo's own base."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; parameters and optimizer state stay float32."""
    remat: Literal["none", "dots", "full"] = "dots"
    """What the backward pass computes again: `none` is nothing; `dots` all but the results of linear maps; `full`
    whole layers, for the least memory and a third more time."""


class PromptConfig(Section):
    """How a query and a document become a prompt."""

    max_length: Annotated[int, Field(ge=16)] = 512
    """Tokens of a whole prompt; documents are cut to fit."""
    instruction: str | None = None
    """Replaces the default task statement (the `system` role)."""
    order: Order | None = None
    """What the prompt shows first; default: the template's own order, the query in the one that we make."""
    template: str | None = None
    """Path of a Jinja template with the roles `query` and `document`; default: made from the
    tokenizer's own chat template."""
    answers: tuple[str, str] | None = None
    """The answers for "not relevant" and "relevant"; each must be one token. Default: those of a base that is a
    reranker already, else "0" and "1"."""

    @model_validator(mode="after")
    def _check(self) -> "PromptConfig":
        if self.answers and self.answers[0] == self.answers[1]:
            raise ValueError(f"answers={list(self.answers)}: both answers are the same; give two different ones")
        return self


class SourceConfig(Section):
    """One source of training data."""

    path: str
    """A BEIR folder (corpus.jsonl, queries.jsonl, qrels/<split>.tsv); files of rows (.jsonl, .jsonl.gz, .parquet):
    one, a folder or a pattern of them, or hf://datasets/OWNER/NAME/PATTERN; or a folder that was prepared of such.
    A relative path is taken from the working directory."""
    target: Literal["label", "score", "sigmoid", "softmax"] = "label"
    """What the ranking loss learns: `label`; or a teacher's `score` as it is, as a probability by itself (`sigmoid`),
    or among the documents of the group (`softmax`)."""
    weight: Rate = 1.0
    """Share of the groups, in proportion to the weights of the other sources."""
    split: str = "train"
    """The judgements; this and what follows is for BEIR folders."""
    candidates: str = "bm25"
    """Where hard negatives come from: `bm25`, or the path of a TREC run."""
    depth: Positive = 100
    """Candidates kept per query."""
    relevant_from: Positive = 1
    """The lowest judgement that counts as relevant."""
    found_only: bool = False
    """Train on relevant documents that are among the candidates only: on what a reranker will see."""
    random_negatives: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the negatives that come from the whole corpus and not from the candidates."""


class DataConfig(SourceConfig):
    """The training data: a source, and what is mixed with it."""

    mix: tuple[SourceConfig, ...] = ()
    """Further sources."""
    workers: Positive = 2
    """Threads that make batches ahead; the batches are the same for any number."""
    cache: str | None = None
    """Folder for prepared files of rows; default: `data` in the run folder."""


class OptimizerConfig(Section):
    """AdamW with linear warm-up, then cosine decay to a tenth."""

    learning_rate: Rate = 1e-5
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Share of the steps in which the learning rate rises."""
    weight_decay: NonNegative = 0.0
    max_grad_norm: Rate = 1.0


class LoraConfig(Section):
    """Low-rank adapters (arXiv 2106.09685): `W + alpha / rank * A B`, of which only A and B learn."""

    rank: Positive = 16
    alpha: Rate = 32.0
    targets: Annotated[tuple[Matrix, ...], Field(min_length=1)] = get_args(Matrix)
    """The matrices of every layer that get adapters, by their names in Hugging Face checkpoints."""


class StageConfig(Section):
    """What all stages have in common."""

    steps: Positive
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoraConfig | None = None
    """Left out: all parameters learn. Adapters are merged into the model when the stage ends."""
    log_every: Positive = 10
    """Steps between two rows of metrics.jsonl."""
    checkpoint_every: Positive = 100
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: Positive = 2


class GrpoConfig(StageConfig):
    """Stage one, prompt warmup: GRPO on the answer to the relevance prompt."""

    method: Literal["grpo"] = "grpo"
    prompts_per_step: Positive = 32
    """Prompts in a batch, over all devices; half of them relevant."""
    group_size: Annotated[int, Field(ge=1)] = 8
    """Completions sampled for each prompt."""
    max_new_tokens: Annotated[int, Field(ge=0)] = 4
    """Tokens of a completion at most."""
    temperature: Rate = 1.0
    """Of the rollouts, and of the log-probabilities that are learnt from."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from the k likeliest tokens only; 0 draws from all. Log-probabilities are those of all tokens."""
    iterations: Positive = 1
    """Updates from the same rollouts; from the second on the ratio of new to old probability is not 1."""
    accumulation: Positive = 1
    """Parts that a step's prompts are computed in, one after the other: less memory, the same update."""
    beta: NonNegative = 0.0
    """Weight of the KL divergence to the base model; 0 leaves the reference pass out."""
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    clip_high: Rate = 0.2
    advantage: Literal["group_std", "group_mean"] = "group_std"
    """`group_std` divides the centred reward by the group's standard deviation, `group_mean` does not."""
    loss_average: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    """What every part of the loss counts for: `grpo` gives each completion the same weight, `dapo` each token of
    the batch, `dr_grpo` each token over the most there could be."""
    mask_truncated: bool = False
    """Learn nothing from completions that did not end within `max_new_tokens`."""
    rewards: Mapping[str, NonNegative] = {"format": 1.0, "relevance": 1.0}
    """Weight of each reward: `format`, `relevance`, or a function of one's own as `module:function`."""
    show_completions_every: Annotated[int, Field(ge=0)] = 50
    """Steps between two looks at some completions, which are kept in completions.jsonl; 0 shows none."""

    @model_validator(mode="after")
    def _check(self) -> "GrpoConfig":
        if self.group_size < 2:
            raise ValueError(f"group_size={self.group_size}: a group of one has no advantage; use 2 or more")
        if self.max_new_tokens < 2:
            raise ValueError(
                f"max_new_tokens={self.max_new_tokens}: an answer is a digit and the end of the turn; use 2 or more"
            )
        for name in self.rewards:
            if name not in get_args(Reward) and ":" not in name:
                near = difflib.get_close_matches(name, get_args(Reward), n=1, cutoff=0.5)
                remedy = f"did you mean {near[0]!r}?" if near else "format and relevance are built in"
                raise ValueError(f"rewards.{name}: unknown reward; {remedy}; your own is written module:function")
        names = [name.rpartition(":")[2] for name in self.rewards]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"rewards: two are called {twice!r} and would share a metric; rename one of the functions")
        if self.prompts_per_step % self.accumulation:
            raise ValueError(
                f"accumulation={self.accumulation}: does not divide prompts_per_step={self.prompts_per_step}; "
                "use a divisor of it"
            )
        if not sum(self.rewards.values()) > 0:
            raise ValueError(f"rewards={dict(self.rewards)}: the weights sum to nothing; give one of them a weight")
        return self


class SupervisedConfig(StageConfig):
    """Stage one the plain way, to compare with: cross-entropy of the right answer to the relevance prompt."""

    method: Literal["supervised"]
    prompts_per_step: Positive = 32
    """Prompts in a batch, over all devices; half of them relevant."""


def _method(section: Any) -> str:
    method = section.get("method", "grpo") if isinstance(section, Mapping) else getattr(section, "method", "grpo")
    return str(method)


WarmupConfig = Annotated[
    Annotated[GrpoConfig, Tag("grpo")] | Annotated[SupervisedConfig, Tag("supervised")], Discriminator(_method)
]


class DevConfig(Section):
    """Queries held out of training, on which a stage is measured while it goes on."""

    path: str | None = None
    """A BEIR folder; default: that of the training data."""
    split: str = "dev"
    candidates: str = "bm25"
    """The first stage: `bm25`, or the path of a TREC run."""
    depth: Positive = 30
    """Candidates reranked per query."""
    queries: Positive | None = 100
    """Queries measured, drawn once at random; null takes all."""
    every: Positive = 50
    """Steps between two measurements, each of which saves a checkpoint."""
    patience: Positive | None = None
    """The stage ends after so many measurements without a new best one; null goes on to the last step."""


def _weighted(losses: Any) -> Any:
    """One loss as a mapping of its name to a weight of 1."""
    losses = {losses: 1.0} if isinstance(losses, str) else losses
    for name in losses if isinstance(losses, Mapping) else ():
        if name not in get_args(Loss):
            near = difflib.get_close_matches(str(name), get_args(Loss), n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(get_args(Loss))}"
            raise ValueError(f"{name}: unknown loss; {remedy}")
    return losses


class ScoreConfig(StageConfig):
    """Stage two: a ranking loss on the difference of two token logits."""

    loss: Annotated[Mapping[Loss, Rate], BeforeValidator(_weighted)] = {"listwise_softmax": 1.0}
    """A ranking loss by its name, or several with their weights, of which the sum is learnt."""
    temperature: Rate = 1.0
    """Divides the scores in `listwise_softmax`."""
    queries_per_step: Positive = 16
    """Queries in a batch, over all devices."""
    documents_per_query: Positive = 8
    """Documents in a group: one positive, and negatives. 1 learns from single pairs, with `bce` and `mse`."""
    accumulation: Positive = 1
    """Parts that a step's queries are computed in, one after the other: less memory, the same update."""
    anchor: NonNegative = 0.0
    """Weight of the KL divergence to the model that the stage began with, at the answer: over both answers and the
    rest of the vocabulary. 0 leaves that model out."""
    dev: DevConfig | None = None
    """Left out: nothing is measured while the stage goes on, and its last step is its result; else its best one."""

    @model_validator(mode="after")
    def _check(self) -> "ScoreConfig":
        if not self.loss:
            raise ValueError("loss={}: no loss to learn; name one, for example listwise_softmax")
        if self.documents_per_query == 1 and (of_groups := [name for name in self.loss if name not in POINTWISE]):
            raise ValueError(
                f"loss.{of_groups[0]}: compares documents of a query, and documents_per_query is 1; "
                f"use {' or '.join(POINTWISE)}, or 2 documents or more"
            )
        if self.queries_per_step % self.accumulation:
            raise ValueError(
                f"accumulation={self.accumulation}: does not divide queries_per_step={self.queries_per_step}; "
                "use a divisor of it"
            )
        return self


class MeshConfig(Section):
    """Devices: `data` x `fsdp`; -1 means the rest."""

    data: int = -1
    fsdp: int = 1

    @model_validator(mode="after")
    def _check(self) -> "MeshConfig":
        for name, size in (("data", self.data), ("fsdp", self.fsdp)):
            if size != -1 and size < 1:
                raise ValueError(f"{name}={size}: a mesh axis has 1 or more devices, or -1 for the rest")
        if self.data == -1 and self.fsdp == -1:
            raise ValueError("data=-1, fsdp=-1: only one axis can take the rest; give the other a number")
        return self


class RunConfig(Section):
    """A whole run: base model, data, and the stages that it goes through."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    model: ModelConfig
    prompt: PromptConfig = PromptConfig()
    data: DataConfig
    warmup: WarmupConfig | None = None
    """Left out: the stage is skipped."""
    score: ScoreConfig | None = None
    """Left out: the stage is skipped."""
    mesh: MeshConfig = MeshConfig()

    @model_validator(mode="after")
    def _check(self) -> "RunConfig":
        if self.warmup is None and self.score is None:
            raise ValueError("no stage to run; give the file a `warmup:` or a `score:` section")
        of_gains = [name for name in (self.score.loss if self.score else ()) if name in GAINS]
        if of_gains and any(source.target == "score" for source in (self.data, *self.data.mix)):
            raise ValueError(
                f"score.loss.{of_gains[0]}: learns labels of 0 or more, and data.target=score gives a teacher's raw "
                "scores; use data.target=sigmoid or softmax, or mse, margin_mse, ranknet or list_mle"
            )
        return self


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Reads a YAML file and `key=value` overrides into a checked configuration.

    Raises:
      InputError: the file is missing or not YAML, a key is unknown, a value is out of range.
    """
    path = Path(path)
    try:
        tree = _parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the path of a YAML file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InputError(f"{path}{line}: not valid YAML ({error.problem}); mend that line") from None
    except yaml.reader.ReaderError as error:
        raise InputError(f"{path}: character {error.position} is U+{error.character:04X}; remove it") from None
    except ValueError as error:
        raise InputError(f"{path}: a value that looks like a date is none ({error}); quote it") from None
    if not isinstance(tree, dict):
        kind = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise InputError(f"{path}: holds {kind}, not a mapping; write `section:` lines of `key: value`")
    for override in overrides:
        _override(tree, override)
    return parse_config(tree, source=str(path))


def parse_config(tree: Mapping[str, Any], source: str = "config") -> RunConfig:
    """Checks a plain mapping and returns the configuration.

    Raises:
      InputError: names `source`, the dotted field, its value and the remedy.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"{source}: {_first_problem(error)}") from None


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML, every field written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(left: RunConfig, right: RunConfig) -> list[str]:
    """One line `section.key: old -> new` per field in which two configurations differ."""
    old, new = _flatten(left.model_dump(mode="json")), _flatten(right.model_dump(mode="json"))
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in [*old, *(key for key in new if key not in old)]
        if old.get(key) != new.get(key)
    ]


class _Loader(yaml.SafeLoader):
    """YAML's safe subset, less the repeated keys: YAML would silently keep only the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} stands twice"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"{override!r}: an override is written key=value, for example warmup.steps=50")
    try:
        value = _parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise InputError(f"{override!r}: the value is not valid YAML; quote it") from None
    *sections, name = key.split(".")
    for section in sections:
        node = tree.get(section)
        if node is None:
            node = tree[section] = {}
        if not isinstance(node, dict):
            raise InputError(f"{override!r}: {section} is a value, not a section; name an existing field")
        tree = node
    tree[name] = value


def _first_problem(error: ValidationError) -> str:
    # An unknown key explains the "missing" errors that come with it, so it is told first, and
    # what is there but wrong before what is not there.
    rank = {"extra_forbidden": 0, "invalid_key": 0, "missing": 2}
    problem = min(error.errors(), key=lambda problem: rank.get(problem["type"], 1))
    location, kind, value = problem["loc"], problem["type"], problem["input"]
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown_key(location, _fields_at(location[:-1]))
    place = _dotted(location)
    if kind == "union_tag_invalid":
        return f"{place}.method={_method(value)!r}: no way to warm up; use grpo or supervised"
    if kind == "missing":
        return f"{place}: missing; this field has no default"
    if kind == "model_type":
        return f"{place}={value!r}: a section, not a value; write its fields as `key: value` lines below it"
    if kind == "value_error":
        detail = str(problem["ctx"]["error"])
        return f"{place}.{detail}" if place else detail
    remedy = "; put it in quotes" if kind == "string_type" else ""
    return f"{place}={value!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}{remedy}"


def _unknown_key(location: tuple[str | int, ...], known: list[str]) -> str:
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
    return f"{_dotted(location)}: unknown key; {remedy}"


def _dotted(location: tuple[str | int, ...]) -> str:
    """A location as the file's writer knows it: without the tag of the method that pydantic puts behind `warmup`."""
    tagged = location[:1] == ("warmup",) and location[1:2] in (("grpo",), ("supervised",))
    return ".".join(str(part) for part in (location[:1] + location[2:] if tagged else location))


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for part in location:
        if part in ("grpo", "supervised"):
            section = GrpoConfig if part == "grpo" else SupervisedConfig
            continue
        if isinstance(part, int):  # of several sections of one kind
            continue
        annotation = section.model_fields[str(part)].annotation
        section = next(iter(_sections(annotation)), section)
    return list(section.model_fields)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections among the choices that an annotation leaves."""
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for choice in get_args(annotation) for section in _sections(choice)]
