"""Selectors, frames, printing and the JSON forms of layouts and configurations."""

import json
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hookedvid.errors import ConfigError, InputError, SelectorError
from hookedvid.families.registry import FAMILIES, small_config
from hookedvid.values.config import MergeConfig, ProjectorConfig, VideoLLMConfig
from hookedvid.values.layout import FrameBlendWarning, Segment, TokenLayout
from hookedvid.values.selectors import parse_selector
from hookedvid.values.serial import from_dict, to_dict
from models import (
    LAW,
    MODELS,
    blended_layout,
    each_position,
    layouts,
    random_inputs,
    random_model,
    rich_inputs,
    square_video,
)

# What each name means, read from the role and frame of one position.
MEANING = {
    "video": lambda s: s.role in ("video", "newline"),
    "patches": lambda s: s.role == "video",
    "newlines": lambda s: s.role == "newline",
    "system": lambda s: s.role == "system",
    "markers": lambda s: s.role == "marker",
    "question": lambda s: s.role == "question",
    "options": lambda s: s.role == "options",
    "option[1]": lambda s: s.role == "options" and s.index == 1,
    "template": lambda s: s.role == "template",
    "text": lambda s: s.role in ("question", "options", "template", "generated"),
    "all": lambda s: True,
    "video[0]": lambda s: s.role in ("video", "newline") and s.frame == 0,
    "patches[0]": lambda s: s.role == "video" and s.frame == 0,
    "newlines[0]": lambda s: s.role == "newline" and s.frame == 0,
    "markers[0]": lambda s: s.role == "marker" and s.frame == 0,
}
TOY = TokenLayout.of(
    [
        Segment("system", 0, 2),
        *square_video(ProjectorConfig(d_in=1, d_out=1, newline="row"), 2, 3),
        Segment("question", 0, 3),
        Segment("options", 0, 1, index=0),
        Segment("options", 0, 2, index=1),
        Segment("template", 0, 1),
    ]
)


def selects(layout: TokenLayout, selector: str) -> list[int]:
    return layout.positions(selector).tolist()


@LAW
@given(layouts(), st.sampled_from(sorted(MEANING)))
def test_a_name_selects_the_positions_whose_role_it_means_and_never_silently_none(layout, selector):
    def means(s: Segment) -> bool:
        language = selector == "text" and layout.markers_are_language and s.role == "marker"
        return MEANING[selector](s) or language

    wanted = [i for i, s in enumerate(each_position(layout)) if means(s)]
    if wanted:
        assert selects(layout, selector) == wanted
    else:
        with pytest.raises(SelectorError, match=r"selects nothing|out of range"):
            layout.mask(selector)


@LAW
@given(layouts())
def test_last_is_the_end_of_the_prompt_and_every_generated_token(layout):
    assert selects(layout, "last") == list(range(layout.n_prompt - 1, layout.n_tokens))
    assert selects(layout, "generated") == list(range(layout.n_prompt, layout.n_tokens))


@LAW
@given(layouts(), st.data())
def test_a_slice_of_frames_is_the_union_of_its_frames_and_negatives_count_from_the_end(layout, data):
    n = layout.n_frames
    start, stop = sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True)))
    union = "+".join(f"video[{f}]" for f in range(start, stop))
    assert torch.equal(layout.mask(f"video[{start}:{stop}]"), layout.mask(union))
    negative = f"video[{start - n}:{stop - n if stop < n else ''}]"
    assert torch.equal(layout.mask(negative), layout.mask(union))
    assert torch.equal(layout.mask(f"video[{start - n}]"), layout.mask(f"video[{start}]"))
    assert torch.equal(layout.mask("video[:]"), torch.isin(layout.frames, torch.arange(n)) & layout.mask("video"))


@LAW
@given(layouts(), st.lists(st.sampled_from(["video", "question", "last", "video[0]", "all"]), min_size=1, max_size=4))
def test_plus_is_union_whatever_the_spaces(layout, names):
    union = torch.stack([layout.mask(n) for n in names]).any(0)
    assert torch.equal(layout.mask(" + ".join(names)), union)


