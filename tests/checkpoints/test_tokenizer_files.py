"""Tokenizers of checkpoint folders: the ids of the slow tokenizers the original packages run, from data files only."""

import io
import json
import os
import re
import socket
from functools import cache

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import Qwen2Tokenizer
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from hookedvid.checkpoints.tokenizer_files import TOKENIZER_FILES, check_tokens, load_tokenizer
from hookedvid.errors import ConversionError
from hookedvid.families.prompts import pieces
from hookedvid.families.registry import TEMPLATES, template
from hookedvid.model.prompt_tokens import _tokenized_text

SYSTEM = TEMPLATES["internvl2_5"].before
CORPUS = [
    *SYSTEM.split("\n"),
    "A chat between a curious user and an artificial intelligence assistant. USER: what happens? ASSISTANT:",
    "Answer with the option's letter from the given choices directly.",
    "Frame1: Frame2: Frame12: the user asks the assistant what the user wants; the frame shows a dog",
    "def f(x):    return  x + 10  # two    runs of spaces",
    "它说了什么？视频里有一只狗和一辆车。",
] * 3
TEXTS = [
    SYSTEM,
    "Frame1: <img></img>\nFrame2: <img><IMG_CONTEXT></img>\nWhat moves?<|im_end|>\n<|im_start|>assistant\n",
    "What  happens   to the dog?\n\n\n  a car\tthen 🐉🐉 é e\u0301 １２３",
    " a leading space", "the <img> user", "user<|im_start|>user <|im_end|> user", "<s>twice</s>", "▁ \n ▁", " ", "",
    "它说了什么？<img>视频</img> 狗", "it's 2024, I'LL go\r\n\r\nnow",
]  # fmt: skip
WORDS = ["the user", "视频", "  ", "\n", " ", "🐉", "Frame3: ", "what", "é", "<|im_start|>", "<img>", "</img>", "</s>"]
TEXTS += ["".join(WORDS[(i * 7 + j * j * (i + 3)) % len(WORDS)] for j in range(8)) for i in range(40)]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
IN_MODEL = ("<|im_end|>", "<|im_start|>")  # their ids are those of unused pieces of the sentencepiece model
BEYOND = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>")


@cache
def sentencepiece_model(**options):
    """A small BPE model in the form of Llama's and InternLM2's, with two unused pieces at its end."""
    out = io.BytesIO()
    form = {
        "model_type": "bpe",
        "vocab_size": 600,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=out, minloglevel=2, **(form | options)
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue())
    for name in ("[UNUSED_TOKEN_145]", "[UNUSED_TOKEN_146]"):
        proto.pieces.add(piece=name, score=-1e5, type=1)
    return proto.SerializeToString()


def decoder_entry(text):
    return {
        "content": text,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
        "normalized": False,
        "special": True,
    }


def internlm2_folder(folder, model, with_decoder=True):
    """A folder as InternVideo2.5's, whose remote code leaves a file behind when it is run."""
    n = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    ids = dict(zip((*IN_MODEL, *BEYOND), range(n - 2, n + 4), strict=True))
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    config = {
        **NAMES,
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "additional_special_tokens": list(ids),
    }
    if with_decoder:
        everything = {"<unk>": 0, "<s>": 1, "</s>": 2, **ids}
        config["added_tokens_decoder"] = {str(i): decoder_entry(t) for t, i in everything.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "special_tokens_map.json").write_text(json.dumps({**NAMES, "additional_special_tokens": list(ids)}))
    (folder / "added_tokens.json").write_text(json.dumps(ids))
    code = f"open({str(folder / 'was_run')!r}, 'w').close()\nraise RuntimeError('remote code was run')\n"
    (folder / "tokenization_internlm2.py").write_text(code)
    return ids


def vicuna_folder(folder, legacy):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", **decoder_entry("<s>")},
        "eos_token": {"__type": "AddedToken", **decoder_entry("</s>")},
        "unk_token": {"__type": "AddedToken", **decoder_entry("<unk>")},
        "pad_token": None,
        "model_max_length": 4096,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    } | ({} if legacy is None else {"legacy": legacy})
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def qwen2_folder(folder, with_config=True):
    folder.mkdir(exist_ok=True)
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    core.model.save(str(folder))
    n = core.get_vocab_size()
    added = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    config = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(n + i): decoder_entry(t) for i, t in enumerate(added)},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    if with_config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return n


