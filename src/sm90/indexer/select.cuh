#pragma once
#include <cstdint>

#include "topk/entry.hpp"

// Exact selection by one warp, over entries in device memory that other warps of the team wrote.

namespace Tributary::Impl::SM90 {

__device__ inline Entry load_entry(const Entry* from) { return __ldcg(reinterpret_cast<const unsigned long long*>(from)); }

/// Calls use(entry, is there one) for entries 0 ... count - 1, 32 neighbours at a time, with `InFlight` loads on their way.
template <int InFlight, class Use>
__device__ void for_each_entry(const Entry* entries, int count, int lane, const Use& use) {
  for (int first = 0; first < count; first += 32 * InFlight) {
    Entry entry[InFlight];
#pragma unroll
    for (int u = 0; u < InFlight; ++u) {
      const int i = first + u * 32 + lane;
      entry[u]    = i < count ? load_entry(entries + i) : no_entry;
    }
    __syncwarp();
#pragma unroll
    for (int u = 0; u < InFlight; ++u) use(entry[u], first + u * 32 + lane < count);
  }
}

__device__ inline Entry warp_max(Entry entry) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    const Entry other = __shfl_xor_sync(0xffffffffu, entry, distance);
    entry             = other > entry ? other : entry;
  }
  return entry;
}

/// 256 counters in shared memory, as a warp reads them: from the last one down, 8 a lane.
struct BinCounts {
  int count[8], before;  // before: in all higher bins

  __device__ BinCounts(const std::uint32_t* bins, int lane) {
    const uint4 high = reinterpret_cast<const uint4*>(bins)[2 * (31 - lane) + 1], low = reinterpret_cast<const uint4*>(bins)[2 * (31 - lane)];
    count[0] = static_cast<int>(high.w), count[1] = static_cast<int>(high.z), count[2] = static_cast<int>(high.y), count[3] = static_cast<int>(high.x);
    count[4] = static_cast<int>(low.w), count[5] = static_cast<int>(low.z), count[6] = static_cast<int>(low.y), count[7] = static_cast<int>(low.x);
    int mine = 0;
#pragma unroll
    for (const int c : count) mine += c;
    int sum = mine;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, sum, distance);
      if (lane >= distance) sum += other;
    }
    before = sum - mine;
  }
  __device__ static int bin(int i, int lane) { return 255 - 8 * lane - i; }

  struct Place {
    int bin, above, inside;
  };
  /// The bin that holds the wanted-th entry from the top; bin -1 if there are fewer.
  __device__ Place find(int wanted, int lane) const {
    Place mine{-1, 0, 0};
    int   above = before;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (above < wanted && wanted <= above + count[i]) mine = {bin(i, lane), above, count[i]};
      above += count[i];
    }
    const unsigned found = __ballot_sync(0xffffffffu, mine.bin >= 0);
    if (found == 0) return mine;
    const int source = __ffs(static_cast<int>(found)) - 1;
    return {__shfl_sync(0xffffffffu, mine.bin, source), __shfl_sync(0xffffffffu, mine.above, source),
            __shfl_sync(0xffffffffu, mine.inside, source)};
  }
};

__device__ inline void clear_bins(std::uint32_t* bins, int lane) {
  __syncwarp();
  reinterpret_cast<uint4*>(bins)[lane] = reinterpret_cast<uint4*>(bins)[lane + 32] = make_uint4(0, 0, 0, 0);
  __syncwarp();
}

/// The k-th largest of distinct entries, 1 <= k <= count: bins over the span of the entries, then over the bin that holds it, and so on.  Uses
/// the bins, which hold nothing afterwards.
template <int InFlight>
__device__ Entry kth_entry(const Entry* entries, int count, int k, std::uint32_t* bins, int lane) {
  Entry low = ~Entry{0}, high = 0;
  for_each_entry<InFlight>(entries, count, lane, [&](Entry entry, bool real) {
    if (!real) return;
    low  = entry < low ? entry : low;
    high = entry > high ? entry : high;
  });
  high = warp_max(high);
  low  = ~warp_max(~low);
  for (int wanted = k;;) {
    const int bits = 64 - __clzll(static_cast<long long>(high - low)), shift = bits > 8 ? bits - 8 : 0;
    clear_bins(bins, lane);
    for_each_entry<InFlight>(entries, count, lane, [&](Entry entry, bool real) {
      if (real && low <= entry && entry <= high) atomicAdd(&bins[(entry - low) >> shift], 1u);
    });
    __syncwarp();
    const auto place = BinCounts(bins, lane).find(wanted, lane);
    low += static_cast<Entry>(place.bin) << shift;
    wanted -= place.above;
    // all of the bin is wanted, or it holds one value (several entries only if an index came twice)
    if (place.inside == wanted || shift == 0) {
      clear_bins(bins, lane);
      return low;
    }
    const Entry last = low + ((Entry{1} << shift) - 1);
    high             = last < high ? last : high;
  }
}

