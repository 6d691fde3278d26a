/* Files that are missing, empty, cut or bent: a status and a message that names the file; the process goes on. */
#include "check.h"

static char *bytes;
static size_t length;
static char path[4096];

static void read_all(const char *name) {
    FILE *f = fopen(name, "rb");
    REQUIRE(f != NULL);
    REQUIRE(fseek(f, 0, SEEK_END) == 0);
    length = (size_t)ftell(f);
    rewind(f);
    bytes = (char *)malloc(length);
    REQUIRE(bytes != NULL && fread(bytes, 1, length, f) == length);
    fclose(f);
}

static void write_start(size_t n) {
    FILE *f = fopen(path, "wb");
    REQUIRE(f != NULL && fwrite(bytes, 1, n, f) == n);
    REQUIRE(fclose(f) == 0);
}

/* Loads the written file without ahead-of-time compiling, gives the status. */
static doppler_status load(doppler_context *context, int must_fail) {
    doppler_model_options options;
    doppler_model *model = NULL;
    doppler_status status;
    OK(doppler_model_options_init(&options, sizeof options));
    options.prewarm = 0;
    options.n_ctx = 64;
    status = doppler_model_load(context, path, &options, &model);
    if (status == DOPPLER_STATUS_OK) {
        REQUIRE(!must_fail);
        OK(doppler_model_destroy(model));
        return status;
    }
    REQUIRE(model == NULL);
    REQUIRE(status != DOPPLER_STATUS_PANIC && status != DOPPLER_STATUS_INTERNAL && status != DOPPLER_STATUS_GPU);
    if (status == DOPPLER_STATUS_BAD_FILE || status == DOPPLER_STATUS_IO || status == DOPPLER_STATUS_UNSUPPORTED) {
        if (strstr(last_error(), "broken.gguf") == NULL) {
            fprintf(stderr, "no file name in: %s\n", last_error());
            exit(1);
        }
    }
    return status;
}

int main(int argc, char **argv) {
    doppler_context *context;
    doppler_model *model = NULL;
    uint32_t state = 12345;
    size_t cuts[12], n = 0, i;

    REQUIRE(argc == 3);
    REQUIRE(strlen(argv[2]) + 20 < sizeof path);
    sprintf(path, "%s/broken.gguf", argv[2]);
    read_all(argv[1]);
    context = open_context(DOPPLER_GUARD_MODE_OFF);

    remove(path);
    REQUIRE(load(context, 1) == DOPPLER_STATUS_IO);
    EXPECT(doppler_model_load(context, argv[2], NULL, &model), DOPPLER_STATUS_IO); /* a folder */
    write_start(0);
    REQUIRE(load(context, 1) == DOPPLER_STATUS_BAD_FILE);

    cuts[n++] = 1;
    cuts[n++] = 4;
    cuts[n++] = 8;
    cuts[n++] = 23;
    cuts[n++] = 24;
    cuts[n++] = 100;
    cuts[n++] = 1000;
    cuts[n++] = 40000;
    cuts[n++] = length / 3;
    cuts[n++] = length / 2;
    cuts[n++] = length - 4096;
    cuts[n++] = length - 1;
    for (i = 0; i < n; i++) {
        write_start(cuts[i]);
        REQUIRE(load(context, 1) == DOPPLER_STATUS_BAD_FILE);
    }

    /* Every byte of the fixed header: magic, version, number of tensors, number of keys. */
    for (i = 0; i < 24; i++) {
        bytes[i] = (char)(bytes[i] ^ 0x40);
        write_start(length);
        load(context, 1);
        bytes[i] = (char)(bytes[i] ^ 0x40);
    }
    /* Bits anywhere in keys, vocabulary and tensor table: some change only a name. */
    for (i = 0; i < 40; i++) {
        size_t at;
        char bit;
        state = state * 1664525u + 1013904223u;
        at = 24 + (state >> 8) % (i < 20 ? 2000 : 100000);
        bit = (char)(1 << (state % 7));
        bytes[at] = (char)(bytes[at] ^ bit);
        write_start(length);
        load(context, 0);
        bytes[at] = (char)(bytes[at] ^ bit);
    }

    remove(path);
    free(bytes);
    model = open_model(context, argv[1]);
    still_generates(model);
    OK(doppler_model_destroy(model));
    OK(doppler_context_destroy(context));
    return 0;
}
