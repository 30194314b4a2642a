"""Listening sockets, made where the caller says so that a server may live in another namespace."""

from __future__ import annotations

import socket

BACKLOG = 128


class ServerAddressError(OSError):
    """An address that cannot be listened on; the message names host and port."""


def listening_socket(host: str, port: int) -> socket.socket:
    """A non-blocking TCP socket that listens on ``host:port``; port 0 takes any that is free.

    Raises:
        ServerAddressError: the port is in use, or the address is not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ServerAddressError(f"cannot listen on {host}:{port}: {reason or error}") from error
    listener.setblocking(False)
    return listener


def base_url(listener: socket.socket) -> str:
    """``http://HOST:PORT`` of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
