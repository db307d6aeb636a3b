"""Calls that cannot be meant: each is refused with what was asked, what exists and what to do."""

import inspect
import re
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from hookedvid import (
    LV_K,
    Ablate,
    EarlyExit,
    Edit,
    HookedVideoLLM,
    LayerRange,
    Patch,
    Replace,
    SameTime,
    VideoInputs,
    VideoLLMConfig,
    small_config,
)
from hookedvid.errors import HookError, InputError, InterventionError, SelectorError
from hookedvid.model.generation import generate
from hookedvid.sweep.run import sweep
from hookedvid.values.inputs import from_tokens
from hookedvid.values.interventions import as_interventions

NO_LAYERS = "do not fit a model of 3 blocks, numbered from 0"
NOT_FINITE = "the logits are not finite: the weights or this dtype overflow, so "


@cache
def model(family: str = "llava-onevision") -> HookedVideoLLM:
    return HookedVideoLLM.from_config(small_config(family))


@cache
def decoder() -> HookedVideoLLM:
    """Text alone, and no tokenizer."""
    return HookedVideoLLM.from_config(VideoLLMConfig(family="text", decoder=small_config("longva", d_vocab=50).lm))


@cache
def tower() -> HookedVideoLLM:
    return HookedVideoLLM.from_config(VideoLLMConfig(family="tower", vision=small_config("longva").vision))


def pixels(frames: int = 2, size: int = 70, channels: int = 3) -> Tensor:
    return torch.zeros(frames, channels, size, size)


def ids(*values: int) -> Tensor:
    return torch.tensor(values or (1, -200, 2))


def inputs(frames: int = 2) -> VideoInputs:
    return model().inputs_from_tensors(ids(), pixels(frames))


def later(given: Any) -> Tensor:
    return model()(model().embed_inputs(inputs()), start_at_layer=-1, inputs=inputs(), interventions=given)


def numbers_as_mask() -> dict[str, Tensor]:
    _, cache = model().run_with_cache(inputs(), names_filter="mask")
    return {name: mask.float() for name, mask in cache.items()}


def unchecked(function):
    """Without the type checks that only tests turn on, and that would refuse some of this first."""
    return inspect.unwrap(function)


def tensors(*args, cfg=None) -> VideoInputs:
    return unchecked(from_tokens)(cfg or model().cfg, *args)


MAKING_INPUTS = {
    "id beyond the vocabulary": (lambda: tensors(ids(1, 300, 999), None), "ids [300, 999] are outside this model's "),
    "negative id": (lambda: tensors(ids(1, -5), None), "token ids [-5] are outside this model's vocabulary of 300"),
    "ids with three axes": (lambda: tensors(ids()[None, None], None), "tokens are torch.int64 (1, 1, 3); give integer"),
    "ids that are no integers": (lambda: tensors(ids() + 0.5, None), "torch.float32 (3,); give integer ids [pos] or"),
    "a list of what are no ids": (lambda: tensors([1, "a"], None), "tokens are [1, 'a']; give whole numbers, [pos] or"),
    "a list of two depths": (lambda: tensors([1, [2]], None), "tokens are [1, [2]]; give whole numbers"),
    "no placeholder": (
        lambda: tensors(ids(1, 2), pixels()),
        "video placeholders in runs of no ids; 2 frames of this model are 19 tokens: mark them by one -200, by 19 ids",
    ),
    "no pixels": (lambda: tensors(ids(), None), "mark a video (1 place(s)), but no pixel_values were given"),
    "two placeholders": (lambda: tensors(ids(1, -200, 2, -200), pixels(3)), "in runs of [1, 1] ids; 3 frames of this"),
    "too few placeholders": (lambda: tensors(ids(1, *[-200] * 18, 2), pixels()), "in runs of [18] ids; 2 frames of"),
    "another size": (
        lambda: tensors(ids(), pixels(2, 84)),
        "pixel_values are (2, 3, 84, 84); this tower reads preprocessed [frame, 3, 70, 70]",
    ),
    "one channel": (lambda: tensors(ids(), pixels(2, 70, 1)), "pixel_values are (2, 1, 70, 70); this tower reads"),
    "no frame axis": (lambda: tensors(ids(), pixels()[0]), "pixel_values are (3, 70, 70); this tower reads"),
    "bytes": (lambda: tensors(ids(), pixels().byte()), "pixel_values are torch.uint8; preprocess them to floating"),
    "no frame": (lambda: tensors(ids(), pixels(0)), "pixel_values hold no frame; give at least one"),
    "two videos": (lambda: tensors(ids(), torch.stack([pixels()] * 2)), "1 rows of tokens came with 2 videos; give"),
    "no tower": (lambda: tensors(ids(), pixels(), cfg=decoder().cfg), "takes no video; leave pixel_values out"),
    "half a clip": (
        lambda: tensors(ids(), pixels(6, 112), cfg=model("internvideo2.5").cfg),
        "merges clips of 4 frames, and 6 frames were given; use a multiple of 4",
    ),
    "empty batch": (lambda: VideoInputs.stack([]), "no inputs to stack; give at least one"),
    "video elsewhere": (
        lambda: inputs().with_tokens(inputs().tokens.roll(1)),
        "-200 at its video positions; start",
    ),
    "a batch's layout": (lambda: VideoInputs.stack([inputs()] * 2).layout, "holds 2 items, each with its own layout"),
    "a question for a tower": (lambda: tower().prepare(None, "What?"), "a vision tower alone; give it pixels: model("),
    "ids for a tower": (lambda: tower()(ids()), "a bare tower reads preprocessed pixels [frame, 3, height, width]"),
}

