"""The inputs of Tributary's benchmarks (perf/common/random.hpp), drawn again for its peers: the same bits."""

import numpy as np


def uniform(stream, *shape):
    """Numbers 0, 1, ... of a stream, uniform in [-1, 1): 24 bits of SplitMix64."""
    count = int(np.prod(shape))
    values = np.empty(count, np.float32)
    chunk = 1 << 22
    with np.errstate(over="ignore"):
        for begin in range(0, count, chunk):
            i = np.arange(begin + 1, min(begin + chunk, count) + 1, dtype=np.uint64)
            z = np.uint64(stream) + i * np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            values[begin : begin + i.size] = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1)
    return values.reshape(shape)


def indexer(queries, keys, heads, head_dim):
    return uniform(1, queries, heads, head_dim), uniform(2, keys, head_dim), uniform(3, queries, heads)


def attention(length, heads, head_dim):
    """query, key, value and the gradient of the output."""
    return tuple(uniform(stream, length, heads, head_dim) for stream in (1, 2, 3, 4))


def topk(rows, columns, order):
    if order == "random":
        return uniform(1, rows, columns)
    row = np.arange(columns, dtype=np.float32) if order == "ascending" else np.ones(columns, np.float32)
    return np.tile(row, (rows, 1))
