#include <optional>
#include <tuple>
#include <utility>

#include "attention/attention_gradient_tile.hpp"
#include "common/in_order.hpp"
#include "common/level.hpp"
#include "common/log.hpp"
#include "sm90/attention/attention.hpp"

// On a host, one sweep: an item owns a block of keys and their gradients, and adds to the gradients of the queries that stream past; the
// items that meet at a query add in the order of their keys (common/in_order.hpp).  On a device blocks cannot wait for each other, so the
// gradients of queries are a kernel of their own, which multiplies the scores again.  Before, a kernel for statistics of the rows;
// behind, one for the gradient of the additive mask, when wanted.  Each sum runs in one order whoever computes it: the same bits every
// time.

namespace Tributary::Impl {
namespace {

template <class Exec, class Element>
struct RowStatisticsFunctor {
  using Member = typename RowPolicy<Exec>::member_type;

  AttentionProblem p;
  GradientInputs   in;
  RowStatistics    to;
  float*           query_sums;  // null, or [B, Hq, Sq][sum_width], to be cleared
  std::int64_t     sum_width;
  bool             is_aligned = has_whole_vectors(p, in);

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const auto         queries = static_cast<std::int32_t>(p.queries);  // as rows in all
    const std::int64_t batch = team.league_rank() / queries, row = team.league_rank() % queries;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, p.heads), [&](const std::int32_t h) {
      const float  lse   = in.lse[batch * in.lse_strides[0] + h * in.lse_strides[1] + row];
      const double delta = this->delta(team, batch, row, h);
      Kokkos::single(Kokkos::PerThread(team), [&] { store(batch, row, h, lse, static_cast<float>(delta)); });
    });
  }

  /// Lanes share a row: beside one another they read what lies side by side, some sixteen elements each.
  static RowPolicy<Exec> policy(const Exec& exec, const AttentionProblem& p) {
    const int rows = static_cast<int>(p.batch * p.queries);
    if constexpr (host_memory<Exec>) {
      return RowPolicy<Exec>(exec, rows, std::clamp<int>(p.heads, 1, row_team_size<Exec>), 1);
    } else {
      int lanes = 4;
      while (lanes < 32 && 16 * lanes < p.value_dim) lanes *= 2;
      return RowPolicy<Exec>(exec, rows, std::clamp<int>(p.heads, 1, 128 / lanes), lanes);
    }
  }

 private:
  static constexpr int width = 4;  // elements that a lane reads before it adds, so that its loads do not wait for one another
  template <class Out>
  struct alignas(width * sizeof(Out)) Some {
    Out element[width];
  };

  /// Whether rows of the output and its gradient can be read so many at a time.
  static bool has_whole_vectors(const AttentionProblem& p, const GradientInputs& in) {
    const std::uintptr_t bytes = width * (in.out_is_float ? sizeof(float) : sizeof(Element));
    bool                 whole = p.value_dim % width == 0 && reinterpret_cast<std::uintptr_t>(in.out) % bytes == 0 &&
                 reinterpret_cast<std::uintptr_t>(in.grad_out) % bytes == 0;
    for (int d = 0; d < 3; ++d) whole = whole && in.out_strides[d] % width == 0 && in.grad_out_strides[d] % width == 0;
    return whole;
  }

  KOKKOS_INLINE_FUNCTION double delta(const Member& team, std::int64_t batch, std::int64_t row, std::int32_t h) const {
    if constexpr (!std::is_same_v<Element, float>)
      if (!in.out_is_float) return product<Element>(team, batch, row, h);
    return product<float>(team, batch, row, h);
  }

  /// Of a row of the output and its gradient, in double: every gradient of the row has its error.
  template <class Out>
  KOKKOS_INLINE_FUNCTION double product(const Member& team, std::int64_t batch, std::int64_t row, std::int32_t h) const {
    const Out* const out = static_cast<const Out*>(in.out) + batch * in.out_strides[0] + row * in.out_strides[1] + h * in.out_strides[2];
    const Out* const grad_out =
        static_cast<const Out*>(in.grad_out) + batch * in.grad_out_strides[0] + row * in.grad_out_strides[1] + h * in.grad_out_strides[2];
    const auto sum_of = [&](const auto& read) {
      double sum = 0;
      Kokkos::parallel_reduce(
          Kokkos::ThreadVectorRange(team, (p.value_dim + width - 1) / width),
          [&](const std::int32_t n, double& part) {
            const Some<Out> one = read(out, n * width), other = read(grad_out, n * width);
            for (int i = 0; i < width; ++i)
              part += static_cast<double>(static_cast<float>(one.element[i])) * static_cast<float>(other.element[i]);
          },
          sum);
      return sum;
    };
    if (is_aligned) return sum_of([](const Out* from, std::int32_t d) { return *reinterpret_cast<const Some<Out>*>(from + d); });
    return sum_of([this](const Out* from, std::int32_t d) {
      Some<Out> some;
      for (int i = 0; i < width; ++i) some.element[i] = d + i < p.value_dim ? from[d + i] : Out{};
      return some;
    });
  }

  KOKKOS_INLINE_FUNCTION void store(std::int64_t batch, std::int64_t row, std::int32_t h, float lse, float delta) const {
    const std::int64_t at    = (batch * p.heads + h) * p.queries + row;
    const bool         some  = lse != -Kokkos::Experimental::infinity_v<float>;
    float              whole = lse, share = some ? 1.0f : 0.0f;
    if (p.sink != nullptr && some) {
      const float above = p.sink[h] - lse;
      if (to.share != nullptr)
        share = 1.0f / (1.0f + Kokkos::exp(above));
      else
        whole = Kokkos::fmax(lse, p.sink[h]) + Kokkos::log1p(Kokkos::exp(-Kokkos::fabs(above)));
    }
    const float grad_lse = in.grad_lse == nullptr ? 0.0f : in.grad_lse[batch * in.grad_lse_strides[0] + h * in.grad_lse_strides[1] + row];
    to.lse[at]           = some ? whole : Kokkos::Experimental::infinity_v<float>;
    to.shift[at]         = some ? share * delta - grad_lse : 0.0f;
    if (to.share != nullptr) to.share[at] = share;
    if (to.sink != nullptr) to.sink[at] = some ? -delta / (1.0f + Kokkos::exp(lse - p.sink[h])) : 0.0f;
    if (query_sums != nullptr)
      for (std::int64_t c = 0; c < sum_width; ++c) query_sums[at * sum_width + c] = 0.0f;
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

/// Query rows of some heads of one key head against a tile of keys.
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
  KOKKOS_INLINE_FUNCTION std::int64_t head_of(std::int64_t r) const { return r < s.rows ? 0 : r / s.rows; }  // divisions are slow
  KOKKOS_INLINE_FUNCTION std::int64_t position(std::int64_t r) const { return s.first_query + r - head_of(r) * s.rows + p.alignment(s); }
  KOKKOS_INLINE_FUNCTION QueryPlace   place(std::int64_t r) const {
      const std::int64_t head = head_of(r), q = r - head * s.rows;
      return {s.batch, s.sequence, s.row + q, s.first_query + q, position(r), static_cast<std::int32_t>(first_head + head)};
  }
  KOKKOS_INLINE_FUNCTION KeyInterval keys() const { return p.window_of(position(0), position(s.rows - 1), s.keys); }

  /// The keys, counted from a tile's first, that any row of a register block sees.
  KOKKOS_INLINE_FUNCTION KeyInterval seen(std::int64_t block, std::int64_t tile, std::int64_t count) const {
    const std::int64_t first = block * Product::rows, last = (first + Product::rows < rows ? first + Product::rows : rows) - 1;
    if ((p.left < 0 && p.right < 0) || head_of(first) != head_of(last)) return {0, count};
    const KeyInterval window = p.window_of(position(first), position(last), s.keys);
    return {clip(window.begin - tile, 0, count), clip(window.end - tile, 0, count)};
  }
  /// The rows, of one head, that see any of a register block of keys.
  KOKKOS_INLINE_FUNCTION KeyInterval seen_by(std::int64_t block, std::int64_t tile, std::int64_t count) const {
    if (p.left < 0 && p.right < 0) return {0, rows};
    const std::int64_t first = block * Product::rows, last = (first + Product::rows < count ? first + Product::rows : count) - 1;
    const KeyInterval  queries = p.queries_of(tile + first, tile + last, s);
    return {clip(queries.begin - s.first_query, 0, rows), clip(queries.end - s.first_query, 0, rows)};
  }

  KOKKOS_FUNCTION void load_queries() const {
    const std::int64_t whole = row_blocks() * Product::rows;
    Pack::straight(team, query_rows<Element>(p, s.batch, s.row, first_head, s.rows), rows, whole, p.head_dim, plan.rows, slot.query);
    with_grad_out<Element>(p, in, statistics, s.batch, s.row, first_head, s.rows,
                           [&](const auto& from) { Pack::straight(team, from, rows, whole, p.value_dim, plan.rows, slot.grad_out); });
  }

  /// Keys tile ... tile + count - 1.
  KOKKOS_FUNCTION void load_keys(std::int64_t tile, std::int64_t count, bool of_query) const {
    const std::int64_t key_row = s.first_key + tile;
    auto               keys    = key_rows<Element>(p, p.key, p.key_strides, s.batch, key_row, key_head, count);
    Pack::transposed(team, keys, count, p.head_dim, slot.key_columns);
    Pack::transposed(team, key_rows<Element>(p, p.value, p.value_strides, s.batch, key_row, key_head, count), count, p.value_dim,
                     slot.value_columns);
    keys.factor = p.scale;
    if (of_query) Pack::straight(team, keys, count, count, p.head_dim, plan.tile, slot.key);
  }

  /// Asks for what load_queries of the rows behind these will read.
  KOKKOS_INLINE_FUNCTION auto coming_queries(std::int64_t count) const {
    const auto queries = ComingRows::of(query_rows<Element>(p, s.batch, s.row + s.rows, first_head, 1), count, p.head_dim);
    ComingRows grad_out{};
    with_grad_out<Element>(p, in, statistics, s.batch, s.row + s.rows, first_head, 1,
                           [&](const auto& from) { grad_out = ComingRows::of(from, count, p.value_dim); });
    return [=](std::int64_t part, std::int64_t parts) {
      queries.prefetch_share(part, parts);
      grad_out.prefetch_share(part, parts);
    };
  }

  /// Of what was loaded: leaves P in slot.weights and the gradients of scores in slot.scores: dX, of what the biases were added to;
  /// or, to_products, what is left of it on the other side of the soft cap.  on_row(r, place, begin, end) sees dX; on_tile() sees all of
  /// it.
  template <class Ahead, class OnRow, class OnTile>
  KOKKOS_FUNCTION void differentiate(std::int64_t tile, std::int64_t count, bool to_products, const Ahead& ahead, const OnRow& on_row,
                                     const OnTile& on_tile) const {
    slot.multiply(
        team, plan.rows, row_blocks(), count, p, [&](std::int64_t block) { return seen(block, tile, count); }, ahead);
    team.team_barrier();
    const PairScores score{p, buckets};
    const auto       interval = [&](std::int64_t r) {
      const KeyInterval window = r < rows ? p.window(position(r), s.keys) : KeyInterval{0, 0};
      return KeyInterval{clip(window.begin - tile, 0, count), clip(window.end - tile, 0, count)};
    };
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, row_blocks() * Product::rows), [&](const std::int64_t r) {
      const QueryPlace i      = place(r < rows ? r : 0);
      const auto [begin, end] = interval(r);
      const std::int64_t at   = (s.batch * p.heads + i.head) * p.queries + i.row;
      slot.differentiate(r, begin, end, seen(r / Product::rows, tile, count), score, i, s.first_key, tile, statistics.lse[at],
                         statistics.shift[at]);
      if (r < rows) on_row(r, i, begin, end);
    });
    on_tile(interval);
    if (to_products && p.softcap > 0.0f) {
      team.team_barrier();
      Kokkos::parallel_for(Kokkos::TeamThreadRange(team, rows), [&](const std::int64_t r) {
        const auto [begin, end] = interval(r);
        slot.apply_slopes(r, begin, end);
      });
    }
    team.team_barrier();
  }
};

