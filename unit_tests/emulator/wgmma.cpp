#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "Tributary_Types.hpp"
#include "machine.hpp"

// The tensor cores.  A product is worked out from its descriptors at some time between its issue and the wait for its group; until then
// the accumulator's registers hold a NaN of their own.  Refused are descriptors with other layouts than the kernels', registers touched
// without wgmma.fence or in flight, lanes that disagree, and reads of what a copy is writing or no proxy fence covers.

namespace TributaryTest::Emulator {
namespace {

constexpr std::uint32_t in_flight = 0x7fedcba5u;
constexpr int           rows      = 16;  // of a warp

using Numbers = std::array<float, 65536>;

template <class Element, class Bits>
Numbers* table() {
  auto* const numbers = new Numbers;
  for (std::uint32_t bits = 0; bits < 1u << 8 * sizeof(Bits); ++bits)
    (*numbers)[bits] = static_cast<float>(std::bit_cast<Element>(static_cast<Bits>(bits)));
  return numbers;
}
const Numbers& numbers_of(Format format) {
  static const Numbers* const bfloats = table<Tributary::bfloat16_t, std::uint16_t>();
  static const Numbers* const halves  = table<Tributary::half_t, std::uint16_t>();
  static const Numbers* const bytes   = table<Tributary::float8_e4m3_t, std::uint8_t>();
  return format == Format::bfloat16 ? *bfloats : (format == Format::half ? *halves : *bytes);
}

/// A matrix descriptor's fields, in bytes.
struct Descriptor {
  std::uint32_t start, leading, stride, row_bytes;

  explicit Descriptor(std::uint64_t bits)
      : start(field(bits, 0)), leading(field(bits, 16)), stride(field(bits, 32)), row_bytes(bits >> 62 == 1 ? 128 : 64) {
    constexpr std::uint64_t base_offset = std::uint64_t{7} << 49;
    constexpr std::uint64_t reserved    = 3ull << 14 | 3ull << 30 | 7ull << 46 | 0x3ffull << 52;
    if (bits >> 62 != 1 && bits >> 62 != 2) fail("descriptor: no swizzle of 128 or 64 bytes");
    if ((bits & (base_offset | reserved)) != 0) fail("descriptor: bits that must be 0");
    if (stride != 8 * row_bytes) fail("descriptor: groups of 8 rows are ", stride, " bytes apart");
  }

