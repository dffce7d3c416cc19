"""The ledger of a node: an entry with each answer, whatever is killed when; budgets; and any change is found."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.conftest import some
from tests.node.bench import Bench
from tests.node.test_service import Gate, Server, ask, node, on_loop, spec, task

import umbel
from umbel.core import encoding
from umbel.core.transform import Transform, accounts, chain
from umbel.core.transform import _registry as registry
from umbel.entropy import Entropy
from umbel.errors import CallerError, CorruptFile
from umbel.node.audit import NodeAudit
from umbel.node.ledger import BUDGET, SPENT, PrivacyLedger, entry_of, promises, signed_by
from umbel.node.signals import Start, TaskDone, TaskFailed
from umbel.node.spool import Spool, StoredAnswer
from umbel.privacy import central_gaussian, dp_ftrl, local_gaussian, noised_sum, secure_sum
from umbel.privacy.release import NoisyRelease
from umbel.testing.deployment import Deployment
from umbel.transforms import rotate
from umbel.trust import audit
from umbel.trust.identity import SigningKey
from umbel.trust.policy import PrivacyBudget
from umbel.wire import messages as m

KEY = SigningKey.of_seed(bytes(32))
NOISED = central_gaussian(norm=1.0, noise=4.0, expected=10)
EXAMPLE = NoisyRelease("gaussian", 4.0, 1.0, "example", "add or remove one", {"kind": "everyone"}, 8.0).plain()
BUDGETS = pytest.mark.skipif("not __import__('importlib').util.find_spec('dp_accounting')")


def noised(number=1, transforms=NOISED, params=({"norm": 1.0},), **more):
    shared = m.Payload(inline=encoding.encode({"params": params}))
    steps = json.dumps(chain(transforms).spec())
    return m.AskSpec(run="r", ask=number, kind="train", digest=b"d", transforms=steps, shared=shared, **more)


def start(client="a", number=1, run="r", attempt=1, **more):
    asked = noised(number, **more)
    asked.run = run
    return Start(
        run, m.Task(run=run, task=f"{number}.{client}", ask=number, client=client, attempt=attempt), asked, None
    )


class Desk:
    """A ledger in a folder, and what befalls it."""

    def __init__(self, folder, budget=None, key=KEY):
        self.folder, self.budget, self.key, self.now = folder, budget, key, 1_790_000_000.0
        self.open()

    def open(self):
        self.spool = Spool(self.folder / "node.db")
        self.notes = NodeAudit(self.spool, self.folder, lambda: self.now)
        self.ledger = PrivacyLedger(
            self.notes.records, self.key, self.budget, server=lambda: "ab", clock=lambda: self.now
        )
        return self.ledger

    def begin(self, client="a", number=1, app="app", **more):
        self.last = start(client, number, **more)
        return self.ledger.begin(self.last, app, lambda sha: None)

    def done(self, accounted=()):
        task = self.last.task
        event = TaskDone(task.run, task.task, task.attempt, m.Done(), None, accounted)
        if reason := self.ledger.done(event):
            self.ledger.over(TaskFailed(task.run, task.task, task.attempt, reason, False))
            return reason
        self.ledger.commit(task, self.last.ask)
        return ""

    def answer(self, *given, accounted=(), **more):
        return self.begin(*given, **more) or self.done(accounted)

    def rows(self):
        self.spool.commit()
        self.notes.settle()
        key, head, rows = audit.read(self.folder)
        audit.verified(key, rows, [head])
        return [row for row in rows if row["did"] == SPENT]

    def again(self):
        self.spool.commit()
        self.notes.settle()
        self.spool.close()
        return self.open()


@pytest.fixture
def desk(tmp_path):
    found = Desk(tmp_path)
    yield found
    found.spool.close()


def test_an_entry_says_who_has_told_whom_what_and_what_that_hides(desk):
    assert desk.answer("a") == ""
    (row,) = desk.rows()
    entry, year = entry_of(row)
    assert (entry.client, entry.server, entry.app, entry.run, entry.task, entry.digest) == (
        "a", "ab", "app", "r", "1.a", b"d".hex(),
    )  # fmt: skip
    assert (entry.by, year) == (("central_gaussian",), 2026)
    (release,) = entry.releases
    assert (release["noise"], release["norm"], release["neighbours"]) == (4.0, 1.0, "zero out one")
    assert release["sampling"] == {"kind": "everyone"}


def test_a_bound_that_moves_is_that_which_was_sent():
    moving = central_gaussian(norm=1.0, noise=4.0, expected=10, quantile=0.5, below_noise=8.0)
    asked = noised(transforms=moving, params=({"norm": 0.25},))
    ((release,),) = [promises(asked, lambda sha: None)[1]]
    assert (release["norm"], release["noise"]) == (0.25, 4.0)


def test_of_a_noised_sum_the_update_counts_and_its_phases_do_not(desk):
    step = noised_sum("1.0.1", 2, 10, 1.0, 16, noise=2.0, size=5, sharers=6, colluding=1)
    for number, kind in enumerate(("phase:keys", "phase:shares", "train", "phase:unmask"), 1):
        asked = start(number=number, transforms=(rotate(), step), params=(None, None))
        asked.ask.kind = kind
        assert desk.ledger.begin(asked, "app", lambda sha: None) == ""
        event = TaskDone("r", asked.task.task, 1, m.Done(), None, ())
        assert desk.ledger.done(event) == ""
        desk.ledger.commit(asked.task, asked.ask)
        desk.ledger.over(event)
    (row,) = desk.rows()
    (release,) = entry_of(row)[0].releases
    assert (release["mechanism"], release["shares"]) == ("distributed_gaussian", 6)
    assert release["noise"] == pytest.approx(2.0, rel=1e-3)
    assert not desk.ledger._phases


class Bare(Transform):
    """Says what its noise costs, and lets metrics pass beside it."""

    name = "bare"

    def event(self, answer, state):
        return NOISED.event(answer, {"norm": 1.0})


@dataclass(frozen=True)
class Odd(Transform):
    """Says what it cannot."""

    name = "odd"
    says: str = "raise"

    @property
    def private(self):
        return True

    def event(self, answer, state):
        return {"raise": lambda: 1 / 0, "nonsense": lambda: {"noise": 1}, "nothing": lambda: None}[self.says]()


@pytest.mark.parametrize(
    "transforms", [umbel.clip_by_norm(1.0), (NOISED, umbel.top_k(0.5)), (umbel.top_k(0.5), NOISED)]
)
def test_where_nothing_is_promised_nothing_holds(transforms):
    params = tuple({"norm": 1.0} for _ in chain(transforms).parts)
    by, found = promises(noised(transforms=transforms, params=params), lambda sha: None)
    assert chain(transforms).promises(params) is None
    assert found == ()
    assert by == tuple(part.name for part in chain(transforms).parts)


def test_an_ask_that_is_made_again_promises_what_it_then_says(desk):
    """Whatever it is called: what is asked is the server's word, and so is the digest of that."""
    for client, noise in (("a", 100.0), ("b", 0.01)):
        assert desk.answer(client, transforms=local_gaussian(norm=1.0, noise=noise), params=(None,)) == ""
    assert desk.answer("c", transforms=(), params=()) == ""
    sent = dp_ftrl(norm=1.0, noise=1.0, expected=4, rounds=4)
    for client in "de":
        assert desk.answer(client, transforms=sent, params=({"norm": 1.0, "stream": client},)) == ""
    found = [entry_of(row)[0].releases for row in desk.rows()]
    assert [each[0]["noise"] if each else None for each in found] == [100.0, 0.01, None, 1.0, 1.0]
    assert [each[0]["stream"] for each in found[3:]] == ["d", "e"]


