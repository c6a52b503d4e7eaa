"""The program `tributary` as its users meet it: results, refusals, exit status, what is left on disk.

Usage: test_command_line.py PROGRAM [unittest options].  Needs only Python's standard library.
"""

import array
import json
import math
import os
import pty
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import unittest
import xml.etree.ElementTree

PROGRAM = os.path.abspath(sys.argv.pop(1))
FORMATS = {"<f4": "f", "<f2": "e", "<i4": "i", "<i8": "q", "|b1": "?", "|u1": "B"}
MINUS_INFINITY = -math.inf


def flat(values):
    return [x for v in values for x in flat(v)] if isinstance(values, (list, tuple)) else [values]


def shape_of(values):
    return (len(values),) + shape_of(values[0]) if isinstance(values, (list, tuple)) else ()


def npy(descr, shape, data, fortran_order=False):
    header = f"{{'descr': '{descr}', 'fortran_order': {fortran_order}, 'shape': {tuple(shape)}, }}"
    header += " " * (63 - (10 + len(header)) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + data


def npy_of(values, descr="<f4", shape=None):
    elements = flat(values)
    return npy(descr, shape or shape_of(values), struct.pack(f"<{len(elements)}{FORMATS[descr]}", *elements))


def read_npy(path):
    with open(path, "rb") as file:
        content = file.read()
    (length,) = struct.unpack_from("<H", content, 8)
    header = eval(content[10 : 10 + length])  # written by the program under test
    assert not header["fortran_order"] and (10 + length) % 64 == 0
    count = math.prod(header["shape"])
    return header["shape"], list(struct.unpack(f"<{count}{FORMATS[header['descr']]}", content[10 + length :])), header["descr"]


def expected_topk(scores, legal, k, by_index=False):
    """Indices and scores of one row by the definition of the order."""
    order = sorted((s for s in range(len(scores)) if legal(s)), key=lambda s: (math.isnan(scores[s]), -scores[s] if not math.isnan(scores[s]) else 0, s))[:k]
    if by_index:
        order.sort()
    pad = k - len(order)
    return order + [-1] * pad, [scores[s] for s in order] + [MINUS_INFINITY] * pad


def indexer_scores(query, key, weights):
    """[T] scores of one query [H][D]."""
    return [sum(w * max(0.0, sum(a * b for a, b in zip(head, row))) for head, w in zip(query, weights)) for row in key]


class ProgramTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="tributary_cli_")
        self.addCleanup(shutil.rmtree, self.folder)
        self.random = random.Random(20240611)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, content):
        with open(self.path(name), "wb") as file:
            file.write(content)
        return self.path(name)

    def read(self, name):
        with open(self.path(name), "rb") as file:
            return file.read()

    def run_program(self, *arguments, env=None):
        return subprocess.run([PROGRAM, *map(str, arguments)], cwd=self.folder, capture_output=True, text=True, timeout=120, env={**os.environ, **(env or {})})

    def succeed(self, *arguments, **options):
        result = self.run_program(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr, "")
        return result.stdout

    def refuse(self, reason, *arguments, **options):
        """One line on stderr that names the reason, status 2, and no file more than before."""
        before = sorted(os.listdir(self.folder))
        result = self.run_program(*arguments, **options)
        self.assertEqual(result.returncode, 2, (result.returncode, result.stdout, result.stderr))
        self.assertEqual(result.stderr.count("\n"), 1, result.stderr)
        self.assertIn(reason, result.stderr)
        self.assertTrue(result.stderr.startswith("tributary"), result.stderr)
        self.assertEqual(result.stdout, "")
        self.assertEqual(sorted(os.listdir(self.folder)), before)

    def integers(self, *extents, largest=2):
        if not extents:
            return float(self.random.randint(-largest, largest))
        return [self.integers(*extents[1:], largest=largest) for _ in range(extents[0])]

    def floats(self, *extents):
        if not extents:
            return self.random.gauss(0, 1)
        return [self.floats(*extents[1:]) for _ in range(extents[0])]


