"""Which rows of tower and projector the positions of a video are made of.

Rows of a video are counted through its units (frames, or pairs that one patch takes in), one after the other in raster
order, a unit's class token first. There are three grids: the tower's rows, the projector's patches, its tokens.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from hookedvid.errors import InterventionError
from hookedvid.model.flops import patch_grid
from hookedvid.nn.model import Model
from hookedvid.values.config import ProjectorConfig
from hookedvid.values.layout import TokenLayout


class VideoRows(NamedTuple):
    """The rows of one video at one hook point.

    Attributes:
        n: How many there are.
        chosen: Those that selected positions are made of, ascending.
    """

    n: int
    chosen: Int[Tensor, " row"]


def n_rows(model: Model, name: str, layout: TokenLayout) -> int:
    """How many rows a layout's video has at a hook point."""
    return len(layout.steps) * _per_step(model, name, layout)


def video_rows(
    model: Model, name: str, layout: TokenLayout, positions: Int[Tensor, " chosen"], label: str
) -> VideoRows:
    """The rows at a hook point of tower or projector that stand for positions of a layout.

    Raises:
        InterventionError: For positions that stand for none.
    """
    assert model.cfg.projector is not None and model.cfg.vision is not None
    tokens = _tokens(model, layout, positions, label)
    n = n_rows(model, name, layout)
    if _grid_of(model, name) == "tokens":
        return VideoRows(n, tokens)
    steps, (height, width) = len(layout.steps), patch_grid(model.cfg, layout)
    patches = _patches(model.cfg.projector, (height, width), tokens, label)
    if _grid_of(model, name) == "patches":
        return VideoRows(n, patches)
    numbers = torch.arange(steps * (height * width + model.cfg.vision.cls_token)).view(steps, -1, 1)
    rows = model.vision.patches(numbers, [(steps, height, width)]).flatten()[patches]
    if model.cfg.vision.cls_token and not model.cfg.vision.cls_kept:
        whole = _whole_steps(model, layout, tokens)
        rows = torch.cat([rows, numbers[whole, 0, 0]])
    if name == "vision.hook_patch_embed":  # where class tokens do not stand yet
        step, place = rows // numbers.shape[1], rows % numbers.shape[1] - int(model.cfg.vision.cls_token)
        rows = (step * height * width + place)[place >= 0]
    return VideoRows(n, _once(rows))


def _grid_of(model: Model, name: str) -> str:
    """`tower`, `patches` or `tokens`."""
    cfg = model.cfg.projector
    assert cfg is not None
    part, _, point = name.rpartition("projector.")[2].rpartition("hook_")
    if name.startswith("vision."):
        return "tower"
    joined = cfg.shuffle > 1 or cfg.merge is not None or (cfg.pool != "none" and cfg.pool_before)
    if point == "in" or part.endswith("ln_patch."):
        return "patches"
    return "tokens" if point == "out" or joined else "patches"


def _per_step(model: Model, name: str, layout: TokenLayout) -> int:
    vision, grid = model.cfg.vision, _grid_of(model, name)
    assert vision is not None
    height, width = patch_grid(model.cfg, layout)
    if grid == "tokens":
        return _tokens_per_step(model, layout)
    if name == "vision.hook_patch_embed":
        return height * width
    return height * width + (vision.cls_token if grid == "tower" else vision.cls_kept)


def _tokens_per_step(model: Model, layout: TokenLayout) -> int:
    projector, vision, grid = model.cfg.projector, model.cfg.vision, layout.grid
    assert projector is not None and vision is not None and grid is not None
    return projector.merge.tokens_per_frame if projector.merge else grid.rows * grid.columns + vision.cls_kept


