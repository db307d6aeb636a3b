"""`hookedvid models`: the names `from_pretrained` knows, printed without loading torch."""

from rich import box
from rich.table import Table

from hookedvid.checkpoints.locate import home
from hookedvid.families.registry import FAMILIES, SHIPPED
from hookedvid.report.terminal import Terminal

WORDS = ("name", "vision tower", "same as")
NUMBERS = ("frames", "tokens", "GB", "Video-MME", "MVBench", "EgoSchema")
LAPTOP = 2.1  # GB of weights, at most, of what is said to run on a laptop without a GPU


def models() -> int:
    """Print the published checkpoints with what their authors report, and where converted ones are kept."""
    console = Terminal(134)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (*WORDS[:2], *NUMBERS, WORDS[2]):
        table.add_column(column, justify="left" if column in WORDS else "right", no_wrap=column in (*WORDS, "tokens"))
    for family in FAMILIES.values():
        for name, p in family.published.items():
            scores = ("–" if s is None else f"{s:g}" for s in p.scores)
            table.add_row(name, family.tower_name, str(p.frames), p.tokens, f"{p.size:g}", *scores, family.parity)
    console.print(table)
    small = (name for family in FAMILIES.values() for name, p in family.published.items() if p.size <= LAPTOP)
    console.print(f"On a laptop without a GPU, weights of {LAPTOP} GB at most: {', '.join(small)} (docs/laptop.md).")
    console.print(
        "tokens: of one frame, of 480x854 where frames keep their shape; of 2: two frames share them; + 1 ends the "
        "video; + text: markers around frames. Scores: percent as reported for the original code, Video-MME "
        "without subtitles, – where no figure is confirmed. same as: the code its family agrees with, stage by stage, "
        "on tiny weights.\n"
        f"Also: {', '.join(SHIPPED)}, which ships with the package; any hub repository (owner/name); a folder in the "
        f"original, the transformers or our layout. Converted once into {home()}.",
    )
    return 0
