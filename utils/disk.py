"""What a folder in the making is kept from: other processes, and a full disk that is not understood."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from utils.helpers import UserError


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other processes of ours out of a folder, until the end of this one at the latest.

    A recipe that was killed may have left a stage at work, and two at once would spoil what both write.
    """
    if os.name == "nt":  # no such locks there
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is writing {folder}: wait for it, or stop it") from error
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(folder: Path, once_there_is_room: str) -> Iterator[Path]:
    """Gives the folder; a disk that is full becomes a UserError."""
    try:
        yield folder
    except Exception as error:
        if not _disk_is_full(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder}: writing failed ({reason}): is the disk full? make room, then {once_there_is_room}"
        ) from error


def _disk_is_full(error: Exception) -> bool:
    """Whether an error says so; the libraries that write weights have no type of their own for it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
    by_library = ("PytorchStreamWriter", "inline_container", "Error while serializing")  # torch, torch, safetensors
    return any(part in str(error) for part in by_library)
