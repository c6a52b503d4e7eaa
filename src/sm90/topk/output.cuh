#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>

#include "Tributary_Topk.hpp"
#include "sm90/topk/candidates.cuh"

namespace Tributary::Impl::SM90 {

/// Where a row's results go.
struct TopkRow {
  std::int32_t* indices;
  float*        scores;  // null: not wanted

  __device__ TopkRow(const TopkOutput& output, std::int64_t batch, std::int64_t row)
      : indices(output.indices + batch * output.index_strides[0] + row * output.index_strides[1]),
        scores(output.scores == nullptr ? nullptr : output.scores + batch * output.score_strides[0] + row * output.score_strides[1]) {}

  __device__ void put(std::int64_t position, Entry entry) const { put(position, index_of(entry), score_of(entry)); }
  /// In place of a result that does not exist.
  __device__ void pad(std::int64_t position) const { put(position, -1, __uint_as_float(0xff800000u)); }

 private:
  __device__ void put(std::int64_t position, std::int32_t index, float score) const {
    indices[position] = index;
    if (scores != nullptr) scores[position] = score;
  }
};

/// The k best of a pool, in the wanted order, padded at the end.  `place` is find(wanted)'s, wanted = min(k, count()).
///
/// \tparam Usual  makes the usual entry of one of the pool
template <class Pool, class Place, class Usual = std::identity>
__device__ void write_row(Pool& pool, const Place& place, int wanted, const TopkOutput& output, std::int64_t batch, std::int64_t row,
                          const Usual& usual = {}) {
  const bool by_index = output.order == TopkOrder::by_index;
  if (wanted > 0) pool.arrange(place, wanted, by_index);
  const TopkRow out(output, batch, row);
  for (std::int64_t i = Pool::Team::rank(); i < output.top_k; i += Pool::Team::threads)
    if (i < wanted)
      out.put(i, usual(by_index ? Pool::halves_swapped(pool.entries()[i]) : pool.entries()[i]));
    else
      out.pad(i);
}

/// The same where nothing is known of the pool yet.
template <class Pool, class Usual = std::identity>
__device__ void write_row(Pool& pool, int keep, const TopkOutput& output, std::int64_t batch, std::int64_t row, const Usual& usual = {}) {
  const int            wanted = pool.count() < keep ? pool.count() : keep;
  typename Pool::Place place{};
  if (wanted > 0) place = pool.find(wanted);
  write_row(pool, place, wanted, output, batch, row, usual);
}

/// A pool's sizes.
struct PoolSizes {
  int keep, most, capacity;
};

/// For a team's pool: room to cut `keep` entries seldom; and no more than `longest`, what may come at all.
///
/// \param threads  of the team
inline PoolSizes pool_sizes(std::int64_t keep, std::int64_t longest, int threads) {
  int power = threads;
  while (power < keep) power *= 2;
  // 32 KiB leave room for four teams an SM, 48 KiB for three
  const std::int64_t usual = keep <= 1024 ? 4096 : 6144;
  return {.keep     = static_cast<int>(keep),
          .most     = static_cast<int>(keep + keep / 4),
          .capacity = static_cast<int>(std::max<std::int64_t>(power, std::min(longest, usual)))};
}

/// Results that a team's shared memory can rank.
constexpr int largest_keep = 2048;

/// Why a selection of so many rows cannot run here; empty if it can.
inline std::string no_selection(std::int64_t rows, std::int64_t keep) {
  if (keep > largest_keep) return "k is " + std::to_string(keep) + ", more than " + std::to_string(largest_keep);
  if (rows > 0x7fffffff) return "there are " + std::to_string(rows) + " rows, 2^31 or more";
  return "";
}

}  // namespace Tributary::Impl::SM90
