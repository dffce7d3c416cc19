"""The rules of the layout: sizes, names, docstrings, who imports whom, and what the core may not touch."""

from __future__ import annotations

import ast
import graphlib
import io
import re
import statistics
import subprocess
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import umbel
from umbel.core import encoding

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "umbel"
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.parent.name != "templates")  # templates are data

FLOORS = (
    ("errors",),
    ("entropy", "files", "wire"),
    ("core", "store"),
    ("folds", "samplers", "transforms", "work", "trust", "data", "adapters"),
    ("strategies", "privacy", "runs", "transport", "script"),
    ("analytics", "office", "simulation", "trackers", "node", "remote", "server"),
    ("umbel", "events", "testing", "bench"),
    ("cli",),
)
"""The house, from the ground up: a room uses only what stands on the floors below it, and nothing beside it. `umbel` is
the package's own ``__init__``.
"""

ADAPTERS = (
    "catboost", "fastai", "jax", "keras", "lifelines", "lightgbm", "lightning", "sklearn", "statsmodels", "torch",
    "transformers", "xgboost",
)  # fmt: skip
"""A module for each framework, imported by those who use it; together they are one room, `adapters`."""

FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
PURE = ("errors", "core", "folds", "samplers", "transforms", "strategies")
"""No clock, no global generator, no input or output."""
MOST_ROOMS = 30

HEAVY = {
    "core.figure": {"matplotlib"},
    "fastai": {"fastai"},
    "jax": {"jax"},
    "keras": {"keras"},
    "lightning": {"lightning", "torch"},
    "torch": {"torch"},
    "transformers": {"transformers", "torch"},
    "cli": {"typer", "rich", "click"},
    "wire": {"google"},
    "trust": {"cryptography", "packaging"},
    "transport": {"grpc", "google"},
    "store": {"sqlalchemy", "google"},
    "server": {"grpc", "sqlalchemy", "starlette", "uvicorn"},
}
"""Packages beyond numpy that a part may load when it is imported; all others are imported in functions."""

