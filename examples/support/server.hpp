#pragma once
// Continuous batching (Yu et al. 2022, Orca): many texts at once, each at its own place. A step takes prompts by the
// piece and one token of every sequence that is written, in one pass of the model; who is done makes room for the next.

#include <deque>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "llama.hpp"
#include "page_keeper.hpp"

namespace example {

/// What comes after the latest token, from a row of logits [., vocabulary]; nothing ends the sequence.
using NextToken = std::function<std::optional<int>(const Matrix& logits, Eigen::Index row)>;

struct Request {
  std::vector<int> prompt;
  Eigen::Index most = 0;  // tokens that it asks for at most; the last one is not read any more
  NextToken next;
};

struct ServerCounts {
  Eigen::Index steps = 0, read = 0, written = 0;  // tokens of prompts, and those asked for
  Eigen::Index most_sequences = 0, most_pages = 0;
};

class Server {
 public:
  using Index = attention_balancer::Index;
  using Cache = attention_balancer::PagedKvCache<float>;

  /// `threads` 0 is all of them, where there is OpenMP. Throws attention_balancer::BudgetError for pages that are too
  /// few for so many sequences.
  Server(const Llama& model, const ServerRoom& room, const PageBudget& budget = {}, int threads = 0);

  /// Lets a text wait for its turn: first come, first served. Throws std::invalid_argument if it is empty or asks for
  /// nothing, attention_balancer::BudgetError if nobody is evicted and all pages together are too few for it.
  void add(Request request);

  /// Reads a piece of every prompt in work and the latest token of every other sequence. A prompt is cut into the same
  /// pieces whoever is served beside it, so that while nobody is evicted a sequence gets the logits that it gets alone,
  /// bit by bit. False if there is nothing left to do.
  bool step();

  const ServerCounts& counts() const noexcept { return counts_; }
  const LlamaDecoder<Cache>& decoder() const noexcept { return decoder_; }
  const PageKeeper& keeper() const noexcept { return keeper_; }

 private:
  struct Sequence {
    Request request;
    Index read = 0, asked = 0;
    int latest = 0;  // the token that is read after the prompt

    Index left() const noexcept { return static_cast<Index>(request.prompt.size()) - read; }
  };

  Index promised(const Request& request) const noexcept;
  void admit();
  Index plan();
  void end(Index place);

  ServerRoom room_;
  bool evicts_;
  LlamaDecoder<Cache> decoder_;
  PageKeeper keeper_;
  std::deque<Request> waiting_;
  std::vector<std::optional<Sequence>> places_;  // [sequences]
  ServerCounts counts_;

  // What a step reads; lives from step to step.
  std::vector<int> ids_;
  std::vector<Index> tokens_, offsets_, asked_, askers_;  // tokens_: of each place
};

}  // namespace example