RUNNING = {
    "a gradient of logits": (
        lambda: model().run_with_cache(inputs(), names_filter="resid_post", incl_bwd=True),
        "incl_bwd runs backward from one number, and the output is (1, ",
    ),
    "a path": (
        lambda: unchecked(HookedVideoLLM.inputs_of)(model(), "clip.mp4"),
        "cannot run on str: give prepare()'s inputs, inputs_from_tensors(ids, pixels), or a tensor of token ids",
    ),
    "a stream alone": (lambda: model()(torch.zeros(1, 4, 64)), "cannot run on Tensor: give prepare()'s inputs"),
    "ids for a stream": (
        lambda: model()(ids(1, 2)[None], start_at_layer=1),
        "start_at_layer takes the residual stream",
    ),
    "a stream of other inputs": (
        lambda: model()(torch.zeros(1, 4, 64), start_at_layer=1, inputs=inputs()),
        "the stream given is [1, 4, 64], and these inputs' is [1, ",
    ),
    "inputs for a stream": (lambda: model()(inputs(), start_at_layer=1), "stream [batch, pos, d_model] as input"),
    "unknown return_type": (
        lambda: unchecked(HookedVideoLLM.forward)(model(), inputs(), return_type="probs"),
        "return_type is 'probs'; it can be 'logits', 'loss', 'both' or None",
    ),
    "a loss after an exit": (
        lambda: model()(inputs(), return_type="loss", interventions=EarlyExit(1)),
        "a loss needs every position's logits: leave out logits_to_keep, kv_cache and EarlyExit",
    ),
    "a loss of one position": (lambda: model()(inputs(), return_type="both", logits_to_keep=1), "every position's"),
    "no options": (lambda: model().answer(inputs()), "no options to choose from: give prepare(..., options=[...])"),
    "no new token": (lambda: model().generate(inputs(), max_new_tokens=0), "is 0; ask for at least one"),
    "half a token": (
        lambda: unchecked(generate)(model(), inputs(), max_new_tokens=2.5),
        "max_new_tokens is 2.5; ask for at least one, by a whole number",
    ),
    "no position kept": (lambda: model()(inputs(), logits_to_keep=0), "logits_to_keep is 0; ask for at least one"),
    "the first position": (lambda: model()(inputs(), logits_to_keep=-1), "logits_to_keep is -1; ask for at least one"),
    "half a position": (
        lambda: unchecked(HookedVideoLLM.forward)(model(), inputs(), logits_to_keep=2.5),
        "logits_to_keep is 2.5; ask for at least one, by a whole number",
    ),
    "a sweep of nothing": (lambda: sweep(model(), [], [()]), "no inputs to sweep; give at least one question"),
    "no tokenizer for text": (
        lambda: decoder().generate(ids(1, 2), return_type="text"),
        "this model has no tokenizer to make text with; pass one at loading, or return_type='tokens'",
    ),
    "no tokenizer for stops": (lambda: decoder().generate(ids(1, 2), stop_strings=["."]), "no tokenizer to make text"),
    "no tokenizer for words": (lambda: decoder().to_tokens("a"), "no tokenizer; pass tokenizer=... where it is made"),
    "several tokens": (lambda: model().to_single_token("cat"), "'cat' is 3 tokens, not one: ['c', 'a', 't']"),
}

