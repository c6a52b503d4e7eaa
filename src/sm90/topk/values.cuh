#pragma once
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "Tributary_Types.hpp"
#include "common/segment.hpp"
#include "sm90/ptx/global.cuh"
#include "sm90/topk/group.cuh"
#include "topk/entry.hpp"

// A row of values as 16-byte blocks, read in chunks.  Blocks are aligned whatever the row's own alignment: only the first and the last one
// may be partly outside of the row, and those are read value by value.

namespace Tributary::Impl::SM90 {

/// Rows of values of one type, and the columns of each that take part.
struct ValueRows {
  const void*         values;
  std::int64_t        strides[2];  // batch, row
  const std::int32_t* range;       // null: whole rows
  std::int64_t        range_strides[2];
  unsigned            rows;  // of each batch entry
  int                 columns;

  struct Place {
    unsigned batch, row;
  };
  __device__ Place place(unsigned flat_row) const { return {flat_row / rows, flat_row % rows}; }

  /// Bits that no index needs.
  __device__ int index_shift() const { return __clz(columns); }

  /// Whether no row has values in more than `count` / width blocks of 16 bytes.
  template <class Value>
  bool fit(int count) const {
    constexpr auto width   = static_cast<std::int64_t>(16 / sizeof(Value));
    const bool     aligned = reinterpret_cast<std::uintptr_t>(values) % 16 == 0 && strides[0] % width == 0 && strides[1] % width == 0;
    return columns + (aligned ? 0 : width - 1) <= count;
  }
};

/// Value number i, known at compile time, of a block.
template <class Value>
__device__ __forceinline__ float value_of(const unsigned (&words)[4], int i) {
  if constexpr (std::is_same_v<Value, float>) return __uint_as_float(words[i]);
  if constexpr (std::is_same_v<Value, bfloat16_t>) return __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
  if constexpr (std::is_same_v<Value, half_t>)
    return __half2float(__ushort_as_half(static_cast<unsigned short>(i % 2 == 0 ? words[i / 2] & 0xffffu : words[i / 2] >> 16)));
}

/// Bits of a value's unsigned image (`sortable`) that follow from the others.
template <class Value>
constexpr int unused_bits = std::is_same_v<Value, float>        ? 0
                            : std::is_same_v<Value, bfloat16_t> ? 16
                                                                : 13;

/// A value's image from the upper bits of it; 0, a NaN's, stays what it is.
template <class Value>
__device__ inline unsigned whole_image(unsigned image) {
  constexpr int unused      = unused_bits<Value>;
  const bool    is_negative = image != 0 && (image & 0x80000000u) == 0;
  return is_negative ? image | ((1u << unused) - 1) : image;
}

/// Entries in the order of all entries, but as dense as values of the type and indices of the row allow: bins of equal width see, as a
/// rule, what index equal values have.
template <class Value>
struct DenseEntries {
  int index_shift;

  __device__ Entry entry(unsigned image, unsigned index) const {
    return (Entry{image >> unused_bits<Value>} << 32) | ~(index << index_shift);
  }
  /// The least image, and the largest index beside it, of what reaches an entry.
  __device__ static unsigned image(Entry entry) { return static_cast<unsigned>(entry >> 32) << unused_bits<Value>; }
  __device__ unsigned        index(Entry entry) const { return ~static_cast<unsigned>(entry) >> index_shift; }
  __device__ Entry           usual(Entry entry) const { return make_entry(whole_image<Value>(image(entry)), index(entry)); }
};

/// A row as blocks of 16 bytes.
template <class Value>
class RowBlocks {
 public:
  static constexpr int width = 16 / static_cast<int>(sizeof(Value));

  __device__ RowBlocks(const ValueRows& rows, const ValueRows::Place& place) {
    std::int64_t begin = 0, end = rows.columns;
    if (rows.range != nullptr) {
      const std::int32_t* const bounds = rows.range + place.batch * rows.range_strides[0] + place.row * rows.range_strides[1];
      begin = clip(bounds[0], 0, rows.columns), end = clip(bounds[1], begin, rows.columns);
    }
    const Value* const first = static_cast<const Value*>(rows.values) + place.batch * rows.strides[0] + place.row * rows.strides[1] + begin;
    lead_                    = static_cast<unsigned>(reinterpret_cast<std::uintptr_t>(first) % 16 / sizeof(Value));
    data_                    = first - lead_;
    stop_                    = lead_ + static_cast<unsigned>(end - begin);
    first_index_             = static_cast<std::int32_t>(begin) - static_cast<std::int32_t>(lead_);
    blocks_                  = end == begin ? 0 : (stop_ + width - 1) / width;
  }

