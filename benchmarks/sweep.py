"""The whole study on one video: the sweep against one forward a condition, ours and transformers'.

    python benchmarks/sweep.py --threads 1

A random Qwen2-like decoder behind a tiny tower. Process CPU time, one process, variants alternate; a variant's
conditions are sampled by kind (baseline, text rows cut, frames apart, frames' own cut; windows and everywhere) and
scaled by how many of each the study has. Medians of paired ratios, the largest difference of a logit beside them.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM

from hookedvid import LV_K, VS_K, VT_K, HookedVideoLLM, VideoLLMConfig
from hookedvid.config import DecoderConfig, ProjectorConfig, RopeConfig
from hookedvid.conversion.rules import to_theirs
from hookedvid.conversion.tables import llama
from hookedvid.families import SIGLIP_SO400M
from hookedvid.inputs import VideoInputs
from hookedvid.interventions import Intervention
from hookedvid.masks import active, allowed
from hookedvid.study import protocols
from hookedvid.sweep import Sweep, sweep

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {  # layers, d_model, heads, kv heads, d_mlp, frames
    "deep": (28, 256, 8, 2, 768, 16),
    "wide": (8, 896, 14, 2, 4864, 16),
}
Conditions = list[tuple[Intervention, ...]]


def build(shape: str) -> HookedVideoLLM:
    """64 video tokens a frame and one newline, as LLaVA-OneVision packs them."""
    layers, d, heads, kv, mlp, frames = SHAPES[shape]
    tower = dict(n_layers=1, d_model=32, n_heads=4, d_mlp=48, image_size=224)
    cfg = VideoLLMConfig(
        family="benchmark",
        vision=type(SIGLIP_SO400M)(**{**{f: getattr(SIGLIP_SO400M, f) for f in ("patch_size", "act", "eps")}, **tower}),
        projector=ProjectorConfig(d_in=32, d_out=d, pool="bilinear", newline="once"),
        decoder=DecoderConfig(
            n_layers=layers, d_model=d, n_heads=heads, n_kv_heads=kv, d_head=d // heads, d_mlp=mlp, d_vocab=512,
            qkv_bias=True, rope=RopeConfig(theta=1e6),
        ),
        prompt="qwen_1_5", n_frames=frames,
    )  # fmt: skip
    model = HookedVideoLLM.from_config(cfg)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.mul_(3.0 if name.endswith(("q.weight", "k.weight")) else 1.0)
            p.add_(torch.randn(p.shape, generator=g) * 0.02)
    return model


def as_transformers(model: HookedVideoLLM, kernel: str) -> Any:
    """The decoder as a Qwen2ForCausalLM with the same weights."""
    c = model.cfg.lm
    config = Qwen2Config(
        vocab_size=c.d_vocab, hidden_size=c.d_model, intermediate_size=c.d_mlp, num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, max_position_embeddings=c.n_ctx,
        rms_norm_eps=c.eps, tie_word_embeddings=False, attn_implementation=kernel,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope.theta},
    )  # fmt: skip
    hf = Qwen2ForCausalLM(config).eval()
    ours = {n: p.detach() for n, p in model.named_parameters() if not n.startswith(("vision.", "projector."))}
    hf.load_state_dict(to_theirs(ours, llama(c)))
    return hf


class Masked:
    """transformers, with a dense mask in the layers that are cut (eager: in every layer) and causality elsewhere."""

    def __init__(self, model: HookedVideoLLM, kernel: str):
        self.hf, self.model, self.eager = as_transformers(model, kernel), model, kernel == "eager"
        self.masks: list[torch.Tensor | None] = []
        for i, layer in enumerate(self.hf.model.layers):
            layer.register_forward_pre_hook(self._setting(i), with_kwargs=True)

    def _setting(self, i: int) -> Callable:
        def hook(_module: Any, args: tuple, given: dict) -> tuple[tuple, dict]:
            return args, {**given, "attention_mask": self.masks[i]}

        return hook

    def __call__(self, x: VideoInputs, condition: Sequence[Intervention]) -> torch.Tensor:
        """Logits of the last position."""
        made: dict[tuple, torch.Tensor | None] = {}
        self.masks = []
        for cuts in active(condition, self.model.cfg.n_layers):
            if cuts not in made:
                dense = None
                if cuts or self.eager:
                    dense = torch.zeros(1, 1, *[x.layout.n_tokens] * 2)
                    dense.masked_fill_(~allowed(x.layout, cuts), float("-inf"))
                made[cuts] = dense
            self.masks.append(made[cuts])
        stream = self.model.embed_inputs(x)
        return self.hf(inputs_embeds=stream, use_cache=False, logits_to_keep=1).logits[0, -1]


def study(n: int, width: int = 4) -> tuple[Conditions, dict[str, tuple[int, Conditions]]]:
    """All conditions, and of each kind how many there are and which are timed."""
    cuts = (LV_K, VT_K, VS_K)
    cumulative = [c.interventions for c in protocols.cumulative(LV_K, n)]
    windows = {k.name: [c.interventions for c in protocols.windows(k, n, width)] for k in cuts}
    everywhere = [c.interventions for c in protocols.everywhere(cuts)]
    whole = [(), *cumulative, *everywhere, *(c for k in cuts for c in windows[k.name])]
    kinds = {
        "baseline": (1, [()]),
        "cumulative LV-K": (len(cumulative), [cumulative[n // 2]]),
        **{f"{k.name} everywhere": (1, [e]) for k, e in zip(cuts, everywhere, strict=True)},
        **{f"windows {name}": (len(w), [w[len(w) // 2]]) for name, w in windows.items()},
    }
    assert sum(count for count, _ in kinds.values()) == len(whole)
    return whole, kinds


@torch.no_grad()
def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    out = call()
    return time.process_time() - start, out


def measure(shape: str, rounds: int) -> list[str]:
    model = build(shape)
    assert model.cfg.vision is not None
    size, g = model.cfg.vision.image_size, torch.Generator().manual_seed(2)
    pixels = torch.randn(model.cfg.n_frames, 3, size, size, generator=g)
    # Text and video in about the proportion of 32 frames of 196 tokens with a question of 100.
    before, video = torch.randint(0, 500, (3,), generator=g), torch.tensor([-200])
    questions = [torch.randint(0, 500, (n,), generator=g) for n in (17, 15, 19)]
    inputs = [model.inputs_from_tensors(torch.cat([before, video, q]), pixels) for q in questions]
    whole, kinds = study(model.cfg.n_layers)
    naive: dict[str, Callable] = {
        "our forwards": lambda x, c: model(x, interventions=c, logits_to_keep=1)[0, -1],
        "transformers, sdpa": Masked(model, "sdpa"),
        "transformers, eager": Masked(model, "eager"),
    }
    ratios: dict[tuple[str, int], list[float]] = {}
    off: dict[str, float] = {}
    for _ in range(rounds):
        one, found = timed(lambda: sweep(model, inputs[:1], whole))
        three, _ = timed(lambda: sweep(model, inputs, whole))
        for name, run in naive.items():
            total = 0.0
            for count, sample in kinds.values():
                for c in sample:
                    seconds, logits = timed(lambda run=run, c=c: run(inputs[0], c))
                    total += seconds * count / len(sample)
                    difference = (logits - found[0][whole.index(c)]).abs().max().item()
                    off[name] = max(off.get(name, 0.0), difference)
            ratios.setdefault((name, 1), []).append(total / one)
            ratios.setdefault((name, 3), []).append(3 * total / three)
        last = {k: round(v[-1], 2) for k, v in ratios.items()}
        print(shape, f"sweep {one:.1f} s, of three {three:.1f} s", last, flush=True)
    counts, x = Sweep(model.cfg.n_layers, inputs[:1], whole).counts, inputs[0].layout
    n, d, heads, kv, mlp, n_frames = SHAPES[shape]
    rows = [
        f"## {shape}: {n} layers, d_model {d}, {heads}/{kv} heads, d_mlp {mlp}", "",
        f"{n_frames} frames, {int(x.mask('video').sum())} video tokens of {x.n_tokens}; {len(whole)} conditions: "
        f"{counts.stream} stream blocks and {counts.keys_values} keys and values alone, where {len(whole)} forwards "
        f"run {len(whole) * n} blocks (at most {len(whole) * n / counts.stream:.2f} x by this count). {rounds} rounds.",
        "",
        "| against | one question | three questions | largest difference of a logit |", "|---|---|---|---|",
    ]  # fmt: skip
    for name in naive:
        cells = [f"{statistics.median(r):.2f} ({min(r):.2f}–{max(r):.2f})" for r in (ratios[name, 1], ratios[name, 3])]
        rows.append(f"| {name} | {cells[0]} | {cells[1]} | {off[name]:.1e} |")
    return [*rows, ""]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "sweep.md")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    body = [line for shape in args.shapes for line in measure(shape, args.rounds)]
    head = [
        "# The whole study on one video", "",
        f"`python benchmarks/sweep.py`; {os.cpu_count()} cores ({platform.machine()}), {args.threads} thread, float32, "
        f"torch {torch.__version__}, transformers {transformers.__version__}. Process CPU time of one forward a "
        "condition / of the sweep (medians, range in brackets): how many times as fast the sweep is. Forwards are "
        "sampled, one condition of each kind, and scaled by their number. Other work ran on the second core.", "",
    ]  # fmt: skip
    args.out.write_text("\n".join([*head, *body]), encoding="utf-8")


if __name__ == "__main__":
    main()
