#include "common/level.hpp"
#include "common/log.hpp"
#include "indexer/indexer.hpp"
#include "indexer/indexer_tile.hpp"
#include "sm90/indexer/decode.hpp"
#include "sm90/indexer/indexer.hpp"
#include "topk/topk.hpp"

namespace Tributary::Impl {
namespace {

/// How the queries x keys of a call are cut: a work item is a block of query rows against one split of their keys, which stream past
/// in tiles.
struct IndexerPlan {
  std::int64_t rows;       // query rows of a block
  std::int64_t blocks;     // blocks of each batch entry
  std::int64_t tile_keys;  // a multiple of the tile's group
  std::int64_t splits;
  std::int64_t workers;

  KOKKOS_INLINE_FUNCTION std::int64_t items(std::int64_t batch) const { return batch * blocks * splits; }
};

template <class Exec>
IndexerPlan plan_indexer(const Exec& exec, const IndexerProblem& p, const IndexerOptions& options, std::int64_t keep) {
  using Tile = IndexerTile<on_host<Exec>>;
  IndexerPlan plan{};
  plan.workers = concurrent_workers(exec);
  // The tile of keys: 128 KiB on a host, a group a thread and row on a device.
  const std::int64_t wanted_keys =
      options.chunk_keys > 0 ? options.chunk_keys : (on_host<Exec> ? std::clamp<std::int64_t>(32768 / p.head_dim, 1, 1024) : 128);
  plan.tile_keys = (wanted_keys + Tile::keys - 1) / Tile::keys * Tile::keys;
  // A block's packed queries and candidates stay in a core's second-level cache, or, on a device, small enough for all workers' to stay in
  // L2.
  const std::int64_t query_bytes = 4 * std::int64_t{Tile::head_blocks(p.heads)} * Tile::heads * p.head_dim;
  const std::int64_t row_bytes   = query_bytes + 8 * Selection<int, on_host<Exec>>::capacity(keep, plan.tile_keys);
  const std::int64_t share       = std::max<std::int64_t>(1, (p.batch * p.queries + 2 * plan.workers - 1) / (2 * plan.workers));
  plan.rows                      = options.chunk_queries > 0 ? options.chunk_queries
                                                             : std::min(std::clamp<std::int64_t>((on_host<Exec> ? 393216 : 131072) / row_bytes, 4, 64), share);
  // A large k must not multiply with the rows: at most 4 MiB of candidates a worker.
  plan.rows   = std::clamp<std::int64_t>(plan.rows, 1, std::max<std::int64_t>(1, (std::int64_t{4} << 20) / row_bytes));
  plan.blocks = (p.queries + plan.rows - 1) / plan.rows;
  plan.splits = options.key_splits > 0 ? options.key_splits
                                       : automatic_splits(p.batch * plan.blocks, plan.workers, p.keys, 4 * plan.tile_keys + 2 * keep);
  return plan;
}

/// The part of an item that both operators share: walks its segments, packs, and calls tile(segment, first key, keys) between two
/// barriers for each tile of keys in [begin, end) of the segment.
template <class Exec, class Element>
struct StreamKeys {
  using Member   = typename WorkerPolicy<Exec>::member_type;
  using Operands = IndexerOperands<on_host<Exec>>;
  using Tile     = typename Operands::Tile;

  const IndexerProblem& problem;
  const IndexerPlan&    plan;
  const Member&         team;
  const Operands&       operands;

  /// Smallest interval that holds the legal keys of all rows.
  KOKKOS_FUNCTION KeyInterval hull(const Segment& segment) const {
    KeyInterval all{segment.keys, 0};
    for (std::int64_t row = 0; row < segment.rows; ++row) {
      const KeyInterval legal = operands.legal[row];
      if (legal.begin < legal.end) all = {legal.begin < all.begin ? legal.begin : all.begin, legal.end > all.end ? legal.end : all.end};
    }
    return all.begin < all.end ? all : KeyInterval{0, 0};
  }

  template <class OnTile>
  KOKKOS_FUNCTION void stream(const Segment& segment, KeyInterval keys, const OnTile& on_tile) const {
    for (std::int64_t first = keys.begin; first < keys.end; first += plan.tile_keys) {
      const std::int64_t count = keys.end - first < plan.tile_keys ? keys.end - first : plan.tile_keys;
      operands.template pack_keys<Element>(team, problem, segment, first, count);
      team.team_barrier();
      on_tile(first, count);
      team.team_barrier();
    }
  }

