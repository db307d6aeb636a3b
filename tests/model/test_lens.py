"""The lens's table is what each layer's stream says by hand, in pieces of any size; TransformerLens's says the same."""

from functools import cache

import pytest
import torch
from transformer_lens.tools.analysis import JacobianLens, logit_lens

from hookedvid import VideoInputs
from hookedvid.errors import InputError
from hookedvid.model import lens as lenses
from hookedvid.report.plots import lens_grid
from models import ROUNDING, UNLIKE, random_inputs, random_model

pytestmark = pytest.mark.shapes_unchecked


@cache
def run(name: str):
    model = random_model(name)
    inputs = random_inputs(model)
    with torch.no_grad():
        return model, inputs, model.run_with_cache(inputs, names_filter="resid_post")[1]


def by_hand(model, stream: torch.Tensor) -> torch.Tensor:
    scale = (stream.pow(2).mean(-1, keepdim=True) + model.cfg.lm.eps).rsqrt()
    logits = (stream * scale * model.ln_final.weight) @ model.unembed.weight.T
    return logits[..., : model.cfg.n_tokens].softmax(-1).detach()


@pytest.mark.usefixtures("shapes_checked")
@pytest.mark.parametrize("name", UNLIKE)
def test_words_are_those_of_each_layers_stream(name, monkeypatch):
    model, inputs, held = run(name)
    monkeypatch.setattr(lenses, "LOGITS", 3 * model.cfg.d_vocab)
    sizes, made = [], lenses.stream_logits
    monkeypatch.setattr(lenses, "stream_logits", lambda m, s: sizes.append(len(s)) or made(m, s))
    table = model.lens(inputs, "video+last", n_words=3, of=[5, 9])
    assert table.layers == (0, 1, 2) and max(sizes) == 3
    for i in table.layers:
        probs = by_hand(model, held.at("resid_post", i, "video+last")[0])
        best = probs.topk(3)
        assert torch.equal(table.tokens[i], best.indices)
        assert (table.probs[i] - best.values).abs().max() <= ROUNDING
        assert (table.of_probs[i] - probs[:, [5, 9]]).abs().max() <= ROUNDING
    places = inputs.places
    video = torch.isin(table.positions, places.position)
    assert torch.equal(table.row[video], places.row) and torch.equal(table.column[video], places.column)
    long = table.to_frame()
    assert len(long) == 3 * 3 * len(table.positions) and set(long["rank"]) == {0, 1, 2}
    last = long[(long.position == inputs.layout.n_tokens - 1) & (long.layer == 2) & (long["rank"] == 0)]
    assert last.token.item() == table.tokens[2, -1, 0] and last.word.item() == table.words[last.token.item()]
    assert lens_grid(table).axes


def test_a_frames_words_lie_as_its_cells():
    model, inputs, _ = run("llava-video")
    table = model.lens(inputs, "video", [1], n_words=1)
    words = table.frame_words(1, 2)
    grid = inputs.layout.grid
    assert (len(words), len(words[0])) == (grid.rows, grid.columns)
    cells = table.cells
    assert cells.frames == (0, 1, 2, 3) and cells.tokens.shape == (1, 4, grid.rows, grid.columns, 1)
    for i in (table.row >= 0).nonzero()[:, 0].tolist():
        place = (0, int(table.frame[i]), int(table.row[i]), int(table.column[i]), 0)
        assert cells.tokens[place] == table.tokens[0, i, 0] and cells.probs[place] == table.probs[0, i, 0]
    at = inputs.layout.positions("video[2][1, 0]")
    assert words[1][0] == table.words[int(table.tokens[0, table.positions == at, 0])]
    with pytest.raises(InputError, match="none of these positions is in a cell"):
        _ = model.lens(inputs, "last").cells
    for layer, frame, says in ((0, 2, "layer 0 was not read"), (1, 9, "no cell of frame 9")):
        with pytest.raises(InputError, match=says):
            table.frame_words(layer, frame)


