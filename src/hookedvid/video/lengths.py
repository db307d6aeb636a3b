"""How many bytes a container says it has: what tells a header that promises too much from a file that was cut."""

import os
from io import BufferedReader


def lacks_bytes(file: BufferedReader) -> bool | None:
    """Whether a file ends before its own end; None where it does not say how long it is (RIFF and Matroska do)."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(4)
    length = _riff(file, size) if start == b"RIFF" else _matroska(file) if start == b"\x1a\x45\xdf\xa3" else None
    return None if length is None else size < length


def _riff(file: BufferedReader, size: int) -> int:
    """The end of the last RIFF chunk: AVI files beyond 1 GB are several, one behind the other."""
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(8)
        if head[:4] != b"RIFF":
            break
        n_bytes = int.from_bytes(head[4:], "little")
        end += 8 + n_bytes + n_bytes % 2
    return end


def _matroska(file: BufferedReader) -> int | None:
    """The end of the segment that follows the header; None for a live recording, whose size is unknown (RFC 8794)."""
    file.seek(4)
    header = _vint(file)
    if header is None:
        return None
    file.seek(header, os.SEEK_CUR)
    n_bytes = _vint(file) if file.read(4) == b"\x18\x53\x80\x67" else None
    return None if n_bytes is None else file.tell() + n_bytes


def _vint(file: BufferedReader) -> int | None:
    """A number of 1 to 8 bytes, whose leading zeros tell how many follow; None for what is none, or means unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(more), "big") - (1 << 7 * (more + 1))
    return None if value == (1 << 7 * (more + 1)) - 1 else value