@pytest.mark.parametrize(
    ("selector", "positions"),
    [
        ("video[1]", [8, 9, 10, 11, 12, 13]),
        ("patches[1]", [8, 9, 11, 12]),
        ("newlines[1]", [10, 13]),
        ("video[-1]", [14, 15, 16, 17, 18, 19]),
        ("patches[1:]", [8, 9, 11, 12, 14, 15, 17, 18]),
        ("patches[:-2]", [2, 3, 5, 6]),
        ("option[1]", [24, 25]),
        ("option[-2]", [23]),
        ("option[0:2]", [23, 24, 25]),
        ("last", [26]),
        ("system+last+system", [0, 1, 26]),
    ],
)
def test_positions_of_a_layout_counted_by_hand(selector, positions):
    assert selects(TOY, selector) == positions


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ("vidoe", "no selector 'vidoe' in 'vidoe' (nearest: 'video'"),
        ("", "cannot read '' in selector ''; write a name, name[3] or name[2:5]"),
        ("video+", "cannot read '' in selector 'video+'"),
        ("video[1 2]", "'1 2' in selector 'video[1 2]' would be read as one word or number"),
        ("video last", "'video last' in selector 'video last' would be read as one word"),
        ("video[]", "cannot read 'video[]'"),
        ("video[1:2:3:4]", "cannot read 'video[1:2:3:4]'"),
        ("video[::0]", "cannot read 'video[::0]'"),
        ("video[1s:2]", "cannot read 'video[1s:2]'"),
        ("video[0][1]", "cannot read 'video[0][1]'"),
        ("newlines[0][0, 0]", "'newlines' has no cells in 'newlines[0][0, 0]'; video, steps, patches have"),
        ("video[0][0, 0]", "these frames have no cells: nothing says how their tokens lie"),
        ("video[1s]", "video[…s]: nothing says when these frames were taken; prepare a video file"),
        ("steps[1s:]", "'steps' takes no seconds"),
        ("ball[0]", "'ball' takes no index in 'ball[0]': it is the name of a group"),
        ("ball", "no selector 'ball' in 'ball' (nearest: 'all'; it has no groups: inputs.with_group(name"),
        ("sinks", "no sinks were looked for in this input; inputs = model.find_sinks(inputs, layer=…)"),
        ("Video", "cannot read 'Video'"),
        ("question[0]", "'question' takes no index in 'question[0]'; frames: video[3], options: option[1]"),
        ("options[0]", "'options' takes no index"),
        ("last[0]", "'last' takes no index"),
        ("option", "'option' needs a number in 'option': option[1]; all of them are 'options'"),
        ("video[3]", "video[3] is out of range: this sequence has 3 frames, numbered 0 to 2"),
        ("video[-4]", "video[-4] is out of range"),
        ("video[1:4]", "video[1:4] is out of range"),
        ("video[3:]", "video[3:] is out of range"),
        ("video[2:1]", "video[2:1] is out of range"),
        ("video[1:1]", "video[1:1] is out of range"),
        ("video[:0]", "video[:0] is out of range"),
        ("option[2]", "option[2] is out of range: this sequence has 2 options, numbered 0 to 1"),
        ("markers", "'markers' selects nothing: this sequence has system, video, newline, question, options, template"),
        ("video+markers", "'video+markers' selects nothing: this sequence has"),
    ],
)
def test_a_wrong_selector_says_what_there_is(selector, message):
    with pytest.raises(SelectorError) as e:
        TOY.mask(selector)
    assert message in str(e.value)


def test_options_of_a_prompt_without_options_are_out_of_range():
    layout = TokenLayout.of([Segment("question", 0, 3)])
    with pytest.raises(SelectorError, match=r"option\[0\] is out of range: this sequence has 0 options$"):
        layout.mask("option[0]")
    with pytest.raises(SelectorError, match="'video' selects nothing: this sequence has question; 0 frames"):
        layout.mask("video")


def test_terms_of_a_selector():
    assert [tuple(t) for t in parse_selector("video[2:5]+option[1]+last")] == [
        ("video", slice(2, 5), None),
        ("option", 1, None),
        ("last", None, None),
    ]


@pytest.mark.parametrize(
    "segments", [[("question", 1, 2)], [("system", 0, 2), ("question", 3, 4)], [("system", 0, 2), ("question", 2, 2)]]
)
def test_segments_with_gaps_or_empty_ones_are_refused(segments):
    with pytest.raises(SelectorError, match="segments must tile the sequence without gaps"):
        TokenLayout(tuple(Segment(*s) for s in segments))
    layout = TokenLayout.of([Segment("system", 7, 9), Segment("marker", 0, 0), Segment("question", 0, 3)])
    assert layout.segments == (Segment("system", 0, 2), Segment("question", 2, 5)), "`of` places and drops them"


@LAW
@given(layouts(), st.integers(0, 3), st.integers(0, 3))
def test_generated_tokens_join_one_segment_and_the_prompt_stays(layout, a, b):
    longer = layout.extend(a).extend(b)
    assert longer == layout.extend(a + b)
    assert longer.n_tokens == layout.n_tokens + a + b and longer.n_prompt == layout.n_prompt
    assert torch.equal(longer.frames[: layout.n_tokens], layout.frames)
    assert longer.mask("text")[layout.n_prompt :].all()


def test_the_trailing_newline_is_video_of_no_frame():
    layout = TokenLayout.of(square_video(ProjectorConfig(d_in=1, d_out=1, newline="once"), 1, 3))
    assert layout.segments[-1] == Segment("newline", 3, 4, frame=None)
    assert layout.frames.tolist() == [0, 1, 2, 3] and layout.n_frames == 3
    assert selects(layout, "video") == [0, 1, 2, 3] and selects(layout, "patches") == [0, 1, 2]
    assert selects(layout, "video[-1]") == [2], "no frame's selector has the newline that ends the video"


def test_a_newline_belongs_to_the_frame_whose_row_it_ends():
    assert TOY.frames.tolist() == [-1] * 2 + [0] * 6 + [1] * 6 + [2] * 6 + [-1] * 7
    assert [s.role for s in each_position(TOY)][2:8] == ["video", "video", "newline"] * 2


