"""The journal: sealed records, files that are whole or not there, and what is said of a damaged folder."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
import zlib
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel import Arrays, State, files
from umbel.core.arrays import Stored
from umbel.errors import CorruptFile, JournalMissing, StorageError
from umbel.runs.events import AskClosed, RoundCommitted, RoundStarted, RunFinished, RunResumed, RunStarted
from umbel.runs.journal import FORMAT, LOG, Journal, LogChain, load_checked, read_log, sealed, write_whole
from umbel.runs.run import load_model

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
RECORDS = st.dictionaries(
    st.text(max_size=8).filter(lambda name: name not in ("crc", "hash")), PLAIN, min_size=1, max_size=5
)

STARTED = RunStarted(run="r", format=FORMAT, seed=1, rounds=2, clients=3, strategy="FedAvg", model_sha256="00")


def asked(ask, round=1):
    return AskClosed(ask=ask, round=round, kind="train", lane="train", digest="d", asked=2, count=2)


def committed(round):
    return RoundCommitted(
        round=round, asks=round, train={"löss": float("nan")}, checkpoint={"file": "f", "sha256": "s"}
    )


EVENTS = [STARTED, asked(0), committed(1), asked(1, 2), RunResumed(run="r", round=1, rounds=7), asked(2, 2)]


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, EVENTS)
    return tmp_path


def write(folder, events):
    journal = Journal(folder)
    for event in events:
        journal.append(event, at=1.0)
    journal.close()


# Records


def unsealed(log):
    """The records of a whole log."""
    chain = LogChain()
    return [chain.unseal(line) for line in log.splitlines(keepends=True)]


@given(st.lists(RECORDS, max_size=4))
def test_records_come_back_from_their_lines(records):
    log = sealed(records)
    assert log.count(b"\n") == len(records)
    assert unsealed(log) == records


@given(st.lists(RECORDS, min_size=1, max_size=3), st.data())
def test_a_log_with_any_byte_changed_is_refused(records, data):
    log = bytearray(sealed(records))
    place = data.draw(st.integers(0, len(log) - 1))
    log[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError):
        unsealed(bytes(log))


@given(st.lists(RECORDS, min_size=3, max_size=6), st.data())
def test_lines_that_are_taken_out_exchanged_or_said_twice_are_noticed(records, data):
    lines = sealed(records).splitlines(keepends=True)
    first, second = sorted(data.draw(st.sets(st.integers(0, len(lines) - 1), min_size=2, max_size=2)))
    exchanged = list(lines)
    exchanged[first], exchanged[second] = lines[second], lines[first]
    without = lines[:first] + lines[first + 1 :]
    twice = lines[: first + 1] + lines[first:]
    for changed in (exchanged, without, twice):
        with pytest.raises(ValueError, match="checksum"):
            unsealed(b"".join(changed))


@pytest.mark.parametrize(
    "line",
    [b"\n", b"[]\n", b"7\n", b'{"a":1}\n', b"{}\n", b'{"crc":"00000000"}\n', b'{"hash":"00"}\n', b"\xff\xfe\n"],
)
def test_what_was_never_sealed_is_refused(line):
    with pytest.raises(ValueError):
        LogChain().unseal(line)


def test_lines_of_before_come_first_or_not_at_all():
    old = b'{"a":1,"crc":"%08x"}\n' % zlib.crc32(b'{"a":1}')
    chain = LogChain(old)
    new = chain.seal({"b": 2})
    assert unsealed(old + new) == [{"a": 1}, {"b": 2}]
    for log in (new, new + old, old + old + new, sealed([{"a": 1}]) + old):
        with pytest.raises(ValueError, match="checksum"):
            unsealed(log)


# Reading the log


def test_a_log_is_sorted_out(folder):
    log = read_log(folder)
    assert log.started == STARTED
    assert [r.round for r in log.rounds] == [1]
    assert np.isnan(log.rounds[0].train["löss"])
    assert [r.ask for r in log.pending] == [1, 2]
    assert log.finished is None
    assert log.rounds_wanted == 7
    assert [type(e) for e in log.events] == [type(e) for e in EVENTS]
    assert log.intact == (folder / LOG).stat().st_size
    write(folder, [RunFinished(run="r", rounds=2, reason="rounds", seconds=1.5)])
    assert read_log(folder).finished.seconds == 1.5


def test_events_that_are_not_logged_and_journals_without_a_folder_write_nothing(folder):
    before = (folder / LOG).read_bytes()
    write(folder, [RoundStarted(round=2, rounds=3)])
    assert (folder / LOG).read_bytes() == before
    journal = Journal(None)
    journal.append(STARTED, at=0.0, durable=True)
    assert journal.save("x", {"a": 1}) is None
    journal.clear_answers()
    journal.keep_checkpoints([])
    journal.truncate(0)
    journal.close()


def test_a_last_line_torn_at_any_byte_is_dropped(folder):
    data = (folder / LOG).read_bytes()
    start = data.rindex(b"\n", 0, -1) + 1
    for size in range(start, len(data)):
        (folder / LOG).write_bytes(data[:size])
        log = read_log(folder)
        assert [r.ask for r in log.pending] == [1], size
        assert log.intact == start


def test_a_last_line_of_the_right_length_and_wrong_content_is_dropped(folder):
    data = (folder / LOG).read_bytes()
    start = data.rindex(b"\n", 0, -1) + 1
    (folder / LOG).write_bytes(data[:start] + bytes(len(data) - start - 1) + b"\n")
    assert [r.ask for r in read_log(folder).pending] == [1]
    assert read_log(folder).intact == start


def test_going_on_drops_the_torn_line_for_good(folder):
    with open(folder / LOG, "ab") as file:
        file.write(b'{"event":"ask_clo')
    log = read_log(folder)
    journal = Journal(folder)
    journal.truncate(log.intact)
    journal.append(asked(3, 2), at=0.0)
    journal.close()
    assert [r.ask for r in read_log(folder).pending] == [1, 2, 3]


@pytest.mark.parametrize("line", range(1, len(EVENTS)))
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "twice the crc"])
def test_damage_before_the_last_line_names_the_line(folder, line, damage):
    lines = (folder / LOG).read_bytes().splitlines(keepends=True)
    whole = lines[line - 1]
    lines[line - 1] = {
        "flip": whole[:12] + bytes([whole[12] ^ 1]) + whole[13:],
        "cut": whole[:20] + b"\n",
        "empty": b"\n",
        "twice the crc": whole[:-2] + b',"crc":"0"}\n',
    }[damage]
    (folder / LOG).write_bytes(b"".join(lines))
    with pytest.raises(CorruptFile) as caught:
        read_log(folder)
    assert f"line {line} of {folder / LOG} is damaged" in str(caught.value)
    assert "--init <checkpoint>" in caught.value.hint
    assert not caught.value.retry


def test_an_event_of_an_unknown_kind_is_not_taken_for_another(folder):
    lines = (folder / LOG).read_bytes().splitlines(keepends=True)
    lines[2:2] = [LogChain(b"".join(lines[:2])).seal({"event": "gossip", "at": 0})]
    (folder / LOG).write_bytes(b"".join(lines))
    with pytest.raises(CorruptFile, match=r"line 3 of .* is damaged: there is no event 'gossip'"):
        read_log(folder)


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(JournalMissing, match=r"there is no run in .*nowhere: it has no events\.jsonl") as caught:
        read_log(tmp_path / "nowhere")
    assert "umbel runs" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b'{"event":"run_start', sealed([{"at": 1, **asked(0).record()}])])
def test_a_log_without_a_beginning(tmp_path, content):
    (tmp_path / LOG).write_bytes(content)
    with pytest.raises(CorruptFile, match="does not begin with the start of a run") as caught:
        read_log(tmp_path)
    assert "Start the run again" in str(caught.value)


def test_a_log_that_cannot_be_read(tmp_path):
    (tmp_path / LOG).mkdir()
    with pytest.raises(StorageError, match=r"events\.jsonl cannot be read: Is a directory"):
        read_log(tmp_path)


# Files that records name


def test_a_file_comes_back_by_its_reference(folder):
    journal = Journal(folder)
    tree = {"state": State(Arrays({"w": np.arange(3.0)}), extra=[1, "b"]), "ask": 4}
    reference = journal.save("checkpoints/round-0001.safetensors", tree, durable=True)
    assert reference["file"] == "checkpoints/round-0001.safetensors"
    found = journal.load(reference)
    assert found["ask"] == 4
    assert found["state"].model == tree["state"].model
    assert found["state"].extra == [1, "b"]
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["round-0001.safetensors"]
    journal.close()


def test_a_checkpoint_that_lost_or_changed_a_byte_is_refused(folder):
    journal = Journal(folder)
    reference = journal.save("checkpoints/round-0001.safetensors", {"a": np.arange(4.0)})
    journal.close()
    path = folder / reference["file"]
    data = path.read_bytes()
    for place in range(len(data)):
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]):
            path.write_bytes(damaged)
            with pytest.raises(CorruptFile, match=r"round-0001\.safetensors is not what the run wrote"):
                load_checked(folder, reference)
    path.unlink()
    with pytest.raises(CorruptFile, match=r"round-0001\.safetensors is missing or cannot be read: No such file"):
        load_checked(folder, reference)


def test_large_files_are_mapped_and_small_ones_are_read(folder, monkeypatch):
    journal = Journal(folder)
    tree = {"a": np.arange(4.0), "m": Arrays({"w": np.ones(2)})}
    reference = journal.save("checkpoints/round-0001.safetensors", tree)
    assert journal.mapped(reference, tree) is tree
    journal.load(reference)["a"][0] = 1
    monkeypatch.setattr(files, "LARGE", 100)
    for found in (journal.mapped(reference, tree), journal.load(reference)):
        assert not found["a"].flags.writeable
        assert found["a"].tolist() == [0, 1, 2, 3]
        assert found["m"] == tree["m"]
    journal.keep_checkpoints([])
    assert found["a"].tolist() == [0, 1, 2, 3]
    assert Journal(None).mapped(None, tree) is tree
    journal.close()


def test_events_wait_for_the_disk_only_where_they_are_told_to(folder, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))
    journal = Journal(folder)
    journal.append(asked(4, 2), at=0.0)
    assert synced == []
    journal.append(committed(2), at=0.0, durable=True)
    assert synced == [(folder / LOG).stat().st_ino]


def test_what_has_reached_the_disk_stands_on_nothing_that_has_not(folder, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))
    journal = Journal(folder)
    for name in ("answers/a", "answers/b"):
        journal.save(name, {})
    assert synced == []
    journal.save("checkpoints/1", {}, durable=True)
    before = [(folder / name).stat().st_ino for name in ("answers/a", "answers/b")]
    assert not {*before} & {*synced}
    journal.save("answers/c", {}, durable=True)
    assert [ino for ino in synced if ino in before] == before
    journal.save("answers/d", {}, durable=True)
    assert [ino for ino in synced if ino in before] == before


def test_answers_and_old_checkpoints_go_when_they_are_told_to(folder):
    journal = Journal(folder)
    for number in (1, 2, 3):
        journal.save(f"checkpoints/round-{number:04d}.safetensors", number)
        journal.save(f"answers/ask-{number:06d}.safetensors", number)
    journal.keep_checkpoints(["checkpoints/round-0002.safetensors"])
    journal.clear_answers()
    journal.close()
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["round-0002.safetensors"]
    assert not list((folder / "answers").iterdir())


# A disk that is full


def fails_at(monkeypatch, name, number, error=errno.ENOSPC, partly=False):
    """Let the n-th call of ``os.<name>`` find no room; `partly`: half of what it was to write is there."""
    original, calls = getattr(os, name), iter(range(1, 10**6))

    def broken(file, *rest):
        if next(calls) != number:
            return original(file, *rest)
        if partly:
            return original(file, rest[0][: len(rest[0]) // 2])
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, name, broken)


@pytest.mark.parametrize(("name", "partly"), [("write", False), ("write", True), ("fsync", False)])
def test_a_record_that_finds_no_room_leaves_the_log_as_it_was(folder, monkeypatch, name, partly):
    before = (folder / LOG).read_bytes()
    journal = Journal(folder)
    fails_at(monkeypatch, name, 1, partly=partly)
    with pytest.raises(StorageError) as caught:
        journal.append(committed(2), at=0.0, durable=True)
    assert str(folder / LOG) in str(caught.value)
    assert "No space left on device" in str(caught.value)
    assert "Nothing learned before is lost: make room" in caught.value.hint
    assert caught.value.retry
    assert (folder / LOG).read_bytes() == before
    journal.append(committed(2), at=0.0, durable=True)
    journal.close()
    assert [r.round for r in read_log(folder).rounds] == [1, 2]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_file_that_finds_no_room_leaves_the_older_one_whole(tmp_path, monkeypatch, name):
    path = tmp_path / "model"
    write_whole(path, b"old")
    fails_at(monkeypatch, name, 1)
    with pytest.raises(StorageError, match="model cannot be written: No space left on device"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file/run cannot be written: Not a directory"):
        Journal(tmp_path / "file" / "run")


@pytest.mark.skipif(sys.platform == "win32", reason="limits are a matter of POSIX")
def test_a_real_limit_on_file_sizes(folder):
    """What the system itself answers when a file may not grow."""
    before = (folder / LOG).read_bytes()
    script = f"""
        import json, pathlib, resource, signal
        from umbel.errors import StorageError
        from umbel.runs.journal import Journal, LOG
        from umbel.runs.events import RunInterruption
        folder = pathlib.Path({str(folder)!r})
        journal = Journal(folder)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before)} + 10, resource.RLIM_INFINITY))
        told = []
        for write in (lambda: journal.append(RunInterruption(run="r", round=1), at=0.0),
                      lambda: journal.save("checkpoints/big", bytes(10**6))):
            try:
                write()
            except StorageError as error:
                told.append(str(error))
        print(json.dumps(told))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    log, file = json.loads(done.stdout)
    assert "events.jsonl cannot be written" in log
    assert "big cannot be written: File too large" in file
    assert (folder / LOG).read_bytes() == before
    assert not list((folder / "checkpoints").iterdir())


