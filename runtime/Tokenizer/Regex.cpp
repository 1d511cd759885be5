// Part of moec, under the Apache License v2.0 with LLVM Exceptions.
// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception

#include "runtime/Tokenizer/Regex.h"

#include "runtime/Support/Text.h"
#include "runtime/Tokenizer/Utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#if PCRE2_MAJOR == 10 && PCRE2_MINOR < 40
#error "patterns are translated to binary properties and script names, which PCRE2 has from 10.40 on"
#endif

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

namespace moec {
namespace {

constexpr size_t kMaxPattern = 1 << 16; ///< bytes; DeepSeek-V2's longest has about 1,000
constexpr int kMaxDepth = 32;           ///< of groups and of character classes

/// Oniguruma's `\w`: the Word property, and six numbers that are in its table for Latin-1.
constexpr std::string_view kWordItems = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";

using Code = std::unique_ptr<pcre2_code, decltype(&pcre2_code_free)>;

Code compilePcre(std::string_view pattern, uint32_t options, int &error, size_t &offset) {
  std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
      pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 4 * kMaxDepth);
  return Code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options, &error, &offset,
                            context.get()),
              pcre2_code_free);
}

bool compiles(const std::string &pattern) {
  int error;
  size_t offset;
  return compilePcre(pattern, PCRE2_UTF | PCRE2_UCP, error, offset) != nullptr;
}

/// One pass over the pattern; classes are read by recursion.
class Translator {
public:
  Translator(std::string_view pattern, const std::string &what) : in(pattern), what(what) {}

  Result<std::string> run() {
    if (in.size() > kMaxPattern)
      return fail("has " + std::to_string(in.size()) + " bytes; at most " + std::to_string(kMaxPattern) +
                  " are supported");
    while (at < in.size()) {
      char c = in[at];
      if (c == '(') {
        MOEC_CHECK(open());
      } else if (c == ')') {
        if (groups.empty())
          return fail("has an unmatched ')'");
        atom = groups.back();
        groups.pop_back();
        out += in[at++];
      } else if (c == '*' || c == '+' || c == '?') {
        MOEC_CHECK(repeatable());
        out += in[at++];
        if (at < in.size() && (in[at] == '?' || in[at] == '+'))
          out += in[at++];
      } else if (c == '{' && isInterval()) {
        MOEC_CHECK(interval());
      } else if (c == '|' || c == '^' || c == '$') {
        atom.reset();
        out += in[at++];
      } else {
        atom = out.size();
        MOEC_TRY(std::string piece, one());
        out += piece;
      }
    }
    if (!groups.empty())
      return fail("has an unmatched '('");
    return std::move(out);
  }

private:
  Error fail(const std::string &reason) const { return Error{what + ": pattern " + quote(in) + " " + reason}; }

  Status repeatable() {
    if (!atom)
      return fail("has a repetition with nothing to repeat at byte " + std::to_string(at));
    atom.reset();
    return success();
  }

  /// Something that matches one character (or an assertion).
  Result<std::string> one() {
    if (in[at] == '[')
      return charClass(0);
    if (in[at] == '\\')
      return escape();
    if (in[at] == '.')
      return std::string(in.substr(at++, 1));
    return literal();
  }

  Result<std::string> literal() {
    Utf8Char c = decodeUtf8(in.substr(at));
    if (c.kind != Utf8Char::Valid)
      return fail("is not UTF-8");
    at += c.length;
    return spell(c.codePoint);
  }

  static std::string spell(char32_t c) {
    std::string text;
    bool punctuation = c > 0x20 && c < 0x7F && !std::isalnum(int(c));
    if (punctuation)
      text += '\\';
    appendUtf8(text, c);
    return text;
  }

