"""Qwen-VL against transformers' own classes on tiny random weights away from init: processing, logits, tokens, cuts."""

import copy
import inspect
from contextlib import contextmanager
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.video_utils import VideoMetadata

from hookedvid import HookedVideoLLM
from hookedvid.checkpoints.parity import compare, first_beyond, our_stages, random_inputs, transformers_stages
from hookedvid.errors import ConfigError, InputError
from hookedvid.values.interventions import LV_K, VS_K, VT_K
from models import apart, perturb
from versions import processors_of_today

pytestmark = pytest.mark.shapes_unchecked

VIDEO_PAD, START, END = 301, 302, 303
TEXT = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
}  # fmt: skip
IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}
INTERLEAVED = {**ROPE, "rope_theta": 5e6, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
TOWER = {"depth": 3, "num_heads": 4}
VISION = {
    "Qwen2VL": {**TOWER, "embed_dim": 32, "hidden_size": 64},
    "Qwen2_5_VL": {
        **TOWER, "hidden_size": 32, "intermediate_size": 44, "out_hidden_size": 64, "window_size": 56,
        "fullatt_block_indexes": [1], "tokens_per_second": 2,
    },
    "Qwen3VL": {
        **TOWER, "hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "num_position_embeddings": 49,
        "deepstack_visual_indexes": [0, 2],
    },
}  # fmt: skip
CLASSES = tuple(VISION)
# Frames, height and width after resizing in tokens of the class, and how many were taken a second.
SHAPES = {"pairs": (4, 2, 3, 2.0), "odd": (5, 3, 2, 1.0), "one": (1, 2, 2, 2.0), "windows": (6, 3, 5, 1.5)}
LONG = {"long": (6, 2, 2, 0.05)}  # whose times grow far beyond a frame's sides
# Sums in another order: rows are in raster order here and in windows or squares there. Their patch embedding is a
# Conv3d, ours the same as one product, which is twice as near to float64; what the two are apart comes on top of it.
OTHER_ORDER, OTHER_CONV = 1e-6, 2e-6


@cache
def theirs(name: str, kernel: str = "sdpa", dtype: torch.dtype = torch.float32, first_id: int = 300):
    """A model of transformers' with nothing at its initial value; a width of heads that is not d_model / heads."""
    text = {**TEXT, "rope_parameters": dict(ROPE)}
    if name == "Qwen3VL":
        text |= {"rope_parameters": dict(INTERLEAVED), "head_dim": 16, "hidden_size": 48}
    vision = dict(VISION[name])
    if name == "Qwen3VL":
        vision["out_hidden_size"] = 48
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=False,
        **{name: first_id + i for i, name in enumerate(IDS)},
    )  # fmt: skip
    config._attn_implementation = kernel
    model = getattr(transformers, f"{name}ForConditionalGeneration")._from_config(config, attn_implementation=kernel)
    perturb(model)
    return model.eval().to(dtype)


@cache
def ours(name: str, kernel: str = "sdpa", dtype: torch.dtype = torch.float32) -> HookedVideoLLM:
    """The same weights here."""
    return HookedVideoLLM.from_transformers(theirs(name, kernel, dtype), kernel=kernel)


def video(model: HookedVideoLLM, shape: str, seed: int = 0):
    """Processed noise and its ids: a run between markers, or one a step where the class has times between them."""
    n, rows, columns, fps = (SHAPES | LONG)[shape]
    side = model.cfg.vision.multiple
    frames = np.random.default_rng(seed).integers(0, 256, (n, rows * side, columns * side, 3), dtype=np.uint8)
    processed = model.process(frames, fps=fps)
    steps, *_ = processed["video_grid_thw"][0].tolist()
    each, (prefix, question) = (
        rows * columns,
        torch.randint(0, 290, (2, 6), generator=torch.Generator().manual_seed(seed)),
    )
    if model.cfg.n_deepstack:
        runs = [i for step in range(steps) for i in (40 + step, START, *[VIDEO_PAD] * each, END)]
    else:
        runs = [START, *[VIDEO_PAD] * each * steps, END]
    return torch.tensor([[*prefix.tolist(), *runs, *question.tolist()]]), processed


def positioned(name: str, shape: str, **how):
    """Our inputs, and what their class's forward takes for the same."""
    model = ours(name, **how)
    ids, processed = video(model, shape)
    inputs = model.inputs_from_tensors(ids, **pixels(processed))
    given = {"input_ids": ids, **processed, "position_ids": inputs.position_ids[:, None]}
    given["pixel_values_videos"] = given["pixel_values_videos"].to(model.vision.patch_embed.weight.dtype)
    return model, inputs, {k: v for k, v in given.items() if k != "second_per_grid_ts"}


