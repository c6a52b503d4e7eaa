#pragma once
#include "sm90/topk/sort.cuh"
#include "sm90/topk/values.cuh"

// Short rows: a warp has all values of one in registers.  It searches for a bound that few more than the wanted ones reach by counting
// those that reach a guess; these go to shared memory and from there, by rank, to the network that sorts them.

namespace Tributary::Impl::SM90 {

/// Values by their order, as few numbers as the type has.
template <class Value>
struct ValueKey {
  static constexpr int      unused      = unused_bits<Value>;
  static constexpr unsigned of_infinity = 0xff800000u >> unused;

  __device__ static unsigned of(float value) { return sortable(value) >> unused; }
  __device__ static float    value(unsigned key) { return score_of(Entry{whole_image<Value>(key << unused)} << 32); }
  /// A value reaches it if its key is not smaller; for a key of 0, which NaNs have, what all numbers reach.
  __device__ static float least(unsigned key) {
    unsigned image = key << unused;
    image          = image < 0x007fffffu ? 0x007fffffu : image;  // -infinity: below it are images of no value
    return __uint_as_float((image & 0x80000000u) != 0 ? image ^ 0x80000000u : ~image);
  }
};

/// By how many bits values between two images are too long for keys of 32 bits that have the place in their low ones.
__device__ inline int excess_bits(unsigned least, unsigned most, int place_bits) {
  return max(place_bits - __clz(static_cast<int>(most - least)), 0);
}

/// The row of a warp, or of so many of its threads.  Value i of a thread is at place(i) of the row; beyond the row there are NaNs.
///
/// \tparam Each  values of a thread
template <class Value, int Each, int Lanes = 32>
class RowOfWarp {
 public:
  using Key = ValueKey<Value>;

  /// The thread's number among those of its row.
  __device__ static int lane() { return Group<32>::lane() % Lanes; }

  __device__ __forceinline__ RowOfWarp(const ValueRows& rows, const ValueRows::Place& place) {
    const RowBlocks<Value> row(rows, place);
    first_index_ = row.index(0) + row.lead();
    length_      = row.length();
    first_place_ = static_cast<unsigned>(lane()) * width - row.lead();
    unsigned words[loads][4];
    load(words, row);
#pragma unroll
    for (int i = 0; i < Each; ++i) {
      unsigned bits = __float_as_uint(value_of<Value>(words[i / width], i % width));
      asm volatile("" : "+r"(bits));  // or what it is made of would stay in registers, too
      values_[i] = __uint_as_float(bits);
    }
  }

  __device__ int      length() const { return static_cast<int>(length_); }
  __device__ unsigned index(unsigned place) const { return first_index_ + place; }
  __device__ float    value(int i) const { return values_[i]; }
  __device__ unsigned place(int i) const { return first_place_ + static_cast<unsigned>(step(i)); }
  /// Whether value i is in the row before a place.
  __device__ bool precedes(int i, unsigned end) const {
    const int first = static_cast<int>(first_place_);
    return step(i) < static_cast<int>(end) - first && (i >= width || step(i) >= -first);  // before the row is some of the first block only
  }

 private:
  __device__ static constexpr int step(int i) { return i / width * Lanes * width + i % width; }

  static constexpr int width = RowBlocks<Value>::width, loads = Each / width;
  static_assert(Each % width == 0);

  __device__ static unsigned block(int load) { return static_cast<unsigned>(load * Lanes + lane()); }

  __device__ __forceinline__ static void load(unsigned (&words)[loads][4], const RowBlocks<Value>& row) {
    if (row.whole_begin() == 0 && row.whole_end() == Lanes * loads) {
#pragma unroll
      for (int i = 0; i < loads; ++i) ptx::ld_once(words[i], row.block(block(i)));
      return;
    }
#pragma unroll
    for (int i = 0; i < loads; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) words[i][j] = 0xffffffffu;
      if (row.is_whole(block(i))) ptx::ld_once(words[i], row.block(block(i)));
    }
    // The first block and the last one may lie partly outside of the row.
    if (row.whole_begin() > 0) load_partly(words, row, 0);
    if (row.whole_end() < row.blocks()) load_partly(words, row, row.blocks() - 1);
  }

