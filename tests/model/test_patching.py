"""Patches by frame and segment: the laws they keep, and what they refuse."""

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from jaxtyping import config

from hookedvid import LV_K, EarlyExit, HookedVideoLLM, LayerRange, Patch, VideoInputs, patch_sweep, small_config
from hookedvid.errors import InputError, InterventionError, SelectorError
from hookedvid.model.hook_points import hooks_of
from hookedvid.sweep.run import sweep

TEXT = tuple(range(20, 26))


@cache
def model(family: str = "llava-video") -> HookedVideoLLM:
    """Three layers in float64, no weight at its initial value; llava-video has newlines in every row."""
    made = HookedVideoLLM.from_config(small_config(family)).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.1)
    return made


def inputs(seed: int, frames: int = 3, text: tuple[int, ...] = TEXT, family: str = "llava-video") -> VideoInputs:
    """Two ids, a video, `text`; the seed is the video's."""
    m = model(family)
    assert m.cfg.vision is not None
    size = m.cfg.vision.image_size
    pixels = torch.randn(frames, 3, size, size, generator=torch.Generator().manual_seed(seed))
    return m.inputs_from_tensors(torch.tensor([1, 2, -200, *text]), pixels)


@torch.no_grad()
def logits(given: VideoInputs, interventions=None, **kwargs) -> torch.Tensor:
    return model()(given, interventions=interventions, **kwargs)


@cache
def source(seed: int, names: str | None = "resid_post", **kwargs):
    """Activations of a run; of the named points alone, so that attention keeps its fast kernel."""
    with torch.no_grad():
        return model().run_with_cache(inputs(seed, **kwargs), names_filter=names)[1]


def metric(out: torch.Tensor) -> torch.Tensor:
    return out[0, -1, 7] - out[0, -1, 9]


HOOKS = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z", "q", "k", "v", "pattern", "mlp.hook_post"]


def point(hook: str) -> str:
    """The full name of a patch's hook point in block 1."""
    return hooks_of(model(), Patch(hook, 1).effect(3).writes[0])[0][0]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_video_patched_onto_itself_changes_nothing(hook):
    # Listening, so that a pattern's layer takes the explicit kernel in both runs.
    with torch.no_grad():
        plain = model().run_with_hooks(inputs(0), fwd_hooks=[(point(hook), lambda act, hook: None)])
    for at in ("all", "video", "video[1]", "newlines", "question", "last", "video[0]+last"):
        assert torch.equal(logits(inputs(0), Patch(hook, 1, at, source(0, point(hook)))), plain)


@pytest.mark.parametrize("hook", HOOKS)
def test_another_videos_activations_change_the_logits(hook):
    patch = Patch(hook, 1, "video", source(1, point(hook)))
    assert (logits(inputs(0), patch) - logits(inputs(0))).abs().max() > 1e-6


@pytest.mark.parametrize(("hook", "layer"), [("resid_pre", 0), ("resid_post", 0), ("resid_post", 2), ("resid_mid", 1)])
def test_patching_every_position_gives_the_sources_logits(hook, layer):
    assert torch.equal(logits(inputs(0), Patch(hook, layer, "all", source(1, hook))), logits(inputs(1)))


