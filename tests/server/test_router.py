"""The router's rules, one by one, over a store in memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from umbel.server.router import MEMBERS, RESTING, Router
from umbel.server.signals import Connected, Drop, Fetch, Hold, Lost, Received, Release, Revoked, RunEnded, Say, Tell
from umbel.store.records import MemoryStore
from umbel.wire import messages as m
from umbel.wire.blobs import Fetched, NotFetched

KEY = b"k" * 32
UPDATE, PARTIAL = m.Payload(inline=b"update"), m.Payload(inline=b"partial")
SPEC = m.RunSpec(run="r", name="mnist", archive=m.Payload(inline=b"archive"), contract="{}", config="{}")


def blob_of(letter, size=100):
    return m.Blob(sha256=letter.encode() * 32, size=size)


def ask_of(id=0, **more):
    fields = {"kind": "train", "digest": b"d", "transforms": "{}", "fold": "[]", "whole": True}
    return m.AskSpec(run="r", ask=id, **{**fields, **more})


def task_of(client, ask=0, attempt=1, **more):
    id = f"{ask}.{client}"
    return m.Task(run="r", task=id, ask=ask, client=client, attempt=attempt, key=KEY, data_key=KEY, **more)


def done_of(client, ask=0, attempt=1, update=UPDATE):
    id = f"{ask}.{client}"
    done = m.Done(receipt=m.Receipt(task=id, client=client, weight=1.0), update=update)
    return m.Result(run="r", task=id, ask=ask, client=client, attempt=attempt, done=done)


def failed_of(client, ask=0, attempt=1, reason="no", retry=False):
    failure = m.Failure(reason=reason, retry=retry)
    return m.Result(run="r", task=f"{ask}.{client}", ask=ask, client=client, attempt=attempt, failure=failure)


def partial_of(*clients, ask=0, partial=PARTIAL):
    receipts = [m.Receipt(task=f"{ask}.{client}", client=client) for client in clients]
    return m.Partial(run="r", ask=ask, receipts=receipts, partial=partial)


class World:
    """A router, its store, and the blobs that it has; what it says is read by `said`."""

    def __init__(self, **settings):
        self.store = MemoryStore()
        self.blobs = set()
        self.settings = settings
        self.effects = []
        self.now = 0.0
        for name in ("a", "b"):
            self.store.put("nodes", {"id": name, "name": f"node {name}", "status": "approved"})
        self.store.commit()
        self.start()

    def start(self, *, crash=False):
        """A new router on what is on disk."""
        self.store.crash() if crash else self.store.commit()
        self.router = Router(self.store, self.blobs.__contains__, **self.settings)

    def tell(self, event):
        self.now += 1.0
        self.effects = self.router.handle(event, self.now)
        return self.effects

    def say(self, peer, **body):
        return self.tell(Received(peer, m.Message(**body)))

    def node(self, name, *clients, number=1):
        return self.tell(Connected(f"{name}{number}", "node", name, f"node {name}", clients))

    def run(self, number=1, spec=SPEC):
        self.tell(Connected(f"r{number}", "run", "r", "ann"))
        return self.say(f"r{number}", run_spec=spec) if spec is not None else self.effects

    def ready(self, peer, **more):
        return self.say(peer, run_answer=m.RunAnswer(run="r", ready=True, **more))

    def said(self, peer, kind=None):
        """What a peer was told by the last event: (kind, body), or the bodies of one kind."""
        found = [effect.message for effect in self.effects if isinstance(effect, Say) and effect.peer == peer]
        pairs = [(each.WhichOneof("body"), getattr(each, each.WhichOneof("body"))) for each in found]
        return pairs if kind is None else [body for name, body in pairs if name == kind]

    def durable(self, kind):
        """Whether what was said of this kind waits for the disk."""
        found = [e.durable for e in self.effects if isinstance(e, Say) and e.message.WhichOneof("body") == kind]
        assert found
        return all(found)

    def of(self, kind):
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def standings(self, peer="r1"):
        told = [member for body in self.said(peer, "members") for member in body.members]
        return {member.client: (member.standing, member.reason) for member in told}


@pytest.fixture
def world():
    """Two nodes, a with clients 0 and 1, b with 2, all ready for the run."""
    found = World()
    found.node("a", "0", "1")
    found.node("b", "2")
    found.run()
    found.ready("a1")
    found.ready("b1")
    return found


def asked(world, *clients, **more):
    world.say("r1", ask_spec=ask_of(**more))
    for client in clients:
        world.say("r1", task=task_of(client))


# Who is there


def test_a_run_learns_who_takes_part():
    world = World()
    world.node("a", "0", "1")
    world.run()
    assert world.standings() == {"0": (m.STANDING_PREPARING, ""), "1": (m.STANDING_PREPARING, "")}
    (member, _) = world.said("r1", "members")[0].members
    assert member.node == "node a"
    assert world.said("a1", "run_spec") == [SPEC]
    assert world.durable("run_spec")
    world.ready("a1", clients=["0"])
    assert world.standings() == {"0": (m.STANDING_READY, "")}
    world.say("a1", run_answer=m.RunAnswer(run="r", reason="no data", clients=["1"]))
    assert world.standings() == {"1": (m.STANDING_REFUSED, "no data")}
    world.tell(Lost("a1"))
    assert world.standings() == {"0": (m.STANDING_OFFLINE, ""), "1": (m.STANDING_OFFLINE, "")}


def test_nodes_that_come_later_are_invited():
    world = World()
    world.run()
    world.node("a", "0")
    assert world.said("a1", "run_spec") == [SPEC]
    assert world.standings() == {"0": (m.STANDING_PREPARING, "")}


def test_a_run_concerns_the_clients_that_it_wants():
    world = World()
    world.node("a", "0")
    world.node("b", "2")
    world.run(spec=m.RunSpec(run="r", clients=["2"]))
    assert world.said("a1") == []
    assert world.said("b1", "run_spec")
    assert set(world.standings()) == {"2"}
    assert world.ready("a1") == []


def test_a_spec_that_differs_is_sent_again_and_the_same_is_not(world):
    world.say("r1", run_spec=SPEC)
    assert world.said("a1") == []
    assert world.standings()["0"] == (m.STANDING_READY, "")
    changed = m.RunSpec(run="r", config='{"lr": 2}')
    world.say("r1", run_spec=changed)
    assert world.said("a1", "run_spec") == [changed]
    assert world.standings()["0"] == (m.STANDING_PREPARING, "")


def test_a_client_that_two_nodes_host_stays_where_it_was_and_the_second_is_told(world):
    world.node("b", "2", "0", number=2)
    (notice,) = world.said("b2", "notice")
    assert "client 0 is hosted by another node" in notice.text
    assert "nodes revoke" in notice.text
    assert world.router.elsewhere("b") == {"0": "node a"}
    assert world.router.elsewhere("a") == {}
    asked(world, "0")
    assert world.said("a1", "task")
    assert world.said("b2") == []
    world.say("b2", hosted=m.Hosted(clients=["2", "0", "1"]))
    assert "clients 0, 1 are hosted by another node" in world.said("b2", "notice")[0].text


def test_a_client_that_its_node_hosts_no_more_goes_to_the_one_that_named_it_too(world):
    world.node("b", "2", "0", "1", number=2)
    world.say("a1", hosted=m.Hosted(clients=["1"]))
    assert [spec.run for spec in world.said("b2", "run_spec")] == ["r"]
    assert "client 0 is hosted here now" in world.said("b2", "notice")[0].text
    world.tell(Lost("a1"))
    assert world.said("b2") == [], "a node that is away keeps its clients"
    world.node("a", number=2)
    assert "client 1 is hosted here now" in world.said("b2", "notice")[0].text
    world.store.commit()
    assert world.store.rows("nodes", id="b")[0]["clients"] == ["2", "0", "1"]
    assert world.router.elsewhere("b") == {}


def test_a_client_is_named_once(world):
    world.say("a1", hosted=m.Hosted(clients=["7", "7"]))
    world.store.commit()
    assert world.store.rows("nodes", id="a")[0]["clients"] == ["7"]


def test_clients_come_and_go(world):
    world.say("a1", hosted=m.Hosted(clients=["1", "3"]))
    assert world.standings() == {
        "0": (m.STANDING_OFFLINE, ""),
        "1": (m.STANDING_PREPARING, ""),
        "3": (m.STANDING_PREPARING, ""),
    }
    world.store.commit()
    assert world.store.rows("nodes", id="a")[0]["clients"] == ["1", "3"]


def test_a_client_of_a_revoked_node_goes_to_the_one_that_took_its_place(world):
    world.node("c", "0")
    assert world.said("c1", "run_spec") == []
    world.store.commit()
    assert world.store.rows("nodes", id="c")[0]["clients"] == []
    world.tell(Revoked("a"))
    assert [spec.run for spec in world.said("c1", "run_spec")] == ["r"]
    world.ready("c1")
    assert world.standings() == {"0": (m.STANDING_READY, "")}


def test_the_newest_connection_wins(world):
    world.node("a", "0", number=2)
    assert [(drop.peer, drop.code) for drop in world.of(Drop)] == [("a1", m.CODE_SUPERSEDED)]
    assert world.standings() == {"0": (m.STANDING_PREPARING, ""), "1": (m.STANDING_OFFLINE, "")}
    assert world.ready("a1") == []
    assert world.tell(Lost("a1")) == []
    assert world.router.online("a")
    world.tell(Connected("r2", "run", "r", "ann"))
    assert [drop.peer for drop in world.of(Drop)] == ["r1"]
    assert world.say("r1", task=task_of("0")) == []
    world.tell(Lost("r1"))
    assert world.router.connected_run("r")


def test_a_revoked_node_is_out(world):
    asked(world, "0", "2", model=m.Payload(blob=blob_of("m")))
    assert world.router.may_read("a1", "r", b"m" * 32)
    world.tell(Revoked("a"))
    assert [(drop.peer, drop.code) for drop in world.of(Drop)] == [("a1", m.CODE_REVOKED)]
    assert world.standings() == {
        "0": (m.STANDING_REFUSED, "its node was revoked"),
        "1": (m.STANDING_REFUSED, "its node was revoked"),
    }
    (result,) = world.said("r1", "result")
    assert (result.task, result.failure.reason, result.failure.retry) == ("0.0", "its node was revoked", False)
    assert not world.router.may_read("a1", "r", b"m" * 32)
    assert world.say("a1", result=done_of("0")) == []
    world.say("r1", task=task_of("1"))
    assert world.said("r1", "result")[0].failure.reason.startswith("client 1 cannot take part: ")


def test_long_lists_of_members_come_in_parts():
    world = World()
    world.run()
    world.node("a", *map(str, range(2 * MEMBERS + 1)))
    assert [len(body.members) for body in world.said("r1", "members")] == [MEMBERS, MEMBERS, 1]


def test_so_do_members_whose_reasons_are_long():
    world = World()
    world.run()
    world.node("a", *map(str, range(MEMBERS)))
    world.said("r1", "members")
    world.say("a1", run_answer=m.RunAnswer(run="r", reason="\U0001f4c8" * 2000))
    found = world.said("r1", "members")
    assert max(body.ByteSize() for body in found) <= 2 << 20
    assert sum(len(body.members) for body in found) == MEMBERS


# Tasks


def test_a_task_goes_to_its_node_once_it_is_on_disk(world):
    world.say("r1", ask_spec=ask_of())
    assert world.effects == []
    world.say("r1", task=task_of("0"))
    assert world.said("a1") == [("ask_spec", ask_of()), ("task", task_of("0"))]
    assert world.durable("task")
    assert world.durable("ask_spec")
    world.say("r1", task=task_of("1"))
    assert world.said("a1") == [("task", task_of("1"))]
    assert world.router.waiting_of("r") == 2


def test_tasks_wait_for_their_node():
    world = World()
    world.node("a", "0")
    world.tell(Lost("a1"))
    world.run()
    asked(world, "0")
    assert world.effects == []
    world.node("a", "0", number=2)
    assert [kind for kind, _ in world.said("a2")] == ["run_spec"]
    world.ready("a2")
    assert world.said("a2") == [("ask_spec", ask_of()), ("task", task_of("0"))]


def test_a_new_session_is_told_of_asks_anew_and_only_of_tasks_without_an_answer(world):
    asked(world, "0", "1")
    world.say("a1", result=done_of("0"))
    world.node("a", "0", "1", number=2)
    world.ready("a2")
    assert world.said("a2") == [("ask_spec", ask_of()), ("task", task_of("1"))]


def test_a_task_that_comes_twice_changes_nothing(world):
    asked(world, "0")
    assert world.say("r1", task=task_of("0")) == []
    world.say("a1", result=done_of("0"))
    world.say("r1", task=task_of("0"))
    assert world.effects == [Say("r1", m.Message(result=done_of("0")))]


def test_a_higher_attempt_takes_the_place_of_a_failure(world):
    asked(world, "0")
    world.say("a1", result=failed_of("0", retry=True))
    world.say("r1", task=task_of("0", attempt=2))
    assert world.said("a1", "task") == [task_of("0", attempt=2)]
    world.say("a1", result=failed_of("0", attempt=1))
    assert world.said("r1") == []
    assert world.said("a1", "ack")[0].tasks == ["0.0"]
    world.say("a1", result=done_of("0", attempt=2))
    assert world.said("r1", "result")


def test_an_update_counts_for_all_attempts(world):
    asked(world, "0")
    world.say("a1", result=done_of("0"))
    world.say("r1", task=task_of("0", attempt=2))
    assert world.effects == [Say("r1", m.Message(result=done_of("0")))]


def test_tasks_of_clients_that_cannot_take_part_fail_at_once(world):
    world.say("b1", run_answer=m.RunAnswer(run="r", reason="not today"))
    asked(world, "2")
    (result,) = world.said("r1", "result")
    assert result.failure.reason == "client 2 cannot take part: not today"
    world.say("r1", task=task_of("9"))
    assert "no node of this federation hosts it" in world.said("r1", "result")[0].failure.reason


def test_a_refusal_ends_the_tasks_that_wait(world):
    asked(world, "2")
    world.say("b1", run_answer=m.RunAnswer(run="r", reason="changed my mind"))
    assert world.said("r1", "result")[0].failure.reason == "client 2 cannot take part: changed my mind"
    assert world.router.waiting_of("r") == 0


def test_a_mailbox_has_an_end():
    world = World(mailbox=2)
    world.node("a", *"0123")
    world.run()
    asked(world, *"012")
    (result,) = world.said("r1", "result")
    assert result.task == "0.2"
    assert "the mailbox of node node a is full: 2 tasks" in result.failure.reason
    world.ready("a1")
    assert len(world.said("a1", "task")) == 2
    world.say("a1", result=done_of("0"))
    world.say("r1", task=task_of("3"))
    assert world.said("r1") == []
    assert world.said("a1", "task")
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.1", "0.3"]))
    world.say("r1", ask_spec=ask_of(1))
    for client in "01":
        world.say("r1", task=task_of(client, ask=1))
        assert world.said("a1", "task")
    world.say("r1", task=task_of("2", ask=1))
    assert world.said("r1", "result")


# Answers


def test_a_result_is_passed_on_at_once_and_acknowledged_when_it_is_on_disk(world):
    asked(world, "0")
    world.say("a1", result=done_of("0"))
    assert world.said("r1") == [("result", done_of("0"))]
    assert not world.durable("result")
    assert world.said("a1") == [("ack", m.Ack(run="r", tasks=["0.0"]))]
    assert world.durable("ack")
    assert world.router.waiting_of("r") == 0
    assert world.router.answers == 1
    world.say("a1", result=done_of("0"))
    assert [kind for kind, _ in world.said("a1")] == ["ack"]
    assert world.said("r1") == []


def test_an_answer_waits_for_its_blob(world):
    asked(world, "0")
    result = done_of("0", update=m.Payload(blob=blob_of("u")))
    world.say("a1", result=result)
    assert world.effects == [Fetch("a1", "r", blob_of("u"))]
    world.say("r1", task=task_of("0"))
    assert world.effects == []
    world.blobs.add(b"u" * 32)
    world.tell(Fetched("r", b"u" * 32))
    assert world.of(Hold) == [Hold(b"u" * 32, "r/0")]
    assert world.said("r1", "result") == [result]
    assert world.said("a1", "ack")
    assert world.tell(Fetched("r", b"u" * 32)) == []


def large(size):
    return m.Payload(blob=blob_of("u", size))


@pytest.mark.parametrize(
    ("answer", "most", "words"),
    [
        (done_of("0", update=large(101)), 100, "101 bytes, and what ask 0 expects has at most 100"),
        (done_of("0", update=large(1001)), 0, "1,001 bytes, and the server takes at most 1,000"),
        (failed_of("0", reason="x" * 2**18), 0, "at most 131,072 are kept"),
        (
            m.Result(
                run="r", task="0.0", client="0", attempt=1,
                done=m.Done(
                    receipt=m.Receipt(task="0.0", metrics={f"{n:>99}": 1.0 for n in range(2000)}), update=UPDATE
                ),
            ),
            0,
            "such as metrics",
        ),
    ],
)  # fmt: skip
def test_an_answer_is_no_larger_than_what_is_expected_and_what_the_server_takes(answer, most, words):
    world = World(largest={"node": 1000, "run": 5000}.__getitem__)
    world.node("a", "0")
    world.run()
    world.ready("a1")
    asked(world, "0", most_bytes=most)
    world.say("a1", result=answer)
    assert world.of(Fetch) == []
    (result,) = world.said("r1", "result")
    assert "client 0: its answer has" in result.failure.reason
    assert words in result.failure.reason
    assert not result.failure.retry
    assert [ack.tasks for ack in world.said("a1", "ack")] == [["0.0"]], "it need not say it again"


def test_answers_up_to_what_is_expected_are_taken(world):
    asked(world, "0", "1", most_bytes=100)
    world.say("a1", result=done_of("0", update=large(100)))
    assert [fetch.blob.size for fetch in world.of(Fetch)] == [100]
    world.say("a1", partial=partial_of("1", partial=m.Payload(blob=blob_of("p", 200 + (2 << 20)))))
    assert len(world.of(Fetch)) == 1, "a partial holds sums"


def test_a_run_whose_model_has_no_room_at_all_is_told(world):
    world = World(largest={"node": 10, "run": 99}.__getitem__)
    world.run()
    world.say("r1", ask_spec=ask_of(model=m.Payload(blob=blob_of("m"))))
    ((drop,),) = [world.of(Drop)]
    assert (drop.peer, drop.code) == ("r1", m.CODE_TOO_LARGE)
    assert "--quota" in drop.text


def test_a_node_names_one_blob_at_a_time_for_a_task(world):
    asked(world, "0")
    world.say("a1", result=done_of("0", update=m.Payload(blob=blob_of("u"))))
    world.say("a1", result=done_of("0", attempt=2, update=m.Payload(blob=blob_of("v"))))
    assert len(world.of(Fetch)) == 1
    world.say("a1", result=done_of("0", attempt=2, update=m.Payload(blob=blob_of("w"))))
    assert [(drop.peer, drop.code) for drop in world.of(Drop)] == [("a1", m.CODE_OUT_OF_ORDER)]
    assert list(world.router._arriving) == [("r", b"v" * 32)]
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    assert world.router._arriving == {}


def test_a_blob_that_is_not_to_be_had_leaves_the_task_open(world):
    asked(world, "0")
    result = done_of("0", update=m.Payload(blob=blob_of("u")))
    world.say("a1", result=result)
    assert world.tell(NotFetched("r", b"u" * 32, "gone")) == []
    assert world.router.waiting_of("r") == 1
    world.say("a1", result=result)
    assert world.of(Fetch)


def test_what_arrives_for_a_task_that_was_cancelled_meanwhile_is_dropped(world):
    asked(world, "0")
    world.say("a1", result=done_of("0", update=m.Payload(blob=blob_of("u"))))
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.0"]))
    assert world.tell(Fetched("r", b"u" * 32)) == []


def test_only_the_node_of_a_task_answers_it(world):
    asked(world, "0")
    assert world.say("b1", result=done_of("0")) == []
    assert world.say("b1", alive=m.Alive(run="other", tasks=["0.0"])) == []


def test_signs_of_life_reach_the_run_and_what_is_over_is_cancelled(world):
    asked(world, "0", "1")
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.1"]))
    assert world.said("a1", "cancel")[0].tasks == ["0.1"]
    world.say("a1", alive=m.Alive(run="r", tasks=["0.0", "0.1"]))
    assert world.said("r1", "alive")[0].tasks == ["0.0"]
    assert world.said("a1", "cancel")[0].tasks == ["0.1"]


def test_nobody_waits_for_the_answer_to_a_cancelled_task(world):
    asked(world, "0")
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.0", "7.7", "x", ""]))
    assert world.router.waiting_of("r") == 0
    world.say("a1", result=done_of("0"))
    assert world.said("r1") == []
    assert world.said("a1", "ack")


def test_what_a_server_has_not_heard_of_yet_is_not_acknowledged(world):
    world.say("a1", result=done_of("0", ask=5))
    assert world.effects == []
    asked(world)
    world.say("a1", result=done_of("0"))
    assert world.effects == []


# Partials


def test_a_partial_answers_all_its_tasks(world):
    asked(world, "0", "1")
    world.say("a1", partial=partial_of("0", "1"))
    assert world.said("r1") == [("partial", partial_of("0", "1"))]
    assert world.said("a1", "ack")[0].tasks == ["0.0", "0.1"]
    assert world.router.waiting_of("r") == 0
    world.say("a1", partial=partial_of("1", "0"))
    assert [kind for kind, _ in world.said("a1")] == ["ack"]
    world.say("r1", task=task_of("1"))
    assert world.said("r1", "partial")


def test_a_partial_with_tasks_that_are_not_wanted_comes_again_without_them(world):
    asked(world, "0", "1")
    world.say("a1", result=done_of("0"))
    world.say("a1", partial=partial_of("0", "1", "2"))
    assert world.said("r1") == []
    assert world.said("a1") == [("refold", m.Refold(run="r", ask=0, without=["0.0", "0.2"]))]


def test_a_run_may_have_a_partial_folded_again(world):
    asked(world, "0", "1")
    world.say("a1", partial=partial_of("0", "1"))
    world.say("r1", refold=m.Refold(run="r", ask=0, without=["0.1"]))
    assert world.said("a1", "refold") == [m.Refold(run="r", ask=0, without=["0.1"])]
    assert world.router.waiting_of("r") == 1
    world.say("a1", result=done_of("0"))
    assert world.said("r1", "result")


def test_a_task_of_a_partial_that_is_cancelled_leaves_the_others_open(world):
    asked(world, "0", "1")
    world.say("a1", partial=partial_of("0", "1"))
    world.say("r1", cancel=m.Cancel(run="r", tasks=["0.1"]))
    assert world.router.waiting_of("r") == 1
    world.store.commit()
    assert world.store.rows("answers") == []
    assert [(row["task"], row["answer"]) for row in world.store.rows("tasks")] == [("0.0", None)]


def test_a_partial_of_an_ask_that_is_over_is_acknowledged(world):
    asked(world, "0", "1")
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    world.say("a1", partial=partial_of("0", "1"))
    assert world.said("a1", "ack")[0].tasks == ["0.0", "0.1"]


# The end of asks and runs


def test_an_ask_that_is_over_is_forgotten(world):
    asked(world, "0", "2")
    world.say("a1", result=done_of("0"))
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    assert world.of(Release) == [Release("r/0")]
    assert world.said("a1") == world.said("b1") == [("close_ask", m.CloseAsk(run="r", ask=0))]
    assert world.router.waiting_of("r") == 0
    world.store.commit()
    assert [world.store.rows(table) for table in ("asks", "tasks", "answers")] == [[], [], []]
    world.say("b1", result=done_of("2"))
    assert [kind for kind, _ in world.said("b1")] == ["ack"]
    assert world.say("r1", close_ask=m.CloseAsk(run="r", ask=0)) == []


def test_an_ask_with_another_digest_begins_anew(world):
    asked(world, "0")
    world.say("a1", result=done_of("0"))
    world.say("r1", ask_spec=ask_of(digest=b"other"))
    assert world.said("a1", "close_ask")
    world.say("r1", task=task_of("0"))
    assert [kind for kind, _ in world.said("a1")] == ["ask_spec", "task"]


def test_a_run_that_is_over_leaves_its_log(world):
    asked(world, "0")
    world.say("r1", log_event=m.LogEvent(run="r", number=1, event="{}"))
    world.say("r1", close_run=m.CloseRun(run="r", status="finished"))
    assert world.of(RunEnded) == [RunEnded("r", "finished")]
    assert {release.owner for release in world.of(Release)} == {"r/0", "r/"}
    assert world.said("a1", "close_run") == world.said("b1", "close_run") == [m.CloseRun(run="r", status="finished")]
    assert not world.router.may_read("a1", "r", b"m" * 32)
    world.store.commit()
    (row,) = world.store.rows("runs")
    assert (row["status"], row["ended_at"], row["owner"], row["name"]) == ("finished", world.now, "ann", "mnist")
    assert row["members"]["0"] == ["STANDING_READY", ""]
    assert len(world.store.rows("events")) == 1
    world.say("a1", alive=m.Alive(run="r", tasks=["0.0"]))
    assert world.said("a1") == [("close_run", m.CloseRun(run="r", status="finished"))]
    assert world.durable("close_run"), "it may not overtake an AskSpec that waits for the disk"


def test_a_status_that_is_none_counts_as_stopped(world):
    world.say("r1", close_run=m.CloseRun(run="r", status="done!"))
    assert world.of(RunEnded) == [RunEnded("r", "stopped")]


def test_a_node_that_was_away_learns_which_runs_have_ended_since(world):
    world.tell(Lost("a1"))
    world.router.end_now("r", "stopped", world.now)
    world.node("a", "0", number=2)
    assert world.said("a2") == [("close_run", m.CloseRun(run="r", status="stopped"))]
    world.tell(Lost("a2"))
    world.node("a", "0", number=3)
    assert world.said("a3") == []


def over(world, status):
    """Run r has begun, asked, and ended."""
    world.say("r1", log_event=m.LogEvent(run="r", number=1, event="{}"))
    asked(world, "0")
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    world.say("r1", close_run=m.CloseRun(run="r", status=status))
    world.store.put("runs", {"id": "r", "exit": {"code": 4}, "submission": {"app": 1}})
    world.store.commit()
    return world.store.rows("runs")[0]


def status_of(world):
    world.store.commit()
    (row,) = world.store.rows("runs")
    return row["status"], row["ended_at"]


def test_a_run_goes_on_after_it_was_over(world):
    over(world, "stopped")
    world.run(2)
    assert world.said("a1", "run_spec")
    world.say("r2", log_event=m.LogEvent(run="r", number=2, event="{}"))
    world.store.commit()
    (row,) = world.store.rows("runs")
    assert (row["status"], row["ended_at"], row["owner"], row["closed"]) == ("running", None, "ann", 0)
    assert (row["exit"], row["submission"]) == ({"code": 4}, {"app": 1})
    world.say("a1", result=done_of("0"))
    assert world.said("a1", "ack"), "ask 0 is over still"


@pytest.mark.parametrize("how", ["at once", "after others", "after a restart", "after a crash"])
@pytest.mark.parametrize("status", ["stopped", "failed"])
def test_a_run_that_goes_on_gets_the_answers_that_there_were(world, status, how):
    """Nodes answer a question once: an answer that was acknowledged and is then forgotten is lost for good."""
    asked(world, "0", "1", "2")
    world.say("a1", result=done_of("0", update=m.Payload(blob=blob_of("u"))))
    world.blobs.add(blob_of("u").sha256)
    world.tell(Fetched("r", blob_of("u").sha256))
    assert world.said("a1", "ack")
    world.say("b1", result=failed_of("2", reason="the disk is full"))
    world.store.commit()
    world.router.end_now("r", status, world.now)
    assert not {release.owner for release in world.of(Release)}
    if how == "after others":
        for n in range(RESTING):
            world.tell(Connected(f"q{n}", "run", f"q{n}", "ann"))
            world.router.end_now(f"q{n}", "stopped", world.now)
    world.store.commit()
    if how in ("after a restart", "after a crash"):
        world.start(crash=how == "after a crash")
        assert Hold(blob_of("u").sha256, "r/0") in list(world.router.held())
    if how != "at once":
        world.node("a", "0", "1", number=2)
        world.node("b", "2", number=2)
    a, b = ("a1", "b1") if how == "at once" else ("a2", "b2")
    world.run(2)
    assert world.said(a, "run_spec") == world.said(b, "run_spec") == [SPEC]
    world.say("r2", ask_spec=ask_of())
    told = {}
    for client in ("0", "1", "2"):
        world.say("r2", task=task_of(client))
        told[client] = world.said("r2", "result")
    assert told == {"0": [done_of("0", update=m.Payload(blob=blob_of("u")))], "1": [], "2": []}
    world.ready(a)
    assert [kind for kind, _ in world.said(a)] == ["ask_spec", "task"]
    assert [body.task for body in world.said(a, "task")] == ["0.1"]
    world.ready(b)
    assert [kind for kind, _ in world.said(b)] == ["ask_spec", "task"]
    world.say("r2", close_run=m.CloseRun(run="r", status="finished"))
    assert {release.owner for release in world.of(Release)} == {"r/0", "r/"}
    world.store.commit()
    assert not world.store.rows("answers")


def test_a_host_that_died_and_is_tried_again_is_no_refusal(world):
    asked(world, "0")
    world.say("a1", run_answer=m.RunAnswer(run="r", retry=True, reason="killed"))
    assert world.standings() == {"0": (m.STANDING_PREPARING, "killed"), "1": (m.STANDING_PREPARING, "killed")}
    assert not world.said("r1", "result")
    world.say("r1", task=task_of("1"))
    assert world.said("a1") == world.said("r1") == []
    world.ready("a1")
    assert [body.task for body in world.said("a1", "task")] == ["0.0", "0.1"]


@pytest.mark.parametrize("status", ["finished", "failed", "stopped"])
def test_a_connection_alone_makes_no_run_go_on(world, status):
    ended_at = over(world, status)["ended_at"]
    world.run(2)
    assert status_of(world) == (status, ended_at)
    world.say("r2", log_event=m.LogEvent(run="r", number=1, event="{}"))  # as it says all that was, once more
    assert status_of(world) == (status, ended_at)
    world.tell(Lost("r2"))
    assert status_of(world) == (status, ended_at)
    assert world.said("a1", "close_run") == [m.CloseRun(run="r", status=status)]
    world.node("b", "2", number=2)
    assert world.said("b2", "run_spec") == []
    world.run(3)
    world.say("r3", close_run=m.CloseRun(run="r", status="finished"))  # nothing was left to do
    assert status_of(world) == (status, ended_at)


def test_a_run_that_connects_before_its_end_is_on_disk_does_not_go_on(world):
    world.say("r1", close_run=m.CloseRun(run="r", status="stopped"))
    assert world.store.rows("runs") == []
    ended_at = world.now
    world.run(2)
    assert status_of(world) == ("stopped", ended_at)


def test_a_run_that_asks_goes_on(world):
    over(world, "finished")
    world.run(2)
    world.say("r2", ask_spec=ask_of(1))
    assert status_of(world) == ("running", None)
    world.tell(Lost("r2"))
    assert status_of(world) == ("running", None)


def test_a_run_that_its_server_goes_on_with_goes_on_at_once(world):
    over(world, "stopped")
    world.store.put("runs", {"id": "r", "status": "running", "ended_at": None})  # as the desk does
    world.store.commit()
    world.router.resumed("r")
    world.run(2)
    world.tell(Lost("r2"))
    assert status_of(world) == ("running", None)


def test_who_spoke_for_a_run_that_is_over_speaks_for_it_no_more(world):
    over(world, "stopped")
    world.run(2)
    world.say("r1", log_event=m.LogEvent(run="r", number=2, event="{}"))
    assert world.effects == []
    assert status_of(world)[0] == "stopped"


def test_ending_a_run_changes_nothing_that_others_keep_of_it(world):
    world.store.put("runs", {"id": "r", "exit": {"code": 3}})
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    world.router.end_now("r", "failed", 9.0)
    world.store.commit()
    assert world.store.rows("runs")[0]["exit"] == {"code": 3}


# The log


def test_events_are_stored_in_order_and_acknowledged(world):
    told, acknowledged = [], []
    for number in (1, 2, 2, 4):
        world.say("r1", log_event=m.LogEvent(run="r", number=number, event=f'"{number}"'))
        assert world.durable("log_ack")
        told += [tell.number for tell in world.of(Tell)]
        acknowledged += [ack.number for ack in world.said("r1", "log_ack")]
    assert told == [1, 2]
    assert acknowledged == [1, 2, 2, 2]
    world.store.commit()
    assert [row["body"] for row in world.store.rows("events", run="r")] == ['"1"', '"2"']


def test_events_without_a_number_are_only_watched(world):
    world.say("r1", log_event=m.LogEvent(run="r", event='"now"'))
    assert world.effects == [Tell("r", 0, '"now"')]


def test_a_run_that_connects_learns_how_far_its_log_is(world):
    world.say("r1", log_event=m.LogEvent(run="r", number=1, event="{}"))
    world.run(2, spec=None)
    assert world.said("r2") == [("log_ack", m.LogAck(run="r", number=1))]
    assert world.durable("log_ack")


# Blobs


def test_what_a_run_names_is_fetched_and_held_until_its_ask_is_over(world):
    world.say("r1", ask_spec=ask_of(model=m.Payload(blob=blob_of("m")), shared=m.Payload(blob=blob_of("s"))))
    assert world.effects == [
        Hold(b"m" * 32, "r/0"), Fetch("r1", "r", blob_of("m")), Hold(b"s" * 32, "r/0"), Fetch("r1", "r", blob_of("s")),
    ]  # fmt: skip
    world.blobs.add(b"m" * 32)
    world.say("r1", ask_spec=ask_of(model=m.Payload(blob=blob_of("m"))))
    assert world.of(Fetch) == []
    world.say("r1", task=task_of("0", own=m.Payload(blob=blob_of("o"))))
    assert world.of(Hold) == [Hold(b"o" * 32, "r/0")]


def test_a_node_may_read_what_its_own_clients_are_asked_with(world):
    world.say("r1", run_spec=m.RunSpec(run="r", archive=m.Payload(blob=blob_of("z"))))
    world.say("r1", ask_spec=ask_of(model=m.Payload(blob=blob_of("m"))))
    world.say("r1", task=task_of("0", own=m.Payload(blob=blob_of("o"))))
    world.node("c", "5")

    def readers(letter, run="r"):
        return [peer for peer in ("a1", "b1", "c1", "r1", "q1") if world.router.may_read(peer, run, letter * 32)]

    world.tell(Connected("q1", "run", "q", "eve"))
    assert readers(b"z") == ["a1", "b1", "c1", "r1"]
    assert readers(b"m") == ["a1", "r1"]
    assert readers(b"o") == ["a1", "r1"]
    assert readers(b"x") == ["r1"]
    assert readers(b"m", "q") == ["q1"]
    world.say("r1", run_spec=m.RunSpec(run="r", archive=m.Payload(blob=blob_of("z")), clients=["0", "2"]))
    assert readers(b"z") == ["a1", "b1", "r1"]


# Restarts


def test_a_server_that_starts_again_goes_on_from_what_is_on_disk(world):
    asked(world, "0", "1", "2", model=m.Payload(blob=blob_of("m")))
    world.say("a1", result=done_of("0", update=m.Payload(blob=blob_of("u"))))
    world.blobs.add(b"u" * 32)
    world.tell(Fetched("r", b"u" * 32))
    world.say("a1", partial=partial_of("1"))
    world.start()
    assert {(hold.sha[:1], hold.owner) for hold in world.router.held()} == {(b"m", "r/0"), (b"u", "r/0")}
    assert world.router.waiting_of("r") == 1
    assert set(world.router.standings("r").values()) == {(m.STANDING_OFFLINE, "")}
    world.node("b", "2", number=2)
    assert world.said("b2", "run_spec") == [SPEC]
    world.ready("b2")
    assert [kind for kind, _ in world.said("b2")] == ["ask_spec", "task"]
    world.run(2)
    assert set(world.standings("r2")) == {"0", "1", "2"}
    world.say("r2", task=task_of("0"))
    assert world.said("r2", "result")
    world.say("r2", task=task_of("1"))
    assert world.said("r2", "partial")
    world.node("a", "0", "1", number=2)
    world.say("a2", result=done_of("0"))
    assert world.said("a2", "ack")


def test_what_was_not_written_is_as_if_it_had_never_come(world):
    world.store.commit()
    asked(world, "0")
    world.say("a1", result=done_of("0"))
    world.start(crash=True)
    world.node("a", "0", "1", number=2)
    assert world.say("a2", result=done_of("0")) == []
    world.run(2)
    world.say("r2", ask_spec=ask_of())
    world.say("r2", task=task_of("0"))
    world.say("a2", result=done_of("0"))
    assert world.said("r2", "result")
    assert world.said("a2", "ack")


def test_runs_that_are_over_stay_over(world):
    world.say("r1", close_run=m.CloseRun(run="r", status="failed"))
    world.start()
    world.node("a", "0", number=2)
    assert world.said("a2") == [("close_run", m.CloseRun(run="r", status="failed"))]
    world.say("a2", result=done_of("0"))
    assert world.said("a2") == [("close_run", m.CloseRun(run="r", status="failed"))]


def test_how_far_asks_were_closed_outlives_a_change_of_the_run(world):
    asked(world, "0")
    world.say("r1", close_ask=m.CloseAsk(run="r", ask=0))
    world.say("r1", run_spec=m.RunSpec(run="r", config="[]"))
    world.start()
    world.node("a", "0", number=2)
    world.say("a2", result=done_of("0"))
    assert world.said("a2", "ack")


# What may not be said


@pytest.mark.parametrize(
    ("peer", "body"),
    [
        ("a1", {"task": task_of("0")}),
        ("a1", {"close_run": m.CloseRun(run="r")}),
        ("r1", {"result": done_of("0")}),
        ("r1", {"hosted": m.Hosted()}),
        ("r1", {"cancel": m.Cancel(run="other")}),
        ("r1", {"request": m.Request()}),
    ],
)
def test_who_says_what_is_not_its_own_is_dropped(world, peer, body):
    world.say(peer, **body)
    ((drop),) = world.effects
    assert (drop.peer, drop.code, drop.retry) == (peer, m.CODE_NOT_ALLOWED, False)


@pytest.mark.parametrize(
    ("peer", "body"),
    [
        ("r1", {"ask_spec": ask_of(2**63)}),
        ("r1", {"close_ask": m.CloseAsk(run="r", ask=2**64 - 1)}),
        ("r1", {"refold": m.Refold(run="r", ask=2**63)}),
        ("r1", {"log_event": m.LogEvent(run="r", number=2**63)}),
        ("r1", {"task": task_of("0", ask=2**63)}),
        ("a1", {"result": done_of("0", ask=2**63)}),
        ("a1", {"partial": partial_of("0", ask=2**63)}),
        ("r1", {"task": m.Task(run="r", task="0.1", client="0", attempt=1, key=KEY, data_key=KEY)}),
        ("r1", {"task": task_of("0", attempt=0)}),
        ("r1", {"task": m.Task(run="r", task="0.0", client="0", attempt=1, key=b"short", data_key=KEY)}),
        ("r1", {"ask_spec": ask_of(kind="")}),
        ("r1", {"ask_spec": ask_of(digest=b"")}),
        ("a1", {"result": m.Result(run="r", task="0.0", client="0", attempt=1)}),
        ("a1", {"result": m.Result(run="r", task="0.0", client="0", attempt=1, done=m.Done())}),
        ("a1", {"partial": partial_of()}),
        ("a1", {"partial": partial_of("0", "0")}),
        ("a1", {"partial": m.Partial(run="r", receipts=[m.Receipt(task="0.0")])}),
        ("a1", {}),
    ],
)
def test_what_lacks_something_or_is_out_of_range_is_malformed(world, peer, body):
    world.say("r1", ask_spec=ask_of())
    world.say(peer, **body)
    ((drop),) = world.effects
    assert (drop.peer, drop.code) == (peer, m.CODE_MALFORMED)


def test_a_task_needs_its_ask(world):
    world.say("r1", task=task_of("0", ask=3))
    assert [drop.code for drop in world.of(Drop)] == [m.CODE_UNKNOWN]


def test_a_peer_that_nobody_knows_is_not_heard(world):
    assert world.say("who", result=done_of("0")) == []
    assert world.tell(Lost("who")) == []
    assert world.tell(Revoked("who")) == []


# Anything

CLIENTS = st.sampled_from(["0", "1", "2", "9"])
ASKS = st.sampled_from([0, 1, 2, 2**63])
IDS = st.builds(lambda ask, client: f"{ask}.{client}", ASKS, CLIENTS)
RUNS = st.sampled_from(["r", "r", "r", "q"])
UPDATES = st.sampled_from([m.Payload(inline=b"u"), m.Payload(blob=blob_of("u")), m.Payload(blob=blob_of("v")), None])
DONE = st.builds(lambda update: m.Done(receipt=m.Receipt(), update=update), UPDATES)
NUMBERS = st.integers(0, 3)
EVENT = st.sampled_from(["{}", "{"])
BODIES = st.one_of(
    st.builds(lambda **k: {"run_spec": m.RunSpec(**k)}, run=RUNS, clients=st.lists(CLIENTS, max_size=2)),
    st.builds(
        lambda model, **k: {"ask_spec": ask_of(model=model, **k)},
        id=ASKS, model=UPDATES, digest=st.sampled_from([b"1", b"2"]),
    ),
    st.builds(lambda **k: {"task": task_of(**k)}, client=CLIENTS, ask=ASKS, attempt=NUMBERS, own=UPDATES),
    st.builds(lambda **k: {"cancel": m.Cancel(**k)}, run=RUNS, tasks=st.lists(IDS | st.text(max_size=3), max_size=3)),
    st.builds(lambda **k: {"close_ask": m.CloseAsk(**k)}, run=RUNS, ask=ASKS),
    st.builds(lambda **k: {"close_run": m.CloseRun(**k)}, run=RUNS, status=st.sampled_from(["finished", "?"])),
    st.builds(lambda **k: {"refold": m.Refold(**k)}, run=RUNS, ask=ASKS, without=st.lists(IDS, max_size=3)),
    st.builds(lambda **k: {"log_event": m.LogEvent(**k)}, run=RUNS, number=NUMBERS | st.just(2**63), event=EVENT),
    st.builds(
        lambda **k: {"run_answer": m.RunAnswer(**k)},
        run=RUNS, ready=st.booleans(), reason=st.text(), clients=st.lists(CLIENTS, max_size=2),
    ),
    st.builds(
        lambda ask, client, **k: {"result": m.Result(task=f"{ask}.{client}", ask=ask, client=client, **k)},
        run=RUNS, ask=ASKS, client=CLIENTS, attempt=NUMBERS, done=DONE,
    ),
    st.builds(lambda **k: {"result": failed_of(**k)}, client=CLIENTS, ask=ASKS, attempt=NUMBERS, reason=st.text()),
    st.builds(
        lambda clients, ask, partial: {"partial": partial_of(*clients, ask=ask, partial=partial)},
        clients=st.lists(CLIENTS, max_size=3), ask=ASKS, partial=UPDATES,
    ),
    st.builds(lambda **k: {"alive": m.Alive(**k)}, run=RUNS, tasks=st.lists(IDS, max_size=3)),
    st.builds(lambda **k: {"hosted": m.Hosted(**k)}, clients=st.lists(CLIENTS, max_size=3)),
    st.just({}),
)  # fmt: skip
PEERS = st.sampled_from(["a1", "b1", "r1", "q1"])
EVENTS = st.one_of(
    st.builds(lambda peer, body: Received(peer, m.Message(**body)), PEERS, BODIES),
    st.builds(lambda peer, body: Received(peer, m.Message(**body)), PEERS, BODIES),
    st.builds(Lost, PEERS),
    st.builds(
        lambda name, clients: Connected(f"{name}1", "node", name, name, tuple(clients)),
        st.sampled_from("ab"), st.lists(CLIENTS, max_size=3),
    ),
    st.builds(lambda name: Connected(f"{name}1", "run", name, "ann"), st.sampled_from("rq")),
    st.builds(lambda kind, sha: kind("r", sha * 32), st.sampled_from([Fetched]), st.sampled_from([b"u", b"v"])),
    st.builds(lambda sha: NotFetched("r", sha * 32, "gone"), st.sampled_from([b"u", b"v"])),
    st.builds(Revoked, st.sampled_from("ab")),
    st.just("start again"),
)  # fmt: skip


@given(st.lists(EVENTS, max_size=40))
def test_whatever_is_said_is_answered_by_effects(events):
    world = World(mailbox=2)
    world.node("a", "0", "1")
    world.run()
    world.ready("a1")
    world.say("r1", ask_spec=ask_of())
    for event in events:
        if event == "start again":
            world.start()
            continue
        if isinstance(event, Fetched):
            world.blobs.add(event.sha)
        assert isinstance(world.tell(event), list)
        waiting = sum(node.waiting for node in world.router._nodes.values())
        assert waiting == sum(map(world.router.waiting_of, ("r", "q")))
    world.start()
    list(world.router.held())
