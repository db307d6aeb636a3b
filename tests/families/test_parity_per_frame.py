"""SmolVLM2, VideoLLaMA3 and Video-LLaVA end to end against transformers: frames, prompts and ids in, logits out."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
from transformers.models.smolvlm.processing_smolvlm import SmolVLMProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor
from transformers.models.video_llama_3.image_processing_video_llama_3 import VideoLlama3ImageProcessor
from transformers.models.video_llama_3.processing_video_llama_3 import VideoLlama3Processor
from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor
from transformers.models.video_llava.image_processing_video_llava import VideoLlavaImageProcessor
from transformers.models.video_llava.processing_video_llava import VideoLlavaProcessor
from transformers.models.video_llava.video_processing_video_llava import VideoLlavaVideoProcessor
from transformers.video_utils import VideoMetadata

from hf_models import VIDEO_ID, random_ids, random_pixels, smolvlm, video_llava, videollama3
from hookedvid import LV_K, VS_K, VT_K, HookedVideoLLM, convert
from hookedvid.errors import ConversionError, InputError
from hookedvid.values.patch_rows import kept, to_rows
from models import each_position
from versions import processors_of_today

pytestmark = pytest.mark.shapes_unchecked

MADE = {"smolvlm2": smolvlm, "videollama3": videollama3, "video-llava": video_llava}
# Rows of VideoLLaMA3's tower go by squares upstream and in raster order here, so that attention adds up the same keys
# in another order. Of the other two not a bit differs.
OFF = {torch.float32: 1e-6, torch.bfloat16: 2e-2}


class Video(NamedTuple):
    """A video as a processor gives it: what each side takes, and how many tokens its frames have."""

    theirs: dict[str, torch.Tensor]
    pixels: torch.Tensor
    processed: dict[str, torch.Tensor]
    tokens: list[int]


def video(model: HookedVideoLLM, n: int, seed: int = 0, size: tuple[int, int] = (56, 84)) -> Video:
    """Noise; where tokens are dropped, frames that repeat the upper third of the first one."""
    vision, kind = model.cfg.vision, model.cfg.family
    if kind == "smolvlm2":
        pixels = random_pixels(n, 3, vision.image_size, vision.image_size, seed=seed)[None]
        mask = {"pixel_attention_mask": torch.ones_like(pixels[:, :, 0], dtype=torch.long)}
        return Video({"pixel_values": pixels, **mask}, pixels, mask, [model.cfg.tokens_per_frame] * n)
    if kind == "video-llava":
        pixels = random_pixels(n, 3, vision.image_size, vision.image_size, seed=seed)[None]
        return Video({"pixel_values_videos": pixels}, pixels, {}, [model.cfg.tokens_per_frame] * n)
    frames = random_pixels(n, 3, *size, seed=seed)
    frames[1:, :, :28] = frames[:1, :, :28]
    rows, grid = to_rows(frames, vision)
    stay = kept(frames, vision)
    assert bool(stay.all()) == (n == 1 or grid[1:] == (2, 2))
    given = {
        "video_grid_thw": torch.tensor([grid]),
        "video_merge_sizes": torch.tensor([2]),
        "video_compression_mask": stay,
    }
    return Video({"pixel_values_videos": rows, **given}, rows, given, stay.view(n, -1).sum(1).tolist())


def ids(model: HookedVideoLLM, tokens: list[int], seed: int = 0) -> torch.Tensor:
    """Text around frames, and between them but for Video-LLaVA."""
    text, between = random_ids(15, seed=seed), random_ids(3, seed=seed + 1)
    between = between[:0] if model.cfg.family == "video-llava" else between
    frames = [x for n in tokens for x in (between, torch.full((n,), VIDEO_ID))]
    return torch.cat([text[:5], *frames, text[5:]])


def same(ours: torch.Tensor, theirs: torch.Tensor, kind: str) -> bool:
    if kind != "videollama3":
        return torch.equal(ours, theirs)
    return bool((ours - theirs).abs().max() <= OFF[ours.dtype] * theirs.abs().max())


def cast(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in given.items()}


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("kind", MADE)
def test_logits_are_those_of_transformers(kind, n, dtype, kernel):
    hf = MADE[kind](dtype=dtype, kernel=kernel)
    model = HookedVideoLLM.from_transformers(hf, kernel=kernel)
    assert model.cfg.family == kind and model.embed.weight.dtype == dtype
    made = video(model, n)
    tokens = ids(model, made.tokens)
    theirs = hf(input_ids=tokens[None], **cast(made.theirs, dtype)).logits
    inputs = model.inputs_from_tensors(tokens, made.pixels.to(dtype), **made.processed)
    assert same(model(inputs), theirs, kind)


@torch.no_grad()
@pytest.mark.parametrize("side", [2, 3])
def test_smolvlm2_joins_squares_of_any_side(side):
    hf = smolvlm(side=side)
    model = HookedVideoLLM.from_transformers(hf)
    made = video(model, 2)
    assert model.cfg.projector.shuffle == side and made.tokens == [4, 4]
    tokens = ids(model, made.tokens)
    theirs = hf(input_ids=tokens[None], **made.theirs).logits
    assert torch.equal(model(model.inputs_from_tensors(tokens, made.pixels, **made.processed)), theirs)


@torch.no_grad()
@pytest.mark.parametrize("size", [(28, 28), (28, 140), (112, 56)])
def test_videollama3_takes_frames_of_any_shape(size):
    hf = videollama3()
    model = HookedVideoLLM.from_transformers(hf)
    made = video(model, 3, size=size)
    tokens = ids(model, made.tokens)
    theirs = hf(input_ids=tokens[None], **made.theirs).logits
    assert same(model(model.inputs_from_tensors(tokens, made.pixels, **made.processed)), theirs, "videollama3")


def test_videollama3_drops_nothing_where_its_config_says_so():
    assert HookedVideoLLM.from_transformers(videollama3()).cfg.vision.drop_below == 0.1
    assert HookedVideoLLM.from_transformers(videollama3(use_token_compression=False)).cfg.vision.drop_below is None


@torch.no_grad()
def test_what_is_dropped_is_seen_by_the_pixels_where_no_mask_says_it():
    """As the authors' code does inside its model, whose ids hold all tokens."""
    model = HookedVideoLLM.from_transformers(videollama3())
    made = video(model, 3)
    masked = model.inputs_from_tensors(ids(model, made.tokens), made.pixels, **made.processed)
    whole = ids(model, [6, 6, 6])
    told = {k: v for k, v in made.processed.items() if k != "video_compression_mask"}
    for processed in (told, made.processed):
        inputs = model.inputs_from_tensors(whole, made.pixels, **processed)
        assert torch.equal(inputs.tokens, masked.tokens) and inputs.layout == masked.layout
        assert torch.equal(model(inputs), model(masked))
    all_stay = model.inputs_from_tensors(whole, made.pixels, **told, video_compression_mask=torch.ones(18))
    assert all_stay.tokens.shape[1] == len(whole) and inputs.tokens.shape[1] < len(whole)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("video_compression_mask", lambda m: torch.cat([m, m]), "has 36 entries, and the videos have 18 cells"),
        ("video_compression_mask", lambda m: m[1:], "has 17 entries, and a video has 18 cells"),
        ("video_compression_mask", lambda m: m * 0.5, "holds other numbers than 0 and 1"),
        ("video_compression_mask", torch.zeros_like, "keeps no token of a video"),
        ("video_merge_sizes", lambda m: m * 2, "video_merge_sizes must be 2"),
        ("video_merge_sizes", lambda m: m / 1, r"video_merge_sizes is \[2.0\]; give whole numbers of patches"),
    ],
)
def test_videollama3_refuses_what_does_not_fit_its_tokens(name, change, text):
    model = HookedVideoLLM.from_transformers(videollama3())
    made = video(model, 3)
    given = made.processed | {name: change(made.processed[name])}
    with pytest.raises(InputError, match=text):
        model.inputs_from_tensors(ids(model, made.tokens), made.pixels, **given)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda m: m[0], r"is \(2, 64, 64\) for 1 video\(s\); give \[video, frame, height, width\]"),
        (lambda m: torch.cat([m, m]), r"is \(2, 2, 64, 64\) for 1 video"),
        (lambda m: m[:, :1], r"has \(1, 64, 64\) for a video of frames \(2, 3, 64, 64\)"),
    ],
)
def test_smolvlm2_refuses_a_mask_of_other_frames(change, text):
    model = HookedVideoLLM.from_transformers(smolvlm())
    made = video(model, 2)
    mask = change(made.processed["pixel_attention_mask"])
    with pytest.raises(InputError, match=f"pixel_attention_mask {text}"):
        model.inputs_from_tensors(ids(model, made.tokens), made.pixels, pixel_attention_mask=mask)


