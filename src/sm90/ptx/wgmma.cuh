#pragma once
#include <cstdint>

#include "Tributary_Types.hpp"

// wgmma: D[64, 256] (+)= A[64, k] B[256, k]^T by a warpgroup, A and B in shared memory, k = 32 bytes of a row.

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

/// m64n256 of one step of k; accumulate = false overwrites D.
template <class Element>
struct Wgmma64x256;

// clang-format off
// The 128 accumulators are operands of their own, so one list of them serves all types.
#define TRIBUTARY_WGMMA_64x256(shape_and_types, transposed)                                                                          \
  static __device__ void issue(float (&d)[128], std::uint64_t a, std::uint64_t b, bool accumulate) {                                 \
    asm volatile(                                                                                                                    \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n"                                                                                  \
      "wgmma.mma_async.sync.aligned." shape_and_types " {"                                                                           \
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                                       \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                                             \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                                             \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "                                             \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "                                             \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "                                             \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "                                 \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "                            \
      "%128, %129, p, 1, 1" transposed ";\n}\n"                                                                                      \
      :                                                                                                                              \
        "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), \
        "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), \
        "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), \
        "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), \
        "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), \
        "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), \
        "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), \
        "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127]) \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                                                          \
  }
// clang-format on

template <>
struct Wgmma64x256<bfloat16_t> {
  TRIBUTARY_WGMMA_64x256("m64n256k16.f32.bf16.bf16", ", 0, 0")
};
template <>
struct Wgmma64x256<half_t> {
  TRIBUTARY_WGMMA_64x256("m64n256k16.f32.f16.f16", ", 0, 0")
};
template <>
struct Wgmma64x256<float8_e4m3_t> {
  TRIBUTARY_WGMMA_64x256("m64n256k32.f32.e4m3.e4m3", "")
};

#undef TRIBUTARY_WGMMA_64x256

/// Descriptor of a matrix in shared memory whose rows of `RowBytes` (128 or 64) were swizzled by the copy engine; the depth runs along a
/// row, groups of 8 rows follow one another.
template <int RowBytes>
__device__ inline std::uint64_t matrix_descriptor(std::uint32_t address) {
  static_assert(RowBytes == 128 || RowBytes == 64);
  constexpr std::uint64_t swizzle = RowBytes == 128 ? 1 : 2, group = 8 * RowBytes / 16;
  return static_cast<std::uint64_t>((address & 0x3ffff) >> 4) | (1ull << 16) | (group << 32) | (swizzle << 62);
}

}  // namespace Tributary::Impl::SM90::ptx
