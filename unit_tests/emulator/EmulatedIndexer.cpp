#include "EmulatedIndexer.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <ostream>
#include <sstream>
#include <string>

#include "sm90/indexer/decode.hpp"
#include "sm90/indexer/tile.cuh"

namespace TributaryTest::Emulator {
namespace {

using Tributary::Impl::Entry;
using Tributary::Impl::make_entry;
using Tributary::Impl::sortable;
namespace SM90 = Tributary::Impl::SM90;

constexpr float infinity = std::numeric_limits<float>::infinity(), not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr int   tile_keys = SM90::IndexerTile<Tributary::bfloat16_t, 64, 64>::keys;

/// Rows of weights have more columns than heads where everything is padded.
int weight_pitch(const IndexerOptions& o) { return o.heads + (o.padded ? 3 : 0); }

/// The number of each tile in the order in which an item visits its tiles.
std::vector<int> visits(int tiles) {
  const int period = SM90::KeyTileOrder::period_of(tiles);
  int       stride = std::max(1, static_cast<int>(0.6180339887f * static_cast<float>(period)));
  while (std::gcd(stride, period) != 1) ++stride;
  std::vector<int> at(static_cast<std::size_t>(tiles));
  for (int tile = 0, visit = 0; visit < tiles; tile = (tile + stride) % period)
    if (tile < tiles) at[static_cast<std::size_t>(tile)] = visit++;
  return at;
}

}  // namespace

IndexerOptions IndexerOptions::any(Random& random) {
  IndexerOptions o;
  o.type           = random.any_of<ElementType>({ElementType::bfloat16, ElementType::float8_e4m3, ElementType::float16});
  o.heads          = random.any_of<int>({32, 64});
  o.head_dim       = random.any_of<int>({64, 128});
  o.queries        = 1 + random.below(40);
  o.keys           = random.any_of<int>({0, 1, 40, 63, 64, 65, 128, 129, 192, 193, 250, 300, 320, 400, 512, 600});
  o.batch          = 1 + random.below(2);
  o.top_k          = random.any_of<int>({1, 2, 16, 31, 64, 65, 100, 200, 300});
  o.trend          = static_cast<Trend>(random.below(6));
  o.ratio          = random.one_in(2) ? random.below(5) : 0;
  o.range          = o.ratio == 0 && random.one_in(3);
  o.query_offset   = random.one_in(2) ? random.below(600) : 0;
  o.sequences      = random.one_in(4) ? 1 + random.below(5) : 0;
  o.offsets        = o.ratio > 0 && random.one_in(3);
  o.splits         = random.one_in(3) ? random.below(5) : 1;
  o.room           = random.one_in(4) ? 0 : 192 + random.below(100);
  o.order          = random.one_in(3) ? TopkOrder::by_index : TopkOrder::by_score;
  o.specials       = random.one_in(6);
  o.padded         = random.one_in(2);
  o.without_scores = random.one_in(6);
  o.processors     = 1 + random.below(3);
  if (o.sequences > 0) o.batch = 1;
  return o;
}

void PrintTo(const IndexerOptions& o, std::ostream* out) {
  *out << "type " << static_cast<int>(o.type) << " batch " << o.batch << " queries " << o.queries << " keys " << o.keys << " heads "
       << o.heads << " head_dim " << o.head_dim << " k " << o.top_k << " trend " << static_cast<int>(o.trend) << " ratio " << o.ratio
       << " offset " << o.query_offset << " offsets " << o.offsets << " range " << o.range << " sequences " << o.sequences << " splits "
       << o.splits << " few " << o.few << " room " << o.room << " order " << static_cast<int>(o.order) << " specials " << o.specials
       << " padded " << o.padded << " without_scores " << o.without_scores << " processors " << o.processors;
}

IndexerData::IndexerData(const IndexerOptions& options, Random& random)
    : o(options),
      pitch_(o.head_dim + (o.padded ? 16 : 0)),
      weight_pitch_(weight_pitch(o)),
      query_(std::int64_t{o.batch} * o.queries * o.heads * pitch_ * element_bytes()),
      key_(std::int64_t{o.batch} * o.keys * pitch_ * element_bytes()),
      weights_(std::int64_t{o.batch} * o.queries * weight_pitch_),
      query_scale_(o.type == ElementType::float8_e4m3 ? std::int64_t{o.batch} * o.queries * weight_pitch_ : 0),
      key_scale_(o.type == ElementType::float8_e4m3 ? std::int64_t{o.batch} * o.keys : 0),
      query_offsets_(std::max(o.batch, o.sequences)),
      range_(std::int64_t{o.batch} * o.queries * 2),
      cu_seqlens_q_(o.sequences + 1),
      cu_seqlens_k_(o.sequences + 1) {
  auto& p    = problem;
  p.type     = o.type;
  p.batch    = o.batch;
  p.queries  = o.queries;
  p.keys     = o.keys;
  p.heads    = o.heads;
  p.head_dim = o.head_dim;
  p.query    = query_.data();
  p.key      = key_.data();
  p.weights  = weights_.data();
  // Heads outside of rows where everything is padded.
  const std::int64_t row = o.padded ? pitch_ : o.heads * pitch_, head = o.padded ? std::int64_t{o.queries} * pitch_ : pitch_;
  std::copy_n(std::initializer_list<std::int64_t>{std::int64_t{o.queries} * o.heads * pitch_, row, head}.begin(), 3, p.query_strides);
  p.key_strides[0]    = std::int64_t{o.keys} * pitch_;
  p.key_strides[1]    = pitch_;
  p.weight_strides[0] = std::int64_t{o.queries} * weight_pitch_;
  p.weight_strides[1] = weight_pitch_;
  if (o.type == ElementType::float8_e4m3) {
    p.query_scale = query_scale_.data();
    p.key_scale   = key_scale_.data();
    std::copy_n(p.weight_strides, 2, p.query_scale_strides);
    p.key_scale_stride = o.keys;
  }
  set_masks(random);
  set_numbers(random);
  set_trend();
  spoil_hidden_keys();
  work_out_scores();
}

void IndexerData::set_masks(Random& random) {
  auto& p            = problem;
  p.ratio            = o.ratio;
  p.query_offset     = o.query_offset;
  p.packed.sequences = o.batch;
  for (std::int32_t& offset : query_offsets_) offset = random.below(700) - 20;
  if (o.offsets) p.query_offsets = query_offsets_.data();
  for (std::int32_t& bound : range_) bound = random.below(o.keys + 40) - 20;
  if (o.range) {
    p.range            = range_.data();
    p.range_strides[0] = std::int64_t{o.queries} * 2;
    p.range_strides[1] = 2;
  }
  if (o.sequences == 0) return;
  for (std::int32_t& offset : cu_seqlens_q_) offset = random.below(o.queries + 1);
  for (std::int32_t& offset : cu_seqlens_k_) offset = random.below(o.keys + 1);
  std::sort(cu_seqlens_q_.begin(), cu_seqlens_q_.end());
  std::sort(cu_seqlens_k_.begin(), cu_seqlens_k_.end());
  p.packed = {cu_seqlens_q_.data(), cu_seqlens_k_.data(), o.sequences};
}

void IndexerData::set_numbers(Random& random) {
  for (GuardedArray<std::uint8_t> const* const array : {&query_, &key_}) std::fill(array->begin(), array->end(), std::uint8_t{0x7f});
  for (GuardedArray<float> const* const array : {&weights_, &query_scale_, &key_scale_})
    std::fill(array->begin(), array->end(), not_a_number);
  for (int b = 0; b < o.batch; ++b) {
    for (int row = 0; row < o.queries; ++row)
      for (int h = 0; h < o.heads; ++h) {
        for (int d = 0; d < o.head_dim; ++d) put(query_, query_at(b, row, h) + d, static_cast<float>(random.below(5) - 2));
        const std::int64_t at = (std::int64_t{b} * o.queries + row) * weight_pitch_ + h;
        weights_[at]          = static_cast<float>(random.below(7) - 3);
        if (problem.query_scale != nullptr) query_scale_[at] = random.any_of<float>({0.5f, 1.0f, 2.0f});
      }
    for (int key = 0; key < o.keys; ++key) {
      for (int d = 0; d < o.head_dim; ++d) put(key_, key_at(b, key) + d, static_cast<float>(random.below(5) - 2));
      if (o.specials && random.one_in(8))
        put(key_, key_at(b, key) + random.below(o.head_dim), random.any_of<float>({not_a_number, infinity, -infinity}));
      if (problem.key_scale != nullptr) key_scale_[std::int64_t{b} * o.keys + key] = random.any_of<float>({0.5f, 1.0f, 2.0f});
    }
  }
}

/// Scores whose order is known: a digit of a key's value a head, three of them; the other heads see nothing.
void IndexerData::set_trend() {
  if (o.trend == Trend::none) return;
  const std::vector<int> visit = visits(std::max(1, (o.keys + tile_keys - 1) / tile_keys));
  for (int b = 0; b < o.batch; ++b) {
    for (int row = 0; row < o.queries; ++row)
      for (int h = 0; h < o.heads; ++h) {
        const int digit = (h - row % o.heads + o.heads) % o.heads;
        for (int d = 0; d < o.head_dim; ++d) put(query_, query_at(b, row, h) + d, digit < 3 && d == digit ? 1.0f : 0.0f);
        const std::int64_t at = (std::int64_t{b} * o.queries + row) * weight_pitch_ + h;
        if (digit < 3) weights_[at] = static_cast<float>(1 << (8 - 4 * digit)) * (row % 5 == 3 ? -1.0f : 1.0f);
        if (problem.query_scale != nullptr && digit < 3) query_scale_[at] = 1.0f;
      }
    for (int key = 0; key < o.keys; ++key) {
      int value = 77;
      switch (o.trend) {
        case Trend::ascending: value = key; break;
        case Trend::descending: value = 4000 - key; break;
        case Trend::few_values: value = key * 7 % 5 * 256; break;
        case Trend::half_crowded: value = key % 2 == 0 ? 1000 + key : key % 10 * 64; break;
        case Trend::rising_as_visited: value = visit[static_cast<std::size_t>(key / tile_keys)] * tile_keys + key % tile_keys; break;
        default: break;
      }
      for (int d = 0; d < 3; ++d) put(key_, key_at(b, key) + d, static_cast<float>(value >> (8 - 4 * d) & 15));
      if (problem.key_scale != nullptr) key_scale_[std::int64_t{b} * o.keys + key] = 1.0f;
    }
  }
}

void IndexerData::spoil_hidden_keys() {
  for (int b = 0; b < o.batch; ++b) {
    std::vector<bool> seen(static_cast<std::size_t>(o.keys));
    for (int row = 0; row < o.queries; ++row) {
      const Keys keys = keys_of(b, row);
      for (int key = keys.begin; key < keys.end; ++key) seen[static_cast<std::size_t>(key)] = true;
    }
    for (int key = 0; key < o.keys; ++key)
      for (int d = 0; d < o.head_dim && !seen[static_cast<std::size_t>(key)]; ++d) put(key_, key_at(b, key) + d, not_a_number);
  }
}

IndexerData::Keys IndexerData::keys_of(int batch, int row) const {
  const auto segment = problem.segment(batch, row, row + 1);
  const auto legal   = problem.legal_keys(segment, 0);
  return {static_cast<int>(segment.first_key + legal.begin), static_cast<int>(segment.first_key + legal.end),
          static_cast<int>(segment.first_key)};
}

void IndexerData::work_out_scores() {
  const auto                      keys = static_cast<std::size_t>(o.keys);
  std::vector<std::vector<float>> columns(static_cast<std::size_t>(o.head_dim), std::vector<float>(keys));  // of the keys
  std::vector<float>              dot(keys);
  for (int b = 0; b < o.batch; ++b) {
    for (int d = 0; d < o.head_dim; ++d)
      for (int key = 0; key < o.keys; ++key)
        columns[static_cast<std::size_t>(d)][static_cast<std::size_t>(key)] = get(key_, key_at(b, key) + d);
    for (int row = 0; row < o.queries; ++row) {
      std::vector<float> sum(keys);
      for (int h = 0; h < o.heads; ++h) {
        std::fill(dot.begin(), dot.end(), 0.0f);
        for (int d = 0; d < o.head_dim; ++d) {
          const float q = get(query_, query_at(b, row, h) + d);
          for (std::size_t key = 0; key < keys; ++key) dot[key] += q * columns[static_cast<std::size_t>(d)][key];
        }
        const std::int64_t at     = (std::int64_t{b} * o.queries + row) * weight_pitch_ + h;
        const float        weight = weights_[at] * (problem.query_scale != nullptr ? query_scale_[at] : 1.0f);
        for (std::size_t key = 0; key < keys; ++key) sum[key] += weight * (dot[key] <= 0.0f ? 0.0f : dot[key]);
      }
      for (int key = 0; key < o.keys && problem.key_scale != nullptr; ++key)
        sum[static_cast<std::size_t>(key)] *= key_scale_[std::int64_t{b} * o.keys + key];
      scores_.insert(scores_.end(), sum.begin(), sum.end());
    }
  }
}

std::vector<Entry> IndexerData::sorted(int batch, int row) const {
  const Keys         keys = keys_of(batch, row);
  std::vector<Entry> entries;
  for (int key = keys.begin; key < keys.end; ++key)
    entries.push_back(make_entry(sortable(score(batch, row, key)), static_cast<std::uint32_t>(key - keys.first)));
  std::sort(entries.begin(), entries.end(), std::greater<>());
  return entries;
}

void IndexerData::put(const GuardedArray<std::uint8_t>& array, std::int64_t at, float value) const {
  const auto store = [&](auto number) { std::memcpy(array.data() + at * element_bytes(), &number, sizeof(number)); };
  Tributary::visit_element_type(o.type, [&]<class Element>(std::type_identity<Element>) { store(Element(value)); });
}

float IndexerData::get(const GuardedArray<std::uint8_t>& array, std::int64_t at) const {
  return Tributary::visit_element_type(o.type, [&]<class Element>(std::type_identity<Element>) {
    Element number;
    std::memcpy(&number, array.data() + at * element_bytes(), sizeof(number));
    return static_cast<float>(number);
  });
}

IndexerRun::IndexerRun(const IndexerOptions& options, std::uint64_t stream)
    : random_(stream),
      in_(options, random_),
      o_(in_.o),
      keep_(std::max(1, std::min(o_.top_k, o_.keys))),
      columns_(o_.sequences > 0 ? random_.below(o_.keys + 30) : o_.keys),
      pitch_((o_.top_k > 0 ? o_.top_k : columns_) + (o_.padded ? 5 : 0)),
      indices_(o_.top_k > 0 ? std::int64_t{o_.batch} * o_.queries * pitch_ : 0),
      scores_(std::int64_t{o_.batch} * o_.queries * pitch_) {}

std::string IndexerRun::run(Settings settings) {
  settings.races = true;
  set(settings);  // the plan asks for the processors
  std::fill(indices_.begin(), indices_.end(), untouched);
  std::fill(scores_.begin(), scores_.end(), static_cast<float>(untouched));
  if (o_.few) {
    settings.skips = true;  // of the first stage's first round, which is the sample's
    set(settings);
    run_few();
    return wrong();
  }
  const Kokkos::Cuda               exec;
  Tributary::Impl::WorkspaceLayout counted;
  SM90::plan_indexer(exec, in_.problem, o_.top_k, o_.splits, counted);
  const GuardedArray<std::byte>    workspace(static_cast<std::int64_t>(counted.size()));
  const auto                       base = reinterpret_cast<std::uintptr_t>(workspace.data());
  Tributary::Impl::WorkspaceLayout layout(workspace.data() + (Tributary::Impl::WorkspaceLayout::round_up(base) - base));
  auto                             plan = SM90::plan_indexer(exec, in_.problem, o_.top_k, o_.splits, layout);
  if (o_.top_k > 0 && o_.room > 0) plan.capacity = std::max(o_.top_k + o_.room, 256);  // four tiles always fit
  const GuardedArray<Entry> candidates(plan.teams * (512 / o_.heads) * std::int64_t{plan.capacity});
  plan.candidates          = candidates.data();
  splits_                  = plan.splits;
  settings.races           = true;
  settings.skips           = o_.top_k == 0;  // of stages that hold the other warpgroup's keys
  settings.optimistic_warp = SM90::threshold_warp;
  settings.watched.push_back({candidates.data(), static_cast<long>(sizeof(Entry)) * (candidates.end() - candidates.begin())});
  set(settings);
  if (o_.top_k > 0)
    run_topk(plan);
  else
    run_score(plan);
  return wrong();
}

Tributary::Impl::TopkOutput IndexerRun::output() const {
  Tributary::Impl::TopkOutput output;
  output.indices          = indices_.data();
  output.scores           = o_.without_scores ? nullptr : scores_.data();
  output.index_strides[0] = output.score_strides[0] = std::int64_t{o_.queries} * pitch_;
  output.index_strides[1] = output.score_strides[1] = pitch_;
  output.top_k                                      = o_.top_k;
  output.order                                      = o_.order;
  return output;
}

void IndexerRun::run_few() {
  const Kokkos::Cuda               exec;
  Tributary::Impl::WorkspaceLayout counted;
  SM90::plan_decode(exec, in_.problem, o_.top_k, counted);
  const GuardedArray<std::byte> workspace(static_cast<std::int64_t>(counted.size()));
  std::fill(workspace.begin(), workspace.end(), std::byte{0x7e});
  const auto                       base = reinterpret_cast<std::uintptr_t>(workspace.data());
  Tributary::Impl::WorkspaceLayout layout(workspace.data() + (Tributary::Impl::WorkspaceLayout::round_up(base) - base));
  auto                             plan = SM90::plan_decode(exec, in_.problem, o_.top_k, layout);
  if (o_.room > 0) {
    plan.list_capacity = std::min(plan.list_capacity, o_.room);
    while (plan.places > 2 && plan.places * plan.splits > o_.room) plan.places /= 2;
  }
  splits_ = 1;
  SM90::decode_topk(exec, in_.problem, plan, output());
}

void IndexerRun::run_topk(const SM90::IndexerPlan& plan) {
  const GuardedArray<Entry> partials(splits_ > 1 ? std::int64_t{o_.batch} * o_.queries * splits_ * keep_ : 0);
  std::fill(partials.begin(), partials.end(), make_entry(sortable(infinity), 0));
  SM90::indexer_topk(Kokkos::Cuda{}, in_.problem, plan, output(), splits_ > 1 ? partials.data() : nullptr, keep_);
  partials_.assign(partials.begin(), partials.end());
}

void IndexerRun::run_score(const SM90::IndexerPlan& plan) {
  const Tributary::Impl::Tensor<float, 3> to{
      .data = scores_.data(), .extents = {o_.batch, o_.queries, columns_}, .strides = {std::int64_t{o_.queries} * pitch_, pitch_, 1}};
  SM90::indexer_score(Kokkos::Cuda{}, in_.problem, plan, to);
}

std::string IndexerRun::wrong() const {
  if (o_.top_k == 0) return wrong_scores();
  return splits_ > 1 ? wrong_partials() : wrong_topk();
}

namespace {

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream all;
  (all << ... << parts);
  return all.str();
}

}  // namespace

