"""TFDS builders of collections in BEIR layout, without Beam and without TensorFlow.

    Beir        the published sets, from their zips            Beir(config="scifact", data_dir=...)
    NanoBeir    NanoBEIR, from the Hugging Face hub            NanoBeir(config="scifact", data_dir=...)
    LocalBeir   a folder or a zip                              local_beir("mine", "mine", path)(data_dir=...)

The splits are `corpus`, `queries` and `qrels_<split>`, in the order of their files. Malformed judgements have no split:
what is wrong with them is kept, for those who ask for it. TFDS' own writer holds a split in memory to shuffle it, and
past 1 GB needs TensorFlow; `_generate_splits` writes records as they come.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow_datasets.public_api as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.download.checksums import UrlInfo
from tensorflow_datasets.core.units import Size

from prorank_jax.data.beir_files import BeirFiles, FolderFiles, NanoFiles, ZipFiles, given_twice
from prorank_jax.data.document_index import TABLES, IndexWriter, first_given_twice
from prorank_jax.data.files import from_hub
from prorank_jax.data.prepared_collection import CORPUS, QUERIES, TFDS_VERSION, PreparedCollection, Shard
from prorank_jax.data.published import BEIR, NANO_BEIR, ZIPS, zip_of
from prorank_jax.data.tf_example import pack
from prorank_jax.errors import InputError
from prorank_jax.progress import noted

SHARD_RECORDS = 1_000_000
# Single records are read: a chunk of more would be read and unpacked whole for each.
_WRITER_OPTIONS = "group_size:1,zstd:1"

Fields = dict[str, str | int]


@dataclass(eq=False)
class BeirConfig(tfds.core.BuilderConfig):
    """A collection."""

    collection: str = ""
    """Its name in tables and messages."""
    open: Callable[[Any], BeirFiles] | None = None
    """Its files, of TFDS' download manager."""


def _open_published(inside: str, dl_manager: Any) -> BeirFiles:
    return ZipFiles(Path(dl_manager.download(zip_of(inside).url)), inside)


def _open_nano(repository: str, dl_manager: Any) -> BeirFiles:
    return NanoFiles(from_hub(repository, ["corpus/*", "queries/*", "qrels/*"], place=f"hf://datasets/{repository}"))


def _open_local(path: Path, dl_manager: Any) -> BeirFiles:
    return ZipFiles(path) if path.is_file() else FolderFiles(path)


def config_name(collection: str) -> str:
    """`beir/cqadupstack/android` -> `cqadupstack.android`, as TFDS has no slashes in names."""
    return collection.partition("/")[2].replace("/", ".")


def _qrels_parts(splits: Iterable[str]) -> dict[str, str]:
    """TFDS' name of each split of judgements -> its own name."""
    parts: dict[str, str] = {}
    for split in splits:
        part = "qrels_" + re.sub(r"[^A-Za-z0-9_]", "_", split)
        while part in parts:
            part += "_"
        parts[part] = split
    return parts


