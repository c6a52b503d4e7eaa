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
