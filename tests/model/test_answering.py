"""What is read from logits: an answer at the end of the prompt, a loss over the tokens that exist."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hookedvid.errors import InputError
from hookedvid.model.hooked_video_llm import HookedVideoLLM
from hookedvid.sweep.session import Session
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LV_K, EarlyExit
from models import ROUNDING, apart, perturb, random_inputs, random_model


def asked(answer: str = "", question: str = "what is it ?") -> tuple[HookedVideoLLM, VideoInputs]:
    model = random_model("llava-video")
    assert model.cfg.vision is not None
    size = model.cfg.vision.image_size
    frames = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), dtype=np.uint8)
    return model, model.prepare(frames, question, ["red", "blue"], answer=answer, n_frames=4)


@pytest.mark.parametrize("given", [(), LV_K, EarlyExit(1)], ids=["intact", "LV-K", "exit"])
def test_an_answer_is_read_at_the_end_of_the_prompt_whatever_was_given_after_it(given):
    model, prompt = asked()
    _, longer = asked("a red ball")
    wanted = model.answer(prompt, given)
    for found in (model.answer(longer, given), Session(model, longer).answer(given) if given != EarlyExit(1) else None):
        if found is not None:
            assert found.logits == pytest.approx(wanted.logits, rel=1e-9) and found.index == wanted.index
    _, other = asked(question="which of these two is it ?")
    both = model.answers(VideoInputs.stack([longer, other]), given)
    for found, alone in zip(both, (wanted, model.answer(other, given)), strict=True):
        assert found.logits == pytest.approx(alone.logits, rel=1e-9)


def test_one_answer_of_a_batch_is_refused():
    model, prompt = asked()
    with pytest.raises(InputError, match="about one item, and this batch holds 2: use answers"):
        model.answer(VideoInputs.stack([prompt, prompt]))


@torch.no_grad()
def test_rows_of_the_vocabulary_that_no_token_has_take_no_part_in_a_loss():
    cfg = random_model("llava-video").cfg
    model = HookedVideoLLM.from_config(replace(cfg, n_tokens=290)).double()
    perturb(model)
    inputs = random_inputs(model)
    inputs = replace(inputs, tokens=inputs.tokens.clamp(max=289))
    logits, loss = model(inputs, return_type="both")
    at = [i for i in range(logits.shape[1] - 1) if inputs.tokens[0, i + 1] >= 0]
    each = [F.cross_entropy(logits[0, i, :290], inputs.tokens[0, i + 1]) for i in at]
    assert apart(loss, torch.stack(each).mean()) < ROUNDING
    model.unembed.weight[290:] = 100.0
    assert torch.equal(model(inputs, return_type="loss"), loss)
    beyond = replace(inputs, tokens=torch.where(inputs.tokens == inputs.tokens[0, -1], 295, inputs.tokens))
    assert model(beyond, return_type="loss").isposinf()