@torch.no_grad()
@pytest.mark.parametrize("kind", MADE)
def test_videos_of_a_batch_may_be_unlike(kind):
    """Each item as it is alone; sums of padded rows are taken in another order."""
    model = HookedVideoLLM.from_transformers(MADE[kind]())
    alone = []
    for i, n in enumerate((1, 3, 2)):
        made = video(model, n, seed=i, size=(28 * (n + 1), 56))
        pixels = made.pixels[0] if kind != "videollama3" else made.pixels
        alone.append(model.inputs_from_tensors(ids(model, made.tokens, seed=i), pixels, **made.processed))
    logits = model(type(alone[0]).stack(alone))
    for row, one in zip(logits, alone, strict=True):
        expected = model(one)[0]
        assert (row[-len(expected) :] - expected).abs().max() <= 2e-6 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_knockouts_hold_between_frames_of_unequal_length(kernel):
    """Against entries of the scores that are cut by hand, of frames that lost tokens."""
    model = HookedVideoLLM.from_transformers(videollama3(), kernel=kernel).double()
    made = video(model, 4)
    assert made.tokens == [6, 3, 3, 3]
    inputs = model.inputs_from_tensors(ids(model, made.tokens), made.pixels.double(), **made.processed)
    at = each_position(inputs.layout)
    frame = torch.tensor([s.frame if s.role == "video" else -1 for s in at])
    is_video, n = frame >= 0, len(at)
    among = is_video[:, None] & is_video
    alike = frame[:, None] == frame
    after = torch.arange(n) > is_video.nonzero().max()
    by_hand = {
        LV_K: after[:, None] & is_video,
        VT_K: among & ~alike,
        VS_K: among & alike & ~torch.eye(n, dtype=torch.bool),
    }
    for knockout, cut in by_hand.items():
        points = [(f"blocks.{i}.attn.hook_attn_scores", cutting(cut)) for i in range(model.cfg.n_layers)]
        expected = model.run_with_hooks(inputs, fwd_hooks=points)
        found = model(inputs, interventions=[knockout])
        assert (found - expected).abs().max() < 1e-12 < (found - model(inputs)).abs().max()


