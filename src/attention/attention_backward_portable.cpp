#include "attention/attention_gradient_tile.hpp"
#include "common/check.hpp"
#include "common/log.hpp"

// Four kernels: statistics of the rows; gradients of keys and values, a block of keys against the stream of queries; the gradient of
// queries, a block of queries against the stream of keys; and, when wanted, that of the additive mask.  Each sum runs in one order in
// one place, so no atomics and the same bits every time; the price is that scores are multiplied twice.

namespace Tributary::Impl {
namespace {

/// Where the gradient of a tensor goes: its own type, or float before the rotation is undone.
struct GradientOutput {
  void*        data;
  bool         is_float;
  std::int64_t strides[3];
};

template <class Exec, class Element>
struct RowStatisticsFunctor {
  using Member = typename RowPolicy<Exec>::member_type;

  AttentionProblem p;
  GradientInputs   in;
  RowStatistics    to;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const std::int64_t batch = team.league_rank() / p.queries, row = team.league_rank() % p.queries;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, p.heads), [&](const std::int32_t h) {
      const std::int64_t out      = batch * in.out_strides[0] + row * in.out_strides[1] + h * in.out_strides[2];
      const std::int64_t grad_out = batch * in.grad_out_strides[0] + row * in.grad_out_strides[1] + h * in.grad_out_strides[2];
      float              delta    = 0.0f;
      for (std::int32_t d = 0; d < p.value_dim; ++d) delta += load(in.out, out + d) * load(in.grad_out, grad_out + d);
      const float        lse   = in.lse[batch * in.lse_strides[0] + h * in.lse_strides[1] + row];
      const std::int64_t at    = (batch * p.heads + h) * p.queries + row;
      const bool         some  = lse != -Kokkos::Experimental::infinity_v<float>;
      float              share = some ? 1.0f : 0.0f;
      if (p.sink != nullptr && some) share = 1.0f / (1.0f + Kokkos::exp(p.sink[h] - lse));
      const float grad_lse = in.grad_lse == nullptr ? 0.0f : in.grad_lse[batch * in.grad_lse_strides[0] + h * in.grad_lse_strides[1] + row];
      to.lse[at]           = some ? lse : Kokkos::Experimental::infinity_v<float>;
      to.shift[at]         = some ? share * delta - grad_lse : 0.0f;
      if (to.share != nullptr) to.share[at] = share;
      if (to.sink != nullptr) to.sink[at] = some ? -delta / (1.0f + Kokkos::exp(lse - p.sink[h])) : 0.0f;
    });
  }

 private:
  KOKKOS_INLINE_FUNCTION float load(const void* data, std::int64_t offset) const {
    return in.out_is_float ? static_cast<const float*>(data)[offset] : static_cast<float>(static_cast<const Element*>(data)[offset]);
  }
};

/// Packs rows of grad_out, whose type is known at run time, times their share; `pack` is called with them.
template <class Element, class Pack>
KOKKOS_INLINE_FUNCTION void with_grad_out(const AttentionProblem& p, const GradientInputs& in, const RowStatistics& statistics,
                                          std::int64_t batch, std::int64_t row, std::int64_t head, std::int64_t per_head,
                                          const Pack& pack) {
  const auto with_share = [&](auto rows) {
    if (statistics.share != nullptr) rows.row_factors = statistics.share + (batch * p.heads + head) * p.queries + row;
    rows.row_factor_stride = p.queries;
    pack(rows);
  };
  if (in.out_is_float)
    with_share(head_rows<float>(in.grad_out, in.grad_out_strides, batch, row, head, per_head));
  else
    with_share(head_rows<Element>(in.grad_out, in.grad_out_strides, batch, row, head, per_head));
}

template <bool OnHost, class Member>
KOKKOS_INLINE_FUNCTION void clear(const Member& team, float* values, std::int64_t count) {
  for_each_element<OnHost>(team, 1, count, [&](std::int64_t, std::int64_t i) { values[i] = 0.0f; });
}

/// Gradients of a block of keys and values: all queries of all heads that look at them stream past.
template <class Exec, class Element>
struct KeyGradientFunctor {
  static constexpr bool host = on_host<Exec>;
  using Member               = typename WorkerPolicy<Exec>::member_type;
  using Operands             = GradientOperands<host>;
  using Product              = typename Operands::Product;
  using Pack                 = Packing<host>;

