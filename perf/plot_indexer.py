"""Draws what was measured of indexer_topk on a CUDA device, and lists it as a Markdown table: rate and fraction of the matrix product's against
the length of the sequence.

  python plot_indexer.py results/indexer.json results/indexer_torch.jsonl results/indexer_triton.jsonl --svg docs/indexer.svg

Takes benchmark_indexer's JSON (--benchmark_out) and the peers' lines of JSON; files that were cut off are read as far as they go.  Without
--svg only the table; the drawing needs matplotlib.
"""

import argparse
import collections
import json
import pathlib
import re

NAME = re.compile(r"indexer_topk/cuda/(?P<type>\w+)/S(?P<S>\d+)_T(?P<T>\d+)_H(?P<H>\d+)_D(?P<D>\d+)_k(?P<k>\d+)_(?P<mask>\w+)/(?P<order>\w+)/(?P<who>\w+)")
NUMBERS = ("S", "T", "H", "D", "k")


def entries(path):
    text = path.read_text()
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    try:
        return json.loads(text)["benchmarks"]
    except json.JSONDecodeError:  # cut off between two benchmarks
        return json.loads(text[: text.rindex("\n    }") + 6] + "]}")["benchmarks"]


def read(paths):
    """Every case that was measured, the parts of its name and its counters; and what went wrong."""
    cases, errors = [], []
    for path in paths:
        for entry in entries(path):
            name = NAME.match(entry["name"])
            if name and not entry.get("error_occurred"):
                parts = name.groupdict()
                cases.append(entry | parts | {key: int(parts[key]) for key in NUMBERS})
            elif name:
                errors.append(f"{entry['name']}: {entry['error_message']}")
    return cases, errors


def table(cases):
    """One row a case; `selection` is the time over that of k = 1, burst."""
    scoring = {(c["type"], c["S"], c["T"], c["H"], c["who"]): c["real_time"] for c in cases if c["k"] == 1 and c["order"] == "random"}
    heads = ("type", "S x T", "H", "k", "scores", "who", "burst ms", "TF/s", "r", "sustained ms", "TF/s", "r", "selection", "GB/s of keys", "of read")
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for c in cases:
        alone = scoring.get((c["type"], c["S"], c["T"], c["H"], c["who"]))
        cells = [c["type"], f"{c['S']} x {c['T']}", c["H"], c["k"], c["order"], c["who"]]
        for kind, milliseconds in (("", "real_time"), ("sustained_", "sustained_ms")):
            cells += [f"{c[milliseconds]:.3g}", f"{c[kind + 'TFLOP/s']:.0f}", f"{c[kind + 'r']:.2f}"]
        cells += [f"{c['real_time'] / alone:.2f}" if alone and c["k"] > 1 else "", f"{c['GB/s']:.0f}" if "GB/s" in c else "",
                  f"{c['of_read']:.2f}" if "of_read" in c else ""]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


def draw(cases, path):
    """Rate and r against S, sustained, for 64 heads and one key for four tokens; a curve for each k, and for each peer."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "tributary"
    from matplotlib import pyplot

    curves = collections.defaultdict(list)
    for c in cases:
        ours = c["who"] == "hopper"
        if c["mask"] == "ratio4" and c["order"] == "random" and c["H"] == 64 and c["who"] != "portable" and (ours or c["k"] == 512):
            curves[c["type"], c["k"] if ours else 0, c["who"]].append((c["S"], c["sustained_TFLOP/s"], c["sustained_r"]))
    types = sorted({key[0] for key in curves})
    figure, axes = pyplot.subplots(2, len(types), squeeze=False, sharex=True, figsize=(5 * len(types), 7), layout="constrained")
    for column, element_type in enumerate(types):
        for row, label in enumerate(("TFLOP/s of legal work", "fraction of the 8192³ product")):
            panel = axes[row][column]
            for (_, k, who), points in sorted(item for item in curves.items() if item[0][0] == element_type):
                points.sort()
                panel.plot([p[0] for p in points], [p[1 + row] for p in points], marker="o", markersize=3, linestyle="-" if k else "--",
                           label={0: f"{who}, k 512", 1: "scoring (k 1)"}.get(k, f"k {k}"))  # fmt: skip
            panel.set_xscale("log", base=2)
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
            panel.set_ylabel(label)
        lengths = sorted({p[0] for key, points in curves.items() if key[0] == element_type for p in points})
        axes[1][column].set_xticks(lengths, [f"{length // 1024}K" if length < 1 << 20 else f"{length >> 20}M" for length in lengths])
        axes[1][column].set_xlabel("tokens S, keys T = S / 4")
        axes[0][column].set_title(f"{element_type}, H 64, D 128, causal, sustained")
        axes[0][column].legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=pathlib.Path)
    parser.add_argument("--svg", type=pathlib.Path)
    args = parser.parse_args()
    cases, errors = read(args.results)
    table(cases)
    print("\n".join(["", *errors]))
    if args.svg:
        draw(cases, args.svg)


main()
