"""The obvious alternative to topk on a CPU: NumPy's argpartition, then a sort of the k; rows spread over threads.

  python topk_numpy.py --shape 8192 2048 256 --order random --threads 2
"""

import argparse
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import inputs


def select(values, k, indices, scores):
    n = values.shape[1]
    best = np.argpartition(values, n - k, axis=1)[:, n - k :]
    chosen = np.take_along_axis(values, best, axis=1)
    order = np.argsort(-chosen, axis=1)
    indices[:] = np.take_along_axis(best, order, axis=1)
    scores[:] = np.take_along_axis(chosen, order, axis=1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, metavar=("ROWS", "COLUMNS", "K"), default=[8192, 2048, 256])
    parser.add_argument("--order", choices=["random", "ascending", "equal"], default="random")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    args = parser.parse_args()
    rows, columns, k = args.shape
    values = inputs.topk(rows, columns, args.order)
    indices, scores = np.empty((rows, k), np.int32), np.empty((rows, k), np.float32)
    chunk = max(1, 2**20 // columns)  # 4 MiB of values, 8 MiB of indices

    def run(begin):
        part = slice(begin, begin + chunk)
        select(values[part], k, indices[part], scores[part])

    with ThreadPoolExecutor(args.threads) as pool:
        times = []
        for _ in range(args.repetitions + 1):
            start = time.perf_counter()
            list(pool.map(run, range(0, rows, chunk)))
            times.append(time.perf_counter() - start)
    print(json.dumps({"numpy": np.__version__, "threads": args.threads, "seconds": statistics.median(times[1:])}))


main()
