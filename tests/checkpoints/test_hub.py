"""Downloads from the hub, against a real server on this machine that loses connections when told to.

The hub's library reads its settings when imported, so every download runs in a process of its own.
"""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hookedvid.checkpoints.hub import commit_of
from hookedvid.conversion.pickles import pickle_message
from hookedvid.conversion.provenance import Provenance
from hub_server import Fault, Hub, Repo, running
from originals import original

pytestmark = pytest.mark.shapes_unchecked

OLD, NEW = "a" * 40, "b" * 40
MB = 1 << 20
CUT = 12 * MB  # past the library's first chunk of 10 MB: bytes of an unfinished chunk are not kept
BIG = random.Random(0).randbytes(15 * MB)
TEXTS = (
    "config.json", "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
    "tokenizer.json", "chat_template.jinja", "adapter_config.json",
)  # fmt: skip
FILES = {name: name.encode() for name in TEXTS} | {
    "model-00001-of-00002.safetensors": b"first" * 100,
    "model-00002-of-00002.safetensors": BIG,
    "model.safetensors.index.json": b"{}",
}
FIRST, SECOND = (n for n in FILES if n.endswith(".safetensors"))
OTHERS = {n: b"x" for n in ("README.md", "modeling.py", "chat_template.py", "model.bin", "onnx/model.onnx")} | {
    "checkpoint-500/model.safetensors": b"x",
    "checkpoint-500/config.json": b"x",
}
PROGRAM = """
import json, sys, time
time.sleep = lambda seconds: None  # between tries
from hookedvid.errors import ConversionError
from hookedvid.checkpoints.hub import commit_of, fetch
for args in json.loads(sys.argv[1]):
    try:
        folder = fetch(*args)
        print(json.dumps({"folder": str(folder), "commit": commit_of(folder)}))
    except ConversionError as e:
        print(json.dumps({"error": str(e), "cause": type(e.__cause__).__name__}))
assert not {"torch", "transformers"} & set(sys.modules)
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as server:
        server.repos["some/model"] = Repo({OLD: FILES | OTHERS}, {"main": OLD})
        yield server


def environment(hub: Hub, home: Path, **changes: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    return kept | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home)} | changes


def ask(hub: Hub, home: Path, *calls: tuple[str, ...], **changes: str) -> list[Any]:
    """What `fetch` of each call's arguments gives, in one process."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(calls)]
    done = subprocess.run(command, env=environment(hub, home, **changes), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def contents(folder: str) -> dict[str, bytes]:
    root = Path(folder)
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_only_needed_files_come_once_and_the_cache_serves_offline(hub, tmp_path):
    home = tmp_path / "home"
    (got,) = ask(hub, home, ("some/model",))
    assert Path(got["folder"]).is_relative_to(home) and got["commit"] == OLD
    assert contents(got["folder"]) == FILES
    assert {r.file for r in hub.log if r.file} == FILES.keys(), "neither asked for nor even looked at"
    assert len(hub.gets()) == len(FILES)

    hub.log.clear()
    assert ask(hub, home, ("some/model",), ("some/model", OLD)) == [got, got]
    assert hub.log and not [r for r in hub.log if r.file]

    hub.log.clear()
    offline = ask(hub, home, ("some/model",), ("some/model", "v2"), ("other/model",), HF_HUB_OFFLINE="1")
    assert offline[0] == got and not hub.log
    for asked, refused in zip(("some/model at revision 'v2'", "other/model"), offline[1:], strict=True):
        assert refused["error"] == (
            f"HF_HUB_OFFLINE is set and of {asked}, it is not in the cache {home}/hub; unset HF_HUB_OFFLINE to "
            "download it, or copy the folder from a machine that has it and give its path"
        )
        assert refused["cause"] == "OfflineModeIsEnabled"
    hub.faults = [Fault("some/model", "status", 503, times=9)]
    assert ask(hub, home, ("some/model",)) == [got], "a hub that is down does no harm to what is cached"


def test_a_revision_pins_and_a_wrong_one_is_told_what_exists(hub, tmp_path):
    small = {"config.json": b"old", "model.safetensors": b"same weights"}
    commits = {OLD: small, NEW: small | {"config.json": b"new"}}
    hub.repos["some/model"] = Repo(commits, {"main": NEW, "v1": OLD})
    (main,) = ask(hub, tmp_path, ("some/model",))
    hub.repos["some/model"].listed["model.safetensors"] = 10**18  # no disk has room, were it not there already
    tag, commit, wrong = ask(hub, tmp_path, *(("some/model", revision) for revision in ("v1", OLD, "v2")))
    assert (main["commit"], tag["commit"], commit["commit"]) == (NEW, OLD, OLD)
    assert contents(tag["folder"])["config.json"] == b"old" and contents(main["folder"])["config.json"] == b"new"
    assert len([r for r in hub.gets() if "linked" in r.path]) == 1, "the same weights are downloaded once"
    assert wrong["error"] == (
        "some/model has no revision 'v2' (nearest: 'v1'); give a branch, a tag or a full commit hash"
    )
    assert wrong["cause"] == "RevisionNotFoundError"


def test_a_connection_cut_within_a_file_goes_on_from_there(hub, tmp_path):
    hub.faults = [
        Fault(SECOND, "cut", CUT),
        Fault("config.json", "status", 503, method="HEAD"),
        Fault(FIRST, "cut", 0),
    ]
    (got,) = ask(hub, tmp_path, ("some/model",))
    assert contents(got["folder"]) == FILES
    assert [r.start for r in hub.gets(SECOND)] == [None, 10 * MB]
    assert not [f for f in hub.faults if f.times], "every fault happened"


def test_a_connection_lost_for_good_says_to_run_again_and_keeps_what_finished(hub, tmp_path):
    hub.faults = [Fault(SECOND, "reset", CUT), Fault(SECOND, "cut", 0, times=6), Fault(SECOND, "status", 503)]
    reset, cut, down, got = ask(hub, tmp_path, *[("some/model",)] * 4)
    assert down["error"] == (
        f"{hub.url} answered 503 for some/model, and only a part of it is in the cache {tmp_path}/hub; "
        "wait, then run the same command again: files that finished are kept"
    )
    for lost, cause in ((reset, "ReadError"), (cut, "RemoteProtocolError")):
        assert lost["cause"] == cause
        assert lost["error"].startswith(f"the connection to {hub.url} dropped before some/model was complete (")
        assert lost["error"].endswith("; run the same command again: files that finished are kept")
    assert contents(got["folder"]) == FILES
    assert len(hub.gets(FIRST)) == 1


def test_a_killed_process_leaves_a_cache_that_the_next_one_completes(hub, tmp_path):
    hub.faults = [Fault(SECOND, "stall", CUT)]
    command = [sys.executable, "-c", PROGRAM, '[["some/model"]]']
    with subprocess.Popen(command, env=environment(hub, tmp_path), stderr=subprocess.DEVNULL) as killed:
        try:
            assert hub.stalled.wait(30)
        finally:
            killed.kill()
    (offline,) = ask(hub, tmp_path, ("some/model",), HF_HUB_OFFLINE="1")
    assert "of some/model, only a part of it is in the cache" in offline["error"]
    (got,) = ask(hub, tmp_path, ("some/model",))
    assert contents(got["folder"]) == FILES
    assert {n: len(hub.gets(n)) for n in FILES} == dict.fromkeys(FILES, 1) | {SECOND: 2}


def test_closed_and_missing_repositories_say_how_to_get_in(hub, tmp_path):
    files = {"config.json": b"{}", "model.safetensors": b"w"}
    hub.repos["some/private"] = Repo({OLD: files}, {"main": OLD}, token="right")
    hub.repos["some/gated"] = Repo({OLD: files}, {"main": OLD}, token="right", gated=True)
    hub.faults = [Fault("some/forbidden", "status", 403, times=9), Fault("some/down", "status", 503, times=9)]
    log_in = "log in with `hf auth login` or set HF_TOKEN to a token that may read it"
    names = ("some/private", "some/absent", "some/forbidden", "some/gated", "some/down", "not/a/name")
    private, absent, forbidden, gated, down, bad = ask(hub, tmp_path, *((n,) for n in names), HF_TOKEN="wrong")
    for refused, name, status in zip((private, absent, forbidden), names, (404, 404, 403), strict=False):
        assert refused["error"] == (
            f"{hub.url} shows no model {name} (it answered {status}): check the name; "
            f"if it is private or gated, {log_in}"
        )
    assert gated["error"] == f"some/gated is gated: accept its conditions at {hub.url}/some/gated, then {log_in}"
    assert down["error"] == (
        f"{hub.url} answered 503 for some/down, and it is not in the cache {tmp_path}/hub; "
        "wait, then run the same command again: files that finished are kept"
    )
    assert bad["error"] == "'not/a/name' is neither a folder nor the name of a hub repository, owner/name"
    causes = [r["cause"] for r in (private, forbidden, gated, down, bad)]
    assert causes == [
        "RepositoryNotFoundError", "HfHubHTTPError", "GatedRepoError", "HfHubHTTPError", "HFValidationError",
    ]  # fmt: skip
    (nobody,) = ask(hub, tmp_path, ("some/private",))
    assert "(it answered 401)" in nobody["error"]
    assert [r["commit"] for r in ask(hub, tmp_path, ("some/private",), ("some/gated",), HF_TOKEN="right")] == [OLD] * 2


def test_pickles_no_weights_and_a_full_disk_are_refused_before_any_download(hub, tmp_path):
    def serve(name: str, *files: str, **listed: int) -> tuple[str]:
        hub.repos[f"some/{name}"] = Repo({OLD: {n: b"x" for n in files}}, {"main": OLD}, listed=listed)
        return (f"some/{name}",)

    adapter = ("adapter_config.json", "adapter_model.safetensors", "non_lora_trainables.bin")
    hub.repos["some/huge"] = Repo({OLD: FILES}, {"main": OLD}, listed={SECOND: 10**18})
    calls = [
        serve("pickled", "config.json", "part-1.bin", "part-2.pt", "part-3.pth", "training_args.bin", "optimizer.pt"),
        serve("lora", *adapter, "training_args.bin"),
        serve("readme", "README.md", "training_args.bin", "sub/model.safetensors", "sub/pytorch_model.bin"),
        ("some/huge",),
        serve("mended", *adapter, "non_lora_trainables.safetensors"),
    ]
    pickled, lora, readme, huge, mended = ask(hub, tmp_path, *calls)
    assert pickled["error"] == (
        "some/pickled has weights that only pickles hold. Download it with\n"
        f"hf download some/pickled --revision {OLD} --local-dir pickled\n"
        + pickle_message("pickled", ["part-1.bin", "part-2.pt", "part-3.pth"])
    )
    assert "non_lora_trainables.bin in lora: pickles are never loaded" in lora["error"]
    assert readme["error"].startswith(
        "some/readme holds no *.safetensors at its top level (it has README.md, training_args.bin)"
    )
    assert huge["error"].startswith(f"some/huge needs 1,000,000,000.0 GB more and {tmp_path}/hub has ")
    assert "free; set HF_HOME to a folder on a larger disk" in huge["error"]
    assert mended["commit"] == OLD and {r.path.split("/")[1] for r in hub.gets()} == {"some"}
    assert {"/".join(r.path.split("/")[1:3]) for r in hub.log if r.file} == {"some/mended"}


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path):
    (tmp_path / "file").write_text("")
    (got,) = ask(hub, tmp_path / "file", ("some/model",))
    assert got["error"].startswith("some/model cannot be written to the cache (") and str(tmp_path) in got["error"]
    assert got["error"].endswith("; set HF_HOME to a folder with room that you may write to")


