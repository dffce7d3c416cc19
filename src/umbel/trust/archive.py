"""Archives: the code that data holders see, approve and run, as one file with one hash.

An archive is a zip file with `manifest.json` before all other files. The same files give the same bytes, anywhere:
they are sorted, without times, and not compressed, since what a compressor makes of them depends on its version.
Whoever reads an archive builds it anew from what is inside and compares, so that nothing else can be in it: no links,
no doubles, no paths that lead out of it.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import struct
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AppError, StorageError
from . import requirements

FORMAT = 1
MANIFEST = "manifest.json"
MOST_FILES = 1000
MOST_BYTES = 256 << 20
LONGEST_NAME = 200
MOST_STEPS = 10**9
"""So much may be compared for somebody to read, which takes seconds."""
MOST_DIRECTORY = (MOST_FILES + 1) * (46 + LONGEST_NAME)
"""Bytes of the zip file's list of what is in it; a longer one is not even read."""
_END, _END_64 = struct.Struct("<4s6xHL6x"), b"PK\x06\x07"

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+@ -]{0,99}(?<![. ])")
_EPOCH = (1980, 1, 1, 0, 0, 0)
_KINDS: dict[str, dict[str, type]] = {
    "client": {"module": str, "attribute": str, "handlers": list},
    "app": {"file": str, "attribute": str},
}
_SHARED: dict[str, type] = {"files": dict, "imports": list, "python": str, "requirements": list}


@dataclass(frozen=True)
class Archive:
    """An archive that has been read: its manifest, and its files by name, which is the path with slashes.

    The manifest has `format`, `kind` (``"client"`` or ``"app"``), `files` (their SHA-256 by name), `requirements` and
    `python` (as declared), `imports` (packages that are imported, where no requirements are declared). A client's has
    `module` and `attribute`, where the `umbel.Client` is, and `handlers`, the kinds of ask that it answers. An app's
    has `file`, and `attribute` or an empty text.
    """

    manifest: dict[str, Any]
    files: dict[str, bytes]

    def missing(self) -> list[str]:
        """What it needs that is not installed here, in words; empty if nothing."""
        return check_requirements(self.manifest)


def build(manifest: Mapping[str, Any], files: Mapping[str, bytes]) -> bytes:
    """The archive with these files; the manifest's `format` and `files` are filled in. Raises `AppError` for a name
    that cannot be in an archive, and for too much.
    """
    _check_names(list(files))
    if sum(map(len, files.values())) > MOST_BYTES:
        raise AppError(
            f"the archive would be larger than {MOST_BYTES >> 20} MiB", hint="Let data stay with its holders."
        )
    digests = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    text = json.dumps({**manifest, "format": FORMAT, "files": digests}, indent=1, sort_keys=True)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in [(MANIFEST, text.encode()), *((name, files[name]) for name in digests)]:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = 3  # whatever the system is
            info.external_attr = 0o100644 << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def read(data: bytes) -> Archive:
    """Read an archive and check all of it. Raises `AppError` where it is none, or holds what it may not."""
    if len(data) > MOST_BYTES + (MOST_FILES << 10):
        raise AppError("the archive is too large")
    try:
        files = _files(data)
        manifest = json.loads(files.pop(MANIFEST))
    except Exception as error:  # the module for zip files raises many kinds for bytes that are none
        raise AppError(f"the archive is damaged: {error}") from error
    _check_manifest(manifest)
    if build(manifest, files) != data:
        raise AppError("the archive is not as Umbel writes it: it may hide something")
    return Archive(manifest, files)


def verify(data: bytes, sha256: bytes) -> Archive:
    """Read an archive that has to have this hash. Raises `AppError`."""
    if hashlib.sha256(data).digest() != sha256:
        raise AppError("the archive is not the one that was announced: its SHA-256 differs")
    return read(data)


