#pragma once
#include "sm90/launch.cuh"
#include "sm90/topk/output.cuh"
#include "sm90/topk/short_rows.cuh"
#include "sm90/topk/very_short_rows.cuh"

// The kernels for short rows.

namespace Tributary::Impl::SM90 {

constexpr int warps_of_rows            = 4;
constexpr int warps_of_very_short_rows = 8;

/// A short row a warp, four a team.
///
/// \tparam Each  values of a thread
template <class Value, int Each>
struct SelectShortRows {
  using Taken = TakenValues<Value, Each>;

  ValueRows  rows;
  TopkOutput output;
  unsigned   all_rows;
  int        keep;
  int        room;  // for what is sorted: a power of two, 32 to 512

  KOKKOS_INLINE_FUNCTION int scratch_bytes() const { return warps_of_rows * Taken::scratch_bytes(room); }

  __device__ void operator()(const Member& team) const {
    unsigned char* const lists  = aligned_scratch(team, scratch_bytes());
    const unsigned       number = static_cast<unsigned>(team.league_rank()) * warps_of_rows + threadIdx.y;
    if (number < all_rows) {
      const auto place = rows.place(number);
      Taken      taken(lists + threadIdx.y * Taken::scratch_bytes(room), room);
      collect(place, taken);
      if (room == 32) write<1>(taken, place);
      if (room == 64) write<2>(taken, place);
      if (room == 128) write<4>(taken, place);
      if (room == 256) write<8>(taken, place);
      if (room == 512) write<16>(taken, place);
    }
    exit_thread();
  }

 private:
  __device__ bool by_index() const { return output.order == TopkOrder::by_index; }

  __device__ __forceinline__ void collect(const ValueRows::Place& place, Taken& taken) const {
    const RowOfWarp<Value, Each> row(rows, place);
    // What is sorted by index must be what is wanted.
    BoundSearch<Value, Each> search(row, min(keep, row.length()), by_index() ? keep : room);
    taken.collect(row, search.find());
  }

  template <int Sorted>
  __device__ void write(Taken& taken, const ValueRows::Place& place) const {
    taken.template sort<Sorted>(by_index());
    const TopkRow out(output, place.batch, place.row);
    for (std::int64_t rank = Group<32>::lane(); rank < output.top_k; rank += 32)
      if (rank < taken.count())
        out.put(rank, taken.template sorted<Sorted>(static_cast<int>(rank)));
      else
        out.pad(rank);
  }
};

/// Four very short rows a warp.
template <class Value>
struct SelectVeryShortRows {
  using Sorted = VeryShortRow<Value>;

  static constexpr int rows_of_warp = 32 / Sorted::lanes, rows_of_team = warps_of_very_short_rows * rows_of_warp;
  static constexpr int scratch_bytes = rows_of_team * static_cast<int>(sizeof(typename Sorted::Scratch));

  ValueRows  rows;
  TopkOutput output;
  unsigned   all_rows;
  int        keep;

  __device__ void operator()(const Member& team) const {
    auto* const                scratch = reinterpret_cast<typename Sorted::Scratch*>(aligned_scratch(team, scratch_bytes));
    const unsigned             own     = threadIdx.y * rows_of_warp + threadIdx.x / Sorted::lanes;
    const unsigned             number  = static_cast<unsigned>(team.league_rank()) * rows_of_team + own;
    const auto                 place   = rows.place(min(number, all_rows - 1));  // a warp sorts its rows together
    const typename Sorted::Row row(rows, place);
    Sorted                     sorted(row, scratch[own]);
    const int                  wanted = min(keep, row.length());
    sorted.sort(wanted, output.order == TopkOrder::by_index);
    const TopkRow out(output, place.batch, place.row);
    for (std::int64_t rank = Sorted::Row::lane(); rank < output.top_k && number < all_rows; rank += Sorted::lanes)
      if (rank < wanted)
        out.put(rank, sorted.entry(static_cast<int>(rank)));
      else
        out.pad(rank);
    exit_thread();
  }
};

}  // namespace Tributary::Impl::SM90