  /// Calls on_cell(row, first key of the group, keys in it) for every cell of a tile, spread over the team's threads.
  template <class OnCell>
  KOKKOS_FUNCTION void for_each_cell(const Segment& segment, std::int64_t first, std::int64_t count, const OnCell& on_cell) const {
    const std::int64_t groups = (count + Tile::keys - 1) / Tile::keys;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, groups * segment.rows), [&](const std::int64_t cell) {
      // A host core keeps the group in its first-level cache while the rows go by; neighbouring device threads read neighbouring groups.
      const std::int64_t row      = on_host<Exec> ? cell % segment.rows : cell / groups;
      const std::int64_t group    = on_host<Exec> ? cell / segment.rows : cell % groups;
      const std::int64_t in_group = count - group * Tile::keys;
      on_cell(row, group, first + group * Tile::keys, in_group < Tile::keys ? in_group : Tile::keys);
    });
  }
};

template <class Exec, class Element>
struct IndexerTopkFunctor {
  using Member   = typename WorkerPolicy<Exec>::member_type;
  using Operands = IndexerOperands<on_host<Exec>>;
  using Tile     = typename Operands::Tile;
  using Select   = Selection<Member, on_host<Exec>>;

  IndexerProblem problem;
  IndexerPlan    plan;
  TopkPlan       topk;
  Operands       slots;
  TopkOutput     output;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const std::int64_t worker   = team.league_rank();
    const Operands     operands = slots.of_worker(worker, problem, plan.rows, plan.tile_keys);
    const Select       select(team, topk.keep, topk.tile, topk.capacity);
    const auto         candidates = [&](std::int64_t row) {
      const std::int64_t slot = worker * plan.rows + row;
      return Candidates{topk.candidates + slot * topk.capacity, topk.counts + slot, topk.thresholds + slot};
    };
    // The last queries of a causal call have the most keys: they go first.
    for (std::int64_t item = plan.items(problem.batch) - 1 - worker; item >= 0; item -= team.league_size()) {
      const std::int64_t split = item % plan.splits, block = item / plan.splits;
      const std::int64_t batch = block / plan.blocks, begin = block % plan.blocks * plan.rows;
      const std::int64_t end = begin + plan.rows < problem.queries ? begin + plan.rows : problem.queries;
      for (std::int64_t row = begin; row < end;) {
        const Segment segment = problem.segment(batch, row, end);
        select_keys(team, operands, select, candidates, segment, split);
        row += segment.rows;
      }
    }
  }

 private:
  template <class CandidatesOf>
  KOKKOS_FUNCTION void select_keys(const Member& team, const Operands& operands, const Select& select, const CandidatesOf& candidates,
                                   const Segment& segment, std::int64_t split) const {
    const StreamKeys<Exec, Element> keys{problem, plan, team, operands};
    operands.template pack_queries<Element>(team, problem, segment);
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team, segment.rows), [&](const std::int64_t row) { select.begin(candidates(row)); });
    team.team_barrier();
    const KeyInterval  hull   = keys.hull(segment);
    const std::int64_t length = hull.end - hull.begin;
    const KeyInterval  mine{hull.begin + length * split / plan.splits, hull.begin + length * (split + 1) / plan.splits};
    keys.stream(segment, mine, [&](std::int64_t first, std::int64_t count) {
      keys.for_each_cell(segment, first, count, [&](std::int64_t row, std::int64_t group, std::int64_t first_key, std::int64_t in_group) {
        const KeyInterval legal = operands.legal[row];
        if (first_key >= legal.end || first_key + in_group <= legal.begin) return;
        offer_cell(operands, select, candidates(row), legal, row, group, first_key, in_group);
      });
      team.team_barrier();
      for (std::int64_t row = 0; row < segment.rows; ++row) select.make_room(candidates(row));
    });
    for (std::int64_t row = 0; row < segment.rows; ++row) {
      if (plan.splits > 1)
        select.emit_partial(candidates(row),
                            topk.partials + ((segment.batch * problem.queries + segment.row + row) * plan.splits + split) * topk.keep);
      else
        select.emit(candidates(row), output, segment.batch, segment.row + row);
    }
  }

  KOKKOS_INLINE_FUNCTION void offer_cell(const Operands& operands, const Select& select, const Candidates& row_candidates,
                                         KeyInterval legal, std::int64_t row, std::int64_t group, std::int64_t first_key,
                                         std::int64_t in_group) const {
    typename Tile::Scores scores;
    operands.score(problem, row, group, scores);
    const std::int64_t  skip     = legal.begin > first_key ? legal.begin - first_key : 0;
    const std::int64_t  stop     = legal.end - first_key < in_group ? legal.end - first_key : in_group;
    const std::uint32_t is_legal = (~0u >> (32 - stop)) & (~0u << skip);
    // As many earlier keys as are wanted have the threshold's score or a better one, so an equal score comes too late.  As a score,
    // no_entry is NaN, which excludes nothing.
    const std::uint32_t chosen = Lanes<on_host<Exec>>::exceed(scores.vector, score_of(*row_candidates.threshold)) & is_legal;
    if (chosen == 0) return;
    select.template append<Tile::keys>(
        row_candidates, chosen, [&](int n) { return make_entry(sortable(scores.key[n]), static_cast<std::uint32_t>(first_key + n)); });
  }
};

