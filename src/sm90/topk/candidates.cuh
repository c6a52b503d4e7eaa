#pragma once
#include "sm90/topk/sort.cuh"
#include "topk/entry.hpp"

// The candidates of one row in shared memory.  Entries that may still be among the `keep` best are appended to a pool; when it is full it
// is cut back to the `keep` best, or to a few more where that is cheaper, and what it would take to be among them is the new bound.  A
// bound only ever admits too much, so neither the order of arrival nor the moment of a cut changes the result.

namespace Tributary::Impl::SM90 {

/// Bins of equal width below `high`; bin 0 holds the best.
struct EntryBins {
  Entry high;
  int   shift;  // a bin is 2^shift wide

  __device__ int bin(Entry entry) const { return static_cast<int>((high - entry) >> shift); }
  /// The largest and the least entry that a bin could hold.
  __device__ Entry top(int bin) const { return high - (static_cast<Entry>(bin) << shift); }
  __device__ Entry bottom(int bin) const {
    const Entry down = (static_cast<Entry>(bin + 1) << shift) - 1;  // 2^64 - 1 where the shift loses the one bit
    return down > high ? Entry{0} : high - down;
  }
};

/// \tparam Threads  of the group that owns the pool
/// \tparam Bins     of the final ranking; a power of two, about as many as there are results
template <int Threads, int Bins>
class Candidates {
 public:
  using Team = Group<Threads>;

  /// Where the wanted-th best entry was found.
  struct Place {
    EntryBins bins;
    int       bin;
    int       above, inside;  // entries in better bins, in this one
    bool      crowded;        // this bin or a better one has more than `crowd` entries
  };

  /// A score of some rank among one of each thread, and whether it is one of so many equal ones, or of so many in one warp, that the scores
  /// may be no fair sample.
  struct RankedScore {
    unsigned score;
    bool     odd;
  };

  // An entry's rank in its bin is found by comparing with the others there: past this many, sorting everything is cheaper.
  static constexpr int crowd = 128;

  static constexpr int ranked_capacity(int keep, int capacity) { return keep + crowd < capacity ? keep + crowd : capacity; }

  /// Shared memory for a pool of `capacity` entries, at least the power of two that `keep` rounds up to and one for each thread; a multiple
  /// of 16.  Without a ranking `keep` may be 0.
  static constexpr int scratch_bytes(int keep, int capacity) {
    const int ranked = keep == 0 ? 0 : ranked_capacity(keep, capacity);
    return (capacity + capacity % 2 + ranked + ranked % 2) * static_cast<int>(sizeof(Entry)) + 2 * Bins * static_cast<int>(sizeof(int)) +
           static_cast<int>(sizeof(Control));
  }

  /// \param keep  how many of the best are wanted
  /// \param most  how many a cut may leave, from `keep` to less than `capacity`
  __device__ Candidates(unsigned char* scratch, int keep, int most, int capacity) : keep_(keep), most_(most), capacity_(capacity) {
    control_   = reinterpret_cast<Control*>(scratch);
    histogram_ = reinterpret_cast<int*>(control_ + 1);
    pool_      = reinterpret_cast<Entry*>(histogram_ + 2 * Bins);
    ranked_    = pool_ + capacity + capacity % 2;
    if (Team::rank() == 0) control_->count = 0;
    Team::sync();
  }

  /// Entries below it are not among the `keep` best.
  __device__ Entry bound() const { return bound_; }
  /// Only for a bound known from elsewhere: one that `keep` entries reach, or that all entries of its score do.  Values are compared by
  /// score before they come here, so of the pool's entries all must reach it whenever a cut keeps `keep` of them.
  __device__ void set_bound(Entry bound) { bound_ = bound; }

  /// How many there are; after a barrier.
  __device__ int count() const { return control_->count; }

  __device__ const Entry* entries() const { return pool_; }

  /// Appends the entries entry_at(i) of the bits i < Count of `mask`.  False if there was no room for all of some thread's: then the pool
  /// has been cut, the bound is new and `mask` is what is left.  Called by all threads together; ends with a barrier.
  ///
  /// \tparam Count  0: entry_at takes numbers that are not known when this is compiled
  template <int Count, class EntryAt>
  __device__ __forceinline__ bool offer(unsigned& mask, const EntryAt& entry_at) {
    static_assert(Count <= 32);
    mask = append<Count>(mask, entry_at);
    if (!Team::any(mask != 0)) return true;
    cut(keep_, most_);
    return false;
  }

