// The C++ wrapper: owners move, statuses and exceptions of callbacks are thrown on this side.
#include <doppler.hpp>

#include <cstdio>
#include <cstdlib>
#include <type_traits>

#define REQUIRE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                               \
            std::exit(1);                                                                                              \
        }                                                                                                              \
    } while (0)

static_assert(!std::is_copy_constructible<doppler::Session>::value, "sessions are not copied");
static_assert(std::is_nothrow_move_constructible<doppler::Session>::value, "sessions are moved");

template <typename Body> doppler_status status_of(Body body) {
    try {
        body();
    } catch (const doppler::Error &e) {
        REQUIRE(*e.what() != '\0');
        return e.status();
    }
    return DOPPLER_STATUS_OK;
}

int main(int argc, char **argv) {
    REQUIRE(argc == 3);
    REQUIRE(!doppler::adapters().empty() && !doppler::version().empty());
    doppler::ContextOptions options;
    options.allow_software = 1;
    doppler::Context context(options);
    REQUIRE(status_of([&] { context.load("/no/such/file.gguf"); }) == DOPPLER_STATUS_IO);

    // What a progress callback throws comes out here.
    bool thrown = false;
    try {
        context.load(argv[1], {}, [](std::uint64_t, std::uint64_t) -> bool { throw 42; });
    } catch (int n) {
        thrown = n == 42;
    }
    REQUIRE(thrown);
    REQUIRE(status_of([&] { context.load(argv[1], {}, [](std::uint64_t, std::uint64_t) { return false; }); }) ==
            DOPPLER_STATUS_CANCELLED);

    doppler::Session session(nullptr);
    {
        doppler::Model model = context.load(argv[1]);
        const auto tokens = model.tokenize("Hello there");
        REQUIRE(model.detokenize(tokens) == "Hello there" && model.is_end_of_generation(2));
        REQUIRE(model.token_text(2) == "<|im_end|>" && model.token_bytes(2).empty() && model.tokenize("").empty());
        REQUIRE(!model.format_chat({{"user", "Hi!"}}).empty());
        doppler::ChatOptions brief;
        brief.chat_template = "{{ x }}{{ tools | length }}";
        brief.tools = "[1]";
        brief.variables = "{\"x\": 7}";
        REQUIRE(model.render_chat("[]", brief) == "71");
        doppler::SessionOptions drafts;
        REQUIRE(model.session(drafts.draft_by_lookup(3)).stats().verifications == 0 && drafts.ngram_max == 3);
        REQUIRE(model.session(drafts.draft_by_model(model, 7)).stats().n_tokens == 0 && drafts.max_draft == 7);
        session = model.session();
        session.set_chat_options(brief);
        REQUIRE(session.append_json("[]") > 0);
        session.set_chat_options();
        session.reset();
        REQUIRE(session.eval(tokens, model.info().n_vocab).size() == tokens.size() * 2048);
        REQUIRE(model.embed({"a mouse", "a cat"}).size() == 2 * model.info().n_embd);
        session.reset();
    }
    REQUIRE(status_of([&] { session.generate(); }) == DOPPLER_STATUS_INVALID_STATE);

    doppler::GenerateOptions greedy;
    greedy.raw.temperature = 0;
    greedy.raw.max_tokens = 24;
    session.append({{"user", "Who are you?"}});
    std::string streamed;
    const auto reply = session.generate(greedy, [&](const doppler::TokenEvent &e) {
        streamed += e.text;
        return true;
    });
    REQUIRE(!reply.text.empty() && reply.text == streamed && reply.result.n_tokens > 0);

    // Continuations; the session is as before.
    const auto length = session.length();
    doppler::ChooseOptions by_token;
    by_token.ranking = DOPPLER_RANKING_MEAN;
    const auto choice = session.choose({"Yes, I am.", "No"}, by_token);
    REQUIRE(choice.scores.size() == 2 && choice.best < 2 && session.length() == length);
    REQUIRE(choice.scores[choice.best].mean >= choice.scores[1 - choice.best].mean);
    REQUIRE(status_of([&] { session.choose({}); }) == DOPPLER_STATUS_INVALID_ARGUMENT);

    // A fork and a restored session go on alike.
    const auto bytes = session.snapshot();
    doppler::Session fork = session.fork();
    session.append({{"user", "And who am I?"}});
    const auto next = session.generate(greedy).text;
    fork.append({{"user", "And who am I?"}});
    REQUIRE(fork.generate(greedy).text == next);
    fork.reset();
    fork.restore(bytes);
    fork.append({{"user", "And who am I?"}});
    REQUIRE(fork.generate(greedy).text == next);
    REQUIRE(status_of([&] { fork.restore({1, 2, 3}); }) == DOPPLER_STATUS_INVALID_ARGUMENT);

    session.reset();
    session.append({{"user", "Who are you?"}});
    thrown = false;
    try {
        session.generate(greedy, [&](const doppler::TokenEvent &) -> bool { throw std::runtime_error("mine"); });
    } catch (const std::runtime_error &e) {
        thrown = std::string(e.what()) == "mine";
    }
    REQUIRE(thrown && session.length() > 0);

    // Several at once: as each alone, whatever one of them comes to.
    {
        doppler::Session other = session.fork(), empty = session.fork();
        session.reset();
        other.reset();
        empty.reset();
        session.append({{"user", "Who are you?"}});
        other.append({{"user", "Who are you?"}});
        std::vector<doppler_status> statuses;
        std::size_t heard = 0;
        const auto both = doppler::generate_many({&session, &empty, &other}, {greedy, greedy, greedy},
                                                 [&](std::size_t i, const doppler::TokenEvent &) {
                                                     heard++;
                                                     return i != 1;
                                                 },
                                                 &statuses);
        REQUIRE(both[0].text == both[2].text && !both[0].text.empty() && both[1].text.empty());
        REQUIRE(heard >= both[0].result.n_tokens + both[2].result.n_tokens);
        REQUIRE(statuses[0] == DOPPLER_STATUS_OK && statuses[1] == DOPPLER_STATUS_INVALID_STATE);
        REQUIRE(status_of([&] { doppler::generate_many({&empty}); }) == DOPPLER_STATUS_INVALID_STATE);
        REQUIRE(doppler::generate_many({}).empty());
        thrown = false;
        try {
            doppler::generate_many({&session, &other}, {greedy, greedy},
                                   [](std::size_t, const doppler::TokenEvent &) -> bool { throw 3; });
        } catch (int e) {
            thrown = e == 3;
        }
        REQUIRE(thrown);
    }

    greedy.stop = {reply.text.substr(4, 4)};
    session.reset();
    session.append({{"user", "Who are you?"}});
    const auto cut = session.generate(greedy);
    REQUIRE(cut.result.reason == DOPPLER_FINISH_REASON_STOP_STRING && reply.text.rfind(cut.text, 0) == 0);
    REQUIRE(session.stats().generated_tokens > 0 && context.stats().memory_total > 0);

    // Adapters: owners like the others.
    {
        const std::string path = argv[1];
        doppler::Model model = context.load(path);
        doppler::Session adapted = model.session();
        const auto asked = [&] {
            adapted.reset();
            adapted.append({{"user", "Who are you?"}});
            greedy.stop.clear();
            return adapted.generate(greedy).text;
        };
        const auto plain = asked();
        {
            const auto folder = path.substr(0, path.find("assets/hearth-5m")) + "tests/data/lora/hearth";
            doppler::Lora lora = model.load_lora(folder);
            REQUIRE(lora.info().rank == 2);
            adapted.set_loras({{lora}, {lora, -0.5f}});
        }
        REQUIRE(asked() != plain);
        adapted.set_loras({});
        REQUIRE(asked() == plain);
        REQUIRE(status_of([&] { model.load_lora("/no/such/adapter"); }) == DOPPLER_STATUS_IO);
    }

    // What was done, and a look inside.
    doppler::Guard guard(DOPPLER_GUARD_PRESET_PRODUCTION);
    guard.decode.readback_bytes_per_token = 1;
    session.set_guard(guard);
    REQUIRE(status_of([&] { session.generate(greedy); }) == DOPPLER_STATUS_GUARD);
    session.clear_guard();
    context.set_guard(doppler::Guard(DOPPLER_GUARD_PRESET_DEBUG));
    REQUIRE(context.guard().mode == doppler::Guard(DOPPLER_GUARD_PRESET_DEBUG).mode);
    REQUIRE(!session.submits().empty() && context.submits().size() >= session.submits().size());
    REQUIRE(session.summary().find("first token") != std::string::npos && !context.summary().empty());
    REQUIRE(context.pool().size() < 100);
    REQUIRE(session.estimate_batching(8).submits > 0);
    doppler::ProbeOptions probe;
    probe.points = {"logits"};
    session.set_probe(probe);
    greedy.stop.clear();
    greedy.raw.max_tokens = 2;
    session.reset();
    session.append({{"user", "Who are you?"}});
    const bool timed = status_of([&] { context.start_profile(); }) == DOPPLER_STATUS_OK;
    session.generate(greedy);
    REQUIRE(session.take_readings().size() == 2 && session.take_readings().empty());
    session.clear_probe();
    if (timed) {
        REQUIRE(context.stop_profile().dropped == 0);
        REQUIRE(!context.profile().empty() && !context.profile_text().empty());
    }
    REQUIRE(status_of([&] { context.write_trace("/no/such/folder/trace.json"); }) != DOPPLER_STATUS_OK);
    REQUIRE(context.purge_caches().pipelines > 0);

    doppler::Session moved = std::move(session);
    REQUIRE(session.get() == nullptr && moved.length() > 0);
    REQUIRE(status_of([&] { session.reset(); }) == DOPPLER_STATUS_NULL_POINTER);
    moved.truncate(1);
    REQUIRE(moved.tokens().size() == 1);
    return 0;
}
