"""Files of published SAEs and transcoders, each read as one `SAE`; what they do not say is asked for, never guessed.

* SAELens: a folder with `cfg.json` and `sae_weights.safetensors`; standard, jumprelu, topk, gated, transcoders (with a
  skip or without). W_enc [d_in, feature].
* dictionary_learning: a folder with `config.json` and `ae.pt`; AutoEncoder, AutoEncoderNew, AutoEncoderTopK,
  BatchTopKSAE, JumpReluAutoEncoder, GatedAutoEncoder. encoder.weight [feature, d_in].
* Gemma Scope: `params.npz`; Gemma Scope 2: `params.safetensors`. W_enc or w_enc [d_in, feature], threshold,
  affine_skip_connection [d_in, d_out].
* Qwen-Scope: `layer3.sae.pt`. W_enc [feature, d_in], W_dec [d_out, feature]; TopK, of a k that the repository's name
  says (L0_50).
* circuit-tracer's transcoders: `layer_3.safetensors`. W_enc [feature, d_in], W_dec [feature, d_out],
  activation_function.threshold.

No pickle is loaded as such: `.pt` by `torch.load(weights_only=True)`, `.npz` without objects.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hookedvid.activations.sae import SAE, Parts
from hookedvid.errors import DataError, InputError, nearest
from hookedvid.values.files import read_regular

Activation = Literal["relu", "jumprelu"]
Tensors = dict[str, Tensor]
LARGEST = 1 << 24  # bytes of a config
# Names that formats give to the same numbers.
NAMES = {
    "w_enc": "W_enc", "w_dec": "W_dec", "encoder_linear.weight": "encoder.weight",
    "encoder_linear.bias": "encoder.bias", "decoder_linear.weight": "decoder.weight",
    "decoder_linear.bias": "decoder.bias", "activation_function.threshold": "threshold",
    "decoder_bias": "bias", "mag_bias": "b_mag", "gate_bias": "b_gate",
}  # fmt: skip
KNOWN = {
    "W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip", "affine_skip_connection", "encoder.weight",
    "encoder.bias", "decoder.weight",
    "decoder.bias", "bias", "r_mag", "b_mag", "b_gate", "k",
}  # fmt: skip
SAELENS = (
    "standard", "jumprelu", "topk", "gated", "transcoder", "skip_transcoder", "jumprelu_transcoder",
    "jumprelu_skip_transcoder",
)  # fmt: skip
# dictionary_learning's classes, and how their features are cut: a `k` is of each row, a threshold is a JumpReLU's.
CLASSES = {
    "AutoEncoder": "relu", "AutoEncoderNew": "relu", "AutoEncoderTopK": "topk", "BatchTopKSAE": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu", "GatedAutoEncoder": "gated",
}  # fmt: skip


def load_sae(
    path: str | Path, *, k: int | None = None, activation: Activation | None = None, hook: str = "", hook_out: str = ""
) -> SAE:
    """An SAE or transcoder of a folder or file, on the CPU, in the dtype and with the numbers that it is stored in.

    dictionary_learning's own loader makes decoder rows as long as 1, and features as much larger; they are left here.

    Args:
        path: See the module for the formats.
        k: How many features of a row are kept, where the file does not say (TopK).
        activation: "relu" or "jumprelu", where the file does not say.
        hook: Full name of the hook point that it reads, where its files do not say.
        hook_out: Of what it writes, of a transcoder.

    Raises:
        DataError: For files that are none of these, for kinds that are not known here, and where k is not theirs.
        InputError: For another activation, and numbers that do not fit each other or are not finite.
    """
    path = Path(path).expanduser()
    for point in (hook, hook_out):
        if not isinstance(point, str):
            raise InputError(f"a hook point is {point!r}; name it in full, such as 'blocks.5.hook_resid_post'")
    if activation not in (None, *get_args(Activation)):
        raise InputError(f"no activation {activation!r} ({nearest(str(activation), get_args(Activation))}; or k=…)")
    if not path.exists():
        raise DataError(f"there is no {path}")
    if path.is_dir():
        sae = _of_folder(path, k, activation, hook, hook_out)
    else:
        tensors, kind = _tensors(path), activation or ""
        laid = path.suffix == ".npz" or "w_enc" in tensors  # Gemma Scope's
        sae = SAE(_parts(tensors, path, kind, k, laid), hook, hook_out)
    if k is not None and sae.k != k:
        raise DataError(f"k is {k}, and by its file or the activation given {path} keeps {sae.k or 'all'}; leave k out")
    return sae


def _of_folder(path: Path, k: int | None, activation: str | None, hook: str, hook_out: str) -> SAE:
    files = {p.name for p in path.iterdir()}
    if {"cfg.json", "sae_weights.safetensors"} <= files:
        cfg = _json(path / "cfg.json")
        tensors = _tensors(path / "sae_weights.safetensors")
        return _saelens(cfg, tensors, path, hook, hook_out)
    if "ae.pt" in files:
        kind = activation or ""
        if "config.json" in files:
            trainer = _inner(_json(path / "config.json"), "trainer", path)
            name = trainer.get("dict_class", "")
            if not isinstance(name, str) or name not in CLASSES:
                raise DataError(f"{path} is a {name or 'dictionary of no class'}; those read are {', '.join(CLASSES)}")
            kind, k = CLASSES[name], trainer.get("k", k) if CLASSES[name] == "topk" else None
        return SAE(_parts(_tensors(path / "ae.pt"), path, kind, k), hook, hook_out)
    alone = [n for n in ("params.npz", "params.safetensors") if n in files]
    if not alone:
        raise DataError(
            f"{path} holds no SAE that is known here: cfg.json with sae_weights.safetensors, ae.pt, params.npz or "
            "params.safetensors; name a file of another's"
        )
    return load_sae(path / alone[0], k=k, activation=cast(Any, activation), hook=hook, hook_out=hook_out)


def _saelens(cfg: Mapping[str, Any], tensors: Tensors, path: Path, hook: str, hook_out: str) -> SAE:
    about = {**cfg, **_inner(cfg, "metadata", path)}
    kwargs = _inner(about, "activation_fn_kwargs", path)
    kind = about.get("architecture", "standard")
    fn = about.get("activation_fn") or about.get("activation_fn_str") or "relu"
    if kind == "standard" and fn == "topk":
        kind = "topk"
    if kind not in SAELENS or fn not in ("relu", "topk"):
        raise DataError(
            f"{path} is of architecture {kind!r} with {fn!r}; those read are {', '.join(SAELENS)}, with relu"
        )
    normalized = about.get("normalize_activations")
    if normalized not in (None, False, "none"):
        raise DataError(
            f"{path} scales what it reads ({normalized!r}), which is not known here: fold that into its weights with "
            "SAELens (fold_activation_norm_scaling_factor), and save it again"
        )
    scaling = tensors.pop("scaling_factor", None)
    if scaling is not None and not bool((scaling == 1).all()):
        raise DataError(f"{path} has a scaling_factor other than 1 (finetuned), which is not known here")
    cut = "topk" if kind == "topk" else "gated" if kind == "gated" else "jumprelu" if "jumprelu" in kind else "relu"
    k = about.get("k", kwargs.get("k")) if kind == "topk" else None
    transcodes = "transcoder" in kind
    centred = bool(about.get("apply_b_dec_to_input", not transcodes))
    parts = _parts(tensors, path, cut, k, True, centred, bool(about.get("rescale_acts_by_decoder_norm", False)))
    read = hook or about.get("hook_name") or about.get("hook_point") or ""
    return SAE(parts, read, hook_out or about.get("hook_name_out") or "")


def _parts(
    given: Tensors, path: Path, cut: str, k: int | None, laid: bool = False, centred: bool = False,
    rescaled: bool = False,
) -> Parts:  # fmt: skip
    """The numbers of a file.

    Args:
        given: By their names.
        path: For messages.
        cut: relu, jumprelu, topk or gated; empty where only the tensors tell.
        k: Of TopK, where the file holds none.
        laid: Whether W_enc is known to be [d_in, feature], and W_dec its like; else their sizes tell.
        centred: Whether b_dec is taken off what is read.
        rescaled: Whether the largest are chosen as if decoder rows had length 1.
    """
    x = {NAMES.get(name, name): t for name, t in given.items()}
    if unknown := sorted(map(str, x.keys() - KNOWN)):
        raise DataError(f"{path} holds {', '.join(unknown[:5])}, which no SAE that is known here has")
    gated, centred = "r_mag" in x, centred or "bias" in x or ("b_dec" in x and "encoder.weight" in x)
    b_dec = next((x[n] for n in ("b_dec", "bias", "decoder.bias") if n in x), None)
    b_enc = next((x[n] for n in ("b_mag", "b_enc", "encoder.bias") if n in x), None)
    names = ("encoder.weight", "decoder.weight") if "encoder.weight" in x else ("W_enc", "W_dec")
    if b_dec is None or b_enc is None or not set(names) <= x.keys():
        raise DataError(f"{path} holds {', '.join(sorted(x)) or 'nothing'}: no encoder and decoder with their biases")
    enc, dec = x[names[0]], x[names[1]]
    if names[0] == "encoder.weight":
        enc, dec = enc.T, dec.T
    elif not laid:
        enc, dec = _oriented(enc, len(b_enc), 1, path), _oriented(dec, len(b_enc), 0, path)
    k, cut = _cut(x, path, cut or ("gated" if gated else ""), k)
    threshold = x["threshold"].reshape(-1) if cut == "jumprelu" else None
    b_in = b_dec if centred else None
    fits = enc.ndim == dec.ndim == 2 and enc.shape[1:] == b_enc.shape == dec.shape[:1]
    needed = [x.get(name) for name in ("r_mag", "b_gate")] if cut == "gated" else []
    if (rescaled and not fits) or any(one is None or not fits or one.shape != b_enc.shape for one in needed):
        shapes = ", ".join(f"{name} {tuple(one.shape)}" for name, one in sorted(x.items()))
        raise DataError(f"{path} holds {shapes}: numbers are missing, or do not fit each other")
    if cut == "gated":  # on where x W > -b_gate, which is where exp(r) x W + b_mag > b_mag - exp(r) b_gate
        enc, threshold = enc * x["r_mag"].exp(), b_enc - x["r_mag"].exp() * x["b_gate"]
    if rescaled:
        norms = dec.norm(dim=1)
        enc, b_enc, dec = enc * norms, b_enc * norms, dec / norms[:, None]
    # SAELens and circuit-tracer multiply what is read by the first's transpose, Gemma Scope 2 by the second.
    skip = x["W_skip"].T if "W_skip" in x else x.get("affine_skip_connection")
    return Parts(enc, b_enc, dec, b_dec, b_in, threshold, k, skip)


def _cut(x: Tensors, path: Path, cut: str, k: int | None) -> tuple[int | None, str]:
    """How many features are kept, and which rule decides. A file that leaves it open is asked about."""
    held: int | None = None
    if "k" in x:
        if x["k"].numel() != 1 or x["k"].item() != int(x["k"]):
            raise DataError(f"{path} keeps {x['k'].tolist()} features of a row, which is no whole number")
        held = int(x["k"])
    if cut == "topk" or (not cut and k is not None):
        if k is not None and held is not None and k != held:
            raise DataError(f"k is {k}, and {path} says {held}; leave it out")
        if k is None and held is None:
            raise DataError(f"{path} does not say how many features are kept of a row; give k=…")
        return k or held, "topk"
    if cut:
        if cut == "jumprelu" and "threshold" not in x:
            raise DataError(f"{path} holds no threshold, which a JumpReLU has; is it activation='relu', or k=…?")
        return None, cut
    if held is not None and "threshold" in x:
        raise DataError(
            f"{path} holds k and a threshold: features are cut by one of them; give k={held} (TopK), or "
            "activation='jumprelu' (BatchTopK)"
        )
    if "threshold" in x:
        return None, "jumprelu"
    if held is not None:
        return held, "topk"
    if "bias" in x or "decoder.bias" in x:  # dictionary_learning's and others' plain ones, which have no other kind
        return None, "relu"
    raise DataError(f"{path} does not say how its features are cut; give k=… (TopK), or activation='relu'")


def _oriented(w: Tensor, n: int, axis: int, path: Path) -> Tensor:
    """A matrix whose features are along an axis, turned if they are along the other."""
    if w.ndim != 2 or n not in w.shape:
        raise DataError(f"{path} has {n} features by its biases, and a matrix {tuple(w.shape)}; no layer of its own?")
    if w.shape[0] == w.shape[1]:
        raise DataError(f"{path} has as many features as numbers, so that nothing says which way its matrices lie")
    return w if w.shape[axis] == n else w.T


# ---- reading ---------------------------------------------------------------------------------------------------------


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_regular(path, LARGEST))
    except (OSError, ValueError) as e:
        raise DataError(f"cannot read {path}: {e}") from e
    if not isinstance(data, dict):
        raise DataError(f"{path} holds no object")
    return cast(dict[str, Any], data)


def _inner(about: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    """An object of a config; none is an empty one."""
    found = about.get(name) or {}
    if not isinstance(found, dict):
        raise DataError(f"{path} has a config whose {name} is {found!r:.60}, which is no object")
    return cast(dict[str, Any], found)


def _tensors(path: Path) -> Tensors:
    """The tensors of a file by name. Objects in it are never made."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as held:
                return {name: torch.from_numpy(held[name]) for name in held.files}
        if path.suffix in (".pt", ".pth", ".bin"):
            found = torch.load(path, map_location="cpu", weights_only=True)
            return {n: torch.as_tensor(x) for n, x in found.items()}
    except (OSError, ValueError, RuntimeError, SafetensorError, AttributeError, TypeError) as e:
        raise DataError(f"cannot read tensors in {path}: {e}") from e
    except Exception as e:  # torch.load says so of what is more than tensors; zipfile of what is none
        raise DataError(f"{path} holds more than tensors, or is damaged: {str(e).splitlines()[0]}") from e
    raise DataError(f"{path} is no .safetensors, .npz or .pt file")
