"""Folders and zips: prepared once, as `read_beir` reads them; what is wrong with one; caches that are not trusted."""

import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from test_documents import ROWS, TEXTS, write_collection

from prorank_jax.data import tfds_beir
from prorank_jax.data.beir import read_beir
from prorank_jax.data.collections import describe, is_collection, open_collection, prepare_collection, splits
from prorank_jax.errors import InputError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRORANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return write_collection(tmp_path / "made", ROWS)


def zipped(folder: Path, *, inside: str | None = "made") -> Path:
    """A zip of a folder, in which it has the name `inside`, or none."""
    return Path(shutil.make_archive(str(folder), "zip", folder.parent if inside else folder, inside))


def refusal(source: Path | str, split: str = "test") -> str:
    with pytest.raises(InputError) as refused:
        open_collection(source, split)
    message = str(refused.value)
    assert "\n" not in message
    return message


def prepared_folders(cache: Path) -> list[Path]:
    """Folders of the cache that a later command would trust."""
    return sorted(path.parent for path in cache.rglob("collection.json"))


@pytest.mark.parametrize(("name", "split"), [("scifact", "test"), ("nfcorpus", "dev"), ("trec-dl19", "test")])
def test_a_folder_is_what_it_is_in_memory(
    shared: Path, name: str, split: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = (shared / "data" / name).resolve()
    expected = read_beir(folder, split)
    in_memory = caplog.messages.copy()
    caplog.clear()
    found = open_collection(folder, split)
    assert (found.name, found.split) == (expected.name, expected.split) == (name, split)
    assert list(found.documents.items()) == list(expected.documents.items())
    assert list(found.queries.items()) == list(expected.queries.items())
    # Order of judgements included.
    assert [(key, list(row.items())) for key, row in found.qrels.items()] == [
        (key, list(row.items())) for key, row in expected.qrels.items()
    ]
    assert caplog.messages == in_memory and len(in_memory) == (name == "trec-dl19")


@pytest.mark.parametrize("inside", ["made", None])
def test_a_zip_is_what_its_folder_is(made: Path, inside: str | None) -> None:
    found = open_collection(zipped(made, inside=inside), "test")
    assert (found.name, dict(found.documents)) == ("made", TEXTS)
    assert (found.queries, found.qrels) == ({"q": "what?"}, {"q": {"b": 1}})


def test_the_top_of_a_zip_goes_before_its_folders(made: Path) -> None:
    archive = zipped(made, inside=None)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("older/corpus.jsonl", '{"_id": "old", "text": "x"}\n')
    assert dict(open_collection(archive, "test").documents) == TEXTS


def test_members_of_a_zip_are_written_nowhere(made: Path, tmp_path: Path, cache: Path) -> None:
    archive = zipped(made)
    with zipfile.ZipFile(archive, "a") as opened:
        opened.writestr("../../escaped.txt", "x")
        opened.writestr("/absolute.txt", "x")
        opened.writestr("__MACOSX/made/._corpus.jsonl", "x")
    assert len(open_collection(archive, "test").documents) == 7
    assert not list(tmp_path.parent.rglob("escaped.txt")) and not Path("/absolute.txt").exists()
    assert not list(cache.rglob("*.jsonl"))


def test_it_is_prepared_once(made: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_collection(made)
    monkeypatch.setattr(tfds_beir, "prepare", None)
    assert prepare_collection(made) == first
    # However the folder is named.
    monkeypatch.chdir(made.parent)
    assert prepare_collection("made") == first
    assert splits("made") == ["test"]


def test_a_cache_that_cannot_be_written_is_read(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare_collection(made)

    def denied(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("prorank_jax.data.collections.alone", denied)
    assert prepare_collection(made) == first
    (made / "queries.jsonl").write_text('{"_id": "q", "text": "changed"}\n')
    assert "cannot be written (Permission denied); free space, or name another" in refusal(made)


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/dev.tsv"])
def test_a_changed_file_is_read_again(made: Path, cache: Path, file: str) -> None:
    first = prepare_collection(made)
    lines = {"corpus.jsonl": '{"_id": "new", "text": "x"}\n', "queries.jsonl": '{"_id": "new", "text": "x"}\n'}
    with (made / file).open("a") as opened:
        opened.write(lines.get(file, "q\ta\t1\n"))
    second = prepare_collection(made)
    assert second.folder != first.folder
    # The one before is whole: a command that was started with it goes on with it.
    assert prepared_folders(cache) == sorted([first.folder, second.folder])
    assert open_collection(made, "test").documents.get("new") == ("x" if file == "corpus.jsonl" else None)


def test_two_of_one_name_are_two(made: Path, tmp_path: Path) -> None:
    other = write_collection(tmp_path / "elsewhere" / "made", ROWS[:2])
    assert len(open_collection(made, "test").documents) == 7
    assert len(open_collection(other, "test").documents) == 2


@pytest.mark.parametrize("other", ["", '{"version": 1, "name": "made"}', "[]", '{"vers'])
def test_what_another_version_prepared_is_prepared_again(
    made: Path, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = prepare_collection(made).folder
    about = json.loads((folder / "collection.json").read_text())
    (folder / "collection.json").write_text(other or json.dumps(about | {"version": 0}))
    assert len(open_collection(made, "test").documents) == 7
    assert caplog.messages == [f"{folder}: was prepared by another version of prorank_jax; it is prepared again"]
    assert json.loads((folder / "collection.json").read_text()) == about


@pytest.mark.parametrize("pattern", ["*-corpus.*", "*-qrels_test.*", "hashes.npy", "ids.bin"])
@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_damaged_file_is_not_trusted(made: Path, pattern: str, how: str, caplog: pytest.LogCaptureFixture) -> None:
    (file,) = prepare_collection(made).folder.glob(pattern)
    if how == "removed":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2)
    assert dict(open_collection(made, "test").documents) == TEXTS
    assert caplog.messages == [f"{file}: is not the file that collection.json lists; it is prepared again"]


def test_what_a_killed_process_left_is_removed(made: Path, cache: Path) -> None:
    """TFDS writes to a folder beside, and renames it when it is whole."""
    folder = prepare_collection(made).folder
    unfinished = folder.rename(folder.with_name("1.0.0.incompleteABC123"))
    (unfinished / "collection.json").unlink()
    assert dict(open_collection(made, "test").documents) == TEXTS
    assert not unfinished.exists()


def test_one_prepares_and_the_others_wait(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[None] = []
    prepare = tfds_beir.prepare

    def counted(builder: tfds_beir.BeirBuilder, downloads: Path) -> None:
        times.append(None)
        prepare(builder, downloads)

    monkeypatch.setattr(tfds_beir, "prepare", counted)
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(prepare_collection(made))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == 1 and len(found) == 3 and found[0] == found[1] == found[2]


def test_a_full_disk_is_one_line_and_nothing_is_left(tmp_path: Path, cache: Path) -> None:
    """A limit on the size of files stands for the disk: writing fails in the same way, by the writer of records."""
    rows = [{"_id": f"d{i}", "text": os.urandom(2000).hex()} for i in range(300)]
    folder = write_collection(tmp_path / "large", rows)
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1))\n"
        "sys.argv = ['prorank', 'data', 'prepare', sys.argv[1]]\n"
        "from prorank_jax.cli import main; main()\n"
    )
    limited = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True)
    assert limited.returncode == 2, limited.stderr
    assert limited.stderr.startswith(f"prorank: {cache}/collections/local_beir/large-")
    assert "/1.0.0: cannot be written (" in limited.stderr and limited.stderr.count("\n") == 1
    assert limited.stderr.endswith("); free space, or name another folder in PRORANK_CACHE\n")
    assert [path.name for path in cache.rglob("*") if path.is_file() and path.name != "metadata.json"] == ["lock"]
    assert len(open_collection(folder, "test").documents) == 300


def test_a_cache_that_cannot_be_made(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRORANK_CACHE", str(tmp_path / "file"))
    assert "cannot be written (Not a directory); free space, or name another folder in PRORANK_CACHE" in refusal(made)


Break = Callable[[Path], object]
FAULTS: dict[str, tuple[Break, str]] = {
    "bad JSON": (
        lambda folder: (folder / "corpus.jsonl").write_text('{"_id": "b", "text": "x"}\n{"_id": \n'),
        "{folder}corpus.jsonl:2: column 9: not valid JSON (Expecting value); mend that line",
    ),
    "id with a space": (
        lambda folder: (folder / "corpus.jsonl").write_text('{"_id": "b c", "text": "x"}\n'),
        "{folder}corpus.jsonl:1: _id='b c' is empty or has white space, which a TREC run cannot hold; rename it",
    ),
    "id given twice": (
        lambda folder: (folder / "corpus.jsonl").write_text('{"_id": "b", "text": ""}\n\n{"_id": "b", "text": "x"}\n'),
        "{folder}corpus.jsonl:3: _id='b' was given on a line before; ids must differ",
    ),
    "query given twice": (
        lambda folder: (folder / "queries.jsonl").write_text('{"_id": "q", "text": "x"}\n' * 2),
        "{folder}queries.jsonl:2: _id='q' was given on a line before; ids must differ",
    ),
    "no documents": (
        lambda folder: (folder / "corpus.jsonl").write_text(""),
        "{folder}corpus.jsonl: is empty; write one JSON object a line",
    ),
    "wrong columns": (
        lambda folder: (folder / "qrels" / "test.tsv").write_text("q b\n"),
        "{folder}qrels/test.tsv:1: 'q b' has 2 columns; write query id, document id and judgement, or TREC's four: "
        "query id, 0, document id and judgement",
    ),
    "no splits": (
        lambda folder: (folder / "qrels" / "test.tsv").unlink(),
        "{folder}qrels: holds no .tsv file; a BEIR folder has its judgements there",
    ),
    "no query known": (
        lambda folder: (folder / "qrels" / "test.tsv").write_text("other\tb\t1\n"),
        "{folder}qrels/test.tsv: none of its 1 queries is in queries.jsonl (first: 'other'); use the qrels of this "
        "collection",
    ),
    "no document known": (
        lambda folder: (folder / "qrels" / "test.tsv").write_text("q\tother\t1\n"),
        "{folder}qrels/test.tsv: names no document of corpus.jsonl (first: 'other'); use the qrels of this collection",
    ),
    "nothing relevant": (
        lambda folder: (folder / "qrels" / "test.tsv").write_text("q\tb\t0\nq\ta\t-1\n"),
        "{folder}qrels/test.tsv: judges no document relevant (above 0); nothing can be measured by it or learnt",
    ),
    "not UTF-8": (
        lambda folder: (folder / "corpus.jsonl").write_bytes(b'{"_id": "b", "text": "\xff"}\n'),
        "{folder}corpus.jsonl:1: byte 23 of the line is not UTF-8; save the file as UTF-8",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_is_wrong_is_said_with_its_place(made: Path, fault: str, kind: str) -> None:
    wrong, message = FAULTS[fault]
    wrong(made)
    if kind == "folder":
        assert refusal(made) == message.replace("{folder}", f"{made}/")
        # As the reader that holds all in memory says it.
        with pytest.raises(InputError) as refused:
            read_beir(made, "test")
        assert str(refused.value) == message.replace("{folder}", f"{made}/")
    else:
        assert refusal(zipped(made)) == message.replace("{folder}", f"{made}.zip!/made/")


def test_a_fault_leaves_nothing_that_is_trusted(made: Path, cache: Path) -> None:
    lines = (made / "corpus.jsonl").read_text()
    (made / "corpus.jsonl").write_text(lines + lines.splitlines()[0] + "\n")
    refusal(made)
    assert prepared_folders(cache) == []
    (made / "corpus.jsonl").write_text(lines)
    assert dict(open_collection(made, "test").documents) == TEXTS


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_malformed_split_is_refused_only_where_it_is_asked_for(made: Path, kind: str) -> None:
    (made / "qrels" / "train.tsv").write_text("q\tb\t1\nq\ta\tyes\n")
    (made / "qrels" / "._test.tsv").write_bytes(b"\x00\xff")
    source = made if kind == "folder" else zipped(made)
    for _ in range(2):  # prepared, and read back
        assert open_collection(source, "test").qrels == {"q": {"b": 1}}
        assert "train.tsv:2: judgement 'yes' is not an integer; write 0, 1, 2, ..." in refusal(source, "train")
        assert refusal(source, "dev") == "made: qrels: no split 'dev'; the splits are test"
    # Hidden files, as macOS puts next to each, are no splits.
    assert splits(source) == ["test", "train"]
    prepared = prepare_collection(source)
    assert "judgements: test 1; not readable: train (" in describe(prepared, 0.0)
    # A collection prepared before there was such a thing is read.
    about = json.loads((prepared.folder / "collection.json").read_text())
    del about["refused"]
    (prepared.folder / "collection.json").write_text(json.dumps(about))
    assert open_collection(source, "test").qrels == {"q": {"b": 1}}


def test_nothing_but_malformed_splits_is_refused(made: Path, cache: Path) -> None:
    (made / "qrels" / "test.tsv").write_text("q\tb\tyes\n")
    with pytest.raises(InputError, match="test.tsv:1: judgement 'yes' is not an integer"):
        prepare_collection(made)
    assert prepared_folders(cache) == []


def test_trec_judgements_beside_beirs_are_a_split(shared: Path) -> None:
    folder = shared / "trials" / "03-trec-qrels-in-the-folder" / "collection"
    assert open_collection(folder, "test").qrels == {"q1": {"d1": 1}, "q2": {"d3": 2}, "q3": {"d6": 1}}
    assert open_collection(folder, "trec_test").qrels == {"q1": {"d1": 1}, "q2": {"d3": 1}}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_null_title_is_prepared_as_none(made: Path, shared: Path, kind: str) -> None:
    shutil.copytree(shared / "trials" / "04-title-null", made, dirs_exist_ok=True)
    (made / "README.md").unlink()
    found = open_collection(made if kind == "folder" else zipped(made), "test")
    assert dict(found.documents) == {"d0": "a dog", "d1": "Cats a cat"}


def test_a_split_that_is_not_there(made: Path) -> None:
    assert refusal(made, "train") == "made: qrels: no split 'train'; the splits are test"


def test_splits_that_tfds_cannot_name_differ(made: Path) -> None:
    for split, document in (("v1.0", "a"), ("v1-0", "c"), ("v1_0", "10")):
        (made / "qrels" / f"{split}.tsv").write_text(f"q\t{document}\t1\n")
    assert splits(made) == ["test", "v1-0", "v1.0", "v1_0"]
    found = {split: open_collection(made, split).qrels["q"] for split in splits(made)}
    assert found == {"test": {"b": 1}, "v1-0": {"c": 1}, "v1.0": {"a": 1}, "v1_0": {"10": 1}}


def test_what_is_no_zip(tmp_path: Path, made: Path) -> None:
    wrong = tmp_path / "wrong.zip"
    wrong.write_text("<html>Not found</html>")
    assert refusal(wrong) == f"{wrong}: not readable as a zip (File is not a zip file); make or download it again"
    with zipfile.ZipFile(wrong, "w") as opened:
        opened.writestr("readme.txt", "x")
    assert refusal(wrong) == f"{wrong}!/corpus.jsonl: not in the zip; give one of a BEIR collection"
    assert refusal(tmp_path / "missing.zip").startswith(f"'{tmp_path}/missing.zip': no such folder, zip or collection;")
    cut = zipped(made)
    cut.write_bytes(cut.read_bytes()[:-30])
    assert refusal(cut).startswith(f"{cut}: not readable as a zip (")


def test_a_damaged_member_of_a_zip(tmp_path: Path) -> None:
    rows = [{"_id": f"d{i}", "text": os.urandom(50).hex()} for i in range(200)]
    archive = zipped(write_collection(tmp_path / "made", rows))
    body = bytearray(archive.read_bytes())
    start = body.index(b"made/corpus.jsonl") + 200
    body[start : start + 50] = bytes(50)
    archive.write_bytes(body)
    message = refusal(archive)
    assert message.startswith(f"{archive}!/made/corpus.jsonl")
    assert message.endswith("; make or download the zip again")


def test_what_is_a_collection(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}\n")
    assert is_collection(made) and is_collection("beir/scifact") and is_collection("x.zip")
    assert is_collection("beir/misspelt")
    assert not is_collection(rows) and not is_collection(tmp_path) and not is_collection("hf://datasets/a/b")
    assert refusal(rows).startswith(f"{rows}: is no collection; give a BEIR folder (corpus.jsonl, queries.jsonl and ")
    # What is here goes before what is known by name.
    write_collection(tmp_path / "beir" / "scifact", ROWS[:1])
    monkeypatch.chdir(tmp_path)
    assert list(open_collection("beir/scifact", "test").documents) == ["b"]


def test_warnings_look_as_ever_after_preparing(made: Path) -> None:
    """TFDS logs by absl, which would set up Python's logging for the whole process."""
    with (made / "qrels" / "test.tsv").open("a") as qrels:
        qrels.write("q\tgone\t1\n")
    program = "import sys; from prorank_jax.data.collections import open_collection as o; o(sys.argv[1], 'test')"
    done = subprocess.run([sys.executable, "-c", program, str(made)], capture_output=True, text=True)
    assert done.stdout == ""
    warned = f"{made}/qrels/test.tsv: 1 judgements of documents that corpus.jsonl lacks (first: 'gone') count in "
    assert done.stderr.splitlines()[-1] == warned + "measures only"


def test_preparing_is_quiet_unless_it_is_long(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prorank_jax.data.collections._QUIET_SECONDS", 1000.0)
    prepare_collection(made)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("prorank_jax.data.collections._QUIET_SECONDS", 0.0)
    found = prepare_collection(write_collection(tmp_path / "other", ROWS))
    assert capsys.readouterr() == ("", f"other: 7 documents prepared in 0 s: {found.folder}\n")
