"""An LDAP server that knows simple binds and nothing else (RFC 4511, 4.2), for one test of authentication."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_BIND, _SUCCESS, _INVALID_CREDENTIALS = 0x60, 0, 49


def _elements(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and content of each BER element in `content`."""
    place = 0
    while place < len(content):
        tag, length = content[place], content[place + 1]
        place += 2
        if length & 0x80:
            num_bytes = length & 0x7F
            length = int.from_bytes(content[place : place + num_bytes])
            place += num_bytes
        yield tag, content[place : place + length]
        place += length


@contextmanager
def ldap_server(passwords: Mapping[str, str]) -> Iterator[int]:
    """Answers binds of the distinguished names in `passwords` on a port of this machine, until the block ends."""

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while received := self.request.recv(4096):
                ((_, message),) = _elements(received)
                (_, number), (operation, content) = list(_elements(message))[:2]
                if operation != _BIND:
                    return
                (_, _version), (_, name), (_, password) = _elements(content)
                known = passwords.get(name.decode()) == password.decode()
                result = bytes([0x0A, 1, _SUCCESS if known else _INVALID_CREDENTIALS, 4, 0, 4, 0])
                answer = bytes([2, len(number), *number, 0x61, len(result), *result])
                self.request.sendall(bytes([0x30, len(answer), *answer]))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