def test_what_cannot_be_read_promises_nothing():
    for wrong in (
        noised(params=()),
        noised(params=None),
        m.AskSpec(transforms="["),
        m.AskSpec(transforms='[{"name": "unknown", "version": 1, "settings": {}}]'),
        m.AskSpec(transforms=json.dumps(chain(NOISED).spec()), shared=m.Payload(blob=m.Blob(sha256=b"gone"))),
    ):
        assert promises(wrong, lambda sha: None)[1] == ()
    for says in ("raise", "nonsense", "nothing"):
        assert accounts(Odd(says))
        with patch.dict(registry, {("odd", 1): Odd}):
            assert promises(noised(transforms=Odd(says)), lambda sha: None)[1] == ()
    assert not accounts(Bare())
    with patch.dict(registry, {("bare", 1): Bare}):
        assert promises(noised(transforms=Bare()), lambda sha: None) == (("bare",), ())


@BUDGETS
@pytest.mark.parametrize("unit", ["example", "client"])
def test_a_phase_of_a_secure_sum_is_answered_without_data_and_costs_nothing(unit, tmp_path):
    desk = Desk(tmp_path, PrivacyBudget(epsilon=4.0, delta=1e-6, unit=unit))
    step = secure_sum("1.0.1", 2, 3, 1.0)
    for number, kind in enumerate(step.phases):
        desk.last = start("a", number, transforms=step, params=(None,))
        desk.last.ask.kind = kind
        assert desk.ledger.begin(desk.last, "app", lambda sha: None) == ""
        assert desk.done() == ""
    assert not desk.rows()
    assert "nothing that is promised" in desk.answer("a", 9, transforms=step, params=(None,))  # where there is data
    desk.spool.close()


