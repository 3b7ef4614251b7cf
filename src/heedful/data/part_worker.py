"""What a worker process does: take documents from its standard input, write parts, say so on its standard output.

A message is its length (8 bytes, big-endian) and JSON. The first one names the tokenizer, each further one a part. The
process ends when its input does, so it never outlives the one that started it by more than a part.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from heedful.data.parts import write_part
from heedful.data.tokenizers import open_tokenizer

_LENGTH_BYTES = 8


def send(stream: IO[bytes], message: dict[str, Any]) -> None:
    """Write one message."""
    data = json.dumps(message, ensure_ascii=False).encode("utf-8")
    stream.write(len(data).to_bytes(_LENGTH_BYTES, "big"))
    stream.write(data)
    stream.flush()


def receive(stream: IO[bytes]) -> dict[str, Any] | None:
    """Read one message; None at the end of the stream, also in the middle of a message."""
    head = stream.read(_LENGTH_BYTES)
    if len(head) < _LENGTH_BYTES:
        return None
    length = int.from_bytes(head, "big")
    data = stream.read(length)
    return json.loads(data) if len(data) == length else None


def serve() -> None:
    """Work until the input ends."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    parent = os.getppid()
    setup = receive(requests)
    if setup is None:
        return
    tokenizer = open_tokenizer(setup["tokenizer"])
    while (request := receive(requests)) is not None:
        path = Path(request["path"])
        try:
            if os.getppid() != parent or not path.parent.is_dir():
                return  # nobody waits for the part, and its folder may be another's by now
            write_part(path, request["texts"], tokenizer, separator=setup["separator"])
            send(replies, {})
        except ValueError as error:
            send(replies, {"kind": "value", "message": str(error)})
        except OSError as error:
            reply = {"kind": "system", "number": error.errno, "message": error.strerror, "file": str(path)}
            send(replies, reply)
        except MemoryError:
            send(replies, {"kind": "value", "message": "a worker ran out of memory: use fewer workers."})
