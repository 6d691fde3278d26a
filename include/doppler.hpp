/*
 * Doppler for C++17: owners for the handles of doppler.h, exceptions for its statuses, std::function for its callbacks. Header only.
 *
 * Context, Model, Lora and Session can be moved, not copied, and may be destroyed in any order. Threads are as in doppler.h: one at a time for each
 * Session (cancel() from any), everything else from any. An exception that leaves a callback ends the call it was called from, which
 * then throws it; it does not travel through the library.
 */
#ifndef DOPPLER_HPP
#define DOPPLER_HPP

#include "doppler.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace doppler {

/** A status that is not OK, and its text. */
class Error : public std::runtime_error {
  public:
    Error(doppler_status status, const std::string &text) : std::runtime_error(text), status_(status) {}
    /** The status, for programs; what() has the text, for people. */
    doppler_status status() const noexcept { return status_; }
    /** The status as text, such as "DOPPLER_STATUS_IO". */
    const char *status_name() const noexcept { return doppler_status_name(status_); }

  private:
    doppler_status status_;
};

/** Throws unless the status is OK. */
inline void check(doppler_status status) {
    if (status == DOPPLER_STATUS_OK) {
        return;
    }
    std::string text(doppler_last_error(nullptr, 0), '\0');
    doppler_last_error(&text[0], text.size());
    text.pop_back();
    throw Error(status, text);
}

/** Version of the library in use. */
inline std::string version() { return doppler_version_string(); }

/** One token as it arrives; valid during the callback. */
struct TokenEvent {
    std::string_view text; /**< whole UTF-8 characters, possibly none */
    std::uint32_t token;   /**< DOPPLER_NONE in an event that only brings more text */
    std::uint32_t index;   /**< from 0 */
    std::uint32_t kind;    /**< a doppler_segment_kind */
};

/** Hears each token; false ends the generation. */
using OnToken = std::function<bool(const TokenEvent &)>;
/** Hears each token of several generations, with the place of its session; false ends that session's generation. */
using OnManyTokens = std::function<bool(std::size_t, const TokenEvent &)>;
/** Hears bytes done and bytes in all; false ends the load. */
using OnProgress = std::function<bool(std::uint64_t, std::uint64_t)>;

/** One message of a conversation. */
struct Message {
    std::string role;
    std::string content;
};

/** How conversations are rendered; what is empty is left to the model. */
struct ChatOptions {
    std::string chat_template; /**< a name, or a Jinja template */
    std::string tools;         /**< a JSON array */
    std::string variables;     /**< a JSON object */

    /** For functions of doppler.h; it points into this object. */
    doppler_chat_options raw() const {
        doppler_chat_options options;
        check(doppler_chat_options_init(&options, sizeof options));
        options.chat_template = chat_template.empty() ? nullptr : chat_template.c_str();
        options.tools = tools.empty() ? nullptr : tools.c_str();
        options.variables = variables.empty() ? nullptr : variables.c_str();
        return options;
    }
};

/** doppler_context_options with their defaults. */
struct ContextOptions : doppler_context_options {
    ContextOptions() : doppler_context_options() {
        check(doppler_context_options_init(this, sizeof(doppler_context_options)));
    }
};

/** doppler_model_options with their defaults; on_progress belongs to the wrapper. */
struct ModelOptions : doppler_model_options {
    ModelOptions() : doppler_model_options() { check(doppler_model_options_init(this, sizeof(doppler_model_options))); }
};

class Model;

/** doppler_session_options with their defaults. */
struct SessionOptions : doppler_session_options {
    SessionOptions() : doppler_session_options() {
        check(doppler_session_options_init(this, sizeof(doppler_session_options)));
    }
    /** Verifies what followed the last tokens where they stood before: at most `longest` of them are looked for. 0: the defaults. */
    SessionOptions &draft_by_lookup(std::uint32_t longest = 0, std::uint32_t most = 0) {
        drafter = DOPPLER_DRAFTER_LOOKUP;
        ngram_max = longest;
        max_draft = most;
        return *this;
    }
    /** Verifies what a smaller model of the same vocabulary drafts; the session keeps it. */
    SessionOptions &draft_by_model(const Model &model, std::uint32_t most = 0);
};

