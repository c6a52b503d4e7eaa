"""How Tributary's benchmarks time calls on a CUDA device (perf/common/device.hpp), in PyTorch: short trains after a rest and long runs, by
turns with the device's own product of 8192 x 8192 matrices of the same type."""

import json
import math
import statistics
import time

import torch

import device_inputs

GEMM_FLOP = 2.0 * 8192**3
ENOUGH = 0.35  # seconds of a long run; a longer train runs once


class Train:
    """Calls of about 5 ms one behind another; short ones captured in a CUDA graph, if they can be.  The call must have run once."""

    def __init__(self, call):
        self.begin, self.end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        self.launch, self.calls, self.graph = call, 1, False
        once = self.run()
        self.calls = min(1000, max(1, round(5e-3 / once)))
        if once < 5e-3:
            self.capture(call)

    def capture(self, call):
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                call()
        except RuntimeError:
            torch.cuda.synchronize()
            return
        self.launch, self.graph = graph.replay, True
        self.calls = min(1000, max(1, round(5e-3 / self.run())))

    def run(self, trains=1):
        """Seconds a call."""
        self.begin.record()
        for _ in range(trains * self.calls):
            self.launch()
        self.end.record()
        self.end.synchronize()
        return 1e-3 * self.begin.elapsed_time(self.end) / (trains * self.calls)


def measure_by_turns(*trains):
    """(burst, sustained) seconds a call of each."""
    bursts = [[] for _ in trains]
    for round_number in range(5):
        for train, times in zip(trains, bursts):
            if round_number == 0 or times[0] * train.calls <= ENOUGH:
                time.sleep(0.06)
                times.append(train.run())
    results = []
    for train, times in zip(trains, bursts):
        seconds = times[0] * train.calls
        if seconds > ENOUGH:
            results.append((times[0], times[0]))
        else:
            train.run(math.ceil(ENOUGH / seconds))
            results.append((statistics.median(times), train.run(math.ceil(ENOUGH / seconds))))
    return results


def gemm(element_type):
    """A call of the product; e4m3 with fast accumulation, out in bfloat16."""
    a, b = (device_inputs.uniform(stream, (8192, 8192), device_inputs.TYPES[element_type], "cuda") for stream in (1, 2))
    if element_type == "e4m3":
        one = torch.ones((), device="cuda")
        return lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)
    c = torch.empty_like(a)
    return lambda: torch.matmul(a, b.t(), out=c)


def report(name, element_type, flop, call, parts=1):
    """Times a call, of so many parts, and prints a line of JSON with the benchmarks' counters."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    del result
    product = gemm(element_type)
    product()
    train = Train(call)
    (burst, sustained), (gemm_burst, gemm_sustained) = measure_by_turns(train, Train(product))
    line = {"name": name, "real_time": 1e3 * burst / parts, "time_unit": "ms", "sustained_ms": 1e3 * sustained / parts,
            "peak_bytes_with_outputs": peak, "graph": train.graph, "torch": torch.__version__, "device": torch.cuda.get_device_name()}  # fmt: skip
    for kind, seconds, ceiling in (("", burst, gemm_burst), ("sustained_", sustained, gemm_sustained)):
        rate = flop * parts / seconds
        line |= {kind + "TFLOP/s": 1e-12 * rate, kind + "GEMM": 1e-12 * GEMM_FLOP / ceiling, kind + "r": rate / (GEMM_FLOP / ceiling)}
    print(json.dumps(line), flush=True)


def report_error(name, error):
    print(json.dumps({"name": name, "error_occurred": True, "error_message": (str(error).splitlines() or [repr(error)])[0]}), flush=True)
