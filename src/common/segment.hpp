#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>

// Packed sequences as kernels see them: which sequence a query row belongs to and where its keys lie, whatever the data.

namespace Tributary::Impl {

KOKKOS_INLINE_FUNCTION std::int64_t clip(std::int64_t value, std::int64_t smallest, std::int64_t largest) {
  return value < smallest ? smallest : (value > largest ? largest : value);
}

struct KeyInterval {
  std::int64_t begin, end;  // within the sequence; empty: begin == end
};

/// Queries that follow one another in memory and see the same keys.
struct Segment {
  std::int64_t batch;        // of the tensors
  std::int64_t sequence;     // the batch entry, or the packed sequence
  std::int64_t row, rows;    // query rows in the tensors
  std::int64_t first_query;  // row's number within its sequence
  std::int64_t queries;      // of the sequence
  std::int64_t first_key;    // key row in the tensors that the sequence calls 0
  std::int64_t keys;         // of the sequence
};

struct PackedOffsets {
  const std::int32_t *cu_seqlens_q = nullptr, *cu_seqlens_k = nullptr;  // null: one sequence a batch entry
  std::int64_t        sequences = 0;

  /// The longest segment that starts at `row` and ends before `end`, in tensors of so many query and key rows.
  KOKKOS_INLINE_FUNCTION Segment segment(std::int64_t batch, std::int64_t row, std::int64_t end, std::int64_t query_rows,
                                         std::int64_t key_rows) const {
    if (cu_seqlens_q == nullptr) return {batch, batch, row, end - row, row, query_rows, 0, key_rows};
    const std::int64_t next = first_above(cu_seqlens_q, row);
    const std::int64_t stop = next > sequences ? end : clip(cu_seqlens_q[next], row + 1, end);
    if (next == 0 || next > sequences) return {batch, 0, row, stop - row, 0, 0, 0, 0};  // outside every sequence: no key
    const std::int64_t sequence    = next - 1;
    const std::int64_t first_query = clip(cu_seqlens_q[sequence], 0, row), last_query = clip(cu_seqlens_q[next], row + 1, query_rows);
    const std::int64_t first_key = clip(cu_seqlens_k[sequence], 0, key_rows), last_key = clip(cu_seqlens_k[next], first_key, key_rows);
    return {batch, sequence, row, stop - row, row - first_query, last_query - first_query, first_key, last_key - first_key};
  }

  /// Index of the first entry above `row`; sequences + 1 when there is none.  Whatever the data, entry[result - 1] <= row < entry[result].
  KOKKOS_INLINE_FUNCTION std::int64_t first_above(const std::int32_t* offsets, std::int64_t row) const {
    std::int64_t result = 0;
    for (std::int64_t last = sequences + 1; result < last;) {
      const std::int64_t middle = (result + last) / 2;
      if (offsets[middle] <= row)
        result = middle + 1;
      else
        last = middle;
    }
    return result;
  }
};

}  // namespace Tributary::Impl
