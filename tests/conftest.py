"""One thread: small models run no faster on two, and sums keep one order."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, too

import torch

torch.set_num_threads(1)