/** doppler_guard with the values of a preset. */
struct Guard : doppler_guard {
    explicit Guard(std::uint32_t preset = DOPPLER_GUARD_PRESET_PRODUCTION) : doppler_guard() {
        check(doppler_guard_init(this, sizeof(doppler_guard), preset));
    }
};

/** What a probe looks at: `raw` has every number, the names of the points stand beside it. */
struct ProbeOptions {
    ProbeOptions() : raw() { check(doppler_probe_options_init(&raw, sizeof raw)); }
    doppler_probe_options raw;       /**< its `points` are set from the list below */
    std::vector<std::string> points; /**< none: all */
};

/** How to generate: `raw` has every number, the lists stand beside it. */
struct GenerateOptions {
    GenerateOptions() : raw() { check(doppler_generate_options_init(&raw, sizeof raw)); }
    doppler_generate_options raw;               /**< its `stop` and `logit_bias` are set from the lists below */
    std::vector<std::string> stop;              /**< texts that end the generation */
    std::vector<doppler_logit_bias> logit_bias; /**< added to logits */
};

/** doppler_choose_options with their defaults. */
struct ChooseOptions : doppler_choose_options {
    ChooseOptions() : doppler_choose_options() {
        check(doppler_choose_options_init(this, sizeof(doppler_choose_options)));
    }
};

/** doppler_embed_options with their defaults. */
struct EmbedOptions : doppler_embed_options {
    EmbedOptions() : doppler_embed_options() { check(doppler_embed_options_init(this, sizeof(doppler_embed_options))); }
};

/** Continuations' scores, and the place of the best one. */
struct Choice {
    std::uint32_t best;
    std::vector<doppler_score> scores;
};

/** A reply, and how it went. */
struct Generated {
    std::string text;
    doppler_generate_result result;
};

namespace detail {

template <typename Function> struct Call {
    const Function &function;
    std::string *text;
    std::exception_ptr thrown;
};

extern "C" inline int doppler_hpp_on_progress(void *user, std::uint64_t done, std::uint64_t total) {
    auto &call = *static_cast<Call<OnProgress> *>(user);
    try {
        return call.function(done, total) ? 0 : 1;
    } catch (...) {
        call.thrown = std::current_exception();
        return 1;
    }
}

extern "C" inline int doppler_hpp_on_token(void *user, const doppler_token_event *event) {
    auto &call = *static_cast<Call<OnToken> *>(user);
    try {
        const std::string_view text(event->text, event->text_bytes);
        call.text->append(text);
        return !call.function || call.function(TokenEvent{text, event->token, event->index, event->kind}) ? 0 : 1;
    } catch (...) {
        call.thrown = std::current_exception();
        return 1;
    }
}

struct ManyCall {
    const OnManyTokens &function;
    std::vector<Generated> *generated;
    std::exception_ptr thrown;
};

extern "C" inline int doppler_hpp_on_many_tokens(void *user, std::size_t session, const doppler_token_event *event) {
    auto &call = *static_cast<ManyCall *>(user);
    try {
        const std::string_view text(event->text, event->text_bytes);
        (*call.generated)[session].text.append(text);
        const bool go_on =
            !call.function || call.function(session, TokenEvent{text, event->token, event->index, event->kind});
        // What was thrown for one ends all.
        return go_on && !call.thrown ? 0 : 1;
    } catch (...) {
        call.thrown = std::current_exception();
        return 1;
    }
}

/** Options with their lists in place. */
class RawOptions {
  public:
    explicit RawOptions(const GenerateOptions &options) : raw_(options.raw) {
        stop_.reserve(options.stop.size());
        for (const auto &s : options.stop) {
            stop_.push_back(s.c_str());
        }
        raw_.stop = stop_.data();
        raw_.n_stop = stop_.size();
        raw_.logit_bias = options.logit_bias.data();
        raw_.n_logit_bias = options.logit_bias.size();
    }
    RawOptions(RawOptions &&) = default;
    const doppler_generate_options *get() const { return &raw_; }

