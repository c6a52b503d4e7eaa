#pragma once
#include "cuda_functions.hpp"
#include "instructions.hpp"

namespace Tributary::Impl::SM90::ptx {

using TributaryTest::Emulator::ld_acquire;
using TributaryTest::Emulator::st_release;

inline std::int32_t atom_add_acq_rel(std::int32_t* to, std::int32_t value) {
  __threadfence();
  const std::int32_t before = atomicAdd(to, value);
  __threadfence();
  return before;
}

inline void ld_once(unsigned (&words)[4], const void* from) {
  for (int i = 0; i < 4; ++i) words[i] = static_cast<const unsigned*>(from)[i];
}

inline void prefetch_l2(const void*) {}

}  // namespace Tributary::Impl::SM90::ptx
