"""Fleets: devices drawn alike wherever they are asked for, and trips that add up."""

from __future__ import annotations

import json
import math
import pickle
import statistics
from collections import Counter
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.simulation.test_devices import HOUR, any_device, moments

from umbel.core.randomness import Key
from umbel.errors import SettingError
from umbel.simulation import fleets
from umbel.simulation.devices import DAY, Device, Kind, Spread, TaskFate
from umbel.simulation.fleets import Fleet

KEY = Key.from_seed(5)
MIXED = {
    "fast": Kind(share=3, speed=Spread(2.0, 0.5), download=Spread(1e6, 1.0), upload=Spread(1e5, 1.0)),
    "slow": Kind(share=1, speed=0.5, opens=(79_200, 7_200), lasts=28_800),
}

seeds = st.integers(-(2**70), 2**70)
clients = st.one_of(st.integers(0, 2**40), st.text(max_size=8))


def fleet_of(device: Device, work: float = 1.0) -> Fleet:
    """A fleet of which every device is this one."""
    names = ("speed", "download", "upload", "watts", "radio_watts", "drop_out", "opens", "lasts")
    return Fleet(Kind(device.kind, **{name: getattr(device, name) for name in names}), work=work)


def trip(device: Device, *, at: float = 0.0, work: float = 1.0, down: int = 0, up: int = 0, key: Key = KEY) -> TaskFate:
    fleet = fleet_of(device, work)
    return fleet.trip(0, at=at, kind="train", config={}, bytes_down=down, bytes_up=up, key=key)


# Devices of a fleet


@given(seeds, st.lists(clients, max_size=20))
def test_a_device_depends_on_the_seed_and_the_client_alone(seed: Any, asked: Any) -> None:
    there, back = Fleet(MIXED, seed=seed), Fleet(MIXED, seed=seed)
    drawn = {client: there.device(client) for client in asked}
    assert {client: back.device(client) for client in reversed(asked)} == {c: drawn[c] for c in reversed(asked)}


def test_other_seeds_and_other_clients_give_other_devices() -> None:
    fleet = Fleet(Kind(speed=Spread(1.0, 1.0)))
    assert len({fleet.device(client).speed for client in range(1000)}) > 990
    assert fleet.device(1) != Fleet(Kind(speed=Spread(1.0, 1.0)), seed=1).device(1) != fleet.device("1")


def test_devices_are_the_same_on_every_machine_and_in_every_version() -> None:
    drawn = Fleet.preset("phones", seed=7).device(3)
    assert drawn == PINNED


def test_kinds_come_by_their_shares() -> None:
    fleet = Fleet([Kind("a", share=5), Kind("b", share=3), Kind("c", share=2)])
    counts = Counter(fleet.device(client).kind for client in range(5000))
    for name, share in (("a", 0.5), ("b", 0.3), ("c", 0.2)):
        assert abs(counts[name] / 5000 - share) < 4 * math.sqrt(share * (1 - share) / 5000)


def test_a_spread_has_its_median_and_its_width() -> None:
    fleet = Fleet(Kind(speed=Spread(3.0, 0.5), download=Spread(1e6, 1.0), upload=Spread(1e5, 0.5)))
    drawn = [fleet.device(client) for client in range(5000)]
    logs = [math.log(device.speed) for device in drawn]
    assert statistics.mean(logs) == pytest.approx(math.log(3.0), abs=0.03)
    assert statistics.stdev(logs) == pytest.approx(0.5, rel=0.05)
    for device in drawn[:100]:  # one link: as many standard deviations in both directions
        assert math.log(device.upload / 1e5) / 0.5 == pytest.approx(math.log(device.download / 1e6), abs=1e-4)
    links = [math.log(device.download / 1e6) for device in drawn]
    assert abs(statistics.correlation(logs, links)) < 0.05
    assert Spread(1 / 3, 0).at(2.0) == 1 / 3


