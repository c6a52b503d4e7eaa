#pragma once
#include <cstdint>

#include "sm90/ptx/predicated.cuh"
#include "topk/entry.hpp"

// Exact selection by one warp, over entries in device memory that other warps of the team wrote.

namespace Tributary::Impl::SM90 {

/// A score's bits in the high half, its column in the low one: an entry is made of it where it is read, since appending has no time.
using Candidate = std::uint64_t;

__device__ inline Candidate make_candidate(float score, int column) {
  return static_cast<Candidate>(Kokkos::bit_cast<std::uint32_t>(score)) << 32 | static_cast<std::uint32_t>(column);
}
__device__ inline Candidate candidate_of(Entry entry) { return make_candidate(score_of(entry), index_of(entry)); }

__device__ inline Entry entry_of(Candidate candidate) {
  return make_entry(sortable(Kokkos::bit_cast<float>(static_cast<std::uint32_t>(candidate >> 32))), static_cast<std::uint32_t>(candidate));
}
/// Written by other warps: past the first-level cache.
__device__ inline Candidate load_candidate(const Candidate* from) { return __ldcg(reinterpret_cast<const unsigned long long*>(from)); }

/// Calls use(candidates, which of them are there) for candidates 0 ... count - 1: `InFlight` of a lane at a time, while as many are on
/// their way.  What is used may be overwritten.
template <int InFlight, class Use>
__device__ void for_each_batch(const Candidate* candidates, int count, int lane, const Use& use) {
  const Candidate* at = candidates + lane;
  Candidate        next[InFlight];
  const auto       load = [&](int left) {
#pragma unroll
    for (int u = 0; u < InFlight; ++u) next[u] = u * 32 < left ? load_candidate(at + u * 32) : 0;
    at += 32 * InFlight;
  };
  int left = count - lane;  // of the lane's first one on
  load(left);
#pragma unroll 1
  for (int first = 0; first < count; first += 32 * InFlight) {
    Candidate now[InFlight];
    bool      real[InFlight];
#pragma unroll
    for (int u = 0; u < InFlight; ++u) {
      real[u] = u * 32 < left;
      now[u]  = next[u];
    }
    left -= 32 * InFlight;
    load(left);
    __syncwarp();
    use(now, real);
  }
}

/// Calls use(entry, is there one) for each, 32 neighbours at a time.
template <int InFlight, class Use>
__device__ void for_each_entry(const Candidate* candidates, int count, int lane, const Use& use) {
  for_each_batch<InFlight>(candidates, count, lane, [&](const Candidate(&candidate)[InFlight], const bool(&real)[InFlight]) {
#pragma unroll
    for (int u = 0; u < InFlight; ++u) use(real[u] ? entry_of(candidate[u]) : no_entry, real[u]);
  });
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
    const uint4 high = reinterpret_cast<const uint4*>(bins)[2 * (31 - lane) + 1],
                low  = reinterpret_cast<const uint4*>(bins)[2 * (31 - lane)];
    count[0] = static_cast<int>(high.w), count[1] = static_cast<int>(high.z), count[2] = static_cast<int>(high.y),
    count[3] = static_cast<int>(high.x);
    count[4] = static_cast<int>(low.w), count[5] = static_cast<int>(low.z), count[6] = static_cast<int>(low.y),
    count[7] = static_cast<int>(low.x);
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

/// The k-th largest of distinct entries, 1 <= k <= count: bins over the span of the entries, then over the bin that holds it, and so on.
/// Uses the bins, which hold nothing afterwards.
template <int InFlight>
__device__ Entry kth_entry(const Candidate* entries, int count, int k, std::uint32_t* bins, int lane) {
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
    const Entry span = (Entry{1} << shift) - 1;  // low + span may be past 2^64
    high             = high - low > span ? low + span : high;
  }
}

/// Keeps the entries from `least` up, in place; returns how many, and the greatest.
template <int InFlight>
__device__ int keep_from(Candidate* entries, int count, Entry least, Entry& greatest, int lane) {
  const unsigned below_me = (1u << lane) - 1;
  int            kept     = 0;
  greatest                = 0;
  for_each_entry<InFlight>(entries, count, lane, [&](Entry entry, bool real) {
    const bool     keep = real && entry >= least;
    const unsigned mask = __ballot_sync(0xffffffffu, keep);
    if (keep) {
      entries[kept + __popc(mask & below_me)] = candidate_of(entry);  // never past what has been read
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

/// Where a warp sorts a stretch of its candidates.
struct SortRoom {
  static constexpr int candidates = 896, bins = 512;  // the last bin stays empty

  Candidate     found[candidates];
  Entry         sorted[candidates];  // their keys
  std::uint32_t bin[bins];
};
static_assert(sizeof(SortRoom) == 16384);

/// Calls emit(position, key) for candidates room.found[0] ... [count - 1], the greatest key first, at positions from 0; their values lie in
/// [least, greatest].  False, before anything is emitted, if the values crowd so that this would be slow.
template <class Order, class Emit>
__device__ bool emit_found(SortRoom& room, int count, float least, float greatest, int lane, const Order& order, const Emit& emit) {
  constexpr int together = 4, crowd = 48;  // candidates of a lane side by side: their chains of dependent instructions overlap
  const float   scale  = static_cast<float>(SortRoom::bins - 1) / (greatest - least);
  const auto    bin_of = [&](float value) {
    const int bin = __float2int_rz(__fmul_rn(__fsub_rn(value, least), scale));  // NaN goes to bin 0
    return max(0, min(bin, SortRoom::bins - 2));
  };
  auto* const fours = reinterpret_cast<uint4*>(room.bin);
  for (int i = lane; i < SortRoom::bins / 4; i += 32) fours[i] = make_uint4(0, 0, 0, 0);
  __syncwarp();
#pragma unroll 1
  for (int first = lane; first < count; first += 32 * together)
#pragma unroll
    for (int u = 0; u < together; ++u) {
      const int i = first + 32 * u;
      ptx::red_shared_inc_if(i < count, room.bin + bin_of(order.value(room.found[i < count ? i : first])));
    }
  __syncwarp();
  // from counts to where a bin's next key goes, the highest bin first
  std::uint32_t before = 0, most = 0;
#pragma unroll 1
  for (int i = SortRoom::bins / 4 - 1 - lane; i >= 0; i -= 32) {
    const uint4         n   = fours[i];
    const std::uint32_t sum = n.x + n.y + n.z + n.w;
    most                    = max(max(most, max(n.x, n.y)), max(n.z, n.w));
    std::uint32_t through   = sum;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const std::uint32_t other = __shfl_up_sync(0xffffffffu, through, distance);
      if (lane >= distance) through += other;
    }
    const std::uint32_t start = before + through - sum;
    fours[i]                  = make_uint4(start + n.w + n.z + n.y, start + n.w + n.z, start + n.w, start);
    before += __shfl_sync(0xffffffffu, through, 31);
  }
  __syncwarp();
  if (__reduce_max_sync(0xffffffffu, most) > crowd) return false;
#pragma unroll 1
  for (int first = lane; first < count; first += 32 * together) {
    Candidate     candidate[together];
    std::uint32_t place[together];
#pragma unroll
    for (int u = 0; u < together; ++u) {
      const int i  = first + 32 * u;
      candidate[u] = room.found[i < count ? i : first];
      place[u]     = ptx::atom_shared_add_if(i < count, room.bin + bin_of(order.value(candidate[u])), 1u);
    }
#pragma unroll
    for (int u = 0; u < together; ++u) ptx::st_shared_if(first + 32 * u < count, room.sorted + place[u], order.key(candidate[u]));
  }
  __syncwarp();
#pragma unroll 1
  for (int first = lane; first < count; first += 32 * together) {
    Entry key[together];
    int   begin[together], stop[together], position[together], longest = 0;
#pragma unroll
    for (int u = 0; u < together; ++u) {
      key[u]        = room.sorted[first + 32 * u < count ? first + 32 * u : first];
      const int bin = bin_of(order.value_of_key(key[u]));
      begin[u]      = static_cast<int>(room.bin[bin + 1]);  // a bin filled up ends where the next lower one starts
      stop[u]       = static_cast<int>(room.bin[bin]);
      position[u]   = begin[u];
      longest       = max(longest, stop[u] - begin[u]);
    }
#pragma unroll 1
    for (int other = 0; other < longest; ++other)
#pragma unroll
      for (int u = 0; u < together; ++u) {
        const int at = begin[u] + other;  // only the lanes that still have one to compare with use the banks
        position[u] += ptx::ld_shared_if(at < stop[u], room.sorted + at) > key[u] ? 1 : 0;
      }
#pragma unroll
    for (int u = 0; u < together; ++u)
      if (first + 32 * u < count) emit(position[u], key[u]);
  }
  __syncwarp();
  return true;
}

/// Calls emit(position, key) for the first of the `wanted` best of candidates 0 ... count - 1, the greatest key first, and returns for how
/// many: all, unless they crowd in a bin.  Then those that are still wanted are among candidates 0 ... count - 1.
///
/// `coarse` holds the number of candidates in each of 256 bins that never fall as the key rises.  All of a bin and of higher ones lie above
/// order.edge(bin), and few of lower ones.
template <int InFlight, class Order, class Emit>
__device__ int emit_sorted(Candidate* candidates, int& count, int wanted, const std::uint32_t* coarse, SortRoom& room, int lane,
                           const Order& order, const Emit& emit) {
  const BinCounts counts(coarse, lane);
  const auto      last       = counts.find(wanted, lane);
  const int       lowest_bin = last.bin < 0 ? 0 : last.bin;
  int             end[8];  // position after the bin's last candidate
  {
    int position = counts.before;
#pragma unroll
    for (int i = 0; i < 8; ++i) end[i] = position += counts.count[i];
  }
  const auto     least_wanted = order.edge(lowest_bin);
  const unsigned below_me     = (1u << lane) - 1;
  // As many bins at a time as the room takes, with some to spare for what lies between a bin and its edge.
  int done = 0;
  for (int top = 256; done < wanted && top > lowest_bin;) {
    int lowest = 256;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int bin = BinCounts::bin(i, lane);
      if (bin >= lowest_bin && bin < top && end[i] - done <= SortRoom::candidates - 64) lowest = bin;
    }
    const int bottom = __reduce_min_sync(0xffffffffu, lowest);
    if (bottom == 256) break;
    const auto lower   = order.edge(bottom);
    const bool is_last = bottom == lowest_bin;  // else the others that are wanted close up
    int        found = 0, left = 0;             // in the room; among the candidates
    float      greatest = -__int_as_float(0x7f800000), least = -greatest;
    for_each_batch<InFlight>(candidates, count, lane, [&](const Candidate(&candidate)[InFlight], const bool(&real)[InFlight]) {
      bool     is_found[InFlight];
      unsigned here[InFlight];
#pragma unroll
      for (int u = 0; u < InFlight; ++u) {
        is_found[u] = real[u] & order.above(candidate[u], lower);
        here[u]     = __ballot_sync(0xffffffffu, is_found[u]);
      }
#pragma unroll
      for (int u = 0; u < InFlight; ++u) {
        const float value = order.value(candidate[u]);
        greatest          = is_found[u] ? fmaxf(greatest, value) : greatest;
        least             = is_found[u] ? fminf(least, value) : least;
        const int place   = found + __popc(here[u] & below_me);
        is_found[u] &= place < SortRoom::candidates;
        ptx::st_shared_if(is_found[u], room.found + place, candidate[u]);
        found += __popc(here[u]);
      }
      if (is_last) return;
#pragma unroll
      for (int u = 0; u < InFlight; ++u) {
        const bool     stays   = real[u] & !is_found[u] & order.above(candidate[u], least_wanted);
        const unsigned staying = __ballot_sync(0xffffffffu, stays);
        ptx::st_global_if(stays, candidates + left + __popc(staying & below_me), candidate[u]);
        left += __popc(staying);
      }
    });
    __syncwarp();
    if (!is_last) count = left;
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
      greatest = fmaxf(greatest, __shfl_xor_sync(0xffffffffu, greatest, distance));
      least    = fminf(least, __shfl_xor_sync(0xffffffffu, least, distance));
    }
    if (found > SortRoom::candidates || !emit_found(room, found, least, greatest, lane, order, [&](int position, Entry key) {
          if (done + position < wanted) emit(done + position, key);
        })) {
      if (is_last) return done;
      found = min(found, SortRoom::candidates);
      for (int i = lane; i < found; i += 32) candidates[count + i] = room.found[i];
      count += found;
      __syncwarp();
      return done;
    }
    done += found;
    top = bottom;
  }
  return min(done, wanted);
}

}  // namespace Tributary::Impl::SM90
