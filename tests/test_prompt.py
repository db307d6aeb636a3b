"""Prompts: the exact text of every template, and which position of it is what."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hookedvid import HookedVideoLLM, VideoInputs, small_config
from hookedvid.config import DecoderConfig, VideoLLMConfig
from hookedvid.errors import InputError
from hookedvid.preparing import _check_question
from hookedvid.tokenizer import byte_tokenizer
from hookedvid.video.prompt import TEMPLATES, template

QUESTION, OPTIONS = "What moves?", ["a car", "a dog", "über-été"]
CHOICES = "\nA. a car\nB. a dog\nC. über-été\nAnswer with the option's letter from the given choices directly."
# Facts: printed by the original packages.
QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: "
)
INTERN = (
    "<|im_start|>system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
    "多模态大语言模型。<|im_end|>\n<|im_start|>user\n"
)
VIDEO = "<video>"
FAMILY = {"qwen_1_5": "llava-onevision", "vicuna_v1": "llava-next-video", "internvl2_5": "internvideo2.5"}


def frames(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 20, 30, 3), dtype=np.uint8)


@cache
def model(prompt: str) -> HookedVideoLLM:
    """A small model with that template and the byte tokenizer."""
    return HookedVideoLLM.from_config(small_config(FAMILY[prompt]))


def text_of(m: HookedVideoLLM, inputs: VideoInputs) -> str:
    """The prompt as it stands, each run of video positions written as one `<video>`."""
    parts, run, video = [], [], False
    for token in [*inputs.tokens[0].tolist(), None]:
        if token is not None and token >= 0:
            run.append(token)
            video = False
            continue
        parts.append(m.tokenizer.decode(run))
        run = []
        if token is not None and not video:
            parts.append(VIDEO)
        video = True
    return "".join(parts)


def segments(m: HookedVideoLLM, inputs: VideoInputs) -> list[tuple[str, int | None, str]]:
    """(role, frame or option, text) of every segment that is text."""
    ids = inputs.tokens[0]
    return [
        (s.role, s.index if s.role == "options" else s.frame, m.tokenizer.decode(ids[s.start : s.stop]))
        for s in inputs.layout.segments
        if s.role not in ("video", "newline")
    ]


INTERN_FRAMES = "".join(f"Frame{n}: <img>{VIDEO}</img>\n" for n in (1, 2, 3, 4))
PROMPTS = [
    ("qwen_1_5", [], f"{QWEN[0]}{VIDEO}\n{QUESTION}{QWEN[1]}"),
    ("qwen_1_5", OPTIONS, f"{QWEN[0]}{VIDEO}\n{QUESTION}{CHOICES}{QWEN[1]}"),
    ("vicuna_v1", [], f"{VICUNA}{VIDEO}\n{QUESTION} ASSISTANT:"),
    ("vicuna_v1", OPTIONS, f"{VICUNA}{VIDEO}\n{QUESTION}{CHOICES} ASSISTANT:"),
    ("internvl2_5", [], f"{INTERN}{INTERN_FRAMES}{QUESTION}{QWEN[1]}"),
    ("internvl2_5", OPTIONS, f"{INTERN}{INTERN_FRAMES}{QUESTION}{CHOICES}{QWEN[1]}"),
]


@pytest.mark.parametrize(("prompt", "options", "expected"), PROMPTS)
def test_prompts_are_those_of_the_original_packages(prompt, options, expected):
    m = model(prompt)
    assert text_of(m, m.prepare(frames(), QUESTION, options, n_frames=4)) == expected


@pytest.mark.parametrize("prompt", FAMILY)
def test_without_a_video_nothing_of_it_is_left(prompt):
    m = model(prompt)
    inputs = m.prepare(None, QUESTION, OPTIONS)
    assert inputs.pixel_values == (None,) and not inputs.has_video
    before, after = (INTERN if prompt == "internvl2_5" else VICUNA, " ASSISTANT:")
    if prompt != "vicuna_v1":
        before, after = (INTERN if prompt == "internvl2_5" else QWEN[0]), QWEN[1]
    assert text_of(m, inputs) == f"{before}{QUESTION}{CHOICES}{after}"


def test_a_bare_decoder_asks_without_a_video():
    decoder = DecoderConfig(n_layers=1, d_model=16, n_heads=2, n_kv_heads=2, d_head=8, d_mlp=16, d_vocab=300)
    m = HookedVideoLLM.from_config(VideoLLMConfig(family="text", decoder=decoder, prompt="qwen_1_5"))
    assert text_of(m, m.prepare(None, QUESTION)) == f"{QWEN[0]}{QUESTION}{QWEN[1]}"
    with pytest.raises(InputError, match="this model takes no video; pass None"):
        m.prepare(frames(), QUESTION)


def test_roles_cover_the_parts_of_a_prompt():
    m = model("qwen_1_5")
    inputs = m.prepare(frames(), QUESTION, OPTIONS, n_frames=4)
    assert segments(m, inputs) == [
        ("system", None, QWEN[0]),
        ("template", None, "\n"),
        ("question", None, QUESTION),
        ("options", 0, "\nA. a car"),
        ("options", 1, "\nB. a dog"),
        ("options", 2, "\nC. über-été"),
        ("template", None, "\nAnswer with the option's letter from the given choices directly."),
        ("template", None, QWEN[1]),
    ]
    layout = inputs.layout
    assert layout.n_tokens == inputs.tokens.shape[1] and layout.n_frames == 4 and layout.n_options == 3
    assert layout.positions("video").tolist() == (inputs.tokens[0] == -200).nonzero()[:, 0].tolist()
    assert layout.positions("system").tolist() == list(range(len(m.tokenizer(QWEN[0])["input_ids"])))
    assert m.tokenizer.decode(inputs.tokens[0][layout.mask("option[1]")]) == "\nB. a dog"
    assert layout.positions("last").tolist() == [layout.n_tokens - 1]


@pytest.mark.parametrize("language", [False, True])
def test_texts_between_frames_are_markers_of_their_frame(language):
    m = model("internvl2_5")
    inputs = m.prepare(frames(), QUESTION, n_frames=4, markers_are_language=language)
    found = segments(m, inputs)
    wanted = [("marker", f, t) for f in range(4) for t in (f"Frame{f + 1}: <img>", "</img>\n")]
    assert found == [("system", None, INTERN), *wanted, ("question", None, QUESTION), ("template", None, QWEN[1])]
    assert inputs.layout.mask("text")[inputs.layout.mask("markers")].all() == language
    per_frame = m.cfg.tokens_per_frame
    # Merged tokens hold four frames each, which the selector says.
    with pytest.warns(UserWarning, match="mixes 4 frames"):
        assert len(inputs.layout.positions("video[2]")) == per_frame


def test_letters_are_the_tokens_the_template_shows():
    m = model("qwen_1_5")
    inputs = m.prepare(frames(), QUESTION, OPTIONS, n_frames=4)
    assert m.tokenizer.convert_ids_to_tokens(list(inputs.option_tokens[0])) == ["A", "B", "C"]
    assert inputs.options == (tuple(OPTIONS),)
    assert m.prepare(frames(), QUESTION, n_frames=4).option_tokens == ((),)


def test_frames_come_sampled_and_preprocessed():
    m = model("qwen_1_5")
    assert m.prepare(frames(9), QUESTION, n_frames=3).pixel_values[0].shape == (3, 3, 70, 70)
    assert len(m.prepare(frames(9), QUESTION).pixel_values[0]) == m.cfg.n_frames == 8
    picked = m.prepare(frames(9), QUESTION, n_frames=2).pixel_values[0]
    both_ends = m.prepare(frames(9)[[0, 8]], QUESTION, n_frames=2).pixel_values[0]
    assert torch.equal(picked, both_ends)


def tokenizer(merges: list[tuple[str, str]], bos: bool = False, prepend: str = "") -> PreTrainedTokenizerFast:
    """Bytes, the given merges, perhaps a token put first and a text put before every chunk."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate([*alphabet, *(a + b for a, b in merges)])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if prepend:
        core.normalizer = normalizers.Prepend(prepend)
    core.add_special_tokens(["<s>"])
    if bos:
        core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def with_tokenizer(made: object) -> HookedVideoLLM:
    return HookedVideoLLM.from_config(small_config("llava-next-video"), tokenizer=made)


