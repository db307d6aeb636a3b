"""Every kind of intervention in every place: it runs there as it does in a forward, or is refused in words."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from decoding import decoders  # noqa: F401
from hookedvid import Session, VideoInputs
from hookedvid.cli.commands import main
from hookedvid.data.item import read_items
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.errors import ConfigError, InterventionError
from hookedvid.model.flops import Costs
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.study.definition import Study, plan
from hookedvid.study.run.tasks import run
from hookedvid.sweep.run import sweep
from hookedvid.sweep.tree import shareable
from hookedvid.values.effects import Intervention
from hookedvid.values.interventions import from_json, parse, to_json
from hookedvid.video.footage import Footage
from hookedvid.video.frames import read_clip
from models import ROUNDING, random_model, rich_inputs

pytestmark = pytest.mark.shapes_unchecked
N = 3
# One line of each kind, on few blocks; what takes activations from elsewhere takes them from `other`.
LINES = {
    "knockout": "video[0:2]->text @ 1: heads 0,2 weight 0.5",
    "random_edges": "random like video->text @ 1",
    "replace": "replace video->text @ 1: heads 0,2 by mean",
    "patch": "patch resid_post @ 1 at video[0:2] from other",
    "ablate": "ablate mlp_out @ 1: at options by noise seed 3",
    "steer": "steer resid_post @ 1: at last along other scale 2",
    "early_exit": "exit @ 2 of video[0:2]",
    "drop": "drop @ 1 keep 0.5 by attention",
    "adaptive_exit": "adaptive exit by mass below 0.5",
    "reversed": "reversed",
    "shuffled": "shuffled seed 1",
    "frozen": "frozen frame 2",
    "swapped": "swapped 0 with 3",
    "black": "black frames 0,2",
    "blurred": "blurred frames 1:3 in 10,10,50,40 sigma 3",
    "from": "from other",
    "same_time": "same time",
}
NOT_SHARED = ("drop", "adaptive_exit", "same_time")


def kinds(cls: type[Intervention] = Intervention) -> set[str]:
    return {cls.kind, *(k for below in cls.__subclasses__() for k in kinds(below))} - {""}


def test_every_kind_has_a_line_here():
    ours = {k for k in kinds() if not k.startswith("test")}
    assert ours == set(LINES)


def asked(m, seed=0, n_frames=4):
    x = rich_inputs(m, n_frames, seed)
    frames = np.random.default_rng(seed).integers(0, 256, (n_frames, 64, 96, 3), dtype=np.uint8)
    clip = read_clip(frames, n_frames)  # what clips change; the pixels of the intact run are others
    footage = (Footage.of(frames, clip, n_frames, "linspace", None),)
    return replace(x, option_tokens=((5, 9),), options=(("a", "b"),), footage=footage)


@pytest.fixture(scope="module")
def model() -> HookedVideoLLM:
    return random_model("qwen3-vl", n_layers=N)


@pytest.fixture(scope="module")
def sources(model):
    """Another run for patches, a vector for steering."""
    _, cache = model.run_with_cache(asked(model, 5), names_filter="resid_post")
    vector = torch.randn(model.cfg.lm.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return {"patch": {"other": cache}, "steer": {"other": vector}}


@pytest.fixture(params=LINES)
def case(request, sources, tmp_path):
    (value,) = parse(LINES[request.param])
    if request.param == "from":
        for i, frame in enumerate(np.random.default_rng(9).integers(0, 256, (4, 64, 96, 3), dtype=np.uint8)):
            Image.fromarray(frame).save(tmp_path / f"{i}.png")
        value = replace(value, path=str(tmp_path))
    assert value.kind == request.param
    return value, sources.get(request.param)


@pytest.mark.usefixtures("shapes_checked")
@torch.no_grad()
def test_a_kind_answers_and_changes_something(model, case):
    value, given = case
    x = asked(model)
    logits = model(x, interventions=value, sources=given)[0, -1]
    assert (logits - model(x)[0, -1]).abs().max() > 1e-6
    answer = model.answer(x, value, sources=given)
    probs = logits[: model.cfg.n_tokens].softmax(-1)[[5, 9]]
    assert torch.allclose(torch.tensor(answer.probs, dtype=torch.float64), probs, atol=ROUNDING)


@pytest.mark.usefixtures("shapes_checked")
@torch.no_grad()
def test_a_batch_is_its_items(model, case):
    value, given = case
    items = [asked(model), asked(model, 1)]
    if value.kind == "patch":  # a source has one item for each of the run
        _, cache = model.run_with_cache(VideoInputs.stack([asked(model, 5)] * 2), names_filter="resid_post")
        together = model(VideoInputs.stack(items), interventions=value, sources={"other": cache})
    else:
        together = model(VideoInputs.stack(items), interventions=value, sources=given)
    alone = [model(x, interventions=value, sources=given)[0, -1] for x in items]
    assert all((a - b).abs().max() < ROUNDING for a, b in zip(alone, together[:, -1], strict=True))


@pytest.mark.usefixtures("shapes_checked")
@torch.no_grad()
def test_generation_is_the_same_with_and_without_a_cache(model, case):
    value, given = case
    x = model.encoded(asked(model))
    how = {"max_new_tokens": 3, "return_type": "tokens", "stop_at_eos": False, "sources": given}
    with_cache, without = (model.generate(x, value, use_past_kv_cache=c, **how) for c in (True, False))
    assert torch.equal(with_cache, without)


@pytest.mark.usefixtures("shapes_checked")
@torch.no_grad()
def test_a_sweep_and_a_session_are_forwards_or_refuse(model, case):
    value, given = case
    x = model.encoded(asked(model))
    shared = shareable([value], x.layout, N)
    assert shared == (value.kind not in NOT_SHARED)
    if not shared:
        for refused in (lambda: sweep(model, [x], [value], sources=given), lambda: Session(model, x).logits(value)):
            with pytest.raises(InterventionError, match="cannot share"):
                refused()
        return
    wanted = model(x, interventions=value, sources=given)[0, -1]
    assert (sweep(model, [x], [(), value], sources=given)[0][1] - wanted).abs().max() < ROUNDING
    assert (Session(model, x).logits(value, given) - wanted).abs().max() < ROUNDING


def test_costs_are_told_or_refused(model, case):
    value, _ = case
    costs = Costs(model.cfg, asked(model).layout)
    refused = {"adaptive_exit": "known after the run alone", "from": "its pictures decide which tokens there are"}
    if value.kind in refused:
        with pytest.raises(InterventionError, match=refused[value.kind]):
            costs.of([value])
    else:
        assert 0 < costs.of([value]).decoder <= costs.of().decoder


def test_a_kind_is_read_back_from_json(case):
    value, _ = case
    assert from_json(to_json([value])) == (value,)


@pytest.fixture(scope="module")
def tiny() -> HookedVideoLLM:
    return HookedVideoLLM.from_pretrained("tiny")


@pytest.fixture(scope="module")
def annotations(tmp_path_factory) -> Path:
    """One question."""
    return make_dataset(tmp_path_factory.mktemp("one"), seed=3, split="test", n_videos=1, questions_per_video=1)


@pytest.mark.parametrize("kind", LINES)
def test_a_study_and_the_command_ask_it_or_refuse(kind, tiny, annotations, tmp_path, capsys):
    line = LINES[kind]
    how = {"protocols": ("baseline",), "custom": ((line,),)}
    (item,) = read_items(annotations)
    clip = str(annotations.parent / item.video)
    if kind in ("patch", "steer"):
        with pytest.raises(ConfigError, match="no source 'other'"):
            Study(**how)
        assert main(["ask", clip, item.question, *item.options, "--under", line]) == 2
        assert "other" in capsys.readouterr().err
        return
    if kind == "from":
        with pytest.raises(InterventionError, match="a study cannot show the frames of other"):
            plan(Study(**how), tiny, annotations)
        assert main(["ask", clip, item.question, *item.options, "--under", f"from {clip}"]) == 0
        return
    rows = run(plan(Study(**how), tiny, annotations), tiny, tmp_path / "out")
    assert rows[0]["status"] == "ok" and rows[0]["key"] != rows[1]["key"]
    if kind == "same_time":
        assert rows[1]["status"] == "failed" and "positions have one number each" in rows[1]["reason"]
        assert main(["ask", clip, item.question, *item.options, "--under", line]) == 2
        return
    assert rows[1]["status"] == "ok" and (rows[1].get("left") is not None) == (kind == "adaptive_exit")
    assert main(["ask", clip, item.question, *item.options, "--under", line]) == 0
    assert f"{parse(line)[0].label()}: " in capsys.readouterr().out
