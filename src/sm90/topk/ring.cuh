#pragma once
#include "sm90/ptx/tma.cuh"
#include "sm90/topk/values.cuh"

// Long rows by the copy engine: one warp of a team brings chunks of a row to a ring in shared memory, the others look at them.  A chunk's
// segments lie evenly spread over the row, so that each is a fair sample of it, whatever trend it has.

namespace Tributary::Impl::SM90 {

/// A row in chunks of segments of 32 blocks, what one warp looks at at once.
///
/// \tparam Threads  that look at a chunk, with Loads blocks each
template <class Value, int Threads, int Loads>
class ChunkedRow {
 public:
  using Chunk                  = ValueBlocks<Value, Loads>;
  static constexpr int width   = Chunk::width;
  static constexpr int segment = 32, segments = Loads * Threads / segment;  // blocks; of a chunk
  static constexpr int bytes = Loads * Threads * 16;
  static_assert(segments <= 32);

  __device__ ChunkedRow(const ValueRows& rows, const ValueRows::Place& place) : row_(rows, place), entries_{rows.index_shift()} {
    chunks_ = (row_.blocks() + segments * segment - 1) / (segments * segment);
  }

  __device__ unsigned chunks() const { return chunks_; }

  __device__ const DenseEntries<Value>& entries() const { return entries_; }

  /// The place in the row of segment `number` of a chunk: its own one of the number-th chunks() segments.
  __device__ unsigned segment_of(unsigned chunk, unsigned number) const { return number * chunks_ + chunk; }

  /// The whole blocks of a segment.
  struct Piece {
    const Value* from;
    int          skipped, bytes;
  };
  __device__ Piece piece(unsigned place) const {
    const unsigned first = place * segment, begin = max(first, row_.whole_begin()), end = min(first + segment, row_.whole_end());
    return {row_.block(begin), static_cast<int>(begin - first) * 16, begin < end ? static_cast<int>(end - begin) * 16 : 0};
  }

  /// The index of this thread's first value of a segment.
  __device__ unsigned index(unsigned place) const { return row_.index(own_block(place)); }

  /// Adds this thread's block of a segment to the pieces where it is no whole block; returns which of its values are within the row.
  __device__ unsigned complete(uint4& own, unsigned place) const {
    const unsigned block = own_block(place);
    if (row_.is_whole(block)) return (1u << width) - 1;
    unsigned       words[4];
    const unsigned valid = row_.load_partial_block(words, block);
    own                  = {words[0], words[1], words[2], words[3]};
    return valid;
  }

 private:
  __device__ static unsigned own_block(unsigned place) { return place * segment + static_cast<unsigned>(Group<Threads>::lane()); }

  RowBlocks<Value>    row_;
  DenseEntries<Value> entries_;
  unsigned            chunks_;
};

/// What a team's warps share of the ring.
struct alignas(16) ChunkRing {
  static constexpr int most_slots = 8;

  std::uint64_t full[most_slots], empty[most_slots];
  bool          is_whole[most_slots];  // the pieces are all of the chunk
  bool          again;                 // the row is to come once more

  /// By one thread, before a barrier.
  ///
  /// \param readers  warps that look at the chunks
  __device__ void initialise(int slots, int readers) {
    for (int i = 0; i < slots; ++i) {
      ptx::mbarrier_init(&full[i], 1);
      ptx::mbarrier_init(&empty[i], static_cast<std::uint32_t>(readers));
    }
    ptx::fence_mbarrier_init();
  }
};

/// Where a warp is in the ring.
struct ChunkSlot {
  int           slots;
  int           number = 0;
  std::uint32_t round  = 0;

  __device__ void next() {
    if (++number == slots) number = 0, round ^= 1;
  }
};

/// A chunk's pieces to an empty slot of the ring, by a warp.
template <class Row>
__device__ void bring(const Row& row, unsigned chunk, unsigned char* chunks, ChunkRing& ring, int slot, int lane) {
  typename Row::Piece piece{};
  if (lane < Row::segments) piece = row.piece(row.segment_of(chunk, static_cast<unsigned>(lane)));
  const int bytes = __reduce_add_sync(full_warp, piece.bytes);
  if (lane == 0) ring.is_whole[slot] = bytes == Row::bytes;
  __syncwarp();
  if (lane == 0) ptx::mbarrier_arrive_expect_tx(&ring.full[slot], bytes);
  __syncwarp();
  if (piece.bytes > 0)
    ptx::cp_async_bulk(chunks + slot * Row::bytes + lane * Row::segment * 16 + piece.skipped, piece.from, piece.bytes, &ring.full[slot]);
}

/// A chunk that has come, as one of the threads sees it.
template <class Row, class Team>
class OwnChunk {
 public:
  using Chunk = typename Row::Chunk;

  __device__ OwnChunk(const Row& row, unsigned number, unsigned char* chunks, const ChunkRing& ring, int slot)
      : row_(row), number_(number), pieces_(chunks + slot * Row::bytes + Team::rank() * 16) {
    chunk_.valid = 0xffffffffu >> (32 - Chunk::each);
    if (!ring.is_whole[slot]) {
      chunk_.valid = 0;
#pragma unroll 1
      for (int i = 0; i < loads; ++i) chunk_.valid |= row.complete(block(i), place(i)) << (i * Row::width);
      ptx::fence_proxy_async();  // of what this thread wrote: the copy engine is next
    }
#pragma unroll
    for (int i = 0; i < loads; ++i) {
      const uint4 words  = block(i);
      chunk_.words[i][0] = words.x, chunk_.words[i][1] = words.y, chunk_.words[i][2] = words.z, chunk_.words[i][3] = words.w;
    }
  }