def test_no_network_and_a_half_cached_copy_say_what_is_missing(hub, tmp_path):
    part = tmp_path / "hub" / "models--some--part"
    (part / "snapshots" / OLD).mkdir(parents=True)
    (part / "refs").mkdir()
    (part / "refs" / "main").write_text(OLD)
    nobody = "http://127.0.0.1:9"  # the discard port, where nothing listens
    unreached, half = ask(hub, tmp_path, ("some/model",), ("some/part",), HF_ENDPOINT=nobody)
    assert unreached["error"].startswith(f"cannot reach {nobody} for some/model (")
    assert f"and it is not in the cache {tmp_path}/hub; connect and run the same command again" in unreached["error"]
    assert "copy the folder from one that has it and give its path" in unreached["error"]
    assert f"and only a part of it is in the cache {tmp_path}/hub; connect and" in half["error"]
    assert {unreached["cause"], half["cause"]} == {"ConnectError"}


def test_the_printed_command_makes_safetensors_of_pickles(tmp_path):
    folder = tmp_path / "a folder's name"
    folder.mkdir()
    tied = torch.randn(3, 4)
    first = {"embed": tied, "head": tied, "slice": tied.t()[1:], "half": torch.ones(2, dtype=torch.bfloat16)}
    torch.save(first, folder / "part-1.bin")
    torch.save({"bias": torch.nn.Parameter(torch.randn(3))}, folder / "part-2.pt")
    message = pickle_message(folder, ["part-1.bin", "part-2.pt"])
    assert "pickles are never loaded" in message
    (command,) = [line for line in message.splitlines() if line.startswith("python -c ")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["/bin/sh", "-c", command], check=True, env=os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"})
    made = load_file(folder / "part-1.safetensors") | load_file(folder / "part-2.safetensors")
    assert made.keys() == {*first, "bias"}
    for k, v in first.items():
        assert torch.equal(made[k], v) and made[k].dtype == v.dtype


def test_only_a_snapshot_folder_has_a_commit(tmp_path):
    assert commit_of(tmp_path / "snapshots" / OLD) == OLD
    assert commit_of(tmp_path / OLD) is None
    assert commit_of(tmp_path / "snapshots" / "main") is None


def test_a_model_by_its_repository_is_downloaded_converted_and_then_needs_no_hub(tmp_path):
    """The whole way of `from_pretrained("owner/name")`, and the same again with the hub gone."""
    files = {p.name: p.read_bytes() for p in original(tmp_path / "theirs").iterdir()}
    # Each load is a process of its own; what both import is imported once.
    code = (
        "import hashlib, os, sys; from hookedvid import HookedVideoLLM\n"
        "for _ in sys.stdin:\n"
        "    if not os.fork():\n"
        "        m = HookedVideoLLM.from_pretrained('lab/tiny-ov', overrides={'vision.n_heads': 4})\n"
        "        bits = b''.join(p.detach().float().numpy().tobytes() for p in m.parameters())\n"
        "        print(hashlib.sha256(bits).hexdigest(), m.cfg.model_name, flush=True)\n"
        "        os._exit(0)\n"
        "    assert not os.wait()[1]"
    )
    with running() as hub:
        hub.repos["lab/tiny-ov"] = Repo({OLD: files}, {"main": OLD})
        env = environment(hub, tmp_path / "hub", HOOKEDVID_HOME=str(tmp_path / "home"))
        command, pipe = [sys.executable, "-c", code], subprocess.PIPE
        loading = subprocess.Popen(command, env=env, text=True, stdin=pipe, stdout=pipe, bufsize=1)
        loading.stdin.write("\n")
        first = loading.stdout.readline()
    again, _ = loading.communicate("\n")
    assert first == again and first.split()[1] == "lab/tiny-ov"
    (made,) = (p for p in (tmp_path / "home").iterdir() if p.is_dir())
    assert made.name.startswith("lab--tiny-ov") and Provenance.load(made).commit == OLD
