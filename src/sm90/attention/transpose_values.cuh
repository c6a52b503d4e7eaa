#pragma once
#include <cstdint>

#include "common/workers.hpp"
#include "sm90/attention/tensors.cuh"
#include "sm90/attention/tile.cuh"

// Values of e4m3 with keys along the rows: [batch, key head, column, key], as the tensor cores take them.  Rows of keys that do not take
// part, and those up to whole tiles, are zeros.  A packed sequence has blocks of scales to itself, with zeros in place of its neighbours'
// values: block b of the tensor is, as sequence s has it, block b + s.

namespace Tributary::Impl::SM90 {

constexpr std::int32_t transposed_offset(std::int64_t sequence) { return static_cast<std::int32_t>(sequence * attention_scale_rows); }

constexpr std::int64_t transposed_keys(const AttentionProblem& p) {
  const std::int64_t blocks = (p.keys + attention_scale_rows - 1) / attention_scale_rows;
  return blocks * attention_scale_rows + (p.packed.cu_seqlens_k == nullptr ? 0 : transposed_offset(p.packed.sequences));
}

/// Where among 16 keys a transposed row holds key k.  A thread has products of keys 2t, 2t + 1, 2t + 8 and 2t + 9 (t = lane % 4) in
/// registers that follow one another, and as an A operand they are depths 4t ... 4t + 3.
constexpr int transposed_place(int k) { return k % 8 / 2 * 4 + k / 8 * 2 + k % 2; }

/// A thread an index: 32 keys of 4 columns.
struct TransposeValues {
  static constexpr int keys = 32, columns = 4;

  AttentionProblem problem;
  float8_e4m3_t*   to;
  std::int64_t     row_keys;  // of a transposed row

  KOKKOS_FUNCTION void operator()(const std::int64_t index) const {
    KOKKOS_IF_ON_DEVICE((transpose(index);))
    KOKKOS_IF_ON_HOST((static_cast<void>(index);))
  }

 private:
  __device__ void transpose(std::int64_t index) const {
    const AttentionProblem& p             = problem;
    const std::int64_t      column_groups = (p.value_dim + columns - 1) / columns;
    const std::int64_t      column = index % column_groups * columns, head = index / column_groups % p.key_heads;
    const std::int64_t      group = index / (column_groups * p.key_heads) % (row_keys / keys);
    const std::int64_t      batch = index / (column_groups * p.key_heads * (row_keys / keys));

    const Rows    from = rows_of(group * keys);
    std::uint32_t row[keys];  // 4 columns of a key
#pragma unroll
    for (int k = 0; k < keys; ++k) row[k] = from.has(from.first + k) ? read(batch, from.first + k, head, column) : 0;
#pragma unroll
    for (int c = 0; c < columns; ++c) {
      if (column + c >= p.value_dim) return;
      std::uint32_t transposed[keys / 4] = {};
#pragma unroll
      for (int k = 0; k < keys; ++k) {
        const int place = k / 16 * 16 + transposed_place(k % 16);
        transposed[place / 4] |= (row[k] >> (8 * c) & 0xffu) << (place % 4 * 8);
      }
      auto* const to_row =
          reinterpret_cast<uint4*>(to + ((batch * p.key_heads + head) * p.value_dim + column + c) * row_keys + group * keys);
      to_row[0] = {transposed[0], transposed[1], transposed[2], transposed[3]};
      to_row[1] = {transposed[4], transposed[5], transposed[6], transposed[7]};
    }
  }

  /// Rows of keys: the first of some, and which ones there are.
  struct Rows {
    std::int64_t first, begin, end;

    __device__ bool has(std::int64_t row) const { return begin <= row && row < end; }
  };

  /// Those that lie from place `at` of a transposed row on.
  __device__ Rows rows_of(std::int64_t at) const {
    const std::int32_t* const offsets = problem.packed.cu_seqlens_k;
    if (offsets == nullptr) return {at, 0, problem.keys};
    if (problem.packed.sequences == 0) return {};
    std::int64_t sequence = 0;  // the last one whose blocks begin there or before
    for (std::int64_t after = problem.packed.sequences; sequence + 1 < after;) {
      const std::int64_t middle = (sequence + after) / 2;
      if (offsets[middle] / attention_scale_rows * attention_scale_rows + transposed_offset(middle) <= at)
        sequence = middle;
      else
        after = middle;
    }
    return {at - transposed_offset(sequence), clip(offsets[sequence], 0, problem.keys), clip(offsets[sequence + 1], 0, problem.keys)};
  }

  __device__ std::uint32_t read(std::int64_t batch, std::int64_t key, std::int64_t head, std::int64_t column) const {
    const AttentionProblem& p = problem;
    if (p.key_keep != nullptr && p.key_keep[batch * p.key_keep_stride + key] == 0) return 0;
    const auto* const from = static_cast<const std::uint8_t*>(p.value) + batch * p.value_strides[0] + key * p.value_strides[1] +
                             head * p.value_strides[2] + column;
    if (column + columns <= p.value_dim) return *reinterpret_cast<const std::uint32_t*>(from);
    std::uint32_t bytes = 0;
    for (int c = 0; column + c < p.value_dim; ++c) bytes |= std::uint32_t{from[c]} << (8 * c);
    return bytes;
  }
};

inline void transpose_values(const Kokkos::Cuda& exec, const AttentionProblem& p, const AttentionForwardPlan& plan) {
  const std::int64_t column_groups = (p.value_dim + TransposeValues::columns - 1) / TransposeValues::columns;
  const std::int64_t threads       = p.batch * p.key_heads * (plan.transposed_keys / TransposeValues::keys) * column_groups;
  if (threads == 0) return;
  Kokkos::parallel_for("Tributary::attention_forward::hopper::transpose_values",
                       Kokkos::RangePolicy<Kokkos::Cuda, Kokkos::IndexType<std::int64_t>, ClosureAsParameter>(exec, 0, threads),
                       TransposeValues{p, plan.transposed_values, plan.transposed_keys});
}

/// For boxes of `box_keys` keys of all columns.
inline CUtensorMap transposed_map(const AttentionProblem& p, const AttentionForwardPlan& plan, int box_keys, int box_columns) {
  const std::int64_t row = plan.transposed_keys, head = p.value_dim * row;
  return tensor_map<4>(ElementType::float8_e4m3, plan.transposed_values,
                       {.extents = {row, p.key_heads, p.value_dim, p.batch},
                        .strides = {head, row, p.key_heads * head},
                        .box     = {box_keys, 1, box_columns, 1}});
}

}  // namespace Tributary::Impl::SM90
