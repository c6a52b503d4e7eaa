// What the kernel includes of the standard library comes before `asm` has another meaning.
#include <algorithm>
#include <cstdint>
#include <string>

#include "sm90/attention/attention.hpp"
#include "sm90/ptx/wgmma.cuh"

#include "kernel_assembly.hpp"
// The kernel as it is.
#include "sm90/attention/attention_bias_gradients.cu"
