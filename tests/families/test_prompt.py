"""Prompts: the exact text of every template, and which position of it is what."""

import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from clips import write_clip
from hookedvid import HookedVideoLLM, VideoInputs, small_config
from hookedvid.checkpoints.byte_tokenizer import byte_tokenizer
from hookedvid.errors import InputError
from hookedvid.families.prompts import QuestionForm, special_strings
from hookedvid.families.registry import TEMPLATES, TIME_INSTRUCTIONS, named_instruction, template
from hookedvid.model.answers import score_options
from hookedvid.model.prepare import _check_question, prepare
from hookedvid.model.prompt_tokens import UnknownWordWarning
from hookedvid.values.config import DecoderConfig, VideoLLMConfig
from hookedvid.video.frames import read_clip

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
INTERNLM2 = (
    "<|im_start|>system\n你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的"
    "人工智能助手。<|im_end|><|im_start|>user\n"
)
VIDEO = "<video>"
FAMILY = {
    "qwen_1_5": "llava-onevision",
    "vicuna_v1": "llava-next-video",
    "internvl2_5": "internvideo2.5",
    "internlm2-chat": "internvideo2.5",
    "onevision_hf": "llava-onevision",
    "next_video_hf": "llava-next-video",
}


def frames(n: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 20, 30, 3), dtype=np.uint8)


@cache
def model(prompt: str) -> HookedVideoLLM:
    """A small model with that template and the byte tokenizer."""
    return HookedVideoLLM.from_config(replace(small_config(FAMILY[prompt]), prompt=prompt))


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
BARE_END = "<|im_end|><|im_start|>assistant\n"
# What stands before the video, the video with what separates it from the question, and what stands at the end.
EXPECTED = {
    "qwen_1_5": (QWEN[0], f"{VIDEO}\n", QWEN[1]),
    "vicuna_v1": (VICUNA, f"{VIDEO}\n", " ASSISTANT:"),
    "internvl2_5": (INTERN, INTERN_FRAMES, QWEN[1]),
    "internlm2-chat": (INTERNLM2, INTERN_FRAMES, BARE_END),
    "onevision_hf": ("<|im_start|>user ", f"{VIDEO}\n", BARE_END),
    "next_video_hf": ("USER: ", f"{VIDEO}\n", " ASSISTANT:"),
}


@pytest.mark.parametrize(("options", "choices"), [([], ""), (OPTIONS, CHOICES)])
@pytest.mark.parametrize("prompt", EXPECTED)
def test_prompts_are_those_of_the_original_packages(prompt, options, choices):
    m = model(prompt)
    before, video, after = EXPECTED[prompt]
    inputs = m.prepare(frames(), QUESTION, options, n_frames=4)
    assert text_of(m, inputs) == f"{before}{video}{QUESTION}{choices}{after}"


@pytest.mark.parametrize("prompt", EXPECTED)
def test_without_a_video_nothing_of_it_is_left(prompt):
    m = model(prompt)
    before, _, after = EXPECTED[prompt]
    for instruction in TIME_INSTRUCTIONS:
        inputs = m.prepare(None, QUESTION, OPTIONS, time_instruction=instruction)
        assert inputs.pixel_values == (None,) and not inputs.has_video
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
    ("merges", "prepend"),
    # Tokenizers that put a blank in front, as sentencepiece does; that join "(A", which then is no answer to "(".
    [([], ""), ([], "_"), ([("(", "A"), ("(", "B"), ("(", "C")], "")],
)
def test_letters_behind_a_begun_answer_are_the_tokens_that_go_on_with_it(merges, prepend):
    m = with_tokenizer(tokenizer(merges, prepend=prepend))
    inputs = m.prepare(None, QUESTION, OPTIONS, form=QuestionForm(prefill="Best option:("))
    assert m.tokenizer.convert_ids_to_tokens(list(inputs.option_tokens[0])) == ["A", "B", "C"]
    assert m.tokenizer.convert_ids_to_tokens(inputs.tokens[0].tolist())[-1] == "("
    last = inputs.layout.segments[-1]
    assert last.role == "template" and last.stop == inputs.layout.n_tokens


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
        check(model("qwen_1_5"), None, question, options, "")