  private:
    std::vector<const char *> stop_;
    doppler_generate_options raw_;
};

/** A text of unknown length: asks for the size, then for the text. */
template <typename Fill> std::string text_from(Fill fill) {
    std::size_t needed = 0;
    check(fill(nullptr, 0, &needed));
    std::string text(needed, '\0');
    check(fill(&text[0], text.size(), &needed));
    text.resize(needed - 1);
    return text;
}

/** A list of unknown length: asks for the length, then for the list. */
template <typename Item, typename Fill> std::vector<Item> list_from(Fill fill) {
    std::size_t needed = 0;
    check(fill(nullptr, 0, &needed));
    std::vector<Item> list(needed);
    if (needed != 0) {
        check(fill(list.data(), list.size(), &needed));
        list.resize(needed);
    }
    return list;
}

inline std::vector<const char *> raw_texts(const std::vector<std::string> &texts) {
    std::vector<const char *> raw;
    raw.reserve(texts.size());
    for (const auto &t : texts) {
        raw.push_back(t.c_str());
    }
    return raw;
}

inline std::vector<doppler_message> raw_messages(const std::vector<Message> &messages) {
    std::vector<doppler_message> raw;
    raw.reserve(messages.size());
    for (const auto &m : messages) {
        raw.push_back(doppler_message{m.role.c_str(), m.content.c_str()});
    }
    return raw;
}

template <typename Handle, doppler_status (*destroy)(Handle *)> struct Destroy {
    void operator()(Handle *handle) const noexcept { destroy(handle); }
};
template <typename Handle, doppler_status (*destroy)(Handle *)>
using Owner = std::unique_ptr<Handle, Destroy<Handle, destroy>>;

} // namespace detail

/** A LoRA adapter of a model. */
class Lora {
  public:
    /** Takes a handle over. */
    explicit Lora(doppler_lora *handle) noexcept : handle_(handle) {}
    /** The handle, for functions of doppler.h; it stays with this object. */
    doppler_lora *get() const noexcept { return handle_.get(); }

    /** doppler_lora_get_info() */
    doppler_lora_info info() const {
        doppler_lora_info out{};
        out.struct_size = sizeof out;
        check(doppler_lora_get_info(get(), &out));
        return out;
    }

  private:
    detail::Owner<doppler_lora, doppler_lora_destroy> handle_;
};

/** An adapter in use, with its factor. */
struct LoraUse {
    const Lora &lora;
    float scale = 1.0f;
};

/** A conversation with a model. */
class Session {
  public:
    /** Takes a handle over. */
    explicit Session(doppler_session *handle) noexcept : handle_(handle) {}
    /** The handle, for functions of doppler.h; it stays with this object. */
    doppler_session *get() const noexcept { return handle_.get(); }

