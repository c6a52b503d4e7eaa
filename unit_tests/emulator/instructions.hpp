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
std::uint64_t shuffle(std::uint64_t value, int lane);
std::uint64_t shuffle_xor(std::uint64_t value, int mask);
std::uint64_t shuffle_up(std::uint64_t value, int distance);
std::uint64_t shuffle_down(std::uint64_t value, int distance);
std::uint32_t ballot(bool value);
std::uint32_t reduce_max(std::uint32_t value);
bool          any(bool value);

// Barriers.  bytes: what the copy engine must deliver besides; 0 for a plain arrival.
void mbarrier_init(std::uint64_t* barrier, int arrivals);
void mbarrier_arrive(std::uint64_t* barrier, int bytes);
void mbarrier_wait(std::uint64_t* barrier, std::uint32_t parity);
void bar_arrive(int barrier, int threads);
void bar_sync(int barrier, int threads);
void syncthreads();
bool bar_red_or(int barrier, int threads, bool yes);

// Fences between ordinary accesses and the copy engine or the tensor cores; acquire and release in device memory.
void         fence_proxy_async();
void         fence_proxy_async_global();
std::int32_t ld_acquire(const std::int32_t* from);
void         st_release(std::int32_t* to, std::int32_t value);

// Atomic operations, which return what was there before, and fences of ordinary accesses.
enum class Atomic { add, bit_or, exchange, compare_and_swap };
std::uint64_t atomic(Atomic operation, void* at, int bytes, std::uint64_t value, std::uint64_t expected);
void          thread_fence();

// Stores of a warp.
void stmatrix(std::uint32_t row, std::uint32_t a, std::uint32_t b, std::uint32_t c, std::uint32_t d);

// The copy engine.  A tensor map of four dimensions (of three: the second has extent 1); its boxes' rows have 128 or 64 bytes, swizzled.
struct alignas(64) TensorMap {
  const void*   base;
  std::uint64_t extents[4], strides[3];  // strides in bytes
  std::uint32_t box[4];
  std::uint32_t mark;  // says that this is one
  std::uint32_t rank, element_bytes;
  char          fill[32];

  std::uint32_t row_bytes() const { return box[0] * element_bytes; }
};
static_assert(sizeof(TensorMap) == 128);
inline constexpr std::uint32_t tensor_map_mark = 0x7ea5;

/// Where the byte at a shared address lies when rows of so many bytes are swizzled.
constexpr std::uint32_t swizzled(std::uint32_t address, std::uint32_t row_bytes) {
  return address ^ ((address >> 7 & (row_bytes == 128 ? 7u : 3u)) << 4);
}

void cp_async_bulk_tensor(void* to, const TensorMap* map, std::uint64_t* barrier, int x, int y, int z);
void cp_async_bulk_tensor(void* to, const TensorMap* map, std::uint64_t* barrier, int x, int y, int z, int w);
void cp_async_bulk(float* to, const float* from, int bytes, bool adds);
void cp_async_bulk(void* to, const void* from, int bytes, std::uint64_t* barrier);  // to shared memory
void cp_async_bulk_commit_group();
void cp_async_bulk_wait(bool read_only);

// Copies of a few bytes by a thread, or zeros, done in the order in which the thread asked for them.
void cp_async(std::uint32_t to, const void* from, int bytes, bool real);
void cp_async_mbarrier_arrive(std::uint64_t* barrier);
void cp_async_wait_all();

// The tensor cores.
// Operands: depth along both, across both, along A and across B; A in registers and across B, or along B.
enum class Operands { rows, across, across_b, register_a, register_a_rows };
enum class Format { half, bfloat16, e4m3 };

struct Product {
  int           columns;  // N
  Operands      operands;
  Format        format;
  bool          accumulate;
  std::uint64_t a, b;  // descriptors; a is 0 for registers

  bool a_in_registers() const { return operands == Operands::register_a || operands == Operands::register_a_rows; }
  bool along_b() const { return operands == Operands::rows || operands == Operands::register_a_rows; }
  /// Of 32 bytes.
  int depth() const { return format == Format::e4m3 ? 32 : 16; }

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
constexpr bool is_relu(std::string_view text) { return contains(text, "max.NaN.f32 %0, %1, 0f00000000;"); }

std::uint32_t convert_two(bool bfloat16, float high, float low);
std::uint32_t convert_four_to_e4m3(float first, float second, float third, float fourth);

inline float exp2_flushed(float x) {
  const auto flushed = [](float value) { return std::fabs(value) < 0x1p-126f ? 0.0f : value; };
  return flushed(std::exp2(flushed(x)));
}

inline float relu(float x) { return x <= 0.0f ? 0.0f : x; }  // a NaN stays

}  // namespace TributaryTest::Emulator
