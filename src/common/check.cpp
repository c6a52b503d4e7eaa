#include "common/check.hpp"

#include <algorithm>
#include <vector>

#include "common/log.hpp"

namespace Tributary::Impl {

std::string extents_text(const std::int64_t* extents, int rank) {
  std::string text = "[";
  for (int d = 0; d < rank; ++d) text.append(d == 0 ? "" : ", ").append(std::to_string(extents[d]));
  return text + "]";
}

void require_distinct_elements(std::string_view function, std::string_view name, const std::int64_t* extents, const std::int64_t* strides,
                               int rank) {
  std::vector<int> dimensions;
  for (int d = 0; d < rank; ++d)
    if (extents[d] > 1) dimensions.push_back(d);
  std::sort(dimensions.begin(), dimensions.end(), [&](int a, int b) { return strides[a] < strides[b]; });
  std::int64_t span = 1;
  for (const int d : dimensions) {
    require(strides[d] >= span, "{}: {} has stride {} in dimension {}; an output's elements must be distinct", function, name, strides[d],
            d);
    span = strides[d] * (extents[d] - 1) + span;
  }
}

namespace {

/// Looks for numbers of steps, each between its bounds, that lead to a place between two others.
class StepSearch {
 public:
  void add(std::int64_t stride, std::int64_t least, std::int64_t most) {
    for (Step& step : steps_)
      if (step.stride == stride) {
        step.least += least;
        step.most += most;
        return;
      }
    steps_.push_back({stride, least, most});
  }

  bool reaches(std::int64_t first, std::int64_t last) {
    std::sort(steps_.begin(), steps_.end(), [](const Step& a, const Step& b) { return a.stride > b.stride; });
    reach_.assign(steps_.size() + 1, {0, 0});
    for (std::size_t n = steps_.size(); n-- > 0;)
      reach_[n] = {reach_[n + 1].first + steps_[n].stride * steps_[n].least, reach_[n + 1].last + steps_[n].stride * steps_[n].most};
    return reaches(0, first, last);
  }

 private:
  struct Step {
    std::int64_t stride, least, most;
  };
  struct Reach {
    std::int64_t first, last;
  };

  bool reaches(std::size_t n, std::int64_t first, std::int64_t last) {
    if (last < reach_[n].first || first > reach_[n].last) return false;
    if (n == steps_.size() || --work_ < 0) return true;
    const auto [stride, least, most] = steps_[n];
    const Reach& rest                = reach_[n + 1];
    for (std::int64_t k = std::max(least, divide_up(first - rest.last, stride)); k <= most && k * stride <= last - rest.first; ++k)
      if (reaches(n + 1, first - k * stride, last - k * stride)) return true;
    return false;
  }
  static std::int64_t divide_up(std::int64_t a, std::int64_t b) { return a / b + (a % b > 0 ? 1 : 0); }

  std::vector<Step>  steps_;  // the longest first
  std::vector<Reach> reach_;  // of the steps from each on
  int                work_ = 100'000;
};

}  // namespace

bool overlap(const Footprint& a, const Footprint& b) {
  if (a.begin == nullptr || b.begin == nullptr) return false;
  StepSearch search;  // from an element of a to one of b
  for (int d = 0; d < a.rank; ++d) search.add(a.strides[d], 1 - a.extents[d], 0);
  for (int d = 0; d < b.rank; ++d) search.add(b.strides[d], 0, b.extents[d] - 1);
  const auto between = reinterpret_cast<std::intptr_t>(a.begin) - reinterpret_cast<std::intptr_t>(b.begin);
  return search.reaches(between - b.element_bytes + 1, between + a.element_bytes - 1);
}

Level choose_level(std::string_view function, Level wanted, bool host_memory, std::string_view no_hopper) {
  require(wanted != Level::hopper || no_hopper.empty(), "{}: no Hopper level for this call: {}", function, no_hopper);
  require(wanted != Level::reference || host_memory, "{}: the reference level needs an execution space on the host", function);
  if (wanted != Level::automatic) return wanted;
  return no_hopper.empty() ? Level::hopper : Level::portable;
}

void log_no_hopper(std::string_view function, Level wanted, std::string_view no_hopper) {
  if (wanted != Level::automatic || no_hopper.empty() || !log_enabled()) return;
  log(std::string(function).append(": no Hopper level for this call: ").append(no_hopper));
}

}  // namespace Tributary::Impl
