// What the kernel includes of the standard library comes before `asm` has another meaning.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>

#include "kernel_assembly.hpp"
// The kernel as it is.
#include "sm90/topk/topk.cu"
