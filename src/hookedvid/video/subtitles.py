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
RATE = 25.0  # frames per second of a video whose subtitles are chosen before it is opened
_TIME = r"(\d{1,3}):(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_RANGE = re.compile(rf"^[ \t]*{_TIME}[ \t]*-->[ \t]*{_TIME}[^\n]*$", re.MULTILINE)
# What of a file's lines reaches a prompt, and in which order; it is part of a row's key.
RULE = "white font, set order"
# As the files of Video-MME mark what is said, and lmms-eval looks for it.
_MARK, _END = '<font color="white" size=".72c">', "</font>"


class Line(NamedTuple):
    """What is said from `start` to before `end`, in seconds."""

    start: float
    end: float
    text: str


def _cues(source: str | os.PathLike[str]) -> list[Line]:
    """Times and bodies, as they stand in a .srt file, which may be a member of a zip file.

    A byte order mark, Windows line ends, a full stop for the decimal comma and missing numbers are no matter. Raises
    DataError for what is no such file.
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
    cues = []
    for match, after in zip_longest(times, times[1:]):
        body = text[match.end() : after.start() if after else None]
        if after:  # its number stands before it
            before, _, number = body.rstrip().rpartition("\n")
            body = before if number.strip().isdecimal() else body
        cues.append(Line(_seconds(match.groups()[:4]), _seconds(match.groups()[4:]), body))
    return cues


def sampled_lines(lines: Iterable[Line], indices: Iterable[int], fps: float) -> list[str]:
    """Texts of the lines during which any of these frames (0-based, at `fps` a second) is shown, each once.

    Times are cut to whole frames, start included and end not, as lmms-eval does. One line twice is two lines. Their
    order is lmms-eval's, which is that of CPython's set of the lines' numbers, filled frame by frame: ascending for
    few lines, not for many.
    """
    lines, frames = list(lines), sorted(set(indices))
    first = [bisect.bisect_left(frames, int(line.start * fps)) for line in lines]
    ends = [int(line.end * fps) for line in lines]
    shown = [n for n, at in enumerate(first) if at < len(frames) and frames[at] < ends[n]]
    return [lines[n].text for n in list(set(sorted(shown, key=first.__getitem__)))]


def shown_subtitles(subtitles: str | os.PathLike[str], clip: Clip, n_frames: int) -> str:
    """What lmms-eval says is spoken during any of `n_frames` frames, from first to last, of the video of a clip.

    A line each, in the order of `sampled_lines`; lines without Video-MME's white font tag are left out, as there.
    Which frames the model is shown is another matter: the evaluators choose subtitles by frames of their own.
    """
    if clip.fps is None:
        raise DataError(f"{clip.source} states no frame rate to choose subtitles by")
    return _shown(_cues(subtitles), clip.n_total, clip.fps, n_frames)


def expected_subtitles(subtitles: str | os.PathLike[str], n_frames: int) -> str:
    """`shown_subtitles` of a video that nobody opened, as if it ended with the last of them."""
    cues = _cues(subtitles)
    return _shown(cues, max(1, int(RATE * max((cue.end for cue in cues), default=0.0))), RATE, n_frames)


def _shown(cues: Iterable[Line], n_total: int, fps: float, n_frames: int) -> str:
    chosen = sample_indices("linspace", n_total, n_frames)
    bodies = sampled_lines((cue for cue in cues if cue.text.strip()), chosen, fps)
    return "\n".join(line for body in bodies if (line := _marked(body)))


def _marked(body: str) -> str:
    """What stands between the tags; empty without them."""
    _, _, marked = body.partition(_MARK)
    marked, end, _ = marked.partition(_END)
    return " ".join(marked.split("\n")).strip() if end else ""


def _seconds(parts: Iterable[str]) -> float:
    hours, minutes, seconds, fraction = parts
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + int(fraction.ljust(3, "0")) / 1000