def cutting(cut: torch.Tensor) -> Callable[[torch.Tensor, Any], torch.Tensor]:
    return lambda scores, hook: scores.masked_fill(cut, -torch.inf)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["smolvlm2", "videollama3"])
def test_a_batch_as_the_official_processor_gives_it(kind):
    """Frames of zeros fill up SmolVLM2's; VideoLLaMA3's rows, grids and masks stand one after the other."""
    hf = MADE[kind]()
    model = HookedVideoLLM.from_transformers(hf)
    made = [video(model, n, seed=n, size=(28 * n, 56)) for n in (2, 3)]
    rows = [ids(model, one.tokens, seed=i) for i, one in enumerate(made)]
    if kind == "smolvlm2":
        short, long = (one.pixels for one in made)
        pixels = torch.cat([torch.cat([short, torch.zeros_like(short[:, :1])], 1), long])
        mask = torch.ones_like(pixels[:, :, 0], dtype=torch.long)
        mask[0, 2] = 0
        given, name = {"pixel_attention_mask": mask}, "pixel_values"
    else:
        pixels, name = torch.cat([one.pixels for one in made]), "pixel_values_videos"
        given = {k: torch.cat([one.processed[k] for one in made]) for k in made[0].processed}
    inputs = model.inputs_from_tensors([r.tolist() for r in rows], pixels, **given)
    longest = max(map(len, rows))
    padded = torch.stack([torch.cat([torch.zeros(longest - len(r), dtype=torch.long), r]) for r in rows])
    seen = torch.stack([(torch.arange(longest) >= longest - len(r)).long() for r in rows])
    theirs = hf(input_ids=padded, attention_mask=seen, **{name: pixels}, **given).logits
    off = (model(inputs) - theirs).abs() * seen[..., None]
    assert off.max() <= 2e-6 * theirs.abs().max()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("kind", MADE)
def test_greedy_tokens_are_those_of_transformers(kind, cached):
    hf = MADE[kind]()
    hf.generation_config.eos_token_id = None
    model = HookedVideoLLM.from_transformers(hf)
    made = video(model, 3)
    tokens = ids(model, made.tokens)
    theirs = hf.generate(
        input_ids=tokens[None], attention_mask=torch.ones_like(tokens[None]), max_new_tokens=12, do_sample=False,
        **made.theirs,
    )  # fmt: skip
    inputs = model.inputs_from_tensors(tokens, made.pixels, **made.processed)
    ours = model.generate(inputs, max_new_tokens=12, stop_at_eos=False, use_past_kv_cache=cached)
    assert theirs.shape[1] == len(tokens) + 12
    assert ours.tolist() == theirs[:, len(tokens) :].tolist()


