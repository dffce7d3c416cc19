"""Packing: a client with all that it needs, and nothing else."""

from __future__ import annotations

import hashlib
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import strays

import umbel
from umbel.cli.application import load
from umbel.errors import AppError
from umbel.trust.archive import read, unpack
from umbel.trust.packing import declared_version, pack, pack_client

EXAMPLES = Path(__file__).parents[2] / "examples"
CLIENT = '''"""A client."""
import numpy as np
import umbel

client = umbel.Client()


@client.train
def train(model, data, ctx):
    return umbel.Update(dict(model))
'''


@pytest.fixture(autouse=True)
def _modules(monkeypatch):
    """What others have called their modules, such as client, is free here."""
    for name in strays(list(sys.modules)):
        monkeypatch.delitem(sys.modules, name)


def folder(place, **files):
    """Write files; a name without a dot is that of a module."""
    for name, text in files.items():
        path = place / (name if "." in name else f"{name}.py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return place


def packed(path, name=None):
    importlib.invalidate_caches()
    loaded = load(str(path) if name is None else f"{path}:{name}")
    return pack(loaded.app, loaded.path, loaded.name)


SCRIPT = "import umbel.script as fl\nimport sklearn\nimport net\nfor task in fl.tasks({}):\n    fl.answer()\n"
SCRIPTED = "import umbel, umbel.script\nclient = umbel.script.client('train.py')\n" + (
    'app = umbel.App(client, model={"w": [0.0]}, strategy=umbel.FedAvg())\n'
)


def test_a_client_that_is_a_script_brings_it_and_what_that_imports(tmp_path):
    folder(tmp_path, app=SCRIPTED, train=SCRIPT, net="", other="")
    found = packed(tmp_path / "app.py")
    assert names(found.client) == names(found.app) == ["app.py", "net.py", "train.py"]
    assert found.manifest["imports"] == ["sklearn"]
    assert found.manifest["handlers"] == ["train"]
    folder(tmp_path, **{"app.py": SCRIPTED.replace("train.py", "below/train.py"), "below/train.py": SCRIPT})
    with pytest.raises(AppError, match=r"app.py starts .*below/train.py, which is not in the folder"):
        packed(tmp_path / "app.py")


def names(data):
    return sorted(read(data).files)


APP_FILE = "import umbel\nfrom client import client\nimport server_side\n" + (
    'app = umbel.App(client, model={"w": [0.0]}, strategy=umbel.FedAvg())\n'
)


def test_the_client_gets_its_module_and_what_that_imports(tmp_path):
    folder(
        tmp_path,
        app=APP_FILE,
        server_side="SECRET = 1\n",
        client="import net, layers.conv\nfrom tools import numbers, strings as s\n" + CLIENT,
        net="from math import *\ndef later():\n    import lazy\n",
        lazy="from __future__ import annotations\nif False:\n    import net\n",
        **{"layers/__init__.py": ""},
        **{"layers/conv.py": "from . import pool\nfrom .act import relu\n"},
        **{"layers/pool.py": ""},
        **{"layers/act.py": "relu = 1\n"},
        **{"tools/numbers.py": ""},
        **{"tools/strings.py": ""},
        unused="1 / 0\n",
    )
    found = packed(tmp_path / "app.py")
    wanted = ["client.py", "layers/__init__.py", "layers/act.py", "layers/conv.py", "layers/pool.py"]
    wanted += ["lazy.py", "net.py", "tools/numbers.py", "tools/strings.py"]
    assert names(found.client) == wanted
    assert names(found.app) == sorted(["app.py", "server_side.py", *wanted])
    assert found.manifest == read(found.client).manifest
    about = {key: found.manifest[key] for key in ("module", "attribute", "handlers", "imports", "requirements")}
    assert about == {
        "module": "client", "attribute": "client", "handlers": ["train"], "imports": ["numpy"], "requirements": [],
    }  # fmt: skip
    assert read(found.app).manifest["file"] == "app.py"
    assert found.sha256 == hashlib.sha256(found.client).digest()


def test_it_runs_where_it_is_unpacked(tmp_path):
    here = folder(
        tmp_path / "here", app=APP_FILE, server_side="", client="import net\n" + CLIENT, net="import json\nx = 3\n"
    )
    found = packed(here / "app.py")
    unpack(read(found.client), tmp_path / "there")
    code = "import client; assert list(client.client.handlers) == ['train']; print(client.net.x)"
    environment = {**os.environ, "PYTHONPATH": str(Path(umbel.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "there",
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "3\n"
    unpack(read(found.app), tmp_path / "app")
    assert load(str(tmp_path / "app" / "app.py")).app.client.handlers.keys() == {"train"}


def test_the_example_with_two_files_needs_what_it_imports():
    found = packed(EXAMPLES / "quickstart-pytorch" / "app.py")
    assert names(found.client) == ["client.py"]
    assert names(found.app) == ["app.py", "client.py"]
    assert found.manifest["handlers"] == ["evaluate", "train"]
    assert found.manifest["imports"] == ["torch"] or found.manifest["requirements"]


def test_the_example_in_one_file_is_its_own_client():
    found = packed(EXAMPLES / "quickstart-numpy" / "app.py")
    assert "app.py" in names(found.client)
    assert names(found.client) == names(found.app)
    assert (found.manifest["module"], found.manifest["attribute"]) == ("app", "client")


BLOCK = """# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy>=1.26"]
# [tool.umbel]
# files = ["tables/*.csv", "plugin.py"]
# ///
"""


def test_declared_files_and_requirements_come_along(tmp_path):
    folder(
        tmp_path,
        app=APP_FILE,
        server_side="",
        client=BLOCK + CLIENT,
        plugin="import more\n",
        more="",
        **{"tables/a.csv": "1\n"},
        **{"tables/b.csv": "2\n"},
        **{"tables/c.txt": "3\n"},
    )
    (tmp_path / "requirements.txt").write_text("ignored>=1\n")
    found = packed(tmp_path / "app.py")
    assert names(found.client) == ["client.py", "more.py", "plugin.py", "tables/a.csv", "tables/b.csv"]
    assert found.manifest["requirements"] == ["numpy>=1.26"]
    assert found.manifest["imports"] == []
    assert found.manifest["python"] == ">=3.11"
    assert read(found.client).missing() == []


def test_the_version_is_what_the_client_declares(tmp_path):
    folder(tmp_path, app=APP_FILE, server_side="", client=CLIENT)
    loaded = load(f"{tmp_path / 'app.py'}")
    assert (packed(tmp_path / "app.py").version, declared_version(loaded.app.client)) == (0, 0)
    block = "# /// script\n# [tool.umbel]\n# version = 7\n# ///\n"
    folder(tmp_path, app=APP_FILE, server_side="", client=block + CLIENT)
    assert (packed(tmp_path / "app.py").version, declared_version(loaded.app.client)) == (7, 7)


def test_requirements_may_stand_in_a_file_beside_the_client(tmp_path):
    folder(tmp_path, app=APP_FILE, server_side="", client=CLIENT)
    (tmp_path / "requirements.txt").write_text("torch>=2.6 # the network\nnumpy\n")
    assert packed(tmp_path / "app.py").manifest["requirements"] == ["numpy", "torch>=2.6"]
    (tmp_path / "requirements.txt").write_text("-e .\n")
    with pytest.raises(AppError, match="cannot be read"):
        packed(tmp_path / "app.py")


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("../secret.csv", "not below its folder"),
        ("/etc/passwd", "not below its folder"),
        ("a/../../b", "not below its folder"),
        ("", "not below its folder"),
        ("none.csv", "there is none"),
        (".env", "there is none"),
        ("link.csv", "leads out"),
    ],
)
def test_files_elsewhere_do_not_come_along(tmp_path, pattern, message):
    (tmp_path / "secret.csv").write_text("")
    here = folder(
        tmp_path / "here", app=APP_FILE, server_side="", client=BLOCK.replace("tables/*.csv", pattern) + CLIENT
    )
    folder(here, plugin="")
    (here / ".env").write_text("")
    (here / "link.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(AppError, match=message):
        packed(here / "app.py")


def test_only_what_is_imported_for_sure_is_needed(tmp_path):
    extra = (
        "import os, torch.nn as nn\nfrom scipy import stats\nfrom umbel.data import dirichlet\n"
        "try:\n    import fast\nexcept ImportError:\n    fast = None\n"
        "def plot():\n    import matplotlib\n"
        "if os.name == 'nt':\n    import winreg2\n"
    )
    folder(tmp_path, client=CLIENT)
    sys.path.insert(0, str(tmp_path))
    client = importlib.import_module("client").client
    folder(tmp_path, client=CLIENT + extra)  # what is imported need not be installed here to be packed
    assert read(pack_client(client)).manifest["imports"] == ["numpy", "scipy", "torch"]


def test_a_client_of_a_package_keeps_its_name(tmp_path):
    folder(
        tmp_path,
        **{"pkg/client.py": "from .net import N\nfrom pkg import deep\n" + CLIENT},
        **{"pkg/net.py": "N = 1\n"},
    )
    folder(tmp_path, **{"pkg/deep.py": ""}, **{"pkg/app.py": APP_FILE.replace("from client", "from pkg.client")})
    folder(tmp_path, **{"pkg/server_side.py": "", "pkg/__init__.py": ""})
    sys.path.insert(0, str(tmp_path))
    found = packed(tmp_path / "pkg" / "app.py")
    mine = ["pkg/__init__.py", "pkg/client.py", "pkg/deep.py", "pkg/net.py"]
    assert names(found.client) == mine
    assert found.manifest["module"] == "pkg.client"
    assert names(found.app) == ["app.py", *mine, "server_side.py"]


def test_a_client_whose_package_is_one_file_keeps_its_name(tmp_path):
    folder(tmp_path, **{"pkg__in/__init__.py": ""})
    (tmp_path / "pkg").mkdir(exist_ok=True)
    (tmp_path / "pkg" / "__init__.py").write_text(CLIENT)
    sys.path.insert(0, str(tmp_path))
    found = read(pack_client(importlib.import_module("pkg").client))
    assert (found.manifest["module"], sorted(found.files)) == ("pkg", ["pkg/__init__.py"])


def test_handlers_may_be_elsewhere_than_the_client(tmp_path):
    folder(tmp_path, training="def train(model, data, ctx):\n    return None\n")
    folder(tmp_path, holder="import umbel, training\nclient = umbel.Client()\nclient.train(training.train)\n")
    sys.path.insert(0, str(tmp_path))
    found = read(pack_client(importlib.import_module("holder").client))
    assert (found.manifest["module"], sorted(found.files)) == ("holder", ["holder.py", "training.py"])


def test_a_script_that_runs_packs_itself(tmp_path):
    code = CLIENT + (
        "if __name__ == '__main__':\n    from umbel.trust.packing import pack_client\n"
        "    from umbel.trust.archive import read\n    print(read(pack_client(client)).manifest['module'])\n"
    )
    (tmp_path / "script.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(Path(umbel.__file__).parents[1])}
    command = [sys.executable, str(tmp_path / "script.py")]
    assert subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout == "script\n"


def test_a_client_in_no_file_is_an_error():
    client = umbel.Client()
    client.train(lambda model, data, ctx: None)
    with pytest.raises(AppError, match="in no file"):
        pack_client(client)
    with pytest.raises(AppError, match="no handlers"):
        pack_client(umbel.Client())


def test_an_installed_client_is_an_error(tmp_path):
    folder(tmp_path / "site-packages", installed=CLIENT)
    sys.path.insert(0, str(tmp_path / "site-packages"))
    with pytest.raises(AppError, match="which is installed"):
        pack_client(importlib.import_module("installed").client)


def test_code_that_is_not_python_is_an_error_that_names_it(tmp_path):
    folder(
        tmp_path,
        app=APP_FILE,
        server_side="",
        client=CLIENT.replace("import umbel\n", "import umbel\nif 0: import bad\n"),
    )
    folder(tmp_path, bad="def\n")
    with pytest.raises(AppError, match=r"bad\.py is not valid Python"):
        packed(tmp_path / "app.py")


def test_two_files_of_one_name_are_an_error(tmp_path):
    folder(tmp_path / "lib", **{"pkg/client.py": "import pkg.server_side\n" + CLIENT, "pkg/server_side.py": ""})
    app = APP_FILE.replace("from client", "from pkg.client").replace("import server_side", "")
    here = folder(tmp_path / "here", app=app)
    sys.path.insert(0, str(tmp_path / "lib"))
    loaded = load(str(here / "app.py"))
    folder(here, **{"pkg/client.py": CLIENT})  # hides the one in lib, now
    with pytest.raises(AppError, match=r"both .* would be pkg/client\.py"):
        pack(loaded.app, loaded.path)


def test_the_bytes_depend_on_nothing_but_the_files(tmp_path):
    folder(tmp_path, app=APP_FILE, server_side="", client="import c, b, a\n" + CLIENT, a="", b="", c="import a\n")
    code = (
        "import sys, hashlib; from umbel.cli.application import load; from umbel.trust.packing import pack\n"
        "loaded = load(sys.argv[1]); p = pack(loaded.app, loaded.path)\n"
        "print(hashlib.sha256(p.client + p.app).hexdigest())"
    )
    found = set()
    for seed in ("0", "1", "2"):
        os.utime(tmp_path / "a.py", (int(seed), int(seed)))
        (tmp_path / "b.py").chmod(0o600 + int(seed))
        environment = {**os.environ, "PYTHONPATH": str(Path(umbel.__file__).parents[1]), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, str(tmp_path / "app.py")]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    here = packed(tmp_path / "app.py")
    assert found == {hashlib.sha256(here.client + here.app).hexdigest() + "\n"}
