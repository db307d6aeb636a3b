"""Whole checkpoints in the original layout: what converts, what comes back, and what is said of those that do not."""

import json
import multiprocessing
import os
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hookedvid import LV_K, HookedVideoLLM
from hookedvid.checkpoints import convert as converting
from hookedvid.checkpoints.convert import convert, export
from hookedvid.conversion.provenance import Provenance
from hookedvid.conversion.shards import INDEX, open_shards, read_header
from hookedvid.errors import ConfigError, ConversionError
from originals import NAMES, OVERRIDES, original, recipe, script

pytestmark = pytest.mark.shapes_unchecked

# A process of its own that has imported everything.
FORK = multiprocessing.get_context("fork")
FAMILIES = [f for f in NAMES if f != "internvideo2.5"]


def overrides(family: str) -> dict:
    return {} if family == "internvideo2.5" else OVERRIDES


def folder_hashes(folder: Path, pattern: str = "*.safetensors*") -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob(pattern))}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HOOKEDVID_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def source(tmp_path) -> Path:
    """A LLaVA-OneVision checkpoint of several shards."""
    return original(tmp_path / "theirs")


# ---- what converts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", NAMES)
def test_every_family_converts_answers_and_comes_back_byte_for_byte(family, tmp_path):
    theirs = original(tmp_path / "theirs", family)
    ours = convert(theirs, tmp_path / "ours", overrides=overrides(family), progress=False)
    model = HookedVideoLLM.from_pretrained(ours)
    assert model.cfg.family == NAMES_TO_FAMILY.get(family, family)
    assert model.cfg.n_tokens == model.tokenizer.vocab_size < model.cfg.d_vocab
    side = model.cfg.vision.image_size
    frames = np.random.default_rng(0).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    inputs = model.prepare(frames, "what is it ?", ["a", "b"], n_frames=4)
    assert model.answer(inputs).probs != model.answer(inputs, [LV_K]).probs
    back = export(ours, tmp_path / "back", progress=False)
    assert folder_hashes(back) == folder_hashes(theirs)
    assert (back / "config.json").read_bytes() == (theirs / "config.json").read_bytes()


NAMES_TO_FAMILY = {"llava-onevision-tied": "llava-onevision"}


def test_what_no_video_passes_is_carried_and_not_loaded(tmp_path):
    theirs = original(tmp_path / "theirs", "llava-next-video")
    ours = convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    unused = {n for n in open_shards(ours).shapes if n.startswith("unused.")}
    assert "unused.model.image_newline" not in unused  # one newline ends the video unless an override says otherwise
    assert any("encoder.layers.2." in n for n in unused) and any("post_layernorm" in n for n in unused)
    without = convert(theirs, tmp_path / "none", overrides={**OVERRIDES, "projector.newline": "none"}, progress=False)
    assert "unused.model.image_newline" in open_shards(without).shapes
    assert HookedVideoLLM.from_pretrained(without).projector.newline is None


def test_a_cast_is_that_of_torch_and_exports_in_the_new_dtype(source, tmp_path):
    ours = convert(source, tmp_path / "ours", overrides=OVERRIDES, dtype="float32", progress=False)
    whole, cast = (HookedVideoLLM.from_pretrained(f, overrides=o) for f, o in ((ours, None), (ours, None)))
    plain = convert(source, tmp_path / "plain", overrides=OVERRIDES, progress=False)
    for name, p in HookedVideoLLM.from_pretrained(plain).named_parameters():
        assert p.dtype == torch.bfloat16
        assert torch.equal(p.float(), dict(whole.named_parameters())[name])
    assert {p.dtype for p in cast.parameters()} == {torch.float32}
    back = export(ours, tmp_path / "back", progress=False)
    theirs, returned = (
        {k: v for f in sorted(d.glob("*.safetensors")) for k, v in load_file(f).items()} for d in (source, back)
    )
    assert theirs.keys() == returned.keys()
    assert all(torch.equal(theirs[k].to(returned[k].dtype), returned[k]) for k in theirs)
    assert returned["model.norm.weight"].dtype == torch.float32


