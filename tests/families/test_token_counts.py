"""How many tokens: of a video on every family's full-size grid, of a prompt that must fit, of a vocabulary."""

import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hookedvid import small_config
from hookedvid.checkpoints.byte_tokenizer import byte_tokenizer
from hookedvid.data.item import Item
from hookedvid.errors import InputError
from hookedvid.families.registry import FAMILIES, TEMPLATES
from hookedvid.model.answers import real_tokens, score_options
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.model.prepare import prepare
from hookedvid.study.scorings.letters import Letters
from hookedvid.values.config import VideoLLMConfig
from hookedvid.values.inputs import VIDEO, VideoInputs

pytestmark = pytest.mark.shapes_unchecked

QUESTION, OPTIONS = "What moves?", ["a car", "a dog"]
# Tokens a side and newlines a row of one frame. Facts: 27 is floored to 13 by average and ceiled to 14 by bilinear.
ROWS = {
    "llava-onevision": (14, 0),
    "llava-video": (14, 1),
    "llava-video, average": (13, 1),
    "llava-next-video-qwen": (13, 1),
    "longva": (12, 0),
    "llava-next-video": (12, 0),
}
CASES = (*ROWS, "internvideo2.5")
# Facts, section 0 and 2.1: what the original packages make of 32 frames.
TOTALS = {
    "llava-onevision": 6273, "llava-video": 6720, "llava-video, average": 5824, "llava-next-video-qwen": 5824,
    "longva": 4608, "llava-next-video": 4608, "internvideo2.5": 512,
}  # fmt: skip
GRIDS = {"longva": 24, "llava-next-video": 24, "internvideo2.5": 32}


@pytest.fixture(autouse=True)
def no_pixels(monkeypatch):
    """Resizing is not the subject."""
    monkeypatch.setattr("hookedvid.video.transforms.preprocess", lambda f, cfg: torch.zeros(len(f), 3, 1, 1))


@cache
def tokenizer():
    """Bytes, and the markers of a frame as one token each, which InternVideo2.5 has them as."""
    made = byte_tokenizer(300)
    made.add_tokens(["<img>", "</img>"], special_tokens=True)
    return made


def config(case: str, **changed) -> VideoLLMConfig:
    """A family's exact structure at the full size of everything that counts tokens, and toy size elsewhere."""
    name, _, pool = case.partition(", ")
    cfg = small_config(name)
    vision = replace(cfg.vision, image_size=FAMILIES[name].tower.image_size)
    exact = {k: v for k, v in FAMILIES[name].projector.items() if k in ("pool", "merge")}
    projector = replace(cfg.projector, **exact | ({"pool": pool} if pool else {}))
    return replace(cfg, vision=vision, projector=projector, **changed)


def laid_out(case: str, n_frames: int, options=(), **kwargs) -> VideoInputs:
    cfg = config(case, max_length=kwargs.pop("max_length", None))
    model = SimpleNamespace(cfg=cfg, tokenizer=tokenizer(), device="cpu")
    return prepare(model, np.zeros((n_frames, 4, 4, 3), np.uint8), QUESTION, options, n_frames=n_frames, **kwargs)


def counted(text: str) -> int:
    """Tokens of a text: a byte is one, and so is a special string."""
    return len(re.sub(r"<\|\w+\|>|</?img>", "x", text).encode())


@pytest.mark.parametrize("case", CASES)
def test_a_video_has_the_tokens_of_the_original_package(case):
    cfg = config(case)
    assert cfg.vision.grid == GRIDS.get(case, 27)
    for n in (4, 32):
        layout = laid_out(case, n).layout
        expected = TOTALS[case] // 32 * n + (case == "llava-onevision")
        assert len(layout.positions("video")) == expected
        assert cfg.tokens_per_frame == TOTALS[case] // 32 and layout.n_frames == n
        assert layout.blend == (4 if case == "internvideo2.5" else 1)


