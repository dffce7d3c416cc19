"""What a process that runs somebody else's code may reach: it gives up the rest itself, before that code is loaded.

This file is also a program, which the standard library is enough for: ``python confinement.py ORDER MODULE ARGUMENTS``
leaves a guard behind, gives up what ORDER does not name, and becomes ``python -m MODULE``. On Linux there are four
means, each used where the kernel has it, and none of which needs to be root:

- Landlock: which files are read and written, and that no process outside is signalled or traced
- no new privileges, and no capabilities
- a filter of system calls (seccomp): no tracing, no namespaces, no kernel interfaces that are known for their holes,
  no other modes or attributes of files, no limits of other processes; and which kinds of sockets there are
- resource limits, and which processors

The **guard** is the process that was started, of which the other is a child. Whatever that starts, however it leaves
its group and its session behind, comes to the guard when its parent ends, and is killed by it when the other process
ends, when the guard is told to (`end`), and when the guard's own parent dies.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from glob import escape, glob
from pathlib import Path
from typing import Any

LINUX = sys.platform.startswith("linux")

SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store", "/opt/intel",
    "/opt/nvidia", "/opt/rocm", "/sys",
)  # fmt: skip
"""What programs consist of."""
ETC = (
    "alternatives", "ca-certificates", "crypto-policies", "fonts", "gai.conf", "group", "host.conf", "hosts",
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "locale.alias", "locale.conf", "localtime",
    "machine-id", "mime.types", "nsswitch.conf", "nvidia", "OpenCL", "os-release", "passwd", "pki/ca-trust",
    "pki/tls/certs", "pki/tls/cert.pem", "pki/tls/openssl.cnf", "protocols", "resolv.conf", "services", "ssl/cert.pem",
    "ssl/certs", "ssl/openssl.cnf", "timezone", "vulkan",
)  # fmt: skip
PROC = (
    "self", "cgroups", "cpuinfo", "devices", "driver", "filesystems", "loadavg", "meminfo", "modules", "stat", "sys",
    "uptime", "version", "vmstat",
)  # fmt: skip
"""Of processes it sees its own folder alone: other processes' command lines may hold what is not for everybody."""
DEVICES = (
    "null", "zero", "full", "random", "urandom", "nvidia*", "nvidia-caps/*", "kfd", "dri/*", "accel/*", "infiniband/*",
)  # fmt: skip
DELEGATES = (
    "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/docker.sock", "/run/podman/podman.sock",
    "/run/containerd/containerd.sock", "/run/crio/crio.sock", "/run/libvirt/libvirt-sock", "/run/snapd.socket",
    "/run/user/{uid}/bus", "/run/user/{uid}/systemd/private", "/run/user/{uid}/docker.sock",
    "/run/user/{uid}/podman/podman.sock", "/tmp/.X11-unix/X*", "/run/user/{uid}/wayland-*", "/tmp/tmux-{uid}/*",
    "/run/screen/*/*", "/tmp/ssh-*/agent.*", "/run/user/{uid}/keyring/*", "/run/user/{uid}/gnupg/*",
    "/run/user/{uid}/vscode-*.sock", "/tmp/vscode-*.sock", "/run/user/{uid}/emacs/*", "/tmp/emacs{uid}/*",
    "/var/lib/lxd/unix.socket", "/var/lib/incus/unix.socket", "/run/postgresql/.s.PGSQL.*", "/run/mysqld/mysqld.sock",
)  # fmt: skip
"""Sockets of programs that do what whoever connects may not, as patterns: where one is within reach there are no local
sockets.
"""
LISTENING = ("*", "agent/*", "run/*")
"""Where in what is hidden, such as `.ssh`, `.gnupg` and `.docker`, other such programs listen."""
OF_HOME = (
    ".aws", ".azure", ".bash_history", ".cache/huggingface/stored_tokens", ".cache/huggingface/token",
    ".cargo/credentials", ".cargo/credentials.toml", ".config/gcloud", ".config/gh", ".config/rclone", ".config/umbel",
    ".docker", ".git-credentials", ".gnupg", ".kube", ".local/share/keyrings", ".netrc", ".npmrc", ".password-store",
    ".pgpass", ".pypirc", ".rclone.conf", ".ssh", ".vault-token",
)  # fmt: skip
"""What of a home is a secret wherever it is, also in a folder that may be read."""

