"""Archives: the same bytes for the same files, and nothing else in them, whoever made them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.errors import AppError, StorageError
from umbel.trust import archive
from umbel.trust.archive import MANIFEST, build, difference, read, unpack, verify

ABOUT = {
    "kind": "client",
    "module": "client",
    "attribute": "client",
    "handlers": ["train"],
    "imports": ["torch"],
    "python": "",
    "requirements": [],
}
FILES = {"client.py": b"import net\n", "net.py": b"", "tables/a.csv": b"1,2\n"}
DATA = build(ABOUT, FILES)
GOLDEN = "547ab2a3e21fa3360383d5b9cdf53c4cebe2e40e0f3115fd387a36ae4425c5f7"


def sha(data):
    return hashlib.sha256(data).digest()


def zipped(entries, **settings):
    """A zip file that holds what Umbel would not write."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **settings) as file:
        for name, data in entries:
            info = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            info.compress_type = settings.get("compression", zipfile.ZIP_STORED)
            file.writestr(info, data)
    return buffer.getvalue()


def forged(files, /, **changes):
    """An archive as Umbel writes it, but for the rules about names and manifests."""
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())}
    text = json.dumps({**ABOUT, "format": 1, "files": digests, **changes}, indent=1, sort_keys=True)
    entries = []
    for name, data in [(MANIFEST, text), *sorted(files.items())]:
        info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
        info.create_system, info.external_attr = 3, 0o100644 << 16
        entries.append((info, data))
    return zipped(entries)


def test_an_archive_is_read_as_it_was_built():
    found = read(DATA)
    assert found.files == FILES
    assert found.manifest["files"]["net.py"] == hashlib.sha256(b"").hexdigest()
    assert {key: found.manifest[key] for key in ABOUT} == ABOUT
    assert forged(FILES) == DATA


def test_the_same_files_give_the_same_bytes_in_any_order():
    assert build(dict(reversed(ABOUT.items())), dict(reversed(FILES.items()))) == DATA


def test_the_bytes_are_the_same_on_every_version_of_python():
    assert hashlib.sha256(DATA).hexdigest() == GOLDEN


def test_anybody_can_open_it():
    with zipfile.ZipFile(io.BytesIO(DATA)) as file:
        assert file.testzip() is None
        assert file.namelist() == [MANIFEST, *sorted(FILES)]


@pytest.mark.parametrize(
    "name",
    [
        "../evil.py", "/etc/passwd", "a/../b.py", "./a.py", "a//b.py", "a/", "", "a\\b.py", "C:evil.py", ".env", "a/.b",
        "a\0.py", "a\n.py", "ä.py", "x" * 201, "a.py ", "a.", MANIFEST, "MANIFEST.JSON", "con/../x",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_lead_elsewhere_are_refused_by_both_sides(name):
    with pytest.raises(AppError):
        build(ABOUT, {name: b""})
    with pytest.raises(AppError):
        read(forged({name: b""}) if name else zipped([(MANIFEST, b"{}")]))


@pytest.mark.parametrize("names", [("a.py", "A.py"), ("a", "a/b"), ("a/b.py", "A/c.py")])
def test_names_that_some_systems_cannot_tell_apart_are_refused(names):
    with pytest.raises(AppError, match="both"):
        build(ABOUT, dict.fromkeys(names, b""))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK",
        b"nonsense" * 100,
        DATA[:-1],
        DATA[1:],
        DATA + b"x",
        b"#!/bin/sh\n" + DATA,
        zipped([]),
        zipped([(MANIFEST, b"[]")]),
        zipped([(MANIFEST, b"{}")]),
        zipped([(MANIFEST, b"[" * 100_000)]),
        zipped([(MANIFEST, b"\xff")]),
        zipped([("client.py", b"")]),
        zipped([(MANIFEST, json.dumps(ABOUT)), ("client.py", b"x" * 10**6)], compression=zipfile.ZIP_DEFLATED),
        zipped([(MANIFEST, json.dumps(read(DATA).manifest, indent=1, sort_keys=True)), *FILES.items()]),  # with times
        DATA.replace(b"import net\n", b"import os \n"),
    ],
    ids=str,
)
def test_what_umbel_did_not_write_is_refused(data):
    with pytest.raises(AppError, match="archive"):
        read(data)


