#pragma once
#include "sm90/indexer/parameters.cuh"
#include "sm90/indexer/select.cuh"
#include "sm90/indexer/tile.cuh"
#include "sm90/ptx/barrier.cuh"

// The end of an item: each math warp sorts a row's candidates and writes its k best.

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

/// An entry whose order is that of the indices, the smallest first; and back.
__device__ inline Entry swap_halves(Entry entry) { return entry << 32 | entry >> 32; }

/// \param bins  of the entries, if the window is placed; anything afterwards
__device__ inline void emit_row(const RowOutput& out, bool by_index, const RowState& state, Entry* buffer, std::uint32_t* bins,
                                SortRoom& room, int lane) {
  constexpr int in_flight = 8, rarely = 4;  // loads on their way
  int           count  = state.count;
  const int     wanted = min(out.length, count);
  const auto    put    = [&](int position, Entry entry) { out.put(position, entry); };
  for (int i = wanted + lane; i < out.length; i += 32) out.pad(i);
  if (wanted == 0) return;

  int done = 0;
  if (!by_index && state.window.scale > 0.0f) {
    const ScoreBins of       = state.window;
    const auto      edge_of  = [&](int bin) { return sortable(of.edge(bin)); };  // none: 0, which only NaN has
    const auto      value_of = [](std::uint32_t image) { return score_of(static_cast<Entry>(image) << 32); };
    done                     = emit_sorted<in_flight>(
        buffer, count, wanted, bins, room, lane, edge_of, value_of, [](Entry entry) { return entry; }, put);
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
    const auto edge_of  = [&](int bin) { return least + (static_cast<std::uint32_t>(bin) << shift) - 1; };
    const auto value_of = [&](std::uint32_t inverted) { return static_cast<float>(inverted - least); };
    done                = emit_sorted<rarely>(buffer, count, wanted, bins, room, lane, edge_of, value_of, swap_halves, put);
    if (done == wanted) return;
  }
  Entry* const list = reinterpret_cast<Entry*>(&room);
  int          size = 32;
  while (size < count) size *= 2;
  for (int i = lane; i < size; i += 32) {
    const Entry entry = i < count ? load_entry(buffer + i) : no_entry;
    list[i]           = by_index ? swap_halves(entry) : entry;
  }
  bitonic_sort(list, size, lane);
  for (int i = lane; i < count; i += 32) put(done + i, by_index ? swap_halves(list[i]) : list[i]);
  __syncwarp();
}

/// What a key tile cannot reach of an item's rows of scores: -infinity, by the first and the last part of the keys.
template <class Tile>
__device__ void fill_outside(const IndexerCall& call, const WorkItem<Tile::queries>& item, int row, int lane) {
  const RowKeys      keys      = item.rows[row];
  float* const       to        = call.scores + item.batch * call.score_strides[0] + (item.row + row) * call.score_strides[1];
  const auto         column_of = [&](int key) { return static_cast<std::int64_t>(key) - keys.first_key; };
  const std::int64_t begin     = clip(column_of(item.key), 0, call.score_columns);
  const std::int64_t end       = clip(column_of(item.key) + std::int64_t{item.key_tiles} * Tile::keys, begin, call.score_columns);
  const float        nothing   = -__int_as_float(0x7f800000);
  if (item.split == 0)
    for (std::int64_t column = lane; column < begin; column += 32) to[column] = nothing;
  if (item.split == call.plan.splits - 1)
    for (std::int64_t column = end + lane; column < call.score_columns; column += 32) to[column] = nothing;
}

/// One math warp's rows of an item.
template <class Tile>
__device__ void finish(const IndexerCall& call, SharedState<Tile>& shared, unsigned char* scratch, const WorkItem<Tile::queries>& item,
                       int team, int warp, int lane) {
  static_assert(Tile::list_bytes >= math_warps * static_cast<int>(sizeof(SortRoom)));
  const int group     = warp / 4;
  SortRoom& room      = reinterpret_cast<SortRoom*>(scratch + group * Tile::group_offset)[warp % 4];
  const int first_row = group * Tile::group_queries;
#pragma unroll 1
  for (int row = first_row + warp % 4; row < first_row + Tile::group_queries && item.row + row < call.problem.queries; row += 4) {
    if (call.scores != nullptr) {
      fill_outside<Tile>(call, item, row, lane);
      continue;
    }
    const RowOutput out(call, item.batch, item.row + row, item.split);
    emit_row(out, out.by_index(call), shared.rows[row], buffer<Tile>(call, team, row),
             reinterpret_cast<std::uint32_t*>(scratch + Tile::bins_offset) + row * Tile::bins, room, lane);
    __syncwarp();
    if (lane == 0) shared.rows[row].count = 0;  // an item without keys opens no row
  }
  ptx::fence_proxy_async();  // the room lies where the copy engine puts the next queries
}

}  // namespace Tributary::Impl::SM90
