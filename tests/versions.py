"""Versions that tests against an installed package need."""

import pytest
import torch
import transformers
from packaging.version import Version

# Before, Qwen3-VL's processor refuses short sides and rounds odd frame counts up, none has a cap on pixels, and Lanczos
# becomes bicubic without torch's kernel.
processors_of_today = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.24") or Version(torch.__version__) < Version("2.12"),
    reason="the processors of these versions of transformers and torch do otherwise",
)
