"""The configuration: what a file and overrides become, and the one line that refuses bad ones."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from prorank_jax.config import GrpoConfig, LoraConfig, RunConfig, SupervisedConfig
from prorank_jax.config_file import differences, dump_config, load_config, parse_config
from prorank_jax.errors import InputError

FILE = """\
model:
  base: builtin:tiny
data:
  path: beir/scifact
warmup:
  steps: 5
"""


def tree(**sections: Any) -> dict[str, Any]:
    """The configuration of FILE with sections replaced."""
    return {**yaml.safe_load(FILE), **sections}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(FILE)
    return path


def refusal(path: Path, *overrides: str) -> str:
    """The message of a refused file, less the path that it begins with."""
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message.removeprefix(str(path))


def test_a_file_states_only_what_it_changes(path):
    config = load_config(path)
    assert config.model.base == "builtin:tiny"
    assert config.model.remat == "dots"
    # The method is GRPO where none is named.
    assert isinstance(config.warmup, GrpoConfig) and config.warmup.steps == 5
    assert config.warmup.group_size == 8
    assert config.warmup.lora is None
    assert config.warmup.optimizer.learning_rate == 1e-5
    assert config.warmup.rewards == {"format": 1.0, "relevance": 1.0}
    assert config.score is None
    assert config.prompt.answers is None
    assert (config.mesh.data, config.mesh.fsdp) == (-1, 1)
    assert config.seed == 0


def test_a_configuration_is_frozen(path):
    config = load_config(path)
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1


@pytest.mark.parametrize(
    ("override", "value"),
    [
        # YAML reads 1e-4, which has no dot, as a string.
        ("warmup.optimizer.learning_rate=1e-4", 1e-4),
        ("warmup.optimizer.learning_rate=0.5", 0.5),
        ("seed=7", 7),
        ("model.remat=full", "full"),
        ("warmup.mask_truncated=true", True),
        ("warmup.lora.targets=[v_proj, q_proj]", ("v_proj", "q_proj")),
        ("model.base=Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("prompt.answers=['no', 'yes']", ("no", "yes")),
        ("prompt.instruction=a=b", "a=b"),
        ("prompt.instruction=", None),
        ("warmup.rewards.format=0.25", 0.25),
        ("warmup.rewards.brevity:short=0.1", 0.1),
    ],
)
def test_an_override_reaches_any_field(path, override, value):
    found: Any = load_config(path, [override])
    for part in override.split("=")[0].split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value and type(found) is type(value)


def test_overrides_apply_in_order_and_make_or_remove_sections(path):
    config = load_config(path, ["score.steps=3", "score.loss=mse", "score.steps=4", "warmup=null"])
    assert config.warmup is None
    assert config.score is not None and (config.score.steps, config.score.loss) == (4, {"mse": 1.0})


def test_an_override_of_one_reward_leaves_only_that_one(path):
    # As in a file, what is written replaces the default mapping whole.
    warmup = load_config(path, ["warmup.rewards.format=2"]).warmup
    assert isinstance(warmup, GrpoConfig) and warmup.rewards == {"format": 2.0}


def test_the_method_chooses_the_section(path):
    assert load_config(path, ["warmup.method=grpo"]) == load_config(path)
    config = load_config(path, ["warmup.method=supervised", "warmup.prompts_per_step=4"])
    assert config.warmup == SupervisedConfig(steps=5, method="supervised", prompts_per_step=4)
    # A section that is checked already is taken as it is.
    assert parse_config(tree(warmup=config.warmup)) == config


def test_adapters_are_of_every_matrix_unless_told(path):
    config = load_config(path, ["warmup.lora={}", "score.steps=1", "score.lora.rank=2"])
    assert config.warmup is not None and config.score is not None
    every = LoraConfig.model_validate(
        {"targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    )
    assert config.warmup.lora == every.model_copy(update={"rank": 16, "alpha": 32.0})
    assert config.score.lora == every.model_copy(update={"rank": 2, "alpha": 32.0})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "warmup.optimizer.learning_rte=1",
            "warmup.optimizer.learning_rte: unknown key; did you mean 'learning_rate'?",
        ),
        ("wamup.steps=5", "wamup: unknown key; did you mean 'warmup'?"),
        ("mesh.fdsp=2", "mesh.fdsp: unknown key; did you mean 'fsdp'?"),
        ("mesh.zzz=2", "mesh.zzz: unknown key; known here: data, fsdp"),
        ("zzz=2", "zzz: unknown key; known here: seed, model, prompt, data, warmup, score, mesh"),
        ("warmup.stps=1", "warmup.stps: unknown key; did you mean 'steps'?"),
        ("warmup.grup_size=1", "warmup.grup_size: unknown key; did you mean 'group_size'?"),
        # The method's own name is a place in pydantic's locations, not in the file.
        ("warmup.grpo.group_sze=1", "warmup.grpo: unknown key; known here: " + ", ".join(GrpoConfig.model_fields)),
        ("warmup.lora.rnk=1", "warmup.lora.rnk: unknown key; did you mean 'rank'?"),
        ("warmup.lora.zzz=1", "warmup.lora.zzz: unknown key; known here: rank, alpha, targets"),
        ("score.lora.target=[]", "score.lora.target: unknown key; did you mean 'targets'?"),
        (
            "warmup.rewards={relevence: 1}",
            "warmup.rewards.relevence: unknown reward; did you mean 'relevance'?; your own is written module:function",
        ),
        (
            "warmup.rewards={speed: 1}",
            "warmup.rewards.speed: unknown reward; format and relevance are built in; "
            "your own is written module:function",
        ),
        (
            "warmup.rewards={'mine:own': 1, 'format': 1, 'pack.theirs:own': 1}",
            "warmup.rewards: two are called 'own' and would share a metric; rename one of the functions",
        ),
        (
            "warmup.rewards={'format': 1, 'mine:format': 1}",
            "warmup.rewards: two are called 'format' and would share a metric; rename one of the functions",
        ),
        ("warmup.method=foo", "warmup.method='foo': no way to warm up; use grpo, expected, supervised"),
        # A method by another case is another method, and `steps` is not told to be missing.
        ("warmup={method: GRPO}", "warmup.method='GRPO': no way to warm up; use grpo, expected, supervised"),
        ("warmup={method: supervised}", "warmup.steps: missing; this field has no default"),
        ("warmup.lora.rank=0", "warmup.lora.rank=0: input should be greater than or equal to 1"),
        ("warmup.lora.alpha=0", "warmup.lora.alpha=0: input should be greater than 0"),
        (
            "warmup.lora.targets=[q]",
            "warmup.lora.targets.0='q': input should be 'q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', "
            "'up_proj' or 'down_proj'",
        ),
        (
            "warmup.lora.targets=[]",
            "warmup.lora.targets=[]: tuple should have at least 1 item after validation, not 0",
        ),
        (
            "warmup.lora=true",
            "warmup.lora=True: a section, not a value; write its fields as `key: value` lines below it",
        ),
        (
            "warmup.accumulation=5",
            "warmup.accumulation=5: does not divide prompts_per_step=32; use a divisor of it",
        ),
        ("warmup.accumulation=0", "warmup.accumulation=0: input should be greater than or equal to 1"),
        ("warmup.iterations=0", "warmup.iterations=0: input should be greater than or equal to 1"),
        ("warmup.top_k=-1", "warmup.top_k=-1: input should be greater than or equal to 0"),
        ("warmup.loss_average=foo", "warmup.loss_average='foo': input should be 'grpo', 'dr_grpo' or 'dapo'"),
        (
            "warmup.show_completions_every=-1",
            "warmup.show_completions_every=-1: input should be greater than or equal to 0",
        ),
        ("model.remat=true", "model.remat=True: input should be 'none', 'dots' or 'full'"),
        # A section with an unknown key also lacks `steps`; the typing error is the one to tell.
        ("score.stps=9", "score.stps: unknown key; did you mean 'steps'?"),
        (
            "score.loss=foo",
            "score.loss.foo: unknown loss; use one of bce, mse, margin_mse, ranknet, listwise_softmax, list_mle, "
            "lambda_loss",
        ),
        ("score.loss.ranket=1", "score.loss.ranket: unknown loss; did you mean 'ranknet'?"),
        ("score.loss={mse: 0}", "score.loss.mse=0: input should be greater than 0"),
        ("score.dev={evry: 9}", "score.dev.evry: unknown key; did you mean 'every'?"),
        ("score.loss=mse", "score.steps: missing; this field has no default"),
        ("model={}", "model.base: missing; this field has no default"),
        ("warmup=5", "warmup=5: a section, not a value; write its fields as `key: value` lines below it"),
        (
            "mesh=[1, 2]",
            "mesh=[1, 2]: a section, not a value; write its fields as `key: value` lines below it",
        ),
        ("model=null", "model=None: a section, not a value; write its fields as `key: value` lines below it"),
        ("warmup.steps=0", "warmup.steps=0: input should be greater than or equal to 1"),
        (
            "warmup.steps=1.5",
            "warmup.steps=1.5: input should be a valid integer, got a number with a fractional part",
        ),
        (
            "warmup.steps=many",
            "warmup.steps='many': input should be a valid integer, unable to parse string as an integer",
        ),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("seed=2147483648", "seed=2147483648: input should be less than 2147483648"),
        ("prompt.max_length=8", "prompt.max_length=8: input should be greater than or equal to 16"),
        ("model.dtype=float16", "model.dtype='float16': input should be 'float32' or 'bfloat16'"),
        (
            "warmup.optimizer.learning_rate=0",
            "warmup.optimizer.learning_rate=0: input should be greater than 0",
        ),
        ("warmup.beta=.inf", "warmup.beta=inf: input should be a finite number"),
        ("warmup.rewards.format=-1", "warmup.rewards.format=-1: input should be greater than or equal to 0"),
        ("prompt.answers=[0, 1]", "prompt.answers.0=0: input should be a valid string; put it in quotes"),
        (
            "prompt.answers=[no, yes]",
            "prompt.answers.0=False: input should be a valid string; put it in quotes",
        ),
        (
            "prompt.answers=['1', '1']",
            "prompt.answers=['1', '1']: both answers are the same; give two different ones",
        ),
        ("warmup.group_size=1", "warmup.group_size=1: a group of one has no advantage; use 2 or more"),
        (
            "warmup.max_new_tokens=1",
            "warmup.max_new_tokens=1: an answer is a digit and the end of the turn; use 2 or more",
        ),
        (
            "warmup.rewards={}",
            "warmup.rewards={}: the weights sum to nothing; give one of them a weight",
        ),
        (
            "warmup.rewards={format: 0}",
            "warmup.rewards={'format': 0.0}: the weights sum to nothing; give one of them a weight",
        ),
        (
            "warmup.rewards={format: 0, 'my:own': 0}",
            "warmup.rewards={'format': 0.0, 'my:own': 0.0}: the weights sum to nothing; give one of them a weight",
        ),
        ("mesh.data=0", "mesh.data=0: a mesh axis has 1 or more devices, or -1 for the rest"),
        ("mesh.fsdp=-2", "mesh.fsdp=-2: a mesh axis has 1 or more devices, or -1 for the rest"),
        ("mesh.fsdp=-1", "mesh.data=-1, fsdp=-1: only one axis can take the rest; give the other a number"),
        ("warmup=null", "no stage to run; give the file a `warmup:` or a `score:` section"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(path, override, message):
    assert refusal(path, override) == f": {message}"


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ({"loss": {}}, "score.loss={}: no loss to learn; name one, for example listwise_softmax"),
        (
            {"documents_per_query": 1},
            "score.loss.listwise_softmax: compares documents of a query, and documents_per_query is 1; "
            "use bce or mse, or 2 documents or more",
        ),
        (
            {"accumulation": 3},
            "score.accumulation=3: does not divide queries_per_step=16; use a divisor of it",
        ),
        (
            {"loss": {"mse": 1.0, "bce": 0.5}},
            "score.loss.bce: learns labels of 0 or more, and data.target=score gives a teacher's raw scores; "
            "use data.target=sigmoid or softmax, or mse, margin_mse, ranknet or list_mle",
        ),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(score, message):
    sources = {"path": "y", "mix": [{"path": "z", "target": "score"}]}
    tree = {"model": {"base": "x"}, "data": sources, "score": {"steps": 1, **score}}
    with pytest.raises(InputError) as refused:
        parse_config(tree)
    assert str(refused.value) == f"config: {message}"


@pytest.mark.parametrize("target", ["label", "sigmoid", "softmax"])
def test_losses_of_gains_take_what_is_none_or_more(target):
    tree = {"model": {"base": "x"}, "data": {"path": "y", "target": target}, "score": {"steps": 1, "loss": "bce"}}
    assert parse_config(tree).data.target == target


@pytest.mark.parametrize(
    ("override", "message"),
    [
        # Fields of GRPO are none of the supervised way; the fields that remain are told.
        ("warmup.beta=0.1", "warmup.beta: unknown key; known here: " + ", ".join(SupervisedConfig.model_fields)),
        ("warmup.rewards={}", "warmup.rewards: unknown key; known here: " + ", ".join(SupervisedConfig.model_fields)),
        ("warmup.prompt_per_step=4", "warmup.prompt_per_step: unknown key; did you mean 'prompts_per_step'?"),
        ("warmup.lora.rnk=1", "warmup.lora.rnk: unknown key; did you mean 'rank'?"),
        (
            "warmup.optimizer.learning_rte=1",
            "warmup.optimizer.learning_rte: unknown key; did you mean 'learning_rate'?",
        ),
        ("warmup.steps=0", "warmup.steps=0: input should be greater than or equal to 1"),
        ("warmup.lora.rank=0", "warmup.lora.rank=0: input should be greater than or equal to 1"),
    ],
)
def test_a_bad_value_of_a_supervised_warmup_is_refused_in_one_line(path, override, message):
    assert refusal(path, "warmup.method=supervised", override) == f": {message}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "an override is written key=value, for example warmup.steps=50"),
        ("=5", "an override is written key=value, for example warmup.steps=50"),
        ("warmup.steps={", "the value is not valid YAML; quote it"),
        ("prompt.instruction=2024-13-45", "the value is not valid YAML; quote it"),
        ("mesh={data: 1, data: 2}", "the value is not valid YAML; quote it"),
        ("model.base.name=x", "base is a value, not a section; name an existing field"),
    ],
)
def test_a_bad_override_is_refused_by_its_own_text(path, override, message):
    assert refusal(path, override) == f"{override!r}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ": holds nothing, not a mapping; write `section:` lines of `key: value`"),
        ("- a", ": holds a list, not a mapping; write `section:` lines of `key: value`"),
        ("model", ": holds a str, not a mapping; write `section:` lines of `key: value`"),
        ("a: 1\nb: c: d\n", ":2: not valid YAML (mapping values are not allowed here); mend that line"),
        (
            "model:\n\tbase: x\n",
            ":2: not valid YAML (found character '\\t' that cannot start any token); mend that line",
        ),
        (FILE + "seed: 1\nmodel: {}\n", ":8: not valid YAML (the key 'model' stands twice); mend that line"),
        (FILE + "  steps: 6\n", ":7: not valid YAML (the key 'steps' stands twice); mend that line"),
        (FILE + "? [seed]\n: 1\n", ":7: not valid YAML (found unhashable key); mend that line"),
        ("seed: \x00", ": character 6 is U+0000; remove it"),
        (
            FILE + "seed: 2024-13-45\n",
            ":7: not valid YAML ('2024-13-45' is not the timestamp that it looks like; quote it); mend that line",
        ),
        (FILE + "1: 2\n", ": 1: unknown key; known here: seed, model, prompt, data, warmup, score, mesh"),
        ("model: {base: m}\nwarmup: {steps: 1}\n", ": data: missing; this field has no default"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(path, text, message):
    path.write_text(text)
    assert refusal(path) == message


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    remedy = "give the path of a YAML file"
    assert refusal(tmp_path / "none.yaml") == f": cannot be read (No such file or directory); {remedy}"
    assert refusal(tmp_path) == f": cannot be read (Is a directory); {remedy}"
    (tmp_path / "latin.yaml").write_bytes("a: é".encode("latin-1"))
    assert refusal(tmp_path / "latin.yaml") == ": byte 3 is not UTF-8; save the file as UTF-8"


def test_an_anchor_may_be_merged_and_overridden(path):
    path.write_text(
        FILE
        + "  optimizer: &shared {learning_rate: 0.5, weight_decay: 0.1}\n"
        + "score: {steps: 1, optimizer: {<<: *shared, weight_decay: 0.2}}\n"
    )
    score = load_config(path).score
    assert score is not None
    assert (score.optimizer.learning_rate, score.optimizer.weight_decay) == (0.5, 0.2)


def test_parse_config_names_its_source():
    with pytest.raises(InputError) as caught:
        parse_config(tree(warmup={"steps": 5, "group_size": 1}))
    assert str(caught.value) == "config: warmup.group_size=1: a group of one has no advantage; use 2 or more"
    with pytest.raises(InputError, match="^demo: warmup.steps: missing"):
        parse_config(tree(warmup={}), source="demo")


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"score": {"steps": 3, "optimizer": {"learning_rate": 1e-7}}, "warmup": None},
        {"prompt": {"instruction": "zwei\nZeilen: é", "answers": ["no", "on"]}},
        {
            "warmup": {"steps": 2, "rewards": {"relevance": 0.5}, "beta": 0.04},
            "mesh": {"data": 4, "fsdp": -1},
        },
        {"warmup": {"steps": 2, "method": "supervised", "prompts_per_step": 4}},
        {
            "warmup": {"steps": 2, "lora": {"rank": 4, "targets": ["v_proj", "down_proj"]}},
            "score": {"steps": 1, "lora": {"alpha": 0.5}},
        },
        {"warmup": {"steps": 2, "method": "supervised", "lora": {}}},
        {"warmup": {"steps": 2, "rewards": {"format": 1, "my.brevity:short": 0.1}, "loss_average": "dapo"}},
    ],
)
def test_a_dumped_configuration_loads_back_equal(tmp_path, sections):
    config = parse_config(tree(**sections))
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


def test_a_dumped_configuration_writes_every_field_out():
    dumped = yaml.safe_load(dump_config(parse_config(tree())))
    assert list(dumped) == list(RunConfig.model_fields)
    assert dumped["warmup"]["optimizer"] == {
        "learning_rate": 1e-5,
        "warmup_fraction": 0.05,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    assert dumped["score"] is None


def test_differences_name_the_fields_that_differ():
    left = parse_config(tree())
    assert differences(left, parse_config(tree())) == []
    right = parse_config(
        tree(
            seed=3,
            prompt={"answers": ["no", "yes"]},
            warmup={"steps": 5, "optimizer": {"learning_rate": 0.5}, "rewards": {"format": 1}},
        )
    )
    assert differences(left, right) == [
        "seed: 0 -> 3",
        "prompt.answers: None -> ['no', 'yes']",
        "warmup.optimizer.learning_rate: 1e-05 -> 0.5",
        "warmup.rewards.relevance: 1.0 -> None",
    ]


def test_differences_of_a_stage_that_only_one_side_has():
    left, right = parse_config(tree()), parse_config(tree(score={"steps": 9}))
    gained, lost = differences(left, right), differences(right, left)
    assert "score.steps: None -> 9" in gained
    assert "score.steps: 9 -> None" in lost
    assert len(gained) == len(lost)
    assert all(line.startswith("score.") for line in gained + lost)


def test_differences_of_two_methods_are_those_of_their_fields():
    grpo = parse_config(tree(warmup={"steps": 5, "rewards": {"my:own": 2}}))
    supervised = parse_config(tree(warmup={"steps": 5, "method": "supervised", "prompts_per_step": 8}))
    lines = differences(grpo, supervised)
    assert lines[:2] == ["warmup.prompts_per_step: 32 -> 8", "warmup.matched: True -> None"]
    assert "warmup.method: grpo -> supervised" in lines
    assert "warmup.rewards.my:own: 2.0 -> None" in lines
    # What both have in common and equal is not among them.
    own = set(GrpoConfig.model_fields) ^ set(SupervisedConfig.model_fields)
    assert {line.split(":")[0].split(".")[1] for line in lines} == own | {"method", "prompts_per_step"}
    assert len(differences(supervised, grpo)) == len(lines)
    assert "warmup.method: supervised -> grpo" in differences(supervised, grpo)


def test_differences_of_adapters():
    without, with_ = parse_config(tree()), parse_config(tree(warmup={"steps": 5, "lora": {"targets": ["q_proj"]}}))
    assert differences(without, with_) == [
        "warmup.lora.rank: None -> 16",
        "warmup.lora.alpha: None -> 32.0",
        "warmup.lora.targets: None -> ['q_proj']",
    ]
    wider = parse_config(tree(warmup={"steps": 5, "lora": {"targets": ["q_proj"], "rank": 32}}))
    assert differences(with_, wider) == ["warmup.lora.rank: 16 -> 32"]


def refused_yaml(tmp_path: Path, text: str) -> str:
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_config(tmp_path / "run.yaml")
    return str(caught.value).removeprefix(str(tmp_path / "run.yaml"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "a: !!python/object/apply:os.system [id]",
            ":1: not valid YAML (could not determine a constructor for the tag",
        ),
        ("a: !!bool abc", ":1: not valid YAML ('abc' is not the bool that it looks like; quote it)"),
        ("a: 1\nb: !!int ''", ":2: not valid YAML ('' is not the int that it looks like; quote it)"),
        ("a: !!timestamp x", ":1: not valid YAML ('x' is not the timestamp that it looks like; quote it)"),
        ("a: 0x" + "f" * 5000, ":1: not valid YAML ('0xfff"),
        ("a: !!map b", ":1: not valid YAML (expected a mapping node, but found scalar)"),
        ("a: " + "[" * 60, ":1: not valid YAML (nested too deep)"),
        ("a: &a [*a, *a]", ": not a configuration (its aliases make more than 100000 values of it)"),
        ("#" + "a" * (1 << 18), ": not a configuration (it has 262145 characters, more than 262144)"),
        (
            "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10)),
            ": not a configuration (its aliases make more than 100000 values of it)",
        ),
    ],
    ids=[
        "python tag",
        "bool",
        "int",
        "timestamp",
        "hexadecimal",
        "no mapping",
        "deep",
        "alias in itself",
        "long",
        "a billion laughs",
    ],
)
def test_yaml_that_means_harm_or_nothing(tmp_path: Path, text: str, told: str) -> None:
    start = time.monotonic()
    assert refused_yaml(tmp_path, text).startswith(told)
    assert time.monotonic() - start < 2


def test_an_alias_that_is_used_twice_is_fine(tmp_path: Path) -> None:
    text = FILE.replace("warmup:\n  steps: 5\n", "warmup: &stage\n  steps: 5\nscore: *stage\n")
    (tmp_path / "run.yaml").write_text(text)
    config = load_config(tmp_path / "run.yaml")
    assert config.score is not None and config.score.steps == 5