def test_maps_come_before_the_last_norm():
    model, inputs, held = run("llava-onevision")
    d, generator = model.cfg.d_model, torch.Generator().manual_seed(0)
    matrix, bias = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((d, d), (d,)))
    table = model.lens(inputs, "last", maps={0: matrix, 1: (matrix, bias)}, n_words=2)
    assert table.layers == (0, 1, 2)
    for i, made in enumerate((lambda h: h @ matrix.T, lambda h: h @ matrix.T + bias, lambda h: h)):
        wanted = by_hand(model, made(held.at("resid_post", i, "last")[0])).topk(2)
        assert torch.equal(table.tokens[i], wanted.indices)
        assert (table.probs[i] - wanted.values).abs().max() <= ROUNDING
    theirs = JacobianLens({0: matrix, 1: matrix}, n_prompts=1, d_model=d)
    jacobian = model.lens(inputs, "last", maps=theirs.jacobians, n_words=2)
    carried = theirs.transport(held.at("resid_post", 1, "last")[0], 1).double()
    assert (jacobian.probs[1] - by_hand(model, carried).topk(2).values).abs().max() < 1e-5  # theirs in float32
    plain = model.lens(inputs, "last", n_words=2)
    same = model.lens(inputs, "last", maps={i: torch.eye(d) for i in range(3)}, n_words=2)
    assert torch.equal(plain.tokens, same.tokens) and torch.equal(plain.probs, same.probs)


def test_transformer_lens_reads_the_same_through_bind():
    model, inputs, _ = run("llava-onevision")
    table = model.lens(inputs, "all", n_words=4)
    theirs = logit_lens(model.bind(inputs), inputs.tokens, positions=None, top_k=4, return_type="probs")
    assert theirs.labels == ["0_pre", "1_pre", "2_pre", "final_post"]
    assert torch.equal(theirs.readout.top_ids[1:, 0], table.tokens)  # what enters block 1 is what block 0 gives
    assert (theirs.values[1:, 0] - table.probs).abs().max() < 1e-7  # theirs are float32


def test_a_condition_is_read_under_it():
    model, inputs, _ = run("llava-onevision")
    cut = model.lens(inputs, "last", interventions="LV-K", n_words=2)
    with torch.no_grad():
        logits = model(inputs, interventions="LV-K")[0, -1, : model.cfg.n_tokens]
    assert torch.equal(cut.tokens[-1, 0], logits.topk(2).indices)
    with pytest.raises(InputError, match="an early exit dropped them"):
        model.lens(inputs, "video", interventions="exit @ 1")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"layers": [3]}, "layer 3 is none of this model's"),
        ({"layers": []}, "no layers are asked for"),
        ({"n_words": 0}, "n_words is 0"),
        ({"at": "generated"}, "no position of 'generated'"),
        ({"of": [-1]}, "-1 is no token: ids are whole numbers from 0"),
        ({"of": 2.0}, "2.0 is no token"),
        ({"maps": {0: torch.eye(64) / 0}}, "the map of layer 0 is not finite"),
        ({"maps": {-1: torch.eye(64), 2: torch.eye(64)}}, "maps names a layer twice"),
        ({"maps": {0: torch.eye(3)}}, r"the map of layer 0 is \(3, 3\)"),
        ({"maps": {0: (torch.eye(64), torch.zeros(2))}}, r"and \(2,\)"),
        ({"maps": {0: torch.eye(64)}, "layers": [0, 1]}, r"maps has none for layers \[1\]"),
    ],
)
def test_what_cannot_be_read_is_refused(how, says):
    model, inputs, _ = run("llava-onevision")
    with pytest.raises(InputError, match=says):
        model.lens(inputs, **how)


def test_a_batch_is_refused():
    model, inputs, _ = run("llava-onevision")
    with pytest.raises(InputError, match="this batch holds 2 items"):
        model.lens(VideoInputs.stack([inputs, inputs]))
