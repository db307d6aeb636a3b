"""The derivative of a number by the log-weights of attention's edges, summed over readers; nothing is query x key.

An edge's log-weight is added to its score: z_i = sum_j P_ij v_j with P_ij ~ exp(s_ij + log w_ij). With g_i the gradient
at z_i, the derivative by log w_ij is P_ij g_i . (v_j - z_i), for all heads apart. Some readers at a time, their rows of
the pattern are made, and summed as soon as they are there.

Axis words: row key class head kv_head d_head.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.nn.flows import softmax

# Scores made at once: 16 MiB in float32. As many numbers are held two to three times.
SCORES = 1 << 22


def edge_sums(
    q: Float[Tensor, "row head d_head"],
    k: Float[Tensor, "row kv_head d_head"],
    v: Float[Tensor, "row kv_head d_head"],
    z: Float[Tensor, "row head d_head"],
    g: Float[Tensor, "row head d_head"],
    readers: Sequence[Int[Tensor, " _"]],
    mask: Callable[[Tensor, int], Tensor],
) -> tuple[Float[Tensor, "head class row"], Float[Tensor, "head row"]]:
    """The sums of one item, whose rows are its keys.

    Args:
        q, k, v, z: What attention computed from, and what.
        g: The gradient at z.
        readers: Rows of each class, ascending.
        mask: Gives the mask [#head some key] of some rows and so many of the first keys, on any device.

    Returns:
        Of each key the sum over the readers of a class; of each reader the term of its edge to itself.
    """
    precise, device = torch.promote_types(q.dtype, torch.float32), q.device
    keys, values = (x.to(precise).permute(1, 2, 0) for x in (k, v))  # [kv_head, d_head, key]
    n_heads = q.shape[1]
    per_key = keys.new_zeros(n_heads, len(readers), len(k))
    own = keys.new_zeros(n_heads, len(q))
    step = max(1, SCORES // (n_heads * len(k)))
    for of_class, rows in enumerate(readers):
        for some in torch.split(rows, step) if len(rows) else ():
            n, at = int(some[-1]) + 1, some.to(device)
            mine, z_some, g_some = (x[at].to(precise).transpose(0, 1) for x in (q, z, g))
            pattern = softmax(_by_kv_head(mine * q.shape[-1] ** -0.5, keys[..., :n]), mask(some, n))
            terms = _by_kv_head(g_some, values[..., :n])
            terms.sub_((g_some * z_some).sum(-1, keepdim=True)).mul_(pattern)
            per_key[:, of_class, :n] += terms.sum(1)
            own[:, at] = terms.gather(2, at.expand(n_heads, -1)[..., None])[..., 0]
    return per_key, own


def _by_kv_head(x: Float[Tensor, "head row d_head"], y: Float[Tensor, "kv_head d_head key"]) -> Tensor:
    """Products [head row key]; heads of one kv_head beside each other in one row axis, so that y needs no copies."""
    return (x.reshape(len(y), -1, x.shape[-1]) @ y).view(*x.shape[:2], -1)
