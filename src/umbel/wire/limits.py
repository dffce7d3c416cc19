"""The limits of what peers may do: each number that a peer controls has one, all in this table, which docs/protocol.md
shows.
"""

from __future__ import annotations

from typing import NamedTuple


class Limit(NamedTuple):
    """A limit: what it `bounds`, in which `unit`, and what happens `beyond` it."""

    name: str
    value: int
    unit: str
    bounds: str
    beyond: str


LIMITS: list[Limit] = []
"""All limits, in the order of the table."""


def _limit(name: str, value: int, unit: str, bounds: str, beyond: str) -> int:
    LIMITS.append(Limit(name, value, unit, bounds, beyond))
    return value


_ENDS = "the connection ends: too large"
_REFUSED = "the request is refused: too large"

# Who connects

HANDSHAKES = _limit(
    "HANDSHAKES", 512, "handshakes", "those that are under way", "the oldest of the address with the most is given up"
)
HANDSHAKE_SECONDS = _limit("HANDSHAKE_SECONDS", 20, "seconds", "a handshake", "the connection ends: too slow")
CAPABILITIES = _limit("CAPABILITIES", 256, "names", "the kinds, transforms and dtypes of a `Hello`, each", _ENDS)
HELLO_BYTES = _limit(
    "HELLO_BYTES", 192 << 10, "bytes", "the clients' names in a `Hello`; a name counts 4 more",
    "a node does not start; a relay says them in a `Hosted`",
)  # fmt: skip
PENDING = _limit(
    "PENDING", 100, "nodes", "those that wait for approval",
    "the address with the most makes room, or the node is refused: busy",
)  # fmt: skip
OPERATOR_CONNECTIONS = _limit(
    "OPERATOR_CONNECTIONS", 50, "connections", "those by the token of one operator", "the connection ends: busy"
)

# Frames and messages

MESSAGE_BYTES = _limit(
    "MESSAGE_BYTES", (128 << 10) + 1, "bytes", "a message of gRPC: a piece of a frame", "gRPC ends the stream"
)
FRAME_BYTES = _limit("FRAME_BYTES", 4 << 20, "bytes", "a frame", _ENDS)
HANDSHAKE_FRAME_BYTES = _limit("HANDSHAKE_FRAME_BYTES", 256 << 10, "bytes", "a frame before the Welcome", _ENDS)
CHUNK_BYTES = _limit("CHUNK_BYTES", 1 << 20, "bytes", "the data of a chunk", _ENDS)
INLINE_BYTES = _limit("INLINE_BYTES", 16 << 10, "bytes", "a payload that is inline", _ENDS)
NAME_BYTES = _limit("NAME_BYTES", 256, "bytes", "a name: of a client, a task, a kind", _ENDS)
FRAME_MESSAGES = _limit("FRAME_MESSAGES", 4096, "messages", "a frame", _ENDS)
QUEUE_BYTES = _limit(
    "QUEUE_BYTES", 256 << 20, "bytes", "what waits for a peer that does not read", "the connection ends: too slow"
)
WINDOW_BYTES = _limit(
    "WINDOW_BYTES", 256 << 10, "bytes", "what lies in a server's memory unread of one stream, unless `--window` says "
    "otherwise", "the sender waits",
)  # fmt: skip
LEAST_WINDOW_BYTES = 64 << 10
"""No window is smaller."""
JSON_DEPTH = _limit("JSON_DEPTH", 32, "levels", "lists and objects one in another, in any JSON of a peer", _ENDS)

# How much each peer has its server do