  AttentionProblem p;
  AttentionPlan    plan;  // of keys: `queries` keys a block
  BucketTable      buckets;
  GradientInputs   in;
  RowStatistics    statistics;
  Operands         slots;
  GradientOutput   grad_key, grad_value;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const Operands      slot  = slots.of_worker(team.league_rank(), plan.rows, plan.tile, p, true);
    const std::int64_t  items = p.batch * p.key_heads * plan.blocks;
    const PackedOffsets by_key{p.packed.cu_seqlens_k, p.packed.cu_seqlens_q, p.packed.sequences};
    // Causal: the first keys are seen by the most queries, they go first.
    for (std::int64_t item = team.league_rank(); item < items; item += team.league_size()) {
      const std::int64_t block = item / (p.batch * p.key_heads), pair = item % (p.batch * p.key_heads);
      const std::int64_t begin = block * plan.queries, end = begin + plan.queries < p.keys ? begin + plan.queries : p.keys;
      for (std::int64_t row = begin; row < end;) {
        const Segment k = by_key.segment(pair / p.key_heads, row, end, p.keys, p.queries);
        // Seen from the queries: row and first_query are theirs.
        const Segment queries{k.batch, k.sequence, k.first_key, k.keys, 0, k.keys, row - k.first_query, k.queries};
        gather(team, slot, queries, k.first_query, k.rows, static_cast<std::int32_t>(pair % p.key_heads));
        row += k.rows;
      }
    }
  }

 private:
  /// Keys first ... first + count - 1 of the sequence whose queries are s.row ... s.row + s.queries - 1.
  KOKKOS_FUNCTION void gather(const Member& team, const Operands& slot, const Segment& s, std::int64_t first, std::int64_t count,
                              std::int32_t key_head) const {
    const std::int64_t row_blocks = Product::row_blocks(count), rows = row_blocks * Product::rows, key_row = s.first_key + first;
    const std::int64_t key_width   = Product::column_blocks(p.head_dim) * Product::columns,
                       value_width = Product::column_blocks(p.value_dim) * Product::columns;
    Pack::rows(team, key_rows<Element>(p, p.key, p.key_strides, s.batch, key_row, key_head, count), count, p.head_dim, slot.row_a);
    Pack::rows(team, key_rows<Element>(p, p.value, p.value_strides, s.batch, key_row, key_head, count), count, p.value_dim, slot.row_b);
    clear<host>(team, slot.sum_a, rows * key_width);
    clear<host>(team, slot.sum_b, rows * value_width);
    team.team_barrier();
    const auto [begin, end] = p.queries_of(first, first + count - 1, s);
    for (std::int64_t g = 0; g < plan.group; ++g)
      for (std::int64_t tile = begin; tile < end; tile += plan.tile)
        stream(team, slot, s, first, count, static_cast<std::int32_t>(key_head * plan.group + g), tile,
               end - tile < plan.tile ? end - tile : plan.tile);
    const auto store = [&](const GradientOutput& to, const float* sum, std::int64_t width, std::int64_t padded) {
      for_each_element<host>(team, count, width, [&](std::int64_t r, std::int64_t c) {
        store_as<Element>(to.is_float, to.data, s.batch * to.strides[0] + (key_row + r) * to.strides[1] + key_head * to.strides[2] + c,
                          sum[r * padded + c]);
      });
    };
    store(grad_key, slot.sum_a, p.head_dim, key_width);
    store(grad_value, slot.sum_b, p.value_dim, value_width);
    team.team_barrier();
  }

  /// Queries tile ... tile + columns - 1 of one head.
  KOKKOS_FUNCTION void stream(const Member& team, const Operands& slot, const Segment& s, std::int64_t first, std::int64_t count,
                              std::int32_t head, std::int64_t tile, std::int64_t columns) const {
    const std::int64_t row_blocks = Product::row_blocks(count), row = s.row + tile, offset = p.alignment(s);
    const auto         queries = query_rows<Element>(p, s.batch, row, head, columns);
    Pack::transposed(team, queries, columns, p.head_dim, slot.column_a);
    Pack::straight(team, queries, columns, p.head_dim, plan.tile, slot.inner_a);
    with_grad_out<Element>(p, in, statistics, s.batch, row, head, columns, [&](const auto& rows) {
      Pack::transposed(team, rows, columns, p.value_dim, slot.column_b);
      Pack::straight(team, rows, columns, p.value_dim, plan.tile, slot.inner_b);
    });
    const DropoutBits dropout{p, slot.dropout, p.key_offset + first, plan.tile};
    if (p.has_dropout) dropout.draw<host>(team, s.sequence, head, p.query_offset + tile, count, columns);
    const std::int64_t at = (s.batch * p.heads + head) * p.queries + row;
    for_each_element<host>(team, 1, Product::column_blocks(columns) * Product::columns, [&](std::int64_t, std::int64_t c) {
      slot.lse[c]   = c < columns ? statistics.lse[at + c] : Kokkos::Experimental::infinity_v<float>;
      slot.shift[c] = c < columns ? statistics.shift[at + c] : 0.0f;
    });
    team.team_barrier();
    slot.multiply(team, row_blocks, columns, plan.tile, p);
    team.team_barrier();
    const PairScores score{p, buckets};
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, row_blocks * Product::rows), [&](const std::int64_t r) {
      const std::int64_t j     = first + r;
      const KeyInterval  seen  = r < count ? p.queries_of(j, j, s) : KeyInterval{0, 0};
      const std::int64_t begin = clip(seen.begin - tile, 0, columns), end = clip(seen.end - tile, 0, columns);
      slot.differentiate(
          r, begin, end, columns, plan.tile, score, s.first_key,
          [&](std::int64_t c) { return QueryPlace{s.batch, s.sequence, row + c, tile + c, tile + c + offset, head}; },
          [&](std::int64_t) { return j; }, OfColumn<host>{slot.lse}, OfColumn<host>{slot.shift},
          [&](std::int64_t c) { return dropout.factor(r, c); });
      if (p.softcap > 0.0f) slot.apply_slopes(r, begin, end, plan.tile);
    });
    team.team_barrier();
    slot.accumulate(team, row_blocks, columns, plan.tile, slot.weights, slot.inner_b, p.value_dim, slot.sum_b);
    slot.accumulate(team, row_blocks, columns, plan.tile, slot.scores, slot.inner_a, p.head_dim, slot.sum_a);
    team.team_barrier();
  }
};

