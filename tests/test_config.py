"""The configuration: what a file and overrides become, and the one line that refuses bad ones."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from prorank_jax.config import RunConfig, differences, dump_config, load_config, parse_config
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
    assert config.warmup is not None and config.warmup.steps == 5
    assert config.warmup.group_size == 8
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
        ("model.remat=true", True),
        ("model.base=Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("prompt.answers=['no', 'yes']", ("no", "yes")),
        ("prompt.instruction=a=b", "a=b"),
        ("prompt.instruction=", None),
        ("warmup.rewards.format=0.25", 0.25),
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
    assert config.score is not None and (config.score.steps, config.score.loss) == (4, "mse")


def test_an_override_of_one_reward_leaves_only_that_one(path):
    # As in a file, what is written replaces the default mapping whole.
    warmup = load_config(path, ["warmup.rewards.format=2"]).warmup
    assert warmup is not None and warmup.rewards == {"format": 2.0}


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
        ("warmup.rewards.relevence=1", "warmup.rewards.relevence: unknown key; did you mean 'relevance'?"),
        ("warmup.rewards.speed=1", "warmup.rewards.speed: unknown key; known here: format, relevance"),
        # A section with an unknown key also lacks `steps`; the typing error is the one to tell.
        ("score.stps=9", "score.stps: unknown key; did you mean 'steps'?"),
        ("score.loss=foo", "score.loss='foo': input should be 'bce', 'mse' or 'listwise_softmax'"),
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
        ("mesh.data=0", "mesh.data=0: a mesh axis has 1 or more devices, or -1 for the rest"),
        ("mesh.fsdp=-2", "mesh.fsdp=-2: a mesh axis has 1 or more devices, or -1 for the rest"),
        ("mesh.fsdp=-1", "mesh.data=-1, fsdp=-1: only one axis can take the rest; give the other a number"),
        ("warmup=null", "no stage to run; give the file a `warmup:` or a `score:` section"),
    ],
)
def test_a_bad_value_is_refused_in_one_line(path, override, message):
    assert refusal(path, override) == f": {message}"


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
            ": a value that looks like a date is none (month must be in 1..12); quote it",
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
