#pragma once

namespace CLI {
class App;
}

namespace example {

/// Fills what the options of `app` are bound to. Ends the program after --help, with code 0, and after a wrong argument,
/// which is named on stderr, with another.
void parse(CLI::App& app, int argc, char** argv);

}  // namespace example