# What is large


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(files, "LARGE", 1)
    return Arrays({"b": np.arange(5.0), "a": np.ones((2, 3), np.float32)})


def test_what_is_large_has_a_file_of_its_own_that_is_written_once(tmp_path, large):
    with closing(Journal(tmp_path)) as journal:
        kept = journal.kept(Arrays.computed(large.schema, large.stretch))
        assert kept == large
        assert list(kept) == ["b", "a"]  # a file has an order of its own
        (path,) = (tmp_path / "arrays").iterdir()
        assert (path, path.read_bytes()) == (kept.stored.path, large.to_bytes())
        written = path.stat().st_mtime_ns, path.stat().st_ino
        saved = journal.save("checkpoints/round-0001.safetensors", {"state": State(kept)}, durable=True)
        assert journal.mapped(saved, None)["state"].model.stored == kept.stored
        again = journal.save("checkpoints/round-0002.safetensors", {"state": State(kept)})
        assert journal.load(again)["state"].model == large
        assert [(path.stat().st_mtime_ns, path.stat().st_ino)] == [written]
        journal.save("checkpoints/round-0003.safetensors", {"state": State(Arrays({"w": np.ones(2)}))})
        journal.keep_checkpoints(["checkpoints/round-0001.safetensors", "checkpoints/round-0003.safetensors"])
        assert len(list((tmp_path / "arrays").iterdir())) == 2
    with closing(Journal(tmp_path)) as journal:  # which has to look what files name
        journal.keep_checkpoints(["checkpoints/round-0003.safetensors"])
        assert not path.exists()
        assert len(list((tmp_path / "arrays").iterdir())) == 1


