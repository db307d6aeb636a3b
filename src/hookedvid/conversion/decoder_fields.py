"""A decoder's sizes and rotary positions as the original packages' configs name them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hookedvid.conversion.fields import Fields
from hookedvid.values.config import DecoderConfig, RopeConfig

LLAMA_THETA = 10_000.0  # of Llama's class; configs of its first years do not name it, nor does Vicuna's
ACT = "silu"  # of the classes of all of these
QWEN3_HEAD = 128  # d_head of Qwen3's class, whatever the width
ROPE: dict[str, Literal["none", "linear", "dynamic"]] = {"default": "none", "linear": "linear", "dynamic": "dynamic"}


def rows_of(shapes: Mapping[str, Sequence[int]], embedding: str) -> int:
    """Rows of an embedding; 1 where there is none, which is then missed by its name."""
    return (*shapes.get(embedding, ()), 1)[0]


def read_decoder(
    read: Fields, rows: int, overrides: Mapping[str, Any], notes: list[str], *, kind: str, scaled: bool = True
) -> DecoderConfig:
    """Qwen2, Qwen3, Llama or InternLM2, as `kind` says.

    Args:
        rows: Of the embedding, which the tensors show.
        scaled: Whether the code heeds rope_scaling: LLaVA's Qwen2 sets it aside.
    """
    read.only("attention_bias", False)
    read.only("use_sliding_window", False, None)
    read.only("mlp_bias", False)
    read("vocab_size")
    heads, width = read.count("num_attention_heads"), read.count("hidden_size")
    n_layers, d_mlp, n_ctx = map(read.count, ("num_hidden_layers", "intermediate_size", "max_position_embeddings"))
    n_kv_heads = read.count("num_key_value_heads", heads)
    d_head = read.count("head_dim", QWEN3_HEAD if kind == "qwen3" else max(width // heads, 1))
    act, eps = read.act("hidden_act", ACT), read.number("rms_norm_eps", 1e-6)
    tied = bool(read("tie_word_embeddings", False))
    layers = read("layer_types")
    if layers is not None and set(map(str, layers)) != {"full_attention"}:
        read.problems.append(f"layer_types = {layers!r} is not supported (only full_attention in every layer)")
    rope = _rope(read, overrides.get("decoder.rope.theta"), notes, kind, scaled)
    read.raise_problems()
    return DecoderConfig(
        n_layers=n_layers,
        d_model=width,
        n_heads=heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        d_mlp=d_mlp,
        d_vocab=rows,
        n_ctx=n_ctx,
        act=act,
        eps=eps,
        qkv_bias=kind == "qwen2",
        tied=tied,
        rope=rope,
        qk_norm=kind == "qwen3",
    )


def _rope(read: Fields, chosen: float | None, notes: list[str], kind: str, scaled: bool) -> RopeConfig:
    """From rope_theta and rope_scaling, or from the rope_parameters in which transformers 5 writes both.

    Args:
        chosen: The override's theta, which stands in for one that config.json does not name.
        scaled: See `read_decoder`.
    """
    new = Fields(read("rope_parameters") or {}, "rope_parameters")
    old = Fields(read("rope_scaling") or {}, "rope_scaling")
    thetas = [f.number("rope_theta", 1.0) for f in (read, new) if f("rope_theta") is not None]
    if not thetas and chosen is None and kind != "llama":
        read.problems.append(
            "rope_theta is missing, as is rope_parameters; state it as an override of decoder.rope.theta"
        )
    elif not thetas and chosen is None:
        notes.append(f"config.json names no rope_theta; {LLAMA_THETA:g}, the default of Llama's class")
    theta = (thetas or [LLAMA_THETA])[0]
    if len(set(thetas)) > 1:
        read.problems.append(f"rope_theta = {thetas[0]:g} contradicts rope_parameters = {new.values!r}")
    if not scaled:
        old = Fields({}, "rope_scaling")
        new.only("rope_type", "default")
    scalings = {_scaling(f) for f in (old, new) if f.values} or {("none", 1.0)}
    if len(scalings) > 1:
        read.problems.append(f"rope_scaling = {old.values!r} contradicts rope_parameters = {new.values!r}")
    read.problems += old.problems + new.problems
    scaling, factor = scalings.pop()
    return RopeConfig(theta=theta, scaling=scaling, factor=factor)


def _scaling(fields: Fields) -> tuple[Literal["none", "linear", "dynamic"], float]:
    """The kind and factor of scaling; what else is said of it is recorded as not supported."""
    kinds = {str(k) for name in ("rope_type", "type") if (k := fields(name)) is not None}
    kind, factor = ", ".join(sorted(kinds)) or "default", fields.number("factor", 1.0)
    fields("rope_theta")
    if kind == "default":  # as long as nothing is scaled, the length it would be scaled from says nothing
        fields("original_max_position_embeddings")
    half = kinds != {"default"} and bool(kinds) != ("factor" in fields.values)
    if half or kind not in ROPE or fields.values.keys() - fields.taken or factor <= 0:
        said = f"{fields.what} = {fields.values!r}"
        fields.problems.append(f"{said} is not supported (only linear, dynamic, by a factor)")
    return ROPE.get(kind, "none"), factor if factor > 0 else 1.0
