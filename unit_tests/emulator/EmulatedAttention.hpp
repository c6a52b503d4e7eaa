#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "EmulatedData.hpp"
#include "attention/attention.hpp"
#include "emulator.hpp"

// Problems for the attention kernels under the emulator, and the scores that the formula gives them, in double.

namespace TributaryTest::Emulator {

using Tributary::ElementType;
using Tributary::Impl::AttentionProblem;

/// How rows of [batch, row, head, column] lie in memory.
enum class Layout { dense, heads_outside, padded };

struct Strides {
  std::int64_t of[3];  // batch, row, head
  std::int64_t size;

  Strides(Layout layout, std::int64_t batch, std::int64_t rows, std::int64_t heads, std::int64_t columns) {
    const std::int64_t pitch = layout == Layout::padded ? (columns + 7) / 8 * 8 + 8 : columns;
    if (layout == Layout::heads_outside)
      std::copy_n(std::initializer_list<std::int64_t>{heads * rows * pitch, pitch, rows * pitch}.begin(), 3, of);
    else
      std::copy_n(std::initializer_list<std::int64_t>{rows * heads * pitch, heads * pitch, pitch}.begin(), 3, of);
    size = batch * rows * heads * pitch;
  }
  std::int64_t at(std::int64_t b, std::int64_t row, std::int64_t h, std::int64_t d = 0) const {
    return b * of[0] + row * of[1] + h * of[2] + d;
  }
};

struct EmulatedOptions {
  ElementType type  = ElementType::float16;
  int         batch = 1, queries = 64, keys = 64, heads = 1, key_heads = 1, head_dim = 64, value_dim = 64;
  int         left = -1, right = -1;
  int         sequences = 0;  // packed; 0: none
  bool        key_keep = false, keep = false, additive_mask = false, alibi = false, relative_bias = false, sink = false;
  bool        offsets = false, float_output = false, previous = false, deterministic = true;
  bool        shared_values = false;  // rows of values are the beginnings of rows of keys
  float       softcap = 0, dropout = 0, sharpness = 1;
  Layout      layout     = Layout::dense;
  int         processors = 2, section = 0;  // section 0: the plan's

  /// dims: what head_dim and value_dim may be.
  static EmulatedOptions any(Random& random, const std::vector<std::pair<int, int>>& dims, const std::vector<int>& lengths) {
    EmulatedOptions o;
    o.type                            = random.one_in(2) ? ElementType::bfloat16 : ElementType::float16;
    std::tie(o.head_dim, o.value_dim) = random.any_of(dims);
    o.queries                         = random.any_of(lengths);
    o.keys                            = random.one_in(20) ? 0 : random.any_of(lengths);
    o.key_heads                       = 1 + random.below(2);
    o.heads                           = o.key_heads * (1 + random.below(3));
    o.batch                           = 1 + random.below(2);
    o.layout                          = o.head_dim % 8 != 0 || o.value_dim % 8 != 0 ? Layout::padded : static_cast<Layout>(random.below(3));
    o.processors                      = 1 + random.below(4);
    o.section                         = random.below(4);
    if (random.one_in(3)) o.left = random.below(200);
    if (random.one_in(2)) o.right = random.one_in(2) ? 0 : random.below(200);
    if (random.one_in(3))
      o.sequences = 1 + random.below(6);
    else
      o.offsets = random.one_in(4);
    if (o.sequences > 0) o.batch = 1;
    o.key_keep      = random.one_in(6);
    o.keep          = random.one_in(8);
    o.additive_mask = random.one_in(8);
    o.alibi         = random.one_in(8);
    o.relative_bias = random.one_in(8);
    o.sink          = random.one_in(4);
    o.float_output  = random.one_in(3);
    o.previous      = random.one_in(4);
    o.softcap       = random.one_in(8) ? 3.0f : 0.0f;
    o.dropout       = random.one_in(6) ? random.any_of<float>({0.1f, 0.5f, 0.9f, 1.0f}) : 0.0f;
    o.sharpness     = random.one_in(3) ? 4.0f : 1.0f;
    return o;
  }
};

inline void PrintTo(const EmulatedOptions& o, std::ostream* out) {
  *out << (o.type == ElementType::bfloat16 ? "bfloat16" : "half") << " batch " << o.batch << " queries " << o.queries << " keys " << o.keys
       << " heads " << o.heads << "/" << o.key_heads << " dims " << o.head_dim << "/" << o.value_dim << " window " << o.left << "/"
       << o.right << " sequences " << o.sequences << " key_keep " << o.key_keep << " keep " << o.keep << " additive " << o.additive_mask
       << " alibi " << o.alibi << " bias " << o.relative_bias << " sink " << o.sink << " offsets " << o.offsets << " float "
       << o.float_output << " previous " << o.previous << " softcap " << o.softcap << " dropout " << o.dropout << " sharpness "
       << o.sharpness << " shared " << o.shared_values << " layout " << static_cast<int>(o.layout) << " processors " << o.processors
       << " section " << o.section;
}

/// A problem with its data.  Rows that no pair may read (hidden by key_keep, in no sequence) and the padding hold NaN and infinities.
class AttentionData {
 public:
  static constexpr int buckets = 16, max_distance = 50;

