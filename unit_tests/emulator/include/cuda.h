#pragma once
#include "instructions.hpp"

using CUtensorMap = TributaryTest::Emulator::TensorMap;
