#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "program/npy.hpp"
#include "program/output_files.hpp"

using namespace Tributary::Program;

namespace {

NpyHeader parse(std::string_view file) { return parse_npy(std::as_bytes(std::span(file))); }

/// A file of the given format version: 1 has a header length of 2 bytes, 2 and 3 one of 4.
std::string npy(const std::string& header, const std::string& data, int major = 1) {
  std::string file = "\x93NUMPY";
  file += static_cast<char>(major);
  file += '\0';
  for (int i = 0; i < (major == 1 ? 2 : 4); ++i) file += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return file + header + data;
}

std::string dictionary(const std::string& descr, const std::string& shape, const std::string& fortran_order = "False") {
  return "{'descr': " + descr + ", 'fortran_order': " + fortran_order + ", 'shape': " + shape + ", }\n";
}

/// What a file is refused with; "" if it is not.
std::string refusal(const std::string& file) {
  try {
    parse(file);
  } catch (const std::runtime_error& error) {
    return error.what();
  }
  return "";
}

#define EXPECT_REFUSED(file, reason) EXPECT_NE(refusal(file).find(reason), std::string::npos) << refusal(file)

/// A folder for one test, gone with it.
class Npy : public testing::Test {
 protected:
  Npy() : folder_(std::filesystem::temp_directory_path() / ("tributary_npy_" + std::to_string(::getpid()))) {
    std::filesystem::create_directory(folder_);
  }
  ~Npy() override { std::filesystem::remove_all(folder_); }

  std::filesystem::path file(const std::string& name, std::string_view content) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return folder_ / name;
  }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(folder_), std::filesystem::directory_iterator{}));
  }

  std::filesystem::path folder_;
};

TEST_F(Npy, ReadsEveryVersionAndType) {
  for (int major = 1; major <= 3; ++major) {
    const auto header = parse(npy(dictionary("'<f4'", "(2, 3)"), std::string(24, 'x'), major));
    EXPECT_EQ(header.type, NpyType::float32);
    EXPECT_EQ(header.shape, (Shape{2, 3}));
  }
  EXPECT_EQ(parse(npy(dictionary("'<f2'", "(3,)"), std::string(6, 'x'))).type, NpyType::float16);
  EXPECT_EQ(parse(npy(dictionary("'<i4'", "()"), std::string(4, 'x'))).type, NpyType::int32);
  EXPECT_EQ(parse(npy(dictionary("'<i8'", "(1, 1)"), std::string(8, 'x'))).type, NpyType::int64);
  EXPECT_EQ(parse(npy(dictionary("'|b1'", "(0, 5)"), "")).type, NpyType::boolean);
  EXPECT_EQ(parse(npy(dictionary("'|u1'", "(3,)"), "xyz")).type, NpyType::uint8);
}

TEST_F(Npy, ReadsOtherSpellingsOfTheHeader) {
  EXPECT_EQ(parse(npy("{\"shape\":(2L,),\"fortran_order\":False,\"descr\":\"<f4\"}", std::string(8, 'x'))).shape, (Shape{2}));
  EXPECT_EQ(parse(npy("  { 'shape' : ( 1 , 2 , ) , 'descr' : '<f4' , 'fortran_order' : False }   \n", std::string(8, 'x'))).shape,
            (Shape{1, 2}));
}

TEST_F(Npy, NamesWhatItRefuses) {
  const std::string data(8, 'x');
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(2,)", "True"), data), "Fortran order");
  EXPECT_REFUSED(npy(dictionary("'>f4'", "(2,)"), data), "big-endian");
  EXPECT_REFUSED(npy(dictionary("'<c8'", "(1,)"), data), "complex");
  EXPECT_REFUSED(npy(dictionary("'|O'", "(1,)"), data), "Python objects");
  EXPECT_REFUSED(npy(dictionary("'<U2'", "(1,)"), data), "strings");
  EXPECT_REFUSED(npy(dictionary("'<M8[ns]'", "(1,)"), data), "dates");
  EXPECT_REFUSED(npy(dictionary("'|V8'", "(1,)"), data), "raw bytes");
  EXPECT_REFUSED(npy(dictionary("'<f8'", "(1,)"), data), "not supported ('<f8')");
  EXPECT_REFUSED(npy(dictionary("[('a', '<f4')]", "(2,)"), data), "structured");
  EXPECT_REFUSED(npy(dictionary("''", "(2,)"), data), "empty element type");
}