def test_provenance_tells_source_choices_and_hashes(source, tmp_path):
    ours = convert(source, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    told = Provenance.load(ours)
    written = json.loads((ours / "provenance.json").read_text())
    assert written.pop("format") == json.loads((ours / "config.json").read_text())["format"] == 1
    (tmp_path / "provenance.json").write_text(json.dumps(written))
    assert Provenance.load(tmp_path) == told, "0.2 wrote the same without a number"
    (tmp_path / "provenance.json").write_text(json.dumps(written | {"format": 2}))
    with pytest.raises(ConversionError, match=r"provenance\.json is of format 2, and this version"):
        Provenance.load(tmp_path)
    assert told.source == str(source) and told.architecture == "LlavaQwenForCausalLM"
    assert told.overrides == OVERRIDES and told.dtype is None
    import hashlib

    for name, file in told.files.items():
        assert file.sha256 == hashlib.sha256((source / name).read_bytes()).hexdigest()
    tensors = {k: v for f in ours.glob("*.safetensors") for k, v in load_file(f).items()}
    assert set(told.tensors) == {k for k in tensors if not k.startswith("unused.")}
    for name, digest in told.tensors.items():
        raw = tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes()
        assert hashlib.sha256(raw).hexdigest() == digest


# ---- from_pretrained ----------------------------------------------------------------------------------------


def test_a_folder_in_the_original_layout_is_converted_once(source, home, monkeypatch):
    first = HookedVideoLLM.from_pretrained(source, overrides=OVERRIDES)
    monkeypatch.setattr(converting, "convert_file", None)  # a second conversion would fail
    second = HookedVideoLLM.from_pretrained(source, overrides=OVERRIDES)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    (made,) = (p for p in home.iterdir() if p.is_dir())
    assert made.name.startswith("theirs-")


def test_a_changed_folder_is_converted_anew(source, home):
    HookedVideoLLM.from_pretrained(source, overrides=OVERRIDES)
    shutil.rmtree(source)
    original(source, seed=1)
    again = HookedVideoLLM.from_pretrained(source, overrides=OVERRIDES)
    assert len([p for p in home.iterdir() if p.is_dir()]) == 2
    theirs = {k: v for f in source.glob("*.safetensors") for k, v in load_file(f).items()}
    assert torch.equal(again.ln_final.weight, theirs["model.norm.weight"])


def test_options_that_change_no_tensor_are_taken_at_loading(source, home):
    base = HookedVideoLLM.from_pretrained(source, overrides=OVERRIDES)
    other = HookedVideoLLM.from_pretrained(
        source, overrides={**OVERRIDES, "projector.pool": "average", "time_instruction": "llava_video", "n_frames": 4}
    )
    assert base.cfg.tokens_per_frame == 9 and other.cfg.tokens_per_frame == 4
    assert other.cfg.n_frames == 4 and other.cfg.time_instruction == "llava_video"
    assert len([p for p in home.iterdir() if p.is_dir()]) == 1
    with pytest.raises(ConfigError, match=r"cannot set 'projector.pol': there is no such field \(nearest: 'pool'"):
        HookedVideoLLM.from_pretrained(source, overrides={**OVERRIDES, "projector.pol": "max"})
    with pytest.raises(ConfigError, match="pool should be one of"):
        HookedVideoLLM.from_pretrained(source, overrides={**OVERRIDES, "projector.pool": "median"})
    with pytest.raises(ConversionError, match=r"left over 'projector.newline'"):
        HookedVideoLLM.from_pretrained(source, overrides={**OVERRIDES, "projector.newline": "none"})


def test_the_first_layers_alone(source, home):
    whole = HookedVideoLLM.from_pretrained(source, overrides=OVERRIDES)
    short = HookedVideoLLM.from_pretrained(source, overrides=OVERRIDES, first_n_layers=2)
    assert short.cfg.n_layers == len(short.blocks) == 2
    ids = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(short(ids, stop_at_layer=2), whole(ids, stop_at_layer=2))
    with pytest.raises(ConfigError, match="first_n_layers is 9; this decoder has 3 blocks"):
        HookedVideoLLM.from_pretrained(source, overrides=OVERRIDES, first_n_layers=9)


def test_mixed_dtypes_load_as_the_one_most_weights_have(tmp_path, home):
    theirs = original(tmp_path / "theirs", "internvideo2.5")
    stored = {t.dtype for f in theirs.glob("*.safetensors") for t in load_file(f).values()}
    assert stored == {torch.float32, torch.bfloat16}
    model = HookedVideoLLM.from_pretrained(theirs)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.cfg.placeholder_id == model.tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")


def test_loading_draws_no_random_number(source, home):
    HookedVideoLLM.from_pretrained(source, overrides=OVERRIDES)
    before = torch.random.get_rng_state()
    HookedVideoLLM.from_pretrained(source, overrides=OVERRIDES)
    assert torch.equal(before, torch.random.get_rng_state())


# ---- what does not convert: each its error, and nothing left on the disk -------------------------------------


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    """Change the tensors of the first shard."""
    tensors = load_file(first_shard(folder))
    change(tensors)
    save_file(tensors, first_shard(folder), {"format": "pt"})


def edit_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def edit_index(folder: Path, change: Callable[[dict], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def truncated_shard(folder: Path) -> None:
    os.truncate(first_shard(folder), first_shard(folder).stat().st_size - 1000)


def garbled_header(folder: Path) -> None:
    data = bytearray(first_shard(folder).read_bytes())
    data[20:30] = b"x" * 10
    first_shard(folder).write_bytes(data)


def wrong_index(folder: Path) -> None:
    last = sorted(folder.glob("*.safetensors"))[-1].name
    edit_index(folder, lambda names: names.update({"model.image_newline": last}))


def escaping_index(folder: Path) -> None:
    edit_index(folder, lambda names: names.update({"model.image_newline": "../elsewhere.safetensors"}))


def missing_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def missing_shard_without_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    missing_shard(folder)


def extra_tensor(folder: Path) -> None:
    (folder / INDEX).unlink()
    edit(folder, lambda t: t.update({"model.layers.0.self_attn.rotary.extra": torch.zeros(3)}))


def wrong_shape(folder: Path) -> None:
    edit(folder, lambda t: t.update({"model.image_newline": torch.zeros(63)}))


def nan_weights(folder: Path) -> None:
    edit(folder, lambda t: t["model.image_newline"].__setitem__(5, float("nan")))


def infinite_weights(folder: Path) -> None:
    edit(folder, lambda t: t["model.image_newline"].__setitem__(0, float("-inf")))


def wrong_family(folder: Path) -> None:
    shutil.rmtree(folder)
    original(folder, "longva")
    edit_config(folder, mm_vision_tower="google/siglip-so400m-patch14-384", mm_patch_merge_type="spatial_unpad")


def other_architecture(folder: Path) -> None:
    edit_config(folder, architectures=["LlavaLlamaForCausalLM"])


def pickle(folder: Path) -> None:
    for p in folder.glob("*.safetensors*"):
        p.unlink()
    torch.save({}, folder / "pytorch_model.bin")


def unknown_field(folder: Path) -> None:
    edit_config(folder, mm_token_dropout=0.5)


def unsupported_value(folder: Path) -> None:
    edit_config(folder, add_faster_video=True, mm_resampler_type="qformer")


def unknown_tower(folder: Path) -> None:
    edit_config(folder, mm_vision_tower="facebook/dinov2-large")


def half_a_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def other_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace("<|im_end|>", "<|end|>"))
    (folder / "tokenizer_config.json").write_text("{}")


BROKEN = [
    (truncated_shard, ["is truncated or damaged: it should have", "download or copy it again"]),
    (garbled_header, ["is truncated or damaged: its header cannot be read"]),
    (wrong_index, ["does not tell what the files hold: 'model.image_newline' is said to be in", "download it again"]),
    (escaping_index, ["cannot be read", "no file of this folder"]),
    (missing_shard, ["files of this checkpoint are not in", "model-00002-of-", "download them too"]),
    (missing_shard_without_index, ["files of this checkpoint are not in", "model-00002-of-"]),
    (extra_tensor, ["left over 'model.layers.0.self_attn.rotary.extra' [3]", "look like LLaVA-OneVision"]),
    (wrong_shape, ["'projector.newline' should be [64], got [63]"]),
    (nan_weights, ["tensor 'model.image_newline' [64] holds NaN or infinity", "its file is damaged"]),
    (infinite_weights, ["tensor 'model.image_newline' [64] holds NaN or infinity"]),
    (wrong_family, ["missing 'model.image_newline'", "left over", "The tensors look like LongVA, a CLIP tower"]),
    (other_architecture, ["left over 'model.layers.{0..2}.self_attn.q_proj.bias'", "LlavaQwenForCausalLM"]),
    (pickle, ["pytorch_model.bin", "pickles are never loaded", "python -c", "weights_only=True"]),
    (unknown_field, ["mm_token_dropout = 0.5 is set and nothing here reads it", "ignore it by name"]),
    (unsupported_value, ["add_faster_video = True is not supported", "mm_resampler_type = 'qformer' is not supported"]),
    (unknown_tower, ["mm_vision_tower = 'facebook/dinov2-large' is not supported", "clip-vit-large-patch14-336"]),
    (half_a_tokenizer, ["tokenizer"]),
    (other_tokenizer, ["is not the one of prompt 'qwen_1_5': '<|im_end|>' should be one token"]),
]  # fmt: skip


@pytest.mark.parametrize(("break_it", "said"), BROKEN, ids=[b[0].__name__ for b in BROKEN])
def test_a_broken_checkpoint_says_what_is_wrong_and_leaves_nothing(source, tmp_path, break_it, said):
    break_it(source)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConversionError) as e:
        convert(source, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    for part in said:
        assert part in str(e.value), str(e.value)
    assert sorted(tmp_path.iterdir()) == before


def test_a_field_the_user_answers_for_is_passed_over(source, tmp_path):
    unknown_field(source)
    ours = convert(source, tmp_path / "ours", overrides=OVERRIDES, ignore=["mm_token_dropout"], progress=False)
    assert Provenance.load(ours).ignored == ("mm_token_dropout",)
    assert folder_hashes(export(ours, tmp_path / "back", progress=False)) == folder_hashes(source)


def test_without_a_tokenizer_the_model_takes_ids_and_says_so_of_questions(source, tmp_path):
    for p in source.glob("*token*"):
        p.unlink()
    ours = convert(source, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    assert any("has no tokenizer" in n for n in Provenance.load(ours).notes)
    model = HookedVideoLLM.from_pretrained(ours)
    assert model(torch.arange(5)[None]).shape == (1, 5, model.cfg.d_vocab)
    with pytest.raises(Exception, match="this model has no tokenizer: pass tokenizer="):
        model.prepare(None, "what ?")


def test_sizes_no_tensor_shows_must_be_stated(source, tmp_path):
    with pytest.raises(ConversionError, match=r"tensors have n_layers 2 and not 26.*--override vision.n_heads="):
        convert(source, tmp_path / "ours", progress=False)
    with pytest.raises(ConversionError, match="d_model 32 is not a multiple of n_heads 5"):
        convert(source, tmp_path / "ours", overrides={"vision.n_heads": 5}, progress=False)


def test_a_disk_too_small_is_said_before_starting(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    monkeypatch.setattr(converting, "convert_file", None)
    with pytest.raises(ConversionError, match=r"needs 0\.\d GB and .* has 0\.0 GB free"):
        convert(source, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_a_disk_that_fills_up_leaves_nothing(source, tmp_path, monkeypatch):
    whole = converting.convert_file
    calls = []

    def full(*args):
        calls.append(args)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return whole(*args)

    monkeypatch.setattr(converting, "convert_file", full)
    with pytest.raises(ConversionError, match=r"writing .*ours failed: .*No space left on device"):
        convert(source, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_interrupted_it_goes_on_after_the_last_finished_file(source, tmp_path, monkeypatch):
    whole, done = converting.convert_file, []

    def stopping(src, dst, *rest):
        if len(done) == 2 and not stopping.stopped:
            stopping.stopped = True
            raise KeyboardInterrupt
        done.append(src.name)
        return whole(src, dst, *rest)

    stopping.stopped = False
    monkeypatch.setattr(converting, "convert_file", stopping)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours.partial", "theirs"]
    convert(source, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ours", "theirs"]
    assert sorted(done) == sorted(set(done)) == sorted(p.name for p in source.glob("*.safetensors"))
    assert folder_hashes(export(tmp_path / "ours", tmp_path / "back", progress=False)) == folder_hashes(source)


def test_an_interrupted_conversion_of_something_else_is_not_continued(source, tmp_path, monkeypatch):
    whole = converting.convert_file

    def stop(*args):
        raise KeyboardInterrupt

    def once(*args):
        monkeypatch.setattr(converting, "convert_file", stop)
        return whole(*args)

    monkeypatch.setattr(converting, "convert_file", once)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    monkeypatch.setattr(converting, "convert_file", whole)
    ours = convert(source, tmp_path / "ours", overrides=OVERRIDES, dtype="float32", progress=False)
    assert {p.dtype for p in HookedVideoLLM.from_pretrained(ours).parameters()} == {torch.float32}


def test_killed_outright_it_leaves_no_half_checkpoint_and_goes_on(tmp_path):
    """SIGKILL while a file is being written, in a process of its own."""
    theirs = original(tmp_path / "theirs", shard=40_000)

    def slowly(whole=converting.convert_file):
        converting.convert_file = lambda *args: (whole(*args), time.sleep(0.3))[0]
        convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False)

    process = FORK.Process(target=slowly, daemon=True)
    process.start()
    partial = tmp_path / "ours.partial"
    deadline = time.monotonic() + 60
    while len(list(partial.glob("*.safetensors"))) < 2:
        assert process.exitcode is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.join()
    finished = {p.name: p.stat().st_mtime_ns for p in partial.glob("*.safetensors")}
    known = Provenance.load(partial).files
    assert not (tmp_path / "ours").exists()
    convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    kept = [n for n, f in known.items() if f.sha256]
    assert kept and all((tmp_path / "ours" / n).stat().st_mtime_ns == finished[n] for n in kept)
    assert folder_hashes(export(tmp_path / "ours", tmp_path / "back", progress=False)) == folder_hashes(theirs)


def test_a_folder_in_the_way_is_not_touched(source, tmp_path):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="ours exists already; choose another folder, or remove it"):
        convert(source, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    with pytest.raises(ConversionError, match="exists already"):
        export(convert(source, tmp_path / "a", overrides=OVERRIDES, progress=False), tmp_path / "ours", progress=False)


def test_export_refuses_changed_weights_and_folders_of_another_making(source, tmp_path):
    ours = convert(source, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    entry = next(e for e in read_header(first_shard(ours)).entries if not e.name.startswith("unused."))
    data = bytearray(first_shard(ours).read_bytes())
    data[read_header(first_shard(ours)).length + entry.start] ^= 1
    first_shard(ours).write_bytes(data)
    with pytest.raises(ConversionError, match=rf"tensor {entry.name!r} is not what was converted"):
        export(ours, tmp_path / "back", progress=False)
    assert not (tmp_path / "back").exists() and not (tmp_path / "back.partial").exists()
    HookedVideoLLM.from_pretrained("tiny").save_pretrained(tmp_path / "tiny")
    with pytest.raises(ConversionError, match=r"has no provenance.json: it was not converted"):
        export(tmp_path / "tiny", tmp_path / "back", progress=False)


def test_export_refuses_a_config_that_is_damaged_or_gone(source, tmp_path):
    ours = convert(source, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    (ours / "source_config.json").write_text("{")
    with pytest.raises(ConversionError, match=r"source_config.json is no JSON"):
        export(ours, tmp_path / "back", progress=False)
    (ours / "source_config.json").unlink()
    with pytest.raises(ConversionError, match=r"has no source_config.json"):
        export(ours, tmp_path / "back", progress=False)
    assert not (tmp_path / "back").exists()


def test_weights_too_large_for_a_dtype_are_refused(source, tmp_path):
    edit(source, lambda t: t["model.image_newline"].__setitem__(0, 1e6))
    with pytest.raises(ConversionError, match="holds NaN or infinity in float16: choose a wider dtype"):
        convert(source, tmp_path / "ours", overrides=OVERRIDES, dtype="float16", progress=False)


def test_memory_stays_below_two_of_the_largest_tensor(tmp_path):
    """Peak resident memory of a conversion, against that of next to nothing before it in the same process."""
    big = original(tmp_path / "big", shard=10**9, vocab_size=500_000)  # embedding and head: 64 MB each
    small = original(tmp_path / "small", shard=10**9)
    peaks = FORK.SimpleQueue()

    def measured():
        for source in (small, big):
            convert(source, f"{source}-ours", overrides=OVERRIDES, progress=False)
            peaks.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    process = FORK.Process(target=measured, daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0
    before, after = peaks.get(), peaks.get()
    assert after - before < 75e6  # the file is 129 MB; pieces of 32 MiB pass


def test_the_recipe_of_a_toy_has_the_published_ones_parts():
    for family in NAMES:
        true = {n.split(".layers.")[0] for n in (e.name for e in script.tensors(script.RECIPES[NAMES[family]]))}
        assert true == {n.split(".layers.")[0] for n in (e.name for e in script.tensors(recipe(family)))}
