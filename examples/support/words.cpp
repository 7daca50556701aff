#include "words.hpp"

#include <algorithm>
#include <cctype>

#include "attention_balancer/core/error.hpp"

namespace example {
namespace {

constexpr std::size_t longest_tag = 12;  // <br />, </p>, <i>: a lone "<" in a text is no markup

bool in_word(unsigned char c) noexcept { return c >= 128 || std::isalnum(c) != 0; }

}  // namespace

std::vector<std::string> words_of_text(std::string_view text) {
  std::vector<std::string> words;
  bool open = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (c == '<') {
      const auto end = text.find('>', i);
      if (end != text.npos && end - i <= longest_tag) i = end;
      open = false;
      continue;
    }
    const bool apostrophe =
        c == '\'' && open && i + 1 < text.size() && in_word(static_cast<unsigned char>(text[i + 1]));
    if (!in_word(c) && !apostrophe) {
      open = false;
      continue;
    }
    if (!open) words.emplace_back();
    open = true;
    const bool digit = c >= '0' && c <= '9';
    words.back() += digit ? '0' : c < 128 ? static_cast<char>(std::tolower(c)) : static_cast<char>(c);
  }
  return words;
}

Vocabulary Vocabulary::learn(const std::vector<std::string>& texts, std::size_t least, std::size_t most) {
  std::unordered_map<std::string, std::size_t> counts;
  for (const auto& text : texts)
    for (auto& word : words_of_text(text)) ++counts[std::move(word)];
  std::vector<std::pair<std::string, std::size_t>> order;
  for (auto& entry : counts)
    if (entry.second >= least) order.emplace_back(entry.first, entry.second);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  if (order.size() > most) order.resize(most);
  std::vector<std::string> words;
  for (auto& entry : order) words.push_back(std::move(entry.first));
  return Vocabulary(std::move(words));
}

Vocabulary::Vocabulary(std::vector<std::string> words) : words_(std::move(words)) {
  for (std::size_t i = 0; i < words_.size(); ++i)
    if (!ids_.emplace(words_[i], static_cast<int>(i) + 2).second)
      throw attention_balancer::InputError("word " + std::to_string(i) + " of the vocabulary is \"" + words_[i] +
                                           "\", but must not stand there twice");
}

std::vector<int> Vocabulary::encode(std::string_view text, std::size_t longest) const {
  std::vector<int> ids{whole};
  for (const auto& word : words_of_text(text)) {
    if (ids.size() >= longest) break;
    const auto found = ids_.find(word);
    ids.push_back(found == ids_.end() ? unknown : found->second);
  }
  if (ids.size() == 1)
    throw attention_balancer::InputError("text is \"" + std::string(text.substr(0, 40)) +
                                         "\", but must have at least one word");
  return ids;
}

}  // namespace example
