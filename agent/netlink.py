"""What the Linux kernel lists over netlink: network interfaces as for getifaddrs(3), and
listening sockets as for `ss`."""

from __future__ import annotations

import _socket  # what socket is made of, without its 3 ms of import
import os
import struct
from typing import Iterator

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/sock_diag.h, linux/inet_diag.h
NETLINK_ROUTE, NETLINK_SOCK_DIAG = 0, 4
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR = 16, 18, 20, 22
SOCK_DIAG_BY_FAMILY = 20
IFLA_ADDRESS, IFLA_IFNAME = 1, 3
IFA_ADDRESS, IFA_LOCAL = 1, 2
HEADER = "=IHHII"  # length, type, flags, sequence, port
LINK, ADDRESS = "=BxHiII", "=BBBBI"  # struct ifinfomsg and ifaddrmsg
DIAG_REQUEST, DIAG = "=BBBxI48x", "=4xH2x16s40xII"  # struct inet_diag_req_v2 and inet_diag_msg
TCP, TCP_LISTEN = 6, 10
TIMEOUT_S = 5.0


def interfaces() -> dict[str, list[tuple[str, str]]]:
    """Name -> [("mac" | "ip", address)]. An interface that has neither is left out."""
    names: dict[int, str] = {}
    found: dict[str, list[tuple[str, str]]] = {}
    for body in dump(NETLINK_ROUTE, RTM_GETLINK, RTM_NEWLINK, bytes(4)):
        index = struct.unpack_from(LINK, body)[2]
        values = attributes(body, struct.calcsize(LINK))
        names[index] = values[IFLA_IFNAME].rstrip(b"\0").decode("utf-8", "replace")
        hardware = values.get(IFLA_ADDRESS, b"")
        found[names[index]] = [("mac", ":".join("%02x" % b for b in hardware))] if hardware else []
    for body in dump(NETLINK_ROUTE, RTM_GETADDR, RTM_NEWADDR, bytes(4)):
        family, _, _, _, index = struct.unpack_from(ADDRESS, body)
        values = attributes(body, struct.calcsize(ADDRESS))
        own = values.get(IFA_LOCAL) or values.get(
            IFA_ADDRESS
        )  # of a point-to-point link, IFA_ADDRESS is the other end
        if own and index in names and family in (_socket.AF_INET, _socket.AF_INET6):
            found[names[index]].append(("ip", _socket.inet_ntop(family, own)))
    return {name: rows for name, rows in found.items() if rows}


def listeners() -> Iterator[tuple[int, str, int, int]]:
    """Port, address, inode and user of each TCP socket that listens. OSError where the kernel was built
    without inet_diag."""
    for family, length in ((_socket.AF_INET, 4), (_socket.AF_INET6, 16)):
        request = struct.pack(DIAG_REQUEST, family, TCP, 0, 1 << TCP_LISTEN)
        for body in dump(NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, SOCK_DIAG_BY_FAMILY, request):
            port, address, uid, inode = struct.unpack_from(DIAG, body)
            yield _socket.ntohs(port), _socket.inet_ntop(family, address[:length]), inode, uid


def dump(protocol: int, asked: int, wanted: int, request: bytes) -> list[bytes]:
    connection = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, protocol)
    try:
        connection.settimeout(TIMEOUT_S)
        connection.send(
            struct.pack(HEADER, struct.calcsize(HEADER) + len(request), asked, NLM_F_REQUEST_DUMP, asked, 0)
            + request
        )
        return list(answers(connection, wanted))
    finally:
        connection.close()


def answers(connection: _socket.socket, wanted: int) -> Iterator[bytes]:
    size = struct.calcsize(HEADER)
    while True:
        data = connection.recv(1 << 17)
        while len(data) >= size:
            length, kind = struct.unpack_from(HEADER, data)[:2]
            body, data = data[size:length], data[max(size, length + 3 & ~3) :]
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                status = struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                if status < 0:
                    raise OSError(-status, os.strerror(-status))
                return
            if kind == wanted:
                yield body


def attributes(body: bytes, start: int) -> dict[int, bytes]:
    found = {}
    while start + 4 <= len(body):
        length, kind = struct.unpack_from("=HH", body, start)
        if length < 4:
            break
        found[kind] = body[start + 4 : start + length]
        start += length + 3 & ~3
    return found