  __device__ const Chunk& values() const { return chunk_; }

  /// Of value number i, which may become known at run time.
  __device__ Entry entry(unsigned i) const {
    const auto* const value =
        reinterpret_cast<const typename Row::Chunk::Value*>(pieces_ + i / Row::width * (Team::threads * 16)) + i % Row::width;
    return row_.entries().entry(sortable(static_cast<float>(*value)), row_.index(place(i / Row::width)) + i % Row::width);
  }

  /// Which values may reach a bound.
  __device__ __forceinline__ unsigned reaching(Entry bound) const {
    const auto     reach  = [&](unsigned image) { return passing<Chunk::each>(chunk_, Threshold(Entry{image} << 32, 0)); };
    const unsigned image  = row_.entries().image(bound);
    unsigned       wanted = chunk_.valid & reach(image);
    if (static_cast<unsigned>(bound) != 0) {  // after a cut: blocks beyond the bound's index must have better scores
      const auto last   = static_cast<int>(row_.entries().index(bound));
      unsigned   beyond = 0;
#pragma unroll
      for (int i = 0; i < loads; ++i)
        if (static_cast<int>(row_.index(place(i))) > last) beyond |= ((1u << Row::width) - 1) << (i * Row::width);
      wanted &= reach(image + (1u << unused_bits<typename Chunk::Value>)) | ~beyond;
    }
    return wanted;
  }

 private:
  static constexpr int loads = Chunk::each / Row::width;

  __device__ unsigned place(unsigned load) const { return row_.segment_of(number_, load * Team::warps + Team::warp()); }
  __device__ uint4&   block(int load) { return *reinterpret_cast<uint4*>(pieces_ + load * (Team::threads * 16)); }

  const Row&           row_;
  const unsigned       number_;
  unsigned char* const pieces_;
  Chunk                chunk_;
};

/// What a row's first chunk says of it.
struct RowSample {
  Entry bound;   // 0: none
  bool  is_odd;  // how many reach it is not known well
};

/// A bound that about the `wanted` best of a chunk reach, and whatever has the same value as the last of them.  Of a thread's values only
/// the best one is looked at, from which follows how many of all there are.  The pool is empty before and after.
template <class Chunk, class Pool>
__device__ RowSample sample(const Chunk& chunk, Pool& pool, int wanted) {
  constexpr int each = Chunk::each, threads = Pool::Team::threads;
  float         best = __int_as_float(0x7fc00000);
#pragma unroll
  for (int i = 0; i < each; ++i)
    if ((chunk.valid >> i & 1u) != 0) best = fmaxf(best, chunk.value(i));
  float none =
      fmaxf(1.0f - static_cast<float>(wanted) / (each * threads), 0.0f);  // the part of the threads where no value reaches the bound
#pragma unroll
  for (int i = 1; i < each; i *= 2) none *= none;
  const int rank = static_cast<int>((1.0f - none) * threads);
  if (rank >= threads - threads / 16) return {0, false};
  const auto ranked = pool.score_of_rank(sortable(best), rank);
  return {Entry{ranked.score >> unused_bits<typename Chunk::Value>} << 32, ranked.odd};
}

/// Offers the chunks of a row to a pool as they come.
///
/// \param wanted  so many of the first chunk's best give a bound, whether k of the row reach it or not; 0: none.
///                Where it is sure to let few pass no warp waits for others to see whether the pool is full: what finds no room is lost,
///                but counted.
template <class Value, int Threads, int Loads, class Pool>
__device__ __forceinline__ void stream(const ChunkedRow<Value, Threads, Loads>& row, Pool& pool, unsigned char* chunks, ChunkRing& ring,
                                       ChunkSlot& slot, int wanted) {
  bool checked = true;
  for (unsigned number = 0; number < row.chunks(); ++number, slot.next()) {
    ptx::mbarrier_wait(&ring.full[slot.number], slot.round);
    const OwnChunk<ChunkedRow<Value, Threads, Loads>, typename Pool::Team> chunk(row, number, chunks, ring, slot.number);
    if (number == 0 && wanted > 0) {
      const RowSample first = sample(chunk.values(), pool, wanted);
      pool.set_bound(first.bound);
      checked = first.bound == 0 || first.is_odd || 5.0f * wanted * row.chunks() > 2.0f * pool.capacity();
    }
    const auto entry = [&](unsigned i) { return chunk.entry(i); };
    unsigned   left  = chunk.reaching(pool.bound());
    if (checked)
      while (!pool.template offer<0>(left, entry)) left &= chunk.reaching(pool.bound());
    else
      pool.add(left, entry);
    __syncwarp();  // all of the warp have read the chunk
    if (Pool::Team::lane() == 0) ptx::mbarrier_arrive(&ring.empty[slot.number]);
  }
  Pool::Team::sync();
}

}  // namespace Tributary::Impl::SM90
