"""What a checkpoint's files and config say of its parts: heads, families, strides, rotary positions, packed weights."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_models import decoder, onevision
from hookedvid import HookedVideoLLM
from hookedvid.checkpoints import convert as converting
from hookedvid.checkpoints.convert import convert, export, plan
from hookedvid.conversion.provenance import Provenance
from hookedvid.errors import ConversionError
from originals import OVERRIDES, original

WHOLE = 10**9  # one shard
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def change_config(folder: Path, drop: tuple[str, ...] = (), **fields) -> Path:
    config = json.loads((folder / "config.json").read_text())
    kept = {k: v for k, v in {**config, **fields}.items() if k not in drop}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


def rewrite(folder: Path, change, metadata: dict | None = None) -> Path:
    """Change the tensors of a checkpoint of one file."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"} | (metadata or {}))
    return folder


def read(folder: Path, **given):
    """Our config of a checkpoint, by its headers alone."""
    return plan(folder, overrides={**OVERRIDES, **given}).cfg


@pytest.fixture
def theirs(tmp_path) -> Path:
    return original(tmp_path / "theirs", shard=WHOLE)


# ---- the head ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [True, False])
def test_a_head_of_its_own_is_kept_whatever_the_config_says(theirs, tmp_path, said):
    """The fault: said to be tied, the head in the file was thrown away."""
    change_config(theirs, tie_word_embeddings=said)
    head = load_file(theirs / "model.safetensors")[HEAD]
    model = HookedVideoLLM.from_pretrained(convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False))
    assert not model.cfg.lm.tied and torch.equal(model.unembed.weight, head)
    back = export(tmp_path / "ours", tmp_path / "back", progress=False)
    assert (back / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


@pytest.mark.parametrize("said", [True, False])
def test_a_head_with_the_embeddings_bits_is_tied_whatever_the_config_says(theirs, tmp_path, said):
    change_config(theirs, tie_word_embeddings=said)
    rewrite(theirs, lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    model = HookedVideoLLM.from_pretrained(convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False))
    assert model.cfg.lm.tied and model.unembed.weight is model.embed.weight
    back = export(tmp_path / "ours", tmp_path / "back", progress=False)
    assert (back / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


def test_one_bit_unties(theirs):
    def nearly(tensors):
        tensors[HEAD] = tensors[EMBEDDING].clone()
        tensors[HEAD].view(torch.int16)[-1, -1] ^= 1

    change_config(rewrite(theirs, nearly), tie_word_embeddings=True)
    assert not read(theirs).lm.tied
    with pytest.raises(ConversionError, match=r"decoder\.tied is overridden as true, but the checkpoint holds a head"):
        read(theirs, **{"decoder.tied": True})


def test_an_absent_head_ties_where_the_config_says_so_and_else_is_missed(theirs):
    change_config(rewrite(theirs, lambda t: t.pop(HEAD)), tie_word_embeddings=True)
    assert read(theirs).lm.tied
    change_config(theirs, tie_word_embeddings=False)
    with pytest.raises(ConversionError, match=r"missing 'lm_head\.weight'"):
        read(theirs)


@pytest.mark.parametrize("level", ["top", "llm_config"])
def test_any_level_of_a_composite_config_ties_an_absent_head(tmp_path, level):
    folder = original(tmp_path / "theirs", "internvideo2.5", shard=WHOLE)
    rewrite(folder, lambda t: t.pop("language_model.output.weight"))
    with pytest.raises(ConversionError, match=r"missing 'language_model\.output\.weight'"):
        plan(folder)
    llm = json.loads((folder / "config.json").read_text())["llm_config"]
    tied = {"tie_word_embeddings": True}
    change_config(folder, **(tied if level == "top" else {"llm_config": {**llm, **tied}}))
    assert plan(folder).cfg.lm.tied


@pytest.mark.parametrize("top", [True, False])
@pytest.mark.parametrize("text", [True, False])
def test_a_transformers_model_keeps_the_head_it_runs_with(tmp_path, top, text):
    """In memory and from its files, whatever the two levels of its config say of tying."""
    hf = onevision(text={"tie_word_embeddings": False}, tie_word_embeddings=False)
    hf.config.tie_word_embeddings, hf.config.text_config.tie_word_embeddings = top, text
    model = HookedVideoLLM.from_transformers(hf)
    assert not model.cfg.lm.tied and torch.equal(model.unembed.weight, hf.lm_head.weight)
    with torch.no_grad():
        hf.lm_head.weight.copy_(hf.get_input_embeddings().weight)
    assert HookedVideoLLM.from_transformers(hf).cfg.lm.tied


@pytest.mark.parametrize("said", ["top", "text_config", None])
def test_transformers_files_tie_an_absent_head_where_a_level_says_so(tmp_path, said):
    hf = onevision()
    hf.save_pretrained(tmp_path / "theirs")
    rewrite(tmp_path / "theirs", lambda t: [t.pop(n) for n in list(t) if n.endswith(HEAD)])
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config["tie_word_embeddings"] = said == "top"
    config["text_config"]["tie_word_embeddings"] = said == "text_config"
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config))
    if said is None:
        with pytest.raises(ConversionError, match=r"missing '.*lm_head"):
            plan(tmp_path / "theirs")
    else:
        assert plan(tmp_path / "theirs").cfg.lm.tied


