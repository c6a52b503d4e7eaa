#pragma once
#include <functional>

#include "emulator.hpp"

// A kernel of one product whose operand is loaded twice, right or with one of its bugs.

namespace TributaryTest::Emulator {

enum class Bug {
  none,
  no_wgmma_fence,
  no_proxy_fence,
  no_proxy_fence_after_load,
  no_wait_for_product,
  accumulator_in_flight,
  early_load,
  over_arrival,
  too_few_bytes,
  missing_arrival,
  wrong_parity,
  divergent_collective,
  beyond_scratch
};

/// Runs it in one team; `result` gets the product's first element.
void run_with(Bug bug, float& result);

}  // namespace TributaryTest::Emulator
