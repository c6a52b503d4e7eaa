#include "demo_picture.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string_view>
#include <type_traits>
#include <vector>

namespace Tributary::Program {

namespace {

// Geometry in pixels.
constexpr double plot_left = 96, plot_top = 96, plot_size = 640;
constexpr double bars_top = plot_top + plot_size + 70, bars_height = 90;
constexpr double width = plot_left + plot_size + 40, height = bars_top + bars_height + 62;

constexpr std::int64_t bins = 256;  // a side: finer than the eye needs at this size, and a file of some hundred kilobytes

/// One colour for shares above `above`, from a light to a dark blue (ColorBrewer YlGnBu, safe for colour-blind readers).
struct Shade {
  double           above;
  std::string_view colour, label;
};
constexpr std::array shades{
    Shade{0.0, "#c7e9b4", "up to 6 %"},  Shade{0.06, "#7fcdbb", "6 - 12 %"},  Shade{0.12, "#41b6c4", "12 - 25 %"},
    Shade{0.25, "#1d91c0", "25 - 50 %"}, Shade{0.5, "#0c2c84", "above 50 %"},
};

/// A number as SVG text.
struct Number {
  explicit Number(double value) { std::snprintf(digits.data(), digits.size(), "%.4g", value); }
                       operator std::string_view() const { return digits.data(); }
  std::array<char, 32> digits;
};

template <class... Parts>
std::string join(const Parts&... parts) {
  std::string text;
  const auto  add = [&](const auto& part) {
    if constexpr (std::is_arithmetic_v<std::remove_cvref_t<decltype(part)>>)
      text += std::string_view(Number(static_cast<double>(part)));
    else
      text += part;
  };
  (add(parts), ...);
  return text;
}

/// How many of the possible (query, key) pairs of each bin were chosen.
class Histogram {
 public:
  explicit Histogram(const Choices& choices)
      : rows_(std::min(bins, choices.queries)),
        columns_(std::min(bins, choices.keys)),
        chosen_(static_cast<std::size_t>(rows_ * columns_)),
        legal_(chosen_.size()) {
    for (std::int64_t t = 0; t < choices.queries; ++t) {
      const std::int64_t row = t * rows_ / choices.queries;
      for (const auto s : choices.indices.subspan(static_cast<std::size_t>(t * choices.top_k), static_cast<std::size_t>(choices.top_k)))
        if (s >= 0) ++chosen_[cell(row, s * columns_ / choices.keys)];
      const std::int64_t legal_keys = std::min(choices.keys, (t + 1) / choices.ratio);
      for (std::int64_t s = 0; s < legal_keys; ++s) ++legal_[cell(row, s * columns_ / choices.keys)];
    }
  }

  std::int64_t rows() const { return rows_; }
  std::int64_t columns() const { return columns_; }

  /// Index into shades, -1 where nothing was chosen.
  int shade(std::int64_t row, std::int64_t column) const {
    const auto   i      = cell(row, column);
    int          result = -1;
    const double share  = legal_[i] > 0 ? chosen_[i] / legal_[i] : 0;
    for (const Shade& shade : shades) result += share > shade.above;
    return result;
  }

  /// Of the queries that could choose a key of this column, the share that did.
  std::vector<double> column_shares() const {
    std::vector<double> shares;
    for (std::int64_t column = 0; column < columns_; ++column) {
      double chosen = 0, legal = 0;
      for (std::int64_t row = 0; row < rows_; ++row) {
        chosen += chosen_[cell(row, column)];
        legal += legal_[cell(row, column)];
      }
      shares.push_back(legal > 0 ? chosen / legal : 0);
    }
    return shares;
  }

 private:
  std::size_t cell(std::int64_t row, std::int64_t column) const { return static_cast<std::size_t>(row * columns_ + column); }

  std::int64_t        rows_, columns_;
  std::vector<double> chosen_, legal_;
};

class Svg {
 public:
  Svg() {
    add("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 ", width, " ", height, "' width='", width, "' height='", height,
        "' font-family='DejaVu Sans, Helvetica, Arial, sans-serif' font-size='12' fill='#222'>");
    rectangle(0, 0, width, height, "fill='#ffffff'");
  }
  std::string finish() { return text_ + "</svg>\n"; }

