#pragma once
#include <cstdint>

#include "attention/attention_plan.hpp"

// The middle of attention's gradient: for a block of rows against a tile of columns, the weights P = exp(score - lse) and the
// gradients of the scores dX = P * (dP - delta), where rows are queries and columns keys, or the other way round.

namespace Tributary::Impl {

/// Per query row and head, from the forward pass's results: [B, Hq, Sq] each.  With a sink the weights are `share` times what they are
/// without it, exp(score - lse); grad_out is multiplied with the share where it is read, since both gradients that use the weights are
/// linear in it.  So a sink far above the scores, which leaves no share, does no harm.
struct RowStatistics {
  float* lse;    // log of the denominator without the sink; +infinity in a row without a legal key, so that its weights are 0
  float* shift;  // share * delta - gradient of lse: what share * dP is reduced by
  float* share;  // exp(lse - log of the whole denominator); null: no sink
  float* sink;   // gradient of the head's sink from this row; null: not wanted
};

struct GradientInputs {
  const void * out, *grad_out;
  bool         out_is_float;
  std::int64_t out_strides[3], grad_out_strides[3];
  const float *lse, *grad_lse;  // grad_lse null: zero
  std::int64_t lse_strides[2], grad_lse_strides[2];
};

/// A worker's slot for a block of rows and a tile of columns.
template <bool OnHost>
struct GradientOperands {
  using Product = RegisterBlock<OnHost>;
  using Columns = typename Product::Columns;
  using Vector  = typename Product::Vector;

  float*   row_a;     // [rows][head_dim]: queries, or keys
  float*   row_b;     // [rows][value_dim]: grad_out, or values
  Columns* column_a;  // [tile / columns][head_dim]: keys, or queries
  Columns* column_b;  // [tile / columns][value_dim]
  Columns* inner_a;   // [head_dim blocks][tile]: the columns' rows once more, to multiply with
  Columns* inner_b;   // [value_dim blocks][tile], null where not needed
  float*   weights;   // [rows][tile]
  float*   scores;    // [rows][tile]: dP, then dX
  float*   slopes;    // [rows][tile], with a soft cap
  float*   sum_a;     // [rows][head_dim blocks * columns]
  float*   sum_b;     // [rows][value_dim blocks * columns], null where not needed
  float*   lse;       // [tile]: of the columns where they are queries
  float*   shift;

  std::uint8_t* dropout;  // DropoutBits where the rows are keys and weights are dropped

  static GradientOperands take(WorkspaceLayout& layout, std::int64_t w, std::int64_t rows, std::int64_t tile, const AttentionProblem& p,
                               bool both) {
    const std::int64_t groups = tile / Product::columns, a_blocks = Product::column_blocks(p.head_dim),
                       b_blocks = Product::column_blocks(p.value_dim);
    return {.row_a    = layout.take<float>(w * rows * p.head_dim),
            .row_b    = layout.take<float>(w * rows * p.value_dim),
            .column_a = layout.take<Columns>(w * groups * p.head_dim),
            .column_b = layout.take<Columns>(w * groups * p.value_dim),
            .inner_a  = layout.take<Columns>(w * a_blocks * tile),
            .inner_b  = layout.take<Columns>(both ? w * b_blocks * tile : 0),
            .weights  = layout.take<float>(w * rows * tile),
            .scores   = layout.take<float>(w * rows * tile),
            .slopes   = layout.take<float>(p.softcap > 0 ? w * rows * tile : 0),
            .sum_a    = layout.take<float>(w * rows * a_blocks * Product::columns),
            .sum_b    = layout.take<float>(both ? w * rows * b_blocks * Product::columns : 0),
            .lse      = layout.take<float>(both ? w * tile : 0),
            .shift    = layout.take<float>(both ? w * tile : 0),
            .dropout  = layout.take<std::uint8_t>(both && p.has_dropout ? w * DropoutBits::of_rows(rows) * tile : 0)};
  }

  KOKKOS_FUNCTION GradientOperands of_worker(std::int64_t w, std::int64_t rows, std::int64_t tile, const AttentionProblem& p,
                                             bool both) const {
    const std::int64_t groups = tile / Product::columns, a_blocks = Product::column_blocks(p.head_dim),
                       b_blocks = Product::column_blocks(p.value_dim);
    return {row_a + w * rows * p.head_dim,
            row_b + w * rows * p.value_dim,
            column_a + w * groups * p.head_dim,
            column_b + w * groups * p.value_dim,
            inner_a + w * a_blocks * tile,
            inner_b + (both ? w * b_blocks * tile : 0),
            weights + w * rows * tile,
            scores + w * rows * tile,
            slopes + (p.softcap > 0 ? w * rows * tile : 0),
            sum_a + w * rows * a_blocks * Product::columns,
            sum_b + (both ? w * rows * b_blocks * Product::columns : 0),
            lse + (both ? w * tile : 0),
            shift + (both ? w * tile : 0),
            dropout + (both && p.has_dropout ? w * DropoutBits::of_rows(rows) * tile : 0)};
  }

