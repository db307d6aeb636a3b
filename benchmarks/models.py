"""Random models of a stated shape, the same decoder in transformers and TransformerLens, their inputs, the study."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from hookedvid import LV_K, VS_K, VT_K, HookedVideoLLM, VideoLLMConfig
from hookedvid.checkpoints.byte_tokenizer import byte_tokenizer
from hookedvid.checkpoints.fill import empty_model, put
from hookedvid.conversion.rules import to_theirs
from hookedvid.conversion.tables import llama
from hookedvid.study import protocols
from hookedvid.values.config import DecoderConfig, ProjectorConfig, RopeConfig, VisionConfig
from hookedvid.values.effects import effects
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import Intervention
from hookedvid.values.layout import TokenLayout
from hookedvid.values.masks import allowed

Condition = tuple[Intervention, ...]
CUTS = (LV_K, VT_K, VS_K)
PATCH, D_TOWER, D_VOCAB = 14, 32, 512


class Shape(NamedTuple):
    """A Qwen2-like decoder; frames of side x side tokens and one newline behind them, text before and after.

    A question takes `text` tokens; further ones differ by a token or two.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_mlp: int
    n_frames: int = 16
    side: int = 8
    prefix: int = 3
    text: int = 17

    def __str__(self) -> str:
        return (
            f"{self.n_layers} layers, d_model {self.d_model}, {self.n_heads}/{self.n_kv_heads} heads, d_mlp "
            f"{self.d_mlp}, {self.n_frames} frames of {self.side**2} tokens, {self.prefix} tokens before the video "
            f"and {self.text} after it"
        )


# Text and video of the first in about the proportion of 32 frames of 196 tokens with a question of 100.
DEEP = Shape(28, 256, 8, 2, 768)
LONG = DEEP._replace(n_frames=32, prefix=6, text=34)  # as many frames as the paper's
WIDE = Shape(8, 896, 14, 2, 4864)  # Qwen2-0.5B's width
TOY = Shape(4, 32, 4, 2, 48, n_frames=3, side=2, text=6)


def config(shape: Shape) -> VideoLLMConfig:
    """The decoder behind a tower that costs next to nothing."""
    d_head = shape.d_model // shape.n_heads
    tower = VisionConfig(
        n_layers=1, d_model=D_TOWER, n_heads=4, d_mlp=48, image_size=shape.side * PATCH, patch_size=PATCH
    )
    decoder = DecoderConfig(
        n_layers=shape.n_layers, d_model=shape.d_model, n_heads=shape.n_heads, n_kv_heads=shape.n_kv_heads,
        d_head=d_head, d_mlp=shape.d_mlp, d_vocab=D_VOCAB, qkv_bias=True, rope=RopeConfig(theta=1e6),
    )  # fmt: skip
    projector = ProjectorConfig(d_in=D_TOWER, d_out=shape.d_model, newline="once")
    return VideoLLMConfig(family="benchmark", vision=tower, projector=projector, decoder=decoder, prompt="qwen_1_5")


