#pragma once
// Numbers in pages of a size that is known: what reading memory costs depends on it.

#include <cmath>
#include <cstddef>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>

#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>
#endif

namespace bench {

/// Bytes that programs may still take without making others give theirs up; any number where the system does not say.
inline double available_memory() {
#if defined(__linux__)
  std::ifstream info("/proc/meminfo");
  for (std::string line; std::getline(info, line);)
    if (line.rfind("MemAvailable:", 0) == 0) return 1024 * std::stod(line.substr(13));
#endif
  return HUGE_VAL;
}

/// `bytes` bytes, in small pages or, where the system gives them on advice, in huge ones.
class Pages {
 public:
  Pages(std::size_t bytes, [[maybe_unused]] bool huge) : size_(bytes + huge_page) {
#if defined(__linux__)
    memory_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
    madvise(memory_, size_, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    const auto address = reinterpret_cast<std::uintptr_t>(memory_);
    data_ = reinterpret_cast<std::byte*>((address + huge_page - 1) / huge_page * huge_page);
#else
    memory_ = ::operator new(size_, std::align_val_t(64));
    data_ = static_cast<std::byte*>(memory_);
#endif
  }
  /// A copy of what is at `from`.
  Pages(const void* from, std::size_t bytes, bool huge) : Pages(bytes, huge) { std::memcpy(data_, from, bytes); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  ~Pages() {
#if defined(__linux__)
    munmap(memory_, size_);
#else
    ::operator delete(memory_, std::align_val_t(64));
#endif
  }

  std::byte* data() noexcept { return data_; }
  const std::byte* data() const noexcept { return data_; }

  /// What they are, as the system says.
  const char* kind() const {
#if defined(__linux__)
    // Mappings side by side with the same advice are shown as one.
    std::ifstream maps("/proc/self/smaps");
    const auto at = reinterpret_cast<std::uintptr_t>(data_);
    bool here = false;
    for (std::string line; std::getline(maps, line);) {
      std::uintptr_t begin = 0, end = 0;
      char dash = 0;
      std::istringstream words(line);
      if (words >> std::hex >> begin >> dash >> end && dash == '-') here = begin <= at && at < end;
      if (!here || line.rfind("AnonHugePages:", 0) != 0) continue;
      return std::stoull(line.substr(14)) * 1024 >= (size_ - huge_page) / 2 ? "huge pages" : "small pages";
    }
#endif
    return "pages of unknown size";
  }

 private:
  static constexpr std::size_t huge_page = std::size_t(1) << 21;
  void* memory_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t size_;
};

}  // namespace bench