template <class Exec, class Element>
struct IndexerScoreFunctor {
  using Member   = typename WorkerPolicy<Exec>::member_type;
  using Operands = IndexerOperands<on_host<Exec>>;
  using Tile     = typename Operands::Tile;

  IndexerProblem problem;
  IndexerPlan    plan;
  Operands       slots;
  float*         scores;
  std::int64_t   score_strides[2], columns;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const Operands                  operands = slots.of_worker(team.league_rank(), problem, plan.rows, plan.tile_keys);
    const StreamKeys<Exec, Element> keys{problem, plan, team, operands};
    for (std::int64_t item = plan.items(problem.batch) - 1 - team.league_rank(); item >= 0; item -= team.league_size()) {
      const std::int64_t batch = item / plan.blocks, begin = item % plan.blocks * plan.rows;
      const std::int64_t end = begin + plan.rows < problem.queries ? begin + plan.rows : problem.queries;
      for (std::int64_t row = begin; row < end;) {
        const Segment segment = problem.segment(batch, row, end);
        operands.template pack_queries<Element>(team, problem, segment);
        team.team_barrier();
        store_scores(team, operands, keys, segment);
        row += segment.rows;
      }
    }
  }

 private:
  KOKKOS_FUNCTION void store_scores(const Member& team, const Operands& operands, const StreamKeys<Exec, Element>& keys,
                                    const Segment& segment) const {
    float* const      to      = scores + segment.batch * score_strides[0] + segment.row * score_strides[1];
    const KeyInterval hull    = keys.hull(segment);
    const auto        illegal = [&](std::int64_t begin, std::int64_t end) {
      const std::int64_t length = end > begin ? end - begin : 0;
      Kokkos::parallel_for(Kokkos::TeamThreadRange(team, length * segment.rows), [&](const std::int64_t i) {
        to[i / length * score_strides[1] + begin + i % length] = -Kokkos::Experimental::infinity_v<float>;
      });
    };
    illegal(0, hull.begin < columns ? hull.begin : columns);
    illegal(hull.end, columns);
    keys.stream(segment, {hull.begin, hull.end < columns ? hull.end : columns}, [&](std::int64_t first, std::int64_t count) {
      keys.for_each_cell(segment, first, count, [&](std::int64_t row, std::int64_t group, std::int64_t first_key, std::int64_t in_group) {
        const KeyInterval     legal = operands.legal[row];
        typename Tile::Scores cell;
        operands.score(problem, row, group, cell);
        for (std::int64_t n = 0; n < in_group; ++n) {
          const bool is_legal                        = legal.begin <= first_key + n && first_key + n < legal.end;
          to[row * score_strides[1] + first_key + n] = is_legal ? cell.key[n] : -Kokkos::Experimental::infinity_v<float>;
        }
      });
    });
    team.team_barrier();  // the next segment's legal keys come after everybody has read these
  }
};

// What a call needs beside its problem, laid out from a workspace's base (none: only counted).
template <class Exec>
struct TopkCall {
  IndexerPlan                    plan;
  TopkPlan                       topk;
  IndexerOperands<on_host<Exec>> slots;

  TopkCall(const Exec& exec, const IndexerProblem& p, const TopkOutput& output, const IndexerOptions& options, WorkspaceLayout& layout) {
    topk.keep          = std::max<std::int64_t>(1, std::min(output.top_k, p.keys));
    plan               = plan_indexer(exec, p, options, topk.keep);
    topk.batch         = p.batch;
    topk.rows          = p.queries;
    topk.tile          = plan.tile_keys;
    topk.splits        = 1;
    topk.first_list    = 0;
    topk.partial_lists = plan.splits;
    topk.workers       = plan.workers * plan.rows;  // a slot for each row of each worker's block
    take_workspace<Exec>(topk, layout);
    slots = IndexerOperands<on_host<Exec>>::take(layout, plan.workers, p, plan.rows, plan.tile_keys);
  }
};

