#pragma once
#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>

#include "errors.hpp"

namespace example {

/// Reads a whole file, or standard input if it is "-". Throws FileError.
std::string read_text(const std::filesystem::path& file);

/// Writes a whole file or nothing: an existing file is replaced only when the new one is complete. Throws
/// FileError.
void write_text(const std::filesystem::path& file, std::string_view content);

/// For the end of a program: throws FileError if what it printed did not get out, as on a full disk.
void check_printed(std::FILE* stream = stdout);

/// Throws FileError unless the folder of `file` is there: for before the work, so that it is not done in vain.
void check_folder(const std::filesystem::path& file);

/// Text as the content of an HTML or XML element or attribute: markup escaped, what is not UTF-8 replaced by
/// U+FFFD, control characters other than tab and line ends left out.
std::string escaped(std::string_view text);

/// printf into a string.
[[gnu::format(printf, 1, 2)]] std::string format(const char* pattern, ...);

}  // namespace example
