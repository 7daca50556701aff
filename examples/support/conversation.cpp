#include "conversation.hpp"

#include <utility>

namespace example {

std::vector<int> conversation(const BytePairs& pieces, const std::string& system, const std::string& question) {
  std::vector<int> ids;
  const auto add = [&](const std::string& text) {
    const auto more = pieces.encode(text);
    ids.insert(ids.end(), more.begin(), more.end());
  };
  for (const auto& [role, text] : {std::pair("system\n", system), std::pair("user\n", question)}) {
    ids.push_back(pieces.special("<|im_start|>"));
    add(role + text);
    ids.push_back(pieces.special("<|im_end|>"));
    add("\n");
  }
  ids.push_back(pieces.special("<|im_start|>"));
  add("assistant\n");
  return ids;
}

}  // namespace example
