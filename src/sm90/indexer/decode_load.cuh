#pragma once
#include "sm90/indexer/decode_state.cuh"
#include "sm90/pipeline.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/cp_async.cuh"
#include "sm90/ptx/mbarrier.cuh"
#include "sm90/ptx/tma.cuh"

// Loading.  Queries and tiles of keys come by the copy engine.  The keys of the sample, which lie apart, are copied 16 bytes a lane to
// where the copy engine would put them: blocks of 16 bytes change places within a row as its number says.

namespace Tributary::Impl::SM90 {

template <class Element_, int HeadDim>
struct DecodeRow {
  using Element                     = Element_;
  static constexpr int  bytes       = HeadDim * static_cast<int>(sizeof(Element));
  static constexpr int  block_dim   = 16 / static_cast<int>(sizeof(Element));
  static constexpr int  blocks      = bytes / 16;
  static constexpr int  panel_bytes = bytes < 128 ? bytes : 128;  // what a swizzle spans
  static constexpr int  panels = bytes / panel_bytes, panel_dim = HeadDim / panels;
  static constexpr int  steps      = bytes / 32;  // of wgmma's k
  static constexpr bool scaled     = sizeof(Element) == 1;
  static constexpr int  tile_bytes = decode::keys * bytes;

  /// Where block `block` of row `row` lies in panels of so many rows.
  __device__ static constexpr int offset(int row, int block, int rows) {
    constexpr int in_panel = panel_bytes / 16;
    const int     swap     = in_panel == 8 ? row & 7 : (row >> 1) & 3;
    return block / in_panel * (rows * panel_bytes) + row * panel_bytes + ((block % in_panel) ^ swap) * 16;
  }
};

/// The queries of the tile; heads beyond the last query are zeros.  One thread.
template <class Row>
__device__ void load_queries(const DecodeCall& call, const DecodeTile& tile, DecodeState& state, unsigned char* scratch) {
  const int columns = call.plan.columns, rows = columns / call.problem.heads;
  ptx::mbarrier_arrive_expect_tx(&state.queries_full, call.plan.groups * columns * Row::bytes);
#pragma unroll 1
  for (int group = 0; group < call.plan.groups; ++group)
#pragma unroll
    for (int panel = 0; panel < Row::panels; ++panel)
      ptx::cp_async_bulk_tensor(scratch + (group * Row::panels + panel) * columns * Row::panel_bytes, &call.maps().query,
                                &state.queries_full, panel * Row::panel_dim, 0, tile.first_row + group * rows, tile.batch);
}

/// Draws the team's key tiles.  The first ones are its own, those that follow the teams take as they come, since the memory serves some
/// faster than others.  What is drawn was asked for two tiles and more before.
class KeyTileQueue {
 public:
  __device__ KeyTileQueue(const DecodeCall& call, const DecodeTile& tile, int lane)
      : next_(call.plan.next + tile.number),
        own_(call.scratch.stages),
        splits_(call.plan.splits),
        tile_(tile.split),
        is_asking_(lane == 0) {}

  /// The next tile's number, whether it exists or not.
  __device__ std::int32_t draw() {
    const int drawn = count_++;
    if (drawn < own_) {
      if (drawn == own_ - at_once) ask();
      return tile_ + drawn * splits_;
    }
    const int place = (drawn - own_) % at_once;
    if (place == 0) {
      tile_ = own_ * splits_ + __shfl_sync(0xffffffffu, asked_, 0);
      ask();
    }
    return tile_ + place;
  }

 private:
  static constexpr int at_once = 2;
  static_assert(sure_decode_tiles <= most_decode_tiles - 3 * at_once);

  __device__ void ask() {
    if (is_asking_) asked_ = count_ < most_decode_tiles - 2 * at_once ? atomicAdd(next_, at_once) : no_more;
  }
  static constexpr std::int32_t no_more = 0x3fffffff;

