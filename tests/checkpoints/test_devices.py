"""On a device that is not the CPU: nothing mixes the two, and hardly anything waits. No GPU is needed to test that."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hookedvid import (
    LV_K,
    VS_K,
    VT_K,
    Ablate,
    EarlyExit,
    Edit,
    HookedVideoLLM,
    LayerRange,
    Patch,
    Session,
    Steer,
    VideoInputs,
)
from hookedvid.checkpoints.fill import put
from hookedvid.data.shapes.clips import make_dataset
from hookedvid.families.registry import FAMILIES
from hookedvid.model.encode_video import encoder_of
from hookedvid.study.definition import Study, plan
from hookedvid.study.run.tasks import run
from hookedvid.sweep.run import sweep
from models import ROUNDING, UNLIKE, apart, random_model, rich_inputs
from pretend_device import bare, counted, pretend_cuda

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]

CONDITIONS = ((), (LV_K,), (VT_K,), (LV_K.at(1),), (EarlyExit(1),), (Edit("z", 0, lambda z: z * 2, "video"),))
MIXED = (LV_K, VT_K.at(LayerRange(1, 2)), VS_K.at(LayerRange(0, 1)))


@pytest.fixture
def device() -> Iterator[None]:
    """For a whole test. What is run without one is run outside: watching it takes as long as running it."""
    with torch.no_grad(), pretend_cuda():
        yield


def on_device(model: HookedVideoLLM) -> HookedVideoLLM:
    away = copy.deepcopy(model)
    for name, p in list(away.named_parameters()):
        put(away, name, p.detach().to("cuda"))
    return away


def batch(model: HookedVideoLLM, x: VideoInputs) -> VideoInputs:
    return VideoInputs.stack([x, rich_inputs(model, seed=2, n_text=12).to(x.tokens.device)])


def patched(model: HookedVideoLLM, x: VideoInputs) -> torch.Tensor:
    _, source = model.run_with_cache(rich_inputs(model, seed=1), names_filter="z")
    return model(x, interventions=[Patch("z", 1, "video", source), EarlyExit(2)])


def written(model: HookedVideoLLM, x: VideoInputs) -> torch.Tensor:
    """Rows of the stream, of blocks, tower and projector, in every way that draws nothing."""
    vector = torch.ones(model.cfg.d_model, dtype=torch.float64)
    ways = [Steer("resid_post", 1, "last", vector), Ablate("z", 0, "text", "mean"), Ablate("projector.out", at="video")]
    ways += [Steer("embed", at="video", vector=vector), Ablate("vision.resid_post", 0, "video", "mean")]
    return model(x, interventions=ways)


# Each with how often the host may wait for the device: for a value, or for numbers to come over.
FORWARDS: dict[str, tuple[int, Callable[[Any, Any], torch.Tensor]]] = {
    "intact": (0, lambda m, x: m(x)),
    "knockouts": (0, lambda m, x: m(x, interventions=MIXED)),
    "explicit": (0, lambda m, x: m.run_with_cache(x, names_filter="pattern", interventions=LV_K)[1]["pattern", 1]),
    "batch, exit": (0, lambda m, x: m(batch(m, x), interventions=[VT_K, EarlyExit(1)])),
    "patch, exit": (0, patched),
    "edit": (0, lambda m, x: m(x, interventions=CONDITIONS[-1])),
    "writes": (0, written),
    # Noise is drawn by the prompt's tokens and by some of the pixels.
    "noise": (2, lambda m, x: m(x, interventions=Ablate("z", 0, "question", "noise"))),
    "everything cached": (0, lambda m, x: m.run_with_cache(x)[0]),
    "on demand too": (0, lambda m, x: m.run_with_cache(x, names_filter=lambda name: True)[0]),
    "loss": (0, lambda m, x: m(x, return_type="loss")),
    # A sweep: whether the second question's tokens and pixels before the text are the first's.
    "sweep": (2, lambda m, x: torch.stack(sweep(m, [x, x], CONDITIONS)[1])),
    "session": (0, lambda m, x: Session(m, x).logits([VT_K, CONDITIONS[-1][0]])),
    "attention": (0, lambda m, x: m.attention(x, queries="question", reduce="frames")[1]),
    # Features: how many of each item there are, and whether the weights are as they were when they are made and used.
    "encoded": (3, lambda m, x: m(m.encoded(x))),
    # Generation asks of each token whether it is finite, whether all texts have ended, whether it is a video's.
    "generation": (9, lambda m, x: m.generate(x, MIXED, max_new_tokens=3, return_type="tokens")),
}


# What sets a family apart from those of an unlike sequence is its tower, projector, norms and rotation.
ITS_OWN = ("knockouts", "encoded")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_run_stays_on_its_device_and_hardly_waits(family):
    model = random_model(family, n_layers=2)
    x = rich_inputs(model)
    names = FORWARDS if family in UNLIKE else ITS_OWN
    with torch.no_grad():
        right = {name: FORWARDS[name][1](model, x) for name in names}
        with pretend_cuda():
            away = on_device(model)
            y = x.to(away.device)
            encoder_of(away)  # reads every weight, once
            for name in names:
                waits, forward = FORWARDS[name]
                with counted() as cost:
                    found = forward(away, y)
                assert found.device.type == "cuda", name
                assert apart(bare(found), right[name]) < ROUNDING, name
                assert cost["wait"] + cost["to host"] <= waits, (name, cost)


@pytest.mark.usefixtures("device")
def test_an_answer_waits_for_its_numbers_alone():
    model = random_model("llava-video", n_layers=2)
    frames = np.zeros((4, 70, 70, 3), dtype=np.uint8)
    x = model.prepare(frames, "what is it ?", ["red", "blue"], n_frames=4)
    away = on_device(model)
    both = VideoInputs.stack([x, x])
    with counted() as cost:
        found = away.answers(both, LV_K)
    for a, b in zip(found, model.answers(both, LV_K), strict=True):
        assert a.index == b.index and a.logits == pytest.approx(b.logits, rel=1e-9)
    # Of each item: whether its logits are finite, the best option, the options' probabilities and logits.
    assert cost["wait"] + cost["to host"] <= 2 * 4


@pytest.mark.usefixtures("device")
def test_a_sweep_moves_no_more_to_the_device_the_more_layers_there_are():
    moved = []
    for n_layers in (2, 6):
        away = on_device(random_model("internvideo2.5", n_layers=n_layers))
        x = rich_inputs(away)
        with counted() as cost:
            sweep(away, [x, replace(x)], [(), (LV_K,), (VT_K,)])
        assert cost["wait"] + cost["to host"] == 2, "whether the questions' videos are the same"
        moved.append(cost["to device"])
    assert moved[0] == moved[1]


@pytest.mark.usefixtures("device")
def test_what_mixes_devices_is_found_here():
    away = on_device(random_model("text"))
    with pytest.raises(RuntimeError, match="tensors on cuda and on the cpu"):
        away.embed(torch.tensor([1, 2])) + 1
    here, there = torch.ones(2), torch.ones(2).to("cuda")
    with pytest.raises(RuntimeError, match="tensors on cuda and on the cpu"):
        _ = here + there
    with counted() as cost:
        assert bool((there > 0).all()) and there.cpu().tolist() == [1.0, 1.0]
    assert cost["wait"] == cost["to host"] == 1


def test_a_study_answers_alike_on_a_device(tmp_path: Path):
    model = HookedVideoLLM.from_pretrained("tiny")
    items = make_dataset(tmp_path / "data", seed=0, split="test", n_videos=1, questions_per_video=1)

    def rows(m: HookedVideoLLM, place: str) -> dict:
        laid = plan(Study(protocols=("all-layers",)), m, items)
        return {(r["item"], r["condition"]): r for r in run(laid, m, tmp_path / place)}

    here = rows(model, "here")
    with torch.no_grad(), pretend_cuda():
        there = rows(on_device(model), "there")
    assert here.keys() == there.keys()
    for key, row in here.items():
        other = there[key]
        assert row["status"] == other["status"] == "ok", other
        assert row["prob"] == pytest.approx(other["prob"], rel=1e-4)
