#pragma once
#include <algorithm>
#include <cstdint>

#include "attention/attention_tile.hpp"

// Preparations of the portable attention kernels: how the work is cut, rotated copies of queries and keys, the bucket table.

namespace Tributary::Impl {

/// A work item is a block of rows - the query heads of one key head times some neighbouring queries - against the tiles of keys.
struct AttentionPlan {
  std::int64_t queries;  // of a block, for each head of the group
  std::int64_t group;    // query heads that share a key head
  std::int64_t rows;     // group * queries, up to whole register blocks
  std::int64_t blocks;   // of each batch entry and key head
  std::int64_t tile;     // keys; whole register blocks
  std::int64_t workers;
};

/// Keys of a tile, where heads have at most 128 components and beyond.
template <bool OnHost>
KOKKOS_INLINE_FUNCTION constexpr std::int64_t attention_tile(bool narrow) {
  using Product = AttentionBlock<OnHost>;
  return Product::column_blocks(OnHost ? (narrow ? 256 : 128) : 64) * Product::columns;
}

template <class Exec>
AttentionPlan plan_attention(const Exec& exec, const AttentionProblem& p) {
  using Product = AttentionBlock<on_host<Exec>>;
  AttentionPlan plan{};
  plan.workers = concurrent_workers(exec);
  plan.group   = p.heads / p.key_heads;
  // Enough rows to pay for packing a tile of keys.  They go by once a tile, so they need not stay in a core's second-level cache.
  const bool         narrow      = std::max(p.head_dim, p.value_dim) <= 128;
  const std::int64_t wanted_rows = on_host<Exec> ? (narrow ? 1024 : 256) : 64;
  // Queries an item: two items a worker, or more where some have more keys than others.
  const std::int64_t items = (p.right >= 0 ? 4 : 2) * plan.workers, share = (p.batch * p.key_heads * p.queries + items - 1) / items;
  plan.queries = std::clamp<std::int64_t>(std::min(wanted_rows / plan.group, share), std::min<std::int64_t>(p.queries, Product::rows),
                                          std::max<std::int64_t>(p.queries, 1));
  plan.queries = std::max<std::int64_t>(plan.queries, 1);
  plan.rows    = Product::row_blocks(plan.group * plan.queries) * Product::rows;
  plan.blocks  = (p.queries + plan.queries - 1) / plan.queries;
  plan.tile    = attention_tile<on_host<Exec>>(narrow);
  return plan;
}

/// Rotates rows into a contiguous copy [batch, row, head, head_dim], rounded to the element type; or turns float gradients back.
template <class Exec, class From, class To>
struct RotateRows {
  using Member = typename RowPolicy<Exec>::member_type;

  const From*         from;
  To*                 to;
  std::int64_t        from_strides[3], to_strides[3];
  std::int64_t        rows, other_rows;  // of a batch entry; the other side's
  std::int32_t        heads, head_dim;
  RotaryProblem       rotary;
  PackedOffsets       packed;  // with this side's offsets first
  const std::int32_t* positions;
  std::int64_t        position_stride;
  std::int64_t        offset;          // the first row's number in the whole sequence
  bool                aligned_at_end;  // queries whose last one's position is the last key's
  bool                backward;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const std::int64_t batch = team.league_rank() / rows, row = team.league_rank() % rows;
    const Segment      segment  = packed.segment(batch, row, row + 1, rows, other_rows);
    std::int64_t       position = offset + segment.first_query + (aligned_at_end ? segment.keys - segment.queries : 0);
    if (positions != nullptr) position = positions[batch * position_stride + row];
    const From* const source = from + batch * from_strides[0] + row * from_strides[1];
    To* const         target = to + batch * to_strides[0] + row * to_strides[1];
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, head_dim), [&](const std::int32_t c) {
      const std::int32_t turned = c - rotary.first;
      if (turned >= 0 && turned < rotary.dims) return;
      for (std::int32_t h = 0; h < heads; ++h)
        target[h * to_strides[2] + c] = static_cast<To>(static_cast<float>(source[h * from_strides[2] + c]));
    });
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, rotary.dims / 2), [&](const std::int32_t r) {
      double cosine, sine;
      turn(position, r, cosine, sine);
      if (backward) sine = -sine;
      const std::int32_t a = rotary.first + (rotary.interleaved ? 2 * r : r);
      const std::int32_t b = rotary.first + (rotary.interleaved ? 2 * r + 1 : r + rotary.dims / 2);
      for (std::int32_t h = 0; h < heads; ++h) {
        const double x = static_cast<float>(source[h * from_strides[2] + a]), y = static_cast<float>(source[h * from_strides[2] + b]);
        target[h * to_strides[2] + a] = static_cast<To>(static_cast<float>(x * cosine - y * sine));
        target[h * to_strides[2] + b] = static_cast<To>(static_cast<float>(x * sine + y * cosine));
      }
    });
  }

 private:
  KOKKOS_FUNCTION void turn(std::int64_t position, std::int32_t r, double& cosine, double& sine) const {
    if (rotary.cosine != nullptr) {
      const std::int64_t at = clip(position, 0, rotary.positions - 1);
      cosine                = rotary.cosine[at * rotary.cosine_stride + r];
      sine                  = rotary.sine[at * rotary.sine_stride + r];
    } else {
      const double angle = static_cast<double>(position) * Kokkos::pow(rotary.base, -2.0 * r / rotary.dims);
      cosine             = Kokkos::cos(angle);
      sine               = Kokkos::sin(angle);
    }
  }
};

