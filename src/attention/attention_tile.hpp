#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "attention/attention.hpp"
#include "common/lanes.hpp"
#include "common/workers.hpp"

// What the portable attention kernels share: packing of operands for the register block, the score of a pair after scaling, and the
// dropout mask.

namespace Tributary::Impl {

/// Calls function(row, column, of_row(row)) for a rows x columns block: a host thread walks rows whole and asks of_row once for each, a
/// device's threads walk along columns.
template <bool OnHost, class Member, class OfRow, class Function>
KOKKOS_INLINE_FUNCTION void for_each_element(const Member& team, std::int64_t rows, std::int64_t columns, const OfRow& of_row,
                                             const Function& function) {
  if constexpr (OnHost) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const auto row = of_row(r);
      for (std::int64_t c = 0; c < columns; ++c) function(r, c, row);
    }
  } else {
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, rows * columns),
                         [&](const std::int64_t i) { function(i / columns, i % columns, of_row(i / columns)); });
  }
}

template <bool OnHost, class Member, class Function>
KOKKOS_INLINE_FUNCTION void for_each_element(const Member& team, std::int64_t rows, std::int64_t columns, const Function& function) {
  for_each_element<OnHost>(
      team, rows, columns, [](std::int64_t) { return 0; }, [&](std::int64_t r, std::int64_t c, int) { function(r, c); });
}

/// One row to be packed, as floats times a factor; zeros where there is none.
template <class Element>
struct PackedRow {
  const Element* data;
  float          factor;

  KOKKOS_INLINE_FUNCTION float operator()(std::int64_t c) const { return data == nullptr ? 0.0f : factor * static_cast<float>(data[c]); }

  /// Components c ... of a row that has them.
  template <class Vector>
  KOKKOS_INLINE_FUNCTION Vector vector(std::int64_t c) const {
    constexpr int         width  = sizeof(Vector) / sizeof(float);
    constexpr bool        floats = std::is_same_v<Element, float>;
    alignas(Vector) float values[width];
    if (data == nullptr) return Vector{};
    if constexpr (floats)
      std::memcpy(values, data + c, sizeof values);
    else
      for (int n = 0; n < width; ++n) values[n] = static_cast<float>(data[c + n]);
    return factor * *reinterpret_cast<const Vector*>(values);
  }
};

/// Rows of a tensor of one batch entry: some heads, and of each head rows that follow one another.
template <class Element>
struct HeadRows {
  const Element* data;  // of the first head's first row
  std::int64_t   row_stride, head_stride, per_head;
  float          factor = 1.0f;  // of all rows
  // Of one head's rows: which take part; null: all.  What is hidden may be uninitialised, so it must not even be multiplied with 0.
  const std::uint8_t* keep = nullptr;
  // A factor for each row besides; null: none.  The heads' lie a stride apart.
  const float* row_factors       = nullptr;
  std::int64_t row_factor_stride = 0;
  // Scales, and where in their tensor the rows begin.
  BlockScales  scales     = {};
  std::int64_t batch      = 0;
  std::int64_t first_row  = 0;
  std::int64_t first_head = 0;

  KOKKOS_INLINE_FUNCTION PackedRow<Element> row(std::int64_t r, std::int64_t count) const {
    if (r >= count || (keep != nullptr && keep[r] == 0)) return {nullptr, 0.0f};
    const std::int64_t head = r / per_head, in_head = r % per_head;
    float              of_row = row_factors == nullptr ? factor : factor * row_factors[head * row_factor_stride + in_head];
    if constexpr (std::is_same_v<Element, float8_e4m3_t>) of_row *= scales.of(batch, first_row + in_head, first_head + head);
    return {data + head * head_stride + in_head * row_stride, of_row};
  }
};

template <class Element>
KOKKOS_INLINE_FUNCTION HeadRows<Element> head_rows(const void* data, const std::int64_t (&strides)[3], std::int64_t batch, std::int64_t row,
                                                   std::int64_t head, std::int64_t per_head, const BlockScales& scales = {}) {
  HeadRows<Element> rows{static_cast<const Element*>(data) + batch * strides[0] + row * strides[1] + head * strides[2], strides[1],
                         strides[2], per_head};
  if constexpr (std::is_same_v<Element, float8_e4m3_t>) {
    rows.scales     = scales;
    rows.batch      = batch;
    rows.first_row  = row;
    rows.first_head = head;
  }
  return rows;
}

/// Query rows, scaled.
template <class Element>
KOKKOS_INLINE_FUNCTION HeadRows<Element> query_rows(const AttentionProblem& p, std::int64_t batch, std::int64_t row, std::int64_t head,
                                                    std::int64_t per_head) {
  auto rows   = head_rows<Element>(p.query, p.query_strides, batch, row, head, per_head, p.query_scale);
  rows.factor = p.scale;
  return rows;
}

