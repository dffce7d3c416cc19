"""Blobs: large bytes, kept as files that are named by their SHA-256.

A complete blob is the file ``ab/abcdef...`` below the folder, one that is being received ``partial/abcdef...``. A blob
is complete only once its bytes, hash and name are on the disk. Nothing here holds more than a piece of one in memory.

Who knows a hash need not have the bytes. So whoever brings a blob has a name of its own for it, ``ab/abcdef....giver``;
who names one that another has brought has to bring it as well, and then nothing is written again, but a name is. What
is taken in unverified has such a name alone: it is that giver's, and whoever gets it will see whether it is what it
should be.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from types import TracebackType
from typing import Self

from ..errors import CorruptFile, InternalError, ProtocolError, StorageError
from ..files import WRITE_BACK, ZEROS, linked, sync_folder, write_back
from ..wire import messages as m
from .alike import AlikeBlobs

PIECE = 1 << 20
"""Bytes read at a time."""

LENDING = ("partial", "given", "handed")
"""How the folders are called in which another process may have files linked."""
_STORED = re.compile("([0-9a-f]{64})(?:[.]([0-9a-f]{16}))?")
_LINK = "-link-"
_EMPTY = hashlib.sha256().digest()


def digest(path: str | os.PathLike[str]) -> m.Blob:
    """The hash and size of a file, read piece by piece. Raises `StorageError`."""
    with _reaching(Path(path)), open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").digest()
        return m.Blob(sha256=found, size=file.tell())


class Blobs:
    """The blobs of one process, in a folder that is its alone; safe to use from several threads.

    Where there is a folder `given`, files that others lend are linked there and stay there: this process may remove
    them and not write to them. `quota` bounds nothing by itself: it is what `room` answers by, so that a receiver can
    wait with asking for more. Who needs a blob holds it; what nobody holds goes when `collect` is called. Holds are not
    on the disk: after a start, hold again before the first `collect`.

    What is `alike` stays unheld until its run is over or room is needed.
    """

    def __init__(self, folder: str | os.PathLike[str], quota: int | None = None, *, given: Path | None = None) -> None:
        self.folder = Path(folder)
        self.given = given
        self.quota = quota
        self._lock = threading.RLock()
        self._numbers = itertools.count(1)
        self._files = _Files(self.folder)
        self._idle: dict[tuple[bytes, str], int] = {}
        self._open: set[PartialBlob] = set()
        self._holders: dict[bytes, set[str]] = {}
        self._held: dict[str, set[bytes]] = {}
        self.alike = AlikeBlobs()
        with _reaching(self.folder):
            self._partial.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._scan()
            for left in os.scandir(given) if given is not None else ():
                os.unlink(left)

    @property
    def used(self) -> int:
        """The bytes of all that is complete, of parts left on the disk, and of the whole of those being received."""
        with self._lock:
            return self._files.bytes + sum(self._idle.values()) + sum(part.blob.size for part in self._open)

    def room(self, wanted: m.Blob | int, giver: str = "") -> bool:
        """Whether so many bytes more, or what is lacking of a blob that this `giver` brings, stay within the quota."""
        with self._lock:
            if self.quota is None:
                return True
            if isinstance(wanted, int):
                lacking = wanted
            else:
                begun = self._idle.get((wanted.sha256, _mark(giver)), 0)
                lacking = 0 if self._files.has(wanted.sha256) else wanted.size - begun
            if self.used + lacking > self.quota and self.alike.clear():
                self.collect()
            return self.used + lacking <= self.quota

    def has(self, sha256: bytes) -> bool:
        """Whether anything of a blob is here, or is being received."""
        with self._lock:
            here = [part.blob.sha256 for part in self._open] + [idle for idle, _ in self._idle]
            return sha256 in self._files.sizes or sha256 in here

    def path(self, sha256: bytes, giver: str = "") -> Path | None:
        """The file of a complete blob, None where there is none, or where this `giver` has not brought it."""
        with self._lock:
            if not self._files.has(sha256, mark := _mark(giver)):
                return None
            path = self._files.place(sha256, mark)
            if path.exists():
                return path
            self._files.gone(sha256, mark)
            return None

    def gave(self, sha256: bytes, giver: str) -> None:
        """Note that a `giver` has brought a blob, which is complete. Raises `StorageError`."""
        mark = _mark(giver)
        with self._lock, _reaching(self.folder):
            if mark and self._files.sizes[sha256].get(mark) != 0:
                self._files.name(sha256, mark)

    def put(self, data: bytes | bytearray | memoryview, owner: str = "") -> m.Blob:
        """Keep bytes, held by `owner` if one is named; free where they are there already. Raises `StorageError`."""
        blob = m.Blob(sha256=hashlib.sha256(data).digest(), size=memoryview(data).nbytes)
        self._hold(blob.sha256, owner)
        if self.path(blob.sha256) is None:
            with self._written(blob, False, "") as part:
                part.write(data)
                part.finish()
        return blob

    def put_file(self, path: str | os.PathLike[str], owner: str = "", *, link: bool = False) -> m.Blob:
        """Keep the content of a file, held by `owner` if one is named.

        With `link` the file itself is linked in where it is on the same file system, and copied elsewhere: for files
        that nobody writes to again. Raises `StorageError`.
        """
        path = Path(path)
        blob = digest(path)
        self._hold(blob.sha256, owner)
        if self.path(blob.sha256) is not None:
            return blob
        place = self.place(blob)
        if link and linked(path, place):
            with _reaching(path):
                self._move(place, blob)
        else:
            self._copy(path, blob)
        return blob

    def put_opened(self, file: BufferedReader, owner: str = "", blob: m.Blob | None = None) -> m.Blob:
        """Keep the content of an open file that others may be writing to, of a known `blob` if one is named.

        Raises `CorruptFile` where it is something else by the time that it is read, and `StorageError`.
        """
        if blob is None:
            blob = m.Blob(sha256=hashlib.file_digest(file, "sha256").digest(), size=file.tell())
            file.seek(0)
        self._hold(blob.sha256, owner)
        if self.path(blob.sha256) is None:
            with self.part(blob, resume=False) as part:
                while piece := file.read(min(PIECE, blob.size - part.offset)):  # a log may grow meanwhile
                    part.write(piece)
                part.finish()
        return blob

    def adopt(self, path: str | os.PathLike[str], blob: m.Blob, giver: str = "", *, verify: bool = True) -> Path:
        """Move a finished file in, and return where it is now.

        A file that holds something else is removed and is a `CorruptFile`; without `verify` only its size is looked
        at, and nobody but its `giver` is given it. Raises `StorageError`.
        """
        path, mark = Path(path), _mark(giver)
        with _reaching(path):
            found = path.lstat()
        plain = stat.S_ISREG(found.st_mode)  # a link by name could later lead to another file
        if not plain or found.st_size != blob.size or (verify and digest(path).sha256 != blob.sha256):
            path.unlink(missing_ok=True)
            raise _wrong(blob, f"{path} of {found.st_size} bytes")
        try:
            self._move(path, blob, giver, "" if verify else mark)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise _failed(path, error) from error
            self._copy(path, blob, giver)
            path.unlink(missing_ok=True)
        return self._files.place(blob.sha256, mark)

    def place(self, blob: m.Blob, folder: Path | None = None) -> Path:
        """A path at which another process on this machine may link its file of a blob, for `linked`; in a `folder` of
        that process's own, where it is handed over.
        """
        return (folder or self.given or self._partial) / f"{blob.sha256.hex()}{_LINK}{next(self._numbers)}"

    def linked(self, place: str | os.PathLike[str], blob: m.Blob, giver: str = "", handed: bool = False) -> Path:
        """Take in what another process has linked at a `place`: unverified where it was `handed` over in a folder of
        its own, since it may still write to that, and from a folder `given`, whose owner has verified it. Errors as
        those of `adopt`.
        """
        if self.given is None:
            path = self.adopt(place, blob, giver, verify=not handed)
            self.alike.brought(blob, giver)
            return path
        place = Path(place)
        with _reaching(place):
            if (size := place.stat().st_size) != blob.size:
                place.unlink()
                raise _wrong(blob, f"{place} of {size} bytes")
            with self._lock:
                if self._files.has(blob.sha256):
                    place.unlink()
                else:
                    self._files.given[blob.sha256] = place
                    self._completed(blob)
        return self._files.place(blob.sha256)

    def lend(self, sha256: bytes, place: str | os.PathLike[str]) -> bool:
        """Link a complete blob to the `place` that another process has named; False where that cannot be.

        Only a name that `place` gives is linked to: the peer chooses path and content, and must not plant files.
        """
        path, there = self.path(sha256), Path(place)
        fits = there.is_absolute() and there.parent.name in LENDING and there.name.startswith(sha256.hex() + _LINK)
        return path is not None and fits and linked(path, there)

    def part(self, blob: m.Blob, *, resume: bool = True, giver: str = "") -> PartialBlob | RepeatedBlob:
        """Begin or resume receiving a blob from a `giver`, if one is named; look at `path` first.

        Several may receive the same blob at once: of each giver only the first resumes and can be resumed, and whoever
        finishes first completes it. What is complete is compared and not written, where a giver brings it anew. Raises
        `StorageError`, and `ProtocolError` for a hash that is none.
        """
        if len(blob.sha256) != hashlib.sha256().digest_size:
            raise ProtocolError(f"a blob with a hash of {len(blob.sha256)} bytes, not 32", m.CODE_MALFORMED)
        if giver and self.path(blob.sha256) is not None:
            return RepeatedBlob(self, blob, giver)
        return self._written(blob, resume, giver)

    def hold(self, sha256: bytes, owner: str) -> None:
        """Have a blob stay, complete, partial or still to come, until its `owner` releases it."""
        with self._lock:
            self._holders.setdefault(sha256, set()).add(owner)
            self._held.setdefault(owner, set()).add(sha256)

    def held(self, sha256: bytes) -> bool:
        """Whether anybody holds a blob."""
        with self._lock:
            return sha256 in self._holders

    def release(self, owner: str) -> None:
        """Let go of all that an owner holds."""
        with self._lock:
            for sha256 in self._held.pop(owner, ()):
                holders = self._holders[sha256]
                holders.discard(owner)
                if not holders:
                    del self._holders[sha256]

    def collect(self) -> int:
        """Remove what nobody holds and nobody is receiving, and return how many bytes that was."""
        with self._lock, _reaching(self.folder):
            freed = 0
            kept = self._holders.keys() | self.alike.kept()
            for sha256 in [sha256 for sha256 in self._files.sizes if sha256 not in kept]:
                for mark in list(self._files.sizes[sha256]):
                    self._files.place(sha256, mark).unlink(missing_ok=True)
                    freed += self._files.gone(sha256, mark)
            for sha256, mark in [idle for idle in self._idle if idle[0] not in self._holders]:
                (self._partial / _name(sha256, mark)).unlink(missing_ok=True)
                freed += self._idle.pop((sha256, mark))
            return freed

    @property
    def _partial(self) -> Path:
        return self.folder / "partial"

    def _completed(self, blob: m.Blob, mark: str = "") -> None:
        """A blob is here by this name, and so nobody need go on with what is there of it."""
        self._files.note(blob.sha256, mark, blob.size)
        done = [idle for idle in self._idle if idle[0] == blob.sha256 and mark in ("", idle[1])]
        for sha256, of in done:
            del self._idle[sha256, of]
            (self._partial / _name(sha256, of)).unlink(missing_ok=True)

    def _scan(self) -> None:
        seen: set[int] = set()
        for folder in self.folder.glob("??"):
            for path in sorted(folder.iterdir()):
                if found := _STORED.fullmatch(path.name):
                    sha256, mark, stored = bytes.fromhex(found[1]), found[2] or "", path.stat()
                    if mark and not stored.st_size and sha256 != _EMPTY:  # a note of an earlier release
                        if self._files.has(sha256):
                            self._files.name(sha256, mark)
                        else:
                            path.unlink()
                        continue
                    self._files.note(sha256, mark, 0 if stored.st_ino in seen else stored.st_size)
                    seen.add(stored.st_ino)
        for file in os.scandir(self._partial):
            found = _STORED.fullmatch(file.name)
            if found and not self._files.has(bytes.fromhex(found[1]), found[2] or ""):
                self._idle[bytes.fromhex(found[1]), found[2] or ""] = file.stat().st_size
            else:
                os.unlink(file)

    def _hold(self, sha256: bytes, owner: str) -> None:
        if owner:
            self.hold(sha256, owner)

    def _written(self, blob: m.Blob, resume: bool, giver: str) -> PartialBlob:
        with self._lock:
            alike = [part for part in self._open if part.blob.sha256 == blob.sha256 and part.giver == giver]
            lasting = resume and not any(part.lasting for part in alike)
            path = self._partial / _name(blob.sha256, _mark(giver))
            if not lasting:
                path = path.with_name(f"{path.name}-{next(self._numbers)}")
            part = PartialBlob(self, blob, path, lasting, giver)
            if lasting:
                self._idle.pop((blob.sha256, _mark(giver)), None)
            self._open.add(part)
        try:
            part._begin()
        except BaseException:
            part.close()
            raise
        return part

    def _copy(self, path: Path, blob: m.Blob, giver: str = "") -> None:
        with self._written(blob, False, giver) as part:
            with _reaching(path), open(path, "rb", buffering=0) as file:
                while piece := file.read(PIECE):
                    part.write(piece)
            part.finish()

    def _move(self, path: Path, blob: m.Blob, giver: str = "", mark: str = "") -> None:
        """Give a file that is as it should be its name, so that it outlives a loss of power; the name of its giver
        alone where that has a `mark`.
        """
        place = self._files.place(blob.sha256, mark)
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)  # nobody waits for a pipe
        with open(os.open(path, flags), "rb") as file:
            os.fsync(file.fileno())
        with self._lock:
            if not place.parent.is_dir():
                place.parent.mkdir(mode=0o700, exist_ok=True)
                sync_folder(self.folder)
            os.replace(path, place)
            if not stat.S_ISREG(place.lstat().st_mode):  # who has left it there has been at it since
                shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
                raise _wrong(blob, "no plain file")
            path.unlink(missing_ok=True)  # renaming one link of a file to another of the same file leaves both
            self._completed(blob, mark)
        if not mark:
            self.gave(blob.sha256, giver)
        sync_folder(place.parent)

    def _closed(self, part: PartialBlob, left: int) -> None:
        with self._lock:
            self._open.discard(part)
            if left and not self._files.has(part.blob.sha256):
                self._idle[part.blob.sha256, _mark(part.giver)] = left
            else:
                part.path.unlink(missing_ok=True)


class _Files:
    """The files of complete blobs, by hash and by the mark of their giver, with their sizes: a second name of a file
    has none. Those that are `given` lie elsewhere.
    """

    def __init__(self, folder: Path) -> None:
        self.given: dict[bytes, Path] = {}
        self.sizes: dict[bytes, dict[str, int]] = {}
        self.bytes = 0
        self._folder = folder

    def place(self, sha256: bytes, mark: str = "") -> Path:
        name = _name(sha256, mark)
        return (None if mark else self.given.get(sha256)) or self._folder / name[:2] / name

    def has(self, sha256: bytes, mark: str = "") -> bool:
        return mark in self.sizes.get(sha256, ())

    def note(self, sha256: bytes, mark: str, size: int) -> None:
        names = self.sizes.setdefault(sha256, {})
        self.bytes += size - names.get(mark, 0)
        names[mark] = size

    def gone(self, sha256: bytes, mark: str) -> int:
        """A file is not there any more; how many bytes it had."""
        size = self.sizes[sha256].pop(mark)
        self.bytes -= size
        if not self.sizes[sha256]:
            del self.sizes[sha256]
        if not mark:
            self.given.pop(sha256, None)
        return size

    def name(self, sha256: bytes, mark: str) -> None:
        """Give a verified blob the name of one more giver."""
        place = self.place(sha256, mark)
        place.unlink(missing_ok=True)
        if not linked(self.place(sha256), place):  # a file system without second names
            shutil.copyfile(self.place(sha256), place)
        self.note(sha256, mark, 0)


class PartialBlob:
    """A blob that is being received: `offset` says how much of it is there.

    Close it in any case; what was written stays, to be resumed, unless it was finished. One thread at a time uses it.
    """

    def __init__(self, blobs: Blobs, blob: m.Blob, path: Path, lasting: bool, giver: str = "") -> None:
        self.blob = blob
        self.giver = giver
        self.path = path
        self.lasting = lasting
        self.offset = 0
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self._going = 0
        self._file: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Add the bytes that follow.

        More than the blob's size is a `CorruptFile`. Raises `StorageError`, for example where the disk is full, and
        then nothing of `data` counts as written.
        """
        view = memoryview(data).cast("B")
        if self.offset + len(view) > self.blob.size:
            raise _wrong(self.blob, f"{self.offset + len(view)} bytes")
        file = self._opened()
        with _reaching(self.path):
            try:
                rest = view
                while rest:
                    rest = rest[os.write(file, rest) :]
            except OSError:
                self._back()
                raise
        self._hash.update(view)
        self.offset += len(view)
        if self.offset - self._going >= WRITE_BACK:
            write_back(file, self._going, self.offset - self._going)
            self._going = self.offset

    def skip(self, count: int) -> None:
        """Add so many zeros, which take no room on a disk that can do without. Errors as those of `write`."""
        if self.offset + count > self.blob.size:
            raise _wrong(self.blob, f"{self.offset + count} bytes")
        file = self._opened()
        with _reaching(self.path):
            os.ftruncate(file, self.offset + count)
            os.lseek(file, 0, os.SEEK_END)
        for start in range(0, count, PIECE):
            self._hash.update(ZEROS[: count - start])
        self.offset += count

    def finish(self) -> Path:
        """Check the whole, make it a complete blob, on the disk, and return its file.

        What is too short or has another hash is removed and is a `CorruptFile`: get it again from the beginning.
        Raises `StorageError`; then it can be tried again.
        """
        self._opened()
        if self.offset != self.blob.size or self._hash.digest() != self.blob.sha256:
            self._blobs.alike.forget(self.blob, self.giver)
            self._end()
            raise _wrong(self.blob, f"{self.offset} bytes with the hash {self._hash.hexdigest()}")
        place = self._blobs._files.place(self.blob.sha256)
        with _reaching(self.path):
            self._blobs._move(self.path, self.blob, self.giver)
            os.chmod(place, 0o400)  # others may link it: nobody is to write to it again
        self._blobs.alike.brought(self.blob, self.giver)
        self._end()
        return place

    def close(self) -> None:
        """Stop receiving; what is there can be resumed."""
        if self in self._blobs._open:
            self._end(self.offset if self.lasting else 0)

    def _begin(self) -> None:
        """Open the file and take up what is there of it."""
        with _reaching(self.path):
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
            if os.fstat(self._file).st_size > self.blob.size:
                os.ftruncate(self._file, 0)
            while piece := os.read(self._file, PIECE):
                self._hash.update(piece)
                self.offset += len(piece)

    def _opened(self) -> int:
        if self._file is None:
            raise InternalError(f"{self.path} is closed")
        return self._file

    def _back(self) -> None:
        file = self._opened()
        os.ftruncate(file, self.offset)
        os.lseek(file, self.offset, os.SEEK_SET)

    def _end(self, left: int = 0) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self._blobs._closed(self, left)


