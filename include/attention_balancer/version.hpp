#pragma once
// The one place that states the version. CMakeLists.txt reads these three lines.

#define ATTENTION_BALANCER_VERSION_MAJOR 0
#define ATTENTION_BALANCER_VERSION_MINOR 1
#define ATTENTION_BALANCER_VERSION_PATCH 0
