"""On a GPU: the sweep and the efficient setting at a 7B model's shape, bfloat16. Seconds are wall time."""

import torch

from benchmarks import exit, sweep
from benchmarks.models import TOY, Shape

TITLE = "On a GPU, bfloat16"
SHAPE = Shape(28, 3584, 28, 4, 18944, n_frames=32, side=14, prefix=15, text=100)  # Qwen2-7B; LLaVA-OneVision's frames


def lines(quick: bool, rounds: int | None) -> list[str]:
    """The section."""
    device, dtype = torch.device("cuda"), torch.bfloat16
    shape = TOY if quick else SHAPE
    return [
        f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}; wall time with the queue emptied before and "
        "after.",
        "",
        *sweep.measure("7B", shape, rounds or 2, device, dtype),
        "### Early exit and frames apart",
        "",
        *exit.measure(exit.SMALL if quick else shape, rounds or 3, device, dtype),
    ]