  AttentionData(const EmulatedOptions& options, Random& random);

  EmulatedOptions                    o;
  Strides                            query_strides, key_strides, value_strides;
  GuardedArray<std::uint16_t>        query, key, own_value;
  const GuardedArray<std::uint16_t>& value;  // own_value or key
  GuardedArray<std::uint8_t>         key_keep, keep;
  GuardedArray<float>                additive_mask, alibi, relative_bias, sink;
  GuardedArray<std::int32_t>         bucket, cu_seqlens_q, cu_seqlens_k;
  AttentionProblem                   problem{};

  /// Largest relative error of rounding to the element type; the smallest step above zero that matters.
  double unit() const { return o.type == ElementType::bfloat16 ? 0x1p-8 : 0x1p-11; }
  double tiny() const { return o.type == ElementType::bfloat16 ? 0 : 0x1p-25; }

  std::uint16_t bits(float number) const {
    return o.type == ElementType::bfloat16 ? Tributary::bfloat16_t(number).bits : Tributary::half_t(number).bits;
  }
  double number(std::uint16_t bits) const {
    if (o.type == ElementType::bfloat16) return static_cast<float>(std::bit_cast<Tributary::bfloat16_t>(bits));
    return static_cast<float>(std::bit_cast<Tributary::half_t>(bits));
  }
  /// What a kernel stored as float or as the element type.
  double stored(const void* data, bool as_float, std::int64_t at) const {
    return as_float ? static_cast<const float*>(data)[at] : number(static_cast<const std::uint16_t*>(data)[at]);
  }
  std::vector<double> row(const GuardedArray<std::uint16_t>& array, std::int64_t at, int columns) const {
    std::vector<double> numbers;
    for (int d = 0; d < columns; ++d) numbers.push_back(number(array[at + d]));
    return numbers;
  }

  /// The sequence of a row of queries (or of keys), and its first rows; without keys where the row is in none.
  struct Sequence {
    int number, first_query, queries, first_key, keys;
  };
  Sequence sequence_of(int row, bool of_key = false) const;

  /// A row's pairs: scores (-infinity where hidden), their derivative by the product, and dropout's factors.
  struct Row {
    Sequence            sequence;
    std::vector<double> score, slope, factor;
    double              log_sum_exp = -std::numeric_limits<double>::infinity();

    bool some() const { return log_sum_exp != -std::numeric_limits<double>::infinity(); }
  };
  Row row_of(int b, int i, int h) const;

  std::int64_t statistic(int b, int i, int h) const { return (std::int64_t{b} * o.heads + h) * o.queries + i; }
  int          key_head(int h) const { return h / (o.heads / o.key_heads); }

  void spoil(const GuardedArray<std::uint16_t>& array, std::int64_t at, int columns, Random& random) const {
    const std::uint16_t infinity = bits(std::numeric_limits<float>::infinity());
    for (int d = 0; d < columns; ++d) {
      const auto sign = static_cast<std::uint16_t>(random.below(2) << 15);
      array[at + d]   = static_cast<std::uint16_t>((random.one_in(3) ? infinity : 0x7fff) | sign);
    }
  }
  void fill(const GuardedArray<std::uint16_t>& array, const Strides& strides, int rows, int heads, int columns, float spread, float mean,
            Random& random) const {
    std::fill(array.begin(), array.end(), std::uint16_t{0x7fff});
    for (int b = 0; b < o.batch; ++b)
      for (int r = 0; r < rows; ++r)
        for (int h = 0; h < heads; ++h)
          for (int d = 0; d < columns; ++d) array[strides.at(b, r, h, d)] = bits(mean + spread * random.normal());
  }

 private:
  void set_packed(Random& random);
  void set_masks(Random& random);
};

}  // namespace TributaryTest::Emulator
