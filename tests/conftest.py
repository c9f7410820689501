"""Strict numerics, eight CPU devices and no network, for every test.

What a test starts as a subprocess inherits only what a user's machine could have: the CPU as
platform, the offline switch, and a compilation cache.
"""

import ipaddress
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import pytest

Prorank = Callable[..., tuple[int, str, str]]

if TYPE_CHECKING:
    from fake_gcs import FakeGcs
    from transformers import PreTrainedTokenizerFast

    from prorank_jax.prompt import Prompt

# Collections are prepared here and not in the user's own cache.
_CACHE = tempfile.TemporaryDirectory(prefix="prorank_jax-tests-", ignore_cleanup_errors=True)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# XLA lets collectives of a program that do not depend on each other run at once. Where that program came from the
# compilation cache, devices then take them in different orders, wait for one another, and are aborted after 40 s.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_enable_concurrency_optimized_scheduler=false"
os.environ["HF_HUB_OFFLINE"] = "1"
# Who this is is not asked of Google's metadata server.
os.environ["FSSPEC_GCS_TOKEN"] = "anon"
os.environ["JAX_PLATFORMS"] = "cpu"
# Workers that run tests beside one another share the cache of the process that started them.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["PRORANK_CACHE"] = _CACHE.name
    # What two modules compile, or a command that is started twice, is compiled once.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_CACHE.name, "programs")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    # As the command line has it: ranx is compiled once, by whichever process is first.
    os.environ["NUMBA_CACHE_DIR"] = os.path.join(_CACHE.name, "numba")
    os.environ["IR_DATASETS_HOME"] = os.path.join(_CACHE.name, "ir_datasets")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def pytest_addoption(parser: pytest.Parser) -> None:
    # Of tests/faults; pytest asks only here.
    parser.addoption("--fault-minutes", type=float, default=0.0, help="how long to look for faults [seconds]")
    parser.addoption("--fault-seed", type=int, default=0, help="of the moments and cases")


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """Fails a test that opens a connection to anything but this machine."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse_remote(self, address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_remote(self, address)
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        yield


@pytest.fixture(scope="module", autouse=True)
def _forget_programs() -> Iterator[None]:
    """What a module compiled is not kept in memory behind it."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def fast_compilation() -> Iterator[None]:
    """For modules of many small programs, each run once or twice: compiling them is what takes the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        # Of processes that tests start, too.
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def _refuse_remote(connection: socket.socket, address: Any) -> None:
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        return
    host = address[0]
    if host == "localhost":
        return
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        # Not an `Exception`, so that no library can take it for a failed download and go on.
        pytest.fail(f"the test connects to {address}; tests use no network")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with real collections and tokenizers."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        reason = f"{folder}: not there; the test needs the real collections in it"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def qwen_folder(shared: Path) -> Path:
    """The folder of Qwen2.5's tokenizer."""
    return shared / "models" / "qwen2.5-tokenizer"


@pytest.fixture(scope="session")
def qwen(qwen_folder: Path) -> "PreTrainedTokenizerFast":
    """Qwen2.5's tokenizer."""
    from prorank_jax.prompt import load_tokenizer

    return load_tokenizer(qwen_folder)


@pytest.fixture(scope="session")
def prompt(qwen: "PreTrainedTokenizerFast") -> "Prompt":
    """The prompt that we make for Qwen2.5."""
    from prorank_jax.config import PromptConfig
    from prorank_jax.prompt import build_prompt

    return build_prompt(qwen, PromptConfig(max_length=8192), place="qwen")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: see `_write_tiny_model`."""
    return _write_tiny_model(tmp_path_factory.mktemp("tiny_model"), tied=True)


@pytest.fixture(scope="session")
def untied_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an unembedding of its own."""
    return _write_tiny_model(tmp_path_factory.mktemp("untied_model"), tied=False)