def test_links_are_refused():
    info = zipfile.ZipInfo("link.py", (1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o120777 << 16
    text = json.dumps({**read(build(ABOUT, {"link.py": b"/etc"})).manifest}, indent=1, sort_keys=True)
    first = zipfile.ZipInfo(MANIFEST, (1980, 1, 1, 0, 0, 0))
    first.create_system, first.external_attr = 3, 0o100644 << 16
    assert len(zipped([(first, text), (info, b"/etc")])) == len(build(ABOUT, {"link.py": b"/etc"}))
    with pytest.raises(AppError, match="not as Umbel writes it"):
        read(zipped([(first, text), (info, b"/etc")]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_doubles_are_refused():
    with pytest.raises(AppError):
        read(zipped([(MANIFEST, json.dumps(read(DATA).manifest)), *FILES.items(), ("net.py", b"other")]))


def test_a_file_that_claims_to_be_larger_than_the_archive_is_refused():
    size = len(FILES["client.py"]).to_bytes(4, "little") * 2
    assert DATA.count(size) == 2
    with pytest.raises(AppError):
        read(DATA.replace(size, (1 << 31).to_bytes(4, "little") * 2))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": True},
        {"format": None},
        {"kind": "other"},
        {"kind": {}},
        {"kind": ["client"]},
        {"module": 3},
        {"handlers": "train"},
        {"handlers": [3]},
        {"more": 1},
        {"files": {}},
        {"files": {**read(DATA).manifest["files"], "net.py": "0" * 64}},
    ],
    ids=str,
)
def test_a_manifest_that_is_not_one_is_refused(changes):
    with pytest.raises(AppError):
        read(forged(FILES, **changes))


def test_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(archive, "MOST_FILES", 2)
    with pytest.raises(AppError, match="up to 2 files"):
        build(ABOUT, FILES)
    with pytest.raises(AppError, match="too many files"):
        read(DATA)
    monkeypatch.undo()
    monkeypatch.setattr(archive, "MOST_BYTES", 10)
    with pytest.raises(AppError, match="larger than"):
        build(ABOUT, FILES)
    monkeypatch.setattr(archive, "MOST_FILES", 0)
    with pytest.raises(AppError, match="too large"):
        read(DATA)


@given(st.binary(max_size=300), st.integers(0, len(DATA)), st.integers(0, 300))
def test_whatever_is_changed_is_noticed(junk, start, cut):
    changed = DATA[:start] + junk + DATA[start + cut :]
    if changed != DATA:
        with pytest.raises(AppError):
            read(changed)


def test_the_hash_is_verified():
    assert verify(DATA, sha(DATA)).files == FILES
    for data, digest in ((DATA, bytes(32)), (DATA + b"x", sha(DATA))):
        with pytest.raises(AppError, match="SHA-256 differs"):
            verify(data, digest)


def test_it_is_unpacked_whole_and_once(tmp_path):
    folder = tmp_path / "archives" / "abc"
    unpack(read(DATA), folder)
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert json.loads(found.pop(MANIFEST)) == read(DATA).manifest
    assert found == FILES
    (folder / "net.py").write_bytes(b"here already")
    unpack(read(DATA), folder)
    assert (folder / "net.py").read_bytes() == b"here already"
    assert os.listdir(folder.parent) == ["abc"]


def test_what_cannot_be_unpacked_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.os, "rename", full)
    with pytest.raises(StorageError, match="No space left"):
        unpack(read(DATA), tmp_path / "abc")
    assert os.listdir(tmp_path) == []


def test_a_difference_is_one_to_read():
    new = {"client.py": b"import net\nimport os\n", "tables/a.csv": b"\x00\x01", "more.py": b"x = 1\n"}
    text = difference(read(DATA), read(build({**ABOUT, "requirements": ["torch>=2"]}, new)))
    for line in (
        '+  "torch>=2"',
        "changed client.py",
        "+import os",
        "removed net.py",
        "added more.py",
        "+x = 1",
        "(not text: 4 bytes -> 2 bytes)",
    ):
        assert line in text.splitlines()
    assert "-import net" not in text
    assert difference(read(DATA), read(DATA)) == ""


def test_a_difference_cannot_play_tricks_on_who_reads_it():
    evil = "x = 1\x1b[2K\r# \u202eharmless\u200b\x9b1A\n".encode()
    text = difference(read(DATA), read(build(ABOUT, {**FILES, "net.py": evil})))
    assert "+x = 1\\x1b[2K\\r# \\u202eharmless\\u200b\\x9b1A" in text.splitlines()


def test_code_that_is_written_to_be_slow_to_compare_is_shown_whole(monkeypatch):
    monkeypatch.setattr(archive, "MOST_STEPS", 10**6)
    rng = random.Random(1)
    old, new = ("\n".join(f"x = {rng.randrange(120)}" for _ in range(1_500)) for _ in range(2))
    text = difference(*(read(build(ABOUT, {**FILES, "net.py": code.encode()})) for code in (old, new)))
    lines = text.splitlines()
    assert "@@ too much to be compared: all lines, old and new @@" in lines
    assert [line[1:] for line in lines if line.startswith("+x")] == new.split("\n")
    assert [line[1:] for line in lines if line.startswith("-x")] == old.split("\n")
    tail = f"{old}\nlast"
    text = difference(*(read(build(ABOUT, {**FILES, "net.py": code.encode()})) for code in (old, tail)))
    assert text.splitlines()[-1] == "+last"
    assert len(text.splitlines()) < 10
    ordinary = "\n".join(f"line {number}" for number in range(500))
    other = ordinary.replace("0\n", "1\n")
    text = difference(*(read(build(ABOUT, {**FILES, "net.py": code.encode()})) for code in (ordinary, other)))
    assert " line 432" in text.splitlines()


def test_a_list_of_many_files_is_not_even_read(monkeypatch):
    most = archive.MOST_FILES + 1
    monkeypatch.setattr(archive.zipfile, "ZipFile", lambda *_, **__: pytest.fail("the list was read"))
    end = DATA[-22:]
    for count, size in ((most + 1, 100), (0xFFFF, 0xFFFFFFFF), (3, archive.MOST_DIRECTORY + 1)):
        altered = end[:8] + count.to_bytes(2, "little") * 2 + size.to_bytes(4, "little") + end[16:]
        with pytest.raises(AppError, match="too many files"):
            read(DATA[:-22] + altered)
    for cut in (DATA[:-1], DATA + b"x", b"", DATA[:-42] + b"PK\x06\x07" + bytes(16) + end):
        with pytest.raises(AppError, match="does not end as it should"):
            read(cut)


def test_as_many_files_with_names_as_long_as_may_be_are_read():
    files = {f"{'n' * 90}/{'m' * 90}/{number:018}": b"" for number in range(archive.MOST_FILES)}
    assert {len(name) for name in files} == {archive.LONGEST_NAME}
    assert len(read(build(ABOUT, files)).files) == archive.MOST_FILES
