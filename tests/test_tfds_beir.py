"""Published collections: downloaded, checked and prepared by TFDS builders, from a server on this machine."""

import errno
import hashlib
import http.server
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pyarrow
import pyarrow.parquet
import pytest
from conftest import Prorank
from tensorflow_datasets.core.download.checksums import load_url_infos

from prorank_jax.data import published, tfds_beir
from prorank_jax.data.beir import read_beir
from prorank_jax.data.collections import open_collection, prepare_collection, splits
from prorank_jax.data.published import BEIR, FORUMS, NANO_BEIR, URL, ZIPS, Zip
from prorank_jax.errors import InputError


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves the zips of a folder, also from a byte on; `fault` is what goes wrong."""

    folder: Path
    fault: ClassVar[str] = ""
    served: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        file = self.folder / self.path.removeprefix("/mirror/")
        body = file.read_bytes() if file.is_file() else b""
        asked = self.headers.get("Range")
        self.served.append(file.name + (f" {asked}" if asked else ""))
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.fault != "no ranges" else 0
        if self.fault == "another":
            body = body[:-1] + b"x"
        self.send_response((206 if first else 200) if body else 404)
        if self.fault != "no length":
            self.send_header("Content-Length", str(len(body) - first + (self.fault == "longer")))
        self.end_headers()
        self.wfile.write(body[first : len(body) // 2] if self.fault in ("broken", "no length") else body[first:])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def zips(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Zips as the published ones: NFCorpus without its long training judgements, and two forums of CQADupStack."""
    folder = tmp_path_factory.mktemp("zips")
    made = tmp_path_factory.mktemp("collections")
    write_collection(made / "nfcorpus", "medicine")
    for forum in ("android", "tex"):
        write_collection(made / "cqadupstack" / forum, forum)
    for name in ("nfcorpus", "cqadupstack"):
        shutil.make_archive(str(folder / name), "zip", made, name)
    return folder


def write_collection(folder: Path, word: str) -> None:
    documents = [{"_id": f"d{i}", "title": f"Title {i}" * (i % 2), "text": f"{word} {i}"} for i in range(30)]
    queries = [{"_id": f"q{i}", "text": f"{word} {i}?", "metadata": {}} for i in range(6)]
    (folder / "qrels").mkdir(parents=True)
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split, first in (("dev", 0), ("test", 3)):
        judged = [f"q{i}\td{i}\t2\nq{i}\td{i + 7}\t0\n" for i in range(first, first + 3)]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PRORANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def mirror(zips: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Mirror]]:
    """A server of the zips, which are taken for the published ones."""
    monkeypatch.setattr(Mirror, "folder", zips, raising=False)
    monkeypatch.setattr(Mirror, "fault", "")
    monkeypatch.setattr(Mirror, "served", [])
    for file in zips.glob("*.zip"):
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        monkeypatch.setitem(ZIPS, file.stem, Zip(file.stem, file.stat().st_size, sha256))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PRORANK_BEIR_URL", f"http://127.0.0.1:{server.server_port}/mirror/")
        yield Mirror
        server.shutdown()


def refusal(source: str) -> str:
    with pytest.raises(InputError) as refused:
        prepare_collection(source)
    message = str(refused.value)
    assert "\n" not in message
    return message


def kept(cache: Path) -> list[str]:
    """The files in the cache but locks and TFDS' note on the builder."""
    files = (path for path in cache.rglob("*") if path.is_file() and path.name not in ("lock", "metadata.json"))
    return [path.relative_to(cache).as_posix() for path in files]


