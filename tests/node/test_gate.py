"""What a node lets in: the contract of a run, and what single clients would get."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from umbel import Arrays
from umbel.core import encoding
from umbel.errors import AppError
from umbel.node.gate import PolicyGate, against_client, against_start
from umbel.node.signals import HostReady, Start
from umbel.trust.archive import build
from umbel.trust.identity import SigningKey
from umbel.trust.policy import Policy
from umbel.trust.statement import Statement, digest
from umbel.trust.versions import Versions
from umbel.wire import messages as m

READY = HostReady("r", frozenset({"train"}), frozenset())
MODEL = Arrays({"w": np.zeros(2, dtype=np.float32)})


class Gate:
    """Notes what it is asked to judge."""

    judges_tasks = True

    def against_task(self, ask, sent):
        self.sent = sent
        return "no"


def tree(**values):
    return m.Payload(inline=encoding.encode(values))


def start(own=None, shared=None, model=None):
    return Start("r", m.Task(own=own), m.AskSpec(shared=shared, model=model, cohort=1), None)


def test_a_client_is_held_against_the_contract():
    contract = {"version": 1, "kinds": ["train"], "transforms": [], "model": {}}
    assert against_client("", READY) == against_client(json.dumps(contract), READY) == ""
    assert "evaluate" in against_client(json.dumps({**contract, "kinds": ["evaluate"]}), READY)
    for broken in ("{", "[]"):
        assert against_client(broken, READY).startswith("the run's contract cannot be read: ")


def test_what_all_get_is_not_replaced_by_what_one_gets_and_settings_add_to_the_runs():
    gate = Gate()
    sent = start(own=tree(config={"lr": 0.1}, n=1), shared=tree(config={"lr": 5.0}))
    assert against_start(gate, sent, '{"lr": 1.0, "steps": 3}', lambda sha: None) == "no"
    assert gate.sent == {"config": {"lr": 5.0, "steps": 3}, "laid_over": ["lr"], "n": 1}


def test_blobs_are_read_from_their_files(tmp_path):
    gate, files = Gate(), {b"m": tmp_path / "model", b"t": tmp_path / "tree", b"x": None}
    files[b"m"].write_bytes(MODEL.to_bytes())
    files[b"t"].write_bytes(encoding.encode({"n": 2}))
    blob = {sha: m.Payload(blob=m.Blob(sha256=sha)) for sha in files}
    against_start(gate, start(shared=blob[b"t"], model=blob[b"m"]), "", files.get)
    assert (gate.sent["n"], gate.sent["model"], gate.sent["config"]) == (2, MODEL, {})
    against_start(gate, start(shared=blob[b"x"], model=blob[b"x"]), "", files.get)
    assert gate.sent == {"model": None, "config": {}, "laid_over": []}


@pytest.mark.parametrize("sent", [start(own=m.Payload(inline=b"?")), start(shared=tree(config=3))])
def test_what_cannot_be_read_is_not_let_in(sent):
    assert against_start(Gate(), sent, "", lambda sha: None).startswith("what is sent with it cannot be read: ")


def test_a_gate_that_does_not_judge_tasks_is_not_asked():
    gate = Gate()
    gate.judges_tasks = False
    assert against_start(gate, start(own=m.Payload(inline=b"?")), "", lambda sha: None) == ""


# What an author has signed, and what somebody else makes of it

AUTHOR = SigningKey.new()
MANIFEST = {"kind": "client", "module": "c", "attribute": "client", "handlers": ["train"]}
HERE, NOW = "f0", 1000.0


def archived(code):
    manifest = {**MANIFEST, "requirements": [], "imports": [], "python": ""}
    return build(manifest, {"c.py": code})


CODE = archived(b"pass\n")
CONFIG, CONTRACT = {"lr": 0.1}, {"version": 1, "kinds": ["train"], "transforms": [], "model": {}}
SAID = Statement(
    "mnist",
    hashlib.sha256(CODE).hexdigest(),
    version=3,
    config=digest(json.dumps(CONFIG)),
    contract=digest(json.dumps(CONTRACT)),
    federation=HERE,
    expires=NOW,
)
ALL = ("config", "contract", "federation", "expires", "version")


def signed(said=SAID, code=CODE, key=AUTHOR, **changed):
    """A run as its author has signed it, with what somebody has changed on the way."""
    archive = m.Payload(inline=code)
    spec = m.RunSpec(run="r", name="mnist", archive=archive, author=key.public, config=json.dumps(CONFIG, indent=1))
    spec.contract, spec.statement, spec.signature = json.dumps(CONTRACT), said.text(), said.signed(key)
    for name, value in changed.items():
        setattr(spec, name, value)
    return spec


def gate(policy=None, versions=None, federations=(HERE,), now=NOW):
    policy = policy or Policy(allow=(f"author:{AUTHOR.public.hex()}",), require=ALL)
    return PolicyGate(policy, versions, federations, lambda: now)


def judged(folder, spec, judge):
    """What a gate says of a run, whose archive has come."""
    path = folder / "archive"
    path.write_bytes(spec.archive.inline)
    try:
        return judge.check(spec, path).reason
    except AppError as error:
        return error.message


def test_what_its_author_has_signed_is_let_in(tmp_path):
    assert judged(tmp_path, signed(), gate()) == ""
    left_out = Statement("mnist", SAID.archive)
    loose = Policy(allow=(f"author:{AUTHOR.public.hex()}",))
    assert judged(tmp_path, signed(left_out, config="{}"), gate(loose)) == ""


ATTACKS = {
    "other settings": (signed(config='{"lr": 1e9}'), {}, "its config is another than its author has signed"),
    "settings that cannot be read": (signed(config="{"), {}, "its config is another"),
    "no settings": (signed(config=""), {}, "its config is another"),
    "another contract": (signed(contract="{}"), {}, "its contract is another than its author has signed"),
    "another app": (signed(name="census"), {}, "signed it as 'mnist', and the run is called 'census'"),
    "another archive": (signed(code=archived(b"steal()\n")), {}, "its author has signed another archive"),
    "another federation": (signed(), {"federations": ("aa",)}, "signed it for another federation (f0)"),
    "no federation": (signed(), {"federations": ()}, "signed it for another federation"),
    "after its end": (signed(), {"now": NOW + 1}, "good until 1970-01-01 00:16:40 UTC, and this machine's clock says"),
    "another author": (signed(author=SigningKey.new().public), {}, "is not signed by the author"),
    "another statement": (signed(statement=replace(SAID, expires=2e9).text()), {}, "is not signed by the author"),
    "no signature": (signed(signature=b""), {}, "is not signed by the author"),
    "no statement": (signed(statement=b""), {}, "is not signed by the author"),
    "nothing signed": (signed(signature=b"", statement=b"", author=b""), {}, "has not signed its config, which is"),
}


@pytest.mark.parametrize("what", ATTACKS)
def test_what_is_changed_under_a_signature_is_refused(tmp_path, what):
    spec, where, reason = ATTACKS[what]
    assert reason in judged(tmp_path, spec, gate(**where))


@pytest.mark.parametrize("name", ALL)
def test_what_the_owner_requires_has_to_be_signed(tmp_path, name):
    said = replace(SAID, **{name: 0 if name == "version" else None})
    assert f"its author has not signed its {name}, which is required here" in judged(tmp_path, signed(said), gate())


def test_older_code_does_not_come_back(tmp_path):
    versions = tmp_path / "versions.json"
    old = archived(b"old = True\n")
    older = signed(replace(SAID, version=2, archive=hashlib.sha256(old).hexdigest()), old)
    assert judged(tmp_path, older, gate(versions=Versions(versions))) == ""
    assert judged(tmp_path, signed(), gate(versions=Versions(versions))) == ""
    again = gate(versions=Versions(versions))
    told = judged(tmp_path, older, again)
    assert "it is version 2 of mnist, and version 3 was let in here before" in told
    assert judged(tmp_path, signed(), again) == ""
    said = f"older:{hashlib.sha256(old).hexdigest()}"
    assert said in told
    insists = Policy(allow=(f"author:{AUTHOR.public.hex()}", said))
    assert judged(tmp_path, older, gate(insists, Versions(versions))) == ""
    # Of another author, and of another app, it is not older.
    other = SigningKey.new()
    anybody = gate(Policy(allow=("any",)), Versions(versions))
    assert judged(tmp_path, signed(replace(SAID, version=1), key=other), anybody) == ""
    assert judged(tmp_path, signed(replace(SAID, version=1, app="census"), name="census"), anybody) == ""
    assert "version 3 was let in" in judged(tmp_path, signed(replace(SAID, version=1)), anybody)


def test_what_was_not_let_in_raises_no_version(tmp_path):
    versions = Versions()
    assert "not approved" in judged(tmp_path, signed(), gate(Policy(), versions))
    asking = gate(Policy(ask=True), versions)
    assert judged(tmp_path, signed(), asking) == ""  # it is left to the owner
    assert versions.greatest(AUTHOR.public, "mnist") == 0


def test_a_run_that_outlives_its_signature_asks_nothing_more():
    ask = m.AskSpec(kind="train", cohort=1)
    assert gate().against_ask(signed(), ask) == ""
    assert "was good until" in gate(now=NOW + 1).against_ask(signed(), ask)


def test_an_ask_lays_nothing_over_settings_that_have_to_be_signed():
    same, other, more = (start(shared=tree(config=laid)) for laid in ({"lr": 0.1}, {"lr": 0.2}, {"spy": 1}))
    strict = gate()
    assert against_start(strict, same, json.dumps(CONFIG), lambda sha: None) == ""
    for laid, name in ((other, "'lr'"), (more, "'spy'")):
        told = against_start(strict, laid, json.dumps(CONFIG), lambda sha: None)
        assert told == f"the ask lays other settings over those that the author has signed: {name}"
    loose = gate(Policy(require=("federation",)))
    assert against_start(loose, other, json.dumps(CONFIG), lambda sha: None) == ""
