// A conversation in the terminal: chat MODEL.gguf [system prompt]. Lines from standard input are the user's turns; an empty line ends it.
#include <doppler.hpp>

#include <iostream>
#include <string>

int main(int argc, char **argv) try {
    if (argc < 2) {
        std::cerr << "usage: " << argv[0] << " MODEL.gguf [system prompt]\n";
        return 2;
    }
    doppler::ContextOptions options;
    options.allow_software = 1;
    const doppler::Context context(options);
    const doppler::Model model = context.load(argv[1]);
    doppler::Session session = model.session();
    std::cout << "[" << model.info().name << " on " << context.adapter().name << "]\n";

    std::vector<doppler::Message> messages;
    if (argc > 2) {
        messages.push_back({"system", argv[2]});
    }
    doppler::GenerateOptions generation;
    generation.raw.temperature = 0.7f;
    generation.raw.top_p = 0.9f;
    generation.raw.max_tokens = 256;
    std::string line;
    while (std::cout << "> " << std::flush, std::getline(std::cin, line) && !line.empty()) {
        messages.push_back({"user", line});
        session.append(messages);
        messages.clear();
        session.generate(generation, [](const doppler::TokenEvent &event) {
            std::cout << event.text << std::flush;
            return true;
        });
        std::cout << "\n";
    }
    const auto stats = session.stats();
    std::cout << "\n[" << stats.generated_tokens << " tokens, "
              << (stats.decode_ns == 0 ? 0.0 : static_cast<double>(stats.decode_tokens) * 1e9 / static_cast<double>(stats.decode_ns))
              << " tokens/s]\n";
    return 0;
} catch (const doppler::Error &e) {
    std::cerr << e.status_name() << ": " << e.what() << "\n";
    return 1;
} catch (const std::exception &e) {
    std::cerr << e.what() << "\n";
    return 1;
}
