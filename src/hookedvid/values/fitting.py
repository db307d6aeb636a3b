"""Which pixels of the frames as they were decoded each row and column of tokens is made of.

Preprocessing treats height and width apart, whatever the family: it resizes (squash, or to multiples, in one step or
two), cuts the centre out, divides into patches, and the projector joins these (squares, pooling). So a token's pixels
are a box, its row's pixels by its column's.
"""

from fractions import Fraction

from hookedvid.values.config import ProjectorConfig, VideoLLMConfig
from hookedvid.values.frame_size import sizes_in_turn

Spans = tuple[tuple[float, float], ...]  # (from, to) in pixels


def pixel_spans(cfg: VideoLLMConfig, n_frames: int, height: int, width: int) -> tuple[Spans, Spans]:
    """Of each row of tokens the pixels [top, bottom) it is made of, of each column [left, right).

    A pixel of a resized frame stands for the part of the original that it covers: filters look a little further
    (bicubic ones 2 pixels, of the coarser of the two frames, on each side), and that is not counted. Pixels that no
    whole patch holds (SigLIP's last 6) or that are cut off (CLIP's sides) are in no row or column.

    Args:
        cfg: The model's.
        n_frames: Of the video, whose size may depend on it.
        height: Of the frames as they were decoded, in pixels.
        width: Of these, in pixels.

    Returns:
        Those of rows and those of columns of cells. The code published with LLaVA-OneVision-1.5 gives tokens the
        patches of neighbouring cells (`hookedvid.values.grid.Grid.shifted`).
    """
    vision, projector = cfg.vision, cfg.projector
    assert vision is not None and projector is not None
    resized = sizes_in_turn(vision, n_frames, height, width)[-1]
    spans: list[Spans] = []
    for original, side in zip((height, width), resized, strict=True):
        shown = vision.image_size if vision.resize == "crop" else side
        off = (side - shown) // 2
        patches = cell_patches(projector, shown // vision.patch_size)
        bounds = [(first * vision.patch_size + off, (last + 1) * vision.patch_size + off) for first, last in patches]
        spans.append(tuple((a * original / side, b * original / side) for a, b in bounds))
    return spans[0], spans[1]


def cell_patches(projector: ProjectorConfig, n_patches: int) -> list[tuple[int, int]]:
    """The first and last patch, along one side, that each row or column of tokens is made of.

    Bilinear pooling reads the two patches around a token's middle, those of weight above 0: between them, where it
    shrinks by more than 2, lie patches that no token reads.
    """
    n = projector.cells(n_patches, n_patches)[0]
    if projector.shuffle > 1 or projector.pool in ("average", "max"):
        k = projector.shuffle if projector.shuffle > 1 else projector.pool_stride
        return [(i * k, (i + 1) * k - 1) for i in range(n)]
    if projector.pool == "none":
        return [(i, i) for i in range(n)]
    middles = [max(Fraction(0), Fraction((2 * i + 1) * n_patches, 2 * n) - Fraction(1, 2)) for i in range(n)]
    return [(int(m), min(int(m) + (m.denominator > 1), n_patches - 1)) for m in middles]
