#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

// NumPy's .npy files (format versions 1.0 to 3.0): little-endian, C order, the element types below.  Everything else is refused
// by name with a std::runtime_error of one line.

namespace Tributary::Program {

enum class NpyType { float32, float16, int32, int64, boolean, uint8 };

std::string_view name_of(NpyType);  // as NumPy names it
std::size_t      size_of(NpyType);

using Shape = std::vector<std::int64_t>;

/// "[4096, 12, 32]"
std::string to_string(const Shape&);
/// The product of the extents; throws std::runtime_error where it exceeds 2^63-1.
std::int64_t elements(const Shape&);

struct NpyHeader {
  NpyType     type = NpyType::float32;
  Shape       shape;
  std::size_t data_offset = 0;  ///< bytes from the file's start
};

/// Reads the header at the start of a whole file and checks that exactly the data it announces follow.
NpyHeader parse_npy(std::span<const std::byte> file);

/// The header of a file that begins with it, padded so that the data are aligned to 64 bytes.
std::string npy_header(NpyType, const Shape&);

/// A .npy file mapped into memory to be read.
class NpyFile {
 public:
  /// Error messages begin with the path.
  explicit NpyFile(const std::filesystem::path&);
  NpyFile(NpyFile&&) noexcept;
  NpyFile& operator=(NpyFile&&) noexcept;
  ~NpyFile();

  const std::filesystem::path& path() const { return path_; }
  NpyType                      type() const { return header_.type; }
  const Shape&                 shape() const { return header_.shape; }
  /// The elements, which need not be aligned.
  const std::byte* data() const { return mapped_.data() + header_.data_offset; }

 private:
  std::filesystem::path      path_;
  std::span<const std::byte> mapped_;
  NpyHeader                  header_;
};

}  // namespace Tributary::Program