def test_openings_are_drawn_between_two_times_over_midnight() -> None:
    fleet = Fleet(Kind(opens=(79_200, 7_200), lasts=HOUR))
    opens = [fleet.device(client).opens for client in range(2000)]
    assert all(second >= 79_200 or second <= 7_200 for second in opens)
    assert 0.45 < sum(second > 7_200 for second in opens) / 2000 < 0.55
    assert {Fleet(Kind(opens=(60, 60))).device(c).opens for c in range(9)} == {60.0}
    assert {Fleet(Kind(opens=60)).device(c).opens for c in range(9)} == {60.0}


def test_fifty_million_clients_cost_what_is_asked_for() -> None:
    fleet = Fleet.preset("phones")
    last = fleet.device(49_999_999)
    assert Fleet.preset("phones").device(49_999_999) == last
    first = fleet.device(0)
    for client in range(fleets.CACHED + 100):
        fleet.device(client * 4001)
    assert len(fleet._drawn) == fleets.CACHED
    assert 0 not in fleet._drawn
    assert (fleet.device(0), fleet.device(49_999_999)) == (first, last)


def test_what_was_asked_for_last_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleets, "CACHED", 2)
    fleet = Fleet(MIXED)
    one = fleet.device(1)
    fleet.device(2)
    assert fleet.device(1) is one
    fleet.device(3)
    assert list(fleet._drawn) == [1, 3]


def test_a_fleet_travels_without_its_memory() -> None:
    fleet = Fleet.preset("workstations", work=3, seed=9)
    drawn = fleet.device(4)
    copy = pickle.loads(pickle.dumps(fleet))
    assert not copy._drawn
    assert fleet._drawn
    assert copy.device(4) == drawn
    assert (copy.spec, repr(copy)) == (fleet.spec, repr(fleet))


# What becomes of a task


@given(any_device, moments, st.floats(0, 1e4), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 99))
def test_a_trip_adds_up(device: Device, at: Any, work: Any, down: Any, up: Any, seed: Any) -> None:
    assume(down / device.download + up / device.upload < 1e9)
    made = trip(device, at=at, work=work, down=down, up=up, key=Key.from_seed(seed))
    whole = (down / device.download, work / device.speed, up / device.upload)
    spent = (made.download, made.compute, made.upload)
    assert made.begins == device.next_online(at) <= made.ends
    assert made.ends <= device.online_until(made.begins)
    assert sum(spent) == pytest.approx(made.ends - made.begins, rel=1e-9, abs=1e-6)
    assert all(0 <= part <= full for part, full in zip(spent, whole, strict=True))
    assert 0 <= made.bytes_down <= down
    assert 0 <= made.bytes_up <= up
    assert made.joules == pytest.approx(
        made.compute * device.watts + (made.download + made.upload) * device.radio_watts
    )
    if made.failed is None:
        assert device.drop_out < 1
        assert spent == whole
        assert (made.bytes_down, made.bytes_up) == (down, up)
    elif made.failed == "went offline":
        assert made.ends == device.online_until(made.begins) < made.begins + sum(whole)
    else:
        assert made.failed == "dropped out"
        assert device.drop_out > 0


def test_a_trip_that_succeeds() -> None:
    device = Device(speed=2.0, download=100.0, upload=50.0, watts=10.0, radio_watts=1.0, opens=100.0, lasts=1000.0)
    made = trip(device, at=40.0, work=6.0, down=400, up=100)
    assert made == TaskFate(100.0, 109.0, 4.0, 3.0, 2.0, 400, 100, 36.0, None)
    assert trip(Device()) == TaskFate(0.0, 1.0, 0.0, 1.0, 0.0, 0, 0, 0.0, None)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (97.0, (3.0, 0.0, 0.0, 300, 0, 3.0)),  # while it downloads
        (94.0, (4.0, 2.0, 0.0, 400, 0, 24.0)),  # while it computes
        (92.0, (4.0, 3.0, 1.0, 400, 50, 35.0)),  # while it uploads
    ],
)
def test_a_device_goes_offline_on_the_way(at: Any, expected: Any) -> None:
    device = Device(speed=2.0, download=100.0, upload=50.0, watts=10.0, radio_watts=1.0, opens=50.0, lasts=50.0)
    made = trip(device, at=at, work=6.0, down=400, up=100)
    assert (made.begins, made.ends, made.failed) == (at, 100.0, "went offline")
    assert (made.download, made.compute, made.upload, made.bytes_down, made.bytes_up, made.joules) == expected
    assert trip(device, at=91.0, work=6.0, down=400, up=100).failed is None  # done the moment it closes


