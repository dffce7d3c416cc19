"""An app that tries on the server, and a client that tries on a node, what neither may; each says what it came by."""

import os
import resource
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

import umbel

client = umbel.Client()


def done(deed):
    """1.0 where something could be done, 0.0 where the system has refused it."""
    try:
        deed()
    except (PermissionError, ProcessLookupError):
        return 0.0
    except OSError as error:
        return 0.0 if error.errno == 18 else 1.0  # EXDEV: from one place to another
    return 1.0


def opened(*path, mode="rb"):
    return done(lambda: open(Path(*path), mode).close())


def listed(*path):
    return done(lambda: os.listdir(Path(*path)))


def shown(*path):
    """1.0 where others can be let read a file."""
    path = Path(*path)
    done(lambda: path.chmod(0o644))
    return float(path.stat().st_mode & 0o077 > 0)


def signalled():
    """Whether any process but this one, whoever it may be, can be signalled; this says nothing to them."""
    own = {int(name) for name in os.listdir("/proc/self/task")}
    return max(done(lambda pid=pid: os.kill(pid, 0)) for pid in range(1, max(own) + 100) if pid not in own)


def processes():
    """What can be done to other processes, and seen of them."""
    return {
        "signalled": signalled(),
        "guard_killed": done(lambda: os.kill(os.getppid(), 0)),
        "guard_limited": done(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE)),
        "guard_environment": opened(f"/proc/{os.getppid()}/environ"),
        "lines_of_others": opened("/proc/1/cmdline"),
        "namespaces": done(
            lambda: run("import os; os.unshare(0x10000000)") if sys.version_info >= (3, 12) else clone()
        ),
    }


def clone():
    """Try to have a user namespace of one's own."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).unshare(0x10000000):
        raise OSError(ctypes.get_errno(), "unshare")


def run(code):
    if subprocess.run([sys.executable, "-c", code], check=False).returncode:
        raise PermissionError


def test(model):
    """Try everything on the server."""
    own = Path.cwd().parent
    server, link = own.parents[1], own / "run" / "checkpoints" / "stolen.safetensors"
    (Path.cwd() / "mine").write_text("this it may")
    Path(os.environ["TMPDIR"], "mine").write_text("and this")
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(server / "operator.json")
    return {
        **processes(),
        "operator": opened(server, "operator.json"),
        "authority": opened(server, "authority", "authority.key"),
        "authority_shown": shown(server, "authority", "authority.key"),
        "authorities": listed(server, "authority"),
        "database": max(opened(server, f"server.db{end}") for end in ("", "-wal", "-shm")),
        "database_written": opened(server, "server.db", mode="ab"),
        "database_cut": done(lambda: os.truncate(server / "server.db-wal", 0)),
        "blobs": listed(server, "blobs"),
        "runs": listed(server, "runs"),
        "other": opened(server, "runs", "other", "submission.json"),
        "planted": opened(server, "planted", mode="wb"),
        "removed": done(lambda: os.rename(server / "server.db", own / "home" / "server.db")),
        "linked": done(lambda: os.link(server / "operator.json", own / "home" / "operator.json")),
        "log": opened(own, "run.log", mode="ab"),
        "archive": opened(own, "client.archive", mode="ab"),
        "given": opened(own, "given", "planted", mode="wb"),
        "tmp": opened("/tmp", "planted-by-a-run", mode="wb"),
        "shadow": opened("/etc/shadow"),
    }


app = umbel.App(client, model={"w": np.zeros(4)}, strategy=umbel.FedAvg(cohort=umbel.Everyone()), rounds=3)
app.test(test)
quiet = umbel.App(client, model={"w": np.zeros(4)}, strategy=umbel.FedAvg(cohort=umbel.Everyone()), rounds=3)


@client.data
def data(source):
    return source


def taken():
    """Take a lot of memory."""
    try:
        bytearray(2 << 30)
    except MemoryError:
        raise PermissionError from None


def on_a_node(data):
    """Try everything on a node, and read what its owner gives."""
    assert Path(data["path"]).read_text() == "the data"
    archive = Path(__file__).parent
    run, node = archive.parent, archive.parents[2]
    Path(os.environ["TMPDIR"], "mine").write_text("this it may")
    kinds = {"inet": socket.AF_INET, "inet6": socket.AF_INET6, "unix": socket.AF_UNIX}
    sockets = {name: done(lambda kind=kind: socket.socket(kind).close()) for name, kind in kinds.items()}
    return {
        **processes(),
        **sockets,
        "key": opened(node, "node.key"),
        "key_shown": shown(node, "node.key"),
        "approved": opened(node, "approved", mode="ab"),
        "approved_made": done(lambda: os.mkdir(node / "approved.new")),
        "spool": max(opened(node, f"node.db{end}") for end in ("", "-wal", "-shm")),
        "spool_written": opened(node, "node.db", mode="ab"),
        "lines": opened(node, "server.json"),
        "logs": listed(node, "logs"),
        "blobs": listed(node, "blobs"),
        "runs": listed(node, "runs"),
        "archive": opened(archive, "planted", mode="wb"),
        "key_moved": done(lambda: os.link(node / "node.key", run / "results" / "key")),
        "server": opened(node.parent, "server", "operator.json"),
        "own_key": opened(node.parent, "home", "author.key"),
        "tmp": opened("/tmp", "planted-by-a-client", mode="wb"),
        "shadow": opened("/etc/shadow"),
        "memory": done(taken),
        "processors": float(len(os.sched_getaffinity(0)) > 1),
    }


@client.query("try")
def try_all(model, data, ctx):
    found = on_a_node(data)
    return umbel.Update({name: np.asarray(value) for name, value in found.items()})


class Tries(umbel.Strategy):
    """Has a client try everything, and says in its model what it came by."""

    def start(self, model):
        return umbel.State(model)

    def round(self, state, r):
        answer = yield umbel.Ask(kind="query:try", clients="all", expects=umbel.Free(), fold=umbel.total())
        return umbel.State(umbel.Arrays(dict(answer.value)))


tries = umbel.App(client, model={"w": np.zeros(1)}, strategy=Tries(), rounds=1, evaluate_every=0)


@client.train
def train(model, data, ctx):
    noise = ctx.rng.normal(size=4)
    return umbel.Update({n: a + noise for n, a in model.items()}, metrics={"n": 1.0})
