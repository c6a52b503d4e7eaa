#include "attention/attention_plan.hpp"
#include "common/level.hpp"
#include "common/log.hpp"
#include "sm90/attention/attention.hpp"

namespace Tributary::Impl {
namespace {

/// A worker's slot.
template <bool OnHost>
struct ForwardOperands {
  using Product = AttentionBlock<OnHost>;
  using Columns = typename Product::Columns;

  float*       query;    // [rows / register block's rows][head_dim][register block's rows], scaled
  Columns*     key;      // [tile / columns][head_dim]
  Columns*     value;    // [value blocks][tile]
  float*       weights;  // [rows of a part][weight_stride]: scores, then what exp made of them
  float*       out;      // [rows][value blocks * columns]
  float*       row_max;  // [rows]
  float*       row_sum;
  float*       rescale;  // what this tile does to out
  KeyInterval* window;

  /// A constant, so that a register block's rows lie at offsets that the compiler knows; on a host no power of two, which would crowd a few
  /// sets of the cache.
  static constexpr std::int64_t weight_stride = attention_tile<OnHost>(true) + (OnHost ? 16 : 0);

  /// A host goes through a block's rows in parts, so that what is stored of each pair stays close.
  KOKKOS_INLINE_FUNCTION static std::int64_t part_of(std::int64_t rows) {
    constexpr std::int64_t part = Product::row_blocks(64) * Product::rows;
    return OnHost && rows > part ? part : rows;
  }

  /// The slot as rows first ... see it.
  KOKKOS_INLINE_FUNCTION ForwardOperands from_row(std::int64_t first, const AttentionProblem& p) const {
    ForwardOperands part = *this;
    part.query += first * p.head_dim;
    part.out += first * Product::column_blocks(p.value_dim) * Product::columns;
    part.row_max += first;
    part.row_sum += first;
    part.rescale += first;
    part.window += first;
    return part;
  }

  static ForwardOperands take(WorkspaceLayout& layout, const AttentionPlan& plan, const AttentionProblem& p) {
    const std::int64_t w = plan.workers, value_blocks = Product::column_blocks(p.value_dim);
    return {.query   = layout.take<float>(w * plan.rows * p.head_dim),
            .key     = layout.take<Columns>(w * (plan.tile / Product::columns) * p.head_dim),
            .value   = layout.take<Columns>(w * value_blocks * plan.tile),
            .weights = layout.take<float>(w * part_of(plan.rows) * weight_stride),
            .out     = layout.take<float>(w * plan.rows * value_blocks * Product::columns),
            .row_max = layout.take<float>(w * plan.rows),
            .row_sum = layout.take<float>(w * plan.rows),
            .rescale = layout.take<float>(w * plan.rows),
            .window  = layout.take<KeyInterval>(w * plan.rows)};
  }

  KOKKOS_FUNCTION ForwardOperands of_worker(std::int64_t w, const AttentionPlan& plan, const AttentionProblem& p) const {
    const std::int64_t value_blocks = Product::column_blocks(p.value_dim);
    return {query + w * plan.rows * p.head_dim,
            key + w * (plan.tile / Product::columns) * p.head_dim,
            value + w * value_blocks * plan.tile,
            weights + w * part_of(plan.rows) * weight_stride,
            out + w * plan.rows * value_blocks * Product::columns,
            row_max + w * plan.rows,
            row_sum + w * plan.rows,
            rescale + w * plan.rows,
            window + w * plan.rows};
  }
};

template <class Exec, class Element>
struct AttentionForwardFunctor {
  static constexpr bool host = on_host<Exec>;
  using Member               = typename WorkerPolicy<Exec>::member_type;
  using Product              = AttentionBlock<host>;
  using Pack                 = Packing<host>;
  using Operands             = ForwardOperands<host>;

  static constexpr std::int64_t stride = Operands::weight_stride;