def _write(examples: Iterable[tuple[int, Fields]], template: Any) -> list[int]:
    """Writes the files of a split as they come; returns the number of records in each."""
    waiting = iter(examples)
    lengths: list[int] = []
    for first in waiting:
        writer = ArrayRecordWriter(f"{template.filepath_prefix()}-{len(lengths)}.unfinished", _WRITER_OPTIONS)
        written = 0
        try:
            for _, fields in chain([first], islice(waiting, SHARD_RECORDS - 1)):
                writer.write(pack(fields))
                written += 1
        finally:
            try:
                writer.close()
            except RuntimeError as error:  # of the disk; what was written before is only then known to be lost
                raise OSError(str(error).partition(";")[0]) from None
        lengths.append(written)
    for number, path in enumerate(template.sharded_filepaths(len(lengths))):
        Path(f"{template.filepath_prefix()}-{number}.unfinished").rename(path)
    return lengths


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Does nothing: no bucket knows these data, and TFDS makes a temporary folder of each question."""


class BeirBuilder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version(TFDS_VERSION)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keeps the names of the builders out of TFDS' registry, which has a `beir` of its own."""
        super().__init_subclass__(skip_registration=True, **kwargs)

    @property
    def url_infos(self) -> dict[str, UrlInfo]:
        """What the downloads must be; their addresses depend on the environment."""
        return {}

    def _info(self) -> tfds.core.DatasetInfo:
        def text(doc: str) -> tfds.features.Text:
            return tfds.features.Text(optional=True, doc=doc)

        return _Info(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "document_id": text("In corpus and qrels."),
                    "title": text("In corpus; empty where the document has none."),
                    "query_id": text("In queries and qrels."),
                    "text": text("In corpus and queries."),
                    "score": tfds.features.Scalar(np.int64, optional=True, doc="In qrels: the judgement."),
                }
            ),
            homepage="https://github.com/beir-cellar/beir",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Fields]]]:
        config = cast(BeirConfig, self.builder_config)
        assert config.open is not None
        self._beir_files = files = config.open(dl_manager)
        parts = [CORPUS, QUERIES, *_qrels_parts(files.splits())]
        return {part: self._generate_examples(files, part) for part in parts}

    def _generate_examples(self, files: BeirFiles, part: str) -> Iterator[tuple[int, Fields]]:
        """Numbered records of a split."""
        if part == CORPUS:
            records = self._documents(files)
        elif part == QUERIES:
            records = ({"query_id": entry.id, "text": entry.text} for entry in files.queries())
        else:
            qrels = files.qrels(_qrels_parts(files.splits())[part])
            records = (
                {"query_id": query_id, "document_id": document_id, "score": score}
                for query_id, judged in qrels.items()
                for document_id, score in judged.items()
            )
        yield from enumerate(records)

    def _documents(self, files: BeirFiles) -> Iterator[Fields]:
        """The records of the corpus; writes the tables of the documents, and says how far they are."""
        config, folder = cast(BeirConfig, self.builder_config), Path(self.data_dir)
        index = IndexWriter(folder)
        try:
            for _, document_id, title, text in noted(files.corpus(), config.collection, "documents prepared"):
                index.add(document_id, title, text)
                yield {"document_id": document_id, "title": title, "text": text}
            self._key = index.finish()
        finally:
            index.close()
        if (repeated := first_given_twice(folder)) is not None:
            raise InputError(given_twice(next(islice(files.corpus(), repeated, None))))

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[tfds.core.SplitInfo]:
        folder = Path(self.data_dir)
        infos, parts = [], {}
        refused: dict[str, str] = {}
        generators = self._split_generators(dl_manager)
        splits = _qrels_parts(self._beir_files.splits())
        for part, examples in generators.items():
            template = self._get_filename_template(split_name=part)
            try:
                lengths = _write(examples, template)
            except InputError as error:
                # It is refused where somebody asks for this split.
                if part not in splits or len(refused) == len(splits) - 1:
                    raise
                refused[splits[part]] = str(error)
                continue
            paths = [Path(path) for path in template.sharded_filepaths(len(lengths))]
            sizes = [path.stat().st_size for path in paths]
            shards = zip(paths, sizes, lengths, strict=True)
            parts[part] = tuple(Shard(path.name, size, records) for path, size, records in shards)
            infos.append(
                tfds.core.SplitInfo(name=part, shard_lengths=lengths, num_bytes=sum(sizes), filename_template=template)
            )
        PreparedCollection(
            folder=folder,
            name=cast(BeirConfig, self.builder_config).collection,
            key=self._key,
            corpus=parts[CORPUS],
            queries=parts[QUERIES],
            qrels={split: parts[part] for part, split in splits.items() if part in parts},
            tables={name: (folder / name).stat().st_size for name in TABLES},
            places={split: self._beir_files.place(split) for split in splits.values()},
            refused=refused,
        ).write()
        return infos

    # TFDS prints both to standard output.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


class Beir(BeirBuilder):
    """The published sets of BEIR (arXiv 2104.08663); the configurations are `beir/...` of `published.BEIR`."""

    BUILDER_CONFIGS = [
        BeirConfig(name=config_name(name), collection=name, open=partial(_open_published, inside))
        for name, inside in BEIR.items()
    ]

    @property
    def url_infos(self) -> dict[str, UrlInfo]:
        return {zipped.url: UrlInfo(Size(zipped.size), zipped.sha256, f"{zipped.name}.zip") for zipped in ZIPS.values()}


class NanoBeir(BeirBuilder):
    """NanoBEIR: samples of thirteen sets of BEIR with 50 queries each, and their judgements as the split `test`."""

    BUILDER_CONFIGS = [
        BeirConfig(name=config_name(name), collection=name, open=partial(_open_nano, repository))
        for name, repository in NANO_BEIR.items()
    ]


def local_beir(config: str, collection: str, path: Path) -> type[BeirBuilder]:
    """The builder of a folder or a zip, with one configuration, called `collection` in tables and messages."""

    class LocalBeir(BeirBuilder):
        BUILDER_CONFIGS = [BeirConfig(name=config, collection=collection, open=partial(_open_local, path))]

    return LocalBeir


def prepare(builder: BeirBuilder, downloads: Path) -> None:
    """Writes what `builder` reads as ArrayRecord files.

    Args:
      downloads: where the zips of BEIR are; one that is not there is downloaded by TFDS.

    Raises:
      InputError: a file is missing or malformed, with its line.
      OSError: the files cannot be written; nothing of them is left.
    """
    config = tfds.download.DownloadConfig(
        manual_dir=downloads, extract_dir=downloads, force_checksums_validation=True, try_download_gcs=False
    )
    handlers = logging.root.handlers[:]
    try:
        builder.download_and_prepare(download_dir=downloads, download_config=config, file_format="array_record")
    finally:
        # absl gives the root logger a handler with its first message, and then all warnings look otherwise.
        logging.root.handlers[:] = handlers