REFERENCED = (
    "afl", "fedasync", "fedbuff", "feddc", "feddyn", "fedexp", "fednova", "fedsgd", "fedspeed", "mime", "qfedavg",
    "scaffold", "term",
)  # fmt: skip
MODELS = ("feddf", "fedproto", "fjord", "heterofl", "ifca", "matched", "pfedhn")
PERSONAL = ("apfl", "ditto", "fedala", "fedbn", "fedgen", "fedper", "fedrep", "lgfedavg", "moon", "perfedavg", "pfedme")
LOCAL = ("batches", "distillation", "generators", "loops", "personal", "procedures", "training")
STEPS = (
    "control_variates", "differences", "dynamic_regularizer", "extrapolated", "fair_weights",
    "per_step", "perturbed_gradient", "tilted",
)  # fmt: skip
ANALYSES = ("covariance", "histogram", "linear_regression", "logistic_regression", "pca", "quantiles", "statistics")
ROBUST_FOLDS = (
    "bulyan", "centred_clipping", "divide_and_conquer", "fltrust", "foolsgold", "geometric_median", "krum", "median",
    "norm_bounded", "sign_majority", "trimmed_mean",
)  # fmt: skip
SAMPLERS = ("fixed", "poisson", "shorthand", "uniform", "weighted")
ADAPTIVE = ("availability_aware", "by_norm", "fair_rate", "power_of_choice")
PARTITIONERS = (
    "by", "continuous", "dirichlet", "grouped", "iid", "inner_dirichlet", "pathological", "shards", "sizes", "temporal",
    "vertical",
)  # fmt: skip
TESTED_ELSEWHERE = {
    **{f"analytics.{name}": "analytics/test_tables.py" for name in ("analysis", "client", "table")},
    **{f"analytics.{name}": "analytics/test_analyses.py" for name in (*ANALYSES, "coefficients", "kmeans", "order")},
    "analytics.cox": "analytics/test_survival.py",
    "analytics.kaplan_meier": "analytics/test_survival.py",
    "bench.classifiers": "bench/test_fashion.py",
    "bench.trial": "bench/test_comparison.py",
    "bench.hospitals": "bench/test_fashion.py",
    "bench.picture": "bench/test_table.py",
    "bench.problem": "bench/test_algorithm.py",
    "bench.progress": "bench/test_comparison.py",
    **{f"bench.{name}": "bench/test_sweep.py" for name in ("study", "sweep_picture", "swept")},
    "cli.__main__": "cli/test_program.py",  # runs `python -m umbel.cli`
    "runs.export": "cli/test_export_commands.py",
    "runs.past": "cli/test_past.py",
    "cli.comparing": "cli/test_compare_commands.py",
    "cli.starters": "cli/test_new.py",
    "runs.usage": "trackers/test_reading.py",
    "runs.watch": "cli/test_progress.py",
    "runs.words": "cli/test_terminal.py",
    "cli.drawing": "cli/test_compare_commands.py",
    "cli.findings": "cli/test_doctor.py",
    "cli.overview": "cli/test_program.py",
    "core.answer": "core/test_partial.py",
    "core.elementwise": "folds/test_folds.py",
    "core.fold": "folds/test_folds.py",
    "core.sampler": "samplers/test_samplers.py",
    "core.task": "runs/test_coordinator.py",
    "core.transform": "transforms/test_transforms.py",
    **{f"data.{name}": "data/test_tables.py" for name in ("images", "sheets")},
    "data.partitioner": "data/test_partitioners.py",
    **{f"data.partitioners.{name}": "data/test_partitioners.py" for name in PARTITIONERS},
    "data.stored": "data/test_parts.py",
    "data.view": "data/test_views.py",
    **{f"data.views.{name}": "data/test_views.py" for name in ("concept_shift", "noise", "rotation")},
    "events": "runs/test_events.py",
    **{f"folds.{name}": "folds/test_robust_folds.py" for name in ROBUST_FOLDS},
    "folds.catalogue": "folds/test_folds.py",
    "folds.collect": "folds/test_folds.py",
    "folds.total": "folds/test_folds.py",
    "node.run_host": "node/test_children.py",
    "node.signals": "node/test_machine.py",
    "cli.privacy": "cli/test_privacy_commands.py",
    "privacy.audit_picture": "cli/test_canary_commands.py",
    "privacy.explanation_picture": "privacy/test_explanation.py",
    "privacy.plan_picture": "privacy/test_plan.py",
    **{f"samplers.{name}": "samplers/test_samplers.py" for name in SAMPLERS},
    **{f"samplers.{name}": "samplers/test_adaptive.py" for name in ADAPTIVE},
    "runs.federation": "runs/test_run.py",
    "runs.asks": "runs/test_conductor.py",
    "script.callbacks": "script/test_frameworks.py",
    "script.line": "script/test_loop.py",
    "server.notices": "server/test_router.py",
    "server.signals": "server/test_router.py",
    **{f"strategies.{name}": "strategies/test_fedopt.py" for name in ("fedadagrad", "fedadam", "fedavgm", "fedyogi")},
    **{f"strategies.{name}": "strategies/test_references.py" for name in REFERENCED},
    **{f"strategies.{name}": "strategies/test_models.py" for name in MODELS},
    **{f"strategies.{name}": "test_torch_training.py" for name in PERSONAL},
    **{f"transforms.{name}": "strategies/test_references.py" for name in STEPS},
    **{f"torch.{name}": "test_torch.py" for name in ("corrections", "modules", "seeds")},
    **{f"torch.{name}": "test_torch_training.py" for name in LOCAL},
    **{f"strategies.{name}": "test_xgboost.py" for name in ("xgboost_bagging", "xgboost_cyclic")},
    **{name: f"adapters/test_{name}.py" for name in ("catboost", "lifelines", "lightgbm", "sklearn", "statsmodels")},
    "strategies.newton": "adapters/test_statsmodels.py",
    "strategies.one_shot": "adapters/test_sklearn.py",
    **{f"testing.{name}": "testing/test_deployment.py" for name in ("link", "node", "station")},
    "testing.lives": "deployment/test_kills.py",
    **{n: f"adapters/test_{n}.py" for n in ("fastai", "jax", "keras", "lightning", "transformers")},
    "torch.native": "adapters/test_torch_model.py",
    "torch.private": "adapters/test_private.py",
    "testing.machines": "deployment/test_same_bits.py",
    "trackers.process": "trackers/test_tracking.py",
    "trackers.tracker": "trackers/test_tracking.py",
    **{
        f"trackers.{name}": "trackers/test_tools.py"
        for name in ("aim", "csv", "mlflow", "parquet", "tensorboard", "wandb")
    },
    "transforms.bits": "transforms/test_compression.py",
    "transforms.coded": "transforms/test_quantise.py",
    "transforms.subspace": "transforms/test_low_rank.py",
    "transforms.tables": "transforms/test_count_sketch.py",
    "transforms.clip_by_norm": "transforms/test_transforms.py",
    **{f"transforms.{name}": "transforms/test_quantise.py" for name in ("drive", "eden", "lloyd_max", "rotate")},
    **{f"transforms.{name}": "transforms/test_sparse.py" for name in ("delta_mask", "error_feedback", "random_k")},
    "transforms.power_sgd": "transforms/test_low_rank.py",
    "transforms.top_k": "transforms/test_transforms.py",
    "wire.blobs": "node/test_holdings.py",
    "wire.roles": "transport/test_handshake.py",
    "work.intake": "work/test_executor.py",
    "work.late": "test_resume.py",
    "work.retries": "node/test_hosting.py",
    "work.seeding": "work/test_executor.py",
    "work.sizes": "work/test_contents.py",
}
"""Modules without a test file of their own, and the file below tests/ that tests them."""

