#include "planted_bugs.hpp"

#include "Tributary_Types.hpp"
#include "sm90/launch.cuh"
#include "sm90/ptx/barrier.cuh"
#include "sm90/ptx/tma.cuh"
#include "sm90/ptx/wgmma.cuh"
#include "sm90/tensor_map.hpp"

namespace TributaryTest::Emulator {
namespace {

namespace SM90 = Tributary::Impl::SM90;
namespace ptx  = SM90::ptx;
using Tributary::half_t;

constexpr int rows = 64, tile_bytes = rows * 128, barrier_offset = 2 * tile_bytes, scratch_bytes = barrier_offset + 64;

alignas(16) half_t numbers[rows * 64];

/// A comes by the copy engine, B is written by the threads: all ones; only 16 of the depth are multiplied.  Then A is read and comes again.
void kernel(const CUtensorMap& map, Bug bug, float& result) {
  unsigned char* const scratch = SM90::aligned_scratch({}, scratch_bytes);
  auto* const          full    = reinterpret_cast<std::uint64_t*>(scratch + barrier_offset);
  const int            thread  = SM90::thread_of_team();
  if (thread == 0) ptx::mbarrier_init(full, 1);
  __syncthreads();
  if (thread == 0) {
    if (bug != Bug::missing_arrival) ptx::mbarrier_arrive_expect_tx(full, bug == Bug::too_few_bytes ? tile_bytes / 2 : tile_bytes);
    if (bug == Bug::over_arrival) ptx::mbarrier_arrive(full);
    ptx::cp_async_bulk_tensor(scratch, &map, full, 0, 0, 0, 0);
  }
  auto* const ones = reinterpret_cast<half_t*>(scratch + tile_bytes);
  for (int i = thread; i < tile_bytes / 2; i += 128) ones[i] = half_t(1.0f);
  if (bug == Bug::beyond_scratch && thread == 5) scratch[scratch_bytes] = 0;
  if (bug == Bug::early_load && thread == 7) result = static_cast<float>(reinterpret_cast<half_t*>(scratch)[0]);
  if (bug != Bug::no_proxy_fence) ptx::fence_proxy_async();
  __syncthreads();
  ptx::mbarrier_wait(full, bug == Bug::wrong_parity ? 1 : 0);
  if (bug == Bug::wrong_parity) ptx::mbarrier_wait(full, 1);
  if (bug == Bug::divergent_collective && thread % 2 == 1)
    __any_sync(0xffffffffu, true);
  else
    __syncwarp();
  float sums[32];
  for (float& sum : sums) sum = 0.0f;
  if (bug != Bug::no_wgmma_fence) ptx::wgmma_fence();
  ptx::Wgmma<half_t, 64>::issue(sums, ptx::matrix_descriptor<128>(ptx::shared_address(scratch)),
                                ptx::matrix_descriptor<128>(ptx::shared_address(ones)), false);
  ptx::wgmma_commit_group();
  if (bug == Bug::accumulator_in_flight) sums[3] = 1.0f;
  if (bug != Bug::no_wait_for_product) ptx::wgmma_wait_group<0>();
  ptx::pin(sums);
  const auto number = static_cast<float>(reinterpret_cast<half_t*>(scratch)[thread]);  // 0.5
  if (bug != Bug::no_proxy_fence_after_load) ptx::fence_proxy_async();
  __syncthreads();
  if (thread == 0) {
    ptx::mbarrier_arrive_expect_tx(full, tile_bytes);
    ptx::cp_async_bulk_tensor(scratch, &map, full, 0, 0, 0, 0);
  }
  ptx::mbarrier_wait(full, 1);
  if (thread == 0) result = sums[0] * (number + static_cast<float>(reinterpret_cast<half_t*>(scratch)[0]));
  SM90::exit_thread();
}

}  // namespace

void run_with(Bug bug, float& result) {
  for (half_t& number : numbers) number = half_t(0.5f);
  const CUtensorMap map =
      SM90::tensor_map<4>(Tributary::ElementType::float16, numbers, {{64, 1, rows, 1}, {64, 64, 64 * rows}, {64, 1, rows, 1}});
  launch(128, 1, scratch_bytes, [&](const Member&) { kernel(map, bug, result); });
}

}  // namespace TributaryTest::Emulator
