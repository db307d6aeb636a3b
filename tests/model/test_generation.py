"""Generation: every step is a full forward, interventions and hooks included, alone and in a batch."""

import pytest
import torch
from torch import Tensor

from hookedvid.errors import InputError
from hookedvid.nn.kv import KVCache
from hookedvid.values.inputs import VideoInputs
from hookedvid.values.interventions import LV_K, VS_K, VT_K, EarlyExit, Knockout, LayerRange
from models import MODELS, ROUNDING, UNLIKE, VIDEO_MODELS, apart, random_inputs, random_model, rich_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore::hookedvid.values.layout.FrameBlendWarning"),
    pytest.mark.shapes_unchecked,
]

GIVEN = {
    "intact": [],
    "LV-K": [LV_K],
    "LV-K late": [LV_K.at(LayerRange(1))],
    "VT-K window": [VT_K.at(LayerRange(0, 2))],
    "video to last": [Knockout("video", "last", LayerRange(1, 2)), VS_K.at(0)],
    "emptied row": [Knockout("all", "last", LayerRange(1, 2), keep_self=False)],
    "exit": [EarlyExit(1)],
    "exit, window": [EarlyExit(2), VT_K.at(LayerRange(0, 2))],
}


def case(name: str, n_text: int = 9, seed: int = 0) -> tuple:
    model = random_model(name)
    return model, rich_inputs(model, seed=seed, n_text=n_text) if name != "text" else random_inputs(model)


def steps(model, inputs: VideoInputs, given=(), n: int = 5, **kwargs) -> tuple[Tensor, Tensor]:
    """Ids [batch, new] and the logits [batch, new, d_vocab] they were chosen from."""
    seen: list[Tensor] = []
    with model.hooks([("ln_final.hook_normalized", lambda a, hook: seen.append(a[:, -1]))]):
        ids = model.generate(inputs, given, max_new_tokens=n, return_type="tokens", stop_at_eos=False, **kwargs)
    return ids, model.unembed(model.ln_final.weight * torch.stack(seen, 1))


@torch.no_grad()
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", UNLIKE)
def test_every_step_is_a_full_forward(name, given):
    model, inputs = case(name)
    ids, logits = steps(model, inputs, GIVEN[given])
    assert ids.shape == (1, 5)
    for t in range(5):
        full = model(inputs.extend(ids[:, :t]) if t else inputs, interventions=GIVEN[given])[:, -1]
        assert apart(logits[:, t], full) < ROUNDING, t
        assert torch.equal(full.argmax(-1), ids[:, t])


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_the_cache_changes_nothing(name):
    model, inputs = case(name)
    ids, logits = steps(model, inputs)
    again, full = steps(model, inputs, use_past_kv_cache=False)
    assert torch.equal(ids, again) and apart(logits, full) < ROUNDING


@torch.no_grad()
@pytest.mark.parametrize("name", UNLIKE)
def test_generated_tokens_stay_cut_off_from_the_video(name):
    model, inputs = case(name)
    video = inputs.layout.mask("video")
    n = inputs.layout.n_tokens
    seen: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    listen = [(f"blocks.{i}.attn.hook_pattern", lambda a, hook: seen[hook.layer()].append(a)) for i in seen]
    with model.hooks(listen):
        model.generate(inputs, LV_K.at(LayerRange(1, 2)), max_new_tokens=4, return_type="tokens", stop_at_eos=False)
    for layer, patterns in seen.items():
        assert [tuple(p.shape[2:]) for p in patterns] == [(n, n), (1, n + 1), (1, n + 2), (1, n + 3)]
        on_video = [float(p[:, :, -1, :n][..., video].sum(-1).max()) for p in patterns]
        assert all(m == 0 for m in on_video) if layer == 1 else all(m > 0.01 for m in on_video), (layer, on_video)


@torch.no_grad()
@pytest.mark.parametrize("window", [[], [VT_K.at(LayerRange(0, 2))]], ids=["exit", "exit, window"])
@pytest.mark.parametrize("name", UNLIKE)
def test_generation_after_an_exit_is_generation_under_its_knockout(name, window):
    model, inputs = case(name)
    leave = EarlyExit(2)
    left, logits = steps(model, inputs, [leave, *window])
    cut, masked = steps(model, inputs, [leave.as_knockout(), *window])
    assert torch.equal(left, cut) and apart(logits, masked) < ROUNDING


@torch.no_grad()
@pytest.mark.parametrize("name", VIDEO_MODELS)
def test_after_an_exit_no_layer_holds_keys_of_the_video(name):
    model, inputs = case(name)
    ids, _ = steps(model, inputs, [EarlyExit(2)], n=3)
    cache = KVCache(model.cfg.n_layers)
    for t in range(3):
        model(inputs.extend(ids[:, :t]) if t else inputs, interventions=[EarlyExit(2)], kv_cache=cache)
    everything = torch.arange(inputs.layout.n_tokens + 2)
    video = inputs.layout.extend(2).mask("video")
    for i, layer in enumerate(cache.layers):
        rows = everything if i < 2 else everything[~video]
        assert layer.pos[0].tolist() == rows.tolist()
        assert layer.k.shape[1] == layer.v.shape[1] == len(rows)


