"""HookedVideoLLM: vision tower, projector and decoder as one hooked model.

* Decoder blocks stand at the root (`blocks.3.hook_resid_post`), the tower under `vision`, the projector under
  `projector`; `hook_embed` is the merged stream of text and video.
* Interventions are values given to a run; each layer's mask comes from them (`hookedvid.values.masks`).
* A part that is absent from the config is absent here: a plain decoder has no tower, a bare tower no decoder.
"""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from hookedvid.errors import InputError
from hookedvid.model.answers import Answer, is_predicted, next_token_loss, score_options
from hookedvid.model.attention_maps import read_attention
from hookedvid.model.attribution.attribute import attribute, attributions
from hookedvid.model.bound import bind, bind_pair
from hookedvid.model.cache import VideoCache
from hookedvid.model.counterfactual import counterfactual, shown
from hookedvid.model.encode_video import encode_video, encoded
from hookedvid.model.generation import generate
from hookedvid.model.hook_verbs import Args, HookVerbs, Keywords
from hookedvid.model.leaving import RunRecord
from hookedvid.model.lens import lens
from hookedvid.model.merging import places
from hookedvid.model.patching import encoding
from hookedvid.model.prepare import prepare
from hookedvid.model.run import Probes, Sources, running
from hookedvid.model.run_plan import RunPlan, blocks_run
from hookedvid.model.sinks import find_sinks
from hookedvid.model.view import view
from hookedvid.model.weight_views import WeightViews
from hookedvid.nn.attention import Kernel
from hookedvid.nn.hooks import HookPoint
from hookedvid.nn.kv import KVCache
from hookedvid.nn.layers import RMSNorm
from hookedvid.nn.parts import parts
from hookedvid.nn.projector import Projector
from hookedvid.nn.vision import VisionTower
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.effects import effects
from hookedvid.values.inputs import PAD, PatchRows, Pixels, Tokens, VideoInputs, from_tokens
from hookedvid.values.interventions import Asked, as_interventions
from hookedvid.values.processor_tensors import unprocessed
from hookedvid.values.serial import counted

ReturnType = Literal["logits", "loss", "both"] | None