  Status open() {
    static constexpr std::array<std::string_view, 8> kinds = {"?:", "?=", "?!", "?<=", "?<!", "?>", "?i:", "?-i:"};
    if (groups.size() == kMaxDepth)
      return fail("nests groups deeper than " + std::to_string(kMaxDepth));
    std::string_view rest = in.substr(at + 1);
    atom.reset();
    if (at == 0 && rest.starts_with("?i)")) {
      out += "(?i)";
      at += 4;
      return success();
    }
    groups.push_back(out.size());
    if (!rest.empty() && (rest[0] == '?' || rest[0] == '*')) {
      for (std::string_view kind : kinds)
        if (rest.starts_with(kind)) {
          out.append("(").append(kind);
          at += 1 + kind.size();
          return success();
        }
      return fail("has a group of an unsupported kind at byte " + std::to_string(at));
    }
    // Nothing refers to a group, so none needs to be captured.
    out += "(?:";
    ++at;
    return success();
  }

  /// Reads `{n}`, `{n,}`, `{,m}` or `{n,m}` at `from`; empty bounds stay empty.
  struct Interval {
    std::string_view low, high;
    bool comma = false;
    size_t end = 0;
  };
  std::optional<Interval> readInterval() const {
    Interval result;
    size_t i = at + 1;
    auto digits = [&] {
      size_t begin = i;
      while (i < in.size() && std::isdigit(uint8_t(in[i])))
        ++i;
      return in.substr(begin, i - begin);
    };
    result.low = digits();
    if (i < in.size() && in[i] == ',') {
      result.comma = true;
      ++i;
      result.high = digits();
    }
    if (i == in.size() || in[i] != '}' || (result.low.empty() && result.high.empty()))
      return std::nullopt;
    result.end = i + 1;
    return result;
  }
  bool isInterval() const { return readInterval().has_value(); }

  Status interval() {
    Interval read = *readInterval();
    std::optional<size_t> begin = atom;
    MOEC_CHECK(repeatable());
    std::string text = "{" + (read.low.empty() ? std::string("0") : std::string(read.low));
    if (read.comma)
      text.append(",").append(read.high);
    text += '}';
    at = read.end;
    char next = at < in.size() ? in[at] : '\0';
    if (next == '?' && !read.comma)
      return fail("has '{n}?', which regular expression engines read differently");
    out += text;
    if (next == '?') {
      out += '?';
      ++at;
    } else if (next == '+') {
      out.insert(*begin, "(?:");
      out += ")+";
      ++at;
    }
    return success();
  }

