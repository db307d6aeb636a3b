"""Threads on one model: hooks of one never reach the runs of another, and runs without hooks go side by side."""

import copy
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from hookedvid.errors import HookError
from hookedvid.sweep.run import sweep
from hookedvid.sweep.session import Session
from hookedvid.values.interventions import LV_K, VT_K, Edit, Patch
from models import random_model, rich_inputs

# How long a run with hooks is held up for another thread to slip in; nothing is slower for it where that waits.
A_WHILE = 0.15


def threads(n: int) -> ThreadPoolExecutor:
    """Threads without gradients, which others do not inherit: these take other kernels, with other bits."""
    return ThreadPoolExecutor(n, initializer=torch.set_grad_enabled, initargs=(False,))


def case() -> tuple:
    model = random_model("llava-video", n_layers=2)
    return model, rich_inputs(model), rich_inputs(model, seed=1)


def beside(slow: Callable[[Callable], Any], other: Callable[[], Any]) -> tuple[Any, Any]:
    """What `slow` gives, which calls its argument midway, and `other` in another thread, begun at that moment."""
    midway, done = threading.Event(), threading.Event()

    def reached(*_: Any) -> None:
        midway.set()
        done.wait(A_WHILE)

    def run() -> Any:
        assert midway.wait(10)
        try:
            return other()
        finally:
            done.set()

    with threads(2) as pool:
        second = pool.submit(run)
        first = pool.submit(lambda: slow(reached))
        return first.result(), second.result()


def test_hooks_of_one_thread_are_not_in_anothers_run():
    model, x, y = case()
    _, source = model.run_with_cache(y, names_filter="resid_post")

    def edit(reached: Callable) -> Edit:
        def double(rows: torch.Tensor) -> torch.Tensor:
            reached()
            return rows * 2

        return Edit("resid_post", 0, double, at="text")

    def in_block(reached: Callable) -> torch.Tensor:
        with model.hooks([("blocks.0.hook_resid_pre", lambda a, hook: a * 2)]):
            reached()
            return model(x)

    patch = Patch("resid_post", 1, "video", source)
    slow: dict[str, Callable] = {
        "an edit": lambda reached: model(x, interventions=edit(reached)),
        "a patch after it": lambda reached: model(x, interventions=[edit(reached), patch]),
        "hooks for a call": lambda reached: model.run_with_hooks(
            x, fwd_hooks=[("blocks.0.hook_resid_pre", lambda a, hook: (reached(), a * 2)[1])]
        ),
        "hooks for a block": in_block,
        "a sweep": lambda reached: sweep(model, [x], [[edit(reached)]])[0][0],
        "a session": lambda reached: Session(model, x).logits(edit(reached)),
    }
    fast: dict[str, Callable] = {
        "plain": lambda: model(y),
        "a knockout": lambda: model(y, interventions=LV_K),
        "features": lambda: model.encoded(y).features[0],
        "a sweep": lambda: sweep(model, [y], [[VT_K]])[0][0],
        "attention": lambda: model.attention(y)[0],
    }
    with torch.no_grad():
        right = {name: run() for name, run in fast.items()}
        wanted = {name: run(lambda: None) for name, run in slow.items()}
        for name, run in slow.items():
            for other, beside_it in fast.items() if name == "an edit" else [("plain", fast["plain"])]:
                first, second = beside(run, beside_it)
                assert torch.equal(first, wanted[name]), (name, other)
                assert torch.equal(second, right[other]), (name, other)


@torch.no_grad()
def test_a_cache_holds_its_own_threads_run():
    model, x, y = case()

    def resid(inputs: Any) -> torch.Tensor:
        return model.run_with_cache(inputs, names_filter="resid_post")[1]["resid_post", 1]

    want = resid(x), resid(y)

    def slow(reached: Callable) -> torch.Tensor:
        _, cache = model.run_with_cache(
            x, names_filter="resid_post", interventions=Edit("z", 0, lambda z: (reached(), z)[1])
        )
        return cache["resid_post", 1]

    found = beside(slow, lambda: resid(y))
    assert torch.equal(found[0], want[0]) and torch.equal(found[1], want[1])


@torch.no_grad()
def test_runs_without_hooks_knockouts_among_them_go_side_by_side(monkeypatch):
    model, x, y = case()
    met, embed = threading.Barrier(2), model.embed_inputs

    def embed_inputs(*args: Any) -> torch.Tensor:
        met.wait(10)  # both runs are here at once, or this breaks
        return embed(*args)

    want = model(x), model(y, interventions=VT_K)
    monkeypatch.setattr(model, "embed_inputs", embed_inputs)
    with threads(2) as pool:
        found = [pool.submit(model, x), pool.submit(model, y, interventions=VT_K)]
        assert all(torch.equal(f.result(), w) for f, w in zip(found, want, strict=True))


@torch.no_grad()
def test_a_hook_may_run_the_model_and_hooks_cannot_come_in_the_middle_of_others_runs():
    model, x, y = case()
    inner: list = []

    def look(a: torch.Tensor, hook: Any) -> None:
        if not inner:
            inner.append(None)
            inner.append(model.run_with_cache(y, names_filter="resid_post")[1])

    model.run_with_hooks(x, fwd_hooks=[("blocks.0.hook_resid_pre", look)])
    assert torch.equal(
        inner[1]["resid_post", 1], model.run_with_cache(y, names_filter="resid_post")[1]["resid_post", 1]
    )

    going, hold = threading.Event(), threading.Event()

    def plain_run() -> None:
        with model.turns.shared():
            going.set()
            hold.wait(10)

    with threads(1) as pool:
        other = pool.submit(plain_run)
        assert going.wait(10)
        with model.turns.shared():
            with pytest.raises(HookError, match="inside a run while other threads run the model"):
                model.add_hook("hook_embed", look)
            hold.set()
        other.result()


@torch.no_grad()
def test_an_exception_gives_the_turn_back_and_a_copy_has_turns_of_its_own():
    model, x, _ = case()
    with pytest.raises(ZeroDivisionError):
        model.run_with_hooks(x, fwd_hooks=[("hook_embed", lambda a, hook: 1 / 0)])
    with model.turns.shared(), pytest.raises(ZeroDivisionError), model.turns.alone():
        raise ZeroDivisionError
    with threads(1) as pool, model.turns.alone():
        assert pool.submit(lambda: copy.deepcopy(model)(x).shape).result(10)
    with threads(1) as pool:
        pool.submit(model, x).result(10)