# ---- from frames and a question ----------------------------------------------------------------------------

QUESTION = "What moves?"
SYSTEM = (
    "<|im_start|>system\nYou are VideoLLaMA3 created by Alibaba DAMO Academy, a helpful assistant to help people "
    "understand images and videos.<|im_end|>\n"
)
SPECIAL = {
    "smolvlm2": [
        "<image>", "<video>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>",
    ],
    "videollama3": ["<|video_pad|>", "<|image_pad|>", "<|im_start|>", "<|im_end|>"],
    "video-llava": ["<video>", "<image>", "</s>"],
}  # fmt: skip
ASKED = {
    "smolvlm2": f"<|im_start|>User: <video>{QUESTION}<end_of_utterance>\nAssistant:",
    "videollama3": f"{SYSTEM}<|im_start|>user\n<|video_pad|>\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n",
    "video-llava": f"USER: <video>\n{QUESTION} ASSISTANT:",
}
ROOM = {"shortest_edge": 16 * 28**2, "longest_edge": 16_384 * 28**2}  # as the hub has it, and not the class


def words(special: list[str]) -> PreTrainedTokenizerFast:
    """Bytes, and these special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token=special[0])


def official(kind: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    if kind == "smolvlm2":
        sizes = {"size": {"longest_edge": 64}, "max_image_size": {"longest_edge": 64}}
        return SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor(**sizes), image_seq_len=4)
    if kind == "videollama3":
        return VideoLlama3Processor(VideoLlama3ImageProcessor(), tokenizer, VideoLlama3VideoProcessor(size=ROOM))
    sizes = {"size": {"shortest_edge": 70}, "crop_size": {"height": 70, "width": 70}}
    return VideoLlavaProcessor(VideoLlavaImageProcessor(), VideoLlavaVideoProcessor(**sizes), tokenizer)


@torch.no_grad()
@processors_of_today
@pytest.mark.parametrize(("n_total", "fps"), [(40, 2.0), (40, 0.011)])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", MADE)
def test_prompt_and_pixels_are_those_of_the_official_processor(kind, n, n_total, fps):
    """At 0.011 frames a second the video lasts an hour."""
    tokenizer = words(SPECIAL[kind])
    ids = {"image_token_id": 256, "video_token_id": 256}
    ids = {k.replace("_id", "_index") if kind == "video-llava" else k: v for k, v in ids.items()}
    ids = {"image_token_id": 256} if kind == "smolvlm2" else ids
    hf = MADE[kind](text={"vocab_size": 300}, **ids)
    model = HookedVideoLLM.from_transformers(hf, tokenizer=tokenizer)
    source = np.random.default_rng(0).integers(0, 256, (n_total, 40, 90, 3), np.uint8)
    source[30:, :20] = source[0, :20]
    inputs = model.prepare(source, QUESTION, n_frames=n, sampler="linspace", folder_fps=fps)
    at = np.linspace(0, n_total - 1, n, dtype=int)
    about = VideoMetadata(total_num_frames=n_total, fps=fps, duration=n_total / fps, frames_indices=at)
    given = official(kind, tokenizer)(
        text=[ASKED[kind]], videos=[source[at]], video_metadata=[about], do_sample_frames=False, return_tensors="pt"
    )
    tokens = given["input_ids"]
    assert torch.equal(inputs.tokens.masked_fill(inputs.is_video, 256), tokens)
    pixels = next(x for name, x in given.items() if name.startswith("pixel_values"))
    ours = inputs.pixel_values[0]
    assert torch.equal(to_rows(ours, model.cfg.vision).rows if kind == "videollama3" else ours[None], pixels)
    wanted = {k: v for k, v in given.items() if k not in ("mm_token_type_ids", "video_metadata")}
    assert same(model(inputs), hf(**wanted).logits, kind)


@processors_of_today
def test_times_of_frames_that_videollama3s_processor_chose_are_rounded_as_there():
    """Frame 17 at 20 a second is 0.85 s, which float32 writes as 0.9 and the authors' code as 0.8."""
    tokenizer = words(SPECIAL["videollama3"])
    hf = videollama3(text={"vocab_size": 300}, video_token_id=256, image_token_id=257)
    model = HookedVideoLLM.from_transformers(hf, tokenizer=tokenizer)
    source = np.random.default_rng(0).integers(0, 256, (35, 28, 56, 3), np.uint8)
    about = VideoMetadata(total_num_frames=35, fps=20.0, duration=1.75)
    tokens = official("videollama3", tokenizer)(
        text=[ASKED["videollama3"]], videos=[source], video_metadata=[about], do_sample_frames=True, fps=1,
        return_tensors="pt",
    )["input_ids"]  # fmt: skip
    inputs = model.prepare(source, QUESTION, sampler="videollama3_hf", folder_fps=20)
    assert torch.equal(inputs.tokens.masked_fill(inputs.is_video, 256), tokens)
    authors = model.prepare(source[:18], QUESTION, n_frames=2, sampler="linspace", folder_fps=20)
    for ids, said in ((tokens, "0.9s:"), (authors.tokens.masked_fill(authors.is_video, 256), "0.8s:")):
        assert said in "".join(tokenizer.convert_ids_to_tokens(ids[0].tolist()))