def unpack(archive: Archive, folder: Path) -> None:
    """Write the files into `folder`, which appears with all of them or not at all; one that is there already stays as
    it is. Raises `StorageError`.
    """
    if folder.exists():
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
        try:
            for name, data in archive.files.items():
                path = aside.joinpath(*name.split("/"))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            (aside / MANIFEST).write_text(json.dumps(archive.manifest, indent=1, sort_keys=True), encoding="utf-8")
            os.rename(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        if folder.is_dir():
            return  # another process was faster
        raise StorageError(f"the archive cannot be unpacked to {folder}: {error.strerror}") from error


def check_requirements(manifest: Mapping[str, Any]) -> list[str]:
    """What an archive needs that is not installed here, in words; empty if nothing."""
    return requirements.missing(manifest)


def difference(old: Archive, new: Archive) -> str:
    """What has changed from one archive to another, for somebody to read: a unified diff of the manifest and of each
    file. What a terminal would act upon or hide is spelled out. Empty where nothing has changed. Of files that would
    take too long to compare, as some do that were written for that, all lines are given, old and new.
    """
    parts: list[str] = []
    left = MOST_STEPS

    def compare(head: str, name: str, before: list[str], after: list[str]) -> None:
        nonlocal left
        left -= _steps(before, after)
        parts.append(head + _unified(name, before, after, quick=left < 0))

    compare("", "manifest", _said(old), _said(new))
    for name in sorted({*old.files, *new.files}):
        was, now = old.files.get(name), new.files.get(name)
        if was == now:
            continue
        head = f"added {name}\n" if was is None else f"removed {name}\n" if now is None else f"changed {name}\n"
        before, after = _text(was or b""), _text(now or b"")
        if before is None or after is None:
            sizes = " -> ".join("nothing" if data is None else f"{len(data)} bytes" for data in (was, now))
            parts.append(f"{head}(not text: {sizes})\n")
        else:
            compare(head, name, _lines(before), _lines(after))
    return "".join(parts)


def _said(archive: Archive) -> list[str]:
    """The manifest, but for the files' hashes."""
    said = {key: value for key, value in archive.manifest.items() if key != "files"}
    return _lines(json.dumps(said, indent=1, sort_keys=True))


def _unified(name: str, before: list[str], after: list[str], *, quick: bool) -> str:
    lines: Iterable[str]
    if quick:
        head = [f"--- old/{name}", f"+++ new/{name}", "@@ too much to be compared: all lines, old and new @@"]
        lines = [*head, *(f"-{line}" for line in before), *(f"+{line}" for line in after)]
    else:
        lines = difflib.unified_diff(before, after, f"old/{name}", f"new/{name}", lineterm="")
    return "".join(f"{line}\n" for line in lines)


def _steps(before: list[str], after: list[str]) -> int:
    """About how many steps `difflib` needs at most: one for each two lines that are equal and none of its frequent
    ones, as often as the lines between the first and the last that differ may have it begin anew.
    """
    first, last = _alike(before, after), _alike(before[::-1], after[::-1])
    old, new = before[first : max(first, len(before) - last)], after[first : max(first, len(after) - last)]
    return 2 * _equal(before, after) + min(len(old), len(new)) * (len(old) + _equal(old, new))


def _alike(before: list[str], after: list[str]) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))


def _equal(before: list[str], after: list[str]) -> int:
    there, most = Counter(after), len(after) // 100 + 1 if len(after) >= 200 else len(after)
    return sum(count for line in before if (count := there[line]) <= most)


def _text(data: bytes) -> str | None:
    try:
        return None if b"\0" in data else data.decode()
    except UnicodeDecodeError:
        return None


def _lines(text: str) -> list[str]:
    return [_shown(line) for line in text.split("\n")]


def _shown(line: str) -> str:
    """A line without characters that change how the rest is shown."""
    if line.isprintable():
        return line
    return "".join(
        c if c == "\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        else c.encode("unicode_escape", "surrogatepass").decode()
        for c in line
    )  # fmt: skip


def _check_directory(data: bytes) -> None:
    """Raise ValueError unless the list of files, which the module for zip files reads whole, is short."""
    if len(data) < _END.size or data[-_END.size - 20 :][:4] == _END_64:
        raise ValueError("it does not end as it should")
    mark, count, size = _END.unpack(data[-_END.size :])
    if mark != b"PK\x05\x06":
        raise ValueError("it does not end as it should")
    if count > MOST_FILES + 1 or size > MOST_DIRECTORY:
        raise ValueError("it holds too many files")


def _files(data: bytes) -> dict[str, bytes]:
    _check_directory(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        if len(entries) > MOST_FILES + 1:
            raise ValueError("it holds too many files")
        if sum(entry.file_size for entry in entries) > len(data):  # nothing is compressed
            raise ValueError("its sizes are wrong")
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it is compressed")
        return {entry.filename: archive.read(entry) for entry in entries}


def _check_names(names: list[str]) -> None:
    if len(names) > MOST_FILES:
        raise AppError(f"an archive holds up to {MOST_FILES} files, not {len(names)}")
    seen: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        if len(name) > LONGEST_NAME or not all(_PART.fullmatch(part) for part in parts) or name.lower() == MANIFEST:
            raise AppError(
                f"an archive cannot hold a file {name!r:.220}",
                hint="Use letters, digits and _ - . + @ in names, none of which begins with a dot.",
            )
        for end in range(1, len(parts) + 1):  # on some systems these would be one file, or a file and a folder
            path = "/".join(parts[:end])
            other = seen.setdefault(path.lower(), path if end == len(parts) else path + "/")
            if other != (path if end == len(parts) else path + "/"):
                raise AppError(f"an archive cannot hold both {other} and {name}")


def _check_manifest(manifest: Any) -> None:
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise AppError("the archive's manifest cannot be read")
    if manifest["format"] != FORMAT:
        raise AppError(
            f"the archive is of format {manifest['format']}, and this version of Umbel reads format {FORMAT}",
            hint="Use the same version of Umbel where it is packed and where it runs.",
        )
    kind = manifest.get("kind")
    own = _KINDS.get(kind) if isinstance(kind, str) else None
    wanted = {**_SHARED, **(own or {})}
    wrong = own is None or set(manifest) != {*wanted, "format", "kind"}
    wrong = wrong or any(not isinstance(manifest[key], kind) for key, kind in wanted.items())
    if wrong or any(not isinstance(text, str) for key in wanted for text in manifest[key]):
        raise AppError("the archive's manifest lacks what it needs, or holds what it may not")
