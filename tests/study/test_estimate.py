"""What a study is said to take: the counts of the plan, the operations of its runs, the memory of its sweep."""

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import miniatures
from hookedvid.cli.commands import main
from hookedvid.data.item import read_items
from hookedvid.data.registry import read_dataset
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.data.shapes.words import VOCABULARY, tokenizer
from hookedvid.families.registry import small_config
from hookedvid.model.flops import Costs, Flops, block_linear, keys_values, unembedding, video
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.model.prepare import expected
from hookedvid.study import protocols
from hookedvid.study.definition import Study, plan
from hookedvid.study.records import Records
from hookedvid.study.run.estimate import Estimate, _forward_memory, estimate, sweep_flops, sweep_memory
from hookedvid.study.run.tasks import run
from hookedvid.sweep.run import sweep
from hookedvid.sweep.tree import Sweep
from hookedvid.values.inputs import VIDEO, VideoInputs
from hookedvid.values.interventions import LV_K, VS_K, VT_K, Edit
from models import SEVEN_B, laid_out
from sweep_cases import N, asked, full_study
from sweep_cases import model as small

pytestmark = pytest.mark.shapes_unchecked


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    cfg = replace(small_config("longva", n_layers=4, d_vocab=len(VOCABULARY)), prompt="tiny")
    return HookedVideoLLM.from_config(cfg, tokenizer=tokenizer())


@pytest.fixture(scope="module")
def annotations(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("set"), seed=3, split="test", n_videos=4, questions_per_video=3)


def flops(found: Estimate) -> dict[str, float]:
    return {w.reuse: w.flops for w in found.works}


def test_the_papers_study_at_seven_billion_takes_what_the_facts_say():
    """108 conditions, 32 x 196 tokens, without the tower: 9.85 PF run one by one, 2.69 PF in a sweep (facts, 3)."""
    layout = laid_out(32, 14, "none", 15, 100)
    cfg = replace(SEVEN_B, vision=None, projector=None)
    tokens = torch.zeros(1, layout.n_tokens, dtype=torch.long)
    x = VideoInputs(tokens, (layout,), (torch.empty(32, 3, 0, 0),))
    conditions = full_study(28, 4)
    costs = Costs(cfg, layout)
    naive = sum(costs.of(c).total for c in conditions)
    assert naive / 1e15 == pytest.approx(9.85 * 107 / 108, rel=0.01)  # the facts run the baseline twice
    one, three = (sweep_flops(cfg, Sweep(28, [x] * n, conditions)).total for n in (1, 3))
    assert one / 1e15 == pytest.approx(2.69, rel=0.01) and three / 1e15 == pytest.approx(2.85, rel=0.01)


@pytest.mark.parametrize("reuse", ["none", "layers", "layers+positions"])
def test_a_study_of_one_condition_is_one_forward_a_question(model, annotations, reuse):
    found = estimate(plan(Study(protocols=("baseline",), reuse=reuse), model, annotations), model)
    assert (found.n_conditions, found.n_rows, found.n_done) == (1, 12, 0)
    assert flops(found)["none"] == flops(found)["layers"] == pytest.approx(12 * found.forward.total, rel=1e-4)
    # The tower once a video, the video's rows once for its three questions.
    assert 4 / 12 < flops(found)["layers+positions"] / flops(found)["none"] < 0.5


def test_it_is_the_sum_over_what_is_run(model, annotations):
    laid = plan(Study(), model, annotations, limit=4)
    layouts = {i.id: model.prepare(annotations.parent / i.video, i.question, i.options).layout for i in laid.items}
    different = {t.key: (i, c) for i, c, t in laid.tasks}
    total = sum(Flops.of(model.cfg, layouts[i.id], c.interventions).total for i, c in different.values())
    found = estimate(laid, model)
    assert flops(found)["none"] == pytest.approx(total, rel=1e-12)
    assert flops(found)["none"] > flops(found)["layers"] > flops(found)["layers+positions"]
    assert found.n_rows == len(different) and found.n_distinct < found.n_conditions == len(laid.conditions)
    lengths = [layout.n_tokens for layout in layouts.values()]
    assert found.tokens == (min(lengths), max(lengths))