def pixels(processed):
    return {("pixel_values" if k == "pixel_values_videos" else k): v for k, v in processed.items()}


@contextmanager
def patches_by_one_product(reference):
    """Their model with its patch embedding as the product of rows and weights that it is."""
    conv = reference.model.visual.patch_embed.proj
    conv.forward = lambda x: F.linear(x.flatten(1), conv.weight.flatten(1), conv.bias)
    try:
        yield
    finally:
        del conv.forward


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CLASSES)
def test_logits_are_theirs(name, shape, kernel):
    model, inputs, given = positioned(name, shape, kernel=kernel)
    reference = theirs(name, kernel)
    assert apart(model(inputs), reference(**given).logits) < OTHER_CONV
    with patches_by_one_product(reference):
        assert apart(model(inputs), reference(**given).logits) < OTHER_ORDER


@pytest.mark.parametrize("name", CLASSES)
def test_stages_are_theirs(name):
    model = ours(name)
    inputs = random_inputs(model, 3)
    stages = compare(our_stages(model, inputs), transformers_stages(theirs(name), inputs))
    assert len(stages) == 2 + model.cfg.n_layers
    assert first_beyond(stages, OTHER_CONV) is None, stages


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_the_decoder_is_theirs_bit_for_bit(name):
    """Given the same video features, so that only its own sums count."""
    model, inputs, given = positioned(name, "windows")
    reference = theirs(name)
    logits, cache = model.run_with_cache(inputs, names_filter=lambda n: n in ("hook_embed",))
    embeds = cache["hook_embed"]
    extra = {}
    if n := model.cfg.n_deepstack:
        features = model.encode_video(inputs).split(model.cfg.d_model, -1)[1:]
        extra = {"visual_pos_masks": inputs.is_video, "deepstack_visual_embeds": list(features)}
        assert len(features) == n
    mask = torch.ones_like(given["input_ids"])
    hidden = reference.model.language_model(
        inputs_embeds=embeds, position_ids=given["position_ids"], attention_mask=mask, **extra
    ).last_hidden_state
    assert torch.equal(model(inputs), reference.lm_head(hidden)) and torch.equal(logits, model(inputs))


@torch.no_grad()
@pytest.mark.parametrize("stated", ["neither", "sections", "the other way"])
@pytest.mark.parametrize("name", CLASSES)
def test_axes_are_those_of_the_class_whatever_a_config_states(name, stated):
    """Whether they are interleaved is written in the class, and so are the sections of a config without."""
    config = copy.deepcopy(theirs(name).config)
    text, own = config.text_config, {"mrope_interleaved": name != "Qwen3VL"} if stated == "the other way" else {}
    text.rope_parameters = {k: v for k, v in text.rope_parameters.items() if not k.startswith("mrope")} | own
    if stated == "neither":
        text.hidden_size = text.head_dim = 128
        text.num_attention_heads = text.num_key_value_heads = 1
        setattr(config.vision_config, "hidden_size" if name == "Qwen2VL" else "out_hidden_size", 128)
    else:
        text.rope_parameters["mrope_section"] = [2, 3, 3]
    reference = getattr(transformers, f"{name}ForConditionalGeneration")._from_config(config)
    perturb(reference)
    model = HookedVideoLLM.from_transformers(reference.eval())
    *_, given = positioned(name, "windows")
    ids, processed = video(model, "windows")
    inputs = model.inputs_from_tensors(ids, **pixels(processed))
    assert apart(model(inputs), reference(**given).logits) < OTHER_CONV


def test_features_of_earlier_blocks_are_taken_in_their_order():
    """The class finds the merger of a block by its place in the list."""
    config = copy.deepcopy(theirs("Qwen3VL").config)
    for indexes in ([2, 0], [0, 0]):
        config.vision_config.deepstack_visual_indexes = indexes
        reference = transformers.Qwen3VLForConditionalGeneration._from_config(config)
        with pytest.raises(ConfigError, match=r"must name blocks once each, in ascending order"):
            HookedVideoLLM.from_transformers(reference)


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_half_precision_is_no_farther_off_than_theirs(name):
    *_, given = positioned(name, "windows")
    exact = theirs(name)(**given).logits
    half, inputs, given = positioned(name, "windows", dtype=torch.bfloat16)
    own = half(inputs).float()
    off = apart(theirs(name, dtype=torch.bfloat16)(**given).logits.float(), exact)
    assert apart(own, exact) < 1.5 * off  # the largest of two runs of roundings: equal but for chance


