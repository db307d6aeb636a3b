"""One thread: small models run no faster on two, and sums keep one order."""

import torch

torch.set_num_threads(1)