/// Gradients of a block of keys and values: all queries of all heads that look at them stream past, and on a host get what these keys
/// add to theirs.  Besides, what the block adds to the gradients of ALiBi slopes and of the bucket table.
template <class Exec, class Element>
struct KeyGradientFunctor {
  static constexpr bool host = on_host<Exec>;
  using Member               = typename WorkerPolicy<Exec>::member_type;
  using Operands             = GradientOperands<host>;
  using Product              = typename Operands::Product;

  KOKKOS_FUNCTION static constexpr GradientUse use(std::int64_t tiles) { return {.of_query = host, .of_key = true, .tiles = tiles}; }

  AttentionProblem p;
  AttentionPlan    plan;   // `rows` queries at a time
  std::int64_t     tiles;  // of keys of an item: they share the packing of the queries
  BucketTable      buckets;
  GradientInputs   in;
  RowStatistics    statistics;
  Operands         slots;
  GradientOutput   grad_key, grad_value;
  float*           query_sums;   // on a host: [B, Hq, Sq][head_dim blocks * columns]
  ItemQueue        queue;        // on a host
  std::int64_t*    progress;     // on a host: [B, Hkv, blocks]
  float*           bucket_rows;  // [workers][rows][buckets], null: not wanted
  float*           bucket_sums;  // [B, blocks, Hq, buckets], null: not wanted
  float*           alibi_keys;   // [B, Hq, Sk], null: not wanted

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const Operands     slot  = slots.of_worker(team.league_rank(), plan.rows, plan.tile, p, use(tiles));
    const std::int64_t items = p.batch * p.key_heads * plan.blocks;
    // Causal: the first keys are seen by the most queries, they go first.
    if constexpr (host)
      for (std::int64_t item = queue.take(); item < items; item = queue.take()) own(team, slot, item);
    else
      for (std::int64_t item = team.league_rank(); item < items; item += team.league_size()) own(team, slot, item);
  }

 private:
  KOKKOS_FUNCTION void own(const Member& team, const Operands& slot, std::int64_t item) const {
    const std::int64_t block = item / (p.batch * p.key_heads), pair = item % (p.batch * p.key_heads);
    const std::int64_t batch = pair / p.key_heads, begin = block * tiles * plan.tile,
                       end       = begin + tiles * plan.tile < p.keys ? begin + tiles * plan.tile : p.keys;
    const auto          key_head = static_cast<std::int32_t>(pair % p.key_heads);
    const PackedOffsets by_key{p.packed.cu_seqlens_k, p.packed.cu_seqlens_q, p.packed.sequences};
    std::int64_t* const here = host ? progress + pair * plan.blocks + block : nullptr;
    const Turn          turn{host && block > 0 ? here - 1 : nullptr, here};
    float* const        sums =
        bucket_sums == nullptr ? nullptr : bucket_sums + ((batch * plan.blocks + block) * p.heads + key_head * plan.group) * p.buckets;
    if (sums != nullptr) clear<host>(team, sums, plan.group * p.buckets);
    for (std::int64_t row = begin; row < end;) {
      const Segment keys = by_key.segment(batch, row, end, p.keys, p.queries);
      gather(team, slot, keys, key_head, turn, sums);
      row += keys.rows;
    }
    if constexpr (host) {
      turn.await(plan.group * p.queries);
      turn.leave(plan.group * p.queries);
    }
  }

  /// Keys of one sequence; the segment's "queries" are keys and its "keys" are queries.
  KOKKOS_FUNCTION void gather(const Member& team, const Operands& slot, const Segment& keys, std::int32_t key_head, const Turn& turn,
                              float* sums) const {
    const std::int64_t key_width   = Product::column_blocks(p.head_dim) * Product::columns,
                       value_width = Product::column_blocks(p.value_dim) * Product::columns;
    const std::int64_t first = keys.first_query, count = keys.rows;
    const auto         queries = [&](const Operands& of_tile, std::int64_t begin, std::int64_t n, std::int64_t g) {
      const Segment s{keys.batch, keys.sequence, keys.first_key + begin, n, begin, keys.keys, keys.row - first, keys.queries};
      return QueryRows<Exec, Element>{
          p, plan, buckets, in, statistics, of_tile, team, s, static_cast<std::int32_t>(key_head * plan.group + g), key_head, n};
    };
    // Calls function(slot of a tile, its first key, their count).
    const auto for_each_tile = [&](const auto& function) {
      for (std::int64_t t = 0; t * plan.tile < count; ++t) {
        const std::int64_t left = count - t * plan.tile;
        function(slot.of_tile(t, plan.tile, p), first + t * plan.tile, left < plan.tile ? left : plan.tile);
      }
    };
    for_each_tile([&](const Operands& of_tile, std::int64_t key, std::int64_t n) {
      queries(of_tile, 0, 1, 0).load_keys(key, n, host);
      clear<host>(team, of_tile.key_sum, plan.tile * key_width);
      clear<host>(team, of_tile.value_sum, plan.tile * value_width);
    });
    if (alibi_keys != nullptr)
      for_each_element<host>(team, plan.group, count, [&](std::int64_t g, std::int64_t c) {
        alibi_keys[(keys.batch * p.heads + key_head * plan.group + g) * p.keys + keys.row + c] = 0.0f;
      });
    const auto [begin, end] = p.queries_of(first, first + count - 1, queries(slot, 0, keys.keys, 0).s);
    for (std::int64_t g = 0; g < plan.group; ++g) {
      float* const buckets_of_rows = sums == nullptr ? nullptr : bucket_rows + team.league_rank() * plan.rows * p.buckets;
      if (sums != nullptr) clear<host>(team, buckets_of_rows, plan.rows * p.buckets);
      for (std::int64_t row = begin; row < end; row += plan.rows) {
        const std::int64_t n = end - row < plan.rows ? end - row : plan.rows, left = end - row - n;
        queries(slot, row, n, g).load_queries();
        team.team_barrier();
        [[maybe_unused]] const std::int64_t station =
            clip(keys.first_key * plan.group + g * keys.keys + row + n, 0, plan.group * p.queries);
        for_each_tile([&](const Operands& of_tile, std::int64_t key, std::int64_t in_tile) {
          const auto rows = queries(of_tile, row, n, g);
          stream(rows, key == first ? (left < plan.rows ? left : plan.rows) : 0, key, in_tile, buckets_of_rows);
          if constexpr (host) {
            turn.await(station);
            of_tile.accumulate_queries(team, n, plan.tile, p,
                                       query_sums + ((keys.batch * p.heads + rows.first_head) * p.queries + rows.s.row) * key_width,
                                       [&](std::int64_t block) { return rows.seen(block, key, in_tile); });
          }
        });
        if constexpr (host) turn.leave(station);
      }
      if (sums != nullptr) {
        team.team_barrier();
        for_each_element<host>(team, 1, p.buckets, [&](std::int64_t, std::int64_t b) {
          for (std::int64_t r = 0; r < plan.rows; ++r) sums[g * p.buckets + b] += buckets_of_rows[r * p.buckets + b];
        });
        team.team_barrier();
      }
    }
    const auto store = [&](const GradientOutput& to, const float* sum, std::int64_t width, std::int64_t padded) {
      for_each_element<host>(team, count, width, [&](std::int64_t r, std::int64_t c) {
        store_as<Element>(to.is_float, to.data, keys.batch * to.strides[0] + (keys.row + r) * to.strides[1] + key_head * to.strides[2] + c,
                          sum[r * padded + c]);
      });
    };
    team.team_barrier();
    store(grad_key, slot.key_sum, p.head_dim, key_width);
    store(grad_value, slot.value_sum, p.value_dim, value_width);
    team.team_barrier();
  }

  /// Some queries, which are followed by `next` more, against the keys first ... first + count - 1.
  KOKKOS_FUNCTION void stream(const QueryRows<Exec, Element>& rows, std::int64_t next, std::int64_t first, std::int64_t count,
                              float* buckets_of_rows) const {
    const Member&   team = rows.team;
    const Operands& slot = rows.slot;
    rows.differentiate(
        first, count, true, rows.coming_queries(next),
        [&](std::int64_t r, const QueryPlace& i, std::int64_t begin, std::int64_t end) {
          if (buckets_of_rows != nullptr)
            for (std::int64_t c = begin; c < end; ++c)
              buckets_of_rows[r * p.buckets + PairScores{p, buckets}.bucket(i.position, first + c)] +=
                  slot.scores[r * Operands::row_stride + c];
        },
        [&](const auto& interval) {
          if (alibi_keys == nullptr) return;
          float* const to  = alibi_keys + (rows.s.batch * p.heads + rows.first_head) * p.keys + rows.s.first_key + first;
          const auto   add = [&](std::int64_t r, std::int64_t begin, std::int64_t end) {
            for (std::int64_t c = begin; c < end; ++c) {
              const std::int64_t distance = first + c - rows.position(r);
              to[c] -= slot.scores[r * Operands::row_stride + c] * static_cast<float>(distance < 0 ? -distance : distance);
            }
          };
          team.team_barrier();
          if constexpr (host) {
            for (std::int64_t r = 0; r < rows.rows; ++r) add(r, interval(r).begin, interval(r).end);
          } else {
            Kokkos::parallel_for(Kokkos::TeamThreadRange(team, count), [&](const std::int64_t c) {
              for (std::int64_t r = 0; r < rows.rows; ++r) {
                const auto [begin, end] = interval(r);
                if (begin <= c && c < end) add(r, c, c + 1);
              }
            });
          }
        });
    const auto seen_by = [&](std::int64_t block) { return rows.seen_by(block, first, count); };
    slot.accumulate_keys(team, plan.rows, count, slot.weights, slot.grad_out, p.value_dim, slot.value_sum, seen_by);
    slot.accumulate_keys(team, plan.rows, count, slot.scores, slot.query, p.head_dim, slot.key_sum, seen_by);
    team.team_barrier();
  }
};

