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
    const std::int64_t pitch = layout == Layout::padded ? (columns + 15) / 16 * 16 + 16 : columns;
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
  bool        shared_values = false;                                                // rows of values are the beginnings of rows of keys
  bool        mask_of_batch = false, mask_of_heads = true, mask_of_queries = true;  // whether the additive mask differs along them
  int         mask_columns   = -1;                                                  // of packed sequences; -1: the keys
  int         buckets        = 16;
  bool        bias_gradients = false;  // of all biases that there are
  float       softcap = 0, dropout = 0, sharpness = 1;
  Layout      layout     = Layout::dense;
  int         processors = 2, section = 0;           // section 0: the plan's
  bool        exact        = false;                  // e4m3: whole numbers, scales that are powers of 2, equal weights (with sharpness 0)
  ElementType short_output = ElementType::bfloat16;  // of e4m3

  bool        e4m3() const { return type == ElementType::float8_e4m3; }
  ElementType out_type() const { return float_output ? ElementType::float32 : (e4m3() ? short_output : type); }

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
  *out << (o.e4m3() ? "e4m3" : (o.type == ElementType::bfloat16 ? "bfloat16" : "half")) << " batch " << o.batch << " queries " << o.queries
       << " keys " << o.keys << " heads " << o.heads << "/" << o.key_heads << " dims " << o.head_dim << "/" << o.value_dim << " window "
       << o.left << "/" << o.right << " sequences " << o.sequences << " key_keep " << o.key_keep << " keep " << o.keep << " additive "
       << o.additive_mask << " alibi " << o.alibi << " bias " << o.relative_bias << " sink " << o.sink << " offsets " << o.offsets
       << " float " << o.float_output << " previous " << o.previous << " softcap " << o.softcap << " dropout " << o.dropout << " sharpness "
       << o.sharpness << " mask of batch " << o.mask_of_batch << " heads " << o.mask_of_heads << " queries " << o.mask_of_queries
       << " columns " << o.mask_columns << " buckets " << o.buckets << " gradients of biases " << o.bias_gradients << " shared "
       << o.shared_values << " layout " << static_cast<int>(o.layout) << " processors " << o.processors << " section " << o.section;
}

/// A problem with its data.  Rows that no pair may read (hidden by key_keep, in no sequence) and the padding hold NaN and infinities.
class AttentionData {
 public:
  static constexpr int max_distance = 50;

  AttentionData(const EmulatedOptions& options, Random& random);

  /// Scales of blocks of rows, for e4m3.
  struct Scales {
    GuardedArray<float> of;  // [batch, head, block]
    int                 heads = 0, blocks = 0;

    Scales(const EmulatedOptions& o, int rows, int of_heads, Random& random)
        : of(o.e4m3() ? std::int64_t{o.batch} * of_heads * ((rows + 127) / 128) : 0), heads(of_heads), blocks((rows + 127) / 128) {
      for (float& scale : of)
        scale = o.exact ? std::exp2(static_cast<float>(random.below(4))) : std::exp2(static_cast<float>(-4 - 3 * random.uniform()));
    }
    Tributary::Impl::BlockScales in_problem() const { return {of.data(), {std::int64_t{heads} * blocks, blocks}}; }
    float at(int b, int row, int h) const { return of.begin() == of.end() ? 1.0f : of[(std::int64_t{b} * heads + h) * blocks + row / 128]; }
  };

  EmulatedOptions            o;
  Strides                    query_strides, key_strides, value_strides;
  Scales                     query_scale, key_scale, value_scale;
  ElementArray               query, key, own_value;
  const ElementArray&        value;  // own_value or key
  GuardedArray<std::uint8_t> key_keep, keep;
  GuardedArray<float>        additive_mask, alibi, relative_bias, sink;
  GuardedArray<std::int32_t> bucket, cu_seqlens_q, cu_seqlens_k;
  AttentionProblem           problem{};

  /// Largest relative error of rounding weights to the element type; the smallest step above zero that matters: weights of e4m3 are
  /// rounded 2^8 times as large.
  double unit() const { return o.exact ? 0 : unit_of(o.type); }
  double tiny() const { return o.exact || o.type == ElementType::bfloat16 ? 0 : (o.e4m3() ? 0x1p-18 : 0x1p-25); }

