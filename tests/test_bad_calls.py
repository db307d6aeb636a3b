"""Calls that cannot be meant: each is refused with what was asked, what exists and what to do."""

from functools import cache

import pytest
import torch
from torch import Tensor

from hookedvid import LV_K, EarlyExit, HookedVideoLLM, LayerRange, VideoInputs, VideoLLMConfig, small_config
from hookedvid.errors import HookError, InputError, InterventionError, SelectorError
from hookedvid.inputs import from_tokens

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


def unchecked(function):
    """Without the type checks that only tests turn on, and that would refuse some of this first."""
    return getattr(function, "__wrapped__", function)


def tensors(*args, cfg=None) -> VideoInputs:
    return unchecked(from_tokens)(cfg or model().cfg, *args)


MAKING_INPUTS = {
    "an id beyond the vocabulary": (lambda: tensors(ids(1, 300, 999), None), "ids [300, 999] are outside this model's vocabulary of 300 rows"),
    "a negative id": (lambda: tensors(ids(1, -5), None), "token ids [-5] are outside this model's vocabulary"),
    "pixels without a placeholder": (lambda: tensors(ids(1, 2), pixels()), "video placeholders in runs of no ids; 2 frames of this model are 19 tokens: mark them by one -200, by 19 ids in a row, or by 2 runs of 9"),
    "a placeholder without pixels": (lambda: tensors(ids(), None), "the tokens mark a video (1 place(s)), but no pixel_values were given"),
    "two placeholders": (lambda: tensors(ids(1, -200, 2, -200), pixels(3)), "video placeholders in runs of [1, 1] ids; 3 frames of this model are 28 tokens"),
    "too few placeholders": (lambda: tensors(ids(1, *[-200] * 18, 2), pixels()), "in runs of [18] ids; 2 frames of this model are 19 tokens"),
    "pixels of another size": (lambda: tensors(ids(), pixels(2, 84)), "pixel_values are (2, 3, 84, 84); this tower reads preprocessed [frame, 3, 70, 70]"),
    "one channel": (lambda: tensors(ids(), pixels(2, 70, 1)), "pixel_values are (2, 1, 70, 70); this tower reads"),
    "a frame without its axis": (lambda: tensors(ids(), pixels()[0]), "pixel_values are (70, 70); this tower reads"),
    "bytes instead of pixels": (lambda: tensors(ids(), pixels().byte()), "pixel_values are torch.uint8; preprocess them to floating point first"),
    "no frame": (lambda: tensors(ids(), pixels(0)), "pixel_values hold no frame; give at least one"),
    "two videos for one row": (lambda: tensors(ids(), pixels()[None].repeat(2, 1, 1, 1, 1)), "1 rows of tokens came with 2 videos; give one for each"),
    "a video for a decoder": (lambda: tensors(ids(), pixels(), cfg=decoder().cfg), "this model takes no video; leave pixel_values out"),
    "frames that fill no clip": (lambda: tensors(ids(), pixels(6, 112), cfg=model("internvideo2.5").cfg), "merges clips of 4 frames, and 6 frames were given; use a multiple of 4"),
    "an empty batch": (lambda: VideoInputs.stack([]), "no inputs to stack; give at least one"),
    "other tokens with the video elsewhere": (lambda: inputs().with_tokens(inputs().tokens.flip(1)[:, 1:]), "they must have its shape, and -200 at its video positions"),
    "a batch's one layout": (lambda: VideoInputs.stack([inputs(), inputs()]).layout, "this batch holds 2 items, each with its own layout: use .layouts[i]"),
    "a question for a tower": (lambda: tower().prepare(None, "What?"), "this model is a vision tower alone; give it pixels: model(pixel_values)"),
    "ids for a tower": (lambda: tower()(ids()), "a bare tower reads preprocessed pixels [frame, 3, height, width]"),
}  # fmt: skip

