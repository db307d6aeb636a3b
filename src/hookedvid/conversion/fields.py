"""Fields of other people's configs: taken one by one, so that what nobody took can be refused."""

import sys
from collections.abc import Collection, Mapping
from typing import Any

from hookedvid.errors import ConversionError
from hookedvid.values.config import Activation
from hookedvid.values.limits import misfit

ACT: dict[str, Activation] = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
# Sizes as other people's configs name them, by the bound that holds for each.
SIZES = {
    "num_hidden_layers": "n_layers",
    "hidden_size": "d_model",
    "intermediate_size": "d_mlp",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "d_head",
    "vocab_size": "d_vocab",
    "max_position_embeddings": "n_ctx",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "depth": "n_layers",
    "embed_dim": "d_model",
    "num_heads": "n_heads",
    "mm_spatial_pool_stride": "pool_stride",
}

# What transformers writes into every config; quantization_config is harmless
# where weights are plain numbers; packed ones are refused by their tensors.
PRETRAINED = set(
    "add_cross_attention architectures attention_dropout attn_implementation auto_map bad_words_ids "
    "begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size diversity_penalty do_sample "
    "early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty finetuning_task id2label "
    "initializer_factor initializer_range is_decoder is_encoder_decoder label2id length_penalty max_length min_length "
    "model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions "
    "output_hidden_states output_scores prefix pretraining_tp problem_type pruned_heads quantization_config "
    "remove_invalid_values repetition_penalty return_dict return_dict_in_generate suppress_tokens task_specific_params "
    "temperature tf_legacy_loss tie_encoder_decoder "
    "tokenizer_class top_k top_p torch_dtype dtype torchscript transformers_version typical_p use_bfloat16 "
    "use_cache".split()
)


class Fields:
    """Takes fields from a config and keeps what it took and what was wrong with it."""

    def __init__(self, values: Mapping[str, Any], what: str):
        if not isinstance(values, Mapping):
            raise ConversionError(f"{what} is {values!r}, not an object")
        self.values = values
        self.what = what
        self.taken: set[str] = set()
        self.problems: list[str] = []

    def __call__(self, name: str, default: Any = None) -> Any:
        """A field, or the default where it is absent."""
        self.taken.add(name)
        return self.values.get(name, default)

    def need(self, name: str) -> Any:
        """A field that must be there; a missing one is recorded."""
        if name not in self.values:
            self.problems.append(f"{name} is missing")
        return self(name)

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 to the bound of its kind; anything else, and a missing one, is recorded."""
        value = self(name, default)
        if value is None and default is not None:
            return default
        if value is None:
            self.problems.append(f"{name} is missing")
        elif problem := misfit(value, SIZES[name]):
            self.problems.append(f"{name} = {value!r} {problem}")
        else:
            return value
        return 1

    def number(self, name: str, default: float) -> float:
        """A finite number; anything else is recorded."""
        value = self(name, default)
        value = default if value is None else value
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
            return float(value)
        self.problems.append(f"{name} = {value!r} is no finite number")
        return default

    def only(self, name: str, *values: Any) -> None:
        """Record a problem unless a field is absent or has one of these values."""
        value = self(name, values[0])
        if value not in values:
            self.problems.append(f"{name} = {value!r} is not supported (only {', '.join(map(repr, values))})")

    def act(self, name: str, default: str | None = None) -> Activation:
        """One of our activations, `default` where the field is absent; an unsupported or missing one is recorded."""
        value = self(name, default)
        if isinstance(value, str) and value in ACT:
            return ACT[value]
        wrong = f"= {value!r} is not supported (only {', '.join(map(repr, ACT))})"
        self.problems.append(f"{name} {'is missing' if value is None else wrong}")
        return "gelu"

    def close(self, harmless: Collection[str], ignore: Collection[str] = ()) -> None:
        """Raise ConversionError for everything recorded and for fields set but never taken.

        Args:
            harmless: Fields known to change no forward pass, beside book-keeping (`is_book_keeping`).
            ignore: Fields the caller takes upon himself; one that is read here has an effect, so it cannot be ignored.
        """
        left = self.values.keys() - self.taken - set(harmless)
        unknown = sorted(n for n in left - set(ignore) if not is_book_keeping(n))
        self.problems += [f"{n} = {self.values[n]!r} is set and nothing here reads it" for n in unknown]
        self.problems += [
            f"{n} = {self.values[n]!r} is read here and cannot be ignored; override what it should be"
            for n in sorted(self.taken & self.values.keys() & set(ignore))
        ]
        self.raise_problems(
            "; if such a field changes nothing of the forward pass, ignore it by name" if unknown else ""
        )

    def raise_problems(self, hint: str = "") -> None:
        """Raise ConversionError for everything recorded so far."""
        if self.problems:
            raise ConversionError(f"{self.what}: {'; '.join(self.problems)}{hint}")


def is_book_keeping(name: str) -> bool:
    """Whether a field tells where a config comes from or which ids tokens have, by its name alone."""
    return name.startswith("_") or name.endswith(("_token_id", "_token_index"))


def check_sizes(config: Any, where: str) -> None:
    """Raise ConversionError for sizes beyond their bounds, at any level of a config.

    transformers' own classes lay out a list a layer as soon as they read one, so this comes first.
    """
    if not isinstance(config, Mapping):
        return
    wrong = [
        f"{name} = {value!r} {problem}"
        for name, kind in SIZES.items()
        if isinstance(value := config.get(name), int | float) and (problem := misfit(value, kind))
    ]
    if wrong:
        raise ConversionError(f"{where}: {'; '.join(wrong)}")
    for name, inside in config.items():
        check_sizes(inside, f"{where}, {name}")
