"""One file of shards as it lies on disk: bytes by place, and the refusal that names them."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from mdm_apple.data.dataset import DataError
from mdm_apple.data.read_picture import shown
from mdm_apple.errors import system_reason
from mdm_apple.storage.files import FileError


class BadShardError(DataError):
    """A shard that is refused. byte: where in the file it shows. reason: what is wrong there."""

    def __init__(self, shard: str, byte: int, reason: str) -> None:
        super().__init__(
            f"{shown(shard)}: byte {byte}: {reason}; write the shard anew, or leave it out with "
            "--skip-bad-shards."
        )
        self.byte, self.reason = byte, reason


class ShardFile:
    """A shard that is open for reading; use it in `with`.

    size: bytes when it was opened. Raises FileError if the system cannot open or read it.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # never waits for a pipe
        except OSError as error:
            raise self._unreadable(error) from None
        self.size = os.fstat(self._descriptor).st_size

    def read(self, place: int, count: int) -> bytes:
        """Up to `count` bytes from `place` on; fewer at the end of the file."""
        try:
            data = os.pread(self._descriptor, count, place)
            while len(data) < min(count, self.size - place):
                more = os.pread(self._descriptor, count - len(data), place + len(data))
                if not more:  # it was cut off meanwhile
                    break
                data += more
        except OSError as error:
            raise self._unreadable(error) from None
        return data

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def _unreadable(self, error: OSError) -> FileError:
        return FileError(f"{shown(self.name)}: cannot be read; {system_reason(error)}")
