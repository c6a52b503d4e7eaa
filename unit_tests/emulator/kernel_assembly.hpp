#pragma once

// Before the kernels' own sources, after everything else: the statements that they write as assembly, recognised by their text.
// In them the operands are called so and the result is `result`.
#define TRIBUTARY_ASM_OF_ONE(text)                                                               \
  do {                                                                                           \
    constexpr bool exp2 = TributaryTest::Emulator::is_exp2(text);                                \
    static_assert(exp2 || TributaryTest::Emulator::is_relu(text));                               \
    result = exp2 ? TributaryTest::Emulator::exp2_flushed(x) : TributaryTest::Emulator::relu(x); \
  } while (false)
#define TRIBUTARY_ASM_OF_TWO(text)                                                             \
  do {                                                                                         \
    constexpr bool to_bfloat16 = TributaryTest::Emulator::converts_to_bfloat16(text);          \
    result                     = TributaryTest::Emulator::convert_two(to_bfloat16, high, low); \
  } while (false)
#define TRIBUTARY_ASM_CHOSEN(first, second, chosen, ...) chosen
#define asm(...) TRIBUTARY_ASM_CHOSEN(__VA_ARGS__, TRIBUTARY_ASM_OF_TWO, TRIBUTARY_ASM_OF_ONE, )(#__VA_ARGS__)
