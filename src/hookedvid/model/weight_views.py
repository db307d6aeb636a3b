"""TransformerLens's names for weights and tokens: views and look-ups, no storage of its own."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.nn.hooks import FactoredMatrix
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.tensors import ints


class WeightViews:
    """`W_Q`, `W_U`, `QK`, `to_tokens`, … of the decoder; heads and layers are the leading axes."""

    cfg: Any
    blocks: Any
    ln_final: Any
    embed: Any
    unembed: Any
    tokenizer: Any
    device: torch.device

    def _stack(self, part: str, name: str) -> Tensor:
        if away := [i for i, b in enumerate(self.blocks) if b.attn.q.weight.is_meta]:
            raise InputError(
                f"{name}: the weights of blocks {away} are offloaded; load without device_map to read them"
            )
        return torch.stack([getattr(getattr(b, part), name).to(self.device) for b in self.blocks])

    W_E = property(lambda self: self.embed.weight)  # [d_vocab, d_model]
    W_U = property(lambda self: self.unembed.weight.T)  # [d_model, d_vocab]
    W_Q = property(lambda self: self._stack("attn", "W_Q"))  # [layer, head, d_model, d_head]
    W_K = property(lambda self: self._stack("attn", "W_K"))  # [layer, kv_head, d_model, d_head]
    W_V = property(lambda self: self._stack("attn", "W_V"))  # [layer, kv_head, d_model, d_head]
    W_O = property(lambda self: self._stack("attn", "W_O"))  # [layer, head, d_head, d_model]
    b_Q = property(lambda self: self._stack("attn", "b_Q"))  # [layer, head, d_head]
    b_K = property(lambda self: self._stack("attn", "b_K"))  # [layer, kv_head, d_head]
    b_V = property(lambda self: self._stack("attn", "b_V"))  # [layer, kv_head, d_head]
    b_O = property(lambda self: self._stack("attn", "b_O"))  # [layer, d_model]
    W_gate = property(lambda self: self._stack("mlp", "W_gate"))  # [layer, d_model, d_mlp]
    W_in = property(lambda self: self._stack("mlp", "W_in"))  # [layer, d_model, d_mlp]
    W_out = property(lambda self: self._stack("mlp", "W_out"))  # [layer, d_mlp, d_model]

    @property
    def b_U(self) -> Float[Tensor, " d_vocab"]:
        """Unembedding bias: zeros, no model here has one."""
        return self.unembed.weight.new_zeros(self.cfg.d_vocab)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T of every query head, [layer, head, d_model, d_model] factored; rotary turns not included."""
        return FactoredMatrix(self.W_Q, self._per_query_head(self.W_K).transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every query head, [layer, head, d_model, d_model] factored."""
        return FactoredMatrix(self._per_query_head(self.W_V), self.W_O)

    def _per_query_head(self, w: Tensor) -> Tensor:
        return w.repeat_interleave(self.cfg.n_heads // self.cfg.n_key_value_heads, dim=1)

    def all_head_labels(self) -> list[str]:
        """`L0H0`, …, in the order of stacked heads (0-based)."""
        return [f"L{i}H{h}" for i in range(self.cfg.n_layers) for h in range(self.cfg.n_heads)]

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the attention output biases that reached block `layer`; MLPs have none."""
        upto = self.blocks[: layer + 1 if mlp_input else layer]
        zero = self.unembed.weight.new_zeros(self.cfg.d_model)
        return torch.stack([zero, *(b.attn.b_O for b in upto)]).sum(0)

    def to_tokens(self, text: str) -> Int[Tensor, "1 pos"]:
        """Token ids of a text, the tokenizer's special tokens included."""
        return torch.tensor([self._tokenizer()(text)["input_ids"]], device=self.device)

    def to_string(self, tokens: Tensor) -> str:
        """The text of one sequence of ids; -200 and padding are left out."""
        return self._tokenizer().decode([t for t in ints(tokens.flatten()) if t >= 0])

    def to_str_tokens(self, text: str | Tensor | VideoInputs) -> list[str]:
        """Each token of a text, of ids or of inputs as text; a video position prints as `<video>`."""
        given = self.to_tokens(text) if isinstance(text, str) else text
        ids = ints((given.tokens if isinstance(given, VideoInputs) else given).flatten())
        return ["<video>" if i < 0 else self._tokenizer().decode([i]) for i in ids]

    def to_single_token(self, text: str) -> int:
        """The id of a text that is one token.

        Raises:
            InputError: If it is several, or unknown to the vocabulary.
        """
        tokenizer = self._tokenizer()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(f"{text!r} is {len(ids)} tokens, not one: {self.to_str_tokens(torch.tensor(ids))}")
        if ids[0] == getattr(tokenizer, "unk_token_id", None) and text != tokenizer.unk_token:
            raise InputError(f"{text!r} is no token of this vocabulary")
        return ids[0]

    def tokens_to_residual_directions(self, tokens: str | int | Tensor) -> Float[Tensor, "*tokens d_model"]:
        """Columns of W_U times the final norm's weight: what dots with resid / scale to give these tokens' logits.

        TransformerLens's attributions divide by the scale alone, since it folds that weight into W_U.
        """
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        return self.unembed.weight[tokens] * self.ln_final.weight

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer; pass tokenizer=... where it is made")
        return self.tokenizer

    # TransformerLens's switches. Results, forks and MLP inputs exist whenever something listens, so turning
    # them on changes nothing, and turning them off would only make hooks fail.
    def set_use_attn_result(self, on: bool) -> None:
        """Accepted for TransformerLens's tools; `hook_result` fires whenever something listens."""

    def set_use_split_qkv_input(self, on: bool) -> None:
        """Accepted for TransformerLens's tools; `hook_q_input` … fire whenever something listens."""

    def set_use_hook_mlp_in(self, on: bool) -> None:
        """Accepted for TransformerLens's tools; `hook_mlp_in` always fires."""

    def set_use_attn_in(self, on: bool) -> None:
        """Accepted for TransformerLens's tools; `hook_attn_in` always fires."""
