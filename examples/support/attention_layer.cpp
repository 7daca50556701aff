#include "attention_layer.hpp"

#include <algorithm>
#include <span>

#include "attention_balancer/attention.hpp"

namespace example {
namespace {

namespace ab = attention_balancer;

// Eigen's blocks of the rows of one sequence, as views for the kernels.
template <class M>
auto rows_of(M& matrix, const Segments& segments, std::size_t b, Eigen::Index first_column, Eigen::Index columns) {
  return matrix.block(segments.begin(b), first_column, segments.length(b), columns);
}

// Of the scores of Saliency: its keys are normalised, and a query of deviation 1 may tell them apart clearly.
constexpr int scale = 1;

}  // namespace

template <class T>
MultiHeadAttention<T>::MultiHeadAttention(const std::string& name, Eigen::Index width, Eigen::Index heads,
                                          Random& random)
    : query(name + ".query", width, width, random),
      key_value(name + ".key_value", width, 2 * width, random),
      output(name + ".output", width, width, random),
      heads_(heads) {
  if (heads < 1 || width % heads != 0)
    throw ab::ShapeError(name + ": width is " + std::to_string(width) + ", but must be a multiple of the heads, " +
                         std::to_string(heads));
}

template <class T>
Rows<T> MultiHeadAttention<T>::forward(const Rows<T>& x, const Segments& queries, const Rows<T>& memory,
                                       const Segments& keys) {
  if (queries.count() != keys.count())
    throw ab::ShapeError("number of sequences of the memory is " + std::to_string(keys.count()) +
                         ", but must be that of the queries, " + std::to_string(queries.count()));
  queries_ = queries;
  keys_ = keys;
  const auto width = x.cols();
  q_ = query.forward(x);
  kv_ = key_value.forward(memory);
  context_.resize(x.rows(), width);
  evidence_.resize(std::max(evidence_.size(), queries.count()));
  while (workspaces_.size() < queries.count()) workspaces_.push_back(std::make_unique<ab::Workspace>());

  const ab::executor::OpenMp executor{threads};
  executor.for_each(static_cast<ab::Index>(queries.count()), [&](ab::Index sequence) {
    const auto b = static_cast<std::size_t>(sequence);
    if (queries_.length(b) == 0) return;
    auto q = rows_of(q_, queries_, b, 0, width);
    auto k = rows_of(kv_, keys_, b, 0, width);
    auto v = rows_of(kv_, keys_, b, width, width);
    auto out = rows_of(context_, queries_, b, 0, width);
    ab::attention(ab::tokens_in_rows(q, heads_), ab::tokens_in_rows(k, heads_), ab::tokens_in_rows(v, heads_),
                  ab::tokens_in_rows(out, heads_), *workspaces_[b],
                  ab::observe(evidence_[b], ab::QueryWeights::none()));
  });
  return output.forward(context_);
}

template <class T>
Rows<T> MultiHeadAttention<T>::backward(const Rows<T>& dy, Rows<T>* dmemory) {
  const auto width = dy.cols();
  Rows<T> dcontext = output.backward(dy);
  Rows<T> dq(q_.rows(), width), dkv(kv_.rows(), 2 * width);
  const ab::executor::OpenMp executor{threads};
  executor.for_each(static_cast<ab::Index>(queries_.count()), [&](ab::Index sequence) {
    const auto b = static_cast<std::size_t>(sequence);
    auto gradient_of_k = rows_of(dkv, keys_, b, 0, width), gradient_of_v = rows_of(dkv, keys_, b, width, width);
    if (queries_.length(b) == 0) {
      gradient_of_k.setZero();
      gradient_of_v.setZero();
      return;
    }
    auto q = rows_of(q_, queries_, b, 0, width), out = rows_of(context_, queries_, b, 0, width);
    auto k = rows_of(kv_, keys_, b, 0, width), v = rows_of(kv_, keys_, b, width, width);
    auto dout = rows_of(dcontext, queries_, b, 0, width), gradient_of_q = rows_of(dq, queries_, b, 0, width);
    const auto heads = [&](auto& rows) { return ab::tokens_in_rows(rows, heads_); };
    ab::attention_backward(heads(q), heads(k), heads(v), heads(out), evidence_[b], heads(dout),
                           heads(gradient_of_q), heads(gradient_of_k), heads(gradient_of_v), *workspaces_[b]);
  });
  Rows<T> dx = query.backward(dq);
  if (dmemory)
    *dmemory = key_value.backward(dkv);
  else
    dx += key_value.backward(dkv);
  return dx;
}

// --- Saliency
// --------------------------------------------------------------------------------------------------------

template <class T>
Saliency<T>::Saliency(const std::string& name, Eigen::Index width, Random& random)
    : query(name + ".query", 1, width) {
  query.draw(random, 0.02);
}

template <class T>
void Saliency<T>::forward(const Rows<T>& x, const Segments& segments) {
  segments_ = segments;
  x_ = x;
  mass_.resize(x.rows());
  entropy_.resize(segments.count());
  evidence_.resize(std::max(evidence_.size(), segments.count()));
  for (std::size_t b = 0; b < segments.count(); ++b) {
    auto keys = rows_of(x_, segments_, b, 0, x_.cols());
    ab::attention_evidence(ab::tokens_in_rows(query.value), ab::tokens_in_rows(keys), ab::score::Scale{scale},
                           ab::observe(evidence_[b]), workspace_);
    const auto mass = evidence_[b].mass(0, 0);
    std::copy(mass.begin(), mass.end(), mass_.data() + segments_.begin(b));
    entropy_[b] = evidence_[b].entropy(0, 0)[0];
  }
}

template <class T>
Rows<T> Saliency<T>::backward(const Eigen::Matrix<T, Eigen::Dynamic, 1>& dmass, const std::vector<T>& dentropy) {
  Rows<T> dx(x_.rows(), x_.cols()), dquery(1, x_.cols());
  // There are no values: one of zero per token, whose output has no gradient.
  Rows<T> values = Rows<T>::Zero(x_.rows(), 1), dvalues(x_.rows(), 1), out = Rows<T>::Zero(1, 1), dout = out;
  for (std::size_t b = 0; b < segments_.count(); ++b) {
    auto keys = rows_of(x_, segments_, b, 0, x_.cols()), dkeys = rows_of(dx, segments_, b, 0, x_.cols());
    auto v = rows_of(values, segments_, b, 0, 1), dv = rows_of(dvalues, segments_, b, 0, 1);
    const auto of_mass = std::span(dmass.data() + segments_.begin(b), static_cast<std::size_t>(keys.rows()));
    ab::attention_backward(ab::tokens_in_rows(query.value), ab::tokens_in_rows(keys), ab::tokens_in_rows(v),
                           ab::tokens_in_rows(out), evidence_[b], ab::tokens_in_rows(dout),
                           ab::tokens_in_rows(dquery), ab::tokens_in_rows(dkeys), ab::tokens_in_rows(dv),
                           ab::score::Scale{scale}, ab::evidence::MassGradient(of_mass),
                           ab::evidence::EntropyGradient(std::span(&dentropy[b], 1)), workspace_);
    query.gradient += dquery;
  }
  return dx;
}

template class MultiHeadAttention<float>;
template class MultiHeadAttention<double>;
template class Saliency<float>;
template class Saliency<double>;

}  // namespace example
