"""What `hookedvid check-data` says of one's own items.jsonl: of each bad line what is wrong, and what to do."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple, cast

from hookedvid.data.item import Item, Line, read_lines, subtitles_path, video_path
from hookedvid.errors import HookedVidError
from hookedvid.values.places import as_definitions, group_name
from hookedvid.values.progress import bar
from hookedvid.values.serial import is_number
from hookedvid.video.clip_files import ClipRequest
from hookedvid.video.decoders import Decoded, Decoders
from hookedvid.video.frames import Clip
from hookedvid.video.subtitles import expected_subtitles

FRAMES = 8  # sampled of each video, from the first to the last: what a study would meet on its way


class Report(NamedTuple):
    """What a file holds.

    Attributes:
        n_items, n_videos: Questions that can be read, and the videos they are about.
        problems: Of lines by their numbers; nothing else stands in a study's way.
        notes: What is no problem, but perhaps not meant.
    """

    n_items: int
    n_videos: int
    problems: Mapping[int, Sequence[str]]
    notes: Sequence[str]


def report(path: Path, decoders: Decoders) -> Report:
    """What is wrong with a JSONL file of items, and with the videos it names, each of which is decoded.

    Args:
        path: The file.
        decoders: Decode its videos.

    Raises:
        DataError: Where the file cannot be read at all.
    """
    lines = read_lines(path)
    problems = {line.number: [_named(line, p) for p in line.problems] for line in lines}
    asked: dict[ClipRequest, Future[Decoded]] = {}
    for line in lines:
        if line.item is not None and (request := _request(line.item, path)) not in asked:
            asked[request] = decoders.submit(request)
    with bar(len(asked), "decoding", "videos") as done:
        for future in asked.values():
            future.add_done_callback(lambda _: done(1))
        for line in lines:
            if line.item is not None:
                found = _looked(line.item, path, asked[_request(line.item, path)])
                problems[line.number] += [_named(line, p) for p in found]
    items = [line.item for line in lines if line.item is not None]
    wrong = {number: found for number, found in problems.items() if found}
    return Report(len(items), len({i.video for i in items}), wrong, list(_notes(items)))


def _named(line: Line, problem: str) -> str:
    return problem if line.item is None else f"{line.item.id!r}: {problem}"


def _request(item: Item, path: Path) -> ClipRequest:
    return ClipRequest(str(video_path(item, path)), FRAMES, "linspace", item.bound, item.folder_fps)


def _looked(item: Item, path: Path, decoding: Future[Decoded]) -> Iterator[str]:
    """What is wrong with an item that could be read."""
    if len(item.options) == 1:
        yield f"one option alone, {item.options[0]!r}: give the wrong ones too, or none for an open answer"
    clip = None
    try:
        clip = decoding.result().clip
    except HookedVidError as e:
        yield str(e)
    if (spoken := subtitles_path(item, path)) is not None:
        try:
            expected_subtitles(spoken, 1)
        except HookedVidError as e:
            yield str(e)
    try:
        groups = as_definitions(item.groups)
        for name, _ in groups:
            group_name(name)
    except HookedVidError as e:
        yield str(e)
        return
    if clip is not None:
        yield from _out_of_sight(item, clip, dict(groups))


def _out_of_sight(item: Item, clip: Clip, groups: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What an item says of its video that lies beyond it."""
    height, width = clip.frames.shape[1:3]
    end = clip.duration
    if end is not None and item.span is not None and item.span[0] >= end:
        yield f"span {list(item.span)} begins behind the video's end at {end:.2f} s: are these seconds of this file?"
    for name, how in groups.items():
        box, seconds = _numbers(how.get("box"), 4), _numbers(how.get("seconds"), 2)
        if box and not (box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0):
            yield (
                f"group {name!r}: box {box} lies outside the frames of {width} x {height} pixels: count pixels of the "
                "video as it is decoded, [x0, y0, x1, y1]"
            )
        if end is not None and seconds and not (seconds[0] < end and seconds[1] > 0):
            yield f"group {name!r}: seconds {seconds} lie beyond the video's {end:.2f} s"


def _numbers(value: Any, n: int) -> list[float | int]:
    """So many numbers; none where a value is something else, which is said elsewhere."""
    several = list(cast(Sequence[Any], value)) if isinstance(value, list | tuple) else []
    return several if len(several) == n and all(is_number(x) for x in several) else []


def _notes(items: Sequence[Item]) -> Iterator[str]:
    hidden = sum(bool(i.options) and i.answer is None for i in items)
    if hidden:
        yield f"{hidden} questions have options and no answer: they are asked and not scored"
    bare = sum(not i.options and not i.reference and i.span is None for i in items)
    if bare:
        yield f"{bare} questions have neither options nor a reference nor a span, so nothing scores their answers"
    if n := sum(len(set(i.options)) < len(i.options) for i in items):
        yield f"{n} questions have an option twice; each of these counts as right where one does"
