#pragma once
#include "Tributary_Quantize.hpp"

namespace Tributary::Impl {

void check_quantize(const QuantizeArguments&);
void reference_quantize_e4m3(const QuantizeArguments&);

}  // namespace Tributary::Impl
