// What the kernel includes of the standard library comes before `asm` has another meaning.
#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>

#include "sm90/indexer/decode.hpp"
#include "sm90/ptx/wgmma.cuh"

#include "kernel_assembly.hpp"
// The kernel as it is.
#include "sm90/indexer/decode.cu"
