"""The verbs of a TransformerLens model: hooks by name, `run_with_hooks`, `run_with_cache`.

Names are looked up, never guessed: one that does not exist, or cannot fire in this run, raises. Only hooks
added here are ever removed, also after an exception.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor, nn

from hookedvid.errors import HookError, InputError, nearest
from hookedvid.model.cache import VideoCache, has_layer
from hookedvid.model.eager import untraced
from hookedvid.model.leaving import RunRecord
from hookedvid.model.turns import Turns
from hookedvid.nn.hooks import HookedRootModule, HookPoint, Slice, listening
from hookedvid.nn.model import Model
from hookedvid.values.hook_names import pos_axis

Name = str | tuple[str, int]
NamesFilter = Name | Sequence[Name] | Callable[[str], bool] | None
Function = Callable[..., Any]  # (activation, hook point) -> what becomes of it, or None
HookList = Iterable[tuple[str | Callable[[str], bool], Function]]
Args = tuple[Any, ...]
Keywords = dict[str, Any]

# Tensors that exist only for whoever listens, large and outside the usual path: cached when asked for by name.
ON_DEMAND = ("hook_mask", "hook_result", "hook_q_input", "hook_k_input", "hook_v_input")


class HookVerbs(HookedRootModule):
    """A root module whose hooks are named strictly and scoped to the `with` block that added them.

    Threads share its hooks: runs with hooks have the model alone, others go side by side (`turns`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns()

    def listened(self) -> bool:
        """Whether anything, ours or plain torch's, listens anywhere on the model."""
        return listening(self, *self.mod_dict.values())

    def _hooked_backward(self) -> bool:
        modules: list[Any] = [self, *self.mod_dict.values()]
        return any(m._backward_hooks or m._backward_pre_hooks for m in modules)

    def leaf(self, x: Tensor) -> Tensor:
        """What a run begins with, such that backward hooks get gradients where no weight asks for one."""
        asks = torch.is_grad_enabled() and not x.requires_grad and self._hooked_backward()
        return x.detach().requires_grad_().clone() if asks else x  # a copy, which hooks may edit in place

    def turn(self, hooked: bool = False) -> AbstractContextManager[None]:
        """A run's turn: alone where hooks are on the model, or will be; beside other plain runs otherwise."""
        return self.turns.alone() if hooked or self.listened() else self.turns.shared()

    @untraced
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`forward`, in no graph that `torch.compile` makes of the model."""
        return super().__call__(*args, **kwargs)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile every block of decoder and tower on its own (`torch.nn.Module.compile`'s arguments).

        While anything listens they run as they are written.
        """
        for blocks in self.modules():
            if isinstance(blocks, nn.ModuleList):
                for block in cast(Iterable[Any], blocks):
                    block.compile(*args, **kwargs)

    def names(self, names_filter: NamesFilter) -> list[str]:
        """The hook points a filter means.

        A full name, a short one (`resid_post`: that hook in every decoder block; `vision.resid_post`: in every tower
        block), a short one with its layer as caches are asked (`("resid_post", 3)`), a sequence of these, or a
        predicate on full names. None is every hook point but those made on demand.

        Raises:
            HookError: When a name, or a predicate, matches nothing.
        """
        if names_filter is None:
            return [n for n in self.hook_dict if n.rsplit(".", 1)[-1] not in ON_DEMAND]
        if callable(names_filter):
            names = [n for n in self.hook_dict if names_filter(n)]
            if not names:
                raise HookError(f"the names_filter predicate matches none of the {len(self.hook_dict)} hook points")
            return names
        return list(dict.fromkeys(n for a in _several(names_filter) for n in self._names_of(a)))

    def _names_of(self, asked: Any) -> list[str]:
        if has_layer(asked):
            return [self._name_at(*asked)]
        if not isinstance(asked, str):
            raise HookError(
                f"{asked!r} is no name of a hook point; give names, or one with its layer: ('resid_post', 3)"
            )
        if asked in self.hook_dict:
            return [asked]
        prefix, _, short = asked.rpartition(".")
        hook = short if short.startswith("hook_") else f"hook_{short}"
        names = [
            n
            for n in self.hook_dict
            if n.rsplit(".", 1)[-1] == hook and n.startswith(f"{prefix}." if prefix else ("blocks.", "hook_"))
        ]
        if names and not any(c.isdigit() for c in prefix):
            return names
        shorts = {n.rsplit(".", 1)[-1].removeprefix("hook_") for n in self.hook_dict}
        raise HookError(
            f"no hook point {asked!r}; {nearest(asked, [*self.hook_dict, *sorted(shorts)])} "
            f"({len(self.hook_dict)} hook points: model.hook_dict)"
        )

    def _name_at(self, short: str, layer: int) -> str:
        names = [n for n in self._names_of(short) if ".hook_" in n and "blocks." in n]
        numbers = [int(n.split("blocks.")[1].split(".")[0]) for n in names]
        last = max(numbers, default=-1)
        at = [n for n, i in zip(names, numbers, strict=True) if i == (layer if layer >= 0 else layer + last + 1)]
        if len(at) != 1:
            what = f"several: {at}" if at else f"none: there are blocks 0 to {last}" if names else "in no block"
            raise HookError(f"hook point {short!r} of layer {layer} is {what}")
        return at[0]

    def hook_point(self, name: str) -> HookPoint:
        """The hook point of a full name.

        Raises:
            HookError: With the nearest ones.
        """
        if name not in self.hook_dict:
            raise HookError(
                f"no hook point {name!r}; {nearest(name, self.hook_dict)} "
                f"({len(self.hook_dict)} hook points: model.hook_dict)"
            )
        point = self.hook_dict[name]
        assert isinstance(point, HookPoint)
        return point

    def _points(self, name: Any) -> list[HookPoint]:
        return [self.hook_point(n) for n in ([name] if isinstance(name, str) else self.names(name))]

    def add_hook(  # pyright: ignore[reportIncompatibleMethodOverride]  # the rest goes on by keyword
        self, name: str | Callable[[str], bool], hook: Function, **kwargs: Any
    ) -> None:
        """Attach `hook(tensor, hook) -> tensor | None` until `reset_hooks`; `name` is full, or a predicate."""
        _pairs([(name, hook)], "add_hook")
        if isinstance(name, str):
            self.hook_point(name)
        else:
            self.names(name)
        with self.turns.alone():
            super().add_hook(name, hook, **kwargs)

    def reset_hooks(self, *args: Any, **kwargs: Any) -> None:
        """Remove what `add_hook` attached, see TransformerLens's."""
        with self.turns.alone():
            super().reset_hooks(*args, **kwargs)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        prepend: bool = False,
    ) -> Generator["HookVerbs"]:
        """Hooks for the length of a `with` block; exactly these are removed at its end, whatever happens.

        Names are full, or predicates on full names. `prepend` runs them before hooks already there. Those of one
        point run in the order of their list. Until the end other threads' runs of this model wait: do not wait inside
        for a thread that runs it.
        """
        fwd_hooks, bwd_hooks = _pairs(fwd_hooks, "fwd_hooks"), _pairs(bwd_hooks, "bwd_hooks")
        added: list[tuple[HookPoint, Any]] = []
        with self.turns.alone() if fwd_hooks or bwd_hooks else nullcontext():
            try:
                if prepend:  # each goes before those already there
                    fwd_hooks, bwd_hooks = fwd_hooks[::-1], bwd_hooks[::-1]
                for name, fn in fwd_hooks:
                    added += [(p, p.add_hook(fn, dir="fwd", prepend=prepend)) for p in self._points(name)]
                for name, fn in bwd_hooks:
                    added += [(p, p.add_hook(fn, dir="bwd", prepend=prepend)) for p in self._points(name)]
                yield self
            finally:
                if reset_hooks_end:
                    for point, handle in added:
                        handle.hook.remove()
                        for handles in (point.fwd_hooks, point.bwd_hooks):
                            if handle in handles:
                                handles.remove(handle)
                if clear_contexts:
                    self.clear_contexts()

    def run_with_hooks(
        self,
        *args: Any,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **kwargs: Any,
    ) -> Any:
        """`forward` with hooks attached for this call.

        Backward hooks need `reset_hooks_end=False`, or `model.hooks()`.

        Raises:
            HookError: For a name that does not exist or cannot fire in this run (a tower hook on text, a block beyond
                `stop_at_layer`).
        """
        fwd_hooks, bwd_hooks = _pairs(fwd_hooks, "fwd_hooks"), _pairs(bwd_hooks, "bwd_hooks")
        if bwd_hooks and reset_hooks_end:
            raise HookError(
                "backward hooks would be gone before backward() runs; pass reset_hooks_end=False, or call "
                "backward inside `with model.hooks(bwd_hooks=...)`"
            )
        args, kwargs = self.prepared(args, kwargs)
        self.check_fires([n for n, _ in [*fwd_hooks, *bwd_hooks]], *args, **kwargs)
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*args, **kwargs)

    @overload
    def run_with_cache(
        self,
        *args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        return_cache_object: Literal[True] = True,
        keep_graph: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, VideoCache]: ...
    @overload
    def run_with_cache(
        self, *args: Any, return_cache_object: Literal[False], **kwargs: Any
    ) -> tuple[Any, dict[str, Tensor]]: ...
    def run_with_cache(
        self,
        *args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        return_cache_object: bool = True,
        keep_graph: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """`forward` with its activations: (output, VideoCache), or (output, dict).

        Args:
            names_filter: See `names`; the default, everything, includes attention patterns, which take the explicit
                kernel in every layer and a query x key tensor each.
            device: Where to keep activations.
            pos_slice: Positions of decoder activations to keep (int, slice, tuple or list of ints, counted from 0 in
                the batch's columns); the rest is freed at once.
            incl_bwd: Also run backward from the output, a scalar, and keep each gradient as `name_grad`.
            keep_graph: Whether the output can be run backward from, to weights that require a gradient
                (`model.requires_grad_()`). Otherwise autograd's graph, which holds every activation, is made only where
                a gradient is asked for: by incl_bwd, by a backward hook on the model, by an input that requires one.

        Raises:
            HookError: When a name is unknown or cannot fire in this run.
        """
        args, kwargs = self.prepared(args, kwargs)
        names = self.names(names_filter)
        can = self.fires(*args, **kwargs)
        if names_filter is not None and not callable(names_filter):
            self.check_fires(_several(names_filter), *args, **kwargs)
        names = [n for n in names if can(n)]
        if not names:
            raise HookError("none of the activations asked for exists in this run: its layers or its video are skipped")
        inputs = self.inputs_of(*args, **kwargs)
        record = kwargs.pop("record", None) or RunRecord()
        if remove_batch_dim and inputs.batch_size != 1:
            raise InputError(f"cannot remove the batch axis of a batch of {inputs.batch_size} items")
        store: dict[str, Tensor] = {}
        cut = None if pos_slice is None else Slice(pos_slice)
        graph = keep_graph or incl_bwd or any(isinstance(a, Tensor) and a.requires_grad for a in args)
        with self.turns.alone(), torch.set_grad_enabled(torch.is_grad_enabled() and (graph or self._hooked_backward())):
            # Hook points share storage. Only other hooks write there in place; where there are none, none is copied.
            copied = self.listened()
            save = _saver(store, device, remove_batch_dim, cut, copied)
            save_grad = _saver(store, device, remove_batch_dim, cut, copied, "_grad")
            fwd = [(n, save) for n in names]
            bwd = [(n, save_grad) for n in names] if incl_bwd else []
            with self.hooks(fwd, bwd, reset_hooks_end, clear_contexts):
                out = self(*args, record=record, **kwargs)
                if incl_bwd:
                    _backward(out)
        if not return_cache_object:
            return out, store
        model, sliced = cast(Model, self), pos_slice is not None
        return out, VideoCache(store, model, inputs.layouts, record.rows, not remove_batch_dim, sliced)

    # What a model supplies: which inputs a call has, and which hook points it reaches.

    def prepared(self, args: Args, kwargs: Keywords) -> tuple[Args, Keywords]:
        """The call's arguments with raw tokens turned into inputs once."""
        raise NotImplementedError

    def inputs_of(self, *args: Any, **kwargs: Any) -> Any:
        """The VideoInputs of a call."""
        raise NotImplementedError

    def fires(self, *args: Any, **kwargs: Any) -> Callable[[str], bool]:
        """Whether a hook point of a given name fires in a call."""
        raise NotImplementedError

    def check_fires(self, asked: Iterable[Name | Callable[[str], bool]], *args: Any, **kwargs: Any) -> None:
        """Raise HookError for names and predicates that match nothing, or nothing that fires in a call."""
        can = self.fires(*args, **kwargs)
        for name in asked:
            if not any(can(n) for n in self.names(name)):
                raise HookError(
                    f"{name!r} cannot fire in this run: its layer is outside start_at_layer/stop_at_layer, or there is "
                    "no video to encode; drop the hook or run that part"
                )


def _backward(output: Any) -> None:
    if not isinstance(output, Tensor) or output.numel() != 1:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"incl_bwd runs backward from one number, and the output is {shape}; give return_type='loss', or for a "
            "metric of the logits hooks: with model.hooks(fwd_hooks=…, bwd_hooks=…): metric(model(inputs)).backward()"
        )
    cast(Any, output).backward()