def test_of_what_nothing_holds_one_entry_a_run_client_and_year_is_kept(desk):
    for number in (1, 2, 3):
        assert desk.answer("a", number, transforms=(), params=()) == ""
    assert desk.answer("b", 1, transforms=(), params=()) == ""
    desk.again()
    assert desk.answer("a", 4, transforms=(), params=()) == ""
    assert [row["what"]["task"] for row in desk.rows()] == ["1.a", "1.b"]
    desk.now += 366 * 86400
    assert desk.answer("a", 5, transforms=(), params=()) == ""
    assert [row["what"]["task"] for row in desk.rows()] == ["1.a", "1.b", "5.a"]
    assert desk.answer("a", 6, app="other", transforms=(), params=()) == ""
    with patch.object(desk.ledger, "_server", lambda: "cd"):  # whose runs may be called what others' are
        assert desk.answer("a", 7, transforms=(), params=()) == ""
        assert desk.answer("a", 8, transforms=(), params=()) == ""
    assert [row["what"]["task"] for row in desk.rows()][3:] == ["6.a", "7.a"]


@BUDGETS
def test_what_would_exceed_a_budget_is_refused_with_what_is_left(tmp_path):
    desk = Desk(tmp_path, PrivacyBudget(epsilon=4.0, delta=1e-6))
    done = 0
    while not (reason := desk.answer("a", done + 1)):
        done += 1
    assert done >= 4
    assert reason.startswith("client a may spend epsilon 4 at delta 1e-06 in all (each client): 3.")
    assert " is left, and this would make it 4." in reason
    assert len(desk.rows()) == done
    assert desk.again().begin(start("a", 99), "app", lambda sha: None) == reason, "also after a restart"
    assert desk.begin("b", 1) == "", "each client has its own"
    nothing = desk.begin("b", 2, transforms=(), params=())
    assert "nothing that is promised of this answer would hold" in nothing
    desk.spool.close()