def test_a_trip_leads_over_midnight() -> None:
    device = Device(opens=DAY - 10, lasts=20)
    made = trip(device, at=HOUR, work=15)
    assert (made.begins, made.ends, made.failed) == (DAY - 10, DAY + 5, None)
    assert trip(device, at=DAY, work=15).failed == "went offline"


def test_drop_outs_come_as_often_as_they_should_and_anywhere_on_the_way() -> None:
    device = Device(drop_out=0.3, download=1.0, upload=1.0)
    made = [trip(device, down=2, up=1, key=Key.from_seed(seed)) for seed in range(3000)]
    failed = [one for one in made if one.failed]
    assert {one.failed for one in failed} == {"dropped out"}
    assert len(failed) / 3000 == pytest.approx(0.3, abs=0.035)
    ends = [one.ends for one in failed]
    assert statistics.mean(ends) == pytest.approx(2.0, abs=0.15)
    assert min(ends) < 0.1
    assert 3.9 < max(ends) < 4.0
    assert {one.bytes_up for one in failed} == {0}
    assert {one.bytes_down for one in failed} == {0, 1, 2}


def test_the_task_decides_who_drops_out() -> None:
    device = Device(drop_out=0.5)
    first = [trip(device, key=KEY.derive(task)).failed for task in range(50)]
    assert first == [trip(device, key=KEY.derive(task)).failed for task in range(50)]
    assert len(set(first)) == 2


def test_one_that_would_drop_out_after_it_went_offline_went_offline() -> None:
    failed = {trip(Device(drop_out=1.0, lasts=1.0), work=1e9, key=KEY.derive(task)).failed for task in range(20)}
    assert failed == {"went offline"}


def test_a_failure_in_no_time_at_all() -> None:
    made = trip(Device(drop_out=1.0), work=0.0, down=5, up=7)
    assert made == TaskFate(0.0, 0.0, 0.0, 0.0, 0.0, 5, 0, 0.0, "dropped out")


# Work


def test_a_number_is_the_cost_of_training() -> None:
    fleet = Fleet(Kind(), work=6)
    assert [fleet.reference_seconds(0, kind, {}) for kind in ("train", "evaluate", "query")] == [6.0, 2.0, 2.0]


def test_a_function_says_what_a_task_costs() -> None:
    def work(client: Any, kind: Any, config: Any) -> Any:
        return (10 if kind == "train" else 1) * config["epochs"] + client

    fleet = Fleet(Kind(speed=2.0), work=work)
    assert fleet.reference_seconds(3, "train", {"epochs": 5}) == 53.0
    made = fleet.trip(3, at=0, kind="evaluate", config={"epochs": 5}, bytes_down=1, bytes_up=1, key=KEY)
    assert made.compute == 4.0
    assert fleet.spec["work"]["function"].endswith("work")


@pytest.mark.parametrize("given", [-1.0, math.nan, math.inf, None, "3", True])
def test_what_is_no_work(given: Any) -> None:
    with pytest.raises(SettingError, match="what work gives for a task of kind 'train' is a number of seconds"):
        Fleet(Kind(), work=lambda client, kind, config: given).reference_seconds(8, "train", {})
    with pytest.raises(SettingError, match="a fleet's work is a number of seconds"):
        Fleet(Kind(), work=given)


# Settings


@pytest.mark.parametrize("kinds", [[], {}, None, 3, "phones", [Device()], {"a": 1}])
def test_what_are_no_kinds(kinds: Any) -> None:
    with pytest.raises(SettingError, match="a fleet's kinds are"):
        Fleet(kinds)


