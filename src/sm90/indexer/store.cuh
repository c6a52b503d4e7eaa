#pragma once
#include "sm90/indexer/parameters.cuh"
#include "sm90/indexer/score.cuh"
#include "sm90/indexer/tile.cuh"

// What becomes of scores in indexer_score: a math warp stores them while the next tile is multiplied.

namespace Tributary::Impl::SM90 {

template <class Tile>
class ScoreStore {
 public:
  using Scores                         = typename Scoring<Tile>::Scores;
  static constexpr bool collects       = false;
  static constexpr int  opening        = 0;
  static constexpr bool shares_queries = true;

  __device__ ScoreStore(const IndexerCall& call, SharedState<Tile>& shared, unsigned char*, int, int warp, int lane)
      : call_(call), shared_(shared), group_(warp / 4), warp_(warp % 4), lane_(lane) {}

  /// \param slot  of the item that the tiles to come belong to
  __device__ void begin(int slot) { slot_ = slot; }

  /// The scores of a tile whose first key is first_key: -infinity where a key is not legal.
  __device__ void take(int, int, const Scores& scores, std::int32_t first_key) const {
    const auto& item      = shared_.items[slot_];
    const int   key       = first_key + warp_ * 16 + lane_ / 4;  // of the lane's first key; the other one is 8 further
    const int   first_row = item.first_row(group_) + lane_ % 4;
#pragma unroll
    for (int r = 0; r < Scoring<Tile>::own_rows; ++r) {
      const std::int64_t row = item.row + first_row + r * 4;
      if (row >= call_.problem.queries) continue;
      const RowKeys& keys = item.rows[first_row + r * 4];
      float* const   to   = call_.scores + item.batch * call_.score_strides[0] + row * call_.score_strides[1];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const std::int64_t column = static_cast<std::int64_t>(key) + 8 * i - keys.first_key;
        const bool         legal  = keys.begin <= key + 8 * i && key + 8 * i < keys.end;
        if (column >= 0 && column < call_.score_columns) to[column] = legal ? scores[r][i] : -__int_as_float(0x7f800000);
      }
    }
  }

  /// What no key tile reaches of an item's rows of scores: -infinity, by the first and the last part of the keys.
  __device__ void finish() const {
    const auto& item = shared_.items[slot_];
#pragma unroll 1
    for (int r = 0; r < Scoring<Tile>::own_rows; ++r) {
      const int row = group_ * Tile::group_queries + r * 4 + warp_;
      if (item.row + row >= call_.problem.queries) break;
      const RowKeys      keys      = item.rows[row];
      float* const       to        = call_.scores + item.batch * call_.score_strides[0] + (item.row + row) * call_.score_strides[1];
      const auto         column_of = [&](int key) { return static_cast<std::int64_t>(key) - keys.first_key; };
      const std::int64_t begin     = clip(column_of(item.key), 0, call_.score_columns);
      const std::int64_t end       = clip(column_of(item.key) + std::int64_t{item.key_tiles} * Tile::keys, begin, call_.score_columns);
      const float        nothing   = -__int_as_float(0x7f800000);
      if (item.split == 0)
        for (std::int64_t column = lane_; column < begin; column += 32) to[column] = nothing;
      if (item.split == call_.plan.splits - 1)
        for (std::int64_t column = end + lane_; column < call_.score_columns; column += 32) to[column] = nothing;
    }
  }

 private:
  const IndexerCall& call_;
  SharedState<Tile>& shared_;
  const int          group_, warp_, lane_;
  int                slot_ = 0;
};

}  // namespace Tributary::Impl::SM90