@BUDGETS
def test_what_is_at_work_counts_until_it_has_ended(tmp_path):
    desk = Desk(tmp_path, PrivacyBudget(epsilon=1.5, delta=1e-6))
    assert desk.begin("a", 1, run="one") == ""
    assert "0 is spent" not in desk.begin("a", 1, run="two")
    assert desk.begin("a", 1, run="two") != ""
    desk.ledger.over(TaskFailed("one", "1.a", 1, "it died", True))
    assert desk.begin("a", 1, run="two") == ""
    assert desk.begin("a", 2, run="one") != ""
    desk.ledger.ended("two")
    assert desk.begin("a", 2, run="one") == ""
    assert desk.done() == ""
    assert len(desk.rows()) == 1
    desk.spool.close()


@BUDGETS
def test_apps_and_years_have_bounds_of_their_own(tmp_path):
    desk = Desk(tmp_path, PrivacyBudget(epsilon=100.0, delta=1e-6, per_app=1.5, per_year=1.8))
    assert desk.answer("a", 1) == ""
    assert "with the app app (each client)" in desk.answer("a", 2)
    assert desk.answer("a", 2, app="other") == ""
    assert "in 2026" in desk.answer("a", 3, app="third")
    desk.now += 366 * 86400
    assert desk.answer("a", 3, app="third") == ""
    assert "with the app app" in desk.answer("a", 4)
    desk.spool.close()


@BUDGETS
def test_where_examples_are_hidden_what_the_handler_tells_counts_before_the_answer_is_given(tmp_path):
    desk = Desk(tmp_path, PrivacyBudget(epsilon=3.2, delta=1e-6, unit="example"))
    bare = {"transforms": (), "params": ()}
    assert "would hold" in desk.answer("a", 1, **bare), "it has told nothing"
    assert "would make it" in desk.answer("a", 1, accounted=((EXAMPLE, 1000),), **bare)
    assert desk.answer("a", 1, accounted=((EXAMPLE, 3),), **bare) == ""
    assert desk.answer("a", 2, accounted=((EXAMPLE, 3),), **bare) == ""
    assert "would make it" in desk.begin("a", 3, **bare), "it would be what it was"
    assert [row["what"]["examples"][0][1] for row in desk.rows()] == [3, 3]
    desk.spool.close()


@BUDGETS
def test_a_task_of_which_nothing_is_told_yet_withholds_no_answer_to_another_run(tmp_path):
    desk = Desk(tmp_path, PrivacyBudget(epsilon=3.2, delta=1e-6, unit="example"))
    bare = {"transforms": (), "params": ()}
    assert desk.begin("a", 1, run="one", **bare) == ""
    one = desk.last
    assert desk.begin("a", 1, run="two", **bare) == ""
    two, desk.last = desk.last, one
    assert desk.done(((EXAMPLE, 3),)) == ""
    desk.last = two
    assert "would hold" in desk.done(), "it has told nothing when it is done"
    assert desk.begin("a", 1, run="two", **bare) == ""
    assert "would make it" in desk.done(((EXAMPLE, 1000),))
    assert [row["what"]["run"] for row in desk.rows()] == ["one"]
    desk.spool.close()


def test_a_budget_is_part_of_the_record_and_only_where_it_is_another(tmp_path):
    pytest.importorskip("dp_accounting")
    desk = Desk(tmp_path)
    for budget in (
        None,
        PrivacyBudget(4.0, 1e-6),
        PrivacyBudget(4.0, 1e-6),
        PrivacyBudget(5.0, 1e-6, per_year=1.0),
        None,
        None,
    ):
        desk.budget = budget
        desk.again()
    desk.rows()
    assert [row["what"].get("epsilon") for row in desk.notes.records.of(BUDGET)] == [4.0, 5.0, None]
    desk.spool.close()


