"""Replies as RESP2, and the texts of the errors."""

from __future__ import annotations

from typing import TypeAlias


class Status(bytes):
    """A simple string, as OK is."""


class ReplyError(Exception):
    """An error reply; its text begins with the error's code."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self.text = text


Reply: TypeAlias = "bytes | int | list[Reply] | None"

OK = Status(b"OK")

WRONG_TYPE = b"WRONGTYPE Operation against a key holding the wrong kind of value"
NOT_AN_INTEGER = b"ERR value is not an integer or out of range"
NOT_A_FLOAT = b"ERR value is not a valid float"
SYNTAX = b"ERR syntax error"
NO_SCRIPT = b"NOSCRIPT No matching script."
OOM = b"OOM command not allowed when used memory > 'maxmemory'."
READ_ONLY = b"READONLY You can't write against a read only replica."
LOADING = b"LOADING Valkey is loading the dataset in memory"
BUSY = b"BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE."
MASTERDOWN = b"MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'."
MISCONF = b"MISCONF Errors writing to the AOF file: No space left on device"
NOREPLICAS = b"NOREPLICAS Not enough good replicas to write."


def encode(reply: Reply) -> bytes:
    if isinstance(reply, Status):
        return b"+%b\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    return b"*%d\r\n%b" % (len(reply), b"".join(map(encode, reply)))
