"""Where tokens are in the original video, against the pixels that preprocessing makes; groups of them by name."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from hookedvid.errors import InputError, SelectorError
from hookedvid.families.registry import FAMILIES, small_config
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.sweep.run import sweep
from hookedvid.values.clips import Reversed
from hookedvid.values.config import ProjectorConfig
from hookedvid.values.fitting import cell_patches
from hookedvid.values.frame_size import sizes_in_turn
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import Ablate, Knockout
from hookedvid.values.layout import FrameBlendWarning, TokenLayout
from hookedvid.values.places import TokenPlaces, _spelled, group_positions
from hookedvid.video.frames import read_clip
from models import UNLIKE, perturb, square_video
from versions import processors_of_today

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 96, 160, 3), dtype=np.uint8)
# Lanczos needs a torch of today.
NAMES = [pytest.param(f, marks=processors_of_today if f == "smolvlm2" else ()) for f in FAMILIES]
WITH_CELLS = [n for n in NAMES if n.values[0] not in ("internvideo2.5", "llava-onevision-1.5")]  # one box a token


def model_of(name, **changes):
    model = HookedVideoLLM.from_config(small_config(name, n_layers=2))
    perturb(model)
    return model.double()


def asked(model, frames=FRAMES, fps=2.0):
    options = ("red", "blue")
    return model.prepare(frames, "what ?", options, n_frames=len(frames), sampler="linspace", folder_fps=fps)


@pytest.fixture(scope="module")
def models():
    known = {}
    return lambda name: known.setdefault(name, model_of(name))


def lit(model, inputs, other):
    """Video positions whose row in the stream is another one of other inputs, by the model's own way from pixels.

    The blocks of its tower add nothing, so that a patch knows of no other.
    """
    assert torch.equal(other.tokens, inputs.tokens)
    rows = [model.encode_video(x) for x in (inputs, other)]
    return set(inputs.layout.positions("video")[(rows[0] - rows[1]).abs().amax(1) > 0].tolist())


def margins(model, n, height, width):
    """How far filters look beyond what a pixel stands for: 3 of the coarser pixels at most, in every resizing."""
    sizes = [(height, width), *sizes_in_turn(model.cfg.vision, n, height, width)]
    return [
        int(sum(np.ceil(3 * sizes[0][i] / min(a[i], b[i])) + 1 for a, b in itertools.pairwise(sizes))) for i in (0, 1)
    ]


def bright(frames, frame, box):
    """Frames with a box of one of them in noise, which no filter averages away."""
    x0, y0, x1, y1 = box
    changed = frames.copy()
    changed[frame, y0:y1, x0:x1] = np.random.default_rng(1).integers(128, 256, (y1 - y0, x1 - x0, 3))
    return changed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "height", "width"), [(4, 240, 400), (3, 333, 301)])
@pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning")  # a frame of a pair is its pair
def test_a_bright_cell_lights_the_tokens_that_claim_it_and_no_others(name, n, height, width):
    model = model_of(name)
    for block in model.vision.blocks:
        for written in (block.attn.o, getattr(block.mlp, "out", None) or block.mlp.down):
            torch.nn.init.zeros_(written.weight)
            torch.nn.init.zeros_(written.bias)
    merging = model.cfg.projector.merge is not None
    n = 8 if merging else n  # whole clips
    # What repeats is dropped: in noise nothing does.
    frames = np.random.default_rng(2).integers(0, 128, (n, height, width, 3), dtype=np.uint8)
    inputs = asked(model, frames)
    grid, places = inputs.layout.grid, model.places(inputs)
    margin, rng, seen = margins(model, n, height, width), np.random.default_rng(3), 0
    for frame in (0, n - 1):
        r, c = (sorted(rng.integers(0, k, 2)) for k in (grid.rows, grid.columns))
        y0, y1 = int(np.ceil(grid.heights[r[0]][0])) + margin[0], int(grid.heights[r[1]][1]) - margin[0]
        x0, x1 = int(np.ceil(grid.widths[c[0]][0])) + margin[1], int(grid.widths[c[1]][1]) - margin[1]
        if y0 >= y1 or x0 >= x1:
            continue
        seen += 1
        box, when = (x0, y0, x1, y1), (frame / 2, frame / 2 + 0.1)
        claimed = places.position[places.overlapping(box, frames=[frame])].tolist()
        other = asked(model, bright(frames, frame, box))
        if merging:  # by so little that the same tokens are alike
            before, after = (x.pixel_values[0] for x in (inputs, other))
            other = replace(other, pixel_values=(before + 1e-5 * (after - before),))
            assert torch.equal(model.places(other).pieces.token, places.pieces.token)
        else:
            assert inputs.with_group("ball", box=box, seconds=when).layout.positions("ball").tolist() == claimed
        assert lit(model, inputs, other) == set(claimed) > set()
        shown = places.on_frame(torch.isin(places.position, torch.tensor(claimed)).double(), frame, height, width)
        assert bool((shown[y0:y1, x0:x1] == 1).all())
    assert seen


@pytest.mark.parametrize("pool", ["none", "average", "max", "bilinear"])
@pytest.mark.parametrize("stride", [2, 3])
def test_pooled_tokens_are_made_of_the_patches_that_move_them(pool, stride):
    from hookedvid.nn.projector import pool_patches

    cfg = ProjectorConfig(d_in=1, d_out=1, pool=pool, pool_stride=stride)
    for n in range(stride, 9):
        x = torch.rand(1, n * n, 1, dtype=torch.float64, requires_grad=True)
        made = x if pool == "none" else pool_patches(x, cfg)
        spans = cell_patches(cfg, n)
        if pool == "max":  # of several only the largest moves it
            assert spans == [(i * stride, (i + 1) * stride - 1) for i in range(n // stride)]
            continue
        for token, (rows, columns) in enumerate(itertools.product(spans, spans)):
            (moved,) = torch.autograd.grad(made[0, token, 0], x, retain_graph=True)
            read = moved.view(n, n).nonzero().tolist()
            assert {y for y, _ in read} == set(range(rows[0], rows[1] + 1))
            assert {x for _, x in read} == set(range(columns[0], columns[1] + 1))


@pytest.mark.parametrize("name", NAMES)
def test_every_video_position_has_its_place(name, models):
    inputs = asked(models(name))
    layout, places = inputs.layout, inputs.places
    assert torch.equal(places.position, layout.positions("video"))
    cells = places.row >= 0
    if name == "llava-onevision-1.5":  # as published: patches of other cells and frames, class tokens among them
        assert len(places.pieces.token) == 4 * int(cells.sum()) - 7
        return
    # In raster order within each step, whatever stands between rows.
    keys = [
        (f, r, c)
        for f, r, c in zip(
            places.frames[cells, 0].tolist(), places.row[cells].tolist(), places.column[cells].tolist(), strict=True
        )
    ]
    assert keys == sorted(set(keys))
    if name != "internvideo2.5":
        assert torch.equal(places.position[cells], layout.positions("patches"))
    in_frames = places.frames[:, 0] >= 0
    times = torch.tensor([i / 2 for i in range(8)], dtype=torch.float64)
    first, stop = places.frames[in_frames].T
    assert torch.equal(places.seconds[in_frames], torch.stack([times[first], times[stop - 1]], 1))
    assert set((stop - first).tolist()) == {layout.blend}
    if name == "internvideo2.5":
        assert set(first.tolist()) == {0, 4}
        assert torch.equal(places.box, torch.tensor([0.0, 0, 160, 96], dtype=torch.float64).expand(len(places.box), 4))


@pytest.mark.parametrize("name", WITH_CELLS)
def test_a_box_means_any_overlap_or_a_share_of_each_token(name, models):
    inputs = asked(models(name))
    places = inputs.places
    held = places.row >= 0
    box = places.box[held]
    mine = tuple(float(x) for x in (box[:, 0].min(), box[:, 1].min(), box[:, 2].max(), box[:, 3].max()))
    assert torch.equal(
        inputs.with_group("all_of_it", box=mine, share=1.0).layout.positions("all_of_it"), places.position[held]
    )
    x0, y0, x1, y1 = box[0].tolist()
    only = inputs.with_group("corner", box=(x0, y0, x1, y1), share=1.0).layout
    assert set(only.positions("corner").tolist()) <= set(only.positions("patches[:][0, 0]").tolist())
    half = (x0 - 5.0, y0 - 5.0, (x0 + x1) / 2, y1)  # half of the first cell, touching no other
    for share, there in ((0.0, True), (0.5, True), (0.51, False)):
        try:
            found = inputs.with_group("half", box=half, share=share).layout.positions("half")
            assert there and len(found) == len(only.positions("patches[:][0, 0]"))
        except InputError as e:
            assert not there and "no token is in a group given by" in str(e)
    edge = inputs.places.box[held][0, 2].item()
    beyond = inputs.with_group("right", box=(edge, y0, edge + 1.0, y1)).layout.positions("right")
    assert not set(beyond.tolist()) & set(only.positions("patches[:][0, 0]").tolist())


def test_cells_steps_and_times_counted_by_hand(models):
    layout = asked(models("llava-video")).layout  # 3 x 3 tokens a frame, a newline behind each row, 8 frames at 2 fps
    first = layout.positions("video[0]")[0].item()
    at = lambda frame, row, column: first + 12 * frame + 4 * row + column  # noqa: E731
    said = lambda selector: layout.positions(selector).tolist()  # noqa: E731
    assert said("video[3][0:2, 1]") == [at(3, 0, 1), at(3, 1, 1)]
    assert said("patches[2:4][:, -1]") == [at(f, r, 2) for f in (2, 3) for r in range(3)]
    assert said("steps[-1][1, ::2]") == [at(7, 1, 0), at(7, 1, 2)]
    assert said("video[::2]") == said("video[0]+video[2]+video[4]+video[6]")
    assert said("newlines[1:6:3]") == said("newlines[1]+newlines[4]")
    assert said("video[1.0s:2.0s]") == said("video[2:4]")
    assert said("video[1.01s:]") == said("video[3:]")
    assert said("video[:0.5s]") == said("video[0]")
    assert said("video[1.2s]") == said("video[2]") and said("video[1.25s]") == said("video[2]")
    assert said("video[1.26s]") == said("video[3]") and said("video[4s]") == said("video[7]")
    assert said("patches[1s:2s][0, 0]") == [at(2, 0, 0), at(3, 0, 0)]
    for selector, message in {
        "video[4.1s]": r"holds no sampled frame: the 8 frames are from 0 s to 3.5 s",
        "video[0.1s:0.4s]": r"video\[0.1s:0.4s\] holds no sampled frame",
        "video[0][3, 0]": r"video\[…\]\[3\] is out of range: this sequence has 3 rows of tokens",
        "video[0][0, 1:5]": r"video\[…\]\[1:5\] is out of range: this sequence has 3 columns of tokens",
    }.items():
        with pytest.raises(SelectorError, match=message):
            layout.mask(selector)


@pytest.mark.filterwarnings("default::hookedvid.values.layout.FrameBlendWarning")
def test_cells_of_pairs_dropped_cells_and_merged_tokens(models):
    pairs = asked(models("qwen3-vl")).layout
    with pytest.warns(FrameBlendWarning):
        one = pairs.positions("video[3][0, 0]")
    assert torch.equal(one, pairs.positions("steps[1][0, 0]"))
    still = np.repeat(FRAMES[:1], 8, 0).copy()
    still[5, :32, :40] = 255 - still[5, :32, :40]
    layout = asked(models("videollama3"), still).layout
    places = TokenPlaces.of(layout)
    tokens = set(zip(places.frames[:, 0].tolist(), places.row.tolist(), places.column.tolist(), strict=True))
    assert len(layout.grid.dropped) > 0 and (5, 0, 0) in tokens and (3, 2, 5) not in tokens
    found = layout.positions("video[:][:, 5]").tolist()
    assert found == places.position[places.column == 5].tolist()
    with pytest.raises(SelectorError, match="selects nothing"):
        layout.mask("video[3][2, 5]")
    merged = asked(models("internvideo2.5"))
    with pytest.raises(SelectorError, match="each token is merged of some anywhere in its 4 frames"):
        merged.layout.mask("patches[:][0, 0]")
    with pytest.raises(InputError, match="no box picks any of them"):
        merged.with_group("ball", box=(0, 0, 9, 9))


def test_inputs_of_tensors_know_neither_boxes_nor_times(models):
    model = models("llava-video")
    whole = asked(model)
    bare = model.inputs_from_tensors(whole.tokens, whole.pixel_values[0])
    assert torch.equal(bare.layout.positions("video[1][0, 0]"), whole.layout.positions("video[1][0, 0]"))
    with pytest.raises(InputError, match="nothing says which pixels of the original video"):
        bare.with_group("ball", box=(0, 0, 9, 9))
    with pytest.raises(SelectorError, match="nothing says when these frames were taken"):
        bare.with_group("early", seconds=(0, 1))
    assert bool(bare.places.box.isnan().all()) and bool(bare.places.seconds.isnan().all())


def test_inputs_hold_the_frames_and_times_that_places_count(models):
    model = models("qwen3-vl")
    inputs = asked(model, FRAMES[:7])  # an odd last frame is alone in its pair
    assert np.array_equal(inputs.frames, FRAMES[:7]) and inputs.times == tuple(i / 2 for i in range(7))
    assert np.array_equal(model.counterfactual(inputs, Reversed()).frames, FRAMES[6::-1])
    bare = model.inputs_from_tensors(inputs.tokens, inputs.pixel_values[0])
    assert bare.times == ()
    with pytest.raises(InputError, match="inputs of tensors hold no decoded frames"):
        _ = bare.frames
    with pytest.raises(InputError, match="have no video, so no frames"):
        _ = model.prepare(None, "what ?").frames
    with pytest.raises(InputError, match="each with its own layout"):
        _ = VideoInputs.stack([inputs, inputs]).frames


def test_numbers_of_tokens_are_drawn_over_the_pixels_they_are_made_of(models):
    places = asked(models("llava-onevision"), FRAMES[:3]).places
    values = torch.arange(len(places.position)).double()
    shown = places.on_frame(values, 1, 96, 160)
    for token in ((places.frames[:, 0] == 1) & (places.row >= 0)).nonzero()[:, 0]:
        x, y = (places.box[token, :2] + places.box[token, 2:]) / 2
        assert shown[int(y), int(x)] == values[token]
    # SigLIP's last pixels are in no patch.
    assert bool(shown[-1].isnan().all()) == (places.box[:, 3].nan_to_num().max() < 95.5)
    assert bool(places.on_frame(values, 7, 96, 160).isnan().all())


def test_numbers_of_other_positions_are_no_picture(models):
    inputs = asked(models("llava-video"))
    places = inputs.places
    of_all = torch.zeros(inputs.layout.n_tokens)
    with pytest.raises(InputError, match=r"row\[places.position\]"):
        places.on_frame(of_all, 0, 96, 160)


def test_groups_are_refused_in_words(models):
    inputs = asked(models("llava-video")).with_group("cup", selector="video[0]")
    for name in ("video", "last", "options"):
        with pytest.raises(InputError, match=f"'{name}' is a selector already"):
            inputs.with_group(name, positions=[1])
    for name in ("Ball", "a b", "a+b", "9", "", "ball[1]"):
        with pytest.raises(InputError, match="names no group"):
            inputs.with_group(name, positions=[1])
    n = inputs.layout.n_tokens
    for how, message in {
        "nothing": ({}, "a group is given by nothing; say which positions"),
        "two": ({"positions": [1], "selector": "video"}, "given by positions and selector"),
        "share alone": ({"selector": "video", "share": 0.5}, "given by selector and share"),
        "no position": ({"positions": []}, "no token is in a group"),
        "beyond": ({"positions": [n]}, f"give numbers of positions, 0 to {n - 1}"),
        "cells": ({"cells": (3, "a", None)}, "cells hold 'a'; give a number"),
        "three": ({"cells": (3, 1)}, "give .frames, rows, columns."),
        "a flat box": ({"box": (3, 3, 3, 9)}, "x0 < x1 and y0 < y1"),
        "a box of words": ({"box": "abcd"}, "x0 < x1 and y0 < y1"),
        "far away": ({"box": (900, 0, 999, 9)}, "pixels x 0 to 160, y 0 to 96 of the original"),
        "a share of 2": ({"box": (0, 0, 9, 9), "share": 2}, "share is 2; give the least part"),
        "seconds": ({"seconds": (1,)}, "give .a, b.: frames that were sampled"),
    }.values():
        with pytest.raises(InputError, match=message):
            inputs.with_group("ball", **how)
    with pytest.raises(SelectorError, match=r"no selector 'cap' in 'cap\+last' .*its groups are cup"):
        inputs.layout.mask("cap+last")
    assert "cup" in str(inputs.layout)


def test_numbers_of_positions_and_cells_may_come_from_numpy_or_torch():
    layout = TokenLayout.of(square_video(ProjectorConfig(d_in=1, d_out=1), 2, 3))
    for positions in ([1, 4], np.array([1, 4]), torch.tensor([1, 4]), range(1, 5, 3), (p for p in (1, 4))):
        assert group_positions(layout, {"positions": positions}) == [1, 4]
    for alone in (4, np.int64(4), torch.tensor(4)):
        assert group_positions(layout, {"positions": alone}) == [4]
    for wrong in (4.0, [True], torch.tensor([True]), "4", -1):
        with pytest.raises(InputError, match="give numbers of positions"):
            group_positions(layout, {"positions": wrong})
    assert _spelled((np.int64(0), 2)) == "0:2" and _spelled(np.int32(1)) == "1"


def test_definitions_of_a_file_are_those_of_python(models):
    inputs = asked(models("llava-onevision"))
    text = json.dumps(
        {
            "ball": {"frames": [3, 5], "rows": [0, 2], "columns": 1},
            "cup": {"box": [40, 20, 90, 60], "seconds": [1.0, 2.5], "share": 0.25},
            "early": {"seconds": [0, 1]},
            "third": {"selector": "video[3]"},
        }
    )
    read = inputs.with_groups(json.loads(text)).layout
    hand = inputs.with_group("ball", cells=((3, 5), (0, 2), 1)).layout
    assert torch.equal(read.mask("ball"), hand.mask("ball")) and torch.equal(
        read.mask("ball"), read.mask("video[3:5][0:2, 1]")
    )
    assert torch.equal(read.mask("early"), read.mask("video[0:2]")) and torch.equal(
        read.mask("third"), read.mask("video[3]")
    )
    assert hash(read) != hash(hand) and read != hand
    for damaged in ([1], {"ball": 3}, {"ball": {"boks": 1}}, {"ball": {}}):
        with pytest.raises(InputError):
            inputs.with_groups(damaged)


@pytest.mark.parametrize("name", UNLIKE)
@pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning")
def test_a_group_of_a_frame_gives_that_frames_numbers_bit_for_bit(name, models):
    model = models(name)
    inputs = model.encoded(asked(model).with_group("ball", selector="video[3]"))
    for of in (
        lambda at: [Knockout(at, "text")],
        lambda at: [Knockout("video", at, relation="other_frame"), Ablate("resid_post", 1, at)],
    ):
        named, plain = of("ball"), of("video[3]")
        assert torch.equal(model(inputs, interventions=named), model(inputs, interventions=plain))
        tokens = [
            model.generate(inputs, c, max_new_tokens=3, return_type="tokens", stop_at_eos=False) for c in (named, plain)
        ]
        assert torch.equal(*tokens)
        swept = [sweep(model, [inputs], [c])[0][0] for c in (named, plain)]
        assert torch.equal(*swept)
    maps = [model.attention(inputs, interventions=[Knockout(at, "text")], queries=at) for at in ("ball", "video[3]")]
    assert all(torch.equal(a, b) for a, b in zip(maps[0].maps.values(), maps[1].maps.values(), strict=True))


def test_sinks_are_the_positions_whose_stream_stands_out(models):
    model = models("llava-onevision")
    inputs = asked(model)
    resid = model(inputs, stop_at_layer=1)[0]
    at = inputs.layout.positions("video")
    norms = resid[at].pow(2).sum(-1).sqrt()
    factor = (norms.sort().values[-3] / norms.median()).item() * (1 - 1e-9)
    found = model.find_sinks(inputs, layer=1, factor=factor)
    assert found.layout.positions("sinks").tolist() == sorted(at[norms.argsort()[-3:]].tolist())
    with pytest.raises(
        InputError, match="no position of 'video' is a sink where the stream enters block 1: the longest is"
    ):
        model.find_sinks(inputs, layer=1, factor=1e6)
    assert not torch.equal(model(found, interventions=[Knockout("sinks", "text")]), model(found))


def test_clips_without_times_count_them_by_the_rate(models):
    clip = read_clip(FRAMES, 4, "linspace", folder_fps=4.0)
    layout = models("llava-video").prepare(clip, "what ?", sampler="linspace").layout
    assert layout.grid.times == tuple(i / 4 for i in clip.indices)
