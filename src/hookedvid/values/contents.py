"""What inputs hold, in a few lines and as a notebook shows it: the prompt's parts, and a strip of frames."""

from itertools import groupby
from string import ascii_uppercase as LETTERS
from typing import TYPE_CHECKING

from hookedvid.values.layout import Segment, TokenLayout
from hookedvid.values.markup import Markup, pictures, shown, table
from hookedvid.values.selectors import ROLES_OF
from hookedvid.values.texts import one_line

if TYPE_CHECKING:
    from hookedvid.values.inputs import VideoInputs

ITEMS, FRAMES = 4, 32  # shown of a batch, and of a video: some 2 KB a frame


def plain(inputs: "VideoInputs") -> str:
    """The inputs in a line an item."""
    return "\n".join([_title(inputs), *(f"  {_item(inputs, i)}" for i in _shown(inputs)), *_rest(inputs, "  ")])


def html(inputs: "VideoInputs") -> Markup:
    """The inputs with the parts of each prompt and its frames."""
    parts = [p for i in _shown(inputs) for p in (_item(inputs, i), _roles(inputs.layouts[i]), _strip(inputs, i))]
    return shown(_title(inputs), *parts, *_rest(inputs))


def _shown(inputs: "VideoInputs") -> range:
    return range(min(len(inputs.layouts), ITEMS))


def _title(inputs: "VideoInputs") -> str:
    return f"VideoInputs: {_several(inputs.batch_size, 'item')}"


def _rest(inputs: "VideoInputs", indent: str = "") -> list[str]:
    return [f"{indent}… and {len(inputs.layouts) - ITEMS} more"] * (len(inputs.layouts) > ITEMS)


def _several(n: int, what: str) -> str:
    return f"{n:,} {what}" + "s" * (n != 1)


def _item(inputs: "VideoInputs", item: int) -> str:
    layout, pixels = inputs.layouts[item], inputs.pixel_values[item]
    parts = [_several(layout.n_tokens, "token")]
    if pixels is not None:
        parts.append(
            f"{_several(layout.n_frames, 'frame')} of {pixels.shape[-1]} x {pixels.shape[-2]} pixels to the tower"
        )
    if layout.grid is not None and layout.grid.times:
        parts.append(f"{layout.grid.times[0]:g} s to {layout.grid.times[-1]:g} s")
    if inputs.features and inputs.features[item] is not None:
        parts.append("encoded")
    if layout.groups:
        parts.append("groups " + ", ".join(name for name, _ in layout.groups))
    options = inputs.options[item] if inputs.options else ()
    lettered = [f"{letter}. {one_line(o)}" for letter, o in zip(LETTERS, options, strict=False)]
    return ", ".join(parts) + ("; options " + " ".join(lettered) if lettered else "")


def _roles(layout: TokenLayout) -> Markup:
    """The prompt's parts in order; frames and the markers between them are one."""
    parts = [(name, sum(map(len, run))) for name, run in groupby(layout.segments, _part)]
    return table([""] + [name for name, _ in parts], [["tokens", *(f"{n:,}" for _, n in parts)]])


def _part(segment: Segment) -> str:
    if segment.role in (*ROLES_OF["video"], "marker"):
        return "video"
    return f"option[{segment.index}]" if segment.index is not None else segment.role


def _strip(inputs: "VideoInputs", item: int) -> Markup | str:
    layout = inputs.layouts[item]
    if not layout.n_frames:
        return "no video"
    footage = inputs.footage[item] if inputs.footage else None
    if footage is None:
        return "made of tensors, so there are no decoded frames to show"
    n = layout.n_frames
    numbers = range(n) if n <= FRAMES else [i * (n - 1) // (FRAMES - 1) for i in range(FRAMES)]
    images = footage.thumbnails(numbers)
    if not images:
        return "its frames are too large to be held; inputs.frames decodes them again"
    times = () if layout.grid is None else layout.grid.times
    return pictures(images, [[f"video[{i}]", *([f"{times[i]:g} s"] if times else [])] for i in numbers])
