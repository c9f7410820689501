"""Records of ArrayRecord files by position, for any number of threads and after a fork."""

import bisect
import os
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

# One thread reads one record: what is read ahead of it would be thrown away.
_SINGLE = "readahead_buffer_size:0,max_parallelism:1"
_SEQUENTIAL = 512
"""Records that are read at a time where all are read."""


class Records:
    """The records of files, numbered through.

    `ArrayRecordDataSource` of grain reads by a call that takes 200 us for one record, whatever its size; to seek and
    then read takes 10. Files are opened when they are first read from, by each process anew: a reader's threads and
    a held lock do not survive a fork.
    """

    def __init__(self, files: Sequence[Path], lengths: Sequence[int]) -> None:
        """Takes the files and the number of records in each."""
        self._files = [str(file) for file in files]
        self._ends = list(accumulate(lengths))
        self._open_none()

    def _open_none(self) -> None:
        self._process = os.getpid()
        self._readers: list[ArrayRecordReader | None] = [None] * len(self._files)
        self._locks = [threading.Lock() for _ in self._files]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> bytes:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        if self._process != os.getpid():
            self._open_none()
        shard = bisect.bisect_right(self._ends, index)
        with self._locks[shard]:
            reader = self._readers[shard]
            if reader is None:
                reader = ArrayRecordReader(self._files[shard], _SINGLE, file_reader_buffer_size=4096)
                self._readers[shard] = reader
            reader.seek(index - (self._ends[shard - 1] if shard else 0))
            return bytes(reader.read())

    def __iter__(self) -> Iterator[bytes]:
        """All records in order, by readers of its own."""
        start = 0
        for file, end in zip(self._files, self._ends, strict=True):
            reader = ArrayRecordReader(file, _SINGLE)
            try:
                for first in range(0, end - start, _SEQUENTIAL):
                    yield from reader.read(first, min(first + _SEQUENTIAL, end - start))
            finally:
                reader.close()
            start = end
