#include "npy.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <utility>

namespace Tributary::Program {

static_assert(std::endian::native == std::endian::little, "Tributary: .npy files are read and written in the machine's own order");

namespace {

constexpr std::string_view magic = "\x93NUMPY";

struct TypeEntry {
  NpyType          type;
  std::string_view descr, name;
  std::size_t      size;
};
constexpr std::array types{
    TypeEntry{NpyType::float32, "<f4", "float32", 4}, TypeEntry{NpyType::float16, "<f2", "float16", 2},
    TypeEntry{NpyType::int32, "<i4", "int32", 4},     TypeEntry{NpyType::int64, "<i8", "int64", 8},
    TypeEntry{NpyType::boolean, "|b1", "bool", 1},    TypeEntry{NpyType::uint8, "|u1", "uint8", 1},
};
constexpr std::string_view supported_types = "float32, float16, int32, int64, bool and uint8 are supported";

const TypeEntry& entry(NpyType type) {
  for (const TypeEntry& candidate : types)
    if (candidate.type == type) return candidate;
  throw std::logic_error("NpyType without an entry");
}

[[noreturn]] void refuse(const std::string& reason) { throw std::runtime_error(reason); }

/// Foreign text in a message: its beginning, unprintable bytes as '?'.
std::string excerpt(std::string_view text) {
  constexpr std::size_t longest = 40;
  std::string           result  = "'";
  for (const char c : text.substr(0, longest)) result += c >= ' ' && c <= '~' ? c : '?';
  return result + (text.size() > longest ? "...'" : "'");
}

NpyType type_of(std::string_view descr) {
  for (const TypeEntry& candidate : types)
    if (descr == candidate.descr) return candidate.type;
  if (descr.empty()) refuse("has an empty element type");
  const char        order   = descr[0];
  const bool        ordered = order == '<' || order == '>' || order == '|' || order == '=';
  const auto        code    = ordered ? descr.substr(1) : descr;
  const std::string bytes(code.empty() ? "" : code.substr(1));
  if (order == '>') refuse("is big-endian (" + excerpt(descr) + "); only little-endian files are read");
  const std::string also = " (" + excerpt(descr) + "); " + std::string(supported_types);
  switch (code.empty() ? '\0' : code[0]) {
    case 'c': refuse("has complex elements" + also);
    case 'O': refuse("has Python objects as elements" + also);
    case 'S':
    case 'U': refuse("has strings as elements" + also);
    case 'M':
    case 'm': refuse("has dates as elements" + also);
    case 'V': refuse("has raw bytes as elements" + also);
    default: refuse("has an element type that is not supported" + also);
  }
}

/// Reads the one Python dictionary that is a .npy header, and nothing more general.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  NpyHeader parse() {
    expect('{');
    while (!accept('}')) {
      const std::string key = string();
      expect(':');
      if (key == "descr")
        once(descr_, key, descr());
      else if (key == "fortran_order")
        once(fortran_order_, key, boolean());
      else if (key == "shape")
        once(shape_, key, shape());
      else
        refuse("has a header with the unknown key " + excerpt(key));
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    skip_space();
    if (position_ != text_.size()) malformed();
    require_key(descr_.has_value(), "descr");
    require_key(fortran_order_.has_value(), "fortran_order");
    require_key(shape_.has_value(), "shape");
    NpyHeader header;
    header.type = type_of(*descr_);
    if (*fortran_order_) refuse("is in Fortran order; save it in C order (numpy.ascontiguousarray)");
    header.shape = std::move(*shape_);
    return header;
  }

 private:
  [[noreturn]] static void malformed() { refuse("has a malformed .npy header"); }
  static void              require_key(bool given, const std::string& key) {
                 if (!given) refuse("has a header without '" + key + "'");
  }
  template <class T>
  static void once(std::optional<T>& slot, const std::string& key, T value) {
    if (slot) refuse("has a header with '" + key + "' twice");
    slot = std::move(value);
  }

  void skip_space() {
    while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\n' || text_[position_] == '\t')) ++position_;
  }
  char peek() {
    skip_space();
    return position_ < text_.size() ? text_[position_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c || position_ >= text_.size()) return false;
    ++position_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) malformed();
  }

  std::string string() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') malformed();
    const auto end = text_.find(quote, position_ + 1);
    if (end == std::string_view::npos) malformed();
    const auto content = text_.substr(position_ + 1, end - position_ - 1);
    if (content.find('\\') != std::string_view::npos) malformed();
    position_ = end + 1;
    return std::string(content);
  }
  std::string descr() {
    if (peek() == '[') refuse("has structured elements; " + std::string(supported_types));
    return string();
  }
  bool boolean() {
    skip_space();
    for (const auto& [word, value] : {std::pair{std::string_view("True"), true}, std::pair{std::string_view("False"), false}})
      if (text_.substr(position_).starts_with(word)) {
        position_ += word.size();
        return value;
      }
    malformed();
  }
  std::int64_t extent() {
    if (peek() == '-') refuse("has a negative extent");
    if (peek() < '0' || peek() > '9') malformed();
    std::int64_t value = 0;
    for (; position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9'; ++position_)
      if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, text_[position_] - '0', &value))
        refuse("has an extent beyond 2^63");
    if (position_ < text_.size() && text_[position_] == 'L') ++position_;  // Python 2 wrote 3L
    return value;
  }
  Shape shape() {
    constexpr std::size_t most_dimensions = 64;  // NumPy's own limit
    Shape                 result;
    expect('(');
    while (!accept(')')) {
      if (result.size() == most_dimensions) refuse("has more than 64 dimensions");
      result.push_back(extent());
      if (!accept(',')) {
        expect(')');
        if (result.size() == 1) malformed();  // (3) is a number in Python, not a shape
        break;
      }
    }
    return result;
  }

  std::string_view           text_;
  std::size_t                position_ = 0;
  std::optional<std::string> descr_;
  std::optional<bool>        fortran_order_;
  std::optional<Shape>       shape_;
};

