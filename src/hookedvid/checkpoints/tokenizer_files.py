"""The fast tokenizer of a checkpoint folder, from data files alone: no code of the folder is run, nothing is fetched.

The original packages tokenize with transformers' slow classes (`use_fast=False`); what is built here gives the same
ids and, being fast, character offsets. It saves as tokenizer.json, which is how converted checkpoints hold it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hookedvid.errors import ConversionError
from hookedvid.values.files import is_plain_name, read_regular

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

TOKENIZER_FILES: tuple[str, ...] = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
# Vocabularies of tokenizers that no family here uses: told apart from "no tokenizer at all".
_FOREIGN = ("*.tiktoken", "*.model", "vocab.txt", "tekken.json")
_NEED = "needed is tokenizer.json, or vocab.json with merges.txt (Qwen2), or tokenizer.model (Llama, InternLM2)"
MAX_SIZE = 256 << 20  # bytes of a file; the largest published tokenizer has some 20 million
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
# Chat templates do not travel: prompts are those of `hookedvid.families.registry`.
_KEPT = ("model_max_length", "padding_side", "add_bos_token", "add_eos_token")


def load_tokenizer(folder: str | Path) -> "PreTrainedTokenizerFast | None":
    """The fast tokenizer of a checkpoint folder, or None where the folder has no tokenizer file.

    tokenizer.json is used where it exists; else vocab.json and merges.txt are read as Qwen2's, or tokenizer.model as
    sentencepiece's BPE. `auto_map` in tokenizer_config.json is ignored.

    Raises:
        ConversionError: Where files are missing, damaged or contradict each other.
    """
    folder = Path(folder)
    names = sorted({p.name for pattern in (*TOKENIZER_FILES, *_FOREIGN) for p in folder.glob(pattern)})
    if not names:
        return None
    settings = _settings(folder)
    _check_template_names(folder, settings.get("chat_template"))
    listed = _listed(folder, settings)
    if "tokenizer.json" in names:
        core = _from_json(folder / "tokenizer.json")
    elif {"vocab.json", "merges.txt"} <= set(names):
        core = _qwen2(folder, listed)
        settings = {"add_bos_token": False, **settings}
    elif "tokenizer.model" in names:
        core, named = _sentencepiece(folder / "tokenizer.model", listed, settings.get("legacy") is False)
        settings = {"add_bos_token": True, "add_eos_token": False, **named, **settings}
    else:
        raise ConversionError(f"{folder} has no vocabulary: found {', '.join(names)}; {_NEED}. Copy the missing file")
    _add_listed(core, listed, folder)
    return _wrapped(core, settings)


def check_tokens(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """Those of the texts that are not exactly one known token: not empty means the wrong tokenizer for a family."""
    wrong = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1 or (ids[0] == tokenizer.unk_token_id and text != tokenizer.unk_token):
            wrong.append(text)
    return wrong


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where the file does not exist."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_regular(path, MAX_SIZE, ConversionError))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as e:
        raise ConversionError(
            f"{path} is no JSON ({e}); copy it again, it may be cut short or a Git LFS pointer"
        ) from e
    if not isinstance(value, dict):
        raise ConversionError(f"{path} holds a {type(value).__name__}, a JSON object is needed; copy it again")
    return value


def _settings(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json and special_tokens_map.json as one.

    The map wins only over the old form of the config, which does not list its added tokens, as in transformers.
    """
    config, names = _read_json(folder / "tokenizer_config.json"), _read_json(folder / "special_tokens_map.json")
    return {**names, **config} if "added_tokens_decoder" in config else {**config, **names}


def _check_template_names(folder: Path, templates: Any) -> None:
    """Raise ConversionError for named chat templates whose names are no file's, which some libraries write to."""
    entries = templates if isinstance(templates, list) else []
    names = (
        list(templates)
        if isinstance(templates, Mapping)
        else [e.get("name") for e in entries if isinstance(e, Mapping)]
    )
    if strange := [n for n in names if not (isinstance(n, str) and is_plain_name(n))]:
        raise ConversionError(
            f"tokenizer_config.json of {folder} names chat templates {', '.join(map(repr, strange[:4]))}, which are no "
            "plain file names; remove them, they are not read here"
        )