  static double unit_of(ElementType type) {
    return type == ElementType::bfloat16 ? 0x1p-8 : (type == ElementType::float8_e4m3 ? 0x1p-4 : 0x1p-11);
  }
  std::uint16_t bits(float number) const {
    if (o.e4m3()) return Tributary::float8_e4m3_t(number).bits;
    return o.type == ElementType::bfloat16 ? Tributary::bfloat16_t(number).bits : Tributary::half_t(number).bits;
  }
  static double number(ElementType type, std::uint16_t bits) {
    if (type == ElementType::float8_e4m3)
      return static_cast<float>(std::bit_cast<Tributary::float8_e4m3_t>(static_cast<std::uint8_t>(bits)));
    if (type == ElementType::bfloat16) return static_cast<float>(std::bit_cast<Tributary::bfloat16_t>(bits));
    return static_cast<float>(std::bit_cast<Tributary::half_t>(bits));
  }
  /// What a kernel stored.
  static double stored(const void* data, ElementType type, std::int64_t at) {
    return type == ElementType::float32 ? static_cast<const float*>(data)[at] : number(type, static_cast<const std::uint16_t*>(data)[at]);
  }
  std::vector<double> row(const ElementArray& array, std::int64_t at, int columns, float scale) const {
    std::vector<double> numbers;
    for (int d = 0; d < columns; ++d) numbers.push_back(number(o.type, array.bits(at + d)) * scale);
    return numbers;
  }
  std::vector<double> query_row(int b, int i, int h) const {
    return row(query, query_strides.at(b, i, h), o.head_dim, query_scale.at(b, i, h));
  }
  std::vector<double> key_row(int b, int j, int h) const { return row(key, key_strides.at(b, j, h), o.head_dim, key_scale.at(b, j, h)); }
  std::vector<double> value_row(int b, int j, int h) const {
    return row(value, value_strides.at(b, j, h), o.value_dim, value_scale.at(b, j, h));
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

  /// Of the additive mask and its gradient.
  std::int64_t mask_extent(int d) const {
    return d == 0   ? (o.mask_of_batch ? o.batch : 1)
           : d == 1 ? (o.mask_of_heads ? o.heads : 1)
           : d == 2 ? (o.mask_of_queries ? o.queries : 1)
                    : mask_columns();
  }
  int          mask_columns() const { return o.mask_columns < 0 ? o.keys : o.mask_columns; }
  std::int64_t mask_row(int b, int i, int h) const {
    return ((o.mask_of_batch ? b : 0) * mask_extent(1) + (o.mask_of_heads ? h : 0)) * mask_extent(2) + (o.mask_of_queries ? i : 0);
  }
  /// j - i'; j: the key's number in the sequence.
  std::int64_t relative(const Sequence& s, int i, int j) const {
    return j - (i - s.first_query + (o.offsets ? problem.query_offset - problem.key_offset : s.keys - s.queries));
  }
  int bucket_of(std::int64_t relative) const {
    return bucket[std::clamp<std::int64_t>(relative, -max_distance, max_distance) + max_distance];
  }

  std::int64_t statistic(int b, int i, int h) const { return (std::int64_t{b} * o.heads + h) * o.queries + i; }
  int          key_head(int h) const { return h / (o.heads / o.key_heads); }

  void spoil(const ElementArray& array, std::int64_t at, int columns, Random& random) const {
    const std::uint16_t infinity = bits(std::numeric_limits<float>::infinity());  // of e4m3 its largest number
    for (int d = 0; d < columns; ++d) {
      const int sign = random.below(2) << (o.e4m3() ? 7 : 15);
      array.set_bits(at + d, static_cast<std::uint16_t>((random.one_in(3) ? infinity : 0x7fff) | sign));
    }
  }
  void fill(const ElementArray& array, const Strides& strides, int rows, int heads, int columns, float spread, float mean, Random& random,
            const Scales* scales = nullptr) const {
    for (std::int64_t i = 0; i < array.size(); ++i) array.set_bits(i, 0x7fff);
    for (int b = 0; b < o.batch; ++b)
      for (int r = 0; r < rows; ++r)
        for (int h = 0; h < heads; ++h) {
          const float scale = scales == nullptr ? 1.0f : scales->at(b, r, h);
          for (int d = 0; d < columns; ++d)
            array.set_bits(strides.at(b, r, h, d),
                           bits(o.exact ? spread * static_cast<float>(random.below(15) - 7) : (mean + spread * random.normal()) / scale));
        }
  }

 private:
  void set_packed(Random& random);
  void set_masks(Random& random);
};

/// A run of the kernels that the emulator must not refuse.
template <class Run>
void run_without_failure(Run& run, const Settings& settings) {
  try {
    run.launch(settings);
  } catch (const Failure& failure) {
    FAIL() << failure.what();
  }
}

/// Whether a run without a wait is refused or gives other bits.
template <class Run>
bool notices(Run& run, const std::vector<std::uint16_t>& right, const Omission& omission, std::uint64_t seed) {
  Settings settings = Settings::of(seed, 1);
  settings.omission = omission;
  try {
    run.launch(settings);
  } catch (const Failure&) {
    return true;
  }
  return run.bits() != right;
}

}  // namespace TributaryTest::Emulator
