#pragma once
#include <cstdint>
#include <string_view>

#include "Tributary_Topk.hpp"
#include "common/segment.hpp"
#include "common/workers.hpp"
#include "topk/entry.hpp"
#include "topk/selection.hpp"

namespace Tributary::Impl {

// The checks of the public operators, and where their results go.
TopkOutput check_topk_output(std::string_view function, const Tensor<std::int32_t, 3>& indices, bool has_scores,
                             const Tensor<float, 3>& scores, TopkOrder order);
TopkOutput check_topk(const TopkArguments&, const TopkOptions&);
TopkOutput check_topk_merge(const TopkMergeArguments&, const TopkMergeOptions&);

/// How one selection over rows x columns is cut into work items and what it needs of the workspace.
struct TopkPlan {
  std::int64_t batch, rows;  // rows of each batch entry
  std::int64_t keep;         // entries a row can yield: min(k, columns)
  std::int64_t tile;         // columns between two looks at the buffer
  std::int64_t splits;       // parts of a row, each a work item
  // More than one partial list a row: this launch leaves lists first_list ... first_list + splits - 1, and merge_partials ends it.
  std::int64_t partial_lists, first_list;
  std::int64_t workers;
  std::int64_t capacity;
  // workspace
  Entry *       candidates, *partials;
  std::int32_t* counts;
  Entry*        thresholds;

  std::int64_t items() const { return batch * rows * splits; }
};

/// Selects the k best of each row of a Source, one row (or one split of it) a work item.
///
/// A Source has columns(batch, row): the half-open range of columns, and entry(batch, row, column): no_entry for a column that
/// takes no part.
template <class Exec, class Source>
struct SelectRows {
  using Member = typename WorkerPolicy<Exec>::member_type;
  using Select = Selection<Member, on_host<Exec>>;

  // Columns looked at by one thread at a time; a host thread first asks whether any beats the threshold, which vectorises.
  static constexpr int group = on_host<Exec> ? 32 : 4;

  Source     source;
  TopkPlan   plan;
  TopkOutput output;

  KOKKOS_FUNCTION void operator()(const Member& team) const {
    const std::int64_t worker = team.league_rank();
    const Select       select(team, plan.keep, plan.tile, plan.capacity);
    const Candidates   row{plan.candidates + worker * plan.capacity, plan.counts + worker, plan.thresholds + worker};
    for (std::int64_t item = worker; item < plan.batch * plan.rows * plan.splits; item += team.league_size()) {
      const std::int64_t split = item % plan.splits, flat_row = item / plan.splits;
      const std::int64_t batch = flat_row / plan.rows, r = flat_row % plan.rows;
      Kokkos::single(Kokkos::PerTeam(team), [&] { select.begin(row); });
      team.team_barrier();
      stream(team, select, row, batch, r, split);
      if (plan.partial_lists > 1)
        select.emit_partial(row, plan.partials + (flat_row * plan.partial_lists + plan.first_list + split) * plan.keep);
      else
        select.emit(row, output, batch, r);
    }
  }

 private:
  KOKKOS_FUNCTION void stream(const Member& team, const Select& select, const Candidates& row, std::int64_t batch, std::int64_t r,
                              std::int64_t split) const {
    const auto         columns = source.columns(batch, r);
    const std::int64_t length  = columns.end > columns.begin ? columns.end - columns.begin : 0;
    const std::int64_t begin   = columns.begin + length * split / plan.splits;
    const std::int64_t end     = columns.begin + length * (split + 1) / plan.splits;
    for (std::int64_t first = begin; first < end; first += plan.tile) {
      const std::int64_t in_tile = end - first < plan.tile ? end - first : plan.tile;
      Kokkos::parallel_for(Kokkos::TeamThreadRange(team, (in_tile + group - 1) / group), [&](const std::int64_t g) {
        const std::int64_t column    = first + g * group;
        const std::int64_t rest      = in_tile - g * group;  // of this tile, which need not be a multiple of the group
        const int          count     = static_cast<int>(rest < group ? rest : group);
        const Entry        threshold = *row.threshold;
        const auto         entry_at  = [&](int i) { return source.entry(batch, r, column + i); };
        if constexpr (on_host<Exec>) {
          if (count == group) {
            Entry best = no_entry;
            for (int i = 0; i < group; ++i) best = entry_at(i) > best ? entry_at(i) : best;
            if (best <= threshold) return;
          }
        }
        const auto    bit    = [&](int i) { return (entry_at(i) > threshold ? 1u : 0u) << i; };
        std::uint32_t chosen = 0;
        if (count == group)  // a loop of constant length vectorises
          for (int i = 0; i < group; ++i) chosen |= bit(i);
        else
          for (int i = 0; i < count; ++i) chosen |= bit(i);
        select.template append<group>(row, chosen, entry_at);
      });
      team.team_barrier();
      select.make_room(row);
      team.team_barrier();  // nothing is appended before every thread has looked at the count
    }
  }
};

/// The entries that earlier launches left of each row in the workspace.
struct PartialEntries {
  const Entry* entries;
  std::int64_t rows, columns_each;

