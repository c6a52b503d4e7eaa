#pragma once
#include "sm90/indexer/decode_state.cuh"
#include "sm90/pipeline.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/cp_async.cuh"
#include "sm90/ptx/mbarrier.cuh"

// Loading: rows of keys and queries to shared memory as wgmma wants them, 16 bytes a lane: row r of a panel of 128 bytes a row has its
// block b of 16 bytes in place b ^ (r % 8).  Ordinary copies, which need no tensor map that a kernel of its own would have to write first.

namespace Tributary::Impl::SM90 {

template <class Element_, int HeadDim>
struct DecodeRow {
  using Element                = Element_;
  static constexpr int  bytes  = HeadDim * static_cast<int>(sizeof(Element));
  static constexpr int  blocks = bytes / 16;
  static constexpr int  panels = (bytes + decode::panel_bytes - 1) / decode::panel_bytes;
  static constexpr int  steps  = bytes / 32;  // of wgmma's k
  static constexpr bool scaled = sizeof(Element) == 1;

  /// Where block `block` of row `row` lies in panels of so many rows.
  __device__ static constexpr int offset(int row, int block, int rows) {
    return block / 8 * (rows * decode::panel_bytes) + row * decode::panel_bytes + ((block ^ row) & 7) * 16;
  }
  static constexpr int tile_bytes = panels * decode::keys * decode::panel_bytes;
};

/// The queries of the tile, by the math warps' threads; heads beyond the last query are zeros.  Asked for, not waited for.
template <class Row>
__device__ void load_queries(const DecodeCall& call, const DecodeTile& tile, unsigned char* scratch, int thread) {
  const IndexerProblem& p       = call.problem;
  const auto* const     from    = static_cast<const typename Row::Element*>(p.query) + tile.batch * p.query_strides[0];
  const int             columns = call.plan.columns, all = call.plan.groups * columns * Row::blocks, heads = p.heads == 64 ? 6 : 5;
#pragma unroll 2
  for (int i = thread; i < all; i += decode::math_threads) {
    const int          column = i / Row::blocks, block = i % Row::blocks, head = column & (p.heads - 1);
    const std::int64_t row  = tile.first_row + (column >> heads);
    const bool         real = row < p.queries;
    const auto* const  at   = from + (real ? row : 0) * p.query_strides[1] + head * p.query_strides[2] + block * (16 / sizeof(*from));
    const int          to   = column / columns * (columns * Row::panels * decode::panel_bytes) + Row::offset(column % columns, block, columns);
    ptx::cp_async(ptx::shared_address(scratch + to), at, real);
  }
}

/// Draws the team's key tiles.  The first ones are its own, those that follow the teams take as they come: the memory serves some faster
/// than others.
class KeyTileQueue {
 public:
  __device__ KeyTileQueue(const DecodeCall& call, const DecodeTile& tile, int lane)
      : next_(call.plan.next + tile.number), own_(call.scratch.stages), splits_(call.plan.splits), tile_(tile.split), lane_(lane) {}

  /// The next tile's number, whether it exists or not.
  __device__ std::int32_t draw() {
    const std::int32_t drawn = tile_;
    if (++count_ < own_)
      tile_ += splits_;
    else if (lane_ == 0)
      asked_ = count_ < most_decode_tiles ? atomicAdd(next_, 1) : 0x3fffffff;
    return drawn;
  }
  /// Waits for what was asked for last.
  __device__ void arrive() {
    if (count_ >= own_) tile_ = own_ * splits_ + __shfl_sync(0xffffffffu, asked_, 0);
  }

 private:
  std::int32_t* const next_;
  const std::int32_t  own_, splits_;
  std::int32_t        tile_, asked_ = 0;
  int                 count_ = 0;
  const int           lane_;
};

/// The sample and then key tiles, by the loading warp.
template <class Row>
__device__ void load_keys(const DecodeCall& call, const DecodeTile& tile, DecodeState& state, unsigned char* scratch, int lane) {
  const IndexerProblem& p      = call.problem;
  const int             block  = lane % Row::blocks, first = lane / Row::blocks;
  const std::int64_t    stride = p.key_strides[1] * static_cast<std::int64_t>(sizeof(typename Row::Element));
  const auto* const     from =
      reinterpret_cast<const unsigned char*>(static_cast<const typename Row::Element*>(p.key) + tile.batch * p.key_strides[0]) + block * 16;
  const float* const  scales = p.key_scale + tile.batch * p.key_scale_stride;
  constexpr int       rows   = 32 / Row::blocks;  // a step
  const std::uint32_t to     = ptx::shared_address(scratch + call.scratch.keys);
  int                 slot   = 0;
  std::uint32_t       round  = 0;
  const auto          scale  = [&](int i, std::int32_t key, bool real) {
    if constexpr (Row::scaled) ptx::cp_async_4(&state.key_scales[slot][i], scales + (real ? key : 0), real);
  };
  const auto advance = [&](std::int32_t number) {
    ptx::cp_async_mbarrier_arrive(&state.keys_full[slot]);
    if (lane == 0) {
      state.stage_tile[slot] = number;
      ptx::mbarrier_arrive(&state.keys_full[slot]);
    }
    if (++slot == call.scratch.stages) slot = 0, round ^= 1;
  };
  int          count = 0;
  KeyTileQueue queue(call, tile, lane);
  for (std::int32_t number = tile.key_tiles > 0 ? queue.draw() : 0; number < tile.key_tiles;) {
    if (count == 0) {
      for (int i = lane; i < decode::keys; i += 32) scale(i, tile.sample_key(i), true);
#pragma unroll 4
      for (int row = first; row < decode::keys; row += rows)
        ptx::cp_async(to + Row::offset(row, block, decode::keys), from + tile.sample_key(row) * stride);
      advance(0);
    }
    ptx::mbarrier_wait(&state.keys_empty[slot], round ^ 1);
    const std::int32_t   key = tile.first_key(number), left = tile.hull_end - key;
    const std::uint32_t  stage = to + slot * Row::tile_bytes;
    const unsigned char* at    = from + (key + first) * stride;
    for (int i = lane; i < decode::keys; i += 32) scale(i, key + i, i < left);
    if (left >= decode::keys) {
#pragma unroll
      for (int i = 0; i < decode::keys / rows; ++i, at += rows * stride)
        ptx::cp_async(stage + Row::offset(first + i * rows, block, decode::keys), at);
    } else {
#pragma unroll 1
      for (int row = first; row < decode::keys; row += rows, at += rows * stride)
        ptx::cp_async(stage + Row::offset(row, block, decode::keys), row < left ? at : from, row < left);
    }
    if (lane == 0) state.tiles[count] = number;
    advance(number);
    ++count;
    queue.arrive();
    number = queue.draw();
  }
  if (lane == 0) state.tile_count = count;
  // Every warpgroup is told that there are no more.
  for (int i = 0; i < decode::math_groups / call.plan.groups; ++i) {
    ptx::mbarrier_wait(&state.keys_empty[slot], round ^ 1);
    advance(-1);
  }
  ptx::cp_async_wait_all();
}

}  // namespace Tributary::Impl::SM90