TEST_F(Npy, RefusesBadHeaders) {
  const std::string data(8, 'x');
  EXPECT_REFUSED("", "empty");
  EXPECT_REFUSED("PK\x03\x04 a zip archive", "not a .npy file");
  EXPECT_REFUSED("\x93NUM", "truncated");
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(2,)"), data, 4), "version 4.0");
  EXPECT_REFUSED(npy("{'descr': '<f4', 'fortran_order': False, }", data), "without 'shape'");
  EXPECT_REFUSED(npy("{'descr': '<f4', 'shape': (2,), }", data), "without 'fortran_order'");
  EXPECT_REFUSED(npy("{'fortran_order': False, 'shape': (2,), }", data), "without 'descr'");
  EXPECT_REFUSED(npy("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", data), "twice");
  EXPECT_REFUSED(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2,), 'more': 1}", data), "unknown key 'more'");
  EXPECT_REFUSED(npy("", data), "malformed");
  EXPECT_REFUSED(npy("{", data), "malformed");
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(2)"), data), "malformed");
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(2.0,)"), data), "malformed");
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(2,)", "0"), data), "malformed");
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(2,)") + "import os", data), "malformed");
  EXPECT_REFUSED(npy(dictionary("'<f4\n'", "(2,)"), data), "'<f4?'");
}

TEST_F(Npy, RefusesLyingSizes) {
  const std::string data(8, 'x'), header = dictionary("'<f4'", "(2,)");
  EXPECT_REFUSED(npy(header, data.substr(1)), "truncated: float32 [2] takes 8 bytes of data, the file has 7");
  EXPECT_REFUSED(npy(header, data + "x"), "trailing bytes");
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(-2,)"), data), "negative");
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(99999999999999999999,)"), data), "beyond 2^63");
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(4294967296, 4294967296)"), data), "beyond 2^63");
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(0, 4294967296, 4294967296)"), data), "beyond 2^63");
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(4611686018427387904,)"), data), "beyond 2^63");  // only its bytes are
  EXPECT_REFUSED(npy(dictionary("'<f4'", "(1000000000000,)"), data), "truncated");
  std::string many = "(";
  for (int i = 0; i < 65; ++i) many += "1,";
  EXPECT_REFUSED(npy(dictionary("'<f4'", many + ")"), data), "64 dimensions");
  for (int major = 1; major <= 3; ++major) {
    std::string file = npy(header, data, major);
    std::memset(file.data() + 8, 0xff, major == 1 ? 2 : 4);
    EXPECT_REFUSED(file, "truncated within its header");
  }
}

// A file that was damaged somehow is refused, or describes exactly the bytes it has; nothing else may happen (the sanitizers look on).
TEST_F(Npy, SurvivesTruncationsAndFlippedBytes) {
  const auto check = [](const std::string& file) {
    try {
      const NpyHeader header = parse(file);
      EXPECT_LE(header.shape.size(), 64u);
      EXPECT_EQ(header.data_offset + static_cast<std::size_t>(elements(header.shape)) * size_of(header.type), file.size());
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(std::string_view(error.what()).find('\n'), std::string_view::npos);
    }
  };
  for (int major = 1; major <= 3; ++major) {
    const std::string valid = npy(dictionary("'<f4'", "(3, 1, 2)"), std::string(24, '\x41'), major);
    for (std::size_t length = 0; length < valid.size(); ++length) {
      EXPECT_NE(refusal(valid.substr(0, length)), "");
      check(valid.substr(0, length));
    }
    for (std::size_t i = 0; i < valid.size(); ++i)
      for (int value = 0; value < 256; ++value) {
        std::string damaged = valid;
        damaged[i]          = static_cast<char>(value);
        check(damaged);
        damaged[(i * 7 + 11) % valid.size()] ^= static_cast<char>(value);
        check(damaged);
      }
  }
}

