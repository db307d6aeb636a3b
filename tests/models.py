"""Random models whose weights are far from init, inputs for them, and layouts drawn by hypothesis."""

import re
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from hookedvid.checkpoints.byte_tokenizer import byte_tokenizer
from hookedvid.families.registry import FAMILIES, small_config, template
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.values.config import DecoderConfig, MergeConfig, ProjectorConfig, VideoLLMConfig, VisionConfig
from hookedvid.values.grid import VideoShape
from hookedvid.values.inputs import VIDEO, VideoInputs
from hookedvid.values.layout import Segment, TokenLayout, video_segments
from hookedvid.values.parts import QWEN2, SIGLIP_SO400M

VIDEO_MODELS = tuple(FAMILIES)
MODELS = (*VIDEO_MODELS, "text")
# The kinds of sequence: newlines in every frame, one trailing newline, frames between markers, pairs with DeepStack.
UNLIKE = ("llava-video", "llava-onevision", "internvideo2.5", "qwen3-vl")
# The same examples every time, on a machine of any speed.
LAW = settings(deadline=None, derandomize=True, max_examples=25)
# float64 sums taken in another order, through three layers with peaked attention and logits of some 30: all families
# and kinds stay within some 1e-14 of the largest logit; edits that double scores or swap rows magnify that.
ROUNDING = 1e-12


SEVEN_B = VideoLLMConfig(
    family="llava-onevision",
    vision=SIGLIP_SO400M,
    projector=ProjectorConfig(d_in=1152, d_out=3584, pool="bilinear", newline="once"),
    decoder=DecoderConfig(
        n_layers=28, d_model=3584, n_heads=28, n_kv_heads=4, d_head=128, d_mlp=18944, d_vocab=152064, **QWEN2
    ),
)


@cache
def random_model(
    name: str, dtype: torch.dtype = torch.float64, kernel: str = "sdpa", n_layers: int = 3
) -> HookedVideoLLM:
    """A small model of a family, or a decoder alone (`text`); nothing in it keeps its initial value.

    Shared between tests: leave no hook on it.
    """
    if name == "text":
        decoder = DecoderConfig(
            n_layers=n_layers, d_model=64, n_heads=8, n_kv_heads=4, d_head=8, d_mlp=96, d_vocab=300,
            qkv_bias=True, o_bias=True, tied=True,
        )  # fmt: skip
        cfg = VideoLLMConfig(family="text", decoder=decoder)
    else:
        cfg = small_config(name, n_layers=n_layers)
    model = HookedVideoLLM.from_config(cfg, kernel=kernel, tokenizer=terse_tokenizer(cfg))
    perturb(model)
    return model.to(dtype)


def terse_tokenizer(cfg: VideoLLMConfig) -> Any:
    """Bytes, and one token for each 30 letters that the template always says: prompts as long as a model's, not 900."""
    form, tokenizer = template(cfg.prompt), byte_tokenizer(cfg.d_vocab)
    texts = (
        form.before, form.video_before, form.frame_before, form.frame_after, form.frame_join, form.video_after,
        form.between, form.form.instruction, form.after,
    )  # fmt: skip
    said = [part[i : i + 30] for text in texts for part in re.split(r"{[^}]*}", text) for i in range(0, len(part), 30)]
    tokenizer.add_tokens(list(dict.fromkeys(x for x in said if len(x) > 1)))
    assert len(tokenizer) <= cfg.d_vocab
    return tokenizer