@pytest.mark.parametrize("n_frames", [1, 5])
@pytest.mark.parametrize("case", ROWS)
def test_every_position_of_an_uninterrupted_video(case, n_frames):
    form = TEMPLATES[config(case).prompt]
    start, after = counted(form.before), counted(form.between + QUESTION + form.after)
    assert start == {"qwen_1_5": 44, "vicuna_v1": 161}[config(case).prompt]
    inputs = laid_out(case, n_frames)
    layout, (side, newline) = inputs.layout, ROWS[case]
    row, frame = side + newline, side * (side + newline)
    closing = case == "llava-onevision"
    stop = start + n_frames * frame + closing
    # The newline of row r of frame f; or the only one, after everything, which is of a frame of its own.
    newlines = [start + f * frame + r * row + side for f in range(n_frames) for r in range(side)] if newline else []
    newlines += [stop - 1] if closing else []
    assert layout.positions("video").tolist() == list(range(start, stop))
    assert (inputs.tokens[0] == VIDEO).nonzero()[:, 0].tolist() == list(range(start, stop))
    is_newline = layout.mask("all") & ~layout.mask("patches") & layout.mask("video")
    assert is_newline.nonzero()[:, 0].tolist() == newlines
    in_video = [min((p - start) // frame, n_frames) for p in range(start, stop)]
    assert layout.frames.tolist() == [-1] * start + in_video + [-1] * after
    assert layout.positions("last").tolist() == [stop + after - 1] == [layout.n_tokens - 1]


@pytest.mark.parametrize("n_frames", [4, 8, 12, 104])
def test_every_position_between_markers(n_frames):
    inputs = laid_out("internvideo2.5", n_frames)
    layout, form = inputs.layout, TEMPLATES["internvl2_5"]
    at = counted(form.before)
    video, frames = [], [-1] * at
    for n in range(1, n_frames + 1):
        announced, closed = len(f"Frame{n}: ") + 1, 2  # <img> is one token, </img> and the line end are two
        assert announced == 9 + (n > 9) + (n > 99)
        video += range(at + announced, at + announced + 16)
        frames += [n - 1] * (announced + 16 + closed)
        at += announced + 16 + closed
    after = counted(QUESTION + form.after)
    # The placeholders are no single run: 16 in each frame, text of their frame on both sides.
    assert (inputs.tokens[0] == VIDEO).nonzero()[:, 0].tolist() == video
    assert layout.positions("video").tolist() == video and "newline" not in layout.roles
    assert layout.frames.tolist() == frames + [-1] * after
    markers = sorted({p for p, f in enumerate(frames) if f >= 0} - set(video))
    assert layout.positions("markers").tolist() == markers
    assert layout.positions("last").tolist() == [at + after - 1] == [layout.n_tokens - 1]


def test_vicunas_context_holds_27_frames_and_not_32():
    # Facts, trap T8: 4608 video tokens and a context of 4096, which the original code cuts the question off for.
    said = (
        r"^this prompt has 4792 positions, 4608 of them video, and max_length is 4096; the original code would "
        r"silently cut its end off, the question with it; take at most 27 frames \(n_frames=27\), or override"
    )
    with pytest.raises(InputError, match=said):
        laid_out("llava-next-video", 32, max_length=4096)
    assert laid_out("llava-next-video", 27, max_length=4096).layout.n_tokens == 4792 - 5 * 144 <= 4096
    assert laid_out("llava-next-video", 32, max_length=4792).layout.n_tokens == 4792, "as long as allowed is allowed"


@pytest.mark.parametrize("timed", ["none", "llava_video"])
@pytest.mark.parametrize("case", CASES)
def test_the_number_of_frames_an_error_names_is_the_largest_that_fits(case, timed):
    step = 4 if case == "internvideo2.5" else 1
    given = {"options": OPTIONS, "time_instruction": timed, "folder_fps": 1}
    longest = laid_out(case, 24, **given).layout.n_tokens - 1
    longest -= (longest % 300) + 300
    with pytest.raises(InputError, match=r"n_frames=\d+") as e:
        laid_out(case, 24, max_length=longest, **given)
    fitting = int(re.search(r"n_frames=(\d+)", str(e.value))[1])
    assert 0 < fitting < 24 and fitting % step == 0
    assert laid_out(case, fitting, max_length=longest, **given).layout.n_tokens <= longest
    with pytest.raises(InputError, match=rf"take at most {fitting} frames"):
        laid_out(case, fitting + step, max_length=longest, **given)


def test_a_question_alone_may_be_too_long():
    with pytest.raises(InputError, match=r"max_length is 150; .* it; shorten the question, or override"):
        laid_out("llava-video", 2, max_length=150)
    cfg = config("llava-video", max_length=60)
    model = SimpleNamespace(cfg=cfg, tokenizer=tokenizer(), device="cpu")
    with pytest.raises(
        InputError, match=r"has 68 positions, 0 of them video, .* it; shorten the question, or override"
    ):
        prepare(model, None, QUESTION)


@cache
def padded(n_tokens: int | None) -> HookedVideoLLM:
    """A model whose vocabulary ends in 40 rows that win whatever the stream says; `n_tokens` hides them, or not."""
    model = HookedVideoLLM.from_config(replace(small_config("llava-video"), n_tokens=n_tokens))
    with torch.no_grad():
        model.unembed.weight[260:] = 9 * torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    return model.to(torch.float64)


@cache
def cut() -> HookedVideoLLM:
    """The same model after the original runtime has shrunk its vocabulary to the tokenizer's."""
    model = HookedVideoLLM.from_config(small_config("llava-video", d_vocab=260))
    weights = padded(None).state_dict()
    model.load_state_dict({k: v[:260] if k in ("embed.weight", "unembed.weight") else v for k, v in weights.items()})
    return model.to(torch.float64)


@torch.no_grad()
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True}, {"do_sample": True, "top_k": 5, "temperature": 2.0}])
def test_generation_never_picks_a_padding_row(sampling):
    def ids(model: HookedVideoLLM) -> list[list[int]]:
        inputs = model.prepare(None, QUESTION)
        generator = torch.Generator().manual_seed(0)
        return model.generate(
            inputs, max_new_tokens=8, return_type="tokens", stop_at_eos=False, generator=generator, **sampling
        ).tolist()

    assert max(ids(padded(None))[0]) >= 260, "they would win"
    assert ids(padded(260)) == ids(cut())


