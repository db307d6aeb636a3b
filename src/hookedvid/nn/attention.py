"""The only attention in the package: every tower and decoder layer, every mask, goes through `attend`.

Axis words: batch query key pos head kv_head d_head d_model.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hookedvid.errors import HookError
from hookedvid.nn.flows import Flow, last_anew, with_flows, with_flows_of
from hookedvid.nn.head_groups import Calls, HeadGroups
from hookedvid.nn.hooks import HookPoint, listening, untouched, with_path
from hookedvid.nn.kv import LayerKV
from hookedvid.nn.layers import LayerNorm, RMSNorm, rotate
from hookedvid.nn.structured import Structure
from hookedvid.nn.text_states import Joined
from hookedvid.values.masks import masked, visible

Kernel = Literal["sdpa", "eager"]
# Gives (output, log-sum-exp [batch, head, query]); F.scaled_dot_product_attention hands on the first alone.
TELLS_LSE = "aten._scaled_dot_product_flash_attention_for_cpu.default"


class Attended(NamedTuple):
    """What an attention layer computed from, and what.

    Attributes:
        q, k: Rotated.
        v: Of the keys.
        z: Before its hook point.
        allowed: As of an AttnContext.
        lse: Log-sum-exp of each row's scores, where the kernel knew it. (A row with no key left has that of all keys.)
    """

    q: Float[Tensor, "batch query head d_head"]
    k: Float[Tensor, "batch key kv_head d_head"]
    v: Float[Tensor, "batch key kv_head d_head"]
    z: Float[Tensor, "batch query head d_head"]
    allowed: Bool[Tensor, "#batch #head query key"] | Float[Tensor, "#batch #head query key"] | Calls | None
    lse: Float[Tensor, "batch head query"] | None


Probe = Callable[[Attended], None]


class AttnContext(NamedTuple):
    """What an attention layer needs besides its input.

    `allowed` is True where a query may look (or M, see `values.masks`, where edges have weights), or the kernel calls
    that amount to such a mask (taken where nothing needs the mask itself), or what rows of a stream and of text states
    see of each other (`causal` is then the stream's); None means all keys up to the query's own (`causal`) or all
    keys. `cos` and `sin` are None where positions are not rotary. `probe` is shown what was attended. It changes
    nothing. `flows` put other values along some edges.
    """

    cos: Float[Tensor, "#batch pos d_head"] | None = None
    sin: Float[Tensor, "#batch pos d_head"] | None = None
    allowed: (
        Bool[Tensor, "#batch #head query key"] | Float[Tensor, "#batch #head query key"] | Calls | Joined | None
    ) = None
    causal: bool = False
    kernel: Kernel = "sdpa"
    probe: Probe | None = None
    flows: Sequence[Flow] = ()


def attend(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key kv_head d_head"],
    v: Float[Tensor, "batch key kv_head d_head"],
    allowed: Bool[Tensor, "#batch #head query key"] | Float[Tensor, "#batch #head query key"] | None,
    *,
    causal: bool,
    kernel: Kernel,
    on_scores: HookPoint,
    on_pattern: HookPoint,
    flows: Sequence[Flow] = (),
    n_left: int = 0,
) -> Float[Tensor, "batch query head d_head"]:
    """softmax(QK^T / sqrt(d_head) + M) V, with M -inf where `allowed` is False, or M given; all heads at once.

    A query with no key left outputs zero. Listening on scores or pattern takes the explicit path in this
    layer; otherwise `kernel` says which is used. Each kv_head serves head / kv_head consecutive heads. `flows` are
    computed from the pattern where it is made. The kernel is spared the last `n_left` rows of as many queries as keys,
    which flows compute.
    """
    by_head = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if kernel == "eager" or listening(on_scores, on_pattern):
        return _explicit(*by_head, allowed, causal, on_scores, on_pattern, flows).transpose(1, 2)
    if n_left:
        by_head = q[:, :-n_left].transpose(1, 2), k[:, :-n_left].transpose(1, 2), v[:, :-n_left].transpose(1, 2)
    z = _fused(*by_head, allowed, causal).transpose(1, 2)
    z = torch.cat([z, z.new_zeros(len(z), n_left, *z.shape[2:])], 1) if n_left else z
    return with_flows(flows, z, q, lambda item: (k[item], v[item]))


def _fused(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool) -> Tensor:
    gqa = q.shape[1] != k.shape[1]
    if allowed is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal and q.shape[2] > 1, enable_gqa=gqa)
    # An empty row may look everywhere inside the kernel and is zeroed after it: kernels disagree on what
    # such a row gives (zero, NaN), and its gradient is NaN in some.
    empty = ~visible(allowed).any(-1, keepdim=True)
    k, v = _repeat(q, k), _repeat(q, v)
    mask = allowed | empty if allowed.dtype == torch.bool else allowed.to(q.dtype).masked_fill(empty, 0.0)
    z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return z.masked_fill(empty, 0.0)


def _explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor | None,
    causal: bool,
    on_scores: HookPoint,
    on_pattern: HookPoint,
    flows: Sequence[Flow],
) -> Tensor:
    k = _repeat(q, k)
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if allowed is None and causal:
        allowed = causal_mask(q.shape[2], k.shape[2], q.device)
    if allowed is not None:
        scores = masked(scores, allowed)
    scores = on_scores(scores)
    empty = (scores == float("-inf")).all(-1, keepdim=True)
    # Softmax in float32 for half types, as transformers' eager path does; float64 stays.
    precise = torch.promote_types(scores.dtype, torch.float32)
    pattern = scores.masked_fill(empty, 0.0).softmax(-1, dtype=precise).to(q.dtype)
    pattern = on_pattern(pattern.masked_fill(empty, 0.0))
    return with_flows_of(flows, pattern @ _repeat(q, v), pattern, v.transpose(1, 2))


def _repeat(q: Tensor, kv: Tensor) -> Tensor:
    groups = q.shape[1] // kv.shape[1]
    return kv if groups == 1 else kv.repeat_interleave(groups, dim=1)


def causal_mask(n_query: int, n_key: int, device: torch.device) -> Bool[Tensor, "1 1 query key"]:
    """True where a query may look when the last query and the last key are the same position."""
    query = torch.arange(n_key - n_query, n_key, device=device)
    return (torch.arange(n_key, device=device)[None] <= query[:, None])[None, None]


def _refuse_both(fork: HookPoint, changed: Tensor, norm: RMSNorm | LayerNorm, normalized: Tensor, x: Tensor) -> None:
    """Raise HookError where a head's own input and the norm it would go through are edited at one position."""
    if not listening(norm.hook_scale, norm.hook_normalized):
        return
    edited = (normalized != norm.plain(x)).any(-1)
    if bool((edited[..., None, None] & changed).any()):
        raise HookError(
            f"{fork.name!r} and {norm.hook_normalized.name!r} (or its scale) are edited at the same positions: a head "
            "with an input of its own has a norm of its own, which that edit does not reach; do it in the fork's hook"
        )


class _Overhear(TorchDispatchMode):
    """Keeps the log-sum-exp that a kernel called within computes; the call is the same, bit for bit."""

    lse: Tensor | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first use imports torch's compiler: a second, and 139 MiB that stay

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if str(func) == TELLS_LSE:
            self.lse = out[1]
        return out


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values.

    `qk_norm` puts an RMSNorm of `eps` behind `hook_q` and `hook_k`, before rotary positions: over the d_head of each
    `head`, or over `all` heads' channels at once. Weights are plain Linears (bitwise parity with transformers); `W_Q`,
    `W_K`, `W_V` [head, d_model, d_head] and `W_O` [head, d_head, d_model] are views of them.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        n_kv_heads: int,
        d_head: int,
        qkv_bias: bool,
        o_bias: bool,
        rotary: bool,
        qk_norm: Literal["none", "head", "all"] = "none",
        eps: float = 1e-6,
    ):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.d_head = n_heads, n_kv_heads, d_head
        self.q = nn.Linear(d_model, n_heads * d_head, bias=qkv_bias)
        self.k = nn.Linear(d_model, n_kv_heads * d_head, bias=qkv_bias)
        self.v = nn.Linear(d_model, n_kv_heads * d_head, bias=qkv_bias)
        self.o = nn.Linear(n_heads * d_head, d_model, bias=o_bias)
        self.qk_norm = qk_norm
        if qk_norm != "none":
            each, all_of_them = (d_head, d_head), (n_heads * d_head, n_kv_heads * d_head)
            self.q_norm, self.k_norm = (RMSNorm(n, eps) for n in (each if qk_norm == "head" else all_of_them))
        self.hook_q_input = HookPoint()  # [batch, pos, head, d_model], the residual before the norm
        self.hook_k_input = HookPoint()  # [batch, pos, kv_head, d_model]
        self.hook_v_input = HookPoint()  # [batch, pos, kv_head, d_model]
        self.hook_q = HookPoint()  # [batch, pos, head, d_head]
        self.hook_k = HookPoint()  # [batch, pos, kv_head, d_head]
        self.hook_v = HookPoint()  # [batch, pos, kv_head, d_head]
        if rotary:
            self.hook_rot_q = HookPoint()  # [batch, pos, head, d_head]
            self.hook_rot_k = HookPoint()  # [batch, pos, kv_head, d_head]
        self.hook_mask = HookPoint()  # [batch, head or 1, query, key], True = may look, with a weight or without
        self.hook_mask.n_heads = n_heads
        self.hook_attn_scores = HookPoint()  # [batch, head, query, key], -inf where cut, log weights added
        self.hook_pattern = HookPoint()  # [batch, head, query, key]
        self.hook_z = HookPoint()  # [batch, pos, head, d_head]
        self.hook_result = HookPoint()  # [batch, pos, head, d_model]

    def forward(
        self,
        attn_in: Float[Tensor, "batch pos d_model"],
        norm: RMSNorm | LayerNorm,
        ctx: AttnContext,
        kv: LayerKV | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        """What attention adds to the residual stream `attn_in`, normalised here by `norm`.

        With `kv`, the new keys and values join the cached ones and queries look at both.
        """
        normalized = norm(attn_in)
        q = self.hook_q(self._project(self.q, self.n_heads, normalized, attn_in, norm, self.hook_q_input))
        k = self.hook_k(self._project(self.k, self.n_kv_heads, normalized, attn_in, norm, self.hook_k_input))
        v = self.hook_v(self._project(self.v, self.n_kv_heads, normalized, attn_in, norm, self.hook_v_input))
        del normalized  # attention needs the room
        q, k = self._normed("q", q), self._normed("k", k)
        if ctx.cos is not None and ctx.sin is not None:
            q, k = self.hook_rot_q(rotate(q, ctx.cos, ctx.sin)), self.hook_rot_k(rotate(k, ctx.cos, ctx.sin))
        if kv is not None:
            k, v = kv.append(k, v)
        z = self.hook_z(self._attend(q, k, v, ctx))
        out = self.o(z.flatten(2))
        if not listening(self.hook_result):
            return out
        result = torch.einsum("bphd,hdm->bphm", z, self.W_O)
        total = result.sum(2)  # before the hook, which may edit in place
        hooked = self.hook_result(result).sum(2)
        return untouched(hooked == total, out, hooked if self.o.bias is None else hooked + self.o.bias)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, ctx: AttnContext) -> Float[Tensor, "batch query head d_head"]:
        if isinstance(ctx.allowed, Joined):
            return self._joined(q, k, v, ctx, ctx.allowed)
        listened = listening(self.hook_mask, self.hook_attn_scores, self.hook_pattern)
        if isinstance(ctx.allowed, Structure | HeadGroups) and ctx.kernel == "sdpa" and not listened:
            z, allowed, lse = ctx.allowed.attend(q, k, v), ctx.allowed, None
            z = with_flows(ctx.flows, z, q, lambda item: (k[item], v[item]))
        else:
            allowed = self._mask(ctx, q, k)
            points = {"on_scores": self.hook_attn_scores, "on_pattern": self.hook_pattern}
            square = allowed is None and ctx.causal and q.shape[1] == k.shape[1]
            n_left = last_anew(ctx.flows, q) if square and ctx.probe is None else 0
            with nullcontext() if ctx.probe is None else _Overhear() as heard:
                z = attend(
                    q, k, v, allowed, causal=ctx.causal, kernel=ctx.kernel, flows=ctx.flows, n_left=n_left, **points
                )
            lse = None if heard is None else heard.lse
        if ctx.probe is not None:
            ctx.probe(Attended(q, k, v, z, allowed, lse))
        return z

    def _joined(self, q: Tensor, k: Tensor, v: Tensor, ctx: AttnContext, rows: Joined) -> Tensor:
        n = rows.n_first
        stream = rows.held or (k[:, : rows.n_stream], v[:, : rows.n_stream])
        text = rows.states.attend(q[:, n:], k[:, n:], v[:, n:], *stream)
        if not n:
            return text
        return torch.cat([self._attend(q[:, :n], k[:, :n], v[:, :n], ctx._replace(allowed=rows.first)), text], 1)

    def keys_values(
        self, attn_in: Float[Tensor, "batch pos d_model"], norm: RMSNorm | LayerNorm, ctx: AttnContext
    ) -> tuple[Float[Tensor, "batch pos kv_head d_head"], Float[Tensor, "batch pos kv_head d_head"]]:
        """What `forward` would put into a key-value cache, for rows whose own output nobody needs."""
        normalized = norm(attn_in)
        k = self._project(self.k, self.n_kv_heads, normalized, attn_in, norm, self.hook_k_input)
        v = self._project(self.v, self.n_kv_heads, normalized, attn_in, norm, self.hook_v_input)
        assert ctx.cos is not None and ctx.sin is not None
        return rotate(self._normed("k", k), ctx.cos, ctx.sin), v

    def _normed(self, which: str, x: Tensor) -> Tensor:
        if self.qk_norm == "none":
            return x
        norm = self.q_norm if which == "q" else self.k_norm
        return norm(x) if self.qk_norm == "head" else norm(x.flatten(2)).view_as(x)

    def _mask(self, ctx: AttnContext, q: Tensor, k: Tensor) -> Tensor | None:
        mask = ctx.allowed
        assert not isinstance(mask, Joined)
        if isinstance(mask, Structure | HeadGroups):
            mask = mask.dense(q.device)
            mask = mask.view(1, -1, *mask.shape[-2:])
        if not listening(self.hook_mask):
            return mask
        if mask is None and ctx.causal:
            mask = causal_mask(q.shape[1], k.shape[1], q.device)
        if mask is None:
            mask = torch.ones(1, 1, q.shape[1], k.shape[1], dtype=torch.bool, device=q.device)
        # A copy: an edit in place must not reach other layers that share the mask.
        mask = mask.expand(q.shape[0], -1, -1, -1)
        may = self.hook_mask(visible(mask).clone())
        if mask.dtype == torch.bool:
            return may
        # What an edit opens has weight 1, and M elsewhere is what it was.
        return torch.where(may, torch.where(visible(mask), mask, 0.0), float("-inf"))

    def _project(
        self,
        linear: nn.Linear,
        n_heads: int,
        normalized: Tensor,
        attn_in: Tensor,
        norm: RMSNorm | LayerNorm,
        fork: HookPoint,
    ) -> Tensor:
        out = linear(normalized).unflatten(-1, (n_heads, self.d_head))
        if not listening(fork):
            return out
        # Each head gets its own copy of the residual, so that one path into one head can be edited.
        shared = attn_in[:, :, None].expand(-1, -1, n_heads, -1)
        own = shared.clone()
        before = None if own.is_inference() else own._version
        read = fork(own)
        changed = (read != shared).any(-1, keepdim=True)
        if own.requires_grad:  # what was left alone reads the stream by `normalized`, which carries its gradient
            own.register_hook(lambda grad: grad * changed)
        if read is not own or before is None or own._version != before:  # else no device is asked for an answer
            _refuse_both(fork, changed, norm, normalized, attn_in)
        weight = linear.weight.unflatten(0, (n_heads, self.d_head))
        path = torch.einsum("bphm,hdm->bphd", norm.plain(read), weight)
        if linear.bias is not None:
            path = path + linear.bias.unflatten(0, (n_heads, self.d_head))
        return torch.where(changed, path, with_path(out, path))

    def _in_weight(self, linear: nn.Linear, n_heads: int) -> Float[Tensor, "heads d_model d_head"]:
        return linear.weight.unflatten(0, (n_heads, self.d_head)).transpose(1, 2)

    def _in_bias(self, linear: nn.Linear, n_heads: int) -> Float[Tensor, "heads d_head"]:
        bias = linear.weight.new_zeros(n_heads * self.d_head) if linear.bias is None else linear.bias
        return bias.unflatten(0, (n_heads, self.d_head))

    W_Q = property(lambda self: self._in_weight(self.q, self.n_heads))
    W_K = property(lambda self: self._in_weight(self.k, self.n_kv_heads))
    W_V = property(lambda self: self._in_weight(self.v, self.n_kv_heads))
    W_O = property(lambda self: self.o.weight.T.unflatten(0, (self.n_heads, self.d_head)))
    b_Q = property(lambda self: self._in_bias(self.q, self.n_heads))
    b_K = property(lambda self: self._in_bias(self.k, self.n_kv_heads))
    b_V = property(lambda self: self._in_bias(self.v, self.n_kv_heads))

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias, zeros where the model has none."""
        return self.o.weight.new_zeros(self.o.out_features) if self.o.bias is None else self.o.bias