  std::int32_t* const next_;
  const std::int32_t  own_, splits_;
  std::int32_t        tile_, asked_ = 0;
  int                 count_ = 0;
  const bool          is_asking_;
};

/// The keys of the sample, in the first stage; by the counting warps.
template <class Row>
__device__ void load_sample(const DecodeCall& call, const DecodeTile& tile, DecodeState& state, unsigned char* scratch, int thread) {
  const IndexerProblem& p     = call.problem;
  const int             block = thread % Row::blocks;
  const auto* const     from  = static_cast<const typename Row::Element*>(p.key) + tile.batch * p.key_strides[0] + block * Row::block_dim;
  const std::uint32_t   to    = ptx::shared_address(scratch + call.scratch.keys);
  if constexpr (Row::scaled)
    for (int i = thread; i < decode::keys; i += decode::count_threads)
      ptx::cp_async_4(&state.key_scales[0][i], p.key_scale + tile.batch * p.key_scale_stride + tile.sample_key(i), true);
#pragma unroll 2
  for (int row = thread / Row::blocks; row < decode::keys; row += decode::count_threads / Row::blocks)
    ptx::cp_async(to + Row::offset(row, block, decode::keys), from + tile.sample_key(row) * p.key_strides[1], true);
  ptx::cp_async_mbarrier_arrive(&state.sample_full);
}

/// The queries and key tiles, by the loading warp.
template <class Row>
__device__ void load_keys(const DecodeCall& call, const DecodeTile& tile, DecodeState& state, unsigned char* scratch, int lane) {
  int           slot  = 0;
  std::uint32_t round = 0;
  const auto    next  = [&] {
    if (++slot == call.scratch.stages) slot = 0, round ^= 1;
  };
  int           count = 0, awaited = 1;  // the slot of the first tile that has perhaps not come; the sample was in slot 0
  std::uint32_t awaited_round = 0;
  KeyTileQueue  queue(call, tile, lane);
  if (lane == 0) {
    ptx::fence_proxy_tensormap(&call.maps().query);
    ptx::fence_proxy_tensormap(&call.maps().key);
    load_queries<Row>(call, tile, state, scratch);
  }
  if (tile.key_tiles > 0) {
    if (lane == 0) ptx::mbarrier_arrive(&state.keys_full[0], Row::scaled ? 33 : 1);  // its first round: the sample has a barrier of its own
    next();
  }
  // The program's own text, the scores and the counts are to stay in the second-level cache.
  const std::uint64_t policy = ptx::createpolicy_evict_first();
  for (std::int32_t number = queue.draw(); number < tile.key_tiles; number = queue.draw()) {
    ptx::mbarrier_wait(&state.keys_empty[slot], round ^ 1);
    if (count >= call.scratch.in_flight) {
      ptx::mbarrier_wait(&state.keys_full[awaited], awaited_round);
      if (++awaited == call.scratch.stages) awaited = 0, awaited_round ^= 1;
    }
    __syncwarp();  // a lane that came late would find the next round begun, and wait for ever
    const std::int32_t key = tile.first_key(number);
    if constexpr (Row::scaled) {
      const float* const scales = call.problem.key_scale + tile.batch * call.problem.key_scale_stride;
      for (int i = lane; i < decode::keys; i += 32) {
        const bool real = key + i < tile.hull_end;
        ptx::cp_async_4(&state.key_scales[slot][i], scales + (real ? key + i : 0), real);
      }
      ptx::cp_async_mbarrier_arrive(&state.keys_full[slot]);
    }
    if (lane == 0) {
      state.stage_tile[slot] = StagedTile::of(number, number < tile.counted_tiles);
      state.tiles[count]     = number;
      ptx::mbarrier_arrive_expect_tx(&state.keys_full[slot], Row::tile_bytes);
#pragma unroll
      for (int panel = 0; panel < Row::panels; ++panel)
        ptx::cp_async_bulk_tensor(scratch + call.scratch.keys + slot * Row::tile_bytes + panel * decode::keys * Row::panel_bytes,
                                  &call.maps().key, &state.keys_full[slot], panel * Row::panel_dim, key, tile.batch, policy);
    }
    ++count;
    next();
  }
  if (lane == 0) state.tile_count = count;
  // Every warpgroup is told that there are no more.
  for (int i = 0; i < decode::math_groups / call.plan.groups; ++i, next()) {
    ptx::mbarrier_wait(&state.keys_empty[slot], round ^ 1);
    __syncwarp();
    if constexpr (Row::scaled) ptx::cp_async_mbarrier_arrive(&state.keys_full[slot]);
    if (lane == 0) {
      state.stage_tile[slot] = StagedTile::end();
      ptx::mbarrier_arrive(&state.keys_full[slot]);
    }
  }
  ptx::cp_async_wait_all();
}

}  // namespace Tributary::Impl::SM90
