#pragma once
// The left half: views, scores, masks, attention, evidence.

#include "attention_balancer/attention/backward.hpp"
#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/attention/forward.hpp"
#include "attention_balancer/attention/gradients.hpp"
#include "attention_balancer/core/workspace.hpp"
#include "attention_balancer/executor/openmp.hpp"
#include "attention_balancer/executor/sequential.hpp"
#include "attention_balancer/mask/masks.hpp"
#include "attention_balancer/score/modifiers.hpp"
#include "attention_balancer/softmax/normalizers.hpp"
#include "attention_balancer/tensor/matrix.hpp"
#include "attention_balancer/tensor/tensor_view.hpp"
#include "attention_balancer/version.hpp"