INTERVENING = {
    "a layer past the end": (lambda: model()(inputs(), stop_at_layer=4), f"stop_at_layer=4 {NO_LAYERS}"),
    "a layer before the first": (lambda: model()(inputs(), stop_at_layer=-4), f"stop_at_layer=-4 {NO_LAYERS}"),
    "a stop before the start": (
        lambda: model()(torch.zeros(1, 4, 64), start_at_layer=2, stop_at_layer=1),
        f"start_at_layer=2, stop_at_layer=1 {NO_LAYERS}",
    ),
    "a knockout before the start": (
        lambda: later(LV_K),
        "LV-K all layers: it acts in block 0 (0-based), and the run begins at block 2; run the inputs, or give what",
    ),
    "a write before the start": (
        lambda: later([LV_K.at(2), Ablate("z", 1)]),
        "ablate z 2 at all: it acts in block 1 (0-based), and the run begins at block 2; run the inputs",
    ),
    "values before the start": (lambda: later(Replace("video", "text", "1:")), "mean: it acts in block 1 (0-based), "),
    "an exit before the start": (lambda: later(EarlyExit(1)), "exit after layer 1: it acts in block 1 (0-based), and"),
    "times before the start": (lambda: later(SameTime()), "all frames at one time: it acts in block 0 (0-based), and"),
    "an exit of text": (
        lambda: model()(inputs(), interventions=EarlyExit(1, "question")),
        "exit after layer 1 of question: cannot drop 'question': it holds text, from which the answer is read; drop",
    ),
    "a late exit": (lambda: model()(inputs(), interventions=EarlyExit(4)), "layer 4: this model has 3 blocks"),
    "a late knockout": (
        lambda: model()(inputs(), interventions=LV_K.at(LayerRange(1, 5))),
        "layers 1:5 reach beyond this model's 3 blocks, numbered 0 to 2",
    ),
    "a range without a layer": (
        lambda: model()(inputs(), interventions=LV_K.at("3:")),
        "LV-K 4–: layers 3: hold none of this model's 3 blocks, numbered 0 to 2",
    ),
    "no layer": (lambda: model()(inputs(), interventions=LV_K.at("~:")), "LV-K no layer: layers ~0: hold none of this"),
    "no intervention": (lambda: unchecked(as_interventions)([None]), "None is no intervention; give Knockout"),
    "a number": (lambda: unchecked(as_interventions)(0), "0 is no intervention; give Knockout, RandomEdges, Patch"),
    "a source named that is none": (
        lambda: model()(inputs(), interventions=Patch("z", 1), sources={"source": None}),
        "patch z layer 2 at all: its source is None; give the cache of another run",
    ),
    "an edit of a mask into numbers": (
        lambda: model()(inputs(), interventions=Edit("mask", 1, lambda m: m * 1.0, "last")),
        "edit mask layer 2 at last: torch.float32 for a mask; give booleans, True where a query may look",
    ),
    "a patch of a mask by numbers": (
        lambda: model()(inputs(), interventions=Patch("mask", 1, "last", numbers_as_mask())),
        "patch mask layer 2 at last: torch.float32 for a mask; give booleans, True where a query may look",
    ),
}

