"""`umbel new`: a folder with a small app that runs at once."""

from __future__ import annotations

import json
import keyword
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from rich.text import Text

from ..errors import SettingError, StorageError
from .terminal import stdout

TEMPLATES = Path(__file__).parent / "templates"
"""A folder for each framework; its Python files end in .txt, so that nothing takes them for modules of this package."""
PACKAGES = {"pytorch": "torch", "numpy": "numpy"}
_WIDTHS = """levels={1.0: 5, 0.5: 5},
    shapes=lambda width: {n: tuple(t.shape) for n, t in network(int(64 * width)).state_dict().items()},
"""
_NEURONS = """neurons=[
        [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)],
        [("2.weight", 0), ("2.bias", 0), ("4.weight", 1)],
    ],
"""
NOTEBOOK = (
    ("markdown", "# {name}\n\nRuns the app in `app.py`, and shows what came of it. Restart the kernel after a change."),
    ("code", "import umbel\nfrom app import app\n\napp.client, app.strategy"),
    ("code", "result = umbel.run(app, on=umbel.Simulation(clients=20), rounds=5, name='{name}')\nresult"),
    ("code", "result.plot()"),
    ("code", "for row in result.clients.of(result.rounds):\n    print(row.client, row.status, dict(row.metrics))"),
)
ARGUMENTS = {
    "AFL": "",
    "FedBN": 'cohort=10, norms=["4.*"]',
    "FedBuff": "concurrency=10, buffer=5",
    "FedDF": "cohort=10, distil=umbel.torch.distil(network, [spiral([1 / ARMS] * ARMS, 100, seed=9)[0]])",
    "FedGen": "cohort=10, generator=generator.arrays(), learn=generator",
    "FedPer": 'cohort=10, personal=["4.*"]',
    "FedRep": 'cohort=10, personal=["4.*"], head_epochs=2',
    "FjORD": f"\n    {_WIDTHS}",
    "HeteroFL": f"\n    {_WIDTHS}",
    "LGFedAvg": 'cohort=10, local=["0.*"]',
    "Matched": f"\n    cohort=10,\n    {_NEURONS}",
    "XGBoostBagging": "",
    "XGBoostCyclic": "",
}
"""What strategies are made with that need more to begin with than a cohort."""


def new(name: str, framework: str, strategy: str | None = None, notebook: bool = False) -> None:
    """Make the folder `name` here, from the templates of `framework`, and print what to do next; with a `strategy` one
    that learns by it, with `notebook` also a notebook that runs it.

    Raises `SettingError` for a name that is none or is taken, and for a strategy that there is not, `StorageError`
    where nothing can be written.
    """
    check(name)
    if strategy is not None:
        _check_strategy(strategy, framework)
    folder = Path(name)
    if folder.exists():
        raise SettingError(f"{name} exists already", hint="Choose another name: nothing is overwritten.")
    try:
        folder.mkdir()
        for template in (TEMPLATES / _template(framework, strategy)).iterdir():
            text = template.read_text("utf-8").replace("{name}", name)
            if strategy is not None:
                text = text.replace("{strategy}", strategy)
                text = text.replace("{arguments}", ARGUMENTS.get(strategy, "cohort=10"))
            (folder / template.name.removesuffix(".txt")).write_text(text, "utf-8")
        if notebook:
            (folder / "notebook.ipynb").write_text(notebook_of(name), "utf-8")
    except OSError as error:
        raise StorageError(f"{folder} cannot be written: {error.strerror}") from error
    console = stdout()
    made = [f"{name}/app.py", *([f"{name}/notebook.ipynb"] if notebook else [])]
    console.print(Text(f"made {', '.join(made)} and {name}/README.md; now run it:"))
    package = "xgboost" if _template(framework, strategy) == "trees" else PACKAGES[framework]
    if find_spec(package) is None:
        console.print(Text(f'  pip install "umbel[{package}]"', style="cyan"))
    console.print(Text(f"  umbel run {shlex.quote(f'{name}/app.py')} --clients 20 --rounds 3", style="cyan"))


def notebook_of(name: str) -> str:
    """A notebook, in the format of Jupyter, that runs the app beside it and shows what came of it."""
    cells: list[dict[str, object]] = []
    for number, (kind, text) in enumerate(NOTEBOOK):
        more: dict[str, object] = {"execution_count": None, "outputs": []} if kind == "code" else {}
        source = text.replace("{name}", name).splitlines(keepends=True)
        cells.append({"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source, **more})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1) + "\n"


def _template(framework: str, strategy: str | None) -> str:
    """The folder of the templates: of a framework, of strategies, or of those that grow trees."""
    if strategy is None:
        return framework
    return "trees" if strategy.startswith("XGBoost") else "strategy"


def _check_strategy(strategy: str, framework: str) -> None:
    from .. import strategies

    if strategy not in strategies.__all__:
        raise SettingError(f"there is no strategy {strategy}", hint="umbel strategies lists them.")
    if framework != "pytorch":
        raise SettingError(f"--strategy makes an app for PyTorch, not for {framework}", hint="Leave --framework out.")


def check(name: str) -> None:
    """Raise `SettingError` where a folder of this name would not do."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,63}", name):
        raise SettingError(
            f"{name!r} is not a name for an app",
            hint="Use up to 64 letters, digits, - and _, a letter first; the folder is made where you are.",
        )
    if name in {"umbel", *PACKAGES.values(), *sys.stdlib_module_names} or keyword.iskeyword(name):
        raise SettingError(
            f"{name!r} is the name of a Python module", hint=f"Choose another, such as {name}-app: it would hide it."
        )
