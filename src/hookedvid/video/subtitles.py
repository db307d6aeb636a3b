"""Subtitles in SubRip files (.srt), and those of them that the sampled frames fall into."""

import bisect
import os
import re
from collections.abc import Iterable
from itertools import zip_longest
from typing import NamedTuple

from hookedvid.errors import DataError
from hookedvid.video.frames import Clip
from hookedvid.video.samplers import sample_indices
from hookedvid.video.source import n_bytes, open_bytes, opened

LARGEST = 16 << 20  # bytes; the longest of Video-MME have some 200 kB
_TIME = r"(\d{1,3}):(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_RANGE = re.compile(rf"^[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}[^\n]*$", re.MULTILINE)
# As the files of Video-MME mark what is said, and lmms-eval looks for it.
_MARK, _END = '<font color="white" size=".72c">', "</font>"
_TAG = re.compile(r"</?[a-zA-Z][^<>]*>")


class Line(NamedTuple):
    """What is said from `start` to before `end`, in seconds."""

    start: float
    end: float
    text: str


def read_subtitles(source: str | os.PathLike[str]) -> list[Line]:
    """The lines of a .srt file, which may be a member of a zip file, in file order.

    Text between Video-MME's white font tags where there are any, else all of it without tags; a line break within
    counts as a blank, and lines without text are left out. A byte order mark, Windows line ends, a full stop for
    the decimal comma and missing numbers are no matter. Raises DataError for what is no such file.
    """
    try:
        with opened(source) as file:
            if isinstance(file, list):
                raise DataError(f"{source} is a folder and no subtitles")
            if n_bytes(file) > LARGEST:
                raise DataError(f"{source} is larger than {LARGEST >> 20} MB, and no subtitles; download it again")
            with open_bytes(file) as f:
                data = f.read(LARGEST)
    except (OSError, ValueError) as e:
        raise DataError(f"cannot read subtitles {str(source)!r}: {e}") from e
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as e:
        raise DataError(f"{source} is not UTF-8 text (byte {e.start}): are these subtitles?") from e
    times = list(_RANGE.finditer(text))
    if text.strip() and not times:
        raise DataError(f"{source} has no lines like '00:00:01,000 --> 00:00:02,000': are these subtitles?")
    lines = []
    for match, after in zip_longest(times, times[1:]):
        body = text[match.end() : after.start() if after else None]
        if after:  # its number stands before it
            before, _, number = body.rstrip().rpartition("\n")
            body = before if number.strip().isdecimal() else body
        if said := _said(body):
            lines.append(Line(_seconds(match.groups()[:4]), _seconds(match.groups()[4:]), said))
    return lines


def sampled_lines(lines: Iterable[Line], indices: Iterable[int], fps: float) -> list[str]:
    """Texts of the lines during which any of these frames (0-based, at `fps` a second) is shown, each once, in order.

    Times are cut to whole frames, start included and end not, as lmms-eval does. One line twice is two lines.
    """
    shown = sorted(set(indices))

    def is_shown(line: Line) -> bool:
        next_one = bisect.bisect_left(shown, int(line.start * fps))
        return next_one < len(shown) and shown[next_one] < int(line.end * fps)

    return [line.text for line in lines if is_shown(line)]


def shown_subtitles(subtitles: str | os.PathLike[str], clip: Clip, n_frames: int) -> str:
    """What is said during any of `n_frames` frames, from first to last, of the video of a clip, a line each.

    Which frames the model is shown is another matter: the evaluators choose subtitles by frames of their own.
    """
    if clip.fps is None:
        raise DataError(f"{clip.source} states no frame rate to choose subtitles by")
    chosen = sample_indices("linspace", clip.n_total, n_frames)
    return "\n".join(sampled_lines(read_subtitles(subtitles), chosen, clip.fps))


def _said(body: str) -> str:
    _, mark, marked = body.partition(_MARK)
    marked, end, _ = marked.partition(_END)
    return " ".join((marked if mark and end else _TAG.sub("", body)).split("\n")).strip()


def _seconds(parts: Iterable[str]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000