def test_the_merged_stream_of_the_video_is_all_that_differs_between_two_videos():
    assert torch.equal(logits(inputs(0), Patch("resid_pre", 0, "video", source(1, "resid_pre"))), logits(inputs(1)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_logits_move_to_the_sources_as_the_patched_set_grows(seed):
    """Distance to the source's last logits falls as frames are taken, and is zero once everything is."""
    sets = ["video[0]", "video[0:2]", "video[0:3]", "video+question", "all"]
    target = logits(inputs(seed))[0, -1]
    away = [(logits(inputs(0))[0, -1] - target).norm().item()]
    for at in sets:
        away.append((logits(inputs(0), Patch("resid_post", 0, at, source(seed)))[0, -1] - target).norm().item())
    # The prefix stands before the video, so that video and question are already all that differs.
    assert away[-1] == away[-2] == 0.0
    # No law, but so it is in these models: each frame shortens the way left.
    assert all(later < 0.97 * earlier for earlier, later in pairwise(away[:-1]))


def test_a_source_may_be_given_by_name_or_by_itself():
    by_name = logits(inputs(0), Patch("resid_post", 1, "video[2]", "other"), sources={"other": source(1)})
    assert torch.equal(by_name, logits(inputs(0), Patch("resid_post", 1, "video[2]", source(1))))
    plain = dict(source(1).items())
    assert torch.equal(by_name, logits(inputs(0), Patch("resid_post", 1, "video[2]", plain)))
    with torch.no_grad():
        unbatched = model().run_with_cache(inputs(1), names_filter="resid_post", remove_batch_dim=True)[1]
    assert torch.equal(by_name, logits(inputs(0), Patch("resid_post", 1, "video[2]", unbatched)))


def test_selections_pair_by_order_though_they_stand_elsewhere():
    longer = inputs(1, text=(30, 31, *TEXT, 32))
    with torch.no_grad():
        theirs = model().run_with_cache(longer, names_filter="resid_post")[1]
    patched = model().run_with_cache(inputs(0), interventions=Patch("resid_post", 1, "last", theirs))[1]
    assert torch.equal(patched["resid_post", 1][:, -1], theirs["resid_post", 1][:, -1])


def test_several_patches_and_a_knockout_act_together():
    first, second = Patch("z", 0, "video[0]", source(1, None)), Patch("mlp_out", 2, "last", source(1, None))
    knockout = LV_K.at(LayerRange(1))
    together = logits(inputs(0), [first, knockout, second])

    def write(name, at):
        def hook(act, hook):
            act = act.clone()
            act[:, at] = source(1, None)[name][:, at]
            return act

        return name, hook

    at = inputs(0).layout.positions("video[0]")
    hooks = [write("blocks.0.attn.hook_z", at), write("blocks.2.hook_mlp_out", torch.tensor([-1]))]
    with torch.no_grad():
        by_hand = model().run_with_hooks(inputs(0), fwd_hooks=hooks, interventions=knockout)
    assert torch.equal(together, by_hand)
    for fewer in ([first, second], [first, knockout], [knockout, second]):
        assert not torch.equal(together, logits(inputs(0), fewer))


def test_user_hooks_see_what_a_patch_wrote():
    seen = []
    hooks = [("blocks.1.hook_resid_post", lambda act, hook: seen.append(act.clone()))]
    with torch.no_grad():
        model().run_with_hooks(inputs(0), fwd_hooks=hooks, interventions=Patch("resid_post", 1, "all", source(1)))
    assert torch.equal(seen[0], source(1)["resid_post", 1])
    assert not any(p.fwd_hooks for p in model().hook_dict.values())


def test_text_left_by_an_early_exit_can_still_be_patched():
    exit, patch = EarlyExit(1), Patch("resid_post", 2, "last", source(1))
    found = logits(inputs(0), [exit, patch])
    assert torch.equal(found[0, -1], logits(inputs(1))[0, -1])
    with pytest.raises(InterventionError, match="these positions left the sequence by an early exit before it"):
        logits(inputs(0), [exit, replace(patch, at="video[0]")])


def test_a_batch_is_patched_item_by_item():
    pair = VideoInputs.stack([inputs(0), inputs(2, text=TEXT[:4])])
    other = VideoInputs.stack([inputs(1, text=TEXT[:3]), inputs(3)])
    with torch.no_grad():
        theirs = model().run_with_cache(other, names_filter="resid_post")[1]
    both = logits(pair, Patch("resid_post", 1, "video[1]", theirs))
    for row, (to, take) in enumerate([((0, TEXT), (1, TEXT[:3])), ((2, TEXT[:4]), (3, TEXT))]):
        one = Patch("resid_post", 1, "video[1]", source(take[0], text=take[1]))
        alone = logits(inputs(to[0], text=to[1]), one)
        # A padded item's sums run over another number of keys.
        assert (both[row, -1] - alone[0, -1]).abs().max() <= 1e-12


@pytest.mark.parametrize("hook", ["resid_post", "resid_pre", "attn_out", "mlp_out"])
def test_a_sweep_holds_the_numbers_of_full_runs(hook):
    found = patch_sweep(model(), inputs(0), source(1, hook), metric, hook=hook)
    assert found.shape == (3, 3)
    for layer in range(3):
        for frame in range(3):
            full = metric(logits(inputs(0), Patch(hook, layer, f"video[{frame}]", source(1, hook))))
            assert found[layer, frame] == full
    assert found.unique().numel() > 6 - 3 * (hook == "mlp_out")


@pytest.mark.parametrize(
    "layers", [LayerRange(1, 3), "1:3", np.array([1, 2]), range(1, 3), ["1", torch.tensor(2)]], ids=repr
)
def test_a_patch_sweep_takes_every_spelling_of_layers(layers, unannotated):
    found = patch_sweep(model(), inputs(0), source(1), metric, at="last", layers=layers)
    assert torch.equal(found, patch_sweep(model(), inputs(0), source(1), metric, at="last", layers=[1, 2]))
    assert patch_sweep(model(), inputs(0), source(1), metric, at="last", layers=np.int64(1)).shape == (1, 1)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"at": []}, "nothing to patch: at = [], layers = [0, 1, 2]"),
        ({"layers": []}, "layers = []; give at least one of each"),
        ({"layers": -1}, "holds no layer"),
        ({"layers": [0, 3]}, "reach beyond this model's 3 blocks"),
        ({"metric": lambda logits: logits[0, -1]}, "the metric gave (300,); it must give one number"),
        ({"metric": lambda logits: None}, "the metric gave NoneType; it must give one number"),
    ],
    ids=["no position", "no layer", "a layer of none", "a layer too far", "a row", "nothing"],
)
def test_a_patch_sweep_without_a_number_for_each_cell_is_refused(asked, said, unannotated):
    given = {"metric": metric, "at": "last", **asked}
    with pytest.raises(InterventionError) as e:
        patch_sweep(model(), inputs(0), source(1), **given)
    assert said in str(e.value)


