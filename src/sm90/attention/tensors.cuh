#pragma once
#include <algorithm>
#include <cstdint>
#include <string>

#include "attention/attention_tile.hpp"
#include "common/check.hpp"
#include "sm90/launch.cuh"
#include "sm90/ptx/convert.cuh"
#include "sm90/tensor_map.hpp"

// How attention's kernels see tensors: maps of [batch, row, head, column] for the copy engine, and stores of pairs from registers.

namespace Tributary::Impl::SM90 {

/// A panel is 128 bytes of each row, which the copy engine swizzles: 64 columns of a 2-byte type.
inline constexpr int panel_columns = 64, panel_row_bytes = 128;

/// The tile's head dimension for one of the problem.
constexpr int tile_dim(std::int32_t dim) { return dim <= 64 ? 64 : (dim <= 128 ? 128 : (dim <= 192 ? 192 : 256)); }

/// For boxes of one panel of `box_rows` rows of one head; of short rows a panel has 64 bytes each.
inline CUtensorMap attention_map(ElementType type, const void* data, const std::int64_t (&strides)[3], std::int64_t batch,
                                 std::int64_t rows, std::int32_t heads, std::int32_t columns, int box_rows,
                                 int box_row_bytes = panel_row_bytes) {
  return tensor_map<4>(type, data,
                       {.extents = {columns, heads, rows, batch},
                        .strides = {strides[2], strides[1], strides[0]},
                        .box     = {static_cast<int>(box_row_bytes / element_size(type)), 1, box_rows, 1}});
}

/// The reasons against the level that forward and backward share; empty if there is none.
inline std::string no_attention_inputs(const AttentionProblem& p, const RotaryProblem& rotary) {
  if (p.type == ElementType::float32) return "the element type is float";
  if (p.batch > 0x7fffffff / std::max<std::int64_t>(p.heads, 1)) return "there are more than 2^31 heads";
  if (std::max({p.queries, p.keys, std::abs(p.query_offset - p.key_offset)}) >= std::int64_t{1} << 29)
    return "there are 2^29 or more queries or keys, or between their offsets";
  if (rotary.dims > 0 && p.head_dim % 8 != 0) return "rows of rotated heads are no multiples of 16 bytes";
  const std::int64_t size = element_size(p.type);
  std::string        reason;
  // Of rotated queries and keys the kernels see copies.
  if (rotary.dims == 0) reason = no_whole_vectors("query", p.query, {p.batch, p.queries, p.heads}, p.query_strides, size);
  if (rotary.dims == 0 && reason.empty()) reason = no_whole_vectors("key", p.key, {p.batch, p.keys, p.key_heads}, p.key_strides, size);
  return reason.empty() ? no_whole_vectors("value", p.value, {p.batch, p.keys, p.key_heads}, p.value_strides, size) : reason;
}

/// Which scores a kernel can make of products.
enum class Scores {
  plain,   // scaled, hidden by a window
  biased,  // every option; each pair's score is worked out on its own
};

inline bool plain_scores(const AttentionProblem& p) {
  return p.softcap == 0 && p.alibi_slopes == nullptr && p.relative_bias == nullptr && p.additive_mask == nullptr && p.key_keep == nullptr &&
         p.keep == nullptr && !p.has_dropout && p.scale > 1e-20f && p.scale < 1e20f;
}

/// Whether rows must be zeroed before they are multiplied with weights of zero: those that key_keep hides, and the next sequence's, may
/// hold anything.  Values of e4m3 are clean once they are transposed.
KOKKOS_INLINE_FUNCTION bool has_rows_to_clean(const AttentionProblem& p) {
  if (p.type == ElementType::float8_e4m3) return false;
  return p.key_keep != nullptr || p.packed.cu_seqlens_q != nullptr;
}

/// Zeroes the rows of a tile in shared memory for which is_row(r) does not hold; a warp.
template <class IsRow>
__device__ void clean_rows(unsigned char* tile, int rows, int panels, int lane, const IsRow& is_row) {
  for (int r = lane; r < rows; r += 32) {
    if (is_row(r)) continue;
    for (int panel = 0; panel < panels; ++panel)
      for (int i = 0; i < panel_row_bytes / 16; ++i) reinterpret_cast<uint4*>(tile + (panel * rows + r) * panel_row_bytes)[i] = uint4{};
  }
}

/// Where item `number` of a queue lies: the pairs of batch entry and head are worked on section by section, in each block after block.
/// Integer: holds the number of items, and 32 bits are divided a good deal sooner.
template <class Integer>
struct SectionItem {
  Integer block, pair;

