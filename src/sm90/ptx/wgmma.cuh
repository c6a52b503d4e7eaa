#pragma once
#include <cstdint>

#include "Tributary_Types.hpp"
#include "sm90/ptx/descriptor.cuh"

// wgmma: D[64, N] (+)= A[64, k] B[N, k]^T by a warpgroup; k is 32 bytes of a row.

namespace Tributary::Impl::SM90::ptx {

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// Waits for all but the latest `Pending` groups.
template <int Pending>
__device__ inline void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

/// Keeps the compiler from moving accesses to accumulators across a wait.
template <int Count>
__device__ inline void pin(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

/// Keeps the compiler from knowing how a number or an address came about: it neither keeps, across what comes between, what it worked out
/// from it before, nor works it out again wherever it is used.
__device__ inline void forget(std::int32_t& number) { asm volatile("" : "+r"(number)); }
__device__ inline void forget(std::uint32_t& number) { asm volatile("" : "+r"(number)); }
__device__ inline void forget(std::uint64_t& number) { asm volatile("" : "+l"(number)); }
template <class Value>
__device__ inline void forget(Value*& address) {
  asm volatile("" : "+l"(address));
}

/// A descriptor's low half, the same in all lanes, in a uniform register, which wgmma takes it from: sums with it cost no lane an
/// instruction.
__device__ inline std::uint32_t uniform_low(std::uint64_t descriptor) {
  auto low = static_cast<std::uint32_t>(descriptor);
  forget(low);  // worked out here, not kept in a register of each lane since before a loop
  return __reduce_or_sync(0xffffffffu, low);
}

/// Copies registers, so that the ones that products still read are not written before.
template <int Count>
__device__ inline void move(std::uint32_t (&to)[Count], const std::uint32_t (&from)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("mov.b32 %0, %1;" : "=r"(to[i]) : "r"(from[i]));
}

/// D = float[N / 2] a thread.  `issue(d, a, b, accumulate)`: A and B in shared memory, the depth along their rows.
/// accumulate = false overwrites D.
template <class Element, int N>
struct Wgmma;

/// The same with the depth of both across their rows: A[k, 64] and B[k, N] as they lie.  For 2-byte elements.
template <class Element, int N>
struct WgmmaAcross;

/// The same with A's depth along its rows and B's across them.  For 2-byte elements.
template <class Element, int N>
struct WgmmaAcrossB;

/// The same with A = four registers a thread, and B's depth across its rows: B[k, N] as it lies.  For 2-byte elements.
template <class Element, int N>
struct WgmmaRegisterA;

/// The same with A = four registers a thread, and B's depth along its rows; `accumulate` as in Wgmma.  For e4m3, whose operands in shared
/// memory must lie so.
template <class Element, int N>
struct WgmmaRegisterARows;

// clang-format off
// An accumulator is an operand of its own: lists of them, eight at a time, and of their numbers in the instruction.
#define TRIBUTARY_D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define TRIBUTARY_D16 TRIBUTARY_D8(0), TRIBUTARY_D8(8)
#define TRIBUTARY_NAMES16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define TRIBUTARY_D32 TRIBUTARY_D16, TRIBUTARY_D8(16), TRIBUTARY_D8(24)
#define TRIBUTARY_NAMES32 TRIBUTARY_NAMES16 ", " "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TRIBUTARY_D40 TRIBUTARY_D32, TRIBUTARY_D8(32)
#define TRIBUTARY_NAMES40 TRIBUTARY_NAMES32 ", " "%32, %33, %34, %35, %36, %37, %38, %39"
#define TRIBUTARY_D56 TRIBUTARY_D40, TRIBUTARY_D8(40), TRIBUTARY_D8(48)
#define TRIBUTARY_NAMES56 TRIBUTARY_NAMES40 ", " "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55"
#define TRIBUTARY_D64 TRIBUTARY_D56, TRIBUTARY_D8(56)
#define TRIBUTARY_NAMES64 TRIBUTARY_NAMES56 ", " "%56, %57, %58, %59, %60, %61, %62, %63"
#define TRIBUTARY_D80 TRIBUTARY_D64, TRIBUTARY_D8(64), TRIBUTARY_D8(72)
#define TRIBUTARY_NAMES80 TRIBUTARY_NAMES64 ", " "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define TRIBUTARY_D96 TRIBUTARY_D80, TRIBUTARY_D8(80), TRIBUTARY_D8(88)
#define TRIBUTARY_NAMES96 TRIBUTARY_NAMES80 ", " "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define TRIBUTARY_D128 TRIBUTARY_D96, TRIBUTARY_D8(96), TRIBUTARY_D8(104), TRIBUTARY_D8(112), TRIBUTARY_D8(120)
#define TRIBUTARY_NAMES128 TRIBUTARY_NAMES96 ", " "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define TRIBUTARY_WGMMA(Operation, Element, N, count, types, transposed, place_a, place_b, place_accumulate)                                         \
  template <>                                                                                                                              \
  struct Operation<Element, N> {                                                                                                           \
    __device__ static void issue(float (&d)[count], std::uint64_t a, std::uint64_t b, bool accumulate) {                                   \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " place_accumulate ", 0;\n"                                                           \
                   "wgmma.mma_async.sync.aligned.m64n" #N types " {" TRIBUTARY_NAMES##count "}, " place_a ", " place_b                     \
                   ", p, 1, 1" transposed ";\n}\n"                                                                                         \
                   : TRIBUTARY_D##count : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                              \
    }                                                                                                                                      \
  };
#define TRIBUTARY_WGMMA_HALVES(N, count, place_a, place_b, place_accumulate)                                                               \
  TRIBUTARY_WGMMA(Wgmma, bfloat16_t, N, count, "k16.f32.bf16.bf16", ", 0, 0", place_a, place_b, place_accumulate)                                 \
  TRIBUTARY_WGMMA(Wgmma, half_t, N, count, "k16.f32.f16.f16", ", 0, 0", place_a, place_b, place_accumulate)
TRIBUTARY_WGMMA_HALVES(32, 16, "%16", "%17", "%18")
TRIBUTARY_WGMMA_HALVES(64, 32, "%32", "%33", "%34")
TRIBUTARY_WGMMA_HALVES(80, 40, "%40", "%41", "%42")
TRIBUTARY_WGMMA_HALVES(112, 56, "%56", "%57", "%58")
TRIBUTARY_WGMMA_HALVES(128, 64, "%64", "%65", "%66")
TRIBUTARY_WGMMA_HALVES(256, 128, "%128", "%129", "%130")
TRIBUTARY_WGMMA(Wgmma, float8_e4m3_t, 64, 32, "k32.f32.e4m3.e4m3", "", "%32", "%33", "%34")
TRIBUTARY_WGMMA(Wgmma, float8_e4m3_t, 128, 64, "k32.f32.e4m3.e4m3", "", "%64", "%65", "%66")
TRIBUTARY_WGMMA(Wgmma, float8_e4m3_t, 256, 128, "k32.f32.e4m3.e4m3", "", "%128", "%129", "%130")
TRIBUTARY_WGMMA(WgmmaAcross, bfloat16_t, 64, 32, "k16.f32.bf16.bf16", ", 1, 1", "%32", "%33", "%34")
TRIBUTARY_WGMMA(WgmmaAcross, half_t, 64, 32, "k16.f32.f16.f16", ", 1, 1", "%32", "%33", "%34")
TRIBUTARY_WGMMA(WgmmaAcross, bfloat16_t, 128, 64, "k16.f32.bf16.bf16", ", 1, 1", "%64", "%65", "%66")
TRIBUTARY_WGMMA(WgmmaAcross, half_t, 128, 64, "k16.f32.f16.f16", ", 1, 1", "%64", "%65", "%66")
TRIBUTARY_WGMMA(WgmmaAcrossB, bfloat16_t, 128, 64, "k16.f32.bf16.bf16", ", 0, 1", "%64", "%65", "%66")
TRIBUTARY_WGMMA(WgmmaAcrossB, half_t, 128, 64, "k16.f32.f16.f16", ", 0, 1", "%64", "%65", "%66")

#define TRIBUTARY_WGMMA_REGISTER_A(Element, N, count, types, places_a, place_b)                                                            \
  template <>                                                                                                                              \
  struct WgmmaRegisterA<Element, N> {                                                                                                      \
    __device__ static void issue(float (&d)[count], const std::uint32_t* a, std::uint64_t b) {                                             \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"                                                                              \
                   "wgmma.mma_async.sync.aligned.m64n" #N types " {" TRIBUTARY_NAMES##count "}, {" places_a "}, " place_b                  \
                   ", p, 1, 1, 1;\n}\n"                                                                                                    \
                   : TRIBUTARY_D##count : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));                                             \
    }                                                                                                                                      \
  };
#define TRIBUTARY_WGMMA_REGISTER_A_HALVES(N, count, places_a, place_b)                                                                     \
  TRIBUTARY_WGMMA_REGISTER_A(bfloat16_t, N, count, "k16.f32.bf16.bf16", places_a, place_b)                                                 \
  TRIBUTARY_WGMMA_REGISTER_A(half_t, N, count, "k16.f32.f16.f16", places_a, place_b)
TRIBUTARY_WGMMA_REGISTER_A_HALVES(64, 32, "%32, %33, %34, %35", "%36")
TRIBUTARY_WGMMA_REGISTER_A_HALVES(128, 64, "%64, %65, %66, %67", "%68")
TRIBUTARY_WGMMA_REGISTER_A_HALVES(192, 96, "%96, %97, %98, %99", "%100")
TRIBUTARY_WGMMA_REGISTER_A_HALVES(256, 128, "%128, %129, %130, %131", "%132")

#define TRIBUTARY_WGMMA_REGISTER_A_ROWS(N, count, places_a, place_b, place_accumulate)                                                      \
  template <>                                                                                                                              \
  struct WgmmaRegisterARows<float8_e4m3_t, N> {                                                                                            \
    __device__ static void issue(float (&d)[count], const std::uint32_t* a, std::uint64_t b, bool accumulate) {                            \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " place_accumulate ", 0;\n"                                                           \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" TRIBUTARY_NAMES##count "}, {" places_a "}, " place_b       \
                   ", p, 1, 1;\n}\n"                                                                                                       \
                   : TRIBUTARY_D##count : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)));          \
    }                                                                                                                                      \
  };
TRIBUTARY_WGMMA_REGISTER_A_ROWS(64, 32, "%32, %33, %34, %35", "%36", "%37")
TRIBUTARY_WGMMA_REGISTER_A_ROWS(128, 64, "%64, %65, %66, %67", "%68", "%69")
// clang-format on

#undef TRIBUTARY_D8
#undef TRIBUTARY_D16
#undef TRIBUTARY_D32
#undef TRIBUTARY_D40
#undef TRIBUTARY_D56
#undef TRIBUTARY_D64
#undef TRIBUTARY_D80
#undef TRIBUTARY_D96
#undef TRIBUTARY_D128
#undef TRIBUTARY_NAMES16
#undef TRIBUTARY_NAMES32
#undef TRIBUTARY_NAMES40
#undef TRIBUTARY_NAMES56
#undef TRIBUTARY_NAMES64
#undef TRIBUTARY_NAMES80
#undef TRIBUTARY_NAMES96
#undef TRIBUTARY_NAMES128
#undef TRIBUTARY_WGMMA
#undef TRIBUTARY_WGMMA_HALVES
#undef TRIBUTARY_WGMMA_REGISTER_A
#undef TRIBUTARY_WGMMA_REGISTER_A_HALVES
#undef TRIBUTARY_WGMMA_REGISTER_A_ROWS

}  // namespace Tributary::Impl::SM90::ptx