/// What a block of query rows of some heads of one key head has in common with a tile of keys: shared by the kernels whose rows are
/// queries.
template <class Exec, class Element>
struct QueryRows {
  static constexpr bool host = on_host<Exec>;
  using Member               = typename WorkerPolicy<Exec>::member_type;
  using Operands             = GradientOperands<host>;
  using Product              = typename Operands::Product;
  using Pack                 = Packing<host>;

  const AttentionProblem& p;
  const AttentionPlan&    plan;
  BucketTable             buckets;
  const GradientInputs&   in;
  const RowStatistics&    statistics;
  const Operands&         slot;
  const Member&           team;

  Segment      s;
  std::int32_t first_head, key_head;
  std::int64_t rows;  // heads * s.rows

  KOKKOS_INLINE_FUNCTION std::int64_t row_blocks() const { return Product::row_blocks(rows); }
  KOKKOS_INLINE_FUNCTION QueryPlace   place(std::int64_t r) const {
      const std::int64_t q = r % s.rows;
      return {s.batch,
              s.sequence,
              s.row + q,
              s.first_query + q,
              s.first_query + q + p.alignment(s),
              static_cast<std::int32_t>(first_head + r / s.rows)};
  }
  KOKKOS_INLINE_FUNCTION KeyInterval keys() const {
    const std::int64_t position = s.first_query + p.alignment(s);
    return p.window_of(position, position + s.rows - 1, s.keys);
  }

  KOKKOS_FUNCTION void load() const {
    Pack::rows(team, query_rows<Element>(p, s.batch, s.row, first_head, s.rows), rows, p.head_dim, slot.row_a);
    with_grad_out<Element>(p, in, statistics, s.batch, s.row, first_head, s.rows,
                           [&](const auto& from) { Pack::rows(team, from, rows, p.value_dim, slot.row_b); });
  }

  /// Leaves the gradients of keys tile ... tile + count - 1 in slot.scores: dX, of what the biases were added to; or, to_products, what is
  /// left of it on the other side of the soft cap, and the keys in slot.inner_a to multiply it with.  on_row(r, place, begin, end) sees dX.
  template <class OnRow>
  KOKKOS_FUNCTION void differentiate(std::int64_t tile, std::int64_t count, bool to_products, const OnRow& on_row) const {
    const std::int64_t key_row = s.first_key + tile;
    const auto         keys    = key_rows<Element>(p, p.key, p.key_strides, s.batch, key_row, key_head, count);
    Pack::transposed(team, keys, count, p.head_dim, slot.column_a);
    if (to_products) Pack::straight(team, keys, count, p.head_dim, plan.tile, slot.inner_a);
    Pack::transposed(team, key_rows<Element>(p, p.value, p.value_strides, s.batch, key_row, key_head, count), count, p.value_dim,
                     slot.column_b);
    team.team_barrier();
    slot.multiply(team, row_blocks(), count, plan.tile, p);
    team.team_barrier();
    const PairScores score{p, buckets};
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, row_blocks() * Product::rows), [&](const std::int64_t r) {
      const QueryPlace   i      = place(r < rows ? r : 0);
      const KeyInterval  window = r < rows ? p.window(i.position, s.keys) : KeyInterval{0, 0};
      const std::int64_t begin = clip(window.begin - tile, 0, count), end = clip(window.end - tile, 0, count);
      const std::int64_t at = (s.batch * p.heads + i.head) * p.queries + i.row;
      DropoutRow         dropout(p, i);
      slot.differentiate(
          r, begin, end, count, plan.tile, score, s.first_key, [&](std::int64_t) { return i; }, [&](std::int64_t c) { return tile + c; },
          OfRow<host>{statistics.lse[at]}, OfRow<host>{statistics.shift[at]}, [&](std::int64_t c) { return dropout.factor(tile + c); });
      if (r < rows) on_row(r, i, begin, end);
      if (to_products && p.softcap > 0.0f) slot.apply_slopes(r, begin, end, plan.tile);
    });
    team.team_barrier();
  }
};