  AttentionProblem       p;
  AttentionPlan          plan;
  BucketTable            buckets;
  Operands               slots;
  AttentionForwardOutput output;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const Operands     slot  = slots.of_worker(team.league_rank(), plan, p);
    const std::int64_t items = p.batch * p.key_heads * plan.blocks;
    // Causal: the last blocks have the most keys, they go first.
    for (std::int64_t item = team.league_rank(); item < items; item += team.league_size()) {
      const auto [from_last, pair] = ItemPlace::of(item, p.batch * p.key_heads, plan.blocks, team.league_size());
      const std::int64_t block     = plan.blocks - 1 - from_last;
      const std::int64_t begin = block * plan.queries, end = begin + plan.queries < p.queries ? begin + plan.queries : p.queries;
      for (std::int64_t row = begin; row < end;) {
        const Segment segment = p.packed.segment(pair / p.key_heads, row, end, p.queries, p.keys);
        attend(team, slot, segment, static_cast<std::int32_t>(pair % p.key_heads));
        row += segment.rows;
      }
    }
  }

 private:
  KOKKOS_INLINE_FUNCTION QueryPlace place(const Segment& s, std::int32_t key_head, std::int64_t row) const {
    const std::int64_t head = row < s.rows ? 0 : row / s.rows, q = row - head * s.rows;  // divisions are slow
    return {s.batch,
            s.sequence,
            s.row + q,
            s.first_query + q,
            s.first_query + q + p.alignment(s),
            static_cast<std::int32_t>(key_head * plan.group + head)};
  }

  KOKKOS_FUNCTION void attend(const Member& team, const Operands& slot, const Segment& s, std::int32_t key_head) const {
    const std::int64_t rows = plan.group * s.rows, row_blocks = Product::row_blocks(rows);
    const std::int64_t out_width = Product::column_blocks(p.value_dim) * Product::columns;
    Pack::rows(team, query_rows<Element>(p, s.batch, s.row, key_head * plan.group, s.rows), rows, p.head_dim, slot.query);
    for_each_element<host>(team, row_blocks * Product::rows, out_width,
                           [&](std::int64_t r, std::int64_t c) { slot.out[r * out_width + c] = 0.0f; });
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, row_blocks * Product::rows), [&](const std::int64_t r) {
      slot.row_max[r] = -Kokkos::Experimental::infinity_v<float>;
      slot.row_sum[r] = 0.0f;
      slot.window[r]  = r < rows ? p.window(s.first_query + r % s.rows + p.alignment(s), s.keys) : KeyInterval{0, 0};
    });
    team.team_barrier();