def test_what_a_loss_of_power_has_left_is_not_taken_for_arrays_of_that_name(tmp_path, large):
    sha256, size = large.to_file(tmp_path / "given")
    large.stored = Stored(tmp_path / "given", sha256, size)
    with closing(Journal(tmp_path)) as journal:
        (tmp_path / "arrays").mkdir()
        (tmp_path / "arrays" / f"{sha256}.safetensors").write_bytes(bytes(size))
        for number in (1, 2):
            saved = journal.save(f"checkpoints/{number}", {"model": large})
            assert journal.load(saved)["model"] == large
        assert [path.stem for path in (tmp_path / "arrays").iterdir()] == [sha256]
        assert (tmp_path / "given").samefile(large.stored.path)


def test_what_has_reached_the_disk_names_no_arrays_that_have_not(tmp_path, large, monkeypatch):
    synced, fsync = [], os.fsync
    with closing(Journal(tmp_path)) as journal:
        journal.save("answers/a", large)
        (path,) = (tmp_path / "arrays").iterdir()
        monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))
        journal.save("answers/b", {}, durable=True)  # and so is the one before it
    assert {path.stat().st_ino, path.parent.stat().st_ino, (tmp_path / "answers" / "a").stat().st_ino} <= {*synced}


def test_what_is_there_under_another_name_is_linked(tmp_path, large):
    sha256, size = large.to_file(tmp_path / "elsewhere")
    large.stored = Stored(tmp_path / "elsewhere", sha256, size)
    (tmp_path / "run").mkdir()
    with closing(Journal(tmp_path / "run")) as journal:
        journal.save("initial.safetensors", {"state": {"model": large}})
    (path,) = (tmp_path / "run" / "arrays").iterdir()
    assert path.samefile(tmp_path / "elsewhere")


