"""Which completions count as answers, what they earn, and rewards that a user brings along."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from prorank_jax.errors import InputError
from prorank_jax.warmup import rewards
from prorank_jax.warmup.rewards import AnswerTokens, Reward, format_reward, load_rewards, relevance_reward

ZERO, ONE, END, WORD = 15, 16, 9, 7
ANSWERS = AnswerTokens(ZERO, ONE, END)


def earned(completions: list[list[list[int]]], labels: list[int], answers: AnswerTokens = ANSWERS):
    """Both rewards [P, G] of completions [P, G, T]."""
    tokens = jnp.array(completions, jnp.int32)
    lengths = (tokens != END).sum(axis=2, dtype=jnp.int32) + 1
    arguments = tokens, lengths, jnp.array(labels, jnp.int32), answers
    format_PxG, relevance_PxG = format_reward(*arguments), relevance_reward(*arguments)
    assert format_PxG.dtype == relevance_PxG.dtype == jnp.float32
    return format_PxG.tolist(), relevance_PxG.tolist()


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ([ZERO, END, END, END], 0),
        ([ONE, END, END, END], 1),
        ([ONE, WORD, END, END], None),  # an answer, and something behind it
        ([ONE, WORD, ONE, END], None),
        ([ONE, ONE, END, END], None),  # two answers, even where they agree
        ([ZERO, ONE, END, END], None),
        ([ONE, ONE, ONE, ONE], None),  # never ends
        ([ONE, WORD, WORD, WORD], None),
        ([END, END, END, END], None),  # ends without a word
        ([WORD, END, END, END], None),  # another word
        ([WORD, ONE, END, END], None),  # an answer, but not at its place
    ],
)
def test_only_one_answer_token_and_the_end_is_well_formed(completion, answer):
    # The format earns its reward whatever it says; what is malformed is never right, not even for label 0.
    expected_format = float(answer is not None)
    assert earned([[completion]] * 2, [0, 1]) == (
        [[expected_format]] * 2,
        [[float(answer == 0)], [float(answer == 1)]],
    )


def test_two_tokens_are_room_enough_for_an_answer():
    completions = [[[ONE, END], [ONE, ONE]], [[ZERO, END], [END, END]]]
    assert earned(completions, [1, 1]) == ([[1, 0], [1, 0]], [[1, 0], [0, 0]])


def test_the_first_answer_is_not_relevant():
    # With the ids the other way round the same completion says the opposite.
    assert earned([[[ONE, END]]] * 2, [0, 1]) == ([[1], [1]], [[0], [1]])
    assert earned([[[ONE, END]]] * 2, [0, 1], AnswerTokens(ONE, ZERO, END)) == ([[1], [1]], [[1], [0]])


def test_a_label_is_that_of_its_own_prompt():
    # Three prompts of two completions: labels along the other axis would not even fit.
    completions = [[[ZERO, END], [ONE, END]]] * 3
    assert earned(completions, [0, 1, 0])[1] == [[1, 0], [0, 1], [1, 0]]


def test_the_docstring_of_the_format():
    completions = [[[16, 9, 9], [16, 16, 9], [7, 9, 9]]]
    assert earned(completions, [1], AnswerTokens(15, 16, end=9))[0] == [[1, 0, 0]]


# Rewards of a user's own.


GROUP, TOKENS = 4, 5
HEAD = "import jax.numpy as jnp\n\ndef own(tokens_PxGxT, lengths_PxG, labels_P, answers):\n    return "
SHORT = "1.0 / lengths_PxG.astype(jnp.float32)\n"


@pytest.fixture(autouse=True)
def _no_trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules that a test imports are forgotten, and it leaves the search path as it was."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("own_"):
            del sys.modules[name]
    assert sys.path == path


@pytest.fixture
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load_one(name: str) -> Reward:
    (reward,) = load_rewards({name: 0.5}, GROUP, TOKENS)
    return reward


def refusal(name: str) -> str:
    """The message of a refused reward, less the field that it begins with."""
    path = list(sys.path)
    with pytest.raises(InputError) as caught:
        load_one(name)
    assert sys.path == path
    message = str(caught.value)
    assert "\n" not in message
    start = f"config: warmup.rewards.{name}: "
    assert message.startswith(start)
    return message.removeprefix(start)


def paid(reward: Reward) -> list[list[float]]:
    """What completions of 1, 2 and 4 tokens earn."""
    lengths = jnp.array([[1, 2, 4]], jnp.int32)
    tokens = jnp.full((1, 3, 4), WORD, jnp.int32)
    return reward.function(tokens, lengths, jnp.array([1], jnp.int32), ANSWERS).tolist()


def test_the_built_in_rewards_by_their_names():
    assert load_rewards({"relevance": 2.0, "format": 0.5}, 8, 2) == (
        Reward("relevance", relevance_reward, 2.0),
        Reward("format", format_reward, 0.5),
    )


def test_a_reward_from_the_working_directory(working_directory):
    (working_directory / "own_brevity.py").write_text(HEAD + SHORT)
    path = list(sys.path)
    reward = load_one("own_brevity:own")
    assert sys.path == path
    assert (reward.name, reward.weight) == ("own", 0.5)
    assert paid(reward) == [[1.0, 0.5, 0.25]]


def test_a_reward_from_an_installed_package(working_directory, monkeypatch):
    package = working_directory / "site" / "own_package" / "deep"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "brevity.py").write_text(HEAD + SHORT)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(working_directory / "site")
        reward = load_one("own_package.deep.brevity:own")
    assert reward.name == "own"
    assert paid(reward) == [[1.0, 0.5, 0.25]]


def test_the_working_directory_comes_before_what_is_installed(working_directory, monkeypatch):
    (working_directory / "site").mkdir()
    (working_directory / "site" / "own_both.py").write_text(HEAD + "jnp.zeros(lengths_PxG.shape)\n")
    (working_directory / "own_both.py").write_text(HEAD + SHORT)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(working_directory / "site")
        before = list(sys.path)
        assert paid(load_one("own_both:own")) == [[1.0, 0.5, 0.25]]
        assert sys.path == before


def test_a_search_path_with_the_working_directory_in_it_is_left_as_it_was(working_directory, monkeypatch):
    (working_directory / "own_there.py").write_text(HEAD + SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(working_directory)])
        before = list(sys.path)
        load_one("own_there:own")
        assert sys.path == before


def test_own_and_built_in_rewards_together_keep_their_order(working_directory):
    (working_directory / "own_mixed.py").write_text(HEAD + SHORT)
    loaded = load_rewards({"format": 1.0, "own_mixed:own": 0.1, "relevance": 2.0}, GROUP, TOKENS)
    assert [(reward.name, reward.weight) for reward in loaded] == [("format", 1.0), ("own", 0.1), ("relevance", 2.0)]


def test_the_docstrings_example_works_as_a_file(working_directory):
    doc = str(rewards.__doc__)
    (configured,) = re.findall(r"^    rewards: (\{.*\})$", doc, re.MULTILINE)
    (source,) = re.findall(r"^    (def .*\n        return .*)$", doc, re.MULTILINE)
    weights = yaml.safe_load(configured)
    assert weights == {"format": 1, "relevance": 1, "brevity:short": 0.1}
    (working_directory / "own_doc.py").write_text(source.replace("\n    ", "\n") + "\n")
    # The example divides a float by integers, as a user may: only the tests ask for strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        reward = load_rewards({"own_doc:short": weights["brevity:short"]}, GROUP, TOKENS)[0]
        assert (reward.name, reward.weight) == ("short", 0.1)
        assert paid(reward) == [[1.0, 0.5, 0.25]]


def test_a_reward_sees_the_shapes_of_the_configuration(working_directory):
    (working_directory / "own_seen.py").write_text(
        "import jax.numpy as jnp\n"
        "seen = []\n\n"
        "def own(*arguments):\n"
        "    seen.extend((argument.shape, argument.dtype.name) for argument in arguments[:3])\n"
        "    seen.append(arguments[3]._fields)\n"
        "    return jnp.zeros(arguments[1].shape)\n"
    )
    load_one("own_seen:own")
    assert sys.modules["own_seen"].seen == [
        ((3, GROUP, TOKENS), "int32"),
        ((3, GROUP), "int32"),
        ((3,), "int32"),
        ("negative", "positive", "end"),
    ]


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (
            "own_failing:own",
            "raise RuntimeError('no licence found\\nask for one')",
            "importing own_failing fails (RuntimeError: no licence found); mend the module",
        ),
        ("own_silent:own", "raise ValueError", "importing own_silent fails (ValueError); mend the module"),
        (
            "own_wordy:own",
            "raise ValueError('x' * 500)",
            f"importing own_wordy fails (ValueError: {'x' * 160}); mend the module",
        ),
        (
            "own_syntax:own",
            "def own(:\n    pass\n",
            "importing own_syntax fails (SyntaxError: invalid syntax (own_syntax.py, line 1)); mend the module",
        ),
        (
            "own_needy:own",
            "import own_nowhere_to_be_found",
            "own_needy needs the module own_nowhere_to_be_found; install it",
        ),
        ("own_empty:own", "other = 1", "own_empty has no function 'own'; name one that it defines"),
        ("own_number:own", "own = 1", "own_number has no function 'own'; name one that it defines"),
        ("own_nameless:", "own = 1", "own_nameless has no function ''; name one that it defines"),
    ],
)
def test_a_module_that_gives_no_function_is_refused(working_directory, name, source, message):
    (working_directory / f"{name.split(':')[0]}.py").write_text(source)
    assert refusal(name) == message


def test_a_missing_module_is_refused_by_its_name(working_directory):
    assert refusal("own_missing:own") == (
        "no module own_missing; put own_missing.py into the working directory, or install it"
    )
    assert refusal("own_missing.part:own") == "own_missing.part needs the module own_missing; install it"


def returned(what: str) -> str:
    return f"returned {what} for tokens [3, 4, 5]; return a number for each completion, float32[3, 4]"


def untraceable(reason: str) -> str:
    return f"cannot be traced by JAX ({reason}); write it with jax.numpy, without branches on values"


@pytest.mark.parametrize(
    ("name", "result", "message"),
    [
        ("own_prompts:own", "labels_P.astype(jnp.float32)", returned("float32[3]")),
        ("own_turned:own", "lengths_PxG.T.astype(jnp.float32)", returned("float32[4, 3]")),
        ("own_deep:own", "lengths_PxG[:, :, None].astype(jnp.float32)", returned("float32[3, 4, 1]")),
        ("own_tokens:own", "tokens_PxGxT.astype(jnp.float32)", returned("float32[3, 4, 5]")),
        ("own_scalar:own", "1.0", returned("float32[]")),
        ("own_int:own", "lengths_PxG", returned("int32[3, 4]")),
        ("own_bool:own", "lengths_PxG > 1", returned("bool[3, 4]")),
        ("own_tuple:own", "(jnp.ones(lengths_PxG.shape),)", returned("tuple")),
        ("own_nothing:own", "None", returned("NoneType")),
        (
            "own_branch:own",
            "jnp.ones(lengths_PxG.shape) if lengths_PxG[0, 0] > 1 else jnp.zeros(lengths_PxG.shape)",
            untraceable("TracerBoolConversionError: Attempted boolean conversion of traced array with shape bool[]."),
        ),
        ("own_raising:own", "[][0]", untraceable("IndexError: list index out of range")),
    ],
)
def test_a_function_that_gives_no_reward_is_refused(working_directory, name, result, message):
    (working_directory / f"{name.split(':')[0]}.py").write_text(HEAD + result + "\n")
    assert refusal(name) == message


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (
            "own_two:own",
            "def own(tokens, lengths):\n    return 1.0 / lengths\n",
            untraceable("TypeError: own() takes 2 positional arguments but 4 were given"),
        ),
        (
            "own_five:own",
            "def own(tokens, lengths, labels, answers, texts):\n    return 1.0 / lengths\n",
            untraceable("TypeError: own() missing 1 required positional argument: 'texts'"),
        ),
    ],
)
def test_a_function_of_other_arguments_is_refused(working_directory, name, source, message):
    (working_directory / f"{name.split(':')[0]}.py").write_text(source)
    assert refusal(name) == message


def test_half_precision_is_a_number_too(working_directory):
    (working_directory / "own_half.py").write_text(HEAD + "lengths_PxG.astype(jnp.bfloat16)\n")
    np.testing.assert_array_equal(np.asarray(paid(load_one("own_half:own"))), [[1, 2, 4]])


def test_a_compiled_function_is_a_reward_too(working_directory):
    (working_directory / "own_jitted.py").write_text("import jax\n" + HEAD + SHORT + "\n\nown = jax.jit(own)\n")
    assert paid(load_one("own_jitted:own")) == [[1.0, 0.5, 0.25]]
