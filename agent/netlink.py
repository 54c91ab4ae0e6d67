"""Network interfaces as the Linux kernel lists them for getifaddrs(3): each one's hardware address, then its IP addresses."""

from __future__ import annotations

import _socket  # what socket is made of, without its 3 ms of import
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing costs 3 ms
    from typing import Iterator

# linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
NLM_F_REQUEST_DUMP = 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTM_NEWLINK, RTM_GETLINK, RTM_NEWADDR, RTM_GETADDR = 16, 18, 20, 22
IFLA_ADDRESS, IFLA_IFNAME = 1, 3
IFA_ADDRESS, IFA_LOCAL = 1, 2
HEADER = "=IHHII"  # length, type, flags, sequence, port
LINK, ADDRESS = "=BxHiII", "=BBBBI"  # struct ifinfomsg and ifaddrmsg
TIMEOUT_S = 5.0


def interfaces() -> dict[str, list[tuple[str, str]]]:
    """Name -> [("mac" | "ip", address)]. An interface that has neither is left out."""
    names: dict[int, str] = {}
    found: dict[str, list[tuple[str, str]]] = {}
    connection = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC)
    try:
        connection.settimeout(TIMEOUT_S)
        for body in dump(connection, RTM_GETLINK, RTM_NEWLINK):
            index = struct.unpack_from(LINK, body)[2]
            values = attributes(body, struct.calcsize(LINK))
            names[index] = values[IFLA_IFNAME].rstrip(b"\0").decode("utf-8", "replace")
            hardware = values.get(IFLA_ADDRESS, b"")
            found[names[index]] = [("mac", ":".join("%02x" % b for b in hardware))] if hardware else []
        for body in dump(connection, RTM_GETADDR, RTM_NEWADDR):
            family, _, _, _, index = struct.unpack_from(ADDRESS, body)
            values = attributes(body, struct.calcsize(ADDRESS))
            own = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)  # of a point-to-point link, IFA_ADDRESS is the other end
            if own and index in names and family in (_socket.AF_INET, _socket.AF_INET6):
                found[names[index]].append(("ip", _socket.inet_ntop(family, own)))
    finally:
        connection.close()
    return {name: rows for name, rows in found.items() if rows}


def dump(connection: _socket.socket, asked: int, wanted: int) -> Iterator[bytes]:
    size = struct.calcsize(HEADER)
    connection.send(struct.pack(HEADER, size + 4, asked, NLM_F_REQUEST_DUMP, asked, 0) + bytes(4))  # bytes: of any family
    while True:
        data = connection.recv(1 << 17)
        while len(data) >= size:
            length, kind, _, sequence, _ = struct.unpack_from(HEADER, data)
            body, data = data[size:length], data[max(size, length + 3 & ~3) :]
            if sequence != asked:
                continue
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                raise OSError(-struct.unpack_from("=i", body)[0], "the kernel lists no network interfaces")
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