@pytest.fixture(scope="session")
def tiny_collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of BEIR folders from the generated world: `train` (3 towns, 6 queries, 72 documents) and `test` (2)."""
    from prorank_jax.demo import world

    folder = tmp_path_factory.mktemp("tiny_collection")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world, "SPLITS", {"train": 3, "test": 2})
        world.write_world(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def cloud() -> "Iterator[FakeGcs]":
    """A stand-in for Google Cloud Storage, which this process and its children use."""
    from fake_gcs import environment, serving

    with serving() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in environment(server).items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def bucket(cloud: "FakeGcs") -> str:
    """An empty bucket of it, by its name."""
    name = f"lab-{len(cloud.objects)}"
    cloud.objects[name] = {}
    return name


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that no other test has written to."""
    monkeypatch.setenv("PRORANK_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def own_scores(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the scores of evaluations, which no other test has written to; the rest of the cache is shared."""
    folder = tmp_path_factory.mktemp("scores")
    # An absolute path takes the place of the cache folder.
    monkeypatch.setattr("prorank_jax.evaluate.SCORES", folder)
    return folder


@pytest.fixture
def prorank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Prorank:
    """Runs a command in this process: its exit status, standard output and standard error."""

    from prorank_jax.cli import main

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prorank", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        printed = capsys.readouterr()
        code = stopped.value.code
        assert code is None or isinstance(code, int)
        return code or 0, printed.out, printed.err

    return run


@pytest.fixture
def refused(prorank: Prorank) -> Callable[..., str]:
    """Runs a command that must be refused; returns its one line."""

    def run(*arguments: object) -> str:
        status, out, err = prorank(*arguments)
        assert status == 2, err
        assert out == ""
        assert err.startswith("prorank: ")
        assert err.endswith("\n") and err.count("\n") == 1, err
        return err.removeprefix("prorank: ").rstrip("\n")

    return run


def _write_tiny_model(folder: Path, tied: bool) -> Path:
    """A Qwen2 of 40,000 random weights, and a byte-level BPE tokenizer that splits text as Qwen's does.

    It mostly answers 0 or 1 and ends its turn, so that the rewards of its rollouts differ.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from prorank_jax.demo.pretrain import CHAT_TEMPLATE, HF_CONFIG, SPECIAL_TOKENS
    from prorank_jax.demo.world import towns
    from prorank_jax.model.decoder import Decoder
    from prorank_jax.model.families import decoder_config
    from prorank_jax.model.hf import save_pretrained
    from prorank_jax.templates import INSTRUCTION

    backend = Tokenizer(models.BPE())
    qwen_split = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(qwen_split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    # Punctuation glued to a newline, and a newline to another, are tokens too: there joined pieces could go wrong.
    texts = [place.text.replace(". ", ".\n") + "?\n!\n:\n\n" for town in towns(1, 4) for place in town.places]
    backend.train_from_iterator(
        [*texts, *["system\nuser\nassistant\nQuery:\nDocument:\n" + INSTRUCTION] * 9],
        trainers.BpeTrainer(
            vocab_size=700,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    tokenizer.save_pretrained(folder)

    shape = {"vocab_size": 700, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    hf_config = {**HF_CONFIG, **shape, **heads, "tie_word_embeddings": tied}
    config = decoder_config(hf_config, str(folder))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.normal(0.0, 0.2, leaf.shape).astype(np.float32),
        Decoder(config).init(jax.random.key(0)),
    )
    # Values carry a constant into coordinate 0, where only the answers and the end of the turn lie.
    params["layers"]["attention"]["value"]["bias"][..., 0] = 1.0
    params["layers"]["attention"]["output"]["kernel"][:, :, 0, 0] = 4.0
    unembedding = params["embedding" if tied else "unembedding"]
    unembedding[:, 0] = 0.0
    unembedding[[backend.token_to_id(token) for token in ("0", "1", "<|im_end|>")], 0] = 4.0
    save_pretrained(folder, params, config, hf_config)
    return folder