@pytest.mark.parametrize("reuse", ["none", "layers", "layers+positions"])
def test_it_is_what_the_run_evaluates_sources_and_all(reuse, model, annotations, tmp_path, monkeypatch):
    """But for attention, whose pairs no call tells: rows of blocks, of keys and values, of logits; videos encoded."""
    lines = [
        "patch resid_post @ 1 at video from clean; LV-K @ :2", "patch z @ 2 at last from foil", "reversed; VT-K @ 2",
        "patch resid_post @ 2 at question from clean", "ablate resid_post @ 1 at video by mean from means",
        "drop @ 2 keep 0.5 by norm", "LV-K @ 1 heads 0", "ablate embed at video by noise",
    ]  # fmt: skip
    sources = {"foil": {"paired": "video"}, "clean": {"paired": "itself"}, "means": {"reference": "all"}}
    study = Study(protocols=("all-layers",), custom=tuple((x,) for x in lines), sources=sources, reuse=reuse)
    laid, lm, ran = plan(study, model, annotations, limit=4), model.cfg.lm, Counter()
    monkeypatch.setattr("hookedvid.study.run.tasks.AUDITED", 1 << 60)
    with monkeypatch.context() as without_attention:
        for where in ("model.flops", "study.run.estimate"):
            without_attention.setattr(f"hookedvid.{where}.pair", lambda lm: 0)
        found = estimate(laid, model, tmp_path)

    def count(what, owner, name, rows):
        whole = getattr(owner, name)

        def counted(*args, **given):
            ran[what] += rows(*args)
            return whole(*args, **given)

        monkeypatch.setattr(owner, name, counted)

    count("blocks", type(model.blocks[0]), "after_attn", lambda block, resid, *_: resid.shape[0] * resid.shape[1])
    count("keys", type(model.blocks[0].attn), "keys_values", lambda attn, resid, *_: resid.shape[0] * resid.shape[1])
    count("logits", model.unembed, "forward", lambda rows: rows.shape[0] * rows.shape[1])
    count("videos", type(model.vision), "forward", lambda tower, videos, *_: len(videos))
    assert {row["reason"] for row in run(laid, model, tmp_path)} == {""}
    layout = expected(model, laid.items[0].question, n_frames=8, time_instruction="none").layout
    each = {"blocks": block_linear(lm), "keys": keys_values(lm), "logits": unembedding(lm)}
    each["videos"] = video(model.cfg, layout).total
    assert flops(found)[reuse] == pytest.approx(sum(n * each[what] for what, n in ran.items()), rel=1e-12)


def test_what_is_expected_of_a_video_nobody_opened_is_what_it_has(model, annotations):
    for item in read_items(annotations)[:3]:
        real = model.prepare(annotations.parent / item.video, item.question, item.options)
        said = expected(model, item.question, item.options, n_frames=8, time_instruction="none")
        assert said.layout.segments == real.layout.segments and torch.equal(said.tokens, real.tokens)
        assert int((said.tokens == VIDEO).sum()) == len(real.layout.positions("video"))


@pytest.mark.filterwarnings("ignore::hookedvid.model.prompt_tokens.UnknownWordWarning")
@pytest.mark.parametrize(
    ("scoring", "convention"),
    [("letters", ""), ("generate", "videomme/lmms-eval@2026-04"), ("letters", "videomme/official")],
)
def test_prompts_are_laid_out_as_the_run_does_it(scoring, convention, model, tmp_path, monkeypatch):
    data = read_dataset("videomme", miniatures.videomme(tmp_path / "set", layout="data"))
    study = Study(dataset=data.name, protocols=("baseline",), convention=convention, scoring=scoring, n_frames=4)
    laid, lengths, prepare = plan(study, model, data.folder, None, data.items), [], type(model).prepare

    def noted(self, *args, **given):
        inputs = prepare(self, *args, **given)
        lengths.append(inputs.layout.n_tokens)
        return inputs

    found = estimate(laid, model)
    monkeypatch.setattr(type(model), "prepare", noted)
    run(laid, model, tmp_path / "out")
    assert found.tokens == (min(lengths), max(lengths)) and len(lengths) == len(data.items)


def test_subtitles_are_counted(model, tmp_path):
    data = read_dataset("videomme:subtitles", miniatures.videomme(tmp_path / "set", layout="data"))
    with_them, without = (
        estimate(
            plan(
                Study(protocols=("baseline",), convention=f"videomme/lmms-eval@2026-04{more}"),
                model,
                data.folder,
                None,
                data.items,
            ),
            model,
        )
        for more in ("+subtitles", "")
    )
    assert with_them.tokens[1] > without.tokens[1]


