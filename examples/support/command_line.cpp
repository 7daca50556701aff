#include "command_line.hpp"

#include <CLI/CLI.hpp>
#include <cstdlib>

namespace example {

void parse(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
}

}  // namespace example