def _numbers(model: Model, layout: TokenLayout) -> Int[Tensor, " pos"]:
    """The projector's token at every position, -1 where there is none; dropped cells are counted."""
    grid, found = layout.grid, torch.full((layout.n_tokens,), -1, dtype=torch.long)
    assert grid is not None
    stays = torch.ones(len(layout.steps) * _tokens_per_step(model, layout), dtype=torch.bool)
    stays[list(grid.dropped)] = False
    made = torch.zeros(layout.n_tokens, dtype=torch.bool)
    for s in layout.segments:
        made[s.start : s.stop] = s.role in ("video", "cls")
    found[made] = stays.nonzero()[:, 0]
    return found


def _tokens(model: Model, layout: TokenLayout, positions: Tensor, label: str) -> Int[Tensor, " token"]:
    chosen = torch.zeros(layout.n_tokens, dtype=torch.bool)
    chosen[positions] = True
    found = [s for s in layout.segments if bool(chosen[s.start : s.stop].any())]
    if wrong := sorted({s.role for s in found} - {"video", "cls", "newline"}):
        raise InterventionError(
            f"{label}: {', '.join(wrong)} is text, which tower and projector have not read; select positions of the "
            "video (at='video', 'video[3]', 'patches')"
        )
    tokens = _numbers(model, layout)[positions] if found else positions
    if not bool((tokens >= 0).any()):
        raise InterventionError(f"{label}: newlines stand for no rows of tower or projector; select 'patches'")
    return tokens[tokens >= 0]


def _whole_steps(model: Model, layout: TokenLayout, tokens: Tensor) -> Int[Tensor, " step"]:
    """Steps of which every position is selected."""
    n, steps = _tokens_per_step(model, layout), len(layout.steps)
    numbers = _numbers(model, layout)
    there, here = (torch.bincount(x // n, minlength=steps) for x in (numbers[numbers >= 0], tokens))
    return (there == here).nonzero()[:, 0]


def _patches(cfg: ProjectorConfig, grid: tuple[int, int], tokens: Tensor, label: str) -> Int[Tensor, " patch"]:
    """The projector's patches that tokens are made of, ascending."""
    if cfg.merge is not None:
        counts = torch.bincount(tokens // cfg.merge.tokens_per_clip)
        clips = counts.nonzero()[:, 0]
        if bool((counts[clips] < cfg.merge.tokens_per_clip).any()):
            raise InterventionError(
                f"{label}: tokens of a clip of {cfg.merge.frames_per_clip} frames are merged wherever they are alike, "
                f"so that no patch is one token's; select whole clips ('video[0:{cfg.merge.frames_per_clip}]'), or "
                "write behind the merging ('projector.mlp_in')"
            )
        n = cfg.merge.frames_per_clip * grid[0] * grid[1]
        return (clips[:, None] * n + torch.arange(n)).flatten()
    if cfg.shuffle == 1 and cfg.pool == "none":
        return tokens
    rows, columns = cfg.cells(*grid)
    step, cell = tokens // (rows * columns), tokens % (rows * columns)
    down, across = _taps(cfg, grid[0], cell // columns), _taps(cfg, grid[1], cell % columns)
    patches = (step * grid[0] * grid[1])[:, None, None] + down[:, :, None] * grid[1] + across[:, None]
    return _once(patches)


def _once(numbers: Tensor) -> Int[Tensor, " number"]:
    """Numbers without repetition, ascending."""
    return torch.bincount(numbers.flatten()).nonzero()[:, 0]


def _taps(cfg: ProjectorConfig, n: int, at: Int[Tensor, " token"]) -> Int[Tensor, "token tap"]:
    """Of `n` rows or columns of patches those that go into a row or column of tokens."""
    if cfg.pool != "bilinear":
        side = cfg.shuffle if cfg.pool == "none" else cfg.pool_stride
        return at[:, None] * side + torch.arange(side)
    source = ((at.double() + 0.5) * n / -(-n // cfg.pool_stride) - 0.5).clamp(min=0)  # as interpolate takes them
    return torch.stack([source.floor(), source.ceil()], 1).long().clamp(max=n - 1)
