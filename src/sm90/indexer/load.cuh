#pragma once
#include "sm90/indexer/parameters.cuh"
#include "sm90/indexer/tile.cuh"
#include "sm90/ptx/global.cuh"
#include "sm90/ptx/tma.cuh"

// Loading: a warp draws work items, works out their keys, brings their queries and streams the keys.

namespace Tributary::Impl::SM90 {

/// Item `number` of the queue.  The last queries of a causal call have the most keys: they go first.
template <class Tile>
__device__ void describe_item(const IndexerCall& call, std::int64_t number, WorkItem<Tile::queries>& item, int lane) {
  if (number >= call.plan.items(call.problem.batch)) {
    if (lane == 0) item.batch = -1;
    return;
  }
  const std::int64_t split = number % call.plan.splits, tile = number / call.plan.splits;
  const std::int64_t batch = tile % call.problem.batch, row = (call.plan.tiles - 1 - tile / call.problem.batch) * Tile::queries;
  RowKeys            keys{0, 0, 0};
  if (lane < Tile::queries) item.rows[lane] = keys = row_keys(call.problem, batch, row + lane);
  const bool         some  = keys.begin < keys.end;
  const std::int32_t begin = __reduce_min_sync(0xffffffffu, some ? keys.begin : 0x7fffffff);
  const std::int32_t end   = __reduce_max_sync(0xffffffffu, some ? keys.end : 0);
  const std::int32_t all =
      begin < end ? static_cast<std::int32_t>((static_cast<std::int64_t>(end) - begin + Tile::keys - 1) / Tile::keys) : 0;
  const auto first = static_cast<std::int32_t>(all * split / call.plan.splits);
  const auto tiles = static_cast<std::int32_t>(all * (split + 1) / call.plan.splits) - first;
  // Scores that are stored need no order; so the keys lie side by side, and the first ones are asked for some divisions earlier.
  const bool in_order = call.scores != nullptr || tiles == 0;
  const auto period   = in_order ? tiles : KeyTileOrder::period_of(tiles);
  const auto stride   = in_order ? 1 : KeyTileOrder::stride_of(period, lane);
  if (lane == 0) {
    item.batch     = static_cast<std::int32_t>(batch);
    item.row       = static_cast<std::int32_t>(row);
    item.split     = static_cast<std::int32_t>(split);
    item.key       = all == 0 ? 0 : begin + first * Tile::keys;
    item.key_tiles = tiles;
    item.period    = period;
    item.stride    = stride;
    // Rows past the last would leave the second warpgroup nothing to do.  (A row's candidates are one warpgroup's, a row's scores any's.)
    item.shared = call.scores != nullptr && row + Tile::group_queries >= call.problem.queries;
  }
}

/// Calls function(panel, the coordinates of its box) for a warpgroup's queries.
template <class Tile, class Function>
__device__ void for_each_query_box(const WorkItem<Tile::queries>& item, int group, const Function& function) {
#pragma unroll
  for (int panel = 0; panel < Tile::panels; ++panel)
    function(panel, panel * Tile::head_dim / Tile::panels, 0, item.row + item.first_row(group), item.batch);
}

/// Brings an item's queries to the second-level cache: they cannot be loaded before the ones in use are done with; one thread.
template <class Tile>
__device__ void prefetch_queries(const IndexerCall& call, const WorkItem<Tile::queries>& item) {
  for (int group = 0; group < 2; ++group)
    for_each_query_box<Tile>(item, group,
                             [&](int, int x, int y, int z, int w) { ptx::cp_async_bulk_prefetch_tensor(&call.maps()->query, x, y, z, w); });
}

/// The same for their weights; a warp, whose lanes bring a line each.
template <class Tile>
__device__ void prefetch_weights(const IndexerProblem& problem, const WorkItem<Tile::queries>& item, int lane) {
  constexpr int      row_lines = Tile::heads / 32, lines = Tile::queries * row_lines;
  const int          line = lane % lines;
  const std::int64_t row  = item.row + line / row_lines;
  if (row >= problem.queries) return;
  const float* of_row = problem.weights + item.batch * problem.weight_strides[0] + row * problem.weight_strides[1];
  if (Tile::has_scales && lane >= lines)
    of_row = problem.query_scale + item.batch * problem.query_scale_strides[0] + row * problem.query_scale_strides[1];
  ptx::prefetch_l2(of_row + line % row_lines * 32);
}

/// An item's queries, once the math warps need the ones before no more; one thread.
template <class Tile>
__device__ void load_queries(const IndexerCall& call, SharedState<Tile>& shared, unsigned char* scratch,
                             const WorkItem<Tile::queries>& item, std::uint32_t round) {
  for (int group = 0; group < 2; ++group) {
    ptx::mbarrier_wait(&shared.queries_empty[group], round ^ 1);
    ptx::mbarrier_arrive_expect_tx(&shared.queries_full[group], Tile::query_bytes);
    for_each_query_box<Tile>(item, group, [&](int panel, int x, int y, int z, int w) {
      ptx::cp_async_bulk_tensor(scratch + group * Tile::group_offset + panel * Tile::columns * Tile::panel_bytes, &call.maps()->query,
                                &shared.queries_full[group], x, y, z, w);
    });
  }
}

template <class Tile>
__device__ void load(const IndexerCall& call, SharedState<Tile>& shared, unsigned char* scratch, int team, int teams, int lane) {
  const CUtensorMap* const map = &call.maps()->key;
  if (lane == 0) {
    ptx::fence_proxy_tensormap(map);
    ptx::fence_proxy_tensormap(&call.maps()->query);
  }
  RingPosition<2>            item_at;
  RingPosition<Tile::stages> stage;
  std::uint32_t              round = 0;
  for (std::int64_t number = team;; round ^= 1) {
    auto& item = shared.items[item_at.slot];  // the one before the last is done: the last one's queries have come
    if constexpr (Tile::has_scales) ptx::mbarrier_wait(&shared.scales_know[item_at.slot], item_at.round ^ 1);
    describe_item<Tile>(call, number, item, lane);
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&shared.item_full[item_at.slot]);
    if (item.batch < 0) return;
    prefetch_weights<Tile>(call.problem, item, lane);
    if (lane == 0) {
      prefetch_queries<Tile>(call, item);
      KeyTileOrder  order(item.key_tiles, item.period, item.stride);
      constexpr int ahead = Tile::stages - 1;  // tiles that find room while the last one of the item before is multiplied
      for (int j = 0; j < item.key_tiles; ++j, order.next(), stage.next()) {
        if (j == ahead) load_queries<Tile>(call, shared, scratch, item, round);
        ptx::mbarrier_wait(&shared.keys_empty[stage.slot], stage.round ^ 1);
        const std::int32_t key       = item.key + order.at * Tile::keys;
        shared.stage_key[stage.slot] = key;
        ptx::mbarrier_arrive_expect_tx(&shared.keys_full[stage.slot], Tile::key_bytes);
        unsigned char* const to = scratch + Tile::keys_offset + stage.slot * Tile::key_bytes;
#pragma unroll
        for (int panel = 0; panel < Tile::panels; ++panel)
          ptx::cp_async_bulk_tensor(to + panel * Tile::keys * Tile::panel_bytes, map, &shared.keys_full[stage.slot],
                                    panel * Tile::head_dim / Tile::panels, key, item.batch);
      }
      if (item.key_tiles <= ahead) load_queries<Tile>(call, shared, scratch, item, round);
    }
    __syncwarp();
    item_at.next();
    // A team's first item is its own number, the next ones come from the queue.
    if (lane == 0) number = teams + static_cast<std::int64_t>(atomicAdd(call.plan.next_item, 1));
    number = __shfl_sync(0xffffffffu, number, 0);
  }
}

