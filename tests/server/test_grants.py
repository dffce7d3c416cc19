"""Who gets a blob whose hash it knows: whoever has brought it, or was named it in a run that it takes part in."""

from __future__ import annotations

import pytest
from tests.server.serving import done_of, play, task_of

from umbel.errors import Refused
from umbel.store.blobs import Blobs
from umbel.trust.identity import SigningKey
from umbel.wire import messages as m
from umbel.wire.blobs import run_giver

SECRET = b"what run r has learned" * 10_000


async def kept(here, run):
    """Have run r ask with a model, and wait until the server has it."""
    blob = run.blobs.put(SECRET, "own")
    run.say(ask_spec=m.AskSpec(run="r", ask=0, kind="train", digest=b"d", transforms="[]", model=m.Payload(blob=blob)))
    await here.service.depot.ready(blob.sha256)
    return blob


async def refused(party, blob, run):
    with pytest.raises(Refused, match="not to be had"):
        await party.exchange.fetch(blob, run)


def test_a_run_gets_no_blob_of_another_by_its_hash(tmp_path):
    async def act(here):
        run, eve = await here.run(), await here.run("q")
        blob = await kept(here, run)
        await refused(eve, blob, "q")
        await refused(eve, blob, "r")
        assert eve.end is None

    play(act, tmp_path)


def test_a_run_and_its_node_get_nothing_by_naming_a_hash_that_another_has_brought(tmp_path):
    async def act(here):
        run, eve = await here.run(), await here.run("q")
        hers = await here.node(SigningKey.new(), "mallory")
        blob = await kept(here, run)
        payload = m.Payload(blob=blob)
        eve.say(run_spec=m.RunSpec(run="q", archive=payload, clients=["mallory"]))
        await hers.hears("run_spec")
        hers.say(run_answer=m.RunAnswer(run="q", ready=True))
        eve.say(ask_spec=m.AskSpec(run="q", ask=0, kind="train", digest=b"d", transforms="[]", model=payload))
        task = task_of("mallory")
        task.run = "q"
        eve.say(task=task)
        await hers.hears("task")
        await refused(eve, blob, "q")
        hers.say(want=m.Want(blob=blob, run="q", credit=1 << 20))
        await hers.settled()
        assert not hers.named("chunk")
        answer = done_of("mallory", update=payload)
        answer.run = "q"
        hers.say(result=answer)  # the node claims as its update what it was only told the hash of
        await hers.settled()
        await eve.settled()
        assert not eve.named("result")

        again = await here.run("q")
        await refused(again, blob, "q")
        # Once she has brought it herself it is hers as well, and her node's.
        again.blobs.put(SECRET, "own")
        again.say(ask_spec=m.AskSpec(run="q", ask=0, kind="train", digest=b"d", transforms="[]", model=payload))
        assert (await hers.exchange.fetch(blob, "q")).read_bytes() == SECRET

    play(act, tmp_path)


def test_none_of_what_one_has_begun_to_bring_counts_for_another(tmp_path):
    async def act(here):
        run, eve = await here.run(), await here.run("q")
        blob = run.blobs.put(SECRET, "own")
        blobs, mine = here.service.blobs, run_giver("r")
        blobs.hold(blob.sha256, "r/0")
        with blobs.part(blob, giver=mine) as part:
            part.write(SECRET[:-1])
        eve.say(
            ask_spec=m.AskSpec(run="q", ask=0, kind="train", digest=b"d", transforms="[]", model=m.Payload(blob=blob))
        )
        await eve.settled()
        with blobs.part(blob, giver=mine) as part, blobs.part(blob, giver=run_giver("p")) as other:
            assert (part.offset, other.offset) == (len(SECRET) - 1, 0)
            part.write(SECRET[-1:])
            part.finish()
        assert blobs.path(blob.sha256, mine)
        assert not blobs.path(blob.sha256, run_giver("q"))
        await refused(await here.run("q"), blob, "q")

    play(act, tmp_path)


def test_a_run_gets_what_its_clients_answered_and_a_node_outside_of_it_does_not(tmp_path):
    async def act(here):
        node, run = await here.ready("0")
        other = await here.node(SigningKey.new(), "1")
        eve = await here.run("q")
        blob = await kept(here, run)
        run.say(task=task_of("0"))
        await node.hears("task")
        assert (await node.exchange.fetch(blob, "r")).read_bytes() == SECRET
        update = node.blobs.put(b"an update" * 10_000, "own")
        node.say(result=done_of("0", update=m.Payload(blob=update)))
        await run.hears("result")
        assert (await run.exchange.fetch(update, "r")).read_bytes() == b"an update" * 10_000
        for sha in (blob, update):
            await refused(eve, sha, "q")
        outsider = m.RunSpec(run="q", clients=["1"])
        eve.say(run_spec=outsider)
        await other.hears("run_spec", where=lambda body: body.run == "q")
        for run_id in ("r", "q"):
            await refused(other, update, run_id)

    play(act, tmp_path)


def test_who_has_brought_what_is_known_after_a_restart(tmp_path):
    found = []

    async def act(here):
        found.append(await kept(here, await here.run()))

    play(act, tmp_path)
    blobs = Blobs(tmp_path / "server" / "blobs")
    assert blobs.path(found[0].sha256, run_giver("r"))
    assert not blobs.path(found[0].sha256, run_giver("q"))