def test_what_is_done_is_not_reckoned_again(model, annotations, tmp_path):
    laid = plan(Study(protocols=("all-layers",)), model, annotations)
    run(plan(Study(protocols=("all-layers",)), model, annotations, limit=6), model, tmp_path)
    some, whole = estimate(laid, model, tmp_path), estimate(laid, model)
    assert (some.n_rows, some.n_done, some.n_left) == (48, 24, 2)
    assert flops(some)["none"] < 0.6 * flops(whole)["none"]
    run(laid, model, tmp_path)
    assert estimate(laid, model, tmp_path).works == ()
    assert str(estimate(laid, model, tmp_path)).endswith("48 of them done\nnothing left that could be run")
    assert len(Records(tmp_path).read()) == 48


def test_many_videos_are_reckoned_from_some(model, annotations, monkeypatch):
    laid = plan(Study(protocols=("cumulative", "all-layers")), model, annotations)
    whole = estimate(laid, model)
    monkeypatch.setattr("hookedvid.study.run.estimate.LOOKED_AT", 2)
    some = estimate(laid, model)
    assert (some.n_left, some.n_looked_at) == (4, 2) and "reckoned from 2 of 4 videos" in str(some)
    for reuse, found in flops(some).items():
        assert found == pytest.approx(flops(whole)[reuse], rel=0.05)


def test_generated_text_is_run_one_by_one(model, annotations):
    found = estimate(plan(Study(scoring="generate"), model, annotations, limit=2), model)
    assert list(flops(found)) == ["none"]


@pytest.mark.parametrize("n_questions", [1, 3])
def test_a_sweeps_memory_is_about_what_the_allocator_counts(n_questions):
    m, x = small("llava-video", torch.float32), asked("llava-video", torch.float32)[:n_questions]
    conditions = full_study(N, 2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        sweep(m, x, conditions)
    assert seen.profiler is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held, peak = 0, 0
    for e in sorted(events, key=lambda e: e.start_ns()):
        held += e.nbytes()
        peak = max(peak, held)
    said = sweep_memory(m.cfg.lm, Sweep(5, x, conditions), 4)
    # Toy widths: angles, rotated copies and masks weigh as much as an MLP of 96.
    assert 0.3 < said / peak < 1.5


def test_a_sweep_at_seven_billion_takes_no_more_memory_than_a_forward():
    layout = laid_out(32, 14, "none", 15, 100)
    x = VideoInputs(torch.zeros(1, layout.n_tokens, dtype=torch.long), (layout,), (torch.empty(32, 3, 0, 0),))
    one, three = (sweep_memory(SEVEN_B.lm, Sweep(28, [x] * n, full_study(28, 4)), 2) for n in (1, 3))
    forward = _forward_memory(SEVEN_B.lm, layout.n_tokens, 2)
    assert one <= three <= forward
    # Where an edit wants all rows of an MLP, a sweep takes what a forward takes there.
    edited = sweep_memory(SEVEN_B.lm, Sweep(28, [x], [(Edit("mlp_out", 3, torch.zeros_like, "video"),), ()]), 2)
    assert edited > 0.9 * forward > one


def test_the_command_prints_the_plan_and_runs_nothing(model, annotations, tmp_path, capsys, monkeypatch):
    model.save_pretrained(tmp_path / "model")
    study = tmp_path / "study.toml"
    study.write_text(f'model = "{tmp_path}/model"\nitems = "{annotations}"\n')
    monkeypatch.setattr("hookedvid.video.frames.read_clip", lambda *a, **k: pytest.fail("a video was opened"))
    assert main(["study", str(study), "--out", str(tmp_path / "out"), "--plan", "--protocol", "efficiency"]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    n = 1 + len(protocols.efficiency(4))
    assert f"{n} conditions x 12 questions on 4 videos: {12 * n} rows, 0 of them done" in printed
    assert re.search(r"reuse layers\+positions +[\d,]+ forwards .*B with weights  <- this study", printed)


@pytest.mark.parametrize(("family", "said"), [("qwen2.5-vl", " tokens, 8 frames taken as 480x854: "), ("longva", None)])
def test_sizes_that_nobody_looked_at_are_said(family, said, annotations):
    model = small(family)
    laid = plan(Study(protocols=("baseline",), n_frames=8), model, annotations, limit=2)
    printed = str(estimate(laid, model))
    assert (said or " tokens, 8 frames: ") in printed


def test_conditions_that_do_the_same_are_counted_once():
    lv, vt, vs = (protocols.windows(k, 4, 4) for k in (LV_K, VT_K, VS_K))
    assert lv[0].interventions != protocols.everywhere([LV_K])[0].interventions
    from hookedvid.study.run.estimate import _does

    what = [c.interventions for c in (*lv, *vt, *vs, *protocols.everywhere([LV_K, VT_K, VS_K]))]
    assert len({_does(w, 4) for w in what}) == 3