# Rights of Landlock, by the bits of its interface, and those that it knows from which version on.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 5
DEVICE_NODES = 1 << 6 | 1 << 11
TRUNCATE = 1 << 14
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
READ = EXECUTE | READ_FILE | READ_DIR
GIVEN = READ_FILE | READ_DIR | REMOVE_FILE
WRITE = ((1 << 15) - 1) & ~DEVICE_NODES
DEVICE = READ_FILE | WRITE_FILE | TRUNCATE
LEAST_ABI, TRUNCATES, SCOPES = 2, 3, 6
"""Before version 2 no file could be renamed into another folder, which a run does; that is as if there were none."""

LONGEST_ORDER = 100_000
"""One argument of a command line takes 128 KiB: an order with more, as for thousands of clients with paths, goes in a
file, which whoever gets it removes.
"""
END = signal.SIGUSR1 if hasattr(signal, "SIGUSR1") else signal.SIGTERM


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """What a process may reach beside its programs; paths are those of files, or of folders with all that is in them.

    - `own`: what it may read, and `work`: also write, whatever is hidden.
    - `given`: what it may read and remove, and not write to: files that somebody else has under another name.
    - `read`, `write`: what it may beside, but for what is in `hidden`.
    - `network`: whether it may have sockets.
    - `memory`: bytes of each of its processes; `cpus`: the processors that it may use. None for no limit.
    """

    own: Sequence[str] = ()
    work: Sequence[str] = ()
    given: Sequence[str] = ()
    read: Sequence[str] = ()
    write: Sequence[str] = ()
    hidden: Sequence[str] = ()
    network: bool = True
    memory: int | None = None
    cpus: Sequence[int] | None = None

    def command(self, module: str, *arguments: str) -> tuple[str, ...]:
        """What to start, in a session of its own, to have ``python -m module arguments`` confined."""
        order = json.dumps({"parent": os.getpid(), **asdict(self)})
        if len(order) > LONGEST_ORDER:
            import tempfile  # here, because this file is a program that starts for each task's process

            file, path = tempfile.mkstemp(prefix="umbel-order-")
            with open(file, "w") as aside:
                aside.write(order)
            order = path
        return (sys.executable, "-P", "-u", __file__, order, module, *arguments)


def secrets() -> list[str]:
    """What of this user's home is nobody else's, and what Umbel keeps there."""
    kept = [os.environ["UMBEL_HOME"]] if os.environ.get("UMBEL_HOME") else []
    if config := os.environ.get("XDG_CONFIG_HOME"):
        kept += [name.replace(".config", config, 1) for name in OF_HOME if name.startswith(".config/")]
    return [*kept, *(os.path.expanduser(f"~/{name}") for name in OF_HOME)]


def end(pid: int) -> None:
    """Kill a process that was started by such a command, with all that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        if LINUX:
            os.kill(pid, END)
            os.kill(pid, signal.SIGCONT)
        else:
            os.killpg(pid, signal.SIGKILL)


def below(pid: int) -> Iterator[int]:
    """The processes below one, children's children too; none where the system does not tell."""
    found = [pid]
    for each in found:  # they may be below each other to any depth
        children = _children(each)
        found += children
        yield from children


def lacking() -> list[tuple[str, bool]]:
    """What is not isolated on this system, in words, and whether that is critical."""
    if not LINUX:
        return [(f"no process is confined on {sys.platform}: it reads and writes what this user may", True)]
    abi, found = landlock_abi(), []
    if abi < LEAST_ABI:
        what = (
            "there is no Landlock in this kernel"
            if abi < 1
            else "Landlock in this kernel is too old (Linux 5.19 has it)"
        )
        found.append((f"files and signals are not confined: {what}", True))
    elif abi < SCOPES:
        found.append(("a process may signal others of this user (Linux 6.12 can prevent it)", False))
    if LEAST_ABI <= abi < TRUNCATES:
        found.append(("a process may cut files of this user short (Linux 6.2 can prevent it)", True))
    if not _has_seccomp():
        found.append(("system calls and sockets are not confined: there is no seccomp for this system", False))
    return found


