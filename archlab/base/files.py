"""Files that are whole or not there at all, files that grow by whole lines, and locks that end with their process.

A file is written beside its place under another name, made safe on the disk, and only then given its own name: whoever
reads finds the old one or the new one, whenever the writer is killed. A disk without room is `NoRoom`, in one line.
"""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from archlab.base.errors import NoRoom, UserError, shortened

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says of a full disk, a full quota, and a file that may not grow."""

KEPT_OUT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO, errno.ESTALE)
"""What the system says of a file that this user may not write or read, or that its disk does not serve."""

NOT_HERE = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK)
"""What some network file systems say to being asked for safety or for a lock: they have none to give."""

PARTS = ".*.part*"
"""What a writer that was killed leaves behind, as a glob."""


def errno_of(error: BaseException) -> int | None:
    """The system's number of an error. Libraries in Rust put it into their words."""
    if isinstance(error, OSError):
        return error.errno
    said = re.search(r"os error (\d+)", str(error))
    return int(said[1]) if said else None


def named_by(error: BaseException) -> str | None:
    """The file that an error of the system names, which some libraries give in bytes."""
    name = getattr(error, "filename", None)
    return os.fsdecode(name) if isinstance(name, (str, bytes, os.PathLike)) else None


def no_room(error: BaseException, path: Path | str | None = None) -> NoRoom | None:
    """The error as one of a full disk; None where it is another."""
    if isinstance(error, NoRoom):
        return error
    number = errno_of(error)
    if number not in FULL:
        return None
    where = path or named_by(error) or "what is printed"
    return NoRoom(f"{where}: cannot be written: {os.strerror(number).lower()}; make room, then do it again")


def kept_out(error: BaseException, path: Path | str | None = None) -> UserError | None:
    """The error as one of a file that cannot be written or read here; None where it is another, or names no file."""
    where, number = named_by(error) or path, errno_of(error)
    if isinstance(error, UserError) or where is None or number not in KEPT_OUT:
        return None
    return UserError(
        f"{where}: cannot be written or read: {os.strerror(number).lower()}; give it the rights that it needs, or use"
        " another folder"
    )


@contextmanager
def whole(path: Path, named: Callable[[Path], Path] | None = None) -> Iterator[Path]:
    """A name beside `path` to write to; once the block ends the file takes its place. Where it fails nothing is left.

    The name keeps the suffix, by which libraries know what to write. `named` gives the place where what was written
    decides it. Raises NoRoom, or what the block raises.
    """
    path = path.resolve()  # of a link, what it leads to is replaced, and the link stays
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        sync(part)
        os.replace(part, named(part) if named else path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if full := no_room(error, path):
            raise full from None
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same of a folder that is not there yet: its files are written beside its place. Raises NoRoom."""
    path = path.resolve()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.mkdir()
        yield part
        os.rename(part, path)
        sync(path.parent)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if full := no_room(error, path):
            raise full from None
        raise


TOO_LONG = "no file can have so long a name; use a shorter one"

LONGEST_NAME = 200
"""Bytes: 255 on usual disks, and while a file is being written it has a longer one."""


def check_folder(option: str, file: Path) -> None:
    """Raises UserError where a file has no folder to go to, as one that was misspelt should not come to be, or too long a name."""
    if len(os.fsencode(file.name)) > LONGEST_NAME:
        raise UserError(f"{option}={shortened(str(file))}: {TOO_LONG}")
    if not file.parent.is_dir():
        raise UserError(f"{option}={file}: {file.parent} is not a folder; make it first, or give another file")


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    with whole(path) as part:
        part.write_bytes(content)


def there(path: Path) -> bool:
    """Whether there is a file or a folder of this name, which may be longer than any can be: overrides are asked about too."""
    try:
        return path.exists()
    except OSError:
        return False


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is safe on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
    finally:
        os.close(descriptor)


CLOSED = -1
"""In place of the descriptor of a file that is closed: the system gives out no such number."""


class Lines:
    """A file that grows by whole lines. `length` is in bytes; opened with one, the file is first cut back to it."""

    def __init__(self, path: Path, length: int = 0):
        self.path, self.length = path, length
        self.descriptor: int = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self.descriptor, length)

    def add(self, lines: str) -> None:
        """All of the lines or, where there is no room, none of them."""
        content, written = lines.encode(), 0
        try:
            while written < len(content):
                written += os.pwrite(self.descriptor, content[written:], self.length + written)
        except OSError as error:
            os.ftruncate(self.descriptor, self.length)
            raise no_room(error, self.path) or error from None
        self.length += written

    def sync(self) -> None:
        os.fsync(self.descriptor)

    def close(self) -> None:
        if self.descriptor != CLOSED:
            os.close(self.descriptor)
        self.descriptor = CLOSED


def lock(descriptor: int, wait: bool = False) -> bool:
    """Whether this process now holds the open file; the system lets go of it when the descriptor closes, or we die."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NOT_HERE:
            raise
    return True


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits until no other process is inside a block of the same path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)
