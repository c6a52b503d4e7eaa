"""PyTorch's scaled_dot_product_attention on a CUDA device, backends cuDNN and flash (beyond 256 components: efficient), forward and
backward, on the shapes of Tributary's benchmark (16384 tokens, heads of 2048 numbers together), bfloat16; timed beside the device's own
matrix product as the benchmark is.

  python attention_torch_cuda.py                                 # every case that both take, a line of JSON each
  python attention_torch_cuda.py --filter forward.*D128 --length 8192
  python attention_torch_cuda.py --head-dims 512 --backends efficient --filter backward
"""

import argparse
import re

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

import device_inputs
import device_timing

BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION, "efficient": SDPBackend.EFFICIENT_ATTENTION}


def time_case(name, backend, direction, length, heads, head_dim, causal):
    # [1, H, S, D], contiguous, as torch would have it
    query, key, value, grad_out = (device_inputs.uniform(stream, (1, heads, length, head_dim), torch.bfloat16, "cuda") for stream in (1, 2, 3, 4))
    pairs = length * (length + 1) / 2 if causal else length**2
    flop = 2.0 * (2 if direction == "forward" else 5) * heads * head_dim * pairs
    with sdpa_kernel(BACKENDS[backend]):
        if direction == "forward":
            with torch.no_grad():
                return device_timing.report(name, "bfloat16", flop, lambda: scaled_dot_product_attention(query, key, value, is_causal=causal))
        wanted = [tensor.requires_grad_() for tensor in (query, key, value)]
        out = scaled_dot_product_attention(query, key, value, is_causal=causal)  # once: its graph is kept, so that the gradients alone are timed
        return device_timing.report(name, "bfloat16", flop, lambda: torch.autograd.grad(out, wanted, grad_out, retain_graph=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--head-dims", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--backends", nargs="+", choices=list(BACKENDS), default=["cudnn", "flash"])
    parser.add_argument("--filter", default="", help="a regular expression that a case's name must contain")
    args = parser.parse_args()
    for head_dim in args.head_dims:
        for causal in (False, True):
            for direction in ("forward", "backward"):
                for backend in args.backends:
                    heads = 2048 // head_dim
                    shape = f"S{args.length}_H{heads}_D{head_dim}_{'causal' if causal else 'full'}"
                    name = f"attention_{direction}/cuda/bfloat16/{shape}/{backend}"
                    if not re.search(args.filter, name):
                        continue
                    try:
                        time_case(name, backend, direction, args.length, heads, head_dim, causal)
                    except RuntimeError as error:  # a backend that does not take the shape
                        device_timing.report_error(name, error)


main()
