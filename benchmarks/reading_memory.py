"""What reading attention in all layers holds at 6,387 tokens; write the table: `python -m benchmarks.reading_memory`.

A random decoder of Qwen2-0.5B's width and 28 layers, 32 frames of 196 tokens, float32. Peaks are bytes of live tensors
(`measuring.Alive`), weights not among them: the same on every run, where resident size moves with the allocator.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import Alive, machine, mib, table
from benchmarks.reading import SMALL, make

OUT = Path(__file__).with_name("reading_memory.md")
DECODER = replace(SMALL, n_layers=28)
READINGS = (("segments", "all"), ("segments", "text"), ("none", "last"))


@torch.no_grad()
def peak(call: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes of tensors made in the call and alive at once, and what it gave."""
    with Alive() as alive:
        out = call()
    return alive.peak, out


def main() -> None:
    """Run each way once and write the table."""
    torch.set_num_threads(1)
    ran_on = machine(1)
    model, inputs = make(DECODER, 196)
    plain, logits = peak(lambda: model(inputs, logits_to_keep=1)[0, -1])
    rows: list[list[object]] = [["forward", mib(plain), "", "", ""]]
    for reduce, queries in READINGS:
        held, read = peak(lambda q=queries, r=reduce: model.attention(inputs, queries=q, reduce=r))
        assert torch.equal(read.logits, logits)
        maps = sum(m.nbytes for m in read.maps.values())
        more, beside = (f"{100 * (b / plain - 1):+.2f} %" for b in (held, held - maps))
        rows.append([f'{reduce}, queries="{queries}"', mib(held), more, mib(maps), beside])
        print(rows[-1], flush=True)
    d = DECODER
    weights = sum(p.nbytes for p in model.parameters())
    head = [
        "# What reading attention in all layers holds", "",
        f"`python -m benchmarks.reading_memory`; {ran_on}. A random decoder without a tower: {d.n_layers} layers, "
        f"d_model {d.d_model}, {d.n_heads}/{d.n_kv_heads} heads x {d.d_head}, d_mlp {d.d_mlp}, float32, weights of "
        f"{mib(weights)} MiB; {inputs.layout.n_tokens:,} tokens in 32 frames; all layers and heads are read. Peaks are "
        "bytes of live tensors beside the weights, each way run once (they are the same on every run). Of all queries "
        "the maps themselves are what counts: `device=\"cpu\"` takes them off a GPU layer by layer. Logits were equal "
        "bit for bit.", "",
    ]  # fmt: skip
    columns = ["way", "peak, MiB", "more than the forward", "maps returned, MiB", "more beside them"]
    OUT.write_text("\n".join([*head, *table(columns, rows)]), encoding="utf-8")


if __name__ == "__main__":
    main()