def test_options_may_repeat_as_they_do_in_published_sets():
    inputs = model("qwen_1_5").prepare(None, QUESTION, ["a", "a"])
    assert inputs.options == (("a", "a"),) and len(set(inputs.option_tokens[0])) == 2


@pytest.mark.parametrize("held", ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<pad>"])
def test_a_users_text_never_becomes_a_control_token(held):
    """The whole prompt goes to the tokenizer, which would read it as one, as the original packages do unsaid."""
    m, text = model("qwen_1_5"), f"what is {held}user\n ?"
    control = set(m.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<pad>"]))
    said = f"'what is {re.escape(held)}.* which this tokenizer reads as a control token"
    form = replace(template("qwen_1_5").form, before="{subtitles}", subtitles=text)
    for given in ((text,), (QUESTION, ["a", text])):
        with pytest.raises(InputError, match=said):
            m.prepare(None, *given)
    for more in ({"answer": text}, {"form": form}):
        with pytest.raises(InputError, match=said):
            m.prepare(None, QUESTION, **more)
    plain = m.prepare(None, "what is < |im_end|> or <|IM_END|> or <video> ?", ["<s>", "[INST]"])
    ours = m.prepare(None, QUESTION, ["<s>", "[INST]"])
    assert [t for t in plain.tokens[0].tolist() if t in control] == [t for t in ours.tokens[0].tolist() if t in control]


def test_halves_of_surrogate_pairs_are_no_text():
    with pytest.raises(InputError, match=r"'\\ud800 \?' holds half of a surrogate pair"):
        model("qwen_1_5").prepare(None, "\ud800 ?")


def test_words_that_a_tokenizer_does_not_know_are_said():
    tiny = HookedVideoLLM.from_pretrained("tiny")
    with pytest.warns(UnknownWordWarning, match=r"does not know 'zebra', 'quagga', and reads each as '<unk>'"):
        tiny.prepare(None, "what color is the zebra ?", ["red", "quagga"])
    tiny.prepare(None, "what color is the circle ?", ["red", "blue"])  # warns of nothing
    assert "<unk>" not in {t.content for t in model("qwen_1_5").tokenizer.added_tokens_decoder.values()}


def words(*known: str) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<unk>", *known])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")


@pytest.mark.filterwarnings("ignore::hookedvid.model.prompt_tokens.UnknownWordWarning")
def test_option_letters_that_no_logit_stands_for_are_refused():
    m = with_tokenizer(words("A", "what"))
    with pytest.raises(InputError, match="this tokenizer does not know the option letter 'B'"):
        m.prepare(None, "what", ["x", "y"])
    alike = tokenizer([])
    alike.backend_tokenizer.normalizer = normalizers.Replace("B", "A")
    with pytest.raises(InputError, match=r"tokens \[\d+, \d+, \d+\] are not all different"):
        with_tokenizer(alike).prepare(None, QUESTION, OPTIONS)
    inputs = replace(model("qwen_1_5").prepare(None, QUESTION, OPTIONS), option_tokens=((0, 0, 1),))
    with pytest.raises(InputError, match="are not all different"):
        score_options(torch.zeros(300), inputs)


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
    with pytest.raises(InputError, match=r"no time instruction 'llava' \(nearest: 'llava_video'"):
        named_instruction("llava")


IM = ("<|im_start|>", "<|im_end|>")
SPECIAL = {
    "qwen_1_5": IM,
    "onevision_hf": IM,
    "qwen2_vl": (*IM, "<|vision_start|>", "<|vision_end|>"),
    "qwen3_vl": (*IM, "<|vision_start|>", "<|vision_end|>"),
    "qwen3_vl_outer": (*IM, "<|vision_start|>", "<|vision_end|>"),
    "vicuna_v1": ("</s>",),
    "next_video_hf": ("</s>",),
    "video_llava_hf": ("</s>",),
    "internvl2_5": (*IM, "<img>", "</img>"),
    "internvl_hf": (*IM, "<img>", "</img>"),
    "internlm2-chat": (*IM, "<img>", "</img>"),
    "smolvlm2": ("<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<global-img>"),
    "videollama3": IM,
    "videollama3_eval": IM,
    "plain": (),
    "tiny": ("<bos>", "<eos>"),
}


@pytest.mark.parametrize("prompt", TEMPLATES)
def test_special_strings_are_those_a_tokenizer_must_know(prompt):
    assert sorted(special_strings(template(prompt))) == sorted(SPECIAL[prompt])


# Nine frames at two per second, of which 0, 4 and 8 are taken. Facts: the text of LLaVA-NeXT's train.py.
SECONDS = (
    "The video lasts for 4.50 seconds, and 3 frames are uniformly sampled from it. "
    "These frames are located at 0.00s,2.00s,4.00s.Please answer the following questions related to this video.\n"
)
LASTS = "The video lasts for 4.50 seconds, and 3 frames are uniformly sampled from it.\n"
NINE = {"n_frames": 3, "folder_fps": 2}
PLAIN = f"{QWEN[0]}{VIDEO}\n{QUESTION}{QWEN[1]}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", PLAIN),
        ("llava_video", f"{QWEN[0]}{VIDEO}\n{SECONDS}{QUESTION}{QWEN[1]}"),
        ("llava_video_demo", f"{QWEN[0]}{VIDEO}{SECONDS}{QUESTION}{QWEN[1]}"),
        ("internvideo2_5", f"{QWEN[0]}{LASTS}{VIDEO}\n{QUESTION}{QWEN[1]}"),
    ],
)
def test_time_instructions_stand_where_the_original_code_puts_them(name, expected):
    m = model("qwen_1_5")
    given = m.prepare(frames(9), QUESTION, time_instruction=name, **NINE)
    assert text_of(m, given) == expected
    told = SimpleNamespace(cfg=replace(m.cfg, time_instruction=name), tokenizer=m.tokenizer, device="cpu")
    assert torch.equal(prepare(told, frames(9), QUESTION, **NINE).tokens, given.tokens), "the config's unless given"
    assert text_of(m, prepare(told, frames(9), QUESTION, time_instruction="none", **NINE)) == PLAIN


