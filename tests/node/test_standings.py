"""Where runs and tasks stand at a node: the tables, their rows one by one, and the story of a forbidden step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.node.bench import KINDS, STEPS, Bench, blob_of, payload

from umbel.core.task import Ticked
from umbel.errors import InternalError
from umbel.node import hosted, hosting
from umbel.node.signals import Approved, Denied, HostDied, HostReady, HostRefused, OwnerAsked
from umbel.node.standings import RUNS, TASKS, RunStanding, RunStep, Standing, TaskStanding, TaskStep
from umbel.wire import messages as m
from umbel.wire.blobs import Fetched, NotFetched
from umbel.work.retries import HOST_TRIES

ZIP = blob_of("zip").sha256


@pytest.mark.parametrize(
    ("table", "steps", "first", "ends"),
    [
        (RUNS, RunStep, RunStanding.NEW, set()),
        (TASKS, TaskStep, TaskStanding.QUEUED, {TaskStanding.ANSWERED, TaskStanding.DROPPED}),
    ],
)
def test_a_table_leads_everywhere_and_to_its_ends(table, steps, first, ends):
    standings = set(type(first))
    assert {step for _, step in table} == set(steps)
    assert standings - {before for before, _ in table} == ends
    reached = {first}
    for _ in standings:
        reached |= {after for (before, _), after in table.items() if before in reached}
    assert reached == standings


def taken(monkeypatch, module, name):
    """The rows of a table that are taken from now on."""
    rows = set()

    class Noting(dict):
        def get(self, row):
            rows.add(row)
            return super().get(row)

    monkeypatch.setattr(module, name, Noting(getattr(module, name)))
    return rows


def again(bench):
    bench(Ticked(), bench.machine.next_tick)


def test_a_run_takes_every_row(monkeypatch):
    rows = taken(monkeypatch, hosting, "RUNS")
    ask, ready, died = OwnerAsked("r"), HostReady("r", KINDS, STEPS), HostDied("r", "no memory")
    paths = [[], [ready], [ask], [ask, Approved("r")], [ask, Denied("r")], [HostRefused("r", "no")], [died]]
    for path in paths:
        bench = Bench()
        bench.run()
        for event in path:
            bench(event)
        bench.run(config='{"another": 1}')
    Bench(admits=lambda spec: "nobody signed it").run()
    bench = Bench()
    bench.run(archive=payload("zip"))
    for tries in range(HOST_TRIES):
        bench(NotFetched("r", ZIP, "the disk is full"))
        if tries < HOST_TRIES - 1:
            again(bench)
    bench.reconnect()
    bench.run(archive=payload("zip"))
    bench(Fetched("r", ZIP))
    bench(HostDied("r", "no memory"))
    again(bench)
    bench.run(archive=payload("zap"))
    bench.run(archive=payload("zip"))
    assert rows == RUNS.keys()


def test_a_task_takes_every_row(monkeypatch):
    rows = taken(monkeypatch, hosted, "TASKS")
    bench = Bench(slots=2)
    bench.host()
    bench.ask()
    for client in "abc":
        bench.task(client)
    bench.done("a")  # and c has its slot
    bench.get(cancel=m.Cancel(run="r", tasks=["1.b"]))
    bench.failed("b")
    bench.task("b", attempt=2)
    bench.task("a", ask=1, attempt=2)
    bench.get(cancel=m.Cancel(run="r", tasks=["1.b"]))
    bench.ask(2)
    bench.task("c", ask=2)
    bench.get(cancel=m.Cancel(run="r", tasks=["2.c"]))
    bench.run(config='{"another": 1}')
    assert rows == TASKS.keys()


def test_a_step_that_is_not_allowed_tells_what_led_to_it():
    standing = Standing("run r", RUNS, RunStanding.NEW)
    assert standing.take(RunStep.FETCH) is RunStanding.FETCHING
    with pytest.raises(InternalError) as caught:
        standing.take(RunStep.HOST)
    assert str(caught.value) == (
        "run r is fetching, which does not allow: its child is ready "
        "(what led to it: new; its archive has to be fetched, so fetching)"
    )
    assert standing.now is RunStanding.FETCHING


def test_a_story_has_an_end():
    standing = Standing("run r", RUNS, RunStanding.NEW)
    for _ in range(100):
        standing.take(RunStep.PREPARE)
        standing.take(RunStep.CHANGE)
    with pytest.raises(InternalError) as caught:
        standing.take(RunStep.CHANGE)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("event", [HostReady("r", KINDS, STEPS), HostDied("r", "no memory"), HostRefused("r", "no")])
def test_what_is_told_of_a_host_that_is_ready_breaks_a_promise(bench, event):
    bench.host()
    with pytest.raises(InternalError, match="run r is ready, which does not allow"):
        bench(event)


def test_the_owners_answer_about_a_run_that_has_changed_since_is_not_taken(bench):
    bench.run()
    bench(OwnerAsked("r"))
    bench.run(config='{"another": 1}')
    for answer in (Denied("r"), Approved("r")):
        assert bench(answer) == []
    bench(OwnerAsked("r"))


def test_the_diagrams_in_the_documentation_are_drawn_from_the_tables():
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text("utf-8")
    drawn = re.findall(r"```mermaid\n(stateDiagram.*?)\n```", page, re.S)
    for table, first in ((RUNS, RunStanding.NEW), (TASKS, TaskStanding.QUEUED)):
        rows = [f"    {a} --> {b}: {step}" for (a, step), b in table.items() if step is not RunStep.CHANGE]
        ends = [f"    {end} --> [*]" for end in sorted(set(table.values()) - {a for a, _ in table})]
        assert "\n".join(["stateDiagram-v2", f"    [*] --> {first}", *rows, *ends]) in drawn
