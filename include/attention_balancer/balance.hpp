#pragma once
// The right half: evidence to saliency, shares, units, state and execution. Standard library only, and quick to
// include.

#include "attention_balancer/allocate/apportion.hpp"
#include "attention_balancer/allocate/concepts.hpp"
#include "attention_balancer/allocate/nested.hpp"
#include "attention_balancer/allocate/select.hpp"
#include "attention_balancer/allocate/selection.hpp"
#include "attention_balancer/allocate/shares.hpp"
#include "attention_balancer/attention/evidence.hpp"
#include "attention_balancer/balancer/feedback.hpp"
#include "attention_balancer/balancer/report.hpp"
#include "attention_balancer/balancer/resource_balancer.hpp"
#include "attention_balancer/core/error.hpp"
#include "attention_balancer/core/types.hpp"
#include "attention_balancer/execute/token_budget.hpp"
#include "attention_balancer/saliency/reducers.hpp"
#include "attention_balancer/version.hpp"
