#pragma once
#include <cstdint>

#include "sm90/ptx/mbarrier.cuh"

// Memory operations under a predicate: straight-line code where an `if` would be a branch, so that neighbouring ones overlap.

namespace Tributary::Impl::SM90::ptx {

__device__ inline void st_global_if(bool predicate, std::uint64_t* to, std::uint64_t value) {
  asm volatile(
      "{\n"
      ".reg .pred store;\n"
      "setp.ne.b32 store, %0, 0;\n"
      "@store st.global.b64 [%1], %2;\n"
      "}\n" ::"r"(static_cast<int>(predicate)),
      "l"(to), "l"(value)
      : "memory");
}

/// Adds, by one instruction that no lane skips.
__device__ inline void red_shared_add(std::uint32_t* counter, std::uint32_t value) {
  asm volatile("red.shared::cta.add.u32 [%0], %1;" ::"r"(shared_address(counter)), "r"(value) : "memory");
}

__device__ inline void red_shared_inc_if(bool predicate, std::uint32_t* counter) {
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %0, 0;\n"
      "@add red.shared::cta.add.u32 [%1], 1;\n"
      "}\n" ::"r"(static_cast<int>(predicate)),
      "r"(shared_address(counter))
      : "memory");
}

/// The counter before, or anything if the predicate does not hold.
template <class Counter>
__device__ Counter atom_shared_add_if(bool predicate, Counter* counter, Counter value) {
  static_assert(sizeof(Counter) == 4);
  Counter before = 0;
  asm volatile(
      "{\n"
      ".reg .pred add;\n"
      "setp.ne.b32 add, %1, 0;\n"
      "@add atom.shared::cta.add.u32 %0, [%2], %3;\n"
      "}\n"
      : "+r"(before)
      : "r"(static_cast<int>(predicate)), "r"(shared_address(counter)), "r"(value)
      : "memory");
  return before;
}

__device__ inline void st_shared_if(bool predicate, std::uint64_t* to, std::uint64_t value) {
  asm volatile(
      "{\n"
      ".reg .pred store;\n"
      "setp.ne.b32 store, %0, 0;\n"
      "@store st.shared::cta.b64 [%1], %2;\n"
      "}\n" ::"r"(static_cast<int>(predicate)),
      "r"(shared_address(to)), "l"(value)
      : "memory");
}

/// 0 if the predicate does not hold.
__device__ inline std::uint64_t ld_shared_if(bool predicate, const std::uint64_t* from) {
  std::uint64_t value = 0;
  asm volatile(
      "{\n"
      ".reg .pred load;\n"
      "setp.ne.b32 load, %1, 0;\n"
      "@load ld.shared::cta.b64 %0, [%2];\n"
      "}\n"
      : "+l"(value)
      : "r"(static_cast<int>(predicate)), "r"(shared_address(from))
      : "memory");
  return value;
}

}  // namespace Tributary::Impl::SM90::ptx