  __device__ unsigned blocks() const { return blocks_; }
  /// Values that take part, and values of block 0 before the first of them.
  __device__ unsigned length() const { return stop_ - lead_; }
  __device__ unsigned lead() const { return lead_; }
  /// Blocks from the first whole one up to the end of the last whole one are whole.
  __device__ unsigned whole_begin() const { return lead_ == 0 ? 0u : 1u; }
  __device__ unsigned whole_end() const { return stop_ / width; }
  __device__ bool     is_whole(unsigned block) const { return (block > 0 || lead_ == 0) && block < stop_ / width; }

  __device__ const Value* block(unsigned number) const { return data_ + static_cast<std::size_t>(number) * width; }
  /// The index of a block's first value, were it in the row.
  __device__ unsigned index(unsigned block) const { return static_cast<unsigned>(first_index_) + block * width; }

  /// A block that lies partly or wholly outside of the row; returns which values are within.
  __device__ __forceinline__ unsigned load_partial_block(unsigned (&words)[4], unsigned block) const {
    unsigned valid = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) words[i] = 0;
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const unsigned at = block * width + i;
      if (at < lead_ || at >= stop_) continue;
      valid |= 1u << i;
      if constexpr (sizeof(Value) == 4)
        words[i] = __float_as_uint(data_[at]);
      else
        words[i / 2] |= static_cast<unsigned>(data_[at].bits) << (16 * (i % 2));
    }
    return valid;
  }

 private:
  const Value* data_;  // aligned; block 0 begins here
  unsigned     lead_;  // values of block 0 before the row's first
  unsigned     stop_;  // one past the row's last value, counted from block 0
  unsigned     blocks_;
  std::int32_t first_index_;  // of block 0's first value, were it in the row
};

/// Blocks of values that a thread has at once.
template <class Value_, int Loads>
struct ValueBlocks {
  using Value = Value_;

  static constexpr int width = 16 / static_cast<int>(sizeof(Value)), each = Loads * width;
  static_assert(each <= 32);

  unsigned words[Loads][4];
  unsigned valid;  // bit i: value i is within the row

  __device__ __forceinline__ float value(int i) const { return value_of<Value>(words[i / width], i % width); }
  /// What is computed from the words stays behind this point.
  __device__ __forceinline__ void pin() {
#pragma unroll
    for (int i = 0; i < 4 * Loads; ++i) asm volatile("" : "+r"(words[i / 4][i % 4]));
  }
};

/// One of `count` parts of a row: every count-th segment of 32 blocks, what one warp loads at once.  Neighbouring segments lie in different
/// parts, so that sorted rows, too, spread their best values evenly.
struct RowPart {
  unsigned number, count;
};

/// \tparam Loads  blocks that a thread has under way at once
template <class Value, int Threads, int Loads>
class RowReader {
 public:
  using Chunk                = ValueBlocks<Value, Loads>;
  static constexpr int width = Chunk::width, each = Chunk::each;

  __device__ RowReader(const ValueRows& rows, const ValueRows::Place& place, const RowPart& part) : row_(rows, place), part_(part) {
    const unsigned segments = (row_.blocks() + 31) / 32;
    const unsigned own      = segments > part.number ? (segments - part.number + part.count - 1) / part.count : 0;
    chunks_                 = (own + Loads * Team::warps - 1) / (Loads * Team::warps);
  }

  __device__ unsigned chunks() const { return chunks_; }

  /// The least index of a chunk.
  __device__ unsigned first_index(unsigned chunk) const {
    const unsigned index = row_.index(first_block(chunk));
    return index > 0x7fffffffu ? 0u : index;  // before the row's beginning
  }

  /// The index of this thread's value number 0 of a chunk; number i is index_step(i) further.
  __device__ unsigned index(unsigned chunk) const { return row_.index(own_block(chunk)); }
  __device__ unsigned index_step(int i) const {
    return static_cast<unsigned>(i / width) * (Threads * width) * part_.count + static_cast<unsigned>(i % width);
  }

  __device__ __forceinline__ Chunk load(unsigned number) const {
    Chunk          chunk;
    const unsigned first = first_block(number), last = first + (Loads * Team::warps - 1) * 32 * part_.count + 31;
    const unsigned own = own_block(number), step = Threads * part_.count;
    chunk.valid = 0xffffffffu >> (32 - each);
    if (row_.is_whole(first) && last < row_.whole_end()) {
#pragma unroll
      for (int i = 0; i < Loads; ++i) ptx::ld_once(chunk.words[i], row_.block(own + i * step));
    } else {
      chunk.valid = 0;
#pragma unroll
      for (int i = 0; i < Loads; ++i) chunk.valid |= load_some(chunk.words[i], own + i * step) << (i * width);
    }
    return chunk;
  }