PEER_MICROSECONDS = _limit(
    "PEER_MICROSECONDS", 300, "microseconds a second",
    "a server's work on what one node or operator says, but for answers and blobs that it was asked for",
    "it is read by turns with others like it",
)  # fmt: skip
TURNS_PERCENT = _limit(
    "TURNS_PERCENT", 10, "percent", "of a server's time: that of all who are read by turns", "they wait longer"
)
RUN_MILLISECONDS = _limit(
    "RUN_MILLISECONDS", 300, "milliseconds a second", "a server's work on what one run says",
    "it is read by turns with other runs like it",
)  # fmt: skip
RUNS_PERCENT = _limit(
    "RUNS_PERCENT", 80, "percent", "of a server's time: that of all runs that are read by turns", "they wait longer"
)
TURN_WAITING_BYTES = _limit(
    "TURN_WAITING_BYTES", 256 << 10, "bytes", "what waits to be taken by a node or operator that is read by turns",
    "it is not read before it takes some",
)  # fmt: skip
PUT_OUT_SECONDS = _limit(
    "PUT_OUT_SECONDS", 10, "seconds", "how soon who was put out for what it sent is let in again", "it waits so long"
)
ADMISSIONS = _limit(
    "ADMISSIONS", 20, "connections", "how often in a short time a node or operator is let in, or an address refused, "
    "at once", "it waits, with others like it, for `PUT_OUT_SECONDS` at the most",
)  # fmt: skip
NODE_CLIENTS = _limit("NODE_CLIENTS", 100_000, "clients", "those that one node or relay hosts", _ENDS)
HOSTED_BYTES = _limit(
    "HOSTED_BYTES", 3 << 20, "bytes", "the clients' names that a relay says; a name counts 4 more", "it says no more"
)
MAILBOX = _limit("MAILBOX", 10_000, "tasks", "those that wait for one node", "the task fails")
WANTS = _limit("WANTS", 1024, "blobs", "those that a peer wants at once, or gives up", "the connection ends: busy")
SIDE_PENDING = _limit(
    "SIDE_PENDING", 64, "connections", "those at the port for side streams that have said no ticket",
    "one more is closed",
)  # fmt: skip
SIDE_STREAMS = _limit(
    "SIDE_STREAMS", 32, "side streams", "those of a server that go on, or are waited for 20 s",
    "blobs go over the connection",
)  # fmt: skip
PEER_SIDE_STREAMS = _limit("PEER_SIDE_STREAMS", 4, "side streams", "those of one peer", "blobs go over the connection")
SIDE_SECONDS = _limit("SIDE_SECONDS", 30, "seconds", "how long nothing moves on a side stream", "it is closed")
ANSWER_BYTES = _limit(
    "ANSWER_BYTES", 128 << 10, "bytes", "an answer without its blob, for each client in it", "its tasks fail"
)
PARTIAL_BYTES = _limit(
    "PARTIAL_BYTES", 2 << 20, "bytes", "the blob of a `Partial`, beside twice what one update of its ask has",
    "its tasks fail",
)  # fmt: skip
ALIVE_TASKS = _limit("ALIVE_TASKS", 10_000, "tasks", "an `Alive`; clients of a `RunAnswer`", _ENDS)
CANCEL_TASKS = _limit("CANCEL_TASKS", 100_000, "tasks", "a `Cancel` or a `Refold`; receipts of a `Partial`", _ENDS)
SPEC_BYTES = _limit(
    "SPEC_BYTES", 1 << 20, "bytes", "each list or text of a `RunSpec` or an `AskSpec`; a name counts 4 more", _ENDS
)

# What runs log

EVENT_BYTES = _limit("EVENT_BYTES", 1 << 20, "bytes", "an event of a run", _ENDS)
LOG_BYTES = _limit(
    "LOG_BYTES", 1 << 30, "bytes", "the log of a run on its server, unless `--log-quota` says otherwise",
    "what follows is told to those who watch, and not kept; the run and its log say so",
)  # fmt: skip
LOG_RESERVE_BYTES = _limit(
    "LOG_RESERVE_BYTES", 4 << 20, "bytes", "what a full log takes besides, of how the run ends", "it is not kept"
)

PRINTED_BYTES = _limit(
    "PRINTED_BYTES", 16 << 20, "bytes", "what a run prints at its server, and its clients at a node", "the oldest goes"
)

# What operators ask

REQUEST_BYTES = _limit("REQUEST_BYTES", 256 << 10, "bytes", "the body of a request", _REFUSED)
OPERATOR_REQUESTS = _limit(
    "OPERATOR_REQUESTS",
    4,
    "requests",
    "those of one connection that are being answered",
    "the request is refused: busy",
)
OPERATOR_RUNS = _limit(
    "OPERATOR_RUNS", 100, "runs", "those of one operator that a server drives at once", "none is submitted: busy"
)
ANSWER_WAITING_BYTES = _limit(
    "ANSWER_WAITING_BYTES", 64 << 10, "bytes", "responses that wait to be taken by one operator's connection",
    "the server reads no further until some are taken",
)  # fmt: skip
FOLLOWERS = _limit("FOLLOWERS", 1000, "followers", "those who follow runs at once", "the request is refused: busy")
FOLLOWER_BYTES = _limit(
    "FOLLOWER_BYTES", 1 << 20, "bytes", "events that wait for one follower",
    "they are read from the store later; what is only to be watched is left out",
)  # fmt: skip
RESPONSE_BYTES = _limit(
    "RESPONSE_BYTES", 64 << 10, "bytes", "the body of one response", "it goes on in the next one (`rest`)"
)

# Who asks for pages

HTTP_CONNECTIONS = _limit("HTTP_CONNECTIONS", 64, "connections", "those to the pages at once", "it is ended at once")
HTTP_SECONDS = _limit(
    "HTTP_SECONDS", 20, "seconds", "a connection to the pages, from its first byte to its last", "it is ended"
)
HTTP_BYTES = _limit("HTTP_BYTES", 16 << 10, "bytes", "the head of a request for a page", "it is refused")
NOTES = _limit("NOTES", 100, "a minute", "notes of one kind that a server or node prints", "they are counted")


def table() -> str:
    """The limits as a table in Markdown."""
    rows = ["| limit | value | what it bounds | beyond |", "|---|---|---|---|"]
    rows += [f"| `{each.name}` | {_worded(each)} | {each.bounds} | {each.beyond} |" for each in LIMITS]
    return "\n".join(rows)


def _worded(limit: Limit) -> str:
    for size, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if limit.unit.startswith("bytes") and limit.value % size == 0:
            return f"{limit.value // size} {limit.unit.replace('bytes', unit, 1)}"
    return f"{limit.value:,} {limit.unit}"
