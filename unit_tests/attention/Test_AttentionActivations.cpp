#include <cstring>
#include <filesystem>

#include "attention/AttentionFormula.hpp"
#include "program/npy.hpp"

// The attention of one layer of a public model, from its input to its output projection.  Where the data come from: data/README.md.

namespace TributaryTest {
namespace {

class AttentionActivations : public LevelTest {};
INSTANTIATE_TEST_SUITE_P(Levels, AttentionActivations, testing::ValuesIn(all_levels()), level_name);

template <class T, int Rank>
Array<T, Rank> load(const std::string& name) {
  const Tributary::Program::NpyFile file(std::filesystem::path(__FILE__).parent_path() / "data" / (name + ".npy"));
  std::array<std::int64_t, Rank>    extents{};
  EXPECT_EQ(file.shape().size(), extents.size()) << name;
  std::copy_n(file.shape().begin(), extents.size(), extents.begin());
  EXPECT_EQ(Tributary::Program::size_of(file.type()), sizeof(T)) << name;
  Array<T, Rank> array(extents);
  std::memcpy(array.values.data(), file.data(), array.values.size() * sizeof(T));
  return array;
}

/// y = x W^T + b for rows of 384.
std::vector<float> projected(const std::vector<float>& rows, const std::string& name) {
  const auto         weight = load<float, 2>(name + "_weight");
  const auto         bias   = load<float, 1>(name + "_bias");
  std::vector<float> result;
  for (std::size_t row = 0; row < rows.size(); row += 384)
    for (std::size_t n = 0; n < 384; ++n) {
      double sum = static_cast<double>(bias.values[n]);
      for (std::size_t d = 0; d < 384; ++d) sum += static_cast<double>(rows[row + d]) * static_cast<double>(weight.values[n * 384 + d]);
      result.push_back(static_cast<float>(sum));
    }
  return result;
}

/// max |given - expected| <= 1e-5 max |expected|
void expect_reproduced(const char* name, const std::vector<float>& given, const std::vector<float>& expected) {
  ASSERT_EQ(given.size(), expected.size()) << name;
  float most = 0, error = 0;
  for (std::size_t n = 0; n < given.size(); ++n) {
    ASSERT_FALSE(std::isnan(given[n])) << name;
    most  = std::max(most, std::abs(expected[n]));
    error = std::max(error, std::abs(given[n] - expected[n]));
  }
  EXPECT_LE(error, 1e-5f * most) << name;
}

TEST_P(AttentionActivations, ReproduceALayerOfAPublicModel) {
  const auto           hidden = load<float, 3>("hidden");
  const std::int64_t   batch = hidden.extents[0], length = hidden.extents[1];
  AttentionCase<float> in({batch, length, length, 12, 12, 32, 32});
  in.query.values   = projected(hidden.values, "query");
  in.key.values     = projected(hidden.values, "key");
  in.value.values   = projected(hidden.values, "value");
  in.key_keep       = load<std::uint8_t, 2>("mask");
  const auto result = AttentionCall<float>(level(), in).forward();
  expect_reproduced("context", result.out.values, load<float, 4>("context").values);
  expect_reproduced("lse", result.lse.values, load<float, 3>("lse").values);
  expect_reproduced("attention output", projected(result.out.values, "output"), load<float, 3>("attention_output").values);
}

TEST_P(AttentionActivations, ReproduceItFromPackedParagraphs) {
  const auto           hidden  = load<float, 3>("hidden");
  const auto           mask    = load<std::uint8_t, 2>("mask");
  const auto           context = load<float, 4>("context");
  std::vector<float>   rows, expected;
  AttentionCase<float> in({1, 0, 0, 12, 12, 32, 32});
  in.cu_seqlens_q = {0};
  for (std::int64_t b = 0; b < hidden.extents[0]; ++b) {
    for (std::int64_t i = 0; i < hidden.extents[1]; ++i) {
      if (mask(b, i) == 0) continue;
      rows.insert(rows.end(), &hidden(b, i, 0), &hidden(b, i, 0) + 384);
      expected.insert(expected.end(), &context(b, i, 0, 0), &context(b, i, 0, 0) + 384);
    }
    in.cu_seqlens_q.push_back(static_cast<std::int32_t>(rows.size() / 384));
  }
  in.cu_seqlens_k = in.cu_seqlens_q;
  for (auto* const array : {&in.query, &in.key, &in.value}) array->extents[1] = in.cu_seqlens_q.back();
  in.query.values = projected(rows, "query");
  in.key.values   = projected(rows, "key");
  in.value.values = projected(rows, "value");
  expect_reproduced("context", AttentionCall<float>(level(), in).forward().out.values, expected);
}

}  // namespace
}  // namespace TributaryTest
