"""What reading attention costs beside a forward that nobody reads: processor time and memory; write the table.

    python benchmarks/reading.py --rounds 3 2

Random decoders (no tower), float32, one thread. Every way runs in turn in one process, after one round to warm up at
the smaller shape and one forward at the larger. Two runs differ by more than a light reading costs, so the time inside
the probes is also set against the rest of its own run. Readings under VT-K are set against the forward under VT-K.
Memory is the process's peak resident size (Linux, /proc) above what it was before the call.
"""

import argparse
import ctypes
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hookedvid.config import DecoderConfig, VideoLLMConfig
from hookedvid.inputs import VideoInputs
from hookedvid.interventions import VT_K
from hookedvid.layout import Segment, TokenLayout
from hookedvid.model import HookedVideoLLM
from hookedvid.reading import _Reader

# glibc's mallopt: what is larger goes back to the system once freed. Else it stays, and blurs peaks by some 100 MiB.
M_MMAP_THRESHOLD = -3
ROOT = Path(__file__).resolve().parents[1]
PREFIX, QUESTION, OPTION, TEMPLATE = 15, 66, 8, 2  # with four options 115 tokens beside the video
QWEN2 = {"d_vocab": 1000, "qkv_bias": True}
# Widths of Qwen2-0.5B and Qwen2-7B; 32 frames of 64 tokens, and of 196 as LLaVA-OneVision has them.
SMALL = DecoderConfig(n_layers=6, d_model=896, n_heads=14, n_kv_heads=2, d_head=64, d_mlp=4864, **QWEN2)
LARGE = DecoderConfig(n_layers=2, d_model=3584, n_heads=28, n_kv_heads=4, d_head=128, d_mlp=18944, **QWEN2)


class Cost(NamedTuple):
    """One call: processor seconds, those of them spent reading, bytes of peak memory."""

    cpu: float
    reading: float
    peak: int


class Clock:
    """Processor seconds inside the probes while it is on."""

    spent = 0.0

    def __enter__(self) -> "Clock":
        self.plain = plain = _Reader.__call__

        def timed(*args: object) -> None:
            start = time.process_time()
            plain(*args)
            self.spent += time.process_time() - start

        _Reader.__call__ = timed
        return self

    def __exit__(self, *_: object) -> None:
        _Reader.__call__ = self.plain


def make(decoder: DecoderConfig, per_frame: int) -> tuple[HookedVideoLLM, VideoInputs]:
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


def ways(model: HookedVideoLLM, inputs: VideoInputs, more: bool) -> dict[str, Callable[[], object]]:
    """The calls; each is set against the last before it whose name begins with "forward"."""

    def reading(reduce: Any, queries: str, cut: Any = None) -> Callable[[], object]:
        return lambda: model.attention(inputs, queries=queries, reduce=reduce, interventions=cut)

    found: dict[str, Callable[[], object]] = {
        "forward": lambda: model(inputs, logits_to_keep=1),
        'segments, queries="all"': reading("segments", "all"),
        'none, queries="last"': reading("none", "last"),
    }
    if more:
        found['frames, queries="text"'] = reading("frames", "text")
        found['frames, queries="video"'] = reading("frames", "video")
        found["run_with_cache, all patterns"] = lambda: model.run_with_cache(
            inputs, names_filter="pattern", logits_to_keep=1
        )
    found["forward, VT-K"] = lambda: model(inputs, interventions=VT_K, logits_to_keep=1)
    found['segments, queries="all", VT-K'] = reading("segments", "all", VT_K)
    found['frames, queries="video", VT-K'] = reading("frames", "video", VT_K)
    return found


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))


def release() -> None:
    """Give back what is free: making a model leaves hundreds of MiB behind."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@torch.no_grad()
def cost(call: Callable[[], object]) -> Cost:
    release()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    with Clock() as clock:
        start = time.process_time()
        kept = call()
        cpu = time.process_time() - start
    del kept
    return Cost(cpu, clock.spent, resident("VmHWM") - before)


def measure(name: str, decoder: DecoderConfig, per_frame: int, rounds: int, more: bool) -> list[str]:
    model, inputs = make(decoder, per_frame)
    calls = ways(model, inputs, more)
    for call in list(calls.values())[: None if more else 1]:
        cost(call)
    costs: dict[str, list[Cost]] = {way: [] for way in calls}
    for _ in range(rounds):
        for way, call in calls.items():
            costs[way].append(cost(call))
            print(name, way, costs[way][-1], flush=True)
    d = decoder
    shape = f"{d.n_layers} layers, d_model {d.d_model}, {d.n_heads}/{d.n_kv_heads} heads x {d.d_head}, d_mlp {d.d_mlp}"
    rows = []
    plain, least = [], 0.0
    for way, found in costs.items():
        if way.startswith("forward"):
            plain, least = found, statistics.median(c.peak for c in found)
        ratios = [c.cpu / p.cpu for c, p in zip(found, plain, strict=True)]
        inside = [1 + c.reading / (c.cpu - c.reading) for c in found]
        peak = statistics.median(c.peak for c in found)
        rows.append(
            f"| {shape}; {inputs.layout.n_tokens:,} tokens | {way} | {statistics.median(c.cpu for c in found):.2f} "
            f"| {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f}) "
            f"| {statistics.median(inside):.3f} ({min(inside):.3f}–{max(inside):.3f}) | {peak / 2**20:,.0f} "
            f"| {100 * (peak / least - 1):+.1f} % | {rounds} |"
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, nargs=2, default=(3, 2), help="of the small and the large shape")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "reading.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    small, large = args.rounds
    rows = measure("small", SMALL, 64, small, more=True) if small else []
    rows += measure("large", LARGE, 196, large, more=False) if large else []
    about = f"{platform.machine()}, {os.cpu_count()} cores shared with other work, one thread"
    head = [
        "# Reading attention against a forward nobody reads", "",
        f"`python benchmarks/reading.py --rounds {small} {large}`; {about}; Python {platform.python_version()}, torch "
        f"{torch.__version__}, float32, kernel sdpa. Random decoders without a tower, 32 frames; all layers are read. "
        "The ways take turns in one process. Processor time: median; the ratio is to the forward of the same round "
        "(under VT-K to that under VT-K), median and range; inside: 1 + the time in the probes / the rest of the same "
        "run, median and range. Memory: peak resident size above that before the call, what is returned included, and "
        "how much more that is than the forward's.",
        "",
        "On a machine with other work plain forwards of one shape differ by more than a light reading costs, so "
        "between runs a ratio says little, and `inside` is the figure to quote.",
        "",
        "| decoder | way | CPU, s | ratio | inside | peak, MiB | more | rounds |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    args.out.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