    /** doppler_session_append_text() */
    std::uint32_t append(std::string_view text, bool parse_special = false) {
        std::uint32_t added = 0;
        check(doppler_session_append_text(get(), text.data(), text.size(), parse_special, &added));
        return added;
    }
    /** doppler_session_append_tokens() */
    void append(const std::vector<std::uint32_t> &tokens) {
        check(doppler_session_append_tokens(get(), tokens.data(), tokens.size()));
    }
    /** doppler_session_append_messages() */
    std::uint32_t append(const std::vector<Message> &messages, bool add_generation_prompt = true) {
        const auto raw = detail::raw_messages(messages);
        std::uint32_t added = 0;
        check(doppler_session_append_messages(get(), raw.data(), raw.size(), add_generation_prompt, &added));
        return added;
    }
    /** doppler_session_append_messages_json() */
    std::uint32_t append_json(std::string_view messages, bool add_generation_prompt = true) {
        std::uint32_t added = 0;
        check(doppler_session_append_messages_json(get(), messages.data(), messages.size(), add_generation_prompt,
                                                   &added));
        return added;
    }
    /** doppler_session_set_chat_options() */
    void set_chat_options(const ChatOptions &options = ChatOptions()) {
        const auto raw = options.raw();
        check(doppler_session_set_chat_options(get(), &raw));
    }
    /** doppler_session_generate(); throws what `on_token` threw. */
    Generated generate(const GenerateOptions &options = GenerateOptions(), const OnToken &on_token = OnToken()) {
        const detail::RawOptions raw(options);
        Generated out{std::string(), doppler_generate_result()};
        out.result.struct_size = sizeof out.result;
        detail::Call<OnToken> call{on_token, &out.text, nullptr};
        const auto status =
            doppler_session_generate(get(), raw.get(), detail::doppler_hpp_on_token, &call, &out.result);
        if (call.thrown) {
            std::rethrow_exception(call.thrown);
        }
        check(status);
        return out;
    }
    /** doppler_session_eval(): tokens.size() rows of n_vocab logits. */
    std::vector<float> eval(const std::vector<std::uint32_t> &tokens, std::uint32_t n_vocab) {
        std::vector<float> logits(tokens.size() * n_vocab + 1);
        check(doppler_session_eval(get(), tokens.data(), tokens.size(), logits.data(), logits.size() - 1));
        logits.pop_back();
        return logits;
    }
    /** doppler_session_choose() */
    Choice choose(const std::vector<std::string> &continuations, const ChooseOptions &options = ChooseOptions()) {
        const auto raw = detail::raw_texts(continuations);
        Choice out{0, std::vector<doppler_score>(continuations.size())};
        check(doppler_session_choose(get(), raw.data(), raw.size(), &options, out.scores.data(), &out.best));
        return out;
    }
    /** doppler_session_get_tokens() */
    std::vector<std::uint32_t> tokens() const {
        return detail::list_from<std::uint32_t>([this](std::uint32_t *to, std::size_t capacity, std::size_t *needed) {
            return doppler_session_get_tokens(get(), to, capacity, needed);
        });
    }
    /** doppler_session_get_length() */
    std::uint32_t length() const {
        std::uint32_t n = 0;
        check(doppler_session_get_length(get(), &n));
        return n;
    }
    /** doppler_session_set_loras() */
    void set_loras(const std::vector<LoraUse> &uses, bool keep_cache = false) {
        std::vector<doppler_lora *> loras;
        std::vector<float> scales;
        for (const auto &use : uses) {
            loras.push_back(use.lora.get());
            scales.push_back(use.scale);
        }
        check(doppler_session_set_loras(get(), loras.data(), scales.data(), loras.size(), keep_cache));
    }
    /** doppler_session_reset() */
    void reset() { check(doppler_session_reset(get())); }
    /** doppler_session_truncate() */
    void truncate(std::uint32_t n_tokens) { check(doppler_session_truncate(get(), n_tokens)); }
    /** doppler_session_fork() */
    Session fork() const {
        doppler_session *forked = nullptr;
        check(doppler_session_fork(get(), &forked));
        return Session(forked);
    }
    /** doppler_session_snapshot() */
    std::vector<std::uint8_t> snapshot() const {
        std::size_t size = 0;
        check(doppler_session_snapshot(get(), nullptr, 0, &size));
        std::vector<std::uint8_t> bytes(size);
        check(doppler_session_snapshot(get(), bytes.data(), bytes.size(), &size));
        return bytes;
    }
    /** doppler_session_restore() */
    void restore(const std::vector<std::uint8_t> &bytes) {
        check(doppler_session_restore(get(), bytes.data(), bytes.size()));
    }
    /** doppler_session_cancel(): any thread. */
    void cancel() const { check(doppler_session_cancel(get())); }
    /** doppler_session_get_stats() */
    doppler_session_stats stats() const {
        doppler_session_stats out{};
        out.struct_size = sizeof out;
        check(doppler_session_get_stats(get(), &out));
        return out;
    }
    /** doppler_session_reset_stats() */
    void reset_stats() { check(doppler_session_reset_stats(get())); }
    /** doppler_session_set_guard() */
    void set_guard(const doppler_guard &guard) { check(doppler_session_set_guard(get(), &guard)); }
    /** doppler_session_set_guard(): back under the context's. */
    void clear_guard() { check(doppler_session_set_guard(get(), nullptr)); }
    /** doppler_session_get_submits() */
    std::vector<doppler_submit_stats> submits() const {
        return detail::list_from<doppler_submit_stats>(
            [this](doppler_submit_stats *to, std::size_t capacity, std::size_t *needed) {
                return doppler_session_get_submits(get(), to, capacity, needed);
            });
    }
    /** doppler_session_estimate_batching() */
    doppler_batching_saving estimate_batching(std::uint32_t tokens_per_submit) const {
        doppler_batching_saving out{};
        check(doppler_session_estimate_batching(get(), tokens_per_submit, &out));
        return out;
    }
    /** doppler_session_get_summary() */
    std::string summary() const {
        return detail::text_from([this](char *to, std::size_t capacity, std::size_t *needed) {
            return doppler_session_get_summary(get(), to, capacity, needed);
        });
    }
    /** doppler_session_set_probe() */
    void set_probe(const ProbeOptions &options) {
        std::vector<const char *> points;
        points.reserve(options.points.size());
        for (const auto &p : options.points) {
            points.push_back(p.c_str());
        }
        doppler_probe_options raw = options.raw;
        raw.points = points.data();
        raw.n_points = points.size();
        check(doppler_session_set_probe(get(), &raw));
    }
    /** doppler_session_set_probe(): looks at nothing any more. */
    void clear_probe() { check(doppler_session_set_probe(get(), nullptr)); }
    /** doppler_session_take_readings() */
    std::vector<doppler_probe_reading> take_readings() {
        return detail::list_from<doppler_probe_reading>(
            [this](doppler_probe_reading *to, std::size_t capacity, std::size_t *needed) {
                return doppler_session_take_readings(get(), to, capacity, needed);
            });
    }

