"""`tributary attention` as its users meet it, against the formula written out in plain Python.

Usage: test_command_line_attention.py PROGRAM [unittest options].  Needs only Python's standard library.
"""

import json
import math
import os
import sys
import unittest

sys.dont_write_bytecode = True  # nothing beside the sources
from test_command_line import ProgramTest, npy, npy_of, read_npy  # noqa: E402  (takes PROGRAM from the command line)

B, S, T, H, G, D, E = 2, 6, 9, 4, 2, 8, 3  # batch, queries, keys, query heads, key heads, head dimension, of values


def bucket(relative, buckets, max_distance, bidirectional):
    """T5's rule (arXiv:1910.10683), from the code published with it; relative = j - i'."""
    offset = 0
    if bidirectional:
        buckets //= 2
        offset = buckets if relative > 0 else 0
        distance = abs(relative)
    else:
        distance = max(-relative, 0)
    single = buckets // 2
    if distance < single:
        return offset + distance
    return offset + min(buckets - 1, single + int(math.log(distance / single) / math.log(max_distance / single) * (buckets - single) + 1e-9))


def turned(row, position, dims, base=10000.0, interleaved=False, last=False):
    """Rotary embedding of one head."""
    row, first = list(row), len(row) - dims if last else 0
    for r in range(dims // 2):
        a, b = (first + 2 * r, first + 2 * r + 1) if interleaved else (first + r, first + r + dims // 2)
        angle = position * base ** (-2 * r / dims)
        row[a], row[b] = row[a] * math.cos(angle) - row[b] * math.sin(angle), row[a] * math.sin(angle) + row[b] * math.cos(angle)
    return row


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def attention(query, key, value, legal=lambda h, i, j: True, bias=lambda h, i, j: 0.0, scale=None, softcap=0.0, sink=None,
              turn_query=lambda row, i: row, turn_key=lambda row, j: row):
    """Outputs [S][H][E] and log-sum-exp [H][S] of one batch entry."""
    rows, keys, heads = len(query), len(key), H
    group = heads // len(key[0])
    scale = 1 / math.sqrt(len(key[0][0])) if scale is None else scale
    out, lse = [[None] * heads for _ in range(rows)], [[-math.inf] * rows for _ in range(heads)]
    turned_keys = [[turn_key(head, j) for head in key[j]] for j in range(keys)]
    for i in range(rows):
        for h in range(heads):
            q, scores = turn_query(query[i][h], i), {}
            for j in range(keys):
                if legal(h, i, j):
                    x = scale * dot(q, turned_keys[j][h // group])
                    scores[j] = (softcap * math.tanh(x / softcap) if softcap else x) + bias(h, i, j)
            out[i][h] = [0.0] * len(value[0][0])
            if scores:
                largest = max(scores.values())
                total = sum(math.exp(x - largest) for x in scores.values())
                lse[h][i] = largest + math.log(total)
                denominator = lse[h][i] if sink is None else math.log(math.exp(lse[h][i]) + math.exp(sink[h]))
                for j, x in scores.items():
                    weight = math.exp(x - denominator)
                    out[i][h] = [o + weight * v for o, v in zip(out[i][h], value[j][h // group])]
    return out, lse


def flat(values):
    return [x for v in values for x in flat(v)] if isinstance(values, (list, tuple)) else [values]


def like(values, function):
    return [like(v, function) for v in values] if isinstance(values, list) else function(values)


class AttentionTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.query, self.key, self.value = self.floats(S, H, D), self.floats(T, G, D), self.floats(T, G, E)
        self.write_inputs()

    def write_inputs(self, query=None, key=None, value=None, descr="<f4"):
        self.write("q.npy", npy_of(query or self.query, descr))
        self.write("k.npy", npy_of(key or self.key, descr))
        self.write("v.npy", npy_of(value or self.value, descr))

    def arguments(self, **changes):
        options = {"query": "q.npy", "key": "k.npy", "value": "v.npy", "output": "o.npy"}
        options.update({name.replace("_", "-"): value for name, value in changes.items()})
        words = ["attention"]
        for name, value in options.items():
            if value is not None:
                words.append(f"--{name}" if value is True else f"--{name}={value}")
        return words

    def expect_near(self, name, shape, expected, bound=2e-5):
        given_shape, given, descr = read_npy(self.path(name))
        self.assertEqual((given_shape, descr), (shape, "<f4"))
        for position, (a, b) in enumerate(zip(given, flat(expected))):
            self.assertTrue(a == b or abs(a - b) <= bound, f"{name}, element {position}: {a}, expected {b}")

    def expect(self, arguments=None, **formula):
        """The program's outputs are the formula's."""
        self.succeed(*self.arguments(lse="l.npy", **(arguments or {})))
        out, lse = attention(self.query, self.key, self.value, **formula)
        self.expect_near("o.npy", (S, H, E), out)
        self.expect_near("l.npy", (H, S), lse)


class Forward(AttentionTest):
    def test_plain(self):
        self.expect()

    def test_output_alone(self):
        self.succeed(*self.arguments())
        self.expect_near("o.npy", (S, H, E), attention(self.query, self.key, self.value)[0])
        self.assertEqual(sorted(os.listdir(self.folder)), ["k.npy", "o.npy", "q.npy", "v.npy"])

    def test_every_backend_and_level(self):
        for backend in [space["backend"] for space in json.loads(self.succeed("info", "--json"))["execution_spaces"]]:
            for level in ["auto", "portable"] + (["reference"] if backend not in ("cuda", "hip") else []):
                with self.subTest(backend=backend, level=level):
                    self.expect({"backend": backend, "level": level, "causal": True}, legal=lambda h, i, j: j <= i + T - S)

    def test_causal_is_aligned_at_the_end(self):
        self.expect({"causal": True}, legal=lambda h, i, j: j <= i + T - S)
        self.query = self.floats(T + 4, H, D)  # the first queries see nothing
        self.write_inputs()
        self.succeed(*self.arguments(causal=True, lse="l.npy"))
        out, lse = attention(self.query, self.key, self.value, legal=lambda h, i, j: j <= i - 4)
        self.expect_near("o.npy", (T + 4, H, E), out)
        self.expect_near("l.npy", (H, T + 4), lse)
        self.assertEqual(read_npy(self.path("o.npy"))[1][: 4 * H * E], [0.0] * (4 * H * E))
        self.assertEqual(read_npy(self.path("l.npy"))[1][:4], [-math.inf] * 4)

    def test_window(self):
        for left, right in [(2, 1), (-1, 0), (0, -1), (0, 0), (-1, -1), (2147483647, 0)]:
            with self.subTest(left=left, right=right):
                self.expect({"window": f"{left},{right}"},
                            legal=lambda h, i, j: (left < 0 or i + T - S - left <= j) and (right < 0 or j <= i + T - S + right))

    def test_offsets_place_a_stretch(self):
        turn = lambda row, position: turned(row, position, D)  # noqa: E731
        slopes, table = self.floats(H), self.floats(8, H)
        self.write("s.npy", npy_of(slopes))
        self.write("t.npy", npy_of(table))
        for query, key in [(0, 0), (T - S, 0), (20, 17), (1000, 995), (3, 7), (-2, 0), (2**31 - S, 2**31 - T)]:
            options = {"query_offset": query, "key_offset": key or None, "causal": True, "window": "5,-1", "alibi": "s.npy", "relative_bias": "t.npy",
                       "relative_bias_max_distance": 9}
            ahead = lambda i, j: key + j - (query + i)  # noqa: E731
            formula = {"legal": lambda h, i, j: -5 <= ahead(i, j) <= 0, "bias": lambda h, i, j: table[bucket(ahead(i, j), 8, 9, True)][h] - slopes[h] * abs(ahead(i, j))}
            with self.subTest(query=query, key=key):
                self.expect(options, **formula)
                if query >= 0 and query < 2**20:
                    self.expect({**options, "rope_dims": D}, turn_query=lambda row, i: turn(row, query + i), turn_key=lambda row, j: turn(row, key + j), **formula)

    def test_dropout_counts_from_the_offsets(self):
        options = {"dropout": 0.5, "seed": 4, "query_offset": 10}
        self.succeed(*self.arguments(**options))
        whole = read_npy(self.path("o.npy"))[1]
        self.write_inputs(self.query[2:], self.key, self.value)
        self.succeed(*self.arguments(**{**options, "query_offset": 12}))
        self.assertEqual(read_npy(self.path("o.npy"))[1], whole[2 * H * E :])

    def test_key_keep(self):
        kept = [1, 0, 1, 1, 0, 0, 1, 0, 1]
        for descr, values in [("|b1", [bool(k) for k in kept]), ("|u1", [200 * k for k in kept])]:
            self.write("m.npy", npy_of(values, descr))
            self.expect({"key_keep": "m.npy"}, legal=lambda h, i, j: kept[j])

    def test_masks_broadcast(self):
        for shape in [(1, H, S, T), (H, S, T), (H, 1, T), (S, T), (T,)]:
            mask, added = self.floats(*shape), self.floats(*shape)
            keep = like(mask, lambda x: x > -0.3)
            added = like(added, lambda x: -math.inf if x < -1 else x)

            def at(values, h, i, j):
                for index, extent in zip((0, h, i, j)[4 - len(shape) :], shape):
                    values = values[index if extent > 1 else 0]
                return values

            with self.subTest(shape=shape):
                self.write("m.npy", npy_of(keep, "|b1"))
                self.expect({"keep_mask": "m.npy"}, legal=lambda h, i, j: at(keep, h, i, j))
                self.write("a.npy", npy_of(added))
                self.expect({"additive_mask": "a.npy"}, legal=lambda h, i, j: at(added, h, i, j) > -math.inf, bias=lambda h, i, j: at(added, h, i, j))

    def test_biases_cap_scale_and_sink(self):
        slopes, sink = self.floats(H), self.floats(H)
        self.write("s.npy", npy_of(slopes))
        self.write("z.npy", npy_of(sink))
        self.expect({"alibi": "s.npy"}, bias=lambda h, i, j: -slopes[h] * abs(i + T - S - j))
        self.expect({"softcap": 0.7, "scale": 0.9}, softcap=0.7, scale=0.9)
        self.expect({"sink": "z.npy"}, sink=sink)
        for bidirectional in [True, False]:
            table = self.floats(6, H)
            self.write("t.npy", npy_of(table))
            self.expect({"relative_bias": "t.npy", "relative_bias_max_distance": 5, "relative_bias_unidirectional": None if bidirectional else True},
                        bias=lambda h, i, j: table[bucket(j - (i + T - S), 6, 5, bidirectional)][h])

    def test_rotary(self):
        for dims, base, interleaved, last in [(D, 10000.0, False, False), (4, 100.0, True, True), (6, 10000.0, True, False)]:
            options = {"rope_dims": dims, "rope_base": base, "rope_style": "interleaved" if interleaved else "half", "rope_dims_last": last or None}

            def turn(row, position):
                return turned(row, position, dims, base, interleaved, last)

            with self.subTest(**options):
                self.expect(options, turn_query=lambda row, i: turn(row, i + T - S), turn_key=turn)
                places, others = [3 * i + 1 for i in range(S)], [50 - j for j in range(T)]
                self.write("p.npy", npy_of(places, "<i4"))
                self.write("r.npy", npy_of(others, "<i8"))
                self.expect({**options, "rope_query_positions": "p.npy", "rope_key_positions": "r.npy"},
                            turn_query=lambda row, i: turn(row, places[i]), turn_key=lambda row, j: turn(row, others[j]))

    def test_rotary_positions_for_both(self):
        self.query = self.floats(T, H, D)
        self.write_inputs()
        places = [2 * i * i for i in range(T)]
        self.write("p.npy", npy_of(places, "<i8"))
        self.succeed(*self.arguments(rope_dims=D, rope_positions="p.npy"))
        turn = lambda row, i: turned(row, places[i], D)  # noqa: E731
        self.expect_near("o.npy", (T, H, E), attention(self.query, self.key, self.value, turn_query=turn, turn_key=turn)[0])

    def test_batch_dimension_iff_the_query_has_one(self):
        queries, keys, values = self.floats(B, S, H, D), self.floats(B, T, G, D), self.floats(B, T, G, E)
        slopes, kept = self.floats(B, H), [[self.random.random() < 0.7 for _ in range(T)] for _ in range(B)]
        self.write_inputs(queries, keys, values)
        self.write("s.npy", npy_of(slopes))
        self.write("m.npy", npy_of(kept, "|b1"))
        self.succeed(*self.arguments(alibi="s.npy", key_keep="m.npy", lse="l.npy"))
        results = [attention(queries[b], keys[b], values[b], legal=lambda h, i, j: kept[b][j], bias=lambda h, i, j: -slopes[b][h] * abs(i + T - S - j))
                   for b in range(B)]
        self.expect_near("o.npy", (B, S, H, E), [result[0] for result in results])
        self.expect_near("l.npy", (B, H, S), [result[1] for result in results])

    def test_packed_sequences(self):
        bounds, key_bounds = [0, 2, 2, S], [0, 4, 5, T]  # the second sequence has no query
        self.write("cq.npy", npy_of(bounds, "<i4"))
        self.write("ck.npy", npy_of(key_bounds, "<i8"))
        out, lse = [], [[] for _ in range(H)]
        for (a, b), (c, d) in zip(zip(bounds, bounds[1:]), zip(key_bounds, key_bounds[1:])):
            part = attention(self.query[a:b], self.key[c:d], self.value[c:d], legal=lambda h, i, j: j <= i + (d - c) - (b - a))
            out += part[0]
            for h in range(H):
                lse[h] += part[1][h]
        report = json.loads(self.succeed(*self.arguments(cu_seqlens_q="cq.npy", cu_seqlens_k="ck.npy", causal=True, lse="l.npy", json=True)))
        self.expect_near("o.npy", (S, H, E), out)
        self.expect_near("l.npy", (H, S), lse)
        self.assertEqual(report["legal_pairs"], (3 + 4) + 0 + (1 + 2 + 3 + 4))

    def test_types(self):
        exact = self.integers(S, H, D), self.integers(T, G, D), self.integers(T, G, E)
        for descr in ["<f4", "<f2"]:
            self.write_inputs(*exact, descr)
            for dtype in ["f32", "bf16", "f16"]:  # small integers are exact in each, and so are the products
                with self.subTest(file_type=descr, dtype=dtype):
                    self.succeed(*self.arguments(dtype=dtype))
                    self.expect_near("o.npy", (S, H, E), attention(*exact)[0])
        value = 1 + 2**-9  # exact in float16 (11 bits), 1 in bfloat16 (8 bits)
        self.write_inputs([[[1.0]]], [[[1.0]]], [[[value]]])
        for dtype, expected in [("f32", value), ("f16", value), ("bf16", 1.0)]:
            self.succeed(*self.arguments(dtype=dtype))
            self.assertEqual(read_npy(self.path("o.npy"))[1], [expected])

    def test_e4m3(self):
        """Blocks of 128 rows whose greatest magnitude is 7 * 2^n have the scale 2^(n - 6), with which these numbers are exact."""
        rows, keys = 3, 2 * 128 + 5

        def blocks(rows, heads, dims):
            values = self.integers(rows, heads, dims, largest=1)
            for first in range(0, rows, 128):
                for h in range(heads):
                    values[first][h][0] = 7.0
                    for row in values[first : first + 128]:
                        row[h] = [x * 2.0 ** (h - first // 128) for x in row[h]]
            return values

        exact = blocks(rows, H, D), blocks(keys, G, D), blocks(keys, G, E)
        self.write_inputs(*exact)
        report = json.loads(self.succeed(*self.arguments(dtype="e4m3", lse="l.npy", json=True)))
        out, lse = attention(*exact)
        self.expect_near("o.npy", (rows, H, E), out)
        self.expect_near("l.npy", (H, rows), lse)
        self.assertEqual(report["options"]["dtype"], "e4m3")
        # 448/9 = 49.8 is between 48 and 52, of which 48 is nearer
        self.write_inputs([[[1.0]]], [[[1.0]]], [[[9.0, 1.0]]])
        self.succeed(*self.arguments(dtype="e4m3"))
        self.expect_near("o.npy", (1, 1, 2), [9, 48 * 9 / 448], bound=1e-6)

    def test_dropout(self):
        self.expect({"dropout": 0})
        plain = read_npy(self.path("l.npy"))
        self.succeed(*self.arguments(dropout=1, seed=3, lse="l.npy"))
        self.assertEqual(read_npy(self.path("o.npy"))[:2], ((S, H, E), [0.0] * (S * H * E)))
        self.assertEqual(read_npy(self.path("l.npy")), plain)  # dropout does not touch it
        results = {}
        for seed, offset in [(1, 0), (1, 0), (2, 0), (1, 1), (2**64 - 1, 2**32 - 1)]:
            self.succeed(*self.arguments(dropout=0.5, seed=seed, dropout_offset=offset))
            content = self.read("o.npy")
            self.assertEqual(results.setdefault((seed, offset), content), content)
        self.assertEqual(len(set(results.values())), len(results))

    def test_empty_extents(self):
        for rows, keys in [(0, 5), (4, 0), (0, 0)]:
            self.write("q.npy", npy("<f4", (rows, H, D), bytes(4 * rows * H * D)))
            self.write("k.npy", npy("<f4", (keys, G, D), bytes(4 * keys * G * D)))
            self.write("v.npy", npy("<f4", (keys, G, E), bytes(4 * keys * G * E)))
            self.write("d.npy", npy("<f4", (rows, H, E), bytes(4 * rows * H * E)))
            self.succeed(*self.arguments(grad_output="d.npy", grad_key="gk.npy", lse="l.npy"))
            self.assertEqual(read_npy(self.path("o.npy"))[:2], ((rows, H, E), [0.0] * (rows * H * E)))
            self.assertEqual(read_npy(self.path("l.npy"))[:2], ((H, rows), [-math.inf] * (rows * H)))
            self.assertEqual(read_npy(self.path("gk.npy"))[:2], ((keys, G, D), [0.0] * (keys * G * D)))


class Backward(AttentionTest):
    GRADIENTS = {"grad_output": "d.npy", "grad_query": "gq.npy", "grad_key": "gk.npy", "grad_value": "gv.npy"}

    def expect_gradients(self, options, **formula):
        """A few entries of each gradient against central differences of sum(output * grad_output)."""
        grad_output = self.floats(S, H, E)
        self.write("d.npy", npy_of(grad_output))
        self.succeed(*self.arguments(**self.GRADIENTS, **options))
        loss = lambda: sum(a * b for a, b in zip(flat(attention(self.query, self.key, self.value, **formula)[0]), flat(grad_output)))  # noqa: E731
        step = 1e-5
        for name, values in [("gq.npy", self.query), ("gk.npy", self.key), ("gv.npy", self.value)]:
            shape, gradient, descr = read_npy(self.path(name))
            self.assertEqual((shape, descr), ((len(values), len(values[0]), len(values[0][0])), "<f4"))
            for _ in range(6):
                i, h, d = (self.random.randrange(extent) for extent in shape)
                kept, values[i][h][d] = values[i][h][d], values[i][h][d] + step
                above = loss()
                values[i][h][d] = kept - step
                below = loss()
                values[i][h][d] = kept
                self.assertAlmostEqual(gradient[(i * shape[1] + h) * shape[2] + d], (above - below) / (2 * step), delta=2e-4)

    def test_plain(self):
        self.expect_gradients({})

    def test_causal_window(self):
        self.expect_gradients({"causal": True, "window": "3,-1"}, legal=lambda h, i, j: i + T - S - 3 <= j <= i + T - S)

    def test_cap_sink_alibi_and_rotary(self):
        slopes, sink = self.floats(H), self.floats(H)
        self.write("s.npy", npy_of(slopes))
        self.write("z.npy", npy_of(sink))
        self.expect_gradients({"softcap": 1.5, "sink": "z.npy", "alibi": "s.npy", "rope_dims": 4}, softcap=1.5, sink=sink,
                              bias=lambda h, i, j: -slopes[h] * abs(i + T - S - j), turn_query=lambda row, i: turned(row, i + T - S, 4),
                              turn_key=lambda row, j: turned(row, j, 4))

    def test_masks_biases_and_sink(self):
        """A few entries of each further gradient, its shape that of its input, against central differences; one alone is the same."""
        for mask_shape, slopes_shape in [((H, S, T), (H,)), ((1, 1, S, T), (1, H)), ((S, T), (H,)), ((H, 1, T), (H,)), ((T,), (H,))]:
            mask, slopes, table, sink = self.floats(*mask_shape), self.floats(*slopes_shape), self.floats(6, H), self.floats(H)
            grad_output = self.floats(S, H, E)
            for name, values in [("a.npy", mask), ("s.npy", slopes), ("t.npy", table), ("z.npy", sink), ("d.npy", grad_output)]:
                self.write(name, npy_of(values))

            def masked(h, i, j):
                values = mask
                for index, extent in zip((0, h, i, j)[4 - len(mask_shape) :], mask_shape):
                    values = values[index if extent > 1 else 0]
                return values

            def loss():
                slope = slopes if len(slopes_shape) == 1 else slopes[0]
                out, _ = attention(self.query, self.key, self.value, sink=sink,
                                   bias=lambda h, i, j: masked(h, i, j) - slope[h] * abs(i + T - S - j) + table[bucket(j - (i + T - S), 6, 5, True)][h])
                return sum(a * b for a, b in zip(flat(out), flat(grad_output)))

            inputs = {"additive_mask": "a.npy", "alibi": "s.npy", "relative_bias": "t.npy", "relative_bias_max_distance": 5, "sink": "z.npy", "grad_output": "d.npy"}
            outputs = {"grad_additive_mask": "ga.npy", "grad_alibi": "gs.npy", "grad_relative_bias": "gt.npy", "grad_sink": "gz.npy"}
            with self.subTest(mask=mask_shape, slopes=slopes_shape):
                self.succeed(*self.arguments(**inputs, **outputs))
                step = 1e-5
                for name, shape, values in [("ga.npy", mask_shape, mask), ("gs.npy", slopes_shape, slopes), ("gt.npy", (6, H), table), ("gz.npy", (H,), sink)]:
                    given_shape, gradient, descr = read_npy(self.path(name))
                    self.assertEqual((given_shape, descr), (shape, "<f4"))
                    for _ in range(4):
                        place, row, at = [self.random.randrange(extent) for extent in shape], values, 0
                        for index, extent in zip(place, shape):
                            at = at * extent + index
                        for index in place[:-1]:
                            row = row[index]
                        kept, row[place[-1]] = row[place[-1]], row[place[-1]] + step
                        above = loss()
                        row[place[-1]] = kept - step
                        below = loss()
                        row[place[-1]] = kept
                        self.assertAlmostEqual(gradient[at], (above - below) / (2 * step), delta=2e-4, msg=f"{name} {place}")
                for option, name in outputs.items():
                    together = self.read(name)
                    os.remove(self.path(name))
                    self.succeed(*self.arguments(**inputs, **{option: name}))
                    self.assertEqual(self.read(name), together)

    def test_stretches_of_queries_share_the_gradient(self):
        grad_output, cut = self.floats(S, H, E), 2
        options = {"key_offset": 37, "causal": True, "window": "6,-1", "rope_dims": D, "dropout": 0.25}
        gradients = []
        for first, last in [(0, S), (0, cut), (cut, S)]:
            self.write_inputs(self.query[first:last])
            self.write("d.npy", npy_of(grad_output[first:last]))
            self.succeed(*self.arguments(**self.GRADIENTS, **options, query_offset=40 + first))
            gradients.append([read_npy(self.path(name))[1] for name in ("gq.npy", "gk.npy", "gv.npy")])
        whole, one, other = gradients
        for a, b in zip(whole[0], one[0] + other[0]):
            self.assertAlmostEqual(a, b, delta=1e-6)
        for n in (1, 2):
            self.assertGreater(max(abs(a - b) for a, b in zip(whole[n], one[n])), 0.1)
            for a, b, c in zip(whole[n], one[n], other[n]):
                self.assertAlmostEqual(a, b + c, delta=1e-5)

    def test_hidden_keys_have_no_gradient(self):
        self.write("m.npy", npy_of([j != 4 for j in range(T)], "|b1"))
        self.expect_gradients({"key_keep": "m.npy"}, legal=lambda h, i, j: j != 4)
        for name, width in [("gk.npy", D), ("gv.npy", E)]:
            self.assertEqual(read_npy(self.path(name))[1][4 * G * width : 5 * G * width], [0.0] * (G * width))

    def test_one_gradient_alone_is_the_same(self):
        self.write("d.npy", npy_of(self.floats(S, H, E)))
        self.succeed(*self.arguments(**self.GRADIENTS))
        all_three = {name: self.read(name) for name in ("gq.npy", "gk.npy", "gv.npy")}
        for option, name in [("grad_query", "gq.npy"), ("grad_key", "gk.npy"), ("grad_value", "gv.npy")]:
            for other in all_three:
                os.remove(self.path(other)) if os.path.exists(self.path(other)) else None
            self.succeed(*self.arguments(grad_output="d.npy", **{option: name}))
            self.assertEqual({other for other in all_three if os.path.exists(self.path(other))}, {name})
            self.assertEqual(self.read(name), all_three[name])

    def test_batch(self):
        self.write_inputs([self.query] * B, [self.key] * B, [self.value] * B)
        grad_output = self.floats(S, H, E)
        self.write("d.npy", npy_of([grad_output] * B, "<f2"))
        self.succeed(*self.arguments(**self.GRADIENTS, dtype="bf16"))
        for name, extents in [("gq.npy", (S, H, D)), ("gk.npy", (T, G, D)), ("gv.npy", (T, G, E))]:
            shape, values, _ = read_npy(self.path(name))
            self.assertEqual(shape, (B, *extents))
            self.assertEqual(values[: len(values) // 2], values[len(values) // 2 :])

    def test_dropout_of_everything(self):
        self.write("d.npy", npy_of(self.floats(S, H, E)))
        self.succeed(*self.arguments(**self.GRADIENTS, dropout=1))
        for name in ("gq.npy", "gk.npy", "gv.npy"):
            self.assertEqual(set(read_npy(self.path(name))[1]), {0.0})


class Report(AttentionTest):
    def test_json(self):
        self.write("d.npy", npy_of(self.floats(S, H, E)))
        self.write("z.npy", npy_of(self.floats(H)))
        report = json.loads(self.succeed(*self.arguments(json=True, causal=True, window="2,-1", dtype="bf16", softcap=2, dropout=0.25, seed=9, rope_dims=4,
                                                         sink="z.npy", grad_output="d.npy", grad_key="gk.npy")))
        self.assertEqual((report["command"], report["backend"] != "", report["level"] in ("portable", "hopper")), ("attention", True, True))
        self.assertEqual(report["shapes"], {"query": [S, H, D], "key": [T, G, D], "value": [T, G, E], "sink": [H], "grad_output": [S, H, E], "output": [S, H, E]})
        options = report["options"]
        self.assertEqual((options["dtype"], options["causal"], options["window"], options["softcap"]), ("bf16", True, [2, -1], 2))
        self.assertEqual((options["rope"]["dims"], options["rope"]["style"], options["relative_bias"]), (4, "half", None))
        self.assertEqual(options["dropout"], {"probability": 0.25, "seed": 9, "offset": 0})
        self.assertAlmostEqual(options["scale"], 1 / math.sqrt(D), places=6)
        self.assertEqual((options["query_offset"], options["key_offset"]), (None, 0))
        self.assertEqual(report["legal_pairs"], 3 * S)
        for direction in ("forward", "backward"):
            self.assertTrue(all(report[direction][key] > 0 for key in ("seconds", "tflops", "peak_bytes")), report)
        self.assertAlmostEqual(report["forward"]["tflops"] * report["forward"]["seconds"] * 1e12, 2 * (D + E) * H * 3 * S, delta=1e-3)
        self.assertAlmostEqual(report["backward"]["tflops"] * report["backward"]["seconds"] * 1e12, 2 * (3 * D + 2 * E) * H * 3 * S, delta=1e-3)

    def test_pairs_of_a_stretch(self):
        report = json.loads(self.succeed(*self.arguments(json=True, causal=True, query_offset=12, key_offset=10)))
        self.assertEqual((report["options"]["query_offset"], report["options"]["key_offset"]), (12, 10))
        self.assertEqual(report["legal_pairs"], sum(range(3, 3 + S)))

    def test_no_rate_where_masks_hide(self):
        self.write("m.npy", npy_of([True] * T, "|b1"))
        report = json.loads(self.succeed(*self.arguments(json=True, key_keep="m.npy")))
        self.assertEqual((report["legal_pairs"], report["forward"]["tflops"], report["backward"]), (None, None, None))

    def test_text(self):
        self.assertIn("TFLOP/s of legal work", self.succeed(*self.arguments()))
        self.write("m.npy", npy_of([True] * T, "|b1"))
        text = self.succeed(*self.arguments(key_keep="m.npy"))
        self.assertIn("forward", text)
        self.assertNotIn("TFLOP/s", text)


class Refusals(AttentionTest):
    def test_files(self):
        self.refuse("none.npy: No such file", *self.arguments(query="none.npy"))
        self.refuse("not a regular file", *self.arguments(key="."))
        self.refuse("mask.npy: No such file", *self.arguments(key_keep="mask.npy"))
        for option, descr, reason in [("query", "<i4", "has int32 elements, expected float32 or float16"),
                                      ("value", "<f8", "'<f8'"),
                                      ("key_keep", "<f4", "has float32 elements, expected bool or uint8"),
                                      ("keep_mask", "<i4", "expected bool or uint8"),
                                      ("additive_mask", "|b1", "has bool elements, expected float32 or float16"),
                                      ("alibi", "<i4", "expected float32 or float16"),
                                      ("cu_seqlens_q", "<f4", "expected int32 or int64")]:
            with self.subTest(option=option):
                self.write("bad.npy", npy(descr, (2, 3, 4), bytes(24 * int(descr[2]))))
                self.refuse(reason, *self.arguments(**{"cu_seqlens_k": "bad.npy"} if option.startswith("cu") else {}, **{option: "bad.npy"}))
        self.write("bad.npy", self.read("v.npy")[:-1])
        self.refuse("bad.npy: is truncated", *self.arguments(value="bad.npy"))

    def test_shapes(self):
        for option, shape, reason in [("query", (S, D), "expected query [S, H, D] or [B, S, H, D]"),
                                      ("query", (1, S, H, D), "expected key [B, T, G, D] as query is [B, S, H, D]"),
                                      ("query", (S, H + 1, D), f"has {H + 1} heads, expected a multiple of the {G}"),
                                      ("query", (S, H, D + 1), f"has head dimension {D} in its shape [{T}, {G}, {D}], bad.npy has {D + 1}"),
                                      ("query", (S, 0, D), "has 0 heads"),
                                      ("key", (1, T, G, D), "expected key [T, G, D]"),
                                      ("key", (T + 1, G, D), f"has keys {T}"),
                                      ("key", (T, 1, D), f"has heads {G}"),
                                      ("value", (T, G), "expected value [T, G, E]"),
                                      ("value", (T, G, 0), "has 0 components a head"),
                                      ("additive_mask", (H, S, T + 1), f"expected [1, {H}, {S}, {T}], with 1 or nothing in place of any but the last"),
                                      ("additive_mask", (2, H, S, T), "expected [1, "),
                                      ("additive_mask", (S, 1), "expected [1, "),
                                      ("additive_mask", (), "expected [1, "),
                                      ("additive_mask", (1, 1, H, S, T), "expected [1, "),
                                      ("alibi", (H + 1,), f"expected [{H}] or [1, {H}]"),
                                      ("sink", (1, H), f"expected [{H}]"),
                                      ("relative_bias", (H,), "expected table [buckets, H]"),
                                      ("relative_bias", (4, H + 1), f"has heads {H + 1}"),
                                      ("relative_bias", (5, H), "has 5 buckets, expected 2 to 1024, an even number"),
                                      ("relative_bias", (1026, H), "has 1026 buckets"),
                                      ("grad_output", (S, H, D), f"expected [{S}, {H}, {E}]")]:
            with self.subTest(option=option, shape=shape):
                self.write("bad.npy", npy("<f4", shape, bytes(4 * math.prod(shape))))
                self.refuse(reason, *self.arguments(**{option: "bad.npy"}, **{"grad_query": "gq.npy"} if option == "grad_output" else {}))
        for option, shape, reason in [("key_keep", (T + 1,), f"expected [{T}]"), ("key_keep", (1, T), f"expected [{T}]"), ("keep_mask", (T, S), "with 1 or nothing")]:
            self.write("bad.npy", npy("|b1", shape, bytes(math.prod(shape))))
            self.refuse(reason, *self.arguments(**{option: "bad.npy"}))
        self.write_inputs([self.query] * 2, [self.key] * 3, [self.value] * 2)
        self.refuse("has batch 3", *self.arguments())

    def test_packed_sequences(self):
        for queries, keys, reason in [([0, S], [0, 3, T], "expected [2]"), ([0, S + 1], [0, T], f"has entry {S + 1}, expected ascending numbers from 0 to the {S} queries"),
                                      ([0, S], [-1, T], "has entry -1"), ([3, 2], [0, T], "has entry 2"), ([[0, S]], [0, T], "expected cu_seqlens")]:
            with self.subTest(queries=queries, keys=keys):
                self.write("cq.npy", npy_of(queries, "<i8"))
                self.write("ck.npy", npy_of(keys, "<i8"))
                self.refuse(reason, *self.arguments(cu_seqlens_q="cq.npy", cu_seqlens_k="ck.npy"))
        self.write("c.npy", npy("<i4", (0,), b""))
        self.refuse("is empty", *self.arguments(cu_seqlens_q="c.npy", cu_seqlens_k="c.npy"))
        self.refuse("--cu-seqlens-q requires --cu-seqlens-k", *self.arguments(cu_seqlens_q="c.npy"))
        self.write_inputs([self.query], [self.key], [self.value])
        self.write("c.npy", npy_of([0, 1], "<i4"))
        self.refuse("has a batch dimension", *self.arguments(cu_seqlens_q="c.npy", cu_seqlens_k="c.npy"))

    def test_positions(self):
        self.write("p.npy", npy_of(list(range(S)), "<i4"))
        self.refuse("give --rope-query-positions and --rope-key-positions", *self.arguments(rope_dims=D, rope_positions="p.npy"))
        self.refuse(f"expected [{T}]", *self.arguments(rope_dims=D, rope_key_positions="p.npy"))
        self.refuse("excludes", *self.arguments(rope_dims=D, rope_positions="p.npy", rope_query_positions="p.npy"))
        self.write("p.npy", npy_of([2**31] * S, "<i8"))
        self.refuse("has position 2147483648", *self.arguments(rope_dims=D, rope_query_positions="p.npy"))

    def test_usage(self):
        self.write("t.npy", npy_of(self.floats(8, H)))
        self.write("d.npy", npy_of(self.floats(S, H, E)))
        for reason, changes in [
            ("--query", {"query": None}),
            ("--value", {"value": None}),
            ("--output", {"output": None}),
            ("'3' is not a window: expected L,R", {"window": "3"}),
            ("--window", {"window": "-2,0"}),
            ("--window", {"window": "1,2,3"}),
            ("--window", {"window": "1,99999999999"}),
            ("--window", {"window": ""}),
            ("--softcap", {"softcap": -1}),
            ("--softcap", {"softcap": "nan"}),
            ("--scale", {"scale": "inf"}),
            ("--scale", {"scale": "small"}),
            ("--dropout", {"dropout": 1.5}),
            ("--dropout", {"dropout": "nan"}),
            ("--seed", {"seed": 1}),
            ("--seed", {"dropout": 0.5, "seed": -1}),
            ("--dropout-offset", {"dropout": 0.5, "dropout_offset": 2**32}),
            ("--rope-dims is 3", {"rope_dims": 3}),
            (f"up to the head dimension {D}", {"rope_dims": D + 2}),
            ("--rope-dims", {"rope_dims": 0}),
            ("--rope-base requires --rope-dims", {"rope_base": 100}),
            ("--rope-base must be", {"rope_dims": 2, "rope_base": 0}),
            ("--rope-style", {"rope_dims": 2, "rope_style": "spiral"}),
            ("--rope-dims-last requires", {"rope_dims_last": True}),
            ("--relative-bias-max-distance requires", {"relative_bias_max_distance": 9}),
            ("--relative-bias-max-distance must exceed the 2", {"relative_bias": "t.npy", "relative_bias_max_distance": 2}),
            ("--relative-bias-unidirectional requires", {"relative_bias_unidirectional": True}),
            ("--dtype", {"dtype": "f64"}),
            ("--dtype e4m3 does not go with --rope-dims", {"dtype": "e4m3", "rope_dims": 2}),
            ("--dtype e4m3 does not go with --grad-output", {"dtype": "e4m3", "grad_output": "d.npy", "grad_query": "g.npy"}),
            ("--level", {"level": "fast"}),
            ("no backend 'abacus' in this build, which has ", {"backend": "abacus"}),
            ("--unknown", {"unknown": 1}),
            ("--grad-query requires --grad-output", {"grad_query": "gq.npy"}),
            ("none of --grad-query, --grad-key, --grad-value, --grad-additive-mask, --grad-alibi, --grad-relative-bias, --grad-sink", {"grad_output": "d.npy"}),
            ("--grad-sink requires --grad-output", {"grad_sink": "gz.npy", "sink": "z.npy"}),
            ("--grad-sink requires --sink", {"grad_output": "d.npy", "grad_sink": "gz.npy"}),
            ("--grad-alibi requires --alibi", {"grad_output": "d.npy", "grad_alibi": "gs.npy"}),
            ("--grad-additive-mask requires --additive-mask", {"grad_output": "d.npy", "grad_additive_mask": "ga.npy"}),
            ("--grad-relative-bias requires --relative-bias", {"grad_output": "d.npy", "grad_relative_bias": "gt.npy"}),
            ("--grad-query and --output name the same file", {"grad_output": "d.npy", "grad_query": "o.npy"}),
            ("--key-offset requires --query-offset", {"key_offset": 3}),
            ("--key-offset is -1, expected 0 to ", {"query_offset": 0, "key_offset": -1}),
            (f"--key-offset is {2**31 - T + 1}, expected 0 to {2**31 - T} with {T} keys", {"query_offset": 0, "key_offset": 2**31 - T + 1}),
            (f"--query-offset is {2**31 - S + 1}, expected {-2**31} to {2**31 - S} with {S} queries", {"query_offset": 2**31 - S + 1}),
            ("--query-offset", {"query_offset": "far"}),
            ("--query-offset", {"query_offset": 0, "cu_seqlens_q": "c.npy", "cu_seqlens_k": "c.npy"}),
            ("--output and --lse name the same file", {"lse": "./o.npy"}),
            ("--grad-query and --grad-value name the same file", {"grad_output": "d.npy", "grad_query": "g.npy", "grad_value": "g.npy"}),
            ("no folder/o.npy: cannot be written: No such file or directory", {"output": "no folder/o.npy"}),
            ("cannot be written", {"grad_output": "d.npy", "grad_value": "no folder/g.npy"}),
            ("not a regular file", {"lse": "/dev/null"}),
        ]:
            with self.subTest(**changes):
                self.refuse(reason, *self.arguments(**changes))

    def test_before_kokkos_starts(self):
        broken = {"KOKKOS_NUM_THREADS": "-3"}
        self.refuse("--rope-dims is 3", *self.arguments(rope_dims=3), env=broken)
        self.refuse("cannot be written", *self.arguments(lse="none/l.npy"), env=broken)

    def test_overwrites_whole_files_only(self):
        self.write("o.npy", b"old")
        self.refuse("cannot be written", *self.arguments(lse="no folder/l.npy"))
        self.assertEqual(self.read("o.npy"), b"old")

    def test_a_level_that_cannot_be(self):
        if "hopper" not in json.loads(self.succeed("info", "--json"))["levels"]:
            self.refuse("opper", *self.arguments(level="hopper"))


if __name__ == "__main__":
    unittest.main()