std::string IndexerRun::wrong_row(int b, int row, const std::vector<Entry>& got) const {
  std::vector<Entry> want = in_.sorted(b, row);
  want.resize(static_cast<std::size_t>(o_.top_k), Tributary::Impl::no_entry);
  if (o_.order == TopkOrder::by_index && splits_ == 1)
    std::sort(want.begin(), want.end(), [](Entry a, Entry c) { return static_cast<std::uint32_t>(a) > static_cast<std::uint32_t>(c); });
  for (std::size_t i = 0; i < want.size(); ++i)
    if (got[i] != want[i])
      return text("batch ", b, " query ", row, " position ", i, ": key ", Tributary::Impl::index_of(got[i]), " of score ",
                  Tributary::Impl::score_of(got[i]), ", expected ", Tributary::Impl::index_of(want[i]), " of score ",
                  Tributary::Impl::score_of(want[i]));
  return "";
}

std::string IndexerRun::wrong_topk() const {
  for (int b = 0; b < o_.batch; ++b)
    for (int row = 0; row < o_.queries; ++row) {
      const std::int64_t at = (std::int64_t{b} * o_.queries + row) * pitch_;
      std::vector<Entry> got;
      const auto         keys = in_.keys_of(b, row);
      for (int i = 0; i < pitch_; ++i) {
        const std::int32_t index = indices_[at + i];
        const float        score = scores_[at + i];
        if (i >= o_.top_k || o_.without_scores) {
          if (score != static_cast<float>(untouched)) return text("batch ", b, " query ", row, " score ", i, " was written");
          if (i >= o_.top_k && index != untouched) return text("batch ", b, " query ", row, " index ", i, " was written");
          if (i >= o_.top_k) continue;
        }
        if (index < -1 || index >= keys.end - keys.first) return text("batch ", b, " query ", row, " position ", i, ": index ", index);
        if (index == -1) {
          if (!o_.without_scores && score != -infinity) return text("batch ", b, " query ", row, " position ", i, ": score ", score);
          got.push_back(Tributary::Impl::no_entry);
          continue;
        }
        got.push_back(
            make_entry(sortable(o_.without_scores ? in_.score(b, row, keys.first + index) : score), static_cast<std::uint32_t>(index)));
      }
      if (std::string wrong = wrong_row(b, row, got); !wrong.empty()) return wrong;
    }
  return "";
}