def test_the_tokenizers_first_token_stands_once_and_is_system():
    m = with_tokenizer(tokenizer([], bos=True))
    inputs = m.prepare(frames(), QUESTION, n_frames=4)
    bos = m.tokenizer.convert_tokens_to_ids("<s>")
    assert (inputs.tokens[0] == bos).nonzero().tolist() == [[0]]
    assert inputs.layout.segments[0].role == "system" and len(inputs.layout.segments[0]) == 1 + len(VICUNA)


def test_a_token_across_two_parts_belongs_to_where_it_ends():
    m = with_tokenizer(tokenizer([("?", "Ċ")]))  # Ċ is how byte-level vocabularies write a line end
    inputs = m.prepare(frames(), QUESTION, OPTIONS, n_frames=4)
    parts = {(s.role, s.index): inputs.tokens[0][s.start : s.stop] for s in inputs.layout.segments}
    assert m.tokenizer.convert_ids_to_tokens(parts["question", None].tolist())[-1] == "s"
    assert m.tokenizer.convert_ids_to_tokens(parts["options", 0].tolist())[0] == "?Ċ"


@pytest.mark.parametrize(
    ("question", "options", "said"),
    [
        ("", [], "the question is ''; ask something"),
        ("  \n", [], r"the question is '  \\n'; ask something"),
        (None, [], "the question is None; ask something"),
        (QUESTION, ["a"], r"options must be 2 to 26 texts, got \['a'\]"),
        (QUESTION, [str(i) for i in range(27)], r"options must be 2 to 26 texts, got \['0', "),
        (QUESTION, "ab", "options must be a list of texts, got 'ab'"),
        (QUESTION, ["a", " "], r"options must be a list of texts, got \['a', ' '\]"),
        (QUESTION, ["a", 3], r"options must be a list of texts, got \['a', 3\]"),
    ],
)
def test_questions_and_options_that_ask_nothing_are_refused(question, options, said):
    # Undecorated: type checking, which only tests turn on, would refuse some of them first.
    check = getattr(_check_question, "__wrapped__", _check_question)
    with pytest.raises(InputError, match=said):
        check(model("qwen_1_5"), None, question, options)


