#pragma once
#include <Kokkos_Core.hpp>
#include <cstdint>

#include "common/lanes.hpp"
#include "common/workers.hpp"
#include "indexer/indexer.hpp"

// The arithmetic of the indexer: packed operands, and the scores of one query against one group of keys.

namespace Tributary::Impl {

/// One cell = one query x one group of keys.  Its dot products for a block of heads stay in registers, then relu, weight and sum over
/// heads; the order of every sum is fixed by the shape of this tile alone, so a score does not depend on how the work is cut.
template <bool OnHost>
struct IndexerTile {
  using Product = RegisterBlock<OnHost>;
  using Vector  = typename Product::Vector;

  static constexpr int heads = Product::rows;
  static constexpr int keys  = Product::columns;

  /// Component d of a block of heads, and of a group of keys.
  struct alignas(heads * sizeof(float)) HeadColumn {
    float head[heads];
  };
  using KeyColumn = typename Product::Columns;
  struct Scores {
    union {
      Vector vector[Product::vectors];
      float  key[keys];
    };
  };

  KOKKOS_INLINE_FUNCTION static std::int32_t head_blocks(std::int32_t all_heads) { return (all_heads + heads - 1) / heads; }

  /// \param query    [head blocks][head_dim]
  /// \param weights  [head blocks * heads]
  /// \param key      [head_dim]
  KOKKOS_INLINE_FUNCTION static void score(const HeadColumn* query, const float* weights, const KeyColumn* key, std::int32_t all_heads,
                                           std::int32_t head_dim, Scores& scores) {
    Vector sum[Product::vectors] = {};
    for (std::int32_t left = all_heads; left > 0; left -= heads, query += head_dim, weights += heads) {
      typename Product::Block dot;
      Product::clear(dot);
      Product::multiply_add(query->head, 1, heads, key, head_dim, dot);
      for (int h = 0; h < heads; ++h) {
        if (h >= left) break;  // a padded head: even its zeros would make NaN of an infinite key
        for (int v = 0; v < Product::vectors; ++v)
          sum[v] += weights[h] * (dot.vector[h][v] < 0.0f ? Vector{} : dot.vector[h][v]);  // relu(NaN) = NaN
      }
    }
    for (int v = 0; v < Product::vectors; ++v) scores.vector[v] = sum[v];
  }
};

/// What a worker keeps in its slot for one block of queries and one tile of keys.
template <bool OnHost>
struct IndexerOperands {
  using Tile = IndexerTile<OnHost>;

  typename Tile::HeadColumn* query;      // [rows][head blocks][head_dim]
  float*                     weights;    // [rows][head blocks * heads], query scale folded in
  typename Tile::KeyColumn*  key;        // [groups][head_dim]
  float*                     key_scale;  // [groups * keys], when there are scales
  KeyInterval*               legal;      // [rows]

  static IndexerOperands take(WorkspaceLayout& layout, std::int64_t workers, const IndexerProblem& problem, std::int64_t rows,
                              std::int64_t tile_keys) {
    const std::int64_t blocks = Tile::head_blocks(problem.heads);
    return {.query     = layout.take<typename Tile::HeadColumn>(workers * rows * blocks * problem.head_dim),
            .weights   = layout.take<float>(workers * rows * blocks * Tile::heads),
            .key       = layout.take<typename Tile::KeyColumn>(workers * (tile_keys / Tile::keys) * problem.head_dim),
            .key_scale = layout.take<float>(problem.key_scale != nullptr ? workers * tile_keys : 0),
            .legal     = layout.take<KeyInterval>(workers * rows)};
  }

  KOKKOS_FUNCTION IndexerOperands of_worker(std::int64_t worker, const IndexerProblem& problem, std::int64_t rows,
                                            std::int64_t tile_keys) const {
    const std::int64_t blocks = Tile::head_blocks(problem.heads);
    return {query + worker * rows * blocks * problem.head_dim, weights + worker * rows * blocks * Tile::heads,
            key + worker * (tile_keys / Tile::keys) * problem.head_dim, key_scale + (problem.key_scale != nullptr ? worker * tile_keys : 0),
            legal + worker * rows};
  }