@torch.no_grad()
def test_masks_of_a_step_are_the_last_row_of_the_full_ones():
    model, inputs = case("llava-video")
    given = [LV_K.at(0), VT_K]
    masks: list[Tensor] = []
    with model.hooks([("blocks.0.attn.hook_mask", lambda a, hook: masks.append(a))]):
        ids = model.generate(inputs, given, max_new_tokens=3, return_type="tokens", stop_at_eos=False)
    _, cache = model.run_with_cache(inputs.extend(ids[:, :2]), names_filter="mask", interventions=given)
    assert torch.equal(masks[2], cache["mask", 0][:, :, -1:])


@torch.no_grad()
@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", UNLIKE)
def test_items_of_unequal_length_generate_as_alone(name, given):
    model = random_model(name)
    items = [rich_inputs(model, 4, seed=1, n_text=8), rich_inputs(model, 8, seed=2, n_text=12)]
    ids, logits = steps(model, VideoInputs.stack(items), GIVEN[given], n=4)
    for i, item in enumerate(items):
        alone_ids, alone = steps(model, item, GIVEN[given], n=4)
        assert torch.equal(ids[i : i + 1], alone_ids)
        assert apart(logits[i : i + 1], alone) < ROUNDING


@torch.no_grad()
def test_an_edit_by_a_hook_acts_at_every_step():
    model, inputs = case("llava-video")

    def toward(a, hook):
        # The residual stream becomes one direction, the token that it unembeds to most is chosen each time.
        return direction.expand_as(a)

    direction = torch.randn(64, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    wanted = int(model.unembed(model.ln_final(direction)).argmax())
    with model.hooks([("blocks.2.hook_resid_post", toward)]):
        ids = model.generate(inputs, max_new_tokens=4, return_type="tokens", stop_at_eos=False)
    assert ids.tolist() == [[wanted] * 4]
    assert not model.list_hooks()


def test_sampling_is_reproducible_and_follows_the_generator():
    model, inputs = case("llava-video")

    def sample(seed: int, **kwargs) -> list[int]:
        g = torch.Generator().manual_seed(seed)
        ids = model.generate(
            inputs, max_new_tokens=12, do_sample=True, generator=g, return_type="tokens", stop_at_eos=False, **kwargs
        )
        return ids[0].tolist()

    greedy = model.generate(inputs, max_new_tokens=12, return_type="tokens", stop_at_eos=False)[0].tolist()
    assert sample(0) == sample(0)
    assert sample(0) != sample(1) and sample(0) != greedy
    assert sample(0, top_k=1) == greedy
    assert sample(0, top_p=1e-6) == greedy
    for little in (1e-4, 1e-30, 1e-300, 0, 0.0):
        assert sample(0, temperature=little) == greedy, little
    whole = sample(0, temperature=2, top_k=5, top_p=1)
    assert whole == sample(0, temperature=2.0, top_k=5.0, top_p=1.0) != greedy
    assert sample(0, top_k=0) == sample(0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"temperature": -1.0}, "temperature is -1.0; give 0 for the likeliest token"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top_k is -1; give a whole number of tokens, or 0 for all"),
        ({"top_k": 2.5}, "top_k is 2.5"),
        ({"top_p": 1.5}, "top_p is 1.5; give a share of the probability, from 0 to 1"),
        ({"top_p": -0.1}, "top_p is -0.1"),
        ({"stop_strings": [".", ""]}, "a stop string is empty"),
    ],
)
def test_sampling_that_is_none_is_refused_by_us(given, said):
    model = random_model("llava-onevision")
    with pytest.raises(InputError, match=said):
        model.generate(random_inputs(model), do_sample=True, **given)


@pytest.mark.parametrize("given", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.9}])
def test_what_acts_on_sampling_alone_is_refused_where_nothing_is_drawn(given):
    model = random_model("llava-onevision")
    with pytest.raises(InputError, match="act on sampling alone, and this is greedy: pass do_sample=True"):
        model.generate(random_inputs(model), **given)
    model.generate(random_inputs(model), max_new_tokens=1, temperature=0, top_k=0, top_p=1)


def test_one_stop_string_is_one_text():
    model = random_model("llava-onevision")
    inputs = random_inputs(model)
    text = model.generate(inputs, max_new_tokens=4, return_type="text")
    assert model.generate(inputs, max_new_tokens=4, return_type="text", stop_strings="never said") == text


