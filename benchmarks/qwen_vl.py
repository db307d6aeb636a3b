"""What Qwen-VL's towers and decoders cost here and in transformers, nothing listening, and what sweeps of them save."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from benchmarks.bound import work
from benchmarks.measuring import timed
from benchmarks.models import apart, joined, samples, study
from benchmarks.printing import over, spread, table
from benchmarks.sweep import in_turn
from hookedvid import HookedVideoLLM
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.layout import FrameBlendWarning

TITLE = "Qwen-VL against transformers"
PAD, START, END = 301, 302, 303
IDS = {"image_token_id": 300, "video_token_id": PAD, "vision_start_token_id": START, "vision_end_token_id": END}


class Size(NamedTuple):
    """Blocks of the tower (every second has no windows) and of the decoder, their widths, and frames in tokens.

    before, after: tokens of text around the video.
    """

    depth: int
    d_tower: int
    heads: int
    n_layers: int
    d_model: int
    d_mlp: int
    n_heads: int
    n_kv_heads: int
    frames: int
    rows: int
    columns: int
    before: int = 10
    after: int = 40


# The widths of the 3B and the 2B; 8 frames of 480 x 854 are 2,040 visual tokens of the first and 1,620 of the second.
SIZES = {
    "Qwen2_5_VL": Size(4, 1280, 16, 2, 2048, 11008, 16, 2, 8, 17, 30),
    "Qwen3VL": Size(4, 1024, 16, 2, 2048, 6144, 16, 8, 10, 15, 27),
}
TOY = Size(2, 32, 4, 2, 64, 96, 4, 2, 4, 3, 5)
# The decoder, the text and about the video of benchmarks.models.DEEP, behind a tower that costs next to nothing.
DEEP = Size(2, 32, 4, 28, 256, 768, 8, 2, 16, 8, 16, before=3, after=17)
TOY_SWEEP = TOY._replace(n_layers=4)


def reference(name: str, size: Size) -> Any:
    """Transformers' model on its fused kernel, with weights of unit gain."""
    tower: dict[str, Any] = {"depth": size.depth, "num_heads": size.heads, "hidden_size": size.d_tower}
    tower |= {"intermediate_size": size.d_tower * 8 // 3 + 6, "out_hidden_size": size.d_model}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e6}
    d_head = size.d_model // size.n_heads
    sections = [d_head // 2 - 2 * (d_head // 6), d_head // 6, d_head // 6]
    if name == "Qwen3VL":
        tower["deepstack_visual_indexes"] = [0, 1]
        rope |= {"mrope_interleaved": True}
    else:
        tower |= {"fullatt_block_indexes": list(range(1, size.depth, 2)), "tokens_per_second": 2}
    text: dict[str, Any] = {
        "vocab_size": 512, "bos_token_id": None, "eos_token_id": None,
        "hidden_size": size.d_model, "intermediate_size": size.d_mlp,
        "num_hidden_layers": size.n_layers, "num_attention_heads": size.n_heads,
        "num_key_value_heads": size.n_kv_heads, "rope_parameters": {**rope, "mrope_section": sections},
    }  # fmt: skip
    text |= {"head_dim": d_head} if name == "Qwen3VL" else {}
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=tower, tie_word_embeddings=False, **IDS
    )
    model = getattr(transformers, f"{name}ForConditionalGeneration")._from_config(config, attn_implementation="sdpa")
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        if p.ndim > 1:
            p.copy_(torch.randn(p.shape, generator=generator) * p[0].numel() ** -0.5)
    return model.eval().requires_grad_(False)


def asked(model: HookedVideoLLM, size: Size) -> tuple[VideoInputs, dict[str, torch.Tensor]]:
    """Our inputs, and what transformers' forward takes for the same."""
    assert model.cfg.vision is not None
    side = model.cfg.vision.multiple
    shape = (size.frames, size.rows * side, size.columns * side, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    processed = model.process(frames, fps=2.0)
    each, steps = size.rows * size.columns, size.frames // 2
    runs = [[START, *[PAD] * each, END]] * steps if model.cfg.n_deepstack else [[START, *[PAD] * each * steps, END]]
    ids = torch.tensor([[*range(10, 10 + size.before), *(i for run in runs for i in run), *range(20, 20 + size.after)]])
    pixels = {("pixel_values" if k == "pixel_values_videos" else k): v for k, v in processed.items()}
    return model.inputs_from_tensors(ids, **pixels), {"input_ids": ids, **processed}


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    rounds = rounds or (2 if quick else 5)
    found: list[str] = []
    for name, size in SIZES.items():
        found += _class(name, TOY if quick else size, rounds)
    deep = TOY_SWEEP if quick else DEEP
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrameBlendWarning)  # a step's tokens mix two frames
        return [*found, *_swept(deep, [_sweep(name, deep, min(rounds, 3)) for name in SIZES])]


def _class(name: str, size: Size, rounds: int) -> list[str]:
    theirs = reference(name, size)
    ours = HookedVideoLLM.from_transformers(theirs)
    inputs, given = asked(ours, size)
    (video,) = inputs.to_encode
    rows, grid = given["pixel_values_videos"], given["video_grid_thw"]
    known, position_ids = ours.encoded(inputs), inputs.position_ids[:, None]
    features, *added = ours.encode_video(inputs).split(size.d_model, -1)
    extra = {"visual_pos_masks": inputs.is_video, "deepstack_visual_embeds": added}
    more: dict[str, Any] = extra if added else {}
    decoder, head, ids = theirs.model.language_model, theirs.lm_head, given["input_ids"]

    def decode() -> torch.Tensor:
        embeds = decoder.embed_tokens(ids)
        embeds = embeds.masked_scatter((ids == PAD)[..., None].expand_as(embeds), features)
        mask = torch.ones_like(ids)
        out = decoder(inputs_embeds=embeds, position_ids=position_ids, attention_mask=mask, use_cache=False, **more)
        return head(out.last_hidden_state[:, -1])

    calls: dict[str, dict[str, Callable[[], Any]]] = {
        "tower and merger": {
            "theirs": lambda: theirs.model.visual(rows, grid_thw=grid).pooler_output,
            "ours": lambda: ours.encode_video(inputs)[:, : size.d_model],
            "ours, once more": lambda: ours.encode_video(inputs)[:, : size.d_model],
        },
        "decoder": {
            "theirs": decode,
            "ours": lambda: ours(known, logits_to_keep=1)[:, -1],
            "ours, once more": lambda: ours(known, logits_to_keep=1)[:, -1],
        },
    }
    printed: list[list[object]] = []
    for part, ways in calls.items():
        outs = {way: call() for way, call in ways.items()}  # and warm
        times: dict[str, list[float]] = {way: [] for way in ways}
        for r in range(rounds * (3 if part == "decoder" else 1)):  # a decoder's calls are short, and differ more
            order = list(ways)
            for way in order[r % 3 :] + order[: r % 3]:
                times[way].append(timed(ways[way])[0])
        printed.append([part, "transformers, sdpa", spread(times["theirs"]), "", ""])
        for way, of in (("ours", "theirs"), ("ours, once more", "ours")):
            ratio, far = spread(over(times[way], times[of]), 3), apart(outs[way], outs[of])
            printed.append([part, way, spread(times[way]), f"{ratio} of {of}", f"{far:.1e}"])
    n = int(inputs.is_video.sum())
    return [
        f"{name}, {size.depth} of the tower's blocks at width {size.d_tower} on {video.shape[0]} frames of "
        f"{video.shape[2]} x {video.shape[3]} ({n:,} visual tokens), {size.n_layers} of the decoder's at width "
        f"{size.d_model}; float32, n = {rounds} rounds of three calls, whose order moves on, of the decoder "
        f"{3 * rounds}. Both decoders are given the video's features, embed the text and put the features among it.",
        "",
        *table(["part", "run", "s", "ratio", "largest difference"], printed),
    ]


def _sweep(name: str, size: Size, rounds: int) -> list[object]:
    """A row of the sweep's table."""
    model = HookedVideoLLM.from_transformers(reference(name, size))
    x = model.encoded(asked(model, size)[0])
    kinds = study(size.n_layers)
    conditions, plan = joined(kinds), samples(kinds, 2)
    calls = [lambda c=c: model(x, interventions=c, logits_to_keep=1)[0, -1] for _, c, _ in plan]
    whole = calls[0]()  # the baseline; and warm
    sweeps: list[float] = []
    forwards: list[float] = []
    far, moved = 0.0, float("inf")
    for _ in range(rounds):
        seconds, (logits,), done = in_turn(model, [x], conditions, calls)
        of = dict(zip(conditions, logits, strict=True))
        sweeps.append(seconds)
        forwards.append(sum(spent * n for (spent, _), (*_, n) in zip(done, plan, strict=True)))
        far = max(far, *(apart(alone, of[c]) for (_, alone), (_, c, _) in zip(done, plan, strict=True)))
        moved = min(moved, *(apart(of[c], whole) for kind, c, _ in plan if kind != "baseline"))
    bound = work(model.cfg, x.layout, conditions).bound(1)
    return [
        f"{name}, {int(x.is_video.sum()):,} of {x.layout.n_tokens:,} tokens", spread(sweeps), spread(forwards),
        spread(over(forwards, sweeps)), f"{bound:.2f}", f"{far:.1e}", f"{moved:.1e}",
    ]  # fmt: skip


def _swept(size: Size, printed: list[list[object]]) -> list[str]:
    n = len(joined(study(size.n_layers)))
    head = ["visual tokens", "sweep, s", f"{n} forwards, s", "times as fast", "bound by operations"]
    return [
        f"The whole study on one video and question: decoders of {size.n_layers} layers, d_model {size.d_model}, "
        f"{size.n_heads}/{size.n_kv_heads} heads, d_mlp {size.d_mlp}; {n} conditions. As in the section on the sweep, "
        "our forwards run two conditions of each kind evenly between the sweep's blocks and are scaled by how many of "
        "the kind there are; the video is encoded beforehand. Differences are of logits: the largest of the sweep's to "
        "those forwards', and the least by which a condition moves the baseline's.",
        "",
        *table([*head, "largest difference", "least effect"], printed),
    ]
