"""PyTorch's scaled_dot_product_attention on a CPU, forward or backward, on the data of Tributary's benchmark.

  python attention_torch.py --shape 2048 8 64 --causal --type float --direction backward --threads 2
"""

import argparse
import json
import os
import statistics
import time

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--shape", type=int, nargs=3, metavar=("S", "H", "D"), default=[2048, 8, 64])
parser.add_argument("--causal", action="store_true")
parser.add_argument("--type", choices=["float", "bfloat16"], default="float")
parser.add_argument("--direction", choices=["forward", "backward"], default="forward")
parser.add_argument("--threads", type=int, default=1)
parser.add_argument("--repetitions", type=int, default=5)
parser.add_argument("--save", metavar="FOLDER", help="inputs, output and gradients as .npy files in float32")
args = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)  # read when torch loads

import numpy as np  # noqa: E402
import torch  # noqa: E402

import inputs  # noqa: E402


def as_torch(array):
    """[S, H, D] as torch would have it, [1, H, S, D] contiguous."""
    return torch.from_numpy(array).to(getattr(torch, "float32" if args.type == "float" else args.type)).transpose(0, 1).contiguous()[None]


def seconds_of(call):
    times = []
    for _ in range(args.repetitions + 1):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def sgemm_rate():
    n = 2048
    a, b, c = (torch.from_numpy(inputs.uniform(stream, n, n)) for stream in (1, 2, 3))
    return 2.0 * n**3 / seconds_of(lambda: torch.mm(a, b, out=c))


def main():
    torch.set_num_threads(args.threads)
    length, heads, head_dim = args.shape
    arrays = inputs.attention(length, heads, head_dim)
    query, key, value, grad_out = map(as_torch, arrays)
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=args.causal)  # noqa: E731
    if args.direction == "forward" and not args.save:
        with torch.no_grad():
            seconds = seconds_of(attend)
    else:
        wanted = [tensor.requires_grad_() for tensor in (query, key, value)]
        out = attend()  # once: its graph is kept, so that the gradients alone are timed
        gradients = lambda: torch.autograd.grad(out, wanted, grad_out, retain_graph=True)  # noqa: E731
        seconds = seconds_of(gradients)
        if args.save:
            results = dict(zip(("grad_query", "grad_key", "grad_value"), gradients()), out=out)
            results = {name: tensor.detach()[0].transpose(0, 1).float().numpy() for name, tensor in results.items()}
            for name, array in {**dict(zip(("query", "key", "value", "grad_out"), arrays)), **results}.items():
                np.save(os.path.join(args.save, name + ".npy"), np.ascontiguousarray(array))
    pairs = length * (length + 1) / 2 if args.causal else length**2
    flop = 2.0 * (2 if args.direction == "forward" else 5) * heads * head_dim * pairs
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "seconds": seconds, "GFLOP/s": 1e-9 * flop / seconds,
                      "SGEMM": 1e-9 * sgemm_rate()}))


main()
