"""Files that are all there or not there at all: written aside, hashed on the way, synced and renamed. Large ones are
mapped instead of read, so that what they hold is memory which the system can take back at any time.

A mapped file may be removed or replaced by another, but must not be written to or cut short.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SettingError, StorageError

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Bytes = bytes | memoryview

LARGE = 64 << 20
"""From this size in bytes on files are mapped instead of read."""
_SMALL = 1 << 20
_STEP = 1 << 20  # a piece is hashed and written in steps that stay in cache in between
ZEROS = bytes(_STEP)
WRITE_BACK = 8 << 20
"""So many bytes are written before they are sent on to the disk."""


def write_pieces(path: str | Path, pieces: Iterable[Bytes], *, durable: bool = False) -> tuple[str, int]:
    """Write a file from its pieces and return the SHA-256 (in hex) and the size of all. Raises `StorageError`; an older
    file stays whole.

    `durable` waits until the file and its name are on the disk.
    """
    path = Path(path)
    aside = path.with_name(path.name + ".tmp")
    hashed, size = hashlib.sha256(), 0
    with writing(path):
        try:
            with open(aside, "wb") as file, ExitStack() as stack:
                beside, going = _Beside(stack), 0
                for piece in pieces:
                    size += len(piece)
                    for start in range(0, len(piece), _STEP):
                        step = piece[start : start + _STEP]
                        hashing = beside.begun(hashed.update, step) if len(step) == _STEP else None
                        if hashing is None:
                            file.write(step)
                            hashed.update(step)
                            continue
                        if step[0] or bytes(step) != ZEROS:  # a view would be compared byte by byte
                            file.write(step)
                        else:
                            file.seek(_STEP, os.SEEK_CUR)  # which takes no room on a disk
                        hashing.result()
                    if size - going >= WRITE_BACK:
                        write_back(file.fileno(), going, size - going)
                        going = size
                file.truncate()
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(aside, path)
            if durable:
                sync_folder(path.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
    return hashed.hexdigest(), size


def write_back(file: int, offset: int, size: int) -> None:
    """Have what was written to an open file go to the disk from now on, so that syncing it takes less time in the end;
    where the system cannot do that, nothing happens.
    """
    if (start := _sync_file_range()) is not None:
        start(file, offset, size, 2)  # SYNC_FILE_RANGE_WRITE


class _Beside:
    """A thread beside, from when it is first needed until the end of a `stack`; none where none can be had any more."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._thread: ThreadPoolExecutor | None = None
        self._none = False

    def begun(self, work: Callable[[Bytes], object], data: Bytes) -> Future[object] | None:
        """Work that goes on; None where it has not begun."""
        if self._none:
            return None
        try:
            if self._thread is None:
                from concurrent.futures import ThreadPoolExecutor

                self._thread = self._stack.enter_context(ThreadPoolExecutor(1))
            return self._thread.submit(work, data)
        except RuntimeError:  # the interpreter ends, or there are as many threads as may be
            self._none = True
            return None


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], object] | None:
    import ctypes

    try:
        found = ctypes.CDLL(None).sync_file_range
    except (OSError, TypeError, AttributeError):
        return None
    found.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return found


def sync(paths: Iterable[Path]) -> None:
    """Wait until what these files hold is on the disk; those that are gone are passed over. Raises `StorageError`."""
    for path in paths:
        with writing(path), suppress(FileNotFoundError), open(path, "rb+") as file:
            os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can say so. Raises OSError."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def linked(path: Path, place: Path) -> bool:
    """Whether a file could be given a second name."""
    try:
        os.link(path, place)
    except OSError:
        return False
    return True


def mapped(path: str | Path) -> memoryview:
    """All of a file, mapped read-only; a file below 1 MiB is read. Raises OSError; see `reading`."""
    with open(path, "rb") as file:
        # A map keeps its file open, of which a process may have a thousand or so. Where it is not POSIX, a mapped file
        # cannot be removed or replaced.
        if os.name != "posix" or os.fstat(file.fileno()).st_size < _SMALL:
            return memoryview(file.read())
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def spilled(pieces: Iterable[Bytes]) -> memoryview:
    """What pieces hold, which are more than nothing, in a mapped file without a name: memory that the system can take
    back as long as the folder for temporary files (TMPDIR) is on a disk. Raises `StorageError`.
    """
    import tempfile

    with writing(Path(tempfile.gettempdir(), "a temporary file")), tempfile.TemporaryFile() as file:
        file.writelines(pieces)
        file.flush()
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


@contextmanager
def opened_below(folder: Path, name: str) -> Iterator[BufferedReader]:
    """A plain file below a folder in which another program, not trusted, may put what it likes: no symbolic link is
    followed on the way. Raises OSError.
    """
    *above, last = Path(name).parts
    follow = getattr(os, "O_NOFOLLOW", 0)
    if os.open not in os.supports_dir_fd:  # Windows
        with open(folder / name, "rb") as file:
            yield file
        return
    places = [os.open(folder, os.O_RDONLY | os.O_DIRECTORY)]
    try:
        for part in above:
            places.append(os.open(part, os.O_RDONLY | os.O_DIRECTORY | follow, dir_fd=places[-1]))
        found = os.open(last, os.O_RDONLY | os.O_NONBLOCK | follow, dir_fd=places[-1])
    finally:
        for place in places:
            os.close(place)
    with open(found, "rb") as file:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            raise OSError(errno.EINVAL, "is no plain file")
        yield file


def is_large(path: str | Path) -> bool:
    """Whether a file is one to be mapped. Raises OSError; see `reading`."""
    return os.stat(path).st_size >= LARGE


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn the system's errors into `StorageError`s that name the file which cannot be read."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error


class writing:
    """Turn the system's errors into `StorageError`s that name the file which cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            raise StorageError(
                f"{self.path} cannot be written: {error.strerror}",
                hint="Nothing learned before is lost: make room or mend the folder, then `umbel resume` the run.",
            ) from error


def user_folder(variable: str, otherwise: str) -> Path:
    """The folder `umbel` of this user below what an XDG variable names, or below `otherwise` in the home where it names
    nothing, or no whole path, which the specification says to ignore.

    Never raises: the home of a user who has none is a folder that does not exist.
    """
    named = os.environ.get(variable, "")
    return (Path(named) if os.path.isabs(named) else Path(os.path.expanduser("~"), otherwise)) / "umbel"


def locked(file: int) -> bool:
    """Take the lock of an open file, where the system has such locks; False where another process holds it.

    The system lets go of it when the file is closed or this process ends, however it ends.
    """
    try:
        import fcntl
    except ImportError:
        return True  # Windows
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def alone(folder: Path, who: str, hint: str, name: str = "lock", mode: int = 0o700) -> Iterator[None]:
    """Keep a folder, which is made where it is not there, to one process by a file of this `name`; the system lets go
    of it however that process ends.

    Raises `SettingError` where another one has it: `who` runs there, and `hint` says what to do.
    """
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
        file = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
    try:
        if not locked(file):
            raise SettingError(f"{who} runs in {folder} already", hint=hint)
        yield
    finally:
        os.close(file)