@torch.no_grad()
def test_probabilities_never_count_a_padding_row():
    model, other = padded(260), cut()
    inputs = model.prepare(None, QUESTION, OPTIONS)
    logits, shrunk = model(inputs)[0, -1], other(inputs)[0, -1]
    assert logits.shape == (300,) and int(logits.argmax()) >= 260, "forward leaves them"
    torch.testing.assert_close(real_tokens(logits, 260), shrunk, rtol=0, atol=1e-12)
    expected = other.answer(inputs)
    answer = score_options(logits, inputs, n_tokens=model.cfg.n_tokens)
    assert answer.index == expected.index and answer.probs == pytest.approx(expected.probs, abs=1e-12)
    item = Item(id="one", video="a.mp4", question=QUESTION, options=tuple(OPTIONS), answer=0, family="any")
    assert Letters().outcome(model, item, logits, inputs).prob == pytest.approx(expected.probs[0], abs=1e-12)
    assert torch.equal(real_tokens(logits, None), logits), "every row is a token's where no number is given"


@torch.no_grad()
def test_a_padding_row_that_is_not_finite_hides_no_answer():
    model = padded(260)
    inputs = model.prepare(None, QUESTION, OPTIONS)
    logits = model(inputs)[0, -1]
    logits[299] = float("inf")
    assert score_options(logits, inputs, n_tokens=260).probs == score_options(logits[:260], inputs).probs
    with pytest.raises(InputError, match="the logits are not finite"):
        score_options(logits, inputs)