    const std::int64_t offset = s.first_query + p.alignment(s);  // i' of the segment's first row
    const auto [begin, end]   = p.window_of(offset, offset + s.rows - 1, s.keys);
    // Tiles end at multiples of their size and begin with whole blocks of columns, wherever this block's keys begin: so a row's sums run
    // in the same order whichever rows it shares a block with.
    for (std::int64_t tile = begin / Product::columns * Product::columns, next; tile < end; tile = next) {
      next                       = (tile / plan.tile + 1) * plan.tile;
      const std::int64_t count   = (end < next ? end : next) - tile;
      const std::int64_t key_row = s.first_key + tile;
      Pack::transposed(team, key_rows<Element>(p, p.key, p.key_strides, s.batch, key_row, key_head, count, p.key_scale), count, p.head_dim,
                       slot.key);
      Pack::straight(team, key_rows<Element>(p, p.value, p.value_strides, s.batch, key_row, key_head, count, p.value_scale), count, count,
                     p.value_dim, plan.tile, slot.value);
      team.team_barrier();
      const std::int64_t left = end - next, coming = left < 0 ? 0 : (left < plan.tile ? left : plan.tile);
      const auto keys = ComingRows::of(head_rows<Element>(p.key, p.key_strides, s.batch, key_row + count, key_head, 1), coming, p.head_dim);
      const auto values =
          ComingRows::of(head_rows<Element>(p.value, p.value_strides, s.batch, key_row + count, key_head, 1), coming, p.value_dim);
      const std::int64_t padded = row_blocks * Product::rows, part_rows = Operands::part_of(padded);
      for (std::int64_t first = 0; first < padded; first += part_rows) {
        const Operands     part   = slot.from_row(first, p);
        const std::int64_t blocks = Product::row_blocks(padded - first < part_rows ? padded - first : part_rows);
        multiply_keys(team, part, blocks, tile, count, [&](std::int64_t i, std::int64_t n) {
          if (first > 0) return;
          keys.prefetch_share(i, n);
          values.prefetch_share(i, n);
        });
        team.team_barrier();
        Kokkos::parallel_for(Kokkos::TeamThreadRange(team, blocks * Product::rows),
                             [&](const std::int64_t r) { soften(part, place(s, key_head, first + r), s, r, tile, count); });
        team.team_barrier();
        multiply_values(team, part, blocks, tile, count);
        team.team_barrier();
      }
    }
    store(team, slot, s, key_head, rows, out_width);
    team.team_barrier();
  }

  /// The keys of a tile that any row of a register block sees, counted from the tile's first.
  KOKKOS_INLINE_FUNCTION KeyInterval seen(const Operands& slot, std::int64_t row_block, std::int64_t tile, std::int64_t count) const {
    if (p.left < 0 && p.right < 0) return {0, count};
    KeyInterval hull{count, 0};
    for (int r = 0; r < Product::rows; ++r) {
      const KeyInterval  window = slot.window[row_block * Product::rows + r];
      const std::int64_t begin = clip(window.begin - tile, 0, count), end = clip(window.end - tile, 0, count);
      if (begin < end) hull = {begin < hull.begin ? begin : hull.begin, end > hull.end ? end : hull.end};
    }
    return hull.begin < hull.end ? hull : KeyInterval{0, 0};
  }

  /// ahead(i, n) is called for each of n register blocks.
  template <class Ahead>
  KOKKOS_FUNCTION void multiply_keys(const Member& team, const Operands& slot, std::int64_t row_blocks, std::int64_t tile,
                                     std::int64_t count, const Ahead& ahead) const {
    const std::int64_t groups = Product::column_blocks(count);
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, row_blocks * groups), [&](const std::int64_t cell) {
      const std::int64_t block = host ? cell % row_blocks : cell / groups, group = host ? cell / row_blocks : cell % groups;
      const KeyInterval  range = seen(slot, block, tile, count);
      ahead(cell, row_blocks * groups);
      if (group * Product::columns >= range.end || (group + 1) * Product::columns <= range.begin) return;
      typename Product::Block product;
      Product::clear(product);
      Product::multiply_add(slot.query + block * Product::rows * p.head_dim, 1, Product::rows, slot.key + group * p.head_dim, p.head_dim,
                            product);
      Pack::store(product, slot.weights + block * Product::rows * stride + group * Product::columns, stride);
    });
  }

  /// Scores of a row become exp(score - maximum); the row's maximum and sum move on, and the factor for what was summed before.
  KOKKOS_INLINE_FUNCTION void soften(const Operands& slot, const QueryPlace& i, const Segment& s, std::int64_t r, std::int64_t tile,
                                     std::int64_t count) const {
    using Vector                  = typename Product::Vector;
    constexpr std::int64_t width  = Product::width;
    constexpr float        hidden = -Kokkos::Experimental::infinity_v<float>;
    float* const           x      = slot.weights + r * stride;
    const KeyInterval  needed = seen(slot, r / Product::rows, tile, count);  // of the register block: defined values, zero where not seen
    const std::int64_t begin = clip(slot.window[r].begin - tile, 0, count), end = clip(slot.window[r].end - tile, 0, count);
    slot.rescale[r] = 1.0f;
    if (begin >= end) {
      for (std::int64_t j = needed.begin; j < needed.end; ++j) x[j] = 0.0f;
      return;
    }
    const PairScores score{p, buckets};
    if (score.changes_scores()) {
      float slope;
      for (std::int64_t j = begin; j < end; ++j) x[j] = score(x[j], i, s.first_key, tile + j, slope);
    }
    const std::int64_t first = begin / width * width, last = (end + width - 1) / width * width;  // whole vectors
    for (std::int64_t j = first; j < begin; ++j) x[j] = hidden;
    for (std::int64_t j = end; j < last; ++j) x[j] = hidden;
    Vector* const lanes    = reinterpret_cast<Vector*>(x);
    Vector        lane_max = lanes[first / width];
    for (std::int64_t v = first / width + 1; v < last / width; ++v) lane_max = lanes[v] > lane_max ? lanes[v] : lane_max;
    const float tile_max = Lanes<host>::maximum(lane_max), maximum = tile_max > slot.row_max[r] ? tile_max : slot.row_max[r];
    const float shift = maximum == hidden ? 0.0f : maximum;  // nothing seen yet: exp(-inf - 0) = 0
    Vector      sums  = {};
    for (std::int64_t v = first / width; v < last / width; ++v) {
      Vector weight = lanes[v] - shift;
      Lanes<host>::exp(weight);
      lanes[v] = weight;
      sums += weight;
    }
    slot.rescale[r] = maximum == slot.row_max[r] ? 1.0f : Kokkos::exp(slot.row_max[r] - shift);
    slot.row_sum[r] = slot.row_sum[r] * slot.rescale[r] + Lanes<host>::sum(sums);
    slot.row_max[r] = maximum;
    for (std::int64_t j = needed.begin; j < first; ++j) x[j] = 0.0f;
    for (std::int64_t j = last; j < needed.end; ++j) x[j] = 0.0f;
    if (p.has_dropout) {
      DropoutRow dropout(p, i);
      for (std::int64_t j = begin; j < end; ++j) x[j] *= dropout.factor(tile + j);
    }
  }

  KOKKOS_FUNCTION void multiply_values(const Member& team, const Operands& slot, std::int64_t row_blocks, std::int64_t tile,
                                       std::int64_t count) const {
    const std::int64_t groups = Product::column_blocks(p.value_dim), out_width = groups * Product::columns;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, row_blocks * groups), [&](const std::int64_t cell) {
      const std::int64_t block = host ? cell % row_blocks : cell / groups, group = host ? cell / row_blocks : cell % groups;
      const KeyInterval  range = seen(slot, block, tile, count);
      if (range.begin >= range.end) return;
      float* const            out = slot.out + block * Product::rows * out_width + group * Product::columns;
      typename Product::Block sum;
      Pack::load(out, out_width, sum);
      for (int r = 0; r < Product::rows; ++r)
        for (int v = 0; v < Product::vectors; ++v) sum.vector[r][v] *= slot.rescale[block * Product::rows + r];
      Product::multiply_add(slot.weights + block * Product::rows * stride + range.begin, stride, 1,
                            slot.value + group * plan.tile + range.begin, range.end - range.begin, sum);
      Pack::store(sum, out, out_width);
    });
  }

  KOKKOS_FUNCTION void store(const Member& team, const Operands& slot, const Segment& s, std::int32_t key_head, std::int64_t rows,
                             std::int64_t out_width) const {
    constexpr float nothing = -Kokkos::Experimental::infinity_v<float>;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, rows), [&](const std::int64_t r) {
      const QueryPlace          i       = place(s, key_head, r);
      const float               sum     = slot.row_sum[r];
      const AttentionRowFactors factors = finish_row(p, output, i, sum == 0.0f ? nothing : slot.row_max[r] + Kokkos::log(sum), sum);
      slot.row_sum[r]                   = factors.here;
      slot.row_max[r]                   = factors.previous;
    });
    team.team_barrier();
    for_each_element<host>(team, rows, p.value_dim, [&](std::int64_t r, std::int64_t c) {
      const QueryPlace i     = place(s, key_head, r);
      float            value = slot.row_sum[r] == 0.0f ? 0.0f : slot.out[r * out_width + c] * slot.row_sum[r];
      if (slot.row_max[r] != 0.0f)
        value += slot.row_max[r] * output.previous_out[s.batch * output.previous_out_strides[0] + i.row * output.previous_out_strides[1] +
                                                       i.head * output.previous_out_strides[2] + c];
      store_out<Element>(output.out_type, output.out,
                         s.batch * output.out_strides[0] + i.row * output.out_strides[1] + i.head * output.out_strides[2] + c, value);
    });
  }
};

