"""A listener between clients and a server: it forwards all bytes, and keeps them in plain form.

With TLS it has the server's key and certificate, which nobody else on a network has.
"""

import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

__all__ = ["Listener"]

CHUNK = 1 << 16


class Listener:
    """Listens at a free port of loopback and forwards to `port`; `seen` has both directions of all connections.

    Args:
        port: of the server on loopback.
        keys: folder of the server's certificate and key, if it uses TLS.
    """

    def __init__(self, port: int, keys: Path | None = None) -> None:
        self.target, self.seen = port, bytearray()
        self._lock = threading.Lock()
        self._inward = self._outward = None
        if keys is not None:
            self._inward = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._inward.load_cert_chain(keys / "server.pem", keys / "server.key")
            self._outward = ssl.create_default_context(cafile=keys / "ca.pem")
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self.target))
            if self._inward is not None and self._outward is not None:
                client = self._inward.wrap_socket(client, server_side=True)
                server = self._outward.wrap_socket(server, server_hostname="127.0.0.1")
            up, down = bytearray(), bytearray()  # kept apart, so that nothing is cut in two
            threads = [
                threading.Thread(target=self._forward, args=pair, daemon=True)
                for pair in ((client, server, up), (server, client, down))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            with self._lock:
                self.seen += up + down

    @staticmethod
    def _forward(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK):
                kept += data
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)
