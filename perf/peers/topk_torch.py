"""PyTorch's topk on a CUDA device, sorted, on the shapes of Tributary's benchmark; times by CUDA events, calls back to back.

  python topk_torch.py                             # all shapes
  python topk_torch.py --shape 2048 65536 512 --type bfloat16 --order ascending
"""

import argparse
import json
import statistics

import torch

SHAPES = [
    (2048, 65536, 512), (512, 262144, 1024), (1, 262144, 512), (1, 262144, 2048), (4, 262144, 512), (16, 262144, 512), (16, 262144, 2048),
    (1, 8192, 512), (64, 65536, 512), (132, 65536, 512), (200, 65536, 512), (1, 16777216, 1024), (8192, 8192, 512), (8192, 2048, 256),
    (100000, 1024, 64), (1000000, 64, 8),
]  # fmt: skip


def values_of(rows, columns, order, element_type):
    if order == "random":
        torch.manual_seed(1)
        return (torch.rand(rows, columns, device="cuda") * 2 - 1).to(element_type)
    if order == "ascending":
        return torch.arange(columns, device="cuda", dtype=torch.float32).to(element_type).expand(rows, columns).contiguous()
    return torch.ones(rows, columns, device="cuda", dtype=element_type)


def seconds_of(call, repetitions):
    def train(calls):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end) / calls

    call()
    calls = min(500, max(1, int(5e-3 / train(4))))
    train(calls)
    return statistics.median(train(calls) for _ in range(repetitions))


def copy_rate(repetitions):
    source = torch.rand(2**29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / seconds_of(lambda: target.copy_(source), repetitions)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("ROWS", "COLUMNS", "K"))
    parser.add_argument("--order", choices=["random", "ascending", "equal"], default="random")
    parser.add_argument("--type", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    copy = copy_rate(args.repetitions)
    for rows, columns, k in [args.shape] if args.shape else SHAPES:
        values = values_of(rows, columns, args.order, getattr(torch, args.type))
        seconds = seconds_of(lambda: torch.topk(values, k, dim=1, sorted=True), args.repetitions)  # noqa: B023
        read = values.numel() * values.element_size() / seconds
        print(json.dumps({"torch": torch.__version__, "device": torch.cuda.get_device_name(), "shape": [rows, columns, k], "order": args.order,
                          "type": args.type, "microseconds": 1e6 * seconds, "input": 1e-9 * read, "input_of_copy": read / copy,
                          "copy": 1e-9 * copy}), flush=True)  # fmt: skip


main()
