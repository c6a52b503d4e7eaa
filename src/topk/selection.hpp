#pragma once
#include <Kokkos_Core.hpp>
#include <Kokkos_NestedSort.hpp>
#include <algorithm>
#include <cstdint>

#include "Tributary_Topk.hpp"
#include "common/workers.hpp"
#include "topk/entry.hpp"
#include "topk/host_selection.hpp"

// Streaming selection of a row's k best entries.  Entries that beat the row's threshold are appended to a buffer of more than k;
// when it fills up it is cut back to its k best, the k-th of which becomes the new threshold.  A threshold only ever admits
// too much, so when the cuts happen changes the time, never the result.

namespace Tributary::Impl {

/// One row's buffer and its state, in the worker's slot.
struct Candidates {
  Entry*        entries;
  std::int32_t* count;
  Entry*        threshold;  // only entries above it can still be among the k best
};

template <class Member, bool OnHost>
class Selection {
 public:
  /// Room for `keep` entries, as many again before a cut is worth it (and to sort with), and one tile on top.
  static std::int64_t capacity(std::int64_t keep, std::int64_t tile) { return keep + std::max<std::int64_t>(keep, 512) + tile; }

  /// Team scratch of level 0 that a launch must ask for.
  static constexpr int scratch_bytes = OnHost ? 0 : 256 * sizeof(std::int32_t) + alignof(std::int32_t);

  /// Made once a team: it takes the scratch.
  KOKKOS_FUNCTION Selection(const Member& team, std::int64_t keep, std::int64_t tile, std::int64_t capacity)
      : team_(team),
        keep_(static_cast<std::int32_t>(keep)),
        full_(static_cast<std::int32_t>(capacity - tile)),
        spare_(static_cast<std::int32_t>(keep < 4 * tile ? keep / 8 : tile / 2)) {
    if constexpr (!OnHost)
      histogram_ = static_cast<std::int32_t*>(team.team_scratch(0).get_shmem_aligned(256 * sizeof(std::int32_t), alignof(std::int32_t)));
  }

  KOKKOS_FUNCTION void begin(const Candidates& row) const {
    *row.count     = 0;
    *row.threshold = no_entry;
  }

  /// Appends entries of a group, those whose bits are set: all that beat the threshold, if not more.  Called by one thread of the team
  /// for its own part of a tile.
  template <int group, class EntryAt>
  KOKKOS_INLINE_FUNCTION void append(const Candidates& row, std::uint32_t chosen, const EntryAt& entry_at) const {
    static_assert(group <= 32);
    if constexpr (OnHost) {
      KOKKOS_IF_ON_HOST((*row.count += copy_chosen<group>(chosen, entry_at, row.entries + *row.count);))
    } else {
      for (int i = 0; i < group; ++i)
        if ((chosen >> i & 1u) != 0) row.entries[Kokkos::atomic_fetch_add(row.count, 1)] = entry_at(i);
    }
  }

  /// Called by the whole team, between two barriers, after each tile.
  KOKKOS_FUNCTION void make_room(const Candidates& row) const {
    if (*row.count > full_) keep_best(row, keep_ + spare_);
  }

