#pragma once
#include <cstdint>
#include <numeric>

#include "attention/attention_plan.hpp"

// The middle of attention's gradient: for a block of query rows against a tile of keys, the weights P = exp(score - lse), the gradients
// of the scores dX = P * (dP - delta), and the sums that are made of both.

namespace Tributary::Impl {

/// Per query row and head, from the forward pass's results: [B, Hq, Sq] each.  A sink is a term of the weights' denominator.  But the
/// gradient of the LSE, which has no sink, needs the weights without it, exp(score - lse), which all else needs times `share`: grad_out is
/// multiplied with the share where it is read, since both gradients that use the weights are linear in it.  So a sink far above the scores,
/// which leaves no share, does no harm.
struct RowStatistics {
  float* lse;    // log of the weights' denominator, without the sink if there is a share; +infinity in a row without a legal key
  float* shift;  // share * delta - gradient of lse: what share * dP is reduced by
  float* share;  // exp(lse - log of the whole denominator); null: 1
  float* sink;   // gradient of the head's sink from this row; null: not wanted
};

/// Where the gradient of a tensor goes: its own type, or float before the rotation is undone.
struct GradientOutput {
  void*        data;
  bool         is_float;
  std::int64_t strides[3];
};

struct GradientInputs {
  const void * out, *grad_out;
  bool         out_is_float;
  std::int64_t out_strides[3], grad_out_strides[3];
  const float *lse, *grad_lse;  // grad_lse null: zero
  std::int64_t lse_strides[2], grad_lse_strides[2];
};

/// What a kernel makes of the gradients of the scores.
struct GradientUse {
  bool         of_query;   // dX K
  bool         of_key;     // dX^T Q and P^T dO
  std::int64_t tiles = 1;  // of keys that a worker holds at a time
};

/// A worker's slot for a block of query rows and a tile of keys.
template <bool OnHost>
struct GradientOperands {
  using Product = AttentionBlock<OnHost>;
  using Columns = typename Product::Columns;
  using Vector  = typename Product::Vector;

  /// Tiles are whole register blocks of keys, be they columns or rows of a product.
  static constexpr std::int64_t step = std::lcm(Product::rows, Product::columns);
  /// Keys of a tile at most, and from row to row of what is stored of each pair: no power of two, which would crowd a few sets of the
  /// cache when a column is read.
  static constexpr std::int64_t most_keys = ((OnHost ? 128 : 64) + step - 1) / step * step, row_stride = most_keys + (OnHost ? 16 : 0);

  // Queries and grad_out in panels of columns, which serve as either factor of a product.
  Columns* query;          // [head_dim blocks][rows], scaled
  Columns* grad_out;       // [value_dim blocks][rows]
  Columns* key_columns;    // [tile / columns][head_dim]
  Columns* value_columns;  // [tile / columns][value_dim]
  Columns* key;            // of_query: [head_dim blocks][tile], scaled
  float*   weights;        // [rows][row_stride]
  float*   scores;         // [rows][row_stride]: dP, then dX
  float*   slopes;         // [rows][row_stride], with a soft cap
  float*   query_sum;      // of_query, on a device: [rows][head_dim blocks * columns]
  float*   key_sum;        // of_key: [tile][head_dim blocks * columns]
  float*   value_sum;      // of_key: [tile][value_dim blocks * columns]

  /// Calls visit(pointer, count of one worker) for each of them.
  template <class Visit>
  KOKKOS_FUNCTION void for_each(std::int64_t rows, std::int64_t tile, const AttentionProblem& p, const GradientUse& use,
                                const Visit& visit) {
    const std::int64_t groups = tile / Product::columns, a_blocks = Product::column_blocks(p.head_dim),
                       b_blocks = Product::column_blocks(p.value_dim);
    visit(query, a_blocks * rows);
    visit(grad_out, b_blocks * rows);
    visit(key_columns, use.tiles * groups * p.head_dim);
    visit(value_columns, use.tiles * groups * p.value_dim);
    visit(key, use.of_query ? use.tiles * a_blocks * tile : 0);
    visit(weights, rows * row_stride);
    visit(scores, rows * row_stride);
    visit(slopes, p.softcap > 0 ? rows * row_stride : 0);
    visit(query_sum, use.of_query && !OnHost ? rows * a_blocks * Product::columns : 0);
    visit(key_sum, use.of_key ? use.tiles * tile * a_blocks * Product::columns : 0);
    visit(value_sum, use.of_key ? use.tiles * tile * b_blocks * Product::columns : 0);
  }