/// The gradient of a block of queries, and what its rows add to those of ALiBi slopes and of the bucket table.
template <class Exec, class Element>
struct QueryGradientFunctor {
  static constexpr bool host = on_host<Exec>;
  using Member               = typename WorkerPolicy<Exec>::member_type;
  using Operands             = GradientOperands<host>;
  using Product              = typename Operands::Product;

  AttentionProblem p;
  AttentionPlan    plan;
  BucketTable      buckets;
  GradientInputs   in;
  RowStatistics    statistics;
  Operands         slots;
  float*           bucket_rows;  // [workers][rows][buckets], null: not wanted
  GradientOutput   grad_query;
  float*           alibi_rows;   // [B, Hq, Sq], null: not wanted
  float*           bucket_sums;  // [B, blocks, Hq, buckets], null: not wanted

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const Operands     slot            = slots.of_worker(team.league_rank(), plan.rows, plan.tile, p, false);
    const std::int64_t items           = p.batch * p.key_heads * plan.blocks;
    float* const       rows_of_buckets = bucket_rows == nullptr ? nullptr : bucket_rows + team.league_rank() * plan.rows * p.buckets;
    for (std::int64_t item = team.league_rank(); item < items; item += team.league_size()) {
      const std::int64_t block = plan.blocks - 1 - item / (p.batch * p.key_heads), pair = item % (p.batch * p.key_heads);
      const std::int64_t batch = pair / p.key_heads, key_head = pair % p.key_heads;
      const std::int64_t begin = block * plan.queries, end = begin + plan.queries < p.queries ? begin + plan.queries : p.queries;
      float* const       sums =
          bucket_sums == nullptr ? nullptr : bucket_sums + ((batch * plan.blocks + block) * p.heads + key_head * plan.group) * p.buckets;
      if (sums != nullptr) clear<host>(team, sums, plan.group * p.buckets);
      for (std::int64_t row = begin; row < end;) {
        const Segment segment = p.packed.segment(batch, row, end, p.queries, p.keys);
        descend(QueryRows<Exec, Element>{p, plan, buckets, in, statistics, slot, team, segment,
                                         static_cast<std::int32_t>(key_head * plan.group), static_cast<std::int32_t>(key_head),
                                         plan.group * segment.rows},
                rows_of_buckets, sums);
        row += segment.rows;
      }
    }
  }

 private:
  KOKKOS_FUNCTION void descend(const QueryRows<Exec, Element>& rows, float* rows_of_buckets, float* sums) const {
    const Member&      team  = rows.team;
    const Operands&    slot  = rows.slot;
    const std::int64_t width = Product::column_blocks(p.head_dim) * Product::columns;
    rows.load();
    clear<host>(team, slot.sum_a, rows.row_blocks() * Product::rows * width);
    if (sums != nullptr) clear<host>(team, rows_of_buckets, rows.rows * p.buckets);
    if (alibi_rows != nullptr)
      Kokkos::parallel_for(Kokkos::TeamThreadRange(team, rows.rows), [&](const std::int64_t r) { alibi_rows[flat(rows.place(r))] = 0.0f; });
    team.team_barrier();
    const auto [begin, end] = rows.keys();
    for (std::int64_t tile = begin; tile < end; tile += plan.tile) {
      const std::int64_t count = end - tile < plan.tile ? end - tile : plan.tile;
      rows.differentiate(tile, count, true, [&](std::int64_t r, const QueryPlace& i, std::int64_t first, std::int64_t last) {
        const float* const dx = slot.scores + r * plan.tile;
        if (alibi_rows != nullptr) {
          float sum = 0.0f;
          for (std::int64_t c = first; c < last; ++c) {
            const std::int64_t distance = tile + c - i.position;
            sum -= dx[c] * static_cast<float>(distance < 0 ? -distance : distance);
          }
          alibi_rows[flat(i)] += sum;
        }
        if (sums != nullptr)
          for (std::int64_t c = first; c < last; ++c)
            rows_of_buckets[r * p.buckets + PairScores{p, buckets}.bucket(i.position, tile + c)] += dx[c];
      });
      slot.accumulate(team, rows.row_blocks(), count, plan.tile, slot.scores, slot.inner_a, p.head_dim, slot.sum_a);
      team.team_barrier();
    }
    for_each_element<host>(team, rows.rows, p.head_dim, [&](std::int64_t r, std::int64_t c) {
      const QueryPlace i = rows.place(r);
      store_as<Element>(grad_query.is_float, grad_query.data,
                        i.batch * grad_query.strides[0] + i.row * grad_query.strides[1] + i.head * grad_query.strides[2] + c,
                        p.scale * slot.sum_a[r * width + c]);
    });
    if (sums != nullptr)
      for_each_element<host>(team, plan.group, p.buckets, [&](std::int64_t g, std::int64_t b) {
        for (std::int64_t q = 0; q < rows.s.rows; ++q) sums[g * p.buckets + b] += rows_of_buckets[(g * rows.s.rows + q) * p.buckets + b];
      });
    team.team_barrier();
  }

  KOKKOS_INLINE_FUNCTION std::int64_t flat(const QueryPlace& i) const { return (i.batch * p.heads + i.head) * p.queries + i.row; }
};

