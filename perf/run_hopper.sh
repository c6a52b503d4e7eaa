#!/usr/bin/env bash
# Measures on a Hopper device, within a time, what docs/performance.md lists: benchmarks and peers, a file of results each and run.log.
#   perf/run_hopper.sh <build folder> <results folder> <seconds> [part...]
# Parts, in this order unless named: indexer indexer_triton indexer_torch attention attention_torch topk topk_torch.  A part that finds no
# time left is not started, one that runs out of time keeps what it has.  PYTHON names the Python that has PyTorch and Triton.
set -uo pipefail
if (($# < 3)); then
  sed -n '2,5s/^# //p' "$0" >&2
  exit 2
fi
build=$1 results=$2 seconds=$3
shift 3
parts=("$@")
if ((${#parts[@]} == 0)); then
  parts=(indexer indexer_triton indexer_torch attention attention_torch topk topk_torch)
fi
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
mkdir -p "$results"
log=$results/run.log

# What its messages say, on the screen, too.
say() { echo "$*" | tee -a "$log"; }

# within <part> <file for its output> <command...>: the command, for as long as there is time.
within() {
  local part=$1 output=$2 left=$((seconds - SECONDS)) status=0
  shift 2
  if ((left < 10)); then
    say "$part: no time left"
    return
  fi
  say "$part: $left s left"
  timeout --kill-after=10 "$left" "$@" >>"$output" 2>>"$log" || status=$?
  say "$part: ended with status $status, $SECONDS s since the start"
}

benchmark() {
  within "$1" "$log" "$build/perf/benchmark_$1" --benchmark_filter="$2" --benchmark_out="$results/$1.json" --benchmark_out_format=json
}

# A peer prints its results.
peer() {
  : >"$results/$1.jsonl"
  within "$1" "$results/$1.jsonl" "$python" "$here/peers/$2"
}

{
  date -u
  git -C "$here" rev-parse HEAD
  nvidia-smi --query-gpu=name,driver_version,power.limit,clocks.max.sm --format=csv
} >>"$log" 2>&1
for part in "${parts[@]}"; do
  case $part in
    indexer) benchmark indexer '^indexer_topk/cuda/' ;;
    indexer_triton | indexer_torch) peer "$part" "$part.py" ;;
    attention) benchmark attention '^attention_[a-z]*/cuda/' ;;
    attention_torch) peer attention_torch attention_torch_cuda.py ;;
    topk) benchmark topk '^topk/cuda/' ;;
    topk_torch) peer topk_torch topk_torch.py ;;
    *) say "$part: no such part" ;;
  esac
done