  /// The slot as tile t of those that it holds sees it.
  KOKKOS_FUNCTION GradientOperands of_tile(std::int64_t t, std::int64_t tile, const AttentionProblem& p) const {
    const std::int64_t groups = tile / Product::columns, a_blocks = Product::column_blocks(p.head_dim),
                       b_blocks = Product::column_blocks(p.value_dim);
    GradientOperands part       = *this;
    part.key_columns += t * groups * p.head_dim;
    part.value_columns += t * groups * p.value_dim;
    part.key += t * a_blocks * tile;
    part.key_sum += t * tile * a_blocks * Product::columns;
    part.value_sum += t * tile * b_blocks * Product::columns;
    return part;
  }

  static GradientOperands take(WorkspaceLayout& layout, std::int64_t workers, std::int64_t rows, std::int64_t tile,
                               const AttentionProblem& p, const GradientUse& use) {
    GradientOperands slots{};
    slots.for_each(rows, tile, p, use, TakeFrom{&layout, workers});
    return slots;
  }

  KOKKOS_FUNCTION GradientOperands of_worker(std::int64_t w, std::int64_t rows, std::int64_t tile, const AttentionProblem& p,
                                             const GradientUse& use) const {
    GradientOperands slot = *this;
    slot.for_each(rows, tile, p, use, MoveTo{w});
    return slot;
  }