/// The gradient of the additive mask: an item owns a tile of it and sums over what the mask was broadcast along, in order.
template <class Exec, class Element>
struct MaskGradientFunctor {
  static constexpr bool host = on_host<Exec>;
  using Member               = typename WorkerPolicy<Exec>::member_type;
  using Operands             = GradientOperands<host>;
  using Product              = typename Operands::Product;

  AttentionProblem p;
  AttentionPlan    plan;  // blocks of rows of one head
  BucketTable      buckets;
  GradientInputs   in;
  RowStatistics    statistics;
  Operands         slots;
  float*           sums;  // [workers][rows][tile]
  float*           gradient;
  std::int64_t     extents[4], strides[3];

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const Operands     slot   = slots.of_worker(team.league_rank(), plan.rows, plan.tile, p, false);
    float* const       sum    = sums + team.league_rank() * plan.rows * plan.tile;
    const std::int64_t blocks = extents[2] == 1 ? 1 : plan.blocks, tiles = (extents[3] + plan.tile - 1) / plan.tile;
    for (std::int64_t item = team.league_rank(); item < extents[0] * extents[1] * blocks * tiles; item += team.league_size()) {
      const std::int64_t tile = item % tiles * plan.tile, block = item / tiles % blocks, h = item / tiles / blocks % extents[1];
      const std::int64_t b     = item / tiles / blocks / extents[1];
      const std::int64_t begin = extents[2] == 1 ? 0 : block * plan.queries;
      const std::int64_t end   = extents[2] == 1 ? p.queries : (begin + plan.queries < p.queries ? begin + plan.queries : p.queries);
      const std::int64_t rows  = extents[2] == 1 ? 1 : end - begin;
      const std::int64_t width = extents[3] - tile < plan.tile ? extents[3] - tile : plan.tile;
      clear<host>(team, sum, rows * plan.tile);
      team.team_barrier();
      for (std::int64_t batch = extents[0] == 1 ? 0 : b; batch < (extents[0] == 1 ? p.batch : b + 1); ++batch)
        for (std::int64_t head = extents[1] == 1 ? 0 : h; head < (extents[1] == 1 ? p.heads : h + 1); ++head)
          add(team, slot, batch, static_cast<std::int32_t>(head), begin, end, tile, width, sum);
      for_each_element<host>(team, rows, width, [&](std::int64_t r, std::int64_t c) {
        gradient[b * strides[0] + h * strides[1] + (begin + r) * strides[2] + tile + c] = sum[r * plan.tile + c];
      });
      team.team_barrier();
    }
  }

 private:
  KOKKOS_FUNCTION void add(const Member& team, const Operands& slot, std::int64_t batch, std::int32_t head, std::int64_t begin,
                           std::int64_t end, std::int64_t tile, std::int64_t width, float* sum) const {
    for (std::int64_t row = begin; row < end;) {
      const std::int64_t             stop    = row + plan.queries < end ? row + plan.queries : end;
      const Segment                  segment = p.packed.segment(batch, row, stop, p.queries, p.keys);
      const QueryRows<Exec, Element> rows{p, plan, buckets, in, statistics, slot, team, segment, head, p.key_head(head), segment.rows};
      const std::int64_t             count = clip(segment.keys - tile, 0, width);
      if (count > 0) {
        rows.load();
        team.team_barrier();
        rows.differentiate(tile, count, false, [](std::int64_t, const QueryPlace&, std::int64_t, std::int64_t) {});
        const bool one = extents[2] == 1;
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, count), [&](const std::int64_t c) {
          for (std::int64_t r = 0; r < rows.rows; ++r) sum[(one ? 0 : row - begin + r) * plan.tile + c] += slot.scores[r * plan.tile + c];
        });
        team.team_barrier();
      }
      row += segment.rows;
    }
  }
};

