"""What an answer loses when text may not look at a frame: every step of the video, in all layers and in each."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hookedvid.errors import NonFiniteError
from hookedvid.model.answers import real_tokens
from hookedvid.nn.model import Model
from hookedvid.sweep.run import sweep
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import Intervention, Knockout, label


@dataclass(frozen=True, eq=False)
class CutEffects:
    """Log-probabilities (natural, over all tokens) of candidates for the next token, while one step is not seen.

    Attributes:
        dst: A selector of those who may not look at the step.
        everywhere: Cut in all layers.
        by_layer: Cut in one.
    """

    dst: str
    everywhere: Float[np.ndarray, "step candidate"]
    by_layer: Float[np.ndarray, "layer step candidate"]


def log_probs(
    logits: Float[Tensor, " d_vocab"], candidates: Sequence[int], n_tokens: int | None
) -> Float[np.ndarray, " candidate"]:
    """Of some tokens, taken in float32 at least.

    Raises:
        NonFiniteError: Where the logits are not finite.
    """
    real = real_tokens(logits, n_tokens)
    if not bool(torch.isfinite(real).all()):
        raise NonFiniteError("the logits are not finite: the weights or this dtype overflow; there is nothing to view")
    wide = real.to(torch.promote_types(real.dtype, torch.float32)).log_softmax(-1)
    return wide[torch.tensor(candidates, device=wide.device)].double().cpu().numpy()


def read_cuts(
    model: Model, inputs: VideoInputs, dsts: Sequence[str], candidates: Sequence[int]
) -> tuple[Float[np.ndarray, " candidate"], list[CutEffects]]:
    """Log-probabilities of the candidates in the whole prompt, and under every cut: one sweep.

    Args:
        model: The model.
        inputs: Of one item.
        dsts: Selectors of those who may not look.
        candidates: Tokens.
    """
    steps, n_layers = inputs.layout.step_names, model.cfg.n_layers
    conditions: list[Sequence[Intervention]] = [[]]
    for dst in dsts:
        cuts = [Knockout(step, dst) for step in steps]
        conditions += [[cut] for cut in cuts]
        conditions += [[cut.at(range(i, i + 1))] for i in range(n_layers) for cut in cuts]

    def read(question: int, logits: Tensor) -> Tensor:
        return torch.from_numpy(log_probs(logits[-1], candidates, model.cfg.n_tokens))

    (values,) = sweep(model, [inputs], conditions, read=read)
    intact, *rest = (v.numpy() for v in values)
    effects: list[CutEffects] = []
    for dst, some in zip(dsts, np.split(np.stack(rest), len(dsts)) if dsts else [], strict=True):
        by_layer = some[len(steps) :].reshape(n_layers, len(steps), -1)
        effects.append(CutEffects(dst, some[: len(steps)], by_layer))
    return intact, effects


def n_cuts(inputs: VideoInputs, n_layers: int, dsts: Sequence[str]) -> int:
    """Conditions that `read_cuts` sweeps."""
    return 1 + len(dsts) * len(inputs.layout.steps) * (1 + n_layers)


@torch.no_grad()
def under(
    model: Model,
    inputs: VideoInputs,
    conditions: Sequence[Sequence[Intervention]],
    candidates: Sequence[int],
    sources: Mapping[str, Any] | None = None,
) -> dict[str, Float[np.ndarray, " candidate"]]:
    """Log-probabilities of the candidates under each condition, by its label, numbered where others have it too."""
    found: dict[str, np.ndarray] = {}
    n_of: Counter[str] = Counter()
    for condition in conditions:
        logits = model(inputs, interventions=condition, sources=sources, logits_to_keep=1)[0, -1]
        name = label(condition)
        n_of[name] += 1
        name = name if n_of[name] == 1 else f"{name} ({n_of[name]})"
        found[name] = log_probs(logits, candidates, model.cfg.n_tokens)
    return found
