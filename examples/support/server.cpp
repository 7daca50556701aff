#include "server.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace example {
namespace ab = attention_balancer;

Server::Server(const Llama& model, const ServerRoom& room, const PageBudget& budget, int threads)
    : room_(room),
      evicts_(budget.rule != PageRule::reserved),
      decoder_(model, caches_of<Cache>(model.shape, room.sequences, room.pages, room.page_size), threads),
      keeper_(budget, room, model.shape),
      places_(static_cast<std::size_t>(room.sequences)) {
  if (room.piece < 1) throw std::invalid_argument("the pieces of a prompt must have at least 1 token");
}

// Pages that a sequence may come to hold: without eviction everyone may grow to the end, so that no step finds too few.
Server::Index Server::promised(const Request& request) const noexcept {
  return evicts_ ? 0 : room_.pages_of(static_cast<Index>(request.prompt.size()) + request.most - 1);
}

void Server::add(Request request) {
  if (request.prompt.empty() || request.most < 1)
    throw std::invalid_argument("a request has " + std::to_string(request.prompt.size()) + " tokens and asks for " +
                                std::to_string(request.most) + ", but must have and ask for at least 1");
  if (promised(request) > room_.pages)
    throw ab::BudgetError("pages of a request are " + std::to_string(promised(request)) +
                          ", but must be at most all " + std::to_string(room_.pages));
  waiting_.push_back(std::move(request));
}

void Server::admit() {
  Index all = 0;
  for (const auto& sequence : places_)
    if (sequence) all += promised(sequence->request);
  for (std::size_t s = 0; s < places_.size(); ++s) {
    if (places_[s] || waiting_.empty()) continue;
    all += promised(waiting_.front());
    if (all > room_.pages) return;
    places_[s].emplace(Sequence{std::move(waiting_.front())});
    waiting_.pop_front();
    keeper_.restart(static_cast<Index>(s));
  }
}

void Server::end(Index place) {
  places_[static_cast<std::size_t>(place)].reset();
  for (Cache& cache : decoder_.caches()) cache.clear(place);
}

// What each place reads in this step. Returns how many read anything.
Server::Index Server::plan() {
  ids_.clear(), asked_.clear(), askers_.clear();
  tokens_.assign(places_.size(), 0);
  offsets_.assign(1, 0);
  Index sequences = 0;
  for (std::size_t s = 0; s < places_.size(); ++s) {
    if (auto& sequence = places_[s]) {
      ++sequences;
      if (const Index left = sequence->left(); left > 0) {
        const Index some = std::min(left, room_.piece);
        const auto from = sequence->request.prompt.begin() + sequence->read;
        ids_.insert(ids_.end(), from, from + some);
        sequence->read += some;
        counts_.read += some;
      } else {
        ids_.push_back(sequence->latest);
      }
      if (sequence->left() == 0) {
        asked_.push_back(static_cast<Index>(ids_.size()) - 1);
        askers_.push_back(static_cast<Index>(s));
      }
    }
    tokens_[s] = static_cast<Index>(ids_.size()) - offsets_.back();
    offsets_.push_back(static_cast<Index>(ids_.size()));
  }
  return sequences;
}

bool Server::step() {
  admit();
  const Index sequences = plan();
  if (sequences == 0) return false;
  keeper_.make_room(decoder_.caches(), tokens_);
  const Matrix& logits = decoder_.read(ids_, offsets_, asked_, keeper_.observer());
  ++counts_.steps;
  counts_.most_sequences = std::max(counts_.most_sequences, sequences);
  counts_.most_pages = std::max(counts_.most_pages, room_.pages - decoder_.caches().front().free_pages());
  for (std::size_t i = 0; i < askers_.size(); ++i) {
    Sequence& sequence = *places_[static_cast<std::size_t>(askers_[i])];
    const auto next = sequence.request.next(logits, static_cast<Eigen::Index>(i));
    if (next) {
      sequence.latest = *next;
      ++counts_.written;
    }
    if (!next || ++sequence.asked == sequence.request.most) end(askers_[i]);
  }
  return true;
}

}  // namespace example