@pytest.mark.parametrize(("name", "per_frame", "at_the_end"), [
    ("llava-onevision", 196, 1), ("llava-next-video-qwen", 182, 0), ("llava-video", 210, 0), ("longva", 144, 0),
    ("llava-next-video", 144, 0), ("internvideo2.5", 16, 0),
])  # fmt: skip
def test_tokens_of_full_size_families_are_the_papers(name, per_frame, at_the_end):
    family = FAMILIES[name]
    projector = ProjectorConfig(d_in=1, d_out=1, **family.projector)
    layout = TokenLayout.of(square_video(projector, family.tower.grid, 32))
    assert torch.bincount(layout.frames).tolist() == [per_frame] * 32 + [1] * at_the_end
    assert projector.tokens_per_frame(family.tower.grid) == per_frame


@pytest.mark.parametrize("name", MODELS)
def test_inputs_lay_out_prefix_video_and_text(name):
    inputs = random_inputs(random_model(name), n_frames=4, n_text=5)
    layout = inputs.layout
    assert layout.n_tokens == inputs.tokens.shape[1]
    if name == "text":
        assert layout.roles == ("question",)
        return
    assert selects(layout, "system") == [0, 1, 2]
    assert selects(layout, "question") == list(range(layout.n_tokens - 5, layout.n_tokens))
    assert torch.equal(layout.mask("video"), inputs.is_video[0])
    if name == "internvideo2.5":
        assert [(s.start, s.frame) for s in layout.segments if s.role == "marker"] == [(7, 1), (13, 2), (19, 3)]


def test_frames_that_do_not_fill_a_clip_are_refused_before_another_items_frames_could_fill_it():
    with pytest.raises(InputError, match="merges clips of 4 frames, and 6 frames were given; use a multiple of 4"):
        random_inputs(random_model("internvideo2.5"), n_frames=6)


def test_one_frames_selector_warns_where_tokens_mix_frames():
    layout = blended_layout()
    with pytest.warns(FrameBlendWarning, match="each token of 'video' mixes 4 frames"):
        assert selects(layout, "video[1]") == [4, 5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selects(layout, "video") == list(range(2, 10))


def test_printing_shows_every_segment_and_folds_long_videos():
    assert str(rich_inputs(random_model("llava-video"), n_frames=7).layout.extend(2)) == (
        """\
TokenLayout: 98 tokens, 7 frames
    0–2  system      3 tokens
   3–14  video[0]    9 patches + 3 newlines
  15–26  video[1]    9 patches + 3 newlines
      …  …
  75–86  video[6]    9 patches + 3 newlines
  87–89  question    3 tokens
  90–91  option[0]   2 tokens
  92–93  option[1]   2 tokens
  94–95  template    2 tokens
  96–97  generated   2 tokens"""
    )
    assert str(blended_layout()).splitlines()[2] == "    2–3  video[0]    2 patches, each mixing 4 frames"


@LAW
@given(layouts())
def test_a_layout_survives_json(layout):
    assert from_dict(TokenLayout, json.loads(json.dumps(to_dict(layout)))) == layout


def test_every_wrong_field_of_a_config_is_named_at_once():
    data = json.loads(small_config("llava-video").to_json())
    data["decoder"]["n_head"] = data["decoder"].pop("n_heads")
    data["vision"]["act"] = "relu"
    data["projector"]["pool_before"] = "yes"
    data["n_frames"] = True
    with pytest.raises(ConfigError) as e:
        VideoLLMConfig.from_json(json.dumps(data))
    for problem in (
        "VideoLLMConfig.decoder has no field 'n_head' (nearest: 'n_heads'",
        "VideoLLMConfig.decoder lacks the field 'n_heads'",
        "VideoLLMConfig.vision.act should be one of 'silu', 'gelu', 'gelu_tanh', 'quick_gelu', got 'relu'",
        "VideoLLMConfig.projector.pool_before should be a bool, got 'yes'",
        "VideoLLMConfig.n_frames should be a int, got True",
    ):
        assert problem in str(e.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, decoder=replace(c.decoder, d_model=32)), "projector.d_out is 64, but decoder.d_model"),
        (lambda c: replace(c, projector=replace(c.projector, d_in=5)), "projector.d_in is 5, but the tower feeds it"),
        (
            lambda c: replace(c, projector=replace(c.projector, pool="none", shuffle=2, d_in=4 * c.projector.d_in)),
            "projector.shuffle 2 does not divide the 5 patches of a side",
        ),
        (lambda c: replace(c, projector=None), "needs both vision and projector"),
        (lambda c: replace(c, vision=None, projector=None, decoder=None), "needs a decoder, a vision tower or both"),
        (lambda c: replace(c.decoder, n_kv_heads=3), "n_heads 8 is not a multiple of n_kv_heads 3"),
        (lambda c: replace(c.projector, merge=MergeConfig()), "token merging excludes pooling and newlines"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        change(small_config("llava-video"))