def _content(token: Any) -> str | None:
    """The text of a token, which files hold as a string or as an object."""
    return token.get("content") if isinstance(token, Mapping) else token


def _listed(folder: Path, settings: Mapping[str, Any]) -> dict[int, "AddedToken"]:
    """Added tokens by id, in order. All are matched in the raw text, as slow tokenizers do, hence normalized=False."""
    from tokenizers import AddedToken

    decoder = settings.get("added_tokens_decoder")
    if decoder is None:
        decoder = {i: t for t, i in _read_json(folder / "added_tokens.json").items()}
    out = {}
    try:
        for i, token in sorted((int(i), t) for i, t in decoder.items()):
            flags = token if isinstance(token, Mapping) else {"special": True}
            sides = {k: bool(flags.get(k, False)) for k in ("lstrip", "rstrip", "single_word", "special")}
            text = token["content"] if isinstance(token, Mapping) else token
            out[i] = AddedToken(text, normalized=False, **sides)
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ConversionError(f"the added tokens of {folder} are not ids with texts ({e}); copy the files again") from e
    return out


def _from_json(path: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    data = read_regular(path, MAX_SIZE, ConversionError)
    try:
        return Tokenizer.from_buffer(data)
    except Exception as e:  # the tokenizers package raises nothing narrower
        raise ConversionError(f"{path} cannot be read ({e}); copy it again, it may be cut short") from e


def _qwen2(folder: Path, listed: Mapping[int, "AddedToken"]) -> "Tokenizer":
    """Byte-level BPE with Qwen2's splitting expression and NFC, both transformers' own."""
    from tokenizers.models import BPE
    from transformers import Qwen2Tokenizer

    for name in ("vocab.json", "merges.txt"):
        read_regular(folder / name, MAX_SIZE, ConversionError)  # the tokenizers package would wait for a pipe
    try:
        vocab: dict[str, int]
        merges: Any  # pairs, which transformers takes but does not declare
        vocab, merges = BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        vocab |= {t.content: i for i, t in listed.items()}
        return Qwen2Tokenizer(vocab=vocab, merges=merges).backend_tokenizer
    except Exception as e:  # the tokenizers package raises nothing narrower
        raise ConversionError(
            f"vocab.json and merges.txt of {folder} do not fit together or are damaged ({e}); copy both again"
        ) from e


def _sentencepiece(
    path: Path, listed: Mapping[int, "AddedToken"], prefix_once: bool
) -> tuple["Tokenizer", dict[str, str]]:
    """A tokenizer with sentencepiece's ids, and the texts of its named special tokens.

    Args:
        prefix_once: The space in front goes before the whole text only (`"legacy": false`); otherwise before each
            stretch between special tokens, if the model says add_dummy_prefix, because a slow tokenizer encodes every
            stretch alone.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models

    proto = _read_proto(path)
    spec, kinds = proto.trainer_spec, proto.SentencePiece
    # A listed token takes the place of the piece that has its id: InternLM2 names its [UNUSED_TOKEN_146] <|im_start|>.
    pieces = [(i, p) for i, p in enumerate(proto.pieces) if i not in listed]
    vocab = {p.piece: i for i, p in pieces} | {t.content: i for i, t in listed.items()}
    name = {i: t for t, i in vocab.items()}
    ordinary = {p.piece: p.score for _, p in pieces if p.type == kinds.NORMAL}
    core = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=_merges(ordinary),
            unk_token=name[spec.unk_id],
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
        )
    )
    scheme = "first" if prefix_once else "always" if proto.normalizer_spec.add_dummy_prefix else "never"
    _set_whitespace(core, proto.normalizer_spec, scheme)
    strip = [decoders.Strip(" ", 1, 0)] if scheme != "never" else []
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    # Matched after normalization, as sentencepiece does: such a piece may hold the space mark itself.
    core.add_tokens([AddedToken(p.piece, normalized=True) for _, p in pieces if p.type == kinds.USER_DEFINED])
    ids = {"unk_token": spec.unk_id, "bos_token": spec.bos_id, "eos_token": spec.eos_id, "pad_token": spec.pad_id}
    return core, {k: name[i] for k, i in ids.items() if i in name}


def _read_proto(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2  # made at run time, so type checkers see nothing in it
    proto = messages.ModelProto()
    try:
        proto.ParseFromString(read_regular(path, MAX_SIZE, ConversionError))
    except DecodeError as e:
        raise ConversionError(f"{path} is no sentencepiece model ({e}); copy it again, it may be cut short") from e
    spec = proto.trainer_spec
    if not 0 <= spec.unk_id < len(proto.pieces):
        raise ConversionError(f"{path} has {len(proto.pieces)} pieces and no unknown token; copy it again")
    if spec.model_type != spec.BPE or spec.treat_whitespace_as_suffix:
        raise ConversionError(
            f"{path} is a sentencepiece model of kind {spec.ModelType.Name(spec.model_type)}; only BPE with the space "
            "in front is read. Save the tokenizer as tokenizer.json with transformers and put that in the folder"
        )
    return proto


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Sentencepiece joins the pair whose joined piece scores highest: every split of every piece, best piece first."""
    best = sorted(scores, key=lambda piece: -scores[piece])
    return [
        (piece[:cut], piece[cut:])
        for piece in best
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in scores and piece[cut:] in scores
    ]


def _set_whitespace(core: "Tokenizer", spec: Any, scheme: str) -> None:
    """Sentencepiece's normalization, and the space mark "▁" in front by the scheme always, first or never.

    Metaspace adds no mark where the text begins with one, sentencepiece does. So spaces become marks first, and a
    Metaspace whose mark is the space puts one in front, which the last one turns into the mark.
    """
    from tokenizers import Regex, normalizers, pre_tokenizers

    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    steps.append(normalizers.Replace(" ", "▁"))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"▁+\z"), ""))
    core.normalizer = normalizers.Sequence(steps)
    if scheme != "never":
        in_front = pre_tokenizers.Metaspace(" ", scheme, split=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([in_front, pre_tokenizers.Metaspace("▁", "never", split=False)])


def _add_listed(core: "Tokenizer", listed: Mapping[int, "AddedToken"], folder: Path) -> None:
    """Make the listed tokens split the text, and see that each has the id it is listed with."""
    known = {t.content for t in core.get_added_tokens_decoder().values()}
    core.add_tokens([t for t in listed.values() if t.content not in known])
    ids = {t.content: (i, core.token_to_id(t.content)) for i, t in listed.items()}
    wrong = [f"{text!r} is listed as {i} but is {got}" for text, (i, got) in ids.items() if i != got]
    if wrong:
        raise ConversionError(
            f"the tokenizer files of {folder} contradict each other: {'; '.join(wrong[:5])}. Take all from one release"
        )


def _wrapped(core: "Tokenizer", settings: Mapping[str, Any]) -> "PreTrainedTokenizerFast":
    """Made from the tokenizer itself: from_pretrained takes large Qwen2 vocabularies for Mistral's and warns."""
    from transformers import PreTrainedTokenizerFast

    named = {k: text for k in _NAMED if (text := _content(settings.get(k))) is not None}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    extra = extra.values() if isinstance(extra, Mapping) else extra
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **named,
        extra_special_tokens=[_content(t) for t in extra],
        clean_up_tokenization_spaces=bool(settings.get("clean_up_tokenization_spaces", False)),
        **{k: settings[k] for k in _KEPT if settings.get(k) is not None},
    )
