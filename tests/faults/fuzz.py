"""Fuzzing of all that reads files of others: whatever they hold, only our own errors come out, each with its place.

A case is the files of a folder. Most are valid ones with a few edits, so that they get past the first checks.
"""

import gzip
import io
import json
import logging
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cbor2
import lz4.frame
import numpy as np
import pyarrow
import pyarrow.parquet
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from prorank_jax.config import PromptConfig
from prorank_jax.config_file import load_config
from prorank_jax.data import files as row_files
from prorank_jax.data import jsonl
from prorank_jax.data.beir import read_beir
from prorank_jax.data.beir_files import ZipFiles
from prorank_jax.data.runs import read_run
from prorank_jax.errors import InputError
from prorank_jax.model.hf import load_pretrained
from prorank_jax.prompt import build_prompt, load_tokenizer

Case = dict[str, bytes]
"""The content of each file, by its name."""
CORPUS = Path(__file__).parent / "corpus"
SECONDS = 5.0
"""What a case may take."""
_CHARACTERS = 1_000

# What readers have stumbled over.
_TOKENS = [
    *(
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\r",
        b"\r\n",
        b"\n",
        b"\n\n",
        b"\t",
        b" ",
        b"\x1c",
        b"\xc2\x85",
    ),
    *(b'"', b"\\", b"\\ud800", b"\\u0000", b"'", b",", b":", b"{", b"}", b"[", b"]", b"{}", b"[]", b"null", b"true"),
    *(b"0", b"-1", b"1e999", b"NaN", b"-Infinity", b"9" * 25, b"9" * 5000, b"0.1", b"1_000", "١".encode(), b"1e-400"),
    *(b"[" * 3000, b'{"a":' * 3000, b"a" * 300),
]
_YAML = [
    *(b"&a ", b"*a", b"&a [*a, *a]", b"!!python/object:os.system ", b"!!bool abc", b"!!int ''", b"!!timestamp x"),
    *(
        b"!!binary x",
        b"!!set {a}",
        b"!!omap [a: 1]",
        b"2024-13-45",
        b".inf",
        b".nan",
        b"<<: *a",
        b"? [a]\n: b",
        b"0x",
        b"---\n",
    ),
    *(b"1:2:3", b"~", b"|\n  text", b"warmup", b"score", b"steps", b"optimizer", b"- ", b"%YAML 9.9\n", b"!x "),
]
_JINJA = [
    *(b"{{", b"}}", b"{%", b"%}", b"{#", b"{{ messages }}", b"{{ messages[0].content }}", b"{% for m in messages %}"),
    *(
        b"{% endfor %}",
        b"{{ 'a' * 10**9 }}",
        b"{{ ''.__class__ }}",
        b"{{ raise_exception('no') }}",
        b"|trim",
        b"|upper",
    ),
    *(
        b"{{ 1 / 0 }}",
        b"{% set x = 1 %}",
        b"{% include 'x' %}",
        b"{{ bos_token }}",
        b"<|im_end|>",
        b"\n",
        b"{{ x.y.z }}",
    ),
]


class Target(NamedTuple):
    """What is fuzzed: a strategy of cases, and what reads the folder of one."""

    cases: st.SearchStrategy[Case]
    read: Callable[[Path], object]


def _edit(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for where, dropped, added in edits:
        at = round(where * len(content))
        content = content[:at] + added + content[at + dropped :]
    return content


def edited(content: bytes, tokens: list[bytes]) -> st.SearchStrategy[bytes]:
    """A file with up to four edits: something dropped, something put in its place."""
    added = st.one_of(st.just(b""), st.sampled_from(tokens), st.binary(max_size=4))
    dropped = st.sampled_from([0, 0, 1, 1, 2, 8, 40])
    return st.lists(st.tuples(st.floats(0, 1), dropped, added), max_size=3).map(lambda edits: _edit(content, edits))


def _one_of_files(contents: Case, tokens: list[bytes]) -> st.SearchStrategy[Case]:
    """The files, of which one is edited, or all are."""
    one = [
        st.fixed_dictionaries({**{n: st.just(c) for n, c in contents.items()}, name: edited(contents[name], tokens)})
        for name in contents
    ]
    return st.one_of(*one, st.fixed_dictionaries({name: edited(content, tokens) for name, content in contents.items()}))


_BEIR: Case = {
    "corpus.jsonl": b'{"_id": "d1", "title": "Tea", "text": "A drink"}\n{"_id": "d2", "text": "\\u00e9"}\n',
    "queries.jsonl": b'{"_id": "q1", "text": "what is tea"}\n{"_id": "q2", "text": "what is water"}\n',
    "qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq2\td2\t2\nq2\td1\t0\nq1\td1\t1\n",
}


def _zipped(case: Case) -> Case:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in case.items():
            archive.writestr(f"set/{name}", content)
    return {"set.zip": made.getvalue()}


def _read_beir(folder: Path) -> None:
    if (folder / "set.zip").exists():
        files = ZipFiles(folder / "set.zip")
        list(files.corpus())
        list(files.queries())
        for split in files.splits():
            files.qrels(split)
        return
    read_beir(folder, "test")


_ROWS: list[list[dict[str, Any]]] = [
    [{"query": "q", "document": "d", "label": 1, "score": 0.5}, {"query": "q", "document": "e", "label": 0}],
    [{"query": "q", "pos": ["a"], "neg": ["b", "c"], "pos_scores": [2], "neg_scores": [1, -3.5]}],
    [{"query": "q", "documents": ["a", "b"], "scores": [2.5, -1], "labels": [1, 0], "instruction": "i"}],
]


def _lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    made = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), made)
    return made.getvalue()