/// Everything a call lays out in its workspace.
template <class Exec, class Element>
struct ForwardCall {
  AttentionPlan                  plan;
  AttentionPreparation<Element>  preparation;
  ForwardOperands<on_host<Exec>> slots;

  ForwardCall(const Exec& exec, const AttentionProblem& p, const RotaryProblem& rotary, WorkspaceLayout& layout)
      : plan(plan_attention(exec, p)), preparation(p, rotary, layout), slots(ForwardOperands<on_host<Exec>>::take(layout, plan, p)) {}
};

template <class Exec, class Element>
struct HopperForwardCall {
  AttentionPreparation<Element> preparation;
  SM90::AttentionForwardPlan    plan;

  HopperForwardCall(const Exec& exec, const AttentionProblem& p, const RotaryProblem& rotary, WorkspaceLayout& layout)
      : preparation(p, rotary, layout), plan(SM90::plan_attention_forward(exec, p, layout)) {}
};

AttentionForwardOutput forward_output(const AttentionForwardArguments& a) {
  const bool goes_on = a.inputs.options->previous.lse.given();
  return {.out                  = a.out.data,
          .lse                  = a.has_lse ? a.lse.data : nullptr,
          .out_type             = a.out_type,
          .out_strides          = {a.out.strides[0], a.out.strides[1], a.out.strides[2]},
          .lse_strides          = {a.lse.strides[0], a.lse.strides[1]},
          .previous_out         = goes_on ? a.previous_out.data : nullptr,
          .previous_lse         = goes_on ? a.previous_lse.data : nullptr,
          .previous_out_strides = {a.previous_out.strides[0], a.previous_out.strides[1], a.previous_out.strides[2]},
          .previous_lse_strides = {a.previous_lse.strides[0], a.previous_lse.strides[1]}};
}

