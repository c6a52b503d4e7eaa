#include "common/check.hpp"

namespace Tributary::Impl {

std::int64_t element_size(ElementType type) {
  return visit_element_type(type, []<class T>(std::type_identity<T>) -> std::int64_t { return sizeof(T); });
}

std::string extents_text(const std::int64_t* extents, int rank) {
  std::string text = "[";
  for (int d = 0; d < rank; ++d) text.append(d == 0 ? "" : ", ").append(std::to_string(extents[d]));
  return text + "]";
}

Level choose_level(std::string_view function, Level wanted, bool host_memory) {
  require(wanted != Level::hopper, "{}: this operator has no Hopper level", function);
  require(wanted != Level::reference || host_memory, "{}: the reference level needs an execution space on the host", function);
  return wanted == Level::reference ? Level::reference : Level::portable;
}

}  // namespace Tributary::Impl