HOOKING = {
    "a mistyped hook": (
        lambda: model().run_with_hooks(inputs(), fwd_hooks=[("blocks.1.attn.hook_patern", print)]),
        "no hook point 'blocks.1.attn.hook_patern'; nearest: 'blocks.1.attn.hook_pattern'",
    ),
    "a mistyped name": (
        lambda: model().run_with_cache(inputs(), names_filter="resid_pst"),
        "no hook point 'resid_pst'; nearest: 'resid_post'",
    ),
    "a layer that is not there": (
        lambda: model().run_with_cache(inputs(), names_filter=("resid_post", 3)),
        "hook point 'resid_post' of layer 3 is none: there are blocks 0 to 2",
    ),
    "a layer of several": (
        lambda: model().run_with_cache(inputs(), names_filter=("scale", 1)),
        "hook point 'scale' of layer 1 is several: ['blocks.1.ln1.hook_scale', 'blocks.1.ln2.hook_scale']",
    ),
    "a number as a name": (
        lambda: unchecked(HookedVideoLLM.names)(model(), ["resid_post", 1]),
        "1 is no name of a hook point; give names, or one with its layer: ('resid_post', 3)",
    ),
    "a skipped layer": (
        lambda: model().run_with_hooks(inputs(), fwd_hooks=[("blocks.2.hook_resid_pre", print)], stop_at_layer=1),
        "'blocks.2.hook_resid_pre' cannot fire in this run: its layer is outside start_at_layer/stop_at_layer",
    ),
    "a tower without video": (
        lambda: model().run_with_cache(ids(1, 2), names_filter="vision.hook_out"),
        "there is no video to encode; drop the hook or run that part",
    ),
    "a mask of numbers": (
        lambda: model().run_with_hooks(inputs(), fwd_hooks=[("blocks.1.attn.hook_mask", lambda m, hook: m.float())]),
        "of torch.bool on cpu, True where a query may look",
    ),
    "an activation not kept": (
        lambda: model().run_with_cache(inputs(), names_filter="resid_post")[1]["resid_pre", 1],
        "held); run_with_cache keeps what its names_filter names",
    ),
}


@pytest.mark.parametrize(("call", "said"), MAKING_INPUTS.values(), ids=MAKING_INPUTS)
def test_inputs_that_do_not_fit_are_refused(call, said):
    refused(InputError, call, said)


@pytest.mark.parametrize(("call", "said"), RUNNING.values(), ids=RUNNING)
def test_runs_that_cannot_be_meant_are_refused(call, said):
    refused(InputError, call, said)


@pytest.mark.parametrize(("call", "said"), INTERVENING.values(), ids=INTERVENING)
def test_layers_and_interventions_that_do_not_fit_are_refused(call, said):
    refused(InterventionError, call, said)


@pytest.mark.parametrize(("call", "said"), HOOKING.values(), ids=HOOKING)
def test_hooks_that_cannot_fire_are_refused(call, said):
    refused(HookError, call, said)


NO_PAIRS = {
    "no name": ([(None, print)], f"fwd_hooks: (None, {print!r}) is no name with its function; give pairs"),
    "a pair alone": (("hook_embed", print), "fwd_hooks: 'hook_embed' is no name with its function"),
    "a mapping": ({"hook_embed": print}, "fwd_hooks: 'hook_embed' is no name with its function"),
    "nothing": (None, "fwd_hooks: None is no name with its function"),
    "no function": ([("hook_embed", None)], "fwd_hooks: ('hook_embed', None) is no name with its function"),
    "a pattern": ([(re.compile("z"), print)], "re.compile('z') is no name of a hook point"),
}


@pytest.mark.parametrize(("hooks", "said"), NO_PAIRS.values(), ids=NO_PAIRS)
def test_hooks_that_are_no_names_with_functions_are_refused(hooks, said):
    refused(HookError, lambda: model().run_with_hooks(inputs(), fwd_hooks=hooks), said)
    with pytest.raises(HookError), model().hooks(hooks):
        pass
    for name, hook in hooks if isinstance(hooks, list) else ():
        refused(HookError, lambda name=name, hook=hook: model().add_hook(name, hook), said.removeprefix("fwd_hooks: "))
    if hooks:
        refused(HookError, lambda: model().run_with_cache(inputs(), names_filter=re.compile("z")), "no name of a hook")
    assert not model().list_hooks()