  /// weights = query key_columns, scores = grad_out value_columns, where seen(row block) overlaps a group of columns.
  /// ahead(i, n) is called for each of n register blocks.
  template <class Member, class Seen, class Ahead>
  KOKKOS_FUNCTION void multiply(const Member& team, std::int64_t rows, std::int64_t row_blocks, std::int64_t count,
                                const AttentionProblem& p, const Seen& seen, const Ahead& ahead) const {
    const std::int64_t groups = Product::column_blocks(count);
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, row_blocks * groups), [&](const std::int64_t cell) {
      const std::int64_t block = OnHost ? cell % row_blocks : cell / groups, group = OnHost ? cell / row_blocks : cell % groups;
      const KeyInterval  range = seen(block);
      ahead(cell, row_blocks * groups);
      if (group * Product::columns >= range.end || (group + 1) * Product::columns <= range.begin) return;
      const std::int64_t      at = block * Product::rows * row_stride + group * Product::columns;
      typename Product::Block product;
      Product::multiply_panels(query + block * Product::rows, rows, key_columns + group * p.head_dim, p.head_dim, product);
      Packing<OnHost>::store(product, weights + at, row_stride);
      Product::multiply_panels(grad_out + block * Product::rows, rows, value_columns + group * p.value_dim, p.value_dim, product);
      Packing<OnHost>::store(product, scores + at, row_stride);
    });
  }

  /// Gradients of keys: sum[keys][width] += factors[rows][keys]^T panels[width blocks][rows], for each block of keys over the rows of
  /// seen_by(block).
  template <class Member, class SeenBy>
  KOKKOS_FUNCTION void accumulate_keys(const Member& team, std::int64_t rows, std::int64_t count, const float* factors,
                                       const Columns* panels, std::int64_t width, float* sum, const SeenBy& seen_by) const {
    const std::int64_t groups = Product::column_blocks(width), key_blocks = Product::row_blocks(count),
                       sum_width = groups * Product::columns;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, key_blocks * groups), [&](const std::int64_t cell) {
      const std::int64_t block = OnHost ? cell % key_blocks : cell / groups, group = OnHost ? cell / key_blocks : cell % groups;
      const KeyInterval  range = seen_by(block);
      if (range.begin >= range.end) return;
      float* const            to = sum + block * Product::rows * sum_width + group * Product::columns;
      typename Product::Block total;
      Packing<OnHost>::load(to, sum_width, total);
      Product::multiply_add(factors + range.begin * row_stride + block * Product::rows, 1, row_stride, panels + group * rows + range.begin,
                            range.end - range.begin, total);
      Packing<OnHost>::store(total, to, sum_width);
    });
  }

  /// Gradients of queries: sum[rows][head_dim blocks * columns] += scores[rows][keys] key, for each block of rows over the keys of
  /// seen(block).
  template <class Member, class Seen>
  KOKKOS_FUNCTION void accumulate_queries(const Member& team, std::int64_t rows, std::int64_t tile, const AttentionProblem& p, float* sum,
                                          const Seen& seen) const {
    const std::int64_t groups = Product::column_blocks(p.head_dim), row_blocks = Product::row_blocks(rows),
                       sum_width = groups * Product::columns;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, row_blocks * groups), [&](const std::int64_t cell) {
      const std::int64_t block = OnHost ? cell % row_blocks : cell / groups, group = OnHost ? cell / row_blocks : cell % groups;
      const KeyInterval  range = seen(block);
      if (range.begin >= range.end) return;
      float* const            to    = sum + block * Product::rows * sum_width + group * Product::columns;
      const std::int64_t      whole = rows - block * Product::rows;  // what lies behind may be another worker's
      typename Product::Block total;
      Packing<OnHost>::load(to, sum_width, total, whole);
      Product::multiply_add(scores + block * Product::rows * row_stride + range.begin, row_stride, 1, key + group * tile + range.begin,
                            range.end - range.begin, total);
      Packing<OnHost>::store(total, to, sum_width, whole);
    });
  }

  /// A query row that sees columns begin ... end - 1 of a tile, of which products were made where `seen` is: scores in `weights` become
  /// P, dP in `scores` becomes dX before the soft cap's slope; both are zero in the other columns of the register blocks that overlap
  /// `seen`.
  KOKKOS_INLINE_FUNCTION void differentiate(std::int64_t r, std::int64_t begin, std::int64_t end, const KeyInterval& seen,
                                            const PairScores& score, const QueryPlace& i, std::int64_t first_key, std::int64_t tile,
                                            float lse, float shift) const {
    constexpr std::int64_t width = Product::width;
    if (seen.begin >= seen.end) return;
    float *const x = weights + r * row_stride, *const g = scores + r * row_stride;
    const std::int64_t low = seen.begin / step * step, high = (seen.end + step - 1) / step * step;
    if (begin >= end) {
      for (std::int64_t c = low; c < high; ++c) x[c] = g[c] = 0.0f;
      return;
    }
    if (score.changes_scores())
      for (std::int64_t c = begin; c < end; ++c) {
        float slope;
        x[c] = score(x[c], i, first_key, tile + c, slope);
        if (score.p.softcap > 0.0f) slopes[r * row_stride + c] = slope;
      }
    Vector *const weight = reinterpret_cast<Vector*>(x), *const gradient = reinterpret_cast<Vector*>(g);
    const std::int64_t first = begin / width, last = (end + width - 1) / width;
    if (score.p.has_dropout) {
      for (std::int64_t v = first; v < last; ++v) {
        weight[v] -= lse;
        Lanes<OnHost>::exp(weight[v]);
      }
      DropoutRow dropout(score.p, i);
      for (std::int64_t c = begin; c < end; ++c) {
        const float factor = dropout.factor(tile + c);
        g[c]               = x[c] * (g[c] * factor - shift);
        x[c] *= factor;
      }
    } else {
      for (std::int64_t v = first; v < last; ++v) {
        Vector e = weight[v] - lse;
        Lanes<OnHost>::exp(e);
        weight[v]   = e;
        gradient[v] = e * (gradient[v] - shift);
      }
    }
    for (std::int64_t c = low; c < begin; ++c) x[c] = g[c] = 0.0f;
    for (std::int64_t c = end; c < high; ++c) x[c] = g[c] = 0.0f;
  }

  /// Through the soft cap, after whatever needed dX.
  KOKKOS_INLINE_FUNCTION void apply_slopes(std::int64_t r, std::int64_t begin, std::int64_t end) const {
    for (std::int64_t c = begin; c < end; ++c) scores[r * row_stride + c] *= slopes[r * row_stride + c];
  }

 private:
  struct TakeFrom {
    WorkspaceLayout* layout;
    std::int64_t     workers;
    template <class T>
    KOKKOS_INLINE_FUNCTION void operator()([[maybe_unused]] T*& piece, [[maybe_unused]] std::int64_t count) const {
      KOKKOS_IF_ON_HOST((piece = layout->template take<T>(workers * count);))
    }
  };
  struct MoveTo {
    std::int64_t worker;
    template <class T>
    KOKKOS_INLINE_FUNCTION void operator()(T*& piece, std::int64_t count) const {
      piece += worker * count;
    }
  };
};

}  // namespace Tributary::Impl
