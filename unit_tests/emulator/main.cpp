#include <gtest/gtest.h>

#include <iostream>

#include "EmulatedData.hpp"

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  std::cout << "TRIBUTARY_TEST_SEED=" << TributaryTest::Emulator::test_seed() << std::endl;
  return RUN_ALL_TESTS();
}
