"""What the verbs promise that attach hooks, keep activations, and run a part of the model."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hookedvid.errors import HookError, InputError, InterventionError
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LV_K, Patch
from models import ROUNDING, UNLIKE, apart, random_inputs, random_model

BY_QUERY = ("hook_mask", "hook_attn_scores", "hook_pattern")
ON_DEMAND = ("hook_mask", "hook_result", "hook_q_input", "hook_k_input", "hook_v_input")


def short(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def case(name: str) -> tuple:
    model = random_model(name, n_layers=2)
    return model, random_inputs(model, n_frames=4)


@pytest.fixture(autouse=True)
def no_hook_stays_behind():
    yield
    for name in ("longva", *UNLIKE, "text"):
        model = random_model(name, n_layers=2)
        assert not model.list_hooks() and not [m for m in model.modules() if m._forward_hooks or m._backward_hooks]


def test_an_exception_leaves_no_hook_behind_and_the_model_as_it_was():
    model, inputs = case("llava-video")
    logits = model(inputs)

    def fail(a, hook):
        raise RuntimeError("inside")

    listen = ("blocks.0.hook_resid_pre", lambda a, hook: a * 0)
    with pytest.raises(RuntimeError, match="inside"):
        model.run_with_hooks(inputs, fwd_hooks=[listen, ("blocks.1.hook_resid_pre", fail)])
    with pytest.raises(RuntimeError, match="inside"), model.hooks([("vision.hook_out", fail)]):
        model.run_with_cache(inputs, interventions=[Patch("z", 1, source=model.run_with_cache(inputs)[1])])
    with pytest.raises(HookError), model.hooks([listen, ("blocks.0.hook_resid_prre", fail)]):
        pass
    with pytest.raises(TypeError, match="unexpected keyword argument 'name_filter'"):
        model.run_with_cache(inputs, name_filter="resid_pre")
    assert not model.list_hooks()
    assert torch.equal(model(inputs), logits)


def test_hooks_of_the_user_survive_every_verb_until_reset():
    model, inputs = case("llava-video")
    calls: list[str] = []
    model.add_hook("blocks.0.hook_resid_pre", lambda a, hook: calls.append("added"))
    model.add_perma_hook("blocks.0.hook_resid_pre", lambda a, hook: calls.append("permanent"))
    point = model.blocks[0].hook_resid_pre
    plain = [m.register_forward_hook(lambda *_: calls.append("torch")) for m in (point, model.blocks[0].mlp.gate)]
    everyone = ["added", "permanent", "torch", "torch"]
    try:
        for verb in (model.run_with_hooks, model.run_with_cache, model):
            calls.clear()
            verb(inputs)
            assert calls == everyone, verb
        with pytest.raises(ZeroDivisionError):
            model.run_with_hooks(inputs, fwd_hooks=[("hook_embed", lambda a, hook: 1 / 0)])
        calls.clear()
        model(inputs, interventions=LV_K)
        assert calls == everyone
        calls.clear()
        model.reset_hooks()
        model(inputs)
        assert calls == everyone[1:], "reset_hooks takes add_hook's, not permanent ones, not torch's"
    finally:
        model.reset_hooks(including_permanent=True)
        for handle in plain:
            handle.remove()


def test_names_are_full_short_listed_or_judged():
    model, inputs = case("llava-video")
    held = {
        "blocks.1.attn.hook_z": ["blocks.1.attn.hook_z"],
        "resid_post": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"],
        "hook_resid_post": ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"],
        "vision.resid_post": ["vision.blocks.0.hook_resid_post", "vision.blocks.1.hook_resid_post"],
        "embed": ["hook_embed"],
        "projector.out": ["projector.hook_out"],
    }
    for asked, names in held.items():
        assert list(model.run_with_cache(inputs, names_filter=asked)[1].cache_dict) == names
    asked = model.run_with_cache(inputs, names_filter=["mask", "q_input"])[1]
    assert torch.equal(asked["mask", -1], asked["blocks.1.attn.hook_mask"]), "a short name also finds what it cached"
    assert asked["q_input", 0].shape[2:] == (8, 64)
    both = model.run_with_cache(inputs, names_filter=["z", "embed"])[1]
    assert set(both.cache_dict) == {"blocks.0.attn.hook_z", "blocks.1.attn.hook_z", "hook_embed"}
    judged = model.run_with_cache(inputs, names_filter=lambda n: n.endswith("1.hook_resid_pre"))[1]
    assert set(judged.cache_dict) == {"vision.blocks.1.hook_resid_pre", "blocks.1.hook_resid_pre"}
    everything = model.run_with_cache(inputs)[1]
    assert set(model.hook_dict) - set(everything.cache_dict) == {n for n in model.hook_dict if short(n) in ON_DEMAND}, (
        "masks, results and input forks are made when asked for by name"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m.run_with_cache(x, names_filter="patern"), "no hook point 'patern'; nearest: 'pattern'"),
        (lambda m, x: m.run_with_cache(x, names_filter=["z", "blocks.7.hook_resid_pre"]), "no hook point 'blocks.7"),
        (lambda m, x: m.run_with_cache(x, names_filter=lambda n: False), "matches none of the"),
        (lambda m, x: m.run_with_hooks(x, fwd_hooks=[("blocks.0.attn.hook_patern", id)]), "'blocks.0.attn.hook_patte"),
        (lambda m, x: m.add_hook("blocks.0.hook_resid", id), "no hook point 'blocks.0.hook_resid'; nearest: 'blocks"),
        (lambda m, x: m.run_with_hooks(x, fwd_hooks=[("resid_post", id)]), "no hook point 'resid_post'"),
        (lambda m, x: m.run_with_cache(x, names_filter="blocks.1.hook_resid_pre", stop_at_layer=1), "cannot fire"),
        (lambda m, x: m.run_with_cache(x, names_filter=["z", "normalized"], stop_at_layer=0), "'z' cannot fire in"),
        (lambda m, x: m.run_with_cache(torch.tensor([1, 2]), names_filter=["z", "vision.z"]), "'vision.z' cannot fi"),
        (lambda m, x: m.run_with_hooks(torch.tensor([1, 2]), fwd_hooks=[("vision.hook_out", id)]), "no video to enco"),
        (lambda m, x: m.run_with_hooks(x, stop_at_layer=1, fwd_hooks=[("ln_final.hook_scale", id)]), "cannot fire"),
        (lambda m, x: m.run_with_hooks(x, bwd_hooks=[("hook_embed", id)]), "backward hooks would be gone before"),
    ],
)
def test_a_hook_that_does_not_exist_or_cannot_fire_is_refused(call, message):
    model, inputs = case("llava-video")
    with pytest.raises(HookError) as e:
        call(model, inputs)
    assert message in str(e.value)


def test_an_unknown_keyword_is_refused_by_every_verb():
    model, inputs = case("text")
    for verb in (model, model.run_with_hooks, model.run_with_cache, model.generate):
        with pytest.raises(TypeError, match="unexpected keyword argument 'attention_mask'"):
            verb(inputs, attention_mask=None)


@torch.no_grad()
def test_pos_slice_keeps_some_positions_and_frees_the_rest():
    model, inputs = case("llava-video")
    _, whole = model.run_with_cache(inputs)
    for given, kept in ((-1, [-1]), ((2, 9), slice(2, 9)), ([0, 5], [0, 5])):
        _, some = model.run_with_cache(inputs, pos_slice=given)
        for name, tensor in some.items():
            full, axis = whole[name], 2 if short(name) in BY_QUERY else 1
            if not name.startswith(("vision.", "projector.")):
                full = full[:, :, kept] if axis == 2 else full[:, kept]
                assert tensor.untyped_storage().nbytes() == tensor.numel() * 8, f"{name} keeps what was cut alive"
            assert torch.equal(tensor.view_as(full), full), name


@torch.no_grad()
def test_a_cache_goes_to_its_device_and_loses_its_batch_axis():
    model, inputs = case("llava-video")
    _, away = model.run_with_cache(inputs, names_filter="resid_post", device="meta")
    assert {t.device.type for t in away.values()} == {"meta"}
    _, cache = model.run_with_cache(inputs)
    _, bare = model.run_with_cache(inputs, remove_batch_dim=True)
    for name, tensor in bare.items():
        in_tower = name.startswith(("vision.", "projector."))  # whose first axis is frames
        assert torch.equal(tensor, cache[name] if in_tower else cache[name][0])
    with pytest.raises(InputError, match="cannot remove the batch axis of a batch of 2 items"):
        model.run_with_cache(VideoInputs.stack([inputs, inputs]), remove_batch_dim=True)


@torch.no_grad()
def test_a_cache_holds_what_was_there_whatever_a_later_hook_writes_in_place():
    model = random_model("llava-video", n_layers=1)
    inputs = random_inputs(model, n_frames=4)
    _, clean = model.run_with_cache(inputs)
    order = [n for n in clean if ".1." not in n]  # as they fire

    def zero(a, hook=None):
        a.zero_()

    for i, at in enumerate(order):
        with model.hooks([(at, zero)]):
            _, cache = model.run_with_cache(inputs)
        assert all(torch.equal(cache[n], clean[n]) for n in order[:i]), at
        assert not cache[at].any()
    embedded = model.run_with_cache(inputs, names_filter="embed")[1]["hook_embed"]
    handle = model.blocks[0].register_forward_pre_hook(lambda module, args: zero(args[0]))
    assert torch.equal(model.run_with_cache(inputs, names_filter="embed")[1]["hook_embed"], embedded), "torch's own too"
    handle.remove()
    _, cache = model.run_with_cache(inputs)
    assert cache["hook_embed"].data_ptr() == cache["resid_pre", 0].data_ptr(), "nothing is copied where nothing writes"


def test_cached_gradients_hold_what_was_there_too():
    model, inputs = case("text")
    names = [n for n in model.hook_dict if n.startswith("blocks.") and n.endswith(("resid_post", "resid_mid", "_out"))]

    def gradients(*hooks: tuple) -> dict:
        with model.hooks(bwd_hooks=hooks):
            return model.run_with_cache(inputs, names_filter=names, return_type="loss", incl_bwd=True)[1].cache_dict

    clean, cache = gradients(), gradients(("blocks.1.hook_mlp_out", lambda grad, hook: grad.mul_(0)))
    later = "blocks.1.hook_resid_post_grad"
    assert torch.equal(cache[later], clean[later])


def test_a_run_with_cache_makes_a_graph_only_where_a_gradient_is_asked_for():
    model, inputs = case("text")
    assert not any(p.requires_grad for p in model.parameters()) and torch.is_grad_enabled()
    assert model(inputs).grad_fn is None
    model.requires_grad_()
    logits, cache = model.run_with_cache(inputs)
    assert logits.grad_fn is None and not any(a.requires_grad for a in cache.values())
    assert torch.equal(model.run_with_cache(inputs, keep_graph=True)[0], logits)
    loss, _ = model.run_with_cache(inputs, return_type="loss", keep_graph=True)
    (grad,) = torch.autograd.grad(loss, [model.W_E])
    assert grad.any()
    model.requires_grad_(False)
    kept: dict[str, Tensor] = {}
    point, save = "blocks.0.hook_resid_post", lambda grad, hook: kept.update({hook.name: grad.clone()})
    _, held = model.run_with_cache(inputs, names_filter=point, return_type="loss", incl_bwd=True)
    bound = model.bind(inputs)
    with bound.hooks(bwd_hooks=[(point, save)]):  # as attribution patching does
        bound.run_with_cache(bound.tokens, names_filter=point, return_type="loss")[0].backward()
    assert torch.equal(kept[point], held[f"{point}_grad"])
    resid = model(inputs, stop_at_layer=1).detach().requires_grad_()
    model.run_with_cache(resid, start_at_layer=1, inputs=inputs, return_type="loss")[0].backward()
    assert apart(resid.grad, kept[point]) < ROUNDING, "an input that requires a gradient asks for it"


def test_cached_gradients_are_autograds():
    model, inputs = case("internvideo2.5")
    _, cache = model.run_with_cache(inputs, return_type="loss", incl_bwd=True)
    names = [n for n in cache if not n.endswith("_grad")]
    assert {f"{n}_grad" for n in names} <= set(cache), "every point's gradient, the norms' included"
    for point in names:
        leaves: list[Tensor] = []

        def put_leaf(a, hook, leaves=leaves):
            leaves.append(a.detach().clone().requires_grad_())
            return leaves[0]

        model.run_with_hooks(inputs, fwd_hooks=[(point, put_leaf)], return_type="loss").backward()
        assert apart(cache[f"{point}_grad"], leaves[0].grad) < 1e-9, point  # gradients go through twice the sums


@torch.no_grad()
@pytest.mark.parametrize("name", [*UNLIKE, "text"])
def test_stopping_and_starting_at_a_layer_skip_the_rest_and_change_nothing(name):
    model, inputs = case(name)
    given = [] if name == "text" else [LV_K.at(1)]
    logits, ran = model(inputs, interventions=given), []
    parts = {"embed": model.embed, "0": model.blocks[0], "1": model.blocks[1], "out": model.unembed}
    handles = [m.register_forward_hook(lambda *_, part=part: ran.append(part)) for part, m in parts.items()]
    for k, before, after in ((0, ["embed"], ["0", "1"]), (1, ["embed", "0"], ["1"]), (2, ["embed", "0", "1"], [])):
        ran.clear()
        resid = model(inputs, stop_at_layer=k, interventions=given)
        assert ran == before
        ran.clear()
        left = given if k < 2 else []
        assert torch.equal(model(resid, start_at_layer=k, inputs=inputs, interventions=left), logits)
        assert ran == [*after, "out"]
    resid = model(inputs, stop_at_layer=-1, interventions=given)
    assert torch.equal(model(resid, start_at_layer=-1, inputs=inputs, interventions=given), logits)
    for handle in handles:
        handle.remove()
    with pytest.raises(InterventionError, match="stop_at_layer=3 do not fit a model of 2 blocks"):
        model(inputs, stop_at_layer=3)
    with pytest.raises(InterventionError, match="start_at_layer=1, stop_at_layer=0"):
        model(resid, start_at_layer=1, stop_at_layer=0, inputs=inputs)


@torch.no_grad()
@pytest.mark.parametrize("name", ["longva", "internvideo2.5", "text"])
def test_loss_is_the_mean_over_next_tokens_that_are_text_alone_and_in_a_batch(name):
    model, inputs = case(name)
    logits, loss = model(inputs, return_type="both")
    ids = inputs.tokens[0]
    at = [i for i in range(len(ids) - 1) if ids[i + 1] >= 0]
    each = [F.cross_entropy(logits[0, i], ids[i + 1]) for i in at]
    assert apart(loss, torch.stack(each).mean()) < ROUNDING
    assert torch.equal(model(inputs, return_type="loss"), loss) and model(inputs, return_type=None) is None
    longer = random_inputs(model, n_frames=4, n_text=13, seed=1)
    both = model(VideoInputs.stack([inputs, longer]), return_type="loss", loss_per_token=True)
    alone = model(inputs, return_type="loss", loss_per_token=True)
    assert apart(both[0, 5:], alone[0]) < ROUNDING and not both[0, :5].any(), "padding predicts nothing"


def test_a_cache_has_no_layer_that_the_model_has_not():
    """Tables count from 1: asking for the last block by its number there gave the first one."""
    model = random_model("llava-video")
    _, cache = model.run_with_cache(random_inputs(model), names_filter=["resid_post", "mask", "z"])
    n = model.cfg.n_layers
    for name in ("resid_post", "mask", "z"):
        assert torch.equal(cache[name, -1], cache[name, n - 1]) and torch.equal(cache[name, -n], cache[name, 0])
        for layer in (n, n + 3, -n - 1):
            said = f"layer {layer} is none of this model's: there are blocks 0 to {n - 1}"
            with pytest.raises(HookError, match=said):
                cache[name, layer]
            with pytest.raises(HookError, match=said):
                cache.at(name, layer, "last")