def sides(name: str, kernel: str = "sdpa") -> HookedVideoLLM:
    """The same weights, text going on where transformers lets it behind a long video."""
    overrides = {"decoder.rope.text_after": "sides"}
    return HookedVideoLLM.from_transformers(theirs(name, kernel), kernel=kernel, overrides=overrides)


@torch.no_grad()
@pytest.mark.parametrize(("shape", "last"), [("odd", "text"), ("long", "text"), ("long", "video")])
@pytest.mark.parametrize("name", CLASSES)
def test_greedy_tokens_are_theirs_with_and_without_a_cache(name, shape, last):
    """The positions that their `generate` turns by are compared too: tiny models seldom mind a wrong one."""
    model, reference, positions = sides(name), theirs(name), []
    ids, processed = video(model, shape)
    ids = ids if last == "text" else ids[:, :-7]  # without question and end of the video
    types = (ids == VIDEO_PAD) * 2  # what their processors call the type of a token
    hook = reference.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: positions.append(kwargs["position_ids"][-3:, 0]), with_kwargs=True
    )
    try:
        want = reference.generate(
            input_ids=ids, mm_token_type_ids=types, max_new_tokens=6, do_sample=False, eos_token_id=None, **processed
        )[:, ids.shape[1] :]
    finally:
        hook.remove()
    inputs = model.inputs_from_tensors(ids, **pixels(processed))
    assert torch.equal(inputs.extend(want[:, :-1]).position_ids, torch.cat(positions, 1))
    how = {"max_new_tokens": 6, "return_type": "tokens", "stop_at_eos": False}
    assert torch.equal(model.generate(inputs, **how), want)
    assert torch.equal(model.generate(inputs, use_past_kv_cache=False, **how), want)


