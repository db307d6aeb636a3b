"""Conditions that show another clip, against inputs prepared of frames that were changed by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

import plain_decoder as plain
from hookedvid.errors import InputError, InterventionError, VideoError
from hookedvid.families.registry import FAMILIES, small_config
from hookedvid.model.flops import Costs
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.nn.kv import KVCache
from hookedvid.study.protocols import Condition
from hookedvid.study.run import tasks
from hookedvid.sweep.run import sweep
from hookedvid.sweep.session import Session
from hookedvid.sweep.tree import shareable
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import (
    LV_K,
    VT_K,
    Black,
    Blurred,
    EarlyExit,
    From,
    Frozen,
    Knockout,
    Reversed,
    SameTime,
    Shuffled,
    Swapped,
)
from hookedvid.video import footage
from models import apart, perturb, random_inputs, terse_tokenizer

FRAMES = np.random.default_rng(0).integers(0, 256, (8, 96, 160, 3), dtype=np.uint8)
FRAMES[5, :, :80] = FRAMES[4, :, :80]  # what VideoLLaMA3 drops
CHANGES = {
    "reversed": ([Reversed()], FRAMES[::-1]),
    "shuffled, swapped": ([Shuffled(2), Swapped(0, 3)], FRAMES[list(Shuffled(2).order(8))][[3, 1, 2, 0, 4, 5, 6, 7]]),
    "frozen": ([Frozen(4)], np.repeat(FRAMES[4:5], 8, 0)),
    "black": ([Black((1, 2))], np.concatenate([FRAMES[:1], 0 * FRAMES[1:3], FRAMES[3:]])),
}
KINDS = ([Reversed()], [Reversed(), LV_K], [LV_K], [], [Frozen(1), VT_K, EarlyExit(1)], [Reversed(), Reversed()])
pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]


@pytest.fixture(scope="module")
def models():
    known = {}

    def of(name):
        if name not in known:
            cfg = small_config(name, n_layers=3)
            known[name] = HookedVideoLLM.from_config(cfg, tokenizer=terse_tokenizer(cfg))
            perturb(known[name])
            known[name] = known[name].double()
        return known[name]

    return of


def asked(model, frames=FRAMES, question="what ?"):
    how = {"n_frames": min(8, len(frames)) if isinstance(frames, np.ndarray) else 8, "sampler": "linspace"}
    return model.prepare(frames, question, ("red", "blue"), **how, folder_fps=2.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_counterfactual_is_what_prepare_makes_of_the_changed_frames(name, models):
    model = models(name)
    inputs = asked(model)
    for changes, frames in CHANGES.values():
        found, wanted = model.counterfactual(inputs, changes), asked(model, frames.copy())
        assert torch.equal(found.pixel_values[0], wanted.pixel_values[0])
        assert torch.equal(found.tokens, wanted.tokens) and found.layouts == wanted.layouts
        assert (found.options, found.option_tokens) == (wanted.options, wanted.option_tokens)
    back = model.counterfactual(model.counterfactual(inputs, [Reversed()]), Reversed())
    assert torch.equal(back.pixel_values[0], inputs.pixel_values[0]) and back.layouts == inputs.layouts
    blurred = model.counterfactual(inputs, [Blurred((3,), (30, 20, 90, 60), 2.0)])
    away = inputs.pixel_values[0] != blurred.pixel_values[0]
    assert [bool(x.any()) for x in away] == [i == 3 for i in range(8)]


@pytest.mark.parametrize("name", ["qwen3-vl", "videollama3"])
def test_every_verb_takes_clips_with_interventions(name, models):
    model = models(name)
    inputs = asked(model)
    for condition in (KINDS[1], *KINDS[3:]):
        clips = [i for i in condition if i.effect(3).clips]
        rest = [i for i in condition if i not in clips]
        frames = {0: FRAMES, 2: FRAMES}.get(len(clips), FRAMES[::-1] if Reversed() in clips else FRAMES[[1] * 8]).copy()
        by_hand = model.encoded(asked(model, frames))
        wanted = model(by_hand, interventions=rest)
        assert torch.equal(model(inputs, interventions=condition), wanted)
        assert model.answer(inputs, condition) == model.answer(by_hand, rest)
        for cached in (True, False):
            how = {"max_new_tokens": 3, "return_type": "tokens", "stop_at_eos": False, "use_past_kv_cache": cached}
            assert torch.equal(model.generate(inputs, condition, **how), model.generate(by_hand, rest, **how))
        both = (inputs, condition), (by_hand, rest)
        (logits, cache), (other, by_hand_cache) = (
            model.run_with_cache(x, interventions=c, names_filter=["hook_embed", "resid_pre"]) for x, c in both
        )
        assert torch.equal(logits, other) and torch.equal(cache["hook_embed"], by_hand_cache["hook_embed"])
        assert torch.equal(cache["resid_pre", 2], by_hand_cache["resid_pre", 2])
        maps = [model.attention(x, interventions=c, reduce="frames") for x, c in both]
        assert all(torch.equal(maps[0][i], maps[1][i]) for i in range(3))
        assert torch.equal(model(model.encoded(inputs), interventions=condition), wanted)


@pytest.mark.parametrize("name", ["llava-video", "videollama3"])
@pytest.mark.usefixtures("shapes_checked")
def test_items_of_a_batch_each_show_their_own_clip(name, models):
    model = models(name)
    others = FRAMES[::-1, ::-1].copy()
    batch = VideoInputs.stack([asked(model), asked(model, others, "which color is it ?")])
    changed = FRAMES[::-1].copy(), others[::-1].copy()
    by_hand = VideoInputs.stack([asked(model, changed[0]), asked(model, changed[1], "which color is it ?")])
    assert torch.equal(model(batch, interventions=[Reversed(), LV_K]), model(by_hand, interventions=LV_K))
    assert model.answers(batch, [Reversed(), LV_K]) == model.answers(by_hand, [LV_K])


@pytest.mark.parametrize("name", ["qwen3-vl", "videollama3"])
def test_a_sweep_encodes_each_clip_once_and_a_session_answers_the_same(name, models, monkeypatch):
    model = models(name)
    questions = [asked(model, question=q) for q in ("what ?", "which color is it ?", "where ?")]
    encoded = []
    forward = model.vision.forward
    monkeypatch.setattr(model.vision, "forward", lambda *a, **k: encoded.append(1) or forward(*a, **k))
    done = []
    rows = sweep(model, questions, KINDS, progress=done.append)
    assert len(encoded) == 4  # the original, reversed, frozen, and reversed twice
    assert sum(done) == len(questions) * len(KINDS)
    session = Session(model, questions[0])
    encoded.clear()
    for i, condition in enumerate(KINDS):
        for q, question in enumerate(questions):
            assert apart(rows[q][i], model(question, interventions=condition)[0, -1]) < 1e-11
        assert apart(session.logits(condition), rows[0][i]) < 1e-11
    assert session.answer(KINDS[1]).index == model.answer(questions[0], KINDS[1]).index
    with pytest.raises(InputError, match="questions of one sweep must share their video"):
        sweep(model, [questions[0], asked(model, FRAMES[::-1].copy())], [[Reversed()]])


def test_long_videos_are_decoded_again_and_another_file_is_another_video(models, tmp_path, monkeypatch):
    model = models("qwen2.5-vl")
    for name, frames in (("a", FRAMES), ("b", FRAMES[::-1, :64, :64])):
        (tmp_path / name).mkdir()
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(tmp_path / name / f"{i}.png")
    held = asked(model, tmp_path / "a")
    wanted = model(held, interventions=[Reversed()])
    other = model.counterfactual(held, [From(tmp_path / "b")])
    assert torch.equal(other.pixel_values[0], asked(model, tmp_path / "b").pixel_values[0])
    assert other.layout.n_tokens < held.layout.n_tokens  # frames keep their shape
    assert other.layouts == asked(model, tmp_path / "b").layouts
    monkeypatch.setattr(footage, "HELD", 0)
    again = asked(model, tmp_path / "a")
    assert again.footage[0].video == tmp_path / "a"
    assert torch.equal(model(again, interventions=[Reversed()]), wanted)
    (tmp_path / "a" / "8.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    with pytest.raises(VideoError, match="its frames are not those that were sampled before; prepare it again"):
        model(again, interventions=[Reversed()])


def test_text_that_was_changed_or_generated_stays(models):
    model = models("videollama3")
    inputs = asked(model)
    other = inputs.tokens.clone()
    other[0, -3] += 1
    edited = inputs.with_tokens(other).extend(torch.tensor([[5, 6]]))
    found = model.counterfactual(edited, [Reversed()])
    plain_one = model.counterfactual(inputs, [Reversed()])
    assert torch.equal(found.tokens[0, -5:], edited.tokens[0, -5:])
    assert torch.equal(found.tokens[0, :-5], plain_one.tokens[0, :-3])
    assert found.layout.n_tokens - found.layout.n_prompt == 2


def test_groups_stay_where_tokens_do_and_are_refused_where_there_are_others(models):
    model = models("llava-video")
    inputs = asked(model).with_group("ball", selector="video[3]")
    condition = [Knockout("ball", "text")]
    by_hand = asked(model, FRAMES[::-1].copy())
    assert torch.equal(
        model(inputs, interventions=[Reversed(), *condition]),
        model(by_hand, interventions=[Knockout("video[3]", "text")]),
    )
    dropping = models("videollama3")
    named = asked(dropping).with_group("ball", selector="video[0]")
    with pytest.raises(InputError, match="has other tokens than its original, so that the groups ball are no longer"):
        dropping(named, interventions=[Frozen(0), *condition])


def test_operations_of_a_clip_are_those_of_its_own_tokens(models):
    model = models("videollama3")
    inputs = asked(model)
    costs, other = Costs(model.cfg, inputs.layout), model.counterfactual(inputs, [Frozen(0)])
    assert other.layout.n_tokens < inputs.layout.n_tokens
    with pytest.raises(InterventionError, match="frozen at frame 0: its pictures decide which tokens there are; give"):
        costs.of([Frozen(0), LV_K])
    frozen = Condition("frozen", (Frozen(0), LV_K))
    wanted = Costs(model.cfg, other.layout).of([LV_K]).shares(costs.of())
    assert tasks._shares(model, inputs, costs, frozen, ()) == wanted
    fixed = models("llava-video")
    same = Costs(fixed.cfg, asked(fixed).layout)
    assert same.of([Reversed(), From("b.mp4")]) == same.of()
    shaped = models("qwen3-vl")
    kept = Costs(shaped.cfg, asked(shaped).layout)
    assert kept.of([Reversed()]) == kept.of()
    with pytest.raises(InterventionError, match="its pictures decide which tokens there are"):
        kept.of([From("b.mp4")])


def test_what_shows_no_clip_is_refused_in_words(models):
    model = models("llava-video")
    inputs = asked(model)
    with pytest.raises(InputError, match="reversed: it changes a clip, and this is inputs of tensors"):
        model(random_inputs(model), interventions=[Reversed()])
    text = model.prepare(None, "what ?")
    with pytest.raises(InputError, match="this is an input without a video"):
        model(text, interventions=[Reversed()])
    resid = model(inputs, stop_at_layer=1)
    with pytest.raises(InterventionError, match="a run from a given residual stream looks at no clip"):
        model(resid, start_at_layer=1, inputs=inputs, interventions=[Reversed()])
    with pytest.raises(InterventionError, match="LV-K all layers changes no clip"):
        model.counterfactual(inputs, [LV_K])
    with pytest.raises(InterventionError, match="no frame 9; this clip has 8 sampled frames"):
        model(inputs, interventions=[Frozen(9)])


def test_frames_at_one_time_are_the_plain_decoders(models):
    model = models("qwen3-vl")
    inputs = random_inputs(model, n_frames=4)
    given = [SameTime(), Knockout("video", "text", 1)]
    embeds = plain.embedded(model, inputs)
    wanted, _ = plain.run(model, inputs.layout, embeds, given)
    found = model(inputs, interventions=given)
    assert apart(found[0], wanted) < 1e-11 < apart(model(inputs, interventions=given[1:])[0], wanted)
    how = {"max_new_tokens": 3, "return_type": "tokens", "stop_at_eos": False}
    tokens, _ = plain.generated(model, inputs, given, None, 3)
    for cached in (True, False):
        assert model.generate(inputs, given, use_past_kv_cache=cached, **how)[0].tolist() == tokens


@pytest.mark.usefixtures("shapes_checked")
def test_frames_at_one_time_keep_every_other_number(models):
    model = models("qwen2.5-vl")
    inputs = asked(model)
    layout, video = inputs.layout, inputs.layout.mask("video")
    before, after = layout.position_ids, layout.position_ids_at_one_time
    assert torch.equal(before[1:], after[1:]) and torch.equal(before[:, ~video], after[:, ~video])
    assert set(after[0, video].tolist()) == {before[0, video][0].item()} and len(set(before[0, video].tolist())) == 4
    one = asked(model, FRAMES[:2])  # one step has one time
    assert torch.equal(model(one, interventions=SameTime()), model(one))
    assert not torch.equal(model(inputs, interventions=[SameTime()]), model(inputs))


def test_one_time_is_refused_where_it_has_no_meaning(models):
    with pytest.raises(InterventionError, match="this model's positions have one number each, and none for time"):
        models("llava-video")(asked(models("llava-video")), interventions=SameTime())
    model = models("qwen3-vl")
    inputs = asked(model)
    with pytest.raises(InterventionError, match="this input has no video"):
        model(model.prepare(None, "what ?"), interventions=SameTime())
    assert not shareable([SameTime()], inputs.layout, 3)
    with pytest.raises(InterventionError, match="cannot share all frames at one time: it turns the keys"):
        sweep(model, [inputs], [[SameTime()]])
    cache = KVCache(3)
    model(inputs, kv_cache=cache)
    with pytest.raises(InterventionError, match="turned by its own times; give SameTime in every step"):
        model(inputs.extend(torch.tensor([[5]])), kv_cache=cache, interventions=SameTime())