template <class Exec, class From, class To>
void rotate_rows(const char* label, const Exec& exec, const AttentionProblem& p, const RotaryProblem& rotary, bool queries, bool backward,
                 const From* from, const std::int64_t (&from_strides)[3], To* to, const std::int64_t (&to_strides)[3]) {
  const std::int64_t rows = queries ? p.queries : p.keys;
  if (p.batch * rows == 0) return;
  const auto& packed = p.packed;
  Kokkos::parallel_for(
      label, RowPolicy<Exec>(exec, static_cast<int>(p.batch * rows), row_team_size<Exec>),
      RotateRows<Exec, From, To>{.from         = from,
                                 .to           = to,
                                 .from_strides = {from_strides[0], from_strides[1], from_strides[2]},
                                 .to_strides   = {to_strides[0], to_strides[1], to_strides[2]},
                                 .rows         = rows,
                                 .other_rows   = queries ? p.keys : p.queries,
                                 .heads        = queries ? p.heads : p.key_heads,
                                 .head_dim     = p.head_dim,
                                 .rotary       = rotary,
                                 .packed    = queries ? packed : PackedOffsets{packed.cu_seqlens_k, packed.cu_seqlens_q, packed.sequences},
                                 .positions = queries ? rotary.query_positions : rotary.key_positions,
                                 .position_stride = queries ? rotary.query_position_stride : rotary.key_position_stride,
                                 .offset          = queries ? p.query_offset : p.key_offset,
                                 .aligned_at_end  = queries && p.aligned_at_end,
                                 .backward        = backward});
}

/// Fills the table that PairScores looks buckets up in, from first distances tabulated on the host.
template <class Exec>
struct FillBuckets {
  static constexpr int most = most_relative_buckets / 2;  // that are no single distances

  std::int32_t* table;
  std::int32_t  max_distance, per_direction, single;  // the first `single` buckets are distances
  bool          bidirectional;
  std::int32_t  first_distance[most];  // of the others

  KOKKOS_FUNCTION void operator()(const std::int32_t i) const {
    const std::int32_t relative = i - max_distance;  // j - i'
    const std::int32_t distance = relative < 0 ? -relative : (bidirectional ? relative : 0);
    std::int32_t       bucket   = distance < single ? distance : per_direction - 1;
    while (bucket > single && first_distance[bucket - single] > distance) --bucket;
    table[i] = bucket + (bidirectional && relative > 0 ? per_direction : 0);
  }
};

template <class Exec>
void fill_buckets(const Exec& exec, const AttentionProblem& p, std::int32_t* table) {
  const std::int32_t per_direction = p.bidirectional ? p.buckets / 2 : p.buckets;
  FillBuckets<Exec>  fill{.table          = table,
                          .max_distance   = p.max_distance,
                          .per_direction  = per_direction,
                          .single         = per_direction / 2,
                          .bidirectional  = p.bidirectional,
                          .first_distance = {}};
  const auto         first = bucket_first_distances(per_direction, p.max_distance);
  std::copy(first.begin() + fill.single, first.end(), fill.first_distance);
  Kokkos::parallel_for("Tributary::attention::fill_buckets", ElementPolicy<Exec>(exec, 0, 2 * p.max_distance + 1), fill);
}

/// Rotated copies, bucket table: what both directions prepare before their kernels.  Laid out from a workspace's base (none: only
/// counted); `run` then queues the work and redirects the problem to the copies.
template <class Element>
struct AttentionPreparation {
  Element *     query = nullptr, *key = nullptr;
  std::int32_t* buckets = nullptr;

  AttentionPreparation(const AttentionProblem& p, const RotaryProblem& rotary, WorkspaceLayout& layout) {
    if (rotary.dims > 0) {
      query = layout.take<Element>(p.batch * p.queries * p.heads * p.head_dim);
      key   = layout.take<Element>(p.batch * p.keys * p.key_heads * p.head_dim);
    }
    if (p.relative_bias != nullptr) buckets = layout.take<std::int32_t>(2 * std::int64_t{p.max_distance} + 1);
  }

  template <class Exec>
  void run(const Exec& exec, AttentionProblem& p, const RotaryProblem& rotary) const {
    if (rotary.dims > 0) {
      const std::int64_t d = p.head_dim, q = p.heads * d, k = p.key_heads * d;
      const std::int64_t query_strides[3] = {p.queries * q, q, d}, key_strides[3] = {p.keys * k, k, d};
      rotate_rows("Tributary::attention::rotate_queries", exec, p, rotary, true, false, static_cast<const Element*>(p.query),
                  p.query_strides, query, query_strides);
      rotate_rows("Tributary::attention::rotate_keys", exec, p, rotary, false, false, static_cast<const Element*>(p.key), p.key_strides,
                  key, key_strides);
      p.query = query;
      p.key   = key;
      std::copy(query_strides, query_strides + 3, p.query_strides);
      std::copy(key_strides, key_strides + 3, p.key_strides);
    }
    if (p.relative_bias != nullptr) fill_buckets(exec, p, buckets);
  }
};

}  // namespace Tributary::Impl
