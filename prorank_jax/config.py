"""The run configuration: every field with its unit, its default and what is refused, frozen and checked once.

Every field has a default where a sensible one exists, so that a file states only what it changes; how it is read
from one is in `config_file.py`.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

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
RowField = Literal[
    "query",
    "instruction",
    "document",
    "label",
    "score",
    "pos",
    "neg",
    "pos_scores",
    "neg_scores",
    "documents",
    "labels",
    "scores",
]
"""Fields of a row of training data."""
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


def _named(names: Any, known: tuple[str, ...], what: str) -> Any:
    """The mapping itself, of which every key is known."""
    for name in names if isinstance(names, Mapping) else ():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
            raise ValueError(f"{name}: unknown {what}; {remedy}")
    return names


def _of_rows(fields: Any) -> Any:
    """The fields of rows by our names."""
    return _named(fields, get_args(RowField), "field of a row")


class SourceConfig(Section):
    """One source of training data."""

    path: str
    """A collection: its name as beir/scifact, a BEIR folder (corpus.jsonl, queries.jsonl, qrels/<split>.tsv) or a zip
    of one; files of rows (.jsonl, .jsonl.gz, .parquet):
    one, a folder or a pattern of them, or hf://datasets/OWNER/NAME/PATTERN; or a folder that was prepared of such.
    Any of these may lie in a bucket, gs://BUCKET/... A relative path is taken from the working directory."""
    target: Literal["label", "score", "sigmoid", "softmax"] = "label"
    """What the ranking loss learns: `label`; or a teacher's `score` as it is, as a probability by itself (`sigmoid`),
    or among the documents of the group (`softmax`)."""
    weight: Rate = 1.0
    """Share of the groups, in proportion to the weights of the other sources."""
    fields: Annotated[Mapping[str, Annotated[str, Field(min_length=1)]], BeforeValidator(_of_rows)] = {}
    """Of rows under other names: the fields that they have, such as `query: question` or `query: query.text`; rows as
    well-known trainers have them need none."""
    random_negatives: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the negatives that come from anywhere: of a collection from the whole corpus and not from the
    candidates, of rows from the documents of other rows."""
    split: str = "train"
    """The judgements; this and what follows is for collections."""
    candidates: str = "bm25"
    """Where hard negatives come from: `bm25`, or a TREC or ranx run, by its file or its name."""
    depth: Positive = 100
    """Candidates kept per query."""
    relevant_from: Positive = 1
    """The lowest judgement that counts as relevant."""
    found_only: bool = False
    """Train on relevant documents that are among the candidates only: on what a reranker will see."""


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
    """The newest ones; the best one is kept besides, where some were measured."""

    @property
    def reads_base(self) -> bool:
        """Whether the parameters that the stage began with are read to its end."""
        return self.lora is not None


class DevConfig(Section):
    """Queries held out of training, on which a stage is measured while it goes on."""

    path: str | None = None
    """A collection; default: that of the training data."""
    split: str = "dev"
    candidates: str = "bm25"
    """The first stage: `bm25`, or a TREC or ranx run, by its file or its name."""
    depth: Positive = 30
    """Candidates reranked per query."""
    queries: Positive | None = 100
    """Queries measured, drawn once at random; null takes all."""
    every: Positive = 50
    """Steps between two measurements, each of which saves a checkpoint."""
    patience: Positive | None = None
    """The stage ends after so many measurements without a new best one; null goes on to the last step."""


class WarmupDevConfig(DevConfig):
    """Queries held out of training, on which a warmup is measured while it goes on; the best model by `dev/accuracy` is
    its result."""

    relevant_from: Positive = 1
    """The lowest judgement that counts as relevant."""
    pairs: Annotated[int, Field(ge=2)] = 256
    """Prompts whose answers are judged: of a query a relevant document and one that is not."""
    ndcg: bool = True
    """Whether the queries' candidates are reranked as well, for `dev/ndcg@10`."""


class WarmupStageConfig(StageConfig):
    """Stage one, whatever its method."""

    prompts_per_step: Positive = 32
    """Prompts in a batch, over all devices; half of them relevant."""
    dev: WarmupDevConfig | None = None
    """Left out: nothing is measured while the stage goes on, and its last step is its result; else its best one. A
    stage that settles on one answer ends there."""


