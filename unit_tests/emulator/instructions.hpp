#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <string_view>

#include "emulator.hpp"

// What the replaced headers make of CUDA's functions and of sm90/ptx: an instruction of the current thread.  They mean what the PTX
// manual says of the instruction that they are named after.

namespace TributaryTest::Emulator {

// Threads.
int               thread_of_team();
unsigned char*    scratch(int bytes);
std::uint32_t     shared_address(const void* pointer);
[[noreturn]] void exit_thread();
void              nanosleep();
void              setmaxnreg(int registers);

// Collectives of a warp.
void          syncwarp();
std::uint32_t shuffle(std::uint32_t value, int lane);
std::uint32_t shuffle_xor(std::uint32_t value, int mask);
bool          any(bool value);

// Barriers.  bytes: what the copy engine must deliver besides; 0 for a plain arrival.
void mbarrier_init(std::uint64_t* barrier, int arrivals);
void mbarrier_arrive(std::uint64_t* barrier, int bytes);
void mbarrier_wait(std::uint64_t* barrier, std::uint32_t parity);
void bar_arrive(int barrier, int threads);
void bar_sync(int barrier, int threads);
void syncthreads();

// Fences between ordinary accesses and the copy engine or the tensor cores; acquire and release in device memory.
void         fence_proxy_async();
void         fence_proxy_async_global();
std::int32_t ld_acquire(const std::int32_t* from);
void         st_release(std::int32_t* to, std::int32_t value);

// The copy engine.  A tensor map of four dimensions of 2-byte elements; its boxes' rows have 128 bytes, swizzled.
struct alignas(64) TensorMap {
  const void*   base;
  std::uint64_t extents[4], strides[3];  // strides in bytes
  std::uint32_t box[4];
  std::uint32_t mark;  // says that this is one
  char          fill[40];
};
static_assert(sizeof(TensorMap) == 128);
inline constexpr std::uint32_t tensor_map_mark = 0x7ea5;

void cp_async_bulk_tensor(void* to, const TensorMap* map, std::uint64_t* barrier, int x, int y, int z, int w);
void cp_async_bulk(float* to, const float* from, int bytes, bool adds);
void cp_async_bulk_commit_group();
void cp_async_bulk_wait(bool read_only);

// The tensor cores.
enum class Operands {
  rows,
  across,
  across_b,
  register_a
};  // depth along both, across both, along A and across B; A in registers and across B

struct Product {
  int           columns;  // N
  Operands      operands;
  bool          bfloat16, accumulate;
  std::uint64_t a, b;  // descriptors; a is 0 for registers

  bool operator==(const Product&) const = default;
};

void wgmma_fence();
void wgmma_issue(const Product& product, float* accumulator, const std::uint32_t* register_a);
void wgmma_commit_group();
void wgmma_wait_group(int pending);
void pin(const float* accumulator);

// Arithmetic that kernels write as assembly.
constexpr bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

/// Whether a conversion of two floats makes bfloat16; no constant expression if the text is no conversion that we know.
constexpr bool converts_to_bfloat16(std::string_view text) {
  const bool known = contains(text, "\"f\"(high), \"f\"(low)");
  if (known && contains(text, "cvt.rn.bf16x2.f32 %0, %1, %2;")) return true;
  if (known && contains(text, "cvt.rn.f16x2.f32 %0, %1, %2;")) return false;
  throw "not emulated";
}
constexpr bool is_exp2(std::string_view text) { return contains(text, "ex2.approx.ftz.f32 %0, %1;"); }

std::uint32_t convert_two(bool bfloat16, float high, float low);

inline float exp2_flushed(float x) {
  const auto flushed = [](float value) { return std::fabs(value) < 0x1p-126f ? 0.0f : value; };
  return flushed(std::exp2(flushed(x)));
}

}  // namespace TributaryTest::Emulator
