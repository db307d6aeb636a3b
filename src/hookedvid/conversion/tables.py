"""Tensor names of every layout we read: transformers in memory, the original packages, open_clip."""

from hookedvid.conversion.lines import Fused, Ignored, Line, Rule
from hookedvid.values.config import DecoderConfig, VisionConfig

NORM = ("weight",)
AFFINE = ("weight", "bias")
# Parts of the original LLaVA packages that checkpoints may carry and these families never run.
SKIPPED: list[Line] = [Ignored(r"model\.vision_resampler\..*", "no family here has a resampler")]


def _many(theirs: str, ours: str, leaves: tuple[str, ...] = AFFINE) -> list[Line]:
    return [Rule(f"{theirs}.{leaf}", f"{ours}.{leaf}") for leaf in leaves]


def llama(cfg: DecoderConfig, model: str = "model.", head: str = "lm_head.weight") -> list[Line]:
    """Llama, Qwen2 and Qwen3, under the prefix `model`."""
    block, qkv = f"{model}layers.{{i}}.", AFFINE if cfg.qkv_bias else NORM
    lines: list[Line] = [
        Rule(f"{model}embed_tokens.weight", "embed.weight"),
        *_many(f"{model}norm", "ln_final", NORM),
        *_many(f"{block}input_layernorm", "blocks.{i}.ln1", NORM),
        *_many(f"{block}post_attention_layernorm", "blocks.{i}.ln2", NORM),
        *(x for p in "qkv" for x in _many(f"{block}self_attn.{p}_proj", f"blocks.{{i}}.attn.{p}", qkv)),
        *_many(f"{block}self_attn.o_proj", "blocks.{i}.attn.o", AFFINE if cfg.o_bias else NORM),
        *(x for p in ("gate", "up", "down") for x in _many(f"{block}mlp.{p}_proj", f"blocks.{{i}}.mlp.{p}", NORM)),
        Ignored(r".*rotary_emb\.inv_freq", "computed from the config"),
    ]
    return [*lines, *_qk_norm(cfg, f"{block}self_attn.", "blocks.{i}.attn."), _head(cfg, head)]