@pytest.mark.parametrize(("held", "alias"), [(HEAD, EMBEDDING), (EMBEDDING, HEAD)])
def test_a_shared_tensor_is_found_under_the_name_its_file_notes(theirs, tmp_path, held, alias):
    """As safetensors' `save_model` writes a tied model: one of the two names, the other in the header's metadata."""
    embedding = load_file(theirs / "model.safetensors")[EMBEDDING]

    def share(tensors):
        del tensors[HEAD], tensors[EMBEDDING]
        tensors[held] = embedding

    rewrite(theirs, share, {alias: held})
    model = HookedVideoLLM.from_pretrained(convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False))
    assert model.cfg.lm.tied and torch.equal(model.embed.weight, embedding)
    back = export(tmp_path / "ours", tmp_path / "back", progress=False)
    assert (back / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


# ---- family and stride -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "positions"),
    [("llava-video", 24), ("llava-onevision", 19), ("llava-next-video-qwen", 12), ("longva", 2)],
)
def test_only_longva_pools_by_the_stride_of_its_config(tmp_path, family, positions):
    """Positions of two frames of a 5 x 5 grid, the config saying 4; LLaVA-NeXT's main branch pools by 2."""
    folder = change_config(original(tmp_path / family, family, shard=WHOLE), mm_spatial_pool_stride=4)
    made = plan(folder, overrides=OVERRIDES)
    per_frame, ends = made.cfg.tokens_per_frame, made.cfg.projector.newline == "once"
    assert 2 * per_frame + ends == positions
    assert any("mm_spatial_pool_stride = 4 is set aside" in n for n in made.origin.notes) == (family != "longva")
    assert read(folder, **{"projector.pool_stride": 4}).projector.pool_stride == 4


def average_llava_video(folder: Path) -> Path:
    """LLaVA-Video with the pooling of its authors' evaluation, as LLaVA-NeXT-Video-32B has it."""
    return change_config(original(folder, "llava-video", shard=WHOLE), mm_spatial_pool_mode="average")


def test_a_family_that_the_parts_leave_open_is_asked_for(tmp_path):
    folder = average_llava_video(tmp_path / "theirs")
    with pytest.raises(ConversionError) as e:
        read(folder)
    for said in ("fits llava-video as well as llava-next-video-qwen", 'overrides={"family": "llava-video"}'):
        assert said in str(e.value)
    chosen = read(folder, family="llava-video")
    assert (chosen.family, chosen.n_frames, chosen.projector.pool) == ("llava-video", 64, "average")
    assert read(folder, family="llava-next-video-qwen").n_frames == 32
    with pytest.raises(ConversionError, match=r"no family 'llava-vidio'.*'llava-video'"):
        read(folder, family="llava-vidio")