template <class Exec>
Level level_of(const Exec& exec, const AttentionProblem& problem, const RotaryProblem& rotary, const AttentionForwardArguments& arguments,
               LevelFor purpose) {
  return choose_level("attention_forward", exec, arguments.inputs.options->level, purpose,
                      [&] { return SM90::no_attention_forward(exec, problem, rotary, arguments); });
}

}  // namespace

template <class Exec>
std::size_t attention_forward_workspace_size(const Exec& exec, const AttentionForwardArguments& arguments) {
  const auto [problem, rotary] = check_attention_forward(arguments);
  const Level level            = level_of(exec, problem, rotary, arguments, LevelFor::workspace_size);
  if (level == Level::reference) return 0;
  WorkspaceLayout layout;
  visit_element_type(problem.type, [&, &p = problem, &r = rotary]<class Element>(std::type_identity<Element>) {
    if constexpr (has_sm90<Exec>)
      if (level == Level::hopper) return static_cast<void>(HopperForwardCall<Exec, Element>(exec, p, r, layout));
    ForwardCall<Exec, Element>(exec, p, r, layout);
  });
  return layout.size();
}

template <class Exec>
void attention_forward(const Exec& exec, const AttentionForwardArguments& arguments, const WorkspaceSpan& workspace) {
  const auto  checked = check_attention_forward(arguments);
  const Level level   = level_of(exec, checked.first, checked.second, arguments, LevelFor::call);
  if (level == Level::reference) {
    exec.fence("Tributary::attention_forward: reference level");
    return reference_attention_forward(checked.first, checked.second, arguments);
  }
  const std::size_t size = attention_forward_workspace_size(exec, arguments);
  visit_element_type(checked.first.type, [&]<class Element>(std::type_identity<Element>) {
    AttentionProblem p = checked.first;
    WorkspaceLayout  layout(workspace_base("attention_forward", workspace, size));
    if constexpr (has_sm90<Exec>)
      if (level == Level::hopper) {
        const HopperForwardCall<Exec, Element> call(exec, p, checked.second, layout);
        if (log_enabled()) log("attention_forward: Hopper level, " + std::to_string(call.plan.teams) + " teams");
        call.preparation.run(exec, p, checked.second);
        return SM90::attention_forward(exec, p, {call.preparation.buckets}, call.plan, forward_output(arguments));
      }
    const ForwardCall<Exec, Element> call(exec, p, checked.second, layout);
    if (log_enabled())
      log("attention_forward: portable level, blocks of " + std::to_string(call.plan.group) + " heads x " +
          std::to_string(call.plan.queries) + " queries, tiles of " + std::to_string(call.plan.tile) + " keys");
    call.preparation.run(exec, p, checked.second);
    const std::int64_t workers = std::min(call.plan.workers, p.batch * p.key_heads * call.plan.blocks);
    if (workers == 0) return;
    Kokkos::parallel_for(
        "Tributary::attention_forward::portable", WorkerPolicy<Exec>(exec, static_cast<int>(workers), team_size<Exec>),
        AttentionForwardFunctor<Exec, Element>{p, call.plan, {call.preparation.buckets}, call.slots, forward_output(arguments)});
  });
}

using Space = TRIBUTARY_EXECUTION_SPACE;
template std::size_t attention_forward_workspace_size(const Space&, const AttentionForwardArguments&);
template void        attention_forward(const Space&, const AttentionForwardArguments&, const WorkspaceSpan&);

}  // namespace Tributary::Impl