/// Another warp: the scales of the keys of each stage.
template <class Tile>
__device__ void load_scales(const IndexerCall& call, SharedState<Tile>& shared, int lane) {
  const auto                 keys = static_cast<std::int32_t>(call.problem.keys);
  RingPosition<Tile::stages> stage;
  for (RingPosition<2> item_at;; item_at.next()) {
    ptx::mbarrier_wait(&shared.item_full[item_at.slot], item_at.round);
    const auto&        item  = shared.items[item_at.slot];
    const std::int32_t batch = item.batch, first = item.key, key_tiles = item.key_tiles;
    KeyTileOrder       order(key_tiles, item.period, item.stride);
    __syncwarp();
    if (lane == 0) ptx::mbarrier_arrive(&shared.scales_know[item_at.slot]);
    if (batch < 0) return;
    const float* const scales = call.problem.key_scale + batch * call.problem.key_scale_stride;
    for (int j = 0; j < key_tiles; ++j, order.next(), stage.next()) {
      const std::int32_t key = first + order.at * Tile::keys + lane / 8 * 16 + lane % 8;
      const float2 pair = {__ldg(scales + min(key, keys - 1)), __ldg(scales + min(key + 8, keys - 1))};  // past the last: of no legal key
      ptx::mbarrier_wait(&shared.keys_empty[stage.slot], stage.round ^ 1);
      shared.key_scales[stage.slot][lane] = pair;
      __syncwarp();
      if (lane == 0) ptx::mbarrier_arrive(&shared.keys_full[stage.slot]);
    }
  }
}

}  // namespace Tributary::Impl::SM90