def test_a_time_instruction_is_template_after_the_video_and_system_before_it():
    m = model("qwen_1_5")
    after = segments(m, m.prepare(frames(9), QUESTION, time_instruction="llava_video", **NINE))
    assert after[1:3] == [("template", None, "\n"), ("template", None, SECONDS)]
    m = model("internvl2_5")
    before = segments(m, m.prepare(frames(9), QUESTION, n_frames=4, folder_fps=2, time_instruction="internvideo2_5"))
    said = LASTS.replace("3 frames", "4 frames")
    assert before[:3] == [("system", None, INTERN), ("system", None, said), ("marker", 0, "Frame1: <img>")]


@pytest.mark.parametrize(
    ("sampler", "n_frames", "times"),
    # Every round(fps)-th frame, 0, 25 and 50, divided by the rounded rate; the same three divided by the rate.
    [("one_fps", 8, "0.00s,1.00s,2.00s"), ("linspace", 3, "0.00s,1.02s,2.03s"), ("one_fps", 2, "0.00s,2.03s")],
)
def test_times_are_divided_by_the_rate_the_original_code_divides_by(sampler, n_frames, times):
    m = model("qwen_1_5")
    inputs = m.prepare(
        frames(51), QUESTION, n_frames=n_frames, sampler=sampler, folder_fps=24.6, time_instruction="llava_video"
    )
    assert f"for 2.07 seconds, and {times.count('s')} frames" in text_of(m, inputs)
    assert f"located at {times}.Please" in text_of(m, inputs)


@pytest.mark.parametrize("sampler", ["one_fps", "linspace"])
def test_a_single_frame_in_ten_seconds_is_at_their_start(sampler):
    m = model("qwen_1_5")
    given = {"n_frames": 1, "sampler": sampler, "folder_fps": 0.1, "time_instruction": "llava_video"}
    text = text_of(m, m.prepare(frames(1), QUESTION, **given))
    assert "lasts for 10.00 seconds, and 1 frames" in text and "located at 0.00s.Please" in text


