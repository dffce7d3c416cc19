"""What a run records of the software it ran on, and what it says when that differs."""

import platform

from umbel.runs.software import changes, software


def test_it_names_what_bits_depend_on():
    found = software({"plan": "in-process", "threads": "1"})
    assert found["python"] == platform.python_version()
    assert found["plan"] == "in-process"
    assert {"numpy", "instructions", "threads", "system"} <= found.keys()
    assert changes(found, found) == {}


def test_files_of_packages_are_read_once(monkeypatch):
    found = software({})

    def read(name):
        raise AssertionError(f"the version of {name} is known")

    monkeypatch.setattr("importlib.metadata.version", read)
    assert software({}) == found


def test_differences_are_named_with_both_sides():
    assert changes({"numpy": "1", "a": "x"}, {"numpy": "2", "a": "x", "torch": "3"}) == {
        "numpy": ["1", "2"],
        "torch": ["", "3"],
    }
