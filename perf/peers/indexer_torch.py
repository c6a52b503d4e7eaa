"""The obvious alternatives to indexer_topk in PyTorch on a CUDA device: matrix product, relu, weighted sum over heads, topk.

`torch` does all queries at once and stores the scores by head, where they fit; `torch_chunked` takes as many queries at a time as fit a
gigabyte of such scores, and only the keys that are legal for some of them.  e4m3: products by torch._scaled_mm.

  python indexer_torch.py                                        # every case of the benchmark, a line of JSON each
  python indexer_torch.py --types bfloat16 --filter S32768_
  python indexer_torch.py --check                                # results only, on the CPU
"""

import torch

import indexer_cases


def products(query, key):
    """[rows, D] x [keys, D] -> [rows, keys]"""
    if query.dtype != torch.float8_e4m3fn:
        return torch.matmul(query, key.t())
    one = torch.ones((), device=query.device)
    return torch._scaled_mm(query, key.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)


def select(inputs, shape, begin, end):
    """The best keys of queries begin ... end - 1."""
    legal = shape.legal_keys(end - 1)
    keys = min(shape.keys, max(shape.top_k, -(-legal // 16) * 16))  # _scaled_mm takes multiples of 16
    dots = products(inputs.query[begin:end].view(-1, shape.head_dim), inputs.key[:keys]).relu_()
    weights = inputs.weights[begin:end] if inputs.query_scale is None else inputs.weights[begin:end] * inputs.query_scale[begin:end]
    scores = torch.bmm(weights[:, None, :].to(dots.dtype), dots.view(end - begin, shape.heads, keys))[:, 0].float()
    if inputs.key_scale is not None:
        scores *= inputs.key_scale[:keys]
    if shape.ratio:
        first_hidden = torch.arange(begin + 1, end + 1, device=scores.device) // shape.ratio
        scores.masked_fill_(torch.arange(keys, device=scores.device) >= first_hidden[:, None], float("-inf"))
    return torch.topk(scores, min(shape.top_k, keys), sorted=True)


def plain(inputs, shape):
    return select(inputs, shape, 0, shape.queries)


def chunked(inputs, shape, scores_at_once=1 << 29):
    keys = min(shape.top_k, shape.keys)
    values = torch.empty(shape.queries, keys, device=inputs.query.device)
    indices = torch.empty(shape.queries, keys, dtype=torch.int64, device=inputs.query.device)
    chunk = max(1, min(4096, scores_at_once // (shape.heads * shape.keys)))
    for begin in range(0, shape.queries, chunk):
        end = min(begin + chunk, shape.queries)
        values[begin:end], indices[begin:end] = select(inputs, shape, begin, end)
    return values, indices


def scores_fit(shape):
    return shape.queries * shape.heads * shape.keys <= 1 << 34  # 32 GiB of bfloat16


if __name__ == "__main__":
    indexer_cases.main(__doc__, {"torch": (plain, scores_fit), "torch_chunked": (chunked, lambda shape: True)})