  template <class... Parts>
  void add(const Parts&... parts) {
    text_ += join(parts..., "\n");
  }
  void rectangle(double x, double y, double w, double h, std::string_view style) {
    add("<rect x='", x, "' y='", y, "' width='", w, "' height='", h, "' ", style, "/>");
  }
  void line(double x0, double y0, double x1, double y1, std::string_view style = "stroke='#222'") {
    add("<line x1='", x0, "' y1='", y0, "' x2='", x1, "' y2='", y1, "' ", style, "/>");
  }
  void text(double x, double y, const std::string& content, std::string_view style = "") {
    add("<text x='", x, "' y='", y, "' ", style, ">", escaped(content), "</text>");
  }

 private:
  static std::string escaped(const std::string& content) {
    std::string result;
    for (const char c : content) result += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
    return result;
  }
  std::string text_;
};

/// A round step that cuts `extent` into about `parts`.
std::int64_t tick_step(std::int64_t extent, int parts) {
  std::int64_t step = 1;
  while (extent / step > parts) step *= 2;  // powers of two, as sequence lengths are
  return step;
}

double x_of(const Choices& choices, double key) { return plot_left + plot_size * key / static_cast<double>(choices.keys); }
double y_of(const Choices& choices, double query) { return plot_top + plot_size * query / static_cast<double>(choices.queries); }

constexpr std::string_view boundary_style   = "stroke='#d7301f' stroke-width='1.5'",
                           all_chosen_style = "stroke='#d7301f' stroke-width='1.5' stroke-dasharray='4 3'";

/// Where the causal boundary leaves the picture.
struct Corner {
  explicit Corner(const Choices& choices) {
    const double ratio = static_cast<double>(choices.ratio);
    const double key   = std::min(static_cast<double>(choices.keys), static_cast<double>(choices.queries) / ratio);
    x                  = x_of(choices, key);
    y                  = y_of(choices, key * ratio);
  }
  double x, y;
};

void draw_legal_area(Svg& svg, const Choices& choices) {
  const Corner     corner(choices);
  constexpr double bottom = plot_top + plot_size;
  svg.rectangle(plot_left, plot_top, plot_size, plot_size, "fill='#ececec'");
  svg.add("<polygon fill='#ffffff' points='", plot_left, ",", plot_top, " ", corner.x, ",", corner.y, " ", corner.x, ",", bottom, " ",
          plot_left, ",", bottom, "'/>");
}

void draw_boundary(Svg& svg, const Choices& choices) {
  const Corner corner(choices);
  svg.line(plot_left, plot_top, corner.x, corner.y, boundary_style);
  const double all_chosen = static_cast<double>(choices.top_k * choices.ratio);
  if (all_chosen >= static_cast<double>(choices.queries)) return;
  const double y = y_of(choices, all_chosen);
  svg.line(plot_left, y, x_of(choices, static_cast<double>(choices.top_k)), y, all_chosen_style);
}

/// The bins of one shade as one path of horizontal runs.
std::string runs_of(const Histogram& histogram, int shade) {
  std::string path;
  for (std::int64_t row = 0; row < histogram.rows(); ++row)
    for (std::int64_t column = 0; column < histogram.columns();) {
      std::int64_t end = column;
      while (end < histogram.columns() && histogram.shade(row, end) == shade) ++end;
      if (end > column)
        path.append("M")
            .append(std::to_string(column))
            .append(" ")
            .append(std::to_string(row))
            .append("h")
            .append(std::to_string(end - column));
      column = end + 1;
    }
  return path;
}

void draw_bins(Svg& svg, const Histogram& histogram) {
  svg.add("<g fill='none' shape-rendering='crispEdges' transform='translate(", plot_left, " ", plot_top, ") scale(",
          plot_size / static_cast<double>(histogram.columns()), " ", plot_size / static_cast<double>(histogram.rows()),
          ") translate(0 0.5)'>");
  for (std::size_t shade = 0; shade < shades.size(); ++shade)
    svg.add("<path stroke='", shades[shade].colour, "' d='", runs_of(histogram, static_cast<int>(shade)), "'/>");
  svg.add("</g>");
}

void draw_axes(Svg& svg, const Choices& choices) {
  svg.rectangle(plot_left, plot_top, plot_size, plot_size, "fill='none' stroke='#222'");
  const double bottom = plot_top + plot_size;
  for (std::int64_t key = 0; key <= choices.keys; key += tick_step(choices.keys, 8)) {
    const double x = x_of(choices, static_cast<double>(key));
    svg.line(x, bottom, x, bottom + 5);
    svg.text(x, bottom + 19, std::to_string(key), "text-anchor='middle'");
  }
  for (std::int64_t query = 0; query <= choices.queries; query += tick_step(choices.queries, 8)) {
    const double y = y_of(choices, static_cast<double>(query));
    svg.line(plot_left - 5, y, plot_left, y);
    svg.text(plot_left - 9, y + 4, std::to_string(query), "text-anchor='end'");
  }
  const std::string each = choices.ratio == 1 ? "key" : join("key (each stands for ", choices.ratio, " tokens)");
  svg.text(plot_left + plot_size / 2, bottom + 39, each, "text-anchor='middle' font-size='13'");
  svg.add("<text transform='translate(", plot_left - 62, " ", plot_top + plot_size / 2,
          ") rotate(-90)' text-anchor='middle' font-size='13'>query (token of the text)</text>");
}

/// In the upper right, where no key is legal and nothing else is drawn.
void draw_legend(Svg& svg, const Choices& choices, const Histogram& histogram) {
  const double x = plot_left + 0.60 * plot_size;
  double       y = plot_top + 30;
  svg.text(x, y, "Chosen, of the legal pairs in a bin", "font-weight='bold'");
  svg.text(x, y += 17, join("of ", choices.queries / histogram.rows(), " queries x ", choices.keys / histogram.columns(), " keys"),
           "fill='#555'");
  const auto entry = [&](std::string_view colour, std::string_view label) {
    y += 21;
    svg.rectangle(x, y - 11, 22, 14, join("fill='", colour, "' stroke='#999' stroke-width='0.5'"));
    svg.text(x + 32, y, std::string(label));
  };
  entry("#ffffff", "none");
  for (const Shade& shade : shades) entry(shade.colour, shade.label);
  const auto line_entry = [&](std::string_view style, const std::string& label) {
    y += 22;
    svg.line(x, y - 4, x + 22, y - 4, style);
    svg.text(x + 32, y, label);
  };
  line_entry(boundary_style, "causal boundary");
  line_entry(all_chosen_style, join("above: at most ", choices.top_k, " legal, all chosen"));
}

void draw_bars(Svg& svg, const Histogram& histogram) {
  constexpr double unit   = 0.1;  // of the axis' end
  const auto       shares = histogram.column_shares();
  const double     end    = std::max(unit, unit * std::ceil(*std::max_element(shares.begin(), shares.end()) / unit));
  const double     step   = plot_size / static_cast<double>(shares.size());
  const double     bottom = bars_top + bars_height;
  std::string      path   = join("M", plot_left, " ", bottom);
  for (std::size_t column = 0; column < shares.size(); ++column)
    path += join("L", plot_left + step * static_cast<double>(column), " ", bottom - bars_height * shares[column] / end, "h", step);
  svg.add("<path fill='#1d91c0' d='", path, "V", bottom, "z'/>");
  svg.line(plot_left, bottom, plot_left + plot_size, bottom);
  svg.line(plot_left, bars_top, plot_left, bottom);
  for (const double share : {0.0, end / 2, end}) {
    const double y = bottom - bars_height * share / end;
    svg.line(plot_left - 5, y, plot_left, y);
    svg.text(plot_left - 9, y + 4, join(100 * share, " %"), "text-anchor='end'");
  }
  svg.text(plot_left + plot_size / 2, bottom + 22, "how often a key was chosen, of the queries for which it was legal",
           "text-anchor='middle' font-size='13'");
}

}  // namespace

std::string picture_of(const Choices& choices, const std::string& subtitle) {
  const Histogram histogram(choices);
  Svg             svg;
  svg.text(plot_left, 40, join("Which ", choices.top_k, " keys each query chose"), "font-size='20' font-weight='bold'");
  svg.text(plot_left, 64, subtitle, "fill='#555' font-size='13'");
  draw_legal_area(svg, choices);
  draw_bins(svg, histogram);
  draw_boundary(svg, choices);
  draw_axes(svg, choices);
  draw_legend(svg, choices, histogram);
  draw_bars(svg, histogram);
  return svg.finish();
}

}  // namespace Tributary::Program