def test_a_condition_of_a_sweep_may_be_one_intervention_as_for_the_model(unannotated):
    alone, listed = (sweep(model(), [inputs(0)], c) for c in ([LV_K, EarlyExit(1)], [[LV_K], [EarlyExit(1)]]))
    assert all(torch.equal(a, b) for a, b in zip(alone[0], listed[0], strict=True))
    with pytest.raises(InputError, match="one input alone to sweep"):
        sweep(model(), inputs(0), [()])


@pytest.fixture
def unannotated():
    config.update("jaxtyping_disable", True)  # which would check these calls' annotations first
    yield
    config.update("jaxtyping_disable", False)


def test_a_sweep_covers_what_it_is_asked_for():
    found = patch_sweep(model(), inputs(0), source(1), metric, at=["video", "last", "all"], layers=[2, 0])
    assert found.shape == (2, 3)
    assert found[0, 2] == found[1, 2] == pytest.approx(metric(logits(inputs(1))).item(), abs=1e-6)  # float32
    assert found[0, 1] == found[0, 2]  # after the last block only the last position is read
    assert found[0, 0] == pytest.approx(metric(logits(inputs(0))).item(), abs=1e-6)


def test_patches_act_on_the_prompt_alone_in_generation():
    m, given, patch = model(), inputs(0), Patch("resid_post", 1, "video", source(1))
    ids = m.generate(given, patch, max_new_tokens=5, stop_at_eos=False, return_type="tokens")
    slow = m.generate(given, patch, max_new_tokens=5, stop_at_eos=False, return_type="tokens", use_past_kv_cache=False)
    assert torch.equal(ids, slow)
    grown = given
    for step in range(5):
        next_id = logits(grown, patch)[0, -1].argmax()
        assert next_id == ids[0, step]
        grown = grown.extend(next_id[None, None])


REFUSED = [
    (Patch("resid_post", 3, "video"), "this model's blocks are numbered 0 to 2"),
    (Patch("resid_post", -1, "video"), "this model's blocks are numbered 0 to 2"),
    (Patch("resid_pst", 1, "video"), r"hook 'resid_pst' does not exist \(nearest: 'resid_post'"),
    (Patch("hook_scale", 1, "video"), "hook 'hook_scale' does not exist"),
    (Patch("scale", 1, "video"), r"hook 'scale' is several: \['blocks.1.ln1.hook_scale', 'blocks.1.ln2.hook_scale'\]"),
    (Patch("resid_post", 1, "video", "absent"), r"pass sources=\{'absent': cache\} \(given: \['source'\]\)"),
]


@pytest.mark.parametrize(("patch", "said"), REFUSED)
def test_a_patch_that_names_nothing_is_refused(patch, said):
    with pytest.raises(InterventionError, match=said):
        logits(inputs(0), patch, sources={"source": source(1)})


def test_sources_that_do_not_fit_are_refused():
    with torch.no_grad():
        _, sliced = model().run_with_cache(inputs(1), pos_slice=-1)
        _, batch = model().run_with_cache(VideoInputs.stack([inputs(1), inputs(2)]), names_filter="resid_post")
    more_frames = source(1, frames=4)
    refusals = [
        (Patch("resid_post", 1, "video", sliced), "its source was cut by pos_slice; cache the source without it"),
        (Patch("resid_post", 1, "video", batch), "the source holds 2 items, the run 1"),
        (
            Patch("resid_post", 1, "video", more_frames),
            "36 positions here, 48 in the source; both must be equally many",
        ),
        (Patch("resid_post", 1), "pass sources={'source': cache}"),
    ]
    for patch, said in refusals:
        with pytest.raises(InterventionError) as e:
            logits(inputs(0), patch)
        assert str(e.value).startswith("patch resid_post layer 2 at ") and said in str(e.value)
    assert torch.isfinite(logits(inputs(0), Patch("resid_post", 1, "video[2]", more_frames))).all()


def test_selectors_of_a_patch_are_checked_when_it_is_made_and_when_it_runs():
    with pytest.raises(SelectorError, match="cannot read 'Video'"):
        Patch("resid_post", 1, "Video")
    with pytest.raises(SelectorError, match=r"no selector 'vido' in 'vido' \(nearest: 'video'"):
        logits(inputs(0), Patch("resid_post", 1, "vido", source(1)))
    with pytest.raises(SelectorError, match=r"video\[7\] is out of range: this sequence has 3 frames"):
        logits(inputs(0), Patch("resid_post", 1, "video[7]", source(1)))
