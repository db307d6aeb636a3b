"""How interventions call hook points: which part of the model a name is of, and where its positions lie.

`resid_post`, `z`, `mlp.hook_post`: of the decoder's blocks. `embed`: the merged stream before block 0. `vision.…`: of
the tower, in its blocks or outside them. `projector.…`: of the projector.
"""

from typing import Literal

Part = Literal["blocks", "embed", "tower", "projector"]
# Hook points whose axis of query positions is the third, after batch and head.
BY_QUERY = ("hook_mask", "hook_attn_scores", "hook_pattern")
OUTSIDE = ("vision.patch_embed", "vision.embed", "vision.out", "vision.ln_pre", "vision.ln_final")


def part_of(hook: str) -> Part:
    """The part of the model that a hook point is in."""
    if hook in ("embed", "hook_embed"):
        return "embed"
    return {"vision": "tower", "projector": "projector"}.get(hook.split(".")[0], "blocks")  # pyright: ignore


def in_blocks(hook: str) -> bool:
    """Whether each block has one, of decoder or tower, so that a layer belongs to its name."""
    outside = (f"{o}." for o in OUTSIDE)
    inside = part_of(hook) in ("blocks", "tower")
    return inside and not f"{hook.replace('.hook_', '.')}.".startswith(tuple(outside))


def is_map(hook: str) -> bool:
    """Whether it is an attention map, [batch, head, query, key]."""
    return f"hook_{hook.rsplit('.', 1)[-1].removeprefix('hook_')}" in BY_QUERY


def pos_axis(hook: str) -> int:
    """The axis of positions (of queries, for attention maps) in a hook point's tensor, the batch axis being 0."""
    return 2 if is_map(hook) else 1