  /// The same for a thread alone; what finds no room is lost, but counted.
  template <class EntryAt>
  __device__ __forceinline__ void add(unsigned mask, const EntryAt& entry_at) {
    append<0>(mask, entry_at);
  }

  __device__ int capacity() const { return capacity_; }

  /// Whether something was lost; after a barrier.
  __device__ bool lost() const { return control_->count > capacity_; }

  /// Bits of `mask` whose entries are within [bound, below].
  template <int Count, class EntryAt>
  __device__ __forceinline__ unsigned within(unsigned mask, Entry below, const EntryAt& entry_at) const {
    unsigned wanted = 0;
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      const Entry entry = entry_at(i);
      if (entry >= bound_ && entry <= below) wanted |= 1u << i;
    }
    return wanted & mask;
  }

  /// Cuts to the `keep` best or a few more, `most` at most; they reach the new bound, which is never below the last one.  Called by all
  /// threads after a barrier with more than `most` entries in the pool; ends with a barrier.
  __device__ void cut(int keep, int most) {
    const int   n     = entries_in_pool();
    const Entry least = bound_;
    Entry       low = 0, high = ~Entry{0};
    int         above = 0;
    for (;;) {  // each round looks into the bin that holds the keep-th best, until few others are in it
      const Place place = locate<2 * Bins, false>(n, low, high, keep - above);
      bound_            = place.bins.bottom(place.bin);
      if (above + place.above + place.inside <= most || place.bins.shift == 0) break;
      above += place.above;
      low  = bound_;
      high = place.bins.top(place.bin);
    }
    // The bin may reach further down than the last bound, past entries that were left out for that one; `keep` reach both.
    if (bound_ < least) bound_ = least;
    compact(n, most);
  }

  /// Rank 0 is the best one's.  Called by all threads with an empty pool; ends with a barrier.
  __device__ RankedScore score_of_rank(unsigned own, int rank) {
    const int   further   = min(2 * rank + 16, Threads - 1);
    auto* const lists     = reinterpret_cast<unsigned*>(pool_);  // a warp's 32, in order
    unsigned    sorted[1] = {own};
    sort_in_warp(sorted);
    lists[Team::rank()] = sorted[0];
    Team::sync();
    int better = Team::lane(), own_warp = Team::warp();
    asm volatile("" : "+r"(own_warp));  // or the addresses of the lists would stay in registers from row to row
#pragma unroll
    for (int other = 1; other < Team::warps; ++other) {
      const int       warp  = (own_warp + other) % Team::warps;
      const unsigned* list  = lists + 32 * warp;
      const unsigned  from  = sorted[0] + (warp < own_warp ? 0 : 1);  // of equal ones the first warp's is better
      int             count = 0;
#pragma unroll
      for (int step = 16; step > 0; step /= 2) count += list[count + step - 1] >= from ? step : 0;
      better += count + (list[count] >= from ? 1 : 0);
    }
    if (better == rank) control_->found = sorted[0], control_->in_warp = Team::lane();
    if (better == further) control_->further = sorted[0];
    Team::sync();
    return {control_->found, control_->found == control_->further || control_->in_warp > 2 * rank / Team::warps + 8};
  }

  /// Empty.  Called by all threads after a barrier; ends with one.
  __device__ void restart() {
    if (Team::rank() == 0) control_->count = 0;
    Team::sync();
  }

  /// Where the wanted-th best entry lies, and all that arrange() needs.  1 <= wanted <= count().  Called by all threads after a barrier.
  __device__ Place find(int wanted) { return locate<Bins, true>(entries_in_pool(), 0, ~Entry{0}, wanted); }

  /// Leaves the `wanted` best at the pool's beginning, best first, or by index and with their halves swapped (see `halves_swapped`);
  /// `place` is find(wanted)'s.  Ends with a barrier.
  __device__ void arrange(const Place& place, int wanted, bool by_index) {
    if (!by_index && !place.crowded && place.above + place.inside <= ranked_capacity(keep_, capacity_)) return rank_best(place, wanted);
    if (entries_in_pool() > wanted) cut(wanted, wanted);
    sort(pool_, wanted, by_index);
  }

  /// Larger for a smaller index.
  __device__ static Entry halves_swapped(Entry entry) { return (entry << 32) | (entry >> 32); }

 private:
  struct alignas(16) Control {
    typename Team::Exchange exchange;
    int                     count;
    int                     bin, above, inside, crowded;
    unsigned                found, further;
    int                     in_warp;
  };

  __device__ static int lowest(unsigned mask) { return __ffs(static_cast<int>(mask)) - 1; }

