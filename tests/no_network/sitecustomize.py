"""On the PYTHONPATH of every test and of every process a test starts: only this machine can be reached."""

import socket

_connect, _connect_ex, _getaddrinfo = socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo
_HERE = {"localhost", "127.0.0.1", "::1", "0.0.0.0", None, ""}


def _refuse(host):
    if host not in _HERE and not str(host).startswith("127."):
        raise OSError(f"tests do not use the network (asked for {host})")


def _guard(call):
    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse(address[0])
        return call(self, address)

    return guarded


def _lookup(host, *arguments, **settings):
    _refuse(host.decode() if isinstance(host, bytes) else host)
    return _getaddrinfo(host, *arguments, **settings)


socket.socket.connect, socket.socket.connect_ex = _guard(_connect), _guard(_connect_ex)
socket.getaddrinfo = _lookup
