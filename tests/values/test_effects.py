"""What interventions do, as one value: how several join, and that what no place can honour is refused in words."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch

from hookedvid import LV_K, VT_K, EarlyExit, Edit, Patch, RandomEdges, Session, edge_share
from hookedvid.errors import InterventionError
from hookedvid.model.flops import Costs
from hookedvid.sweep.run import sweep
from hookedvid.sweep.tree import shareable
from hookedvid.values.effects import Cut, Effects, Exit, Intervention, effects
from hookedvid.values.interventions import as_interventions, to_json
from sweep_cases import N, asked, model


@dataclass(frozen=True)
class Made(Intervention):
    """A kind that the package does not know: any cut or exits, in every layer."""

    cut: Cut | None = None
    exits: tuple[Exit, ...] = ()

    def effect(self, n_layers: int) -> Effects:
        return Effects(((self.cut,) if self.cut else (),) * n_layers, exits=self.exits)

    def label(self) -> str:
        return "made"


HEADS = Made(Cut("video", "text", heads=(1, 8), label="made"))
EAGER = model("longva", kernel="eager")
PLACES: dict[str, Callable] = {
    "forward": lambda m, x, i: m(x, interventions=i),
    "eager": lambda m, x, i: EAGER(x, interventions=i),
    "beside random edges": lambda m, x, i: m(x, interventions=[i, RandomEdges(LV_K)]),
    "batch": lambda m, x, i: m.answers(type(x).stack([x, x]), i),
    "generate": lambda m, x, i: m.generate(x, i, max_new_tokens=2),
    "cache": lambda m, x, i: m.run_with_cache(x, interventions=i),
    "later": lambda m, x, i: m(m.embed_inputs(x), start_at_layer=2, inputs=x, interventions=i),
    "attention": lambda m, x, i: m.attention(x, interventions=i),
    "sweep": lambda m, x, i: sweep(m, [x], [(), i]),
    "session": lambda m, x, i: Session(m, x).logits(i),
    "operations": lambda m, x, i: Costs(m.cfg, x.layout).of([i]),
    "edge share": lambda m, x, i: edge_share(x.layout, [i], N, m.cfg.n_heads),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (HEADS, r"^made: no head 8; this model's are numbered 0 to 7"),
    ],
    ids=["heads"],
)
def test_what_a_place_cannot_honour_it_refuses(kind, message, place):
    with pytest.raises(InterventionError, match=message):
        PLACES[place](model("longva"), asked("longva")[0], kind)


def test_a_kind_that_the_package_does_not_know_runs_where_it_can_be_honoured():
    m, x = model("longva"), asked("longva")[0]
    made = Made(Cut("video", "text"))
    assert as_interventions(made) == (made,)
    assert torch.equal(m(x, interventions=made), m(x, interventions=LV_K))
    assert torch.equal(sweep(m, [x], [made])[0][0], sweep(m, [x], [LV_K])[0][0])
    assert shareable([made], x.layout, N)
    with pytest.raises(InterventionError, match="made: Made has no JSON form; run it from Python"):
        to_json([made])


def test_several_interventions_join_layer_by_layer_in_their_order():
    edit, patch = Edit("z", 3, torch.zeros_like), Patch("z", 2)
    cut, control, exit = LV_K.at("1:3"), RandomEdges(VT_K.at("2:"), seed=3), EarlyExit(4)
    done = effects([edit, cut, exit, control, patch], 5)
    assert done.cuts == ((), (cut.cut,), (cut.cut, control.cut), (control.cut,), (control.cut,))
    assert done.writes == (*edit.effect(5).writes, *patch.effect(5).writes) and done.exits == (Exit(4, "video"),)
    assert done.first_layer == 1 and effects([], 5).first_layer == 5
    assert effects([exit], 5).first_layer == 4 and effects([edit], 5).first_layer == 3


def test_cuts_are_equal_by_what_they_do():
    assert LV_K.at("1:3").cut == LV_K.at("4").cut
    assert RandomEdges(LV_K.at("1"), 2).cut == RandomEdges(LV_K, 2).cut != RandomEdges(LV_K, 3).cut


def test_an_exit_beyond_the_last_block_is_refused():
    with pytest.raises(InterventionError, match="exit after layer 6: this model has 5 blocks"):
        effects([EarlyExit(6)], 5)