  KOKKOS_FUNCTION KeyInterval columns(std::int64_t, std::int64_t) const { return {0, columns_each}; }
  KOKKOS_FUNCTION Entry       entry(std::int64_t batch, std::int64_t row, std::int64_t column) const {
          return entries[(batch * rows + row) * columns_each + column];
  }
};

template <class Exec, class Source>
void select_rows(const char* label, const Exec& exec, const Source& source, const TopkPlan& plan, const TopkOutput& output) {
  const std::int64_t workers = std::min(plan.workers, plan.items());
  if (workers == 0) return;
  using Functor = SelectRows<Exec, Source>;
  Kokkos::parallel_for(label,
                       WorkerPolicy<Exec>(exec, static_cast<int>(workers), team_size<Exec>)
                           .set_scratch_size(0, Kokkos::PerTeam(Functor::Select::scratch_bytes)),
                       Functor{source, plan, output});
}

template <class Exec>
void take_workspace(TopkPlan& plan, WorkspaceLayout& layout) {
  plan.capacity   = SelectRows<Exec, PartialEntries>::Select::capacity(plan.keep, plan.tile);
  plan.candidates = layout.take<Entry>(plan.workers * plan.capacity);
  plan.counts     = layout.take<std::int32_t>(plan.workers);
  plan.thresholds = layout.take<Entry>(plan.workers);
  plan.partials   = layout.take<Entry>(plan.partial_lists > 1 ? plan.batch * plan.rows * plan.partial_lists * plan.keep : 0);
}

/// Parts of a row to work on at the same time: more than one only where there are fewer items than workers, and then no part
/// shorter than `least` columns.
inline std::int64_t automatic_splits(std::int64_t items, std::int64_t workers, std::int64_t columns, std::int64_t least) {
  if (items == 0 || items >= workers) return 1;
  return std::max<std::int64_t>(1, std::min((2 * workers + items - 1) / items, columns / least));
}

/// Cuts a selection into work items and lays out its workspace from `base` (null: only to count bytes).
template <class Exec>
TopkPlan plan_topk(const Exec& exec, std::int64_t batch, std::int64_t rows, std::int64_t columns, std::int64_t top_k,
                   const TopkOptions& options, WorkspaceLayout& layout) {
  constexpr std::int64_t group = 32;
  TopkPlan               plan{};
  plan.batch   = batch;
  plan.rows    = rows;
  plan.keep    = std::max<std::int64_t>(1, std::min(top_k, columns));
  plan.tile    = options.chunk_keys > 0 ? (options.chunk_keys + group - 1) / group * group : 1024;
  plan.workers = concurrent_workers(exec);
  plan.splits =
      options.key_splits > 0 ? options.key_splits : automatic_splits(batch * rows, plan.workers, columns, 4 * (plan.keep + plan.tile));
  plan.partial_lists = plan.splits;
  take_workspace<Exec>(plan, layout);
  return plan;
}

/// After launches with plan.partial_lists > 1: each row's partial lists into its k best.
template <class Exec>
void merge_partials(const char* label, const Exec& exec, const TopkPlan& plan, const TopkOutput& output) {
  TopkPlan merge = plan;
  merge.splits = merge.partial_lists = 1;
  select_rows(label, exec, PartialEntries{plan.partials, plan.rows, plan.partial_lists * plan.keep}, merge, output);
}

}  // namespace Tributary::Impl