/// Rows of one key head, without those that key_keep hides.
template <class Element>
KOKKOS_INLINE_FUNCTION HeadRows<Element> key_rows(const AttentionProblem& p, const void* data, const std::int64_t (&strides)[3],
                                                  std::int64_t batch, std::int64_t row, std::int64_t head, std::int64_t count,
                                                  const BlockScales& scales = {}) {
  auto rows = head_rows<Element>(data, strides, batch, row, head, count > 0 ? count : 1, scales);
  if (p.key_keep != nullptr) rows.keep = p.key_keep + batch * p.key_keep_stride + row;
  return rows;
}

/// Rows that are packed next.  A row lies a stride of all heads behind the one before, too far for the hardware to foresee and often a
/// power of two, which crowds a few sets of the caches; so a host asks for them while it multiplies, some with each register block.
struct ComingRows {
  const char*  data;
  std::int64_t stride, bytes, count;  // stride in bytes

  template <class Element>
  KOKKOS_INLINE_FUNCTION static ComingRows of(const HeadRows<Element>& rows, std::int64_t count, std::int64_t width) {
    constexpr std::int64_t size = sizeof(Element);
    return {reinterpret_cast<const char*>(rows.data), size * rows.row_stride, size * width, count};
  }
  KOKKOS_INLINE_FUNCTION void prefetch_share(std::int64_t part, std::int64_t parts) const {
    for (std::int64_t r = part * count / parts; r < (part + 1) * count / parts; ++r)
      for (std::int64_t at = 0; at < bytes; at += 64) prefetch(data + r * stride + at);
  }
};

/// On AVX 64 and 128 columns are whole blocks of 16, of 24 they are not.
template <bool OnHost>
using AttentionBlock = RegisterBlock<OnHost, 6>;

template <bool OnHost>
struct Packing {
  using Product = AttentionBlock<OnHost>;
  using Columns = typename Product::Columns;

  /// The left factor of a product: to[block][c][r] holds component c of the block's row r; rows up to a whole register block are zero.
  template <class Member, class Element>
  KOKKOS_INLINE_FUNCTION static void rows(const Member& team, const HeadRows<Element>& from, std::int64_t count, std::int64_t width,
                                          float* to) {
    constexpr int rows = Product::rows;
    for_each_element<OnHost>(
        team, Product::row_blocks(count) * rows, width, [&](std::int64_t r) { return from.row(r, count); },
        [&](std::int64_t r, std::int64_t c, const PackedRow<Element>& row) { to[(r / rows * width + c) * rows + r % rows] = row(c); });
  }

  /// Rows become columns: to[block][c] holds component c of `columns` rows; beyond `count` zero.
  template <class Member, class Element>
  KOKKOS_INLINE_FUNCTION static void transposed(const Member& team, const HeadRows<Element>& from, std::int64_t count, std::int64_t width,
                                                Columns* to) {
    const std::int64_t rows  = Product::column_blocks(count) * Product::columns;
    std::int64_t       whole = 0;  // components that go in squares
    if constexpr (OnHost) {
      whole = width / Product::width * Product::width;
      for (std::int64_t r = 0; r < rows; r += Product::width) {
        PackedRow<Element> row[Product::width];
        for (int n = 0; n < Product::width; ++n) row[n] = from.row(r + n, count);
        auto* const column = to + r / Product::columns * width;
        for (std::int64_t c = 0; c < whole; c += Product::width) {
          typename Product::Vector square[Product::width];
          for (int n = 0; n < Product::width; ++n) square[n] = row[n].template vector<typename Product::Vector>(c);
          Lanes<OnHost>::transpose(square);
          for (int n = 0; n < Product::width; ++n) column[c + n].vector[r % Product::columns / Product::width] = square[n];
        }
      }
    }
    if (whole < width)
      for_each_element<OnHost>(
          team, rows, width - whole, [&](std::int64_t r) { return from.row(r, count); },
          [&](std::int64_t r, std::int64_t c, const PackedRow<Element>& row) {
            value(to[r / Product::columns * width + whole + c], r % Product::columns) = row(whole + c);
          });
  }