template <class Exec>
struct ScoreCall {
  IndexerPlan                    plan;
  IndexerOperands<on_host<Exec>> slots;

  ScoreCall(const Exec& exec, const IndexerProblem& p, const IndexerOptions& options, WorkspaceLayout& layout)
      : plan(plan_indexer(exec, p, options, 1)) {
    plan.splits = 1;
    slots       = IndexerOperands<on_host<Exec>>::take(layout, plan.workers, p, plan.rows, plan.tile_keys);
  }
};

template <class Exec, class Functor>
void launch(const char* label, const Exec& exec, std::int64_t workers, int scratch, const Functor& functor) {
  if (workers == 0) return;
  Kokkos::parallel_for(
      label, WorkerPolicy<Exec>(exec, static_cast<int>(workers), team_size<Exec>).set_scratch_size(0, Kokkos::PerTeam(scratch)), functor);
}

void log_plan(std::string_view function, const IndexerPlan& plan) {
  if (log_enabled())
    log(std::string(function) + ": portable level, blocks of " + std::to_string(plan.rows) + " queries, tiles of " +
        std::to_string(plan.tile_keys) + " keys, " + std::to_string(plan.splits) + " parts of the keys, " + std::to_string(plan.workers) +
        " workers");
}

template <class Exec>
void score_portable(const Exec& exec, const IndexerProblem& problem, const Tensor<float, 3>& scores, const IndexerOptions& options,
                    WorkspaceLayout& layout) {
  const ScoreCall<Exec> call(exec, problem, options, layout);
  log_plan("indexer_score", call.plan);
  visit_element_type(problem.type, [&]<class Element>(std::type_identity<Element>) {
    launch("Tributary::indexer_score::portable", exec, std::min(call.plan.workers, call.plan.items(problem.batch)), 0,
           IndexerScoreFunctor<Exec, Element>{
               problem, call.plan, call.slots, scores.data, {scores.strides[0], scores.strides[1]}, scores.extents[2]});
  });
}

template <class Exec>
void topk_portable(const Exec& exec, const IndexerProblem& problem, const TopkOutput& output, const IndexerOptions& options,
                   WorkspaceLayout& layout) {
  const TopkCall<Exec> call(exec, problem, output, options, layout);
  log_plan("indexer_topk", call.plan);
  visit_element_type(problem.type, [&]<class Element>(std::type_identity<Element>) {
    using Functor = IndexerTopkFunctor<Exec, Element>;
    launch("Tributary::indexer_topk::portable", exec, std::min(call.plan.workers, call.plan.items(problem.batch)),
           Functor::Select::scratch_bytes, Functor{problem, call.plan, call.topk, call.slots, output});
  });
  if (call.plan.splits > 1) {
    TopkPlan merge = call.topk;
    merge.workers  = call.plan.workers;
    merge_partials("Tributary::indexer_topk::merge_splits", exec, merge, output);
  }
}

// The Hopper level, where the build has it.

/// The fused kernel, for calls that fill the chip with queries.  Where there are few of them, and yet too many for their scores to be
/// stored, their keys are cut into parts and partial lists merged.
template <class Exec>
struct HopperCall {
  SM90::IndexerPlan plan;
  TopkPlan          merge{};  // of partial lists, one a split of the keys

  HopperCall(const Exec& exec, const IndexerProblem& problem, std::int64_t top_k, const IndexerOptions& options, WorkspaceLayout& layout)
      : plan(SM90::plan_indexer(exec, problem, top_k, options.key_splits, layout)) {
    if (plan.splits == 1 || top_k == 0) return;
    merge.batch         = problem.batch;
    merge.rows          = problem.queries;
    merge.keep          = std::max<std::int64_t>(1, std::min(top_k, problem.keys));
    merge.tile          = 1024;
    merge.splits        = 1;
    merge.partial_lists = plan.splits;
    merge.workers       = concurrent_workers(exec);
    take_workspace<Exec>(merge, layout);
  }
};

[[maybe_unused]] void log_hopper(std::string_view function, const SM90::IndexerPlan& plan) {
  if (log_enabled())
    log(std::string(function) + ": Hopper level, " + std::to_string(plan.teams) + " teams, " + std::to_string(plan.splits) +
        " parts of the keys");
}

template <class Exec>
Level level_of(std::string_view function, const Exec& exec, const IndexerProblem& problem, std::int64_t top_k,
               const IndexerOptions& options, LevelFor purpose) {
  return choose_level(function, exec, options.level, purpose, [&] { return SM90::no_indexer(exec, problem, top_k); });
}

}  // namespace