  __device__ SectionItem(Integer number, Integer pairs, Integer blocks, Integer section) {
    const Integer first = number / (section * blocks) * section, in_section = number % (section * blocks);
    const Integer here = pairs - first < section ? pairs - first : section;
    block              = in_section / here;
    pair               = first + in_section % here;
  }
};

/// Two numbers as the tensor cores take them, the first one in the lower half.
template <class Element>
__device__ inline std::uint32_t two_of(float low, float high) {
  std::uint32_t result;
  if constexpr (std::is_same_v<Element, bfloat16_t>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  return result;
}

/// One of them: the first or the second.
template <class Element>
__device__ inline float one_of(std::uint32_t two, int which) {
  if constexpr (std::is_same_v<Element, bfloat16_t>)
    return __int_as_float(static_cast<int>(which == 0 ? two << 16 : two & 0xffff0000u));
  else
    return ptx::cvt_f32_f16(static_cast<std::uint16_t>(which == 0 ? two : two >> 16));
}

/// Accumulators as an A operand in registers: neighbouring columns in pairs; of e4m3 two such pairs, 8 columns apart, which an operand has
/// side by side: the product's other operand has its depth in the same order (transposed_place).
template <class Element, int Count>
__device__ inline void pack(const float (&values)[Count], std::uint32_t (&packed)[Count * sizeof(Element) / 4]) {
  if constexpr (sizeof(Element) == 2) {
#pragma unroll
    for (int i = 0; i < Count / 2; ++i) packed[i] = two_of<Element>(values[2 * i], values[2 * i + 1]);
  } else {
#pragma unroll
    for (int i = 0; i < Count / 4; ++i) {
      const int first = i / 2 * 8 + i % 2 * 2;  // of 16 columns, the first row's or the second row's
      packed[i]       = ptx::cvt_e4m3x4_f32(values[first], values[first + 1], values[first + 4], values[first + 5]);
    }
  }
}

/// Columns `column` and `column + 1` of a row that has `columns`, as the type that the output turned out to have; rows are aligned.
template <class Element>
__device__ inline void store_pair(ElementType type, void* data, std::int64_t row, std::int32_t column, std::int32_t columns, float first,
                                  float second) {
  if (column + 1 < columns) {
    if (type == ElementType::float32)
      *reinterpret_cast<float2*>(static_cast<float*>(data) + row + column) = {first, second};
    else if constexpr (sizeof(Element) == 2)
      *reinterpret_cast<std::uint32_t*>(static_cast<Element*>(data) + row + column) = two_of<Element>(first, second);
    else if (type == ElementType::bfloat16)
      *reinterpret_cast<std::uint32_t*>(static_cast<bfloat16_t*>(data) + row + column) = two_of<bfloat16_t>(first, second);
    else
      *reinterpret_cast<std::uint32_t*>(static_cast<half_t*>(data) + row + column) = two_of<half_t>(first, second);
  } else if (column < columns) {
    store_out<Element>(type, data, row + column, first);
  }
}

/// 2^x: one instruction of the special-function unit.
__device__ inline float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

inline constexpr float log2_e = 1.4426950408889634f;

/// The hyperbolic tangent to 2^-20 of it, without a branch: its series, or behind that 1 - 2 / (e^2|x| + 1).
__device__ inline float tanh_approx(float x) {
  const float square = x * x, far = 1.0f - __fdividef(2.0f, exp2_approx(2 * log2_e * fabsf(x)) + 1.0f);
  float       series = -1382.0f / 155925;
  for (const float term : {62.0f / 2835, -17.0f / 315, 2.0f / 15, -1.0f / 3}) series = fmaf(series, square, term);
  return fabsf(x) < 0.4f ? fmaf(series * square, x, x) : copysignf(far, x);
}

}  // namespace Tributary::Impl::SM90