  __device__ int entries_in_pool() const { return control_->count < capacity_ ? control_->count : capacity_; }

  /// Where a bin's count is kept: a thread's neighbouring bins lie Threads words apart, free of bank conflicts.
  template <int BinCount>
  __device__ static int slot(int bin) {
    constexpr int each = BinCount / Threads;
    return bin % each * Threads + bin / each;
  }

  /// Appends what fits and returns the bits of what did not.
  template <int Count, class EntryAt>
  __device__ __forceinline__ unsigned append(unsigned mask, const EntryAt& entry_at) {
    const int own      = __popc(mask);
    int       position = 0;
    if constexpr (Count == 0) {  // as a rule few lanes have something
      if (mask == 0) return 0;
      position = atomicAdd(&control_->count, own);
    } else {
      if (__any_sync(full_warp, mask != 0) == 0) return 0;
      const int upto = Team::inclusive_sum_of_warp(own);
      if (Team::lane() == 31) position = atomicAdd(&control_->count, upto);
      position = __shfl_sync(full_warp, position, 31) + upto - own;
    }
    unsigned left = 0;
    for (int over = position + own - capacity_; over > 0 && mask != 0; --over) {  // the last ones do not fit
      const unsigned last = 0x80000000u >> __clz(static_cast<int>(mask));
      mask ^= last;
      left |= last;
    }
    if constexpr (Count == 0) {
      for (; mask != 0; mask &= mask - 1) pool_[position++] = entry_at(lowest(mask));
    } else {
#pragma unroll
      for (int i = 0; i < Count; ++i)
        if ((mask >> i & 1u) != 0) pool_[position++] = entry_at(i);
    }
    return left;
  }

  /// Counts the pool's entries within [low, high] by bins and finds the wanted-th best of them.  With Offsets, histogram_[Bins ...] becomes
  /// the number of entries in better bins.  Called after a barrier, ends with one.
  template <int BinCount, bool Offsets>
  __device__ Place locate(int n, Entry low, Entry high, int wanted) {
    constexpr int each = BinCount / Threads;
    static_assert(each >= 1 && (each & (each - 1)) == 0);
#pragma unroll
    for (int i = 0; i < each; ++i) histogram_[i * Threads + Team::rank()] = 0;
    uint4 extremes = {0xffffffffu, 0u, 0xffffffffu, 0u};
    for (int i = Team::rank(); i < n; i += Threads) {
      const Entry entry = pool_[i];
      if (low <= entry && entry <= high) {
        const auto score = static_cast<unsigned>(entry >> 32), index = static_cast<unsigned>(entry);
        extremes = {min(extremes.x, score), max(extremes.y, score), min(extremes.z, index), max(extremes.w, index)};
      }
    }
    extremes = Team::extremes(control_->exchange, extremes);
    if constexpr (Team::warps == 1) Team::sync();  // the histogram is zero
    if (Team::rank() == 0) control_->crowded = 0;  // not earlier: a slower thread might still look at the last one
    // Where all scores are equal the indices decide.
    const bool      tied     = extremes.x == extremes.y;
    const Entry     least    = (static_cast<Entry>(extremes.x) << 32) | (tied ? extremes.z : 0u);
    const Entry     best     = (static_cast<Entry>(extremes.y) << 32) | (tied ? extremes.w : 0xffffffffu);
    constexpr int   log_bins = 31 - __builtin_clz(BinCount);
    const int       bits     = 64 - __clzll(static_cast<long long>(best - least));
    const EntryBins bins{best, bits > log_bins ? bits - log_bins : 0};

    for (int i = Team::rank(); i < n; i += Threads) {
      const Entry entry = pool_[i];
      if (low <= entry && entry <= high) atomicAdd(&histogram_[slot<BinCount>(bins.bin(entry))], 1);
    }
    Team::sync();

    int counts[each], sum = 0;
#pragma unroll
    for (int i = 0; i < each; ++i) {
      counts[i] = histogram_[i * Threads + Team::rank()];
      sum += counts[i];
    }
    int above = Team::exclusive_sum(control_->exchange, sum);
#pragma unroll
    for (int i = 0; i < each; ++i) {
      if (Offsets) histogram_[Bins + i * Threads + Team::rank()] = above;
      if (above < wanted) {
        if (counts[i] > crowd) atomicOr(&control_->crowded, 1);
        if (above + counts[i] >= wanted) {
          control_->bin    = Team::rank() * each + i;
          control_->above  = above;
          control_->inside = counts[i];
        }
      }
      above += counts[i];
    }
    Team::sync();
    return {bins, control_->bin, control_->above, control_->inside, control_->crowded != 0};
  }

