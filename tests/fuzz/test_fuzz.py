"""Inputs that were interesting once are read again, and each target reads so many changed ones; `make fuzz` goes on."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz import campaign, mutations
from tests.fuzz.campaign import CORPUS, HANG, Watch, known
from tests.fuzz.mutations import SHAPES, fields, joined, mutate, sequence, steps
from tests.fuzz.targets import TARGETS, expecting

from umbel.errors import ProtocolError

QUICK, SLOW = 150, 15_000
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


def read_all(name: str, inputs, place: Path) -> None:
    """Have a target read these, and fail with what it choked on."""
    watch = Watch(name, TARGETS[name].read, place, "plain")
    for data in inputs:
        watch.read(data)
    told = [(place / "found" / found).with_suffix(".txt").read_text() for found in watch.told["found"]]
    assert not told, "\n".join(told)


def changed(name: str, count: int, seed: int):
    target, draw = TARGETS[name], random.Random(seed)
    seeds = [*target.seeds(), *known(name, campaign.ROOT / "nowhere")]
    return (mutate(draw.choice(seeds), draw, target.shape, seeds) for _ in range(count))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_corpus_is_read(name, tmp_path):
    read_all(name, [*TARGETS[name].seeds(), *known(name, tmp_path)], tmp_path)


def test_each_part_of_the_corpus_has_a_target():
    folders = {path.name for path in CORPUS.iterdir()}
    assert folders <= set(TARGETS)
    assert all(path.stat().st_size <= 16 << 10 for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_few_changed_inputs(name, tmp_path):
    read_all(name, changed(name, QUICK, 1), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_many_changed_inputs(name, tmp_path):
    read_all(name, changed(name, SLOW, 2), tmp_path)


# What finds faults, finds them


def test_a_reader_that_chokes_is_found(tmp_path):
    def choke(data):
        if data == b"bad":
            raise KeyError("of no peer's business")

    watch = Watch("frame", choke, tmp_path, "plain")
    for data in (b"good", b"bad", b"bad"):
        watch.read(data)
    (kept,) = watch.told["found"]
    assert (tmp_path / "found" / kept).read_bytes() == b"bad"
    assert "of no peer's business" in (tmp_path / "found" / f"{kept}.txt").read_text()


def test_a_reader_that_takes_long_is_found(tmp_path, monkeypatch):
    """One that took long once, as where garbage was collected meanwhile, does not."""
    spent = iter([0.1, 2 * HANG, 0.1, 2 * HANG, 3 * HANG])
    clock = iter([number for each in spent for number in (0.0, each)])
    monkeypatch.setattr(campaign.time, "thread_time", lambda: next(clock))
    watch = Watch("frame", bytes, tmp_path, "plain")
    for data in (b"quick", b"once", b"slow"):
        watch.read(data)
    (kept,) = watch.told["found"]
    assert (tmp_path / "found" / kept).read_bytes() == b"slow"


def test_a_process_that_grows_or_dies_is_found(tmp_path, monkeypatch):
    sizes = iter([100 << 20, 150 << 20, 150 << 20, 150 << 20])
    monkeypatch.setattr(campaign, "memory", lambda: next(sizes))
    times = iter([0.0] * 3 + [number / 4 for number in range(100)])
    monkeypatch.setattr(campaign.time, "monotonic", lambda: next(times))
    told = []
    monkeypatch.setattr(Watch, "tell", lambda watch: told.append(watch.told))
    campaign.plainly("line", 2.0, 1, tmp_path)
    assert told[-1]["found"] == ["line has grown from 100 to 150 MiB"]


def test_what_a_dead_process_was_reading_is_kept(tmp_path, monkeypatch):
    Watch("line", bytes, tmp_path, "plain").read(b"the last one")

    class Dead:
        returncode = -11

    monkeypatch.setattr(campaign.subprocess, "run", lambda *said, **more: Dead())
    found = campaign.share("line", "plain", 1.0, 1, tmp_path)
    assert "ended with -11" in found["found"][0]
    (kept,) = [path for path in (tmp_path / "found").iterdir() if path.suffix != ".txt"]
    assert kept.read_bytes() == b"the last one"


# The mutator


def test_the_same_seed_changes_in_the_same_way():
    assert list(changed("router", 20, 3)) == list(changed("router", 20, 3))


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_changes_change(name):
    seeds = set(TARGETS[name].seeds())
    found = set(changed(name, 100, 4))
    assert len(found - seeds) > 60
    assert all(len(data) <= mutations.LONGEST for data in found)


@given(st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=40))))
def test_a_sequence_is_what_it_was_made_of(parts):
    assert steps(sequence(parts)) == parts


@given(st.binary(max_size=200), st.sampled_from(sorted(SHAPES)), st.integers(0, 1 << 30))
def test_any_bytes_can_be_changed(data, shape, seed):
    assert isinstance(mutate(data, random.Random(seed), shape, [data]), bytes)


def test_a_message_is_what_its_fields_are():
    for data in TARGETS["frame"].seeds():
        assert joined(fields(data)) == data


def test_a_target_expects_nothing_but_its_own_errors():
    @expecting(ProtocolError)
    def wrong(data):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wrong(b"")