MOST_METHODS = 25

FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "common", "manager", "base", "misc"}
IMPURE_MODULES = {
    "asyncio", "datetime", "multiprocessing", "random", "secrets", "shutil", "socket", "sqlite3", "subprocess",
    "tempfile", "time", "uuid",
}  # fmt: skip
IMPURE_CALLS = re.compile(r"\b(os\.(urandom|environ|getenv)|open|(np|numpy)\.random\.[a-z]\w*|default_rng)\s*[(\[]")


def expect_none(found: Mapping[str, object] | Iterable[object], advice: str = "") -> None:
    """Fail with one line for each thing found."""
    lines = [f"{k}: {v}" for k, v in found.items()] if isinstance(found, Mapping) else [str(item) for item in found]
    if lines:
        pytest.fail("\n".join([advice, *sorted(lines)]).strip(), pytrace=False)


def name_of(path: Path) -> str:
    """The dotted name below umbel; the package itself is `umbel`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) or "umbel"


MODULES = {name_of(path): path for path in FILES}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def room_of(module: str) -> str:
    """The room that a module stands in; one that stands in none is its own."""
    first = module.split(".")[0]
    return "adapters" if first in ADAPTERS else first


def imports(path: Path, *, lazy: bool) -> Iterator[str]:
    """What a module imports, as absolute names; with `lazy` also in its functions. Imports for typing do not count."""
    package = path.relative_to(SOURCE.parent).parent.parts
    waiting: list[ast.AST] = [tree_of(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*start, *([node.module] if node.module else [])))
            for alias in node.names:
                below = f"{origin}.{alias.name}"
                yield below if below.removeprefix("umbel.") in MODULES else origin
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting.extend(node.orelse)
        elif lazy or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def own_imports(module: str) -> set[str]:
    """The modules of this package that a module imports, wherever in its file."""
    found = {n.removeprefix("umbel.") for n in imports(MODULES[module], lazy=True) if n.split(".")[0] == "umbel"}
    return found - {module}


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


@cache
def code_lines(path: Path) -> frozenset[int]:
    """The lines that hold code: not blank, not a comment alone, not a docstring."""
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type not in quiet:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return frozenset(lines)


def test_modules_are_short() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    expect_none({name: n for name, n in lengths.items() if n > 600})
    assert statistics.median(lengths.values()) <= 200


def test_classes_are_one_thing() -> None:
    """What has more methods than this is two things; those of Python's own protocols are not counted."""
    counts: dict[str, int] = {}
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                methods = [each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
                counts[f"{path.relative_to(SOURCE)}:{node.name}"] = sum(not name.endswith("__") for name in methods)
    expect_none({name: n for name, n in counts.items() if n > MOST_METHODS})


def test_no_two_public_classes_share_a_name() -> None:
    places: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    expect_none({name: where for name, where in places.items() if len(where) > 1})


def test_functions_are_short() -> None:
    lengths = {
        where: len(code_lines(path) & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
        for path in FILES
        for where, node in functions(path)
    }
    expect_none({where: n for where, n in lengths.items() if n > 60})


def test_names_are_nouns_of_one_subject() -> None:
    parts = {part for path in FILES for part in path.relative_to(SOURCE).with_suffix("").parts}
    expect_none(part for part in parts if FORBIDDEN_NAMES & set(part.strip("_").split("_")))


def test_folders_are_at_most_two_deep() -> None:
    expect_none(path for path in FILES if len(path.relative_to(SOURCE).parts) > 3)
    expect_none(folder for folder in {path.parent for path in FILES} if not (folder / "__init__.py").exists())


def test_every_module_stands_in_a_room() -> None:
    rooms = {room_of(module) for module in MODULES}
    expect_none(rooms - FLOOR.keys(), "give these a place in FLOORS")
    expect_none(FLOOR.keys() - rooms, "these are gone")
    assert len(rooms) <= MOST_ROOMS


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_room_uses_only_what_stands_below_it(module: str) -> None:
    mine = room_of(module)
    found = {other for other in own_imports(module) if (room := room_of(other)) != mine and FLOOR[room] >= FLOOR[mine]}
    expect_none(found, f"{module} uses what stands beside or above {mine}")


def test_no_import_cycles() -> None:
    graph = {module: own_imports(module) for module in MODULES}
    try:
        list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])), pytrace=False)


