"""Policies: what their files may say, and what they let run."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from umbel import Arrays, Free, Like
from umbel.core.transform import chain
from umbel.errors import CorruptFile, SettingError, StorageError
from umbel.privacy import central_gaussian, noised_sum, secure_sum
from umbel.transforms.clip_by_norm import clip_by_norm
from umbel.transforms.quantise import quantise
from umbel.transforms.rotate import rotate
from umbel.transforms.top_k import top_k
from umbel.trust.policy import Approvals, Policy, PrivacyBudget, Range, RequiredStep, archive_sha256
from umbel.wire import messages as m

ARCHIVE = b"an archive"
SHA = hashlib.sha256(ARCHIVE).digest()
AUTHOR, OTHER = bytes(range(32)), bytes(32)
MANIFEST = {"handlers": ["evaluate", "train"]}
WHOLE = f"""
allow = ["author:{AUTHOR.hex()}", "archive:{SHA.hex()}"]
ask = true
kinds = ["train", "evaluate"]
smallest_cohort = 10

[[transforms]]
name = "clip_by_norm"
most = {{ norm = 1.0 }}

[config.epochs]
least = 1
most = 5
[config.optimizer]
one_of = ["sgd", "adam"]
"""


def run(*, kinds=("train",), transforms=(), **config):
    told = {"kinds": list(kinds), "transforms": [part.spec() for part in transforms]}
    archive = m.Payload(inline=ARCHIVE)
    return m.RunSpec(run="r", archive=archive, contract=json.dumps(told), config=json.dumps(config))


def asked(*transforms, kind="train", cohort=100):
    return m.AskSpec(run="r", kind=kind, cohort=cohort, transforms=json.dumps(chain(*transforms).spec()))


def test_a_file_says_it_all():
    policy = Policy.read(WHOLE)
    assert policy == Policy(
        allow=(f"author:{AUTHOR.hex()}", f"archive:{SHA.hex()}"),
        ask=True,
        kinds=("train", "evaluate"),
        smallest_cohort=10,
        transforms=(RequiredStep("clip_by_norm", {"norm": Range(most=1.0)}),),
        config={"epochs": Range(1, 5), "optimizer": Range(one_of=("sgd", "adam"))},
    )
    assert Policy.read("") == Policy()
    told = "[budget]\nepsilon = 4\ndelta = 1e-6\nper_app = 2.0"
    assert Policy.read(told).budget == PrivacyBudget(4.0, 1e-6, per_app=2.0)


def test_sums_that_show_no_update_can_be_required_and_bring_noise_of_their_own():
    noised = noised_sum("1.0.1", 17, 100, 1.0, 16, noise=2.0, size=5, sharers=60)
    needs = RequiredStep("noised_sum", {"noise": Range(1.5), "threshold": Range(10), "clip": Range(most=1.0)})
    policy = Policy(
        allow=("any",), kinds=("train",), smallest_cohort=50, transforms=(needs,), budget=PrivacyBudget(4.0, 1e-6)
    )
    assert policy.check_ask(asked(rotate(), noised)) == []
    (reason,) = policy.check_ask(asked(replace(noised, threshold=9)))
    assert "threshold" in reason
    (reason,) = policy.check_ask(asked(replace(noised, noise=1.0)))
    assert "noise" in reason
    plain = secure_sum("1.0.1", 17, 100, 1.0)
    assert any("have to be hidden" in reason for reason in policy.check_ask(asked(plain)))
    # what a run announces has the noise, and a threshold that follows from who takes part
    announced = run(transforms=(replace(noised, threshold=2, clients=3, sharers=3),), kinds=("train",))
    assert "threshold" in policy.check_run(announced, MANIFEST)[0]
    needs = RequiredStep("noised_sum", {"noise": Range(1.5), "clip": Range(most=1.0)})
    assert replace(policy, transforms=(needs,)).check_run(announced, MANIFEST) == []
    # in a phase of its own nothing is told of data, and not all settings are known; but who is asked counts there, too
    assert policy.check_ask(asked(replace(noised, threshold=2), kind="phase:keys")) == []
    assert "a cohort of 49" in policy.check_ask(asked(noised, kind="phase:keys", cohort=49))[0]
    assert "query:facts is not answered here" in policy.check_ask(asked(noised, kind="query:facts"))[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epsilon = 1", "cannot be read"),
        ("epsilon = 1\ndelta = 1e-6\nper_week = 1", "per_week"),
        ("epsilon = -1\ndelta = 1e-6", "epsilon"),
        ("epsilon = 1\ndelta = 1", "delta below 1"),
        ("epsilon = 1\ndelta = 0", "delta"),
        ("epsilon = 1\ndelta = 1e-6\nper_year = 'x'", "per_year"),
        ("epsilon = 1\ndelta = 1e-6\nunit = 'row'", "client or example"),
    ],
)
def test_a_budget_that_cannot_be_is_an_error(text, message):
    with pytest.raises(SettingError, match=message):
        Policy.read(f"[budget]\n{text}")
    with pytest.raises(SettingError, match="cannot be read"):
        Policy.read("budget = 3")


def test_where_there_is_a_budget_answers_have_to_be_hidden():
    policy = Policy(allow=("any",), budget=PrivacyBudget(4.0, 1e-6))
    hidden = central_gaussian(norm=1.0, noise=1.0, expected=10)
    for kind in ("train", "evaluate", "query:facts"):
        assert policy.check_ask(asked(hidden, kind=kind)) == []
        for bare in ((), (clip_by_norm(1.0),), (hidden, top_k(0.5))):
            (reason,) = policy.check_ask(asked(*bare, kind=kind))
            assert "answers have to be hidden by noise here (budget)" in reason
    assert policy.check_run(run(transforms=(hidden,)), MANIFEST) == []
    assert "have to be hidden" in policy.check_run(run(), MANIFEST)[0]
    assert "have to be hidden" in policy.check_run(run(kinds=("evaluate",)), MANIFEST)[0]
    (reason,) = policy.check_ask(m.AskSpec(kind="train", cohort=1, transforms="["))
    assert "have to be hidden" in reason
    examples = Policy(allow=("any",), budget=PrivacyBudget(4.0, 1e-6, unit="example"))
    assert examples.check_ask(asked()) == [], "its handlers may hide them"


def test_the_example_in_the_documentation_is_one(tmp_path):
    from umbel.trust import policy

    text = policy.__doc__.partition("such as::")[2].partition("\n\nWithout")[0]
    text = "\n".join(line[4:] for line in text.splitlines())
    found = Policy.read(text.replace("5f0c...", "5f" * 32).replace("9b1d...", "9b" * 32))
    assert (len(found.allow), found.ask, found.smallest_cohort, len(found.kinds)) == (2, True, 10, 2)
    assert (len(found.transforms), len(found.config)) == (1, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "not TOML"),
        ("allowed = []", "has no 'allowed'"),
        ("approvals = 1", "has no 'approvals'"),
        ('allow = "any"', "allow is a list"),
        ('allow = ["anybody"]', "cannot allow 'anybody'"),
        ('allow = ["author:12"]', "cannot allow"),
        ("allow = [3]", "cannot allow"),
        ('ask = "yes"', "true or false"),
        ("kinds = [3]", "kinds are text"),
        ("smallest_cohort = 0", "whole number"),
        ("smallest_cohort = true", "whole number"),
        ("transforms = 3", "is a list"),
        ("transforms = [3]", "cannot have 3"),
        ('[[transforms]]\nname = "clip_by_norm"\nmax = 1', "cannot have"),
        ('[[transforms]]\nname = "clip_by_norm"\nmost = 1', "most = { norm = 1.0 }"),
        ('[[transforms]]\nname = "clip_by_norm"\nmost = { norm = "1" }', "bound is a number"),
        ('require = "config"', "require is a list"),
        ('require = ["archive"]', "cannot require 'archive'"),
        ("require = [[1]]", "cannot require [1]"),
        ("config = 3", "has a table"),
        ("[config]\nlr = 3", "config.lr has"),
        ("[config.lr]", "config.lr has"),
        ("[config.lr]\nmax = 3", "config.lr has"),
        ("[config.lr]\nmost = true", "bound is a number"),
        ("[config.lr]\none_of = 3", "is a list"),
    ],
)
def test_what_cannot_be_is_an_error(text, message):
    with pytest.raises(SettingError) as caught:
        Policy.read(text)
    assert message in f"{caught.value}"


def test_a_file_is_named_in_its_errors(tmp_path):
    path = tmp_path / "policy.toml"
    with pytest.raises(SettingError, match=r"policy\.toml cannot be read"):
        Policy.load(path)
    path.write_text("x")
    with pytest.raises(SettingError, match=r"policy\.toml: it is not TOML"):
        Policy.load(path)
    path.write_text(WHOLE)
    assert Policy.load(path) == Policy.read(WHOLE)


def test_nobody_is_allowed_unless_the_owner_says_so():
    (reason,) = Policy().check_run(run(), MANIFEST, AUTHOR)
    assert SHA.hex() in reason
    assert AUTHOR.hex() in reason
    for rule, author, good in (
        ("any", b"", True),
        ("any", AUTHOR, True),
        (f"author:{AUTHOR.hex()}", AUTHOR, True),
        (f"author:{AUTHOR.hex()}", OTHER, False),
        (f"author:{AUTHOR.hex()}", b"", False),
        (f"archive:{SHA.hex()}", b"", True),
        (f"archive:{OTHER.hex()}", AUTHOR, False),
        (f"author:{SHA.hex()}", AUTHOR, False),
    ):
        assert (Policy(allow=(rule,)).check_run(run(), MANIFEST, author) == []) is good


def test_the_hash_is_that_of_the_archive_wherever_it_is():
    blob = m.RunSpec(archive=m.Payload(blob=m.Blob(sha256=SHA, size=10)))
    assert archive_sha256(blob) == archive_sha256(run()) == SHA


def test_the_owner_is_asked_for_what_only_lacks_approval(tmp_path):
    policy = Policy(ask=True, kinds=("train",), approvals=Approvals(tmp_path / "approved"))
    assert policy.asks_owner(run(), MANIFEST, AUTHOR)
    assert not policy.asks_owner(run(kinds=["query:x"]), MANIFEST, AUTHOR)
    assert not Policy().asks_owner(run(), MANIFEST, AUTHOR)
    policy.approvals.add(SHA)
    assert not policy.asks_owner(run(), MANIFEST, AUTHOR)
    assert policy.check_run(run(), MANIFEST, AUTHOR) == []


def test_approvals_are_remembered(tmp_path):
    path = tmp_path / "node" / "approved"
    approvals = Approvals(path)
    assert SHA not in approvals
    approvals.add(SHA)
    approvals.add(OTHER)
    approvals.remove(OTHER)
    again = Approvals(path)
    assert SHA in again
    assert OTHER not in again
    path.write_text("nonsense\n")
    with pytest.raises(CorruptFile, match="nonsense"):
        Approvals(path)


def test_an_approval_that_cannot_be_kept_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Approvals(tmp_path / "file" / "approved").add(SHA)


def test_kinds_are_judged_when_joining_and_at_each_ask():
    policy = Policy(allow=("any",), kinds=("train",))
    assert policy.check_run(run(), MANIFEST) == []
    assert policy.check_run(run(kinds=["train", "query:x"]), MANIFEST) == ["query:x is not answered here, only train"]
    assert policy.check_run(m.RunSpec(), MANIFEST) == ["evaluate is not answered here, only train"]
    assert policy.check_ask(asked()) == []
    assert policy.check_ask(asked(kind="evaluate")) == ["evaluate is not answered here, only train"]
    assert Policy(kinds=()).check_ask(asked()) == ["train is not answered here, only nothing"]


def test_small_cohorts_are_not_answered():
    policy = Policy(smallest_cohort=10)
    assert policy.check_ask(asked(cohort=10)) == []
    (reason,) = policy.check_ask(asked(cohort=9))
    assert "at least 10" in reason


CLIP = Policy(allow=("any",), transforms=(RequiredStep("clip_by_norm", {"norm": Range(most=1.0)}),))


@pytest.mark.parametrize(
    ("transforms", "fault"),
    [
        ([clip_by_norm(1.0)], None),
        ([clip_by_norm(0.5)], None),
        ([top_k(0.1), clip_by_norm(0.5)], None),
        ([clip_by_norm(3.0), clip_by_norm(0.5)], None),
        ([], "the app does not ask for that"),
        ([top_k(0.1)], "the app does not ask for that"),
        ([clip_by_norm(1.5)], "its norm is 1.5, above 1.0"),
        ([clip_by_norm(1.0), top_k(0.1)], "top_k after it can enlarge the update again"),
        ([clip_by_norm(1.0), quantise(4)], "quantise after it can enlarge the update again"),
        ([clip_by_norm(1.0), quantise(4, bounded=True)], None),
        ([quantise(4), clip_by_norm(1.0)], "after quantise it does not see what is sent"),
        ([quantise(4), clip_by_norm(1.0), quantise(4, bounded=True)], "after quantise it does not see what is sent"),
    ],
    ids=str,
)
def test_required_transforms_have_to_be_there_and_to_hold(transforms, fault):
    for reasons in (CLIP.check_ask(asked(*transforms)), CLIP.check_run(run(transforms=transforms), MANIFEST)):
        assert reasons == [] if fault is None else fault in reasons[0]


def test_evaluations_need_no_transforms():
    assert CLIP.check_ask(asked(kind="evaluate")) == []
    assert CLIP.check_run(run(kinds=["evaluate"]), MANIFEST) == []
    assert CLIP.check_ask(asked(kind="query:x")) != []


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "3", "null", "nonsense", '["clip_by_norm"]', '{"name": "clip_by_norm"}', "[" * 100_000,
        '[{"name": "clip_by_norm", "version": 1, "settings": {"norm": "1"}}]',
        '[{"name": "clip_by_norm", "version": 1, "settings": {"norm": NaN}}]',
        '[{"name": "clip_by_norm", "version": 1, "settings": {"norm": true}}]',
        '[{"name": "clip_by_norm", "version": 1, "settings": {}}]',
        '{"name": "clip_by_norm", "version": 1, "settings": {"norm": 1.0}}',
        json.dumps([{"name": "chain", "version": 1, "settings": {"parts": clip_by_norm(1.0).spec()}}]),
        json.dumps([clip_by_norm(1.0).spec(), {"name": "unknown", "version": 1, "settings": {}}]),
    ],
)  # fmt: skip
def test_hostile_transforms_are_refused(text):
    ask = asked()
    ask.transforms = text
    assert CLIP.check_ask(ask)


@pytest.mark.parametrize("text", ["[]", "3", "{", '{"kinds": 3}', "[" * 100_000])
def test_a_hostile_contract_is_refused(text):
    spec = run()
    spec.contract = text
    assert "cannot be read" in Policy(allow=("any",)).check_run(spec, MANIFEST)[0]
    spec = run()
    spec.config = "[]"
    assert "cannot be read" in Policy(allow=("any",)).check_run(spec, MANIFEST)[0]


def test_settings_have_to_be_within_their_ranges():
    policy = Policy(allow=("any",), config={"epochs": Range(1, 5), "optimizer": Range(one_of=("sgd", 1))})
    good = {"epochs": 3, "optimizer": "sgd"}
    assert policy.check_task(asked(), {"config": good}) == []
    assert policy.check_run(run(**good), MANIFEST) == []
    assert policy.check_run(run(), MANIFEST) == []  # the ask may bring them
    assert policy.check_ask(asked()) == []
    assert len(policy.check_task(asked(), {"config": {}})) == 2
    for epochs in (0, 6, math.nan, "3", None, True, [3]):
        (reason,) = policy.check_task(asked(), {"config": {**good, "epochs": epochs}})
        assert reason.startswith("the setting epochs is")
        assert policy.check_run(run(**{**good, "epochs": epochs}), MANIFEST)
    for optimizer in ("adam", True, 1.0, None):
        assert policy.check_task(asked(), {"config": {**good, "optimizer": optimizer}})


MODEL = Arrays({"w": np.zeros(2), "mean": np.zeros(2), "n": np.array(1)}, {"mean": "buffer"})
PLAIN = MODEL.select(["w"])


@pytest.mark.parametrize(
    ("expects", "model", "fault"),
    [
        (Like(), PLAIN, None),
        (Like(names=("w",)), MODEL, None),
        (Like(PLAIN), MODEL, None),
        (Like(), MODEL, "the buffers 'mean', 'n'"),
        (Like(MODEL), PLAIN, "the buffers 'mean', 'n'"),
        (Like(names=("n",)), MODEL, "the buffers 'n'"),
        (Like(aux=Like(PLAIN)), PLAIN, "aux arrays"),
        (Like(aux=Free()), PLAIN, "aux arrays"),
        (Like(delta=False), PLAIN, "values and not differences"),
        (Free(), PLAIN, "a free answer"),
        (None, PLAIN, "a free answer"),
        ({"delta": True}, PLAIN, "a free answer"),
        (Like(), None, "cannot be read"),
    ],
    ids=str,
)
def test_a_bound_that_is_required_has_to_bound_all_that_is_answered(expects, model, fault):
    spec = asked(top_k(0.1), clip_by_norm(0.5))
    reasons = CLIP.check_task(spec, {"config": {}, "expects": expects, "model": model})
    assert reasons == [] if fault is None else fault in reasons[0]
    assert "clip_by_norm" in "".join(reasons) or fault is None
    sent = {"config": {}, "expects": expects, "model": model}
    assert Policy().check_task(spec, sent) == []
    sparse = Policy(transforms=(RequiredStep("top_k"),))  # it bounds nothing, and is there for another reason
    assert sparse.check_task(spec, sent) == []
    spec.kind = "evaluate"
    assert CLIP.check_task(spec, sent) == []


def test_tasks_are_judged_where_that_makes_a_difference():
    assert CLIP.judges_tasks
    assert Policy(config={"lr": Range(most=1)}).judges_tasks
    assert not Policy(allow=("any",), kinds=("train",), smallest_cohort=9).judges_tasks