 private:
  static std::uint32_t field(std::uint64_t bits, int first) { return static_cast<std::uint32_t>(bits >> first & 0x3fff) << 4; }
};

/// What a product may read; whole groups of 8 rows.
std::vector<Range> reads_of(const Product& product) {
  std::vector<Range> reads;
  const auto         add = [&](const Descriptor& matrix, std::uint32_t rows_read, std::uint32_t offset = 0) {
    const std::uint32_t start = (matrix.start + offset) & ~(matrix.stride - 1);
    reads.push_back({start, start + rows_read * matrix.row_bytes});
  };
  const Descriptor b(product.b);
  const auto       columns = static_cast<std::uint32_t>(product.columns);
  if (product.along_b()) {
    if (!product.a_in_registers()) add(Descriptor(product.a), 64);
    add(b, columns);
  } else {
    if (product.format == Format::e4m3 || b.row_bytes != 128) fail("wgmma: operands across their rows");
    if (product.operands == Operands::across) add(Descriptor(product.a), 16);
    if (product.operands == Operands::across_b) add(Descriptor(product.a), 64);
    for (std::uint32_t panel = 0; panel < columns / 64; ++panel) add(b, 16, panel * b.leading);
  }
  return reads;
}

IssuedProduct& find_or_add(Lane& lane, const Product& product, bool register_a) {
  Warp&      warp  = machine.warp(lane);
  Team&      team  = machine.team(lane);
  const auto index = static_cast<std::size_t>(lane.issued - warp.first_product);
  if (index < warp.products.size()) return warp.products[index];
  IssuedProduct issued;
  issued.product = product;
  issued.reads   = reads_of(product);
  if (register_a != product.a_in_registers()) fail("wgmma: operands");
  for (const Range& range : issued.reads) {
    bytes_at(team, range.begin, range.end - range.begin);
    require_no_box(team, range, "a product");
    require_fenced(team, range, "a product");
  }
  warp.products.push_back(std::move(issued));
  ++machine.counts.products;
  return warp.products.back();
}

/// Element k of a lane's accumulator, in the warp's rows of `columns`.
std::size_t place(int lane, int k, int columns) {
  return static_cast<std::size_t>((lane / 4 + 8 * (k / 2 % 2)) * columns + 8 * (k / 4) + 2 * (lane % 4) + k % 2);
}

std::shared_ptr<Accumulator> accumulator_of(Lane& lane, float* registers, int columns) {
  Warp& warp = machine.warp(lane);
  for (const auto& known : warp.accumulators)
    if (known->registers[lane.lane] == registers) return known;
  if (!lane.fenced) fail("wgmma: accumulators were touched, and no wgmma.fence followed");
  std::shared_ptr<Accumulator> mine;
  for (const auto& known : warp.accumulators)
    if (mine == nullptr && known->registers[lane.lane] == nullptr && known->count == columns / 2) mine = known;
  if (mine == nullptr) {
    mine        = std::make_shared<Accumulator>();
    mine->count = columns / 2;
    mine->values.resize(static_cast<std::size_t>(rows * columns));
    warp.accumulators.push_back(mine);
  }
  mine->registers[lane.lane] = registers;
  for (int k = 0; k < columns / 2; ++k) {
    mine->values[place(lane.lane, k, columns)] = registers[k];
    registers[k]                               = std::bit_cast<float>(in_flight);
  }
  return mine;
}

}  // namespace

void wgmma_fence() { machine.lane->fenced = true; }

void wgmma_issue(const Product& product, float* accumulator, const std::uint32_t* register_a) {
  Lane&          lane   = *machine.lane;
  IssuedProduct& issued = find_or_add(lane, product, register_a != nullptr);
  if (issued.product != product) fail("wgmma: lanes disagree");
  if (issued.group >= 0) fail("wgmma: issued into a group that is committed");
  if (register_a != nullptr) {
    if (!lane.fenced) fail("wgmma: registers of A without wgmma.fence");
    issued.register_a[lane.lane] = register_a;
    std::memcpy(issued.copy_of_a[lane.lane], register_a, sizeof(issued.copy_of_a[0]));
  }
  const auto mine = accumulator_of(lane, accumulator, product.columns);
  if (mine->count != product.columns / 2) fail("wgmma: an accumulator in flight with another size");
  if (issued.accumulator == nullptr) {
    issued.accumulator = mine;
    ++mine->pending;
  }
  if (issued.accumulator != mine) fail("wgmma: lanes have different accumulators");
  ++issued.lanes;
  ++lane.issued;
}

void wgmma_commit_group() { meet(Collective::commit_group, 0, 0); }
void wgmma_wait_group(int pending) { meet(Collective::wait_group, pending, 0); }

void pin(const float* accumulator) {
  const Lane& lane = *machine.lane;
  for (const auto& known : machine.warp(lane).accumulators)
    if (known->registers[lane.lane] == accumulator) fail("wgmma: accumulators are used before the wait for them");
}

void committed(Warp& warp, Team& team, int warp_number) {
  for (const Lane& lane : warp.lanes)
    if (lane.issued != warp.lanes[0].issued) fail("wgmma: lanes issued different numbers of products");
  for (IssuedProduct& product : warp.products)
    if (product.group < 0) product.group = warp.groups;
  ++warp.groups;
  const Timing timing = machine.settings.products;
  if (timing == Timing::early || (timing == Timing::random && machine.draw(3) == 0))
    for (IssuedProduct& product : warp.products)
      if (!product.done) execute(team, warp_number, product);
}

namespace {

void require_unchanged(const IssuedProduct& product) {
  if (!product.product.a_in_registers()) return;
  for (int lane = 0; lane < 32; ++lane)
    if (std::memcmp(product.register_a[lane], product.copy_of_a[lane], sizeof(product.copy_of_a[0])) != 0)
      fail("wgmma: registers of A changed in flight");
}

void give_back(const Accumulator& accumulator) {
  for (int lane = 0; lane < 32; ++lane) {
    float* const registers = accumulator.registers[lane];
    if (registers == nullptr) fail("wgmma: an accumulator that some lanes have not");
    for (int k = 0; k < accumulator.count; ++k) {
      if (std::bit_cast<std::uint32_t>(registers[k]) != in_flight) fail("wgmma: an accumulator was written in flight");
      registers[k] = accumulator.values[place(lane, k, 2 * accumulator.count)];
    }
  }
}

}  // namespace

void waited(Warp& warp, Team& team, int warp_number, int pending) {
  for (const IssuedProduct& product : warp.products)
    if (product.group < 0) fail("wgmma: a wait with a product that is not committed");
  while (!warp.products.empty() && warp.products.front().group < warp.groups - pending) {
    IssuedProduct& product = warp.products.front();
    if (!product.done) execute(team, warp_number, product);
    require_unchanged(product);
    --product.accumulator->pending;
    warp.products.pop_front();
    ++warp.first_product;
  }
  std::erase_if(warp.accumulators, [](const auto& accumulator) {
    if (accumulator->pending > 0) return false;
    give_back(*accumulator);
    return true;
  });
  for (Lane& lane : warp.lanes) lane.fenced = false;
}

void execute(Team& team, int warp_number, IssuedProduct& issued) {
  const Product&   product = issued.product;
  const int        columns = product.columns;
  const int        depth   = product.depth();
  const Numbers&   number  = numbers_of(product.format);
  const Descriptor of_b(product.b);
  static float     a[rows][32], b[32][256];
  if (issued.lanes != 32) fail("wgmma: not issued by all lanes");
  require_unchanged(issued);
  const auto eight_at = [&](std::uint32_t address) {  // elements
    std::array<std::uint16_t, 8> bits;
    std::memcpy(bits.data(), bytes_at(team, swizzled(address, 128), 16), 16);
    return bits;
  };
  // Eight rows or columns from `first` on, at depth k, of a matrix whose depth runs across its rows.
  const auto across = [&](const Descriptor& matrix, int k, int first) {
    return eight_at(matrix.start + static_cast<std::uint32_t>(first / 64) * matrix.leading +
                    static_cast<std::uint32_t>(first % 64 * 2 + k % 8 * 128) + static_cast<std::uint32_t>(k / 8) * matrix.stride);
  };
  // Row `row`, the whole depth, of one whose depth runs along its rows.
  const auto along = [&](const Descriptor& matrix, int row, const auto& put) {
    const auto address =
        matrix.start + static_cast<std::uint32_t>(row / 8) * matrix.stride + static_cast<std::uint32_t>(row % 8) * matrix.row_bytes;
    for (int half = 0; half < 2; ++half) {
      const unsigned char* const bytes = bytes_at(team, swizzled(address + static_cast<std::uint32_t>(half) * 16, matrix.row_bytes), 16);
      for (int k = 0; k < depth / 2; ++k)
        put(half * depth / 2 + k, number[depth == 32 ? bytes[k] : static_cast<unsigned>(bytes[2 * k] | bytes[2 * k + 1] << 8)]);
    }
  };
  const int first_row = warp_number % 4 * rows;
  if (product.a_in_registers()) {
    const int in_register = depth / 8, bits = 32 / in_register;  // 2 or 4 neighbouring depths
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i)
        for (int c = 0; c < in_register; ++c)
          a[lane / 4 + 8 * (i % 2)][in_register * (lane % 4) + c + depth / 2 * (i / 2)] =
              number[issued.copy_of_a[lane][i] >> (bits * c) & ((1u << bits) - 1)];
  } else if (product.operands == Operands::across) {
    for (int k = 0; k < 16; ++k)
      for (int r = 0; r < rows; r += 8) {
        const auto bits = across(Descriptor(product.a), k, first_row + r);
        for (int i = 0; i < 8; ++i) a[r + i][k] = number[bits[static_cast<std::size_t>(i)]];
      }
  } else {
    for (int r = 0; r < rows; ++r) along(Descriptor(product.a), first_row + r, [&](int k, float value) { a[r][k] = value; });
  }
  for (int k = 0; k < 16; ++k)
    for (int n = 0; n < columns && !product.along_b(); n += 8) {
      const auto bits = across(of_b, k, n);
      for (int i = 0; i < 8; ++i) b[k][n + i] = number[bits[static_cast<std::size_t>(i)]];
    }
  for (int n = 0; n < columns && product.along_b(); ++n) along(of_b, n, [&](int k, float value) { b[k][n] = value; });
  for (int r = 0; r < rows; ++r) {
    float* const sums = issued.accumulator->values.data() + r * columns;
    if (!product.accumulate) std::fill(sums, sums + columns, 0.0f);
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < columns; ++n) sums[n] += a[r][k] * b[k][n];
  }
  issued.done = true;
}

std::uint32_t convert_two(bool bfloat16, float high, float low) {
  const auto bits = [&](float value) -> std::uint32_t {
    return bfloat16 ? Tributary::bfloat16_t(value).bits : Tributary::half_t(value).bits;
  };
  return bits(high) << 16 | bits(low);
}

std::uint32_t convert_four_to_e4m3(float first, float second, float third, float fourth) {
  std::uint32_t four = 0;
  for (const float value : {fourth, third, second, first}) four = four << 8 | Tributary::float8_e4m3_t(value).bits;
  return four;
}

}  // namespace TributaryTest::Emulator
