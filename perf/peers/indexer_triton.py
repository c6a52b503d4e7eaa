"""A streaming indexer in Triton, after the published description of StreamIndex: queries by chunks of keys.

A kernel scores a tile of queries against a chunk of keys; the chunk's scores join the running best k, of which torch.topk keeps the k best,
chunk by chunk.  So memory is bounded, but every score is written and read once.

  python indexer_triton.py                                       # every case of the benchmark, a line of JSON each
  TRITON_INTERPRET=1 python indexer_triton.py --check            # results only, on the CPU
"""

import torch
import triton
import triton.language as tl

import indexer_cases

QUERIES_AT_ONCE, KEYS_AT_ONCE = 8192, 8192


@triton.jit
def score_kernel(
    query, key, weights, query_scale, key_scale, scores,
    first_query, end_query, first_key, end_key, ratio, score_stride,
    scaled: tl.constexpr, heads: tl.constexpr, head_dim: tl.constexpr, tile_queries: tl.constexpr, tile_keys: tl.constexpr,
    steps: tl.constexpr,
):  # fmt: skip
    """Scores [tile_queries, steps * tile_keys] of a program; rows and columns of `scores` count from first_query and first_key."""
    rows: tl.constexpr = tile_queries * heads
    t = first_query + tl.program_id(1) * tile_queries + tl.arange(0, tile_queries)
    row = (first_query + tl.program_id(1) * tile_queries) * heads + tl.arange(0, rows)
    d = tl.arange(0, head_dim)
    in_rows = row < end_query * heads
    q = tl.load(query + row.to(tl.int64)[:, None] * head_dim + d[None, :], mask=in_rows[:, None], other=0.0)
    w = tl.load(weights + row, mask=in_rows, other=0.0)
    if scaled:
        w *= tl.load(query_scale + row, mask=in_rows, other=0.0)
    if ratio > 0:
        legal = (t + 1) // ratio
    else:
        legal = tl.full((tile_queries,), 0, tl.int32) + end_key
    for step in range(steps):
        s = first_key + (tl.program_id(0) * steps + step) * tile_keys + tl.arange(0, tile_keys)
        k = tl.load(key + s[None, :] * head_dim + d[:, None], mask=s[None, :] < end_key, other=0.0)
        dots = tl.maximum(tl.dot(q, k), 0.0) * w[:, None]
        score = tl.sum(tl.reshape(dots, (tile_queries, heads, tile_keys)), axis=1)
        if scaled:
            score *= tl.load(key_scale + s, mask=s < end_key, other=0.0)[None, :]
        score = tl.where((s[None, :] < legal[:, None]) & (s[None, :] < end_key), score, float("-inf"))
        at = scores + (t - first_query).to(tl.int64)[:, None] * score_stride + (s - first_key)[None, :]
        tl.store(at, score, mask=(t[:, None] < end_query) & (s[None, :] < end_key))


def score_chunk(inputs, shape, queries, keys, scores):
    """Scores of a range of queries and keys, -inf where a key is not legal."""
    (first_query, end_query), (first_key, end_key) = queries, keys
    tile_queries, tile_keys, steps = max(1, 128 // shape.heads), 128, 8
    grid = (triton.cdiv(end_key - first_key, steps * tile_keys), triton.cdiv(end_query - first_query, tile_queries))
    scaled = inputs.key_scale is not None
    query_scale, key_scale = (inputs.query_scale, inputs.key_scale) if scaled else (inputs.weights, inputs.weights)
    score_kernel[grid](
        inputs.query, inputs.key, inputs.weights, query_scale, key_scale, scores, first_query, end_query, first_key, end_key, shape.ratio,
        scores.stride(0), scaled, shape.heads, shape.head_dim, tile_queries, tile_keys, steps, num_warps=8, num_stages=3,
    )  # fmt: skip


def stream(inputs, shape):
    device = inputs.query.device
    values = torch.full((shape.queries, shape.top_k), float("-inf"), device=device)
    indices = torch.full((shape.queries, shape.top_k), -1, dtype=torch.int32, device=device)
    rows, columns = min(QUERIES_AT_ONCE, shape.queries), min(KEYS_AT_ONCE, shape.keys)
    candidates = torch.empty(rows, shape.top_k + columns, device=device)  # the best so far, then the chunk's scores
    candidate_indices = torch.empty(rows, shape.top_k + columns, dtype=torch.int32, device=device)
    for first_query in range(0, shape.queries, rows):
        end_query = min(first_query + rows, shape.queries)
        best, best_indices = values[first_query:end_query], indices[first_query:end_query]
        for first_key in range(0, shape.legal_keys(end_query - 1), columns):
            end_key = min(first_key + columns, shape.legal_keys(end_query - 1))
            part = slice(0, end_query - first_query), slice(0, shape.top_k + end_key - first_key)
            joined, joined_indices = candidates[part], candidate_indices[part]
            joined[:, : shape.top_k], joined_indices[:, : shape.top_k] = best, best_indices
            score_chunk(inputs, shape, (first_query, end_query), (first_key, end_key), joined[:, shape.top_k :])
            joined_indices[:, shape.top_k :] = torch.arange(first_key, end_key, dtype=torch.int32, device=device)
            best[:], chosen = torch.topk(joined, shape.top_k, sorted=True)
            best_indices[:] = torch.gather(joined_indices, 1, chosen)
    return values, indices


if __name__ == "__main__":
    indexer_cases.main(__doc__, {"triton": (stream, lambda shape: True)})
