# What people type. `make demo` and `make test` set up what they need; the others expect it to be there.

ifeq ($(shell id -u),0)
PREFIX ?= /usr/local
else
PREFIX ?= $(HOME)/.local
endif
export PREFIX
# Where rustup puts cargo: it may have been installed a moment ago, after this shell read its profile.
export PATH := $(HOME)/.cargo/bin:$(PATH)

.PHONY: help demo setup test check bench fuzz
help:
	@echo 'make demo    set everything up and open the workspace signed-links of the example project'
	@echo 'make setup   only set up: packages, binary, example project'
	@echo 'make test    all checks and tests'
	@echo 'make check   formatting, lints, dependency rules, example project'
	@echo 'make bench   measure, against a floor made in the same run'
	@echo 'make fuzz    look for inputs that break what must hold, FUZZ_SECONDS (600) for each target'

demo: setup
	$(PREFIX)/bin/envforge up signed-links -c

setup:
	scripts/setup

test:
	scripts/setup --test-deps
	$(MAKE) check
	cargo build --locked --package envforge
	scripts/check-documents
	cargo test --locked --workspace

# fuzz is a workspace of its own, which takes long to build: its form and its lock file are checked here, and what it
# calls is run by tests.
check:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo update --locked --quiet --workspace --manifest-path fuzz/Cargo.toml
	scripts/check-dependencies
	scripts/check-example

bench:
	cargo build --locked --release --package envforge
	cargo build --locked --release --package envforge-testkit --example sockets --example drivers
	bench/run

# Stops at the first finding. What is new is kept below fuzz/target; fuzz/corpus holds what tests run too. Without a
# sanitizer, which only a nightly compiler has: there is no unsafe code in what is fuzzed. Inputs grow fast (len_control):
# what happens to the streams of a tunnel takes some hundred octets.
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= labels tokens paths tunnel
fuzz:
	command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	set -e; for target in $(FUZZ_TARGETS); do \
	    mkdir -p fuzz/target/corpus/$$target; \
	    cargo fuzz run --sanitizer none $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
	        -max_total_time=$(FUZZ_SECONDS) -len_control=10 -timeout=30 -rss_limit_mb=1024 -print_final_stats=1; \
	done