def test_smolvlm2_asks_with_the_template_that_transformers_takes_for_videos():
    processor = official("smolvlm2", words(SPECIAL["smolvlm2"]))
    asked = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]
    assert processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False) == ASKED["smolvlm2"]


# ---- checkpoints -------------------------------------------------------------------------------------------


def test_attention_across_frames_is_refused_in_words(tmp_path):
    """transformers would load such a file and leave it out."""
    hf = video_llava()
    hf.save_pretrained(tmp_path / "theirs")
    file = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(file)
    name = "video_tower.encoder.layers.0.temporal_attn.q_proj.weight"
    save_file({**tensors, name: torch.zeros(32, 32)}, file, metadata={"format": "pt"})
    with pytest.raises(ConversionError, match=r"attention across frames, such as 'video_tower.*temporal_attn"):
        convert(tmp_path / "theirs", tmp_path / "ours", progress=False)


@torch.no_grad()
@pytest.mark.parametrize("kind", MADE)
def test_what_transformers_saves_converts_to_the_same_model(kind, tmp_path):
    hf = MADE[kind]()
    hf.save_pretrained(tmp_path / "theirs")
    again = HookedVideoLLM.from_pretrained(convert(tmp_path / "theirs", tmp_path / "ours", progress=False))
    model = HookedVideoLLM.from_transformers(hf)
    assert again.cfg == model.cfg
    mine, theirs = again.state_dict(), model.state_dict()
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


HUB_TEXT = {
    "architectures": ["VLlama3ForCausalLM"], "is_llama_config": True, "neftune_noise_alpha": 0.0,
    "perceiver_config": {"resampler_depth": 6}, "pixel_shuffle_factor": 4, "qk_layer_norms": False,
    "rope_interleaved": False, "transformers.js_config": {"kv_cache_dtype": {}}, "use_resampler": False,
}  # fmt: skip


def test_smolvlm2_reads_what_published_configs_keep_of_the_training_code(tmp_path):
    smolvlm().save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    config = json.loads(path.read_text())
    config |= {"use_reentrant_checkpointing": False, "vocab_size": 128}
    config["vision_config"] |= {
        "max_image_size": {},
        "size": {},
        "tie_word_embeddings": False,
        "use_base_siglip": False,
    }
    config["text_config"] |= HUB_TEXT
    path.write_text(json.dumps(config))
    convert(tmp_path / "theirs", tmp_path / "ours", progress=False)
    config["text_config"]["use_resampler"] = True
    path.write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=r"use_resampler = True is not supported \(only False\)"):
        convert(tmp_path / "theirs", tmp_path / "again", progress=False)


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        ("smolvlm2", {"scale_factor": 3}, "scale_factor = 3 does not divide the 8 patches of a side"),
        ("video-llava", {"vision_feature_layer": [-2, -3]}, "features of several layers are not supported"),
    ],
)
def test_what_a_class_could_do_and_we_do_not_is_refused(kind, given, said):
    hf = MADE[kind]()
    for name, value in given.items():
        setattr(hf.config, name, value)
    with pytest.raises(ConversionError, match=said):
        HookedVideoLLM.from_transformers(hf)


def test_the_authors_video_llava_is_refused_in_words(tmp_path):
    config = {"architectures": ["LlavaLlamaForCausalLM"], "mm_video_tower": "LanguageBind/LanguageBind_Video_merge"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"model.embed_tokens.weight": torch.zeros(4, 4)}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=r"mm_video_tower = 'LanguageBind.* only what transformers made of it"):
        convert(tmp_path, tmp_path / "ours", progress=False)