def _several(names_filter: Any) -> list[Any]:
    """The names of a filter that is no predicate."""
    if isinstance(names_filter, str) or has_layer(names_filter) or not isinstance(names_filter, Iterable):
        return [names_filter]
    return list(cast(Iterable[Any], names_filter))


def _pairs(hooks: Any, what: str) -> list[tuple[Any, Function]]:
    """The hooks of a list of them. Raises HookError for anything that is no name, or names, with a function."""
    pairs = list(cast(Iterable[Any], hooks)) if isinstance(hooks, Iterable) else [hooks]
    for pair in pairs:
        parts = cast(Sequence[Any], pair) if isinstance(pair, Sequence) and not isinstance(pair, str) else ()
        if len(parts) != 2 or parts[0] is None or not callable(parts[1]):
            raise HookError(f"{what}: {pair!r} is no name with its function; give pairs (name, function) in a list")
    return pairs


def _saver(
    store: dict[str, Tensor],
    device: Any,
    remove_batch_dim: bool,
    pos_slice: Slice | None,
    copied: bool,
    suffix: str = "",
) -> Callable[..., None]:
    def save(tensor: Tensor, hook: HookPoint) -> None:
        assert hook.name is not None
        act = tensor.detach()
        if pos_slice is not None and hook.name.startswith(("blocks.", "hook_", "ln_final.")):
            # A clone: a view would keep the whole activation alive.
            act = pos_slice.apply(act, dim=pos_axis(hook.name)).clone()
        elif copied:
            act = act.clone()
        if device is not None:
            act = act.to(device)
        in_tower = hook.name.startswith(("vision.", "projector."))
        store[hook.name + suffix] = act[0] if remove_batch_dim and not in_tower else act

    return save