def internlm2(
    cfg: DecoderConfig, model: str = "language_model.model.", head: str = "language_model.output.weight"
) -> list[Line]:
    """InternLM2: queries, keys and values fused per key-value head, w1 = gate, w3 = up, w2 = down."""
    block = f"{model}layers.{{i}}."
    qkv = tuple(f"blocks.{{i}}.attn.{p}.weight" for p in "qkv")
    per_kv_head = (cfg.n_heads // cfg.n_kv_heads, 1, 1)
    return [
        Rule(f"{model}tok_embeddings.weight", "embed.weight"),
        *_many(f"{model}norm", "ln_final", NORM),
        *_many(f"{block}attention_norm", "blocks.{i}.ln1", NORM),
        *_many(f"{block}ffn_norm", "blocks.{i}.ln2", NORM),
        Fused(f"{block}attention.wqkv.weight", qkv, per_kv_head, groups=cfg.n_kv_heads),
        *_many(f"{block}attention.wo", "blocks.{i}.attn.o", NORM),
        *(
            x
            for theirs, ours in (("w1", "gate"), ("w3", "up"), ("w2", "down"))
            for x in _many(f"{block}feed_forward.{theirs}", f"blocks.{{i}}.mlp.{ours}", NORM)
        ),
        _head(cfg, head),
        Ignored(r".*rotary_emb\.inv_freq", "computed from the config"),
    ]


def clip_like(cfg: VisionConfig, tower: str) -> list[Line]:
    """CLIP and SigLIP in transformers' and the original packages' names, under the prefix `tower`."""
    block = f"{tower}encoder.layers.{{i}}."
    past = "|".join(str(i) for i in range(cfg.n_layers, 100))
    lines: list[Line] = [
        *_many(f"{tower}embeddings.patch_embedding", "vision.patch_embed", AFFINE if cfg.patch_bias else NORM),
        *_many(f"{block}layer_norm1", "vision.blocks.{i}.ln1"),
        *_many(f"{block}layer_norm2", "vision.blocks.{i}.ln2"),
        *(x for p in "qkv" for x in _many(f"{block}self_attn.{p}_proj", f"vision.blocks.{{i}}.attn.{p}")),
        *_many(f"{block}self_attn.out_proj", "vision.blocks.{i}.attn.o"),
        *_many(f"{block}mlp.fc1", "vision.blocks.{i}.mlp.inp"),
        *_many(f"{block}mlp.fc2", "vision.blocks.{i}.mlp.out"),
        Ignored(rf"{_literal(tower)}encoder\.layers\.({past})\..*", "blocks after the selected features"),
        Ignored(rf"{_literal(tower)}embeddings\.position_ids", "an index, not a weight"),
        Ignored(rf"{_literal(tower)}head\..*", "pools one image; features are taken before it"),
    ]
    if cfg.positions == "learned":
        lines.append(Rule(f"{tower}embeddings.position_embedding.weight", "vision.pos_embed"))
    if cfg.cls_token:
        lines.append(Rule(f"{tower}embeddings.class_embedding", "vision.cls_token"))
    if cfg.pre_norm:
        lines += _many(f"{tower}pre_layrnorm", "vision.ln_pre")  # their spelling
    return [*lines, *_final_norm(cfg, f"{tower}post_layernorm")]


def internvit(cfg: VisionConfig, tower: str = "vision_model.") -> list[Line]:
    """InternViT in its original names: fused [Q; K; V], layer scales ls1 and ls2."""
    block, norms = f"{tower}encoder.layers.{{i}}.", _norms(cfg)
    fused = [
        Fused(f"{block}attn.qkv.{leaf}", tuple(f"vision.blocks.{{i}}.attn.{p}.{leaf}" for p in "qkv"), (1, 1, 1))
        for leaf in (AFFINE if cfg.qkv_bias else NORM)
    ]
    return [
        Rule(f"{tower}embeddings.class_embedding", "vision.cls_token", "1 1 d"),
        Rule(f"{tower}embeddings.position_embedding", "vision.pos_embed", "1 n d"),
        *_many(f"{tower}embeddings.patch_embedding", "vision.patch_embed"),
        *fused,
        *_many(f"{block}attn.proj", "vision.blocks.{i}.attn.o"),
        *_many(f"{block}norm1", "vision.blocks.{i}.ln1", norms),
        *_many(f"{block}norm2", "vision.blocks.{i}.ln2", norms),
        *_qk_norm(cfg, f"{block}attn.", "vision.blocks.{i}.attn."),
        *_many(f"{block}mlp.fc1", "vision.blocks.{i}.mlp.inp"),
        *_many(f"{block}mlp.fc2", "vision.blocks.{i}.mlp.out"),
        Rule(f"{block}ls1", "vision.blocks.{i}.scale1"),
        Rule(f"{block}ls2", "vision.blocks.{i}.scale2"),
    ]


def internvl_vision(cfg: VisionConfig, tower: str = "") -> list[Line]:
    """InternViT as transformers' InternVLVisionModel names it."""
    block, norms = f"{tower}encoder.layer.{{i}}.", _norms(cfg)
    qkv = AFFINE if cfg.qkv_bias else NORM
    return [
        Rule(f"{tower}embeddings.cls_token", "vision.cls_token", "1 1 d"),
        Rule(f"{tower}embeddings.position_embeddings", "vision.pos_embed", "1 n d"),
        *_many(f"{tower}embeddings.patch_embeddings.projection", "vision.patch_embed"),
        *(x for p in "qkv" for x in _many(f"{block}attention.{p}_proj", f"vision.blocks.{{i}}.attn.{p}", qkv)),
        *_many(f"{block}attention.projection_layer", "vision.blocks.{i}.attn.o"),
        *_many(f"{block}layernorm_before", "vision.blocks.{i}.ln1", norms),
        *_many(f"{block}layernorm_after", "vision.blocks.{i}.ln2", norms),
        *_qk_norm(cfg, f"{block}attention.", "vision.blocks.{i}.attn."),
        *_many(f"{block}mlp.fc1", "vision.blocks.{i}.mlp.inp"),
        *_many(f"{block}mlp.fc2", "vision.blocks.{i}.mlp.out"),
        Rule(f"{block}lambda_1", "vision.blocks.{i}.scale1"),
        Rule(f"{block}lambda_2", "vision.blocks.{i}.scale2"),
        *_final_norm(cfg, f"{tower}layernorm"),
    ]


def open_clip(cfg: VisionConfig, tower: str = "visual.") -> list[Line]:
    """open_clip's VisionTransformer: attention weights fused as [Q; K; V] in `in_proj`."""
    block = f"{tower}transformer.resblocks.{{i}}."
    fused = [
        Fused(
            f"{block}attn.in_proj_{leaf}",
            tuple(f"vision.blocks.{{i}}.attn.{p}.{leaf}" for p in "qkv"),
            (1, 1, 1),
        )
        for leaf in AFFINE
    ]
    return [
        Rule(f"{tower}class_embedding", "vision.cls_token"),
        Rule(f"{tower}positional_embedding", "vision.pos_embed"),
        Rule(f"{tower}conv1.weight", "vision.patch_embed.weight"),
        *_many(f"{tower}ln_pre", "vision.ln_pre"),
        *fused,
        *_many(f"{block}attn.out_proj", "vision.blocks.{i}.attn.o"),
        *_many(f"{block}ln_1", "vision.blocks.{i}.ln1"),
        *_many(f"{block}ln_2", "vision.blocks.{i}.ln2"),
        *_many(f"{block}mlp.c_fc", "vision.blocks.{i}.mlp.inp"),
        *_many(f"{block}mlp.c_proj", "vision.blocks.{i}.mlp.out"),
        Ignored(rf"{_literal(tower)}(ln_post\..*|proj)", "pool one image; features are taken before them"),
    ]


def qwen_vit(
    cfg: VisionConfig,
    n_deepstack: int,
    tower: str = "visual.",
    mlp: tuple[str, str] = ("fc1", "fc2"),
    merger: tuple[str, str, str] = ("ln_q", "mlp.0", "mlp.2"),
) -> list[Line]:
    """Qwen-VL's towers with their mergers, and RICE: fused [Q; K; V].

    Args:
        cfg: The tower's config.
        n_deepstack: Mergers of earlier blocks.
        tower: The prefix.
        mlp: What the two Linears of a block's MLP are called, where it is not gated.
        merger: What norm and Linears of the merger are called.
    """
    block, norm = f"{tower}blocks.{{i}}.", AFFINE if cfg.norm == "layer" else NORM
    gated = tuple((f"{p}_proj", p) for p in ("gate", "up", "down"))
    named = gated if cfg.gated else ((mlp[0], "inp"), (mlp[1], "out"))
    ln, first, second = merger
    lines: list[Line] = [
        *_many(f"{tower}patch_embed.proj", "vision.patch_embed", AFFINE if cfg.patch_bias else NORM),
        *_many(f"{block}norm1", "vision.blocks.{i}.ln1", norm),
        *_many(f"{block}norm2", "vision.blocks.{i}.ln2", norm),
        *(
            Fused(f"{block}attn.qkv.{leaf}", tuple(f"vision.blocks.{{i}}.attn.{p}.{leaf}" for p in "qkv"), (1, 1, 1))
            for leaf in AFFINE
        ),
        *_many(f"{block}attn.proj", "vision.blocks.{i}.attn.o"),
        *(x for theirs, ours in named for x in _many(f"{block}mlp.{theirs}", f"vision.blocks.{{i}}.mlp.{ours}")),
        *_many(f"{tower}merger.{ln}", "projector.ln_patch", norm),
        *_many(f"{tower}merger.{first}", "projector.inp"),
        *_many(f"{tower}merger.{second}", "projector.out"),
    ]
    if cfg.positions == "interpolated":
        lines.append(Rule(f"{tower}pos_embed.weight", "vision.pos_embed"))
    if cfg.cls_token:
        lines.append(Rule(f"{tower}class_embedding", "vision.cls_token"))
        lines.append(Rule(f"{tower}class_pos_emb", "vision.cls_angles", "1 n"))
    if cfg.pre_norm:
        lines += _many(f"{tower}pre_layernorm", "vision.ln_pre")
    for k in range(n_deepstack):
        theirs, ours = f"{tower}deepstack_merger_list.{k}.", f"projector.deepstack.{k}."
        lines += [*_many(f"{theirs}{ln}", f"{ours}ln"), *_many(f"{theirs}{first}", f"{ours}inp")]
        lines += _many(f"{theirs}{second}", f"{ours}out")
    return lines


def mlp2x(first: str, second: str, newline: str | None = None, has_newline: bool = False) -> list[Line]:
    """The LLaVA projector; a newline parameter that this family's video path never reads is left out."""
    lines = [*_many(first, "projector.inp"), *_many(second, "projector.out")]
    if newline is not None:
        unused = Ignored(_literal(newline), "not used for video")
        lines.append(Rule(newline, "projector.newline") if has_newline else unused)
    return lines


def intern_projector(ln: str = "mlp1.0", first: str = "mlp1.1", second: str = "mlp1.3") -> list[Line]:
    """InternVL's: LayerNorm, Linear, GELU, Linear."""
    return [*_many(ln, "projector.ln"), *_many(first, "projector.inp"), *_many(second, "projector.out")]


def _norms(cfg: VisionConfig) -> tuple[str, ...]:
    return NORM if cfg.norm == "rms" else AFFINE


def _qk_norm(cfg: DecoderConfig | VisionConfig, theirs: str, ours: str) -> list[Line]:
    return [x for p in "qk" for x in _many(f"{theirs}{p}_norm", f"{ours}{p}_norm", NORM)] if cfg.qk_norm else []


def _head(cfg: DecoderConfig, theirs: str) -> Line:
    return Ignored(_literal(theirs), "tied to the embedding") if cfg.tied else Rule(theirs, "unembed.weight")


def _final_norm(cfg: VisionConfig, theirs: str) -> list[Line]:
    if cfg.final_norm:
        return _many(theirs, "vision.ln_final")
    return [Ignored(rf"{_literal(theirs)}\..*", "features are the residual stream before it")]


def _literal(name: str) -> str:
    return name.replace(".", r"\.")
