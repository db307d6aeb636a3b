"""What the tiny model is and how its weights learn: configuration, first values, optimisers, losses."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from hookedvid.data.shapes.scene import N_FRAMES, SIDE
from hookedvid.data.shapes.words import COLORS, SHAPES, VOCABULARY
from hookedvid.values.config import DecoderConfig, ProjectorConfig, VideoLLMConfig, VisionConfig
from training_batches import FORMS, Texts

CONFIG = VideoLLMConfig(
    family="tiny",
    vision=VisionConfig(
        n_layers=3,
        d_model=128,
        n_heads=4,
        d_mlp=512,
        image_size=SIDE,
        patch_size=16,
        act="quick_gelu",
        eps=1e-5,
        patch_bias=False,
        cls_token=True,
        pre_norm=True,
    ),
    projector=ProjectorConfig(d_in=128, d_out=128),
    decoder=DecoderConfig(
        n_layers=8,
        d_model=128,
        n_heads=4,
        n_kv_heads=2,
        d_head=32,
        d_mlp=352,
        d_vocab=len(VOCABULARY),
        n_ctx=1024,
        qkv_bias=True,
        tied=True,
    ),
    prompt="tiny",
    n_frames=N_FRAMES,
    model_name="tiny",
)

# Measured on this data, letter answers to text-only questions: with these biases and embeddings options are
# bound to letters after 150 steps, with the usual zeros and 0.02 not within 600.
QK_BIAS_STD = 0.5  # with rotary positions a bias is a content-free "look n tokens back" from the start
QK_BIAS_LR = 5.0  # times the others
EMBED_STD = 0.1
TOWER_LR = 0.2  # times the others, once the tower has been trained on its own
CAPTION_WEIGHT = 0.5


def initialise(model: nn.Module, seed: int) -> None:
    """First values of every parameter, the same for the same seed."""
    rng = torch.Generator().manual_seed(seed)
    lm, vision = model.cfg.decoder, model.cfg.vision
    into_stream = {
        "attn.o.weight": lm.n_layers,
        "mlp.down.weight": lm.n_layers,
        "mlp.out.weight": vision.n_layers,
    }
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name == "embed.weight":
                value.normal_(std=EMBED_STD, generator=rng)
            elif name in ("vision.pos_embed", "vision.cls_token"):
                value.normal_(std=0.1, generator=rng)
            elif name.startswith("blocks.") and name.endswith(("attn.q.bias", "attn.k.bias")):
                value.normal_(std=QK_BIAS_STD, generator=rng)
            elif value.ndim >= 2:
                value.normal_(std=value[0].numel() ** -0.5, generator=rng)
                depth = next((n for end, n in into_stream.items() if name.endswith(end)), None)
                # What is added 2 n_layers times starts so small that the sum keeps the stream's scale.
                value.div_(math.sqrt(2 * depth) if depth else 1.0)
            elif name.endswith("bias"):
                value.zero_()
            else:
                value.fill_(1.0)


class Optimiser:
    """Muon on the decoder's and projector's matrices, AdamW on the rest, one factor on all learning rates."""

    def __init__(self, model: nn.Module, *, lr: float = 2e-3, muon_lr: float = 0.02, weight_decay: float = 0.05):
        groups: dict[str, list[nn.Parameter]] = {"muon": [], "bias": [], "tower": [], "rest": []}
        for name, value in model.named_parameters():
            groups[_group(name, value)].append(value)
        self.parameters = [p for group in groups.values() for p in group]
        adam = [
            {"params": groups["rest"], "lr": lr},
            {"params": groups["bias"], "lr": lr * QK_BIAS_LR, "weight_decay": 0.0},
            {"params": groups["tower"], "lr": lr * TOWER_LR},
        ]
        self.parts = [
            torch.optim.AdamW(adam, betas=(0.9, 0.98), weight_decay=weight_decay),
            torch.optim.Muon(groups["muon"], lr=muon_lr, weight_decay=weight_decay, momentum=0.95),
        ]
        self.peaks = [[g["lr"] for g in part.param_groups] for part in self.parts]

    def step(self, loss: Tensor, factor: float) -> float:
        """One step down `loss` at `factor` times the peak rates; the gradient's norm before clipping at 1."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part in self.parts:
            part.step()
        return float(norm)

    def state_dict(self) -> list[dict]:
        """The states of both, Muon's last."""
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: Iterable[dict]) -> None:
        """Go on from what `state_dict` gave."""
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def _group(name: str, value: nn.Parameter) -> str:
    if name.startswith("vision."):
        return "tower"
    if value.ndim == 2 and name.startswith(("blocks.", "projector.")):
        return "muon"
    return "bias" if name.endswith(("attn.q.bias", "attn.k.bias")) else "rest"


def text_loss(logits: Tensor, texts: Texts) -> Tensor:
    """The mean loss of each form, captions at CAPTION_WEIGHT, added up."""
    target, form = torch.from_numpy(texts.target), torch.from_numpy(texts.form)
    each = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
    losses = {name: each[form == index].mean() for index, name in enumerate(FORMS) if (form == index).any()}
    return torch.stack([x * (CAPTION_WEIGHT if name == "caption" else 1.0) for name, x in losses.items()]).sum()


class CellHead(nn.Module):
    """Reads off a patch's feature what lies in it, where in it, and where the patch is; then thrown away.

    Without the last the tower forgets its patches' places: nothing else it learns here needs them.
    """

    def __init__(self, d_model: int, grid: int, seed: int):
        super().__init__()
        self.grid = grid
        self.sizes = (len(SHAPES) + 1, len(COLORS) + 1, grid, grid, 2)
        self.linear = nn.Linear(d_model, sum(self.sizes))
        nn.init.normal_(self.linear.weight, std=d_model**-0.5, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.linear.bias)

    def forward(
        self,
        features: Float[Tensor, "frame patch d_vision"],
        shape: Int[Tensor, "frame patch"],
        color: Int[Tensor, "frame patch"],
        offset: Float[Tensor, "frame patch 2"],
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss, and how often shape and colour of objects are right."""
        *guesses, offsets = self.linear(features).float().split(self.sizes, -1)
        place = torch.arange(self.grid**2).expand_as(shape)
        there = shape > 0
        weight = there + 0.3 * ~there  # three patches in four are empty
        loss = 2.0 * ((offsets - offset) ** 2).mean(-1)[there].mean()
        for guess, truth in zip(guesses, (shape, color, place // self.grid, place % self.grid), strict=True):
            each = F.cross_entropy(guess.flatten(0, -2), truth.flatten(), reduction="none")
            loss = loss + (each * weight.flatten()).mean()
        named = {"shape": (guesses[0], shape), "color": (guesses[1], color)}
        return loss, {k: round((g.argmax(-1) == t)[there].float().mean().item(), 3) for k, (g, t) in named.items()}
