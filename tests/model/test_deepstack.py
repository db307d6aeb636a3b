"""DeepStack: what is added behind the first blocks is cut by itself, wherever a condition is run."""

import pytest
import torch

from hookedvid import Ablate, Knockout, Session
from hookedvid.errors import InterventionError
from hookedvid.sweep.run import sweep
from models import ROUNDING, apart, random_model, rich_inputs

NAME, N = "qwen3-vl", 3


def zeros(model, inputs, at: str, points):
    """Those points zero at a selector's positions, by plain hooks."""
    where = inputs.layout.mask(at)

    def hook(act, hook):
        return act.masked_fill(where[None, :, None], 0.0)

    return model.run_with_hooks(inputs, fwd_hooks=[(p, hook) for p in points])


@torch.no_grad()
def test_a_knockout_of_attention_leaves_it_and_ablate_cuts_it():
    model = random_model(NAME)
    inputs = rich_inputs(model)
    assert model.cfg.n_deepstack == 2
    seen = {}
    cut = Knockout("steps[1]", "all", "0:1", keep_self=False)
    keep = [("blocks.0.hook_deepstack", lambda act, hook: seen.update(added=act.clone()))]
    with model.hooks(keep):
        model(inputs, interventions=cut)
    assert seen["added"][0, inputs.layout.mask("steps[1]")].abs().min() > 0
    assert not seen["added"][0, inputs.layout.mask("text+system+markers")].any()
    points = [f"blocks.{i}.hook_deepstack" for i in range(2)]
    want = zeros(model, inputs, "steps[1]", points)
    condition = Ablate("deepstack", "0:2", "steps[1]")
    assert apart(model(inputs, interventions=condition), want) < ROUNDING
    assert apart(want, model(inputs)) > 1e-3


@torch.no_grad()
def test_sweeps_and_sessions_cut_it_as_forwards_do():
    model = random_model(NAME)
    inputs = rich_inputs(model)
    conditions = [(Ablate("deepstack", i, at),) for i in (0, 1) for at in ("video", "steps[0]")]
    found, session = sweep(model, (inputs,), conditions)[0], Session(model, inputs)
    for condition, logits in zip(conditions, found, strict=True):
        want = model(inputs, interventions=condition)[0, -1]
        assert apart(logits, want) < ROUNDING and apart(session.logits(condition), want) < ROUNDING


@torch.no_grad()
def test_a_run_that_starts_later_adds_what_the_whole_run_adds():
    model = random_model(NAME)
    inputs = rich_inputs(model)
    whole, cache = model.run_with_cache(inputs, names_filter=lambda name: name.endswith("hook_resid_pre"))
    for i in range(N):
        rest = model(cache[f"blocks.{i}.hook_resid_pre"], start_at_layer=i, inputs=inputs)
        assert torch.equal(rest, whole)


def test_blocks_that_add_nothing_are_refused():
    model = random_model(NAME)
    with pytest.raises(InterventionError, match="deepstack"):
        model(rich_inputs(model), interventions=Ablate("deepstack", 2, "video"))
    other = random_model("llava-video")
    with pytest.raises(InterventionError, match="deepstack"):
        other(rich_inputs(other), interventions=Ablate("deepstack", 0, "video"))
