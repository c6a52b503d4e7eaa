#pragma once
#include "sm90/indexer/parameters.cuh"
#include "sm90/indexer/select.cuh"
#include "sm90/indexer/tile.cuh"
#include "sm90/ptx/barrier.cuh"

// The end of an item: a warp sorts a row's candidates and writes its k best.

namespace Tributary::Impl::SM90 {

/// Where a row's entries go: the caller's arrays, or a partial list.
class RowOutput {
 public:
  __device__ RowOutput(const IndexerCall& call, std::int64_t batch, std::int64_t row, std::int64_t split) {
    if (call.plan.splits > 1)
      partial_ = call.partials + ((batch * call.problem.queries + row) * call.plan.splits + split) * call.keep;
    else {
      indices_ = call.output.indices + batch * call.output.index_strides[0] + row * call.output.index_strides[1];
      if (call.output.scores != nullptr)
        scores_ = call.output.scores + batch * call.output.score_strides[0] + row * call.output.score_strides[1];
    }
    length = static_cast<int>(call.plan.splits > 1 ? call.keep : call.output.top_k);
  }
  __device__ void put(int position, Entry entry) const {
    if (partial_ != nullptr) {
      partial_[position] = entry;
      return;
    }
    indices_[position] = index_of(entry);
    if (scores_ != nullptr) scores_[position] = score_of(entry);
  }
  __device__ void pad(int position) const {
    if (partial_ != nullptr) {
      partial_[position] = no_entry;
      return;
    }
    indices_[position] = -1;
    if (scores_ != nullptr) scores_[position] = -__int_as_float(0x7f800000);
  }
  /// A partial list's order does not matter.
  __device__ bool by_index(const IndexerCall& call) const { return partial_ == nullptr && call.output.order == TopkOrder::by_index; }

  int length;

 private:
  std::int32_t* indices_ = nullptr;
  float*        scores_  = nullptr;
  Entry*        partial_ = nullptr;
};

/// An order of candidates by descending score, and what it needs to know of a row's bins.
struct ByScore {
  const ScoreBins& window;

  using Edge = float;  // NaN: all are above it
  __device__ Edge        edge(int bin) const { return window.edge(bin); }
  __device__ static bool above(Candidate candidate, Edge edge) { return !(edge == edge) | (value(candidate) > edge); }

  /// Never falls as the key rises.
  __device__ static float value(Candidate candidate) { return Kokkos::bit_cast<float>(static_cast<std::uint32_t>(candidate >> 32)); }
  __device__ static float value_of_key(Entry key) { return score_of(key); }
  __device__ static Entry key(Candidate candidate) { return entry_of(candidate); }
};

/// The same by ascending index.
struct ByIndex {
  std::uint32_t least;  // of the inverted indices
  int           shift;  // of bins

  __device__ static std::uint32_t inverted(Candidate candidate) { return static_cast<std::uint32_t>(entry_of(candidate)); }

  using Edge = std::int64_t;
  __device__ Edge        edge(int bin) const { return static_cast<Edge>(least) + (static_cast<Edge>(bin) << shift) - 1; }
  __device__ static bool above(Candidate candidate, Edge edge) { return inverted(candidate) > edge; }

  __device__ float        value(Candidate candidate) const { return static_cast<float>(inverted(candidate) - least); }
  __device__ float        value_of_key(Entry key) const { return static_cast<float>(static_cast<std::uint32_t>(key >> 32) - least); }
  __device__ static Entry key(Candidate candidate) { return entry(entry_of(candidate)); }
  __device__ static Entry entry(Entry key) { return key << 32 | key >> 32; }
};

/// \param bins  of the entries, if the window is placed; anything afterwards
__device__ inline void emit_row(const RowOutput& out, bool by_index, const ScoreBins& window, int count, Candidate* buffer,
                                std::uint32_t* bins, SortRoom& room, int lane) {
  constexpr int in_flight = 8, rarely = 4;  // loads on their way
  const int     wanted = min(out.length, count);
  for (int i = wanted + lane; i < out.length; i += 32) out.pad(i);
  if (wanted == 0) return;

  int done = 0;
  if (!by_index && window.scale > 0.0f) {
    done = emit_sorted<in_flight>(buffer, count, wanted, bins, room, lane, ByScore{window},
                                  [&](int position, Entry key) { out.put(position, key); });
    if (done == wanted) return;
  }
  // Crowded bins, as many equal scores make them, or index order: first exactly the best.
  if (count > wanted - done) {
    Entry greatest;
    count = keep_from<rarely>(buffer, count, kth_entry<rarely>(buffer, count, wanted - done, bins, lane), greatest, lane);
  }
  if (by_index) {
    std::uint32_t least = 0xffffffffu, greatest = 0;  // of the inverted indices
    for_each_entry<rarely>(buffer, count, lane, [&](Entry entry, bool real) {
      least    = real ? min(least, static_cast<std::uint32_t>(entry)) : least;
      greatest = real ? max(greatest, static_cast<std::uint32_t>(entry)) : greatest;
    });
    least     = __reduce_min_sync(0xffffffffu, least);
    greatest  = __reduce_max_sync(0xffffffffu, greatest);
    int shift = 0;
    while ((greatest - least) >> shift > 255) ++shift;
    clear_bins(bins, lane);
    for_each_entry<rarely>(buffer, count, lane, [&](Entry entry, bool real) {
      if (real) atomicAdd(&bins[(static_cast<std::uint32_t>(entry) - least) >> shift], 1u);
    });
    __syncwarp();
    done = emit_sorted<rarely>(buffer, count, wanted, bins, room, lane, ByIndex{least, shift},
                               [&](int position, Entry key) { out.put(position, ByIndex::entry(key)); });
    if (done == wanted) return;
  }
  Entry* const list = reinterpret_cast<Entry*>(&room);
  int          size = 32;
  while (size < count) size *= 2;
  for (int i = lane; i < size; i += 32) {
    const Candidate candidate = i < count ? load_candidate(buffer + i) : 0;
    list[i]                   = i >= count ? no_entry : by_index ? ByIndex::key(candidate) : ByScore::key(candidate);
  }
  bitonic_sort(list, size, lane);
  for (int i = lane; i < count; i += 32) out.put(done + i, by_index ? ByIndex::entry(list[i]) : list[i]);
  __syncwarp();
}

}  // namespace Tributary::Impl::SM90
