"""Tributary and its peers (NumPy, for attention PyTorch), one after the other by turns on the same data, as a Markdown table of medians with ratios.

  python3 -m venv peers && peers/bin/pip install numpy
  peers/bin/python perf/peers/run_cpu.py --build build/perf

Without --shape the goals' shapes.  With --topk the operator topk; with --attention attention, forward and backward, for which the peer is
  peers/bin/pip install torch
With --check the chosen keys (attention: outputs and gradients) are compared, too.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
INDEXER_SHAPES = ["8192x2048x16x64x256", "4096x16384x16x64x256"]
TOPK_SHAPES = ["2048x65536x512", "512x262144x1024", "8192x2048x256"]
ATTENTION_SHAPES = ["2048x8x64", "2048x8x128"]


def peer(script, *options):
    return json.loads(subprocess.run([sys.executable, HERE / script, *map(str, options)], check=True, capture_output=True, text=True).stdout)


def benchmark(args, program, name, threads):
    """The medians of one of our benchmarks: seconds, and its counters."""
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), OMP_PROC_BIND="spread", OMP_PLACES="threads")
    output = subprocess.run([args.build / "perf" / program, f"--benchmark_filter=^{name}/", "--benchmark_format=json"], check=True,
                            capture_output=True, text=True, env=environment).stdout
    (median,) = [entry for entry in json.loads(output)["benchmarks"] if entry["aggregate_name"] == "median"]
    return dict(median, seconds=median["real_time"] * 1e-3)


def median_of(runs, key):
    return statistics.median(run[key] for run in runs)


def best_peer(shape, threads):
    """The peer's fastest way at this shape, as options."""
    tried = []
    for parallel in ["blas"] if threads == 1 else ["blas", "chunks"]:
        options = ["--shape", *shape, "--threads", threads, "--parallel", parallel]
        result = peer("indexer_numpy.py", *options, "--repetitions", 1)
        print(f"  peer tried: {parallel}, {result['microseconds_a_query_tried']} us a query", file=sys.stderr)
        tried.append((result["seconds"], [*options, "--methods", result["method"]]))
    return min(tried)[1]


def compare_indexer(args, shape, threads):
    queries, keys, heads, head_dim, k = shape
    name = f"{args.space}/float/S{queries}_T{keys}_H{heads}_D{head_dim}_k{k}_full"
    options = best_peer(shape, threads)
    ours, scoring, theirs = [], [], []
    for _ in range(args.rounds):
        theirs.append(peer("indexer_numpy.py", *options, "--repetitions", 3))
        ours.append(benchmark(args, "benchmark_indexer", f"indexer_topk/{name}", threads))
        scoring.append(benchmark(args, "benchmark_indexer", f"indexer_score/{name}", threads))
    ratio = median_of(theirs, "seconds") / median_of(ours, "seconds")
    way = f"{theirs[0]['method']} MB, {theirs[0]['parallel']}"
    gflops = [f"{median_of(runs, key):.1f}" for runs, key in ((ours, "GFLOP/s"), (scoring, "GFLOP/s"), (ours, "SGEMM"), (theirs, "SGEMM"))]
    fractions = [f"{100 * median_of(runs, 'of_SGEMM'):.0f} %" for runs in (ours, scoring)]
    row(f"S {queries}, T {keys}", threads, f"{1e3 * median_of(theirs, 'seconds'):.0f} ms ({way})", f"{1e3 * median_of(ours, 'seconds'):.0f} ms",
        f"{ratio:.2f}", *gflops, *fractions)


def compare_topk(args, shape, threads):
    rows, columns, k = shape
    for order in ("random", "ascending", "equal"):
        theirs, ours = [], []
        for _ in range(args.rounds):
            theirs.append(peer("topk_numpy.py", "--shape", *shape, "--order", order, "--threads", threads, "--repetitions", 3))
            ours.append(benchmark(args, "benchmark_topk", f"topk/{args.space}/float/{rows}x{columns}_k{k}/{order}", threads))
        ratio = median_of(theirs, "seconds") / median_of(ours, "seconds")
        row(f"{rows} x {columns}, k {k}, {order}", threads, f"{1e3 * median_of(theirs, 'seconds'):.0f} ms", f"{1e3 * median_of(ours, 'seconds'):.0f} ms",
            f"{ratio:.2f}", f"{median_of(ours, 'GB/s'):.1f}", f"{100 * median_of(ours, 'of_copy'):.0f} %")


