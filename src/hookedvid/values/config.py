"""What a checkpoint needs besides its tensors: the shapes and choices of every part of a Video-LLM.

Frozen values only; reading other people's configs lives in `hookedvid.conversion`.
"""

import json
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from hookedvid.errors import ConfigError
from hookedvid.values.limits import LIMITS as LIMITS
from hookedvid.values.limits import check, divides
from hookedvid.values.pixel_budget import PixelBudget
from hookedvid.values.serial import from_dict, numbered, to_dict, unnumbered

FORMAT = 1  # of config.json: raised whenever its fields change

Activation = Literal["silu", "gelu", "gelu_tanh", "quick_gelu"]
Pool = Literal["none", "average", "max", "bilinear"]
Newline = Literal["none", "once", "frame", "row"]
Norm = Literal["layer", "rms"]
Resize = Literal["squash", "crop", "fit", "squash_twice"]
Resample = Literal["pil_bicubic", "pil_bilinear", "pil_lanczos", "bicubic", "bilinear", "lanczos"]
# Of fields that came after models were first written: one at its default is left out of a config's text, so that the
# text, and with it a model's hash, of an older model stays what it was.
LATER = {"later": True}


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary positions, half-split layout (`rotate_half`).

    `linear` divides positions by `factor`. `dynamic` (NTK) enlarges theta once the prompt is longer
    than `n_ctx`: theta * (factor * n / n_ctx - (factor - 1)) ** (d / (d - 2)).

    `sections` counts the frequencies that turn by time, height and width (M-RoPE; empty: positions have one number).
    They come one axis after the other, or `interleaved`: t h w t h w …, time where another's are used up. `per_second`
    is by how much a second moves on the time axis; None: a step of the video moves by 1. `text_after` is where text
    goes on behind a run of video: at the `largest` number so far + 1, as Qwen's code does, or below a long video's
    times, at its first number + max(rows, columns) (`sides`), as transformers does since 5.3.
    """

    theta: float = 10000.0
    scaling: Literal["none", "linear", "dynamic"] = "none"
    factor: float = 1.0
    sections: tuple[int, ...] = field(default=(), metadata=LATER)
    interleaved: bool = field(default=False, metadata=LATER)
    per_second: float | None = field(default=None, metadata=LATER)
    text_after: Literal["largest", "sides"] = field(default="largest", metadata=LATER)

    def __post_init__(self):
        check(self, positive=("theta", "factor", *(["per_second"] if self.per_second is not None else [])))
        if self.sections and (len(self.sections) != 3 or min(self.sections) < 0):
            raise ConfigError(f"rope.sections {self.sections} must count the frequencies of time, height and width")
        if self.sections and self.scaling != "none":
            raise ConfigError(f"rope.scaling {self.scaling!r} is not known of positions on several axes")

    @property
    def n_axes(self) -> int:
        """Numbers that a position has: 1, or 3 (time, height, width)."""
        return 3 if self.sections else 1

    def axes(self, d_head: int) -> tuple[int, ...]:
        """The axis that each of the d_head / 2 frequencies turns by."""
        if not self.sections:
            return (0,) * (d_head // 2)
        if not self.interleaved:
            return tuple(axis for axis, n in enumerate(self.sections) for _ in range(n))
        return tuple(i % 3 if i < 3 * self.sections[i % 3] else 0 for i in range(d_head // 2))


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A vision transformer over frames, or pairs of frames: the families' towers differ only in these fields.

    Attributes:
        n_layers: Blocks that run: 23 of CLIP-L's 24, 26 of SigLIP so400m's 27.
        image_size: Side of a frame in pixels; where frames keep their shape (`fit`), the side that learned positions
            were made for, if there are any.
        patch_frames: Frames that one patch takes in: 2 in Qwen's towers, an odd last frame is taken twice.
        norm, gated: RMSNorm in place of LayerNorm; a gated MLP, biased.
        qk_norm: RMSNorm over all heads' channels of q and k (InternViT-6B).
        cls_token: A class token stands first. `cls_kept` hands it on; `cls_cut` says how it is taken out else.
        cls_cut: `each_frame`, or `released`: where class tokens would stand if there were none, so that from the second
            frame on rows are shifted (LLaVA-OneVision-1.5's published code).
        positions: Learned ones for each patch, or those of an `image_size` grid `interpolated`, or none.
        rope_theta: Of rotary positions by row and column; None: no such. The class token's are learned.
        window: Side in patches of the windows that attention stays in, but for the blocks `full_blocks`; 0: none.
        deepstack: Blocks after which features go to the decoder as well.
        resize: How a frame is brought to size. `squash` both sides (SigLIP, InternViT), or `crop` the centre after
            the short side fits (CLIP); `fit` keeps the shape within `budget`, sides multiples of `multiple`;
            `squash_twice` fits the longest side first (SmolVLM).
        first_size: The side that `crop` fits the short side to, `squash_twice` the long one; None: `image_size`.
        resample: Pillow's (`pil_…`) or torch's filters, antialiased and on bytes.
        scale: What a byte is multiplied by before `mean` and `std`.
        multiple: Of `fit`, in pixels.
        drop_below: Patches that are this like those of the frame before, or more, are dropped: mean difference of
            normalised pixels, of 255 (VideoLLaMA3); None: none is.
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
    resize: Resize = "squash"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    patch_frames: int = field(default=1, metadata=LATER)
    norm: Norm = field(default="layer", metadata=LATER)
    gated: bool = field(default=False, metadata=LATER)
    qk_norm: bool = field(default=False, metadata=LATER)
    cls_kept: bool = field(default=False, metadata=LATER)
    cls_cut: Literal["each_frame", "released"] = field(default="each_frame", metadata=LATER)
    positions: Literal["learned", "interpolated", "none"] = field(default="learned", metadata=LATER)
    rope_theta: float | None = field(default=None, metadata=LATER)
    window: int = field(default=0, metadata=LATER)
    full_blocks: tuple[int, ...] = field(default=(), metadata=LATER)
    deepstack: tuple[int, ...] = field(default=(), metadata=LATER)
    first_size: int | None = field(default=None, metadata=LATER)
    resample: Resample = field(default="pil_bicubic", metadata=LATER)
    scale: float = field(default=1 / 255, metadata=LATER)
    budget: PixelBudget | None = field(default=None, metadata=LATER)
    multiple: int = field(default=1, metadata=LATER)
    drop_below: float | None = field(default=None, metadata=LATER)

    def __post_init__(self):
        counts = ("n_layers", "d_model", "n_heads", "d_mlp", "image_size", "patch_size", "patch_frames")
        counts += ("multiple", *(n for n in ("window", "first_size") if getattr(self, n)))
        positive = ("eps", "scale", *(n for n in ("rope_theta", "drop_below") if getattr(self, n) is not None))
        check(self, counts, positive)
        most = sys.float_info.max
        usual = all(abs(x) <= most for x in self.mean) and all(0 < x <= most for x in self.std)
        if not (len(self.mean) == len(self.std) == 3 and usual):
            raise ConfigError(f"mean {self.mean} and std {self.std} must be three numbers each, std above 0")
        divides(self, "d_model", "n_heads")
        if self.image_size < self.patch_size:
            raise ConfigError(f"image_size {self.image_size} is smaller than patch_size {self.patch_size}")
        if self.rope_theta is not None and self.d_head % 4:
            raise ConfigError(f"d_head {self.d_head} is no multiple of 4; rows and columns need pairs each")
        if outside := [i for i in (*self.full_blocks, *self.deepstack) if not 0 <= i < self.n_layers]:
            raise ConfigError(f"full_blocks or deepstack name blocks {outside} of {self.n_layers}, numbered from 0")
        if self.deepstack != tuple(sorted(set(self.deepstack))):
            raise ConfigError(f"deepstack {self.deepstack} must name blocks once each, in ascending order")
        if (self.resize == "fit") != (self.budget is not None):
            raise ConfigError("frames that keep their shape (resize='fit') need a budget, others have none")
        if self.resize == "fit" and (self.positions == "learned" or self.multiple % self.patch_size):
            raise ConfigError("frames of any shape need rotary or interpolated positions, and sides in whole patches")
        if self.first_size is not None and self.resize not in ("crop", "squash_twice"):
            raise ConfigError(f"frames that are brought to size by {self.resize!r} have no first size")
        if self.resize == "crop" and (self.first_size or self.image_size) < self.image_size:
            raise ConfigError(f"a centre of {self.image_size} pixels is more than the short side, {self.first_size}")

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
        check(self, ("frames_per_clip", "tokens_per_clip", "metric_heads"))

    @property
    def tokens_per_frame(self) -> int:
        """Tokens left of one frame."""
        return self.tokens_per_clip // self.frames_per_clip


@dataclass(frozen=True, kw_only=True)
class ProjectorConfig:
    """From patch features to decoder tokens.

    `shuffle` is the side of the square of patches joined into one token (1 = none; InternVideo2.5: 2).
    `input_norm` puts a LayerNorm before the MLP, `patch_norm` a norm on patches before they are joined; `norm_eps` is
    theirs. `d_hidden` is the MLP's width (None: d_out); `linear` has one Linear in its place, without bias.
    `newline` is where the learned newline token goes. `n_deepstack` counts the tower's features that are projected
    besides, each by a projector of its own that has the LayerNorm on joined patches.
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
    patch_norm: Literal["none", "layer", "rms"] = field(default="none", metadata=LATER)
    norm_eps: float = field(default=1e-5, metadata=LATER)
    d_hidden: int | None = field(default=None, metadata=LATER)
    linear: bool = field(default=False, metadata=LATER)
    n_deepstack: int = field(default=0, metadata=LATER)

    def __post_init__(self):
        later = (n for n in ("d_hidden", "n_deepstack") if getattr(self, n))
        check(self, ("d_in", "d_out", "pool_stride", "shuffle", *later), positive=("norm_eps",))
        if self.merge is not None and (self.pool != "none" or self.newline != "none"):
            raise ConfigError("token merging excludes pooling and newlines: merged tokens have no grid left")
        if self.shuffle > 1 and self.pool != "none":
            raise ConfigError("pixel shuffle excludes pooling; no known model does both")

    def cells(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns of tokens that patches become: average and max pooling floor, bilinear ceils."""
        if self.shuffle > 1:
            return rows // self.shuffle, columns // self.shuffle
        if self.pool == "none":
            return rows, columns
        up = self.pool_stride - 1 if self.pool == "bilinear" else 0
        return (rows + up) // self.pool_stride, (columns + up) // self.pool_stride

    def side(self, grid: int) -> int:
        """Tokens along one side of a square of `grid` x `grid` patches."""
        return self.cells(grid, grid)[0]

    def tokens_per_frame(self, grid: int) -> int:
        """Video tokens of one frame with a `grid` x `grid` tower, per-row and per-frame newlines included."""
        if self.merge is not None:
            return self.merge.tokens_per_frame
        side = self.side(grid)
        return side * side + {"row": side, "frame": 1}.get(self.newline, 0)


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """A pre-norm RMSNorm decoder with rotary positions: Qwen2, Qwen3, Llama and InternLM2 differ only in these fields.

    `qk_norm` is Qwen3's: RMSNorm over d_head of each head's q and k, before they are turned.
    """

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
    qk_norm: bool = field(default=False, metadata=LATER)

    def __post_init__(self):
        counts = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_mlp", "d_vocab", "n_ctx")
        check(self, counts, positive=("eps",))
        divides(self, "n_heads", "n_kv_heads")
        if self.d_head % 2:
            raise ConfigError(f"d_head {self.d_head} is odd; rotary positions need pairs")
        if self.rope.sections and 2 * sum(self.rope.sections) != self.d_head:
            raise ConfigError(f"rope.sections {self.rope.sections} must add up to d_head / 2 = {self.d_head // 2}")


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
        check(self, ("n_frames", *(n for n in ("max_length", "n_tokens") if getattr(self, n) is not None)))
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
            if self.vision.resize != "fit" and self.vision.grid % self.projector.shuffle:
                raise ConfigError(
                    f"projector.shuffle {self.projector.shuffle} does not divide the {self.vision.grid} patches of a "
                    "side (vision.image_size / vision.patch_size)"
                )
            if len(self.vision.deepstack) != self.projector.n_deepstack or self.n_deepstack > self.decoder.n_layers:
                raise ConfigError(
                    f"the tower hands on features of {len(self.vision.deepstack)} blocks, the projector takes "
                    f"{self.projector.n_deepstack}, and the decoder has {self.decoder.n_layers} blocks to add them in"
                )

    def to_json(self) -> str:
        """The config as indented JSON, which enters a model's hash."""
        return json.dumps(to_dict(self, brief=True), indent=2)

    @property
    def file_text(self) -> str:
        """The config as config.json holds it: `to_json`'s fields behind the number of their format."""
        return json.dumps(numbered(to_dict(self, brief=True), FORMAT), indent=2) + "\n"

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
        """Video tokens of one frame, newlines and a class token inside the frame included.

        Raises:
            ConfigError: Where frames keep their shape, so that it depends on theirs; and without a tower.
        """
        if self.vision is None or self.projector is None:
            raise ConfigError("this model takes no video")
        if self.vision.resize == "fit":
            raise ConfigError("the tokens of a frame depend on its shape here: ask the layout of a video")
        return self.projector.tokens_per_frame(self.vision.grid) + self.vision.cls_kept

    @property
    def n_deepstack(self) -> int:
        """Blocks of the decoder, from the first, that features of the tower are added after."""
        return 0 if self.projector is None else self.projector.n_deepstack

    @property
    def patch_frames(self) -> int:
        """Frames that share their video tokens."""
        return 1 if self.vision is None else self.vision.patch_frames

    @property
    def frames_together(self) -> int:
        """Frames that tokens mix: those of a patch, or of a merged clip."""
        merge = None if self.projector is None else self.projector.merge
        return self.patch_frames if merge is None else merge.frames_per_clip

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