def refused(error: type[Exception], call, said: str) -> None:
    with pytest.raises(error) as e:
        call()
    assert said in str(e.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_give_no_answer(value):
    broken = HookedVideoLLM.from_config(small_config("llava-onevision"))
    with torch.no_grad():
        broken.unembed.weight[7] = value
    question = broken.prepare(None, "What moves?", ["a car", "a dog"])
    refused(InputError, lambda: broken.answer(question), f"{NOT_FINITE}there is no answer to score")
    refused(InputError, lambda: broken.generate(question), f"{NOT_FINITE}nothing can be generated")


def test_a_selector_that_selects_nothing_says_what_is_there():
    given = LV_K.__class__("video", "options")
    refused(
        SelectorError,
        lambda: model()(inputs(), interventions=given),
        "this sequence has system, video, newline, question; 2 frames, 0 options",
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: model()(inputs(), intervention=LV_K),
        lambda: model().run_with_cache(inputs(), name_filter="resid_post"),
        lambda: model().run_with_hooks(inputs(), fwd_hook=[]),
        lambda: model().generate(inputs(), max_tokens=3),
        lambda: model().answer(inputs(), intervention=LV_K),
        lambda: model().prepare(None, "What?", frames=3),
        lambda: HookedVideoLLM.from_config(model().cfg, device="cpu"),
        lambda: HookedVideoLLM.from_pretrained("no-such-model", devise="cpu"),
    ],
)
def test_unknown_keywords_are_refused(call):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        call()


def test_doors_and_verbs_name_their_arguments():
    verbs = (HookedVideoLLM.from_pretrained, HookedVideoLLM.from_transformers, HookedVideoLLM.from_config)
    for verb in (*verbs, HookedVideoLLM.from_open_clip, HookedVideoLLM.generate, HookedVideoLLM.prepare):
        kinds = {p.kind for p in inspect.signature(verb).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}, verb


def test_nothing_is_left_behind_by_a_refused_run():
    for call, _ in {**RUNNING, **INTERVENING, **HOOKING}.values():
        with pytest.raises(ValueError):
            call()
    points = [p for m in (model(), decoder()) for p in m.hook_dict.values()]
    assert not any(p.fwd_hooks or p.bwd_hooks or p._forward_hooks for p in points)


def test_lists_of_ids_are_as_good_as_tensors():
    m = model()
    one = m.inputs_from_tensors([1, -200, 2], pixels())
    assert torch.equal(one.tokens, inputs().tokens) and one.layouts == inputs().layouts
    # Items of unlike lengths, as only lists can hold, padded on the left; the second has no video.
    both = m.inputs_from_tensors([[1, -200, 2], [5, 6, 7]], [pixels(), None])
    assert torch.equal(both.tokens[0], one.tokens[0]) and both.tokens[1, -3:].tolist() == [5, 6, 7]
    with torch.no_grad():
        assert torch.allclose(m(both)[0, -1], m(one)[0, -1], atol=1e-5)  # another batch, other sums
    with pytest.raises(InputError, match="2 rows of tokens came with 1 videos"):
        m.inputs_from_tensors([[1, -200, 2], [1, -200, 2]], pixels())


def test_ids_that_fill_up_a_batch_are_left_out():
    m = model()
    videos, mask = [pixels(), pixels()], [[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]]
    for how in (list, torch.tensor):
        filled = m.inputs_from_tensors(how([[9, 9, 1, -200, 2], [3, 1, -200, 2, 9]]), videos, attention_mask=how(mask))
        plain = m.inputs_from_tensors([[1, -200, 2], [3, 1, -200, 2]], videos)
        assert torch.equal(filled.tokens, plain.tokens) and filled.layouts == plain.layouts
    for wrong, said in (
        ([[1, 1]], r"attention_mask is torch.int64 \(1, 2\); give 0 or 1 for each of the ids"),
        ([1, 2, 1], "give 0 or 1 for each of the ids"),
        ([1, 0, 1], "hides ids between others, or all"),
        ([0, 0, 0], "hides ids between others, or all"),
    ):
        with pytest.raises(InputError, match=said):
            m.inputs_from_tensors([1, -200, 2], pixels(), attention_mask=wrong)
