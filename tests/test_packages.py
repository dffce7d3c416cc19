"""What Umbel is packed as beside its wheel, a container and a conda package: both say what pyproject.toml says, and the
container's file keeps the rules that linters of such files have.
"""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from umbel.cli.program import program

ROOT = Path(__file__).resolve().parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RECIPE = (ROOT / "conda" / "meta.yaml").read_text(encoding="utf-8")
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base", "xgboost-cpu": "py-xgboost", "xgboost": "py-xgboost"}
"""Packages that conda-forge has under another name."""

Instruction = tuple[str, str]


def stages(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each stage, by its name, with what stands after them; comments are left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    found: dict[str, list[Instruction]] = {}
    for line in filter(None, map(str.strip, joined.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            current = found.setdefault(rest.rpartition(" AS ")[2], [])
        current.append((word, rest))
    return found


STAGES = stages((ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8"))
FINAL = ("node", "server")


def faults(stages: dict[str, list[Instruction]]) -> list[str]:
    """What linters would say, by their rules' numbers where they have one."""
    found = []
    for name, instructions in stages.items():
        words = [word for word, _ in instructions]
        base = instructions[0][1].split(" AS ")[0]
        if base not in stages and not re.search(r":\d+\.\d+\.\d+-", base):
            found.append(f"{name}: DL3006/DL3007 its base {base} has no exact tag")
        for word, rest in instructions:
            if word == "ADD":
                found.append(f"{name}: DL3020 ADD in place of COPY")
            if word == "WORKDIR" and not rest.startswith("/"):
                found.append(f"{name}: DL3000 WORKDIR is relative")
            if word in ("CMD", "ENTRYPOINT") and not rest.startswith("["):
                found.append(f"{name}: DL3025 {word} is no list")
            if word == "RUN" and "pip install" in rest and "--no-cache-dir" not in rest:
                found.append(f"{name}: DL3042 pip keeps its cache")
            if word == "RUN" and re.search(r"\bsudo\b|\bcd\b|apt-get (?!.*-y)", rest):
                found.append(f"{name}: DL3003/DL3004/DL3014 in {rest}")
            if word == "RUN" and "|" in rest.replace("||", "") and "pipefail" not in rest:
                found.append(f"{name}: DL4006 a pipe without pipefail")
            if re.search(r"(?i)(password|secret|token)=", rest):
                found.append(f"{name}: a secret in {word}")
        for once in ("CMD", "ENTRYPOINT", "HEALTHCHECK"):
            if words.count(once) > 1:
                found.append(f"{name}: DL3012/DL4003/DL4004 several {once}")
    for name in FINAL:
        given = dict(stages.get(name, []))
        found += [f"{name}: no {word}" for word in ("HEALTHCHECK", "ENTRYPOINT", "USER") if word not in given]
        if given.get("USER", "0").split(":")[0] in ("0", "root"):
            found.append(f"{name}: DL3002 the last user is root")
    return found


def test_the_container_keeps_the_rules() -> None:
    assert set(FINAL) <= STAGES.keys()
    assert not faults(STAGES)
    copied = [rest for name in FINAL for word, rest in STAGES[name] if word == "COPY"]
    assert all(rest.startswith("--from=build-") for rest in copied), "what builds is not in what runs"


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("FROM python:latest AS server", "DL3007"),
        ("ADD . /src", "DL3020"),
        ("RUN pip install umbel", "DL3042"),
        ("CMD umbel server", "DL3025"),
        ("USER root", "DL3002"),
        ("ENV TOKEN=abc", "a secret"),
        ("RUN cat a | sh", "DL4006"),
    ],
)
def test_the_rules_notice_what_breaks_them(line: str, rule: str) -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    broken = (
        re.sub(r"^FROM base AS server$", line, text, flags=re.M) if line.startswith("FROM") else f"{text}\n{line}\n"
    )
    assert any(rule in fault for fault in faults(stages(broken)))


@pytest.mark.parametrize("name", FINAL)
def test_the_container_starts_what_there_is(name: str) -> None:
    given = dict(STAGES[name])
    umbel, command, *arguments = json.loads(given["ENTRYPOINT"])
    assert umbel == "umbel"
    known = typer.main.get_command(program).commands[command]  # type: ignore[attr-defined]
    if name == "server":
        known.make_context(command, [*arguments, *json.loads(given["CMD"])])  # raises for an option that is none
    check = json.loads(given["HEALTHCHECK"].partition("CMD ")[2])
    compile(check[-1], "HEALTHCHECK", "exec")
    built = dict(STAGES[f"build-{name}"])["RUN"]
    assert ("[server]" in built) == (name == "server")


def test_the_container_is_built_of_what_is_there() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for word, rest in STAGES["build"]:
        if word == "COPY":
            *sources, _ = shlex.split(rest)
            for source in sources:
                assert (ROOT / source).exists()
                assert source in sent


def section(name: str) -> dict[str, str]:
    """A list of the recipe: each package with its bounds."""
    lines = re.search(rf"^  {name}:.*\n((?:    - .*\n)+)", RECIPE, re.MULTILINE)
    assert lines is not None
    return {(words := line[6:].split())[0]: "".join(words[1:]) for line in lines[1].splitlines()}


def required(lines: list[str]) -> dict[str, str]:
    found = (re.fullmatch(r"([\w-]+)([^;]*)(;.*)?", line) for line in lines)
    return {CONDA.get(m[1], m[1]).replace("ml-dtypes", "ml_dtypes"): m[2].strip() for m in found if m}


def test_the_conda_recipe_needs_what_the_package_needs() -> None:
    python = {"python": PROJECT["requires-python"]}
    assert section("run") == {**python, **required(PROJECT["dependencies"])}
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert section("host") == {**python, "pip": "", **required(build)}
    extras = {
        name: bounds for lines in PROJECT["optional-dependencies"].values() for name, bounds in required(lines).items()
    }
    for name, bounds in section("run_constrained").items():
        assert extras[name] == bounds


def test_the_conda_recipe_says_what_the_package_says() -> None:
    assert f'version = "{PROJECT["version"]}"' in RECIPE
    assert f"license: {PROJECT['license']}" in RECIPE
    (script,) = PROJECT["scripts"].items()
    assert f"- {script[0]} = {script[1]}" in RECIPE