def landlock_abi() -> int:
    """The version of Landlock in this kernel; 0 where there is none."""
    if not LINUX:
        return 0
    return max(0, int(ctypes.CDLL(None, use_errno=True).syscall(444, None, 0, 1)))


# In the process itself


def confine(how: Confinement) -> None:
    """Give up what is not named, for good. Raises OSError where the system has a means and it cannot be used."""
    import resource

    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the data would be in it
    if how.cpus is not None:
        os.sched_setaffinity(0, how.cpus)
    delegates = [path for each in DELEGATES for path in glob(each.format(uid=os.getuid()))]
    within = (path for each in how.hidden for name in LISTENING for path in glob(f"{escape(each)}/{name}"))
    delegates += [path for path in within if Path(path).is_socket()]
    local = not any(os.access(path, os.W_OK) for path in delegates)  # while folders can be listed
    _call(libc.prctl, 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if (abi := landlock_abi()) >= LEAST_ABI:
        _restrict(libc, rules(how), abi, how.network)
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; those that there are, and that it has
    _call(libc.capset, struct.pack("=Ii", 0x20080522, 0), bytes(24))
    if _has_seccomp():
        _filter(libc, how.network, local, limited=how.cpus is not None)
    if how.memory is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (how.memory, how.memory))


def rules(how: Confinement) -> Iterator[tuple[Path, int]]:
    """The paths that this process may reach, with what it may do there."""
    hidden = [Path(os.path.realpath(path)) for path in how.hidden]
    for path in _programs():
        apart = [
            each for each in hidden if each == path or not _is_within(path, each)
        ]  # it may be installed in what is hidden
        yield from ((found, READ) for found in _beside(path, apart))
    with_own = ((how.own, READ), (how.work, WRITE), (how.given, GIVEN))
    yield from ((Path(path), rights) for paths, rights in with_own for path in paths)
    for paths, rights in ((how.read, READ), (how.write, WRITE)):
        for named in paths:
            yield from ((found, rights) for found in _beside(Path(os.path.realpath(named)), hidden))
    devices = [path for pattern in DEVICES for path in Path("/dev").glob(pattern)]
    yield from ((path, DEVICE) for path in devices if path.is_char_device())
    yield Path("/dev/shm"), WRITE & ~READ_DIR  # nobody else's names are to be seen


def _programs() -> Iterator[Path]:
    """Where Python and the system have their programs and settings, as real paths."""
    editable = [getattr(sys.modules.get(getattr(f, "__module__", "")), "MAPPING", {}) for f in sys.meta_path]
    places: list[Any] = [*SYSTEM, *(f"/etc/{name}" for name in ETC), *(f"/proc/{name}" for name in PROC)]
    places += [sys.prefix, sys.base_prefix, sys.exec_prefix, Path(os.path.realpath(sys.executable)).parent]
    places += [*sys.path, *(path for mapping in editable for path in dict(mapping).values())]
    places += [
        part for name in ("LD_LIBRARY_PATH", "PYTHONPATH") for part in os.environ.get(name, "").split(":") if part
    ]
    places += [os.environ[name] for name in ("CONDA_PREFIX", "VIRTUAL_ENV", "PYTHONUSERBASE") if name in os.environ]
    resolver = Path(os.path.realpath("/etc/resolv.conf")).parent
    places += [resolver] if resolver.is_relative_to("/run") else []  # it is written anew when the network changes
    yield from dict.fromkeys(Path(os.path.realpath(place)) for place in places if os.path.isabs(place))


