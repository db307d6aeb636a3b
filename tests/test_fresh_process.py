"""What only a process shows that has imported nothing: one does it all, in this order, as importing takes longest."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = '''
import pathlib, resource, socket, subprocess, sys
start = subprocess.Popen.__init__
def refuse(*args, **kwargs):
    raise SystemExit(f"reached out: {args[1:]}")
def run(self, command, *args, **kwargs):
    return refuse(self, command) if "pip" in str(command) else start(self, command, *args, **kwargs)
socket.socket.connect = socket.getaddrinfo = refuse
subprocess.Popen.__init__ = run

# Packages that bear the names of modules before them.
from hookedvid.model import HookedVideoLLM
from hookedvid.sweep import sweep
from hookedvid.families import small_config
from hookedvid.data.shapes import make_dataset
from hookedvid.cli import main
assert all(map(callable, (HookedVideoLLM, sweep, small_config, make_dataset, main)))
print("packages: have their names")

import torch
from hookedvid.values.config import DecoderConfig, VideoLLMConfig
torch.set_num_threads(1)
decoder = DecoderConfig(n_layers=2, d_model=16, n_heads=2, n_kv_heads=1, d_head=8, d_mlp=16, d_vocab=300)
model = HookedVideoLLM.from_config(VideoLLMConfig(family="text", decoder=decoder))
model.attention(torch.zeros(1, 5, dtype=torch.long), reduce="segments")
print("compiler:", "torch._dynamo" in sys.modules)

def in_little_room(tokens):
    """In 16 MB more than the process has; scores and pattern of two heads in float32 are 128 MB each."""
    model.run_with_cache(tokens[:, :64], names_filter="pattern")
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    before, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + tokens.numel() ** 2, most))
    model(tokens, logits_to_keep=1)
    print("unheard: fits")
    try:
        model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_pattern", logits_to_keep=1)
    except RuntimeError as e:
        print("heard:", "memory" in str(e))
    resource.setrlimit(resource.RLIMIT_AS, (before, most))
if sys.platform == "linux":
    with torch.no_grad():
        in_little_room(torch.zeros(1, 4000, dtype=torch.long))

from lens_model import caches, inputs, metric, model
from transformer_lens import patching
from transformer_lens.tools.analysis import attribution_patch
m = model()
clean, _, bound = caches(m)
patching.get_act_patch_attn_out(bound, bound.tokens, clean, metric)
attribution_patch(bound, inputs(m, 1).tokens, bound.tokens, metric)
clean.logit_lens(top_k=2), clean.decompose_resid(), clean.stack_head_results()
print("tools: reached nowhere")
'''


@pytest.fixture(scope="module")
def said() -> dict[str, str]:
    """What it says of each, and beside it why it ended."""
    here = Path(__file__).parent
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=here)
    return dict(line.split(": ") for line in ran.stdout.splitlines()) | {"in the end": ran.stderr}


def test_packages_of_old_modules_names_give_what_those_held(said):
    assert said.get("packages") == "have their names", said


def test_a_reading_does_not_import_torchs_compiler(said):
    assert said.get("compiler") == "False", said


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited and counted as Linux does")
def test_a_forward_fits_into_less_than_a_byte_for_each_pair(said):
    assert (said.get("unheard"), said.get("heard")) == ("fits", "True"), said


def test_importing_and_using_the_tools_touches_neither_network_nor_installers(said):
    assert said.get("tools") == "reached nowhere", said