  private:
    detail::Owner<doppler_session, doppler_session_destroy> handle_;
};

/**
 * doppler_generate_many(): `sessions[i]` with `options[i]`, or with defaults where there are fewer options. Throws what `on_token` threw. Where a
 * session fails it throws too, after the others have run to their ends; with `statuses` it fills them in instead.
 */
inline std::vector<Generated> generate_many(const std::vector<Session *> &sessions,
                                            const std::vector<GenerateOptions> &options = {},
                                            const OnManyTokens &on_token = OnManyTokens(),
                                            std::vector<doppler_status> *statuses = nullptr) {
    const std::size_t n = sessions.size();
    std::vector<Generated> out(n, Generated{std::string(), doppler_generate_result()});
    std::vector<detail::RawOptions> raw;
    raw.reserve(n);
    std::vector<doppler_session *> handles;
    std::vector<const doppler_generate_options *> chosen(n, nullptr);
    std::vector<doppler_generate_result *> results;
    for (std::size_t i = 0; i < n; i++) {
        handles.push_back(sessions[i]->get());
        out[i].result.struct_size = sizeof out[i].result;
        results.push_back(&out[i].result);
        if (i < options.size()) {
            raw.emplace_back(options[i]);
            chosen[i] = raw.back().get();
        }
    }
    // What no session answers for is found by the status of none.
    std::vector<doppler_status> each(n, DOPPLER_STATUS_OK);
    detail::ManyCall call{on_token, &out, nullptr};
    const auto status = doppler_generate_many(handles.data(), n, chosen.data(), detail::doppler_hpp_on_many_tokens,
                                              &call, results.data(), each.data());
    if (call.thrown) {
        std::rethrow_exception(call.thrown);
    }
    bool one_failed = false;
    for (const auto s : each) {
        one_failed = one_failed || s != DOPPLER_STATUS_OK;
    }
    if (!statuses || !one_failed) {
        check(status);
    }
    if (statuses) {
        *statuses = each;
    }
    return out;
}

/** A loaded model. */
class Model {
  public:
    /** Takes a handle over. */
    explicit Model(doppler_model *handle) noexcept : handle_(handle) {}
    /** The handle, for functions of doppler.h; it stays with this object. */
    doppler_model *get() const noexcept { return handle_.get(); }