/// Gradients of queries as the sweep summed them go to their tensor.
template <class Exec, class Element>
struct StoreQueryGradientFunctor {
  using Member = typename RowPolicy<Exec>::member_type;

  AttentionProblem p;
  const float*     sums;  // [B, Hq, Sq][sum_width]
  std::int64_t     sum_width;
  GradientOutput   to;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const std::int64_t batch = team.league_rank() / p.queries, row = team.league_rank() % p.queries;
    for_each_element<on_host<Exec>>(team, p.heads, p.head_dim, [&](std::int64_t h, std::int64_t c) {
      store_as<Element>(to.is_float, to.data, batch * to.strides[0] + row * to.strides[1] + h * to.strides[2] + c,
                        sums[((batch * p.heads + h) * p.queries + row) * sum_width + c]);
    });
  }
};

/// On a device: the gradient of a block of queries.
template <class Exec, class Element>
struct QueryGradientFunctor {
  static constexpr bool host = on_host<Exec>;
  using Member               = typename WorkerPolicy<Exec>::member_type;
  using Operands             = GradientOperands<host>;
  using Product              = typename Operands::Product;

  KOKKOS_FUNCTION static constexpr GradientUse use() { return {.of_query = true, .of_key = false}; }

  AttentionProblem p;
  AttentionPlan    plan;
  BucketTable      buckets;
  GradientInputs   in;
  RowStatistics    statistics;
  Operands         slots;
  GradientOutput   grad_query;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const Operands     slot  = slots.of_worker(team.league_rank(), plan.rows, plan.tile, p, use());
    const std::int64_t items = p.batch * p.key_heads * plan.blocks;
    for (std::int64_t item = team.league_rank(); item < items; item += team.league_size()) {
      const std::int64_t block = plan.blocks - 1 - item / (p.batch * p.key_heads), pair = item % (p.batch * p.key_heads);
      const std::int64_t batch = pair / p.key_heads, key_head = pair % p.key_heads;
      const std::int64_t begin = block * plan.queries, end = begin + plan.queries < p.queries ? begin + plan.queries : p.queries;
      for (std::int64_t row = begin; row < end;) {
        const Segment segment = p.packed.segment(batch, row, end, p.queries, p.keys);
        descend(QueryRows<Exec, Element>{p, plan, buckets, in, statistics, slot, team, segment,
                                         static_cast<std::int32_t>(key_head * plan.group), static_cast<std::int32_t>(key_head),
                                         plan.group * segment.rows});
        row += segment.rows;
      }
    }
  }

 private:
  KOKKOS_FUNCTION void descend(const QueryRows<Exec, Element>& rows) const {
    const Member&      team  = rows.team;
    const Operands&    slot  = rows.slot;
    const std::int64_t width = Product::column_blocks(p.head_dim) * Product::columns;
    rows.load_queries();
    clear<host>(team, slot.query_sum, rows.rows * width);
    const auto [begin, end] = rows.keys();
    for (std::int64_t tile = begin; tile < end; tile += plan.tile) {
      const std::int64_t count = end - tile < plan.tile ? end - tile : plan.tile;
      rows.load_keys(tile, count, true);
      team.team_barrier();
      rows.differentiate(
          tile, count, true, [](std::int64_t, std::int64_t) {}, [](std::int64_t, const QueryPlace&, std::int64_t, std::int64_t) {},
          [](const auto&) {});
      slot.accumulate_queries(team, rows.rows, plan.tile, p, slot.query_sum,
                              [&](std::int64_t block) { return rows.seen(block, tile, count); });
      team.team_barrier();
    }
    team.team_barrier();
    for_each_element<host>(team, rows.rows, p.head_dim, [&](std::int64_t r, std::int64_t c) {
      const QueryPlace i = rows.place(r);
      store_as<Element>(grad_query.is_float, grad_query.data,
                        i.batch * grad_query.strides[0] + i.row * grad_query.strides[1] + i.head * grad_query.strides[2] + c,
                        slot.query_sum[r * width + c]);
    });
    team.team_barrier();
  }
};