def test_a_text_in_a_batch_ends_at_its_own_stop_string():
    model = random_model("llava-video")
    items = [rich_inputs(model, seed=s) for s in (1, 2)]
    texts = model.generate(VideoInputs.stack(items), max_new_tokens=8, return_type="text", stop_at_eos=False)
    stop = next(texts[0][i : i + 2] for i in range(3) if texts[0][i : i + 2] not in texts[1])
    alone = [
        model.generate(i, max_new_tokens=8, return_type="text", stop_strings=stop, stop_at_eos=False) for i in items
    ]
    assert len(alone[0]) < len(texts[0]) and alone[1] == texts[1], "one ends, the other goes on"
    for cached in (True, False):
        both = model.generate(
            VideoInputs.stack(items), max_new_tokens=8, return_type="text", stop_strings=stop, stop_at_eos=False,
            use_past_kv_cache=cached,
        )  # fmt: skip
        assert both == alone


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"stop_strings": [1]}, "stop strings are texts"),
        ({"return_type": "token"}, "it can be 'text', 'tokens' or None"),
    ],
)
def test_ways_to_stop_and_to_answer_that_are_none_are_refused(given, said):
    model = random_model("llava-video")
    with pytest.raises(InputError, match=said):
        model.generate(random_inputs(model), **given)
    model.generate(random_inputs(model), max_new_tokens=1, stop_strings=None)


def test_a_stop_token_ends_the_item_and_the_batch_waits_for_all():
    model = random_model("llava-video")
    items = [rich_inputs(model, seed=s) for s in (1, 2)]
    whole = model.generate(VideoInputs.stack(items), max_new_tokens=6, return_type="tokens", stop_at_eos=False)
    stop = int(whole[0, 2])
    assert stop not in whole[0, :2] and stop not in whole[1]
    alone = model.generate(items[0], max_new_tokens=6, return_type="tokens", eos_token_id=stop)
    assert alone.tolist() == [whole[0, :3].tolist()]
    both = model.generate(VideoInputs.stack(items), max_new_tokens=6, return_type="tokens", eos_token_id=stop)
    assert both.tolist() == [[*whole[0, :3].tolist(), stop, stop, stop], whole[1].tolist()]
    stops = whole[:, 2].tolist()
    ends = model.generate(VideoInputs.stack(items), max_new_tokens=6, return_type="tokens", eos_token_id=stops)
    assert ends.tolist() == whole[:, :3].tolist(), "any of several stop tokens; all done, all stop"


@torch.no_grad()
def test_text_is_what_the_tokenizer_makes_of_the_ids():
    model, inputs = case("llava-video")
    ids = [72, 105, 33]  # some bytes

    def spell(a, hook):
        step = a.shape[1] == 1
        said.append(step)
        return model.W_U.T[ids[(len(said) - 1) % 3]].expand_as(a) * 10

    said: list[bool] = []
    text = model.tokenizer.decode(ids)
    with model.hooks([("ln_final.hook_normalized", spell)]):
        probe = model.unembed(model.ln_final.weight * model.W_U.T[ids] * 10).argmax(-1).tolist()
        assert probe == ids, "the directions say these tokens"
        assert model.generate(inputs, max_new_tokens=3) == text.strip()
        assert model.generate(VideoInputs.stack([inputs, inputs]), max_new_tokens=3) == [text.strip()] * 2
        said.clear()
        stopped = model.generate(inputs, max_new_tokens=9, stop_strings=[text[1:]])
    assert stopped == text.strip() and len(said) == 3, "a stop string ends it, though no token of it would"


def test_the_streamer_receives_every_token_and_the_end():
    class Streamer:
        def __init__(self):
            self.received: list[list[int]] = []
            self.ended = 0

        def put(self, ids):
            assert ids.device.type == "cpu"
            self.received.append(ids.tolist())

        def end(self):
            self.ended += 1

    model, inputs = case("llava-video")
    streamer = Streamer()
    ids = model.generate(inputs, max_new_tokens=4, streamer=streamer, return_type="tokens", stop_at_eos=False)
    assert [r[0] for r in streamer.received] == ids[0].tolist() and streamer.ended == 1


def test_what_cannot_be_generated_is_refused():
    model, inputs = case("llava-video")
    for n in (0, -3):
        with pytest.raises(InputError, match=f"max_new_tokens is {n}; ask for at least one"):
            model.generate(inputs, max_new_tokens=n)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_length'"):
        model.generate(inputs, max_length=4)
    with (
        pytest.raises(InputError, match="the logits are not finite"),
        model.hooks([("ln_final.hook_normalized", lambda a, hook: a * float("nan"))]),
    ):
        model.generate(inputs)
    tokenizer, model.tokenizer = model.tokenizer, None
    try:
        assert model.generate(inputs, max_new_tokens=2).shape == (1, 2), "ids where there is no tokenizer"
        with pytest.raises(InputError, match="this model has no tokenizer to make text with"):
            model.generate(inputs, return_type="text")
    finally:
        model.tokenizer = tokenizer