  /// Hexadecimal digits, as many as there are up to `most`, then `close` if set.
  Result<char32_t> hex(size_t least, size_t most, char close) {
    char32_t value = 0;
    size_t count = 0;
    for (; count < most && at < in.size() && std::isxdigit(uint8_t(in[at])); ++count, ++at) {
      char c = in[at];
      value = value * 16 + (std::isdigit(uint8_t(c)) ? c - '0' : (c | 0x20) - 'a' + 10);
    }
    bool closed = !close || (at < in.size() && in[at] == close);
    if (close && closed)
      ++at;
    if (count < least || !closed || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
      return fail("has an escape that is no character before byte " + std::to_string(at));
    return value;
  }

  /// `\` and a character that stands for one character; nothing if it stands for something else.
  Result<std::optional<char32_t>> escapedCharacter() {
    using Some = std::optional<char32_t>;
    if (at + 1 >= in.size())
      return fail("ends in a backslash");
    char c = in[at + 1];
    switch (c) {
    case 'n':
      at += 2;
      return Some(U'\n');
    case 'r':
      at += 2;
      return Some(U'\r');
    case 't':
      at += 2;
      return Some(U'\t');
    case 'f':
      at += 2;
      return Some(U'\f');
    case 'v':
      at += 2;
      return Some(U'\v');
    case 'a':
      at += 2;
      return Some(U'\a');
    case 'e':
      at += 2;
      return Some(U'\x1b');
    case 'u': {
      at += 2;
      MOEC_TRY(char32_t value, hex(4, 4, 0));
      return Some(value);
    }
    case 'x': {
      at += 2;
      if (at < in.size() && in[at] == '{') {
        ++at;
        MOEC_TRY(char32_t value, hex(1, 8, '}'));
        return Some(value);
      }
      MOEC_TRY(char32_t value, hex(1, 2, 0));
      if (value > 0x7F)
        return fail("has '\\x' with a byte above 7f, which is no character");
      return Some(value);
    }
    default:
      if (std::isalnum(uint8_t(c)))
        return Some();
      ++at;
      Utf8Char decoded = decodeUtf8(in.substr(at));
      if (decoded.kind != Utf8Char::Valid)
        return fail("is not UTF-8");
      at += decoded.length;
      return Some(decoded.codePoint);
    }
  }

  /// What `\s`, `\p{..}` and their like contribute to a character class;
  /// nothing for other letters. `\W` cannot be written as items.
  Result<std::optional<std::string>> escapedSet() {
    using Some = std::optional<std::string>;
    char c = in[at + 1];
    const char *items = c == 's'   ? "\\p{White_Space}"
                        : c == 'S' ? "\\P{White_Space}"
                        : c == 'd' ? "\\p{Nd}"
                        : c == 'D' ? "\\P{Nd}"
                        : c == 'w' ? kWordItems.data()
                        : c == 'h' ? "0-9a-fA-F"
                                   : nullptr;
    if (items) {
      at += 2;
      return Some(items);
    }
    if (c != 'p' && c != 'P')
      return Some();
    size_t begin = at + 2, end = in.find('}', begin);
    if (begin >= in.size() || in[begin] != '{' || end == std::string_view::npos)
      return fail("has '\\" + std::string(1, c) + "' without a property in braces");
    std::string name(in.substr(begin + 1, end - begin - 1));
    bool negated = c == 'P';
    if (name.starts_with('^')) {
      negated = !negated;
      name.erase(0, 1);
    }
    MOEC_TRY(std::string property, resolve(name));
    at = end + 1;
    return Some((negated ? "\\P{" : "\\p{") + property + "}");
  }

  /// The name of a property in PCRE2 that is the one Oniguruma calls `name`.
  Result<std::string> resolve(const std::string &name) const {
    static constexpr std::string_view categories[] = {"L",  "Lu", "Ll", "Lt", "Lm", "Lo", "M",  "Mn", "Mc", "Me",
                                                      "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Ps", "Pe", "Pi",
                                                      "Pf", "Po", "S",  "Sm", "Sc", "Sk", "So", "Z",  "Zs", "Zl",
                                                      "Zp", "C",  "Cc", "Cf", "Cn", "Co", "Any"};
    bool plain = !name.empty() && name.size() <= 64 &&
                 std::all_of(name.begin(), name.end(), [](char c) { return std::isalnum(uint8_t(c)) || c == '_'; });
    if (!plain)
      return fail("has an unknown property " + quote(name));
    if (name == "LC")
      return std::string("L&");
    if (std::find(std::begin(categories), std::end(categories), name) != std::end(categories))
      return name;
    // PCRE2's own inventions start with X; no script or property of Unicode has three letters and does.
    if (!(name.size() == 3 && name[0] == 'X')) {
      if (compiles("\\p{sc:" + name + "}"))
        return "sc:" + name;
      if (compiles("\\p{" + name + "}") && name.size() > 2)
        return name;
    }
    return fail("has an unknown property " + quote(name));
  }

  Result<std::string> escape() {
    MOEC_TRY(std::optional<char32_t> character, escapedCharacter());
    if (character)
      return spell(*character);
    MOEC_TRY(std::optional<std::string> set, escapedSet());
    if (set)
      return "[" + *set + "]";
    const std::string word = "[" + std::string(kWordItems) + "]";
    std::string text;
    switch (in[at + 1]) {
    case 'W':
      text = "[^" + std::string(kWordItems) + "]";
      break;
    case 'H':
      text = "[^0-9a-fA-F]";
      break;
    case 'b':
      text = "(?:(?<=" + word + ")(?!" + word + ")|(?<!" + word + ")(?=" + word + "))";
      break;
    case 'B':
      text = "(?:(?<=" + word + ")(?=" + word + ")|(?<!" + word + ")(?!" + word + "))";
      break;
    case 'A':
      text = "\\A";
      break;
    case 'z':
      text = "\\z";
      break;
    case 'Z':
      text = "\\Z";
      break;
    default:
      return fail("has an unsupported escape '\\" + std::string(1, in[at + 1]) + "'");
    }
    at += 2;
    return text;
  }

  /// One operand of `&&` in a class: plain items and whole sets, any of which may match.
  struct Operand {
    std::string items;
    std::vector<std::string> sets;

    bool empty() const { return items.empty() && sets.empty(); }
    std::string asSet() const {
      if (sets.empty())
        return "[" + items + "]";
      std::string text = "(?:";
      if (!items.empty())
        text += "[" + items + "]|";
      for (size_t i = 0; i < sets.size(); ++i)
        text += (i ? "|" : "") + sets[i];
      return text + ")";
    }
  };

  /// Reads `[...]`; gives an expression that matches exactly one character.
  Result<std::string> charClass(int depth) {
    if (depth == kMaxDepth)
      return fail("nests character classes deeper than " + std::to_string(kMaxDepth));
    ++at;
    bool negated = at < in.size() && in[at] == '^';
    if (negated)
      ++at;
    std::string intersection;
    Operand operand;
    while (true) {
      if (at == in.size())
        return fail("has an unmatched '['");
      std::string_view rest = in.substr(at);
      if (rest[0] == ']' || rest.starts_with("&&")) {
        if (operand.empty())
          return fail("has an empty character class");
        if (rest[0] == ']')
          break;
        intersection += "(?=" + operand.asSet() + ")";
        operand = {};
        at += 2;
      } else if (rest.starts_with("[:")) {
        return fail("has a POSIX bracket, which is not supported");
      } else if (rest[0] == '[') {
        MOEC_TRY(std::string set, charClass(depth + 1));
        operand.sets.push_back(set);
      } else if (rest[0] == '-') {
        // A hyphen keeps its meaning: a range between characters, itself elsewhere.
        operand.items += '-';
        ++at;
      } else {
        MOEC_CHECK(classItem(operand));
      }
    }
    ++at;
    if (intersection.empty() && operand.sets.empty())
      return (negated ? "[^" : "[") + operand.items + "]";
    std::string set = intersection + operand.asSet();
    return negated ? "(?:(?!" + set + ")(?s:.))" : "(?:" + set + ")";
  }

  Status classItem(Operand &operand) {
    if (in[at] != '\\') {
      MOEC_TRY(std::string text, literal());
      operand.items += text;
      return success();
    }
    MOEC_TRY(std::optional<char32_t> character, escapedCharacter());
    if (character) {
      operand.items += spell(*character);
      return success();
    }
    MOEC_TRY(std::optional<std::string> set, escapedSet());
    if (set) {
      operand.items += *set;
      return success();
    }
    char c = in[at + 1];
    if (c == 'b') {
      operand.items += "\\x08";
    } else if (c == 'W') {
      operand.sets.push_back("[^" + std::string(kWordItems) + "]");
    } else if (c == 'H') {
      operand.sets.push_back("[^0-9a-fA-F]");
    } else {
      return fail("has an unsupported escape '\\" + std::string(1, c) + "' in a character class");
    }
    at += 2;
    return success();
  }

  std::string_view in;
  const std::string &what;
  size_t at = 0;
  std::string out;
  std::vector<size_t> groups; ///< where each open group begins in `out`
  std::optional<size_t> atom; ///< where what a repetition would repeat begins in `out`
};

Result<Code> compileOrExplain(std::string_view pattern, std::string_view shown, uint32_t options,
                              const std::string &what) {
  int error = 0;
  size_t offset = 0;
  Code code = compilePcre(pattern, options | PCRE2_UTF, error, offset);
  if (!code) {
    char message[128] = "";
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR *>(message), sizeof(message));
    return Error{what + ": pattern " + quote(shown) + " is refused by PCRE2: " + message};
  }
  // Without JIT (not built in, or no executable memory) the interpreter does the same, slower.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return code;
}