  __device__ __forceinline__ static void load_partly(unsigned (&words)[loads][4], const RowBlocks<Value>& row, unsigned number) {
    if (number % Lanes != static_cast<unsigned>(lane())) return;
    unsigned       own[4];
    const unsigned valid = row.load_partial_block(own, number);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const unsigned outside = (valid >> i & 1u) != 0 ? 0 : 0xffffffffu;
      own[i * 4 / width] |= width == 4 ? outside : outside << 16 >> (i % 2 == 0 ? 16 : 0);
    }
#pragma unroll
    for (int i = 0; i < loads; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) words[i][j] = block(i) == number ? own[j] : words[i][j];
  }

  float    values_[Each];
  unsigned first_index_, first_place_, length_;
};

/// Which values of a row are taken: those of a better key, those of this one whose place is before `end`, and the first ones, `more`, of at
/// most 32 that have the next key.
template <class Value>
struct RowBound {
  using Key = ValueKey<Value>;

  unsigned key, end;
  int      more = 0;

  /// Value i of the row.
  ///
  /// \tparam Ties  the place matters
  template <bool Ties, class Row>
  __device__ __forceinline__ bool takes(const Row& row, int i) const {
    if constexpr (!Ties) return row.value(i) >= Key::least(key);
    return row.value(i) >= Key::least(key + 1) || ((key == 0 || row.value(i) >= Key::least(key)) && row.precedes(i, end));
  }

  /// How many values of the thread are taken.
  template <bool Ties, class Value_, int Each>
  __device__ __forceinline__ int count(const RowOfWarp<Value_, Each>& row) const {
    float taken = 0;  // so that half of the instructions go to the other pipe
#pragma unroll
    for (int i = 0; i < Each; ++i) taken += takes<Ties>(row, i) ? 1.0f : 0.0f;
    return static_cast<int>(taken);
  }

  /// What was compared with it is compared again behind this point, not kept.
  __device__ void pin() { asm volatile("" : "+r"(key), "+r"(end)); }
};

/// Searches for a bound that `wanted` to `most` values reach.
template <class Value, int Each>
class BoundSearch {
 public:
  using Key = ValueKey<Value>;
  using Row = RowOfWarp<Value, Each>;

  __device__ __forceinline__ BoundSearch(const Row& row, int wanted, int most)
      : row_(row), wanted_(wanted), most_(most), at_low_(row.length()) {}

  __device__ __forceinline__ RowBound<Value> find() {
    // Thirty-two values in order say where to look, whatever the distribution.
    unsigned sample[1] = {sample_key()};
    if (at_low_ > most_) sort_in_warp(sample);
    int above = -1, below = 32, rank = wanted_ / Each, turn = -1;
    while (at_low_ > most_ && high_ - low_ > 1) {
      const bool sampled = below - above > 1;
      unsigned   key     = 1;  // all numbers: if there are not enough NaNs are taken
      if (sampled) {
        rank = min(max(rank, above + 1), below - 1);
        key  = __shfl_sync(full_warp, sample[0], rank);
        if (key <= low_ || key >= high_) {
          narrow(key <= low_, rank, below, above);
          continue;
        }
      } else if (low_ > 0) {
        if (turn < 0) {
          if (above < 0) high_ = largest_key() + 1;
          const unsigned next = __shfl_sync(full_warp, sample[0], min(below + 1, 31));
          turn                = below >= 31 || next == low_ ? 0 : 1;  // what the sample has twice may be frequent
        }
        if (turn % 4 == 0) low_ = least_key();
        if (high_ - low_ == 1) break;
        key = key_between(turn++ % 4);
      }
      const int  count = of_warp(RowBound<Value>{key, 0}.template count<false>(row_));
      const bool lower = count >= wanted_;
      if (lower)
        low_ = key, at_low_ = count;
      else
        high_ = key, at_high_ = count;
      if (sampled) {
        narrow(lower, rank, below, above);
        rank += (wanted_ - count) / Each;
      }
    }
    const auto length = static_cast<unsigned>(row_.length());
    if (at_low_ <= most_) return {low_, length};
    if (low_ > 0 && at_low_ - at_high_ <= 32) return {high_, length, wanted_ - at_high_};
    return {low_, end_of_ties()};
  }

 private:
  template <class Number>
  __device__ static void narrow(bool first, Number to, Number& one, Number& other) {
    one   = first ? to : one;
    other = first ? other : to;
  }

  __device__ static int of_warp(int own) { return __reduce_add_sync(full_warp, own); }