/// The gradient of the additive mask: an item owns a tile of it and sums over what the mask was broadcast along, in order.
template <class Exec, class Element>
struct MaskGradientFunctor {
  static constexpr bool host = on_host<Exec>;
  using Member               = typename WorkerPolicy<Exec>::member_type;
  using Operands             = GradientOperands<host>;
  using Product              = typename Operands::Product;

  KOKKOS_FUNCTION static constexpr GradientUse use() { return {.of_query = false, .of_key = false}; }

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
    const Operands     slot   = slots.of_worker(team.league_rank(), plan.rows, plan.tile, p, use());
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
        rows.load_queries();
        rows.load_keys(tile, count, false);
        team.team_barrier();
        rows.differentiate(
            tile, count, false, [](std::int64_t, std::int64_t) {}, [](std::int64_t, const QueryPlace&, std::int64_t, std::int64_t) {},
            [](const auto&) {});
        const bool one = extents[2] == 1;
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, count), [&](const std::int64_t c) {
          for (std::int64_t r = 0; r < rows.rows; ++r) {
            const KeyInterval seen = rows.seen(r / Operands::Product::rows, tile, count);
            if (seen.begin <= c && c < seen.end)
              sum[(one ? 0 : row - begin + r) * plan.tile + c] += slot.scores[r * Operands::row_stride + c];
          }
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

/// gradient[b, h] or [h] from a number a row of queries, or of keys: terms [B, Hq, rows], summed over the rows, and over what the gradient
/// is not indexed by.
struct SumOverRows {
  const float*  terms;
  float*        gradient;
  std::int64_t  batch, heads, rows, other_rows;
  PackedOffsets packed;             // with these rows' offsets first
  std::int64_t  per_batch, stride;  // outputs for each batch entry (or sequence), 1 or B; its stride

  KOKKOS_FUNCTION float sum(std::int64_t i) const {
    const std::int64_t h = i % heads, part = i / heads;
    double             total = 0;  // terms of either sign
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t row = 0; row < rows;) {
        const Segment s = packed.segment(b, row, rows, rows, other_rows);
        if (per_batch == 1 || s.sequence == part)
          for (std::int64_t r = 0; r < s.rows; ++r) total += terms[(b * heads + h) * rows + row + r];
        row += s.rows;
      }
    return static_cast<float>(total);
  }
  KOKKOS_FUNCTION void store(std::int64_t i, float value) const { gradient[i / heads * stride + i % heads] = value; }
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

/// gradient[b|1, h|1, 1, j] of a mask that is the same for all queries, from a number a key row and head: terms [B, Hq, Sk].  A column is a
/// key's number in its sequence.
struct SumOfMask {
  const float*  terms;
  float*        gradient;
  std::int64_t  batch, heads, keys;
  PackedOffsets packed;
  std::int64_t  batches, of_heads, columns, strides[2];  // of the gradient

  KOKKOS_FUNCTION float sum(std::int64_t i) const {
    const std::int64_t j = i % columns, h = i / columns % of_heads, b = i / columns / of_heads;
    double             total = 0;  // terms of either sign
    for (std::int64_t of_batch = batches == 1 ? 0 : b; of_batch < (batches == 1 ? batch : b + 1); ++of_batch)
      for (std::int64_t head = of_heads == 1 ? 0 : h; head < (of_heads == 1 ? heads : h + 1); ++head)
        total += of_key(terms + (of_batch * heads + head) * keys, j);
    return static_cast<float>(total);
  }
  KOKKOS_FUNCTION void store(std::int64_t i, float value) const {
    gradient[i / columns / of_heads * strides[0] + i / columns % of_heads * strides[1] + i % columns] = value;
  }

 private:
  KOKKOS_FUNCTION double of_key(const float* of_rows, std::int64_t j) const {
    if (packed.cu_seqlens_k == nullptr) return j < keys ? of_rows[j] : 0;
    double total = 0;
    for (std::int64_t s = 0; s < packed.sequences; ++s) {
      const std::int64_t first = clip(packed.cu_seqlens_k[s], 0, keys), last = clip(packed.cu_seqlens_k[s + 1], first, keys);
      if (first + j < last) total += of_rows[first + j];
    }
    return total;
  }
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
  using KeyGradient          = KeyGradientFunctor<Exec, Element>;
  using QueryGradient        = QueryGradientFunctor<Exec, Element>;
  using MaskGradient         = MaskGradientFunctor<Exec, Element>;

  AttentionPlan                 by_key, by_query, by_mask;
  std::int64_t                  tiles;
  AttentionPreparation<Element> preparation;
  RowStatistics                 statistics;
  Operands                      key_slots, query_slots, mask_slots;
  std::int64_t                  sum_width  = 0;
  float*                        query_sums = nullptr;
  std::int64_t*                 progress   = nullptr;  // of every item, then the queue's counter
  float *                       alibi_keys = nullptr, *bucket_rows = nullptr, *bucket_sums = nullptr, *mask_sums = nullptr;
  float *                       turned_query = nullptr, *turned_key = nullptr;

  std::optional<SM90::AttentionBackwardPlan> hopper;  // in place of the kernels of keys, queries and the mask
  SM90::BiasGradientPlan                     hopper_biases{};

  BackwardCall(const Exec& exec, const AttentionProblem& problem, const RotaryProblem& rotary, const AttentionBackwardArguments& arguments,
               Level level, WorkspaceLayout& layout)
      : preparation(problem, rotary, layout) {
    const AttentionGradients& wanted = *arguments.gradients;
    const AttentionProblem    p      = behind_statistics(problem, wanted);
    const std::int64_t        rows   = p.batch * p.heads * p.queries;
    statistics                       = {.lse   = layout.take<float>(rows),
                                        .shift = layout.take<float>(rows),
                                        .share = p.sink != nullptr ? layout.take<float>(rows) : nullptr,
                                        .sink  = wanted.sink.given() ? layout.take<float>(rows) : nullptr};
    if (rotary.dims > 0) {
      if constexpr (!host) turned_query = layout.take<float>(rows * p.head_dim);
      turned_key = layout.take<float>(p.batch * p.keys * p.key_heads * p.head_dim);
    }
    if constexpr (has_sm90<Exec>)
      if (level == Level::hopper) {
        hopper        = SM90::plan_attention_backward(exec, p, layout);
        hopper_biases = SM90::plan_bias_gradients(exec, p, wanted_biases(arguments), layout);
        return;
      }
    std::tie(by_key, tiles) = plan_keys(exec, p, wanted.relative_bias.given());
    key_slots               = Operands::take(layout, by_key.workers, by_key.rows, by_key.tile, p, KeyGradient::use(tiles));
    if constexpr (host) {
      sum_width  = Product::column_blocks(p.head_dim) * Product::columns;
      query_sums = layout.take<float>(rows * sum_width);
      progress   = layout.take<std::int64_t>(p.batch * p.key_heads * by_key.blocks + 1);
    } else {
      by_query    = plan_rows(exec, p, p.heads / p.key_heads, p.key_heads);
      query_slots = Operands::take(layout, by_query.workers, by_query.rows, by_query.tile, p, QueryGradient::use());
    }
    if (wanted.alibi_slopes.given()) alibi_keys = layout.take<float>(p.batch * p.heads * p.keys);
    if (wanted.relative_bias.given()) {
      bucket_rows = layout.take<float>(by_key.workers * by_key.rows * p.buckets);
      bucket_sums = layout.take<float>(p.batch * by_key.blocks * p.heads * p.buckets);
    }
    if (wanted.additive_mask.given()) {
      by_mask    = plan_rows(exec, p, 1, p.heads);
      mask_slots = Operands::take(layout, by_mask.workers, by_mask.rows, by_mask.tile, p, MaskGradient::use());
      mask_sums  = layout.take<float>(by_mask.workers * by_mask.rows * by_mask.tile);
    }
  }

  /// What the other kernels compute: without a sink, where the statistics have it.
  static AttentionProblem behind_statistics(AttentionProblem p, const AttentionGradients& wanted) {
    if (!wanted.lse.given()) p.sink = nullptr;
    return p;
  }

  /// Items of tiles of keys, enough for all workers.  How keys are cut does not show in the results, since every sum goes through keys and
  /// queries in their order; but where blocks have sums of their own, a host cuts by the shape alone.
  static std::pair<AttentionPlan, std::int64_t> plan_keys(const Exec& exec, const AttentionProblem& p, bool sums_by_block) {
    AttentionPlan plan{};
    plan.workers              = concurrent_workers(exec);
    plan.group                = p.heads / p.key_heads;
    const bool         narrow = std::max(p.head_dim, p.value_dim) <= 128;
    const std::int64_t items  = host && sums_by_block ? 64 : 2 * plan.workers;
    const std::int64_t share  = std::min((p.batch * p.key_heads * p.keys + items - 1) / items, p.keys);
    const std::int64_t most   = host ? (narrow ? 4 : 2) : 1;
    const std::int64_t tiles  = std::clamp<std::int64_t>((share + Operands::most_keys - 1) / Operands::most_keys, 1, most);
    const std::int64_t keys   = std::clamp<std::int64_t>((share + tiles - 1) / tiles, host ? 32 : 8, Operands::most_keys);
    plan.tile                 = std::min((keys + Operands::step - 1) / Operands::step * Operands::step, Operands::most_keys);
    plan.queries              = std::clamp<std::int64_t>(p.queries, 1, host && narrow ? 128 : 64);
    plan.rows                 = Product::row_blocks(plan.queries) * Product::rows;
    plan.blocks               = (p.keys + tiles * plan.tile - 1) / (tiles * plan.tile);
    return {plan, tiles};
  }

  /// Blocks of `group` heads x some queries, for `pairs` independent heads of each batch entry.
  static AttentionPlan plan_rows(const Exec& exec, const AttentionProblem& p, std::int64_t group, std::int64_t pairs) {
    AttentionPlan plan{};
    plan.workers              = concurrent_workers(exec);
    plan.group                = group;
    const std::int64_t wanted = host ? 128 : 64, share = (p.batch * pairs * p.queries + 2 * plan.workers - 1) / (2 * plan.workers);
    plan.queries = std::clamp<std::int64_t>(std::min(wanted / group, share), 1, std::max<std::int64_t>(p.queries, 1));
    plan.rows    = Product::row_blocks(group * plan.queries) * Product::rows;
    plan.blocks  = (p.queries + plan.queries - 1) / plan.queries;
    plan.tile    = Operands::most_keys;
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
      Kokkos::parallel_for("Tributary::attention_backward::row_statistics", RowStatisticsFunctor<Exec, Element>::policy(exec, p),
                           RowStatisticsFunctor<Exec, Element>{p, in, statistics, query_sums, sum_width});
    p = behind_statistics(p, *a.gradients);

    const std::int64_t d = p.head_dim, k = p.key_heads * d;
    const std::int64_t turned_key_strides[3] = {p.keys * k, k, d};
    const bool         turned = rotary.dims > 0, is_float = std::is_same_v<Element, float>;
    const auto         given = [&](const Tensor<void, 4>& t) {
      return GradientOutput{t.data, is_float, {t.strides[0], t.strides[1], t.strides[2]}};
    };
    const GradientOutput key   = turned ? GradientOutput{turned_key, true, {p.keys * k, k, d}} : given(a.grad_key),
                         value = given(a.grad_value);
    if constexpr (host) {
      const std::int64_t items = p.batch * p.key_heads * by_key.blocks;
      Kokkos::parallel_for("Tributary::attention_backward::start", ElementPolicy<Exec>(exec, 0, items + 1), ClearProgress{progress});
      run_keys(exec, p, buckets, in, key, value);
      if (turned)
        turn_back_queries(exec, p, rotary, a, query_sums, {p.heads * p.queries * sum_width, sum_width, p.queries * sum_width});
      else if (p.batch * p.queries > 0)
        Kokkos::parallel_for("Tributary::attention_backward::store_queries", rows_of(exec, p),
                             StoreQueryGradientFunctor<Exec, Element>{p, query_sums, sum_width, given(a.grad_query)});
    } else {
      const std::int64_t   q     = p.heads * d;
      const GradientOutput query = turned ? GradientOutput{turned_query, true, {p.queries * q, q, d}} : given(a.grad_query);
      if (!run_hopper(exec, p, buckets, a, query, key, value)) {
        run_keys(exec, p, buckets, in, key, value);
        launch("Tributary::attention_backward::queries", exec, by_query, p.batch * p.key_heads * by_query.blocks,
               QueryGradient{p, by_query, buckets, in, statistics, query_slots, query});
      }
      if (turned) turn_back_queries(exec, p, rotary, a, turned_query, {p.queries * q, q, d});
    }
    if (turned)
      rotate_rows("Tributary::attention_backward::rotate_keys", exec, p, rotary, false, true, turned_key, turned_key_strides,
                  static_cast<Element*>(a.grad_key.data), {a.grad_key.strides[0], a.grad_key.strides[1], a.grad_key.strides[2]});
    further_gradients(exec, p, buckets, in, a);
  }

  std::string text() const {
    if constexpr (has_sm90<Exec>)
      if (hopper) return "Hopper level, " + std::to_string(hopper->teams) + " teams";
    return "portable level, blocks of " + std::to_string(tiles * by_key.tile) + " keys";
  }

 private:
  struct ClearProgress {
    std::int64_t*        progress;
    KOKKOS_FUNCTION void operator()(const std::int64_t i) const { progress[i] = 0; }
  };

  void run_keys(const Exec& exec, const AttentionProblem& p, const BucketTable& buckets, const GradientInputs& in,
                const GradientOutput& key, const GradientOutput& value) const {
    const std::int64_t items = p.batch * p.key_heads * by_key.blocks;
    launch("Tributary::attention_backward::keys", exec, by_key, items,
           KeyGradient{p,
                       by_key,
                       tiles,
                       buckets,
                       in,
                       statistics,
                       key_slots,
                       key,
                       value,
                       query_sums,
                       {progress + items},
                       progress,
                       bucket_rows,
                       bucket_sums,
                       alibi_keys});
  }

  static SM90::WantedBiasGradients wanted_biases(const AttentionBackwardArguments& a) {
    return {a.gradients->additive_mask.given(), a.gradients->alibi_slopes.given(), a.gradients->relative_bias.given(),
            a.grad_additive_mask};
  }

  /// Whether the Hopper level takes the call.
  bool run_hopper([[maybe_unused]] const Exec& exec, [[maybe_unused]] const AttentionProblem& p,
                  [[maybe_unused]] const BucketTable& buckets, [[maybe_unused]] const AttentionBackwardArguments& a,
                  [[maybe_unused]] const GradientOutput& query, [[maybe_unused]] const GradientOutput& key,
                  [[maybe_unused]] const GradientOutput& value) const {
    if constexpr (has_sm90<Exec>)
      if (hopper) {
        const std::int64_t grad_out_strides[3] = {a.grad_out.strides[0], a.grad_out.strides[1], a.grad_out.strides[2]};
        SM90::attention_backward(exec, p, buckets, statistics, a.grad_out.data, grad_out_strides, *hopper, query, key, value);
        if (const auto wanted = wanted_biases(a); wanted.any())
          SM90::bias_gradients(exec, p, buckets, statistics, a.grad_out.data, grad_out_strides, *hopper, wanted, hopper_biases);
        return true;
      }
    return false;
  }

  static RowPolicy<Exec> rows_of(const Exec& exec, const AttentionProblem& p) {
    return RowPolicy<Exec>(exec, static_cast<int>(p.batch * p.queries), row_team_size<Exec>);
  }

  static void turn_back_queries(const Exec& exec, const AttentionProblem& p, const RotaryProblem& rotary,
                                const AttentionBackwardArguments& a, const float* turned, const std::int64_t (&strides)[3]) {
    rotate_rows("Tributary::attention_backward::rotate_queries", exec, p, rotary, true, true, turned, strides,
                static_cast<Element*>(a.grad_query.data), {a.grad_query.strides[0], a.grad_query.strides[1], a.grad_query.strides[2]});
  }

  void further_gradients(const Exec& exec, const AttentionProblem& p, const BucketTable& buckets, const GradientInputs& in,
                         const AttentionBackwardArguments& a) const {
    if (a.gradients->sink.given())
      sum_terms("Tributary::attention_backward::sink", exec, p.heads,
                SumOverRows{statistics.sink, a.grad_sink.data, p.batch, p.heads, p.queries, p.keys, p.packed, 1, 0});
    if (a.gradients->alibi_slopes.given()) {
      const std::int64_t parts = a.grad_alibi_slopes.extents[0];
      sum_terms("Tributary::attention_backward::alibi_slopes", exec, parts * p.heads,
                SumOverRows{hopper ? hopper_biases.alibi_keys : alibi_keys,
                            a.grad_alibi_slopes.data,
                            p.batch,
                            p.heads,
                            p.keys,
                            p.queries,
                            {p.packed.cu_seqlens_k, p.packed.cu_seqlens_q, p.packed.sequences},
                            parts,
                            a.grad_alibi_slopes.strides[0]});
    }
    if (a.gradients->relative_bias.given())
      sum_terms(
          "Tributary::attention_backward::relative_bias", exec, std::int64_t{p.buckets} * p.heads,
          SumOverBlocks{hopper ? hopper_biases.bucket_sums : bucket_sums, a.grad_relative_bias.data,
                        p.batch * (hopper ? hopper_biases.blocks : by_key.blocks), p.heads, p.buckets, a.grad_relative_bias.strides[0]});
    const auto& g = a.grad_additive_mask;
    if (a.gradients->additive_mask.given() && hopper) {
      if (hopper_biases.mask_keys != nullptr)
        sum_terms("Tributary::attention_backward::additive_mask", exec, g.extents[0] * g.extents[1] * g.extents[3],
                  SumOfMask{hopper_biases.mask_keys,
                            g.data,
                            p.batch,
                            p.heads,
                            p.keys,
                            p.packed,
                            g.extents[0],
                            g.extents[1],
                            g.extents[3],
                            {g.strides[0], g.strides[1]}});
    } else if (a.gradients->additive_mask.given()) {
      const std::int64_t items =
          g.extents[0] * g.extents[1] * (g.extents[2] == 1 ? 1 : by_mask.blocks) * ((g.extents[3] + by_mask.tile - 1) / by_mask.tile);
      launch("Tributary::attention_backward::additive_mask", exec, by_mask, items,
             MaskGradient{p,
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

template <class Exec>
Level level_of(const Exec& exec, const AttentionProblem& problem, const RotaryProblem& rotary, const AttentionBackwardArguments& arguments,
               LevelFor purpose) {
  return choose_level("attention_backward", exec, arguments.inputs.options->level, purpose,
                      [&] { return SM90::no_attention_backward(exec, problem, rotary, arguments); });
}

}  // namespace

template <class Exec>
std::size_t attention_backward_workspace_size(const Exec& exec, const AttentionBackwardArguments& arguments) {
  const auto [problem, rotary] = check_attention_backward(arguments);
  const Level level            = level_of(exec, problem, rotary, arguments, LevelFor::workspace_size);
  if (level == Level::reference) return 0;
  WorkspaceLayout layout;
  visit_element_type(problem.type, [&, &p = problem, &r = rotary]<class Element>(std::type_identity<Element>) {
    BackwardCall<Exec, Element>(exec, p, r, arguments, level, layout);
  });
  return layout.size();
}

template <class Exec>
void attention_backward(const Exec& exec, const AttentionBackwardArguments& arguments, const WorkspaceSpan& workspace) {
  const auto  checked = check_attention_backward(arguments);
  const Level level   = level_of(exec, checked.first, checked.second, arguments, LevelFor::call);
  if (level == Level::reference) {
    exec.fence("Tributary::attention_backward: reference level");
    return reference_attention_backward(checked.first, checked.second, arguments);
  }
  const std::size_t size = attention_backward_workspace_size(exec, arguments);
  visit_element_type(checked.first.type, [&]<class Element>(std::type_identity<Element>) {
    if constexpr (!std::is_same_v<Element, float8_e4m3_t>) {
      WorkspaceLayout                   layout(workspace_base("attention_backward", workspace, size));
      const BackwardCall<Exec, Element> call(exec, checked.first, checked.second, arguments, level, layout);
      if (log_enabled()) log("attention_backward: " + call.text());
      call.run(exec, checked.first, checked.second, arguments);
    }
  });
}

using Space = TRIBUTARY_EXECUTION_SPACE;
template std::size_t attention_backward_workspace_size(const Space&, const AttentionBackwardArguments&);
template void        attention_backward(const Space&, const AttentionBackwardArguments&, const WorkspaceSpan&);

}  // namespace Tributary::Impl