std::shared_ptr<const pcre2_code> share(Code code) {
  return std::shared_ptr<const pcre2_code>(code.release(),
                                           [](const pcre2_code *p) { pcre2_code_free(const_cast<pcre2_code *>(p)); });
}

} // namespace

Result<std::string> translatePattern(std::string_view pattern, const std::string &what) {
  return Translator(pattern, what).run();
}

Result<Regex> Regex::compile(std::string_view pattern, const std::string &what) {
  MOEC_TRY(std::string translated, translatePattern(pattern, what));
  MOEC_TRY(Code code, compileOrExplain(translated, pattern, PCRE2_UCP | PCRE2_MULTILINE, what));
  Regex regex;
  regex.compiled = share(std::move(code));
  return regex;
}

Result<Regex> Regex::literal(std::string_view text, const std::string &what) {
  MOEC_TRY(Code code, compileOrExplain(text, text, PCRE2_LITERAL, what));
  Regex regex;
  regex.compiled = share(std::move(code));
  return regex;
}

/// Steps of backtracking that any match may take. Words of ordinary text need a few dozen.
static constexpr uint32_t kQuickSteps = 5000;
/// What a match may allocate where there is no JIT.
static constexpr uint32_t kHeapKibibytes = 256 << 10;

struct RegexMatcher::State {
  std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)> data{pcre2_match_data_create(1, nullptr),
                                                                           pcre2_match_data_free};
  std::unique_ptr<pcre2_match_context, decltype(&pcre2_match_context_free)> context{pcre2_match_context_create(nullptr),
                                                                                    pcre2_match_context_free};
  std::unique_ptr<pcre2_jit_stack, decltype(&pcre2_jit_stack_free)> stack{
      pcre2_jit_stack_create(32 << 10, 8 << 20, nullptr), pcre2_jit_stack_free};
  size_t budget = 0;
};