def test_the_checkpoints_name_states_the_family(tmp_path):
    made = plan(average_llava_video(tmp_path / "LLaVA-Video-7B-mine"), overrides=OVERRIDES)
    assert made.cfg.family == "llava-video" and any("as its name states" in n for n in made.origin.notes)
    # A name that names other parts than there are states nothing of these.
    with pytest.raises(ConversionError, match="as well as"):
        read(average_llava_video(tmp_path / "longva-7b"))


def test_from_pretrained_takes_the_family_as_an_override(tmp_path, monkeypatch):
    monkeypatch.setenv("HOOKEDVID_HOME", str(tmp_path / "home"))
    folder = average_llava_video(tmp_path / "theirs")
    with pytest.raises(ConversionError, match="as well as"):
        HookedVideoLLM.from_pretrained(folder, overrides=OVERRIDES)
    model = HookedVideoLLM.from_pretrained(folder, overrides={**OVERRIDES, "family": "llava-video"})
    assert (model.cfg.family, model.cfg.n_frames) == ("llava-video", 64)


# ---- files people have -------------------------------------------------------------------------------------


def test_rotary_positions_as_transformers_5_writes_them(theirs):
    new = {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "layer_types": ["full_attention"] * 3}
    change_config(theirs, drop=("rope_theta",), **new)
    assert read(theirs).lm.rope.theta == 1e6


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "rope_theta is missing"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "contradicts rope_parameters"),
        ({"rope_theta": 1e6, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4}}, "'yarn' is not supported"),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_type": "dynamic"}}, "only linear, dynamic, by a factor"),
        ({"rope_theta": 1e6, "rope_parameters": {"factor": 2.0}}, "only linear, dynamic, by a factor"),
        ({"rope_theta": 1e6, "hidden_act": None}, "hidden_act is missing"),
        ({"rope_theta": "1e6"}, "rope_theta = '1e6' is no finite number"),
        ({"rope_theta": 1e6, "num_attention_heads": 0}, "num_attention_heads = 0 must be at least 1"),
        ({"rope_theta": 1e6, "num_hidden_layers": 10**30}, "is above the bound of 1,000"),
        ({"rope_theta": 1e6, "hidden_size": None}, "hidden_size is missing"),
    ],
)
def test_no_number_of_the_decoder_is_made_up(theirs, fields, said):
    change_config(theirs, drop=("rope_theta",) if "rope_theta" not in fields else (), **fields)
    with pytest.raises(ConversionError, match=said):
        read(theirs)


def test_an_activation_no_config_names_is_the_classes(theirs):
    stated = read(theirs)
    change_config(theirs, drop=("hidden_act",))
    assert read(theirs) == stated and stated.lm.act == "silu"


def test_a_theta_no_config_names_can_be_stated_and_llamas_default_is_told(theirs, tmp_path):
    change_config(theirs, drop=("rope_theta",))
    assert read(theirs, **{"decoder.rope.theta": 5e5}).lm.rope.theta == 5e5
    vicuna = change_config(original(tmp_path / "v", "llava-next-video", shard=WHOLE), drop=("rope_theta",))
    made = plan(vicuna, overrides=OVERRIDES)
    assert made.cfg.lm.rope.theta == 1e4 and any("names no rope_theta; 10000" in n for n in made.origin.notes)


@pytest.mark.parametrize("name", ["/data/towers/so400m", "./siglip", "C:\\towers\\siglip", "~/t", "a/b/c"])
def test_a_tower_named_by_a_path_is_told_by_its_tensors(theirs, name):
    made = plan(change_config(theirs, mm_vision_tower=name), overrides=OVERRIDES)
    assert made.cfg.vision.act == "gelu_tanh" and any("is a path; by its tensors" in n for n in made.origin.notes)


@pytest.mark.parametrize("layers", [10**5, 10**30])
def test_a_transformers_config_of_endless_layers_is_refused_at_once(tmp_path, layers):
    decoder().save_pretrained(tmp_path)
    change_config(tmp_path, num_hidden_layers=layers)
    with pytest.raises(ConversionError, match=r"num_hidden_layers = \d+ is above the bound"):
        plan(tmp_path)