class HookedVideoLLM(HookVerbs, WeightViews):
    """A Video-LLM whose every residual stream, attention pattern and mask is a hook point.

    `kernel` ("sdpa" or "eager") is that of every layer nothing listens to; give baseline and condition the same one.
    Weights require no gradient, so that a plain run makes no graph; `model.requires_grad_()` asks for theirs.
    """

    vision: VisionTower
    projector: Projector
    embed: nn.Embedding
    hook_embed: HookPoint  # [batch, pos, d_model], text and video merged
    blocks: nn.ModuleList
    ln_final: RMSNorm
    unembed: nn.Linear

    def __init__(self, cfg: VideoLLMConfig, tokenizer: Any = None, kernel: Kernel = "sdpa"):
        super().__init__()
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.kernel: Kernel = kernel
        self.encoder_read: tuple[Any, str] | None = None  # by `encode_video.encoder_of`
        for name, part in parts(cfg).items():
            self.add_module(name, part)
        self.setup()
        self.eval()
        self.requires_grad_(False)

    # ---- doors -------------------------------------------------------------------------------------------

    @classmethod
    def from_config(
        cls, cfg: VideoLLMConfig, *, tokenizer: Any = None, seed: int = 0, kernel: Kernel = "sdpa"
    ) -> "HookedVideoLLM":
        """Random weights, the same for the same seed: N(0, 0.02) matrices and embeddings, norms at 1, biases at 0.

        Without a tokenizer `prepare` uses bytes, if the vocabulary has room for them.
        """
        from hookedvid.checkpoints.fill import random_model

        return random_model(cls, cfg, tokenizer, seed, kernel)

    @classmethod
    def from_transformers(
        cls, hf_model: nn.Module, tokenizer: Any = None, *, ignore: Collection[str] = (),
        overrides: Mapping[str, Any] | None = None, kernel: Kernel = "sdpa",
    ) -> "HookedVideoLLM":  # fmt: skip
        """A transformers model in memory, its weights copied: a Video-LLM, a decoder or a vision tower.

        Args:
            ignore: Config fields that change nothing.
            overrides: Config fields of ours by dotted path, {"decoder.rope.text_after": "sides"}.

        Raises:
            ConversionError: For what has no place here.
        """
        from hookedvid.checkpoints.fill import from_transformers

        return from_transformers(cls, hf_model, tokenizer, ignore, overrides, kernel)

    @classmethod
    def from_open_clip(
        cls, name: str = "ViT-L-14-336", pretrained: str | None = None, *, kernel: Kernel = "sdpa"
    ) -> "HookedVideoLLM":
        """The visual tower of an open_clip model, loaded by open_clip (any tag it offers; None = random)."""
        from hookedvid.checkpoints.fill import from_open_clip

        return from_open_clip(cls, name, pretrained, kernel)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path, *, device: Any = None,
        dtype: torch.dtype | str | None = None, revision: str | None = None, overrides: Mapping[str, Any] | None = None,
        first_n_layers: int | None = None, device_map: str | Mapping[str, Any] | None = None,
        max_memory: Mapping[Any, Any] | None = None, adapter: str | Path | None = None, tokenizer: Any = None,
        kernel: Kernel = "sdpa",
    ) -> "HookedVideoLLM":  # fmt: skip
        """A checkpoint by published name (`hookedvid models`), `tiny`, hub repository or folder of any known layout.

        What is not in our layout is downloaded, converted once into HOOKEDVID_HOME (default ~/.cache/hookedvid)
        and loaded from there by memory map.

        Args:
            device, dtype: Where and as what ("cuda", "bfloat16"); default the CPU and as stored (where others stored
                several dtypes: the one of most weights).
            overrides: Config fields by dotted path, {"projector.pool": "average"}.
            revision: Of a hub repository.
            first_n_layers: Only so many decoder blocks.
            tokenizer: In place of the checkpoint's.
            adapter: A LoRA adapter (peft's files; folder or hub repository), merged into the weights.
            device_map: "auto" ("balanced", "sequential", or a map of modules) spreads the decoder over all GPUs and,
                where they do not suffice, the CPU and the disk; max_memory as in accelerate.
            kernel: "sdpa" or "eager".

        Raises:
            ConversionError: For a name that does not exist and files that do not fit, each with what to do.
        """
        from hookedvid.checkpoints.load import load

        return load(
            cls, name_or_path, device=device, dtype=dtype, revision=revision, overrides=overrides,
            first_n_layers=first_n_layers, device_map=device_map, max_memory=max_memory, adapter=adapter,
            tokenizer=tokenizer, kernel=kernel,
        )  # fmt: skip

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights (safetensors) and tokenizer into a folder `from_pretrained` reads."""
        from hookedvid.checkpoints.load import save

        save(self, folder)

    # ---- inputs ------------------------------------------------------------------------------------------

    prepare = prepare  # (video, question, options, …) -> inputs
    counterfactual = counterfactual  # (inputs, clips) -> inputs that show other frames
    places = places  # (inputs) -> TokenPlaces, those of merged tokens too
    find_sinks = find_sinks  # (inputs, layer, factor) -> inputs with the group `sinks`

    def inputs_from_tensors(
        self, tokens: Tokens, pixel_values: Pixels | PatchRows = None, **processed: Any
    ) -> VideoInputs:
        """Inputs of ids and preprocessed pixels [frame, channel, height, width], one video a row; lists of them too.

        -200, or the family's placeholder id, marks the video: once, or once per visual token.

        Args:
            tokens: Ids.
            pixel_values: Frames; or rows of patches, as Qwen's processors make them.
            processed: What else the family's official processor gives, by its names: `video_grid_thw`,
                `second_per_grid_ts`, `pixel_attention_mask`, `video_merge_sizes`, `video_compression_mask`. Ids whose
                `attention_mask` is 0 fill up a batch, and are left out. `mm_token_type_ids` and `video_metadata` say
                what ids and the rest say, and change nothing.

        Raises:
            InputError: For what does not fit together, and for what the processor of another family gives.
        """
        from hookedvid.families.registry import extras

        made = unprocessed(self.cfg, tokens, pixel_values, processed, extras(self.cfg))
        return from_tokens(self.cfg, *made).to(self.device)

    def process(
        self,
        frames: UInt8[np.ndarray, "frame height width 3"] | UInt8[Tensor, "frame height width 3"],
        fps: float | int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """The tensors that the family's official processor makes of sampled frames, by its names and bit for bit.

        Args:
            frames: RGB.
            fps: How many of them were taken a second, where the processor tells (`second_per_grid_ts`).
            settings: Fields of the processor's config, where they are not those of the model's.
        """
        from hookedvid.families.registry import processor
        from hookedvid.video.processed import process

        return process(frames, self.cfg.vision, processor(self.cfg.family), fps, settings)

    bind = bind  # (inputs) -> the model on one input, for TransformerLens's tools
    bind_pair = bind_pair  # (clean, corrupt) -> the model on two videos, for those that compare

    # ---- running -----------------------------------------------------------------------------------------

    def forward(
        self,
        input: VideoInputs | Tensor,
        *,
        return_type: ReturnType = "logits",
        interventions: Asked = None,
        sources: Sources = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        inputs: VideoInputs | None = None,
        kv_cache: KVCache | None = None,
        logits_to_keep: int | None = None,
        loss_per_token: bool = False,
        probes: Probes = None,
        record: RunRecord | None = None,
    ) -> Any:
        """Logits [batch, pos, d_vocab], a loss, both, or nothing (`return_type=None`).

        The loss is the mean cross entropy of next tokens that are text, among rows of the vocabulary with a token.

        Args:
            input: Prepared inputs; token ids [batch, pos] of text alone; the pixels of a bare tower; or, with
                `start_at_layer=k`, the residual stream [batch, pos, d_model] entering block k, whose positions are
                those of `inputs` (plain text when not given).
            interventions: Knockouts, writes, exits (which leave fewer positions); none before block `start_at_layer`.
            sources: What interventions name (`Intervention.sources`): caches of other runs, reference sets, vectors.
            stop_at_layer: Return the stream entering that block. Both count from the end if negative.
            logits_to_keep: Only the last so many positions' logits.
            probes: Of blocks by number, see `AttnContext`; for `attention`.
            record: Is told which rows each block holds and who left when, as it happens.
        """
        if self.cfg.decoder is None:
            if interventions is not None or start_at_layer is not None or stop_at_layer is not None:
                raise InputError("this model is a vision tower alone: it takes pixels, no interventions or layers")
            with self.turn():
                return self.vision(self.leaf(self._pixels(input)), self.kernel)
        if return_type not in (None, "logits", "loss", "both"):
            raise InputError(f"return_type is {return_type!r}; it can be 'logits', 'loss', 'both' or None")
        keep = None if logits_to_keep is None else counted("logits_to_keep", logits_to_keep)
        with running(
            self, input, interventions=interventions, sources=sources, start_at_layer=start_at_layer,
            stop_at_layer=stop_at_layer, inputs=inputs, kv_cache=kv_cache, probes=probes, record=record,
        ) as run:  # fmt: skip
            resid = run.through()
            if stop_at_layer is not None:
                return resid
            resid = resid if keep is None else resid[:, -keep:]
            logits = self.unembed(self.ln_final(resid)) if return_type is not None else None
            return self._returned(logits, return_type, run.batch, run.plan, loss_per_token)

    def embed_inputs(self, inputs: VideoInputs, n_new: int | None = None) -> Float[Tensor, "batch pos d_model"]:
        """The merged stream block 0 reads, of the last `n_new` columns (default: all); padding embeds to zero."""
        return self.enter(inputs, n_new)[0]

    def enter(
        self, inputs: VideoInputs, n_new: int | None = None
    ) -> tuple[Float[Tensor, "batch pos d_model"], list[Float[Tensor, "batch pos d_model"]]]:
        """The stream as `embed_inputs` gives it, and what is added after each of the first blocks (DeepStack)."""
        tokens = inputs.tokens if n_new is None else inputs.tokens[:, inputs.tokens.shape[1] - n_new :]
        resid = self.embed(tokens.clamp(min=0)).masked_fill((tokens == PAD)[..., None], 0.0)
        resid, *added = map(self.leaf, self.with_video(inputs, resid))
        return self.hook_embed(resid), added

    def with_video(self, inputs: VideoInputs, resid: Tensor) -> list[Tensor]:
        """The stream with the video in its last columns, and what DeepStack adds to it, zero at text."""
        n_new = resid.shape[1]
        streams, where = [resid, *(torch.zeros_like(resid) for _ in range(self.cfg.n_deepstack))], inputs.is_video
        # A device is asked only about a part of the columns; the whole is known to hold the videos there are.
        if not inputs.has_video or not (n_new == inputs.tokens.shape[1] or bool(where[:, -n_new:].any())):
            return streams
        parts = torch.split(self.encode_video(inputs).to(resid.dtype), self.cfg.d_model, -1)
        where = where[:, -n_new:]
        # Each video position's row among the features; by whole rows, which costs a third of scattering numbers.
        row = (where.flatten().cumsum(0) - 1).clamp(min=0).view_as(where)
        return [torch.where(where[..., None], p[row], s) for s, p in zip(streams, parts, strict=True)]

    encode_video = encode_video  # (inputs) -> [video_pos, d_model] of all items in order
    encoded = encoded  # (inputs) -> inputs whose videos need no tower again

    def _returned(
        self,
        logits: Tensor | None,
        return_type: ReturnType,
        inputs: VideoInputs,
        plan: RunPlan,
        per_token: bool,
    ) -> Any:
        if return_type in (None, "logits"):
            return logits
        assert logits is not None
        if logits.shape[1] != inputs.tokens.shape[1] or plan.effects.exits:
            raise InputError("a loss needs every position's logits: leave out logits_to_keep, kv_cache and EarlyExit")
        loss = next_token_loss(logits, inputs, self.cfg.n_tokens)
        if not per_token:
            loss = loss.sum() / is_predicted(inputs).sum()
        return loss if return_type == "loss" else (logits, loss)

    def answer(self, inputs: VideoInputs, interventions: Asked = None, *, sources: Sources = None) -> Answer:
        """The option chosen for a single item, by the logits of the options' letters at the end of its prompt."""
        if (n := self.inputs_of(inputs).batch_size) != 1:
            raise InputError(f"answer is about one item, and this batch holds {n}: use answers")
        return self.answers(inputs, interventions, sources=sources)[0]

    @torch.no_grad()
    def answers(self, inputs: VideoInputs, interventions: Asked = None, *, sources: Sources = None) -> list[Answer]:
        """`answer` for every item of a batch."""
        after = [layout.n_tokens - layout.n_prompt for layout in inputs.layouts]  # what was given to go on with
        logits = self(inputs, interventions=interventions, sources=sources, logits_to_keep=1 + max(after))
        rows = (row[-1 - n] for row, n in zip(logits, after, strict=True))
        return [score_options(row, inputs, i, self.cfg.n_tokens) for i, row in enumerate(rows)]

    attention = read_attention  # (inputs, layers, queries, reduce, heads, …) -> AttentionMap
    attribute = attribute  # (inputs, metric, edges, nodes, …) -> Attribution
    attributions = attributions  # the same of every item of a batch
    generate = generate  # (input, interventions, max_new_tokens, …) -> text, or ids
    lens = lens  # (inputs, at, layers, n_words, maps, …) -> LensTable
    view = view  # (inputs, conditions, …) -> a page

    # ---- what the hook verbs ask -------------------------------------------------------------------------

    def prepared(self, args: Args, kwargs: Keywords) -> tuple[Args, Keywords]:
        """Raw token ids as inputs, clips shown and other interventions as a tuple, so that each is read once."""
        if kwargs.get("interventions") is not None:
            kwargs = {**kwargs, "interventions": as_interventions(kwargs["interventions"])}
        if self.cfg.decoder is None or not args or kwargs.get("start_at_layer") is not None:
            return args, kwargs
        inputs, rest = shown(self, self.inputs_of(*args), kwargs.get("interventions"))
        inputs = encoding(inputs, effects(rest, self.cfg.n_layers))
        return (inputs, *args[1:]), {**kwargs, "interventions": rest}

    def inputs_of(self, input: Any, *, start_at_layer: int | None = None, inputs: Any = None, **_: Any) -> VideoInputs:
        """The VideoInputs a call of `forward` reads."""
        if self.cfg.decoder is None:
            pixels = self._pixels(input)
            return VideoInputs(torch.zeros(1, 0, dtype=torch.long), (), (pixels,))
        if start_at_layer is not None:
            if not isinstance(input, Tensor) or input.ndim != 3 or not input.is_floating_point():
                raise InputError("start_at_layer takes the residual stream [batch, pos, d_model] as input")
            if inputs is None:
                return from_tokens(self.cfg, torch.zeros(input.shape[:2], dtype=torch.long, device=input.device), None)
            return inputs
        if isinstance(input, VideoInputs):
            return input.to(self.device)
        if isinstance(input, Tensor) and not input.is_floating_point():
            return self.inputs_from_tensors(input)
        raise InputError(
            f"cannot run on {type(input).__name__}: give prepare()'s inputs, inputs_from_tensors(ids, pixels), or a "
            "tensor of token ids"
        )

    def fires(
        self,
        input: Any,
        *,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        inputs: Any = None,
        return_type: ReturnType = "logits",
        **_: Any,
    ) -> Callable[[str], bool]:
        """Whether a hook point fires in a call of `forward`."""
        if self.cfg.decoder is None:
            return lambda name: True
        encodes = bool(self.inputs_of(input, start_at_layer=start_at_layer, inputs=inputs).to_encode)
        start, stop = blocks_run(self.cfg.n_layers, start_at_layer, stop_at_layer)

        def can(name: str) -> bool:
            if name.startswith("blocks."):
                return start <= int(name.split(".")[1]) < stop
            if name.startswith("ln_final"):
                return stop_at_layer is None and return_type is not None
            if name == "hook_embed":
                return start_at_layer is None
            return encodes and (start_at_layer is None or start < self.cfg.n_deepstack)

        return can

    def _pixels(self, input: Any) -> Tensor:
        pixels = input.pixel_values[0] if isinstance(input, VideoInputs) else input
        if not isinstance(pixels, Tensor) or pixels.ndim != 4:
            raise InputError("a bare tower reads preprocessed pixels [frame, 3, height, width]")
        return pixels.to(self.vision.patch_embed.weight)

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]  # read, never set
        """Where the weights are."""
        return next(self.parameters()).device


__all__ = ["HookedVideoLLM", "VideoCache"]