def test_kinds_have_names_of_their_own() -> None:
    with pytest.raises(SettingError, match="two kinds of a fleet are named 'machine'"):
        Fleet([Kind(), Kind(speed=2)])
    assert {Fleet({"a": Kind(), "b": Kind()}).device(c).kind for c in range(50)} == {"a", "b"}


@pytest.mark.parametrize("seed", [1.0, True, None, "1"])
def test_what_is_no_seed(seed: Any) -> None:
    with pytest.raises(SettingError, match="a fleet's seed is an integer"):
        Fleet(Kind(), seed=seed)


def test_a_fleet_describes_itself() -> None:
    fleet = Fleet(MIXED, work=2, seed=4)
    assert repr(fleet) == "Fleet([fast 0.75, slow 0.25], work=2.0, seed=4)"
    assert fleet.spec == {
        "kinds": [
            {
                "name": "fast",
                "share": 3.0,
                "speed": {"median": 2.0, "sigma": 0.5},
                "download": {"median": 1e6, "sigma": 1.0},
                "upload": {"median": 1e5, "sigma": 1.0},
            },
            {"name": "slow", "speed": 0.5, "opens": [79_200.0, 7_200.0], "lasts": 28_800.0},
        ],
        "work": 2.0,
        "seed": 4,
    }
    assert not fleet.always_online()
    assert Fleet(Kind()).always_online()


# Presets

PINNED = Device(
    kind="mid-range phone, at night",
    speed=0.251291,
    download=3215620.0,
    upload=964687.0,
    watts=4.5,
    radio_watts=1.0,
    drop_out=0.08,
    opens=81405.21791166236,
    lasts=28800.0,
)


@pytest.mark.parametrize("name", ["phones", "boards", "workstations"])
def test_presets(name: Any) -> None:
    fleet = Fleet.preset(name, work=10.0, seed=2)
    assert repr(fleet) == f"Fleet.preset({name!r}, work=10.0, seed=2)"
    assert json.loads(json.dumps(fleet.spec, allow_nan=False)) == fleet.spec
    assert fleet.spec["preset"] == name
    assert fleet.always_online() == (name != "phones")
    drawn = Counter(fleet.device(client).kind for client in range(500))
    assert set(drawn) == {kind["name"] for kind in fleet.spec["kinds"]}
    made = [
        fleet.trip(c, at=0, kind="train", config={}, bytes_down=10**6, bytes_up=10**6, key=KEY.derive(c))
        for c in range(500)
    ]
    assert sum(one.failed is None for one in made) > 440
    assert all(one.joules > 0 for one in made if one.failed is None)


def test_four_times_as_many_phones_at_night_as_by_day() -> None:
    drawn = [Fleet.preset("phones").device(client) for client in range(4000)]
    online = [sum(device.online(hour * HOUR) for device in drawn) for hour in range(24)]
    assert 3.5 < max(online) / min(online) < 4.6
    assert online.index(max(online)) in range(6)


def test_a_board_s_cpu_takes_longer_than_its_gpu() -> None:
    drawn = {device.kind: device for device in map(Fleet.preset("boards").device, range(50))}
    assert drawn["Jetson TX2 GPU"].speed / drawn["Jetson TX2 CPU"].speed == pytest.approx(1.27)


def test_a_preset_that_does_not_exist() -> None:
    with pytest.raises(SettingError, match="no preset 'tablets' of devices; there are phones, boards, workstations"):
        Fleet.preset("tablets")  # type: ignore[arg-type]


@pytest.mark.parametrize("fleet", [Fleet.preset("phones"), Fleet(Kind(opens=(79200, 7200), lasts=9000)), Fleet(Kind())])
def test_who_is_online_is_known_without_the_rest_of_the_device(fleet):
    for client in range(60):
        for at in (0.0, 81000.0, 300000.5):
            before = fleet.online(client, at)
            assert before == fleet.device(client).online(at) == fleet.online(client, at)