def test_book_keeping_of_a_model_in_memory_is_harmless_and_other_fields_are_not():
    hf = decoder()
    hf.config.unk_token_id, hf.config._model_name_or_path = 0, "somewhere"
    hf.config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}  # left by dequantize()
    assert torch.equal(HookedVideoLLM.from_transformers(hf).embed.weight, hf.model.embed_tokens.weight)
    hf.config.logit_scale = 2.0
    with pytest.raises(ConversionError, match=r"logit_scale = 2\.0 is set and nothing here reads it"):
        HookedVideoLLM.from_transformers(hf)
    assert HookedVideoLLM.from_transformers(hf, ignore=["logit_scale"]).cfg.d_vocab == 128


def test_a_field_with_an_effect_cannot_be_ignored(theirs, tmp_path):
    with pytest.raises(ConversionError, match=r"rope_theta = .* is read here and cannot be ignored"):
        plan(theirs, overrides=OVERRIDES, ignore=["rope_theta"])
    decoder("qwen2").save_pretrained(tmp_path / "hf")
    change_config(tmp_path / "hf", use_sliding_window=True)
    with pytest.raises(ConversionError, match="use_sliding_window = True is not supported"):
        plan(tmp_path / "hf", ignore=["use_sliding_window"])


def test_packed_weights_are_named_as_what_they_are(theirs):
    name = "model.layers.0.mlp.up_proj.weight"
    whole = load_file(theirs / "model.safetensors")

    def packed(said, **tensors):
        save_file(whole | tensors, theirs / "model.safetensors", {"format": "pt"})
        with pytest.raises(ConversionError, match=said) as e:
            read(theirs)
        assert "ignore" not in str(e.value)

    packed("FP8 weights", **{name: whole[name].to(torch.float8_e4m3fn)})
    packed("FP8 weights", **{f"{name}_scale_inv": torch.ones(1)})
    half = {name: torch.zeros(96 * 32, 1, dtype=torch.uint8)}
    packed("NF4", **half, **{f"{name}.quant_state.bitsandbytes__nf4": torch.zeros(8, dtype=torch.uint8)})
    packed("GPTQ or AWQ", **{"model.layers.0.mlp.up_proj.qweight": torch.zeros(8, 8, dtype=torch.int32)})
    packed("8-bit or packed weights", **{name: torch.zeros(96, 64, dtype=torch.int8)})


def test_a_quantization_config_beside_plain_weights_is_book_keeping(theirs):
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert read(change_config(theirs, quantization_config=said, unk_token_id=0, _model_name_or_path="x")).lm.n_layers