TEST_F(Npy, RoundTrip) {
  const std::vector<float> values{1.5f, -2.0f, 3.25f, 0.0f, -0.0f, 7.0f};
  for (const Shape& shape : {Shape{6}, Shape{2, 3}, Shape{1, 6, 1}, Shape{2, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}}) {
    const auto  path = folder_ / "values.npy";
    OutputFiles output;
    output.write(path,
                 {npy_header(NpyType::float32, shape), {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)}});
    output.commit();
    const NpyFile file(path);
    EXPECT_EQ(file.type(), NpyType::float32);
    EXPECT_EQ(file.shape(), shape);
    EXPECT_EQ(std::memcmp(file.data(), values.data(), values.size() * sizeof(float)), 0);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(file.data()) % 64, 0u);
    EXPECT_EQ(files(), 1u);
  }
  for (const NpyType type : {NpyType::float32, NpyType::float16, NpyType::int32, NpyType::int64, NpyType::boolean}) {
    const auto header = parse(npy_header(type, {0}));
    EXPECT_EQ(header.type, type);
    EXPECT_EQ(header.shape, (Shape{0}));
  }
  EXPECT_EQ(parse(npy_header(NpyType::int32, {}) + "1234").shape, Shape{});
}

TEST_F(Npy, FileErrorsBeginWithThePath) {
  const auto message = [&](const std::filesystem::path& path) -> std::string {
    try {
      const NpyFile file(path);
    } catch (const std::runtime_error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message(folder_ / "none.npy"), (folder_ / "none.npy").string() + ": No such file or directory");
  EXPECT_EQ(message(folder_), folder_.string() + ": not a regular file");
  EXPECT_EQ(message(file("empty.npy", "")), (folder_ / "empty.npy").string() + ": is empty");
}

TEST_F(Npy, MovedFilesStayMapped) {
  NpyFile a(file("a.npy", npy(dictionary("'|b1'", "(1,)"), "\x01")));
  NpyFile b(std::move(a));
  a = NpyFile(file("c.npy", npy(dictionary("'|b1'", "(1,)"), "\x02")));
  std::swap(a, b);
  EXPECT_EQ(*a.data(), std::byte{1});
  EXPECT_EQ(*b.data(), std::byte{2});
}

TEST_F(Npy, OutputsAppearTogetherOrNotAtAll) {
  {
    OutputFiles output;
    output.write(folder_ / "a", {"one"});
    EXPECT_FALSE(std::filesystem::exists(folder_ / "a"));
    EXPECT_THROW(output.write(folder_ / "no folder" / "b", {"two"}), std::runtime_error);
  }
  EXPECT_EQ(files(), 0u);
  {
    OutputFiles output;
    output.write(folder_ / "a", {"one"});
    output.write(folder_ / "b", {"two"});
    std::filesystem::create_directory(folder_ / "b");  // in the way of the second rename
    EXPECT_THROW(output.commit(), std::runtime_error);
  }
  EXPECT_FALSE(std::filesystem::exists(folder_ / "a"));
  EXPECT_EQ(files(), 1u);
  EXPECT_THROW(OutputFiles::require_writable(folder_ / "b"), std::runtime_error);
  EXPECT_THROW(OutputFiles::require_writable("/dev/null"), std::runtime_error);
  EXPECT_NO_THROW(OutputFiles::require_writable(folder_ / "a"));
  EXPECT_EQ(files(), 1u);
}

TEST_F(Npy, OutputsGoThroughSymbolicLinks) {
  file("target", "old");
  std::filesystem::create_symlink("target", folder_ / "link");
  OutputFiles output;
  output.write(folder_ / "link", {"ne", "w"});
  output.commit();
  EXPECT_TRUE(std::filesystem::is_symlink(folder_ / "link"));
  std::string content;
  std::ifstream(folder_ / "target") >> content;
  EXPECT_EQ(content, "new");
}

}  // namespace
