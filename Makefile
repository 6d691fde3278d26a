# What a person does with this repository. Works with GNU make 3.81 and later.
#
#   make demo     build the library, compile a C program against it, and let it talk
#   make test     all tests
#   make lib      the shared library alone, in target/release
#   make header   write include/doppler.h anew from the Rust sources
#   make lint     formatting and clippy
#   make install  library, headers and pkg-config file under PREFIX (and DESTDIR)
#   make clean

CARGO  ?= cargo
CC     ?= cc
PREFIX ?= /usr/local
DEMO_MODEL ?= assets/hearth-5m-Q8_0.gguf

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SYSTEM  := $(shell uname -s)
RELEASE := $(or $(CARGO_TARGET_DIR),target)/release

# Drivers that run on the CPU want a directory for their sockets; any will do.
export XDG_RUNTIME_DIR := $(or $(XDG_RUNTIME_DIR),$(or $(TMPDIR),/tmp))

ifeq ($(SYSTEM),Darwin)
LIB := libdoppler.dylib
else ifneq (,$(findstring MINGW,$(SYSTEM))$(findstring MSYS,$(SYSTEM))$(findstring CYGWIN,$(SYSTEM)))
LIB := doppler.dll
else
LIB := libdoppler.so
endif

.PHONY: all demo test lib header lint install clean vulkan

all: lib

# Finds a Vulkan driver, or installs a software one on Debian and Ubuntu. Nothing to do on macOS and Windows.
vulkan:
	@sh scripts/ensure-vulkan.sh

# Cargo optimises across crates only where a build has a single crate type, hence `cargo rustc`.
# The header is committed and a test keeps it true to the sources, so building does not write it.
lib:
	$(CARGO) rustc --release --locked --lib --crate-type cdylib --no-default-features

demo: vulkan lib
	$(CC) -std=c11 -O2 -Wall -Wextra -Iinclude examples/c/generate.c -o $(RELEASE)/demo \
	    -L$(RELEASE) -ldoppler -Wl,-rpath,$(abspath $(RELEASE))
	PATH="$(abspath $(RELEASE)):$$PATH" $(RELEASE)/demo $(DEMO_MODEL)

test: vulkan
	$(CARGO) test --locked --no-fail-fast --features api-trace

header:
	BLESS=1 $(CARGO) test --locked --features api-trace --test tidy_header

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings

install: lib
	install -d $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include
	install -m 755 $(RELEASE)/$(LIB) $(DESTDIR)$(PREFIX)/lib/$(LIB)
	for h in include/*.h include/*.hpp; do \
	    if [ -e "$$h" ]; then install -m 644 "$$h" $(DESTDIR)$(PREFIX)/include/ || exit 1; fi; done
	{ echo 'prefix=$(PREFIX)'; echo 'libdir=$${prefix}/lib'; echo 'includedir=$${prefix}/include'; echo; \
	  echo 'Name: doppler'; echo 'Description: Language models on any GPU that wgpu reaches'; \
	  echo 'Version: $(VERSION)'; echo 'Libs: -L$${libdir} -ldoppler'; echo 'Cflags: -I$${includedir}'; \
	} > $(DESTDIR)$(PREFIX)/lib/pkgconfig/doppler.pc

clean:
	$(CARGO) clean
