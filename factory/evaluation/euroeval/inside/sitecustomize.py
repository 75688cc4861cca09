"""Read by every Python that EuroEval starts: nothing but this machine can be reached.

EuroEval asks whether there is a network by connecting to 1.1.1.1 without a time limit; behind a
firewall that drops packets that takes minutes, each time. Here such a connection, and the look-up
of a name, is refused at once. FACTORY_REACHES names one host besides: a server of the model.
"""

import errno
import ipaddress
import os
import socket

_ALLOWED = {"localhost", "", None, os.environ.get("FACTORY_REACHES", "localhost")}
_ASK, _CONNECT, _CONNECT_EX = socket.getaddrinfo, socket.socket.connect, socket.socket.connect_ex
_REFUSED = "evaluations run without a network"
_FOUND = set()  # addresses of the host that may be reached


def _is_address(host):
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _refused(sock, address):
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return False
    host = address[0]
    if host in _ALLOWED or host in _FOUND:
        return False
    return not (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _getaddrinfo(host, *args, **kwargs):
    name = host.decode() if isinstance(host, bytes) else host
    if name not in _ALLOWED and not _is_address(name):
        raise socket.gaierror(socket.EAI_NONAME, _REFUSED)
    results = _ASK(host, *args, **kwargs)
    if name in _ALLOWED:
        _FOUND.update(result[4][0] for result in results)
    return results


def _connect(sock, address):
    if _refused(sock, address):
        raise ConnectionRefusedError(_REFUSED)
    return _CONNECT(sock, address)


def _connect_ex(sock, address):
    if _refused(sock, address):
        return errno.ECONNREFUSED
    return _CONNECT_EX(sock, address)


socket.getaddrinfo = _getaddrinfo
socket.socket.connect, socket.socket.connect_ex = _connect, _connect_ex

if os.environ.get("FACTORY_OWN_BENCHMARKS"):
    # EuroEval 17 asks the Hub whether a benchmark that it does not know is a repo there
    import huggingface_hub

    huggingface_hub.HfApi.repo_exists = lambda *_, **__: False