RUNNING = {
    "a path instead of inputs": (lambda: unchecked(HookedVideoLLM.inputs_of)(model(), "clip.mp4"), "cannot run on str: give prepare()'s inputs, inputs_from_tensors(ids, pixels), or a tensor of token ids"),
    "a stream without start_at_layer": (lambda: model()(torch.zeros(1, 4, 64)), "cannot run on Tensor: give prepare()'s inputs"),
    "ids with start_at_layer": (lambda: model()(ids(1, 2)[None], start_at_layer=1), "start_at_layer takes the residual stream [batch, pos, d_model] as input"),
    "inputs with start_at_layer": (lambda: model()(inputs(), start_at_layer=1), "start_at_layer takes the residual stream"),
    "an unknown return_type": (lambda: unchecked(HookedVideoLLM.forward)(model(), inputs(), return_type="probs"), "return_type is 'probs'; it can be 'logits', 'loss', 'both' or None"),
    "a loss after an exit": (lambda: model()(inputs(), return_type="loss", interventions=EarlyExit(1)), "a loss needs every position's logits: leave out logits_to_keep, kv_cache and EarlyExit"),
    "a loss of the last logits": (lambda: model()(inputs(), return_type="both", logits_to_keep=1), "a loss needs every position's logits"),
    "an answer without options": (lambda: model().answer(inputs()), "this input has no options to choose from: give prepare(..., options=[...]), or use generate()"),
    "no new token": (lambda: model().generate(inputs(), max_new_tokens=0), "max_new_tokens is 0; ask for at least one"),
    "text without a tokenizer": (lambda: decoder().generate(ids(1, 2), return_type="text"), "this model has no tokenizer to make text with; pass one at loading, or return_type='tokens'"),
    "stop strings without a tokenizer": (lambda: decoder().generate(ids(1, 2), stop_strings=["."]), "this model has no tokenizer to make text with"),
    "words without a tokenizer": (lambda: decoder().to_tokens("a"), "this model has no tokenizer; pass tokenizer=... where it is made"),
    "a word of several tokens": (lambda: model().to_single_token("cat"), "'cat' is 3 tokens, not one: ['c', 'a', 't']"),
}  # fmt: skip

INTERVENING = {
    "a layer past the end": (lambda: model()(inputs(), stop_at_layer=4), f"stop_at_layer=4 {NO_LAYERS}"),
    "a layer before the first": (lambda: model()(inputs(), stop_at_layer=-4), f"stop_at_layer=-4 {NO_LAYERS}"),
    "a stop before the start": (lambda: model()(torch.zeros(1, 4, 64), start_at_layer=2, stop_at_layer=1), f"start_at_layer=2, stop_at_layer=1 {NO_LAYERS}"),
    "an exit that drops text": (lambda: model()(inputs(), interventions=EarlyExit(1, "question")), "EarlyExit cannot drop 'question': it holds text, from which the answer is read; drop video positions"),
    "an exit past the end": (lambda: model()(inputs(), interventions=EarlyExit(4)), "exit after layer 4: this model has 3 blocks"),
    "two exits": (lambda: model()(inputs(), interventions=[EarlyExit(1), EarlyExit(2)]), "one run can exit once; give a single EarlyExit"),
    "a knockout past the end": (lambda: model()(inputs(), interventions=LV_K.at(LayerRange(1, 5))), "layers 1:5 reach beyond this model's 3 blocks, numbered 0 to 2"),
    "something else than interventions": (lambda: model()(inputs(), interventions=["LV-K"]), "'LV-K' is no intervention; give Knockout"),
}  # fmt: skip

HOOKING = {
    "a mistyped hook": (lambda: model().run_with_hooks(inputs(), fwd_hooks=[("blocks.1.attn.hook_patern", print)]), "no hook point 'blocks.1.attn.hook_patern'; nearest: 'blocks.1.attn.hook_pattern'"),
    "a mistyped name to cache": (lambda: model().run_with_cache(inputs(), names_filter="resid_pst"), "no hook point 'resid_pst'; nearest: 'resid_post'"),
    "a hook in a layer that is skipped": (lambda: model().run_with_hooks(inputs(), fwd_hooks=[("blocks.2.hook_resid_pre", print)], stop_at_layer=1), "'blocks.2.hook_resid_pre' cannot fire in this run: its layer is outside start_at_layer/stop_at_layer"),
    "a hook in a tower without video": (lambda: model().run_with_cache(ids(1, 2), names_filter="vision.hook_out"), "there is no video to encode; drop the hook or run that part"),
    "an activation that was not kept": (lambda: model().run_with_cache(inputs(), names_filter="resid_post")[1]["resid_pre", 1], "('resid_pre', 1) is not in this cache"),
}  # fmt: skip


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
    ],
)
def test_unknown_keywords_are_refused(call):
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        call()


def test_nothing_is_left_behind_by_a_refused_run():
    for call, _ in {**RUNNING, **INTERVENING, **HOOKING}.values():
        with pytest.raises(ValueError):
            call()
    points = [p for m in (model(), decoder()) for p in m.hook_dict.values()]
    assert not any(p.fwd_hooks or p.bwd_hooks or p._forward_hooks for p in points)