def test_the_core_reads_no_clock_and_no_global_generator_and_does_no_io() -> None:
    found: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        if room_of(module) not in PURE:
            continue
        impure = [name for name in imports(path, lazy=True) if name.split(".")[0] in IMPURE_MODULES]
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call | ast.Subscript) and (match := IMPURE_CALLS.match(ast.unparse(node))):
                impure.append(f"line {node.lineno}: {match[0]}...")
        if impure:
            found[module] = impure
    expect_none(found)


def heavy_of(module: str) -> set[str]:
    return HEAVY.get(module, set()) | HEAVY.get(module.split(".")[0], set())


def test_packages_beyond_numpy_are_imported_in_functions() -> None:
    light = {"numpy", "umbel", *sys.stdlib_module_names}
    heavy = {
        module: extra
        for module, path in MODULES.items()
        if (extra := {n.split(".")[0] for n in imports(path, lazy=False)} - light - heavy_of(module))
    }
    expect_none(heavy)


def loaded_by(code: str) -> list[str]:
    """The packages beyond the standard library that a program loads, and what of numpy.random it loads by itself."""
    code = (
        f"import sys; sys.path.insert(0, {str(SOURCE.parent)!r}); before = set(sys.modules)\n{code}\n"
        "new = set(sys.modules) - before; import numpy\n"
        "tops = {name.split('.')[0] for name in new} - set(sys.stdlib_module_names)\n"
        "print(*sorted(tops), *(name for name in new if name.startswith('numpy.random')))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_umbel_loads_nothing_and_its_names_numpy_and_the_standard_library_only() -> None:
    assert loaded_by("import umbel; assert dir(umbel)") == ["umbel"]
    assert loaded_by("from umbel import *; assert App") == ["numpy", "umbel"]
    simulates = "import umbel; umbel.FedAvg; umbel.run; umbel.Simulation; assert 'asyncio' not in sys.modules"
    assert loaded_by(simulates) == ["numpy", "umbel"]


def test_what_is_read_is_known_whatever_was_imported_before() -> None:
    tree = "umbel.core.encoding.decode(bytes.fromhex(sys.argv[1]))"
    state = encoding.encode(umbel.State({"w": np.zeros(1, np.float32)})).hex()
    spec = umbel.top_k(0.5).spec()
    for module, code in (("encoding", tree), ("transform", f"umbel.core.transform.transform_from_spec({spec!r})")):
        subprocess.run([sys.executable, "-c", f"import sys, umbel.core.{module}; {code}", state], check=True)


def test_every_name_of_umbel_is_there_and_no_other() -> None:
    assert sorted(umbel.__all__) == list(umbel.__all__)
    assert {name for name in umbel.__all__ if getattr(umbel, name) is not None} <= set(dir(umbel))
    for node in tree_of(SOURCE / "__init__.py").body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            typed = {alias.name for each in node.body if isinstance(each, ast.ImportFrom) for alias in each.names}
    assert typed == set(umbel.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fedavg'"):
        _ = umbel.fedavg  # type: ignore[attr-defined]


def counterpart(module: str) -> Path:
    *folders, name = module.split(".")
    return ROOT.joinpath("tests", *folders, f"test_{name}.py")


def test_tests_mirror_the_sources() -> None:
    plain = {module for module, path in MODULES.items() if path.name != "__init__.py"}
    missing = {module for module in plain if not counterpart(module).exists()}
    expect_none(missing - TESTED_ELSEWHERE.keys(), "write their tests, or name their file in TESTED_ELSEWHERE")
    expect_none(TESTED_ELSEWHERE.keys() - plain, "these modules are gone")
    expect_none(file for file in TESTED_ELSEWHERE.values() if not (ROOT / "tests" / file).exists())


def undocumented(tree: ast.Module, own: set[str], documented: set[str]) -> Iterator[tuple[int, str]]:
    """The public classes, functions and methods without a docstring.

    A method that overrides has its base's: `own` are the classes of this package, `documented` their methods with one.
    """
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.lineno, node.name
        bases = {ast.unparse(base) for base in node.bases} if isinstance(node, ast.ClassDef) else set()
        if not isinstance(node, ast.ClassDef) or "Protocol" in bases:
            continue  # a protocol says it all in the docstring of the class
        for method in node.body:
            if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and not method.name.startswith("_"):
                overrides = bool(bases) and (method.name in documented or not bases <= own)
                if not overrides and not ast.get_docstring(method):
                    yield method.lineno, f"{node.name}.{method.name}"


def test_everything_public_has_a_docstring() -> None:
    classes = [n for path in FILES for n in ast.walk(tree_of(path)) if isinstance(n, ast.ClassDef)]
    methods = [m for c in classes for m in c.body if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]
    own, documented = {c.name for c in classes}, {m.name for m in methods if ast.get_docstring(m)}
    missing = [str(path.relative_to(ROOT)) for path in FILES if not ast.get_docstring(tree_of(path))]
    for path in FILES:
        found = undocumented(tree_of(path), own, documented)
        missing += [f"{path.relative_to(ROOT)}:{line} {what}" for line, what in found]
    expect_none(missing)


def names_in(kind: ast.ClassDef) -> set[str]:
    """The methods and class attributes of a class."""
    found = {n.name for n in kind.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
    found |= {ast.unparse(t) for n in kind.body if isinstance(n, ast.Assign) for t in n.targets}
    return found | {ast.unparse(n.target) for n in kind.body if isinstance(n, ast.AnnAssign)}


def test_the_architecture_page_names_what_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    own = {n.name: names_in(n) for path in FILES for n in ast.walk(tree_of(path)) if isinstance(n, ast.ClassDef)}
    dotted = re.findall(r"`([A-Z]\w+)\.(\w+)", page)
    gone = [f"{kind}.{name}" for kind, name in dotted if name not in own.get(kind, {name} if name[0] != "_" else {})]
    places = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", page)
    assert places
    gone += [place for place in places if not any((root / place).exists() for root in (SOURCE, SOURCE.parent, ROOT))]
    expect_none(gone, "the page names these, and they are gone")