def test_a_named_collection_is_what_its_zip_holds(mirror: type[Mirror], zips: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(zips / "nfcorpus.zip", tmp_path)
    expected = read_beir(tmp_path / "nfcorpus", "dev")
    found = open_collection("beir/nfcorpus", "dev")
    assert (found.name, found.split) == ("beir/nfcorpus", "dev")
    assert list(found.documents.items()) == list(expected.documents.items())
    assert list(found.queries.items()) == list(expected.queries.items())
    assert list(found.qrels.items()) == list(expected.qrels.items())
    assert splits("beir/nfcorpus") == ["dev", "test"]
    open_collection("beir/nfcorpus", "test")
    assert mirror.served == ["nfcorpus.zip"]


def test_once_prepared_it_needs_neither_network_nor_zip(
    mirror: type[Mirror], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_collection("beir/nfcorpus", "test")
    shutil.rmtree(cache / "downloads")
    monkeypatch.setenv("PRORANK_BEIR_URL", "http://127.0.0.1:9/nowhere")
    assert open_collection("beir/nfcorpus", "test").qrels == first.qrels


def test_tfds_reads_what_is_prepared(mirror: type[Mirror], cache: Path) -> None:
    prepare_collection("beir/nfcorpus")
    builder = tfds_beir.Beir(config="nfcorpus", data_dir=cache / "collections")
    assert builder.is_prepared()
    assert set(builder.info.splits) == {"corpus", "queries", "qrels_dev", "qrels_test"}
    assert builder.info.splits["corpus"].num_examples == 30
    corpus = builder.as_data_source("corpus")
    # The title is kept apart, and the order is the file's.
    assert [corpus[i]["document_id"] for i in range(30)] == [f"d{i}".encode() for i in range(30)]
    assert (corpus[1]["title"], corpus[1]["text"], corpus[0]["title"]) == (b"Title 1", b"medicine 1", b"")
    assert corpus[0]["query_id"] is None
    judgement = builder.as_data_source("qrels_test")[1]
    assert [judgement[name] for name in ("query_id", "document_id", "score")] == [b"q3", b"d10", 0]


def test_the_forums_share_one_download(mirror: type[Mirror]) -> None:
    android, tex = (open_collection(f"beir/cqadupstack/{forum}", "test") for forum in ("android", "tex"))
    assert android.documents["d2"] == "android 2" and tex.documents["d2"] == "tex 2"
    assert mirror.served == ["cqadupstack.zip"]
    assert refusal("beir/cqadupstack/unix").endswith(
        "cqadupstack/unix/corpus.jsonl: not in the zip; give one of a BEIR collection"
    )


def test_of_those_that_start_together_one_downloads_and_prepares(mirror: type[Mirror]) -> None:
    names = ["beir/nfcorpus", "beir/nfcorpus", "beir/cqadupstack/tex", "beir/cqadupstack/android"]
    with ThreadPoolExecutor(4) as threads:
        one, other, tex, android = threads.map(prepare_collection, names)
    assert one == other
    assert (tex.name, android.name) == tuple(names[2:])
    assert sorted(mirror.served) == ["cqadupstack.zip", "nfcorpus.zip"]


@pytest.mark.parametrize("how", ["broken", "no length"])
def test_a_download_that_breaks_off_goes_on(
    mirror: type[Mirror], cache: Path, zips: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (zips / "nfcorpus.zip").stat().st_size
    monkeypatch.setattr(mirror, "fault", how)
    message = refusal("beir/nfcorpus")
    assert message.startswith("http://127.0.0.1:")
    assert (
        f"/mirror/nfcorpus.zip: cannot be downloaded (it broke off after {size // 2} of {size} bytes); try again, "
        "which goes on where it broke off, name a mirror in PRORANK_BEIR_URL, or give the path of the zip"
    ) in message
    # What there is of it is not taken for the zip.
    assert kept(cache) == ["downloads/nfcorpus/nfcorpus.zip.part"]
    monkeypatch.setattr(mirror, "fault", "")
    assert len(open_collection("beir/nfcorpus", "test").documents) == 30
    assert mirror.served == ["nfcorpus.zip", f"nfcorpus.zip bytes={size // 2}-"]


@pytest.mark.parametrize("fault", ["", "no ranges"])
@pytest.mark.parametrize("left", [b"", b"half of another file", b"x" * 1_000_000])
def test_what_was_left_by_another_download_is_not_trusted(
    mirror: type[Mirror], cache: Path, fault: str, left: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = cache / "downloads" / "nfcorpus" / "nfcorpus.zip.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    monkeypatch.setattr(mirror, "fault", fault)
    if fault == "" and left == b"half of another file":
        assert "its SHA-256 is" in refusal("beir/nfcorpus")
        assert kept(cache) == []
    assert len(open_collection("beir/nfcorpus", "test").documents) == 30
    assert not part.exists()


def test_another_file_than_the_published_one_is_removed(
    mirror: type[Mirror], cache: Path, zips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "fault", "another")
    body = (zips / "nfcorpus.zip").read_bytes()
    found, published = (hashlib.sha256(part).hexdigest() for part in (body[:-1] + b"x", body))
    message = refusal("beir/nfcorpus")
    assert (
        f"/mirror/nfcorpus.zip: its SHA-256 is {found}, and that of the published file {published}; it is removed: try "
        "again, or name a mirror in PRORANK_BEIR_URL"
    ) in message
    assert kept(cache) == []
    monkeypatch.setattr(mirror, "fault", "longer")
    assert f"has {len(body) + 1} bytes, and the published file {len(body)}; name a mirror" in refusal("beir/nfcorpus")
    monkeypatch.setattr(mirror, "fault", "")
    prepare_collection("beir/nfcorpus")


def test_a_zip_that_changed_after_its_download_is_removed(mirror: type[Mirror], cache: Path) -> None:
    prepare_collection("beir/cqadupstack/android")
    archive = cache / "downloads" / "cqadupstack" / "cqadupstack.zip"
    archive.write_bytes(archive.read_bytes()[:-1])
    assert "its SHA-256 is" in refusal("beir/cqadupstack/tex")
    prepare_collection("beir/cqadupstack/tex")
    assert mirror.served == ["cqadupstack.zip"] * 2


def test_a_file_that_the_mirror_lacks(mirror: type[Mirror], cache: Path) -> None:
    assert "/mirror/quora.zip: cannot be downloaded (HTTP Error 404: Not Found); try" in refusal("beir/quora")
    assert kept(cache) == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:9", "([Errno 111] Connection refused)"),
        ("nonsense", "(unknown url type: 'nonsense/quora.zip')"),
    ],
)
def test_a_mirror_that_is_none(cache: Path, url: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRORANK_BEIR_URL", url)
    assert f"{url}/quora.zip: cannot be downloaded {reason}; try again" in refusal("beir/quora")


def test_a_disk_that_the_download_fills(mirror: type[Mirror], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("prorank_jax.data.download.progress", full)
        assert refusal("beir/nfcorpus") == (
            f"{cache}/downloads/nfcorpus: cannot be written (No space left on device); free space, or name another "
            "folder in PRORANK_CACHE"
        )
    prepare_collection("beir/nfcorpus")


def test_an_unknown_name_is_answered_with_the_nearest(cache: Path) -> None:
    assert refusal("beir/scifcat") == (
        "'beir/scifcat': no such folder, zip or collection; did you mean beir/scifact or nano-beir/scifact or "
        "beir/scidocs?"
    )
    assert refusal("nothing").endswith("collection; names are as beir/scifact and nano-beir/scifact")
    assert not cache.exists()


def test_the_zips_are_those_that_tfds_knows() -> None:
    """TFDS registers sizes and checksums of the same zips for a builder of its own."""
    import tensorflow_datasets

    known = load_url_infos(Path(tensorflow_datasets.__file__).parent / "datasets" / "beir" / "checksums.tsv")
    ours = {zipped.url: (zipped.size, zipped.sha256) for zipped in ZIPS.values()}
    assert ours == {url: (int(info.size), info.checksum) for url, info in known.items()}
    assert len(BEIR) == 14 + 12 and len(FORUMS) == 12 and len(NANO_BEIR) == 13
    assert all(url.startswith(URL) for url in ours)
    # Every name of NanoBEIR says which set of BEIR it samples.
    assert {name.removeprefix("nano-") for name in NANO_BEIR} <= set(BEIR)


def nano_repository(hub: Path, repository: str) -> None:
    """A data set in the local cache of the hub, as `snapshot_download` leaves it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = hub / f"datasets--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    tables = {
        "corpus": {"_id": ["d1", "d2", "d3"], "text": ["A title and text", "two", "three"]},
        "queries": {"_id": ["q1", "q2"], "text": ["one?", "two?"]},
        "qrels": {"query-id": ["q1", "q2", "q2"], "corpus-id": ["d1", "d2", "d3"]},
    }
    for part, columns in tables.items():
        file = folder / "snapshots" / commit / part / "train-00000-of-00001.parquet"
        file.parent.mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.table(columns), file)


def test_nano_beir_comes_from_the_hub(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    nano_repository(tmp_path / "hub", "zeta-alpha-ai/NanoFiQA2018")
    found = open_collection("nano-beir/fiqa", "test")
    assert dict(found.documents) == {"d1": "A title and text", "d2": "two", "d3": "three"}
    assert found.queries == {"q1": "one?", "q2": "two?"}
    assert found.qrels == {"q1": {"d1": 1}, "q2": {"d2": 1, "d3": 1}}
    with pytest.raises(InputError, match="^nano-beir/fiqa: qrels: no split 'train'; the splits are test$"):
        open_collection("nano-beir/fiqa", "train")
    shutil.rmtree(tmp_path / "hub")
    assert open_collection("nano-beir/fiqa", "test").qrels == found.qrels
    assert refusal("nano-beir/nq").startswith("hf://datasets/zeta-alpha-ai/NanoNQ: the hub did not give it (")


def test_the_verb_says_what_there_is(mirror: type[Mirror], cache: Path, prorank: Prorank) -> None:
    status, out, err = prorank("data", "prepare", "beir/nfcorpus")
    assert status == 0, err
    assert out.startswith("beir/nfcorpus: 30 documents, 6 queries; judgements: dev 6, test 6; ")
    assert out.endswith(f" s: {cache}/collections/beir/nfcorpus/1.0.0\n")
    assert err.splitlines()[0].startswith("http://127.0.0.1:") and "nfcorpus.zip, MB 0/0" in err
    status, out, err = prorank("data", "prepare", "beir/nfcorpus")
    assert (status, err) == (0, "")
    for option in (["--out", "x"], ["--single"], ["--for-scores"]):
        status, _, err = prorank("data", "prepare", "beir/nfcorpus", *option)
        assert status == 2 and err.startswith(f"prorank: {option[0]}: is for rows, and beir/nfcorpus is a collection")


def test_training_takes_the_same_names(mirror: type[Mirror], tmp_path: Path) -> None:
    from prorank_jax.config import DataConfig
    from prorank_jax.data.mixture import open_mixture

    run = tmp_path / "run.trec"
    run.write_text("q0 Q0 d5 1 2.0 x\nq1 Q0 d6 1 2.0 x\nq2 Q0 d7 1 2.0 x\n")
    config = DataConfig(path="beir/nfcorpus", split="dev", candidates=str(run))
    (source,) = open_mixture(config, tmp_path / "rows").sources
    assert (source.name, len(source)) == ("beir/nfcorpus/dev", 3)
    misspelt = config.model_copy(update={"path": "beir/nfcorpsu"})
    with pytest.raises(InputError, match="did you mean beir/nfcorpus"):
        open_mixture(misspelt, tmp_path / "rows")


def test_mining_takes_the_same_names(mirror: type[Mirror], tmp_path: Path, prorank: Prorank) -> None:
    (tmp_path / "run.trec").write_text("q0 Q0 d5 1 2.0 x\nq0 Q0 d0 2 1.0 x\n")
    options = ("--split", "dev", "--first-stage", tmp_path / "run.trec", "--out", tmp_path / "mined.jsonl")
    status, out, err = prorank("data", "mine", "--data", "beir/nfcorpus", *options)
    assert status == 0, err
    row = json.loads((tmp_path / "mined.jsonl").read_text())
    assert (row["pos_ids"], row["neg_ids"], row["neg"]) == (["d0"], ["d5"], ["Title 5 medicine 5"])


def test_the_address_is_the_official_one_where_no_mirror_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(published.URL_VARIABLE, raising=False)
    assert ZIPS["scifact"].url == f"{URL}/scifact.zip"


def test_a_zip_by_its_path_needs_no_checksum(zips: Path, cache: Path) -> None:
    found = open_collection(zips / "nfcorpus.zip", "test")
    assert found.name == "nfcorpus" and len(found.documents) == 30
    assert refusal(str(zips / "cqadupstack.zip")) == (
        f"{zips}/cqadupstack.zip: holds 2 collections (cqadupstack/android, cqadupstack/tex); unpack it and give the "
        "folder of one"
    )
    assert zipfile.is_zipfile(zips / "nfcorpus.zip")