  /// The k best of what is left, in the wanted order, padded at the end.
  KOKKOS_FUNCTION void emit(const Candidates& row, const TopkOutput& output, std::int64_t batch, std::int64_t output_row) const {
    // Sorting a few too many costs less than an exact cut, but among entries by index the best do not come first.
    const std::int32_t most = OnHost && output.order == TopkOrder::by_score ? keep_ + spare_ : keep_;
    if (*row.count > most) keep_best(row, most);
    sort(row.entries, *row.count, output.order);
    std::int32_t* const indices = output.indices + batch * output.index_strides[0] + output_row * output.index_strides[1];
    float* const        scores =
        output.scores == nullptr ? nullptr : output.scores + batch * output.score_strides[0] + output_row * output.score_strides[1];
    const std::int64_t found = *row.count < keep_ ? *row.count : keep_;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team_, output.top_k), [&](const std::int64_t i) {
      const bool  real  = i < found;
      const Entry entry = real ? row.entries[i] : no_entry;
      indices[i]        = real ? index_of(entry) : -1;
      if (scores != nullptr) scores[i] = real ? score_of(entry) : -Kokkos::Experimental::infinity_v<float>;
    });
    team_.team_barrier();
  }

  /// The k best of what is left as a partial result of `keep` entries, in no order, padded with no_entry.
  KOKKOS_FUNCTION void emit_partial(const Candidates& row, Entry* partial) const {
    if (*row.count > keep_) keep_best(row, keep_);
    const std::int32_t found = *row.count;
    Kokkos::parallel_for(Kokkos::TeamThreadRange(team_, keep_),
                         [&](const std::int32_t i) { partial[i] = i < found ? row.entries[i] : no_entry; });
    team_.team_barrier();
  }

 private:
  /// Cuts the buffer to its `keep` best, or to a few more, `most`, where that is enough; the least of them is the new threshold.
  KOKKOS_FUNCTION void keep_best(const Candidates& row, [[maybe_unused]] std::int32_t most) const {
    if constexpr (OnHost) {
      KOKKOS_IF_ON_HOST((*row.threshold = bound_for(row.entries, *row.count, keep_, most);
                         *row.count     = compact(row.entries, *row.count, *row.threshold, most);))
    } else {
      compact_row(row, kth_best(row.entries, *row.count));
    }
  }

  /// Radix selection, eight bits at a time from the top; all threads return the k-th largest entry.
  KOKKOS_FUNCTION Entry kth_best(const Entry* entries, std::int32_t count) const {
    std::int32_t* const histogram = histogram_;
    Entry               prefix    = 0;
    std::int32_t        wanted    = keep_;
    for (int shift = 56; shift >= 0; shift -= 8) {
      Kokkos::parallel_for(Kokkos::TeamThreadRange(team_, 256), [&](const int bin) { histogram[bin] = 0; });
      team_.team_barrier();
      Kokkos::parallel_for(Kokkos::TeamThreadRange(team_, count), [&](const std::int32_t i) {
        const bool same_prefix = shift == 56 || (entries[i] >> (shift + 8)) == prefix;
        if (same_prefix) Kokkos::atomic_inc(&histogram[(entries[i] >> shift) & 255u]);
      });
      team_.team_barrier();
      int bin = 255;
      for (; bin > 0 && histogram[bin] < wanted; --bin) wanted -= histogram[bin];
      prefix = (prefix << 8) | static_cast<Entry>(bin);
      team_.team_barrier();
    }
    return prefix;
  }

  /// Keeps the entries from pivot up, in place: a stretch of the row is read by all threads before it is written.
  KOKKOS_FUNCTION void compact_row(const Candidates& row, Entry pivot) const {
    const std::int32_t count = *row.count;
    std::int32_t       end   = 0;
    for (std::int32_t first = 0; first < count; first += team_.team_size()) {
      const std::int32_t i       = first + team_.team_rank();
      const Entry        entry   = i < count ? row.entries[i] : no_entry;
      const std::int32_t wanted  = i < count && entry >= pivot ? 1 : 0;
      const std::int32_t before  = team_.team_scan(wanted);
      std::int32_t       stretch = wanted;
      team_.team_reduce(Kokkos::Sum<std::int32_t>(stretch));
      // an index given twice, against the caller's duty, may leave more than k: never write past them
      if (wanted == 1 && end + before < keep_) row.entries[end + before] = entry;
      end += stretch;
      team_.team_barrier();
    }
    Kokkos::single(Kokkos::PerTeam(team_), [&] {
      *row.count     = end < keep_ ? end : keep_;
      *row.threshold = pivot;
    });
    team_.team_barrier();
  }

  struct ByIndex {
    KOKKOS_FUNCTION bool operator()(Entry a, Entry b) const { return static_cast<std::uint32_t>(a) > static_cast<std::uint32_t>(b); }
  };
  struct ByScore {
    KOKKOS_FUNCTION bool operator()(Entry a, Entry b) const { return a > b; }
  };

  KOKKOS_FUNCTION void sort(Entry* entries, std::int32_t count, TopkOrder order) const {
    if constexpr (OnHost) {
      KOKKOS_IF_ON_HOST((sort_entries(entries, count, entries + count, order == TopkOrder::by_score);))
    } else {
      const Kokkos::View<Entry*, Kokkos::AnonymousSpace, Kokkos::MemoryUnmanaged> row(entries, count);
      team_.team_barrier();
      if (order == TopkOrder::by_score)
        Kokkos::Experimental::sort_team(team_, row, ByScore{});
      else
        Kokkos::Experimental::sort_team(team_, row, ByIndex{});
      team_.team_barrier();
    }
  }

  const Member&      team_;
  const std::int32_t keep_;
  const std::int32_t full_;
  const std::int32_t spare_;  // how many more than keep_ a cut may leave; twice as many entries, sorted, fit the buffer
  std::int32_t*      histogram_ = nullptr;
};

}  // namespace Tributary::Impl
