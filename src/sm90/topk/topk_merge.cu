#include "common/log.hpp"
#include "sm90/launch.cuh"
#include "sm90/topk/output.cuh"
#include "sm90/topk/topk.hpp"

// topk_merge: a row of all lists a team, through the same pool of candidates as topk.

namespace Tributary::Impl::SM90 {
namespace {

constexpr int threads      = 256;
constexpr int teams_per_sm = 3;  // whatever k
constexpr int bins         = 1024;
constexpr int most_lists   = 16;  // 1 KiB of the 4 KiB that a kernel's parameters may have

struct MergeLists {
  using Pool = Candidates<threads, bins>;
  struct List {
    const std::int32_t* indices;
    const float*        scores;
    std::int64_t        index_strides[2], score_strides[2];
    std::int32_t        length, offset;
  };

  List       lists[most_lists];
  int        count;
  unsigned   rows;  // of each batch entry
  PoolSizes  sizes;
  TopkOutput output;

  int scratch_bytes() const { return Pool::scratch_bytes(sizes.keep, sizes.capacity); }

  __device__ void operator()(const Member& team) const {
    const auto     flat_row = static_cast<unsigned>(team.league_rank());
    const unsigned batch = flat_row / rows, row = flat_row % rows;
    Pool           pool(aligned_scratch(team, Pool::scratch_bytes(sizes.keep, sizes.capacity)), sizes.keep, sizes.most, sizes.capacity);
    for (int l = 0; l < count; ++l) {
      const List& list = lists[l];
      collect(pool, list.indices + batch * list.index_strides[0] + row * list.index_strides[1],
              list.scores + batch * list.score_strides[0] + row * list.score_strides[1], list.length, list.offset);
    }
    write_row(pool, sizes.keep, output, batch, row);  // all has been read: the output may be one of the lists
    exit_thread();
  }

 private:
  __device__ void collect(Pool& pool, const std::int32_t* indices, const float* scores, int length, std::int32_t offset) const {
    constexpr int each = 4;
    for (int first = 0; first < length; first += each * threads) {
      Entry    own[each];
      unsigned mask = 0;
#pragma unroll
      for (int i = 0; i < each; ++i) {
        const int          at    = first + i * threads + Pool::Team::rank();
        const std::int32_t index = at < length ? indices[at] : -1;
        const std::int64_t moved = static_cast<std::int64_t>(index) + offset;
        const bool         real  = index >= 0 && moved >= 0 && moved <= 0x7fffffff;
        own[i]                   = real ? make_entry(sortable(scores[at]), static_cast<std::uint32_t>(moved)) : no_entry;
        mask |= (real ? 1u : 0u) << i;
      }
      do mask = pool.template within<each>(mask, ~Entry{0}, [&](int i) { return own[i]; });
      while (!pool.template offer<each>(mask, [&](int i) { return own[i]; }));
    }
  }
};

std::int64_t columns_of(const TopkMergeArguments& arguments) {
  std::int64_t columns = 0;
  for (const auto& list : arguments.lists) columns += list.indices.extents[2];
  return columns;
}
std::int64_t keep_of(const TopkMergeArguments& arguments) {
  return std::max<std::int64_t>(1, std::min(arguments.indices.extents[2], columns_of(arguments)));
}
std::int64_t rows_of(const TopkMergeArguments& arguments) { return arguments.indices.extents[0] * arguments.indices.extents[1]; }

}  // namespace

template <>
std::string no_topk(const Kokkos::Cuda&, const TopkMergeArguments& arguments) {
  const auto lists = arguments.lists.size();
  if (lists > most_lists) return "there are " + std::to_string(lists) + " lists, more than " + std::to_string(most_lists);
  return no_selection(rows_of(arguments), keep_of(arguments));
}

template <>
void topk_merge(const Kokkos::Cuda& exec, const TopkMergeArguments& arguments, const TopkOutput& output) {
  if (rows_of(arguments) == 0) return;
  if (log_enabled()) log("topk_merge: Hopper level, " + std::to_string(arguments.lists.size()) + " lists");
  MergeLists functor{.lists  = {},
                     .count  = 0,
                     .rows   = static_cast<unsigned>(arguments.indices.extents[1]),
                     .sizes  = pool_sizes(keep_of(arguments), columns_of(arguments), threads),
                     .output = output};
  for (const auto& list : arguments.lists)
    functor.lists[functor.count++] = {.indices       = list.indices.data,
                                      .scores        = list.scores.data,
                                      .index_strides = {list.indices.strides[0], list.indices.strides[1]},
                                      .score_strides = {list.scores.strides[0], list.scores.strides[1]},
                                      .length        = static_cast<std::int32_t>(list.indices.extents[2]),
                                      .offset        = list.index_offset};
  launch_teams<threads, teams_per_sm, 0>("Tributary::topk_merge::hopper", exec, static_cast<int>(rows_of(arguments)),
                                         functor.scratch_bytes(), functor);
}

}  // namespace Tributary::Impl::SM90
