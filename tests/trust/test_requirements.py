"""Requirements: what may be declared, and what is missing."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from umbel.errors import AppError
from umbel.trust.requirements import Declared, declared, listed, missing, requirement


@pytest.mark.parametrize(
    ("bounds", "good", "bad"),
    [
        ("", ["0", "1.2.3", "2.0rc1", "nonsense"], []),
        ("==1.2", ["1.2", "1.2.0", "1.2+cpu"], ["1.2.1", "1.1", "1.2rc1"]),
        ("!=1.2.*", ["1.3", "2"], ["1.2.5"]),
        (">=2.6", ["2.6", "2.6.0", "2.10", "3", "2.13.0+cpu", "2.7.dev3"], ["2.5.9", "2.6rc1", "2.6.dev3", "2"]),
        ("~=2.6", ["2.6", "2.9.1"], ["2.5", "3.0", "2.6a1"]),
        (">=2.6, <3 ,!=2.7", ["2.6", "2.8"], ["2.7", "3.0", "nonsense"]),
        ("(>=1)", ["1"], ["0.9"]),
    ],
)
def test_bounds_hold_for_what_is_installed(bounds, good, bad, monkeypatch):
    def lacking(installed):
        monkeypatch.setattr("importlib.metadata.version", lambda name: installed)
        return missing(manifest([f"torch{bounds}"]))

    assert [v for v in good if lacking(v)] == []
    assert [lacking(v) for v in bad] == [[f"it needs torch{bounds}, and {v} is installed here"] for v in bad]


def test_a_requirement_has_a_name_and_may_have_extras():
    assert requirement(" scikit-learn[alldeps,x] >= 1.4 ").name == "scikit-learn"


@pytest.mark.parametrize(
    "text",
    [
        "",
        ">=1",
        "torch>=",
        "torch=1",
        "torch>=1.*",
        "torch~=1",
        "torch; python_version < '3.12'",
        "torch @ https://example.org/torch.whl",
        "-r other.txt",
        "--index-url https://example.org",
        "torch torchvision",
        "a" * 5 + "[" + "b" * 2000,
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_how_to_write_it(text):
    with pytest.raises(AppError, match="cannot be read") as caught:
        requirement(text)
    assert "Write" in caught.value.hint


SCRIPT = '''"""A client."""
# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "numpy>=1.26",  # arrays
# ]
#
# [tool.umbel]
# files = ["digits.csv.gz"]
# ///
import umbel
'''


def test_the_block_of_a_script_is_read():
    assert declared(SCRIPT, "client.py") == Declared(("numpy>=1.26",), ">=3.11", ("digits.csv.gz",))
    assert declared(SCRIPT.replace("\n", "\r\n").replace("\r\n", "\n"), "client.py").files
    assert declared("import umbel\n", "client.py") == Declared()
    assert declared("# /// other\n# x = 1\n# ///\n", "client.py") == Declared()
    assert declared("# /// script\n# [tool.ruff]\n# x = 1\n# ///\n", "client.py") == Declared()
    assert declared("# /// script\n# dependencies = []\n# ///\n", "c.py") == Declared(())
    assert declared("# /// script\n# [tool.umbel]\n# version = 3\n# ///\n", "c.py") == Declared(version=3)


@pytest.mark.parametrize(
    "lines",
    [
        "dependencies = 3",
        "dependencies = [3]",
        "depends = []",
        "x = [",
        'requires-python = "=3"',
        "requires-python = 3",
        "tool = 3",
        '[tool.umbel]\nfile = ["x"]',
        '[tool.umbel]\nfiles = "x"',
        '[tool.umbel]\nversion = "3"',
        "[tool.umbel]\nversion = true",
        "[tool.umbel]\nversion = -1",
    ],
)
def test_a_block_that_is_wrong_is_an_error_that_names_the_file(lines):
    block = "".join(f"# {line}\n" for line in lines.split("\n"))
    with pytest.raises(AppError, match=r"client\.py|requires-python"):
        declared(f"# /// script\n{block}# ///\n", "client.py")


def test_two_blocks_are_an_error():
    block = "# /// script\n# dependencies = []\n# ///\n"
    with pytest.raises(AppError, match="several"):
        declared(block + "\n" + block, "client.py")


def test_a_list_of_requirements_is_read_without_comments():
    assert listed("# all\n\ntorch>=2.6  # the network\n numpy \n") == ("torch>=2.6", "numpy")


def manifest(requirements=(), imports=(), python=""):
    return {"requirements": list(requirements), "imports": list(imports), "python": python}


def test_nothing_is_imported_to_see_whether_it_is_there(tmp_path, monkeypatch):
    (tmp_path / "probe_of_test").mkdir()
    (tmp_path / "probe_of_test" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "probe_of_test" / "part.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert missing(manifest(imports=["probe_of_test"])) == []
    assert missing(manifest(imports=["probe_of_test.part"])) == [
        "it imports probe_of_test.part, which is not installed here"
    ]
    assert "probe_of_test" not in sys.modules


def test_what_is_missing_is_said_in_words():
    assert missing(manifest(["numpy>=1.26", "NumPy"], ["numpy", "json"], ">=3.11")) == []
    wrong = missing(manifest(["numpy>=99", "no-such-package>=1", "what is this"], ["no_such_module"], ">=99"))
    assert [line.partition(",")[0] for line in wrong] == [
        "it needs Python >=99",
        "it needs numpy>=99",
        "it needs no-such-package>=1",
        "the requirement 'what is this' cannot be read",
        "it imports no_such_module",
    ]
    assert np.__version__ in wrong[1]


@pytest.mark.parametrize("module", ["", ".x", "a\0b", "..", "numpy."])
def test_hostile_imports_are_missing(module):
    assert len(missing(manifest(imports=[module]))) == 1


@pytest.mark.parametrize("bounds", ["==", "==" + "9" * 5000])
def test_hostile_bounds_are_missing(bounds):
    assert len(missing(manifest(["numpy" + bounds], python=bounds))) == 2
