"""Lines are cut and held up where something is on them, and say so."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

from umbel.testing.lines import ProxiedLines


def echoing(listener):
    while True:
        try:
            there, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=back, args=(there,), daemon=True).start()


def back(there):
    with there:
        try:
            while data := there.recv(1 << 16):
                there.sendall(data)
        except OSError:
            pass


def test_a_line():
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    threading.Thread(target=echoing, args=(listener,), daemon=True).start()
    with ProxiedLines() as lines, listener:
        host, _, near = lines.lay("a", f"127.0.0.1:{port}").rpartition(":")
        assert not lines.cut("a"), "nobody was connected"
        assert not lines.throttle("a", 0.02), "nobody has sent anything"
        with socket.create_connection((host, int(near))) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
            much = 64 << 20  # more than lies in sockets: some is on its way, or still to be sent, until it is read here
            sending = threading.Thread(target=connection.sendall, args=(bytes(much),))
            sending.start()
            assert lines.throttle("a", 0.02)
            while much:
                much -= len(connection.recv(1 << 20))
            sending.join()
            assert lines.cut("a")
            with suppress(ConnectionResetError):
                assert connection.recv(1) == b""
        listener.shutdown(socket.SHUT_RDWR)