/// One output of many terms, each thread or team a sum in fixed order.
template <class Terms>
struct SumTerms {
  Terms                terms;
  KOKKOS_FUNCTION void operator()(const std::int64_t i) const { terms.store(i, terms.sum(i)); }
};

/// gradient[b, h] or [h] from a number a row: rows [B, Hq, Sq], summed over queries, and over what the gradient is not indexed by.
struct SumOverRows {
  const float*     rows;
  float*           gradient;
  AttentionProblem p;
  std::int64_t     per_batch, stride;  // outputs for each batch entry (or sequence), 1 or B; its stride

  KOKKOS_FUNCTION float sum(std::int64_t i) const {
    const std::int64_t h = i % p.heads, part = i / p.heads;
    float              total = 0.0f;
    for (std::int64_t b = 0; b < p.batch; ++b)
      for (std::int64_t q = 0; q < p.queries;) {
        const Segment s = p.packed.segment(b, q, p.queries, p.queries, p.keys);
        if (per_batch == 1 || s.sequence == part)
          for (std::int64_t r = 0; r < s.rows; ++r) total += rows[(b * p.heads + h) * p.queries + q + r];
        q += s.rows;
      }
    return total;
  }
  KOKKOS_FUNCTION void store(std::int64_t i, float value) const { gradient[i / p.heads * stride + i % p.heads] = value; }
};

/// gradient[bucket, h] from the blocks' sums [B, blocks, Hq, buckets].
struct SumOverBlocks {
  const float* sums;
  float*       gradient;
  std::int64_t blocks, heads, buckets, stride;

  KOKKOS_FUNCTION float sum(std::int64_t i) const {
    const std::int64_t bucket = i / heads, h = i % heads;
    float              total = 0.0f;
    for (std::int64_t b = 0; b < blocks; ++b) total += sums[(b * heads + h) * buckets + bucket];
    return total;
  }
  KOKKOS_FUNCTION void store(std::int64_t i, float value) const { gradient[i / heads * stride + i % heads] = value; }
};

template <class Exec, class Terms>
void sum_terms(const char* label, const Exec& exec, std::int64_t outputs, const Terms& terms) {
  if (outputs > 0) Kokkos::parallel_for(label, ElementPolicy<Exec>(exec, 0, outputs), SumTerms<Terms>{terms});
}

/// Everything a call lays out in its workspace, and the order of its kernels.
template <class Exec, class Element>
struct BackwardCall {
  static constexpr bool host = on_host<Exec>;
  using Operands             = GradientOperands<host>;
  using Product              = typename Operands::Product;

  AttentionPlan                 by_query, by_key, by_mask;
  AttentionPreparation<Element> preparation;
  RowStatistics                 statistics;
  Operands                      query_slots, key_slots, mask_slots;
  float *                       alibi_rows, *bucket_rows, *bucket_sums, *mask_sums;
  float *                       turned_query = nullptr, *turned_key = nullptr;

  BackwardCall(const Exec& exec, const AttentionProblem& p, const RotaryProblem& rotary, const AttentionGradients& wanted,
               WorkspaceLayout& layout)
      : preparation(p, rotary, layout) {
    const std::int64_t rows = p.batch * p.heads * p.queries;
    by_query                = plan_rows(exec, p, p.queries, p.heads / p.key_heads, p.key_heads);
    by_key                  = plan_rows(exec, p, p.keys, 1, p.key_heads);
    by_key.group            = p.heads / p.key_heads;
    by_mask                 = plan_rows(exec, p, p.queries, 1, p.heads);
    statistics              = {layout.take<float>(rows), layout.take<float>(rows), p.sink != nullptr ? layout.take<float>(rows) : nullptr,
                  wanted.sink.given() ? layout.take<float>(rows) : nullptr};
    query_slots             = Operands::take(layout, by_query.workers, by_query.rows, by_query.tile, p, false);
    key_slots               = Operands::take(layout, by_key.workers, by_key.rows, by_key.tile, p, true);
    alibi_rows              = wanted.alibi_slopes.given() ? layout.take<float>(rows) : nullptr;
    bucket_rows = bucket_sums = mask_sums = nullptr;
    if (wanted.relative_bias.given()) {
      bucket_rows = layout.take<float>(by_query.workers * by_query.rows * p.buckets);
      bucket_sums = layout.take<float>(p.batch * by_query.blocks * p.heads * p.buckets);
    }
    if (wanted.additive_mask.given()) {
      mask_slots = Operands::take(layout, by_mask.workers, by_mask.rows, by_mask.tile, p, false);
      mask_sums  = layout.take<float>(by_mask.workers * by_mask.rows * by_mask.tile);
    }
    if (rotary.dims > 0) {
      turned_query = layout.take<float>(rows * p.head_dim);
      turned_key   = layout.take<float>(p.batch * p.keys * p.key_heads * p.head_dim);
    }
  }

