#pragma once
#include "sm90/topk/short_rows.cuh"

// Very short rows: eight threads of a warp sort all of one.

namespace Tributary::Impl::SM90 {

/// What eight threads have of their row in shared memory.
struct VeryShortRowScratch {
  static constexpr int values = 64;

  // Eight words more keep the four rows of a warp out of one another's banks.
  float    by_place[values + 8];
  unsigned sorted[values + 8];
};

template <class Value>
class VeryShortRow {
 public:
  static constexpr int lanes = 8, each = 8, longest = lanes * each;
  using Row     = RowOfWarp<Value, each, lanes>;
  using Scratch = VeryShortRowScratch;

  __device__ __forceinline__ VeryShortRow(const Row& row, Scratch& scratch) : row_(row), scratch_(scratch) {}

  /// Sorts the row, the `wanted` best by index if that is asked for.  By a whole warp together.
  __device__ __forceinline__ void sort(int wanted, bool by_index) {
    unsigned keys[each];
    make_keys(keys);
    sort_in_warp<lanes>(keys);
    keep(keys);
    if constexpr (place_bits > unused_bits<Value>)  // otherwise a key has all of its value
      if (__any_sync(full_warp, some_alike(keys)) && __any_sync(full_warp, some_misplaced())) sort_entries(keys);
    if (!by_index) return;
#pragma unroll
    for (int i = 0; i < each; ++i) keys[i] = Row::lane() * each + i < wanted ? longest + keys[i] % longest : 0;
    sort_in_warp<lanes>(keys);
    keep(keys);
  }

  /// Of a rank after sort().
  __device__ Entry entry(int rank) const {
    const unsigned place = longest - 1 - scratch_.sorted[sorted_place(rank % each, rank / each)] % longest;
    return make_entry(sortable(scratch_.by_place[place]), row_.index(place));
  }

 private:
  static constexpr int place_bits = 6;
  static_assert(1 << place_bits == longest);

  /// Free of bank conflicts for all threads' number i as for neighbouring ranks.
  __device__ static int sorted_place(int i, int lane) { return i * lanes + (lane ^ i); }

  /// The place, and above it as much of the value as there is room for.  What is not in the row has the least keys.
  __device__ __forceinline__ void make_keys(unsigned (&keys)[each]) {
    unsigned least = 0xffffffffu, most = 0;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      keys[i]                                    = sortable(row_.value(i));
      scratch_.by_place[row_.place(i) % longest] = row_.value(i);
      if (is_in_row(i)) least = min(least, keys[i]), most = max(most, keys[i]);
    }
#pragma unroll
    for (int distance = 1; distance < lanes; distance *= 2) {
      least = min(least, __shfl_xor_sync(full_warp, least, distance));
      most  = max(most, __shfl_xor_sync(full_warp, most, distance));
    }
    const int shift = excess_bits(least, most, place_bits);  // 0 without values
#pragma unroll
    for (int i = 0; i < each; ++i)
      keys[i] = (is_in_row(i) ? (keys[i] - least) >> shift << place_bits : 0) | (longest - 1 - row_.place(i) % longest);
  }

  /// Whether neighbours of a thread, or its last one and the next thread's first, differ in their places alone.
  __device__ bool some_alike(const unsigned (&keys)[each]) const {
    const unsigned next  = __shfl_down_sync(full_warp, keys[0], 1);
    bool           alike = Row::lane() < lanes - 1 && (keys[each - 1] ^ next) < longest;
#pragma unroll
    for (int i = 1; i < each; ++i) alike |= (keys[i - 1] ^ keys[i]) < longest;
    return alike;
  }

  __device__ bool some_misplaced() const {
    bool misplaced = false;
    for (int rank = Row::lane(); rank < row_.length() - 1; rank += lanes) misplaced |= entry(rank) < entry(rank + 1);
    return misplaced;
  }

  __device__ bool is_in_row(int i) const { return row_.place(i) < static_cast<unsigned>(row_.length()); }

  __device__ __forceinline__ void keep(const unsigned (&keys)[each]) {
    __syncwarp();
#pragma unroll
    for (int i = 0; i < each; ++i) scratch_.sorted[sorted_place(i, Row::lane())] = keys[i];
    __syncwarp();
  }

  /// Where values that differ have the same key.
  __device__ void sort_entries(unsigned (&keys)[each]) {
    Entry entries[each];
#pragma unroll
    for (int i = 0; i < each; ++i) {
      const int rank = Row::lane() * each + i;
      entries[i]     = rank < row_.length() ? entry(rank) : no_entry;
    }
    sort_in_warp<lanes>(entries);
#pragma unroll
    for (int i = 0; i < each; ++i) keys[i] = longest - 1 - (static_cast<unsigned>(index_of(entries[i])) - row_.index(0)) % longest;
    keep(keys);
  }

  const Row& row_;
  Scratch&   scratch_;
};

}  // namespace Tributary::Impl::SM90