 private:
  using Team = Group<Threads>;

  __device__ unsigned first_block(unsigned chunk) const { return chunk * (Loads * Threads) * part_.count + part_.number * 32; }
  __device__ unsigned own_block(unsigned chunk) const {
    return first_block(chunk) + static_cast<unsigned>(Team::warp()) * 32 * part_.count + static_cast<unsigned>(Team::lane());
  }

  __device__ __forceinline__ unsigned load_some(unsigned (&words)[4], unsigned block) const {
    if (!row_.is_whole(block)) return row_.load_partial_block(words, block);
    ptx::ld_once(words, row_.block(block));
    return (1u << width) - 1;
  }

  RowBlocks<Value> row_;
  RowPart          part_;
  unsigned         chunks_;
};

/// What a value must reach so that an entry with an index of `first_index` or more can reach the bound.
struct Threshold {
  float least;       // NaN: none can
  bool  everything;  // even a NaN can

  __device__ Threshold(Entry bound, unsigned first_index) {
    // where every index is beyond the bound's, equal scores lose
    const bool ties_lose = 0xffffffffu - first_index < static_cast<unsigned>(bound);
    unsigned   image     = static_cast<unsigned>(bound >> 32) + (ties_lose ? 1u : 0u);
    everything           = image == 0;
    image                = image < 0x007fffffu ? 0x007fffffu : image;  // -infinity: below it are images of no value
    least                = __uint_as_float((image & 0x80000000u) != 0 ? image ^ 0x80000000u : ~image);
  }
};

/// A permutation of the chunks that comes close to any of them early, so that a sorted row looks like a shuffled one: bits reversed.
class ChunkOrder {
 public:
  __device__ explicit ChunkOrder(unsigned chunks) : chunks_(chunks) { shift_ = chunks > 1 ? __clz(static_cast<int>(chunks - 1)) : 32; }

  __device__ unsigned chunk() const { return chunk_; }
  /// False after the last one.
  __device__ bool advance() {
    do {
      if (++step_ >> (32 - shift_) != 0) return false;
      chunk_ = __brev(step_) >> shift_;
    } while (chunk_ >= chunks_);
    return true;
  }

 private:
  unsigned chunks_;
  int      shift_;
  unsigned step_ = 0, chunk_ = 0;
};

template <int Each, class Chunk>
__device__ __forceinline__ unsigned passing(const Chunk& chunk, const Threshold& threshold) {
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < Each; ++i) bits |= (chunk.value(i) >= threshold.least ? 1u : 0u) << i;
  return threshold.everything ? 0xffffffffu : bits;
}

/// Offers a row's values, or a part of them, to a pool of candidates.
///
/// \tparam OnlyBelow  leave out entries above `below`
template <bool OnlyBelow = false, class Value, int Threads, int Loads, class Pool>
__device__ __forceinline__ void stream(const RowReader<Value, Threads, Loads>& row, Pool& pool, Entry below = ~Entry{0}) {
  using Reader = RowReader<Value, Threads, Loads>;
  if (row.chunks() == 0) return;
  ChunkOrder             order(row.chunks());
  typename Reader::Chunk chunk = row.load(0);
  for (bool more = true; more;) {
    const unsigned         number = order.chunk();
    typename Reader::Chunk next;
    more = order.advance();
    if (more) next = row.load(order.chunk());  // under way while this one is looked at

    const unsigned index = row.index(number);
    const auto     entry = [&](int i) { return make_entry(sortable(chunk.value(i)), index + row.index_step(i)); };
    unsigned       left  = chunk.valid;
    for (;;) {
      chunk.pin();  // or all entries would be made ahead of this loop, which as a rule turns once, and fill the registers
      left &= passing<Reader::each>(chunk, Threshold(pool.bound(), row.first_index(number)));
      if constexpr (OnlyBelow) left = pool.template within<Reader::each>(left, below, entry);
      if (pool.template offer<Reader::each>(left, entry)) break;
      // again, since a cut needs the registers of `next`, and of its addresses
      unsigned again = order.chunk();
      asm volatile("" : "+r"(again));
      next = row.load(again);
    }
    chunk = next;
  }
}

}  // namespace Tributary::Impl::SM90
