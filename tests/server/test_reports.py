"""What operators ask about runs."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.server.desks import RESPONSES, Office, Person

from umbel.runs.events import UNREADABLE
from umbel.store.blobs import digest
from umbel.wire import messages as m
from umbel.wire.limits import RESPONSE_BYTES


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_a_run_says_how_far_it_is(office: Office) -> None:
    office.run("r")
    office.log("r", {"event": "run_started", "rounds": 5})
    office.log(
        "r", {"event": "round_committed", "round": 1, "test": {"accuracy": 0.5}, "train": {"loss": float("nan")}}
    )
    (row,) = office.ask("runs.list")["runs"]
    assert (row["rounds"], row["asked"], row["metrics"]) == (1, 5, {"test.accuracy": 0.5, "train.loss": None})


def test_logs_are_read_from_a_number_on_and_followed_to_the_end(office: Office) -> None:
    office.run("r")
    office.log("r", {"event": "a"}, {"event": "b"}, {"event": "c"})
    found = office.ask("runs.logs", Person(role="read"), run="r", **{"from": 1})
    assert found == {"events": [[2, {"event": "b"}], [3, {"event": "c"}]], "run": "r", "status": "running"}

    async def follow() -> RESPONSES:
        body = json.dumps({"run": "r", "from": 2, "follow": True})
        task = asyncio.ensure_future(office.responses(Person(), "runs.logs", body))
        while office.feeds.count == 0:
            await asyncio.sleep(0)
        office.feeds.tell("r", 0, '{"event": "watched"}')
        office.log("r", {"event": "d"})
        office.feeds.tell("r", 4, '{"event": "d"}')
        office.run("r", status="finished", ended_at=5.0)
        office.feeds.ended("r")
        return await task

    parts = asyncio.run(follow())
    events = [event for part in parts for event in json.loads(part.body).get("events", [])]
    assert events == [[3, {"event": "c"}], [0, {"event": "watched"}], [4, {"event": "d"}]]
    assert json.loads(parts[-1].body) == {"run": "r", "status": "finished"}
    assert [part.more for part in parts] == [True] * (len(parts) - 1) + [False]
    assert office.refused("runs.logs", run="r", **{"from": -1}).code == m.CODE_MALFORMED


def test_a_runs_files_are_offered_and_no_others(office: Office) -> None:
    office.run("r")
    assert office.refused("runs.pull", run="r").code == m.CODE_UNKNOWN
    place = office.folder("r")
    (place / "checkpoints").mkdir(parents=True)
    files = ("events.jsonl", "summary.json", "checkpoints/round-0001.safetensors", "run.log", "token", "answers.bin")
    for name in files:
        (place / name).write_text(name)
    person = Person(role="read")
    found = office.ask("runs.pull", person, run="r")
    assert [file["name"] for file in found["files"]] == ["checkpoints/round-0001.safetensors", *files[:2]]
    assert {blob.sha256.hex() for blob in person.offered} == {file["sha256"] for file in found["files"]}
    for file in found["files"]:
        path = office.blobs.path(bytes.fromhex(file["sha256"]))
        assert path is not None
        assert digest(path) == digest(place / file["name"])
    (place / "events.jsonl").write_text("more")  # the log goes on; what was offered does not change
    assert all(digest(p).sha256 == b.sha256 for b in person.offered if (p := office.blobs.path(b.sha256)) is not None)


def test_a_run_fills_no_disk_by_a_file_that_takes_no_room_on_its_own(office: Office) -> None:
    office.run("r")
    place = office.folder("r")
    place.mkdir(parents=True)
    (place / "events.jsonl").write_bytes(b"x")
    office.blobs.quota = office.blobs.used + 1000
    assert office.ask("runs.pull", run="r")["files"]
    os.truncate(place / "events.jsonl", 1001)
    refused = office.refused("runs.pull", run="r")
    assert refused.code == m.CODE_BUSY
    assert "no room for events.jsonl of 1,001 bytes" in refused.text


def test_one_file_is_copied_at_a_time_and_of_each_operator_in_turns(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    office.run("r")
    office.folder("r").mkdir(parents=True)
    (office.folder("r") / "events.jsonl").write_bytes(b"x")
    copied, put_opened = [], office.blobs.put_opened

    def noted(file: Any, owner: str) -> m.Blob:
        copied.append((owner, threading.current_thread()))
        return put_opened(file, owner)

    monkeypatch.setattr(office.blobs, "put_opened", noted)

    async def main() -> None:
        people = [Person(id="ann"), Person(id="ann"), Person(id="bob", name="bob")]
        await asyncio.gather(*(office.responses(person, "runs.pull", '{"run": "r"}') for person in people))

    asyncio.run(main())
    assert [owner for owner, _ in copied] == ["ann", "bob", "ann"]
    assert len({thread for _, thread in copied}) == 1


def test_a_run_that_has_not_begun_says_what_it_waits_for(office: Office) -> None:
    office.run("r")
    (row,) = office.ask("runs.list")["runs"]
    assert row["waits"] == office.ask("runs.show", run="r")["waits"] == "clients: 1 ready, 1 refused; client b: no data"
    office.log("r", {"event": "run_started", "rounds": 5})
    assert office.ask("runs.list")["runs"][0]["waits"] == ""


def test_logs_of_long_events_come_in_pieces(office: Office) -> None:
    office.run("r", ended_at=5.0)
    wide = {"event": "x", "text": "\U0001f4c8" * 80_000}
    for _ in range(12):
        office.log("r", wide)
    number = office.store.greatest("events", run="r") + 1
    body = '{"event":"raw","text":"' + "ä" * 500_000 + '"}'  # as other programs may write it
    office.store.put("events", {"run": "r", "number": number, "at": 0.0, "body": body})
    office.store.commit()
    parts = asyncio.run(office.responses(Person(), "runs.logs", json.dumps({"run": "r"})))
    assert max(len(part.body) for part in parts) == RESPONSE_BYTES
    assert not parts[-1].more
    assert all(part.more for part in parts[:-1])
    found = office.ask("runs.logs", run="r")["events"]
    assert [number for number, _ in found] == list(range(1, 14))
    assert found[0][1] == wide
    assert found[-1][1] == json.loads(body)
    assert json.loads(parts[-1].body)["status"]


BAD = ["", "[", "[]", "1", "NaN", '{"event": 1}', "[" * 100_000, "\x00", '{"event": "round_committed"', "null"]


def test_a_row_of_a_log_that_makes_no_sense_is_set_aside_and_told(
    office: Office, caplog: pytest.LogCaptureFixture
) -> None:
    office.run("r", ended_at=5.0)
    for number, body in enumerate([*BAD, '{"event": "a"}'], 1):
        office.store.put("events", {"run": "r", "number": number, "at": 0.0, "body": body})
    office.store.commit()
    assert office.ask("runs.list")["runs"][0]["rounds"] == 0
    assert office.ask("runs.show", run="r")["asked"] == 0
    found = office.ask("runs.logs", run="r")["events"]
    assert [number for number, _ in found] == list(range(1, len(BAD) + 2))
    assert [event for _, event in found] == [*[{"event": UNREADABLE}] * len(BAD), {"event": "a"}]
    assert "event 2 of run r makes no sense" in caplog.text


def test_a_log_is_read_no_further_than_it_is_taken(office: Office) -> None:
    office.run("r", ended_at=5.0)
    body = json.dumps({"event": "x", "text": "x" * 10_000})
    for number in range(1, 501):  # 5 MB
        office.store.put("events", {"run": "r", "number": number, "at": 0.0, "body": body})
    office.store.commit()
    office.summaries.known("r")

    async def play() -> None:
        request = m.Request(id=7, method="runs.logs", body='{"run": "r"}')
        responses = [office.desk.answer(Person(), request) for _ in range(10)]
        for each in responses:
            assert (await anext(each)).more
        assert office.read < 10 * 2 * RESPONSE_BYTES
        for each in responses:
            await each.aclose()
        assert office.feeds.count == 0

    asyncio.run(play())