  /// to[block][r] holds `columns` components of row r; beyond `width`, and in rows count ... rows - 1, zero.  `stride` rows a block.
  template <class Member, class Element>
  KOKKOS_INLINE_FUNCTION static void straight(const Member& team, const HeadRows<Element>& from, std::int64_t count, std::int64_t rows,
                                              std::int64_t width, std::int64_t stride, Columns* to) {
    const std::int64_t padded = Product::column_blocks(width) * Product::columns;
    std::int64_t       whole  = 0;  // components that go as vectors
    if constexpr (OnHost) {
      whole = width / Product::columns * Product::columns;
      for (std::int64_t r = 0; r < rows; ++r) {
        const PackedRow<Element> row  = from.row(r, count);
        Columns*                 part = to + r;
        for (std::int64_t c = 0; c < whole; c += Product::columns, part += stride)
          for (int v = 0; v < Product::vectors; ++v)
            part->vector[v] = row.template vector<typename Product::Vector>(c + v * Product::width);
      }
    }
    if (whole < padded)
      for_each_element<OnHost>(
          team, rows, padded - whole, [&](std::int64_t r) { return from.row(r, count); },
          [&](std::int64_t r, std::int64_t i, const PackedRow<Element>& row) {
            const std::int64_t c                                               = whole + i;
            value(to[c / Product::columns * stride + r], c % Product::columns) = c < width ? row(c) : 0.0f;
          });
  }

  KOKKOS_INLINE_FUNCTION static float& value(Columns& columns, std::int64_t i) { return reinterpret_cast<float*>(&columns)[i]; }

  /// A register block of a row-major array whose rows are whole vectors; only its first `count` rows.
  KOKKOS_INLINE_FUNCTION static void load(const float* from, std::int64_t stride, typename Product::Block& block,
                                          std::int64_t count = Product::rows) {
    const auto row = [&](int r) {
      for (int v = 0; v < Product::vectors; ++v)
        block.vector[r][v] = *reinterpret_cast<const typename Product::Vector*>(from + r * stride + v * Product::width);
    };
    if (count < Product::rows) {
      Product::clear(block);
      for (int r = 0; r < count; ++r) row(r);
    } else {
      for (int r = 0; r < Product::rows; ++r) row(r);
    }
  }
  KOKKOS_INLINE_FUNCTION static void store(const typename Product::Block& block, float* to, std::int64_t stride,
                                           std::int64_t count = Product::rows) {
    const auto row = [&](int r) {
      for (int v = 0; v < Product::vectors; ++v)
        *reinterpret_cast<typename Product::Vector*>(to + r * stride + v * Product::width) = block.vector[r][v];
    };
    if (count < Product::rows)
      for (int r = 0; r < count; ++r) row(r);
    else
      for (int r = 0; r < Product::rows; ++r) row(r);
  }
};

/// Where the bucket of every distance is looked up; filled by fill_buckets.
struct BucketTable {
  const std::int32_t* bucket;  // [2 * max_distance + 1], of j - i' from -max_distance on
};

/// One query of one head against keys j.  Keys count from the first that is here.
struct QueryPlace {
  std::int64_t batch, sequence, row, query, position;  // tensors' batch and row; number in its segment's sequence; i' among the keys
  std::int32_t head;
};

struct PairScores {
  const AttentionProblem& p;
  BucketTable             buckets;

  KOKKOS_INLINE_FUNCTION bool changes_scores() const {
    return p.softcap > 0.0f || p.alibi_slopes != nullptr || p.relative_bias != nullptr || p.additive_mask != nullptr ||
           p.key_keep != nullptr || p.keep != nullptr;
  }

  KOKKOS_INLINE_FUNCTION std::int32_t bucket(std::int64_t position, std::int64_t j) const {
    return buckets.bucket[clip(j - position, -p.max_distance, p.max_distance) + p.max_distance];
  }

  /// The score of a pair from its scaled product; `slope` is its derivative (of the soft cap).
  KOKKOS_INLINE_FUNCTION float operator()(float product, const QueryPlace& i, std::int64_t first_key, std::int64_t j, float& slope) const {
    float x = product;
    slope   = 1.0f;
    if (p.softcap > 0.0f) {
      const float t = Kokkos::tanh(product / p.softcap);
      x             = p.softcap * t;
      slope         = 1.0f - t * t;
    }
    if (p.alibi_slopes != nullptr) {
      const std::int64_t distance = i.position < j ? j - i.position : i.position - j;
      x -= p.alibi_slopes[i.sequence * p.alibi_stride + i.head] * static_cast<float>(distance);
    }
    if (p.relative_bias != nullptr) x += p.relative_bias[bucket(i.position, j) * p.relative_bias_stride + i.head];
    if (p.additive_mask != nullptr && j < p.additive_mask_columns)
      x += p.additive_mask[i.batch * p.additive_mask_strides[0] + i.head * p.additive_mask_strides[1] + i.row * p.additive_mask_strides[2] +
                           j];
    const bool kept =
        (p.key_keep == nullptr || p.key_keep[i.batch * p.key_keep_stride + first_key + j] != 0) &&
        (p.keep == nullptr ||
         (j < p.keep_columns && p.keep[i.batch * p.keep_strides[0] + i.head * p.keep_strides[1] + i.row * p.keep_strides[2] + j] != 0));
    // An infinite bias would make inf - inf of the maximum.
    constexpr float largest = Kokkos::Experimental::finite_max_v<float>;
    return kept ? (x > largest ? largest : x) : -Kokkos::Experimental::infinity_v<float>;
  }
};

