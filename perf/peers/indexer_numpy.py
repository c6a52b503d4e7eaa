"""The obvious alternative to indexer_topk on a CPU: chunked SGEMM in NumPy, relu, weighted sum over heads, argpartition, sort.

Queries go by in chunks, so that a chunk's scores stay small; several ways to sum over heads and several chunk sizes are tried and
the fastest is kept.  Threads are BLAS' own (--parallel blas), or one chunk of queries a thread with a single-threaded BLAS
(--parallel chunks), which also spreads what NumPy itself does on one thread only.

  python indexer_numpy.py --shape 8192 2048 16 64 256 --threads 2 --parallel chunks
"""

import argparse
import json
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=5, metavar=("S", "T", "H", "D", "K"), default=[8192, 2048, 16, 64, 256])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parallel", choices=["blas", "chunks"], default="blas")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--methods", nargs="+", metavar="METHOD/MEGABYTES", help="e.g. heads/4; default: try all")
    parser.add_argument("--save", metavar="FOLDER", help="write query.npy, key.npy, weights.npy and the peer's indices.npy")
    return parser.parse_args()


args = arguments()
blas_threads = args.threads if args.parallel == "blas" else 1
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[name] = str(blas_threads)  # read when NumPy loads its BLAS

import numpy as np  # noqa: E402

import inputs  # noqa: E402


# Each way: scores [chunk, T] of a chunk of queries [chunk, H, D] in `scores`, with room for [chunk * H, T] or [chunk, T] in `room`.
def by_einsum(query, key_t, weights, room, scores):
    dots = per_head_dots(query, key_t, room)
    np.einsum("qht,qh->qt", dots, weights, out=scores)


def by_matmul(query, key_t, weights, room, scores):
    dots = per_head_dots(query, key_t, room)
    np.matmul(weights[:, None, :], dots, out=scores[:, None, :])


def by_heads(query, key_t, weights, room, scores):
    for h in range(query.shape[1]):
        dots = scores if h == 0 else room[: len(query)]
        np.matmul(query[:, h, :], key_t, out=dots)
        np.maximum(dots, 0, out=dots)
        dots *= weights[:, h, None]
        if h > 0:
            scores += dots


def per_head_dots(query, key_t, room):
    chunk, heads, head_dim = query.shape
    dots = room[: chunk * heads]
    np.matmul(query.reshape(chunk * heads, head_dim), key_t, out=dots)
    np.maximum(dots, 0, out=dots)
    return dots.reshape(chunk, heads, -1)


WAYS = {"einsum": by_einsum, "matmul": by_matmul, "heads": by_heads}


def select(scores, k, indices):
    n = scores.shape[1]
    if k < n:
        best = np.argpartition(scores, n - k, axis=1)[:, n - k :]
    else:
        best = np.broadcast_to(np.arange(n), scores.shape)
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1)
    indices[:] = np.take_along_axis(best, order, axis=1)


def run(way, chunk, pool, query, key_t, weights, k):
    """Indices [S, k]; `chunk` queries at a time, chunks spread over the pool's threads."""
    queries, heads, _ = query.shape
    keys = key_t.shape[1]
    indices = np.empty((queries, k), np.int32)

    def worker(first):
        room = np.empty((chunk if way == "heads" else chunk * heads, keys), np.float32)
        scores = np.empty((chunk, keys), np.float32)
        for begin in range(first * chunk, queries, pool._max_workers * chunk):
            end = min(begin + chunk, queries)
            part = scores[: end - begin]
            WAYS[way](query[begin:end], key_t, weights[begin:end], room, part)
            select(part, k, indices[begin:end])

    list(pool.map(worker, range(pool._max_workers)))
    return indices


def seconds_of(call, repetitions):
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def sgemm_rate(threads):
    """Flop a second of NumPy's product of 2048 x 2048 matrices; one such product a thread where BLAS has one thread only."""
    n = 2048
    a, b = inputs.uniform(1, n, n), inputs.uniform(2, n, n)
    products = threads if args.parallel == "chunks" else 1
    out = [np.empty((n, n), np.float32) for _ in range(products)]
    with ThreadPoolExecutor(products) as pool:
        call = lambda: list(pool.map(lambda c: np.matmul(a, b, out=c), out))  # noqa: E731
        call()
        return products * 2.0 * n**3 / seconds_of(call, 9)


def main():
    queries, keys, heads, head_dim, k = args.shape
    query, key, weights = inputs.indexer(queries, keys, heads, head_dim)
    key_t = np.ascontiguousarray(key.T)
    row_bytes = 4 * keys
    candidates = []
    for name in args.methods or [f"{way}/{size}" for way in WAYS for size in (1, 2, 4, 16)]:
        way, megabytes = name.split("/")
        bytes_a_query = row_bytes * (2 if way == "heads" else heads + 1)
        candidates.append((name, way, max(1, min(queries, int(megabytes) * 2**20 // bytes_a_query))))
    with ThreadPoolExecutor(args.threads if args.parallel == "chunks" else 1) as pool:
        tried = {}
        for name, way, chunk in candidates:  # a part of the queries is enough to choose
            some = slice(0, min(queries, max(512, 2 * chunk * args.threads)))
            call = lambda: run(way, chunk, pool, query[some], key_t, weights[some], k)  # noqa: E731
            call()
            tried[name] = seconds_of(call, 3) / (some.stop - some.start)
        best, way, chunk = min(candidates, key=lambda candidate: tried[candidate[0]])
        indices = run(way, chunk, pool, query, key_t, weights, k)
        seconds = seconds_of(lambda: run(way, chunk, pool, query, key_t, weights, k), args.repetitions)
    flop = 2.0 * queries * keys * heads * head_dim
    if args.save:
        for name, array in {"query": query, "key": key, "weights": weights, "indices": indices}.items():
            np.save(os.path.join(args.save, name + ".npy"), array)
    print(json.dumps({"numpy": np.__version__, "threads": args.threads, "parallel": args.parallel, "method": best, "chunk_queries": chunk,
                      "seconds": seconds, "GFLOP/s": 1e-9 * flop / seconds, "SGEMM": 1e-9 * sgemm_rate(args.threads),
                      "microseconds_a_query_tried": {name: round(1e6 * t, 1) for name, t in tried.items()}}))


main()