def _row_cases() -> st.SearchStrategy[Case]:
    plain = st.sampled_from(_ROWS).flatmap(lambda rows: edited(_lines(rows), _TOKENS))
    packed = st.one_of(
        plain.map(lambda text: gzip.compress(text, mtime=0)),
        edited(gzip.compress(_lines(_ROWS[0]), mtime=0), _TOKENS),
    )
    tables = st.sampled_from(_ROWS).flatmap(lambda rows: edited(_parquet(rows), _TOKENS))
    return st.one_of(
        plain.map(lambda content: {"rows.jsonl": content}),
        packed.map(lambda content: {"rows.jsonl.gz": content}),
        tables.map(lambda content: {"rows.parquet": content}),
    )


def _read_rows(folder: Path) -> None:
    (file,) = folder.iterdir()
    problems = []
    for reader in (row_files.read_rows, jsonl.read_rows):
        try:
            list(reader(file))
        except InputError as error:
            problems.append(error)
    if problems:
        raise problems[0]


_TREC = b"q1 Q0 d1 1 2.5 tag\nq1 Q0 d2 2 1.5 tag\nq2 Q0 d1 1 -3e-2 tag\n"
_NESTED = {"q1": {"d1": 2.5, "d2": 1}, "q2": {"d1": -0.03}}


def _run_cases() -> st.SearchStrategy[Case]:
    text = json.dumps(_NESTED).encode()
    twice = lz4.frame.compress(lz4.frame.compress(cbor2.dumps(_NESTED)))
    table = _parquet([{"q_id": "q1", "doc_id": "d1", "score": 2.5}, {"q_id": "q1", "doc_id": "d2", "score": 1.0}])
    cbor = edited(
        cbor2.dumps(_NESTED), [*_TOKENS, b"\x81" * 3000, b"\xd8\x1c", b"\xc0", b"\xfb", b"\x1b" + b"\xff" * 8]
    )
    kinds = {
        "run.trec": edited(_TREC, _TOKENS),
        "run.trec.gz": edited(_TREC, _TOKENS).map(lambda content: gzip.compress(content, mtime=0)),
        "run.json": edited(text, _TOKENS),
        "run.json.gz": edited(gzip.compress(text, mtime=0), _TOKENS),
        "run.lz4": st.one_of(
            edited(twice, _TOKENS), cbor.map(lambda content: lz4.frame.compress(lz4.frame.compress(content)))
        ),
        "run.parquet": edited(table, _TOKENS),
    }
    return st.one_of(*(st.fixed_dictionaries({name: strategy}) for name, strategy in kinds.items()))


def _read_run(folder: Path) -> None:
    (file,) = folder.iterdir()
    read_run(file, depth=10)


_CONFIG = (
    b"model:\n  base: builtin:tiny\ndata:\n  path: beir/scifact\n  mix: [{path: rows.jsonl, weight: 0.5}]\nseed: 1\n"
    b"warmup:\n  steps: 5\n  rewards: {format: 1, relevance: 2}\n  optimizer: {learning_rate: 1e-4}\n"
    b"score:\n  steps: 5\n  loss: {bce: 1}\n  documents_per_query: 1\n  dev: {every: 5, patience: null}\n"
    b"mesh: {data: -1}\n"
)


def _read_config(folder: Path) -> None:
    overrides = (folder / "overrides").read_bytes().decode("utf-8", "replace").split("\n")
    load_config(folder / "run.yaml", [override for override in overrides if override])


@lru_cache
def _tiny() -> Any:
    from prorank_jax.model.hf import BUILTIN

    return load_tokenizer(BUILTIN["builtin:tiny"])


_TEMPLATE = (
    b"<|im_start|>system\nJudge.<|im_end|>\n<|im_start|>user\n{% for m in messages %}{% if m.role == 'query' %}Query:\n"
    b"{{ m.content }}\n{% endif %}{% endfor %}Document:\n{{ (messages | selectattr('role', 'eq', 'document') | first)"
    b".content }}\n<|im_end|>\n<|im_start|>assistant\n"
)