def test_without_dp_accounting_there_is_a_ledger_and_no_budget(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    desk = Desk(tmp_path)
    assert desk.answer("a") == ""
    assert len(desk.rows()) == 1
    desk.spool.close()
    with closing(Spool(tmp_path / "node.db")) as spool, pytest.raises(CallerError, match="dp-accounting"):
        PrivacyLedger(NodeAudit(spool, tmp_path).records, KEY, PrivacyBudget(4.0, 1e-6))


def test_answer_and_entry_are_on_disk_together_or_not_at_all(tmp_path):
    """A batch that fails in the middle leaves neither; one that is lost with the process neither."""
    for failing in (False, True):
        folder = tmp_path / str(failing)
        folder.mkdir()
        desk = Desk(folder)
        bench = Bench(spool=desk.spool, account=desk.ledger.commit)
        bench.host()
        bench.get(ask_spec=noised(transforms=()))
        (begun,) = [effect for effect in bench.task("a") if isinstance(effect, Start)]
        desk.ledger.begin(begun, "app", lambda sha: None)
        bench.done("a")
        batch = desk.spool.take()
        kinds = [type(step).__name__ for step in batch]
        assert kinds.count("StoredAnswer") == kinds.count("Noted") == 1
        if failing:
            unwritable: Any = object()
            with pytest.raises(Exception, match=r"bind|supported"):
                desk.spool.write((*batch, StoredAnswer("r", 9, "a", "9.a", unwritable)))
        desk.spool.crash()
        assert (desk.spool.answers(), desk.notes.records.of(SPENT)) == ([], [])
        desk.spool.close()


COLUMNS = ("number", "at", "who", "did", "what", "peer", "before", "seal")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    desk = Desk(folder)
    for number in range(1, 9):
        desk.answer("ab"[number % 2], number, accounted=((EXAMPLE, number),))
    rows = desk.rows()
    desk.spool.close()
    key, head, _ = audit.read(folder)
    return key, head, rows


@given(st.data())
def test_any_byte_of_any_entry_that_is_changed_is_found(kept, data):
    key, head, rows = kept
    changed = [dict(row) for row in rows]
    at, column = data.draw(st.integers(0, len(rows) - 1)), data.draw(st.sampled_from(COLUMNS))
    changed[at][column] = flipped(changed[at][column], data)
    with pytest.raises(CorruptFile, match="the audit was changed"):
        audit.verified(key, changed, [head])


def flipped(value, data):
    """The value with one of its bits, digits or letters another."""
    if isinstance(value, dict):
        text = json.dumps(value)
        place = data.draw(st.integers(0, len(text) - 1))
        for letter in "0123456789abcxyz":
            with_letter = text[:place] + letter + text[place + 1 :]
            try:
                found = json.loads(with_letter)
            except ValueError:
                continue
            if found != value and isinstance(found, dict):
                return found
        return {**value, "client": "z"}
    if isinstance(value, bytes):
        place = data.draw(st.integers(0, len(value) * 8 - 1)) if value else 0
        made = bytearray(value or b"\0")
        made[place // 8] ^= 1 << place % 8
        return bytes(made)
    return value + "x" if isinstance(value, str) else value + 1


@given(st.integers(0, 7), st.data())
def test_a_signature_is_of_one_entry_at_one_place_by_one_node(kept, at, data):
    rows = kept[2]
    assert signed_by(KEY.public, rows[at])
    assert not signed_by(SigningKey.of_seed(b"x" * 32).public, rows[at])
    other = {**rows[at], "what": flipped(rows[at]["what"], data)}
    assert not signed_by(KEY.public, other)
    assert not signed_by(KEY.public, {**rows[at], "before": bytes(32)})
    assert not signed_by(KEY.public, {**rows[at], "what": {}})


@on_loop
async def test_a_node_refuses_what_would_exceed_the_budget_before_anything_trains(tmp_path):
    pytest.importorskip("dp_accounting")
    server = Server(tmp_path)
    async with node(server, tmp_path, gate=Gate(), budget=PrivacyBudget(1.5, 1e-6)) as made:
        await server.session()
        server.post(run_spec=spec())
        assert (await server.hear("run_answer")).ready
        for number, fits in ((1, True), (2, False)):
            asked = ask(number)
            asked.transforms = ""
            server.post(ask_spec=with_noise(asked))
            server.post(task=task(number))
            result = await server.hear("result")
            assert result.HasField("done") is fits
        assert "may spend epsilon 1.5" in result.failure.reason
        assert not result.failure.retry
        assert len(made[0].started) == 1
    assert counted(tmp_path / "node") == {SPENT: 1, BUDGET: 1, "task.refused": 1}


@on_loop
async def test_an_answer_whose_handler_has_not_accounted_for_it_is_withheld_and_its_blob_let_go(tmp_path):
    pytest.importorskip("dp_accounting")
    server = Server(tmp_path)
    async with node(server, tmp_path, gate=Gate(), budget=PrivacyBudget(1.5, 1e-6, unit="example")) as made:
        await server.session()
        server.post(run_spec=spec())
        assert (await server.hear("run_answer")).ready
        server.post(ask_spec=ask())
        server.post(task=task(client=1))
        result = await server.hear("result")
        assert "nothing that is promised of this answer would hold" in result.failure.reason
        assert len(made[0].started) == 1
        assert not made[0].blobs.held(hashlib.sha256(b"x" * 100_000).digest())
        server.post(ask_spec=with_noise(ask(2)))  # which hides each example, too
        server.post(task=task(2, client=1))
        assert (await server.hear("result")).failure.reason.startswith("client 1 may spend epsilon 1.5")
    assert counted(tmp_path / "node") == {BUDGET: 1, "task.refused": 2}


def counted(folder):
    with closing(sqlite3.connect(folder / "node.db")) as database:
        found = dict(database.execute("SELECT did, count(*) FROM audit GROUP BY did").fetchall())
    return {did: found[did] for did in (SPENT, BUDGET, "task.refused") if did in found}


def with_noise(asked):
    asked.transforms = json.dumps(chain(NOISED).spec())
    asked.shared.inline = encoding.encode({"config": {}, "params": ({"norm": 1.0},)})
    return asked


class Pinned(central_gaussian):
    """Noise that a test can expect: drawn from the run's key."""

    def finish(self, answer, state, key, own=None):
        return super().finish(answer, state, key, Entropy(key.draws().words))


def private():
    client = umbel.Client()

    @client.data
    def data(source):
        return np.random.default_rng(source["index"]).normal(3.0, 1.0, 5)

    @client.train
    def train(model, data, ctx):
        ctx.state["n"] = ctx.state.get("n", 0) + 1
        return umbel.Update({"w": model["w"] + 0.1 * data.mean() + 0.01 * ctx.state["n"] + 1e-3 * ctx.rng.normal()})

    strategy = umbel.FedAvg(
        cohort=umbel.Everyone(), fold=umbel.total(), transforms=Pinned(norm=0.5, noise=0.1, expected=4)
    )
    return umbel.App(client, model={"w": np.zeros(3)}, strategy=strategy, rounds=3, evaluate_every=0)


SOURCES = {str(i): {"index": i, "count": 4} for i in range(4)}
NODES = {"a": {"0": SOURCES["0"], "1": SOURCES["1"]}, "b": {"2": SOURCES["2"]}, "c": {"3": SOURCES["3"]}}


@pytest.mark.parametrize("batch", some(range(80), 1))
def test_whatever_is_killed_answers_are_the_same_and_each_counts_once(tmp_path, batch):
    expected = umbel.run(private(), on=umbel.Simulation(clients=4), seed=5, folder=None).model_sha256
    for seed in range(2 * batch, 2 * batch + 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        world = Deployment(private(), NODES, seed=seed, scratch=folder)
        assert world.run(folder, seed=5).model_sha256 == expected, world.happened
        world.settle()
        for name, sources in NODES.items():
            rows = world.nodes[name].audit.of(SPENT)
            tasks = [row["what"]["task"] for row in rows]
            assert sorted(tasks) == sorted(f"{number}.{client}" for number in range(3) for client in sources)
            assert all(row["what"]["releases"][0]["noise"] == 0.1 for row in rows)
            audit.verified(b"", rows)
        world.close()
