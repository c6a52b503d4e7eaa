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

/// The queries of the tile, by the math warps' threads; heads beyond the last query are zeros.
template <class Row>
__device__ void load_queries(const DecodeCall& call, const KeyPart& part, unsigned char* scratch, int thread) {
  const IndexerProblem& p       = call.problem;
  const auto* const     from    = static_cast<const typename Row::Element*>(p.query) + part.batch * p.query_strides[0];
  const int             columns = call.plan.columns, all = call.plan.groups * columns * Row::blocks;
#pragma unroll 4
  for (int i = thread; i < all; i += decode::math_threads) {
    const int          column = i / Row::blocks, block = i % Row::blocks, head = column % p.heads;
    const std::int64_t row  = part.first_row + column / p.heads;
    const bool         real = row < p.queries;
    const auto* const  at   = from + (real ? row : 0) * p.query_strides[1] + head * p.query_strides[2] + block * (16 / sizeof(*from));
    const int to = column / columns * (columns * Row::panels * decode::panel_bytes) + Row::offset(column % columns, block, columns);
    ptx::cp_async(ptx::shared_address(scratch + to), at, real);
  }
  ptx::cp_async_wait_all();
  ptx::fence_proxy_async();
}

/// The sample and then the part's keys, tile after tile, by the loading warps.
template <class Row>
__device__ void load_keys(const DecodeCall& call, const KeyPart& part, DecodeState& state, unsigned char* scratch, int thread) {
  static_assert(decode::load_threads == decode::keys);  // a key's scale each
  if (part.tiles == 0) return;
  const IndexerProblem& p     = call.problem;
  const int             block = thread % Row::blocks, first = thread / Row::blocks;
  const std::int64_t    stride = p.key_strides[1] * static_cast<std::int64_t>(sizeof(typename Row::Element));
  const auto* const     from =
      reinterpret_cast<const unsigned char*>(static_cast<const typename Row::Element*>(p.key) + part.batch * p.key_strides[0]) + block * 16;
  constexpr int       rows    = decode::load_threads / Row::blocks;  // a step
  const std::uint32_t to      = ptx::shared_address(scratch + call.scratch.keys);
  int                 slot    = 0;
  std::uint32_t       round   = 0;
  const auto          advance = [&] {
    ptx::cp_async_mbarrier_arrive(&state.keys_full[slot]);
    if (++slot == call.scratch.stages) slot = 0, round ^= 1;
  };
  const float* const scales = p.key_scale + part.batch * p.key_scale_stride;
  const auto         scale  = [&](std::int32_t key, bool real) {
    if constexpr (Row::scaled) ptx::cp_async_4(&state.key_scales[slot][thread], scales + (real ? key : 0), real);
  };
  scale(part.sample_key(thread), true);
#pragma unroll 4
  for (int row = first; row < decode::keys; row += rows)
    ptx::cp_async(to + Row::offset(row, block, decode::keys), from + part.sample_key(row) * stride, true);
  advance();
  const unsigned char* at = from + (part.begin + first) * stride;
  for (std::int32_t left = part.end - part.begin; left > 0; left -= decode::keys, at += decode::keys * stride) {
    ptx::mbarrier_wait(&state.keys_empty[slot], round ^ 1);
    const std::uint32_t  stage = to + slot * Row::tile_bytes;
    const unsigned char* next  = at;
    scale(part.end - left + thread, thread < left);
    if (left >= decode::keys) {
#pragma unroll
      for (int i = 0; i < Row::blocks; ++i, next += rows * stride)
        ptx::cp_async(stage + Row::offset(first + i * rows, block, decode::keys), next);
    } else {
#pragma unroll 1
      for (int row = first; row < decode::keys; row += rows, next += rows * stride)
        ptx::cp_async(stage + Row::offset(row, block, decode::keys), row < left ? next : at, row < left);
    }
    advance();
  }
  ptx::cp_async_wait_all();
}

}  // namespace Tributary::Impl::SM90
