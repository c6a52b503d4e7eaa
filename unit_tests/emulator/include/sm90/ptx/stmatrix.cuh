#pragma once
#include "instructions.hpp"

namespace Tributary::Impl::SM90::ptx {

using TributaryTest::Emulator::stmatrix;

}  // namespace Tributary::Impl::SM90::ptx
