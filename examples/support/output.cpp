#include "output.hpp"

#include <utf8proc.h>

#include <cstdarg>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <iterator>

namespace example {

std::string read_text(const std::filesystem::path& file) {
  const auto all = [](std::istream& stream) {
    return std::string(std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>());
  };
  if (file == "-") return all(std::cin);
  std::ifstream stream(file, std::ios::binary);
  std::error_code error;
  if (!stream || std::filesystem::is_directory(file, error)) throw FileError(file.string() + ": cannot be opened");
  auto text = all(stream);
  if (stream.bad()) throw FileError(file.string() + ": cannot be read");
  return text;
}

void write_text(const std::filesystem::path& file, std::string_view content) {
  // A device or a pipe cannot be replaced, only written to.
  std::error_code unknown;
  const bool in_place = std::filesystem::exists(file, unknown) && !std::filesystem::is_regular_file(file, unknown);
  std::filesystem::path part = file;
  if (!in_place) part += ".part";
  std::ofstream stream(part, std::ios::binary);
  stream.write(content.data(), static_cast<std::streamsize>(content.size()));
  stream.close();
  std::error_code error;
  if (stream && !in_place) std::filesystem::rename(part, file, error);
  if (!stream || error) {
    if (!in_place) std::filesystem::remove(part, unknown);
    throw FileError(file.string() + ": cannot be written" + (error ? ": " + error.message() : ""));
  }
}

void check_printed(std::FILE* stream) {
  if (std::fflush(stream) != 0 || std::ferror(stream) != 0) throw FileError("what was printed: cannot be written");
}

void check_folder(const std::filesystem::path& file) {
  const auto folder = file.has_parent_path() ? file.parent_path() : std::filesystem::path(".");
  std::error_code error;
  if (!std::filesystem::is_directory(folder, error))
    throw FileError(file.string() + ": cannot be written: there is no folder " + folder.string());
}

std::string escaped(std::string_view text) {
  std::string result;
  for (std::size_t at = 0; at < text.size();) {
    utf8proc_int32_t code = -1;
    const auto bytes = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                                        static_cast<utf8proc_ssize_t>(text.size() - at), &code);
    const auto size = bytes > 0 ? static_cast<std::size_t>(bytes) : 1;
    if (bytes <= 0)
      result += "\xEF\xBF\xBD";
    else if (code == '&')
      result += "&amp;";
    else if (code == '<')
      result += "&lt;";
    else if (code == '>')
      result += "&gt;";
    else if (code == '"')
      result += "&quot;";
    else if (code >= ' ' ? code != 127 : (code == '\t' || code == '\n' || code == '\r'))
      result += text.substr(at, size);
    at += size;
  }
  return result;
}

std::string format(const char* pattern, ...) {
  std::va_list arguments, again;
  va_start(arguments, pattern);
  va_copy(again, arguments);
  const int length = std::vsnprintf(nullptr, 0, pattern, arguments);
  va_end(arguments);
  std::string text(length > 0 ? static_cast<std::size_t>(length) : 0, '\0');
  if (length > 0) std::vsnprintf(text.data(), text.size() + 1, pattern, again);
  va_end(again);
  return text;
}

}  // namespace example
