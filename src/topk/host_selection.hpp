#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>

#include "topk/entry.hpp"

// Selection and sorting of a row's entries by one host thread, in loops without unpredictable branches: at the sizes that matter
// (hundreds to some thousand entries) two to four times faster than std::nth_element and std::sort, whose branches are coin tosses.

namespace Tributary::Impl {

inline std::int32_t count_from(const Entry* entries, std::int32_t count, Entry bound) {
  std::int32_t reached = 0;
  for (std::int32_t i = 0; i < count; ++i) reached += entries[i] >= bound ? 1 : 0;
  return reached;
}

/// Some bound that at least `keep` and at most `most` of `count` > `keep` distinct entries reach, by bisection.
inline Entry bound_for(Entry* entries, std::int32_t count, std::int32_t keep, std::int32_t most) {
  if (count > (1 << 15)) {  // out of the first cache levels: 20 passes cost more than mispredicted branches
    std::nth_element(entries, entries + (keep - 1), entries + count, std::greater<>{});
    return entries[keep - 1];
  }
  Entry low = entries[0], high = entries[0];  // low: reached by `keep` or more, high: by fewer
  for (std::int32_t i = 1; i < count; ++i) {
    low  = entries[i] < low ? entries[i] : low;
    high = entries[i] > high ? entries[i] : high;
  }
  ++high;
  for (std::int32_t reached = count; reached > most && high - low > 1;) {
    const Entry        middle = low + (high - low) / 2;
    const std::int32_t above  = count_from(entries, count, middle);
    if (above >= keep) {
      low     = middle;
      reached = above;
    } else {
      high = middle;
    }
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

/// Sorts entries, larger bytes first, by the bytes [first_byte, 8) that differ at all; stable.  `spare` has room for `count`.
inline void radix_sort(Entry* entries, std::int32_t count, Entry* spare, int first_byte, int last_byte) {
  Entry differ = 0;
  for (std::int32_t i = 1; i < count; ++i) differ |= entries[i] ^ entries[0];
  Entry *from = entries, *to = spare;
  for (int shift = 8 * first_byte; shift < 8 * last_byte; shift += 8) {
    if (((differ >> shift) & 255u) == 0) continue;
    std::int32_t place[256] = {};
    for (std::int32_t i = 0; i < count; ++i) ++place[(from[i] >> shift) & 255u];
    for (std::int32_t digit = 255, end = 0; digit >= 0; --digit) {
      const std::int32_t here = place[digit];
      place[digit]            = end;
      end += here;
    }
    for (std::int32_t i = 0; i < count; ++i) to[place[(from[i] >> shift) & 255u]++] = from[i];
    std::swap(from, to);
  }
  if (from != entries) std::copy(from, from + count, entries);
}

/// By score, or by index; `spare` has room for `count`.
inline void sort_entries(Entry* entries, std::int32_t count, Entry* spare, bool by_score) {
  // Entries of a stream are in index order already, and the sort by score is stable.
  bool in_index_order = true;
  for (std::int32_t i = 1; i < count; ++i)
    in_index_order &= static_cast<std::uint32_t>(entries[i - 1]) > static_cast<std::uint32_t>(entries[i]);
  if (!in_index_order) radix_sort(entries, count, spare, 0, 4);
  if (by_score) radix_sort(entries, count, spare, 4, 8);
}

}  // namespace Tributary::Impl