/// The random words for a query of one head and keys 4 * block ... 4 * block + 3, numbers in the whole sequences.
KOKKOS_INLINE_FUNCTION PhiloxBlock dropout_words(const AttentionProblem& p, std::int64_t sequence, std::int32_t head, std::int64_t query,
                                                 std::int64_t block) {
  return philox(p.dropout_seed, static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(query),
                static_cast<std::uint32_t>(sequence * p.heads + head), p.dropout_offset);
}

/// What dropout multiplies weights with, along a row: neighbouring keys share their words.
class DropoutRow {
 public:
  KOKKOS_INLINE_FUNCTION DropoutRow(const AttentionProblem& p, const QueryPlace& i) : p_(p), place_(i) {}

  KOKKOS_INLINE_FUNCTION float factor(std::int64_t j) {
    const std::int64_t key = p_.key_offset + j;
    if (key / 4 != block_) {
      block_ = key / 4;
      words_ = dropout_words(p_, place_.sequence, place_.head, p_.query_offset + place_.query, block_);
    }
    return words_.of(key) >= p_.dropout_threshold ? p_.dropout_scale : 0.0f;
  }

 private:
  const AttentionProblem& p_;
  const QueryPlace&       place_;
  std::int64_t            block_ = -1;
  PhiloxBlock             words_{};
};

/// Where the forward pass writes, and the state that it goes on from.
struct AttentionForwardOutput {
  void*        out;
  float*       lse;                             // null: not wanted
  ElementType  out_type;                        // the query's or float; of e4m3 any but e4m3
  std::int64_t out_strides[3], lse_strides[2];  // batch, row, head; batch, head
  const float *previous_out, *previous_lse;     // null: none
  std::int64_t previous_out_strides[3], previous_lse_strides[2];
};

/// What a row's weighted sum of values and the previous state's output are multiplied with.
struct AttentionRowFactors {
  float here, previous;
};

/// Ends a row: joins it with the previous state, writes its LSE, applies the sink.
///
/// \param lse  of the keys seen here, -infinity: none
/// \param sum  of their weights, 0: none
KOKKOS_INLINE_FUNCTION AttentionRowFactors finish_row(const AttentionProblem& p, const AttentionForwardOutput& output, const QueryPlace& i,
                                                      float lse, float sum) {
  constexpr float     nothing = -Kokkos::Experimental::infinity_v<float>;
  AttentionRowFactors factors{sum == 0.0f ? 0.0f : 1.0f / sum, 0.0f};
  if (output.previous_lse != nullptr) {
    const float before = output.previous_lse[i.batch * output.previous_lse_strides[0] + i.head * output.previous_lse_strides[1] + i.row];
    if (before != nothing) {
      const float top = before > lse ? before : lse, both = top + Kokkos::log(Kokkos::exp(before - top) + Kokkos::exp(lse - top));
      factors.here *= lse == nothing ? 0.0f : Kokkos::exp(lse - both);
      factors.previous = Kokkos::exp(before - both);
      lse              = both;
    }
  }
  if (p.sink != nullptr) {
    const float kept = lse == nothing ? 0.0f : 1.0f / (1.0f + Kokkos::exp(p.sink[i.head] - lse));
    factors.here *= kept;
    factors.previous *= kept;
  }
  if (output.lse != nullptr) output.lse[i.batch * output.lse_strides[0] + i.head * output.lse_strides[1] + i.row] = lse;
  return factors;
}

/// Writes a float as the type that the output of attention over Elements turned out to have.
template <class Element>
KOKKOS_INLINE_FUNCTION void store_out(ElementType type, void* to, std::int64_t offset, float value) {
  if (type == ElementType::float32)
    static_cast<float*>(to)[offset] = value;
  else if constexpr (!std::is_same_v<Element, float8_e4m3_t>)
    static_cast<Element*>(to)[offset] = static_cast<Element>(value);
  else if (type == ElementType::bfloat16)
    static_cast<bfloat16_t*>(to)[offset] = static_cast<bfloat16_t>(value);
  else
    static_cast<half_t*>(to)[offset] = static_cast<half_t>(value);
}

/// Writes a float as the element type that a gradient turned out to have.
template <class Element>
KOKKOS_INLINE_FUNCTION void store_as(bool as_float, void* to, std::int64_t offset, float value) {
  if (as_float)
    static_cast<float*>(to)[offset] = value;
  else
    static_cast<Element*>(to)[offset] = static_cast<Element>(value);
}

}  // namespace Tributary::Impl
