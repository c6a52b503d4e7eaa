#pragma once
#include <cstdint>

#include "cuda_functions.hpp"
#include "sm90/ptx/mbarrier.cuh"

namespace Tributary::Impl::SM90::ptx {

template <class T>
T* shared(T* pointer) {
  shared_address(pointer);  // refuses any other
  return pointer;
}

inline void st_global_if(bool predicate, std::uint64_t* to, std::uint64_t value) {
  if (predicate) *to = value;
}

template <class Counter>
Counter atom_shared_add_if(bool predicate, Counter* counter, Counter value) {
  return predicate ? atomicAdd(shared(counter), value) : 0x5eed;
}
inline void red_shared_add(std::uint32_t* counter, std::uint32_t value) { atomicAdd(shared(counter), value); }
inline void red_shared_inc_if(bool predicate, std::uint32_t* counter) { atom_shared_add_if(predicate, counter, 1u); }

inline void st_shared_if(bool predicate, std::uint64_t* to, std::uint64_t value) {
  if (predicate) *shared(to) = value;
}
inline std::uint64_t ld_shared_if(bool predicate, const std::uint64_t* from) { return predicate ? *shared(from) : 0; }

}  // namespace Tributary::Impl::SM90::ptx
