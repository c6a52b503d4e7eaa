#pragma once
#include <string_view>

#include "Tributary_Quantize.hpp"

namespace Tributary::Impl {

void check_quantize(const QuantizeArguments&);
void check_quantize_heads(const QuantizeArguments&);
void reference_quantize_e4m3(const QuantizeArguments&);
void reference_quantize_e4m3_heads(const QuantizeArguments&);

}  // namespace Tributary::Impl
