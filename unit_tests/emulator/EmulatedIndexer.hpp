#pragma once
#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "EmulatedData.hpp"
#include "emulator.hpp"
#include "indexer/indexer.hpp"
#include "sm90/indexer/indexer.hpp"

// Problems for the indexer's kernel under the emulator, and the scores that the formula gives them.  Numbers are whole and small, so that
// sums are exact in whatever order.

namespace TributaryTest::Emulator {

using Tributary::ElementType;
using Tributary::TopkOrder;

/// How scores run along the keys.
enum class Trend { none, ascending, descending, equal, few_values, half_crowded, rising_as_visited };

struct IndexerOptions {
  ElementType  type  = ElementType::bfloat16;
  int          batch = 1, queries = 8, keys = 64, heads = 64, head_dim = 64;
  int          top_k = 16;  ///< 0: indexer_score
  Trend        trend = Trend::none;
  std::int32_t ratio = 0, query_offset = 0;  ///< ratio 0: not causal
  bool         offsets = false, range = false;
  int          sequences = 0;      ///< packed; 0: none
  int          splits    = 1;      ///< 0: the plan's
  bool         few       = false;  ///< the kernel for few queries; splits are then the plan's
  int       room  = 0;  ///< entries of a row's buffer besides k, at least 192 (with k 256), or, of few queries, of its list; 0: the plan's
  TopkOrder order = TopkOrder::by_score;
  bool      specials = false, padded = false, without_scores = false;
  int       processors = 2;

  static IndexerOptions any(Random& random);
};
void PrintTo(const IndexerOptions& options, std::ostream* out);

/// A problem with its data.  Padding and keys that no row may see hold NaN.
class IndexerData {
 public:
  IndexerData(const IndexerOptions& options, Random& random);

  IndexerOptions                  o;
  Tributary::Impl::IndexerProblem problem{};

  /// A row's legal keys, as rows of the key tensor, and the row that it calls 0.
  struct Keys {
    int begin, end, first;
  };
  Keys keys_of(int batch, int row) const;
  /// Of one key; exact, NaN and infinities included.
  float score(int batch, int row, int key) const {
    return scores_[(static_cast<std::size_t>(batch) * static_cast<std::size_t>(o.queries) + static_cast<std::size_t>(row)) *
                       static_cast<std::size_t>(o.keys) +
                   static_cast<std::size_t>(key)];
  }
  /// All entries of a row, the best first.
  std::vector<Tributary::Impl::Entry> sorted(int batch, int row) const;

 private:
  int          element_bytes() const { return o.type == ElementType::float8_e4m3 ? 1 : 2; }
  void         put(const GuardedArray<std::uint8_t>& array, std::int64_t at, float value) const;
  float        get(const GuardedArray<std::uint8_t>& array, std::int64_t at) const;
  std::int64_t query_at(int b, int row, int h) const {
    return b * problem.query_strides[0] + row * problem.query_strides[1] + h * problem.query_strides[2];
  }
  std::int64_t key_at(int b, int row) const { return b * problem.key_strides[0] + row * problem.key_strides[1]; }
  void         set_masks(Random& random);
  void         set_numbers(Random& random);
  void         set_trend();
  void         spoil_hidden_keys();
  void         work_out_scores();

  int                        pitch_, weight_pitch_;
  GuardedArray<std::uint8_t> query_, key_;
  GuardedArray<float>        weights_, query_scale_, key_scale_;
  GuardedArray<std::int32_t> query_offsets_, range_, cu_seqlens_q_, cu_seqlens_k_;
  std::vector<float>         scores_;
};

/// A call and its outputs.
class IndexerRun {
 public:
  IndexerRun(const IndexerOptions& options, std::uint64_t stream);

  /// What is wrong with the outputs, or empty.
  ///
  /// \throws Failure
  std::string run(Settings settings);

 private:
  static constexpr std::int32_t untouched = 0x7ababab;

  void                        run_topk(const Tributary::Impl::SM90::IndexerPlan& plan);
  Tributary::Impl::TopkOutput output() const;
  void                        run_few();
  void                        run_score(const Tributary::Impl::SM90::IndexerPlan& plan);
  std::string                 wrong() const;
  std::string                 wrong_topk() const;
  std::string                 wrong_partials() const;
  std::string                 wrong_scores() const;
  std::string                 wrong_row(int b, int row, const std::vector<Tributary::Impl::Entry>& got) const;

  Random                              random_;
  IndexerData                         in_;
  const IndexerOptions&               o_;
  int                                 splits_ = 1, keep_, columns_, pitch_;
  GuardedArray<std::int32_t>          indices_;
  GuardedArray<float>                 scores_;
  std::vector<Tributary::Impl::Entry> partials_;
};

/// Runs and checks one case on the schedule of the stream, and on others.
void run_and_check(const IndexerOptions& options, std::uint64_t stream, int schedules = 1);

}  // namespace TributaryTest::Emulator