/// The best of all parts' lists.
std::string IndexerRun::wrong_partials() const {
  for (const std::int32_t index : indices_)
    if (index != untouched) return "indices were written";
  for (int b = 0; b < o_.batch; ++b)
    for (int row = 0; row < o_.queries; ++row) {
      const auto         lists = partials_.begin() + (std::ptrdiff_t{b} * o_.queries + row) * splits_ * keep_;
      std::vector<Entry> got(lists, lists + std::ptrdiff_t{splits_} * keep_);
      std::sort(got.begin(), got.end(), std::greater<>());
      got.resize(static_cast<std::size_t>(o_.top_k), Tributary::Impl::no_entry);
      if (std::string wrong = wrong_row(b, row, got); !wrong.empty()) return wrong;
    }
  return "";
}

std::string IndexerRun::wrong_scores() const {
  for (int b = 0; b < o_.batch; ++b)
    for (int row = 0; row < o_.queries; ++row) {
      const auto keys = in_.keys_of(b, row);
      for (int column = 0; column < pitch_; ++column) {
        const int   key  = keys.first + column;
        const float got  = scores_[(std::int64_t{b} * o_.queries + row) * pitch_ + column];
        const float want = column >= columns_                    ? static_cast<float>(untouched)
                           : keys.begin <= key && key < keys.end ? in_.score(b, row, key)
                                                                 : -infinity;
        if (got != want && !(std::isnan(got) && std::isnan(want)))
          return text("batch ", b, " query ", row, " column ", column, ": ", got, ", expected ", want);
      }
    }
  return "";
}

void run_and_check(const IndexerOptions& options, std::uint64_t stream, int schedules) {
  SCOPED_TRACE("TRIBUTARY_TEST_SEED=" + std::to_string(test_seed()) + " case " + std::to_string(stream) + ": " +
               testing::PrintToString(options));
  IndexerRun run(options, stream);
  for (int i = 0; i < schedules; ++i) {
    const std::uint64_t seed = stream + 7 * static_cast<std::uint64_t>(i);
    try {
      ASSERT_EQ(run.run(Settings::of(seed, options.processors)), "") << "schedule of seed " << seed;
    } catch (const Failure& failure) {
      FAIL() << failure.what();
    }
  }
}

}  // namespace TributaryTest::Emulator