def test_a_file_of_arrays_that_is_gone_or_changed_is_said_to_be(tmp_path, large):
    with closing(Journal(tmp_path)) as journal:
        saved = journal.save("initial.safetensors", {"state": {"model": large}})
        (path,) = (tmp_path / "arrays").iterdir()
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(CorruptFile, match="its hash is not its name"):
            journal.load(saved)
        path.unlink()
        with pytest.raises(CorruptFile, match="is missing or cannot be read"):
            journal.load(saved)
    with pytest.raises(CorruptFile, match=r"names arrays that are not in a folder arrays beside it\n.*umbel export"):
        load_model(tmp_path / "initial.safetensors")


def test_nothing_goes_while_an_old_checkpoint_cannot_be_read(tmp_path, large):
    with closing(Journal(tmp_path)) as journal:
        journal.save("checkpoints/round-0001.safetensors", {"state": State(large)})
        (tmp_path / "checkpoints" / "round-0000.safetensors").write_bytes(b"damaged")
        kept = {f"checkpoints/round-000{r}.safetensors" for r in (0, 1)}
        journal.kept(Arrays.computed(large.schema, lambda *at: large.stretch(*at) + 1))
        journal.keep_checkpoints(kept)
        assert len(list((tmp_path / "arrays").iterdir())) == 2


def test_without_a_folder_it_is_kept_in_memory(large):
    kept = Journal(None).kept(State(large, slots={"m": Arrays.computed(large.schema, large.stretch)}))
    assert kept.model is large
    assert not kept.slots["m"].is_computed
    assert kept.slots["m"] == large