def build(
    shape: Shape, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> HookedVideoLLM:
    """Random weights of unit gain, made where they stay.

    Queries and keys are 1.6 times that, so that attention is peaked and cutting it moves logits: with weights near
    their initial values every condition would give the same answer, and equality would say nothing. At twice that
    transformers' own two kernels differ from each other by 2e-5 at 28 layers, four times as much.
    """
    model = empty_model(HookedVideoLLM, config(shape))
    generator = torch.Generator(device).manual_seed(seed)
    for name, p in list(model.named_parameters()):
        noise = torch.randn(p.shape, generator=generator, device=device, dtype=dtype)
        if p.ndim > 1 and name not in ("embed.weight", "vision.pos_embed"):
            gain = 1.6 if name.endswith(("attn.q.weight", "attn.k.weight")) else 1.0
            noise *= gain * p[0].numel() ** -0.5
        elif p.ndim == 1:
            noise = noise * 0.1 + (0.0 if name.endswith("bias") else 1.0)
        put(model, name, noise)
    return model.requires_grad_(False)


def questions(model: HookedVideoLLM, shape: Shape, n: int) -> list[VideoInputs]:
    """`n` questions on one video."""
    g = torch.Generator().manual_seed(2)
    pixels = torch.randn(shape.n_frames, 3, shape.side * PATCH, shape.side * PATCH, generator=g)
    before, video = torch.randint(0, D_VOCAB, (shape.prefix,), generator=g), torch.tensor([-200])
    # The first has the stated length, the others from two below to two above.
    texts = [torch.randint(0, D_VOCAB, (shape.text + (3 * i + 2) % 5 - 2,), generator=g) for i in range(n)]
    return [
        model.inputs_from_tensors(torch.cat([before, video, t]), pixels.to(model.embed.weight.dtype)) for t in texts
    ]


# ---- the study -------------------------------------------------------------------------------------------------


def study(n_layers: int, width: int = 4) -> dict[str, list[Condition]]:
    """The conditions by kind: baseline, LV-K from every layer on, each knockout everywhere and in every window."""
    made = {"baseline": [protocols.BASELINE], "cumulative LV-K": protocols.cumulative(LV_K, n_layers)}
    made |= {f"{k.name} in all layers": protocols.everywhere([k]) for k in CUTS}
    made |= {f"{k.name} in windows": protocols.windows(k, n_layers, width) for k in CUTS}
    return {kind: [c.interventions for c in conditions] for kind, conditions in made.items()}


def joined(kinds: dict[str, list[Condition]]) -> list[Condition]:
    """All conditions of a study."""
    return [c for conditions in kinds.values() for c in conditions]


def samples(kinds: dict[str, list[Condition]], most: int) -> list[tuple[str, Condition, float]]:
    """At most so many conditions of each kind, evenly through it, each with how many it stands for.

    A forward's time goes linearly with the layers that are cut, so the middles of equal parts have the kind's mean.
    """
    out = []
    for kind, conditions in kinds.items():
        k = min(most, len(conditions))
        out += [(kind, conditions[(2 * i + 1) * len(conditions) // (2 * k)], len(conditions) / k) for i in range(k)]
    return out


# ---- the same decoder elsewhere --------------------------------------------------------------------------------


def as_transformers(model: HookedVideoLLM, kernel: str) -> Any:
    """The decoder as a Qwen2ForCausalLM that shares the weights."""
    c = model.cfg.lm
    config = Qwen2Config(
        vocab_size=c.d_vocab, hidden_size=c.d_model, intermediate_size=c.d_mlp, num_hidden_layers=c.n_layers,
        num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, max_position_embeddings=c.n_ctx,
        rms_norm_eps=c.eps, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope.theta},
    )  # fmt: skip
    ours = {n: p.detach() for n, p in model.named_parameters() if not n.startswith(("vision.", "projector."))}
    # The dtype is set as it is made: a cast would round the rotary frequencies too.
    with torch.device(model.device):
        hf: Any = Qwen2ForCausalLM._from_config(config, dtype=model.embed.weight.dtype, attn_implementation=kernel)
    hf.load_state_dict(to_theirs(ours, llama(c)), assign=True)
    return hf.eval()


class Elsewhere:
    """A forward of another library under knockouts; one dense mask for each set of them, made once."""

    def __init__(self, model: HookedVideoLLM):
        self.model = model
        self._made: dict[tuple, torch.Tensor | None] = {}

    def masks(self, x: VideoInputs, condition: Condition) -> list[torch.Tensor | None]:
        """Of each layer; None where the library's own causality does."""
        out = []
        for cuts in effects(condition, self.model.cfg.n_layers).cuts:
            key = x.layout, cuts
            if key not in self._made:
                self._made[key] = self.mask(*key)
            out.append(self._made[key])
        return out

    def mask(self, layout: TokenLayout, cuts: tuple) -> torch.Tensor | None:
        """As the library takes it."""
        raise NotImplementedError

    def __call__(self, x: VideoInputs, condition: Condition) -> torch.Tensor:
        """Logits of the last position."""
        raise NotImplementedError


class Masked(Elsewhere):
    """transformers, with a dense mask in the layers that are cut (eager: in every layer) and causality elsewhere."""

    def __init__(self, model: HookedVideoLLM, kernel: str):
        super().__init__(model)
        self.hf, self.eager = as_transformers(model, kernel), kernel == "eager"
        self.now: list[torch.Tensor | None] = []
        for i, layer in enumerate(self.hf.model.layers):
            layer.register_forward_pre_hook(self._setting(i), with_kwargs=True)

    def _setting(self, i: int) -> Callable:
        def hook(_module: Any, args: tuple, given: dict) -> tuple[tuple, dict]:
            return args, {**given, "attention_mask": self.now[i]}

        return hook

    def mask(self, layout: TokenLayout, cuts: tuple) -> torch.Tensor | None:
        """Added to the scores."""
        if not cuts and not self.eager:
            return None
        dense = torch.zeros(1, 1, layout.n_tokens, layout.n_tokens, dtype=self.model.embed.weight.dtype)
        return dense.masked_fill_(~allowed(layout, cuts), float("-inf")).to(self.model.device)

    def __call__(self, x: VideoInputs, condition: Condition) -> torch.Tensor:
        """Logits of the last position."""
        self.now = self.masks(x, condition)
        stream = self.model.embed_inputs(x)
        return self.hf(inputs_embeds=stream, use_cache=False, logits_to_keep=1).logits[0, -1]


class Bridge(Elsewhere):
    """TransformerLens's bridge around the same transformers model: knockouts as its users write them.

    A hook on `hook_attn_scores` of every layer that is cut puts -inf where the knockout does.
    """

    def __init__(self, model: HookedVideoLLM):
        super().__init__(model)
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.model_bridge.sources.transformers import helpers

        # Booting may run `pip install torchvision`; nothing here needs it.
        helpers._ensure_torchvision = lambda: False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.bridge = TransformerBridge.boot_transformers(
                "random", hf_model=as_transformers(model, "eager"), tokenizer=byte_tokenizer(D_VOCAB),
                device=str(model.device), dtype=model.embed.weight.dtype,
            )  # fmt: skip

    def mask(self, layout: TokenLayout, cuts: tuple) -> torch.Tensor | None:
        """True where scores are cut."""
        return ~allowed(layout, cuts).to(self.model.device) if cuts else None

    def __call__(self, x: VideoInputs, condition: Condition) -> torch.Tensor:
        """Logits of the last position."""
        masks = enumerate(self.masks(x, condition))
        hooks: list[Any] = [(f"blocks.{i}.attn.hook_attn_scores", _cutting(m)) for i, m in masks if m is not None]
        stream = self.model.embed_inputs(x)
        return self.bridge.run_with_hooks(stream, return_type="logits", fwd_hooks=hooks, logits_to_keep=1)[0, -1]


def _cutting(where: torch.Tensor) -> Callable:
    def hook(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        return scores.masked_fill(where, float("-inf"))

    return hook


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference of a logit."""
    return (a.double() - b.double()).abs().max().item()


def rms(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """The root of the mean squared difference of logits."""
    return (torch.stack(list(a)).double() - torch.stack(list(b)).double()).square().mean().sqrt().item()