/// Keeps the entries from `least` up, in place; returns how many, and the greatest.
template <int InFlight>
__device__ int keep_from(Entry* entries, int count, Entry least, Entry& greatest, int lane) {
  const unsigned below_me = (1u << lane) - 1;
  int            kept     = 0;
  greatest                = 0;
  for_each_entry<InFlight>(entries, count, lane, [&](Entry entry, bool real) {
    const bool     keep = real && entry >= least;
    const unsigned mask = __ballot_sync(0xffffffffu, keep);
    if (keep) {
      entries[kept + __popc(mask & below_me)] = entry;  // never past what has been read
      greatest                                = entry > greatest ? entry : greatest;
    }
    kept += __popc(mask);
  });
  __syncwarp();
  greatest = warp_max(greatest);
  return kept;
}

/// Sorts 2^n entries in shared memory, the greatest first.
__device__ inline void bitonic_sort(Entry* list, int size, int lane) {
  for (int run = 2; run <= size; run *= 2)
    for (int distance = run / 2; distance > 0; distance /= 2) {
      __syncwarp();
      for (int i = lane; i < size / 2; i += 32) {
        const int   at = ((i & ~(distance - 1)) << 1) | (i & (distance - 1));
        const Entry a = list[at], b = list[at + distance];
        if ((a < b) == ((at & run) == 0)) {
          list[at]            = b;
          list[at + distance] = a;
        }
      }
    }
  __syncwarp();
}

/// Calls emit(position, entry) for the `wanted` first of the entries sorted by `bin_of` and, within a bin, by `key_of`, the greatest first.
/// `bins` holds the number of entries in each bin, and nothing of use afterwards; `list` is room in shared memory.  False, before anything is
/// emitted, if a bin is so crowded that this would be slow.
template <int InFlight, class BinOf, class KeyOf, class Emit>
__device__ bool emit_sorted(const Entry* entries, int count, int wanted, std::uint32_t* bins, Entry* list, int room, int lane,
                            const BinOf& bin_of, const KeyOf& key_of, const Emit& emit) {
  constexpr int crowd = 64;
  int           end[8], lowest_bin;  // end: position after the bin's last entry
  {
    const BinCounts counts(bins, lane);
    const auto      last = counts.find(wanted, lane);
    lowest_bin           = last.bin < 0 ? 0 : last.bin;
    int  position        = counts.before;
    int  start[8];
    bool crowded = false;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      start[i] = position;
      position += counts.count[i];
      end[i] = position;
      crowded |= counts.count[i] > crowd && BinCounts::bin(i, lane) >= lowest_bin;
    }
    if (__any_sync(0xffffffffu, crowded)) return false;
    __syncwarp();
    // from counts to where a bin's next entry goes
    reinterpret_cast<int4*>(bins)[2 * (31 - lane) + 1] = make_int4(start[3], start[2], start[1], start[0]);
    reinterpret_cast<int4*>(bins)[2 * (31 - lane)]     = make_int4(start[7], start[6], start[5], start[4]);
    __syncwarp();
  }
  // As many bins at a time as the room takes.
  for (int done = 0, top = 256; done < wanted && top > lowest_bin;) {
    int lowest = 256, reach = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int bin = BinCounts::bin(i, lane);
      if (bin >= lowest_bin && bin < top && end[i] - done <= room) {
        lowest = bin;
        reach  = end[i];
      }
    }
    const int bottom = __reduce_min_sync(0xffffffffu, lowest);
    reach            = __reduce_max_sync(0xffffffffu, reach);
    for_each_entry<InFlight>(entries, count, lane, [&](Entry entry, bool real) {
      const int bin = real ? bin_of(entry) : -1;
      if (bottom <= bin && bin < top) list[static_cast<int>(atomicAdd(&bins[bin], 1u)) - done] = entry;
    });
    __syncwarp();
    for (int i = lane; i < reach - done; i += 32) {
      const Entry entry = list[i], key = key_of(entry);
      const int   bin = bin_of(entry);
      // a bin filled up ends where the next lower one starts
      const int begin = bin == 255 ? 0 : static_cast<int>(bins[bin + 1]), stop = static_cast<int>(bins[bin]);
      int       position = begin;
      for (int other = begin; other < stop; ++other) position += key_of(list[other - done]) > key ? 1 : 0;
      if (position < wanted) emit(position, entry);
    }
    __syncwarp();
    done = reach;
    top  = bottom;
  }
  return true;
}

}  // namespace Tributary::Impl::SM90