  /// Blocks of `group` heads x some of `count` rows, for `pairs` independent heads of each batch entry.
  static AttentionPlan plan_rows(const Exec& exec, const AttentionProblem& p, std::int64_t count, std::int64_t group, std::int64_t pairs) {
    AttentionPlan plan{};
    plan.workers              = concurrent_workers(exec);
    plan.group                = group;
    const std::int64_t wanted = host ? 128 : 64, share = (p.batch * pairs * count + 2 * plan.workers - 1) / (2 * plan.workers);
    plan.queries = std::clamp<std::int64_t>(std::min(wanted / group, share), 1, std::max<std::int64_t>(count, 1));
    plan.rows    = Product::row_blocks(group * plan.queries) * Product::rows;
    plan.blocks  = (count + plan.queries - 1) / plan.queries;
    plan.tile    = Product::column_blocks(host ? 128 : 64) * Product::columns;
    return plan;
  }

  void run(const Exec& exec, AttentionProblem p, const RotaryProblem& rotary, const AttentionBackwardArguments& a) const {
    preparation.run(exec, p, rotary);
    const BucketTable    buckets{preparation.buckets};
    const GradientInputs in{.out              = a.out.data,
                            .grad_out         = a.grad_out.data,
                            .out_is_float     = a.out_type == ElementType::float32,
                            .out_strides      = {a.out.strides[0], a.out.strides[1], a.out.strides[2]},
                            .grad_out_strides = {a.grad_out.strides[0], a.grad_out.strides[1], a.grad_out.strides[2]},
                            .lse              = a.lse.data,
                            .grad_lse         = a.gradients->lse.given() ? a.grad_lse.data : nullptr,
                            .lse_strides      = {a.lse.strides[0], a.lse.strides[1]},
                            .grad_lse_strides = {a.grad_lse.strides[0], a.grad_lse.strides[1]}};
    if (p.batch * p.queries > 0)
      Kokkos::parallel_for("Tributary::attention_backward::row_statistics",
                           RowPolicy<Exec>(exec, static_cast<int>(p.batch * p.queries), row_team_size<Exec>),
                           RowStatisticsFunctor<Exec, Element>{p, in, statistics});

    const std::int64_t d = p.head_dim, q = p.heads * d, k = p.key_heads * d;
    const std::int64_t turned_query_strides[3] = {p.queries * q, q, d}, turned_key_strides[3] = {p.keys * k, k, d};
    const bool         turned = rotary.dims > 0, is_float = std::is_same_v<Element, float>;
    const auto         given = [&](const Tensor<void, 4>& t) {
      return GradientOutput{t.data, is_float, {t.strides[0], t.strides[1], t.strides[2]}};
    };
    const GradientOutput query = turned ? GradientOutput{turned_query, true, {p.queries * q, q, d}} : given(a.grad_query);
    const GradientOutput key   = turned ? GradientOutput{turned_key, true, {p.keys * k, k, d}} : given(a.grad_key);

    launch("Tributary::attention_backward::keys", exec, by_key, p.batch * p.key_heads * by_key.blocks,
           KeyGradientFunctor<Exec, Element>{p, by_key, buckets, in, statistics, key_slots, key, given(a.grad_value)});
    launch("Tributary::attention_backward::queries", exec, by_query, p.batch * p.key_heads * by_query.blocks,
           QueryGradientFunctor<Exec, Element>{p, by_query, buckets, in, statistics, query_slots, bucket_rows, query, alibi_rows,
                                               bucket_sums});
    if (turned) {
      rotate_rows("Tributary::attention_backward::rotate_queries", exec, p, rotary, true, true, turned_query, turned_query_strides,
                  static_cast<Element*>(a.grad_query.data), {a.grad_query.strides[0], a.grad_query.strides[1], a.grad_query.strides[2]});
      rotate_rows("Tributary::attention_backward::rotate_keys", exec, p, rotary, false, true, turned_key, turned_key_strides,
                  static_cast<Element*>(a.grad_key.data), {a.grad_key.strides[0], a.grad_key.strides[1], a.grad_key.strides[2]});
    }
    further_gradients(exec, p, buckets, in, a);
  }