class RepeatedBlob:
    """A complete blob that one more giver brings: it is compared with what is there, and not written."""

    def __init__(self, blobs: Blobs, blob: m.Blob, giver: str) -> None:
        self.blob = blob
        self.giver = giver
        self.offset = 0
        self._blobs = blobs
        self._hash = hashlib.sha256()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take the bytes that follow; more than the blob's size is a `CorruptFile`."""
        size = memoryview(data).nbytes
        if self.offset + size > self.blob.size:
            raise _wrong(self.blob, f"{self.offset + size} bytes")
        self._hash.update(data)
        self.offset += size

    def skip(self, count: int) -> None:
        """Take so many bytes that are zero."""
        for start in range(0, count, PIECE):
            self.write(ZEROS[: count - start])

    def finish(self) -> Path:
        """Note that the giver has it, and give its file. Raises `CorruptFile`, and `StorageError` where it is gone."""
        if self.offset != self.blob.size or self._hash.digest() != self.blob.sha256:
            raise _wrong(self.blob, f"{self.offset} bytes with the hash {self._hash.hexdigest()}")
        path = self._blobs.path(self.blob.sha256)
        if path is None:
            raise StorageError(f"the blob {self.blob.sha256.hex()} went while it came again")
        self._blobs.gave(self.blob.sha256, self.giver)
        return path

    def close(self) -> None:
        """Nothing is left of it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _mark(giver: str) -> str:
    """A giver as names of files have it; empty where there is none."""
    return hashlib.sha256(giver.encode()).hexdigest()[:16] if giver else ""


def _name(sha256: bytes, mark: str) -> str:
    return f"{sha256.hex()}.{mark}" if mark else sha256.hex()


def _wrong(blob: m.Blob, found: str) -> CorruptFile:
    return CorruptFile(f"the blob {blob.sha256.hex()} has {blob.size} bytes; what came is {found}")


def _failed(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: {error.strerror}", hint="Make room on the disk, or mend the folder.")


@contextmanager
def _reaching(path: Path) -> Iterator[None]:
    """Turn the system's errors into `StorageError`s that name the file."""
    try:
        yield
    except OSError as error:
        raise _failed(path, error) from error
