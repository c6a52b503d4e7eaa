"""The inputs of Tributary's benchmarks on a device (perf/common/random.hpp, perf/indexer/IndexerInputs.hpp), drawn by PyTorch: the same bits."""

import torch

TYPES = {"float": torch.float32, "bfloat16": torch.bfloat16, "e4m3": torch.float8_e4m3fn}
LARGEST_E4M3 = 448.0
CHUNK = 1 << 24


def signed(word):
    return word - (1 << 64) if word >> 63 else word


def shifted(z, bits):
    """Logical shift to the right."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def uniform_part(stream, begin, end, device):
    """Numbers begin ... end - 1 of a stream, uniform in [-1, 1): 24 bits of SplitMix64."""
    z = torch.arange(begin + 1, end + 1, dtype=torch.int64, device=device) * signed(0x9E3779B97F4A7C15) + stream
    z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
    return shifted(z ^ shifted(z, 31), 40).to(torch.float32) * 2.0**-23 - 1


def filled(shape, dtype, device, part):
    """part(begin, end) gives the values of a range of elements."""
    values = torch.empty(shape, dtype=dtype, device=device)
    flat = values.view(-1)
    for begin in range(0, flat.numel(), CHUNK):
        end = min(begin + CHUNK, flat.numel())
        flat[begin:end] = part(begin, end).to(dtype)
    return values


def uniform(stream, shape, dtype, device, factor=1.0):
    return filled(shape, dtype, device, lambda begin, end: uniform_part(stream, begin, end, device) * factor)


class Indexer:
    """query [S, H, D], key [T, D], weights [S, H]; for e4m3 query_scale [S, H] and key_scale [T], else None."""

    def __init__(self, queries, keys, heads, head_dim, element_type, device):
        dtype, scaled = TYPES[element_type], element_type == "e4m3"
        factor = LARGEST_E4M3 if scaled else 1.0
        self.query = uniform(1, (queries, heads, head_dim), dtype, device, factor)
        self.key = uniform(2, (keys, head_dim), dtype, device, factor)
        self.weights = uniform(3, (queries, heads), torch.float32, device)
        self.query_scale = self.scale(4, (queries, heads), device) if scaled else None
        self.key_scale = self.scale(5, (keys,), device) if scaled else None

    @staticmethod
    def scale(stream, shape, device):
        return (1 + 0.5 * uniform(stream, shape, torch.float32, device)) * torch.tensor(1 / LARGEST_E4M3, dtype=torch.float32, device=device)

    def reference(self, query, legal_keys):
        """One query's scores of its first keys, in double."""
        dots = self.query[query].double() @ self.key[:legal_keys].double().t()
        weights = self.weights[query].double()
        if self.query_scale is not None:
            weights = weights * self.query_scale[query].double()
        scores = weights @ dots.relu()
        return scores if self.key_scale is None else scores * self.key_scale[:legal_keys].double()