std::size_t little_endian(std::string_view bytes) {
  std::size_t value = 0;
  for (std::size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return value;
}

}  // namespace

std::string_view name_of(NpyType type) { return entry(type).name; }
std::size_t      size_of(NpyType type) { return entry(type).size; }

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (const auto extent : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

std::int64_t elements(const Shape& shape) {
  std::int64_t product = 1;
  bool         empty   = false;
  for (const auto extent : shape) {
    empty = empty || extent == 0;
    // zeros do not excuse the others: strides are products too
    if (extent != 0 && __builtin_mul_overflow(product, extent, &product))
      refuse("has a shape whose size is beyond 2^63: " + to_string(shape));
  }
  return empty ? 0 : product;
}

NpyHeader parse_npy(std::span<const std::byte> file) {
  const std::string_view bytes(reinterpret_cast<const char*>(file.data()), file.size());
  if (bytes.empty()) refuse("is empty");
  if (!bytes.starts_with(magic.substr(0, bytes.size()))) refuse("is not a .npy file");
  if (bytes.size() < 10) refuse("is truncated within its header");
  const int major = static_cast<unsigned char>(bytes[6]), minor = static_cast<unsigned char>(bytes[7]);
  if (major < 1 || major > 3 || minor != 0)
    refuse("has .npy format version " + std::to_string(major) + "." + std::to_string(minor) + ", expected 1.0 to 3.0");
  const std::size_t length_bytes = major == 1 ? 2 : 4;
  const std::size_t text_offset  = 8 + length_bytes;
  if (bytes.size() < text_offset) refuse("is truncated within its header");
  const std::size_t length = little_endian(bytes.substr(8, length_bytes));
  if (length > bytes.size() - text_offset) refuse("is truncated within its header (" + std::to_string(length) + " bytes announced)");

  NpyHeader header   = HeaderParser(bytes.substr(text_offset, length)).parse();
  header.data_offset = text_offset + length;
  std::int64_t expected;
  if (__builtin_mul_overflow(elements(header.shape), size_of(header.type), &expected))
    refuse("has a shape whose size is beyond 2^63: " + to_string(header.shape));
  const auto given = bytes.size() - header.data_offset;
  if (given != static_cast<std::size_t>(expected))
    refuse((given < static_cast<std::size_t>(expected) ? "is truncated: " : "has trailing bytes: ") + std::string(name_of(header.type)) +
           " " + to_string(header.shape) + " takes " + std::to_string(expected) + " bytes of data, the file has " + std::to_string(given));
  return header;
}

std::string npy_header(NpyType type, const Shape& shape) {
  std::string text = "{'descr': '" + std::string(entry(type).descr) + "', 'fortran_order': False, 'shape': (";
  for (const auto extent : shape) text += std::to_string(extent) + ",";
  if (shape.size() > 1) text.pop_back();
  text += "), }";
  constexpr std::size_t alignment = 64, prefix = 10;
  text.append(alignment - 1 - (prefix + text.size()) % alignment, ' ');
  text += '\n';
  std::string header(magic);
  header += '\x01';
  header += '\x00';
  header += static_cast<char>(text.size() & 0xff);
  header += static_cast<char>(text.size() >> 8);
  return header + text;
}

NpyFile::NpyFile(const std::filesystem::path& path) : path_(path) {
  const auto fail = [&](const std::string& reason) { throw std::runtime_error(path.string() + ": " + reason); };
  // not blocking: a named pipe is to be refused, not waited for
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (file < 0) fail(std::strerror(errno));
  struct stat status {};
  if (::fstat(file, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(file);
    fail("not a regular file");
  }
  const auto size    = static_cast<std::size_t>(status.st_size);
  void*      address = size > 0 ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0) : nullptr;
  const int  error   = errno;
  ::close(file);
  if (address == MAP_FAILED) fail(std::strerror(error));
  if (size > 0) ::madvise(address, size, MADV_SEQUENTIAL);
  mapped_ = {static_cast<const std::byte*>(address), size};
  try {
    header_ = parse_npy(mapped_);
  } catch (const std::runtime_error& refusal) {
    if (size > 0) ::munmap(address, size);
    fail(refusal.what());
  }
}

NpyFile::NpyFile(NpyFile&& other) noexcept
    : path_(std::move(other.path_)), mapped_(std::exchange(other.mapped_, {})), header_(std::move(other.header_)) {}

NpyFile& NpyFile::operator=(NpyFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(mapped_, other.mapped_);
  std::swap(header_, other.header_);
  return *this;
}

NpyFile::~NpyFile() {
  if (!mapped_.empty()) ::munmap(const_cast<std::byte*>(mapped_.data()), mapped_.size());
}

}  // namespace Tributary::Program
