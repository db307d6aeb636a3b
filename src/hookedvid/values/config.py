"""What a checkpoint needs besides its tensors: the shapes and choices of every part of a Video-LLM.

Frozen values only; reading other people's configs lives in `hookedvid.conversion`.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any, Literal

from hookedvid.errors import ConfigError
from hookedvid.values.serial import from_dict, numbered, to_dict, unnumbered

FORMAT = 1  # of config.json: raised whenever its fields change

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu"]
Pool = Literal["none", "average", "max", "bilinear"]
Newline = Literal["none", "once", "frame", "row"]

# The largest sizes a config may state. A model is laid out module by module before its weights are read, so a number
# without a bound takes the machine: 100,000 blocks took 45 s. Each bound is about eight times the largest public
# model's. Who means more raises it: `hookedvid.values.config.LIMITS["n_layers"] = 2_000`.
LIMITS: dict[str, int] = {
    "n_layers": 1_000,
    "d_model": 1 << 17, "d_in": 1 << 17, "d_out": 1 << 17, "d_mlp": 1 << 19, "d_head": 1 << 12,
    "n_heads": 1 << 11, "n_kv_heads": 1 << 11, "metric_heads": 1 << 11,
    "d_vocab": 1 << 22, "n_tokens": 1 << 22,
    "n_ctx": 1 << 27, "max_length": 1 << 27, "n_frames": 1 << 17,
    "image_size": 1 << 13, "patch_size": 1 << 13,
    "pool_stride": 1 << 10, "shuffle": 1 << 10, "frames_per_clip": 1 << 10, "tokens_per_clip": 1 << 16,
}  # fmt: skip


def misfit(value: Any, kind: str) -> str:
    """Why a value is no size of its kind (a name of `LIMITS`); empty if it is one."""
    if not isinstance(value, int) or isinstance(value, bool):
        return "is no whole number"
    if value < 1:
        return "must be at least 1"
    over = f"is above the bound of {LIMITS[kind]:,}; if it is meant, raise hookedvid.values.config.LIMITS[{kind!r}]"
    return over if value > LIMITS[kind] else ""


def _check(config: Any, counts: tuple[str, ...] = (), positive: tuple[str, ...] = ()) -> None:
    """Raise ConfigError naming every count outside 1 to its limit and every number that is not above 0."""
    values = {name: getattr(config, name) for name in (*counts, *positive)}
    problems = [f"{name} = {values[name]!r} {why}" for name in counts if (why := misfit(values[name], name))]
    for name in positive:
        value = values[name]
        if not (isinstance(value, int | float) and 0 < value <= sys.float_info.max):  # NaN fails this as well
            problems.append(f"{name} = {value!r} must be a finite number above 0")
    if problems:
        raise ConfigError(f"{type(config).__name__}: {'; '.join(problems)}")


def _divides(config: Any, total: str, parts: str) -> None:
    if getattr(config, total) % getattr(config, parts):
        raise ConfigError(f"{total} {getattr(config, total)} is not a multiple of {parts} {getattr(config, parts)}")


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions, half-split layout (`rotate_half`).

    `linear` divides positions by `factor`. `dynamic` (NTK) enlarges theta once the prompt is longer
    than `n_ctx`: theta * (factor * n / n_ctx - (factor - 1)) ** (d / (d - 2)).
    """

    theta: float = 10000.0
    scaling: Literal["none", "linear", "dynamic"] = "none"
    factor: float = 1.0

    def __post_init__(self):
        _check(self, positive=("theta", "factor"))


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A per-frame vision transformer: CLIP, SigLIP and InternViT differ only in these fields.

    `n_layers` counts the blocks that run: 23 of CLIP-L's 24, 26 of SigLIP so400m's 27.
    `resize` is how a frame becomes square: `squash` both sides (SigLIP, InternViT), or `crop` the centre
    after the short side fits (CLIP).
    """

    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int
    image_size: int
    patch_size: int
    act: Activation = "gelu"
    eps: float = 1e-6
    patch_bias: bool = True
    qkv_bias: bool = True
    cls_token: bool = False
    pre_norm: bool = False
    layer_scale: bool = False
    final_norm: bool = False
    resize: Literal["squash", "crop"] = "squash"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self):
        counts = ("n_layers", "d_model", "n_heads", "d_mlp", "image_size", "patch_size")
        _check(self, counts, positive=("eps",))
        usual = all(abs(x) <= sys.float_info.max for x in self.mean) and all(x > 0 for x in self.std)
        if not (len(self.mean) == len(self.std) == 3 and usual):
            raise ConfigError(f"mean {self.mean} and std {self.std} must be three numbers each, std above 0")
        _divides(self, "d_model", "n_heads")
        if self.image_size < self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def grid(self) -> int:
        """Patches along one side; pixels beyond the last whole patch are unused (SigLIP's last 6)."""
        return self.image_size // self.patch_size

    @property
    def n_patches(self) -> int:
        """Patch tokens of one frame, the class token not counted."""
        return self.grid**2


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """HiCo token merging of InternVideo2.5: similar tokens of a clip are averaged, rounds halving them.

    The three numbers are constants of the original code (modeling_internvl_chat_hico2.py), where
    `metric_heads` is the decoder's head count.
    """

    frames_per_clip: int = 4
    tokens_per_clip: int = 64
    metric_heads: int = 32

    def __post_init__(self):
        _check(self, ("frames_per_clip", "tokens_per_clip", "metric_heads"))

    @property
    def tokens_per_frame(self) -> int:
        """Tokens left of one frame."""
        return self.tokens_per_clip // self.frames_per_clip


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """From patch features to decoder tokens.

    `shuffle` is the side of the square of patches joined into one token (1 = none; InternVideo2.5: 2).
    `input_norm` puts a LayerNorm before the two-layer MLP. `newline` is where the learned newline token goes.
    """

    d_in: int
    d_out: int
    pool: Pool = "none"
    pool_stride: int = 2
    pool_before: bool = False
    newline: Newline = "none"
    shuffle: int = 1
    merge: MergeConfig | None = None
    input_norm: bool = False

    def __post_init__(self):
        _check(self, ("d_in", "d_out", "pool_stride", "shuffle"))
        if self.merge is not None and (self.pool != "none" or self.newline != "none"):
            raise ConfigError("token merging excludes pooling and newlines: merged tokens have no grid left")
        if self.shuffle > 1 and self.pool != "none":
            raise ConfigError("pixel shuffle excludes pooling; no known model does both")

    def tokens_per_frame(self, grid: int) -> int:
        """Video tokens of one frame with a `grid` x `grid` tower, per-row and per-frame newlines included."""
        if self.merge is not None:
            return self.merge.tokens_per_frame
        side = self.side(grid)
        return side * side + {"row": side, "frame": 1}.get(self.newline, 0)

    def side(self, grid: int) -> int:
        """Tokens along one side after shuffling or pooling: average and max floor, bilinear ceils."""
        if self.shuffle > 1:
            return grid // self.shuffle
        if self.pool == "none":
            return grid
        return -(-grid // self.pool_stride) if self.pool == "bilinear" else grid // self.pool_stride


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A pre-norm RMSNorm decoder with rotary positions: Qwen2, Llama and InternLM2 differ only in these fields."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int = 32768
    act: Activation = "silu"
    eps: float = 1e-6
    qkv_bias: bool = False
    o_bias: bool = False
    tied: bool = False
    rope: RopeConfig = RopeConfig()

    def __post_init__(self):
        counts = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "d_vocab", "n_ctx")
        _check(self, counts, positive=("eps",))
        _divides(self, "n_heads", "n_kv_heads")
        if self.d_head % 2:
            raise ConfigError(f"d_head {self.d_head} is odd; rotary positions need pairs")


@dataclass(frozen=True, kw_only=True)
class VideoLLMConfig:
    """Everything about a model but its weights.

    Without `vision` and `projector` the model is a plain decoder (text in); without `decoder` it is the
    tower alone. `prompt` names a template of `hookedvid.families.registry`. `placeholder_id` is the token id
    that marks video tokens in other people's ids; -200 always does. `n_frames`, `sampler` and
    `time_instruction` (a text of `hookedvid.families.registry` that tells the model when its frames were taken) are
    what `prepare` takes unless told.

    `max_length` is the longest sequence the original code passes on (its `tokenizer_model_max_length`), None
    where it names none. `n_tokens` is how many ids the tokenizer has: rows of the vocabulary from there on are
    padding, which no answer is read from; None where every row is a token's.

    The properties at the end carry TransformerLens's names, so that its tools find what they read.
    """

    family: str
    vision: VisionConfig | None = None
    projector: ProjectorConfig | None = None
    decoder: DecoderConfig | None = None
    prompt: str = "plain"
    placeholder_id: int | None = None
    n_frames: int = 32
    sampler: str = "linspace"
    time_instruction: str = "none"
    max_length: int | None = None
    n_tokens: int | None = None
    model_name: str = ""

    def __post_init__(self):
        _check(self, ("n_frames", *(n for n in ("max_length", "n_tokens") if getattr(self, n) is not None)))
        if (self.vision is None) != (self.projector is None) and self.decoder is not None:
            raise ConfigError("a video model needs both vision and projector; a plain decoder has neither")
        if self.vision is None and self.decoder is None:
            raise ConfigError("a model needs a decoder, a vision tower or both")
        if self.n_tokens is not None and not 0 < self.n_tokens <= self.lm.d_vocab:
            raise ConfigError(f"n_tokens is {self.n_tokens}, but the vocabulary has {self.lm.d_vocab} rows")
        if self.vision and self.projector and self.decoder:
            fed = self.vision.d_model * self.projector.shuffle**2
            if self.projector.d_in != fed:
                raise ConfigError(f"projector.d_in is {self.projector.d_in}, but the tower feeds it {fed}")
            if self.projector.d_out != self.decoder.d_model:
                raise ConfigError(
                    f"projector.d_out is {self.projector.d_out}, but decoder.d_model is {self.decoder.d_model}"
                )

    def to_json(self) -> str:
        """The config as indented JSON, which enters a model's hash."""
        return json.dumps(to_dict(self), indent=2)

    @property
    def file_text(self) -> str:
        """The config as config.json holds it: `to_json`'s fields behind the number of their format."""
        return json.dumps(numbered(to_dict(self), FORMAT), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "VideoLLMConfig":
        """The config of `to_json` or `file_text`.

        Raises:
            ConfigError: Naming every unknown, missing or wrong field; for a file of another format.
        """
        try:
            data: Any = json.loads(text)
        except (ValueError, RecursionError) as e:  # ValueError: a number of more than 4,300 digits as well
            raise ConfigError(f"not JSON: {e}") from e
        return from_dict(cls, unnumbered(data, FORMAT, "config.json", ConfigError), ConfigError)

    @property
    def lm(self) -> DecoderConfig:
        """The decoder's config.

        Raises:
            ConfigError: On a bare tower.
        """
        if self.decoder is None:
            raise ConfigError("this model is a vision tower alone; it has no decoder to ask for")
        return self.decoder

    @property
    def tokens_per_frame(self) -> int:
        """Video tokens of one frame, newlines inside the frame included."""
        if self.vision is None or self.projector is None:
            raise ConfigError("this model takes no video")
        return self.projector.tokens_per_frame(self.vision.grid)

    # What TransformerLens's tools read.
    n_layers = property(lambda self: self.lm.n_layers)
    n_heads = property(lambda self: self.lm.n_heads)
    n_key_value_heads = property(lambda self: self.lm.n_kv_heads)
    d_model = property(lambda self: self.lm.d_model)
    d_head = property(lambda self: self.lm.d_head)
    d_mlp = property(lambda self: self.lm.d_mlp)
    d_vocab = property(lambda self: self.lm.d_vocab)
    n_ctx = property(lambda self: self.lm.n_ctx)
    eps = property(lambda self: self.lm.eps)
    act_fn = property(lambda self: self.lm.act)
    normalization_type = property(lambda self: "RMS")
    final_rms = property(lambda self: True)
    positional_embedding_type = property(lambda self: "rotary")
    rotary_base = property(lambda self: self.lm.rope.theta)
    gated_mlp = property(lambda self: True)
    attn_only = property(lambda self: False)
    # Per-head results and input forks are made whenever something listens, so TransformerLens's
    # switches for them are always on. Its patching stores results on `device`: None is the CPU.
    use_attn_result = property(lambda self: True)
    use_split_qkv_input = property(lambda self: True)
    use_hook_mlp_in = property(lambda self: True)
    use_attn_in = property(lambda self: False)
    device = property(lambda self: None)