RegexMatcher::RegexMatcher(size_t textSize) : state(std::make_unique<State>()) {
  state->budget = 64 + textSize / kQuickSteps;
  pcre2_set_heap_limit(state->context.get(), kHeapKibibytes);
  if (state->stack)
    pcre2_jit_stack_assign(state->context.get(), nullptr, state->stack.get());
}

RegexMatcher::~RegexMatcher() = default;

RegexMatcher::Outcome RegexMatcher::search(const Regex &regex, std::string_view text, size_t start,
                                           std::pair<size_t, size_t> &found) {
  auto match = [&](uint64_t steps, uint32_t options) {
    pcre2_set_match_limit(state->context.get(), uint32_t(std::min<uint64_t>(steps, UINT32_MAX)));
    return pcre2_match(regex.code(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                       options | PCRE2_NO_UTF_CHECK, state->data.get(), state->context.get());
  };
  int rc = match(kQuickSteps, 0);
  if (rc == PCRE2_ERROR_MATCHLIMIT || rc == PCRE2_ERROR_JIT_STACKLIMIT) {
    if (state->budget == 0)
      return Outcome::GaveUp;
    --state->budget;
    rc = match((1 << 20) + 16 * uint64_t(text.size()), rc == PCRE2_ERROR_JIT_STACKLIMIT ? PCRE2_NO_JIT : 0);
  }
  if (rc == PCRE2_ERROR_NOMATCH)
    return Outcome::NoMatch;
  if (rc < 0)
    return Outcome::GaveUp;
  const PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(state->data.get());
  found = {offsets[0], offsets[1]};
  return Outcome::Match;
}

} // namespace moec