def test_packed_weights_in_memory_are_refused():
    hf = decoder()
    hf.model.norm.weight = torch.nn.Parameter(hf.model.norm.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(ConversionError, match=r"'model\.norm\.weight' is stored as uint8"):
        HookedVideoLLM.from_transformers(hf)


def test_the_hubs_cache_is_answered_with_the_snapshot(tmp_path):
    cache = tmp_path / "models--lab--tiny"
    snapshot = original(cache / "snapshots" / ("0" * 40), shard=WHOLE)
    original(cache / "snapshots" / ("f" * 40), shard=WHOLE)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    for place in (cache, cache / "snapshots"):
        with pytest.raises(ConversionError) as e:
            convert(place, tmp_path / "ours", progress=False)
        assert f"the hub's cache of lab/tiny: give {snapshot}, or the name lab/tiny" in str(e.value)


def test_ids_beyond_the_embedding_are_refused_at_conversion(theirs, tmp_path):
    (theirs / "added_tokens.json").unlink(missing_ok=True)
    tokenizer = json.loads((theirs / "tokenizer_config.json").read_text())
    listed = tokenizer.setdefault("added_tokens_decoder", {})
    core = json.loads((theirs / "tokenizer.json").read_text())
    for i in range(259, 335):
        listed[str(i)] = {"content": f"<extra_{i}>", "special": False}
    (theirs / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert max(core["model"]["vocab"].values()) == 258
    with pytest.raises(ConversionError, match=r"ids up to 334 \(first '<extra_330>' = 330\), and .* has 330 rows"):
        convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    assert read(theirs, n_tokens=330).n_tokens == 330


# ---- resuming, writing -------------------------------------------------------------------------------------


def stopped_after(n: int, monkeypatch, *args, **given) -> None:
    """A conversion that is interrupted after so many files."""
    whole, done = converting.convert_file, []

    def stopping(*a):
        if len(done) == n:
            raise KeyboardInterrupt
        done.append(a)
        return whole(*a)

    with monkeypatch.context() as patched:
        patched.setattr(converting, "convert_file", stopping)
        with pytest.raises(KeyboardInterrupt):
            convert(*args, **given, progress=False)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}


def test_a_conversion_resumed_after_its_source_changed_is_of_one_checkpoint(tmp_path, monkeypatch):
    """The fault: files done before kept the old weights, and provenance their old digests."""
    theirs = original(tmp_path / "theirs")
    stopped_after(2, monkeypatch, theirs, tmp_path / "ours", overrides=OVERRIDES)
    stat = {p.name: p.stat() for p in theirs.iterdir()}
    for path in original(tmp_path / "new", seed=1).iterdir():
        (theirs / path.name).write_bytes(path.read_bytes())
        os.utime(theirs / path.name, ns=(stat[path.name].st_atime_ns, stat[path.name].st_mtime_ns))
    ours = convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    straight = convert(theirs, tmp_path / "straight", overrides=OVERRIDES, progress=False)
    assert Provenance.load(ours) == Provenance.load(straight)
    a, b = tensors_of(ours), tensors_of(straight)
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("what", ["weights", "config"])
def test_resume_checks_what_it_left_itself(tmp_path, monkeypatch, what):
    theirs = original(tmp_path / "theirs")
    stopped_after(2, monkeypatch, theirs, tmp_path / "ours", overrides=OVERRIDES)
    if what == "weights":
        done = sorted((tmp_path / "ours.partial").glob("model-*"))[0]
        data = bytearray(done.read_bytes())
        data[-1] ^= 1
        done.write_bytes(data)
    else:
        change_config(theirs, rope_theta=5e5)
    ours = convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    straight = convert(theirs, tmp_path / "straight", overrides=OVERRIDES, progress=False)
    a, b = tensors_of(ours), tensors_of(straight)
    assert all(torch.equal(a[n], b[n]) for n in b)
    assert (ours / "source_config.json").read_bytes() == (theirs / "config.json").read_bytes()


def test_a_source_that_changes_meanwhile_is_refused(tmp_path, monkeypatch):
    theirs = original(tmp_path / "theirs")
    whole = converting.convert_file

    def changing(source, *rest):
        out = whole(source, *rest)
        source.touch()
        return out

    monkeypatch.setattr(converting, "convert_file", changing)
    with pytest.raises(ConversionError, match="changed while it was converted; convert it again"):
        convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["theirs"]


def test_an_empty_folder_is_a_fine_destination(theirs, tmp_path):
    for name in ("ours", "back"):
        (tmp_path / name).mkdir()
    ours = convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    export(ours, tmp_path / "back", progress=False)
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "name", ["../out.safetensors", "/tmp/out.safetensors", "a\\b.safetensors", "config.json", ".."]
)
def test_export_writes_no_file_that_a_provenance_names_elsewhere(theirs, tmp_path, name):
    ours = convert(theirs, tmp_path / "ours", overrides=OVERRIDES, progress=False)
    told = json.loads((ours / "provenance.json").read_text())
    told["files"] = {name: told["files"]["model.safetensors"]}
    (ours / "provenance.json").write_text(json.dumps(told))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConversionError, match="which is no safetensors file of it"):
        export(ours, tmp_path / "a" / "back", progress=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_saving_replaces_a_link_and_follows_none(tmp_path):
    model = HookedVideoLLM.from_pretrained("tiny")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "saved").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "saved" / name).symlink_to(victim)
    model.save_pretrained(tmp_path / "saved")
    assert victim.read_text() == "mine" and not list((tmp_path / "saved").glob(".part-*"))
    assert HookedVideoLLM.from_pretrained(tmp_path / "saved").cfg == model.cfg


def test_what_a_shipped_model_cannot_take_is_refused():
    with pytest.raises(ConversionError, match="tiny is converted already"):
        HookedVideoLLM.from_pretrained("tiny", overrides={"vision.n_heads": 2})