    /** doppler_session_create() */
    Session session(const SessionOptions &options = SessionOptions()) const {
        doppler_session *session = nullptr;
        check(doppler_session_create(get(), &options, &session));
        return Session(session);
    }
    /** doppler_lora_load() */
    Lora load_lora(const std::string &path) const {
        doppler_lora *lora = nullptr;
        check(doppler_lora_load(get(), path.c_str(), &lora));
        return Lora(lora);
    }
    /** doppler_model_get_info() */
    doppler_model_info info() const {
        doppler_model_info out{};
        out.struct_size = sizeof out;
        check(doppler_model_get_info(get(), &out));
        return out;
    }
    /** doppler_model_get_stats() */
    doppler_model_stats stats() const {
        doppler_model_stats out{};
        out.struct_size = sizeof out;
        check(doppler_model_get_stats(get(), &out));
        return out;
    }
    /** doppler_model_tokenize() */
    std::vector<std::uint32_t> tokenize(std::string_view text, bool add_special = false,
                                        bool parse_special = false) const {
        return detail::list_from<std::uint32_t>([&](std::uint32_t *to, std::size_t capacity, std::size_t *needed) {
            return doppler_model_tokenize(get(), text.data(), text.size(), add_special, parse_special, to, capacity,
                                          needed);
        });
    }
    /** doppler_model_detokenize() */
    std::string detokenize(const std::vector<std::uint32_t> &tokens, bool render_special = false) const {
        return detail::text_from([&](char *to, std::size_t capacity, std::size_t *needed) {
            return doppler_model_detokenize(get(), tokens.data(), tokens.size(), render_special, to, capacity, needed);
        });
    }
    /** doppler_model_embed(): the rows of all texts, one after the other, `n_embd` numbers each. */
    std::vector<float> embed(const std::vector<std::string> &texts, const EmbedOptions &options = EmbedOptions()) const {
        const auto raw = detail::raw_texts(texts);
        return detail::list_from<float>([&](float *to, std::size_t capacity, std::size_t *needed) {
            return doppler_model_embed(get(), raw.data(), raw.size(), &options, nullptr, to, capacity, needed);
        });
    }
    /** doppler_model_token_bytes() */
    std::string token_bytes(std::uint32_t token, bool render_special = false) const {
        return detail::text_from([&](char *to, std::size_t capacity, std::size_t *needed) {
            return doppler_model_token_bytes(get(), token, render_special, to, capacity, needed);
        });
    }
    /** doppler_model_token_text() */
    std::string token_text(std::uint32_t token) const {
        return detail::text_from([&](char *to, std::size_t capacity, std::size_t *needed) {
            return doppler_model_token_text(get(), token, to, capacity, needed);
        });
    }
    /** doppler_model_is_end_of_generation() */
    bool is_end_of_generation(std::uint32_t token) const {
        std::uint32_t ends = 0;
        check(doppler_model_is_end_of_generation(get(), token, &ends));
        return ends != 0;
    }
    /** doppler_model_format_chat() */
    std::string format_chat(const std::vector<Message> &messages, bool add_generation_prompt = true) const {
        const auto raw = detail::raw_messages(messages);
        return detail::text_from([&](char *to, std::size_t capacity, std::size_t *needed) {
            return doppler_model_format_chat(get(), raw.data(), raw.size(), add_generation_prompt, to, capacity,
                                             needed);
        });
    }
    /** doppler_model_render_chat(); messages are JSON. */
    std::string render_chat(std::string_view messages, const ChatOptions &options = ChatOptions(),
                            bool add_generation_prompt = true) const {
        const auto raw = options.raw();
        return detail::text_from([&](char *to, std::size_t capacity, std::size_t *needed) {
            return doppler_model_render_chat(get(), messages.data(), messages.size(), &raw, add_generation_prompt, to,
                                             capacity, needed);
        });
    }

  private:
    detail::Owner<doppler_model, doppler_model_destroy> handle_;
};

inline SessionOptions &SessionOptions::draft_by_model(const Model &model, std::uint32_t most) {
    drafter = DOPPLER_DRAFTER_MODEL;
    draft_model = model.get();
    max_draft = most;
    return *this;
}

/** An open device. */
class Context {
  public:
    /** Opens a device. */
    explicit Context(const ContextOptions &options = ContextOptions()) {
        doppler_context *context = nullptr;
        check(doppler_context_create(&options, &context));
        handle_.reset(context);
    }
    /** Takes a handle over. */
    explicit Context(doppler_context *handle) noexcept : handle_(handle) {}
    /** The handle, for functions of doppler.h; it stays with this object. */
    doppler_context *get() const noexcept { return handle_.get(); }