  /// From all over the row: it may be sorted.
  __device__ __forceinline__ unsigned sample_key() const {
    unsigned own = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)  // no choice of an address, which would keep the values in memory
      own |= __float_as_uint(row_.value(i * Each / 4)) & (Group<32>::lane() % 4 == i ? 0xffffffffu : 0u);
    return Key::of(__uint_as_float(own));
  }

  __device__ __forceinline__ unsigned largest_key() const {
    float largest = row_.value(0);
#pragma unroll
    for (int i = 1; i < Each; ++i) largest = fmaxf(largest, row_.value(i));
    return __reduce_max_sync(full_warp, Key::of(largest));
  }

  /// Of the values that reach the bracket's lower end the least.
  __device__ __forceinline__ unsigned least_key() const {
    const float least = Key::least(low_);
    float       found = __uint_as_float(0x7f800000u);
#pragma unroll
    for (int i = 0; i < Each; ++i)
      if (row_.value(i) >= least) found = fminf(found, row_.value(i));
    return __reduce_min_sync(full_warp, Key::of(found));
  }

  /// The next key after an equal value's, the middle of the bracket, or where values of even distribution would have it.
  __device__ unsigned key_between(int kind) const {
    const unsigned width = high_ - low_;
    if (kind == 0) return low_ + 1;
    if (kind == 3) return low_ + width / 2;
    const float excess = static_cast<float>(at_low_) - 0.5f * static_cast<float>(wanted_ + most_) + 0.5f;
    const auto  step   = static_cast<unsigned>(static_cast<float>(width) * (excess / static_cast<float>(at_low_ - at_high_ + 1)));
    return low_ + min(max(step, 1u), width - 1);
  }

  /// Too many have the key: the place before which there are enough of them.
  __device__ __forceinline__ unsigned end_of_ties() const {
    RowBound<Value> bound{low_, static_cast<unsigned>(row_.length())};
    unsigned        few = 0, enough = bound.end;
    while (enough - few > 1) {
      bound.end = few + (enough - few) / 2;
      bound.pin();
      const int count = of_warp(bound.template count<true>(row_));
      narrow(count >= wanted_, bound.end, enough, few);
      if (count >= wanted_ && count <= most_) break;
    }
    return enough;
  }

  const Row& row_;
  const int  wanted_, most_;
  unsigned   low_ = 0, high_   = Key::of_infinity + 1;  // keys: enough values reach the low one, too few the high one
  int        at_low_, at_high_ = 0;
};

/// What a warp takes of a row, in shared memory, as values and places, and after sort() as entries.
///
/// \tparam Each  values of the row a thread
template <class Value, int Each>
class TakenValues {
 public:
  static constexpr int scratch_bytes(int room) { return room * static_cast<int>(sizeof(Entry)) + places * static_cast<int>(sizeof(float)); }

  __device__ TakenValues(unsigned char* scratch, int room)
      : list_(reinterpret_cast<Entry*>(scratch)), by_place_(reinterpret_cast<float*>(list_ + room)) {}

  __device__ int count() const { return count_; }

  __device__ __forceinline__ void collect(const RowOfWarp<Value, Each>& row, RowBound<Value> bound) {
    if (bound.key > 0 && bound.end >= static_cast<unsigned>(row.length()))
      collect_taken<false>(row, bound);
    else
      collect_taken<true>(row, bound);
    if (bound.more > 0) add_first(row, bound);
    first_index_ = row.index(0);
  }

  /// \tparam Sorted  a thread, at least; a power of two
  template <int Sorted>
  __device__ void sort(bool by_index) {
    const int lane = Group<32>::lane();
    unsigned  keys[Sorted];
    __syncwarp();
    make_keys(keys, by_index);
    sort_in_warp(keys);
    __syncwarp();
    Entry entries[Sorted];
    bool  misplaced = false;
#pragma unroll
    for (int i = 0; i < Sorted; ++i) {
      const unsigned place = places - 1 - keys[i] % places;
      const Entry    entry = make_entry(sortable(by_place_[place]), first_index_ + place);
      entries[i]           = lane * Sorted + i < count_ ? entry : no_entry;
      if (i > 0 && entries[i - 1] < entries[i]) misplaced = true;
    }
    const Entry next = __shfl_down_sync(full_warp, entries[0], 1);
    if (lane < 31 && entries[Sorted - 1] < next) misplaced = true;
    if (!by_index && __any_sync(full_warp, misplaced)) sort_in_warp(entries);
#pragma unroll
    for (int i = 0; i < Sorted; ++i) list_[sorted_place<Sorted>(i, lane)] = entries[i];
    __syncwarp();
  }

