"""What the peers of indexer_topk on a CUDA device share: cases with the names of Tributary's benchmark, the check and the timing."""

import argparse
import re

import torch

import device_inputs
import device_timing

RATIO = 4  # of tokens to keys
K = 1024


class Shape:
    def __init__(self, queries, keys, heads, top_k, ratio):
        self.queries, self.keys, self.heads, self.head_dim, self.top_k, self.ratio = queries, keys, heads, 128, top_k, ratio

    def __str__(self):
        mask = f"ratio{self.ratio}" if self.ratio else "full"
        return f"S{self.queries}_T{self.keys}_H{self.heads}_D{self.head_dim}_k{self.top_k}_{mask}"

    def legal_keys(self, query):
        return min(self.keys, (query + 1) // self.ratio) if self.ratio else self.keys

    def flop(self):
        return 2.0 * self.heads * self.head_dim * sum(map(self.legal_keys, range(self.queries)))


def cases():
    """(shape, order), those that matter most first; the order of scores, or rotating for copies of the keys that are read in turn."""

    def compressed(tokens, top_k, heads=64):
        return Shape(tokens, tokens // RATIO, heads, top_k, RATIO), "random"

    for tokens in (1 * K, 2 * K, 4 * K, 8 * K, 16 * K, 32 * K, 64 * K, 128 * K, 256 * K):
        yield compressed(tokens, 512)
    for queries in (1, 2, 3, 4, 8, 16):
        yield Shape(queries, 256 * K, 64, 512, 0), "rotating"
    yield compressed(128 * K, 2048, 32)
    for top_k in (1, 1024, 2048):
        yield compressed(128 * K, top_k)
    yield compressed(1024 * K, 512)


def check(way, shape, inputs):
    """Throws unless sampled queries have the best keys, to within the rounding of dot products to bfloat16."""
    values, indices = way(inputs, shape)
    for query in sorted({0, min(100, shape.queries - 1), shape.queries // 3, shape.queries - 1}):
        legal = shape.legal_keys(query)
        if legal == 0:
            continue
        reference = inputs.reference(query, legal)
        found = min(legal, shape.top_k)
        chosen = indices[query, :found].long()
        error = 0.02 * reference.abs().max()
        assert chosen.unique().numel() == found and chosen.max() < legal, "wrong result: keys twice, or not legal"
        assert (reference[chosen] - values[query, :found]).abs().max() <= error, "wrong result: a score"
        assert reference[chosen].min() >= reference.topk(found).values[-1] - 2 * error, "wrong result: a better key was missed"


def time_case(name, way, shape, order, element_type):
    inputs = device_inputs.Indexer(shape.queries, shape.keys, shape.heads, shape.head_dim, element_type, "cuda")
    check(way, shape, inputs)
    if order != "rotating":
        return device_timing.report(name, element_type, shape.flop(), lambda: way(inputs, shape))
    keys = [inputs.key.clone() for _ in range(256 * K * K // (inputs.key.numel() * inputs.key.element_size()) + 1)]

    def call():
        for key in keys:
            inputs.key = key
            way(inputs, shape)

    return device_timing.report(name, element_type, shape.flop(), call, len(keys))


def main(description, ways):
    """ways: name -> (function(inputs, shape) giving values and indices, whether it can take a shape)."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", choices=["bfloat16", "e4m3"], default=["bfloat16", "e4m3"])
    parser.add_argument("--filter", default="", help="a regular expression that a case's name must contain")
    parser.add_argument("--million", action="store_true", help="S = 1048576, too")
    parser.add_argument("--check", action="store_true", help="small shapes on the CPU in float, compared with loops; no timing")
    args = parser.parse_args()
    if args.check:
        for shape in (Shape(97, 24, 4, 8, RATIO), Shape(64, 160, 32, 48, 0), Shape(300, 75, 2, 33, RATIO)):
            for name, (way, _) in ways.items():
                check(way, shape, device_inputs.Indexer(shape.queries, shape.keys, shape.heads, shape.head_dim, "float", "cpu"))
                print(f"{name} {shape}: right")
        return
    for element_type in args.types:
        for shape, order in cases():
            for way_name, (way, takes) in ways.items():
                name = f"indexer_topk/cuda/{element_type}/{shape}/{order}/{way_name}"
                if not re.search(args.filter, name) or not takes(shape) or (shape.queries > 256 * K and not args.million):
                    continue
                try:
                    time_case(name, way, shape, order, element_type)
                except Exception as error:  # out of memory, a wrong result, a kernel that does not compile: the next case goes on
                    device_timing.report_error(name, error)
                torch.cuda.empty_cache()