def _beside(path: Path, hidden: Sequence[Path]) -> Iterator[Path]:
    """A path; where something hidden is below it, all that is beside that; nothing where it is hidden itself."""
    if any(_is_within(path, each) for each in hidden):
        return
    if not any(_is_within(each, path) for each in hidden):
        yield path
        return
    with suppress(OSError), os.scandir(path) as found:
        for entry in found:
            if not entry.is_symlink():
                yield from _beside(Path(entry.path), hidden)


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a path is that of a folder or below it, both without links; pathlib takes ten times as long."""
    own, above = str(path), str(folder)
    return own == above or own.startswith(above if above == os.sep else above + os.sep)


def _restrict(libc: Any, paths: Iterable[tuple[Path, int]], abi: int, network: bool) -> None:
    known = (1 << (13, 14, 15)[min(abi, 3) - 1]) - 1
    handled = struct.pack("=Q", known)
    if abi >= 4:
        handled += struct.pack("=Q", 0 if network else 3)  # TCP: bind and connect
    if abi >= SCOPES:
        handled += struct.pack("=Q", 3)  # abstract sockets and signals go to those that are confined alike
    ruleset = _call(libc.syscall, 444, handled, len(handled), 0)
    try:
        for path, rights in paths:
            try:
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # what is not there cannot be reached
            try:
                rights &= known if stat.S_ISDIR(os.fstat(place).st_mode) else known & OF_FILES
                _call(libc.syscall, 445, ruleset, 1, struct.pack("=Qi", rights, place), 0)
            finally:
                os.close(place)
        _call(libc.syscall, 446, ruleset, 0)
    finally:
        os.close(ruleset)


def _call(function: Callable[..., int], *arguments: Any) -> int:
    found = function(*arguments)
    if found < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"a process cannot be confined: {os.strerror(code)}")
    return found


# System calls. By machine: its number for filters, then those of the calls.

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
REFUSED = (
    (101, 117), (310, 270), (311, 271), (438, 438), (312, 272),  # ptrace, process_vm_*, pidfd_getfd, kcmp
    (165, 40), (166, 39), (155, 41), (428, 428), (429, 429), (430, 430), (432, 432), (442, 442),  # mount and its kin
    (272, 97), (308, 268), (161, 51),  # unshare, setns, chroot
    (321, 280), (298, 241), (323, 282), (304, 265),  # bpf, perf_event_open, userfaultfd, open_by_handle_at
    (175, 105), (313, 273), (176, 106), (246, 104), (320, 294), (169, 142),  # modules, kexec, reboot
    (248, 217), (249, 218), (250, 219),  # keys
    (188, 5), (189, 6), (190, 7), (463, 463), (197, 14), (198, 15), (199, 16), (466, 466), (469, 469),  # attributes
    (251, 30),  # ioprio_set
)  # fmt: skip
IGNORED = ((90, 53), (91, 52), (268, 53), (452, 452))
"""chmod and its kin, which Landlock lets pass for whatever file is this user's, also one that may not be opened: all
keep their modes, and who changes those of files of its own goes on.
"""
ABSENT = ((435, 435), (425, 425), (426, 426), (427, 427))
"""clone3 and io_uring: what they are asked for is not to be seen by a filter; libraries do without."""
CLONE, SOCKET, AFFINITY = (56, 220), (41, 198), (203, 122)
OWN = (
    ((302, 261), 1), ((141, 140), 2), ((144, 119), 1), ((142, 118), 1), ((314, 274), 1),
)  # fmt: skip
"""prlimit, setpriority, sched_setscheduler, sched_setparam, sched_setattr: who has these first arguments all 0 changes
its own limits and turns, and not those of any process of this user.
"""
NEW_NAMESPACES = 0x7E020000
AF_UNIX = 1


def _filter(libc: Any, network: bool, local: bool, limited: bool) -> None:
    """Have the kernel refuse system calls from now on."""
    machine, index = MACHINES[os.uname().machine]
    refuse, absent, ignore, allow = 0x00050001, 0x00050000 | 38, 0x00050000, 0x7FFF0000  # EPERM, ENOSYS; nothing; done
    load, equal, any_bit, least, give = 0x20, 0x15, 0x45, 0x35, 0x06
    code: list[tuple[int, int, int, int]] = [(load, 0, 0, 4), (equal, 1, 0, machine), (give, 0, 0, 0x80000000)]
    code += [(load, 0, 0, 0)]
    if machine == MACHINES["x86_64"][0]:
        code += [(least, 0, 1, 0x40000000), (give, 0, 0, refuse)]  # a second set of the same calls
    affinity = (AFFINITY,) if limited else ()
    for calls, answer in ((REFUSED, refuse), (ABSENT, absent), (IGNORED, ignore), (affinity, refuse)):
        for numbers in calls:
            code += [(equal, 0, 1, numbers[index]), (give, 0, 0, answer)]
    code += [(equal, 0, 4, CLONE[index]), (load, 0, 0, 16), (any_bit, 0, 1, NEW_NAMESPACES), (give, 0, 0, refuse)]
    code += [(give, 0, 0, allow)]
    for numbers, count in OWN:
        code += [(equal, 0, 3 * count + 1, numbers[index])]
        for argument in range(count):
            code += [(load, 0, 0, 16 + 8 * argument), (equal, 1, 0, 0), (give, 0, 0, refuse)]
        code += [(give, 0, 0, allow)]
    if not network:
        code += [(equal, 0, 1, SOCKET[index]), (give, 0, 0, refuse)]
    elif not local:
        code += [(equal, 0, 3, SOCKET[index]), (load, 0, 0, 16), (equal, 0, 1, AF_UNIX), (give, 0, 0, refuse)]
    code += [(give, 0, 0, allow)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in code))
    _call(libc.prctl, 22, 2, struct.pack("@HP", len(code), ctypes.addressof(program)), 0, 0)  # PR_SET_SECCOMP


def _has_seccomp() -> bool:
    return LINUX and os.uname().machine in MACHINES and os.path.exists("/proc/sys/kernel/seccomp")


# The guard


def guard(parent: int) -> None:
    """Return in a child of this process; this process itself ends as that child does, with all that it has started."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    heard = {signal.SIGCHLD, signal.SIGTERM, END}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heard)
    prctl(1, END, 0, 0, 0)  # PR_SET_PDEATHSIG
    prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    if os.getppid() != parent:
        os._exit(1)  # it was gone before
    me, child = os.getpid(), os.fork()
    if child == 0:
        prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != me:
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.closerange(3, 1 << 20)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    status = _watched(child, heard)
    _end_children()
    _end_like(status)