  /// Keeps, in place, the entries from the bound up; never more than `most` (more than that only where an entry came twice).
  __device__ void compact(int n, int most) {
    constexpr int each = 4;  // entries of a thread that are read before any is written
    if (Team::rank() == 0) control_->count = 0;
    for (int first = 0; first < n; first += each * Threads) {
      Entry    slice[each];
      unsigned kept = 0;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const int at = first + i * Threads + Team::rank();
        slice[i]     = at < n ? pool_[at] : no_entry;
        if (at < n && slice[i] >= bound_) kept |= 1u << i;
      }
      Team::sync();
      const int own      = __popc(kept);
      const int upto     = Team::inclusive_sum_of_warp(own);
      int       position = 0;
      if (Team::lane() == 31) position = atomicAdd(&control_->count, upto);
      position = __shfl_sync(full_warp, position, 31) + upto - own;
#pragma unroll
      for (int i = 0; i < each; ++i)
        if ((kept >> i & 1u) != 0) {
          if (position < most) pool_[position] = slice[i];
          ++position;
        }
    }
    Team::sync();
    if (Team::rank() == 0 && control_->count > most) control_->count = most;
    Team::sync();
  }

  /// Leaves the `wanted` best at the pool's beginning, best first.
  __device__ void rank_best(const Place& place, int wanted) {
    const int n = entries_in_pool();
    for (int i = Team::rank(); i < n; i += Threads) {
      const Entry entry = pool_[i];
      const int   bin   = place.bins.bin(entry);
      if (bin <= place.bin) ranked_[atomicAdd(&histogram_[Bins + slot<Bins>(bin)], 1)] = entry;
    }
    Team::sync();
    const int listed = place.above + place.inside;
    for (int i = Team::rank(); i < listed; i += Threads) {
      const Entry entry = ranked_[i];
      const int   at    = slot<Bins>(place.bins.bin(entry));
      const int   end = histogram_[Bins + at], begin = end - histogram_[at];
      int         rank = begin;
      for (int other = begin; other < end; ++other) rank += ranked_[other] > entry ? 1 : 0;
      if (rank < wanted) pool_[rank] = entry;
    }
    Team::sync();
  }

  /// Sorts a pool's first `count` entries.  Not inline: it would cost registers of those that seldom need it.
  __device__ __noinline__ static void sort(Entry* pool, int count, bool by_index) {
    if (count <= Threads)
      sort<1>(pool, count, by_index);
    else if (count <= 2 * Threads)
      sort<2>(pool, count, by_index);
    else if (count <= 4 * Threads)
      sort<4>(pool, count, by_index);
    else
      sort<8>(pool, count, by_index);
  }

  template <int Each>
  __device__ static void sort(Entry* pool, int count, bool by_index) {
    Entry keys[Each];
#pragma unroll
    for (int i = 0; i < Each; ++i) {
      const int   at    = i * Threads + Team::rank();
      const Entry entry = at < count ? pool[at] : no_entry;
      keys[i]           = by_index ? halves_swapped(entry) : entry;
    }
    sort_in_warp(keys);
    // In runs of several warps a thread's partner is another warp's.
    const auto exchange = [&](int partner, bool mirrored, bool keeps_larger) {
      Team::sync();
#pragma unroll
      for (int i = 0; i < Each; ++i) pool[i * Threads + Team::rank()] = keys[i];
      Team::sync();
#pragma unroll
      for (int i = 0; i < Each; ++i) {
        const Entry other = pool[(mirrored ? Each - 1 - i : i) * Threads + partner];
        keys[i]           = (keys[i] < other) == keeps_larger ? other : keys[i];
      }
    };
#pragma unroll 1
    for (int warps = 2; warps <= Team::warps; warps *= 2) {
      exchange(Team::rank() ^ (warps * 32 - 1), true, (Team::warp() & (warps / 2)) == 0);
#pragma unroll 1
      for (int stride = warps / 4; stride > 0; stride /= 2) exchange(Team::rank() ^ (stride * 32), false, (Team::warp() & stride) == 0);
      merge_in_warp(keys, 16);
    }
    Team::sync();
#pragma unroll
    for (int i = 0; i < Each; ++i) pool[Team::rank() * Each + i] = keys[i];
    Team::sync();
  }

  Control* control_;
  int*     histogram_;
  Entry *  pool_, *ranked_;
  int      keep_, most_, capacity_;
  Entry    bound_ = 0;
};

}  // namespace Tributary::Impl::SM90
