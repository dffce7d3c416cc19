"""Whatever nodes answer, and a server passes on, costs their own tasks; the run goes on with the others."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.mutations import mutated
from tests.remote.test_session import Stage, blob_of, done, failed, partial_of, payload_of, update_of

from umbel.core.task import Failed, Finished, Ticked
from umbel.errors import PeerError
from umbel.wire import messages as m

ANSWERS = [
    m.Message(**done(0)), m.Message(**done(0, kept=True)), m.Message(**failed(0)), m.Message(**partial_of(0, 1)),
    m.Message(**done(1, update=blob_of(payload_of(update_of())))), m.Message(alive=m.Alive(run="r", tasks=["0.0"])),
    m.Message(members=m.Members(run="r", members=[m.Member(client="0", standing=m.STANDING_READY)])),
    m.Message(log_ack=m.LogAck(run="r", number=1)), m.Message(notice=m.Notice(text="full")),
]  # fmt: skip


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(mutated(st.sampled_from(ANSWERS)), min_size=1, max_size=4))
def test_a_run_goes_on_whatever_it_is_told(messages):
    stage = Stage(Path())
    stage.open(cohort=(0, 1, 2))
    stage.send(0, 1, 2)
    for message in messages:
        try:
            stage.session._take(message)
        except PeerError:
            return  # the server said it, and the run ends as it does where that cannot be reached
    stage.comes(done(2))
    for _ in range(20):
        event = stage.session.next_event()
        assert isinstance(event, Finished | Failed | Ticked)
        if isinstance(event, Finished) and event.tasks == ["0.2"]:
            return
        stage.session.reporting.warnings()  # as the conductor takes them
    raise AssertionError("the honest client's answer is lost")