def _watched(child: int, heard: set[signal.Signals]) -> int:
    """How a child has ended; it is told to end when this process is, and killed when that is all that is left."""
    while True:
        match signal.sigwait(heard):
            case signal.SIGTERM:
                os.kill(child, signal.SIGTERM)
            case signal.SIGCHLD:
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    if ended[0] == child:
                        return ended[1]
            case _:
                os.kill(child, signal.SIGKILL)


def _end_children() -> None:
    """Kill all that is left; children of what is killed come here, too."""
    with suppress(ChildProcessError):
        while True:
            for pid in _children(os.getpid()):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def _end_like(status: int) -> None:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status))


def _children(pid: int) -> list[int]:
    """The children of a process, those that have ended too."""
    try:
        return [
            int(each)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for each in (task / "children").read_text().split()
        ]
    except FileNotFoundError:  # a kernel without these files, or the process is gone
        return [child for child, parent in _parents() if parent == pid]
    except OSError:
        return []


def _parents() -> Iterator[tuple[int, int]]:
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            yield int(place.parent.name), int(place.read_text().rpartition(")")[2].split()[1])


def main() -> None:
    """Become the module that the command line names, confined as it says."""
    text = sys.argv[1]
    if not text.startswith("{"):
        text = (aside := Path(text)).read_text()
        aside.unlink()
    order = json.loads(text)
    del sys.argv[:2]
    if LINUX:
        guard(order.pop("parent"))
        confine(Confinement(**order))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