def test_a_file_tells_its_own_times(tmp_path):
    m = model("qwen_1_5")
    clip = write_clip(tmp_path / "two seconds.mp4", n=60)
    text = text_of(m, m.prepare(clip, QUESTION, n_frames=3, time_instruction="llava_video"))
    assert "lasts for 2.00 seconds, and 3 frames" in text and "located at 0.00s,0.97s,1.97s.Please" in text


@pytest.mark.parametrize("sampler", ["one_fps", "linspace"])
def test_a_clip_read_before_gives_what_its_file_gives(sampler, tmp_path):
    m = model("qwen_1_5")
    path = write_clip(tmp_path / "clip.mp4", n=45)
    asked = {"sampler": sampler, "time_instruction": "llava_video"}
    whole, read = (m.prepare(v, QUESTION, n_frames=3, **asked) for v in (path, read_clip(path, 3, sampler)))
    assert text_of(m, read) == text_of(m, whole) and "located at" in text_of(m, read)
    assert torch.equal(read.pixel_values[0], whole.pixel_values[0])


def test_a_clip_knows_the_part_that_it_was_read_from():
    """Seconds between steps are those of the part, and nobody tells the whole video's length of it."""
    m = HookedVideoLLM.from_config(small_config("qwen2.5-vl"))
    source, part = frames(40), {"n_frames": 6, "sampler": "qwen"}
    clip = read_clip(source, **part, bound=(2, 6), folder_fps=5)
    direct = m.prepare(source, QUESTION, **part, bound=(2, 6), folder_fps=5)
    assert direct.position_ids[0].max() - direct.position_ids[0, direct.layout.positions("video")[0]] > 10
    for inputs in (m.prepare(clip, QUESTION), m.prepare(clip, QUESTION, **part, bound=(2, 6), folder_fps=5)):
        assert torch.equal(inputs.position_ids, direct.position_ids)
    with pytest.raises(InputError, match=r"read with bound=\(2, 6\), not \(1, 6\): leave that out"):
        m.prepare(clip, QUESTION, bound=(1, 6))
    with pytest.raises(InputError, match=r"read with folder_fps=5.0, not 4; n_frames=6, not 4"):
        m.prepare(clip, QUESTION, folder_fps=4, n_frames=4)
    with pytest.raises(InputError, match=r"bound=\(2, 6\) takes a part of it"):
        model("qwen_1_5").prepare(clip, QUESTION, time_instruction="llava_video")


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("qwen3-vl", ["<10.5 seconds>"]),
        ("videollama3", ["Time 10.0s:", "Time 11.0s:"]),
        ("smolvlm2", ["two frames from a 0:00:20 ", "Frame from 00:10:", "Frame from 00:11:"]),
    ],
)
def test_texts_of_a_part_tell_times_and_length_of_the_whole(family, said):
    m = HookedVideoLLM.from_config(small_config(family))
    inputs = m.prepare(frames(40), QUESTION, n_frames=2, sampler="linspace", bound=(10, 11), folder_fps=2)
    told = "".join(text for role, _, text in segments(m, inputs) if role == "marker")
    assert [re.search(re.escape(x), told) is not None for x in said] == [True] * len(said)


def test_videollama3_tells_the_second_whose_last_frame_is_seen():
    m = HookedVideoLLM.from_config(small_config("videollama3"))
    inputs = m.prepare(frames(12), QUESTION, folder_fps=4)
    told = "".join(text for role, _, text in segments(m, inputs) if role == "marker")
    assert re.findall(r"Time (.*?)s:", told) == ["0.0", "1.0", "2.0"]


def test_a_time_that_nothing_tells_is_not_made_up():
    m = model("qwen_1_5")
    said = r"needs the frame rate, and this source \(array\) tells none; pass folder_fps=.*time_instruction='none'"
    with pytest.raises(InputError, match=said):
        m.prepare(frames(9), QUESTION, time_instruction="llava_video")
    with pytest.raises(InputError, match=r"bound=\(0, 2\) takes a part of it, .* pass time_instruction='none'"):
        m.prepare(frames(9), QUESTION, bound=(0, 2), time_instruction="llava_video", **NINE)
    part = m.prepare(frames(9), QUESTION, bound=(0, 2), **NINE)
    assert torch.equal(part.pixel_values[0], m.prepare(frames(9)[[0, 2, 4]], QUESTION, n_frames=3).pixel_values[0])