  /// weights = row_a column_a, scores = row_b column_b over `count` columns.
  template <class Member>
  KOKKOS_FUNCTION void multiply(const Member& team, std::int64_t row_blocks, std::int64_t count, std::int64_t tile,
                                const AttentionProblem& p) const {
    const std::int64_t groups = Product::column_blocks(count);
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, row_blocks * groups), [&](const std::int64_t cell) {
      const std::int64_t      block = OnHost ? cell % row_blocks : cell / groups, group = OnHost ? cell / row_blocks : cell % groups;
      const std::int64_t      at = block * Product::rows * tile + group * Product::columns;
      typename Product::Block product;
      Product::clear(product);
      Product::multiply_add(row_a + block * Product::rows * p.head_dim, p.head_dim, 1, column_a + group * p.head_dim, p.head_dim, product);
      Packing<OnHost>::store(product, weights + at, tile);
      Product::clear(product);
      Product::multiply_add(row_b + block * Product::rows * p.value_dim, p.value_dim, 1, column_b + group * p.value_dim, p.value_dim,
                            product);
      Packing<OnHost>::store(product, scores + at, tile);
    });
  }

  /// sum += factors[rows][tile] inner[width blocks][tile] over `count` columns.
  template <class Member>
  KOKKOS_FUNCTION void accumulate(const Member& team, std::int64_t row_blocks, std::int64_t count, std::int64_t tile, const float* factors,
                                  const Columns* inner, std::int64_t width, float* sum) const {
    const std::int64_t groups = Product::column_blocks(width), sum_width = groups * Product::columns;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, row_blocks * groups), [&](const std::int64_t cell) {
      const std::int64_t      block = OnHost ? cell % row_blocks : cell / groups, group = OnHost ? cell / row_blocks : cell % groups;
      float* const            to = sum + block * Product::rows * sum_width + group * Product::columns;
      typename Product::Block total;
      Packing<OnHost>::load(to, sum_width, total);
      Product::multiply_add(factors + block * Product::rows * tile, tile, 1, inner + group * tile, count, total);
      Packing<OnHost>::store(total, to, sum_width);
    });
  }

  /// Row r, columns begin ... end - 1 of a tile whose first `defined` columns hold products: scores in `weights` become P, dP in `scores`
  /// becomes dX before the soft cap's slope; both are zero in the other columns.  place(c) and key(c) name the pair of a column;
  /// lse_of and shift_of give a vector's worth of columns, dropout_of(c) a column's factor.
  template <class Place, class Key, class Lse, class Shift, class DropoutOf>
  KOKKOS_INLINE_FUNCTION void differentiate(std::int64_t r, std::int64_t begin, std::int64_t end, std::int64_t defined, std::int64_t tile,
                                            const PairScores& score, std::int64_t first_key, const Place& place, const Key& key,
                                            const Lse& lse_of, const Shift& shift_of, const DropoutOf& dropout_of) const {
    constexpr std::int64_t width = Product::width;
    float *const x = weights + r * tile, *const g = scores + r * tile;
    const std::int64_t whole = Product::column_blocks(defined) * Product::columns;
    if (begin >= end) {
      for (std::int64_t c = 0; c < whole; ++c) x[c] = g[c] = 0.0f;
      return;
    }
    if (score.changes_scores())
      for (std::int64_t c = begin; c < end; ++c) {
        float slope;
        x[c] = score(x[c], place(c), first_key, key(c), slope);
        if (score.p.softcap > 0.0f) slopes[r * tile + c] = slope;
      }
    const std::int64_t first = begin / width * width, last = (end + width - 1) / width * width;
    for (std::int64_t v = first / width; v < last / width; ++v) {
      Vector& weight = reinterpret_cast<Vector*>(x)[v];
      weight -= lse_of(v);
      Lanes<OnHost>::exp(weight);
    }
    if (score.p.has_dropout) {
      for (std::int64_t c = begin; c < end; ++c) {
        const float factor = dropout_of(c);
        g[c]               = x[c] * (g[c] * factor - shift_of.at(c));
        x[c] *= factor;
      }
    } else {
      for (std::int64_t v = first / width; v < last / width; ++v)
        reinterpret_cast<Vector*>(g)[v] = reinterpret_cast<Vector*>(x)[v] * (reinterpret_cast<Vector*>(g)[v] - shift_of(v));
    }
    for (std::int64_t c = 0; c < begin; ++c) x[c] = g[c] = 0.0f;
    for (std::int64_t c = end; c < whole; ++c) x[c] = g[c] = 0.0f;
  }

  /// Through the soft cap, after whatever needed dX.
  KOKKOS_INLINE_FUNCTION void apply_slopes(std::int64_t r, std::int64_t begin, std::int64_t end, std::int64_t tile) const {
    for (std::int64_t c = begin; c < end; ++c) scores[r * tile + c] *= slopes[r * tile + c];
  }
};

/// The same number for every column of a row.
template <bool OnHost>
struct OfRow {
  float value;
  using Vector = typename RegisterBlock<OnHost>::Vector;
  KOKKOS_INLINE_FUNCTION Vector operator()(std::int64_t) const { return Vector{} + value; }
  KOKKOS_INLINE_FUNCTION float  at(std::int64_t) const { return value; }
};

/// One number a column.
template <bool OnHost>
struct OfColumn {
  const float* values;
  using Vector = typename RegisterBlock<OnHost>::Vector;
  KOKKOS_INLINE_FUNCTION Vector operator()(std::int64_t v) const { return reinterpret_cast<const Vector*>(values)[v]; }
  KOKKOS_INLINE_FUNCTION float  at(std::int64_t c) const { return values[c]; }
};

}  // namespace Tributary::Impl
