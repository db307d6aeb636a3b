"""What reading attention costs beside a forward that nobody reads.

Two runs differ by more than a light reading costs, so the time inside the probes is also set against the rest of its
own run. Readings under VT-K are set against the forward under VT-K.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from benchmarks.measuring import cost, timed
from benchmarks.printing import mib, over, spread, table
from hookedvid.model.attention_maps import _Reader
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.values.config import DecoderConfig, VideoLLMConfig
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import VT_K
from hookedvid.values.layout import Segment, TokenLayout

TITLE = "Reading attention in all layers"
PREFIX, QUESTION, OPTION, TEMPLATE = 15, 66, 8, 2  # with four options 115 tokens beside the video
QWEN2 = {"d_vocab": 1000, "qkv_bias": True}
# Widths of Qwen2-0.5B and Qwen2-7B.
SMALL = DecoderConfig(n_layers=6, d_model=896, n_heads=14, n_kv_heads=2, d_head=64, d_mlp=4864, **QWEN2)
DEEP = replace(SMALL, n_layers=28)
LARGE = DecoderConfig(n_layers=2, d_model=3584, n_heads=28, n_kv_heads=4, d_head=128, d_mlp=18944, **QWEN2)
TINY = replace(SMALL, d_model=128, n_heads=4, d_head=32, d_mlp=704)
# 32 frames of so many tokens; 196 as LLaVA-OneVision has them, which makes 6,387 tokens.
SHAPES = {"shallow": (SMALL, 64, 3), "deep": (DEEP, 196, 2), "7B's width": (LARGE, 196, 2)}
Reading = dict[str, Any]
READINGS: tuple[Reading, ...] = (
    {"reduce": "segments", "queries": "all"},
    {"reduce": "segments", "queries": "all", "mean_queries": True},
    {"reduce": "segments", "queries": "text"},
    {"reduce": "frames", "queries": "video", "mean_queries": True},
    {"reduce": "none", "queries": "last"},
)
UNDER_VT_K: tuple[Reading, ...] = (READINGS[1], READINGS[3])
PATTERNS = "run_with_cache, all patterns"
COLUMNS = ("way", "CPU, s", "ratio", "inside", "peak, MiB", "more", "maps, MiB", "more beside them")


class Held(NamedTuple):
    """Bytes of tensors made in a call and alive at once, those of the maps it gave, logits of the last position."""

    peak: int
    maps: int
    logits: torch.Tensor


class Clock:
    """Processor seconds inside the probes while it is on."""

    spent = 0.0

    def __enter__(self) -> "Clock":
        self.plain = plain = _Reader.__call__

        def probe(*args: object) -> None:
            start = time.process_time()
            plain(*args)
            self.spent += time.process_time() - start

        _Reader.__call__ = probe
        return self

    def __exit__(self, *_: object) -> None:
        _Reader.__call__ = self.plain


def make(decoder: DecoderConfig, per_frame: int) -> tuple[HookedVideoLLM, VideoInputs]:
    """A random decoder and 32 frames with a question and four options, without a tower."""
    model = HookedVideoLLM.from_config(VideoLLMConfig(family="text", decoder=decoder))
    layout = TokenLayout.of(
        [
            Segment("system", 0, PREFIX),
            *(Segment("video", 0, per_frame, frame=f) for f in range(32)),
            Segment("question", 0, QUESTION),
            *(Segment("options", 0, OPTION, index=i) for i in range(4)),
            Segment("template", 0, TEMPLATE),
        ]
    )
    ids = torch.randint(0, decoder.d_vocab, (layout.n_tokens,), generator=torch.Generator().manual_seed(0))
    return model, replace(model.inputs_from_tensors(ids), layouts=(layout,))


def held(call: Callable[[], Any]) -> Held:
    """What one call holds."""
    _, peak, out = cost(call)
    if isinstance(out, torch.Tensor):
        return Held(peak, 0, out[0, -1])
    if isinstance(out, tuple):  # with a cache
        return Held(peak, sum(pattern.nbytes for pattern in out[1].values()), out[0][0, -1])
    return Held(peak, sum(m.nbytes for m in out.maps.values()), out.logits)


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    shapes = {"toy": (TINY, 8, 1)} if quick else SHAPES
    found = [line for name, (d, per, n) in shapes.items() for line in measure(name, d, per, rounds or n)]
    return [
        "Random decoders without a tower, weights as `from_config` makes them, float32, kernel sdpa; 32 frames. The "
        "ways take turns. Ratio: to the forward of the same round, under VT-K to that under VT-K. Inside: 1 + the "
        "time in the probes over the rest of the same run; a machine's speed moves by more than a light reading "
        "costs, so this is the figure to quote. Peaks are bytes of live tensors beside the weights, in a call of its "
        "own: the same on every run. What is returned counts, and stands apart as maps; `device=\"cpu\"` takes maps off"
        " a GPU layer by layer. Logits are bitwise those of the forward that nobody reads.", "", *found,
    ]  # fmt: skip


def measure(name: str, decoder: DecoderConfig, per_frame: int, rounds: int) -> list[str]:
    """One shape's table: each way a round in turn, then what each holds."""
    model, inputs = make(decoder, per_frame)
    groups = [_ways(model, inputs, READINGS, ()), _ways(model, inputs, UNDER_VT_K, VT_K)]
    if name in ("toy", "shallow"):  # all patterns at 6,387 tokens and 28 layers are 64 GB
        groups[0][PATTERNS] = lambda: model.run_with_cache(inputs, names_filter="pattern", logits_to_keep=1)
    calls = {way: call for group in groups for way, call in group.items()}
    next(iter(calls.values()))()  # to warm up
    seconds: dict[str, list[float]] = {way: [] for way in calls}
    inside: dict[str, list[float]] = {way: [] for way in calls}
    for _ in range(rounds):
        for way, call in calls.items():
            with Clock() as clock:
                spent = timed(call)[0]
            seconds[way].append(spent)
            inside[way].append(1 + clock.spent / (spent - clock.spent))
            print(name, way, f"{spent:.2f} s, {clock.spent:.3f} in probes", flush=True)
    rows: list[list[object]] = []
    for group in groups:
        plain, of = next(iter(group)), None
        for way, call in group.items():
            now = held(call)
            of = of or now
            assert torch.equal(now.logits, of.logits) or way == PATTERNS, way
            row: list[object] = [way, spread(seconds[way]), "", "", mib(now.peak), "", "", ""]
            if way != plain:
                row[2] = spread(over(seconds[way], seconds[plain]), 3)
                row[3] = spread(inside[way], 3) if way != PATTERNS else ""  # nothing probes it
                more, beside = (f"{100 * (n / of.peak - 1):+.2f} %" for n in (now.peak, now.peak - now.maps))
                row[5:] = more, mib(now.maps), beside
            rows.append(row)
    d = decoder
    about = (
        f"{d.n_layers} layers, d_model {d.d_model}, {d.n_heads}/{d.n_kv_heads} heads x {d.d_head}, d_mlp {d.d_mlp}; "
        f"{inputs.layout.n_tokens:,} tokens; n = {rounds} rounds."
    )
    return [f"### {name}", "", about, "", *table(COLUMNS, rows)]


def _ways(model: HookedVideoLLM, inputs: VideoInputs, readings: tuple[Reading, ...], cut: Any) -> dict[str, Callable]:
    """The forward nobody reads, then readings of it."""
    under = ", VT-K" if cut else ""
    ways: dict[str, Callable] = {
        f"forward{under}": lambda: model(inputs, interventions=cut, logits_to_keep=1),
    }
    for asked in readings:
        mean = ", mean_queries" * ("mean_queries" in asked)
        ways[f'{asked["reduce"]}, queries="{asked["queries"]}"{mean}{under}'] = lambda asked=asked: model.attention(
            inputs, interventions=cut, **asked
        )
    return ways
