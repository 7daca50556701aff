#pragma once
// Files for the tests of the examples: small ones made on the spot, golden data, and the model if it is there.

#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace files {

/// A folder of its own for one test case, removed at the end.
class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "attention_balancer_XXXXXX").string();
    if (!mkdtemp(name.data())) throw std::runtime_error("no temporary folder: " + name);
    path_ = name;
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;

  const std::filesystem::path& path() const noexcept { return path_; }

  std::filesystem::path write(const std::string& name, std::string_view content) const {
    std::ofstream(path_ / name, std::ios::binary)
        .write(content.data(), static_cast<std::streamsize>(content.size()));
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

inline nlohmann::json golden(const char* name) {
  std::ifstream stream(std::filesystem::path(ATTENTION_BALANCER_TEST_DATA) / name);
  if (!stream) throw std::runtime_error(std::string("missing golden data: ") + name);
  return nlohmann::json::parse(stream);
}

/// The row of golden data with this name.
inline nlohmann::json golden_row(const char* file, const char* name) {
  for (auto& row : golden(file))
    if (row.at("name") == name) return row;
  throw std::runtime_error(std::string("no golden row ") + name);
}

/// The folder of the model; nothing, and a line that says so, where it has not been downloaded.
inline std::optional<std::filesystem::path> model() {
  const std::filesystem::path folder = ATTENTION_BALANCER_MODEL_DIR;
  if (std::filesystem::exists(folder / "model.safetensors")) return folder;
  std::printf("skipped: no model in \"%s\"; examples/run.sh fetches it\n", folder.c_str());
  return {};
}

/// The file of the language model, likewise.
inline std::optional<std::filesystem::path> language_model() {
  const std::filesystem::path file = ATTENTION_BALANCER_LANGUAGE_MODEL;
  if (std::filesystem::exists(file)) return file;
  std::printf("skipped: no \"%s\"; examples/run.sh fetches it\n", file.c_str());
  return {};
}

}  // namespace files