class PolicyConfig(WarmupStageConfig):
    """What GRPO and its limit for ever larger groups have in common: rewards, and what is learnt from them."""

    matched: bool = True
    """Whether the two prompts that lie side by side in a batch, a relevant one and another, ask the same query."""
    iterations: Positive = 1
    """Updates from the same rollouts; from the second on the ratio of new to old probability is not 1."""
    accumulation: Positive = 1
    """Parts that a step's prompts are computed in, one after the other: less memory, the same update."""
    beta: NonNegative = 0.0
    """Weight of the KL divergence to the base model; 0 leaves the reference pass out."""
    balanced: bool = False
    """The reference gives both answers their mean probability: it says nothing of which is right. Only with beta."""
    clip_low: Annotated[float, Field(gt=0, le=1)] = 0.2
    clip_high: Rate = 0.2
    max_kl: Rate | None = 30.0
    """The run ends where the KL divergence to the base model, over ten rows of metrics, is more nats than this; null:
    never. Only with beta."""
    entropy: NonNegative = 0.0
    """Weight of a bonus for the entropy of the choice between the two answers."""
    rewards: Mapping[str, NonNegative] = {"format": 1.0, "relevance": 1.0}
    """Weight of each reward: `format`, `relevance`, or a function of one's own as `module:function`."""

    @property
    def reads_base(self) -> bool:
        return super().reads_base or self.beta > 0

    @model_validator(mode="after")
    def _check_policy(self) -> "PolicyConfig":
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
        if self.balanced and not self.beta:
            raise ValueError("balanced=true: is of the reference, which beta=0 leaves out; give beta a weight")
        return self


class GrpoConfig(PolicyConfig):
    """Stage one, prompt warmup: GRPO on the answer to the relevance prompt."""

    method: Literal["grpo"] = "grpo"
    group_size: Annotated[int, Field(ge=1)] = 8
    """Completions sampled for each prompt."""
    max_new_tokens: Annotated[int, Field(ge=0)] = 4
    """Tokens of a completion at most."""
    temperature: Rate = 1.0
    """Of the rollouts, and of the log-probabilities that are learnt from."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Draw from the k likeliest tokens only; 0 draws from all. Log-probabilities are those of all tokens."""
    oversampling: Positive = 1
    """Times as many prompts as are learnt from get completions; those whose completions earn different rewards are
    learnt from first (DAPO's dynamic sampling)."""
    advantage: Literal["group_std", "group_mean", "batch_std", "batch_mean"] = "group_std"
    """What is taken from the reward, the mean of the group or of the whole batch; `_std` divides by the standard
    deviation of the same, `_mean` does not."""
    loss_average: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    """What every part of the loss counts for: `grpo` gives each completion the same weight, `dapo` each token of
    the batch, `dr_grpo` each token over the most there could be."""
    mask_truncated: bool = False
    """Learn nothing from completions that did not end within `max_new_tokens`."""
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
        return self


class ExpectedConfig(PolicyConfig):
    """Stage one by the limit of GRPO for ever larger groups, computed exactly: both answers, and all else as one."""

    method: Literal["expected"]
    advantage: Literal["group_std", "group_mean"] = "group_mean"
    """`group_std` divides the centred reward by the standard deviation that the policy gives it, `group_mean` does
    not."""
    entropy: NonNegative = 0.2
    """As with GRPO. With this bonus and `group_mean` SmolLM2-135M keeps both answers until it can tell them apart."""


class SupervisedConfig(WarmupStageConfig):
    """Stage one the plain way, to compare with: cross-entropy of the right answer to the relevance prompt."""

    method: Literal["supervised"]
    max_loss_growth: Rate | None = 10.0
    """As of score."""


def warmup_method(section: Any) -> str:
    """The method that a warmup section names, checked or not."""
    method = section.get("method", "grpo") if isinstance(section, Mapping) else getattr(section, "method", "grpo")
    return str(method)


WARMUPS: dict[str, type[StageConfig]] = {
    "grpo": GrpoConfig,
    "expected": ExpectedConfig,
    "supervised": SupervisedConfig,
}
"""The section of each method."""
WarmupConfig = Annotated[
    Annotated[GrpoConfig, Tag("grpo")]
    | Annotated[ExpectedConfig, Tag("expected")]
    | Annotated[SupervisedConfig, Tag("supervised")],
    Discriminator(warmup_method),
]


def _weighted(losses: Any) -> Any:
    """One loss as a mapping of its name to a weight of 1."""
    return _named({losses: 1.0} if isinstance(losses, str) else losses, get_args(Loss), "loss")


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
    max_loss_growth: Rate | None = 10.0
    """The run ends where the loss, over ten rows of metrics, is this many times the largest of the first ten rows;
    null: never."""
    anchor: NonNegative = 0.0
    """Weight of the KL divergence to the model that the stage began with, at the answer: over both answers and the
    rest of the vocabulary. 0 leaves that model out."""
    dev: DevConfig | None = None
    """Left out: nothing is measured while the stage goes on, and its last step is its result; else its best one."""

    @property
    def reads_base(self) -> bool:
        return super().reads_base or self.anchor > 0

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
