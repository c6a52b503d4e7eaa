#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <utility>

#include "topk/entry.hpp"

// Selection and sorting of a row's entries by one host thread, in loops with few unpredictable branches: at the sizes that matter
// (hundreds to some thousand entries) std::nth_element and std::sort take several times as long, their branches are coin tosses.

namespace Tributary::Impl {

/// Writes the entries of a group whose bits are set, in their order; returns how many.
template <int group, class EntryAt>
inline std::int32_t copy_chosen(std::uint32_t chosen, const EntryAt& entry_at, Entry* to) {
  if (chosen == ~0u >> (32 - group)) {  // as long as there is no threshold; this loop vectorises
    for (int i = 0; i < group; ++i) to[i] = entry_at(i);
    return group;
  }
  Entry* end = to;
  for (; chosen != 0; chosen &= chosen - 1) *end++ = entry_at(std::countr_zero(chosen));
  return static_cast<std::int32_t>(end - to);
}

inline std::int32_t count_from(const Entry* entries, std::int32_t count, Entry bound) {
  std::int32_t reached = 0;
  for (std::int32_t i = 0; i < count; ++i) reached += entries[i] >= bound ? 1 : 0;
  return reached;
}

/// The entry of the score that is `share` of the way from high's down to low's; the middle of both where that is not between them.
inline Entry entry_between(Entry low, Entry high, float share) {
  const float best  = score_of(high);
  const Entry guess = static_cast<Entry>(sortable(best + share * (score_of(low) - best))) << 32;
  return low < guess && guess < high ? guess : low + (high - low) / 2;
}

/// Some bound that at least `keep` and at most `most` of `count` > `keep` distinct entries reach.  As bits, scores are spread by their
/// logarithm; interpolation between scores whose ranks are known usually needs four passes.  From then on one that halves neither the bits
/// nor the entries that are left is followed by a pass that halves the bits, however scores are spread.
inline Entry bound_for(Entry* entries, std::int32_t count, std::int32_t keep, std::int32_t most) {
  if (count > (1 << 15)) {  // out of the first cache levels: 20 passes cost more than mispredicted branches
    std::nth_element(entries, entries + (keep - 1), entries + count, std::greater<>{});
    return entries[keep - 1];
  }
  Entry low = entries[0], high = entries[0];
  for (std::int32_t i = 1; i < count; ++i) {
    low  = entries[i] < low ? entries[i] : low;
    high = entries[i] > high ? entries[i] : high;
  }
  ++high;
  std::int32_t reach_low = count, reach_high = 0;  // `keep` or more; fewer
  bool         halve = false;
  for (int pass = 1; reach_low > most && high - low > 1; ++pass) {
    const Entry        span    = high - low;
    const std::int32_t between = reach_low - reach_high;
    const float        wanted  = 0.5f * static_cast<float>(keep + most);
    const float        share   = (wanted - static_cast<float>(reach_high)) / static_cast<float>(between);
    const Entry        bound   = halve ? low + span / 2 : entry_between(low, high, share);
    const std::int32_t reach   = count_from(entries, count, bound);
    if (reach >= keep) {
      low       = bound;
      reach_low = reach;
    } else {
      high       = bound;
      reach_high = reach;
    }
    halve = !halve && pass >= 4 && high - low > span / 2 && reach_low - reach_high > between / 2;
  }
  return low;
}

/// Keeps the entries from `bound` up, in their order; never more than `most` (more than that only where an index came twice).
inline std::int32_t compact(Entry* entries, std::int32_t count, Entry bound, std::int32_t most) {
  std::int32_t end = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    const Entry entry = entries[i];
    entries[end]      = entry;
    end += entry >= bound ? 1 : 0;
  }
  return std::min(end, most);
}

