"""Runs that operators submit, stop and go on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.server.desks import APP, CLIENT, Office, bringing, submission

from umbel.trust.identity import SigningKey
from umbel.wire import messages as m


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_a_run_is_submitted_once(office: Office) -> None:
    key, person = SigningKey.new(), bringing(office, CLIENT, APP, role="run")
    order = submission(key)
    assert office.ask("runs.submit", person, **order) == {"run": "demo-1"}
    assert office.ask("runs.submit", person, **order) == {"run": "demo-1"}  # said again after a lost connection
    assert office.done == ["start demo-1"]
    assert office.audited == ["ann runs.submit"]
    (row,) = office.store.rows("runs")
    assert (row["status"], row["owner"], row["name"], row["ended_at"]) == ("running", "ann", "demo", None)
    assert row["submission"]["settings"] == order["settings"]
    assert office.blobs.collect() == 0  # both archives are held
    held = set(office.desk.submissions.held())
    assert {sha for sha, _ in held} == {bytes.fromhex(order[part]["sha256"]) for part in ("client", "app")}
    other = office.refused("runs.submit", bringing(office, CLIENT, APP, name="bob"), **order)
    assert other.code == m.CODE_OUT_OF_ORDER


def test_so_many_runs_of_one_operator_go_on_at_once(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("umbel.server.submissions.OPERATOR_RUNS", 1)
    key, person = SigningKey.new(), bringing(office, CLIENT, APP)
    office.run("before", status="failed", ended_at=1.0, submission={"settings": {}})
    office.run("driven", submission=None)  # by a program of ann's that was killed, say
    office.ask("runs.submit", person, **submission(key))
    for refused in (
        office.refused("runs.submit", person, **submission(key, run="demo-2")),
        office.refused("runs.resume", person, run="before"),
    ):
        assert refused.code == m.CODE_BUSY
        assert "1 runs of ann's are going on" in refused.text
    assert [run for _, run in office.desk.submissions.held()] == ["submitted/demo-1"] * 2
    assert len(office.store.rows("runs")) == 3
    assert office.done == ["start demo-1"]
    assert office.ask("runs.submit", bringing(office, CLIENT, APP, name="bob"), **submission(key, run="demo-3"))


WRONG: dict[str, tuple[Callable[[SigningKey], dict[str, Any]], int]] = {
    "another's signature": (lambda key: submission(key, author=SigningKey.new().public.hex()), m.CODE_MALFORMED),
    "no signature": (lambda key: submission(key, signature="00"), m.CODE_MALFORMED),
    "a signature that has expired": (lambda key: submission(key, stating={"expires": 1.0}), m.CODE_MALFORMED),
    "another archive signed": (
        lambda key: {**submission(key), "client": submission(key, client=APP)["client"]},
        m.CODE_MALFORMED,
    ),
    "another statement": (
        lambda key: submission(key, statement=submission(key, stating={"version": 2})["statement"]),
        m.CODE_MALFORMED,
    ),
    "kinds exchanged": (lambda key: submission(key, client=APP, app=CLIENT), m.CODE_MALFORMED),
    "no archive": (lambda key: submission(key, app=b"nonsense"), m.CODE_MALFORMED),
    "an id with a path": (lambda key: submission(key, run="../x"), m.CODE_MALFORMED),
    "a blob that is none": (lambda key: submission(key, app={"sha256": "00", "size": 1}), m.CODE_MALFORMED),
    "a blob too large": (lambda key: submission(key, app={"sha256": "00" * 32, "size": 1 << 40}), m.CODE_TOO_LARGE),
    "a blob nobody has": (lambda key: submission(key, app={"sha256": "00" * 32, "size": 9}), m.CODE_UNKNOWN),
    "no hexadecimal": (lambda key: submission(key, author="xyz"), m.CODE_MALFORMED),
    "an unknown setting": (lambda key: submission(key, settings={"speed": 3}), m.CODE_MALFORMED),
    "nobody to wait for": (lambda key: submission(key, settings={"wait_for": 0}), m.CODE_MALFORMED),
    "no time to wait": (lambda key: submission(key, settings={"wait": -1.5}), m.CODE_MALFORMED),
    "no rounds": (lambda key: submission(key, settings={"rounds": 0}), m.CODE_MALFORMED),
    "a name with half a character": (lambda key: submission(key, name="\ud800"), m.CODE_MALFORMED),
    "a name on two lines": (lambda key: submission(key, name="a\nb"), m.CODE_MALFORMED),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_submission_leaves_nothing(office: Office, what: str) -> None:
    make, code = WRONG[what]
    person = bringing(office, CLIENT, APP, b"nonsense")
    assert office.refused("runs.submit", person, **make(SigningKey.new())).code == code
    assert office.store.rows("runs") == []
    assert office.done == []
    office.blobs.collect()
    assert office.blobs.used == 0


def test_what_its_author_has_not_signed_is_not_even_fetched(office: Office) -> None:
    key, person = SigningKey.new(), bringing(office, CLIENT, APP)
    for order in (
        submission(key, author=SigningKey.new().public.hex()),
        submission(key, author=""),
        submission(key, signature="00"),
    ):
        assert office.refused("runs.submit", person, **order).code == m.CODE_MALFORMED
    assert person.fetched == []
    assert office.ask("runs.submit", person, **submission(key)) == {"run": "demo-1"}
    assert len(person.fetched) == 2


def test_a_run_is_stopped_and_goes_on(office: Office) -> None:
    office.run("r", submission={"settings": {"rounds": 2}})
    assert office.refused("runs.resume", run="r").code == m.CODE_OUT_OF_ORDER
    assert office.ask("runs.stop", run="r") == {"run": "r"}
    office.run("r", status="stopped", ended_at=9.0)
    assert "stopped" in office.refused("runs.stop", run="r").text
    assert office.refused("runs.resume", run="r", rounds=0).code == m.CODE_MALFORMED
    assert office.ask("runs.resume", run="r", rounds=6) == {"run": "r"}
    (row,) = office.store.rows("runs")
    assert (row["status"], row["ended_at"], row["submission"]["settings"]["rounds"]) == ("running", None, 6)
    assert office.done == ["stop r", "start r"]
    assert office.audited == ["ann runs.stop", "ann runs.resume"]
    office.run("own")
    assert office.ask("runs.stop", run="own") == {"run": "own", "driven": True}
    office.run("own", ended_at=9.0)
    assert "program" in office.refused("runs.resume", run="own").text