  /// Number `rank` after sort<Sorted>().
  template <int Sorted>
  __device__ Entry sorted(int rank) const {
    return list_[sorted_place<Sorted>(rank % Sorted, rank / Sorted)];
  }

 private:
  static constexpr int places     = 32 * Each;
  static constexpr int place_bits = 31 - __builtin_clz(places);

  // A value and its place.  As a float a value of 2 bytes leaves room for the place, but for the NaN that the device makes of half's.
  using Listed                     = std::conditional_t<sizeof(Value) == 4, std::uint64_t, std::uint32_t>;
  static constexpr int place_shift = sizeof(Value) == 4 ? 32 : 0;
  static_assert(sizeof(Value) == 4 || place_bits <= unused_bits<Value>);

  /// Free of bank conflicts for all threads' number i as for neighbouring ranks.
  template <int Sorted>
  __device__ static int sorted_place(int i, int lane) {
    return i * 32 + (lane ^ (i * (16 / Sorted)));
  }

  template <bool Ties>
  __device__ __forceinline__ void collect_taken(const RowOfWarp<Value, Each>& row, RowBound<Value>& bound) {
    const int own  = bound.template count<Ties>(row);
    const int upto = Group<32>::inclusive_sum_of_warp(own);
    count_         = __shfl_sync(full_warp, upto, 31);
    Listed* next   = reinterpret_cast<Listed*>(list_) + (upto - own);
    bound.pin();
#pragma unroll
    for (int i = 0; i < Each; ++i)
      if (bound.template takes<Ties>(row, i))
        *next++ = (Listed{__float_as_uint(row.value(i))} << place_shift & ~Listed{places - 1}) | row.place(i);
  }

  __device__ __forceinline__ void add_first(const RowOfWarp<Value, Each>& row, RowBound<Value>& bound) {
    const unsigned key  = bound.key - 1;
    const int      own  = RowBound<Value>{key, 0}.template count<false>(row) - bound.template count<false>(row);
    const int      upto = Group<32>::inclusive_sum_of_warp(own), lane = Group<32>::lane();
    auto* const    places = reinterpret_cast<unsigned*>(by_place_);
    unsigned*      next   = places + (upto - own);
    bound.pin();
#pragma unroll
    for (int i = 0; i < Each; ++i)
      if (RowBound<Value>{bound.key - 1, 0}.template takes<false>(row, i) && !bound.template takes<false>(row, i)) *next++ = row.place(i);
    __syncwarp();
    unsigned sorted[1] = {lane < __shfl_sync(full_warp, upto, 31) ? ~places[lane] : 0};  // the first place is first
    sort_in_warp(sorted);
    if (lane < bound.more) {
      const unsigned value                            = __float_as_uint(ValueKey<Value>::value(key));
      reinterpret_cast<Listed*>(list_)[count_ + lane] = (Listed{value} << place_shift) | ~sorted[0];
    }
    count_ += bound.more;
    __syncwarp();
  }

  /// Keys of half the size, which are sorted in less than half of the time: the place, and above it as much of the value as there is room
  /// for.  Values that differ may come to be the same.
  template <int Sorted>
  __device__ __forceinline__ void make_keys(unsigned (&keys)[Sorted], bool by_index) {
    unsigned place[Sorted], least = 0xffffffffu, most = 0;
#pragma unroll
    for (int i = 0; i < Sorted; ++i) {
      const int at = i * 32 + Group<32>::lane();
      place[i] = 0, keys[i] = 0;
      if (at >= count_) continue;
      const Listed taken = reinterpret_cast<const Listed*>(list_)[at];
      const float  value = __uint_as_float(static_cast<unsigned>((taken - taken % places) >> place_shift));
      place[i] = static_cast<unsigned>(taken % places), keys[i] = sortable(value);
      least = min(least, keys[i]), most = max(most, keys[i]);
      by_place_[place[i]] = value;
    }
    least           = __reduce_min_sync(full_warp, least);
    most            = __reduce_max_sync(full_warp, most);
    const int shift = excess_bits(least, most, place_bits);
#pragma unroll
    for (int i = 0; i < Sorted; ++i) {
      const unsigned key = ((by_index ? 0 : keys[i] - least) >> shift << place_bits) | (places - 1 - place[i]);
      keys[i]            = i * 32 + Group<32>::lane() < count_ ? key : 0;
    }
  }

  Entry*   list_;
  float*   by_place_;
  int      count_       = 0;
  unsigned first_index_ = 0;
};

}  // namespace Tributary::Impl::SM90