 private:
  void further_gradients(const Exec& exec, const AttentionProblem& p, const BucketTable& buckets, const GradientInputs& in,
                         const AttentionBackwardArguments& a) const {
    if (a.gradients->sink.given())
      sum_terms("Tributary::attention_backward::sink", exec, p.heads, SumOverRows{statistics.sink, a.grad_sink.data, p, 1, 0});
    if (a.gradients->alibi_slopes.given()) {
      const std::int64_t parts = a.grad_alibi_slopes.extents[0];
      sum_terms("Tributary::attention_backward::alibi_slopes", exec, parts * p.heads,
                SumOverRows{alibi_rows, a.grad_alibi_slopes.data, p, parts, a.grad_alibi_slopes.strides[0]});
    }
    if (a.gradients->relative_bias.given())
      sum_terms("Tributary::attention_backward::relative_bias", exec, std::int64_t{p.buckets} * p.heads,
                SumOverBlocks{bucket_sums, a.grad_relative_bias.data, p.batch * by_query.blocks, p.heads, p.buckets,
                              a.grad_relative_bias.strides[0]});
    if (a.gradients->additive_mask.given()) {
      const auto&        g = a.grad_additive_mask;
      const std::int64_t items =
          g.extents[0] * g.extents[1] * (g.extents[2] == 1 ? 1 : by_mask.blocks) * ((g.extents[3] + by_mask.tile - 1) / by_mask.tile);
      launch("Tributary::attention_backward::additive_mask", exec, by_mask, items,
             MaskGradientFunctor<Exec, Element>{p,
                                                by_mask,
                                                buckets,
                                                in,
                                                statistics,
                                                mask_slots,
                                                mask_sums,
                                                g.data,
                                                {g.extents[0], g.extents[1], g.extents[2], g.extents[3]},
                                                {g.strides[0], g.strides[1], g.strides[2]}});
    }
  }

  template <class Functor>
  static void launch(const char* label, const Exec& exec, const AttentionPlan& plan, std::int64_t items, const Functor& functor) {
    const std::int64_t workers = std::min(plan.workers, items);
    if (workers > 0) Kokkos::parallel_for(label, WorkerPolicy<Exec>(exec, static_cast<int>(workers), team_size<Exec>), functor);
  }
};

}  // namespace

template <class Exec>
std::size_t attention_backward_workspace_size(const Exec& exec, const AttentionBackwardArguments& arguments) {
  const auto [problem, rotary] = check_attention_backward(arguments);
  if (choose_level("attention_backward", arguments.inputs.options->level, host_memory<Exec>) != Level::portable) return 0;
  WorkspaceLayout layout;
  visit_element_type(problem.type, [&, &p = problem, &r = rotary]<class Element>(std::type_identity<Element>) {
    BackwardCall<Exec, Element>(exec, p, r, *arguments.gradients, layout);
  });
  return layout.size();
}

template <class Exec>
void attention_backward(const Exec& exec, const AttentionBackwardArguments& arguments, const WorkspaceSpan& workspace) {
  const auto checked = check_attention_backward(arguments);
  if (choose_level("attention_backward", arguments.inputs.options->level, host_memory<Exec>) == Level::reference) {
    exec.fence("Tributary::attention_backward: reference level");
    return reference_attention_backward(checked.first, checked.second, arguments);
  }
  const std::size_t size = attention_backward_workspace_size(exec, arguments);
  visit_element_type(checked.first.type, [&]<class Element>(std::type_identity<Element>) {
    if constexpr (!std::is_same_v<Element, float8_e4m3_t>) {
      WorkspaceLayout                   layout(workspace_base("attention_backward", workspace, size));
      const BackwardCall<Exec, Element> call(exec, checked.first, checked.second, *arguments.gradients, layout);
      if (log_enabled()) log("attention_backward: portable level, blocks of " + std::to_string(call.by_key.queries) + " keys");
      call.run(exec, checked.first, checked.second, arguments);
    }
  });
}

using Space = TRIBUTARY_EXECUTION_SPACE;
template std::size_t attention_backward_workspace_size(const Space&, const AttentionBackwardArguments&);
template void        attention_backward(const Space&, const AttentionBackwardArguments&, const WorkspaceSpan&);

}  // namespace Tributary::Impl