template <class Exec>
std::size_t indexer_score_workspace_size(const Exec& exec, const IndexerScoreArguments& arguments, const IndexerOptions& options) {
  const IndexerProblem problem = check_indexer_score(arguments, options);
  const Level          level   = level_of("indexer_score", exec, problem, 0, options, LevelFor::workspace_size);
  WorkspaceLayout      layout;
  if (level == Level::portable) ScoreCall<Exec>(exec, problem, options, layout);
  if constexpr (has_sm90<Exec>)
    if (level == Level::hopper) HopperCall<Exec>(exec, problem, 0, options, layout);
  return layout.size();
}

template <class Exec>
void indexer_score(const Exec& exec, const IndexerScoreArguments& arguments, const IndexerOptions& options,
                   const WorkspaceSpan& workspace) {
  const IndexerProblem problem = check_indexer_score(arguments, options);
  const Level          level   = level_of("indexer_score", exec, problem, 0, options, LevelFor::call);
  if (level == Level::reference) {
    exec.fence("Tributary::indexer_score: reference level");
    return reference_indexer_score(problem, arguments.scores);
  }
  WorkspaceLayout layout(workspace_base("indexer_score", workspace, indexer_score_workspace_size(exec, arguments, options)));
  if constexpr (has_sm90<Exec>)
    if (level == Level::hopper) {
      const HopperCall<Exec> call(exec, problem, 0, options, layout);
      log_hopper("indexer_score", call.plan);
      return SM90::indexer_score(exec, problem, call.plan, arguments.scores);
    }
  score_portable(exec, problem, arguments.scores, options, layout);
}

template <class Exec>
std::size_t indexer_topk_workspace_size(const Exec& exec, const IndexerTopkArguments& arguments, const IndexerOptions& options) {
  const auto [problem, output] = check_indexer_topk(arguments, options);
  const Level     level        = level_of("indexer_topk", exec, problem, output.top_k, options, LevelFor::workspace_size);
  WorkspaceLayout layout;
  if (level == Level::portable) TopkCall<Exec>(exec, problem, output, options, layout);
  if constexpr (has_sm90<Exec>)
    if (level == Level::hopper) {
      if (SM90::has_few_queries(exec, problem, options.key_splits))
        SM90::plan_decode(exec, problem, output.top_k, layout);
      else
        HopperCall<Exec>(exec, problem, output.top_k, options, layout);
    }
  return layout.size();
}

template <class Exec>
void indexer_topk(const Exec& exec, const IndexerTopkArguments& arguments, const IndexerOptions& options, const WorkspaceSpan& workspace) {
  const auto  checked = check_indexer_topk(arguments, options);
  const auto& problem = checked.first;
  const auto& output  = checked.second;
  const Level level   = level_of("indexer_topk", exec, problem, output.top_k, options, LevelFor::call);
  if (level == Level::reference) {
    exec.fence("Tributary::indexer_topk: reference level");
    return reference_indexer_topk(problem, output);
  }
  WorkspaceLayout layout(workspace_base("indexer_topk", workspace, indexer_topk_workspace_size(exec, arguments, options)));
  if constexpr (has_sm90<Exec>)
    if (level == Level::hopper) {
      if (SM90::has_few_queries(exec, problem, options.key_splits)) {
        const SM90::DecodePlan plan = SM90::plan_decode(exec, problem, output.top_k, layout);
        if (log_enabled()) log("indexer_topk: Hopper level, few queries, " + std::to_string(plan.splits) + " parts of the keys");
        return SM90::decode_topk(exec, problem, plan, output);
      }
      const HopperCall<Exec> call(exec, problem, output.top_k, options, layout);
      log_hopper("indexer_topk", call.plan);
      SM90::indexer_topk(exec, problem, call.plan, output, call.merge.partials, call.merge.keep);
      if (call.plan.splits > 1) merge_partials("Tributary::indexer_topk::merge_splits", exec, call.merge, output);
      return;
    }
  topk_portable(exec, problem, output, options, layout);
}

using Space = TRIBUTARY_EXECUTION_SPACE;
template std::size_t indexer_score_workspace_size(const Space&, const IndexerScoreArguments&, const IndexerOptions&);
template void        indexer_score(const Space&, const IndexerScoreArguments&, const IndexerOptions&, const WorkspaceSpan&);
template std::size_t indexer_topk_workspace_size(const Space&, const IndexerTopkArguments&, const IndexerOptions&);
template void        indexer_topk(const Space&, const IndexerTopkArguments&, const IndexerOptions&, const WorkspaceSpan&);

}  // namespace Tributary::Impl