    /** doppler_model_load(); throws what `on_progress` threw. */
    Model load(const std::string &path, ModelOptions options = ModelOptions(),
               const OnProgress &on_progress = OnProgress()) const {
        detail::Call<OnProgress> call{on_progress, nullptr, nullptr};
        if (on_progress) {
            options.on_progress = detail::doppler_hpp_on_progress;
            options.progress_user = &call;
        }
        doppler_model *model = nullptr;
        const auto status = doppler_model_load(get(), path.c_str(), &options, &model);
        if (call.thrown) {
            std::rethrow_exception(call.thrown);
        }
        check(status);
        return Model(model);
    }
    /** doppler_context_get_adapter_info() */
    doppler_adapter_info adapter() const {
        doppler_adapter_info out{};
        out.struct_size = sizeof out;
        check(doppler_context_get_adapter_info(get(), &out));
        return out;
    }
    /** doppler_context_get_stats() */
    doppler_context_stats stats() const {
        doppler_context_stats out{};
        out.struct_size = sizeof out;
        check(doppler_context_get_stats(get(), &out));
        return out;
    }
    /** doppler_context_reset_stats() */
    void reset_stats() { check(doppler_context_reset_stats(get())); }
    /** doppler_context_set_guard() */
    void set_guard(const doppler_guard &guard) { check(doppler_context_set_guard(get(), &guard)); }
    /** doppler_context_get_guard() */
    doppler_guard guard() const {
        doppler_guard out{};
        out.struct_size = sizeof out;
        check(doppler_context_get_guard(get(), &out));
        return out;
    }
    /** doppler_context_get_submits() */
    std::vector<doppler_submit_stats> submits() const {
        return detail::list_from<doppler_submit_stats>(
            [this](doppler_submit_stats *to, std::size_t capacity, std::size_t *needed) {
                return doppler_context_get_submits(get(), to, capacity, needed);
            });
    }
    /** doppler_context_get_pool() */
    std::vector<doppler_pool_stats> pool() const {
        return detail::list_from<doppler_pool_stats>(
            [this](doppler_pool_stats *to, std::size_t capacity, std::size_t *needed) {
                return doppler_context_get_pool(get(), to, capacity, needed);
            });
    }
    /** doppler_context_get_summary() */
    std::string summary() const {
        return detail::text_from([this](char *to, std::size_t capacity, std::size_t *needed) {
            return doppler_context_get_summary(get(), to, capacity, needed);
        });
    }
    /** doppler_context_purge_caches() */
    doppler_purged purge_caches() {
        doppler_purged out{};
        check(doppler_context_purge_caches(get(), &out));
        return out;
    }
    /** doppler_context_start_profile() */
    void start_profile() { check(doppler_context_start_profile(get())); }
    /** doppler_context_stop_profile() */
    doppler_profile_info stop_profile() {
        doppler_profile_info out{};
        check(doppler_context_stop_profile(get(), &out));
        return out;
    }
    /** doppler_context_get_profile() */
    std::vector<doppler_profile_row> profile() const {
        return detail::list_from<doppler_profile_row>(
            [this](doppler_profile_row *to, std::size_t capacity, std::size_t *needed) {
                return doppler_context_get_profile(get(), to, capacity, needed);
            });
    }
    /** doppler_context_get_profile_text() */
    std::string profile_text() const {
        return detail::text_from([this](char *to, std::size_t capacity, std::size_t *needed) {
            return doppler_context_get_profile_text(get(), to, capacity, needed);
        });
    }
    /** doppler_context_write_trace() */
    void write_trace(const std::string &path) const { check(doppler_context_write_trace(get(), path.c_str())); }

  private:
    detail::Owner<doppler_context, doppler_context_destroy> handle_;
};

/** The adapters of this machine, in the order of their indices. */
inline std::vector<doppler_adapter_info> adapters() {
    std::uint32_t n = 0;
    check(doppler_adapter_count(&n));
    std::vector<doppler_adapter_info> list(n);
    for (std::uint32_t i = 0; i < n; ++i) {
        list[i].struct_size = sizeof list[i];
        check(doppler_adapter_get_info(i, &list[i]));
    }
    return list;
}

} // namespace doppler

#endif /* DOPPLER_HPP */