@torch.no_grad()
def perturb(model: HookedVideoLLM, seed: int = 0) -> None:
    """Weights of unit gain, norms and layer scales around 1, biases around 0; queries strong enough to choose."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim > 1 and name not in ("embed.weight", "vision.pos_embed"):
            # 2 and 2: scores with a spread of four, so that attention is peaked and cutting it is seen.
            gain = 2.0 if name.endswith(("attn.q.weight", "attn.k.weight")) else 1.0
            p.copy_(noise * gain * p[0].numel() ** -0.5)
        elif name.endswith("bias"):
            p.copy_(noise * 0.3)
        elif "ln" in name or "scale" in name:
            p.copy_(noise * 0.3 + 1.0)
        else:
            p.copy_(noise)


def random_inputs(
    model: HookedVideoLLM, n_frames: int = 4, n_text: int = 8, seed: int = 0, n_prefix: int = 3
) -> VideoInputs:
    """Prefix, video, text through `inputs_from_tensors`; frames between markers where the family has them so."""
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> list[int]:
        return torch.randint(0, model.cfg.d_vocab, (n,), generator=generator).tolist()

    cfg, vision = model.cfg, model.cfg.vision
    if vision is None:
        return model.inputs_from_tensors(torch.tensor(ids(n_prefix + n_text)))
    # A frame that keeps its shape is no square.
    size = (2 * vision.multiple, 3 * vision.multiple) if vision.resize == "fit" else (vision.image_size,) * 2
    pixels = torch.randn(n_frames, 3, *size, generator=generator)
    video = [VIDEO]
    if template(cfg.prompt).frame_before:
        segments = video_segments(cfg, VideoShape(n_frames, *size))
        steps = [[s for s in segments if s.frame == f] for f in range(0, n_frames, cfg.patch_frames)]
        video = [i for f, step in enumerate(steps) for i in [*ids(2 * (f > 0)), *[VIDEO] * sum(map(len, step))]]
    tokens = torch.tensor([*ids(n_prefix), *video, *ids(n_text)])
    seconds = 1.25 if cfg.lm.rope.per_second is not None else None
    return model.inputs_from_tensors(tokens, pixels, second_per_grid_ts=seconds)


def rich_inputs(
    model: HookedVideoLLM, n_frames: int = 4, seed: int = 0, n_text: int = 9, markers_are_language: bool = True
) -> VideoInputs:
    """`random_inputs` with the text's roles told apart: question, two options of two tokens, a template of two."""
    inputs = random_inputs(model, n_frames, n_text, seed)
    *before, text = inputs.layout.segments
    roles = [
        Segment("question", 0, len(text) - 6),
        Segment("options", 0, 2, index=0),
        Segment("options", 0, 2, index=1),
        Segment("template", 0, 2),
    ]
    return replace(inputs, layouts=(TokenLayout.of([*before, *roles], markers_are_language, inputs.layout.grid),))


def square_video(projector: ProjectorConfig, side: int, n_frames: int) -> list[Segment]:
    """Segments of a video whose frames are squares of so many patches."""
    tower = VisionConfig(n_layers=1, d_model=1, n_heads=1, d_mlp=1, image_size=side, patch_size=1)
    cfg = VideoLLMConfig(family="any", vision=tower, projector=projector)
    return video_segments(cfg, VideoShape(n_frames, side, side))


@st.composite
def layouts(draw: st.DrawFn, n_frames: int | None = None) -> TokenLayout:
    """Any layout a family could give, of at most some 40 tokens."""
    n_frames = n_frames or draw(st.integers(1, 4))
    newline = draw(st.sampled_from(["none", "once", "frame", "row"]))
    video = square_video(ProjectorConfig(d_in=1, d_out=1, newline=newline), draw(st.integers(1, 2)), n_frames)
    if newline != "once" and draw(st.booleans()):
        frames = [[s for s in video if s.frame == f] for f in range(n_frames)]
        video = [s for f, frame in enumerate(frames) for s in [Segment("marker", 0, 1, frame=f), *frame]]
    return TokenLayout.of(
        [
            Segment("system", 0, draw(st.integers(0, 2))),
            *video,
            Segment("question", 0, draw(st.integers(1, 3))),
            *(Segment("options", 0, draw(st.integers(1, 2)), index=i) for i in range(draw(st.integers(0, 3)))),
            Segment("template", 0, draw(st.integers(0, 2))),
            Segment("generated", 0, draw(st.integers(0, 2))),
        ],
        markers_are_language=draw(st.booleans()),
    )


def blended_layout(n_frames: int = 4) -> TokenLayout:
    """A video whose tokens mix four frames each, as after InternVideo2.5's merging."""
    merge = MergeConfig(frames_per_clip=4, tokens_per_clip=8)
    video = square_video(ProjectorConfig(d_in=1, d_out=1, merge=merge), 4, n_frames)
    return TokenLayout.of([Segment("system", 0, 2), *video, Segment("question", 0, 2)])


def each_position(layout: TokenLayout) -> list[Segment]:
    """The segment every position is in."""
    return [s for s in layout.segments for _ in range(len(s))]


def apart(a: Tensor, b: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest entry."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return ((a - b).abs().max() / b.abs().max()).item()


def laid_out(n_frames: int, side: int, newline: str, n_before: int = 14, n_after: int = 90) -> TokenLayout:
    video = square_video(ProjectorConfig(d_in=1, d_out=1, newline=newline), side, n_frames)
    return TokenLayout.of([Segment("system", 0, n_before), *video, Segment("question", 0, n_after)])
