"""A way to a server of this machine that can be shut, so that connections are refused, and opened again."""

import socket
from threading import Thread


class Gate:
    """Passes connections to `port` on to `target` while it is open."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener: socket.socket | None = None
        self._joined: list[socket.socket] = []
        self.port = 0
        self.open()

    def open(self) -> None:
        """Take connections."""
        self._listener = socket.create_server(("127.0.0.1", self.port), reuse_port=True)
        self.port = self._listener.getsockname()[1]
        Thread(target=self._take, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse connections, and break off those there are."""
        assert self._listener is not None
        for each in (self._listener, *self._joined):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it had ended
            finally:
                each.close()
        self._joined = []

    def _take(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target))
            self._joined += [client, server]
            for pair in ((client, server), (server, client)):
                Thread(target=_pump, args=pair, daemon=True).start()


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return