def _read_template(folder: Path) -> None:
    build_prompt(_tiny(), PromptConfig(template=str(folder / "prompt.jinja")), place=str(folder))


_SHAPE = {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 8}
_SHAPE |= {"num_attention_heads": 2, "num_key_value_heads": 1}


@lru_cache
def _folder() -> Case:
    """A model folder of a few hundred weights, in two files with an index."""
    from prorank_jax.demo.pretrain import HF_CONFIG
    from prorank_jax.model.families import decoder_config
    from prorank_jax.model.tensors import tensor_table

    hf_config = {**HF_CONFIG, **_SHAPE, "tie_word_embeddings": True}
    table = tensor_table(decoder_config(hf_config, "made"))
    tensors = {name: np.ones(entry.theirs, np.float32) for entry in table for name in entry.names(1)}
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    index = {"weight_map": {name: file for file, listed in parts.items() for name in listed}}
    return {
        "config.json": json.dumps(hf_config).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{file: save({name: tensors[name] for name in listed}) for file, listed in parts.items()},
    }


_IN_HEADERS = [b"F32", b"F16", b"I64", b"[0,0]", b"[8,8]", b"data_offsets", b"\xff" * 8, b"\x00" * 8, b"999999999999"]
_IN_MODELS = [b'"num_hidden_layers": 1000000000', b'"hidden_size": 0', b'"hidden_size": 1.5', b"../../x", b"1e9", b"-8"]


def _targets() -> dict[str, Target]:
    beir = _one_of_files(_BEIR, _TOKENS)
    zipped = st.one_of(
        beir.map(_zipped), edited(_zipped(_BEIR)["set.zip"], [*_TOKENS, b"../", b"/etc/", b"PK\x03\x04"])
    )
    zips = zipped.map(lambda case: case if isinstance(case, dict) else {"set.zip": case})
    overrides = edited(b"warmup.steps=5\nscore.dev.every=3\nmesh={data: 1}", [*_TOKENS, *_YAML])
    config = st.fixed_dictionaries(
        {"run.yaml": edited(_CONFIG, [*_TOKENS, *_YAML]), "overrides": st.one_of(st.just(b""), overrides)}
    )
    return {
        "beir": Target(st.one_of(beir, zips), _read_beir),
        "rows": Target(_row_cases(), _read_rows),
        "run": Target(_run_cases(), _read_run),
        "config": Target(config, _read_config),
        "template": Target(edited(_TEMPLATE, [*_TOKENS, *_JINJA]).map(lambda t: {"prompt.jinja": t}), _read_template),
        "import": Target(_one_of_files(_folder(), [*_TOKENS, *_IN_HEADERS, *_IN_MODELS]), load_pretrained),
    }


TARGETS = _targets()


def check(target: Target, case: Case, folder: Path) -> bool:
    """Whether the files of a case are accepted.

    Raises:
      AssertionError: a refusal is not one short line with its place, or the case takes too long.
      Exception: any that is not our own.
    """
    for name, content in case.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    start = time.monotonic()
    try:
        target.read(folder)
        accepted = True
    except InputError as error:
        accepted, told = False, str(error)
        assert "\n" not in told and len(told) < _CHARACTERS, told
        overrides = case.get("overrides", b"").decode("utf-8", "replace").split("\n")
        assert str(folder) in told or any(told.startswith(repr(line)[:40]) for line in overrides if line), told
    seconds = time.monotonic() - start
    assert seconds < SECONDS, f"it takes {seconds:.1f} s"
    return accepted


def run(name: str, cases: int, first: int, folder: Path) -> dict[str, int]:
    """Checks so many cases of a target; how many there were and how many were accepted.

    Args:
      first: the seed.
      folder: for the files of each case.

    Raises:
      Exception: the smallest case that does not end as it should was found, and is kept in `folder`.
    """
    counts = {"cases": 0, "accepted": 0}
    target = TARGETS[name]

    @seed(first)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(target.cases)
    def one(case: Case) -> None:
        place = folder / str(counts["cases"])
        counts["cases"] += 1
        place.mkdir(parents=True)
        try:
            counts["accepted"] += check(target, case, place)
        except BaseException:
            save_case(folder / f"found-{name}.json", case)
            raise
        finally:
            for path in sorted(place.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            with suppress(OSError):
                place.rmdir()

    # Judgements of what a collection lacks are told, which would be thousands of lines.
    logging.disable(logging.WARNING)
    try:
        one()
    finally:
        logging.disable(logging.NOTSET)
    return counts


def save_case(path: Path, case: Case) -> None:
    """Writes a case; each byte is the character of its number."""
    path.write_text(json.dumps({name: content.decode("latin-1") for name, content in case.items()}) + "\n")


def load_case(path: Path) -> Case:
    """Reads what `save_case` has written."""
    return {name: content.encode("latin-1") for name, content in json.loads(path.read_text()).items()}
