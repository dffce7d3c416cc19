"""Traces: a file's lines are devices, tied to clients or dealt."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from umbel.errors import DataError, SettingError
from umbel.simulation.devices import Device
from umbel.simulation.fleets import Fleet

Write: TypeAlias = Callable[[str | bytes], Path]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Write a trace and give its path."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "fleet.csv"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_a_trace_ties_lines_to_clients_and_deals_the_others(written: Write) -> None:
    lines = [
        "client, kind ,speed,opens,lasts",
        "0,lab,4,,",
        'north,"site, north",2,0,3600',
        "",
        ",phone,0.5,,",
        ",,0.25,,",
    ]
    text = "\r\n".join(lines)
    fleet = Fleet.trace(written("\ufeff" + text), work=2, seed=1)
    assert fleet.device(0) == fleet.device("0") == Device("lab", speed=4.0)
    assert fleet.device("north") == Device("site, north", speed=2.0, opens=0.0, lasts=3600.0)
    dealt = Counter(fleet.device(client) for client in range(1, 1001))
    assert set(dealt) == {Device("phone", speed=0.5), Device(speed=0.25)}
    assert min(dealt.values()) > 400
    assert not fleet.always_online()
    assert repr(fleet) == "Fleet.trace('fleet.csv', work=2.0, seed=1)"
    assert fleet.spec.pop("sha256") == Fleet.trace(written("\ufeff" + text)).spec["sha256"]
    assert {k: v for k, v in fleet.spec.items() if k != "sha256"} == {
        "trace": "fleet.csv",
        "devices": 4,
        "work": 2.0,
        "seed": 1,
    }


def test_a_trace_s_lines_are_dealt_alike_wherever_they_are_asked_for(written: Write) -> None:
    path = written("speed,download,upload\n1,inf,1e6\n2,5e5,1e5\n3,1,1\n")
    there, back = Fleet.trace(str(path), seed=3), Fleet.trace(path, seed=3)
    assert [there.device(c) for c in range(100)] == [back.device(c) for c in reversed(range(100))][::-1]
    assert {there.device(c).speed for c in range(100)} == {1.0, 2.0, 3.0}
    assert there.always_online()
    assert pickle.loads(pickle.dumps(there)).device(5) == back.device(5)


def test_a_client_without_a_device(written: Write) -> None:
    fleet = Fleet.trace(written("client,speed\n0,1\n1,2\n"))
    assert fleet.device(1).speed == 2.0
    with pytest.raises(SettingError, match=r"fleet\.csv has no device for client 2.*\nAdd a line for it"):
        fleet.device(2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"fleet\.csv is empty; its first line names the columns"),
        ("speed\n", r"fleet\.csv has no device"),
        ("speed,colour\n1,2\n", r"fleet\.csv, line 1: there is no column 'colour'; .* are client, kind, speed,"),
        ("speed,speed\n1,2\n", r"fleet\.csv, line 1: column speed is there twice"),
        ("speed,watts\n1,2\n1\n", r"fleet\.csv, line 3: there are 1 values for 2 columns: \['1'\]"),
        ("speed\n1\n1,2\n", r"fleet\.csv, line 3: there are 2 values for 1 columns"),
        ("client,speed\n4,1\n4,2\n", r"fleet\.csv, line 3, column client: client '4' has a line already"),
        ("speed\n1\nfast\n", r"fleet\.csv, line 3, column speed: this is a positive number, .* not 'fast'"),
        ('kind,speed\n"a\nb",1\nc,0\n', r"fleet\.csv, line 4, column speed: .* not '0'"),
        ("download\nnan\n", r"line 2, column download: this is a positive number of bytes a second, not 'nan'"),
        ("upload\n-5\n", "line 2, column upload: this is a positive number of bytes a second, not '-5'"),
        ("watts\ninf\n", "line 2, column watts: this is a number of watts"),
        ("radio_watts\n-1\n", "line 2, column radio_watts: this is a number of watts"),
        ("drop_out\n8\n", "line 2, column drop_out: this is a probability, from 0 to 1, not '8'"),
        ("opens\n86400\n", "line 2, column opens: this is a second of the day"),
        ("lasts\n24h\n", "line 2, column lasts: this is a number of seconds from 1 to 86400"),
        ('speed\n"1"2\n', r"fleet\.csv, line 2: this is no CSV"),
        (b"kind\n\xff\xfe\n", r"fleet\.csv is not text in UTF-8 \(byte 5\)"),
    ],
)
def test_what_is_no_trace(written: Write, text: Any, says: Any) -> None:
    with pytest.raises(DataError, match=says):
        Fleet.trace(written(text))


def test_a_trace_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the trace .*none\.csv cannot be read: No such file"):
        Fleet.trace(tmp_path / "none.csv")