@pytest.mark.parametrize("fps", [0.3, 0.6, 1.2, 2.3, 2.4, 3.7, 30000 / 1001, 24])
def test_times_are_cut_as_theirs_where_they_are_nearly_whole(fps):
    """At 0.6 frames a second three steps are 20 in float32, and nearly 20 in float64."""
    model, n = sides("Qwen2_5_VL"), 40
    ids = torch.tensor([[5, START, *[VIDEO_PAD] * n, END, 6]])
    processed = {"video_grid_thw": torch.tensor([[n, 2, 2]]), "second_per_grid_ts": torch.tensor([2 / fps])}
    want, _ = theirs("Qwen2_5_VL").model.get_rope_index(ids, (ids == VIDEO_PAD).int() * 2, **processed)
    for seconds in (processed["second_per_grid_ts"], [2 / fps]):
        given = {**processed, "second_per_grid_ts": seconds}
        assert torch.equal(model.inputs_from_tensors(ids, torch.zeros(4 * n, 1176), **given).position_ids, want[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("name", CLASSES)
def test_a_batch_of_unlike_videos_is_its_items(name):
    """float64: the batch's rows stand in other sums."""
    model = ours(name, dtype=torch.float64)
    items = [model.inputs_from_tensors(ids, **pixels(p)) for ids, p in (video(model, s) for s in ("odd", "windows"))]
    stacked = type(items[0]).stack(items)
    logits = model(stacked)
    for i, item in enumerate(items):
        assert apart(logits[i, stacked.pads[i] :], model(item)[0]) < 1e-12


def cut(layout_ids: torch.Tensor, shape: str, kind: str) -> torch.Tensor:
    """Who may not see whom, True there, by the ids alone: [pos, pos]."""
    _, rows, columns, _ = SHAPES[shape]
    is_video = layout_ids == VIDEO_PAD
    step = torch.where(is_video, (is_video.cumsum(0) - 1) // (rows * columns), -1)
    last = int(is_video.nonzero().max())
    text = torch.arange(len(layout_ids)) > last
    if kind == "LV-K":
        return text[:, None] & is_video[None]
    same = step[:, None] == step[None]
    pairs = is_video[:, None] & is_video[None]
    others = ~torch.eye(len(layout_ids), dtype=torch.bool)
    return pairs & (~same if kind == "VT-K" else same & others)


@pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning")
@torch.no_grad()
@pytest.mark.parametrize("layers", ["0:", "1:3"])
@pytest.mark.parametrize("knockout", [LV_K, VT_K, VS_K], ids=lambda k: k.name)
@pytest.mark.parametrize("name", ["Qwen2_5_VL", "Qwen3VL"])
def test_knockouts_are_explicit_masks_on_their_eager_model(name, knockout, layers):
    """Prompt and generated tokens, in the layers asked for alone; the mask is made of the ids here."""
    model, shape = sides(name, "eager"), "windows"
    ids, processed = video(model, shape)
    inputs = model.inputs_from_tensors(ids, **pixels(processed))
    condition = knockout.at(layers)
    new = model.generate(inputs, condition, max_new_tokens=3, return_type="tokens", stop_at_eos=False)
    whole = inputs.extend(new)
    blocked = cut(torch.cat([ids[0], new[0]]), shape, knockout.name)
    n = len(blocked)
    causal = torch.ones(n, n, dtype=torch.bool).tril()
    least = torch.finfo(torch.float32).min
    plain, masked = (torch.zeros(n, n).masked_fill(~may, least)[None, None] for may in (causal, causal & ~blocked))
    reference, chosen = theirs(name, "eager"), condition.layers.layers(model.cfg.n_layers)

    def mask(i):
        def hook(module, args, kwargs):
            return args, {**kwargs, "attention_mask": masked if i in chosen else plain}

        return hook

    blocks = reference.model.language_model.layers
    handles = [b.self_attn.register_forward_pre_hook(mask(i), with_kwargs=True) for i, b in enumerate(blocks)]
    try:
        given = {k: v for k, v in processed.items() if k != "second_per_grid_ts"}
        logits = reference(input_ids=torch.cat([ids, new], 1), position_ids=whole.position_ids[:, None], **given).logits
    finally:
        for handle in handles:
            handle.remove()
    assert apart(model(whole, interventions=condition), logits) < OTHER_CONV
    assert torch.equal(logits[0, ids.shape[1] - 1 : -1].argmax(-1), new[0])


# ---- prompts -----------------------------------------------------------------------------------------------

SPECIAL = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"]
QUESTION = "What is it?"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
ASKED = f"<|im_start|>user\n{VIDEO}{QUESTION}<|im_end|>\n<|im_start|>assistant\n"


def words() -> transformers.PreTrainedTokenizerFast:
    """Bytes, and Qwen's special tokens behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.add_special_tokens(SPECIAL)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, pad_token=SPECIAL[-1])


def official(name: str):
    """The class's processor with the sizes of the published file."""
    tokenizer = words()
    if name == "Qwen3VL":
        sizes = {"size": {"shortest_edge": 4096, "longest_edge": 25_165_824}, "cap_pixels_per_frame": False}
        return transformers.Qwen3VLProcessor(
            transformers.Qwen2VLImageProcessor(), tokenizer, transformers.Qwen3VLVideoProcessor(**sizes)
        )
    sizes = {"size": {"shortest_edge": 3136, "longest_edge": 12_845_056}, "cap_pixels_per_frame": False}
    kind = transformers.Qwen2VLProcessor if name == "Qwen2VL" else transformers.Qwen2_5_VLProcessor
    return kind(transformers.Qwen2VLImageProcessor(), tokenizer, transformers.Qwen2VLVideoProcessor(**sizes))


@torch.no_grad()
@processors_of_today
@pytest.mark.parametrize("n", [2, 5, 8])
@pytest.mark.parametrize("name", CLASSES)
def test_prompt_and_pixels_are_those_of_the_official_processor(name, n):
    """Qwen3-VL's from transformers 5.12 on has tokens around the whole video, which is a template of its own."""
    n_total, fps, first = 40, 5.0, 256
    reference = theirs(name, first_id=first)
    outer = {"prompt": "qwen3_vl_outer"} if name == "Qwen3VL" else {}
    model = HookedVideoLLM.from_transformers(reference, tokenizer=words(), overrides=outer)
    source = np.random.default_rng(0).integers(0, 256, (n_total, 70, 120, 3), dtype=np.uint8)
    inputs = model.prepare(source, QUESTION, n_frames=n, sampler="linspace", folder_fps=fps)
    at = np.linspace(0, n_total - 1, n, dtype=int)
    about = VideoMetadata(total_num_frames=n_total, fps=fps, duration=n_total / fps, frames_indices=at)
    text = ASKED if name == "Qwen3VL" else SYSTEM + ASKED
    given = official(name)(
        text=[text], videos=[source[at]], video_metadata=[about], do_sample_frames=False, return_tensors="pt",
        **({"fps": n / n_total * fps} if name == "Qwen2_5_VL" else {}),
    )  # fmt: skip
    assert torch.equal(inputs.tokens.masked_fill(inputs.is_video, first + 1), given["input_ids"])
    assert torch.equal(model.process(source[at])["pixel_values_videos"], given["pixel_values_videos"])
    same = model.inputs_from_tensors(
        given["input_ids"], given["pixel_values_videos"], video_grid_thw=given["video_grid_thw"],
        second_per_grid_ts=given.get("second_per_grid_ts"),
    )  # fmt: skip
    assert torch.equal(same.position_ids, inputs.position_ids)
    before = model(inputs)
    inputs.position_ids.zero_()
    assert torch.equal(model(inputs), before), "what a caller does to the numbers is the caller's"


def test_a_video_as_released_has_no_tokens_around_it():
    reference = theirs("Qwen3VL", first_id=256)
    model = HookedVideoLLM.from_transformers(reference, tokenizer=words())
    source = np.zeros((6, 64, 96, 3), dtype=np.uint8)
    inputs = model.prepare(source, QUESTION, n_frames=5, sampler="linspace", folder_fps=2.0)
    tokens = inputs.tokens[0].masked_fill(inputs.is_video[0], 257)
    said = "".join(model.tokenizer.convert_ids_to_tokens(tokens)).replace("Ġ", " ").replace("Ċ", "\n")
    said = said.replace("<|video_pad|>" * 6, "[]")
    steps = "".join(f"<{t} seconds><|vision_start|>[]<|vision_end|>" for t in ("0.2", "1.2", "2.5"))
    assert said == f"<|im_start|>user\n{steps}{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    assert inputs.layout.step_names == ("video[0:2]", "video[2:4]", "video[4]")


def test_what_a_processor_gives_must_fit_its_pixels():
    model = ours("Qwen2_5_VL")
    ids, processed = video(model, "pairs")
    rows, grid = processed["pixel_values_videos"], processed["video_grid_thw"]
    with pytest.raises(InputError, match="pass their video_grid_thw too"):
        model.inputs_from_tensors(ids, rows)
    with pytest.raises(InputError, match=r"48 rows, and the grids \[\(2, 4, 4\)\] of video_grid_thw hold 32"):
        model.inputs_from_tensors(ids, rows, video_grid_thw=torch.tensor([[2, 4, 4]]), second_per_grid_ts=1.0)
    with pytest.raises(InputError, match="nothing says how many lie between the video's steps"):
        model.inputs_from_tensors(ids, rows, video_grid_thw=grid)
    with pytest.raises(InputError, match=r"knows nothing of \['image_grid_thw'\]"):
        model.inputs_from_tensors(ids, rows, image_grid_thw=grid)
    with pytest.raises(InputError, match=r"\['video_grid_thw'\] tell of a video, and there are no pixel_values"):
        model.inputs_from_tensors([1, 2], video_grid_thw=grid)
    with pytest.raises(InputError, match="these pixels are frames"):
        model.inputs_from_tensors(ids, torch.zeros(4, 3, 56, 84), video_grid_thw=grid)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"second_per_grid_ts": 0.0}, r"second_per_grid_ts is 0.0 for 1 video\(s\); give seconds above 0"),
        ({"second_per_grid_ts": [-1.0]}, "give seconds above 0, a number for each"),
        ({"second_per_grid_ts": float("nan")}, "give seconds above 0, a number for each"),
        ({"second_per_grid_ts": [1.0, 2.0]}, r"second_per_grid_ts is \[1.0, 2.0\] for 1 video\(s\)"),
        ({"second_per_grid_ts": []}, "give seconds above 0, a number for each"),
        ({"second_per_grid_ts": "1"}, "second_per_grid_ts is '1', of which no tensor can be made"),
        (
            {"video_grid_thw": [[2.0, 4.0, 6.0]]},
            r"video_grid_thw is \[\[2.0, 4.0, 6.0\]\]; give whole numbers of groups",
        ),
        ({"video_grid_thw": [[2, 24]]}, r"video_grid_thw is \[\[2, 24\]\]; give whole numbers of groups of frames"),
        ({"video_grid_thw": [[-2, -4, 6]]}, "do not fit the grid"),
        ({"pixel_values": np.zeros((48, 1176), np.float32)}, "pixel_values are an array of NumPy; give a tensor"),
    ],
)
def test_what_no_processor_gives_is_refused(given, text):
    model = ours("Qwen2_5_VL")
    ids, processed = video(model, "pairs")
    with pytest.raises(InputError, match=text):
        inspect.unwrap(type(model).inputs_from_tensors)(model, ids, **{**pixels(processed), **given})