def test_options_may_repeat_as_they_do_in_published_sets():
    inputs = model("qwen_1_5").prepare(None, QUESTION, ["a", "a"])
    assert inputs.options == (("a", "a"),) and len(set(inputs.option_tokens[0])) == 2


def test_tokenizers_that_cannot_lay_out_a_prompt_are_refused():
    cfg = small_config("llava-onevision", d_vocab=50)
    with pytest.raises(InputError, match=r"this model has no tokenizer: pass tokenizer=... where it is made, or use"):
        HookedVideoLLM.from_config(cfg).prepare(None, QUESTION)
    with pytest.raises(InputError, match="character offsets, which only fast tokenizers give; load a fast one"):
        with_tokenizer(SimpleNamespace(is_fast=False)).prepare(None, QUESTION)
    m = with_tokenizer(tokenizer([], prepend="_"))
    with pytest.raises(InputError, match="the option letter 'A' is 2 tokens in this tokenizer; it must be one"):
        m.prepare(None, QUESTION, OPTIONS)


def test_the_byte_tokenizer_gives_back_any_text_and_needs_its_rows():
    t = byte_tokenizer(260)
    for text in (INTERN, QWEN[0], "  two  spaces\n\ttab, \x00 and 🎬"):
        assert t.decode(t(text)["input_ids"]) == text
    assert max(t.get_vocab().values()) == 259 and byte_tokenizer(259) is None


def test_unknown_templates_are_refused_with_those_that_exist():
    with pytest.raises(InputError, match=r"no prompt template 'qwen_2_5' \(nearest: 'qwen_1_5'"):
        template("qwen_2_5")
    assert set(FAMILY) < set(TEMPLATES)