  /// Packs a segment's queries and weights and notes their legal keys.
  template <class Element, class Member>
  KOKKOS_FUNCTION void pack_queries(const Member& team, const IndexerProblem& p, const Segment& segment) const {
    const std::int64_t heads = std::int64_t{Tile::head_blocks(p.heads)} * Tile::heads, head_dim = p.head_dim;
    const auto* const  from = static_cast<const Element*>(p.query) + segment.batch * p.query_strides[0] + segment.row * p.query_strides[1];
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, segment.rows * heads), [&](const std::int64_t i) {
      const std::int64_t row = i / heads, h = i % heads;
      const bool         real = h < p.heads;
      float*             to   = query[(row * heads + h) / Tile::heads * head_dim].head + h % Tile::heads;
      const auto*        head = from + row * p.query_strides[1] + h * p.query_strides[2];
      for (std::int64_t d = 0; d < head_dim; ++d, to += Tile::heads) *to = real ? static_cast<float>(head[d]) : 0.0f;
      float weight = real ? p.weights[segment.batch * p.weight_strides[0] + (segment.row + row) * p.weight_strides[1] + h] : 0.0f;
      if (p.query_scale != nullptr && real)
        weight *= p.query_scale[segment.batch * p.query_scale_strides[0] + (segment.row + row) * p.query_scale_strides[1] + h];
      weights[i] = weight;
    });
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, segment.rows),
                         [&](const std::int64_t row) { legal[row] = p.legal_keys(segment, row); });
  }

  /// Packs keys first ... first + count - 1 of the segment's sequence, and zeros to the end of the last group.
  template <class Element, class Member>
  KOKKOS_FUNCTION void pack_keys(const Member& team, const IndexerProblem& p, const Segment& segment, std::int64_t first,
                                 std::int64_t count) const {
    const std::int64_t padded = (count + Tile::keys - 1) / Tile::keys * Tile::keys, head_dim = p.head_dim;
    const std::int64_t row  = segment.first_key + first;
    const auto* const  from = static_cast<const Element*>(p.key) + segment.batch * p.key_strides[0] + row * p.key_strides[1];
    // A device's threads read along a key; a host's thread takes a key whole.
    constexpr bool     whole  = OnHost;
    const std::int64_t pieces = whole ? 1 : head_dim;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, padded * pieces), [&](const std::int64_t i) {
      const std::int64_t n = i / pieces, d0 = i % pieces, d1 = whole ? head_dim : d0 + 1;
      float*             to   = reinterpret_cast<float*>(key + n / Tile::keys * head_dim + d0) + n % Tile::keys;
      const bool         real = n < count;
      for (std::int64_t d = d0; d < d1; ++d, to += Tile::keys) *to = real ? static_cast<float>(from[n * p.key_strides[1] + d]) : 0.0f;
    });
    if (p.key_scale != nullptr)
      Kokkos::parallel_for(Kokkos::TeamThreadRange(team, padded), [&](const std::int64_t n) {
        key_scale[n] = n < count ? p.key_scale[segment.batch * p.key_scale_stride + row + n] : 0.0f;
      });
  }

  /// Scores of row `row` of the packed segment against group `group` of the packed keys.
  KOKKOS_INLINE_FUNCTION void score(const IndexerProblem& p, std::int64_t row, std::int64_t group, typename Tile::Scores& scores) const {
    const std::int32_t blocks = Tile::head_blocks(p.heads);
    Tile::score(query + row * blocks * p.head_dim, weights + row * blocks * Tile::heads, key + group * p.head_dim, p.heads, p.head_dim,
                scores);
    if (p.key_scale != nullptr)
      for (int n = 0; n < Tile::keys; ++n) scores.key[n] *= key_scale[group * Tile::keys + n];
  }
};

}  // namespace Tributary::Impl