def compare_attention(args, shape, threads):
    length, heads, head_dim = shape
    for element_type in args.types:
        for causal in (False, True):
            name = f"{args.space}/{element_type}/S{length}_H{heads}_D{head_dim}_{'causal' if causal else 'full'}"
            for direction in ("forward", "backward"):
                options = ["--shape", *shape, "--type", element_type, "--direction", direction, "--threads", threads, *["--causal"] * causal]
                theirs, ours = [], []
                for _ in range(args.rounds):
                    theirs.append(peer("attention_torch.py", *options))
                    ours.append(benchmark(args, "benchmark_attention", f"attention_{direction}/{name}", threads))
                ratio = median_of(theirs, "seconds") / median_of(ours, "seconds")
                gflops = [f"{median_of(runs, key):.1f}" for runs, key in ((theirs, "GFLOP/s"), (ours, "GFLOP/s"), (theirs, "SGEMM"), (ours, "SGEMM"))]
                row(f"{direction}, D {head_dim}, {'causal' if causal else 'full'}, {element_type}", threads,
                    f"{1e3 * median_of(theirs, 'seconds'):.1f} ms", f"{1e3 * median_of(ours, 'seconds'):.1f} ms", f"{ratio:.2f}", *gflops,
                    f"{100 * median_of(ours, 'of_SGEMM'):.0f} %")


def check_attention(args, shape):
    """How far outputs and gradients are from the peer's, in float, over the largest value."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = lambda name: os.path.join(folder, name + ".npy")  # noqa: E731
        peer("attention_torch.py", "--shape", *shape, "--causal", "--repetitions", 1, "--save", folder)
        results = {"out": "output", "grad_query": "grad-query", "grad_key": "grad-key", "grad_value": "grad-value"}
        arguments = [word for name in ("query", "key", "value") for word in (f"--{name}", path(name))]
        arguments += [word for name, option in results.items() for word in (f"--{option}", path("our_" + name))]
        subprocess.run([args.build / "tributary", "attention", *arguments, "--grad-output", path("grad_out"), "--causal"], check=True, stdout=subprocess.DEVNULL)
        for name in results:
            theirs, ours = np.load(path(name)), np.load(path("our_" + name))
            print(f"  {name}: largest difference {np.abs(theirs - ours).max() / np.abs(theirs).max():.1e} of the largest value", file=sys.stderr)


def check(args, shape):
    """How many queries choose the same keys: rounding may swap keys with nearly equal scores."""
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = lambda name: os.path.join(folder, name + ".npy")  # noqa: E731
        peer("indexer_numpy.py", "--shape", *shape, "--repetitions", 1, "--methods", "matmul/16", "--save", folder)
        subprocess.run([args.build / "tributary", "indexer-topk", "--query", path("query"), "--key", path("key"), "--weights", path("weights"),
                        "--top-k", str(shape[-1]), "--indices", path("ours")], check=True, stdout=subprocess.DEVNULL)
        theirs, ours = (np.sort(np.load(path(name)), axis=1) for name in ("indices", "ours"))
        different = np.array([shape[-1] - np.intersect1d(a, b).size for a, b in zip(theirs, ours)])
        print(f"  {np.count_nonzero(different == 0)} of {len(different)} queries chose the same keys, the others differ in {different.max()} at most",
              file=sys.stderr)


def row(*cells):
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def head(*cells):
    row(*cells)
    print("|" + "---|" * len(cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True, help="a build folder of the preset perf")
    parser.add_argument("--space", default="openmp", choices=["serial", "openmp", "threads"])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count()])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", nargs="+", help="SxTxHxDxK, with --topk ROWSxCOLUMNSxK, with --attention SxHxD, among the benchmarks' own")
    operator = parser.add_mutually_exclusive_group()
    operator.add_argument("--topk", action="store_true")
    operator.add_argument("--attention", action="store_true")
    parser.add_argument("--types", nargs="+", default=["float", "bfloat16"], choices=["float", "bfloat16"], help="of attention")
    parser.add_argument("--check", action="store_true", help="compare the results as well")
    args = parser.parse_args()
    default_shapes = TOPK_SHAPES if args.topk else ATTENTION_SHAPES if args.attention else INDEXER_SHAPES
    shapes = [[int(n) for n in shape.split("x")] for shape in args.shape or default_shapes]
    compare = compare_topk if args.topk else compare_attention if args.attention else compare_indexer
    if args.attention:
        if args.check:
            for shape in shapes:
                check_attention(args, shape)
        head("attention, S 2048, H 8" if not args.shape else "attention", "threads", "PyTorch", "Tributary", "ratio", "PyTorch GFLOP/s",
             "Tributary GFLOP/s", "PyTorch SGEMM", "Tributary SGEMM", "Tributary of SGEMM")
    elif args.topk:
        head("rows x columns, k, order", "threads", "NumPy", "Tributary", "ratio", "GB/s", "of copy")
    else:
        if args.check:
            for shape in shapes:
                check(args, shape)
        head("H 16, D 64, k 256", "threads", "NumPy", "Tributary", "ratio", "top-k GFLOP/s", "score GFLOP/s", "SGEMM", "NumPy SGEMM", "top-k of SGEMM",
             "score of SGEMM")
    for shape in shapes:
        for threads in sorted(set(args.threads)):
            compare(args, shape, threads)


main()