def by_stretch(model, ids, text):
    """The slow way by hand: cut at special tokens, let sentencepiece encode what lies between."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    out = []
    for part in re.split("(" + "|".join(map(re.escape, ids)) + ")", text):
        out += [ids[part]] if part in ids else processor.encode(part)
    return out


MODELS = {
    "dummy prefix": {},
    "no dummy prefix": {"add_dummy_prefix": False},
    "user-defined pieces": {"add_dummy_prefix": False, "user_defined_symbols": "[X_1],▁▁▁,assistant"},
    "nfkc": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "no bytes": {"byte_fallback": False, "vocab_size": 400},
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("with_decoder", [True, False])
def test_internlm2_equals_the_slow_tokenizer(tmp_path, name, with_decoder):
    model = sentencepiece_model(**MODELS[name])
    ids = internlm2_folder(tmp_path, model, with_decoder)
    tokenizer = load_tokenizer(tmp_path)
    slow = SentencePieceBackend(
        vocab_file=str(tmp_path / "tokenizer.model"),
        legacy=True,
        added_tokens_decoder={i: AddedToken(t, special=True, normalized=False) for t, i in ids.items()},
        **NAMES,
    )
    for text in TEXTS:
        expected = by_stretch(model, {"<s>": 1, "</s>": 2, "<unk>": 0, **ids}, text)
        assert slow(text, add_special_tokens=False)["input_ids"] == expected, text
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected, text
        assert tokenizer(text)["input_ids"] == [1, *expected], text
    assert tokenizer.eos_token_id == 2 and tokenizer.convert_tokens_to_ids("<|im_start|>") == ids["<|im_start|>"]
    assert len(tokenizer) == max(ids.values()) + 1


def test_remote_code_is_not_run_and_nothing_is_fetched(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    internlm2_folder(tmp_path, sentencepiece_model())
    assert load_tokenizer(tmp_path).is_fast
    assert not (tmp_path / "was_run").exists()
    assert not any(name.endswith(".py") for name in TOKENIZER_FILES)


@pytest.mark.parametrize("legacy", [None, True, False])
def test_vicuna_equals_sentencepiece(tmp_path, legacy):
    vicuna_folder(tmp_path, legacy)
    tokenizer = load_tokenizer(tmp_path)
    model = sentencepiece_model()
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    proto.normalizer_spec.add_dummy_prefix = False
    bare = proto.SerializeToString()
    specials = {"<s>": 1, "</s>": 2, "<unk>": 0}
    for text in TEXTS:
        expected = by_stretch(model, specials, text)
        if legacy is False:  # the space is put before the text, and dropped before a special token
            front = "" if not text or text.startswith(tuple(specials)) else "▁"
            expected = by_stretch(bare, specials, front + text)
        assert tokenizer(text)["input_ids"] == [1, *expected], text
    assert tokenizer.eos_token == "</s>" and tokenizer.pad_token is None
    assert tokenizer.decode(tokenizer("the user  asks 🐉")["input_ids"], skip_special_tokens=True) == (
        "the user  asks 🐉"
    )


def test_qwen2_equals_transformers(tmp_path):
    n = qwen2_folder(tmp_path)
    tokenizer, expected = load_tokenizer(tmp_path), Qwen2Tokenizer.from_pretrained(tmp_path, local_files_only=True)
    for text in TEXTS:
        ours, theirs = (t(text, return_offsets_mapping=True) for t in (tokenizer, expected))
        assert ours["input_ids"] == theirs["input_ids"] and ours["offset_mapping"] == theirs["offset_mapping"]
        assert tokenizer.decode(ours["input_ids"]) == expected.decode(theirs["input_ids"])
    assert tokenizer("e\u0301")["input_ids"] == tokenizer("é")["input_ids"]
    assert len(tokenizer("123")["input_ids"]) == 3
    assert tokenizer("<|im_start|>")["input_ids"] == [n + 1]
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.bos_token) == ("<|im_end|>", n + 2, None)


def test_qwen2_ids_are_those_listed(tmp_path):
    n = qwen2_folder(tmp_path, with_config=False)
    ids = {"<|im_start|>": n, "<image>": n + 1, "<|endoftext|>": n + 2}
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer("".join(ids))["input_ids"] == list(ids.values())


def test_vocabulary_and_merges_need_no_config(tmp_path):
    qwen2_folder(tmp_path, with_config=False)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer("what happens?")["input_ids"]) == "what happens?"


@pytest.mark.parametrize("kind", ["internlm2", "vicuna", "vicuna once", "qwen2"])
def test_saving_keeps_ids_and_offsets(tmp_path, kind, capfd):
    source, saved, again = tmp_path / "source", tmp_path / "saved", tmp_path / "again"
    if kind == "internlm2":
        internlm2_folder(source, sentencepiece_model())
    elif kind == "qwen2":
        qwen2_folder(source)
    else:
        vicuna_folder(source, legacy=kind == "vicuna")
    first = load_tokenizer(source)
    first.save_pretrained(saved)
    assert (saved / "tokenizer.json").is_file() and not (saved / "tokenizer.model").exists()
    second = load_tokenizer(saved)
    second.save_pretrained(again)
    third = load_tokenizer(again)
    for text in TEXTS:
        expected = first(text, return_offsets_mapping=True)
        for other in (second, third):
            assert dict(other(text, return_offsets_mapping=True)) == dict(expected), text
            assert other.decode(expected["input_ids"]) == first.decode(expected["input_ids"])
    for name in (*NAMES, "model_max_length"):
        assert getattr(first, name) == getattr(second, name) == getattr(third, name)
    assert "holes" not in capfd.readouterr().err


@pytest.mark.parametrize("form", ["internvl2_5", "vicuna_v1"])
def test_offsets_divide_the_prompt_by_piece(tmp_path, form):
    if form == "internvl2_5":
        internlm2_folder(tmp_path, sentencepiece_model())
    else:
        vicuna_folder(tmp_path, legacy=False)
    tokenizer = load_tokenizer(tmp_path)
    chunk = [p for p in pieces(template(form), "它说了什么？", ["a car", "a dog"], 2) if p.role != "video"]
    divided = _tokenized_text(tokenizer, chunk, first=True)
    assert [i for _, ids in divided for i in ids] == tokenizer("".join(p.text for p in chunk))["input_ids"]
    texts = [tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") for _, ids in divided]
    plain = [re.sub(r"<\|?/?(im|img)[a-z_]*\|?>| ", "", p.text) for p in chunk]
    assert texts == plain


def byte_level_json(folder, config, template_bos):
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("abc")}, merges=[]))
    core.add_special_tokens(["<s>", "</s>"])
    if template_bos:
        core.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 3)]
        )
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


@pytest.mark.parametrize("in_file", [True, False])
@pytest.mark.parametrize("said", [None, True, False])
def test_the_config_decides_about_bos_and_else_the_file(tmp_path, in_file, said):
    config = {**NAMES, "unk_token": None} | ({} if said is None else {"add_bos_token": said})
    tokenizer = byte_level_json(tmp_path, config, in_file)
    front = [3] if (in_file if said is None else said) else []
    assert tokenizer("ab")["input_ids"] == [*front, 0, 1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (3, 4)


def test_a_lone_tokenizer_json_takes_names_from_the_map(tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": decoder_entry("</s>")}))
    assert byte_level_json(tmp_path, None, False).eos_token_id == 4


def test_the_map_wins_over_a_config_of_the_old_form(tmp_path):
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
    config = {"bos_token": "<s>", "eos_token": "<s>"}
    assert byte_level_json(tmp_path, config, False).eos_token == "</s>"
    listed = {"added_tokens_decoder": {"3": decoder_entry("<s>")}}
    assert byte_level_json(tmp_path, config | listed, False).eos_token == "<s>"


def test_missing_listed_tokens_are_added(tmp_path):
    config = {**NAMES, "unk_token": None, "added_tokens_decoder": {"5": decoder_entry("<image>")}}
    tokenizer = byte_level_json(tmp_path, config, False)
    assert tokenizer("a<image>b")["input_ids"] == [0, 5, 1]
    config["added_tokens_decoder"]["1"] = decoder_entry("<video>")
    with pytest.raises(ConversionError, match=r"contradict each other: '<video>' is listed as 1 but is 5"):
        byte_level_json(tmp_path, config, False)


def test_no_tokenizer_at_all_is_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(tmp_path) is None


def cut(path, share):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config.json": "{}"}, "no vocabulary: found tokenizer_config.json; needed is tokenizer.json"),
        ({"vocab.json": "{}"}, "found vocab.json; needed is .*merges.txt"),
        ({"merges.txt": "", "tokenizer_config.json": "{}"}, "found merges.txt, tokenizer_config.json"),
        ({"qwen.tiktoken": "x"}, "found qwen.tiktoken; needed is"),
        ({"vocab.txt": "[UNK]"}, "found vocab.txt; needed is"),
        ({"vocab.json": '{"a": 0', "merges.txt": ""}, "damaged"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "#version: 0.2\na b"}, "do not fit together"),
        ({"tokenizer.json": '{"version": "1.0"'}, "cannot be read .*cut short"),
        ({"tokenizer.json": "{}"}, "cannot be read"),
        ({"tokenizer.model": "version https://git-lfs.github.com/spec/v1\n"}, "sentencepiece model|no unknown token"),
        ({"tokenizer.model": ""}, "0 pieces"),
        ({"tokenizer_config.json": '{"eos'}, "tokenizer_config.json is no JSON"),
        ({"tokenizer_config.json": "[]"}, "a JSON object is needed"),
        ({"tokenizer_config.json": '{"added_tokens_decoder": {"x": "<s>"}}'}, "not ids with texts"),
        ({"tokenizer_config.json": '{"added_tokens_decoder": {"7": {}}}'}, "not ids with texts"),
        ({"added_tokens.json": '{"<s>": null}'}, "not ids with texts"),
    ],
)
def test_incomplete_or_damaged_files_are_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConversionError, match=message):
        load_tokenizer(tmp_path)


def test_cut_files_are_refused(tmp_path):
    source, saved = tmp_path / "source", tmp_path / "saved"
    internlm2_folder(source, sentencepiece_model())
    load_tokenizer(source).save_pretrained(saved)
    cut(saved / "tokenizer.json", 0.5)
    cut(source / "tokenizer.model", 0.5)
    for folder in (saved, source):
        with pytest.raises(ConversionError, match="copy it again"):
            load_tokenizer(folder)


def test_other_kinds_of_sentencepiece_are_refused(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(model_type="unigram", vocab_size=400))
    with pytest.raises(ConversionError, match="kind UNIGRAM; only BPE"):
        load_tokenizer(tmp_path)


def test_check_tokens_names_what_is_not_one_token(tmp_path):
    internlm2_folder(tmp_path / "intern", sentencepiece_model(byte_fallback=False, vocab_size=400))
    qwen2_folder(tmp_path / "qwen")
    intern, qwen = load_tokenizer(tmp_path / "intern"), load_tokenizer(tmp_path / "qwen")
    assert check_tokens(intern, ["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<s>", "<unk>"]) == []
    assert check_tokens(qwen, ["<|im_start|>", "<img>", "", "<|im_end|>"]) == ["<img>", ""]
    assert check_tokens(intern, ["🐉"]) == ["🐉"]


@pytest.mark.parametrize("form", ["list", "dict"])
def test_chat_templates_travel_nowhere_and_name_no_file_elsewhere(tmp_path, form):
    """Some versions of transformers write each named template to a file of its name."""
    folder = tmp_path / "source"
    byte_level_json(folder, {}, False)

    def named(name):
        templates = {"default": "x", name: "y"}
        listed = [{"name": k, "template": v} for k, v in templates.items()]
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"chat_template": templates if form == "dict" else listed, "unused": "z"})
        )
        return load_tokenizer(folder)

    for name in ("../../evil", "/tmp/evil", "a\\b", "", ".."):
        with pytest.raises(ConversionError, match=r"names chat templates .* which are no plain file names"):
            named(name)
    named("tool_use").save_pretrained(tmp_path / "saved")
    written = "".join(p.read_text() for p in (tmp_path / "saved").rglob("*") if p.is_file())
    assert "chat_template" not in written and "unused" not in written


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.json"])
def test_a_pipe_or_an_endless_file_is_no_tokenizer(tmp_path, name):
    """A pipe waits for a writer for good, a sparse file of 40 GB takes the memory."""
    qwen2_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink(missing_ok=True)
    if name == "tokenizer.model":
        (tmp_path / "vocab.json").unlink()
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConversionError, match="is no regular file but a pipe"):
        load_tokenizer(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 40_000_000_000)
    with pytest.raises(ConversionError, match=r"has 40,000,000,000 bytes, more than the 268,435,456"):
        load_tokenizer(tmp_path)