class IndexerTopk(ProgramTest):
    S, T, H, D, K = 29, 13, 3, 5, 4

    def setUp(self):
        super().setUp()
        # small integers are exact in every type and order, and full of ties
        self.query, self.key, self.weights = self.integers(self.S, self.H, self.D), self.integers(self.T, self.D), self.integers(self.S, self.H)
        self.write("q.npy", npy_of(self.query))
        self.write("k.npy", npy_of(self.key))
        self.write("w.npy", npy_of(self.weights))

    def arguments(self, **changes):
        options = {"query": "q.npy", "key": "k.npy", "weights": "w.npy", "top-k": self.K, "indices": "i.npy"}
        options.update({name.replace("_", "-"): value for name, value in changes.items()})
        words = ["indexer-topk"]
        for name, value in options.items():
            if value is True:
                words.append(f"--{name}")
            elif value is not None:
                words += [f"--{name}", value]
        return words

    def expect_rows(self, legal=lambda t, s: True, k=None, by_index=False):
        k = k or self.K
        indices, scores = [], []
        for t in range(self.S):
            row = expected_topk(indexer_scores(self.query[t], self.key, self.weights[t]), lambda s: legal(t, s), k, by_index)
            indices += row[0]
            scores += row[1]
        shape, given, descr = read_npy(self.path("i.npy"))
        self.assertEqual((shape, descr), ((self.S, k), "<i4"))
        self.assertEqual(given, indices)
        if os.path.exists(self.path("s.npy")):
            shape, given, descr = read_npy(self.path("s.npy"))
            self.assertEqual((shape, descr), ((self.S, k), "<f4"))
            self.assertEqual(given, scores)

    def test_full(self):
        self.succeed(*self.arguments(scores="s.npy"))
        self.expect_rows()

    def test_without_scores(self):
        self.succeed(*self.arguments())
        self.expect_rows()
        self.assertFalse(os.path.exists(self.path("s.npy")))

    def test_every_backend_level_and_order(self):
        backends = [space["backend"] for space in json.loads(self.succeed("info", "--json"))["execution_spaces"]]
        for backend in backends:
            for level in ["auto", "portable"] + (["reference"] if backend not in ("cuda", "hip") else []):
                for order in ["score", "index"]:
                    with self.subTest(backend=backend, level=level, order=order):
                        self.succeed(*self.arguments(backend=backend, level=level, order=order, causal_ratio=2, query_offset=1, scores="s.npy"))
                        self.expect_rows(legal=lambda t, s: s < (1 + t + 1) // 2, by_index=order == "index")

    def test_causal(self):
        for ratio, offset in [(1, None), (3, None), (2, 7), (4, 2147483647)]:
            with self.subTest(ratio=ratio, offset=offset):
                self.succeed(*self.arguments(causal_ratio=ratio, query_offset=offset, scores="s.npy"))
                self.expect_rows(legal=lambda t, s: s < ((offset or 0) + t + 1) // ratio)

    def test_range(self):
        bounds = [[self.random.randint(-3, self.T), self.random.randint(0, self.T + 3)] for _ in range(self.S)]
        bounds[0] = [0, 2**31 - 1]
        for descr in ["<i4", "<i8"]:
            self.write("r.npy", npy_of(bounds, descr))
            self.succeed(*self.arguments(range="r.npy", scores="s.npy"))
            self.expect_rows(legal=lambda t, s: bounds[t][0] <= s < bounds[t][1])
        self.write("r.npy", npy_of([[-(2**62), 2**62]] * self.S, "<i8"))
        self.succeed(*self.arguments(range="r.npy", scores="s.npy"))
        self.expect_rows()

    def test_top_k_beyond_the_keys(self):
        self.succeed(*self.arguments(top_k=self.T + 3, scores="s.npy"))
        self.expect_rows(k=self.T + 3)

    def test_batch_dimension_iff_the_input_had_it(self):
        self.write("q.npy", npy_of([self.query, self.integers(self.S, self.H, self.D)]))
        self.write("k.npy", npy_of([self.key, self.integers(self.T, self.D)]))
        self.write("w.npy", npy_of([self.weights, self.integers(self.S, self.H)]))
        self.write("r.npy", npy_of([[[0, self.T]] * self.S, [[2, 2]] * self.S], "<i4"))
        self.succeed(*self.arguments(range="r.npy"))
        shape, two, _ = read_npy(self.path("i.npy"))
        self.assertEqual(shape, (2, self.S, self.K))
        self.assertEqual(two[self.S * self.K :], [-1] * (self.S * self.K))

        for name, values in [("q.npy", [self.query]), ("k.npy", [self.key]), ("w.npy", [self.weights])]:
            self.write(name, npy_of(values))
        self.succeed(*self.arguments())
        shape, one, _ = read_npy(self.path("i.npy"))
        self.assertEqual(shape, (1, self.S, self.K))
        self.assertEqual(one, two[: self.S * self.K])

    def test_every_dtype(self):
        for file_type in ["<f4", "<f2"]:
            for name, values in [("q.npy", self.query), ("k.npy", self.key), ("w.npy", self.weights)]:
                self.write(name, npy_of(values, file_type))
            for dtype in ["f32", "bf16", "f16"]:
                with self.subTest(file_type=file_type, dtype=dtype):
                    self.succeed(*self.arguments(dtype=dtype, scores="s.npy"))
                    self.expect_rows()
        # 448/2 and the like are not exact, so e4m3's scores are only near
        self.succeed(*self.arguments(dtype="e4m3", top_k=self.T, order="index", scores="s.npy"))
        _, indices, _ = read_npy(self.path("i.npy"))
        _, scores, _ = read_npy(self.path("s.npy"))
        self.assertEqual(indices, list(range(self.T)) * self.S)
        for t in range(self.S):
            exact = indexer_scores(self.query[t], self.key, self.weights[t])
            bound = max(indexer_scores([[abs(x) for x in head] for head in self.query[t]], [[abs(x) for x in row] for row in self.key], [abs(w) for w in self.weights[t]]))
            for a, b in zip(exact, scores[t * self.T : (t + 1) * self.T]):
                self.assertLessEqual(abs(a - b), 0.13 * bound + 1e-5)  # two roundings to 4 significant bits

    def test_rounds_to_dtype(self):
        value = 1 + 2**-9  # exact in float16 (11 bits), 1 in bfloat16 (8 bits)
        self.write("q.npy", npy_of([[[value]]], "<f2"))
        self.write("k.npy", npy_of([[1.0]]))
        self.write("w.npy", npy_of([[1.0]]))
        for dtype, expected in [("f32", value), ("f16", value), ("bf16", 1.0)]:
            self.succeed(*self.arguments(dtype=dtype, top_k=1, scores="s.npy"))
            self.assertEqual(read_npy(self.path("s.npy"))[1], [expected])

    def test_chunks_do_not_change_a_bit(self):
        self.write("q.npy", npy_of(self.floats(40, 3, 16)))
        self.write("k.npy", npy_of(self.floats(77, 16)))
        self.write("w.npy", npy_of(self.floats(40, 3)))
        results = set()
        for dtype in ["f32", "e4m3"]:
            for chunk_queries, chunk_keys in [(0, 0), (1, 1), (7, 5), (64, 64), (3, 1000), (1000, 3)]:
                self.succeed(*self.arguments(dtype=dtype, chunk_queries=chunk_queries, chunk_keys=chunk_keys, causal_ratio=1, query_offset=9, scores="s.npy"))
                results.add((dtype, self.read("i.npy"), self.read("s.npy")))
        self.assertEqual(len(results), 2)

    def test_nan_is_data(self):
        self.key[3] = [math.nan] * self.D
        self.write("k.npy", npy_of(self.key))
        self.write("w.npy", npy_of([[1.0] * self.H] * self.S))
        self.succeed(*self.arguments(top_k=self.T, scores="s.npy"))
        indices, scores = read_npy(self.path("i.npy"))[1], array.array("I")
        scores.frombytes(self.read("s.npy")[-4 * self.S * self.T :])
        self.assertEqual(indices[self.T - 1 :: self.T], [3] * self.S)
        self.assertEqual(list(scores[self.T - 1 :: self.T]), [0x7FC00000] * self.S)

    def test_unaligned_data(self):
        content = self.read("q.npy")
        (length,) = struct.unpack_from("<H", content, 8)
        self.write("q.npy", content[:8] + struct.pack("<H", length + 1) + content[10 : 9 + length] + b" \n" + content[10 + length :])
        self.succeed(*self.arguments(scores="s.npy"))
        self.expect_rows()

    def test_empty_extents(self):
        for s, t in [(0, 5), (4, 0), (0, 0)]:
            self.write("q.npy", npy_of([], shape=(s, 0, 0)) if s == 0 else npy_of(self.integers(s, 2, 3)))
            self.write("q.npy", npy("<f4", (s, 2, 3), b"\0" * (4 * s * 6)))
            self.write("k.npy", npy("<f4", (t, 3), b"\0" * (4 * t * 3)))
            self.write("w.npy", npy("<f4", (s, 2), b"\0" * (4 * s * 2)))
            self.succeed(*self.arguments())
            self.assertEqual(read_npy(self.path("i.npy"))[:2], ((s, self.K), [-1] * (s * self.K)))

    def test_json(self):
        report = json.loads(self.succeed(*self.arguments(json=True, causal_ratio=2, query_offset=3, dtype="bf16", order="index", scores="s.npy")))
        self.assertEqual(report["shapes"], {"query": [self.S, self.H, self.D], "key": [self.T, self.D], "weights": [self.S, self.H], "indices": [self.S, self.K]})
        self.assertEqual((report["options"]["top_k"], report["options"]["dtype"], report["options"]["order"]), (self.K, "bf16", "index"))
        self.assertEqual((report["options"]["causal_ratio"], report["options"]["query_offset"]), (2, 3))
        self.assertEqual(report["legal_pairs"], sum(min(self.T, (3 + t + 1) // 2) for t in range(self.S)))
        self.assertIn(report["level"], ["portable", "hopper"])
        self.assertGreater(report["seconds"], 0)
        self.assertGreater(report["tflops"], 0)
        self.assertGreater(report["peak_bytes"], 0)
        self.assertIn("backend", report)

    def test_peak_does_not_grow_with_the_sequence(self):
        peaks = []
        for length in [512, 4096]:
            self.write("q.npy", npy("<f4", (length, 1, 4), bytes(16 * length)))
            self.write("k.npy", npy("<f4", (length, 4), bytes(16 * length)))
            self.write("w.npy", npy("<f4", (length, 1), bytes(4 * length)))
            peaks.append(json.loads(self.succeed(*self.arguments(json=True, top_k=8, backend="serial")))["peak_bytes"])
        self.assertLess(peaks[1], 2 * peaks[0] + 65536)

    def test_progress_on_a_terminal_changes_nothing_else(self):
        length = 9001  # more than two slices
        for name, count, shape in [("q.npy", length * 2, (length, 1, 2)), ("k.npy", 20 * 2, (20, 2)), ("w.npy", length, (length, 1))]:
            self.write(name, npy("<f4", shape, struct.pack(f"<{count}f", *self.floats(count))))
        bounds = [[self.random.randint(0, 20), self.random.randint(0, 20)] for _ in range(length)]
        self.write("r.npy", npy_of(bounds, "<i4"))
        for extra in [{}, {"causal_ratio": 600, "query_offset": 1000}, {"range": "r.npy"}, {"dtype": "e4m3"}, {"order": "index"}]:
            with self.subTest(**extra):
                arguments = self.arguments(top_k=3, scores="s.npy", **extra)
                self.succeed(*arguments)
                expected = self.read("i.npy"), self.read("s.npy")
                os.remove(self.path("i.npy"))
                self.assertIn("100%", self.run_on_terminal(arguments))
                self.assertEqual((self.read("i.npy"), self.read("s.npy")), expected)

    def run_on_terminal(self, arguments):
        """What the program wrote to a stderr that is a terminal."""
        ours, theirs = pty.openpty()
        written = []

        def listen():
            try:
                while part := os.read(ours, 4096):
                    written.append(part)
            except OSError:  # how Linux tells that the other end is closed
                pass

        process = subprocess.Popen([PROGRAM, *map(str, arguments)], cwd=self.folder, stdout=subprocess.DEVNULL, stderr=theirs)
        os.close(theirs)
        listener = threading.Thread(target=listen)
        listener.start()
        self.assertEqual(process.wait(timeout=120), 0)
        listener.join()
        os.close(ours)
        return b"".join(written).decode()

    def test_overwrites_whole_files_only(self):
        self.write("i.npy", b"old")
        self.refuse("cannot be written", *self.arguments(scores="no folder/s.npy"))
        self.assertEqual(self.read("i.npy"), b"old")
        self.succeed(*self.arguments())
        self.expect_rows()

    def test_refuses_bad_files(self):
        self.refuse("none.npy: No such file", *self.arguments(query="none.npy"))
        self.refuse("not a regular file", *self.arguments(key="."))
        good = self.read("q.npy")
        for name, content, reason in [
            ("rank", npy_of(self.integers(4, 4)), "has shape [4, 4], expected query [S, H, D] or [B, S, H, D]"),
            ("truncated", good[:-1], "is truncated"),
            ("short header", good[:40], "is truncated within its header"),
            ("trailing", good + b"\0", "has trailing bytes"),
            ("fortran", npy("<f4", (2, 3, 4), bytes(96), fortran_order=True), "is in Fortran order"),
            ("complex", npy("<c8", (2, 3, 4), bytes(192)), "has complex elements"),
            ("object", npy("|O", (2, 3, 4), bytes(192)), "has Python objects as elements"),
            ("double", npy("<f8", (2, 3, 4), bytes(192)), "'<f8'"),
            ("big-endian", npy(">f4", (2, 3, 4), bytes(96)), "is big-endian"),
            ("int32", npy("<i4", (2, 3, 4), bytes(96)), "has int32 elements, expected float32 or float16"),
            ("huge", npy("<f4", (2**40, 2**40, 2**40), b""), "has a shape whose size is beyond 2^63"),
            ("absurd", npy("<f4", (2**40, 3, 4), b""), "is truncated"),
            ("zip", b"PK\x03\x04", "is not a .npy file"),
            ("empty", b"", "is empty"),
        ]:
            with self.subTest(name):
                self.write("bad.npy", content)
                self.refuse("bad.npy: " + reason if not reason.startswith("'") else reason, *self.arguments(query="bad.npy"))

    def test_refuses_mismatched_extents(self):
        self.write("bad.npy", npy_of(self.integers(self.T, self.D + 1)))
        self.refuse(f"has head dimension {self.D + 1} in its shape", *self.arguments(key="bad.npy"))
        self.write("bad.npy", npy_of(self.integers(self.S, self.H + 1)))
        self.refuse(f"has heads {self.H + 1}", *self.arguments(weights="bad.npy"))
        self.write("bad.npy", npy_of(self.integers(self.S + 1, self.H)))
        self.refuse(f"has queries {self.S + 1}", *self.arguments(weights="bad.npy"))
        self.write("bad.npy", npy_of([self.key]))
        self.refuse("expected key [T, D]", *self.arguments(key="bad.npy"))
        self.write("bad.npy", npy_of([self.query] * 2))
        self.write("keys.npy", npy_of([self.key] * 3))
        self.write("weights.npy", npy_of([self.weights] * 2))
        self.refuse("has batch 3", *self.arguments(query="bad.npy", key="keys.npy", weights="weights.npy"))
        self.refuse("expected key [B, T, D]", *self.arguments(query="bad.npy"))
        for values, reason in [([[0, 1]] * (self.S - 1), "queries"), ([[0, 1, 2]] * self.S, "columns"), ([0, 1] * self.S, "expected range [S, 2]")]:
            self.write("bad.npy", npy_of(values, "<i4"))
            self.refuse(reason, *self.arguments(range="bad.npy"))
        self.write("bad.npy", npy_of([[0, 1]] * self.S))
        self.refuse("expected int32 or int64", *self.arguments(range="bad.npy"))

    def test_refuses_bad_usage(self):
        for reason, changes in [
            ("--top-k", {"top_k": 0}),
            ("--top-k", {"top_k": -4}),
            ("--top-k", {"top_k": "many"}),
            ("--top-k", {"top_k": "99999999999999999999"}),
            ("--top-k", {"top_k": None}),
            ("--indices", {"indices": None}),
            ("--query", {"query": None}),
            ("--causal-ratio", {"causal_ratio": 0}),
            ("--query-offset", {"causal_ratio": 1, "query_offset": -1}),
            ("--query-offset", {"query_offset": 1}),
            ("--range", {"causal_ratio": 1, "range": "r.npy"}),
            ("--dtype", {"dtype": "f64"}),
            ("--order", {"order": "up"}),
            ("--level", {"level": "fast"}),
            ("--chunk-keys", {"chunk_keys": -1}),
            ("no backend 'abacus' in this build, which has ", {"backend": "abacus"}),
            ("--unknown", {"unknown": 1}),
            ("no folder/i.npy: cannot be written: No such file or directory", {"indices": "no folder/i.npy"}),
            ("it is a folder", {"indices": "."}),
            ("not a regular file", {"indices": "/dev/null"}),
            ("name the same file", {"scores": "i.npy"}),
            ("name the same file", {"scores": "./i.npy"}),
        ]:
            with self.subTest(**changes):
                self.refuse(reason, *self.arguments(**changes))

    def test_refuses_a_level_that_cannot_be(self):
        if "hopper" not in json.loads(self.succeed("info", "--json"))["levels"]:
            self.refuse("opper", *self.arguments(level="hopper"))


class Topk(ProgramTest):
    def setUp(self):
        super().setUp()
        self.values = [self.integers(37, largest=9) for _ in range(6)]
        self.values[1][5] = math.nan
        self.values[2][7] = -math.inf
        self.write("v.npy", npy_of(self.values))

    def test_rows(self):
        for file_type in ["<f4", "<f2"]:
            self.write("v.npy", npy_of(self.values, file_type))
            for k in [1, 5, 37, 40]:
                for order in ["score", "index"]:
                    self.succeed("topk", "--values", "v.npy", "--top-k", k, "--order", order, "--indices", "i.npy", "--scores", "s.npy")
                    rows = [expected_topk(row, lambda s: True, k, order == "index") for row in self.values]
                    self.assertEqual(read_npy(self.path("i.npy")), ((6, k), [i for row in rows for i in row[0]], "<i4"))
                    scores = read_npy(self.path("s.npy"))[1]
                    self.assertEqual([repr(s) for s in scores], [repr(s) for row in rows for s in row[1]])

    def test_batch(self):
        self.write("b.npy", npy_of([self.values[:3], self.values[3:]]))
        self.succeed("topk", "--values", "v.npy", "--top-k", 4, "--indices", "i.npy")
        self.succeed("topk", "--values", "b.npy", "--top-k", 4, "--indices", "j.npy")
        self.assertEqual(read_npy(self.path("j.npy"))[0], (2, 3, 4))
        self.assertEqual(read_npy(self.path("j.npy"))[1], read_npy(self.path("i.npy"))[1])

    def test_json(self):
        report = json.loads(self.succeed("topk", "--values", "v.npy", "--top-k", 4, "--indices", "i.npy", "--json"))
        self.assertEqual(report["shapes"], {"values": [6, 37], "indices": [6, 4]})
        self.assertGreater(report["seconds"], 0)

    def test_refusals(self):
        self.write("one.npy", npy_of(self.values[0]))
        self.refuse("expected values [rows, n]", "topk", "--values", "one.npy", "--top-k", 4, "--indices", "i.npy")
        self.refuse("--top-k", "topk", "--values", "v.npy", "--top-k", 0, "--indices", "i.npy")
        self.refuse("No such file", "topk", "--values", "none.npy", "--top-k", 1, "--indices", "i.npy")
        self.refuse("cannot be written", "topk", "--values", "v.npy", "--top-k", 1, "--indices", "none/i.npy")
        self.refuse("would be too large", "topk", "--values", self.write("e.npy", npy("<f4", (2**50, 0), b"")), "--top-k", 2**20, "--indices", "i.npy")


class Info(ProgramTest):
    def test_text_and_json(self):
        self.assertIn("levels: reference portable", self.succeed("info"))
        info = json.loads(self.succeed("info", "--json"))
        self.assertEqual(info["levels"][:2], ["reference", "portable"])
        self.assertIn(info["default_backend"], [space["backend"] for space in info["execution_spaces"]])
        self.assertRegex(info["kokkos_version"], r"^\d+\.\d+\.\d+$")
        self.assertIn(info["version"], self.succeed("--version"))

    def test_passes_kokkos_options_on(self):
        openmp = [s for s in json.loads(self.succeed("info", "--json", "--kokkos-num-threads=1"))["execution_spaces"] if s["backend"] == "openmp"]
        if openmp:
            self.assertEqual(openmp[0]["concurrency"], 1)


class WithoutKokkos(ProgramTest):
    """Help and refusals where Kokkos cannot start."""

    broken = {"KOKKOS_NUM_THREADS": "-3"}

    def test_kokkos_is_broken(self):
        self.assertNotEqual(self.run_program("info", env=self.broken).returncode, 0)

    def test_help(self):
        self.assertIn("indexer-topk", self.succeed("--help", env=self.broken))
        for name in ["info", "attention", "indexer-topk", "topk", "demo"]:
            self.assertIn("--", self.succeed(name, "--help", env=self.broken))

    def test_refusals(self):
        self.refuse("subcommand", env=self.broken)
        self.refuse("nonsense", "nonsense", env=self.broken)
        self.refuse("--top-k", "topk", "--values", "v.npy", "--indices", "i.npy", env=self.broken)
        self.refuse("No such file", "topk", "--values", "v.npy", "--top-k", 1, "--indices", "i.npy", env=self.broken)
        self.write("v.npy", npy_of([[1.0]]))
        self.refuse("cannot be written", "topk", "--values", "v.npy", "--top-k", 1, "--indices", "none/i.npy", env=self.broken)
        self.refuse("No such file", "demo", "--data", "none", env=self.broken)


class Demo(ProgramTest):
    def test_shipped_input(self):
        text = self.succeed("demo")
        self.assertRegex(text, r"parity +\d+ rows agree")
        self.assertIn("TFLOP/s of legal work", text)
        self.assertRegex(text, r"tokens +\d+-\d+ +\.\.\. .*\[.+\]")
        picture = self.path("tributary-demo.svg")
        self.assertTrue(xml.etree.ElementTree.parse(picture).getroot().tag.endswith("svg"))
        self.assertLess(os.path.getsize(picture), 1 << 20)
        self.assertEqual(os.listdir(self.folder), ["tributary-demo.svg"])

    def test_own_input_of_odd_size(self):
        queries, keys = 103, 25
        self.write("query.npy", npy_of(self.floats(queries, 2, 3), "<f2"))
        self.write("key.npy", npy_of(self.floats(keys, 3)))
        self.write("weights.npy", npy_of(self.floats(queries, 2)))
        self.write("tokens.txt", b"something\n" * queries)
        for top_k in [1, 10, 500]:
            self.assertRegex(self.succeed("demo", "--data", ".", "--top-k", top_k, "--output", "p.svg"), r"parity +\d+ rows agree")
            xml.etree.ElementTree.parse(self.path("p.svg"))
        self.write("tokens.txt", b"something\n" * (queries - 1))
        self.refuse("tokens.txt has 102 lines", "demo", "--data", ".")


if __name__ == "__main__":
    unittest.main()