/// Sorts entries, larger bytes first, by the bytes [first_byte, last_byte) that differ at all; stable.  `spare` has room for `count`.
inline void radix_sort(Entry* entries, std::int32_t count, Entry* spare, int first_byte, int last_byte) {
  Entry differ = 0;
  for (std::int32_t i = 1; i < count; ++i) differ |= entries[i] ^ entries[0];
  Entry *from = entries, *to = spare;
  for (int shift = 8 * first_byte; shift < 8 * last_byte; shift += 8) {
    if (((differ >> shift) & 255u) == 0) continue;
    std::int32_t place[256] = {};
    for (std::int32_t i = 0; i < count; ++i) ++place[(from[i] >> shift) & 255u];
    for (std::int32_t digit = 255, end = 0; digit >= 0; --digit) end += std::exchange(place[digit], end);
    for (std::int32_t i = 0; i < count; ++i) to[place[(from[i] >> shift) & 255u]++] = from[i];
    std::swap(from, to);
  }
  if (from != entries) std::copy(from, from + count, entries);
}

/// Sorts what is nearly sorted; gives up, leaving equal scores in their order, after more than `count` moves.
inline bool insertion_sort(Entry* entries, std::int32_t count) {
  std::int32_t moves = 0;
  for (std::int32_t i = 1; i < count; ++i) {
    const Entry  entry = entries[i];
    std::int32_t place = i;
    for (; place > 0 && entries[place - 1] < entry; --place) entries[place] = entries[place - 1];
    entries[place] = entry;
    moves += i - place;
    if (moves > count) return false;
  }
  return true;
}

/// Sorts by score what is in index order; `spare` has room for `count`.
inline void sort_by_score(Entry* entries, std::int32_t count, Entry* spare) {
  Entry least = entries[0], best = entries[0];
  for (std::int32_t i = 1; i < count; ++i) {
    least = entries[i] < least ? entries[i] : least;
    best  = entries[i] > best ? entries[i] : best;
  }
  // Two radix passes over the upper bits of the distance from the best leave little for insertion, unless entries are many, their scores
  // of both signs or oddly spread.  A digit of 8 bits would cost more than the moves that it saves.
  constexpr std::uint32_t digits = 1u << 7;
  const int               bits   = std::bit_width((best >> 32) - (least >> 32));
  if (bits == 0) return;
  if (bits <= 28 && count <= 1024) {
    const int    shift         = 32 + std::max(0, bits - 14);
    const auto   distance      = [best, shift](Entry entry) { return static_cast<std::uint32_t>((best - entry) >> shift); };
    std::int32_t lower[digits] = {}, upper[digits] = {};
    for (std::int32_t i = 0; i < count; ++i) {
      const std::uint32_t far = distance(entries[i]);
      ++lower[far % digits];
      ++upper[far / digits];
    }
    std::int32_t lower_end = 0, upper_end = 0;
    for (std::uint32_t digit = 0; digit < digits; ++digit) {
      lower_end += std::exchange(lower[digit], lower_end);
      upper_end += std::exchange(upper[digit], upper_end);
    }
    for (std::int32_t i = 0; i < count; ++i) spare[lower[distance(entries[i]) % digits]++] = entries[i];
    for (std::int32_t i = 0; i < count; ++i) entries[upper[distance(spare[i]) / digits]++] = spare[i];
    if (insertion_sort(entries, count)) return;
  }
  radix_sort(entries, count, spare, 4, 8);
}

/// By score, or by index; `spare` has room for `count`.
inline void sort_entries(Entry* entries, std::int32_t count, Entry* spare, bool by_score) {
  // Entries of a stream are in index order already, and the sort by score leaves equal ones in it.
  bool in_index_order = true;
  for (std::int32_t i = 1; i < count; ++i)
    in_index_order &= static_cast<std::uint32_t>(entries[i - 1]) > static_cast<std::uint32_t>(entries[i]);
  if (!in_index_order) radix_sort(entries, count, spare, 0, 4);
  if (by_score && count > 1) sort_by_score(entries, count, spare);
}

}  // namespace Tributary::Impl
